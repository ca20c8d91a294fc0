"""The concept tree, the concept graph, and how well similarity separates domains."""

from __future__ import annotations

import networkx as nx
import numpy as np

from alignment.arrays import Floats
from alignment.statistics.correlation import benjamini_hochberg
from alignment.statistics.hierarchy import TreeLayout, layout_tree, measure_coherence
from jobs.page.figures import spec
from jobs.page.figures.spec import NO_DOMAIN, Figure, IntervalRow, Palette, Section
from jobs.page.pairs import MAX_NAMES, ConceptPairs
from jobs.page.sections.alignment import interval_rows, row_of_view
from jobs.page.study_data import StudyData, by_step, explain_missing_similarities
from jobs.page.wording import format_interval, verdict
from jobs.results.rows import select_rows, uses_measure

_MAX_LEAVES = 120
_EDGES_PER_CONCEPT, _MAX_EDGES = 3, 300
_MAX_KAMADA_KAWAI_NODES = 150
_DRAWS = 2000
_SEED = 0


def section(data: StudyData, pairs: ConceptPairs | None) -> Section:
    """Tree and graph of one view; domain separation of all representations."""
    anchor, title = "hierarchy", "Do concepts cluster by domain?"
    if pairs is None:
        return Section(anchor, title, missing=[explain_missing_similarities(data)])
    n = len(pairs.names)
    layout = layout_tree(pairs.merges, n if n <= MAX_NAMES else _MAX_LEAVES)
    figures, missing = [_tree(data, pairs, layout)], []
    graph = _graph(data, pairs)
    if graph is None:
        missing.append("No graph: no two concepts share an expert.")
    auc = _domain_auc(data)
    if auc is None:
        missing.append(
            "No domain AUC: needs at least two domains with two or more concepts each (column `domain` "
            "of the concepts) and a finished sweep."
        )
    figures += [figure for figure in (graph, auc, _coherence(data, pairs)) if figure]
    return Section(anchor, title, [], figures, missing=missing)


def _tree(data: StudyData, pairs: ConceptPairs, layout: TreeLayout) -> Figure:
    view = data.view
    names = [pairs.names[leaf] + (f" +{size - 1}" if size > 1 else "") for leaf, size in layout.below]
    groups = [pairs.groups[leaf] for leaf, _ in layout.below]
    first, last = layout.brackets[0], layout.brackets[-1]
    highest, lowest = (1 - bracket[1][0] for bracket in (first, last))
    if len(names) == len(pairs.names):
        merged = " and ".join(names[round(first[corner][1])] for corner in (0, 3))
        finding = f"{merged} merge first, at a similarity of {highest:.3g}"
        counts = ""
    else:
        finding = (
            f"The top {len(names):,} branches of the tree merge at similarities of {highest:.3g} to "
            f"{lowest:.3g}"
        )
        counts = " +n: n more concepts in the branch."
    note = (
        f"Average linkage on 1 - {view.measure_name} similarity of expert sets "
        f"({view.settings}).{counts} Ties are merged in the order of the concept set. The axis starts "
        "near the first merge."
    )
    # Most trees merge far from 0, so the axis starts just before the first merge.
    x_first, x_last = first[1][0], last[1][0]
    start = max(0.0, x_first - 0.15 * ((x_last - x_first) or 1.0))
    brackets = [[(max(x, start), row) for x, row in bracket] for bracket in layout.brackets]
    axis = f"1 - {view.measure_name} similarity"
    body = spec.Dendrogram(names, groups, Palette(pairs.groups), brackets, axis, start)
    return Figure("tree", finding, note, body)


def _graph(data: StudyData, pairs: ConceptPairs) -> Figure | None:
    view = data.view
    n = len(pairs.names)
    first, second = np.triu_indices(n, 1)
    values = pairs.model[first, second]
    strongest = np.argsort(-values, kind="stable")[: min(_EDGES_PER_CONCEPT * n, _MAX_EDGES)]
    strongest = strongest[values[strongest] > 0]
    if not len(strongest):
        return None
    edges = [(int(first[pair]), int(second[pair]), float(values[pair])) for pair in strongest]
    concepts = sorted({end for edge in edges for end in edge[:2]})
    node = {concept: index for index, concept in enumerate(concepts)}
    node_edges = [(node[a], node[b], value) for a, b, value in edges]
    groups = [pairs.groups[concept] for concept in concepts]
    finding = f"The {len(edges)} strongest links connect {len(concepts)} of {n:,} concepts"
    if len(set(pairs.groups)) > 1:
        within = np.mean([groups[a] == groups[b] != NO_DOMAIN for a, b, _ in node_edges])
        all_groups = np.array(pairs.groups)
        chance = np.mean((all_groups[first] == all_groups[second]) & (all_groups[first] != NO_DOMAIN))
        finding = (
            f"{within:.0%} of the {len(edges)} strongest links are within a domain, compared with "
            f"{chance:.0%} of all pairs"
        )
    note = (
        f"Links: the highest {view.measure_name} similarities of expert sets, at least "
        f"{edges[-1][2]:.3g} ({view.settings}). Line width: similarity. Positions have no meaning "
        "beyond the links."
    )
    body = spec.GraphPlot(
        [pairs.names[concept] for concept in concepts],
        groups,
        Palette(pairs.groups),
        _node_positions(len(concepts), node_edges),
        node_edges,
        f"{view.measure_name} similarity",
    )
    return Figure("graph", finding, note, body)


def _node_positions(n: int, edges: list[tuple[int, int, float]]) -> Floats:
    """Layout by path length (Kamada and Kawai 1989) or, for large graphs, by springs (Fruchterman and
    Reingold 1991), which is faster."""
    network = nx.Graph((first, second) for first, second, _ in edges)
    if n <= _MAX_KAMADA_KAWAI_NODES:
        lengths = dict(nx.all_pairs_shortest_path_length(network))
        diameter = max(length for targets in lengths.values() for length in targets.values())
        unconnected = max(2, diameter / 2)
        distances = {a: {b: lengths[a].get(b, unconnected) for b in network} for a in network}
        positions = nx.kamada_kawai_layout(network, dist=distances)
    else:
        positions = nx.spring_layout(network, k=2 / np.sqrt(n), iterations=100, seed=_SEED)
    return np.array([positions[node] for node in range(n)], np.float64)


def _domain_auc(data: StudyData) -> Figure | None:
    view = data.view
    summary = sorted(data.query("FROM hierarchy_summary"), key=by_step)
    rows = [row for row in summary if uses_measure(row, view.measure) and row["auc"] is not None]
    labeled = select_rows(rows, view.threshold, "auc")
    if not labeled:
        return None
    row = row_of_view(labeled, data) or labeled[0][1]
    comparison = verdict(
        row["auc_low"],
        row["auc_high"],
        0.5,
        "more similar than",
        "less similar than",
        "not distinguishable in similarity from",
    )
    auc = format_interval(row["auc"], row["auc_low"], row["auc_high"])
    finding = f"Within-domain pairs are {comparison} between-domain pairs (AUC {auc})"
    note = (
        "Domain AUC: probability that a within-domain pair is more similar than a between-domain pair "
        f"(chance: 0.5); {row['n_concepts']:,} concepts of {row['n_domains']} domains. Bars: 95% CI. "
        "Hollow: best of several, selected on the same domains (optimistic)."
    )
    intervals = interval_rows(labeled, "auc", "auc_low", "auc_high")
    body = spec.IntervalPlot(intervals, "domain AUC", 0.5)
    return Figure("domains", finding, note, body)


def _coherence(data: StudyData, pairs: ConceptPairs) -> Figure | None:
    """Mean within-domain similarity against random groups of the same size."""
    view = data.view
    names = [name for name in dict.fromkeys(pairs.groups) if name != NO_DOMAIN]
    if len(names) < 2:
        return None
    domain_indices = np.array([names.index(group) if group in names else -1 for group in pairs.groups])
    measured = zip(names, measure_coherence(pairs.model, domain_indices, _DRAWS, _SEED), strict=True)
    domains = [(name, coherence) for name, coherence in measured if coherence is not None]
    if not domains:
        return None
    q = benjamini_hochberg(np.array([coherence.p for _, coherence in domains]))
    finding = (
        f"In {int((q < 0.05).sum())} of {len(domains)} domains, concepts are more similar than in "
        "random groups of the same size (q < 0.05)"
    )
    note = (
        f"Mean {view.measure_name} similarity of pairs within a domain "
        f"({view.settings}); number of concepts in parentheses. Gray: 95% range of {_DRAWS:,} random "
        "groups of the same size. q: p corrected over the domains (Benjamini and Hochberg 1995)."
    )
    rows = [
        IntervalRow(f"{name} ({result.members})", result.within, null_range=(result.low, result.high))
        for name, result in sorted(domains, key=lambda domain: -domain[1].within)
    ]
    body = spec.IntervalPlot(rows, f"mean {view.measure_name} similarity", 0.0)
    return Figure("coherence", finding, note, body)
