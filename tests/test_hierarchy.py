"""An existing hierarchy must be detected and a missing one not; every number must match another
implementation or a plain loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy as scipy_hierarchy
from scipy.spatial.distance import squareform
from scipy.stats import kstest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from alignment.arrays import Floats, Ints
from alignment.statistics.domain_auc import DomainPairs, within_domain_auc
from alignment.statistics.hierarchy import (
    average_linkage,
    build_tree,
    layout_tree,
    measure_coherence,
    measure_containment,
    measure_polysemy,
    measure_recovery,
)
from alignment.statistics.resampling import IntervalEstimate

_SIMULATIONS = 500


def make_similarities(
    seed: int, n: int = 14, n_domains: int = 3, levels: int = 6
) -> tuple[Floats, Ints]:
    """Similarities with ties, somewhat higher within a domain, and the domains."""
    random = np.random.default_rng(seed)
    domains = np.concatenate([np.arange(n_domains), random.integers(0, n_domains, n - n_domains)])
    first, second = np.triu_indices(n, 1)
    values = random.integers(0, levels, len(first)) + 2 * (domains[first] == domains[second])
    return values / (levels + 2), domains


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cuts_and_auc_match_scikit_learn(seed: int) -> None:
    """The chance corrections of the indices and the ties of the AUC are easy to get wrong."""
    similarities, domains = make_similarities(seed)
    tree = build_tree(similarities, domains)
    labels = scipy_hierarchy.cut_tree(tree.merges)
    assert [cut.clusters for cut in tree.cuts] == list(range(14, 0, -1))
    for cut, column in zip(tree.cuts, labels.T, strict=True):
        assert cut.rand == pytest.approx(adjusted_rand_score(domains, column))
        expected = normalized_mutual_info_score(domains, column)
        assert cut.information == pytest.approx(expected, abs=1e-12)
        majority = sum(np.bincount(domains[column == label]).max() for label in set(column))
        assert cut.purity == pytest.approx(majority / 14)
    first, second = np.triu_indices(14, 1)
    expected = roc_auc_score(domains[first] == domains[second], similarities)
    assert within_domain_auc(similarities, domains).value == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tree_measures_match_scipy_and_plain_loops(seed: int) -> None:
    """Purity and triplets have no reference implementation: they are counted pair by pair."""
    similarities, domains = make_similarities(seed, n=10)
    tree = build_tree(similarities, domains)
    expected, tree_distances = scipy_hierarchy.cophenet(tree.merges, 1 - similarities)
    assert tree.cophenetic == pytest.approx(expected)
    below = [{number} for number in range(10)]
    for left, right, _, _ in tree.merges:
        below.append(below[int(left)] | below[int(right)])
    purities, scores = [], []
    distance = squareform(tree_distances)
    for a, b in itertools.combinations(range(10), 2):
        if domains[a] != domains[b]:
            continue
        node = min((members for members in below if {a, b} <= members), key=len)
        purities.append(np.mean([domains[member] == domains[a] for member in node]))
        for c in np.flatnonzero(domains != domains[a]):
            sides = [distance[a, b], distance[a, c], distance[b, c]]
            scores.append((sides[0] == min(sides)) / sides.count(min(sides)))
    assert tree.purity == pytest.approx(np.mean(purities))
    assert tree.triplets == pytest.approx(np.mean(scores))


def test_a_perfect_hierarchy_scores_1_and_a_flat_one_at_chance() -> None:
    """The ends of the scale: a flat tree must not look like a hierarchy."""
    domains = np.repeat(np.arange(4), 6)
    first, second = np.triu_indices(24, 1)
    perfect = np.where(domains[first] == domains[second], 0.9, 0.1)
    tree = build_tree(perfect, domains)
    at_domains = next(cut for cut in tree.cuts if cut.clusters == 4)
    assert (at_domains.rand, at_domains.information, at_domains.purity) == pytest.approx((1, 1, 1))
    assert (tree.purity, tree.triplets) == pytest.approx((1, 1))
    flat = build_tree(np.zeros(len(first)), domains)
    assert np.isnan(flat.cophenetic)
    assert flat.triplets == pytest.approx(1 / 3)
    assert within_domain_auc(perfect, domains) == IntervalEstimate(1.0, None, None)
    assert within_domain_auc(-perfect, domains) == IntervalEstimate(0.0, None, None)
    assert np.isnan(within_domain_auc(np.zeros(len(first)), domains).value)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_leave_one_concept_out_aucs_match_scikit_learn(seed: int) -> None:
    """They are updated incrementally, from which the interval follows."""
    similarities, domains = make_similarities(seed)
    square = squareform(similarities)
    aucs = DomainPairs(similarities, domains).leave_one_concept_out()
    for concept, auc in enumerate(aucs):
        rest = np.delete(np.arange(14), concept)
        first, second = rest[np.array(np.triu_indices(13, 1))]
        same = domains[first] == domains[second]
        if same.any():
            assert auc == pytest.approx(roc_auc_score(same, square[first, second]))


def test_pair_variances_match_delong_and_exclude_concept_effects() -> None:
    """Against the sample variances of the placements, and against simulated concept effects."""
    random = np.random.default_rng(0)
    domains = np.repeat(np.arange(6), 6)
    first, second = np.triu_indices(36, 1)
    same = domains[first] == domains[second]
    similarities = random.standard_normal(len(first)) + same
    pairs = DomainPairs(similarities, domains)
    within, between = similarities[same], similarities[~same]
    within_placements = [np.mean(value > between) for value in within]
    between_placements = [np.mean(value < within) for value in between]
    delong = np.var(within_placements, ddof=1) / len(within)
    delong += np.var(between_placements, ddof=1) / len(between)
    assert sum(map(pairs.independent_variance, pairs.masks)) == pytest.approx(delong)
    assert pairs.residual_variance() == pytest.approx(delong, rel=0.1)
    # concept effects are two thirds of the variance of similarities, and cancel in the AUC
    shares = []
    for effect in random.standard_normal((40, 36)):
        noise = random.standard_normal(len(first))
        pairs = DomainPairs(effect[first] + effect[second] + noise, domains)
        total = sum(map(pairs.independent_variance, pairs.masks))
        shares.append(pairs.residual_variance() / total)
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.06)


def test_degrees_of_freedom_follow_the_leverage_of_concepts() -> None:
    """A few concepts of a large domain would otherwise yield an overconfident interval. In balanced
    domains all concepts count equally."""
    balanced = DomainPairs(np.zeros(190), np.repeat(np.arange(4), 5))
    assert balanced.dof == 19
    sizes = np.array([2, 3, 4, 6, 10])
    leverage = (sizes - 1) / (sizes * (sizes - 1) / 2).sum()
    leverage -= (25 - sizes) / (300 - (sizes * (sizes - 1) / 2).sum())
    expected = (sizes * leverage**2).sum() ** 2 / (sizes * leverage**4).sum()
    unbalanced = DomainPairs(np.zeros(300), np.repeat(np.arange(5), sizes))
    assert unbalanced.dof == pytest.approx(expected)
    assert 15 < unbalanced.dof < 20


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.4])
@pytest.mark.parametrize(
    ("sizes", "spread"),
    [
        *itertools.product([(5, 5, 5, 5), (2, 3, 4, 6, 10)], [0.0, 1.0]),
        ((2, 3, 4, 5, 6, 8, 9, 11, 14, 20), 1.0),
    ],
)
def test_auc_intervals_cover(sizes: tuple[int, ...], spread: float, shift: float) -> None:
    """Also if concepts differ in their similarity to all others, which cancels in balanced domains
    only."""
    domains = np.repeat(np.arange(len(sizes)), sizes)
    n = len(domains)
    first, second = np.triu_indices(n, 1)
    same = domains[first] == domains[second]
    random = np.random.default_rng([n, int(10 * spread), int(10 * shift)])
    distance = shift * np.sqrt(1 + 2 * spread**2)
    intervals = []
    for _ in range(_SIMULATIONS):
        effect = spread * random.standard_normal(n)
        noise = random.standard_normal(len(first))
        values = effect[first] + effect[second] + distance * same + noise
        intervals.append(within_domain_auc(values, domains))
    truth = float(np.mean([interval.value for interval in intervals]))
    assert truth == pytest.approx({0.0: 0.5, 1.0: 0.76, 2.4: 0.955}[shift], abs=0.015)
    bounds = [(i.low, i.high) for i in intervals if i.low is not None and i.high is not None]
    covered = np.mean([low <= truth <= high for low, high in bounds])
    print(f"{n} concepts, SD of effects {spread}, AUC {truth:.2f}: {covered:.1%}")
    assert len(bounds) > 0.98 * _SIMULATIONS
    # documented as 93 to 97%, plus three standard errors of 500 simulations
    assert 0.90 <= covered <= 0.993


def test_containment_matches_sets_and_detects_nested_experts() -> None:
    """Experts are packed into bits; a wrong bit or pseudo-domain would change the shares."""
    random = np.random.default_rng(0)
    experts = random.random((20, 400)) < 0.1
    members = np.array([1, 2, 3])
    # the domain's experts are shared by its members
    experts[0] = experts[1:4].any(axis=0) & (random.random(400) < 0.5)
    others = np.arange(4, 20)
    containment = measure_containment(experts, 0, members, others, draws=300, seed=1)
    sets = [set(np.flatnonzero(row)) for row in experts]
    union = sets[1] | sets[2] | sets[3]
    assert containment.of_domain == len(sets[0] & union) / len(sets[0]) == 1.0
    assert containment.of_members == len(sets[0] & union) / len(union)
    assert containment.of_domain_p == containment.of_members_p == pytest.approx(1 / 301)
    groups = random.permuted(np.tile(others, (500, 1)), axis=1)[:, :3]
    unions = [set.union(*(sets[concept] for concept in group)) for group in groups]
    shares = [len(sets[0] & union) / len(sets[0]) for union in unions]
    assert containment.of_domain_by_chance == pytest.approx(np.median(shares), abs=0.03)
    experts[0] = False
    assert np.isnan(measure_containment(experts, 0, members, others, 10, 0).of_domain)
    with pytest.raises(ValueError, match="needs 3 other concepts, got 2"):
        measure_containment(experts, 0, members, np.array([4, 5]), 10, 0)


def test_containment_p_values_are_uniform_without_a_hierarchy() -> None:
    """Small p values would otherwise appear without any hierarchy."""
    random = np.random.default_rng(3)
    p = []
    for seed in range(200):
        experts = random.random((30, 500)) < 0.08
        containment = measure_containment(experts, 0, np.arange(1, 6), np.arange(6, 30), 99, seed)
        # random tie-breaking, because ties make p larger
        p.append(containment.of_domain_p - random.random() * 0.01)
    assert kstest(p, "uniform").pvalue > 0.001


def test_recovery_counts_members_closest_to_their_own_domain() -> None:
    """Ties count as random choices, so a constant similarity must not seem to recover domains."""
    similarity = np.array([[0.9, 0.1], [0.2, 0.3], [0.5, 0.5], [0.4, 0.1]])
    recovery = measure_recovery(similarity, np.array([0, 1, 1, 1]), draws=500, seed=0)
    assert recovery is not None
    assert (recovery.members, recovery.share) == (4, 2.5 / 4)
    assert 0.3 < recovery.by_chance < 0.7
    domains = np.repeat(np.arange(4), 5)
    perfect = measure_recovery(np.eye(4)[domains], domains, draws=500, seed=0)
    assert perfect is not None
    assert perfect.share == 1
    assert perfect.p == pytest.approx(1 / 501)
    assert measure_recovery(np.zeros((3, 1)), np.zeros(3, np.int64), 10, 0) is None
    assert measure_recovery(np.zeros((0, 3)), np.zeros(0, np.int64), 10, 0) is None


def test_polysemy_counts_neurons_with_concepts_of_one_domain() -> None:
    """Neurons of a single concept belong to one domain trivially and must not count."""
    experts = np.array(
        [[1, 1, 0, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], dtype=np.bool_
    )
    polysemy = measure_polysemy(experts, np.array([0, 0, 1, 1]), draws=200, seed=0)
    # the first and fourth neuron belong to one domain, the second to two
    assert (polysemy.neurons, polysemy.shared) == (4, 3)
    assert polysemy.one_domain == pytest.approx(2 / 3)
    assert 0 < polysemy.one_domain_by_chance < 2 / 3
    unshared = measure_polysemy(np.eye(4, dtype=np.bool_), np.array([0, 0, 1, 1]), draws=5, seed=0)
    assert unshared.shared == 0
    assert np.isnan(unshared.one_domain)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_coherence_matches_enumerated_groups(seed: int) -> None:
    """Against the means of all groups of that size, of which the random ones are a sample."""
    similarities, domains = make_similarities(seed, n=9)
    square = squareform(similarities)
    for domain, coherence in enumerate(measure_coherence(square, domains, 300, seed)):
        members = np.flatnonzero(domains == domain)
        if len(members) < 2:
            assert coherence is None
            continue
        assert coherence is not None
        pairs = list(itertools.combinations(members, 2))
        assert coherence.members == len(members)
        assert coherence.within == pytest.approx(np.mean([square[pair] for pair in pairs]))
        groups = list(itertools.combinations(range(9), len(members)))
        means = [
            np.mean([square[pair] for pair in itertools.combinations(group, 2)]) for group in groups
        ]
        assert min(means) - 1e-12 <= coherence.low <= coherence.by_chance
        assert coherence.by_chance <= coherence.high <= max(means) + 1e-12
        exact = np.mean(np.array(means) >= coherence.within - 1e-12)
        assert coherence.p == pytest.approx(exact, abs=0.15)


def test_concepts_without_a_domain_and_single_concepts_form_no_group() -> None:
    """A concept without a domain is part of the random groups only."""
    square = np.ones((5, 5))
    first, second = measure_coherence(square, np.array([0, 0, 1, -1, -1]), 50, 0)
    assert second is None
    assert first is not None
    assert (first.within, first.low, first.high, first.p) == (1.0, 1.0, 1.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 14))
def test_tree_layouts_match_scipy_at_any_number_of_leaves(seed: int, max_leaves: int) -> None:
    """A branch in the wrong row would show a wrong tree."""
    similarities, _ = make_similarities(seed)
    merges = average_linkage(similarities)
    layout = layout_tree(merges, max_leaves)
    expected = scipy_hierarchy.dendrogram(merges, p=max_leaves, truncate_mode="lastp", no_plot=True)
    brackets = {
        tuple((distance, (row - 5) / 10) for row, distance in zip(*corners, strict=True))
        for corners in zip(expected["icoord"], expected["dcoord"], strict=True)
    }
    assert set(map(tuple, layout.brackets)) == brackets
    assert layout.leaves == expected["leaves"]
    assert sum(size for _, size in layout.below) == 14
    assert len({first for first, _ in layout.below}) == len(layout.leaves) == max_leaves
    distances = [bracket[1][0] for bracket in layout.brackets]
    assert distances == sorted(distances)
