"""A head that is started as a file in `deploy/` starts it must refuse whoever has no token: a client can
run code on all nodes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from tests.ray_head import running_head

_ROOT = Path(__file__).parent.parent
_DEPLOY = _ROOT / "deploy"
_TOKEN = "0123456789abcdef" * 4
_SECONDS = 120
_RAY_CLUSTERS = ("raycluster.yaml", "rayjob.yaml", "raycronjob.yaml")


class _Start(NamedTuple):
    """A shell command that starts a head, and the environment variables that the file sets."""

    command: str
    environment: dict[str, str]


def _image_environment() -> dict[str, str]:
    lines = (_DEPLOY / "Dockerfile").read_text().splitlines()
    return dict(line.removeprefix("ENV ").split("=", 1) for line in lines if line.startswith("ENV "))


def _cluster_spec(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((_DEPLOY / name).read_text())["spec"]
    spec = spec.get("jobTemplate", spec)
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


def _start_of(name: str) -> _Start:
    if name == "cluster.yaml":
        content = yaml.safe_load((_DEPLOY / name).read_text())
        *_, command = content["head_start_ray_commands"]
        # needs the nodes
        return _Start(re.sub(r"--autoscaling-config=\S+", "", command), {})
    parameters = _cluster_spec(name)["headGroupSpec"]["rayStartParams"]
    options = " ".join(f"--{key}={shlex.quote(value)}" for key, value in parameters.items())
    # KubeRay's own variables are left out: versions before 1.5.1 ignore authOptions
    return _Start(f"~/neuralign/bin/ray start --head {options}", _image_environment())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with the programs and the token where the files expect them."""
    (tmp_path / "neuralign").mkdir()
    (tmp_path / "neuralign/bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(_TOKEN)
    return tmp_path


def _status(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


_CONNECT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("ran", ray.get(ray.remote(lambda: 6 * 7).options(num_cpus=0).remote()))
"""


def _connect(gcs: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", _CONNECT, gcs],
        env={**own, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("name", ["cluster.yaml", "raycluster.yaml"])
def test_a_head_refuses_whoever_has_no_token(name: str, home: Path, tmp_path: Path) -> None:
    """`ray up deploy/cluster.yaml` started a head on all interfaces that ran the code of anyone."""
    start = _start_of(name)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    with running_head(start.command, {**start.environment, "HOME": str(home)}) as head:
        jobs = f"{head.address}/api/jobs/"
        assert _status(jobs) == 401
        assert _status(jobs, Authorization="Bearer wrong") == 403
        assert _status(jobs, Authorization=f"Bearer {_TOKEN}") == 200
        refused = _connect(head.gcs, stranger)
        assert refused.returncode != 0
        assert "ran" not in refused.stdout
        assert "uthentication" in refused.stderr
        accepted = _connect(head.gcs, home, RAY_AUTH_MODE="token")
        assert accepted.stdout == "ran 42\n", accepted.stderr
        if name == "cluster.yaml":
            port = int(head.address.rpartition(":")[2])
            hosts = {
                connection.laddr.ip
                for process in psutil.Process(head.pid).children(recursive=True)
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            }
            assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize("name", ["cluster.yaml", "raycluster.yaml"])
def test_a_head_without_a_token_does_not_start(name: str, home: Path) -> None:
    """Where the token was missing, the head started, and admitted everyone."""
    start = _start_of(name)
    (home / ".ray/auth_token").unlink()
    environment = {**start.environment, "HOME": str(home)}
    with (
        pytest.raises(AssertionError, match="the head exited"),
        running_head(start.command, environment) as head,
    ):
        assert _status(f"{head.address}/api/jobs/") == 401


def test_all_kuberay_clusters_start_their_heads_alike() -> None:
    """Only one of them is started by a test."""
    assert len({json.dumps(_start_of(name), sort_keys=True) for name in _RAY_CLUSTERS}) == 1
    for name in _RAY_CLUSTERS:
        assert _cluster_spec(name)["authOptions"] == {"mode": "token"}
