"""Activations that are kept: files of another layer or sentence, values that differ from those that are
scored at once, or stores of earlier versions that can no longer be read."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cluster.activations.layer_writer import LayerWriter, activation_file, row_group_size
from cluster.activations.pass_request import SiteValues
from cluster.activations.prepared_pass import PreparedPass
from cluster.activations.site_writers import SiteWriters
from jobs import activations
from storage import tables
from storage.database import open_store
from storage.store import layout, manifest
from storage.store.activation_files import RESIDUAL, SiteActivations, activation_folder
from storage.store.commit import write_table, write_values
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_child, in_one_process, kill
from tests.test_scored_pass import LAYERS, assert_same_rows, make_study, read_rows, run

_BASELINES = "resamples: 100\nbaselines: [input-embedding, contextual]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("kept") / "model", LAYERS)


@contextmanager
def blocks_of(n_layers: int) -> Iterator[None]:
    edges = [*range(0, LAYERS, n_layers), LAYERS]
    blocks = [range(start, stop) for start, stop in pairwise(edges)]
    with patch.object(PreparedPass, "plan_blocks", lambda _: blocks):
        yield


def add_sentences(folder: Path) -> None:
    """Four times as many sentences, of other lengths."""
    with (folder / "concepts.csv").open() as file:
        header, *rows = csv.reader(file)
    with (folder / "concepts.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for name, domain, text in rows:
            for start in ("", "Today it was said: ", "They wrote: ", "It is true that on some days: "):
                writer.writerow([name, domain, start + text])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_that_are_kept_are_those_that_are_scored(
    model: Path, tmp_path: Path, dtype: str
) -> None:
    """In bfloat16, values depend on the batch: other batches would give other experts. Neither blocks
    nor threads may change them."""
    rows = []
    for keep, n_layers, threads in (("true", 4, 1), ("false", 4, 1), ("true", 1, 3), ("false", 2, 2)):
        file = make_study(
            tmp_path / keep,
            model,
            f"keep_activations: {keep}, permutations: 2",
            _BASELINES,
            "[max, mean]",
        )
        add_sentences(tmp_path / keep)
        file.write_text(file.read_text().replace("float32", dtype))
        store = tmp_path / f"store {keep} {n_layers}"
        with in_one_process(threads), blocks_of(n_layers):
            run(file, store)
        rows.append(read_rows(store))
    expected, *others = rows
    assert expected["experts"]
    for actual in others:
        assert_same_rows(actual, expected)
    assert others[1]["activations"] == expected["activations"]


def test_a_site_is_one_file(model: Path, tmp_path: Path) -> None:
    """Thousands of small files, each flushed to disk, of which a reader opens one after another."""
    file = make_study(tmp_path, model, "keep_activations: true", _BASELINES, "[max, concept]")
    with in_one_process():
        planned = run(file, tmp_path / "store")
    (stage,) = planned.stages_of_kind(activations.KIND)
    sites = activations.read_sites(stage, tmp_path / "store")
    assert len(sites) == LAYERS * (2 + 3)
    names = [record.path for record in stage.read_manifest(tmp_path / "store").files]
    assert sorted(name for name in names if name.startswith("pooling=")) == sorted(
        activation_file(site["pooling"], site["layer"], site["site"]) for site in sites
    )
    assert sum(site["site"] == RESIDUAL for site in sites) == LAYERS * 3
    assert len(names) == len(sites) + 5


def split_files(stage: manifest.Manifest, store: Path) -> None:
    """Make a stage like those of earlier versions: several files a site, each of some sentences."""
    n_first, files, rows = 20, [], []
    with open_store(store) as connection:
        sites = connection.sql("SELECT pooling, layer, site, width FROM sites").fetchall()
    for pooling, layer, site, width in sites:
        path = stage.folder / activation_file(pooling, layer, site)
        values = SiteActivations([path], width).read()
        for number, part in enumerate((values[:, :n_first], values[:, n_first:])):
            name = f"{activation_folder(pooling, layer, site)}/{number:05d}.parquet"
            files.append(write_values(stage.folder, name, np.ascontiguousarray(part), part.size))
            rows.append((name, number * n_first, part.shape[1]))
    file_rows = stage.read_table(tables.ACTIVATION_FILES.file).to_pylist()
    by_name = {row["path"]: row for row in file_rows}
    split_rows = [
        {**by_name[name.replace("00001", "00000")], "path": name, "first": first, "sentences": count}
        for name, first, count in rows
    ]
    table = pa.Table.from_pylist(split_rows, tables.ACTIVATION_FILES.schema)
    files.append(write_table(stage.folder, tables.ACTIVATION_FILES.file, table))
    others = [record for record in stage.files if record.path not in {file.path for file in files}]
    replace(stage, files=[*others, *files]).commit()


def test_stores_with_several_files_a_site_are_read(model: Path, tmp_path: Path) -> None:
    """Months of activations that an earlier version wrote in units of sentences."""
    file = make_study(tmp_path, model, "keep_activations: true", _BASELINES, "[max, mean]")
    store = tmp_path / "store"
    with in_one_process():
        run(file, store)
        expected = read_rows(store)
        (stage,) = manifest.completed(store, activations.KIND)
        split_files(stage, store)
        assert len(list(stage.folder.glob("pooling=max/*/*/*.parquet"))) == 2 * LAYERS
        for kind in ("experts", "similarity", "alignment"):
            shutil.rmtree(store / kind)
        run(file, store)
    actual = read_rows(store)
    assert actual["activations"] == expected["activations"]
    assert_same_rows(actual | {"activation_files": []}, expected | {"activation_files": []})
    assert list(verify(store)) == []


def test_a_kept_pass_that_is_killed_loses_the_block_in_work(model: Path, tmp_path: Path) -> None:
    """Layers that are read and written twice, or files of a layer that is not recorded."""
    file = make_study(tmp_path, model, "keep_activations: true", _BASELINES)
    with in_one_process(), blocks_of(1):
        run(file, tmp_path / "undisturbed")
        for point in ("_units/L00.json", "layer=2/site=mlp.hidden/00000.parquet"):
            store = tmp_path / point.partition("/")[0]

            def kill_after(current: str, point: str = point) -> None:
                if current.startswith("after replace") and current.endswith(point):
                    kill()

            assert in_child(partial(run, file, store), kill_after)
            (folder,) = store.glob("activations/*")
            recorded = {path: path.stat().st_mtime_ns for path in folder.glob("_units/*")}
            assert recorded
            run(file, store)
            rows, expected = read_rows(store), read_rows(tmp_path / "undisturbed")
            assert rows | {"runs": []} == expected | {"runs": []}
            assert list(verify(store)) == []
            kept = [path for path in recorded if path.exists()]
            assert {path: path.stat().st_mtime_ns for path in kept} == {p: recorded[p] for p in kept}
            assert not (folder / layout.HIDDEN_STATES).exists()


def test_a_value_that_is_not_finite_is_named_and_not_written(model: Path, tmp_path: Path) -> None:
    """Infinities in the store; or a layer's file without its neighbours'."""
    file = make_study(tmp_path, model, "keep_activations: true", "baselines: []\n")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3] *= 1e6
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    result = neuralign("run", file)
    assert result.returncode == 1, result.stderr
    assert "model model@main: L02.mlp.hidden, pooling max, sentence" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("results/sweep/activations/*/pooling=*/layer=2/*/*"))


def make_values(layer: int, n_sentences: int = 50) -> list[SiteValues]:
    torch.manual_seed(layer)
    return [
        SiteValues("max", "mlp.hidden", torch.randn(128, n_sentences).half()),
        SiteValues("concept", "mlp.hidden", torch.randn(128, n_sentences).half()),
        SiteValues("mean", RESIDUAL, torch.randn(40, n_sentences)),
    ]


def test_threads_and_processes_write_the_same_files(tmp_path: Path) -> None:
    """A store that depends on the machine: on a GPU, processes write."""
    records = []
    for threads in (1, 3):
        writer = LayerWriter(tmp_path / str(threads) / "stage")
        records.append(
            [record for layer in range(3) for record in writer(layer, make_values(layer), threads)]
        )
    with SiteWriters(tmp_path / "processes" / "stage") as writers:
        found = []
        for layer in range(3):
            for pooling, site, values, _ in make_values(layer):
                writers.write(activation_file(pooling, layer, site), values, row_group_size(values))
            found += writers.finish()
    assert records == [found, found]
    assert len(found) == 9
    read = SiteActivations([tmp_path / "3/stage" / found[5].path], 40, [found[5]]).read()
    assert np.array_equal(read, make_values(1)[2].values.numpy())
