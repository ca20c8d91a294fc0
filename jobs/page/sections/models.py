"""Models, controls and baselines in one table: a row per representation and human set."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from jobs.page.figures.spec import Cell, DataTable, IntervalCell, RoundedCell, Section
from jobs.page.sections.alignment import alignment_rows
from jobs.page.study_data import StudyData, model_key
from jobs.results.rows import Row
from jobs.similarity import EXPERTS, REPRESENTATION_KEY

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
    "95% CI",
    "p",
    "vs. reference",
    "95% CI of the difference",
    "pairs",
    "experts (median)",
    "split-half rho",
    "domain AUC",
)
_representation_key = itemgetter(*REPRESENTATION_KEY)


def section(data: StudyData) -> Section:
    """The table, with the rows of the alignment section."""
    anchor, title = "models", "Model comparison"
    by_human_set = alignment_rows(data)
    if not by_human_set:
        return Section(anchor, title, missing=["No alignment to compare: see above."])
    view = data.view
    medians: dict[tuple[Any, ...], float] = {}
    if view.threshold is not None:
        medians = {model_key(row): row["n"] for row in data.query(_MEDIANS)}
    reliability = {
        model_key(row): row["rho"]
        for row in data.query("FROM reliability")
        if (row["measure"], row["threshold"], row["concept_set"])
        == (view.measure, view.threshold, view.concept_set)
    }
    aucs = {_representation_key(row): row["auc"] for row in data.query("FROM hierarchy_summary")}
    cells: list[list[Cell]] = []
    for (human_set, _), labeled in by_human_set.items():
        for label, row in labeled:
            model = model_key(row)
            key = (row["representation"], row["layer"], row["site"], row["measure"], row["threshold"])
            is_model = key == (EXPERTS, None, None, view.measure, view.threshold)
            cells.append(
                [
                    _model_label(label, row),
                    human_set,
                    _rounded(row["rho"]),
                    _interval(row["ci_low"], row["ci_high"]),
                    row["p"],
                    _rounded(row["difference"]),
                    _interval(row["difference_low"], row["difference_high"]),
                    row["n_pairs"],
                    medians.get(model) if is_model else None,
                    _rounded(reliability.get(model)) if is_model else None,
                    _rounded(aucs.get(_representation_key(row))),
                ]
            )
    lead = [
        "Agreement with human judgments and its 95% CI; p from permuting the concepts; difference to "
        "the reference (word vectors) on the same pairs; median number of experts per concept; "
        "split-half reliability (Spearman's rho of the similarities from two halves of the sentences); "
        "AUC (within- vs. between-domain pairs). Click a column header to sort."
    ]
    missing = []
    if not reliability:
        missing.append("No split-half reliability: add `controls: [split-half]` to the sweep file.")
    return Section(anchor, title, lead, tables=[DataTable(_COLUMNS, cells)], missing=missing)


def _interval(low: float | None, high: float | None) -> IntervalCell | None:
    return None if low is None or high is None else IntervalCell(low, high)


def _rounded(value: float | None) -> RoundedCell | None:
    return None if value is None else RoundedCell(value)


def _model_label(label: str, row: Row) -> str:
    """The label, prefixed with the model unless it already names it."""
    if ": " in label or row["revision"] is None:
        return label
    return f"{row['model']}@{row['revision']}: {label}"
