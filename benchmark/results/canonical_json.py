"""JSON that says the same in the same bytes. Needs no torch."""

from __future__ import annotations

import hashlib
import json


def dumps(value: object) -> str:
    """JSON for people and for comparing: sorted keys, indented, a newline at the end; not-a-number is refused."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def digest(value: object) -> str:
    """A 20-digit hexadecimal address of a value: SHA-256 of its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
