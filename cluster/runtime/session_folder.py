"""The folder of a private Ray session, under a path that is short enough for the session's sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.environment import environment_variable
from storage.errors import UserError

_VARIABLES = ("RAY_TMPDIR", "TMPDIR")
_DEFAULT_FOLDER = "/tmp"  # noqa: S108
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_MAX_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux."""
_LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_MAX_FOLDER_BYTES = _MAX_PATH_BYTES - len(f"/{_LONGEST_SOCKET}")
_VLLM_SOCKETS = "VLLM_RPC_BASE_PATH"


class SessionFolder:
    """The folder RAY_TMPDIR, TMPDIR or /tmp, which holds a session's logs, sockets and spilled objects.

    `path` is the folder or, if its path is too long for sockets, a link to it in a private folder.

    Raises:
        UserError: if the folder is not writable, or there is no place for the link.
    """

    def __init__(self) -> None:
        variable = next((name for name in _VARIABLES if os.environ.get(name)), "TMPDIR")
        folder = Path(os.environ.get(variable) or _DEFAULT_FOLDER).absolute()
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise UserError(f"{variable}: {folder} is not a writable folder; set {variable} to one")
        self._link_folder: Path | None = None
        self.path = folder
        if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
            self._link_folder = _make_private_folder(f"{variable}: {folder}")
            self.path = self._link_folder / "tmp"
            self.path.symlink_to(folder)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Let processes that are started inside the block place vLLM's sockets in the folder, too."""
        with environment_variable(_VLLM_SOCKETS, os.environ.get(_VLLM_SOCKETS, str(self.path))):
            yield

    def remove_link(self) -> None:
        """Remove the link, after the session's processes have exited."""
        if self._link_folder is not None:
            # rmtree removes the link, not what it points to
            shutil.rmtree(self._link_folder, ignore_errors=True)


def _make_private_folder(described: str) -> Path:
    """Create an empty folder with mode 0700 and a short path."""
    for parent in _SHORT_FOLDERS:
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="neuralign-", dir=parent))
    raise UserError(
        f"{described} is too long a path for sockets, and {', '.join(_SHORT_FOLDERS)} are not writable; "
        f"set RAY_TMPDIR to a writable folder whose path has at most {_MAX_FOLDER_BYTES} bytes"
    )
