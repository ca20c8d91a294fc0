"""A store must never hold a partial file, a non-finite number, or two configurations under one name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from storage.errors import StoreError
from storage.store import flat_parquet, layout, manifest
from storage.store import lease as leases
from storage.store.commit import KEY, put_if_absent, write_json, write_table, write_values
from storage.store.fingerprint import fingerprint
from storage.store.lease import (
    acquire_lease,
    holder_has_exited,
    is_held,
    read_lease,
    remove_stale_lease,
    update_lease,
)
from storage.store.manifest import Manifest
from storage.store.paths import file_version
from storage.tables_doc import page
from tests.faults import heartbeats


def test_a_committed_table_reads_back_and_leaves_no_other_file(tmp_path: Path) -> None:
    """A reader would see other rows, or a temporary file."""
    table = pa.table({"a": [1, 2, 3]})
    record = write_table(tmp_path, "deep/er/table.parquet", table)
    assert pq.read_table(tmp_path / "deep/er/table.parquet").equals(table)
    assert (record.path, record.rows) == ("deep/er/table.parquet", 3)
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_non_finite_values_are_never_committed(tmp_path: Path, bad: float) -> None:
    """An overflow would pass for an activation."""
    with pytest.raises(StoreError, match="1 values not finite"):
        write_values(tmp_path, "values.parquet", np.array([1, bad], np.float16), 2)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would destroy what was committed."""
    write_json(tmp_path, "facts.json", {"a": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left on device; free disk space"):
        write_json(tmp_path, "facts.json", {"a": 2})
    assert json.loads((tmp_path / "facts.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


def test_values_are_written_without_encoding(tmp_path: Path) -> None:
    """Dictionaries, statistics or compression would make the file larger and slower to read."""
    values = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float16)
    record = write_values(tmp_path, "values.parquet", values, 1600)
    assert record.rows == values.size
    assert record.bytes < values.nbytes + 4000
    assert np.array_equal(pq.read_table(tmp_path / "values.parquet")["value"], values.ravel())


@given(
    values=arrays("f2", st.integers(1, 70), elements=st.floats(-6e4, 6e4, width=16)),
    kind=st.sampled_from(["f2", "f4", "f8"]),
    row_group=st.integers(1, 80),
)
def test_a_file_of_values_is_identical_to_pyarrows(
    values: np.ndarray, kind: str, row_group: int
) -> None:
    """Values placed between the headers of another size could end up in the wrong rows."""
    arguments = values.astype(kind), row_group, {b"place": b"a/b"}
    content = b"".join(flat_parquet.encode(*arguments))
    assert content == flat_parquet.encode_with_pyarrow(*arguments).to_pybytes()
    assert np.array_equal(np.concatenate(list(flat_parquet.decode(pa.py_buffer(content)))), values)


def test_fingerprints_are_equal_for_equal_values_only() -> None:
    """Equal configurations would run twice, or different ones share results."""
    expected = fingerprint({"a": [1, 2.5, None], "b": {"c": "é"}})
    assert expected == fingerprint({"b": {"c": "é"}, "a": (1, 2.5, None)})
    others = [{"a": [1, 2.5]}, {"a": "1"}, {"a": 1}, {"a": True}, {"a": 1.5}, ["a", 1]]
    assert len({fingerprint(other) for other in others} | {expected}) == 7


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), {1: "a"}, b"a", Path()])
def test_values_without_a_stable_identity_have_no_fingerprint(value: object) -> None:
    """The fingerprint would differ in another process, and the stage would run again."""
    with pytest.raises(TypeError, match="value"):
        fingerprint(value)


def test_a_store_of_another_version_is_rejected(tmp_path: Path) -> None:
    """Its files would be read in the wrong format."""
    write_json(tmp_path, layout.STORE_FILE, {"format": layout.FORMAT + 1})
    with pytest.raises(StoreError, match="made by another version"):
        layout.create_store(tmp_path)


def test_a_folder_with_other_files_never_becomes_a_store(tmp_path: Path) -> None:
    """The user's files could be deleted with the store."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is not a neuralign store"):
        layout.create_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["../../etc", "a/b", "\0", "x" * 300, "Ωμέγα", "", "..", "CON"])
def test_no_name_escapes_its_folder(tmp_path: Path, name: str) -> None:
    """A name from a sweep file could write anywhere."""
    folder = layout.stage_folder(tmp_path, "experts", name, "0" * 16)
    assert folder.parent == tmp_path / "experts"
    folder.mkdir(parents=True)


@given(st.lists(st.text(max_size=300), min_size=2, max_size=2, unique=True))
@example(["MLP.up", "mlp.up"])
@example(["../..", ".."])
@example(["a" * 400, "a" * 401])
@example(["a/b\0", "a%2fb%00"])
def test_escaped_names_are_unique_path_components(names: list[str]) -> None:
    """Two sites would share a folder on a case-insensitive file system."""
    first, second = map(layout.escape_name, names)
    assert first.lower() != second.lower()
    for safe, name in zip((first, second), names, strict=True):
        assert not set(safe) & set("/\\\0=:")
        assert safe not in (".", "..")
        assert len(safe) <= 150
        if len(name.encode()) < 50:
            assert duckdb.execute("SELECT url_decode(?)", [safe]).fetchall() == [(name,)]


def test_invalid_rows_are_never_committed(tmp_path: Path) -> None:
    """A duplicate key, a null or a NaN would be read as a result."""
    schema = pa.schema(
        [pa.field("a", pa.int64(), nullable=False), pa.field("x", pa.float64())],
        metadata={KEY: b"a"},
    )
    for rows, message in (
        ({"a": [1, 1], "x": [0.0, 1.0]}, "two rows with the same a"),
        ({"a": [1, 2], "x": [0.0, np.nan]}, "non-finite value in the column x"),
        ({"a": [1, 2], "x": [0.0, np.inf]}, "non-finite value in the column x"),
        ({"a": [1, None], "x": [0.0, None]}, "1 nulls in the column a"),
    ):
        with pytest.raises(StoreError, match=message):
            write_table(tmp_path, "t.parquet", pa.table(rows, schema))
        assert not list(tmp_path.iterdir())
    assert (
        write_table(tmp_path, "t.parquet", pa.table({"a": [1, 2], "x": [0.0, None]}, schema)).rows == 2
    )


def test_a_stage_is_complete_only_with_its_manifest(tmp_path: Path) -> None:
    """An interrupted stage would be read as complete."""
    folder = layout.stage_folder(tmp_path, "experts", "m", "0" * 16)
    record = write_table(folder, "experts/a.parquet", pa.table({"a": [1]}))
    assert manifest.read(folder) is None
    assert not list(manifest.completed(tmp_path, "experts"))
    Manifest(folder, "experts", "m", "0" * 16, {}, {}, [record], 1.0).commit()
    (stage,) = manifest.completed(tmp_path, "experts")
    assert stage.paths("experts") == [folder / "experts/a.parquet"]


def test_a_work_unit_with_a_truncated_file_is_not_complete(tmp_path: Path) -> None:
    """A resumed stage would keep the truncated file."""
    record = write_table(tmp_path, "a.parquet", pa.table({"a": [1]}))
    manifest.write_work_unit(tmp_path, "00000", [record], {"tokens": 3})
    assert manifest.read_work_units(tmp_path) == {"00000": ([record], {"tokens": 3})}
    with (tmp_path / "a.parquet").open("rb+") as file:
        file.truncate(10)
    assert manifest.read_work_units(tmp_path) == {}


def _exited_holder(folder: Path) -> dict[str, Any]:
    """What a process of this machine that has exited left in a lease."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with acquire_lease(folder / layout.RUNNING, {}, lambda _: None):
        ours = read_lease(folder / layout.RUNNING)
    assert ours is not None
    return {**ours, "pid": child.pid, "token": "theirs"}


def test_a_lease_of_another_users_process_is_not_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's running stage would be taken over at once, also where /proc hides it."""
    holder = _exited_holder(tmp_path)
    assert holder_has_exited(holder)
    assert not holder_has_exited({**holder, "host": "elsewhere"})
    assert not holder_has_exited({**holder, "pid": os.getppid()})

    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    assert not holder_has_exited(holder)


@pytest.mark.parametrize("fact", ["boot", "pid_namespace"])
def test_no_process_is_judged_by_its_id_in_another_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    """In containers with the same host name, a live run would be taken over, because its process id is
    free in the other container; or its own id, so that the run would take its own lease over."""
    holder = _exited_holder(tmp_path)
    others = [{**holder, fact: "another"}, {**holder, fact: None}]
    others.append({name: value for name, value in holder.items() if name != fact})
    for other in others:
        assert not holder_has_exited(other)
        assert not holder_has_exited({**other, "pid": os.getpid()})
    # a system that does not tell
    monkeypatch.setattr(leases, "_BOOT_ID", tmp_path / "missing")
    assert not holder_has_exited({**holder, "boot": None, "pid_namespace": None})


@pytest.mark.parametrize("difference", [60, -60])
def test_a_live_lease_on_a_disk_with_another_clock_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    """The lease of a run in another container would be removed while it works."""
    monkeypatch.setattr(leases, "LEASE_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.02)
    path = tmp_path / layout.RUNNING
    put_if_absent(tmp_path, path.name, b'{"token": "theirs", "host": "elsewhere", "pid": 1}')
    with heartbeats(path, difference):
        assert is_held(path)
        remove_stale_lease(path)
        assert path.exists()
    assert not is_held(path)
    remove_stale_lease(path)
    assert not path.exists()


def test_a_run_that_lost_its_lease_does_not_keep_the_new_holders_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new holder is killed, its stage would wait for the old run to end."""
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / layout.RUNNING
    with acquire_lease(path, {}, lambda _: None):
        first = file_version(path)
        time.sleep(0.2)
        assert file_version(path) != first
        theirs = b'{"token": "theirs", "host": "elsewhere", "pid": 1}'
        path.unlink()
        put_if_absent(tmp_path, path.name, theirs)
        before = file_version(path)
        time.sleep(0.2)
        update_lease(path, units=3)
        assert file_version(path) == before
    assert path.read_bytes() == theirs


def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-fpr", "--mount-proc", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not _can_unshare(), reason="needs unshare and user namespaces")
def test_a_run_in_another_container_waits_for_a_live_lease(tmp_path: Path) -> None:
    """The other container has the same host name, and no process with the holder's id."""
    waits = (
        "import sys; from pathlib import Path; from storage.store.lease import *\n"
        "path = Path(sys.argv[1])\n"
        "print(is_held(path), holder_has_exited(read_lease(path)))"
    )
    with acquire_lease(tmp_path / layout.RUNNING, {}, lambda _: None):
        path = str(tmp_path / layout.RUNNING)
        command = ["unshare", "-fpr", "--mount-proc", sys.executable, "-c", waits, path]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.stdout == "True False\n", ran.stderr


def test_docs_tables_md_is_up_to_date() -> None:
    """The page would describe the columns of an earlier version."""
    text = (Path(__file__).parent.parent / "docs/tables.md").read_text()
    assert text == page(), "run `python -m storage.tables_doc > docs/tables.md`"
