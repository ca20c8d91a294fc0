"""The concept tree, the concept graph, and whether domains hold together."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np

from alignment.statistics.correlation import benjamini_hochberg
from alignment.statistics.hierarchy import Drawing, coherence, draw_tree, link
from jobs.page.figures.spec import (
    NO_DOMAIN,
    Estimate,
    Estimates,
    Figure,
    Floats,
    Graph,
    Palette,
    Section,
    Tree,
)
from jobs.page.pairs import MOST_NAMES, Pairs
from jobs.page.sections.alignment import kind_of
from jobs.page.study import Source, by_step, no_similarities
from jobs.page.wording import against, interval
from jobs.results.summary import headline, is_chosen, is_shown

_MOST_LEAVES = 120
_EDGES_PER_CONCEPT, _MOST_EDGES = 3, 300
_MOST_SPREAD = 150
_DRAWS = 2000
_SEED = 0


def grow(pairs: Pairs) -> Any:
    """The merges of the view's tree."""
    return link(pairs.model[np.triu_indices(len(pairs.names), 1)])


def leaf_order(merges: Any) -> list[int]:
    """The concepts in the order of the tree's leaves."""
    return draw_tree(merges, len(merges) + 1).leaves


def section(source: Source, pairs: Pairs | None, merges: Any) -> Section:
    """Tree and graph of one view; the domains in all representations."""
    anchor, title = "hierarchy", "Do the concepts fall into domains?"
    if pairs is None:
        return Section(anchor, title, missing=[no_similarities(source)])
    drawn = draw_tree(merges, len(pairs.names) if len(pairs.names) <= MOST_NAMES else _MOST_LEAVES)
    figures = [_tree(source, pairs, drawn)]
    missing = []
    graph = _graph(source, pairs)
    if graph is None:
        missing.append("No graph: no two concepts share an expert.")
    else:
        figures.append(graph)
    apart = _separation(source)
    together = _coherence(source, pairs)
    figures += [each for each in (apart, together) if each]
    if apart is None:
        missing.append(
            "No measure of the domains: two domains with two concepts or more are needed (column "
            "`domain` of the concepts), and a finished sweep."
        )
    return Section(anchor, title, [], figures, missing=missing)


def _tree(source: Source, pairs: Pairs, drawn: Drawing) -> Figure:
    view = source.view
    names = [pairs.names[first] + (f" +{size - 1}" if size > 1 else "") for first, size in drawn.below]
    groups = [pairs.groups[first] for first, _ in drawn.below]
    first, last = drawn.brackets[0], drawn.brackets[-1]
    highest, lowest = (1 - each[1][0] for each in (first, last))
    if len(names) == len(pairs.names):
        joined = " and ".join(names[round(first[corner][1])] for corner in (0, 3))
        finding = f"{joined} are joined first, at a similarity of {highest:.3g}"
        some = ""
    else:
        finding = (
            f"The last {len(names):,} branches of the tree are joined at similarities of "
            f"{highest:.3g} to {lowest:.3g}"
        )
        some = " A name with +n stands for n more concepts below it."
    note = (
        f"Average linkage on 1 - {view.measured} similarity of experts ({view.label}; "
        f"{view.cut}).{some} "
        "Concepts that are equally alike are joined in the order of the set. The axis starts near "
        "the first joint."
    )
    return Figure(
        "tree",
        finding,
        note,
        _drawn_tree(names, groups, pairs, drawn, f"1 - {view.measured} similarity"),
    )


def _drawn_tree(names: list[str], groups: list[str], pairs: Pairs, drawn: Drawing, axis: str) -> Tree:
    """The tree from a little before its first joint on: most are far from 0."""
    first, last = (drawn.brackets[place][1][0] for place in (0, -1))
    start = max(0.0, first - 0.15 * ((last - first) or 1.0))
    joints = [[(max(at, start), place) for at, place in each] for each in drawn.brackets]
    return Tree(names, groups, Palette(pairs.groups), joints, axis, start)


def _graph(source: Source, pairs: Pairs) -> Figure | None:
    view = source.view
    n = len(pairs.names)
    first, second = np.triu_indices(n, 1)
    values = pairs.model[first, second]
    most = min(_EDGES_PER_CONCEPT * n, _MOST_EDGES)
    kept = np.argsort(-values, kind="stable")[:most]
    kept = kept[values[kept] > 0]
    if not len(kept):
        return None
    edges = [(int(first[each]), int(second[each]), float(values[each])) for each in kept]
    places = sorted({end for edge in edges for end in edge[:2]})
    number = {place: index for index, place in enumerate(places)}
    inner = [(number[a], number[b], value) for a, b, value in edges]
    groups = [pairs.groups[place] for place in places]
    finding = f"The {len(edges)} strongest links join {len(places)} of {n:,} concepts"
    if len(set(pairs.groups)) > 1:
        same = np.mean([groups[a] == groups[b] != NO_DOMAIN for a, b, _ in inner])
        known = np.array(pairs.groups)
        chance = np.mean((known[first] == known[second]) & (known[first] != NO_DOMAIN))
        finding = (
            f"{same:.0%} of the {len(edges)} strongest links are within a domain ({chance:.0%} of all "
            "pairs are)"
        )
    note = (
        f"Links: the highest {view.measured} similarities of experts, at least {edges[-1][2]:.3g} "
        f"({view.label}; {view.cut}); a wider line is a higher one. Where a concept lies means "
        "nothing beyond its links."
    )
    body = Graph(
        [pairs.names[place] for place in places],
        groups,
        Palette(pairs.groups),
        _laid(len(places), inner),
        inner,
        f"{view.measured} similarity",
    )
    return Figure("graph", finding, note, body)


def _laid(n: int, edges: list[tuple[int, int, float]]) -> Floats:
    """Where the nodes lie: as far from each other as there are links between them (Kamada and Kawai
    1989) or, of many, by springs (Fruchterman and Reingold 1991), which is faster."""
    network = nx.Graph((first, second) for first, second, _ in edges)
    if n <= _MOST_SPREAD:
        steps = dict(nx.all_pairs_shortest_path_length(network))
        apart = max(2, max(most for each in steps.values() for most in each.values()) / 2)
        far = {a: {b: steps[a].get(b, apart) for b in network} for a in network}
        laid = nx.kamada_kawai_layout(network, dist=far)
    else:
        laid = nx.spring_layout(network, k=2 / np.sqrt(n), iterations=100, seed=_SEED)
    return np.array([laid[node] for node in range(n)], np.float64)


def _separation(source: Source) -> Figure | None:
    view = source.view
    found = sorted(source.ask("FROM hierarchy_summary"), key=by_step)
    rows = [row for row in found if is_shown(row, view.measure)]
    shown = headline([row for row in rows if row["auc"] is not None], view.threshold, "auc")
    if not shown:
        return None
    row = next(
        (
            row
            for _, row in shown
            if (row["model"], row["revision"], row["pooling"])
            == (view.model, view.revision, view.pooling)
        ),
        shown[0][1],
    )
    how = against(
        row["auc_low"],
        row["auc_high"],
        0.5,
        "are more alike than two of different ones",
        "are less alike than two of different ones",
        "are not distinguishable from two of different ones",
    )
    finding = (
        f"Two concepts of one domain {how} ({interval(row['auc'], row['auc_low'], row['auc_high'])})"
    )
    note = (
        f"Chance that two of one domain are more alike than two of different ones: "
        f"{row['n_concepts']:,} "
        f"concepts of {row['n_domains']} domains. 0.5 says nothing. Bars: 95% intervals. Hollow: the "
        "best of several, chosen on these very domains, so it is flattered."
    )
    estimates = [
        Estimate(
            label,
            each["auc"],
            each["auc_low"],
            each["auc_high"],
            kind_of(each),
            is_chosen(label, each),
        )
        for label, each in shown
    ]
    return Figure("domains", finding, note, Estimates(estimates, "chance to be more alike", 0.5))


def _coherence(source: Source, pairs: Pairs) -> Figure | None:
    """Each domain against resampled ones."""
    view = source.view
    names = [name for name in dict.fromkeys(pairs.groups) if name != NO_DOMAIN]
    if len(names) < 2:
        return None
    numbers = np.array([names.index(group) if group in names else -1 for group in pairs.groups])
    each = coherence(pairs.model, numbers, _DRAWS, _SEED)
    found = [(name, one) for name, one in zip(names, each, strict=True) if one is not None]
    if not found:
        return None
    q = benjamini_hochberg(np.array([one.p for _, one in found]))
    above = int((q < 0.05).sum())
    finding = (
        f"Concepts of {above} of {len(found)} domains are more alike than as many drawn from all "
        "(q < 0.05)"
    )
    note = (
        f"Mean {view.measured} similarity of two concepts of a domain ({view.label}; {view.cut}); in "
        f"brackets: how many it has. Grey: where 95% of {_DRAWS:,} groups of as many concepts, drawn "
        "from all, lie. q: p corrected over the domains (Benjamini and Hochberg 1995)."
    )
    ordered = sorted(found, key=lambda one: -one[1].within)
    rows = [
        Estimate(f"{name} ({one.members})", one.within, chance=(one.low, one.high))
        for name, one in ordered
    ]
    return Figure("coherence", finding, note, Estimates(rows, f"mean {view.measured} similarity", 0.0))
