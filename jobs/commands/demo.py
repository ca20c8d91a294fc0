"""The command `neuralign demo`."""

from __future__ import annotations

from pathlib import Path

from storage.errors import UserError


def demo() -> None:
    """Run the demo sweep, examples/demo.yaml, into results/demo."""
    from jobs.actions.run import run_sweep_file

    file = Path(__file__).parents[2] / "examples" / "demo.yaml"
    if not file.is_file():
        raise UserError(f"{file}: no such file; the demo runs from a clone of the repository")
    run_sweep_file(file)
