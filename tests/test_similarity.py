"""The SQL must count shared experts as a reader of its definition would, by hand, with sets."""

from __future__ import annotations

import itertools
import random

import duckdb
import pytest

from storage import sql


@pytest.mark.parametrize("seed", range(5))
def test_jaccard_is_that_of_sets(seed: int) -> None:
    chance = random.Random(seed)
    concepts = ["a", "b", "c", "none"]
    thresholds = [0.5, 0.75]
    rows = [
        (pooling, concept, layer, "mlp.hidden", unit, chance.choice([0.45, 0.5, 0.6, 0.75, 0.9]))
        for pooling in ("max", "context")
        for concept in concepts[:-1]
        for layer in range(2)
        for unit in chance.sample(range(8), 4)
    ]
    names = ("pooling", "concept", "layer", "site", "unit", "ap")
    with duckdb.connect() as connection:
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        sql.provide(connection, "scored", columns)
        sql.provide(connection, "concepts", {"concept": concepts})
        sql.provide(connection, "thresholds", {"threshold": thresholds})
        sql.provide(connection, "poolings", {"pooling": ["max", "context"]})
        found = {tuple(row[:4]): row[4:] for row in connection.sql(sql.query("jaccard")).fetchall()}
    expected = {}
    for pooling, threshold in itertools.product(("max", "context"), thresholds):
        experts = {
            name: {row[2:5] for row in rows if row[:2] == (pooling, name) and row[5] > threshold}
            for name in concepts
        }
        for first, second in itertools.combinations(sorted(concepts), 2):
            one, other = experts[first], experts[second]
            union = one | other
            similarity = len(one & other) / len(union) if union else None
            key = (pooling, threshold, first, second)
            expected[key] = (len(one), len(other), len(one & other), similarity)
    assert found == expected
