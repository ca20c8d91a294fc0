"""A pass could need the memory of a complete model, or more of it with every sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.activations import model_pass as model_pass_module
from cluster.activations.block_shard import BlockShard
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.spool import SpoolSettings
from cluster.models.tokenizer import Text
from tests import tiny
from tests.pooled import read_texts
from tests.test_shard import make_texts

MB = 1 << 20
LAYERS = 24
FREE = 96 * MB
"""Address space beside that of the imported libraries."""

_RUN = """
import hashlib, resource, sys
from pathlib import Path
import psutil, torch
from cluster.activations import model_pass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.spool import SpoolSettings
from tests.pooled import read_texts
from tests.test_shard import make_texts
torch.set_num_threads(1)
folder, spool, free, blocks = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
# What is read ahead is read from the system's cache when it is loaded.
model_pass.read_ahead = lambda *_: None
settings = ActivationSettings("float32", "mlp", ["max", "mean"], include_hidden_states=False)
sentences = read_texts(folder, settings, make_texts(6))
layers = [range(start, start + 24 // blocks) for start in range(0, 24, 24 // blocks)]
made = model_pass.ModelPass(folder, settings, sentences, 64, SpoolSettings(spool, 0), blocks=layers)
tiny_pass = sys.argv[5]
warm = model_pass.ModelPass(
    Path(tiny_pass), settings, read_texts(Path(tiny_pass), settings, make_texts(6)), 64,
    SpoolSettings(spool, 0),
)
warm.run(lambda _: None)
process, values_of = psutil.Process(), dict[str, bytes]()
if free:
    limit = process.memory_info().vms + free
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def consume(block):
    for pooled in block.pooled:
        for site, values in pooled.of_sites():
            values_of[f"{pooled.pooling} {site}"] = values.numpy().tobytes()

made.run(consume)
digest = hashlib.sha256(b"".join(values_of[key] for key in sorted(values_of)))
print("digest", digest.hexdigest())
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers have four times as many bytes as are free, in a file for each matrix."""
    folder = tiny.make_model(tmp_path_factory.mktemp("large"))
    (folder / "model.safetensors").unlink()
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": LAYERS})
    torch.manual_seed(0)
    large = LlamaForCausalLM(config)
    layers = sum(weights.nbytes for weights in large.model.layers.parameters())
    assert layers > 4 * FREE
    large.save_pretrained(folder, max_shard_size=5 * MB)
    return folder


def run_pass(model: Path, spool: Path, tiny_model: Path, free: int, blocks: int) -> list[str]:
    """The digest of all values, from a process that may allocate `free` bytes, or any number if 0."""
    arguments = [str(model), str(spool), str(free), str(blocks), str(tiny_model)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments],
        check=False,
        capture_output=True,
        text=True,
        # Each thread would reserve address space for its own heap.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"^digest (\w+)$", done.stdout, re.MULTILINE)


def test_a_model_four_times_larger_than_memory_runs_in_blocks(
    large_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Weights of all blocks in memory, other values, or weights that are read for each batch."""
    whole = run_pass(large_model, tmp_path / "whole", tiny_model, free=0, blocks=1)
    in_blocks = run_pass(large_model, tmp_path / "blocks", tiny_model, FREE, blocks=LAYERS)
    assert len(whole) == 1
    assert in_blocks == whole


def test_each_byte_of_the_weights_is_read_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is read for each block, or each batch, from the first byte on."""
    settings = ActivationSettings("bfloat16", "mlp", ["max"])
    sentences = read_texts(tiny_model, settings, make_texts(36))
    monkeypatch.setattr(model_pass_module, "read_ahead", lambda *_: None)
    # In bfloat16, weights in float32 are read and not mapped.
    weights = (tiny_model / "model.safetensors").stat().st_size

    def count_read(blocks: list[range]) -> int:
        spool = SpoolSettings(tmp_path, 1 << 30)
        made = ModelPass(tiny_model, settings, sentences, 64, spool, blocks=blocks)
        before = psutil.Process().io_counters().read_chars
        made.run(lambda _: None)
        return psutil.Process().io_counters().read_chars - before

    count_read([range(3)])
    headers = 150_000
    whole, in_blocks = count_read([range(3)]), count_read([range(1), range(1, 2), range(2, 3)])
    assert 0.5 * weights < whole < weights + headers
    assert in_blocks < weights + 3 * headers


def test_memory_is_flat_over_many_sentences(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes that stay of each batch, until a large set runs out of memory."""
    settings = ActivationSettings("float32", ["mlp.hidden"], ["max"], include_hidden_states=False)
    texts = [Text(f"The cat {number}.", []) for number in range(20_000)]
    sentences = read_texts(tiny_model, settings, texts)
    made = ModelPass(
        tiny_model, settings, sentences, 1024, SpoolSettings(tmp_path, 0), "cpu", [range(1)], threads=2
    )
    run, sizes = BlockShard.run, list[int]()

    def measured(shard: BlockShard, *arguments: object) -> torch.Tensor:
        sizes.append(psutil.Process().memory_info().rss)
        return run(shard, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockShard, "run", measured)
    values: list[int] = []

    def consume(block: Block) -> None:
        values.extend(pooled.values.nbytes for pooled in block.pooled)

    made.run(consume, missing=[0])
    assert len(sizes) > 100
    # The buffer's pages are taken as they are filled.
    assert sizes[-1] - sizes[len(sizes) // 4] < sum(values) + 8 * MB
