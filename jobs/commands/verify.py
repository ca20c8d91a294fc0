"""The command `neuralign verify`."""

from jobs.commands.options import StorePath
from storage.store.paths import parse_store_path
from storage.store.verify import verify as find_problems


def verify(store: StorePath) -> int:
    """Check every file of a store and list the problems."""
    count = 0
    for count, problem in enumerate(find_problems(parse_store_path(store)), start=1):
        print(problem)
    print(f"{count} problems" if count else "no problems found")
    return 1 if count else 0
