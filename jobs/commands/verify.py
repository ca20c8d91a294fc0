"""The command `neuralign verify`."""

from __future__ import annotations

from jobs.commands.options import StorePath


def verify(store: StorePath) -> int:
    """Check every file of a store and list the problems."""
    from storage.printable import printable
    from storage.store.paths import parse_store_path
    from storage.store.verify import verify as find_problems

    problems = 0
    for problem in find_problems(parse_store_path(store)):
        problems += 1
        print(printable(problem))
    print(f"{problems} problems" if problems else "no problems found")
    return 1 if problems else 0
