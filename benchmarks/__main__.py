"""`python -m benchmarks [NAME]`: run all benchmarks, or one; `gpu --model CONFIG` for another model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.blocks_cpu import blocks
from benchmarks.bootstrap import bootstrap
from benchmarks.capture import capture, pipeline, threads
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
    "blocks": blocks,
    "pipeline": pipeline,
    "threads": threads,
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


_GPU = "gpu"
"""Needs a GPU for figures that mean something, and takes minutes."""


def main() -> int:
    """Run the benchmarks named on the command line; exit with 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*BENCHMARKS, _GPU]))
    parser.add_argument("--model", type=Path, help=f"a config.json, for {_GPU}")
    arguments = parser.parse_args()
    names = arguments.names or [name for name in BENCHMARKS if name not in ON_REQUEST]
    if unknown := [name for name in names if name not in BENCHMARKS and name != _GPU]:
        parser.error(f"{unknown[0]}: unknown benchmark; choose from {', '.join([*BENCHMARKS, _GPU])}")
    for name in names:
        if name == _GPU:
            # It sets an environment variable of numba.
            from benchmarks.gpu.command import gpu

            gpu(arguments.model)
        else:
            BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
