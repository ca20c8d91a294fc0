"""The command `neuralign serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import ConceptSetName, StorePath


def serve(
    store: StorePath,
    port: Annotated[int, typer.Option(help="Local port; 0 picks a free one.")] = 0,
    concepts: ConceptSetName = None,
) -> None:
    """Serve the report on localhost, querying the store on demand."""
    from jobs.page.serve import serve as serve_report
    from storage.store.paths import parse_store_path

    serve_report(parse_store_path(store), port, concepts)
