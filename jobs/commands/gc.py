"""The command `neuralign gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import StorePath


def gc(
    store: StorePath,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the listed files.")] = False,
) -> None:
    """List files that can be deleted: scored activations, superseded results."""
    from storage.store.gc import find_garbage
    from storage.store.paths import parse_store_path

    garbage = list(find_garbage(parse_store_path(store)))
    for item in garbage:
        print(f"{item.bytes / 1e6:10,.1f} MB  {item.stage.folder}: {item.reason}")
        if delete:
            item.delete()
    total = sum(item.bytes for item in garbage) / 1e6
    print(f"{total:10,.1f} MB  {'deleted' if delete else 'can be deleted with --delete'}")
