"""Similarity matrices of a store, as objects of rsatoolbox and xarray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from alignment.arrays import Floats
from jobs.similarity import REPRESENTATION_KEY
from storage.database import run_query
from storage.errors import UserError

if TYPE_CHECKING:
    from rsatoolbox.rdm import RDMs
    from xarray import DataArray

CONCEPT = "concept"
_KEY = (*REPRESENTATION_KEY, "run")
_NUMBERS = ("layer", "threshold", "top")


@dataclass(frozen=True)
class SimilarityMatrices:
    """`values` has shape (matrices, concepts, concepts), NaN on the diagonal and where a similarity is
    undefined. `keys` has the representation of each matrix: text, empty if null; for layer, threshold
    and top numbers, NaN if null."""

    keys: dict[str, list[Any]]
    concepts: list[str]
    values: Floats


def read_matrices(connection: duckdb.DuckDBPyConnection, condition: str) -> SimilarityMatrices:
    """The matrices whose rows of the view `similarity` fulfill an SQL condition.

    Raises:
        UserError: for invalid SQL, and if there are none.
    """
    columns = ", ".join(_KEY)
    query = (
        f"SELECT {columns}, list(concept_a) AS a, list(concept_b) AS b, list(similarity) AS similarity "
        f"FROM similarity WHERE ({condition}) GROUP BY {columns} ORDER BY {columns}"
    )
    table = run_query(connection, query)
    if not table.num_rows:
        raise UserError(f"--where {condition!r}: no similarities match")
    lists = {name: table.column(name).combine_chunks() for name in ("a", "b", "similarity")}
    concepts = sorted({name for side in "ab" for name in lists[side].flatten().unique().to_pylist()})
    index = {name: number for number, name in enumerate(concepts)}
    values = np.full((table.num_rows, len(concepts), len(concepts)), np.nan)
    rows = zip(*(lists[name] for name in ("a", "b", "similarity")), strict=True)
    for matrix, (first, second, similarity) in zip(values, rows, strict=True):
        left, right = ([index[name] for name in side.as_py()] for side in (first, second))
        numbers = similarity.values.to_numpy(zero_copy_only=False).astype(np.float64)
        matrix[right, left] = numbers
        # A measure with both orders has a row for each, the other one.
        matrix[left, right] = numbers
    keys = {name: [_plain(name, value) for value in table.column(name).to_pylist()] for name in _KEY}
    return SimilarityMatrices(keys, concepts, values)


def to_rdms(matrices: SimilarityMatrices) -> RDMs:
    """Dissimilarities, 1 - similarity; `concept` is a pattern descriptor, the keys are RDM descriptors.

    Raises:
        UserError: if rsatoolbox is not installed, or a measure depends on the order of two concepts.
    """
    with _require("rsatoolbox"):
        from rsatoolbox.rdm import RDMs
    values = matrices.values
    symmetric = np.isclose(values, values.transpose(0, 2, 1), equal_nan=True).all(axis=(1, 2))
    if not symmetric.all():
        measure = matrices.keys["measure"][int(symmetric.argmin())]
        raise UserError(
            f"{measure} depends on the order of two concepts, and RDMs are symmetric; leave it out: "
            f"--where \"measure <> '{measure}'\", or write a .nc file"
        )
    first, second = np.triu_indices(len(matrices.concepts), 1)
    return RDMs(
        1 - values[:, first, second],
        dissimilarity_measure="1 - similarity",
        pattern_descriptors={CONCEPT: matrices.concepts},
        rdm_descriptors=matrices.keys,
    )


def to_xarray(matrices: SimilarityMatrices) -> DataArray:
    """An array with the dimensions matrix, concept_a, concept_b; the keys are coordinates of matrix.

    Raises:
        UserError: if xarray is not installed.
    """
    with _require("xarray"):
        from xarray import DataArray
    return DataArray(
        matrices.values,
        dims=("matrix", "concept_a", "concept_b"),
        coords={
            "concept_a": matrices.concepts,
            "concept_b": matrices.concepts,
            **{name: ("matrix", values) for name, values in matrices.keys.items()},
        },
        name="similarity",
    )


@contextmanager
def _require(package: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{package} is not installed; `pip install 'neuralign[export]'`") from error


def _plain(name: str, value: Any) -> str | float:
    """A key as text or a number: the files' formats have no null."""
    if name in _NUMBERS:
        return float("nan") if value is None else float(value)
    return value or ""
