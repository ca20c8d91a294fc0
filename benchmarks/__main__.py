"""`python -m benchmarks [NAME]`: run all benchmarks, or one."""

from __future__ import annotations

import sys

from benchmarks.bootstrap import bootstrap
from benchmarks.capture import capture, pipeline, replicas
from benchmarks.fused import fused
from benchmarks.generate import generate
from benchmarks.harvest import harvest
from benchmarks.plan import plan
from benchmarks.select import select_concepts, select_neurons, select_sklearn, select_sort
from benchmarks.sentences import sentences
from benchmarks.store import similarity, similarity_large, store_check, store_read, store_write

BENCHMARKS = {
    "capture": capture,
    "fused": fused,
    "pipeline": pipeline,
    "replicas": replicas,
    "select_sort": select_sort,
    "select_sklearn": select_sklearn,
    "select_concepts": select_concepts,
    "select_neurons": select_neurons,
    "store_write": store_write,
    "store_read": store_read,
    "store_check": store_check,
    "similarity": similarity,
    "similarity_large": similarity_large,
    "bootstrap": bootstrap,
    "harvest": harvest,
    "sentences": sentences,
    "plan": plan,
    "generate": generate,
}
ON_REQUEST = {"generate", "similarity_large"}
"""Benchmarks that need vLLM or take minutes run only by name."""


def main() -> int:
    """Run the benchmarks named on the command line; exit with 2 for an unknown name."""
    names = sys.argv[1:] or [name for name in BENCHMARKS if name not in ON_REQUEST]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"{unknown[0]}: unknown benchmark; choose from {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
