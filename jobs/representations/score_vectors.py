"""How similar two concepts' vectors of APs are, from the files of scores: by cosine, Spearman's rho and
Kullback-Leibler divergence, a block of neurons at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.statistics.score_vectors import Floats, Values, centred_ranks, cosine, divergence, sums
from storage.store.paths import read_table

_BYTES = 256 << 20
"""What the ranks of some concepts may take at once."""


def score_similarities(
    files: Sequence[tuple[dict[str, Any], Sequence[Path]]],
    concepts: Sequence[str],
    measures: Sequence[str],
) -> list[pa.Table]:
    """The measures between each two concepts, one table for each place and measure.

    `files` has (columns of the place, its files of scores); a file holds (neurons, concepts), the
    concepts in the order of `concepts`.
    """
    tables = []
    for place, paths in files:
        matrices: dict[str, Floats] = {}
        if "cosine" in measures or "kl" in measures:
            found = reduce(add, (sums(block) for block in _blocks(paths, len(concepts))))
            matrices = {"cosine": cosine(found.products), "kl": -divergence(found)}
        if "spearman" in measures:
            matrices["spearman"] = _spearman(paths, len(concepts))
        tables += [_table(matrices[name], name, concepts, place) for name in measures]
    return tables


def _blocks(paths: Sequence[Path], n_concepts: int) -> Iterator[Values]:
    for path in paths:
        yield read_table(path).column(0).to_numpy().reshape(-1, n_concepts)


def _spearman(paths: Sequence[Path], n_concepts: int) -> Floats:
    """Spearman's rho of each two concepts: the cosine of their ranks, which wait on the disk."""
    n_neurons = sum(len(block) for block in _blocks(paths, n_concepts))
    at_once = max(1, _BYTES // (8 * n_neurons))
    with tempfile.TemporaryFile(prefix="neuralign-") as file:
        ranks: npt.NDArray[np.float64] = np.memmap(file, np.float64, "w+", shape=(n_concepts, n_neurons))
        for first in range(0, n_concepts, at_once):
            some = slice(first, first + at_once)
            ap = np.concatenate([block[:, some] for block in _blocks(paths, n_concepts)])
            ranks[some] = centred_ranks(ap).T
        products = np.zeros((n_concepts, n_concepts))
        width = max(1, _BYTES // (8 * n_concepts))
        for first in range(0, n_neurons, width):
            some_ranks = np.asarray(ranks[:, first : first + width])
            products += some_ranks @ some_ranks.T
    return cosine(products)


def _table(matrix: Floats, measure: str, concepts: Sequence[str], place: dict[str, Any]) -> pa.Table:
    """The rows of a matrix: one a pair, or one for each order of it where they differ."""
    order = np.array(concepts)
    wanted = order[:, None] != order if measure == "kl" else order[:, None] < order
    rows, columns = np.nonzero(wanted)
    names = pa.array(concepts)
    return pa.table(
        {
            **{name: pa.repeat(pa.scalar(value), len(rows)) for name, value in place.items()},
            "measure": pa.repeat(pa.scalar(measure), len(rows)),
            "concept_a": names.take(rows),
            "concept_b": names.take(columns),
            "similarity": pa.array(matrix[wanted], from_pandas=True),
        }
    )
