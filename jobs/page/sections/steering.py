"""How clamping a concept's neurons changes the model's output: over all concepts, and per concept."""

from __future__ import annotations

from typing import Any

from jobs.interventions.effects import DIFFERENCE
from jobs.interventions.neurons import INTERVENTIONS
from jobs.page.figures.dose_response import SELECTIONS, dose_response, sentence_effects
from jobs.page.figures.spec import Cell, DataTable, Figure, RoundedCell, Section
from jobs.page.study_data import StudyData
from jobs.page.wording import format_interval, pluralize, verdict
from jobs.results.rows import Row, group_rows

_CONTINUATIONS = 3

_ROWS = """
FROM {table}
WHERE (model, revision, pooling) = ($model, $revision, $pooling)
ORDER BY selection, k
"""

_SAMPLES = """
SELECT concept, selection, k, prompt, continuations[:$count] AS continuations
FROM steering_prompts
WHERE (model, revision, pooling) = ($model, $revision, $pooling)
    AND ($concept IS NULL OR concept = $concept) AND len(continuations) > 0
    AND intervention IN ('none', 'clamp')
QUALIFY row_number() OVER (PARTITION BY concept, selection ORDER BY k DESC, prompt) = 1
ORDER BY concept, selection
"""


def section(data: StudyData) -> Section:
    """The dose-response curves over all concepts."""
    anchor, title = "steering", "What does clamping expert neurons do?"
    rows = _rows(data, "steering_doses")
    steered = [row for row in rows if row["intervention"] == "clamp" and row["selection"] in SELECTIONS]
    if not steered:
        missing = ["No steering results: add `steering:` to the sweep file."]
        return Section(anchor, title, missing=missing)
    by_ap = [row for row in steered if row["selection"] == "ap"]
    best = max(by_ap or steered, key=lambda row: row["change"])
    low, high = best["change_low"], best["change_high"]
    effect = verdict(low, high, 0, "raises", "lowers", "does not distinguishably change")
    change = format_interval(best["change"], low, high, "+")
    neurons = f"{pluralize(best['k'], 'neuron')} ({SELECTIONS[best['selection']]})"
    finding = f"Clamping {neurons} {effect} the log P of a concept's word ({change} nats)"
    if best["n_compared"]:
        low, high = best["change_difference_low"], best["change_difference_high"]
        than = verdict(low, high, 0, "more than", "less than", "not distinguishably more than")
        finding += f", {than} random neurons do (difference {_format_difference(best, 'change')})"
    note = (
        f"{data.view.label}: neurons clamped to their on-values, by selection; the control are random "
        "neurons that displace the layers as far as those of highest AP. Means over concepts and "
        "neutral prompts; bands: 95% CI; horizontal line: unsteered model. Attributions are computed on "
        "different prompts from those of the measured effects. The number of neurons in the title was "
        "selected for its effect (optimistic). Whether an effect is above that of the control is to be "
        "read from the differences in the table below, not from two bands."
    )
    figures = [Figure("steering", finding, note, dose_response(rows))]
    in_sentences = sentence_effects(rows)
    if in_sentences.panels:
        note = (
            f"{data.view.label}: the neurons of highest AP clamped, dampened (multiplied by AurA's "
            "factor) or ablated (set to 0), and random neurons that displace the layers as far. First: "
            "the word in its own sentences, by which these neurons were found. Second: the side effect, "
            "in other concepts' sentences without the word. Means over concepts; bands: 95% CI."
        )
        finding = "Effects of steering in the concept's sentences and in others"
        figures.append(Figure("sentence effects", finding, note, in_sentences))
    tables = [table for table in [_difference_table(rows)] if table.rows]
    return Section(anchor, title, [], figures, tables)


def _difference_table(rows: list[Row]) -> DataTable:
    """Differences of every selection and intervention from its control."""
    effects = ("change", "others", "in_sentences", "log_perplexity")
    cells: list[list[Cell]] = [
        [
            row["intervention"],
            row["selection"],
            row["k"],
            row["n_compared"],
            RoundedCell(row["displacement"]),
            *(_format_difference(row, name) for name in effects),
        ]
        for row in sorted(rows, key=lambda row: INTERVENTIONS.index(row["intervention"]))
        if row["n_compared"]
    ]
    columns = [
        *("intervention", "selection", "k", "concepts", "moved", "word after prompts", "other words"),
        *("word in its sentences", "log perplexity of others"),
    ]
    title = (
        "Effects minus those of random neurons with the same displacement (moved), paired by concept "
        "and prompt (nats, 95% CI)"
    )
    return DataTable(columns, cells, title)


def _format_difference(row: Row, effect: str) -> str:
    value, low, high = (row[f"{effect}{DIFFERENCE}{end}"] for end in ("", "_low", "_high"))
    return format_interval(value, low, high, "+")


def concept_steering(data: StudyData, concept: str | None) -> dict[str, dict[str, Any]]:
    """The curve (`rows`) and sampled continuations (`samples`) of every steered concept, or of one."""
    steering: dict[str, dict[str, Any]] = {
        name: {"rows": rows, "samples": []}
        for name, rows in group_rows(_rows(data, "steering"), "concept").items()
        if concept in (None, name)
    }
    if data.has("steering_prompts", "continuations"):
        for sample in data.query(_SAMPLES, concept=concept, count=_CONTINUATIONS):
            if sample["selection"] in SELECTIONS and sample["concept"] in steering:
                sample["selection"] = SELECTIONS[sample["selection"]]
                steering[sample.pop("concept")]["samples"].append(sample)
    return steering


def figure(name: str, rows: list[Row]) -> Figure:
    """The dose-response curves of one concept."""
    return Figure(f"steering {name}", f"Clamping the neurons of {name}", "", dose_response(rows))


def _rows(data: StudyData, table: str) -> list[Row]:
    if not data.views or not data.has(table, "change"):
        return []
    return data.query(_ROWS.format(table=table))
