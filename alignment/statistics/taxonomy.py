"""Similarity of nodes in a taxonomy: a graph from each node to its hypernyms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import numpy as np

from alignment.arrays import Floats

TaxonomyMeasure = Literal["path", "wu-palmer"]


def taxonomy_similarity(
    hypernyms: Mapping[int, Sequence[int]], nodes: Sequence[int], measure: TaxonomyMeasure
) -> Floats:
    """Similarity of every pair of `nodes`; 0 without a common ancestor.

    `hypernyms` maps nodes to their direct hypernyms. `path` is 1 / (1 + edges of the shortest path via a
    common ancestor). `wu-palmer` is 2 d(c) / (2 d(c) + edges to c from both), with c the common ancestor
    that maximizes it and d its depth, 1 for the root (Wu and Palmer 1994, ACL, section 4).

    Raises:
        ValueError: if the graph has a cycle.
    """

    @cache
    def depth(node: int) -> int:
        return 1 + max((depth(parent) for parent in hypernyms.get(node, ())), default=0)

    try:
        distances = [_ancestor_distances(hypernyms, node) for node in nodes]
        for node in {ancestor for ancestors in distances for ancestor in ancestors}:
            depth(node)
    except RecursionError as error:
        raise ValueError("the taxonomy has a cycle, or a chain of a thousand nodes") from error
    similarity = np.eye(len(nodes))
    for row, ancestors in enumerate(distances):
        for column, column_ancestors in enumerate(distances[:row]):
            best = 0.0
            for node in ancestors.keys() & column_ancestors.keys():
                edges = ancestors[node] + column_ancestors[node]
                depth_x2 = 2 * depth(node)
                best = max(best, 1 / (1 + edges) if measure == "path" else depth_x2 / (depth_x2 + edges))
            similarity[row, column] = similarity[column, row] = best
    return similarity


def _ancestor_distances(hypernyms: Mapping[int, Sequence[int]], node: int) -> dict[int, int]:
    """The fewest edges from a node to each of its ancestors, itself included."""
    distances = {node: 0}
    front = [node]
    while front:
        parents = (parent for child in front for parent in hypernyms.get(child, ()))
        front = list(dict.fromkeys(parent for parent in parents if parent not in distances))
        distances |= dict.fromkeys(front, max(distances.values()) + 1)
    return distances
