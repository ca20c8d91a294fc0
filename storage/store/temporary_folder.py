"""Temporary folders that do not outlive their process for long, even if it is killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "neuralign-"
_OWNER = "owner"
"""A file that the process locks as long as it uses the folder."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder in TMPDIR, removed at the end. Folders of processes that were killed, whose locks
    the kernel has released, are removed first."""
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        starting, contents = Path(name, "starting"), Path(name, "contents")
        with starting.open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            # Others see the file once it is locked.
            starting.rename(starting.with_name(_OWNER))
            contents.mkdir()
            yield contents


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNER}"):
        # It is locked, another user's, or removed meanwhile.
        with suppress(OSError), path.open("r+") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
