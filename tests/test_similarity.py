"""The SQL must count shared experts as a reader of its definition would, by hand, with sets."""

from __future__ import annotations

import itertools
import random
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from jobs.similarity import similarities
from storage import sql, tables

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


def test_experts_as_sets_are_those_whose_similarities_are_told() -> None:
    """The hierarchy counts neurons of the sets themselves: were equal APs cut off elsewhere there, its
    numbers would be of other experts than the similarities beside them."""
    chance = random.Random(0)
    concepts = ["a", "b", "c"]
    rows = [
        ("max", concept, layer, "mlp.hidden", unit, chance.choice([0.5, 0.6, 0.75]))
        for concept in concepts
        for layer in range(2)
        for unit in chance.sample(range(8), 6)
    ]
    chance.shuffle(rows)
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    for threshold, top in ((0.5, None), (0.6, None), (None, 1), (None, 5)):
        with duckdb.connect() as connection:
            connection.from_arrow(pa.table(columns)).create("scored")
            sql.provide(connection, "concepts", {"concept": concepts, "number": [0, 1, 2]})
            wanted = {"pooling": "max", "threshold": threshold, "top": top}
            found = connection.sql(sql.query("expert_sets"), params=wanted).fetchall()
        held = [_experts([row for row in rows if row[1] == name], threshold, top) for name in concepts]
        order = sorted(set().union(*held))
        expected = {(n, order.index(each)) for n, experts in enumerate(held) for each in experts}
        assert set(found) == expected
        assert len(found) == len(expected)


def test_containment_is_in_no_family_and_ranks_have_matrices_of_their_own() -> None:
    """A matrix made of both orders of two concepts, or of two cuts, would have too many numbers."""
    rows = [
        {
            **dict.fromkeys(tables.SIMILARITY.names),
            **dict.fromkeys(("representation", "model", "revision", "concept_set", "pooling"), "x"),
            **{"measure": measure, "threshold": threshold, "top": top},
            **{"concept_a": first, "concept_b": second, "similarity": value},
        }
        for measure, first, second, value in (
            ("dice", "a", "b", 0.5),
            ("containment", "a", "b", 0.25),
            ("containment", "b", "a", 0.75),
        )
        for threshold, top in ((0.5, None), (None, 3), (None, 5))
    ]
    with duckdb.connect() as connection:
        connection.from_arrow(pa.Table.from_pylist(rows, tables.SIMILARITY)).create("similarity")
        sql.provide(connection, "common", {"concept": ["a", "b"]})
        (family,) = connection.sql(sql.query("families")).to_arrow_table().to_pylist()
        assert family["measure"] == "dice"
        found = connection.sql(sql.query("matrices"), params=family).to_arrow_table().to_pylist()
    assert [(row["threshold"], row["top"], row["similarities"]) for row in found] == [
        (0.5, None, [0.5]),
        (None, 3, [0.5]),
        (None, 5, [0.5]),
    ]
