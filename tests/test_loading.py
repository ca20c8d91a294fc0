"""A shard that needed the full model's memory to load its part would make sharding pointless."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.packed_linear import supports_packing
from cluster.models.partial_model import load_layers
from cluster.models.tokenizer import Text
from storage.errors import UserError
from tests import tiny
from tests.pooled import read_texts, run_layers

LAYERS = 8
HALF = LAYERS // 2
SETTINGS = ActivationSettings("float32", "mlp", ["max"])
TEXTS = [Text(text, []) for _, text in tiny.sentences()[:4]]


@pytest.fixture(scope="module")
def big_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 400 MB Llama in bfloat16, in files of 60 MB."""
    folder = tmp_path_factory.mktemp("big")
    config = LlamaConfig(
        vocab_size=301,
        hidden_size=1024,
        intermediate_size=6144,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="60MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def processes() -> Any:
    """Context for new processes in which all libraries are already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run_in_process(processes: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a separate process; return its result or raise its UserError."""
    receiver, sender = processes.Pipe()
    process = processes.Process(target=_send_result, args=(sender, function, *arguments))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


def _send_result(pipe: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        torch.set_num_threads(1)
        pipe.send(function(*arguments))
    except UserError as error:
        pipe.send(error)


def _memory(name: str) -> int:
    """Memory of this process in bytes, by its name in /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise KeyError(name)


def load_and_touch(
    small: Path, folder: Path, layers: range, dtype: torch.dtype, packed: bool
) -> tuple[int, int]:
    """Bytes of a shard's parameters, and the peak increase in memory while loading and reading them."""
    # Warm up, so that memory of the libraries does not count.
    load_layers(small, range(1), dtype, pack_weights=packed)
    before = _memory("VmRSS")
    model = load_layers(folder, layers, dtype, pack_weights=packed).model
    size = 0
    for tensor in model.parameters():
        # Packed layers have empty parameters.
        if tensor.nbytes:
            tensor.detach().view(torch.uint8).max()
            size += tensor.nbytes
    return size, _memory("VmHWM") - before


def read_shard(
    folder: Path, layers: range, incoming: list[Any] | None, limit: int | None
) -> tuple[dict[str, Any], list[Any]]:
    """Run a shard in a process that may grow by `limit` bytes; return activations and hidden states."""
    # Every thread would reserve address space.
    os.environ |= {"HF_DEACTIVATE_ASYNC_LOAD": "1", "TOKENIZERS_PARALLELISM": "false"}
    if limit is not None:
        max_bytes = _memory("VmSize") + limit
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    shard = BlockShard(folder, SETTINGS, layers)
    tensors = [torch.from_numpy(hidden) for hidden in incoming] if incoming else None
    pooled, outgoing = run_layers(shard, read_texts(folder, SETTINGS, TEXTS), 1000, tensors)
    values = {str(site): array for (_, site), array in pooled.items()}
    return values, [hidden.numpy() for hidden in outgoing]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layers", [range(HALF), range(HALF, LAYERS), range(LAYERS)])
def test_loading_needs_little_more_memory_than_the_shards_tensors(
    tiny_model: Path, big_model: Path, processes: Any, layers: range, dtype: torch.dtype
) -> None:
    """A second copy of the tensors, or those of other layers, could be held in memory."""
    size, increase = run_in_process(
        processes, load_and_touch, tiny_model, big_model, layers, dtype, False
    )
    assert increase < 1.2 * size
    if supports_packing(dtype, torch.device("cpu")):
        _, increase = run_in_process(
            processes, load_and_touch, tiny_model, big_model, layers, dtype, True
        )
        assert increase < 1.2 * size


def test_a_model_larger_than_an_actors_memory_runs_in_shards(big_model: Path, processes: Any) -> None:
    """A shard could load the full model. Address space is limited to three quarters of the model, which
    fits either half but not both."""
    in_float32 = 2 * sum(path.stat().st_size for path in big_model.glob("*.safetensors"))
    limit = in_float32 * 3 // 4
    with pytest.raises(UserError, match=r"allocate memory.*; use more shards"):
        run_in_process(processes, read_shard, big_model, range(LAYERS), None, limit)
    full, _ = run_in_process(processes, read_shard, big_model, range(LAYERS), None, None)
    values, hidden = run_in_process(processes, read_shard, big_model, range(HALF), None, limit)
    second_half, _ = run_in_process(processes, read_shard, big_model, range(HALF, LAYERS), hidden, limit)
    values |= second_half
    assert values.keys() == full.keys()
    for site, expected in full.items():
        assert np.array_equal(values[site], expected)
