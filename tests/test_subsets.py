"""Agreement on a subset of the pairs must be that of these pairs, and must not be taken for agreement on
all pairs."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from alignment.arrays import Floats, Ints
from alignment.statistics.correlation import mantel_test
from jobs import alignment
from jobs.sources.human_judgments import Judgments
from storage import tables

DOMAINS = {f"{kind}{n}": kind for kind in ("animal", "tool") for n in range(6)} | {"thing": None}
NAMES = sorted(DOMAINS)
PAIRS = list(combinations(NAMES, 2))
SETTINGS = alignment.AgreementSettings(["spearman"], "jackknife", 100, 0)


def make_similarities() -> dict[tuple[str, str], float]:
    random = np.random.default_rng(0)
    return {pair: float(value) for pair, value in zip(PAIRS, random.random(len(PAIRS)), strict=True)}


def make_judgments() -> Judgments:
    """Scores that agree with the similarities within domains only."""
    random = np.random.default_rng(1)
    scores = {
        pair: value if DOMAINS[pair[0]] == DOMAINS[pair[1]] else float(random.random())
        for pair, value in make_similarities().items()
    }
    return Judgments("mine", scores=scores)


def make_rows(one_token: set[str]) -> list[dict[str, Any]]:
    """Rows of the whole model and of a layer, on all pairs and on subsets."""
    similarities = make_similarities()
    constants: dict[str, Any] = {"representation": "experts", "model": "m", "revision": "main"}
    constants |= {
        "concept_set": "s",
        "pooling": "max",
        "measure": "jaccard",
        "threshold": 0.5,
        "site": None,
        "top": None,
    }
    rows = [
        {**constants, "layer": layer, "concept_a": a, "concept_b": b, "similarity": value}
        for layer in (None, 0)
        for (a, b), value in similarities.items()
    ]
    counts = dict.fromkeys(("n_a", "n_b", "n_shared"))
    table = pa.Table.from_pylist([row | counts for row in rows], tables.SIMILARITY.schema)
    judgments = make_judgments()
    with duckdb.connect() as connection:
        connection.from_arrow(table).create("similarity")
        concepts = alignment.create_common_concepts(connection, judgments.concepts)
        ((comparison,), _) = alignment.make_comparisons(judgments, concepts, SETTINGS)
        subsets = alignment.make_subsets(comparison, DOMAINS, one_token)
        return [
            row
            for each in (comparison, *subsets)
            for found, _ in alignment._make_rows(connection, each, [])
            for row in found
        ]


def test_a_subset_has_the_agreement_of_its_own_pairs() -> None:
    """Agreement within domains would be lost in that between them, and the other way around."""
    rows = make_rows(one_token={"animal0", "animal1", "animal2", "tool0", "tool1", "thing"})
    whole = {row["subset"]: row for row in rows if row["layer"] is None}
    members = {
        "all": PAIRS,
        "within domains": [(a, b) for a, b in PAIRS if DOMAINS[a] == DOMAINS[b]],
        "between domains": [
            (a, b) for a, b in PAIRS if "thing" not in (a, b) and DOMAINS[a] != DOMAINS[b]
        ],
        "one-token words": list(
            combinations(sorted(["animal0", "animal1", "animal2", "tool0", "tool1", "thing"]), 2)
        ),
    }
    assert whole.keys() == members.keys()
    similarities, scores = make_similarities(), make_judgments().scores
    for name, pairs in members.items():
        expected = spearmanr([similarities[pair] for pair in pairs], [scores[pair] for pair in pairs])
        assert whole[name]["rho"] == pytest.approx(expected.statistic, abs=1e-12)
        assert whole[name]["n_pairs"] == len(pairs)
        assert whole[name]["n_concepts"] == len({name for pair in pairs for name in pair})
        assert 0 < whole[name]["p"] <= 1
    assert whole["within domains"]["rho"] == pytest.approx(1)


def test_only_whole_models_have_subsets() -> None:
    """Every layer of every subset would be another row among which the best is looked for."""
    assert [row["subset"] for row in make_rows(set()) if row["layer"] == 0] == ["all"]


def test_a_subset_of_few_pairs_has_no_row() -> None:
    """Three one-token words have three pairs, and a correlation of them says nothing."""
    subsets = {row["subset"] for row in make_rows({"animal0", "animal1", "tool0"})}
    assert subsets == {"all", "within domains", "between domains"}


def test_a_subset_has_no_ceiling() -> None:
    """The ceiling of all pairs is too high for pairs whose scores have a smaller range."""
    judgments = make_judgments()
    judgments.raters.update({pair: [score, score + 0.1] for pair, score in judgments.scores.items()})
    (comparison,) = alignment.make_comparisons(judgments, NAMES, SETTINGS)[0]
    (within, *_) = alignment.make_subsets(comparison, DOMAINS, set())
    assert alignment._noise_ceiling(comparison)[0] == pytest.approx(1)
    assert alignment._noise_ceiling(within) == (None, None)


def test_permutations_of_a_subset_are_those_within_groups() -> None:
    """A permutation that moves a concept to another domain compares pairs of another kind."""
    random = np.random.default_rng(0)
    matrix = random.random((5, 5))
    matrix += matrix.T
    groups = np.array([0, 0, 0, 1, 1])
    first, second = np.triu_indices(5, 1)
    scores = random.random(10)

    def rho(order: list[int]) -> float:
        similarities = matrix[np.ix_(order, order)][first, second]
        return float(abs(spearmanr(similarities, scores).statistic))

    orders = [[*a, *b] for a in permutations(range(3)) for b in permutations((3, 4))]
    exact = np.mean([rho(order) >= rho([0, 1, 2, 3, 4]) - 1e-9 for order in orders])
    p = mantel_test(matrix, scores, first, second, permutations=4000, groups=groups)
    assert p == pytest.approx(exact, abs=0.03)


def test_p_of_pairs_permuted_within_domains_is_uniform() -> None:
    """With permutations of all concepts, agreement that is not there would be significant too often."""
    random = np.random.default_rng(0)
    n = 48
    domain = np.arange(n) % 6
    first, second = np.triu_indices(n, 1)
    rejected = {"of all concepts": 0, "within domains": 0}
    n_studies = 200
    for seed in range(n_studies):
        matrix, scores = (_draw_matrix(random, domain) for _ in range(2))
        chosen = np.flatnonzero(domain[first] != domain[second])
        chosen = random.choice(chosen, 400, replace=False)
        a, b = first[chosen], second[chosen]
        for name, groups in (("of all concepts", None), ("within domains", domain)):
            p = mantel_test(matrix, scores[a, b], a, b, permutations=99, seed=seed, groups=groups)
            rejected[name] += p <= 0.05
    print({name: count / n_studies for name, count in rejected.items()})
    assert rejected["within domains"] / n_studies == pytest.approx(0.05, abs=0.04)


def _draw_matrix(random: np.random.Generator, domain: Ints) -> Floats:
    """Similarities with effects of concepts and of the same domain."""
    n = len(domain)
    effects = random.normal(size=n) * 0.5
    noise = random.normal(size=(n, n))
    same_domain = 2.0 * (domain[:, None] == domain)
    matrix: Floats = (noise + noise.T) / 2 + effects[:, None] + effects + same_domain
    return matrix
