"""The similarity matrices of the model and of human raters."""

from __future__ import annotations

import numpy as np

from alignment.arrays import Floats
from alignment.statistics.hierarchy import layout_tree
from jobs.page.figures.spec import NO_DOMAIN, Figure, Section
from jobs.page.pairs import MAX_NAMES, ConceptPairs
from jobs.page.study_data import StudyData, explain_missing_similarities
from jobs.page.wording import pluralize


def section(data: StudyData, pairs: ConceptPairs | None) -> Section:
    """Both matrices in the same order: by domain if there are domains, else by tree leaf."""
    anchor, title = "similarity", "Which concepts are similar?"
    if pairs is None:
        return Section(anchor, title, missing=[explain_missing_similarities(data)])
    order = _order(pairs)
    order_name = "by domain" if _has_domains(pairs) else "by the tree below"
    if len(pairs.names) > MAX_NAMES:
        order_name += "; cells are means over groups, as there are too many concepts to show each one"
    label = f"{data.view.measure_name} similarity"
    figures = [
        Figure(
            "similarity-model",
            _most_similar("in the model", pairs.names, pairs.model),
            f"{label[0].upper()}{label[1:]} of the expert sets of all pairs of {len(pairs.names):,} "
            f"concepts ({data.view.settings}), ordered {order_name}. Square-root scale.",
            pairs.heatmap(pairs.model, order, label, sqrt_scale=True),
        )
    ]
    missing = []
    if data.human_set is None:
        missing.append("No human ratings of these concepts: add `human:` to the sweep file.")
    else:
        rated = int(np.isfinite(pairs.human[np.triu_indices(len(pairs.names), 1)]).sum())
        figures.append(
            Figure(
                "similarity-people",
                _most_similar("to human raters", pairs.names, pairs.human),
                f"Mean human scores ({data.human_set}), on their own scale, in the same order: "
                f"{rated:,} rated pairs. Blank: not rated.",
                pairs.heatmap(pairs.human, order, f"human score ({data.human_set})"),
            )
        )
    return Section(anchor, title, [], figures, missing=missing)


def _order(pairs: ConceptPairs) -> list[int]:
    """Concept indices by domain, the concept that names the domain first; without domains, by leaf."""
    leaves = layout_tree(pairs.merges, len(pairs.names)).leaves
    if not _has_domains(pairs):
        return leaves
    domains = [group for group in dict.fromkeys(pairs.groups) if group != NO_DOMAIN]
    rank = {group: number for number, group in enumerate([*domains, NO_DOMAIN])}
    return sorted(
        leaves, key=lambda leaf: (rank[pairs.groups[leaf]], pairs.names[leaf] != pairs.groups[leaf])
    )


def _has_domains(pairs: ConceptPairs) -> bool:
    return len(set(pairs.groups)) > 1


def _most_similar(to_whom: str, names: list[str], values: Floats) -> str:
    """The pair with the highest value, as a finding."""
    upper = np.triu(np.ones(values.shape, np.bool_), 1) & np.isfinite(values)
    if not upper.any() or np.ptp(values[upper]) == 0:
        return f"All pairs are equally similar {to_whom}"
    highest = values[upper].max()
    matches = np.argwhere(upper & (values == highest))
    first, second = (names[index] for index in matches[0])
    ties = f", tied with {pluralize(len(matches) - 1, 'other pair')}" if len(matches) > 1 else ""
    return f"Most similar {to_whom}: {first} and {second} ({highest:.3g}{ties})"
