"""Similarity of two concepts' AP vectors: cosine, Spearman's rho and Kullback-Leibler divergence, read
from the stored scores one block of neurons at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.arrays import AnyFloats, Floats
from alignment.statistics.score_vectors import (
    centered_ranks,
    cosine_from_products,
    kl_divergence,
    sufficient_statistics,
)
from storage.store.paths import read_parquet

_MAX_BLOCK_BYTES = 256 << 20
"""Maximum size of the ranks in memory."""


def score_similarities(
    files: Sequence[tuple[dict[str, Any], Sequence[Path]]],
    concepts: Sequence[str],
    measures: Sequence[str],
) -> list[pa.Table]:
    """The measures between every pair of concepts, one table per representation and measure.

    `files` has (key columns of the representation, its score files); a file has shape (neurons,
    concepts), with the concepts in the order of `concepts`.
    """
    tables = []
    for key, paths in files:
        matrices: dict[str, Floats] = {}
        if "cosine" in measures or "kl" in measures:
            sums = reduce(add, map(sufficient_statistics, _read_blocks(paths, len(concepts))))
            matrices = {"cosine": cosine_from_products(sums.products), "kl": -kl_divergence(sums)}
        if "spearman" in measures:
            matrices["spearman"] = _spearman(paths, len(concepts))
        tables += [_table(matrices[name], name, concepts, key) for name in measures]
    return tables


def _read_blocks(paths: Sequence[Path], n_concepts: int) -> Iterator[AnyFloats]:
    for path in paths:
        yield read_parquet(path).column(0).to_numpy().reshape(-1, n_concepts)


def _spearman(paths: Sequence[Path], n_concepts: int) -> Floats:
    """Spearman's rho of every pair of concepts: the cosine of their centered ranks, kept on disk."""
    n_neurons = sum(len(block) for block in _read_blocks(paths, n_concepts))
    concepts_per_block = max(1, _MAX_BLOCK_BYTES // (8 * n_neurons))
    with tempfile.TemporaryFile(prefix="neuralign-") as file:
        ranks: Floats = np.memmap(file, np.float64, "w+", shape=(n_concepts, n_neurons))
        for start in range(0, n_concepts, concepts_per_block):
            columns = slice(start, start + concepts_per_block)
            ap = np.concatenate([block[:, columns] for block in _read_blocks(paths, n_concepts)])
            ranks[columns] = centered_ranks(ap).T
        products = np.zeros((n_concepts, n_concepts))
        neurons_per_block = max(1, _MAX_BLOCK_BYTES // (8 * n_concepts))
        for start in range(0, n_neurons, neurons_per_block):
            block = np.asarray(ranks[:, start : start + neurons_per_block])
            products += block @ block.T
    return cosine_from_products(products)


def _table(matrix: Floats, measure: str, concepts: Sequence[str], key: dict[str, Any]) -> pa.Table:
    """One row per pair of concepts; for the asymmetric kl, one per ordered pair."""
    order = np.array(concepts)
    mask = order[:, None] != order if measure == "kl" else order[:, None] < order
    rows, columns = np.nonzero(mask)
    names = pa.array(concepts)
    return pa.table(
        {
            **{name: pa.repeat(pa.scalar(value), len(rows)) for name, value in key.items()},
            "measure": pa.repeat(pa.scalar(measure), len(rows)),
            "concept_a": names.take(rows),
            "concept_b": names.take(columns),
            "similarity": pa.array(matrix[mask], from_pandas=True),
        }
    )
