"""Similarity of two concepts' vectors of scores of all neurons, read from the stored scores one block of
neurons at a time: of AUROCs, or of APs (cosine, Spearman's rho and Kullback-Leibler divergence)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.arrays import AnyFloats, Floats
from alignment.expertise.scoring import AP, AUROC
from alignment.statistics.score_vectors import (
    centered_ranks,
    cosine_from_products,
    crossed_products,
    dot_products,
    kl_divergence,
    subtract_neuron_means,
    sufficient_statistics,
)
from jobs.scoring.labelings import HALVES
from storage.store.paths import read_parquet

ScoreFiles = dict[str, list[Path]]
"""Files of scores of the same neurons: AP, AUROC, and each half's AUROC by the half's name. A file has
shape (neurons, concepts)."""

_MAX_BLOCK_BYTES = 256 << 20
"""Maximum size of the ranks in memory."""


def score_similarities(
    files: Sequence[tuple[Mapping[str, Any], ScoreFiles]],
    concepts: Sequence[str],
    measures: Sequence[str],
) -> list[pa.Table]:
    """The measures between every pair of concepts, one table per representation and measure.

    `files` has (key columns of the representation, its score files), with the concepts in the order of
    `concepts`.
    """
    return [
        _table(_compute(measure, scores, len(concepts)), measure, concepts, key)
        for key, scores in files
        for measure in measures
    ]


def _compute(measure: str, files: ScoreFiles, n_concepts: int) -> Floats:
    """A measure between all pairs of concepts, (concepts, concepts); NaN where it is undefined."""
    if measure == "spearman":
        return _spearman(files[AP], n_concepts)
    if measure == "kl":
        blocks = _read_blocks(files[AP], n_concepts)
        return -kl_divergence(reduce(add, map(sufficient_statistics, blocks)))
    if measure == "centred cosine":
        centered = map(subtract_neuron_means, _read_blocks(files[AP], n_concepts))
        products = map(dot_products, centered)
    elif measure == "auroc":
        products = map(dot_products, _read_blocks(files[AUROC], n_concepts))
    else:
        products = map(crossed_products, *(_read_blocks(files[half], n_concepts) for half in HALVES))
    return cosine_from_products(reduce(add, products))


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


def _table(matrix: Floats, measure: str, concepts: Sequence[str], key: Mapping[str, Any]) -> pa.Table:
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
