"""`neuralign doctor`: checks of the environment, with a fix for each that fails."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jobs.actions.output import stdout_console
from storage.errors import NeuralignError

_GB = 1e9
_MIN_MEMORY = 4 * _GB
_MIN_DISK = 5 * _GB
_MIN_SHARED_MEMORY = 0.3 * _GB
_HUB_TIMEOUT_SECONDS = 5.0
_MIN_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One check: what was checked, what was found and, if it failed, how to fix it."""

    name: str
    value: str
    fix: str = ""


def print_checks(file: Path | None, address: str | None) -> int:
    """Print one line per check, and a fix for each that fails; return 1 if any does."""
    console = stdout_console()
    groups = [_versions(), _devices(), _memory(), _disk(), _ray(), _hub()]
    if address is not None:
        groups.append(_job_server(address))
    if file is not None:
        groups.append(_sweep(file))
    failures = 0
    for check in chain.from_iterable(groups):
        outcome = "FAIL" if check.fix else "ok  "
        console.print(f"{outcome}  {check.name}: {check.value}", soft_wrap=True)
        if check.fix:
            failures += 1
            console.print(f"      {check.fix}", soft_wrap=True)
    console.print(f"{failures} problems" if failures else "all checks passed")
    return 1 if failures else 0


def _versions() -> Iterator[Check]:
    fix = "" if sys.version_info >= _MIN_PYTHON else "install Python 3.11 or newer"
    yield Check("Python", platform.python_version(), fix)
    requirements, missing, mismatched = list[str](), list[str](), list[str]()
    # the code of a submitted job is not installed as a package
    with suppress(importlib.metadata.PackageNotFoundError):
        requirements = importlib.metadata.requires("neuralign") or []
    for line in requirements:
        requirement, _, marker = line.partition(";")
        if "extra" in marker:
            continue
        problem = _find_problem(requirement)
        if problem:
            problems = missing if problem == "missing" else mismatched
            problems.append(f"{requirement.strip()} ({problem})")
    fix = "pip install -c constraints.txt -e ." if missing or mismatched else ""
    yield Check("packages", ", ".join([*missing, *mismatched]) or "all installed", fix)


def _find_problem(line: str) -> str:
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
    is_met = requirement.specifier.contains(version, prereleases=True)
    return "" if is_met else f"{version} is installed"


def _devices() -> Iterator[Check]:
    import torch

    from cluster.runtime.devices import count_gpus, default_dtype

    n_gpus = count_gpus()
    fix = ""
    if n_gpus and not torch.cuda.is_available():
        fix = f"torch {torch.__version__} does not support CUDA; install a CUDA build"
    gpus = f"{n_gpus} GPUs" if n_gpus else "no GPU"
    dtype = default_dtype(n_gpus > 0)
    yield Check("devices", f"{gpus}, {os.cpu_count()} CPU cores, default dtype {dtype}", fix)


def _memory() -> Iterator[Check]:
    memory_file = Path("/proc/meminfo")
    if memory_file.is_file():
        fields = dict(line.split(":") for line in memory_file.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        fix = "model weights must fit; close other programs" if available < _MIN_MEMORY else ""
        yield Check("memory", f"{available / _GB:,.1f} GB available", fix)
    shared = Path("/dev/shm")  # noqa: S108
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        is_small = free < _MIN_SHARED_MEMORY
        fix = "Ray keeps objects there; enlarge it, e.g. with `docker run --shm-size=2g`"
        yield Check("shared memory", f"{free / _GB:,.1f} GB free", fix if is_small else "")


def _disk() -> Iterator[Check]:
    import platformdirs

    folders = {
        "cache": Path(platformdirs.user_cache_dir("neuralign")),
        "temporary files": Path("/tmp"),  # noqa: S108
    }
    for name, folder in folders.items():
        existing = folder
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        fix = "free disk space" if free < _MIN_DISK else ""
        if not os.access(existing, os.W_OK):
            fix = f"this user cannot write to {existing}; change its permissions"
        yield Check(name, f"{folder}, {free / _GB:,.0f} GB free", fix)


def _ray() -> Iterator[Check]:
    import ray

    from cluster.runtime import session

    is_external = session.uses_external_cluster()
    location = f"cluster {os.environ['RAY_ADDRESS']}" if is_external else "local"
    name = f"Ray {ray.__version__}, {location}"
    with _catch_errors(name) as checks, session.shutdown_on_exit():
        session.connect()
        nodes = sum(node["Alive"] for node in ray.nodes())
        resources = f"{session.cluster_cpus()} CPUs, {session.cluster_gpus()} GPUs"
        checks.append(Check(name, f"{nodes} nodes, {resources}"))
    yield from checks


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants

    name = f"Hugging Face Hub {constants.ENDPOINT}"
    if constants.HF_HUB_OFFLINE:
        yield Check(name, "offline (HF_HUB_OFFLINE); only downloaded models are available")
        return
    value, fix = "reachable", ""
    try:
        url = f"{constants.ENDPOINT}/api/models?limit=1"
        urllib.request.urlopen(url, timeout=_HUB_TIMEOUT_SECONDS).close()  # noqa: S310
    except (OSError, ValueError) as error:
        value = f"{type(error).__name__}: {error}".splitlines()[0]
        fix = "needed for Hub models; or download them and set HF_HUB_OFFLINE=1"
    yield Check(name, value, fix)


def _job_server(address: str) -> Iterator[Check]:
    from cluster.runtime.job_server import JobServer

    with _catch_errors("job server") as checks:
        server = JobServer(address)
        checks.append(Check("job server", f"{server.address} is reachable, {len(server.jobs())} jobs"))
    yield from checks


def _sweep(file: Path) -> Iterator[Check]:
    from jobs.config.loader import read_sweep
    from jobs.planner import plan_sweep
    from storage.store import layout
    from storage.store.paths import file_size

    name = f"sweep {file}"
    with _catch_errors(name) as checks:
        n_models = len(plan_sweep(read_sweep(file)).weights)
        checks.append(Check(name, f"{n_models} models found"))
    yield from checks
    with _catch_errors("store") as checks:
        store = read_sweep(file).store_path
        if file_size(store / layout.STORE_FILE) is None:
            checks.append(Check("store", f"{store}: does not exist yet; created by the first run"))
        else:
            layout.check_store(store)
            is_writable = os.access(store, os.W_OK) or "://" in str(store)
            fix = "" if is_writable else "this user cannot write to it; change its permissions"
            checks.append(Check("store", str(store), fix))
    yield from checks


@contextmanager
def _catch_errors(name: str) -> Iterator[list[Check]]:
    """Collect checks; an expected error becomes a failed check."""
    checks = list[Check]()
    try:
        yield checks
    except (NeuralignError, OSError) as error:
        first_line, _, _ = str(error).partition("\n")
        checks.append(Check(name, f"on {socket.gethostname()}", first_line))
