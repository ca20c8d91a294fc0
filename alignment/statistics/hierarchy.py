"""Is the hierarchy of concepts in their experts: domains apart, members below them, a tree that people
would draw?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_DRAWS_AT_ONCE = 100
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Containment:
    """How far a domain's experts are its members', against domains of other concepts.

    `of_domain` is the share of the domain's experts that some member has, `of_members` the share of
    the members' experts that the domain has; NaN where there are none. `by_chance` are their medians
    over pseudo-domains, `p` how often a pseudo-domain has as high a share.
    """

    of_domain: float
    of_domain_by_chance: float
    of_domain_p: float
    of_members: float
    of_members_by_chance: float
    of_members_p: float


def containment(
    experts: Booleans, domain: int, members: Integers, others: Integers, draws: int, seed: int
) -> Containment:
    """Containment of a domain's experts in its members' and the reverse.

    `experts` has shape (concepts, neurons). Each pseudo-domain is as many of `others` as there are
    members, drawn without replacement.

    Raises ValueError where there are fewer others than members.
    """
    if len(others) < len(members):
        raise ValueError(f"{len(others)} other concepts; a pseudo-domain needs {len(members)}")
    packed = np.packbits(experts, axis=1)
    random = np.random.default_rng(seed)
    order = random.permuted(np.tile(others, (draws, 1)), axis=1)[:, : len(members)]
    groups = np.concatenate([members[None], order])
    forward, reverse = np.empty(len(groups)), np.empty(len(groups))
    for start in range(0, len(groups), _DRAWS_AT_ONCE):
        rows = slice(start, start + _DRAWS_AT_ONCE)
        union = np.bitwise_or.reduce(packed[groups[rows]], axis=1)
        shared = np.bitwise_count(union & packed[domain]).sum(axis=1)
        with np.errstate(invalid="ignore"):
            forward[rows] = shared / np.bitwise_count(packed[domain]).sum(dtype=np.float64)
            reverse[rows] = shared / np.bitwise_count(union).sum(axis=1)
    return Containment(*_against_chance(forward), *_against_chance(reverse))


def _against_chance(shares: Floats) -> tuple[float, float, float]:
    """The first share, the median of the others, and how often one is as high as the first."""
    observed, drawn = shares[0], shares[1:]
    if np.isnan(observed):
        return float("nan"), float("nan"), float("nan")
    # a group without any expert contains nothing
    chance = np.nan_to_num(drawn)
    return (
        float(observed),
        float(np.median(chance)),
        float(np.mean([1, *(chance >= observed - _ROUNDING)])),
    )


@dataclass(frozen=True)
class Coherence:
    """How alike a domain's concepts are, against as many concepts drawn from all.

    `within` is the mean similarity of two of the domain; `low` and `high` hold 95% of the means of drawn
    groups, `by_chance` is their median, `p` how often one is as high.
    """

    members: int
    within: float
    by_chance: float
    low: float
    high: float
    p: float


def coherence(similarity: Floats, domains: Integers, draws: int, seed: int) -> list[Coherence | None]:
    """How alike the concepts of each domain are; None for a domain of one.

    `similarity` has shape (concepts, concepts) and is symmetric; `domains` numbers each concept's domain
    from 0, with -1 for none. Groups are drawn without replacement from all concepts.
    """
    random = np.random.default_rng(seed)
    order = random.permuted(np.tile(np.arange(len(domains)), (draws, 1)), axis=1)
    drawn: dict[int, Floats] = {}
    found: list[Coherence | None] = []
    for domain in range(domains.max() + 1):
        members = np.flatnonzero(domains == domain)
        size = len(members)
        if size < 2:
            found.append(None)
            continue
        if size not in drawn:
            drawn[size] = _mean_within(similarity, order[:, :size])
        within = _mean_within(similarity, members[None])
        share, chance, p = _against_chance(np.concatenate([within, drawn[size]]))
        low, high = np.quantile(drawn[size], [0.025, 0.975])
        found.append(Coherence(size, share, chance, float(low), float(high), p))
    return found


def _mean_within(similarity: Floats, groups: Integers) -> Floats:
    """Mean similarity of two different members, of each group: a row of `groups`."""
    size = groups.shape[1]
    means = np.empty(len(groups))
    for start in range(0, len(groups), _DRAWS_AT_ONCE):
        rows = groups[start : start + _DRAWS_AT_ONCE]
        square = similarity[rows[:, :, None], rows[:, None, :]]
        own = np.trace(square, axis1=1, axis2=2)
        means[start : start + len(rows)] = (square.sum(axis=(1, 2)) - own) / (size * (size - 1))
    return means


def link(similarities: Floats) -> Floats:
    """Merges by average linkage on 1 - similarity, as SciPy's `linkage`, from similarities in the order
    of `np.triu_indices(n, 1)`."""
    # slow to load
    from scipy.cluster import hierarchy

    return np.asarray(hierarchy.linkage(np.maximum(1 - similarities, 0), "average"), np.float64)


@dataclass(frozen=True)
class Drawing:
    """A tree as brackets. `leaves` are the nodes at places 0, 1, ... (concepts first, then merges that
    were not opened), `below` the first concept and how many of each; a bracket is four corners
    (distance, place)."""

    leaves: list[int]
    below: list[tuple[int, int]]
    brackets: list[list[tuple[float, float]]]


def draw_tree(merges: Floats, most: int) -> Drawing:
    """Where the branches of a tree (`link`) lie when at most so many leaves are drawn: the last merges,
    each at its distance, in the middle of what it joins."""
    n = len(merges) + 1
    opened = range(max(n, 2 * n - most), 2 * n - 1)
    first_of, size_of = list(range(n)), [1] * n
    for left, _, _, size in merges:
        first_of.append(first_of[int(left)])
        size_of.append(int(size))
    leaves: list[int] = []
    left_to_see = [2 * n - 2]
    while left_to_see:
        node = left_to_see.pop()
        if node in opened:
            left_to_see += [int(merges[node - n, 1]), int(merges[node - n, 0])]
        else:
            leaves.append(node)
    at = {node: (0.0, float(place)) for place, node in enumerate(leaves)}
    brackets = []
    for node in opened:
        left, right, distance, _ = merges[node - n]
        (from_left, upper), (from_right, lower) = at[int(left)], at[int(right)]
        brackets.append([(from_left, upper), (distance, upper), (distance, lower), (from_right, lower)])
        at[node] = (float(distance), (upper + lower) / 2)
    below = [(first_of[node], size_of[node]) for node in leaves]
    return Drawing(leaves, below, brackets)


@dataclass(frozen=True)
class Cut:
    """The tree cut into clusters, against the domains."""

    clusters: int
    rand: float  # adjusted for chance (Hubert and Arabie 1985)
    information: float  # mutual, normalised by the mean of the entropies
    purity: float


@dataclass(frozen=True)
class Tree:
    """A tree of the concepts by average linkage on 1 - similarity.

    `merges` has a row a merge: the two nodes (concepts first, then earlier merges), their distance and
    the concepts below, as SciPy's `linkage`. `cophenetic` is the correlation of the tree's distances
    with the given ones, `purity` the dendrogram's (Heller and Ghahramani 2005, ICML, section 5),
    `triplets` the share of triplets, two concepts of a domain and one of another, in which the tree
    joins the two first.
    """

    merges: Floats
    cophenetic: float
    purity: float
    triplets: float
    cuts: list[Cut]


def grow_tree(similarities: Floats, domains: Integers) -> Tree:
    """The tree of concepts from similarities in the order of `np.triu_indices(n, 1)`.

    Concepts that are equally alike are joined in their order, so where most similarities are equal the
    tree says little. `domains` numbers each concept's domain.
    """
    from scipy.cluster import hierarchy

    distances = 1 - similarities
    merges = link(similarities)
    joined = hierarchy.cophenet(merges)
    cophenetic = float("nan")
    if np.ptp(joined) > 0 and np.ptp(distances) > 0:
        cophenetic = float(np.corrcoef(joined, distances)[0, 1])
    n = len(domains)
    square = np.zeros((n, n))
    square[np.triu_indices(n, 1)] = joined
    square += square.T
    clusters = hierarchy.cut_tree(merges).T
    cuts = [_cut(labels, domains) for labels in clusters]
    return Tree(
        merges, cophenetic, _dendrogram_purity(merges, domains), _triplets(square, domains), cuts
    )


def _cut(labels: Any, domains: Integers) -> Cut:
    table = np.zeros((labels.max() + 1, domains.max() + 1))
    np.add.at(table, (labels, domains), 1)
    return Cut(
        len(table),
        _adjusted_rand(table),
        _normalised_information(table),
        float(table.max(axis=1).sum() / table.sum()),
    )


def _adjusted_rand(table: Floats) -> float:
    """Hubert and Arabie 1985, Journal of Classification 2, equation 5."""

    def pairs(counts: Any) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = rows * columns / pairs(table.sum())
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _normalised_information(table: Floats) -> float:
    joint = table / table.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(shares: Floats) -> float:
        some = shares[shares > 0]
        return float(-(some * np.log(some)).sum())

    mean = (entropy(rows) + entropy(columns)) / 2
    information = entropy(rows) + entropy(columns) - entropy(joint.ravel())
    return 1.0 if mean == 0 else max(0.0, information / mean)


def _dendrogram_purity(merges: Floats, domains: Integers) -> float:
    """Over all pairs of a domain: the share of their domain below the node that joins them."""
    below = [*np.eye(domains.max() + 1)[domains]]
    weighed = total = 0.0
    for left, right, _, size in merges:
        joined = below[int(left)] + below[int(right)]
        pairs = below[int(left)] * below[int(right)]
        weighed += float((pairs * joined / size).sum())
        total += float(pairs.sum())
        below.append(joined)
    return weighed / total if total else float("nan")


def _triplets(distances: Floats, domains: Integers) -> float:
    """Share of triplets in which the two of one domain are the nearest; a tie is a choice by lot."""
    right, total = 0.0, 0
    for first, second in zip(*np.triu_indices(len(domains), 1), strict=True):
        if domains[first] != domains[second]:
            continue
        other = domains != domains[first]
        apart = np.stack([distances[first, other], distances[second, other]])
        together = distances[first, second]
        nearest = together <= apart.min(axis=0)
        ties = 1 + (apart == together).sum(axis=0)
        right += float((nearest / ties).sum())
        total += int(other.sum())
    return right / total if total else float("nan")


@dataclass(frozen=True)
class Recovery:
    """How often the domain that a member is most like is its own, and how often by chance."""

    members: int
    share: float
    by_chance: float
    p: float


def recovery(similarity: Floats, own: Integers, draws: int, seed: int) -> Recovery | None:
    """Whether members find their domain's name among all domains' names.

    `similarity` has shape (members, domains); `own` numbers each member's domain. A tie for the most
    alike counts as a choice by lot. Chance permutes the members. None without members or with one
    domain.
    """
    if len(own) == 0 or similarity.shape[1] < 2:
        return None
    best = similarity == similarity.max(axis=1, keepdims=True)
    credit = best / best.sum(axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    permuted = random.permuted(np.tile(own, (draws, 1)), axis=1)
    shares = credit[np.arange(len(own)), np.concatenate([own[None], permuted])].mean(axis=1)
    observed, _, p = _against_chance(shares)
    return Recovery(len(own), observed, float(shares[1:].mean()), p)


@dataclass(frozen=True)
class Polysemy:
    """Neurons by the concepts that they are experts of."""

    neurons: int
    shared: int  # experts of several concepts
    one_domain: float  # share of these whose concepts are all of one domain
    one_domain_by_chance: float
    p: float


def polysemy(experts: Booleans, domains: Integers, draws: int, seed: int) -> Polysemy:
    """Whether neurons that are experts of several concepts are so of related ones.

    `experts` has shape (concepts, neurons). Chance permutes the concepts' domains, so how many concepts
    each neuron has stays as it is.
    """
    of_each = experts.sum(axis=0)
    shared = experts[:, of_each > 1].astype(np.float32)
    random = np.random.default_rng(seed)
    permuted = random.permuted(np.tile(domains, (draws, 1)), axis=1)
    one_domain = np.full(draws + 1, np.nan)
    sizes = shared.sum(axis=0)
    for number, labels in enumerate([domains, *permuted] if shared.size else []):
        counts = np.eye(domains.max() + 1, dtype=np.float32)[labels].T @ shared
        one_domain[number] = (counts.max(axis=0) == sizes).mean()
    observed, _, p = _against_chance(one_domain)
    chance = float(one_domain[1:].mean())
    return Polysemy(int((of_each > 0).sum()), shared.shape[1], observed, chance, p)
