"""Models, controls and baselines side by side, a row for each and human set."""

from __future__ import annotations

from typing import Any

from jobs.page.figures.spec import Cell, Interval, Rounded, Section, Table
from jobs.page.sections.alignment import aligned
from jobs.page.study import Source

_MEDIANS = """
WITH counted AS (
    SELECT model, revision, pooling, concept, count(*) AS n FROM experts
    WHERE ap > $threshold AND concept_set = $concept_set GROUP BY ALL
)
SELECT model, revision, pooling, median(n) AS n FROM (
    SELECT m.model, m.revision, m.pooling, c.concept, coalesce(counted.n, 0) AS n
    FROM (SELECT DISTINCT model, revision, pooling FROM sites WHERE concept_set = $concept_set) AS m
    CROSS JOIN (SELECT concept FROM concepts WHERE concept_set = $concept_set) AS c
    LEFT JOIN counted USING (model, revision, pooling, concept)
) GROUP BY ALL
"""

_COLUMNS = (
    "representation",
    "human data",
    "agreement",
    "95% interval",
    "p",
    "above the reference",
    "95% interval ",
    "pairs",
    "experts (median)",
    "halves agree",
    "domains apart",
)


def section(source: Source) -> Section:
    """The table, from the rows that the headline shows."""
    anchor, title = "models", "Models side by side"
    by_set = aligned(source)
    if not by_set:
        return Section(anchor, title, missing=["No alignment to compare: see above."])
    view = source.view
    medians: dict[tuple[Any, ...], float] = {}
    if view.threshold is not None:
        rows = source.ask(_MEDIANS, threshold=view.threshold, concept_set=view.concept_set)
        medians = {(row["model"], row["revision"], row["pooling"]): row["n"] for row in rows}
    halves = {
        (row["model"], row["revision"], row["pooling"]): row["rho"]
        for row in source.ask("FROM reliability")
        if (row["measure"], row["threshold"], row["concept_set"])
        == (view.measure, view.threshold, view.concept_set)
    }
    place = (
        "representation",
        "model",
        "revision",
        "pooling",
        "layer",
        "site",
        "measure",
        "threshold",
        "top",
    )
    apart = {
        tuple(row[name] for name in place): row["auc"] for row in source.ask("FROM hierarchy_summary")
    }
    shown: list[list[Cell]] = []
    for (human_set, _), labelled in by_set.items():
        for label, row in labelled:
            key = (row["model"], row["revision"], row["pooling"])
            whole = row["representation"] == "experts" and row["layer"] is None and row["site"] is None
            shown.append(
                [
                    _told(label, row),
                    human_set,
                    _rounded(row["rho"]),
                    _interval(row["ci_low"], row["ci_high"]),
                    row["p"],
                    _rounded(row["difference"]),
                    _interval(row["difference_low"], row["difference_high"]),
                    row["n_pairs"],
                    medians.get(key) if whole else None,
                    _rounded(halves.get(key)) if whole else None,
                    _rounded(apart.get(tuple(row[name] for name in place))),
                ]
            )
    lead = [
        "Agreement and its 95% interval; p by permuting the concepts; how much it is above the "
        "reference "
        "(word vectors) on the same pairs; how many experts a concept has; Spearman's rho between the "
        "similarities of two halves of the sentences; chance that two of one domain are more alike. A "
        "click on a column's name sorts."
    ]
    missing = []
    if not halves:
        missing.append("No split halves: `controls: [split-half]` in the sweep file.")
    return Section(anchor, title, lead, tables=[Table(_COLUMNS, shown)], missing=missing)


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None or high is None else Interval(low, high)


def _rounded(value: float | None) -> Rounded | None:
    return None if value is None else Rounded(value)


def _told(label: str, row: dict[str, Any]) -> str:
    """A label that names the model."""
    if ": " in label or row["revision"] is None:
        return label
    return f"{row['model']}@{row['revision']}: {label}"
