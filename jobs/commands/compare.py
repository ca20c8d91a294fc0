"""The command `neuralign compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import StorePath


def compare(
    store: StorePath,
    human: Annotated[str, typer.Option("--human", metavar="NAME", help="Human data set.")],
    agreement: Annotated[
        str | None,
        typer.Option(help="spearman, kendall, pearson, cka or whitened (default: the sweep's first)."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="AP above which a neuron is an expert.")] = 0.5,
    against: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Show differences from this row (its label or part of it)."),
    ] = None,
) -> None:
    """Compare models and baselines on the same pairs, best first."""
    from jobs.actions.compare import print_comparison

    print_comparison(store, human, agreement, threshold, against)
