"""Writing and reading activations against NumPy's files, and similarity against SciPy."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import labels_against_others
from benchmarks.measure import record, seconds, side_by_side
from jobs import experts
from jobs.scoring.block_scores import SiteKey
from jobs.scoring.labelings import Labeling
from jobs.similarity import MEMORY_LIMIT, compute_similarities, connect_duckdb
from storage import tables
from storage.store.activation_files import SiteActivations
from storage.store.commit import write_values

_UNITS, _SENTENCES = 8192, 4096
_NEURONS, _WIDTH = 400_000, 4000
_COLUMNS = ("pooling", "concept", "layer", "site", "unit", "ap")
_EXPERTS = pa.schema([tables.EXPERTS.schema.field(name) for name in _COLUMNS])


def _values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((_UNITS, _SENTENCES)).astype(np.float16)


def store_write() -> None:
    """A site's activations, committed (flushed, read back, checked, renamed), against `np.save` and a
    flush: bytes per second."""
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
    record("store_write", *rate, "B/s", "none: the cost of Parquet, a checksum and reading back")


def store_read() -> None:
    """A site's activations from the page cache, against `np.load`: bytes per second."""
    values = _values()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_values(path, "values.parquet", values, 512 * _SENTENCES)
        np.save(path / "values.npy", values)
        files = SiteActivations([path / "values.parquet"], _UNITS)
        ours_seconds, theirs_seconds = side_by_side(files.read, lambda: np.load(path / "values.npy"))
        np.testing.assert_array_equal(files.read(), values)
    rate = values.nbytes / ours_seconds, values.nbytes / theirs_seconds
    record("store_read", *rate, "B/s", "none: the cost of Parquet")


def store_check() -> None:
    """Scoring a site of 1,536 neurons on 2,688 sentences of 112 concepts with 19 permutations from
    files compared with their checksums, against the same files without that: seconds of CPU time."""
    units, sentences, concepts = 1536, 2688, 112
    ids = np.arange(sentences)
    labels = labels_against_others(ids, ids % concepts, sentences, concepts)
    site = SiteKey("max", 0, "mlp.hidden")
    params = {
        **dict.fromkeys(("model", "revision", "concept_set"), "m"),
        "prevalence": 0.1,
        "floor": 0.4,
    }
    params |= {"permutations": 19, "scores": []}
    labeling = Labeling(params, _names(concepts), labels, ids, permute_labels(labels, 19, 0))
    values = np.random.default_rng(0).standard_normal((units, sentences)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "stage", Path(folder) / "out"
        parts = [np.ascontiguousarray(part) for part in np.split(values, 4, axis=1)]
        records = [
            write_values(path, f"{number}.parquet", part, 512 * part.shape[1])
            for number, part in enumerate(parts)
        ]
        paths = [path / each.path for each in records]
        files = [SiteActivations(paths, units, records), SiteActivations(paths, units)]
        read_seconds = _cpu_seconds([each.read for each in files])
        score_seconds = _cpu_seconds(
            [partial(experts._score_site, each, site, labeling, False, out) for each in files]
        )
    rates = [values.nbytes / duration / 1e9 for duration in read_seconds]
    print(f"{'':16} reading from the page cache: {rates[0]:.1f} GB/s, {rates[1]:.1f} GB/s without")
    record("store_check", *score_seconds, "s", "ratio at most 1.05")


def _cpu_seconds(calls: list[Callable[[], Any]]) -> list[float]:
    """Lowest CPU time of each call over alternating rounds: other load does not count."""
    durations: list[list[float]] = [[] for _ in calls]
    for _ in range(9):
        for call, measured in zip(calls, durations, strict=True):
            started = time.process_time()
            call()
            measured.append(time.process_time() - started)
    return [min(measured) for measured in durations]


def similarity() -> None:
    """Jaccard of all pairs of concepts from Parquet, against a sparse matrix product including its
    export from the same file: seconds."""
    names = _names(750)
    with tempfile.TemporaryDirectory() as folder:
        path = _write_experts(Path(folder), names, 2000)
        ours_seconds, theirs_seconds = side_by_side(
            lambda: _by_sql(path, names), lambda: _by_product(path, names)
        )
        _assert_equal(_by_sql(path, names), _by_product(path, names))
    record("similarity", ours_seconds, theirs_seconds, "s", "ratio at most 2")


def similarity_large() -> None:
    """The same, once, for the 1,854 concepts of THINGS (Hebart et al. 2019) with ten times the experts,
    and the memory that it takes."""
    names = _names(1854)
    with tempfile.TemporaryDirectory() as folder:
        path = _write_experts(Path(folder), names, 20_000)
        before = _peak_megabytes()
        computed: list[pa.Table] = []
        ours_seconds = seconds(lambda: computed.append(_by_sql(path, names)))
        growth = _peak_megabytes() - before
        expected: list[np.ndarray] = []
        theirs_seconds = seconds(lambda: expected.append(_by_product(path, names)))
        _assert_equal(computed[0], expected[0])
    print(
        f"{'':16} {growth:.0f} MB of memory above the baseline of {before:.0f} MB; "
        f"DuckDB's limit: {MEMORY_LIMIT}"
    )
    record("similarity_large", ours_seconds, theirs_seconds, "s", "none: it fits into DuckDB's limit")


def _by_sql(path: Path, names: list[str]) -> pa.Table:
    with connect_duckdb() as connection:
        connection.from_parquet(str(path)).create_view("experts")
        (rows,) = compute_similarities(connection, names, ["max"], ["jaccard"], ["model"], [0.5], [])
    return rows


def _by_product(path: Path, names: list[str]) -> np.ndarray:
    rows = pq.read_table(path, columns=["concept", "layer", "unit", "ap"])
    rows = rows.filter(pc.greater(rows["ap"], 0.5))
    concept = rows["concept"].combine_chunks().dictionary_encode()
    order = np.argsort(np.argsort(concept.dictionary.to_pylist()))[concept.indices.to_numpy()]
    neuron = rows["layer"].to_numpy() * _WIDTH + rows["unit"].to_numpy()
    ones = np.ones(len(order), np.int32)
    membership = csr_matrix((ones, (order, neuron)), shape=(len(names), _NEURONS))
    shared = (membership @ membership.T).toarray()
    sizes = shared.diagonal()
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def _assert_equal(rows: pa.Table, matrix: np.ndarray) -> None:
    rows = rows.sort_by([("concept_a", "ascending"), ("concept_b", "ascending")])
    upper = matrix[np.triu_indices(len(matrix), 1)]
    np.testing.assert_array_equal(rows["similarity"].to_numpy(), upper)


def _names(concepts: int) -> list[str]:
    return [f"c{number:04d}" for number in range(concepts)]


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _write_experts(folder: Path, names: list[str], experts: int) -> Path:
    """A file of random experts; low-numbered neurons are experts of more concepts than others."""
    random = np.random.default_rng(0)
    # the smallest weighted exponentials are a weighted sample without replacement
    scales = np.sqrt(np.arange(1, _NEURONS + 1))
    path = folder / "experts.parquet"
    with pq.ParquetWriter(path, _EXPERTS) as file:
        for first in range(0, len(names), 50):
            names_in_group = names[first : first + 50]
            times = (random.standard_exponential(_NEURONS) * scales for _ in names_in_group)
            chosen = np.concatenate([np.argpartition(row, experts)[:experts] for row in times])
            columns = {
                "pooling": pa.repeat("max", len(chosen)),
                "concept": pa.array(names_in_group).take(
                    pa.array(np.repeat(np.arange(len(names_in_group)), experts))
                ),
                "layer": pa.array((chosen // _WIDTH).astype(np.int32)),
                "site": pa.repeat("mlp.hidden", len(chosen)),
                "unit": pa.array((chosen % _WIDTH).astype(np.int32)),
                "ap": pa.array(random.uniform(0.5, 1, len(chosen)) + 1e-9),
            }
            file.write_table(pa.table(columns, _EXPERTS))
    return path
