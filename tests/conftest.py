"""Fixtures of the tests. Slow files run first, so that all processes finish together."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import ray
import torch
from hypothesis import HealthCheck, settings

from cluster.models.weights import Weights, resolve
from tests import planted, tiny
from tests.study import PRINTED, make_study

# no deadlines, so that a busy machine fails no test, and the same examples each time;
# `--hypothesis-profile=default` draws others
settings.register_profile(
    "neuralign", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("neuralign")

# several test processes share the cores
torch.set_num_threads(1)

if TYPE_CHECKING:
    from jobs.page.serve import Server
    from tests.browser import Browser

_FIRST = [
    *(
        "test_demo",
        "test_cluster",
        "test_nodes",
        "test_faults",
        "test_damage",
        "test_stopped",
        "test_sweep",
    ),
    *("test_page", "test_steering", "test_when", "test_generation", "test_pipeline", "test_deaths"),
    *("test_object_store", "test_correlation", "test_partial", "test_expertise", "test_selection"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return _FIRST.index(name) if name in _FIRST else len(_FIRST)

    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def _no_session_left() -> Iterator[None]:
    """Every test file must shut down the Ray that it started."""
    yield
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with a BOS and without a pad token."""
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The planted model."""
    folder = planted.make_model(tmp_path_factory.mktemp("planted"))
    return resolve(str(folder), "main", folder)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of a finished sweep (tests/study.py), created once for all test processes; read only."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "study" / PRINTED).is_file():
            make_study(shared / "study", tiny_model)
    return shared / "study"


@pytest.fixture(scope="session")
def started() -> Iterator[list[psutil.Process]]:
    """Processes started by killed sweeps, which must have exited at the end. After a SIGKILL, Ray's
    agents take a minute to shut down."""
    processes: list[psutil.Process] = []
    yield processes
    _, alive = psutil.wait_procs(processes, timeout=300)
    assert not alive


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Store of a finished sweep with hostile names everywhere in its data."""
    from tests import hostile

    return hostile.make_store(tmp_path_factory.mktemp("hostile"), tiny_model)


@pytest.fixture(scope="session")
def report(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that store, as written by the command."""
    from jobs.report import write_latest

    out = tmp_path_factory.mktemp("report")
    write_latest(store, out)
    return out


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[Server]:
    """A server of that store."""
    from jobs.page.serve import make_server

    with make_server(store, 0) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield http_server
        http_server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def window() -> Iterator[Browser]:
    """A real browser."""
    from tests import browser

    with browser.start_browser() as browser_window:
        yield browser_window
