"""`python -m benchmarks gpu [--model CONFIG]`: one table, and a file of figures for each comparison.

It needs neither a network nor weights. Without a GPU it runs a tiny model, which only proves that it
runs.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from transformers import PretrainedConfig
from transformers.utils import logging

from benchmarks.gpu.passes import POOLINGS, Measured, ModelBench
from benchmarks.gpu.scale import Scale, choose_models, choose_scale
from benchmarks.gpu.scoring import score_on_both
from benchmarks.gpu.writers import plain_seconds
from benchmarks.measure import record
from storage.store.commit import FileRecord

_PERMUTATIONS = 19
_START_SECONDS = 6.0
_RATE, _VALUES = "sentences/s", "values/s"
_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108
_SHARED_BYTES = 20 * 10**9


def gpu(model: Path | None = None) -> None:
    """Run the benchmarks on this machine's GPU: of the model with this configuration, or of Pythia."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    scale = choose_scale()
    is_gpu = scale.device == "cuda"
    print(torch.cuda.get_device_name() if is_gpu else "CPU, a tiny model", f"torch {torch.__version__}")
    ray.init(
        address="local", num_cpus=2, num_gpus=int(is_gpu), include_dashboard=False, log_to_driver=False
    )
    try:
        for name, config in choose_models(scale, model).items():
            with tempfile.TemporaryDirectory(dir=_folder_of_weights()) as folder:
                _run(name, config, scale, Path(folder))
            gc.collect()
    finally:
        ray.shutdown()
    for shape in scale.scored:
        for n_permutations in (0, _PERMUTATIONS):
            ours, theirs = score_on_both(scale, *shape, n_permutations)
            name = f"gpu_scoring_{'x'.join(map(str, shape))}_permutations_{n_permutations}"
            record(name, ours, theirs, _VALUES, "theirs: one core of this machine")


@dataclass
class _Table:
    """Rows of passes of one model, with rates relative to its body alone."""

    name: str
    flop_per_sentence: float
    matrix_rate: float
    bare: float = 0.0

    def print(self, what: str, measured: Measured) -> None:
        """Print a row; MFU is relative to the large matrix product."""
        mfu = measured.rate * self.flop_per_sentence / self.matrix_rate
        print(
            f"{what:58} {measured.rate:9,.0f} {measured.rate / self.bare:7.2f} {mfu:5.2f} "
            f"{measured.gigabytes:8.1f}",
            flush=True,
        )

    def record(self, what: str, ours: float, theirs: float, unit: str, target: str) -> None:
        """Write the figures of a comparison."""
        record(f"gpu_{what}_{self.name}", ours, theirs, unit, target)


def _run(name: str, config: PretrainedConfig, scale: Scale, folder: Path) -> None:
    bench = ModelBench(scale, config, folder)
    table = _Table(name, bench.flop_per_sentence(), bench.matrix_rate())
    print(
        f"\n{name}: {len(bench.layers)} layers, {bench.weight_bytes / 1e9:.1f} GB of weights, "
        f"{len(bench.sentences):,} sentences (with loading or writing {len(bench.few):,}); matrix "
        f"product {table.matrix_rate / 1e12:.1f} TFLOP/s"
    )
    start = bench.start_seconds()
    bare = bench.bare()
    best = max(measured.rate for measured in bare.values())
    table.bare = best
    print(f"{'':58} {_RATE:>9} {'of bare':>7} {'MFU':>5} {'peak GB':>8}")
    for budget, measured in bare.items():
        table.print(f"bare body, batches of {budget:,} tokens", measured)
    poolings = ", ".join(POOLINGS)
    capture = bench.capture()
    table.print(f"{poolings}; {scale.budget:,} tokens", capture)
    states = bench.capture(has_states=True)
    table.print("and hidden states", states)
    scored = bench.score(0)
    table.print(f"scored for {scale.concepts} concepts", scored)
    permuted = bench.score(_PERMUTATIONS)
    table.print(f"and under {_PERMUTATIONS} permutations", permuted)
    blocks = bench.capture(n_blocks=2)
    table.print("in 2 blocks of layers", blocks)
    one = bench.whole(1)
    table.print("with loading, in 1 block", one)
    four = bench.whole(4, is_limited=True)
    table.print("with loading, in 4 blocks that just fit", four)
    written, seconds, plain, n_bytes = _write(bench)
    table.print(f"written, {n_bytes / seconds / 1e9:.2f} GB/s", written)
    one_shard, two_shards = bench.on_cluster(1), bench.on_cluster(2)
    table.print("with loading, in an actor", Measured(one_shard, 0.0))
    table.print("with loading, 2 shards on halves of the device", Measured(two_shards, 0.0))
    mfu = best * table.flop_per_sentence, table.matrix_rate
    table.record("start", start, _START_SECONDS, "s", "first sentences read, within 6 s")
    table.record("mfu", *mfu, "FLOP/s", "theirs: a large matrix product")
    table.record("capture", capture.rate, best, _RATE, "ratio at least 0.85")
    table.record("states", states.rate, capture.rate, _RATE, "ratio at least 0.9")
    table.record("scores", scored.rate, best, _RATE, "ratio at least 0.5")
    table.record("permutations", permuted.rate, best, _RATE, "ratio at least 0.25")
    table.record("blocks", blocks.rate, capture.rate, _RATE, "theirs: one block")
    table.record("limited", four.rate, one.rate, _RATE, "ratio at least 0.8")
    table.record("files", n_bytes / seconds, n_bytes / plain, "B/s", "ratio at least 0.8")
    table.record("shards", two_shards, one_shard, _RATE, "theirs: one shard")


def _write(bench: ModelBench) -> tuple[Measured, float, float, int]:
    """A pass that writes, the seconds of its writing, those of plain writers, and the bytes."""
    n_writers = len(os.sched_getaffinity(0)) if bench.device.type == "cuda" else 1
    # Not in memory, where the weights may be.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured, seconds, files = bench.write(folder, n_writers)
        n_bytes = sum(_size(folder, record) for record in files)
        plain = plain_seconds(folder, n_writers, len(files), n_bytes)
    return measured, seconds, plain, n_bytes


def _size(folder: Path, file: FileRecord) -> int:
    return (folder / file.path).stat().st_size


def _folder_of_weights() -> Path | None:
    """Memory, if it has room: a disk would be measured, too."""
    if _MEMORY_FOLDER.is_dir() and shutil.disk_usage(_MEMORY_FOLDER).free > _SHARED_BYTES:
        return _MEMORY_FOLDER
    return None
