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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_SECONDS = 300


class Head(NamedTuple):
    """The address of a head's job server, and its service discovery file for Prometheus."""

    address: str
    metrics: Path


@contextmanager
def ray_head(cpus: int = 2) -> Iterator[Head]:
    """Start a head."""
    # a short path, because the paths of a session's sockets are limited in length
    folder = Path(tempfile.mkdtemp(prefix="nr", dir="/tmp"))
    gcs, dashboard, agent, client = _free_ports(4)
    programs = Path(sys.executable).parent
    command = [
        *(str(programs / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
        *("--include-dashboard=true", f"--temp-dir={folder}", f"--num-cpus={cpus}"),
        *("--object-store-memory=100000000", "--disable-usage-stats"),
    ]
    root = str(Path(__file__).parent.parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    head = subprocess.Popen(
        command,
        # jobs are started as `python`
        env={**environment, "PYTHONPATH": root, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(address, head)
        yield Head(address, folder / "prom_metrics_service_discovery.json")
    finally:
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
