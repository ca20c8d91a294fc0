"""Whatever happens to a run, its store must never lie: killed at any place where it touches the disk and
run again, it must hold the same rows as if nothing had happened, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import planner, sweep
from jobs.config import read_sweep
from jobs.engine.stage import Outcome, Stage, ensure, run_missing_units
from storage.database import open_store
from storage.errors import StoreError, UserError
from storage.store import layout, manifest
from storage.store.commit import TEMPORARY_SUFFIX, write_table, write_values
from storage.store.gc import find_garbage
from storage.store.lease import held
from storage.store.verify import verify
from tests import tiny
from tests.faults import (
    Reached,
    fail_in,
    in_child,
    in_one_process,
    kill,
    killed_everywhere,
    start_child,
    was_killed,
)


def rows(store: Path) -> dict[str, list[Any]]:
    """All rows of a store's views, whenever they were made."""
    with open_store(store) as connection:
        return {
            view: sorted(connection.sql(f"SELECT * FROM {view}").fetchall(), key=repr)  # noqa: S608
            for view in [
                "concepts",
                "sentences",
                "memberships",
                "activations",
                "experts",
                "similarity",
                "alignment",
            ]
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
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.parquet")}


def test_a_stage_killed_at_any_place_and_run_again_is_as_if_it_never_was(tmp_path: Path) -> None:
    """From making the store to its manifest; run again from each state that a kill leaves."""
    stage = _toy_stage()
    store, states = tmp_path / "store", tmp_path / "states"

    def run() -> None:
        ensure(stage, layout.create(store))

    assert len(killed_everywhere(run, store, states)) > 100
    expected = _contents(store)
    for state in sorted(states.glob("[0-9]*")):
        shutil.rmtree(store)
        shutil.copytree(state, store)
        whole = manifest.read(stage.folder(store))
        assert not (whole and whole.lacks())
        assert not in_child(run)
        assert _contents(store) == expected
        assert list(verify(store)) == []
        assert not temporary(store)


def test_a_stage_killed_again_and_again_ends_as_if_it_never_was(tmp_path: Path) -> None:
    """From what the kills before left, at the next place where none was, until there is none."""
    stage = _toy_stage()
    store = tmp_path / "store"
    points = tmp_path / "points"
    points.touch()

    def run(root: Path) -> None:
        ensure(stage, layout.create(root))

    run(tmp_path / "undisturbed")
    while True:
        seen = set(points.read_text().splitlines())

        def reached(place: str, seen: set[str] = seen) -> None:
            if place not in seen:
                with points.open("a") as file:
                    file.write(f"{place}\n")
                kill()

        if not in_child(lambda: run(store), reached):
            break
    assert len(seen) > 80
    assert _contents(store) == _contents(tmp_path / "undisturbed")
    assert list(verify(store)) == []
    assert not temporary(store)


@dataclass
class Study:
    """A tiny sweep whose stages run in this process, and the rows that it gives undisturbed."""

    file: Path
    rows: dict[str, list[Any]]
    kinds: Sequence[str] = ()

    def run(self, store: Path) -> None:
        sweep.run(planner.plan(read_sweep(self.file, store)))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Study]:
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(tiny_model, folder / "model")
    file = tiny.write_sweep(folder, extra="resamples: 100\nbaselines: [input-embedding, contextual]\n")
    file.write_text(file.read_text().replace("[max, concept, context]", "[max]"))
    planned = planner.plan(read_sweep(file))
    kinds = [kind for kind in layout.KINDS if planned.of_kind(kind)]
    with in_one_process():
        made = Study(file, {}, kinds)
        made.run(folder / "undisturbed")
        made.rows.update(rows(folder / "undisturbed"))
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[planner.Plan]:
    """A sweep that has a stage of every kind, which was run undisturbed in this process."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.make_model(folder / "model", layers=1)
    file = tiny.write_sweep(folder, extra=_EVERYTHING)
    file.write_text(file.read_text().replace("[max, concept, context]", "[max]"))
    planned = planner.plan(read_sweep(file, folder / "store"))
    assert {stage.kind for stage in planned.stages} == set(layout.KINDS)
    # a picture is slow to draw, and always the same
    draw = patch("jobs.page.figures.dose_figure.draw_doses", lambda *_: b"a picture")
    with in_one_process(), draw:
        sweep.run(planned)
        yield planned


_EVERYTHING = (
    "resamples: 100\nbaselines: [input-embedding]\ncontrols: [split-half]\n"
    "experts: {threshold: [0.5]}\n"
    "steering: {k: [1], singles: 1, samples: 1, tokens: 1, concepts: [cat], prompts: [A, The]}\n"
)


def _rows(folder: Path) -> dict[str, Any]:
    """What a stage's folder holds: the rows of its tables, in any order, and the names of others."""
    return {
        str(path.relative_to(folder)): sorted(
            map(repr, pq.read_table(path, partitioning=None).to_pylist())
        )
        if path.suffix == ".parquet"
        else None
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", layout.KINDS)
def test_a_stage_of_every_kind_killed_at_any_place_and_run_again_ends_with_the_same_rows(
    whole: planner.Plan, tmp_path: Path, kind: str
) -> None:
    """At each place where it touches the disk; run again from each state that a kill leaves."""
    stage, undisturbed = whole.of_kind(kind)[0], whole.sweep.store_path
    store, states = layout.create(tmp_path / "store"), tmp_path / "states"
    folder = stage.folder(store)
    expected = _rows(stage.folder(undisturbed))
    for each in {each.folder(store) for each in stage.ancestors()} - {folder}:
        shutil.copytree(undisturbed / each.relative_to(store), each, copy_function=os.link)
    places = killed_everywhere(lambda: ensure(stage, store), folder, states)
    assert any("before replace" in place and layout.SUCCESS in place for place in places)
    assert any("after fsync" in place and layout.SUCCESS in place for place in places)
    assert any("within write" in place for place in places)
    assert len(places) > 40

    def again() -> None:
        done = manifest.read(folder)
        assert not (done and done.lacks()), "it was done before its files were there"
        ensure(stage, store)
        assert _rows(folder) == expected
        assert list(verify(store)) == []
        assert not temporary(store)

    left = sorted(states.glob("[0-9]*"))
    assert len(left) > 12
    for state in left:
        shutil.rmtree(folder)
        shutil.copytree(state, folder)
        assert not in_child(again)


@pytest.fixture
def finished(study: Study, tmp_path: Path) -> Path:
    """A copy of the undisturbed store."""
    shutil.copytree(study.file.parent / "undisturbed", tmp_path / "finished")
    return tmp_path / "finished"


@pytest.mark.parametrize(
    ("call", "code", "told"),
    [
        ("write", errno.ENOSPC, "No space left on device; make space and run the same again"),
        ("open", errno.EACCES, "Permission denied; give this user the right to write there"),
        ("fsync", errno.EIO, "Input/output error; the disk fails"),
    ],
)
def test_a_disk_that_no_longer_takes_what_is_written_stops_the_run_with_what_to_do(
    study: Study, tmp_path: Path, call: str, code: int, told: str
) -> None:
    """In each stage; mended, the run goes on and ends with the same rows."""
    store = tmp_path / "store"

    def fails() -> None:
        with pytest.raises(StoreError, match=told):
            study.run(store)

    for kind in study.kinds:
        assert not in_child(fails, fail_in(kind, call, code))
        assert not list(store.glob(f"{kind}/*/{layout.SUCCESS}"))
        assert not temporary(store)
    assert not in_child(lambda: study.run(store))
    assert rows(store) == study.rows
    assert list(verify(store)) == []


def test_a_real_limit_of_the_file_system_is_told_like_a_full_disk(study: Study, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        with pytest.raises(StoreError, match="File too large; make space"):
            study.run(tmp_path / "store")

    assert not in_child(limited)
    assert not temporary(tmp_path / "store")


def test_bytes_that_will_not_fit_are_told_before_anything_is_computed(
    study: Study, tmp_path: Path
) -> None:
    with (
        patch("jobs.engine.disk_budget.free", lambda _: 10_000),
        pytest.raises(UserError, match="make space"),
    ):
        study.run(tmp_path / "store")
    assert not list((tmp_path / "store").glob("sentences/*"))


def test_verify_names_every_file_of_which_one_bit_was_flipped(finished: Path) -> None:
    assert list(verify(finished)) == []
    files = [path for path in finished.rglob("*") if path.is_file() and "_units" not in path.parts]
    chance = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        bit = chance.randrange(len(whole) * 8)
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            problems = list(verify(finished))
        except StoreError as error:
            # the mark of the store itself
            problems = [str(error)]
        assert any(str(path) in problem for problem in problems), (path, bit)
        path.write_bytes(whole)
    assert list(verify(finished)) == []


def test_a_file_that_was_cut_is_never_read_and_is_made_again(study: Study, finished: Path) -> None:
    for path in sorted(finished.rglob("*.parquet"))[::4]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(StoreError, match="is missing or was cut"):
            open_store(finished)
        assert any(str(path) in problem for problem in verify(finished))
        assert not in_child(lambda: study.run(finished))
        assert path.read_bytes() == whole
    assert rows(finished) == study.rows
    assert list(verify(finished)) == []


def test_verify_names_what_nobody_listed_and_what_is_wrong_in_rows(finished: Path) -> None:
    """A table whose checksum is right may still be wrong: a bug may have written it."""
    (finished / "experts/stray.txt").write_text("?")
    (folder,) = (finished / "similarity").glob("model-main-" + "[0-9a-f]" * 16)
    done = manifest.read(folder)
    assert done is not None
    (path,) = done.paths("similarity.parquet")
    table = pq.read_table(path)
    twice = pa.concat_tables([table, table.slice(0, 1)])
    pq.write_table(twice, path)
    record = replace(
        done.files[0],
        rows=twice.num_rows,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    replace(done, files=[record]).commit()
    problems = list(verify(finished))
    assert len(problems) == 2
    assert any("two rows with the same representation, model" in problem for problem in problems)
    assert any("stray.txt: is listed by no manifest" in problem for problem in problems)


def test_two_sweeps_on_one_store_at_once_do_all_work_once(study: Study, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def slowly(place: str) -> None:
        time.sleep(0.002)

    children = [start_child(lambda: study.run(store), slowly) for _ in range(2)]
    assert [was_killed(child) for child in children] == [False, False]
    assert rows(store) == study.rows
    assert list(verify(store)) == []
    assert not temporary(store)


def test_clocks_that_were_set_back_do_no_harm(study: Study, tmp_path: Path) -> None:
    """All files are of tomorrow, among them the lease of a run that was killed on another machine."""
    store = tmp_path / "store"

    def in_units(place: str) -> None:
        if place.startswith("after replace") and "_units" in place:
            kill()

    assert in_child(lambda: study.run(store), in_units)
    (lease,) = store.rglob(layout.RUNNING)
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "host": "elsewhere"}))
    tomorrow = time.time() + 86400
    for path in store.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    with patch("storage.store.lease.SILENT_SECONDS", 1.0):
        assert not in_child(lambda: study.run(store))
    assert rows(store) == study.rows
    assert list(verify(store)) == []


def test_a_lease_that_is_alive_is_waited_for_and_one_that_was_lost_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / layout.RUNNING
    waited: list[Any] = []
    with held(path, {"label": "one"}, waited.append) as lease:
        path.write_text(json.dumps({"token": "another", "host": "elsewhere", "pid": 1}))
        with pytest.raises(StoreError, match="another run took this stage over"):
            lease.check()
        with (
            patch("storage.store.lease.SILENT_SECONDS", 0.5),
            patch("storage.store.lease._POLL_SECONDS", 0.05),
            held(path, {"label": "two"}, waited.append) as second,
        ):
            second.check()
    assert [holder["host"] for holder in waited] == ["elsewhere"]
    assert not list(tmp_path.iterdir())


def test_activations_that_were_dropped_are_said_to_be_and_come_back_when_they_are_needed(
    study: Study, tmp_path: Path
) -> None:
    file = study.file.with_name("dropping.yaml")
    text = study.file.read_text() + "name: sweep\nexperts: {keep_activations: false}\n"
    file.write_text(text)
    store = tmp_path / "store"
    dropping = Study(file, {})
    # dropped on purpose, not done again, and a sweep that is killed while it drops goes on with that
    for number in (3, None):
        reached = None if number is None else _kill_at_unlink(number)
        assert in_child(lambda: dropping.run(store), reached) is (number is not None)
    assert not list(store.glob("activations/*/pooling=*/**/*.parquet"))
    assert list(verify(store)) == []
    found = rows(store)
    assert found.pop("activations") == []
    assert found == {name: held for name, held in study.rows.items() if name != "activations"}
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}
    assert not in_child(lambda: dropping.run(store))
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}
    # other experts need them again
    file.write_text(text.replace("false}", "true, floor: 0.45}"))
    assert not in_child(lambda: dropping.run(store))
    assert rows(store)["activations"] == study.rows["activations"]
    assert list(verify(store)) == []


def _kill_at_unlink(number: int) -> Reached:
    places = count()

    def reached(place: str) -> None:
        if place.startswith("before unlink") and "pooling=" in place and next(places) == number:
            kill()

    return reached


def test_gc_lists_and_deletes_what_no_report_is_made_of_and_what_was_scored(
    study: Study, finished: Path
) -> None:
    file = study.file.with_name("other.yaml")
    file.write_text(study.file.read_text() + "name: sweep\nexperts: {floor: 0.45}\n")
    time.sleep(1.1)
    assert not in_child(lambda: Study(file, {}).run(finished))
    garbage = list(find_garbage(finished))
    assert [(each.stage.kind, each.whole) for each in garbage] == [
        ("activations", False),
        ("experts", True),
        ("similarity", True),
        ("alignment", True),
        ("hierarchy", True),
        ("report", True),
    ]
    reclaimed = sum(each.bytes for each in garbage)
    before = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    for each in garbage:
        each.delete()
    after = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert before - after >= reclaimed > 0
    assert list(find_garbage(finished)) == []
    assert list(verify(finished)) == []
    assert rows(finished)["experts"]
