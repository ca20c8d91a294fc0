"""Steering curves: the effect of clamping neurons against the number of clamped neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.page.figures import static
from jobs.page.figures.spec import Figure, Line, LinePlot, Panel

SELECTIONS = {
    "none": "unsteered",
    "ap": "highest AP",
    "ap-later": "highest AP, layer 0 left out",
    "attribution": "highest attribution",
    "random": "random neurons",
}
"""Labels of the ways to select neurons that are shown, of those in the table."""

_SHOWN = ("none", "clamp")

_EFFECTS = {
    "change": "change in log P of the concept's word (nats)",
    "others": "change in log P of other concepts' words (nats)",
    "containing": "share of continuations with the concept's word",
}


def dose_response(rows: Sequence[dict[str, Any]]) -> LinePlot:
    """A panel per effect, a line per selection, and the unsteered model (k = 0) as the baseline.

    Rows are those of the tables `steering_doses` or, of one concept, `steering`; only clamped
    neurons are shown.
    """
    rows = [row for row in rows if row["intervention"] in _SHOWN and row["selection"] in SELECTIONS]
    steered = [row for row in rows if row["k"]] or rows
    panels = []
    for effect, axis in _EFFECTS.items():
        selections: dict[str, list[dict[str, Any]]] = {}
        for row in steered:
            if row[effect] is not None:
                selections.setdefault(row["selection"], []).append(row)
        if selections:
            lines = [_line(name, selected, effect) for name, selected in selections.items()]
            baseline = next((row[effect] for row in rows if row["k"] == 0), 0.0)
            panels.append(Panel(axis, lines, baseline, percent=effect == "containing"))
    return LinePlot(panels, "clamped neurons", log=True)


def _line(selection: str, rows: list[dict[str, Any]], effect: str) -> Line:
    values = [[row[f"{effect}{bound}"] for row in rows] for bound in ("", "_low", "_high")]
    return Line(SELECTIONS[selection], [row["k"] for row in rows], *values)


def draw_dose_response(rows: Sequence[dict[str, Any]], label: str) -> bytes:
    """A PNG of the rows of `steering_doses`, titled with their label."""
    concepts = max(row["n_concepts"] for row in rows)
    title = f"{label}: neurons clamped to their on-values, {concepts} concepts, 95% CI"
    ((_, content),) = static.draw(Figure("steering", title, "", dose_response(rows)), ["png"])
    return content
