"""How well neurons and baselines agree with human similarity judgments: the first section."""

from __future__ import annotations

from alignment.statistics.correlation import MIN_PAIRS
from alignment.statistics.resampling import MIN_CONCEPTS_FOR_COVERAGE
from cluster.models.weights import is_random_init
from jobs.alignment import ALL_PAIRS, SUBSETS, TRIPLETS
from jobs.page import wording
from jobs.page.figures.spec import (
    BASELINE,
    CONTROL,
    NEURONS,
    Cell,
    DataTable,
    Figure,
    IntervalPlot,
    IntervalRow,
    RoundedCell,
    Section,
)
from jobs.page.study_data import StudyData, by_step
from jobs.pseudo_concepts import OVER_ALL_TOKENS
from jobs.representations.embeddings import HIDDEN_STATE
from jobs.results import rows as results
from jobs.results.published import CAVEAT, SOURCE, find_published
from jobs.results.rows import LabeledRow, Row, is_selected_maximum
from jobs.similarity import EXPERTS
from storage.tables import ALIGNMENT

_ROWS = "FROM alignment WHERE subset = $subset"
_DIFFERENCES = "FROM alignment_differences"
_PSEUDO_CONCEPTS = """
FROM pseudo_concepts
WHERE (model, revision, concept_set, pooling) = ($model, $revision, $concept_set, $pooling)
    AND threshold = $threshold
"""
_CEILING = "noise ceiling"


def alignment_rows(data: StudyData, subset: str = ALL_PAIRS) -> dict[tuple[str, str], list[LabeledRow]]:
    """Labeled rows by (human set, agreement measure), as `neuralign compare` prints them."""
    if not data.views:
        return {}
    view = data.view
    rows = [row for row in data.query(_ROWS, subset=subset) if results.uses_measure(row, view.measure)]
    groups = results.group_rows(sorted(rows, key=by_step), "human_set", "agreement")
    order = {name: rank for rank, name in enumerate(data.human_sets)}
    return {
        key: results.select_rows(groups[key], view.threshold)
        for key in sorted(groups, key=lambda key: (order.get(key[0], len(order)), key))
    }


def row_of_view(rows: list[LabeledRow], data: StudyData) -> Row | None:
    """The row of the view shown in detail."""
    key = {**data.view.parameters, "representation": EXPERTS, "layer": None, "site": None}
    return next((row for _, row in rows if key.items() <= row.items()), None)


def section(data: StudyData) -> Section:
    """Alignment with every human set."""
    missing = []
    if unaligned := _unaligned_human_sets(data):
        missing.append(
            f"No alignment with {', '.join(unaligned)}: fewer than {MIN_PAIRS} rated pairs of concepts "
            "that every model and baseline has, or all scores are equal. Add concepts or another human "
            "data set."
        )
    missing += [
        f"{label}: failed, no results. `neuralign status STORE` shows why; rerun the sweep to retry."
        for label in data.failed_models
    ]
    by_human_set = alignment_rows(data)
    all_rows = [row for rows in by_human_set.values() for _, row in rows]
    if not by_human_set:
        missing.append(
            "No alignment with human judgments in this store: add human data (`human:` in the sweep "
            "file) and run the sweep to completion."
        )
    elif not any(row["representation"] == "word vectors" for row in all_rows):
        missing.append("No word vectors for comparison: add `baselines: [glove]` to the sweep file.")
    figures = [_figure(key, rows, data) for key, rows in by_human_set.items() if rows]
    lead = []
    if figures:
        ((human_set, _), rows) = next(iter(by_human_set.items()))
        lead = _sentences(human_set, rows, data)
        if any(row["n_concepts"] < MIN_CONCEPTS_FOR_COVERAGE for row in all_rows):
            lead.append(
                f"With fewer than {MIN_CONCEPTS_FOR_COVERAGE} concepts, here and below, the actual "
                f"coverage of a 95% CI is {results.SMALL_SAMPLE_COVERAGE}% (in simulations)."
            )
    title = "Do expert neurons group concepts the way people do?"
    tables = [table for table in (_published_table(data), _subset_table(data)) if table.rows]
    return Section("alignment", title, lead, figures, tables, missing=missing)


def _published_table(data: StudyData) -> DataTable:
    """Published values of the study's models, beside those of the study."""
    rows: list[list[Cell]] = [
        [human_set, value.label, RoundedCell(value.published), value.here]
        for human_set, group in results.group_rows(
            data.query(_ROWS, subset=ALL_PAIRS), "human_set"
        ).items()
        for value in find_published(group)
    ]
    columns = ["human data", SOURCE, "published rho", "here [95% CI]"]
    return DataTable(columns, rows, CAVEAT)


def _subset_table(data: StudyData) -> DataTable:
    """Agreement of whole models on subsets of the pairs."""
    rows: list[list[Cell]] = [
        [human_set, subset, row["n_pairs"], label, results.STATISTIC_NAMES[agreement], interval]
        for subset in SUBSETS
        for (human_set, agreement), labeled in alignment_rows(data, subset).items()
        for label, row in labeled
        for interval in [results.format_estimate(row["rho"], row["ci_low"], row["ci_high"])]
    ]
    columns = ["human data", "subset", "pairs", "representation", "statistic", "value [95% CI]"]
    return DataTable(columns, rows, "Agreement on some of the pairs")


def _unaligned_human_sets(data: StudyData) -> list[str]:
    """Human sets in the sweep file without alignment."""
    names = [name for stage in data.stages("alignment") for name in stage.params.get("human", {})]
    aligned = {row["human_set"] for row in data.query("SELECT DISTINCT human_set FROM alignment")}
    return [name for name in names if name not in aligned]


def _sentences(human_set: str, rows: list[LabeledRow], data: StudyData) -> list[str]:
    """The main result in plain words."""
    row = row_of_view(rows, data)
    if row is None:
        return []
    subject = f"Similarity by shared experts in {data.view.label}"
    sentences = [wording.agreement_sentence(subject, row, f"human judgments ({human_set})")]
    key = {field.name: row[field.name] for field in ALIGNMENT.key}
    differences = [each for each in data.query(_DIFFERENCES) if key.items() <= each.items()]
    if difference := wording.difference_sentence(differences):
        sentences.append(difference)
    for label, other in rows:
        is_same_pooling = (other["representation"], other["pooling"]) == (EXPERTS, row["pooling"])
        is_random = is_random_init(other["revision"]) and not is_random_init(row["revision"])
        if is_random and is_same_pooling:
            sentences.append(wording.agreement_sentence(f"Control ({label})", other, "human judgments"))
        if is_selected_maximum(label, other) and other["representation"] == HIDDEN_STATE:
            rho = wording.format_interval(other["rho"], other["ci_low"], other["ci_high"])
            sentences.append(f"The {label}, selected on the same pairs (optimistic), reaches {rho}.")
    if data.view.pooling in OVER_ALL_TOKENS and (counts := data.query(_PSEUDO_CONCEPTS)):
        pairs = [(each["concept_n_experts"], each["n_experts"]) for each in counts]
        sentences.append(wording.pseudo_concept_sentence(pairs))
    if row["ceiling"] is not None:
        sentences.append(f"Human {_CEILING}: {row['ceiling']:.2f} ({row['ceiling_source']}).")
    statistic = results.STATISTIC_NAMES[row["agreement"]]
    return [*sentences, f"Values are {statistic}, with 95% CIs in brackets."]


def _figure(key: tuple[str, str], rows: list[LabeledRow], data: StudyData) -> Figure:
    human_set, agreement = key
    first = rows[0][1]
    row = row_of_view(rows, data)
    humans = f"human judgments ({human_set})"
    if row is None:
        finding = f"Agreement with {humans}"
    else:
        finding = wording.agreement_sentence(data.view.label, row, humans).rstrip(".")
    statistic = results.STATISTIC_NAMES[agreement]
    items = TRIPLETS if agreement == TRIPLETS else "pairs"
    note = (
        f"{statistic.capitalize()} with {humans}; every row uses the same {first['n_pairs']:,} {items} "
        f"of {wording.pluralize(first['n_concepts'], 'concept')}. Experts: {data.view.criterion}. "
        f"Bars: 95% CI ({results.INTERVAL_METHODS[first['ci_by']]}). Hollow: best of several, selected "
        "on the same pairs (optimistic)."
    )
    representations = {row["representation"] for _, row in rows}
    if any(name.startswith(f"{EXPERTS}, half") for name in representations):
        note += " Half: experts from half of the sentences."
    if HIDDEN_STATE in representations:
        note += (
            " States: hidden states after a layer, mean over tokens, last token, or last token of the "
            "word (concept)."
        )
    if any(results.TREATMENTS.get(row["measure"]) for _, row in rows):
        note += " *: less the mean over concepts; **: standardized over concepts."
    references = []
    if first["ceiling"] is not None:
        references = [(_CEILING, first["ceiling"])]
        note += f" Dashed line: {_CEILING}, {first['ceiling']:.2f} ({first['ceiling_source']})."
    intervals = interval_rows(rows, "rho", "ci_low", "ci_high")
    axis = f"{statistic}, {first['n_pairs']:,} {items}"
    body = IntervalPlot(intervals, axis, wording.chance_level(first), references)
    return Figure(f"alignment-{human_set}-{agreement}", finding, note, body)


def interval_rows(rows: list[LabeledRow], value: str, low: str, high: str) -> list[IntervalRow]:
    """Plot rows from the named columns."""
    return [
        IntervalRow(label, row[value], row[low], row[high], _kind(row), is_selected_maximum(label, row))
        for label, row in rows
    ]


def _kind(row: Row) -> str:
    if not row["representation"].startswith(EXPERTS):
        return BASELINE
    is_control = row["representation"] != EXPERTS or is_random_init(row["revision"])
    return CONTROL if is_control else NEURONS
