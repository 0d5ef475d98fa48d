"""Bundles: results in one file, to hand to others; and what it takes for theirs to be believed.

A bundle is a zip file with ``manifest.json`` (see ``manifest.py``) and results laid out as a store has them: for each, what was
asked, its arrays, its commit, and adversarial examples where they were kept. Nothing in it is code, and nothing is unpickled.
``archive`` reads the file, ``contents`` looks at what is in it, ``transfer`` exports and imports, ``verify`` judges again.
"""

from __future__ import annotations

from robustbench_lite.bundle.archive import opened
from robustbench_lite.bundle.manifest import Manifest
from robustbench_lite.bundle.transfer import Imported, export_cells, import_bundle, remove_bundle

__all__ = ["Imported", "Manifest", "export_cells", "import_bundle", "opened", "remove_bundle"]
