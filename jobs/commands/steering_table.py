"""What steering did, printed: effect against the number of neurons forced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment.statistics.steering import rank_agreement
from jobs import steering
from jobs.engine.stage import Stage


def print_doses(console: Console, stage: Stage, store: Path, picture: Path) -> None:
    """Print the doses of one model, to fit 80 columns, and how far attributions tell single effects."""
    rows = steering.read_doses(stage, store)
    params = stage.params
    console.print(
        f"\nSteering {stage.label}, {params['pooling']} pooling: {rows[0]['n_concepts']} concepts, "
        f"{rows[0]['n_prompts']} prompts. Change of log P (nats) when k neurons are forced to their on "
        "value at every token; share of concepts whose own word gains; share of texts with it",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("selection")
    for name in ("k", "own word", "others' words", "gain", "in texts"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = (
            row["selection"],
            str(row["k"]),
            _interval(row, "change", "+.1f") if row["k"] else "",
            _interval(row, "others", "+.1f") if row["k"] else "",
            f"{row['positive']:.0%}" if row["k"] else "",
            _interval(row, "containing", ".0%"),
        )
        table.add_row(*map(escape, cells))
    console.print(table)
    fewer = max(row["n_concepts"] for row in rows) > min(row["n_concepts"] for row in rows)
    console.print(
        "Intervals (95%) are for other prompts and other concepts."
        + (" Some concepts have too few neurons for a large k." if fewer else ""),
        markup=False,
    )
    _print_agreement(console, steering.read_neurons(stage, store))
    console.print(f"  picture   {picture}", markup=False, soft_wrap=True)


def _print_agreement(console: Console, neurons: list[dict[str, Any]]) -> None:
    of_concept: dict[str, list[dict[str, Any]]] = {}
    for row in neurons:
        of_concept.setdefault(row["concept"], []).append(row)
    found = []
    for rows in of_concept.values():
        estimated, measured = (
            np.array([row[name] for row in rows]) for name in ("attribution", "change")
        )
        agreement = rank_agreement(estimated, measured)
        if agreement is not None:
            found.append(agreement)
    if found:
        most = max(map(len, of_concept.values()))
        console.print(
            f"Attribution against the measured change, the best {most} experts by AP forced one at a "
            f"time: Spearman's rho {np.mean(found):.2f} on average over {len(found)} concepts, "
            f"{min(found):.2f} to {max(found):.2f}",
            markup=False,
        )


def _interval(row: dict[str, Any], name: str, form: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    interval = "-" if low is None else f"[{low:{form}}, {high:{form}}]"
    return f"{value:{form}} {interval}"
