"""Tests for a hierarchy of concepts in their expert neurons: nested experts, coherent domains, trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.arrays import Bools, Floats, Ints

_DRAWS_AT_ONCE = 100
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Containment:
    """Overlap of a domain's experts with those of its members, vs. pseudo-domains of other concepts.

    `of_domain` is the share of the domain's experts that are experts of a member, `of_members` the share
    of the members' experts that are experts of the domain; NaN without experts. `by_chance` is the
    median over pseudo-domains, `p` the share of these and the domain that reach the observed value.
    """

    # columns of the table hierarchy_domains
    of_domain: float
    of_domain_by_chance: float
    of_domain_p: float
    of_members: float
    of_members_by_chance: float
    of_members_p: float


def measure_containment(
    experts: Bools, domain: int, members: Ints, others: Ints, draws: int, seed: int
) -> Containment:
    """Test whether a domain's experts are contained in its members' experts, and the reverse.

    `experts` has shape (concepts, neurons). A pseudo-domain has as many of `others` as there are
    members, drawn without replacement.

    Raises:
        ValueError: if there are fewer others than members.
    """
    if len(others) < len(members):
        raise ValueError(f"a pseudo-domain needs {len(members)} other concepts, got {len(others)}")
    packed = np.packbits(experts, axis=1)
    rng = np.random.default_rng(seed)
    pseudo = rng.permuted(np.tile(others, (draws, 1)), axis=1)[:, : len(members)]
    groups = np.concatenate([members[None], pseudo])
    of_domain, of_members = np.empty(len(groups)), np.empty(len(groups))
    for start in range(0, len(groups), _DRAWS_AT_ONCE):
        rows = slice(start, start + _DRAWS_AT_ONCE)
        union = np.bitwise_or.reduce(packed[groups[rows]], axis=1)
        shared = np.bitwise_count(union & packed[domain]).sum(axis=1)
        with np.errstate(invalid="ignore"):
            of_domain[rows] = shared / np.bitwise_count(packed[domain]).sum(dtype=np.float64)
            of_members[rows] = shared / np.bitwise_count(union).sum(axis=1)
    return Containment(*_compare_with_chance(of_domain), *_compare_with_chance(of_members))


def _compare_with_chance(values: Floats) -> tuple[float, float, float]:
    """The first value, the median of the others, and the share of all that are at least the first."""
    observed, random = values[0], values[1:]
    if np.isnan(observed):
        return float("nan"), float("nan"), float("nan")
    # a group without experts contains nothing
    chance = np.nan_to_num(random)
    p = float(np.mean([1, *(chance >= observed - _TOLERANCE)]))
    return float(observed), float(np.median(chance)), p


@dataclass(frozen=True)
class Coherence:
    """Similarity of the concepts of a domain, vs. random groups of the same size.

    `within` is the mean similarity of two members; `low` and `high` enclose 95% of the means of random
    groups, `by_chance` is their median, `p` the share of these and the domain that reach the
    observed value.
    """

    members: int
    within: float
    by_chance: float
    low: float
    high: float
    p: float


def measure_coherence(
    similarity: Floats, domains: Ints, draws: int, seed: int
) -> list[Coherence | None]:
    """Test whether the concepts of each domain are similar; None for a domain with one concept.

    `similarity` has shape (concepts, concepts) and is symmetric; `domains` numbers each concept's domain
    from 0, with -1 for none. Groups are drawn without replacement from all concepts.
    """
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(len(domains)), (draws, 1)), axis=1)
    random_means: dict[int, Floats] = {}
    results: list[Coherence | None] = []
    for domain in range(domains.max() + 1):
        members = np.flatnonzero(domains == domain)
        size = len(members)
        if size < 2:
            results.append(None)
            continue
        if size not in random_means:
            random_means[size] = _mean_similarity(similarity, order[:, :size])
        observed = _mean_similarity(similarity, members[None])
        within, chance, p = _compare_with_chance(np.concatenate([observed, random_means[size]]))
        low, high = np.quantile(random_means[size], [0.025, 0.975])
        results.append(Coherence(size, within, chance, float(low), float(high), p))
    return results


def _mean_similarity(similarity: Floats, groups: Ints) -> Floats:
    """Mean similarity of two different members, for each group (row)."""
    size = groups.shape[1]
    means = np.empty(len(groups))
    for start in range(0, len(groups), _DRAWS_AT_ONCE):
        rows = groups[start : start + _DRAWS_AT_ONCE]
        square = similarity[rows[:, :, None], rows[:, None, :]]
        diagonal = np.trace(square, axis1=1, axis2=2)
        means[start : start + len(rows)] = (square.sum(axis=(1, 2)) - diagonal) / (size * (size - 1))
    return means


def average_linkage(similarities: Floats) -> Floats:
    """SciPy's `linkage` on 1 - similarity, from similarities in the order of `np.triu_indices(n, 1)`."""
    # slow to import
    from scipy.cluster import hierarchy

    return np.asarray(hierarchy.linkage(np.maximum(1 - similarities, 0), "average"), np.float64)


@dataclass(frozen=True)
class TreeLayout:
    """A tree drawn as brackets.

    `leaves` are the nodes in rows 0, 1, ... (concepts first, then collapsed merges), `below` the
    first concept under each and their number; a bracket has four corners (distance, row).
    """

    leaves: list[int]
    below: list[tuple[int, int]]
    brackets: list[list[tuple[float, float]]]


def layout_tree(merges: Floats, max_leaves: int) -> TreeLayout:
    """Lay out the last merges of `average_linkage`, so that at most `max_leaves` leaves remain."""
    n = len(merges) + 1
    expanded = range(max(n, 2 * n - max_leaves), 2 * n - 1)
    first_concept, sizes = list(range(n)), [1] * n
    for left, _, _, size in merges:
        first_concept.append(first_concept[int(left)])
        sizes.append(int(size))
    leaves: list[int] = []
    stack = [2 * n - 2]
    while stack:
        node = stack.pop()
        if node in expanded:
            stack += [int(merges[node - n, 1]), int(merges[node - n, 0])]
        else:
            leaves.append(node)
    position = {node: (0.0, float(row)) for row, node in enumerate(leaves)}
    brackets = []
    for node in expanded:
        left, right, distance, _ = merges[node - n]
        (from_left, upper), (from_right, lower) = position[int(left)], position[int(right)]
        brackets.append([(from_left, upper), (distance, upper), (distance, lower), (from_right, lower)])
        position[node] = (float(distance), (upper + lower) / 2)
    return TreeLayout(leaves, [(first_concept[node], sizes[node]) for node in leaves], brackets)


@dataclass(frozen=True)
class TreeCut:
    """The tree cut into clusters, compared with the domains."""

    # columns of the table hierarchy_cuts
    clusters: int
    rand: float  # adjusted Rand index (Hubert and Arabie 1985)
    information: float  # mutual information, normalized by the mean entropy
    purity: float


@dataclass(frozen=True)
class ConceptTree:
    """A tree of the concepts by average linkage on 1 - similarity.

    `merges` has the format of SciPy's `linkage`: one row per merge with its two nodes (concepts first,
    then earlier merges), their distance and the number of concepts below. `cophenetic` is the
    correlation of the tree's distances with the input, `purity` the dendrogram purity (Heller and
    Ghahramani 2005, ICML, section 5), `triplets` the share of triplets, two concepts of a domain and one
    of another, in which the tree joins these two first.
    """

    merges: Floats
    cophenetic: float
    purity: float
    triplets: float
    cuts: list[TreeCut]


def build_tree(similarities: Floats, domains: Ints) -> ConceptTree:
    """Build the tree of concepts from similarities in the order of `np.triu_indices(n, 1)`.

    Ties are merged in the order of the concepts, so a tree of mostly equal similarities is
    uninformative. `domains` numbers each concept's domain.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    distances = 1 - similarities
    merges = average_linkage(similarities)
    tree_distances = hierarchy.cophenet(merges)
    cophenetic = float("nan")
    if np.ptp(tree_distances) > 0 and np.ptp(distances) > 0:
        cophenetic = float(np.corrcoef(tree_distances, distances)[0, 1])
    cuts = [_compare_cut(labels, domains) for labels in hierarchy.cut_tree(merges).T]
    purity = _dendrogram_purity(merges, domains)
    triplets = _triplet_accuracy(squareform(tree_distances), domains)
    return ConceptTree(merges, cophenetic, purity, triplets, cuts)


def _compare_cut(labels: Any, domains: Ints) -> TreeCut:
    table = np.zeros((labels.max() + 1, domains.max() + 1))
    np.add.at(table, (labels, domains), 1)
    purity = float(table.max(axis=1).sum() / table.sum())
    return TreeCut(len(table), _adjusted_rand_index(table), _normalized_information(table), purity)


def _adjusted_rand_index(table: Floats) -> float:
    """Hubert and Arabie 1985, Journal of Classification 2, equation 5."""

    def count_pairs(counts: Any) -> float:
        return float((counts * (counts - 1) / 2).sum())

    index = count_pairs(table)
    rows, columns = count_pairs(table.sum(axis=1)), count_pairs(table.sum(axis=0))
    expected = rows * columns / count_pairs(table.sum())
    maximum = (rows + columns) / 2
    return 1.0 if maximum == expected else (index - expected) / (maximum - expected)


def _normalized_information(table: Floats) -> float:
    joint = table / table.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(p: Floats) -> float:
        positive = p[p > 0]
        return float(-(positive * np.log(positive)).sum())

    mean = (entropy(rows) + entropy(columns)) / 2
    information = entropy(rows) + entropy(columns) - entropy(joint.ravel())
    return 1.0 if mean == 0 else max(0.0, information / mean)


def _dendrogram_purity(merges: Floats, domains: Ints) -> float:
    """Mean over all pairs within a domain of that domain's share below the node that joins the pair."""
    below = [*np.eye(domains.max() + 1)[domains]]
    weighted = total = 0.0
    for left, right, _, size in merges:
        merged = below[int(left)] + below[int(right)]
        pairs = below[int(left)] * below[int(right)]
        weighted += float((pairs * merged / size).sum())
        total += float(pairs.sum())
        below.append(merged)
    return weighted / total if total else float("nan")


def _triplet_accuracy(distances: Floats, domains: Ints) -> float:
    """Share of triplets in which the concepts of one domain are closest; ties are random choices."""
    correct, total = 0.0, 0
    for first, second in zip(*np.triu_indices(len(domains), 1), strict=True):
        if domains[first] != domains[second]:
            continue
        is_other = domains != domains[first]
        to_other = np.stack([distances[first, is_other], distances[second, is_other]])
        within = distances[first, second]
        is_closest = within <= to_other.min(axis=0)
        n_tied = 1 + (to_other == within).sum(axis=0)
        correct += float((is_closest / n_tied).sum())
        total += int(is_other.sum())
    return correct / total if total else float("nan")


@dataclass(frozen=True)
class DomainRecovery:
    """How often members are most similar to the name of their own domain, vs. chance."""

    members: int
    share: float
    by_chance: float
    p: float


def measure_recovery(similarity: Floats, domains: Ints, draws: int, seed: int) -> DomainRecovery | None:
    """Test whether members are most similar to the name of their own domain among all domain names.

    `similarity` has shape (members, domains); `domains` numbers each member's domain. Ties count as
    random choices. Chance permutes the members. None without members or with a single domain.
    """
    if len(domains) == 0 or similarity.shape[1] < 2:
        return None
    is_best = similarity == similarity.max(axis=1, keepdims=True)
    credit = is_best / is_best.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    permuted = rng.permuted(np.tile(domains, (draws, 1)), axis=1)
    shares = credit[np.arange(len(domains)), np.concatenate([domains[None], permuted])].mean(axis=1)
    observed, _, p = _compare_with_chance(shares)
    return DomainRecovery(len(domains), observed, float(shares[1:].mean()), p)


@dataclass(frozen=True)
class Polysemy:
    """Expert neurons, by the number of concepts and domains they respond to."""

    neurons: int
    shared: int  # experts of several concepts
    one_domain: float  # share of these whose concepts belong to one domain
    one_domain_by_chance: float
    p: float


def measure_polysemy(experts: Bools, domains: Ints, draws: int, seed: int) -> Polysemy:
    """Test whether neurons that are experts of several concepts are experts of related ones.

    `experts` has shape (concepts, neurons). Chance permutes the concepts' domains, which preserves the
    number of concepts of each neuron.
    """
    n_concepts = experts.sum(axis=0)
    shared = experts[:, n_concepts > 1].astype(np.float32)
    rng = np.random.default_rng(seed)
    permuted = rng.permuted(np.tile(domains, (draws, 1)), axis=1)
    one_domain = np.full(draws + 1, np.nan)
    sizes = shared.sum(axis=0)
    for index, labels in enumerate([domains, *permuted] if shared.size else []):
        counts = np.eye(domains.max() + 1, dtype=np.float32)[labels].T @ shared
        one_domain[index] = (counts.max(axis=0) == sizes).mean()
    observed, _, p = _compare_with_chance(one_domain)
    chance = float(one_domain[1:].mean())
    return Polysemy(int((n_concepts > 0).sum()), shared.shape[1], observed, chance, p)
