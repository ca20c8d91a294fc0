"""Steering curves: the effects of clamping and other interventions against the number of neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.page.figures import static
from jobs.page.figures.spec import Figure, Line, LinePlot, Panel
from jobs.results.rows import group_rows

SELECTIONS = {
    "none": "unsteered",
    "ap": "highest AP",
    "ap-later": "highest AP, layer 0 left out",
    "attribution": "highest attribution",
    "random": "random neurons",
}
"""Labels of the ways to select neurons that are shown, of those in the table."""

_EFFECTS = {
    "change": "change in log P of the concept's word (nats)",
    "others": "change in log P of other concepts' words (nats)",
    "containing": "share of continuations with the concept's word",
}

_CLAMPED = ("none", "clamp")

_INTERVENTIONS = {
    ("clamp", "ap"): "clamped",
    ("dampen", "ap"): "dampened",
    ("ablate", "ap"): "ablated",
    ("clamp", "random"): "control of clamped",
    ("dampen", "random"): "control of dampened",
    ("ablate", "random"): "control of ablated",
}
"""Labels of interventions on the neurons of highest AP and on their controls."""

_SENTENCE_EFFECTS = {
    "in_sentences": "change in log P of the word in its sentences (nats)",
    "log_perplexity": "change in log perplexity of other sentences (nats per token)",
}


def dose_response(rows: Sequence[dict[str, Any]]) -> LinePlot:
    """A panel per effect after the prompts, a line per selection, and the unsteered model (k = 0) as the
    baseline.

    Rows are those of the tables `steering_doses` or, of one concept, `steering`; only clamped
    neurons are shown.
    """
    lines = {
        SELECTIONS[name]: selected
        for name, selected in group_rows(rows, "selection").items()
        if name in SELECTIONS
    }
    shown = {
        label: [row for row in selected if row["intervention"] in _CLAMPED]
        for label, selected in lines.items()
    }
    return LinePlot(_panels(shown, _EFFECTS), "clamped neurons", log=True)


def sentence_effects(rows: Sequence[dict[str, Any]]) -> LinePlot:
    """A panel per effect in sentences, a line per intervention on the neurons of highest AP and per
    control. Rows are those of `dose_response`."""
    groups = group_rows(rows, "intervention", "selection")
    shown = {label: groups[key] for key, label in _INTERVENTIONS.items() if key in groups}
    return LinePlot(_panels(shown, _SENTENCE_EFFECTS), "neurons", log=True)


def _panels(rows_by_label: dict[str, list[dict[str, Any]]], effects: dict[str, str]) -> list[Panel]:
    """A panel of each effect that was measured; the rows with k = 0 are the baseline, unless there are
    no others."""
    rows = [row for selected in rows_by_label.values() for row in selected]
    is_steered = any(row["k"] for row in rows)
    panels = []
    for effect, axis in effects.items():
        lines = []
        for label, selected in rows_by_label.items():
            known = [row for row in selected if row[effect] is not None and (row["k"] or not is_steered)]
            if known:
                values = ([row[f"{effect}{end}"] for row in known] for end in ("", "_low", "_high"))
                lines.append(Line(label, [row["k"] for row in known], *values))
        if lines:
            baseline = next((row[effect] for row in rows if row["k"] == 0), 0.0)
            panels.append(Panel(axis, lines, baseline, percent=effect == "containing"))
    return panels


def draw_dose_response(rows: Sequence[dict[str, Any]], label: str) -> bytes:
    """A PNG of the rows of `steering_doses`, titled with their label."""
    concepts = max(row["n_concepts"] for row in rows)
    title = f"{label}: neurons clamped to their on-values, {concepts} concepts, 95% CI"
    ((_, content),) = static.draw(Figure("steering", title, "", dose_response(rows)), ["png"])
    return content
