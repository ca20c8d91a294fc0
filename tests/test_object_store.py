"""A store in a bucket must behave like one on a disk: complete files, one winner, equal rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage
from storage.database import export_database
from storage.errors import StoreError
from storage.store import layout, manifest
from storage.store.commit import put_if_absent, write_table, write_values
from storage.store.manifest import Manifest
from storage.store.paths import (
    file_size,
    parse_store_path,
    read_bytes,
    read_parquet,
    remove_file,
    walk_files,
)
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.object_store import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


def test_files_are_read_back_as_written(bucket: str) -> None:
    """A bucket would return other bytes, names or sizes than a disk."""
    folder = parse_store_path(f"{bucket}/files/deep")
    table = pa.table({"a": [1, 2, 3]})
    values = np.arange(100, dtype=np.float16)
    record = write_table(folder, "x/table.parquet", table)
    write_values(folder, "values.parquet", values, 50)
    assert read_parquet(folder / "x/table.parquet").equals(table)
    assert np.array_equal(read_parquet(folder / "values.parquet")["value"], values)
    assert file_size(folder / record.path) == record.bytes
    assert walk_files(folder) == [folder / "values.parquet", folder / "x/table.parquet"]
    remove_file(folder / "values.parquet")
    assert walk_files(folder) == [folder / "x/table.parquet"]
    with pytest.raises(FileNotFoundError):
        read_bytes(folder / "values.parquet")


@pytest.mark.parametrize("where", ["bucket", "disk"])
def test_exactly_one_concurrent_writer_creates_a_file(bucket: str, tmp_path: Path, where: str) -> None:
    """If existence were checked before the upload, two runs could both work on one stage."""
    folder = parse_store_path(f"{bucket}/race") if where == "bucket" else tmp_path
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: put_if_absent(folder, "it", str(n).encode()), range(24)))
    assert won.count(True) == 1
    assert read_bytes(folder / "it") == str(won.index(True)).encode()
    assert [path.name for path in walk_files(folder)] == ["it"]


@pytest.mark.parametrize(
    "name", ["ftp://a/b", "s3://", "s3:///a", "s3://a/../b", "s3://a//b", "s3://a/./b"]
)
def test_invalid_object_store_urls_are_rejected(name: str) -> None:
    """A typo would create a store elsewhere."""
    with pytest.raises(StoreError, match=r"allowed: s3|expected s3"):
        parse_store_path(name)


def test_a_stage_in_a_bucket_is_completed_verified_and_dropped(bucket: str) -> None:
    """A stage in a bucket would never be complete, or its files never deleted."""
    root = layout.create_store(parse_store_path(f"{bucket}/one"))
    assert layout.check_store(root) == root
    folder = layout.stage_folder(root, "report", "m", "0" * 16)
    record = write_table(folder, "deep/a.parquet", pa.table({"a": [1]}))
    assert manifest.read(folder) is None
    Manifest(folder, "report", "m", "0" * 16, {}, {}, [record], 1.0).commit()
    (stage,) = manifest.completed(root, "report")
    assert not stage.missing_files()
    assert manifest.drop_files(stage, lambda _: True, "for a test") == record.bytes
    (stage,) = manifest.completed(root, "report")
    assert not stage.missing_files()
    assert not stage.present_records
    assert list(verify(root)) == []


def test_a_missing_bucket_is_a_one_line_error() -> None:
    """The user would see a traceback."""
    with s3_server(), pytest.raises(StoreError) as raised:
        layout.create_store(parse_store_path("s3://nowhere-at-all/x"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keep", "from_activations"), [("true", "activations"), ("false", "top_sentences")]
)
def test_a_sweep_has_the_same_rows_in_a_bucket_as_on_disk(
    bucket: str, tiny_model: Path, tmp_path: Path, keep: str, from_activations: str
) -> None:
    """Ray workers would write or read other activations, or other stages' experts, in a bucket."""
    settings = (
        "similarity: [dice, containment, jaccard]\ncontrols: [split-half]\n"
        f"experts: {{top: [3], keep_activations: {keep}}}\nbaselines: [input-embedding]\n"
    )
    stores = [str(tmp_path / "results"), f"{bucket}/sweeps/{keep}"]
    for number, store in enumerate(stores):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_model, folder / "model")
        file = tiny.write_sweep(folder, extra=f"store: {store}\nname: tiny\n{settings}")
        with nullcontext() if store.startswith("s3:") else in_one_process():
            process = neuralign("run", file)
        assert process.returncode == 0, process.stderr
    rows = []
    for store in stores:
        assert list(verify(parse_store_path(store))) == []
        with storage.open(store) as connection:
            views = [
                "sentences",
                from_activations,
                "experts",
                "control_experts",
                "similarity",
                "alignment",
                "reliability",
                "hierarchy_summary",
                "hierarchy_merges",
            ]
            rows.append(
                [
                    sorted(connection.sql(f"SELECT * FROM {view}").fetchall(), key=repr)  # noqa: S608
                    for view in views
                ]
            )
            with pytest.raises(Exception, match="disabled by configuration"):
                connection.sql(f"SELECT * FROM read_text('{bucket}/race/it')").fetchall()  # noqa: S608
    assert rows[0] == rows[1]
    assert all(rows[0])
    export_database(parse_store_path(stores[1]), tmp_path / "results.duckdb")
