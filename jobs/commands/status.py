"""The command `neuralign status`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import StorePath


def status(
    store: StorePath,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds.")] = False,
) -> None:
    """Show which stages are done, running, stopped or failed."""
    from jobs.actions.status import print_status

    print_status(store, watch)
