"""How forcing a concept's neurons changes what the model says, by how many are forced: of all
concepts, and of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.page.figures.spec import Figure, Line, Lines, Panel, Section
from jobs.page.study import Source
from jobs.page.wording import against, count, interval

_EFFECTS = {
    "change": "log P of its word, change in nats",
    "others": "log P of other concepts' words, change in nats",
    "containing": "share of continuations with its word",
}
_SELECTIONS = {
    "none": "nothing forced",
    "ap": "highest AP",
    "attribution": "highest attribution",
    "random": "random neurons",
}
_CONTINUATIONS = 3
_NOT_TRIED = (
    "Nothing on steering: no stage of this sweep has tried it. `steering:` in the sweep file does."
)

_ROWS = """
FROM {table}
WHERE (model, revision, pooling) = ($model, $revision, $pooling) AND k > 0
ORDER BY selection, k
"""

_SAMPLES = """
SELECT concept, selection, k, prompt, continuations[:$count] AS continuations
FROM steering_prompts
WHERE (model, revision, pooling) = ($model, $revision, $pooling)
    AND ($concept IS NULL OR concept = $concept) AND len(continuations) > 0
QUALIFY row_number() OVER (PARTITION BY concept, selection ORDER BY k DESC, prompt) = 1
ORDER BY concept, selection
"""

Row = dict[str, Any]


def section(source: Source) -> Section:
    """Dose and response over all concepts."""
    anchor, title = "steering", "What does forcing experts do?"
    rows = _rows(source, "steering_doses")
    if not rows:
        return Section(anchor, title, missing=[_NOT_TRIED])
    by_ap = [row for row in rows if row["selection"] == "ap"]
    best = max(by_ap or rows, key=lambda row: row["change"])
    how = against(
        best["change_low"], best["change_high"], 0, "raises", "lowers", "does not distinguishably change"
    )
    told = interval(best["change"], best["change_low"], best["change_high"], "+")
    which = f"{count(best['k'], 'neuron')} ({_SELECTIONS[best['selection']]})"
    finding = f"Forcing {which} {how} the log P of a concept's word ({told} nats)"
    note = (
        f"{source.view.label}: neurons forced to their on values, by how they were chosen; random ones "
        "are the control. Means over concepts and neutral prompts; bands are 95% intervals. Those of "
        "highest attribution were chosen by other prompts than they are measured after. The number "
        "that is named was chosen for its effect."
    )
    return Section(anchor, title, [], [Figure("steering", finding, note, _lines(rows))])


def of_concepts(source: Source, concept: str | None) -> dict[str, dict[str, Any]]:
    """Of each concept that was steered, or of one: its dose and response, and how the model goes on."""
    found: dict[str, list[Row]] = {}
    for row in _rows(source, "steering"):
        if concept is None or row["concept"] == concept:
            found.setdefault(row["concept"], []).append(row)
    told: dict[str, dict[str, Any]] = {
        name: {"rows": rows, "samples": []} for name, rows in found.items()
    }
    if source.has("steering_prompts", "continuations"):
        samples = source.ask(_SAMPLES, concept=concept, count=_CONTINUATIONS, **_parameters(source))
        for sample in samples:
            sample["selection"] = _SELECTIONS.get(sample["selection"], sample["selection"])
            if sample["concept"] in told:
                told[sample.pop("concept")]["samples"].append(sample)
    return told


def figure(name: str, rows: list[Row]) -> Figure:
    """Dose and response of one concept."""
    return Figure(f"steering {name}", f"Forcing the neurons of {name}", "", _lines(rows))


def _rows(source: Source, table: str) -> list[Row]:
    if not source.views or not source.has(table, "change"):
        return []
    return source.ask(_ROWS.format(table=table), **_parameters(source))


def _parameters(source: Source) -> Mapping[str, Any]:
    return {name: getattr(source.view, name) for name in ("model", "revision", "pooling")}


def _lines(rows: list[Row]) -> Lines:
    panels = []
    for effect, axis in _EFFECTS.items():
        selections: dict[str, list[Row]] = {}
        for row in rows:
            if row[effect] is not None:
                selections.setdefault(row["selection"], []).append(row)
        if selections:
            lines = [
                _line(_SELECTIONS.get(name, name), each, effect) for name, each in selections.items()
            ]
            panels.append(Panel(axis, lines, percent=effect == "containing"))
    return Lines(panels, "neurons forced", log=True)


def _line(selection: str, rows: list[Row], effect: str) -> Line:
    values = [[row[f"{effect}{end}"] for row in rows] for end in ("", "_low", "_high")]
    return Line(selection, [row["k"] for row in rows], *values)
