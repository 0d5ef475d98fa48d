"""``rbl train``: train a defense and keep its weights where ``rbl run`` finds them."""

from __future__ import annotations
