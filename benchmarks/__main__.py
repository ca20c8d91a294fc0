"""`python -m benchmarks [NAME]`: run all benchmarks, or one."""

from __future__ import annotations

import sys

from benchmarks.bootstrap import bootstrap
from benchmarks.capture import capture
from benchmarks.select import select_sklearn, select_sort

BENCHMARKS = {
    "bootstrap": bootstrap,
    "capture": capture,
    "select_sort": select_sort,
    "select_sklearn": select_sklearn,
}


def main() -> int:
    """Run what the command line names; 2 for a name that is none."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"{unknown[0]}: no such benchmark; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
