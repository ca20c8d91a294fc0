"""The picture of what steering did: change of log P and share of texts against the neurons forced."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PANELS = {
    "change": "change of log P of the concept's word (nats)",
    "others": "change of log P of other concepts' words (nats)",
    "containing": "share of texts with the concept's word",
}
_LOOKS = {
    "ap": ("best by AP", "tab:blue", "o"),
    "attribution": ("best by attribution", "tab:orange", "s"),
    "random": ("random, same layers", "0.5", "^"),
}


def draw_doses(rows: list[dict[str, Any]], described: str) -> bytes:
    """A PNG of the rows of the table of doses, with their intervals."""
    shown = [name for name in _PANELS if any(row[name] is not None for row in rows)]
    figure = Figure(figsize=(4.2 * len(shown), 3.8), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for name, axes in zip(shown, panels, strict=True):
        _draw(axes, rows, name)
    panels[0].legend(fontsize=8, frameon=False)
    concepts = max(row["n_concepts"] for row in rows)
    figure.suptitle(
        f"Forcing neurons to their on value, {concepts} concepts, 95% intervals\n{described}",
        fontsize=11,
        parse_math=False,
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _draw(axes: Axes, rows: list[dict[str, Any]], name: str) -> None:
    for selection, (label, colour, marker) in _LOOKS.items():
        points = [row for row in rows if row["selection"] == selection and row[name] is not None]
        doses = [row["k"] for row in points]
        middle = [row[name] for row in points]
        axes.plot(doses, middle, color=colour, marker=marker, markersize=4, label=label)
        low, high = (
            [row[name] if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for row in points]
            for end in ("low", "high")
        )
        axes.fill_between(doses, low, high, color=colour, alpha=0.15, linewidth=0)
    (base,) = (row[name] for row in rows if row["k"] == 0)
    if base is not None:
        axes.axhline(base, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("neurons forced")
    axes.set_ylabel(_PANELS[name], fontsize=8)
