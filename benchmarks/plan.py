"""`neuralign plan` of a zoo of models, against importing the libraries that it uses."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import record, side_by_side
from tests.many_models import environment, write_study

_MODELS, _REVISIONS, _CONCEPTS, _SENTENCES = 100, 20, 1854, 20
_LIBRARIES = (
    "duckdb, huggingface_hub, numba, obstore, pyarrow, pydantic, ray, rich, simplemma, typer, yaml"
)


def plan() -> None:
    """100 models x 20 revisions x 1,854 concepts of 20 sentences, in seconds per process."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_study(Path(folder), _MODELS, _REVISIONS, _CONCEPTS, _SENTENCES)

        def run(code: str, *arguments: str) -> None:
            subprocess.run(  # noqa: S603
                [sys.executable, "-c", code, *arguments],
                env=environment(file),
                check=True,
                stdout=subprocess.DEVNULL,
            )

        ours, theirs = side_by_side(
            lambda: run("from jobs.commands.main import main; main()", "plan", str(file)),
            lambda: run(f"import {_LIBRARIES}"),
        )
    record("plan", ours, theirs, "s", "at most 5 s on 2 cores")
