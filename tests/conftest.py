"""Shared parts of the tests. Tests that take longer run last."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from cluster.weights import Weights, resolve
from tests import planted, tiny
from tests.study import PRINTED, make_study

# several processes share the cores: two threads of each would mostly wait for one another
torch.set_num_threads(1)

_LAST = [
    *("test_shard", "test_queue", "test_pipeline", "test_deaths", "test_sweep", "test_stopped"),
    *("test_nodes", "test_cluster", "test_demo"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return _LAST.index(name) + 1 if name in _LAST else 0

    items.sort(key=rank)


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
    """A folder with a finished sweep (see tests/study.py), made once for all processes that run tests.
    They leave it as it is."""
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
    """What killed sweeps had started: it must be gone when all tests are done. After a SIGKILL, Ray's
    agents take a minute to give their cluster up."""
    processes: list[psutil.Process] = []
    yield processes
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not alive
