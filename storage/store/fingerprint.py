"""Stable identities: the same meaning gives the same fingerprint, on any machine, in any process."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_PLAIN = frozenset((str, int, bool, type(None)))
"""What needs no look: thousands of models have millions of such parts."""


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for `value`.

    Accepts None, booleans, integers, finite floats, strings, and lists, tuples and string-keyed
    mappings of them. Anything else has no stable identity (a set's order, an object's repr), so it
    raises TypeError instead of giving a fingerprint that would differ tomorrow.
    """
    canonical = json.dumps(
        _stable(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _stable(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}: only finite numbers have a fingerprint")
        return value
    if isinstance(value, list | tuple):
        return [
            item if type(item) in _PLAIN else _stable(item, f"{where}[{index}]")
            for index, item in enumerate(value)
        ]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: only strings have a fingerprint")
        return {
            key: item if type(item) in _PLAIN else _stable(item, f"{where}.{key}")
            for key, item in value.items()
        }
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable fingerprint")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
