"""A cache of models that were converted or initialized on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from storage.store.commit import fsync


def cache_folder(name: str) -> Path:
    """Folder of a model in the cache, which may not exist yet."""
    return Path(platformdirs.user_cache_dir("neuralign")) / "models" / name


def build_in_cache(name: str, build: Callable[[Path], None]) -> Path:
    """The folder of a model in the cache; if it does not exist, `build` writes its content first.

    A failed build leaves nothing behind.
    """
    final = cache_folder(name)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=final.parent))
    try:
        build(target)
        for path in target.iterdir():
            fsync(path)
        try:
            target.rename(final)
        except OSError:
            # Another process finished first; its result is identical.
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return final
