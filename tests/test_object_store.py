"""A store in a bucket must be what a store on a disk is: whole files, one winner, the same rows."""

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
from storage.database import export
from storage.errors import StoreError
from storage.store import layout, manifest
from storage.store.commit import put_if_absent, write_table, write_values
from storage.store.manifest import Manifest
from storage.store.paths import files_below, place, read_bytes, read_table, remove, size
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.object_store import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


def test_files_come_back_as_they_were_put(bucket: str) -> None:
    folder = place(f"{bucket}/files/deep")
    table = pa.table({"a": [1, 2, 3]})
    values = np.arange(100, dtype=np.float16)
    record = write_table(folder, "x/table.parquet", table)
    write_values(folder, "values.parquet", values, 50)
    assert read_table(folder / "x/table.parquet").equals(table)
    assert np.array_equal(read_table(folder / "values.parquet")["value"], values)
    assert size(folder / record.path) == record.bytes
    assert files_below(folder) == [folder / "values.parquet", folder / "x/table.parquet"]
    remove(folder / "values.parquet")
    assert files_below(folder) == [folder / "x/table.parquet"]
    with pytest.raises(FileNotFoundError):
        read_bytes(folder / "values.parquet")


@pytest.mark.parametrize("where", ["bucket", "disk"])
def test_of_many_who_put_a_file_that_must_be_absent_one_wins(
    bucket: str, tmp_path: Path, where: str
) -> None:
    """Were it checked and then put, two could find it absent and both go on."""
    folder = place(f"{bucket}/race") if where == "bucket" else tmp_path
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: put_if_absent(folder, "it", str(n).encode()), range(24)))
    assert won.count(True) == 1
    assert read_bytes(folder / "it") == str(won.index(True)).encode()
    assert [path.name for path in files_below(folder)] == ["it"]


@pytest.mark.parametrize(
    "name", ["ftp://a/b", "s3://", "s3:///a", "s3://a/../b", "s3://a//b", "s3://a/./b"]
)
def test_what_is_no_place_in_a_bucket_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match=r"allowed: s3|expected s3"):
        place(name)


def test_a_stage_in_a_bucket_is_done_verified_and_dropped(bucket: str) -> None:
    root = layout.create(place(f"{bucket}/one"))
    assert layout.check(root) == root
    folder = layout.stage_folder(root, "report", "m", "0" * 16)
    record = write_table(folder, "deep/a.parquet", pa.table({"a": [1]}))
    assert manifest.read(folder) is None
    Manifest(folder, "report", "m", "0" * 16, {}, {}, [record], 1.0).commit()
    (done,) = manifest.done(root, "report")
    assert not done.lacks()
    assert manifest.drop(done, lambda _: True, "for a test") == record.bytes
    (done,) = manifest.done(root, "report")
    assert not done.lacks()
    assert not done.kept
    assert list(verify(root)) == []


def test_a_bucket_that_is_not_there_is_one_line() -> None:
    with s3_server(), pytest.raises(StoreError) as raised:
        layout.create(place("s3://nowhere-at-all/x"))
    assert "\n" not in str(raised.value)


def test_a_sweep_into_a_bucket_gives_the_rows_of_one_onto_a_disk(
    bucket: str, tiny_model: Path, tmp_path: Path
) -> None:
    """With Ray's workers writing the activations into the bucket and reading them again; also those of
    controls, and every stage that reads experts."""
    wanted = (
        "similarity: [dice, containment, jaccard]\nexperts: {top: [3]}\ncontrols: [split-half]\n"
        "baselines: [input-embedding]\n"
    )
    stores = [str(tmp_path / "results"), f"{bucket}/sweeps/tiny"]
    for number, store in enumerate(stores):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_model, folder / "model")
        file = tiny.write_sweep(folder, extra=f"store: {store}\nname: tiny\n{wanted}")
        with nullcontext() if store.startswith("s3:") else in_one_process():
            done = neuralign("run", file)
        assert done.returncode == 0, done.stderr
    rows = []
    for store in stores:
        assert list(verify(place(store))) == []
        with storage.open(store) as connection:
            views = [
                "sentences",
                "activations",
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
    export(place(stores[1]), tmp_path / "results.duckdb")
