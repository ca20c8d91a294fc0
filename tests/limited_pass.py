"""A pass in a process of its own, which can allocate less than the model needs.

`python -m tests.limited_pass ARGUMENTS` runs it; `run_pass` starts that and returns what it printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.activations import model_pass
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.spool import SpoolSettings
from cluster.models import partial_model
from cluster.models.checkpoint import open_tensors
from tests import tiny
from tests.pooled import read_texts
from tests.test_shard import make_texts

_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class PassArguments:
    """A model and a tiny one, which is read first; the pass; and how many bytes the process may
    allocate for it, any number if 0. Blocks are as few as fit."""

    model: str
    tiny_model: str
    spool: str
    sentences: int
    budget: int
    free: int = 0


@dataclass(frozen=True)
class PassResult:
    """A digest of all values, the blocks, the seconds, and how many weights of layers were read."""

    digest: str
    blocks: int
    seconds: float
    cpu_seconds: float
    weights_read: int


def make_large_model(folder: Path) -> int:
    """Save a model in float32, in a file for each matrix; the number of weights of its layers."""
    tiny.make_model(folder)
    (folder / "model.safetensors").unlink()
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": 24})
    torch.manual_seed(0)
    large = LlamaForCausalLM(config)
    large.save_pretrained(folder, max_shard_size=_FILE_BYTES)
    return sum(weights.numel() for weights in large.model.layers.parameters())


def run_pass(arguments: PassArguments) -> PassResult:
    """Run a pass in a process of its own. Raises RuntimeError with what it printed if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.limited_pass", json.dumps(asdict(arguments))],
        check=False,
        capture_output=True,
        text=True,
        # Each thread would reserve address space for its own heap.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return PassResult(**json.loads(done.stdout.splitlines()[-1]))


class _CountedTensor:
    """A tensor of a file, which adds the weights that are read of it to `counts`."""

    def __init__(self, tensor: Any, counts: list[int]) -> None:
        self._tensor, self._counts = tensor, counts

    def __getitem__(self, index: Any) -> Any:
        read = self._tensor[index]
        self._counts.append(read.numel())
        return read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)


def _count_layer_weights(counts: list[int]) -> None:
    def counted(*arguments: Any) -> dict[str, Any]:
        return {
            name: _CountedTensor(tensor, counts) if ".layers." in name else tensor
            for name, tensor in open_tensors(*arguments).items()
        }

    setattr(partial_model, "open_tensors", counted)  # noqa: B010


def _make_pass(arguments: PassArguments, folder: str) -> ModelPass:
    settings = ActivationSettings("float32", "mlp", ["max", "mean"], include_hidden_states=False)
    texts = list(islice(cycle(make_texts(36)), arguments.sentences))
    sentences = read_texts(Path(folder), settings, texts)
    spool = SpoolSettings(Path(arguments.spool), 0)
    return ModelPass(Path(folder), settings, sentences, arguments.budget, spool)


def _run(arguments: PassArguments) -> PassResult:
    torch.set_num_threads(1)
    # What is read ahead is read from the system's cache when it is loaded.
    setattr(model_pass, "read_ahead", lambda *_: None)  # noqa: B010
    large = _make_pass(arguments, arguments.model)
    _make_pass(arguments, arguments.tiny_model).run(lambda _: None)
    counts: list[int] = []
    _count_layer_weights(counts)
    if arguments.free:
        limit = psutil.Process().memory_info().vms + arguments.free
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    digests: dict[str, str] = {}
    n_blocks = 0

    def consume(block: Block) -> None:
        nonlocal n_blocks
        n_blocks += 1
        for pooled in block.pooled:
            for site, values in pooled.of_sites():
                content = values.numpy().view("u1").data
                digests[f"{pooled.pooling} {site}"] = hashlib.sha256(content).hexdigest()

    seconds, cpu_seconds = _measure(lambda: large.run(consume))
    return PassResult(
        hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        n_blocks,
        seconds,
        cpu_seconds,
        sum(counts),
    )


def _measure(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of a call."""
    started, cpu_started = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - cpu_started


if __name__ == "__main__":
    print(json.dumps(asdict(_run(PassArguments(**json.loads(sys.argv[1]))))))
