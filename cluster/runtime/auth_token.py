"""Ray's token: whoever has it can run code on all nodes of a cluster or of a private session."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

_TOKEN, _PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_OTHERS = 0o077


def read_token() -> str:
    """The token, from the same places as Ray's own clients read it; empty without one."""
    token = os.environ.get(_TOKEN, "")
    if not token:
        path = Path(os.environ.get(_PATH) or _default_path())
        with suppress(OSError):
            token = path.read_text()
    return token.strip()


def protect_token() -> None:
    """Make the token of private sessions, unless there is one, and deny it to other users.

    Ray would make it too, but readable by everyone.
    """
    if os.environ.get(_TOKEN) or os.environ.get(_PATH):
        return
    path = _default_path()
    # without a home folder, Ray reports the error
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:  # noqa: PTH123
                file.write(secrets.token_hex(32))
        if path.stat().st_mode & _OTHERS:
            path.chmod(0o600)


def _default_path() -> Path:
    return Path.home() / ".ray" / "auth_token"
