"""A store must stay correct whatever happens to a run: killed at any point where it touches the disk and
run again, it must have exactly the rows of an undisturbed run."""

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
from jobs.config.loader import read_sweep
from jobs.engine.scheduler import run_concurrently
from jobs.engine.stage import Stage, StageOutput, run_if_needed, run_missing_units
from storage.database import open_store
from storage.errors import StoreError, UserError
from storage.store import layout, manifest
from storage.store.commit import TEMPORARY_SUFFIX, write_table, write_values
from storage.store.gc import find_garbage
from storage.store.lease import acquire_lease
from storage.store.verify import verify
from tests import tiny
from tests.faults import (
    OnDiskAccess,
    fail_in,
    in_child,
    in_one_process,
    kill,
    killed_everywhere,
    start_child,
    was_killed,
)


def rows(store: Path) -> dict[str, list[Any]]:
    """All rows of a store's views, without regard to time or order."""
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

    def run(stage: Stage, store: Path) -> StageOutput:
        folder = stage.folder(store)

        def work(missing: Any) -> Iterator[Any]:
            for unit in missing:
                values = np.full(8, unit, np.float16)
                yield f"{unit:05d}", [write_values(folder, f"values/{unit:05d}.parquet", values, 8)], {}

        files, _ = run_missing_units(folder, {"00000": 0, "00001": 1}, work)
        return StageOutput([*files, write_table(folder, "table.parquet", pa.table({"a": [1, 2]}))])

    return Stage("report", "toy", {}, run)


def _contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.parquet")}


@pytest.mark.slow
def test_a_stage_killed_at_any_point_and_rerun_gives_the_same_files(tmp_path: Path) -> None:
    """From creating the store to the manifest; rerun from every state that a kill leaves."""
    stage = _toy_stage()
    store, states = tmp_path / "store", tmp_path / "states"

    def run() -> None:
        run_if_needed(stage, layout.create_store(store))

    assert len(killed_everywhere(run, store, states)) > 100
    expected = _contents(store)
    for state in sorted(states.glob("[0-9]*")):
        shutil.rmtree(store)
        shutil.copytree(state, store)
        whole = manifest.read(stage.folder(store))
        assert not (whole and whole.missing_files())
        assert not in_child(run)
        assert _contents(store) == expected
        assert list(verify(store)) == []
        assert not temporary(store)


@pytest.mark.slow
def test_a_stage_killed_repeatedly_gives_the_same_files(tmp_path: Path) -> None:
    """Each run continues from the last kill and is killed at the next new point, until none is left."""
    stage = _toy_stage()
    store = tmp_path / "store"
    points = tmp_path / "points"
    points.touch()

    def run(root: Path) -> None:
        run_if_needed(stage, layout.create_store(root))

    run(tmp_path / "undisturbed")
    while True:
        seen = set(points.read_text().splitlines())

        def kill_at_new_point(point: str, seen: set[str] = seen) -> None:
            if point not in seen:
                with points.open("a") as file:
                    file.write(f"{point}\n")
                kill()

        if not in_child(lambda: run(store), kill_at_new_point):
            break
    assert len(seen) > 80
    assert _contents(store) == _contents(tmp_path / "undisturbed")
    assert list(verify(store)) == []
    assert not temporary(store)


@dataclass
class Study:
    """A tiny sweep whose stages run in this process, and the rows of an undisturbed run."""

    file: Path
    rows: dict[str, list[Any]]
    kinds: Sequence[str] = ()

    def run(self, store: Path) -> None:
        sweep.run(planner.plan_sweep(read_sweep(self.file, store)))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Study]:
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(tiny_model, folder / "model")
    file = tiny.write_sweep(folder, extra="resamples: 100\nbaselines: [input-embedding, contextual]\n")
    file.write_text(file.read_text().replace("[max, concept, context]", "[max]"))
    planned = planner.plan_sweep(read_sweep(file))
    kinds = [kind for kind in layout.STAGE_KINDS if planned.stages_of_kind(kind)]
    with in_one_process():
        study = Study(file, {}, kinds)
        study.run(folder / "undisturbed")
        study.rows.update(rows(folder / "undisturbed"))
        yield study


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Iterator[planner.Plan]:
    """A sweep with a stage of every kind, run undisturbed in this process."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.make_model(folder / "model", layers=1)
    file = tiny.write_sweep(folder, extra=_EVERYTHING)
    file.write_text(file.read_text().replace("[max, concept, context]", "[max]"))
    planned = planner.plan_sweep(read_sweep(file, folder / "store"))
    assert {stage.kind for stage in planned.stages} == set(layout.STAGE_KINDS)
    # drawing a figure is slow and always gives the same file
    draw = patch("jobs.page.figures.dose_response.draw_dose_response", lambda *_: b"a picture")
    with in_one_process(), draw:
        sweep.run(planned)
        yield planned


_EVERYTHING = (
    "resamples: 100\nbaselines: [input-embedding]\ncontrols: [split-half, pseudo-concepts]\n"
    "experts: {threshold: [0.5]}\n"
    "steering: {k: [1], singles: 1, samples: 1, tokens: 1, concepts: [cat], prompts: [A, The]}\n"
)


def _rows(folder: Path) -> dict[str, Any]:
    """The content of a stage's folder: the rows of its tables, sorted, and the names of other files."""
    return {
        str(path.relative_to(folder)): sorted(
            map(repr, pq.read_table(path, partitioning=None).to_pylist())
        )
        if path.suffix == ".parquet"
        else None
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", layout.STAGE_KINDS)
def test_a_stage_of_every_kind_killed_at_any_point_and_rerun_gives_the_same_rows(
    complete: planner.Plan, tmp_path: Path, kind: str
) -> None:
    """At every point where it touches the disk; rerun from every state that a kill leaves."""
    stage, undisturbed = complete.stages_of_kind(kind)[0], complete.sweep.store_path
    store, states = layout.create_store(tmp_path / "store"), tmp_path / "states"
    folder = stage.folder(store)
    expected = _rows(stage.folder(undisturbed))
    for path in {ancestor.folder(store) for ancestor in stage.ancestors()} - {folder}:
        shutil.copytree(undisturbed / path.relative_to(store), path, copy_function=os.link)
    points = killed_everywhere(lambda: run_if_needed(stage, store), folder, states)
    assert any("before replace" in point and layout.SUCCESS in point for point in points)
    assert any("after fsync" in point and layout.SUCCESS in point for point in points)
    assert any("within write" in point for point in points)
    assert len(points) > 40

    def rerun() -> None:
        completed = manifest.read(folder)
        assert not (completed and completed.missing_files()), "complete before its files exist"
        run_if_needed(stage, store)
        assert _rows(folder) == expected
        assert list(verify(store)) == []
        assert not temporary(store)

    snapshots = sorted(states.glob("[0-9]*"))
    assert len(snapshots) > 12
    for state in snapshots:
        shutil.rmtree(folder)
        shutil.copytree(state, folder)
        assert not in_child(rerun)


@pytest.fixture
def finished(study: Study, tmp_path: Path) -> Path:
    """A copy of the undisturbed store."""
    shutil.copytree(study.file.parent / "undisturbed", tmp_path / "finished")
    return tmp_path / "finished"


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        ("write", errno.ENOSPC, "No space left on device; free disk space and rerun to resume"),
        ("open", errno.EACCES, "Permission denied; give this user write permission"),
        ("fsync", errno.EIO, "Input/output error; the disk is failing"),
    ],
)
def test_a_failing_disk_stops_the_run_and_the_error_says_what_to_do(
    study: Study, tmp_path: Path, call: str, code: int, message: str
) -> None:
    """In every stage; after the repair, a rerun resumes and gives the same rows."""
    store = tmp_path / "store"

    def fails() -> None:
        with pytest.raises(StoreError, match=message):
            study.run(store)

    for kind in study.kinds:
        assert not in_child(fails, fail_in(kind, call, code))
        assert not list(store.glob(f"{kind}/*/{layout.SUCCESS}"))
        assert not temporary(store)
    assert not in_child(lambda: study.run(store))
    assert rows(store) == study.rows
    assert list(verify(store)) == []


def test_a_file_size_limit_is_reported_like_a_full_disk(study: Study, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        with pytest.raises(StoreError, match="File too large; free disk space"):
            study.run(tmp_path / "store")

    assert not in_child(limited)
    assert not temporary(tmp_path / "store")


def test_insufficient_disk_space_is_reported_before_anything_is_computed(
    study: Study, tmp_path: Path
) -> None:
    with (
        patch("jobs.engine.disk_budget.free_bytes", lambda _: 10_000),
        pytest.raises(UserError, match="free disk space"),
    ):
        study.run(tmp_path / "store")
    assert not list((tmp_path / "store").glob("sentences/*"))


def test_verify_reports_every_file_with_a_flipped_bit(finished: Path) -> None:
    assert list(verify(finished)) == []
    files = [path for path in finished.rglob("*") if path.is_file() and "_units" not in path.parts]
    generator = random.Random(0)
    for path in files:
        content = path.read_bytes()
        bit = generator.randrange(len(content) * 8)
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            problems = list(verify(finished))
        except StoreError as error:
            # the file that identifies the store
            problems = [str(error)]
        assert any(str(path) in problem for problem in problems), (path, bit)
        path.write_bytes(content)
    assert list(verify(finished)) == []


def test_a_truncated_file_is_never_read_and_is_recomputed(study: Study, finished: Path) -> None:
    for path in sorted(finished.rglob("*.parquet"))[::4]:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(StoreError, match="is missing or truncated"):
            open_store(finished)
        assert any(str(path) in problem for problem in verify(finished))
        assert not in_child(lambda: study.run(finished))
        assert path.read_bytes() == content
    assert rows(finished) == study.rows
    assert list(verify(finished)) == []


def test_verify_reports_orphan_files_and_invalid_rows(finished: Path) -> None:
    """A table with a valid checksum may still be wrong if a bug wrote it."""
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
    assert any("stray.txt: is not listed by any manifest" in problem for problem in problems)


def test_two_sweeps_on_one_store_do_all_work_once(study: Study, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def slowly(point: str) -> None:
        time.sleep(0.002)

    children = [start_child(lambda: study.run(store), slowly) for _ in range(2)]
    assert [was_killed(child) for child in children] == [False, False]
    assert rows(store) == study.rows
    assert list(verify(store)) == []
    assert not temporary(store)


def test_clocks_that_were_set_back_are_harmless(study: Study, tmp_path: Path) -> None:
    """All files are dated tomorrow, including the lease of a run that was killed on another machine."""
    store = tmp_path / "store"

    def kill_in_units(point: str) -> None:
        if point.startswith("after replace") and "_units" in point:
            kill()

    assert in_child(lambda: study.run(store), kill_in_units)
    (lease,) = store.rglob(layout.RUNNING)
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "host": "elsewhere"}))
    tomorrow = time.time() + 86400
    for path in store.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    with patch("storage.store.lease.LEASE_TIMEOUT_SECONDS", 1.0):
        assert not in_child(lambda: study.run(store))
    assert rows(store) == study.rows
    assert list(verify(store)) == []


def test_a_run_waits_for_a_live_lease_and_stops_when_it_loses_its_own(tmp_path: Path) -> None:
    path = tmp_path / layout.RUNNING
    waited: list[Any] = []
    with acquire_lease(path, {"label": "one"}, waited.append) as lease:
        path.write_text(json.dumps({"token": "another", "host": "elsewhere", "pid": 1}))
        with pytest.raises(StoreError, match="another run took this stage over"):
            lease.check()
        with (
            patch("storage.store.lease.LEASE_TIMEOUT_SECONDS", 0.5),
            patch("storage.store.lease._POLL_SECONDS", 0.05),
            acquire_lease(path, {"label": "two"}, waited.append) as second,
        ):
            second.check()
    assert [holder["host"] for holder in waited] == ["elsewhere"]
    assert not list(tmp_path.iterdir())


def test_deleted_activations_are_recorded_and_recomputed_when_needed(
    study: Study, tmp_path: Path
) -> None:
    """By `gc`, which may be killed while deleting; not recomputed until other experts need them."""
    store = tmp_path / "store"
    assert not in_child(lambda: study.run(store))

    def delete() -> None:
        for garbage in find_garbage(store):
            garbage.delete()

    assert in_child(delete, _kill_at_unlink(3))
    assert not in_child(delete)
    assert not list(store.glob("activations/*/pooling=*/**/*.parquet"))
    assert list(verify(store)) == []
    remaining = rows(store)
    assert remaining.pop("activations") == []
    assert remaining == {view: table for view, table in study.rows.items() if view != "activations"}
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}
    assert not in_child(lambda: study.run(store))
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}
    file = study.file.with_name("other floor.yaml")
    file.write_text(study.file.read_text() + "name: sweep\nexperts: {floor: 0.45}\n")
    assert not in_child(lambda: Study(file, {}).run(store))
    assert rows(store)["activations"] == study.rows["activations"]
    assert list(verify(store)) == []


@pytest.mark.parametrize("has_several_models", [False, True])
def test_the_lease_of_a_run_killed_after_its_stage_was_complete_is_removed(
    tmp_path: Path, has_several_models: bool
) -> None:
    """A complete stage would look held for ever, after a kill here or in another container."""
    stage, store = _toy_stage(), layout.create_store(tmp_path / "store")
    lease = stage.folder(store) / layout.RUNNING

    def run() -> None:
        if has_several_models:
            assert [result.ran for result in run_concurrently([stage], store)] == [False]
        else:
            assert not run_if_needed(stage, store)

    run_if_needed(stage, store)
    assert in_child(lambda: _be_killed_with_the_lease(lease))
    assert lease.exists()
    run()
    assert not lease.exists()
    lease.write_text(json.dumps({"token": "theirs", "host": "elsewhere", "pid": 1}))
    run()
    assert lease.exists(), "its holder may be about to remove it"
    os.utime(lease, (time.time() - 60, time.time() - 60))
    with patch("storage.store.lease.LEASE_TIMEOUT_SECONDS", 1.0):
        run()
    assert not lease.exists()


def _be_killed_with_the_lease(path: Path) -> None:
    with acquire_lease(path, {}, lambda _: None):
        kill()


def _kill_at_unlink(number: int) -> OnDiskAccess:
    points = count()

    def kill_at_point(point: str) -> None:
        if point.startswith("before unlink") and "pooling=" in point and next(points) == number:
            kill()

    return kill_at_point


def test_gc_deletes_scored_activations_and_stages_without_a_report(study: Study, finished: Path) -> None:
    file = study.file.with_name("other.yaml")
    file.write_text(study.file.read_text() + "name: sweep\nexperts: {floor: 0.45}\n")
    time.sleep(1.1)
    assert not in_child(lambda: Study(file, {}).run(finished))
    garbage = list(find_garbage(finished))
    assert [(each.stage.kind, each.is_entire_stage) for each in garbage] == [
        ("activations", False),
        ("experts", True),
        ("top_tokens", True),
        ("similarity", True),
        ("alignment", True),
        ("hierarchy", True),
        ("report", True),
    ]
    reclaimed = sum(each.bytes for each in garbage)
    before = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    for each in garbage:
        assert each.delete()
    after = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert before - after >= reclaimed > 0
    assert list(find_garbage(finished)) == []
    assert list(verify(finished)) == []
    assert rows(finished)["experts"]
    # a folder that remained would count as an unfinished stage
    assert not [folder for folder in manifest.stage_folders(finished) if manifest.read(folder) is None]


@pytest.mark.parametrize("event", ["started", "completed", "held", "replaced"])
def test_gc_deletes_nothing_that_became_needed_since_it_was_listed(
    study: Study, finished: Path, event: str
) -> None:
    """A sweep that starts while gc deletes would lose its inputs."""
    garbage = list(find_garbage(finished))
    assert garbage
    contents = _contents(finished)
    for each in garbage:
        used = each.stage.folder
        new = layout.stage_folder(finished, "experts", "new", "0" * 16)
        if event == "started":
            new.mkdir()
        elif event == "completed":
            manifest.Manifest(new, "experts", "new", "0" * 16, {}, {"a": used.name}, [], 1.0).commit()
        elif event == "replaced":
            each.stage.commit()
        lease = used if event == "held" else new
        if event in ("started", "held"):
            with acquire_lease(lease / layout.RUNNING, {}, lambda _: None):
                assert not each.delete()
        else:
            assert not each.delete()
        assert each.stage.folder.exists()
    assert _contents(finished) == contents
