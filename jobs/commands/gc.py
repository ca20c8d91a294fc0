"""The command `neuralign gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.options import StorePath


def gc(
    store: StorePath,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the listed files.")] = False,
) -> None:
    """List files that can be deleted: scored activations, old results, hidden states of stopped runs."""
    from storage.printable import printable
    from storage.store.gc import Garbage, HiddenStates, find_garbage, find_hidden_states
    from storage.store.paths import parse_store_path

    total, root = 0, parse_store_path(store)
    items: list[Garbage | HiddenStates] = [*find_hidden_states(root), *find_garbage(root)]
    for item in items:
        is_kept = delete and not item.delete()
        total += 0 if is_kept else item.bytes
        reason = "kept, because a stage was started or completed meanwhile" if is_kept else item.reason
        print(printable(f"{item.bytes / 1e6:10,.1f} MB  {item.folder}: {reason}"))
    print(f"{total / 1e6:10,.1f} MB  {'deleted' if delete else 'can be deleted with --delete'}")
