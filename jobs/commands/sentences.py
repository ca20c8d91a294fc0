"""The command `neuralign sentences`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import ConceptSetName, SweepFile


def sentences(
    file: SweepFile,
    show: Annotated[str | None, typer.Option(help="Print sentences of this concept instead.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the set: .csv, .jsonl, .parquet or a folder.")
    ] = None,
    concepts: ConceptSetName = None,
) -> None:
    """Harvest or generate missing sentences, then list the concepts."""
    from jobs.actions.sentences import print_sentences

    print_sentences(file, show, out, concepts)
