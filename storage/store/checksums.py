"""Readers compare what they read with its SHA-256 in the manifest, so that nothing is computed from
damaged files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StoreError
from storage.store.fingerprint import hash_file
from storage.store.paths import explain_read_errors, is_remote, read_bytes

DAMAGED = "is damaged (checksum mismatch); delete it and rerun the sweep"
MISSING = "is missing; rerun the sweep"


def damage_error(path: Path) -> StoreError:
    """The error of a reader that finds a file damaged."""
    return StoreError(f"{path}: {DAMAGED}; `neuralign verify` checks all files")


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of a listed file. Raises StoreError if it is missing or damaged."""
    with _explain_missing(path):
        content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise damage_error(path)
    return content


def check_file(path: Path, sha256: str) -> None:
    """Raise StoreError if a listed file is missing or damaged."""
    if is_remote(path):
        read_checked(path, sha256)
        return
    with _explain_missing(path):
        actual = hash_file(path)
    if actual != sha256:
        raise damage_error(path)


@contextmanager
def blame_damage(path: Path, sha256: str) -> Iterator[None]:
    """Read a listed file; any error is reported as the file's damage if the file is damaged."""
    try:
        with explain_read_errors(path):
            yield
    except Exception:
        check_file(path, sha256)
        raise


@contextmanager
def _explain_missing(path: Path) -> Iterator[None]:
    try:
        with explain_read_errors(path):
            yield
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise StoreError(f"{path}: {MISSING}") from error
        raise
