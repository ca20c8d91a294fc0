"""The command `neuralign human`."""

from __future__ import annotations


def human() -> None:
    """List the human data sets that are built in or read by format, with citation and license."""
    from jobs.actions.human import print_human_sets

    print_human_sets()
