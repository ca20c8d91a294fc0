"""The command `neuralign submit`."""

from __future__ import annotations

from jobs.commands.options import Follow, ServerAddress, SweepFile


def submit(file: SweepFile, address: ServerAddress = None, follow: Follow = False) -> int:
    """Submit a sweep as a Ray job (idempotent)."""
    from jobs.actions.submit import submit_file

    return submit_file(file, address, follow)
