"""A cache of models that were converted or initialized on this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from storage.readers.strict_json import parse_json
from storage.store.commit import fsync
from storage.store.fingerprint import hash_file

CHECKSUMS_FILE = "checksums.json"
"""SHA-256 of each file of a model in the cache."""


def find_settings(name: str) -> Path | None:
    """The folder of a model in the cache, if its files other than the weights are there and intact."""
    folder = _cache_folder(name)
    return folder if _is_intact(folder, with_weights=False) else None


def build_in_cache(name: str, build: Callable[[Path], None]) -> Path:
    """The folder of a model in the cache, whose content `build` writes if it is missing or damaged.

    A folder without checksums, as of earlier versions, counts as damaged. A failed build leaves nothing
    behind.
    """
    final = _cache_folder(name)
    if _is_intact(final):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=final.parent))
    try:
        build(target)
        _write_checksums(target)
        for path in target.iterdir():
            fsync(path)
        try:
            target.rename(final)
        except OSError:
            # Another process finished first, with the same result, or a damaged folder is there.
            if not _is_intact(final):
                _remove(final)
                target.rename(final)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return final


def _cache_folder(name: str) -> Path:
    return Path(platformdirs.user_cache_dir("neuralign")) / "models" / name


def _write_checksums(folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    hashes = {name: hash_file(folder / name) for name in names if name != CHECKSUMS_FILE}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(hashes, indent=1))


def _is_intact(folder: Path, with_weights: bool = True) -> bool:
    """Whether the files of a folder exist and are those that were written."""
    try:
        hashes = parse_json((folder / CHECKSUMS_FILE).read_bytes())
        return all(
            hash_file(folder / name) == sha256
            for name, sha256 in hashes.items()
            if with_weights or not name.endswith(".safetensors")
        )
    except (OSError, ValueError, AttributeError):
        return False


def _remove(folder: Path) -> None:
    """Remove a folder, at once for other processes."""
    trash = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        folder.rename(trash / folder.name)
    finally:
        shutil.rmtree(trash, ignore_errors=True)
