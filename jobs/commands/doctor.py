"""Is everything here that a sweep needs, and what to do about what is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from storage.errors import NeuralignError

_GB = 1e9
_LEAST_MEMORY = 4 * _GB
_LEAST_DISK = 5 * _GB
_LEAST_SHARED = 0.3 * _GB
_HUB_SECONDS = 5.0
_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is, whether it is well, and else what to do."""

    what: str
    found: str
    advice: str = ""


def examine(console: Console, file: Path | None, address: str | None) -> int:
    """Print what was found, a line each; the exit code, 1 where something is wrong."""
    looks: list[Callable[[], Iterator[Finding]]] = [_versions, _devices, _memory, _cache, _ray, _hub]
    if address is not None:
        looks.append(lambda: _job_server(address))
    if file is not None:
        looks.append(lambda: _sweep(file))
    wrong = 0
    for look in looks:
        for each in look():
            wrong += bool(each.advice)
            console.print(
                f"{'WRONG' if each.advice else 'well '}  {each.what}: {each.found}",
                markup=False,
                soft_wrap=True,
            )
            if each.advice:
                console.print(f"       {each.advice}", markup=False, soft_wrap=True)
    console.print(f"{wrong} things to mend" if wrong else "all is well")
    return 1 if wrong else 0


def _versions() -> Iterator[Finding]:
    found = platform.python_version()
    advice = "" if sys.version_info >= _PYTHON else "install Python 3.11 or newer"
    yield Finding("Python", found, advice)
    lacking, other = list[str](), list[str]()
    for line in _requirements():
        requirement, _, marker = line.partition(";")
        if "extra" in marker:
            continue
        problem = _problem(requirement)
        if problem:
            (lacking if problem == "missing" else other).append(f"{requirement.strip()} ({problem})")
    advice = "pip install -c constraints.txt -e ." if lacking or other else ""
    yield Finding("packages", ", ".join([*lacking, *other]) or "all there", advice)


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("neuralign") or []
    except importlib.metadata.PackageNotFoundError:
        # a job's working folder is not installed
        return []


def _problem(requirement: str) -> str:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
    return "" if wanted.specifier.contains(version, prereleases=True) else f"{version} is installed"


def _devices() -> Iterator[Finding]:
    import torch

    from cluster.runtime.devices import native_dtype, visible_gpus

    gpus = visible_gpus()
    advice = ""
    if gpus and not torch.cuda.is_available():
        advice = f"torch {torch.__version__} does not use them; install a torch for CUDA"
    found = f"{gpus} GPUs" if gpus else "no GPU"
    yield Finding("devices", f"{found}, {os.cpu_count()} CPU cores, fast in {native_dtype()}", advice)


def _memory() -> Iterator[Finding]:
    available = _available_memory()
    if available is not None:
        advice = "a model's weights must fit; close other programs" if available < _LEAST_MEMORY else ""
        yield Finding("memory", f"{available / _GB:,.1f} GB available", advice)
    shared = Path("/dev/shm")  # noqa: S108
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        advice = "give the container more, as with `docker run --shm-size=2g`: Ray keeps objects there"
        yield Finding(
            "shared memory", f"{free / _GB:,.1f} GB free", advice if free < _LEAST_SHARED else ""
        )


def _available_memory() -> int | None:
    information = Path("/proc/meminfo")
    if not information.is_file():
        return None
    lines = dict(line.split(":") for line in information.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _cache() -> Iterator[Finding]:
    import platformdirs

    for what, folder in (
        ("cache", Path(platformdirs.user_cache_dir("neuralign"))),
        ("temporary files", Path("/tmp")),  # noqa: S108
    ):
        place = folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        advice = "make space" if free < _LEAST_DISK else ""
        if not os.access(place, os.W_OK):
            advice = f"give this user the right to write in {place}"
        yield Finding(what, f"{folder}, {free / _GB:,.0f} GB free", advice)


def _ray() -> Iterator[Finding]:
    import ray

    from cluster.runtime.session import connect, cpus, disconnected_after, gpus, is_shared

    where = f"cluster {os.environ['RAY_ADDRESS']}" if is_shared() else "on this machine"
    what = f"Ray {ray.__version__}, {where}"
    with _told(what) as told, disconnected_after():
        connect()
        nodes = sum(node["Alive"] for node in ray.nodes())
        told.append(Finding(what, f"{nodes} nodes, {cpus()} CPUs, {gpus()} GPUs"))
    yield from told


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants

    what = f"Hugging Face hub {constants.ENDPOINT}"
    if constants.HF_HUB_OFFLINE:
        yield Finding(what, "not used (HF_HUB_OFFLINE); models that were downloaded are")
        return
    try:
        url = f"{constants.ENDPOINT}/api/models?limit=1"
        urllib.request.urlopen(url, timeout=_HUB_SECONDS).close()  # noqa: S310
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Finding(what, reason, "models by hub id need it, or HF_HUB_OFFLINE=1 and their download")
        return
    yield Finding(what, "answers")


def _job_server(address: str) -> Iterator[Finding]:
    from cluster.runtime.job_server import JobServer

    with _told("job server") as told:
        server = JobServer(address)
        told.append(Finding("job server", f"{server.address} answers, {len(server.jobs())} jobs"))
    yield from told


def _sweep(file: Path) -> Iterator[Finding]:
    from jobs.config import read_sweep
    from jobs.planner import plan
    from storage.store import layout
    from storage.store.paths import size

    with _told(f"sweep {file}") as told:
        planned = plan(read_sweep(file))
        told.append(Finding(f"sweep {file}", f"{len(planned.weights)} models are found"))
    yield from told
    with _told("store") as told:
        store = read_sweep(file).store_path
        if size(store / layout.MARK) is None:
            told.append(Finding("store", f"{store}: is not there yet; a run makes it"))
        else:
            layout.check(store)
            writable = os.access(store, os.W_OK) or "://" in str(store)
            advice = "" if writable else "give this user the right to write there"
            told.append(Finding("store", str(store), advice))
    yield from told


@contextmanager
def _told(what: str) -> Iterator[list[Any]]:
    """Findings of a look; what it raises for the user becomes one."""
    findings: list[Any] = []
    try:
        yield findings
    except (NeuralignError, OSError) as error:
        first, _, _ = str(error).partition("\n")
        findings.append(Finding(what, f"on {socket.gethostname()}", first))
