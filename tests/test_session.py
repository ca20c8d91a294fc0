"""A private Ray session must start in any temporary folder, and keep its data there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.runtime import session, session_folder
from cluster.runtime.auth_token import protect_token, read_token
from cluster.runtime.session_folder import SessionFolder
from storage.errors import SessionLost, UserError

_ROOT = Path(__file__).parent.parent

_SESSION = """
import os, tempfile
import numpy as np, ray
from pathlib import Path
from cluster.runtime.session import connect, shutdown_on_exit

@ray.remote
def folders():
    return tempfile.gettempdir(), os.environ["VLLM_RPC_BASE_PATH"]  # where vLLM places sockets

with shutdown_on_exit():
    connect()
    print(*ray.get(folders.remote()), sep="\\n")
    link = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
    print(oct(link.parent.stat().st_mode & 0o777))
    objects = [ray.put(np.ones(5 << 20)) for _ in range(10)]
    assert sum(ray.get(item)[0] for item in objects) == 10
    spilled = list(Path(tempfile.gettempdir()).rglob("ray_spilled_objects*/*"))
    print(sum(file.stat().st_size for file in spilled) >> 20)
print(sum(file.exists() for file in spilled))
"""


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    """A folder with a path of 150 characters, as a Slurm job's TMPDIR may have."""
    folder = Path(f"{tmp_path}/{'x' * (149 - len(str(tmp_path)))}")
    folder.mkdir()
    return folder


def test_a_session_starts_in_a_folder_with_a_long_path(long_folder: Path) -> None:
    """Ray would fail with "AF_UNIX path length cannot exceed 107 bytes", or data fill a small /tmp."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _SESSION],
        env={**environment, "TMPDIR": str(long_folder), "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    temporary, sockets, mode, spilled_mb, left = done.stdout.split()
    assert temporary == str(long_folder)
    assert len(f"{sockets}/{'0' * 36}") <= 107  # vLLM's sockets have names of 36 characters
    assert mode == "0o700"
    assert int(spilled_mb) > 100
    assert int(left) == 0
    assert not Path(sockets).is_symlink()
    assert not Path(sockets).parent.exists()
    assert long_folder.is_dir()


def test_a_folder_with_a_short_path_is_used_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty or relative TMPDIR made Ray time out."""
    monkeypatch.chdir("/")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for value, path in (("", "/tmp"), ("tmp", "/tmp"), ("/var/tmp", "/var/tmp")):  # noqa: S108
        monkeypatch.setenv("TMPDIR", value)
        assert SessionFolder().path == Path(path)
    monkeypatch.setenv("RAY_TMPDIR", "/dev")
    assert SessionFolder().path == Path("/dev")


def test_other_users_cannot_read_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray makes it readable by all users of the machine, who could then run code as this one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / ".ray/auth_token"
    protect_token()
    token = path.read_text()
    assert len(token) == 64
    for mode in (0o600, 0o644):
        path.chmod(mode)
        protect_token()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text() == read_token() == token


def test_a_session_without_a_folder_is_refused(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user would see a traceback of Ray, or data would silently go elsewhere."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/nowhere/tmp")
    with pytest.raises(UserError, match=r"^TMPDIR: /nowhere/tmp is not a writable folder; set TMPDIR"):
        SessionFolder()
    monkeypatch.setenv("TMPDIR", str(long_folder))
    monkeypatch.setattr(session_folder, "_SHORT_FOLDERS", ("/nowhere", str(long_folder / "file")))
    with pytest.raises(UserError, match=r"too long a path for sockets, and /nowhere, .* set RAY_TMPDIR"):
        SessionFolder()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_session_that_does_not_start_is_tried_again_and_then_one_line(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """A process of Ray that was killed while it started ended a sweep in a traceback."""
    errors = [Exception("The current node timed out during startup. It failed.\nMore.")] * failures

    def init(**_: object) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    if failures == 1:
        session.connect()
        return
    with pytest.raises(SessionLost) as caught:
        session.connect()
    (line,) = str(caught.value).splitlines()
    assert line.startswith("Ray did not start on this machine: Exception: The current node timed out")
    assert line.endswith("run the same command to resume")
