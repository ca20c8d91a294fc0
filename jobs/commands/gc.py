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
    from storage.printable import printable
    from storage.store.gc import find_garbage
    from storage.store.paths import parse_store_path

    total = 0
    for item in list(find_garbage(parse_store_path(store))):
        is_kept = delete and not item.delete()
        total += 0 if is_kept else item.bytes
        reason = "kept, because a stage was started or completed meanwhile" if is_kept else item.reason
        print(printable(f"{item.bytes / 1e6:10,.1f} MB  {item.stage.folder}: {reason}"))
    print(f"{total / 1e6:10,.1f} MB  {'deleted' if delete else 'can be deleted with --delete'}")
