"""A store's activations written and read against NumPy's own files, and similarity against scipy."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from benchmarks.measure import record, side_by_side
from jobs.similarity import connect, similarities
from storage.activation_files import SiteFiles
from storage.commit import write_values

_UNITS, _SENTENCES = 8192, 4096
_CONCEPTS, _EXPERTS, _NEURONS, _WIDTH = 750, 2000, 400_000, 4000


def _values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((_UNITS, _SENTENCES)).astype(np.float16)


def store_write() -> None:
    """A site's activations, committed (flushed, read back, checked, renamed), against `np.save` and a
    flush: bytes a second."""
    values = _values()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)

        def theirs() -> None:
            with (path / "values.npy").open("wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())

        ours_seconds, theirs_seconds = side_by_side(
            lambda: write_values(path, "values.parquet", values, 512 * _SENTENCES), theirs
        )
    rate = values.nbytes / ours_seconds, values.nbytes / theirs_seconds
    record("store_write", *rate, "B/s", "none: the price of Parquet, a checksum and reading back")


def store_read() -> None:
    """A site's activations from the page cache, against `np.load`: bytes a second."""
    values = _values()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_values(path, "values.parquet", values, 512 * _SENTENCES)
        np.save(path / "values.npy", values)
        files = SiteFiles([path / "values.parquet"], _UNITS)
        ours_seconds, theirs_seconds = side_by_side(files.read, lambda: np.load(path / "values.npy"))
        np.testing.assert_array_equal(files.read(), values)
    rate = values.nbytes / ours_seconds, values.nbytes / theirs_seconds
    record("store_read", *rate, "B/s", "none: the price of Parquet")


def similarity() -> None:
    """Jaccard of all pairs of concepts from Parquet, against a product of sparse matrices with its
    export from the same file: seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.parquet"
        pq.write_table(_experts(_CONCEPTS, _EXPERTS, _NEURONS), path)
        names = [f"c{number:04d}" for number in range(_CONCEPTS)]

        def ours() -> pa.Table:
            with connect() as connection:
                connection.from_parquet(str(path)).create_view("experts")
                (rows,) = similarities(connection, names, ["max"], ["jaccard"], ["model"], [0.5], [])
            return rows

        def theirs() -> np.ndarray:
            rows = pq.read_table(path, columns=["concept", "layer", "unit", "ap"])
            rows = rows.filter(pc.greater(rows["ap"], 0.5))
            concept = rows["concept"].combine_chunks().dictionary_encode()
            order = np.argsort(np.argsort(concept.dictionary.to_pylist()))[concept.indices.to_numpy()]
            neuron = rows["layer"].to_numpy() * _WIDTH + rows["unit"].to_numpy()
            held = csr_matrix(
                (np.ones(len(order), np.int32), (order, neuron)), shape=(_CONCEPTS, _NEURONS)
            )
            shared = (held @ held.T).toarray()
            sizes = shared.diagonal()
            return shared / (sizes[:, None] + sizes[None, :] - shared)

        ours_seconds, theirs_seconds = side_by_side(ours, theirs)
        rows = ours().sort_by([("concept_a", "ascending"), ("concept_b", "ascending")])
        expected = theirs()[np.triu_indices(_CONCEPTS, 1)]
        np.testing.assert_array_equal(rows["similarity"].to_numpy(), expected)
    record("similarity", ours_seconds, theirs_seconds, "s", "ratio at most 2")


def _experts(concepts: int, experts: int, neurons: int) -> pa.Table:
    """Experts drawn at random, more often among the first neurons, as some stand for much."""
    random = np.random.default_rng(0)
    weights = 1 / np.sqrt(np.arange(1, neurons + 1))
    chance = weights / weights.sum()
    chosen = np.concatenate(
        [random.choice(neurons, experts, replace=False, p=chance) for _ in range(concepts)]
    ).astype(np.int32)
    names = pa.array([f"c{number:04d}" for number in range(concepts)])
    owner = np.repeat(np.arange(concepts, dtype=np.int32), experts)
    return pa.table(
        {
            "pooling": pa.repeat("max", len(chosen)),
            "concept": names.take(pa.array(owner)),
            "layer": chosen // _WIDTH,
            "site": pa.repeat("mlp.hidden", len(chosen)),
            "unit": chosen % _WIDTH,
            "ap": random.uniform(0.5, 1, len(chosen)) + 1e-9,
        }
    )
