"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file (YAML).")]
StorePath = Annotated[
    str, typer.Argument(metavar="STORE", help="Results store: a folder or s3://bucket/prefix.")
]
ConceptSetName = Annotated[
    str | None,
    typer.Option("--concepts", metavar="NAME", help="Concept set to use, if the sweep has several."),
]
ServerAddress = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ray job server (default: $RAY_API_SERVER_ADDRESS)."),
]
Follow = Annotated[
    bool, typer.Option("--follow", help="Stream the job's logs and exit with its exit code.")
]
