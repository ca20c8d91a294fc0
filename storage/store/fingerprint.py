"""Stable identities: equal values have equal fingerprints on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_PLAIN_TYPES = frozenset((str, int, bool, type(None)))
"""Types that need no check: the identities of thousands of models have millions of such items."""


def fingerprint(value: Any) -> str:
    """Fingerprint of a value: 16 hexadecimal digits.

    Accepts None, booleans, integers, finite floats, strings, and lists, tuples and string-keyed dicts of
    them.

    Raises:
        TypeError: for anything else, because its representation is not stable (a set's order, an
            object's repr).
    """
    _check_types(value, "value")
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _check_types(value: Any, path: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path} is {value}: only finite numbers have a fingerprint")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if type(item) not in _PLAIN_TYPES:
                _check_types(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: keys must be strings")
            if type(item) not in _PLAIN_TYPES:
                _check_types(item, f"{path}.{key}")
    elif not (value is None or isinstance(value, bool | int | str)):
        raise TypeError(f"{path} is a {type(value).__name__}, which has no stable fingerprint")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
