"""A hierarchy that is there must be found, one that is not must not, and every number must be that of
another implementation or of a reader who counts by hand."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy as scipys
from scipy.spatial.distance import squareform
from scipy.stats import kstest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from alignment.statistics.domain_auc import Pairs, separation
from alignment.statistics.hierarchy import (
    coherence,
    containment,
    draw_tree,
    grow_tree,
    link,
    polysemy,
    recovery,
)
from alignment.statistics.resampling import Interval

Floats = npt.NDArray[np.float64]

_SIMULATIONS = 500


def made(
    seed: int, n: int = 14, domains: int = 3, levels: int = 6
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Similarities with ties, somewhat higher within a domain, and the domains."""
    random = np.random.default_rng(seed)
    of = np.concatenate([np.arange(domains), random.integers(0, domains, n - domains)])
    first, second = np.triu_indices(n, 1)
    values = random.integers(0, levels, len(first)) + 2 * (of[first] == of[second])
    return values / (levels + 2), of


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cuts_and_areas_are_scikit_learns(seed: int) -> None:
    similarities, domains = made(seed)
    tree = grow_tree(similarities, domains)
    labels = scipys.cut_tree(tree.merges)
    assert [cut.clusters for cut in tree.cuts] == list(range(14, 0, -1))
    for cut, column in zip(tree.cuts, labels.T, strict=True):
        assert cut.rand == pytest.approx(adjusted_rand_score(domains, column))
        expected = normalized_mutual_info_score(domains, column)
        assert cut.information == pytest.approx(expected, abs=1e-12)
        majority = sum(np.bincount(domains[column == each]).max() for each in set(column))
        assert cut.purity == pytest.approx(majority / 14)
    first, second = np.triu_indices(14, 1)
    expected = roc_auc_score(domains[first] == domains[second], similarities)
    assert separation(similarities, domains).value == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_tree_is_scipys_and_its_purity_and_triplets_those_of_a_count_by_hand(seed: int) -> None:
    similarities, domains = made(seed, n=10)
    tree = grow_tree(similarities, domains)
    expected, joined = scipys.cophenet(tree.merges, 1 - similarities)
    assert tree.cophenetic == pytest.approx(expected)
    below = [{number} for number in range(10)]
    for left, right, _, _ in tree.merges:
        below.append(below[int(left)] | below[int(right)])
    purities, right_ones = [], []
    far = squareform(joined)
    for one, other in itertools.combinations(range(10), 2):
        if domains[one] != domains[other]:
            continue
        node = min((each for each in below if {one, other} <= each), key=len)
        purities.append(np.mean([domains[each] == domains[one] for each in node]))
        for third in np.flatnonzero(domains != domains[one]):
            sides = [far[one, other], far[one, third], far[other, third]]
            right_ones.append((sides[0] == min(sides)) / sides.count(min(sides)))
    assert tree.purity == pytest.approx(np.mean(purities))
    assert tree.triplets == pytest.approx(np.mean(right_ones))


def test_a_perfect_hierarchy_is_perfect_and_none_is_chance() -> None:
    domains = np.repeat(np.arange(4), 6)
    first, second = np.triu_indices(24, 1)
    perfect = np.where(domains[first] == domains[second], 0.9, 0.1)
    tree = grow_tree(perfect, domains)
    at_domains = next(cut for cut in tree.cuts if cut.clusters == 4)
    assert (at_domains.rand, at_domains.information, at_domains.purity) == pytest.approx((1, 1, 1))
    assert (tree.purity, tree.triplets) == pytest.approx((1, 1))
    flat = grow_tree(np.zeros(len(first)), domains)
    assert np.isnan(flat.cophenetic)
    assert flat.triplets == pytest.approx(1 / 3)
    assert separation(perfect, domains) == Interval(1.0, None, None)
    assert separation(-perfect, domains) == Interval(0.0, None, None)
    assert np.isnan(separation(np.zeros(len(first)), domains).value)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_areas_without_each_concept_are_scikit_learns(seed: int) -> None:
    similarities, domains = made(seed)
    square = squareform(similarities)
    found = Pairs(similarities, domains).without_concept()
    for concept, value in enumerate(found):
        rest = np.delete(np.arange(14), concept)
        first, second = rest[np.array(np.triu_indices(13, 1))]
        same = domains[first] == domains[second]
        if same.any():
            assert value == pytest.approx(roc_auc_score(same, square[first, second]))


def test_the_variance_of_independent_pairs_is_delongs_and_that_of_concepts_is_taken_off() -> None:
    """Against the sample variances of the placements, and against what was drawn."""
    random = np.random.default_rng(0)
    domains = np.repeat(np.arange(6), 6)
    first, second = np.triu_indices(36, 1)
    same = domains[first] == domains[second]
    drawn = random.standard_normal(len(first)) + same
    pairs = Pairs(drawn, domains)
    of_same = [np.mean(each > drawn[~same]) for each in drawn[same]]
    of_other = [np.mean(each < drawn[same]) for each in drawn[~same]]
    delong = np.var(of_same, ddof=1) / same.sum() + np.var(of_other, ddof=1) / (~same).sum()
    assert sum(map(pairs.variance_of_pairs, pairs.kinds)) == pytest.approx(delong)
    assert pairs.variance_apart_from_concepts() == pytest.approx(delong, rel=0.1)
    # two thirds of the variance of similarities are the concepts', and they offset in the area
    effect = random.standard_normal((40, 36))
    shares = []
    for each in effect:
        pairs = Pairs(each[first] + each[second] + random.standard_normal(len(first)), domains)
        of_pairs = sum(map(pairs.variance_of_pairs, pairs.kinds))
        shares.append(pairs.variance_apart_from_concepts() / of_pairs)
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.06)


def test_an_areas_variance_rests_on_the_concepts_that_pull_at_it() -> None:
    """Alike domains offset, so that all concepts count; of unlike ones the largest weighs most."""
    balanced = Pairs(np.zeros(190), np.repeat(np.arange(4), 5))
    assert balanced.freedom == 19
    sizes = np.array([2, 3, 4, 6, 10])
    pull = (sizes - 1) / (sizes * (sizes - 1) / 2).sum()
    pull -= (25 - sizes) / (300 - (sizes * (sizes - 1) / 2).sum())
    expected = (sizes * pull**2).sum() ** 2 / (sizes * pull**4).sum()
    unlike = Pairs(np.zeros(300), np.repeat(np.arange(5), sizes))
    assert unlike.freedom == pytest.approx(expected)
    assert 15 < unlike.freedom < 20


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.4])
@pytest.mark.parametrize(
    ("sizes", "spread"),
    [
        *itertools.product([(5, 5, 5, 5), (2, 3, 4, 6, 10)], [0.0, 1.0]),
        ((2, 3, 4, 5, 6, 8, 9, 11, 14, 20), 1.0),
    ],
)
def test_the_areas_interval_covers(sizes: tuple[int, ...], spread: float, apart: float) -> None:
    """Also where concepts differ in how alike they are to all others. In balanced domains that offsets
    between pairs within them and between them; in others it does not."""
    domains = np.repeat(np.arange(len(sizes)), sizes)
    n = len(domains)
    first, second = np.triu_indices(n, 1)
    same = domains[first] == domains[second]
    random = np.random.default_rng([n, int(10 * spread), int(10 * apart)])
    distance = apart * np.sqrt(1 + 2 * spread**2)
    drawn = []
    for _ in range(_SIMULATIONS):
        effect = spread * random.standard_normal(n)
        noise = random.standard_normal(len(first))
        values = effect[first] + effect[second] + distance * same + noise
        drawn.append(separation(values, domains))
    truth = float(np.mean([each.value for each in drawn]))
    assert truth == pytest.approx({0.0: 0.5, 1.0: 0.76, 2.4: 0.955}[apart], abs=0.015)
    bounds = [(each.low, each.high) for each in drawn if each.low is not None and each.high is not None]
    covered = np.mean([low <= truth <= high for low, high in bounds])
    print(f"{n} concepts, differ by {spread}, area {truth:.2f}: {covered:.1%}")
    assert len(bounds) > 0.98 * _SIMULATIONS
    # 93 to 97% is promised; three standard errors of 500 simulations
    assert 0.90 <= covered <= 0.993


def test_containment_is_that_of_sets_and_sees_members_that_hold_their_domain() -> None:
    random = np.random.default_rng(0)
    experts = random.random((20, 400)) < 0.1
    members = np.array([1, 2, 3])
    # the domain's experts are shared by its members
    experts[0] = experts[1:4].any(axis=0) & (random.random(400) < 0.5)
    others = np.arange(4, 20)
    found = containment(experts, 0, members, others, draws=300, seed=1)
    sets = [set(np.flatnonzero(row)) for row in experts]
    union = sets[1] | sets[2] | sets[3]
    assert found.of_domain == len(sets[0] & union) / len(sets[0]) == 1.0
    assert found.of_members == len(sets[0] & union) / len(union)
    assert found.of_domain_p == found.of_members_p == pytest.approx(1 / 301)
    drawn = random.permuted(np.tile(others, (500, 1)), axis=1)[:, :3]
    shares = [len(sets[0] & set.union(*(sets[each] for each in row))) / len(sets[0]) for row in drawn]
    assert found.of_domain_by_chance == pytest.approx(np.median(shares), abs=0.03)
    experts[0] = False
    assert np.isnan(containment(experts, 0, members, others, 10, 0).of_domain)
    with pytest.raises(ValueError, match="2 other concepts"):
        containment(experts, 0, members, np.array([4, 5]), 10, 0)


def test_p_values_of_containment_are_uniform_without_a_hierarchy() -> None:
    random = np.random.default_rng(3)
    p = []
    for seed in range(200):
        experts = random.random((30, 500)) < 0.08
        found = containment(experts, 0, np.arange(1, 6), np.arange(6, 30), 99, seed)
        # ties, which make p larger, are broken by lot
        p.append(found.of_domain_p - random.random() * 0.01)
    assert kstest(p, "uniform").pvalue > 0.001


def test_recovery_counts_members_whose_own_domain_is_nearest() -> None:
    similarity = np.array([[0.9, 0.1], [0.2, 0.3], [0.5, 0.5], [0.4, 0.1]])
    found = recovery(similarity, np.array([0, 1, 1, 1]), draws=500, seed=0)
    assert found is not None
    assert (found.members, found.share) == (4, 2.5 / 4)
    assert 0.3 < found.by_chance < 0.7
    clear = np.eye(4)[np.repeat(np.arange(4), 5)]
    strong = recovery(clear, np.repeat(np.arange(4), 5), draws=500, seed=0)
    assert strong is not None
    assert strong.share == 1
    assert strong.p == pytest.approx(1 / 501)
    assert recovery(np.zeros((3, 1)), np.zeros(3, np.int64), 10, 0) is None
    assert recovery(np.zeros((0, 3)), np.zeros(0, np.int64), 10, 0) is None


def test_polysemy_counts_neurons_whose_concepts_are_of_one_domain() -> None:
    experts = np.array(
        [[1, 1, 0, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], dtype=np.bool_
    )
    found = polysemy(experts, np.array([0, 0, 1, 1]), draws=200, seed=0)
    # the first and fourth neuron are of one domain, the second of two
    assert (found.neurons, found.shared) == (4, 3)
    assert found.one_domain == pytest.approx(2 / 3)
    assert 0 < found.one_domain_by_chance < 2 / 3
    nothing = polysemy(np.eye(4, dtype=np.bool_), np.array([0, 0, 1, 1]), draws=5, seed=0)
    assert nothing.shared == 0
    assert np.isnan(nothing.one_domain)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_domains_coherence_is_that_of_a_count_by_hand(seed: int) -> None:
    similarities, domains = made(seed, n=9)
    square = squareform(similarities)
    found = coherence(square, domains, 300, seed)
    for domain, each in enumerate(found):
        members = np.flatnonzero(domains == domain)
        if len(members) < 2:
            assert each is None
            continue
        assert each is not None
        pairs = list(itertools.combinations(members, 2))
        assert each.members == len(members)
        assert each.within == pytest.approx(np.mean([square[pair] for pair in pairs]))
        groups = list(itertools.combinations(range(9), len(members)))
        means = [
            np.mean([square[pair] for pair in itertools.combinations(group, 2)]) for group in groups
        ]
        # the groups drawn are some of all that there are
        assert min(means) - 1e-12 <= each.low <= each.by_chance <= each.high <= max(means) + 1e-12
        exact = np.mean(np.array(means) >= each.within - 1e-12)
        assert each.p == pytest.approx(exact, abs=0.15)


def test_domains_of_none_and_of_one_are_no_groups() -> None:
    """A concept without a domain is drawn from, but makes no group."""
    square = np.ones((5, 5))
    first, second = coherence(square, np.array([0, 0, 1, -1, -1]), 50, 0)
    assert second is None
    assert first is not None
    assert (first.within, first.low, first.high, first.p) == (1.0, 1.0, 1.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 14))
def test_a_drawn_tree_is_scipys_whole_or_with_its_last_branches(seed: int, most: int) -> None:
    similarities, _ = made(seed)
    merges = link(similarities)
    drawn = draw_tree(merges, most)
    expected = scipys.dendrogram(merges, p=most, truncate_mode="lastp", no_plot=True)
    brackets = {
        tuple((distance, (place - 5) / 10) for place, distance in zip(*each, strict=True))
        for each in zip(expected["icoord"], expected["dcoord"], strict=True)
    }
    assert {tuple(each) for each in drawn.brackets} == brackets
    assert drawn.leaves == expected["leaves"]
    assert sum(size for _, size in drawn.below) == 14
    assert len({first for first, _ in drawn.below}) == len(drawn.leaves) == most
    distances = [each[1][0] for each in drawn.brackets]
    assert distances == sorted(distances)
