"""The similarities of one view and the human scores beside them, as tables and matrices."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from jobs.page.figures.spec import NO_DOMAIN, Floats, Matrix
from jobs.page.study import Source
from jobs.similarity import EXPERTS
from storage import sql

MOST_NAMES = 250
"""More concepts than this are drawn as groups: cells and names would be too small to see."""


class Pairs:
    """What one view says of each two concepts, and people. Makes the table `shown` for the queries
    `nearest` and `disagreements` on the source's connection."""

    def __init__(self, source: Source) -> None:
        self.source = source
        view = source.view
        source.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE shown AS {sql.query('compared_pairs')}",
            {
                **view.parameters,
                "representation": EXPERTS,
                "measure": view.measure,
                "threshold": view.threshold,
                "top": view.top,
                "human_set": source.human_set,
            },
        )
        self.names = list(source.domains)
        self.groups = [source.domains[name] or NO_DOMAIN for name in self.names]

    @cached_property
    def model(self) -> Floats:
        """Similarities in the view, 0 where neither concept has experts."""
        return np.nan_to_num(self._square("coalesce(similarity, 0)"))

    @cached_property
    def people(self) -> Floats:
        """Human scores, NaN where no pair was rated."""
        return self._square("score")

    def _square(self, column: str) -> Floats:
        number = {name: place for place, name in enumerate(self.names)}
        found = self.source.connection.sql(
            f"SELECT concept_a, concept_b, {column} AS value FROM shown WHERE value IS NOT NULL"
        ).fetchnumpy()
        places = [
            np.array([number[name] for name in found[end]], np.int64)
            for end in ("concept_a", "concept_b")
        ]
        square = np.full((len(number), len(number)), np.nan)
        first, second = places
        square[first, second] = square[second, first] = np.ma.filled(found["value"], np.nan)
        return square

    def matrix(self, values: Floats, order: list[int], label: str, root: bool = False) -> Matrix:
        """Values in an order of the concepts or, of many, the means between groups that follow
        each other in it: domains where there are some, else runs of as many concepts."""
        values = values[np.ix_(order, order)]
        names = [self.names[place] for place in order]
        groups = [self.groups[place] for place in order]
        np.fill_diagonal(values, np.nan)
        if len(names) <= MOST_NAMES:
            return Matrix(names, groups, values, label, root)
        blocks = self._blocks(names, groups)
        means = np.full((len(blocks), len(blocks)), np.nan)
        for row, (_, rows) in enumerate(blocks):
            for column, (_, columns) in enumerate(blocks):
                block = values[rows, columns]
                if np.isfinite(block).any():
                    means[row, column] = np.nanmean(block)
        kept = [name for name, _ in blocks]
        return Matrix(kept, kept, means, f"mean {label}", root)

    @staticmethod
    def _blocks(names: list[str], groups: list[str]) -> list[tuple[str, slice]]:
        starts = [
            place for place in range(len(names)) if place == 0 or groups[place] != groups[place - 1]
        ]
        if not 1 < len(starts) <= MOST_NAMES:
            size = -(-len(names) // 100)
            starts = list(range(0, len(names), size))
            told = [f"{names[start]} to {names[min(start + size, len(names)) - 1]}" for start in starts]
        else:
            told = [groups[start] for start in starts]
        ends = [*starts[1:], len(names)]
        return [(name, slice(start, end)) for name, start, end in zip(told, starts, ends, strict=True)]
