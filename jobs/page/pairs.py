"""Similarities in one view with the human scores of the same pairs, as a table and as matrices."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby

import numpy as np

from alignment.arrays import Floats
from alignment.statistics.hierarchy import average_linkage
from jobs.page.figures.spec import NO_DOMAIN, Heatmap
from jobs.page.study_data import StudyData
from jobs.similarity import EXPERTS
from storage import sql

MAX_NAMES = 250
"""Above this number of concepts, a heatmap shows groups: cells and names would be too small."""


class ConceptPairs:
    """Model similarity and human score of every pair of concepts. Creates the temporary table
    `view_pairs`, which the queries `nearest` and `disagreements` read."""

    def __init__(self, data: StudyData) -> None:
        self.data = data
        query = f"CREATE OR REPLACE TEMP TABLE view_pairs AS {sql.read_query('view_pairs')}"
        data.query(query, representation=EXPERTS)
        self.names = list(data.domains)
        self.groups = [data.domains[name] or NO_DOMAIN for name in self.names]

    @cached_property
    def model(self) -> Floats:
        """Similarities in the view, 0 where neither concept has experts."""
        return np.nan_to_num(self._square("coalesce(similarity, 0)"))

    @cached_property
    def human(self) -> Floats:
        """Human scores, NaN for pairs that are not rated."""
        return self._square("score")

    @cached_property
    def merges(self) -> Floats:
        """The merges of the tree by the model's similarities."""
        return average_linkage(self.model[np.triu_indices(len(self.names), 1)])

    def _square(self, column: str) -> Floats:
        index = {name: number for number, name in enumerate(self.names)}
        columns = self.data.connection.sql(
            f"SELECT concept_a, concept_b, {column} AS value FROM view_pairs WHERE value IS NOT NULL"
        ).fetchnumpy()
        first, second = (
            np.array([index[name] for name in columns[end]], np.int64)
            for end in ("concept_a", "concept_b")
        )
        square = np.full((len(index), len(index)), np.nan)
        square[first, second] = square[second, first] = np.ma.filled(columns["value"], np.nan)
        return square

    def heatmap(self, values: Floats, order: list[int], label: str, sqrt_scale: bool = False) -> Heatmap:
        """Values in an order of the concepts; for more than MAX_NAMES concepts, means over
        consecutive groups: domains if there are several, else equal runs of concepts."""
        values = values[np.ix_(order, order)]
        names = [self.names[index] for index in order]
        groups = [self.groups[index] for index in order]
        np.fill_diagonal(values, np.nan)
        if len(names) <= MAX_NAMES:
            return Heatmap(names, groups, values, label, sqrt_scale)
        blocks = self._blocks(names, groups)
        means = np.full((len(blocks), len(blocks)), np.nan)
        for row, (_, rows) in enumerate(blocks):
            for column, (_, columns) in enumerate(blocks):
                block = values[rows, columns]
                if np.isfinite(block).any():
                    means[row, column] = np.nanmean(block)
        block_names = [name for name, _ in blocks]
        return Heatmap(block_names, block_names, means, f"mean {label}", sqrt_scale)

    @staticmethod
    def _blocks(names: list[str], groups: list[str]) -> list[tuple[str, slice]]:
        blocks = [(group, list(rows)) for group, rows in groupby(range(len(names)), groups.__getitem__)]
        if not 1 < len(blocks) <= MAX_NAMES:
            size = -(-len(names) // 100)
            rows = list(range(len(names)))
            chunks = [rows[start : start + size] for start in rows[::size]]
            blocks = [(f"{names[chunk[0]]} to {names[chunk[-1]]}", chunk) for chunk in chunks]
        return [(label, slice(rows[0], rows[-1] + 1)) for label, rows in blocks]
