"""A Ray head with a job server, started as users start one, with its own ports and folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_SECONDS = 300


class Head(NamedTuple):
    """The addresses of a head's job server and GCS, its service discovery file for Prometheus, and the
    process that started it."""

    address: str
    metrics: Path
    gcs: str
    pid: int


@contextmanager
def ray_head(cpus: int = 2) -> Iterator[Head]:
    """Start a head."""
    ray = Path(sys.executable).parent / "ray"
    command = f"{ray} start --head --include-dashboard=true --num-cpus={cpus}"
    with running_head(command, {}) as head:
        yield head


@contextmanager
def running_head(command: str, environment: Mapping[str, str]) -> Iterator[Head]:
    """Start a head with a shell command, to which its own ports and folder are added, and environment
    variables."""
    # a short path, because the paths of a session's sockets are limited in length
    folder = Path(tempfile.mkdtemp(prefix="nr", dir="/tmp"))
    gcs, dashboard, agent, client = _free_ports(4)
    programs = Path(sys.executable).parent
    options = [
        *("--block", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--temp-dir={folder}", "--object-store-memory=100000000", "--disable-usage-stats"),
    ]
    root = str(Path(__file__).parent.parent)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # jobs are started as `python`
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    head = subprocess.Popen(
        ["bash", "-c", f"{command} {' '.join(options)}"],
        env={**inherited, "PYTHONPATH": root, "PATH": path, **environment},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(address, head)
        metrics = folder / "prom_metrics_service_discovery.json"
        yield Head(address, metrics, f"127.0.0.1:{gcs}", head.pid)
    finally:
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(head.pid).children(recursive=True)
            head.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs([psutil.Process(head.pid), *started], timeout=20)
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        head.wait(timeout=_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Free ports outside the ephemeral range, so that no other process gets them by chance."""
    ports = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no ports are free")


def _wait(address: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, "the head exited"
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it requires the token
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("the head does not respond")
