"""Similarity by shared experts: the SQL must agree with Python sets built from the definitions."""

from __future__ import annotations

import itertools
import random
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from jobs.similarity import compute_similarities
from storage import sql, tables

_MEASURES = ["jaccard", "overlap", "dice", "containment"]
_COLUMNS = ("pooling", "concept", "layer", "site", "unit", "ap")


def _measure(name: str, a: set[Any], b: set[Any]) -> float | None:
    denominator = {
        "jaccard": len(a | b),
        "overlap": min(len(a), len(b)),
        "dice": (len(a) + len(b)) / 2,
        "containment": len(a),
    }[name]
    return len(a & b) / denominator if denominator else None


def _experts(rows: list[Any], threshold: float | None, top: int | None) -> set[Any]:
    if threshold is not None:
        return {row[2:5] for row in rows if row[5] > threshold}
    return {row[2:5] for row in sorted(rows, key=lambda row: (-row[5], *row[2:5]))[:top]}


@pytest.mark.parametrize("seed", range(4))
def test_measures_match_sets_at_every_cutoff_and_scope(seed: int) -> None:
    """Experts of another pooling, scope or cutoff would be counted without an error."""
    generator = random.Random(seed)
    concepts = ["b", "a", "none", "c"]
    rows = [
        (pooling, concept, layer, site, unit, generator.choice([0.45, 0.5, 0.6, 0.75, 0.9]))
        for pooling in ("max", "context")
        for concept in ("a", "b", "c")
        for layer in range(2)
        for site in ("attn.o_proj", "mlp.hidden")
        for unit in generator.sample(range(8), 4)
    ]
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    with duckdb.connect() as connection:
        connection.from_arrow(pa.table(columns)).create("experts")
        scopes = ["model", "layer", "site"]
        results = compute_similarities(
            connection, concepts, ["max", "context"], _MEASURES, scopes, [0.75, 0.5], [3, 1]
        )
    names = ("pooling", "layer", "site", "measure", "threshold", "top", "concept_a", "concept_b")
    similarities = {
        tuple(row[name] for name in names): (row["n_a"], row["n_b"], row["n_shared"], row["similarity"])
        for table in results
        for row in table.to_pylist()
    }
    expected = {}
    layers_and_sites = [(None, None), (0, None), (1, None), (None, "attn.o_proj"), (None, "mlp.hidden")]
    cutoffs = [(0.5, None), (0.75, None), (None, 1), (None, 3)]
    scopes_and_cutoffs = itertools.product(("max", "context"), layers_and_sites, cutoffs)
    for pooling, (layer, site), cutoff in scopes_and_cutoffs:
        experts = {
            name: _experts(
                [
                    row
                    for row in rows
                    if row[:2] == (pooling, name) and layer in (None, row[2]) and site in (None, row[3])
                ],
                *cutoff,
            )
            for name in concepts
        }
        for first, second in itertools.permutations(concepts, 2):
            for measure in _MEASURES:
                if first < second or measure == "containment":
                    a, b = experts[first], experts[second]
                    key = (pooling, layer, site, measure, *cutoff, first, second)
                    expected[key] = (len(a), len(b), len(a & b), _measure(measure, a, b))
    assert similarities == expected


def test_expert_sets_break_ties_like_the_similarities() -> None:
    """The hierarchy counts neurons of the sets: other ties would give it other experts than the
    similarities in the same row."""
    generator = random.Random(0)
    concepts = ["a", "b", "c"]
    rows = [
        ("max", concept, layer, "mlp.hidden", unit, generator.choice([0.5, 0.6, 0.75]))
        for concept in concepts
        for layer in range(2)
        for unit in generator.sample(range(8), 6)
    ]
    generator.shuffle(rows)
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    for threshold, top in ((0.5, None), (0.6, None), (None, 1), (None, 5)):
        with duckdb.connect() as connection:
            connection.from_arrow(pa.table(columns)).create("experts")
            sql.create_table(connection, "concepts", {"concept": concepts, "number": [0, 1, 2]})
            params = {"pooling": "max", "threshold": threshold, "top": top}
            pairs = connection.sql(sql.read_query("expert_sets"), params=params).fetchall()
        sets = [_experts([row for row in rows if row[1] == name], threshold, top) for name in concepts]
        neurons = sorted(set().union(*sets))
        expected = {(n, neurons.index(neuron)) for n, experts in enumerate(sets) for neuron in experts}
        assert set(pairs) == expected
        assert len(pairs) == len(expected)


def test_families_exclude_containment_and_ranks_have_separate_matrices() -> None:
    """A matrix of both orders of two concepts, or of two cutoffs, would have too many values."""
    rows = [
        {
            **dict.fromkeys(tables.SIMILARITY.schema.names),
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
        connection.from_arrow(pa.Table.from_pylist(rows, tables.SIMILARITY.schema)).create("similarity")
        sql.create_table(connection, "common", {"concept": ["a", "b"]})
        (family,) = connection.sql(sql.read_query("families")).to_arrow_table().to_pylist()
        assert family["measure"] == "dice"
        matrices = connection.sql(sql.read_query("matrices"), params=family).to_arrow_table()
    assert [(row["threshold"], row["top"], row["similarities"]) for row in matrices.to_pylist()] == [
        (0.5, None, [0.5]),
        (None, 3, [0.5]),
        (None, 5, [0.5]),
    ]
