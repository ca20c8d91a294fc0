"""A store must never hold half a file, a number that is none, or two configurations under one name."""

from __future__ import annotations

import json
import os
from pathlib import Path

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
from storage.store.commit import KEY, write_json, write_table, write_values
from storage.store.fingerprint import fingerprint
from storage.store.manifest import Manifest
from storage.tables_doc import page


def test_a_committed_table_reads_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    record = write_table(tmp_path, "deep/er/table.parquet", table)
    assert pq.read_table(tmp_path / "deep/er/table.parquet").equals(table)
    assert (record.path, record.rows) == ("deep/er/table.parquet", 3)
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_never_committed(tmp_path: Path, bad: float) -> None:
    with pytest.raises(StoreError, match="1 values not finite"):
        write_values(tmp_path, "values.parquet", np.array([1, bad], np.float16), 2)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path, "facts.json", {"a": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left on device; make space"):
        write_json(tmp_path, "facts.json", {"a": 2})
    assert json.loads((tmp_path / "facts.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


def test_values_are_written_as_the_bytes_that_they_are(tmp_path: Path) -> None:
    """No dictionary, no statistics, no compression: the file is the values and a footer."""
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
def test_a_file_of_values_is_the_one_that_pyarrow_makes(
    values: np.ndarray, kind: str, row_group: int
) -> None:
    """Values that are put between headers made for others could end up in the wrong rows."""
    given = values.astype(kind), row_group, {b"place": b"a/b"}
    made = b"".join(flat_parquet.encode(*given))
    assert made == flat_parquet.by_pyarrow(*given).to_pybytes()
    assert np.array_equal(flat_parquet.decode(pa.py_buffer(made)), values)


def test_equal_meaning_gives_one_fingerprint_and_other_meaning_another() -> None:
    one = fingerprint({"a": [1, 2.5, None], "b": {"c": "é"}})
    assert one == fingerprint({"b": {"c": "é"}, "a": (1, 2.5, None)})
    others = [{"a": [1, 2.5]}, {"a": "1"}, {"a": 1}, {"a": True}, {"a": 1.5}, ["a", 1]]
    assert len({fingerprint(other) for other in others} | {one}) == 7


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), {1: "a"}, b"a", Path()])
def test_what_has_no_stable_identity_has_no_fingerprint(value: object) -> None:
    with pytest.raises(TypeError, match="value"):
        fingerprint(value)


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path, layout.MARK, {"format": layout.FORMAT + 1})
    with pytest.raises(StoreError, match="made by another version"):
        layout.create(tmp_path)


def test_a_folder_of_the_user_never_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is no neuralign store"):
        layout.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["../../etc", "a/b", "\0", "x" * 300, "Ωμέγα", "", "..", "CON"])
def test_no_name_leaves_its_folder(tmp_path: Path, name: str) -> None:
    folder = layout.stage_folder(tmp_path, "experts", name, "0" * 16)
    assert folder.parent == tmp_path / "experts"
    folder.mkdir(parents=True)


@given(st.lists(st.text(max_size=300), min_size=2, max_size=2, unique=True))
@example(["MLP.up", "mlp.up"])
@example(["../..", ".."])
@example(["a" * 400, "a" * 401])
@example(["a/b\0", "a%2fb%00"])
def test_a_name_becomes_one_part_of_a_path_that_no_other_name_becomes(names: list[str]) -> None:
    """Also on a file system that takes capitals for small letters."""
    one, other = map(layout.escaped, names)
    assert one.lower() != other.lower()
    for safe, name in zip((one, other), names, strict=True):
        assert not set(safe) & set("/\\\0=:")
        assert safe not in (".", "..")
        assert len(safe) <= 150
        if len(name.encode()) < 50:
            assert duckdb.execute("SELECT url_decode(?)", [safe]).fetchall() == [(name,)]


def test_rows_that_lie_are_never_committed(tmp_path: Path) -> None:
    schema = pa.schema(
        [pa.field("a", pa.int64(), nullable=False), pa.field("x", pa.float64())],
        metadata={KEY: b"a"},
    )
    for rows, told in (
        ({"a": [1, 1], "x": [0.0, 1.0]}, "two rows with the same a"),
        ({"a": [1, 2], "x": [0.0, np.nan]}, "not finite in the column x"),
        ({"a": [1, 2], "x": [0.0, np.inf]}, "not finite in the column x"),
        ({"a": [1, None], "x": [0.0, None]}, "1 nulls in the column a"),
    ):
        with pytest.raises(StoreError, match=told):
            write_table(tmp_path, "t.parquet", pa.table(rows, schema))
        assert not list(tmp_path.iterdir())
    assert (
        write_table(tmp_path, "t.parquet", pa.table({"a": [1, 2], "x": [0.0, None]}, schema)).rows == 2
    )


def test_a_stage_is_done_only_with_its_manifest(tmp_path: Path) -> None:
    folder = layout.stage_folder(tmp_path, "experts", "m", "0" * 16)
    record = write_table(folder, "experts/a.parquet", pa.table({"a": [1]}))
    assert manifest.read(folder) is None
    assert not list(manifest.done(tmp_path, "experts"))
    Manifest(folder, "experts", "m", "0" * 16, {}, {}, [record], 1.0).commit()
    (done,) = manifest.done(tmp_path, "experts")
    assert done.paths("experts") == [folder / "experts/a.parquet"]


def test_a_unit_whose_file_was_cut_is_done_again(tmp_path: Path) -> None:
    record = write_table(tmp_path, "a.parquet", pa.table({"a": [1]}))
    manifest.write_unit(tmp_path, "00000", [record], {"tokens": 3})
    assert manifest.read_units(tmp_path) == {"00000": ([record], {"tokens": 3})}
    with (tmp_path / "a.parquet").open("rb+") as file:
        file.truncate(10)
    assert manifest.read_units(tmp_path) == {}


def test_the_page_of_tables_is_that_of_the_schemas() -> None:
    shown = (Path(__file__).parent.parent / "docs/tables.md").read_text()
    assert shown == page(), "run `python -m storage.tables_doc > docs/tables.md`"
