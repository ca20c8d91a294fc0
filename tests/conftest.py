"""Shared parts of the tests. Tests that take longer run last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.weights import Weights, resolve
from tests import planted, tiny

# several processes share the cores: two threads of each would mostly wait for one another
torch.set_num_threads(1)

_LAST = [
    *("test_shard", "test_queue", "test_pipeline", "test_deaths", "test_sweep", "test_nodes"),
    *("test_cluster", "test_demo"),
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
