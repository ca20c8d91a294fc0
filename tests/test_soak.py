"""`make soak` must kill processes of real sweeps, and notice what a kill does to a store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storage.store import layout
from tests.commands import rows
from tests.soak import find_problems, soak


@pytest.mark.slow
def test_a_sweep_survives_kills(tmp_path: Path) -> None:
    """The soak would run without killing anything."""
    outcome = soak(tmp_path, kills=2, seed=3)
    assert outcome.problems == []
    assert outcome.kills.total() == 2


def test_differences_and_leftovers_are_noticed(study: Path, tmp_path: Path) -> None:
    """Every store would pass."""
    store = tmp_path / "store"
    shutil.copytree(study / "results/sweep", store)
    expected = rows(store)
    assert not list(find_problems(store, expected))
    lost = expected | {"experts": expected["experts"][1:]}
    assert [problem.split(":")[0] for problem in find_problems(store, lost)] == ["experts"]
    stage = next(store.glob("experts/*"))
    left = [stage / layout.RUNNING, stage / "file.parquet.tmp"]
    for path in left:
        path.write_text("{}")
    verify, *others = find_problems(store, expected)
    assert verify.startswith(f"verify: {left[1]}: is not listed")
    assert others == [f"left behind: {path}" for path in left]
