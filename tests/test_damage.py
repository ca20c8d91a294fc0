"""A disk that changes a bit must never change a result: damage is found when it is read, and what was
made of damaged or replaced files is made again."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import planner, sweep
from jobs.config.loader import read_sweep
from jobs.engine.scheduler import run_concurrently
from jobs.engine.stage import Stage, StageOutput, run_if_needed, run_missing_units
from storage.errors import StoreError
from storage.store import layout, manifest
from storage.store.activation_files import SiteActivations
from storage.store.commit import encode_json, write_table, write_values
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.test_status import DAMAGED_RECORDS

_FILE = "sweep.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """Folder of a finished sweep; every test that changes its store works on a copy."""
    folder = tmp_path_factory.mktemp("damage")
    shutil.copytree(tiny_model, folder / "model")
    extra = "resamples: 100\nbaselines: [contextual]\ncontrols: [split-half]\nexperts: {scores: true}\n"
    file = tiny.write_sweep(folder, extra=f"similarity: [jaccard, centred cosine]\n{extra}")
    file.write_text(file.read_text().replace("[max, concept, context]", "[max]"))
    with in_one_process():
        sweep.run(_plan(folder, folder / "store"))
        yield folder


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(finished / "store", tmp_path / "store"))


def _plan(folder: Path, store: Path, changes: str = "") -> planner.Plan:
    file = folder / _FILE
    if changes:
        file = folder / "other.yaml"
        before, _, after = changes.partition(" -> ")
        text = (folder / _FILE).read_text()
        assert before in text
        file.write_text(f"{text.replace(before, after)}name: sweep\n")
    return planner.plan_sweep(read_sweep(file, store))


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _files(store: Path, pattern: str) -> list[Path]:
    return sorted(path for path in store.glob(pattern) if "_units" not in path.parts)


def test_no_flipped_bit_of_an_activation_file_is_scored(finished: Path, store: Path) -> None:
    """A second sweep would score other activations than the model's, without a word. The bits are in the
    values, the page headers and the footer."""
    generator = random.Random(0)
    paths = _files(store, "activations/*/pooling=*/*/site=mlp.hidden/*.parquet")
    assert paths
    for number in range(24):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        _flip(path, generator.randrange(len(content) * 8))
        with pytest.raises(StoreError) as raised:
            sweep.run(_plan(finished, store, "scores: true -> scores: true, floor: 0.45"))
        assert str(raised.value).startswith(f"{path}: is damaged")
        assert "neuralign verify" in str(raised.value)
        assert "\n" not in str(raised.value)
        path.write_bytes(content)


def test_no_stage_reads_a_damaged_table(finished: Path, store: Path) -> None:
    """Similarities, agreement and pages would be computed from other rows, or end in the traceback of
    DuckDB or Arrow. A stage that does not read the file must give the same rows."""
    plan = _plan(finished, store)
    read = set()
    for stage in plan.stages:
        folder = stage.folder(store)
        for ancestor in {ancestor.fingerprint: ancestor for ancestor in stage.ancestors()}.values():
            if ancestor is stage:
                continue
            for table in {
                record.path.split("/")[0]: record for record in ancestor.read_manifest(store).files
            }.values():
                path = ancestor.folder(store) / table.path
                expected, content = _contents(folder), path.read_bytes()
                shutil.move(folder, store.parent / "aside")
                path.write_bytes(bytes(len(content)))
                message = ""
                try:
                    run_if_needed(stage, store)
                except StoreError as error:
                    message = str(error)
                if message:
                    assert re.fullmatch(
                        f"{re.escape(str(path))}: is damaged .*`neuralign verify`.*", message
                    )
                    read.add((stage.kind, ancestor.kind))
                else:
                    assert _contents(folder) == expected, (stage.name, path)
                path.write_bytes(content)
                shutil.rmtree(folder)
                shutil.move(store.parent / "aside", folder)
    assert read >= {
        ("activations", "sentences"),
        ("experts", "sentences"),
        ("experts", "activations"),
        ("controls", "activations"),
        ("similarity", "sentences"),
        ("similarity", "activations"),
        ("similarity", "experts"),
        ("hierarchy", "sentences"),
        ("hierarchy", "experts"),
        ("hierarchy", "similarity"),
        ("alignment", "similarity"),
        ("reliability", "similarity"),
        ("reliability", "controls"),
        ("report", "experts"),
        ("report", "alignment"),
    }


def _contents(folder: Path) -> dict[str, Any]:
    """The rows of a stage's tables, sorted."""
    return {
        str(path.relative_to(folder)): sorted(
            map(repr, pq.read_table(path, partitioning=None).to_pylist())
        )
        for path in folder.rglob("*.parquet")
    }


def test_a_damaged_table_is_one_line_of_the_command(finished: Path, store: Path) -> None:
    """The user would see DuckDB's traceback."""
    (path,) = store.glob(f"similarity/model-main-{'[0-9a-f]' * 16}/similarity.parquet")
    _flip(path, 8 * 200)
    shutil.rmtree(next(store.glob(f"hierarchy/model-main-{'[0-9a-f]' * 16}")))
    file = finished / "damaged.yaml"
    file.write_text(f"{(finished / _FILE).read_text()}name: sweep\nstore: {store}\n")
    ran = neuralign("run", file)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.splitlines()[-1].startswith(f"neuralign: {path}: is damaged")
    assert "Traceback" not in ran.stderr
    assert "neuralign verify" in ran.stderr


def test_a_comparison_is_never_of_a_damaged_table(store: Path) -> None:
    """A flipped bit changed the printed agreement of a model, or was a traceback."""
    generator = random.Random(0)
    (path,) = store.glob("alignment/*/alignment.parquet")
    content = path.read_bytes()
    for _ in range(10):
        _flip(path, generator.randrange(len(content) * 8))
        compared = neuralign("compare", store, "--human", "mine")
        assert compared.returncode == 2
        assert compared.stderr.startswith(f"neuralign: {path}: is damaged")
        path.write_bytes(content)
    # tables that it does not read
    for other in store.glob("experts/*/*.parquet"):
        _flip(other, 8 * 100)
    assert neuralign("compare", store, "--human", "mine").returncode == 0


@pytest.mark.parametrize("where", ["everywhere", "footer", "rows"])
@pytest.mark.parametrize("table", ["alignment/*/alignment", "activations/*/sites"])
def test_views_of_a_damaged_table_are_one_line(store: Path, table: str, where: str) -> None:
    """The user would see DuckDB's traceback, from SQL and from the server of the page."""
    path = next(store.glob(f"{table}.parquet"))
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    zeros = {"everywhere": content, "footer": content[-footer:-8], "rows": content[4:-footer]}[where]
    path.write_bytes(content.replace(zeros, bytes(len(zeros))))
    for arguments in (["sql", store, "FROM alignment, sites"], ["serve", store, "--port", "0"]):
        with patch("jobs.page.serve.Server.serve_forever"):
            shown = neuralign(*arguments)
        # DuckDB does not name a file whose rows are damaged; the page is rendered on request
        assert shown.returncode == 2 or (where, arguments[0]) == ("rows", "serve")
        assert shown.returncode == 0 or len(shown.stderr.splitlines()) == 1
        assert where == "rows" or shown.stderr.startswith(f"neuralign: {path}: is damaged")


@pytest.mark.parametrize("content", DAMAGED_RECORDS)
def test_a_stage_with_a_damaged_lease_and_failure_is_run(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep would end in a traceback until the user finds and deletes the file."""
    store = layout.create_store(tmp_path / "store")
    stage = Stage("sentences", "toy", {}, lambda *_: StageOutput([]))
    folder = stage.folder(store)
    folder.mkdir(parents=True)
    for name in (layout.RUNNING, layout.FAILED):
        (folder / name).write_bytes(content)
    with (
        patch("storage.store.lease.LEASE_TIMEOUT_SECONDS", 0.1),
        patch("storage.store.lease._POLL_SECONDS", 0.02),
    ):
        assert run_if_needed(stage, store)
    assert {path.name for path in folder.iterdir()} == {layout.SUCCESS, layout.INPUTS}
    assert "waiting for another run, unknown process" in capsys.readouterr().err


_WRONG_FIELDS = {
    **{"kind": "?", "label": 3, "fingerprint": None, "params": [1], "versions": []},
    **{"inputs": {"a": 1}, "notes": 3, "seconds": "x", "finished": 3, "sources": [1], "contents": 5},
}
_WRONG_RECORDS = [
    {"bytes": "x"},
    {"rows": -1},
    {"bytes": 10**30},
    {"sha256": None},
    {"path": "../../../../x"},
    {"path": "/etc/passwd"},
    {"path": "a\0"},
    {"path": 1},
]


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    """Change fields of a file with a checksum, which is valid afterwards."""
    content = json.loads(path.read_text())
    content.pop("sha256")
    _write_checksummed(path, content | changes)


def _write_checksummed(path: Path, content: dict[str, Any]) -> None:
    content["sha256"] = hashlib.sha256(encode_json(content)).hexdigest()
    path.write_bytes(encode_json(content))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name, value in _WRONG_FIELDS.items()),
        *({"files": [r]} for r in _WRONG_RECORDS),
    ],
    ids=repr,
)
def test_a_manifest_that_no_version_wrote_is_one_line(store: Path, changes: dict[str, Any]) -> None:
    """A manifest with a valid checksum was trusted: a traceback, or files outside the store."""
    path = next(store.glob(f"similarity/*/{layout.SUCCESS}"))
    if "files" in changes:
        valid = {"path": "a.parquet", "rows": 1, "bytes": 1, "sha256": "0"}
        changes = {"files": [valid | changes["files"][0]]}
    _rewrite(path, changes)
    for command in ("status", "gc", "sql"):
        shown = neuralign(command, store)
        assert shown.returncode == 2, command
        assert shown.stderr.startswith(f"neuralign: {path}: cannot be read: invalid ")
        assert len(shown.stderr.splitlines()) == 1
    assert str(path) in neuralign("verify", store).stdout


def test_a_stage_that_is_its_own_input_does_not_stop_a_command(store: Path) -> None:
    """RecursionError."""
    path = next(store.glob(f"experts/*/{layout.SUCCESS}"))
    _rewrite(path, {"inputs": {"experts": path.parent.name}})
    for command in ("status", "gc", "verify"):
        assert "Traceback" not in neuralign(command, store).stderr


def _forget_sources(store: Path) -> None:
    """Make the manifests those of an earlier version, which did not record what a stage was made of."""
    for path in store.glob(f"*/*/{layout.SUCCESS}"):
        content = json.loads(path.read_text())
        for name in ("sha256", "sources", "contents"):
            content.pop(name)
        _write_checksummed(path, content)
    for path in store.glob(f"*/*/{layout.INPUTS}"):
        path.unlink()


def test_a_store_of_an_earlier_version_is_complete(finished: Path, store: Path) -> None:
    """A new version would compute all results again."""
    _forget_sources(store)
    assert list(verify(store)) == []
    assert sweep.run(_plan(finished, store)).stages_run == 0
    # new stages may be made of old ones, which stay as they are
    result = sweep.run(_plan(finished, store, "scores: true -> scores: true, threshold: [0.6]"))
    assert 0 < result.stages_run < len(result.plan.stages)
    assert sweep.run(_plan(finished, store)).stages_run == 0
    assert list(verify(store)) == []


def test_results_of_a_file_damaged_under_an_earlier_version_are_found_and_made_again(
    finished: Path, store: Path
) -> None:
    """After the repair that verify advises, it would report no problem, and the results would stay
    those of the damaged file."""
    plan = _plan(finished, store)
    (experts,) = plan.stages_of_kind("experts")
    (damaged, *_) = _files(store, "activations/*/pooling=*/*/site=mlp.hidden/*.parquet")
    _change_rows(experts.read_manifest(store))
    _forget_sources(store)
    _flip(damaged, 8 * 1000)
    derived = {
        stage.folder(store)
        for stage in plan.stages
        if stage.kind != "activations" and any(each.kind == "activations" for each in stage.ancestors())
    }

    def named() -> set[Path]:
        return {Path(problem.partition(": ")[0]) for problem in verify(store)}

    assert named() == {damaged, *derived}
    damaged.unlink()
    assert named() == {damaged, *derived}
    sweep.run(_plan(finished, store))
    assert list(verify(store)) == []
    for stage in plan.stages:
        ours, theirs = stage.folder(store), stage.folder(finished / "store")
        assert _contents(ours) == _contents(theirs), stage.name
    assert sweep.run(_plan(finished, store)).stages_run == 0


def _change_rows(stage: manifest.Manifest) -> None:
    """Give a stage the rows of other activations, as a version that did not check would have."""
    records = {record.path: record for record in stage.files}
    for path in records:
        if path.startswith("experts/"):
            table = pq.read_table(stage.folder / path)
            column = table.column_names.index("ap")
            ap = pc.multiply(table["ap"], 0.9)
            table = table.set_column(column, table.schema.field("ap"), ap)
            records[path] = write_table(stage.folder, path, table)
    replace(stage, files=list(records.values())).commit()


def _chain(value: dict[str, int]) -> list[Stage]:
    """Stages that each copy the number of their input, as a work unit; the first has `value`."""

    def first(stage: Stage, store: Path) -> StageOutput:
        table = pa.table({"a": [value["now"]]})
        return StageOutput([write_table(stage.folder(store), "a.parquet", table)])

    def copy(stage: Stage, store: Path) -> StageOutput:
        (parent,) = stage.inputs.values()
        table = parent.read_table(store, "a.parquet")

        def work(_: Any) -> Iterator[Any]:
            yield "00000", [write_table(stage.folder(store), "a.parquet", table)], {}
            if value.get("fails"):
                raise ValueError("stopped after the unit")

        return StageOutput(run_missing_units(stage.folder(store), {"00000": 0}, work)[0])

    stages = [Stage("sentences", "s", {}, first)]
    for kind in ("activations", "experts"):
        stages.append(Stage(kind, "s", {}, copy, {"input": stages[-1]}))
    return stages


def _sequentially(stages: list[Stage], store: Path) -> list[bool]:
    return [run_if_needed(stage, store) for stage in stages]


def _concurrently(stages: list[Stage], store: Path) -> list[bool]:
    ran = {result.stage.kind: result.ran for result in run_concurrently(stages, store)}
    return [ran[stage.kind] for stage in stages]


@pytest.mark.parametrize("run", [_sequentially, _concurrently])
def test_what_was_made_of_a_replaced_file_is_found_and_made_again(
    tmp_path: Path, run: Callable[[list[Stage], Path], list[bool]]
) -> None:
    """A sweep would mix results of two versions of a file, or keep the work units of the former one."""
    store, value = layout.create_store(tmp_path / "store"), {"now": 1}
    stages = _chain(value)
    first, second, third = stages
    with patch("cluster.runtime.session.connect", lambda: None):
        assert run(stages, store) == [True, True, True]
        assert run(stages, store) == [False, False, False]
        # the same files again
        (first.folder(store) / "a.parquet").unlink()
        assert run(stages, store) == [True, False, False]
        # other files
        (first.folder(store) / "a.parquet").unlink()
        value["now"] = 2
        run_if_needed(first, store)
        assert [problem.partition(": ")[0] for problem in verify(store)] == [str(second.folder(store))]
        assert run(stages, store) == [False, True, True]
    assert third.read_table(store, "a.parquet")["a"].to_pylist() == [2]
    assert list(verify(store)) == []


def test_work_units_of_a_replaced_file_are_not_resumed(tmp_path: Path) -> None:
    """A stage that was stopped would be completed with units of two versions of its input."""
    store, value = layout.create_store(tmp_path / "store"), {"now": 1, "fails": 1}
    first, second, _ = _chain(value)
    run_if_needed(first, store)
    with pytest.raises(ValueError, match="stopped"):
        run_if_needed(second, store)
    assert manifest.read_work_units(second.folder(store))
    value |= {"now": 2, "fails": 0}
    (first.folder(store) / "a.parquet").unlink()
    run_if_needed(first, store)
    run_if_needed(second, store)
    assert second.read_table(store, "a.parquet")["a"].to_pylist() == [2]


def test_a_damaged_block_is_found_at_the_end_of_a_site_read_in_blocks(tmp_path: Path) -> None:
    """Bytes outside the values, such as page headers, would not be compared with the checksum."""
    values = np.random.default_rng(0).standard_normal((12, 60)).astype(np.float16)
    record = write_values(tmp_path / "stage", "a.parquet", values, 4 * 60)
    path = tmp_path / "stage/a.parquet"
    files = SiteActivations([path], 12, [record])
    assert np.array_equal(np.concatenate([block for _, block in files.blocks(5 * 120)]), values)
    for byte in range(record.bytes):
        _flip(path, 8 * byte + byte % 8)
        with pytest.raises(StoreError, match=r"a.parquet: is damaged .*delete it and rerun"):
            list(files.blocks(5 * 120))
        _flip(path, 8 * byte + byte % 8)
    path.unlink()
    with pytest.raises(StoreError, match=r"a.parquet: is missing; rerun"):
        files.read()


def test_a_damaged_work_unit_is_not_collected(tmp_path: Path) -> None:
    """The probabilities of steered prompts, or the notes on chance, would be those of other rows."""
    record = write_table(tmp_path, "prompts/0.parquet", pa.table({"a": [1]}))
    assert manifest.read_rows(tmp_path, [record])["a"].to_pylist() == [1]
    _flip(tmp_path / record.path, 8 * 10)
    with pytest.raises(StoreError, match="is damaged"):
        manifest.read_rows(tmp_path, [record])
