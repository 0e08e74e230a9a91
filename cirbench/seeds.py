"""Seeds are derived, not shared: adding a consumer never shifts the draws of the others."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def derive(seed: int, *purpose: Any) -> int:
    """A 63-bit seed for one purpose.

    Example:
        >>> derive(0, "batches", 1) != derive(0, "batches", 2)
        True
    """
    text = json.dumps([seed, *purpose], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
