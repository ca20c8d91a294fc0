"""Whatever happens to a run, its store must never lie: killed at any place where it touches the disk and
run again, it must hold the same rows as if nothing had happened, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.shard import Settings
from jobs import sweep
from jobs.config import read_sweep
from jobs.stage import Outcome, Stage, ensure, run_missing_units
from storage import layout, manifest
from storage.commit import TEMPORARY_SUFFIX, write_table, write_values
from storage.database import open_store
from storage.verify import verify
from tests import tiny
from tests.faults import in_child, in_one_process, kill, kill_at


def rows(store: Path) -> dict[str, list[Any]]:
    """All rows of a store's views, whenever they were made."""
    with open_store(store) as connection:
        return {
            view: sorted(connection.sql(f"SELECT * FROM {view}").fetchall(), key=repr)  # noqa: S608
            for view in "concepts sentences memberships activations experts similarity alignment".split()
        }


def temporary(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if path.suffix == TEMPORARY_SUFFIX]


def _toy_stage() -> Stage:
    """A stage with units, tables and values, without a model."""

    def run(stage: Stage, store: Path) -> Outcome:
        folder = stage.folder(store)

        def work(missing: Any) -> Iterator[Any]:
            for unit in missing:
                values = np.full(8, unit, np.float16)
                yield f"{unit:05d}", [write_values(folder, f"values/{unit:05d}.parquet", values, 8)], {}

        files, _ = run_missing_units(folder, {"00000": 0, "00001": 1}, work)
        return Outcome([*files, write_table(folder, "table.parquet", pa.table({"a": [1, 2]}))])

    return Stage("report", "toy", {}, run)


def _contents(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.parquet")
    }


def test_a_stage_killed_at_any_place_and_run_again_is_as_if_it_never_was(tmp_path: Path) -> None:
    """From making the store to its manifest; each place once, each time from an empty disk."""
    stage = _toy_stage()

    def run() -> None:
        ensure(stage, layout.create(store))

    store = tmp_path / "undisturbed"
    run()
    expected = _contents(store)
    for number in count():
        store = tmp_path / str(number)
        if not in_child(run, kill_at(number)):
            break
        whole = store.is_dir() and manifest.read(stage.folder(store))
        if whole:
            assert not whole.lacks()
        assert not in_child(run)
        assert _contents(store) == expected
        assert list(verify(store)) == []
        assert not temporary(store)
        shutil.rmtree(store)
    assert number > 100


@dataclass
class Study:
    """A tiny sweep whose stages run in this process, and the rows that it gives undisturbed."""

    file: Path
    rows: dict[str, list[Any]]

    def run(self, store: Path) -> None:
        sweep.run(sweep.plan(read_sweep(self.file, store)))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Study]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(tiny_model, folder / "model")
    file = tiny.write_sweep(folder, extra="resamples: 100\nbaselines: [input-embedding, contextual]\n")
    file.write_text(file.read_text().replace("[max, concept, context]", "[max]"))
    weights = sweep.plan(read_sweep(file)).weights[0]
    with in_one_process(weights, Settings("float32", "mlp", ["max"])):
        made = Study(file, {})
        made.run(folder / "undisturbed")
        made.rows.update(rows(folder / "undisturbed"))
        yield made
    torch.set_num_threads(threads)


def test_a_sweep_killed_at_every_place_of_every_stage_ends_with_the_same_rows(
    study: Study, tmp_path: Path
) -> None:
    """Run again after each kill, from what the kills before left, and killed at the next place that it
    was never killed at, until there is none."""
    store = tmp_path / "store"
    points = tmp_path / "points"
    points.touch()
    while True:
        seen = set(points.read_text().splitlines())

        def reached(place: str, seen: set[str] = seen) -> None:
            if place not in seen:
                with points.open("a") as file:
                    file.write(f"{place}\n")
                kill()

        if not in_child(lambda: study.run(store), reached):
            break
        for kind in layout.KINDS:
            for done in manifest.done(store, kind):
                assert not done.lacks(), "a stage was done before its files were there"
    places = points.read_text().splitlines()
    for kind in layout.KINDS:
        of_kind = [place for place in places if f"/{kind}/" in place]
        assert any("before replace" in place and layout.SUCCESS in place for place in of_kind)
        assert any("within write" in place for place in of_kind)
    assert len(places) > 300
    assert rows(store).keys() == study.rows.keys()
    assert rows(store) == study.rows
    assert list(verify(store)) == []
    assert not temporary(store)
