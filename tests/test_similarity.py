"""The SQL must count shared experts as a reader of its definition would, by hand, with sets."""

from __future__ import annotations

import itertools
import random
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from jobs.similarity import similarities

_MEASURES = ["jaccard", "overlap", "dice", "containment"]
_COLUMNS = ("pooling", "concept", "layer", "site", "unit", "ap")


def _measure(name: str, one: set[Any], other: set[Any]) -> float | None:
    shared = len(one & other)
    below = {
        "jaccard": len(one | other),
        "overlap": min(len(one), len(other)),
        "dice": (len(one) + len(other)) / 2,
        "containment": len(one),
    }[name]
    return shared / below if below else None


def _experts(rows: list[Any], threshold: float | None, top: int | None) -> set[Any]:
    if threshold is not None:
        return {row[2:5] for row in rows if row[5] > threshold}
    return {row[2:5] for row in sorted(rows, key=lambda row: (-row[5], *row[2:5]))[:top]}


@pytest.mark.parametrize("seed", range(4))
def test_every_measure_is_that_of_sets_at_every_cut_and_in_every_scope(seed: int) -> None:
    chance = random.Random(seed)
    concepts = ["b", "a", "none", "c"]
    rows = [
        (pooling, concept, layer, site, unit, chance.choice([0.45, 0.5, 0.6, 0.75, 0.9]))
        for pooling in ("max", "context")
        for concept in ("a", "b", "c")
        for layer in range(2)
        for site in ("attn.o_proj", "mlp.hidden")
        for unit in chance.sample(range(8), 4)
    ]
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    with duckdb.connect() as connection:
        connection.from_arrow(pa.table(columns)).create("experts")
        scopes = ["model", "layer", "site"]
        tables = similarities(
            connection, concepts, ["max", "context"], _MEASURES, scopes, [0.75, 0.5], [3, 1]
        )
    names = ("pooling", "layer", "site", "measure", "threshold", "top", "concept_a", "concept_b")
    found = {
        tuple(row[name] for name in names): (row["n_a"], row["n_b"], row["n_shared"], row["similarity"])
        for table in tables
        for row in table.to_pylist()
    }
    expected = {}
    places = [(None, None), (0, None), (1, None), (None, "attn.o_proj"), (None, "mlp.hidden")]
    cuts = [(0.5, None), (0.75, None), (None, 1), (None, 3)]
    for pooling, (layer, site), cut in itertools.product(("max", "context"), places, cuts):
        held = {
            name: _experts(
                [
                    row
                    for row in rows
                    if row[:2] == (pooling, name) and layer in (None, row[2]) and site in (None, row[3])
                ],
                *cut,
            )
            for name in concepts
        }
        for first, second in itertools.permutations(concepts, 2):
            for measure in _MEASURES:
                if first < second or measure == "containment":
                    one, other = held[first], held[second]
                    value = _measure(measure, one, other)
                    key = (pooling, layer, site, measure, *cut, first, second)
                    expected[key] = (len(one), len(other), len(one & other), value)
    assert found == expected
