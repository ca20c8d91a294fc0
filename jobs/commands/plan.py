"""The command `neuralign plan`."""

from __future__ import annotations

from jobs.commands.options import SweepFile


def plan(file: SweepFile) -> None:
    """Show what a sweep would run, without running it."""
    from jobs.actions.plan import print_plan

    print_plan(file)
