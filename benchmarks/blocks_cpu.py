"""A model that is larger than its process's memory, against the same model in one block."""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measure import record
from tests import tiny
from tests.limited_pass import PassArguments, PassResult, make_large_model, run_pass

_SENTENCES, _TOKEN_BUDGET = 192, 256
_ROUNDS = 2


def blocks() -> None:
    """A pass in blocks of layers in a process that can allocate a quarter of the bytes of the model's
    layers, against one block without a limit, in CPU seconds without the start of the process. Both give
    the same values and read each weight once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_weights = make_large_model(folder / "model")
        tiny.make_model(folder / "tiny")
        whole = PassArguments(
            *(str(folder / part) for part in ("model", "tiny", "spool")), _SENTENCES, _TOKEN_BUDGET
        )
        limited = replace(whole, free=n_weights * torch.float32.itemsize // 4)
        pairs = [(run_pass(limited), run_pass(whole)) for _ in range(_ROUNDS)]
    for result in (result for pair in pairs for result in pair):
        if (result.digest, result.weights_read) != (pairs[0][0].digest, n_weights):
            sys.exit("blocks: the values differ, or weights were not read once")
    ours, theirs = (_median(list(results)) for results in zip(*pairs, strict=True))
    record("blocks", ours[0], theirs[0], "s", "ratio at most 1.25")
    print(
        f"{'':16} elapsed: ours {ours[1]:.4g} s, theirs {theirs[1]:.4g} s, ratio "
        f"{ours[1] / theirs[1]:.4g}; {pairs[0][0].blocks} blocks in {limited.free / 1e6:.0f} MB of a "
        f"model of {4 * limited.free / 1e6:.0f} MB, read once"
    )


def _median(results: list[PassResult]) -> tuple[float, float]:
    """CPU seconds and elapsed seconds."""
    return (
        statistics.median(result.cpu_seconds for result in results),
        statistics.median(result.seconds for result in results),
    )
