"""Similarity of things in a given taxonomy: a graph from each thing to the more general ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

TaxonomyMeasure = Literal["path", "wu-palmer"]


def taxonomy_similarity(
    above: Mapping[int, Sequence[int]], nodes: Sequence[int], measure: TaxonomyMeasure
) -> npt.NDArray[np.float64]:
    """Similarity of each two of `nodes`; 0 where they have nothing above them in common.

    `above` gives the nodes right above each node. `path` is 1 / (1 + edges of the shortest path over a
    common node above). `wu-palmer` is 2 d(c) / (2 d(c) + edges to c from both), with c the common node
    that makes it highest and d its depth, the root having 1 (Wu and Palmer 1994, ACL, section 4).

    Raises ValueError for a graph with a cycle.
    """

    @cache
    def depth(node: int) -> int:
        return 1 + max((depth(parent) for parent in above.get(node, ())), default=0)

    try:
        steps = [_steps_up(above, node) for node in nodes]
        for node in {each for found in steps for each in found}:
            depth(node)
    except RecursionError as error:
        raise ValueError("the taxonomy has a cycle, or a chain of a thousand nodes") from error
    similarity = np.eye(len(nodes))
    for row, one in enumerate(steps):
        for column, other in enumerate(steps[:row]):
            best = 0.0
            for node in one.keys() & other.keys():
                edges = one[node] + other[node]
                twice = 2 * depth(node)
                best = max(best, 1 / (1 + edges) if measure == "path" else twice / (twice + edges))
            similarity[row, column] = similarity[column, row] = best
    return similarity


def _steps_up(above: Mapping[int, Sequence[int]], node: int) -> dict[int, int]:
    """Fewest edges from a node to each node above it, itself included."""
    steps = {node: 0}
    front = [node]
    while front:
        front = list(
            dict.fromkeys(up for each in front for up in above.get(each, ()) if up not in steps)
        )
        steps |= dict.fromkeys(front, max(steps.values()) + 1)
    return steps
