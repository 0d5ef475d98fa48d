"""The factory of a metric that needs torch for what numpy does as well."""

from __future__ import annotations

import torch
from broken_others import Share

__all__ = ["Share", "torch"]
