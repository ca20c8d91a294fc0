"""The command `neuralign sql`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.commands.options import StorePath
from storage.errors import UserError


def sql(
    store: StorePath,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="SQL query (default: list the views).")
    ] = None,
    output_format: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="Output format.")
    ] = "table",
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Export all views to a DuckDB file.")
    ] = None,
) -> None:
    """Query the results with DuckDB SQL."""
    from jobs.actions.sql import print_rows
    from storage.database import export_database
    from storage.store.paths import parse_store_path

    root = parse_store_path(store)
    if export is None:
        print_rows(root, query, output_format)
        return
    if query is not None:
        raise UserError("--export takes no query; it exports all views")
    export_database(root, export)
