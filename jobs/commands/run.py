"""The command `neuralign run`."""

from __future__ import annotations

from jobs.commands.options import SweepFile


def run(file: SweepFile) -> None:
    """Run a sweep, or resume it, and print the results."""
    from jobs.actions.run import run_sweep_file

    run_sweep_file(file)
