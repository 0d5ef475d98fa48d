"""``rbl train``: train a defense and keep its weights where ``rbl run`` finds them."""

from __future__ import annotations

from pathlib import Path

import click

from robustbench_lite.cli.app import App
