"""The similarity matrix of the model beside that of people."""

from __future__ import annotations

import numpy as np

from jobs.page.figures.spec import NO_DOMAIN, Figure, Floats, Section
from jobs.page.pairs import MOST_NAMES, Pairs
from jobs.page.study import Source, no_similarities
from jobs.page.wording import count


def section(source: Source, pairs: Pairs | None, leaves: list[int]) -> Section:
    """Both matrices in one order: by domain where there are domains, else by the tree's leaves."""
    anchor, title = "similarity", "Which concepts are alike?"
    if pairs is None:
        return Section(anchor, title, missing=[no_similarities(source)])
    order = by_domain(pairs, leaves)
    view = source.view
    how = "by domain" if _has_domains(pairs) else "by the tree below"
    if len(pairs.names) > MOST_NAMES:
        how += "; means over groups, as there are too many concepts for a cell each"
    label = f"{view.measured} similarity"
    figures = [
        Figure(
            "similarity-model",
            _nearest("the model", pairs.names, pairs.model),
            f"{view.measured.capitalize()} similarity of the experts of each two of "
            f"{len(pairs.names):,} "
            f"concepts ({view.label}; {view.cut}), ordered {how}. The scale is by the square root.",
            pairs.matrix(pairs.model, order, label, root=True),
        )
    ]
    missing = []
    if source.human_set is None:
        missing.append("No rated pairs of these concepts to show beside it: `human:` in the sweep file.")
    else:
        rated = int(np.isfinite(pairs.people[np.triu_indices(len(pairs.names), 1)]).sum())
        figures.append(
            Figure(
                "similarity-people",
                _nearest("people", pairs.names, pairs.people),
                f"Mean scores of {source.human_set}, on its own scale, in the same order: {rated:,} "
                "rated pairs. Where nothing is drawn, nobody was asked.",
                pairs.matrix(pairs.people, order, f"score in {source.human_set}"),
            )
        )
    return Section(anchor, title, [], figures, missing=missing)


def by_domain(pairs: Pairs, leaves: list[int]) -> list[int]:
    """The concepts domain after domain, in each the one that names it first; without domains, in the
    order of the leaves."""
    if not _has_domains(pairs):
        return leaves
    groups = list(dict.fromkeys(group for group in pairs.groups if group != NO_DOMAIN))
    groups.append(NO_DOMAIN)
    rank = {place: number for number, place in enumerate(leaves)}

    def key(place: int) -> tuple[int, bool, int]:
        group = pairs.groups[place]
        return groups.index(group), pairs.names[place] != group, rank[place]

    return sorted(range(len(pairs.names)), key=key)


def _has_domains(pairs: Pairs) -> bool:
    return len(set(pairs.groups)) > 1


def _nearest(who: str, names: list[str], values: Floats) -> str:
    """The pair that is most alike, as a finding."""
    upper = np.triu(np.ones(values.shape, np.bool_), 1) & np.isfinite(values)
    if not upper.any() or np.ptp(values[upper]) == 0:
        return f"For {who} no two concepts are more alike than others"
    best = values[upper].max()
    found = np.argwhere(upper & (values == best))
    first, second = (names[place] for place in found[0])
    others = f", like {count(len(found) - 1, 'other pair')}" if len(found) > 1 else ""
    return f"Most alike for {who}: {first} and {second} ({best:.3g}{others})"
