"""A shard that needed the whole model's memory to load its part would make sharding pointless."""

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

from cluster.activations.shard import Settings, Shard
from cluster.activations.tokens import Text
from cluster.models.packed_linear import is_packed
from cluster.models.partial_model import load_layers
from storage.errors import UserError
from tests import tiny

LAYERS = 8
HALF = LAYERS // 2
SETTINGS = Settings("float32", "mlp", ["max"])
TEXTS = [Text(text, []) for _, text in tiny.sentences()[:4]]


@pytest.fixture(scope="module")
def big_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 400 MB in bfloat16, in files of 60 MB."""
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
    """Fresh processes in which all libraries are imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def apart(processes: Any, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in a process of its own; what it raises for the user is raised here."""
    here, there = processes.Pipe()
    process = processes.Process(target=_answer, args=(there, work, *arguments))
    process.start()
    there.close()
    answer = here.recv()
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(pipe: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    try:
        torch.set_num_threads(1)
        pipe.send(work(*arguments))
    except UserError as error:
        pipe.send(error)


def _memory(name: str) -> int:
    """Bytes that the kernel has under a name for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise KeyError(name)


def load_and_touch(
    small: Path, folder: Path, layers: range, dtype: torch.dtype, packed: bool
) -> tuple[int, int]:
    """Bytes of a shard's parameters, and by how much memory rose at most until each was used."""
    # what the libraries take for themselves is no tensor
    load_layers(small, range(1), dtype, packed=packed)
    before = _memory("VmRSS")
    model, _ = load_layers(folder, layers, dtype, packed=packed)
    own = 0
    for tensor in model.parameters():
        # packed layers have empty ones
        if tensor.nbytes:
            tensor.detach().view(torch.uint8).max()
            own += tensor.nbytes
    return own, _memory("VmHWM") - before


def read_shard(
    folder: Path, layers: range, incoming: list[Any] | None, limit: int | None
) -> tuple[dict[str, Any], list[Any]]:
    """What a shard reads, and its hidden states, in a process that may grow by `limit` bytes."""
    # each thread would take address space of its own
    os.environ |= {"HF_DEACTIVATE_ASYNC_LOAD": "1", "TOKENIZERS_PARALLELISM": "false"}
    if limit is not None:
        most = _memory("VmSize") + limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    shard = Shard(folder, SETTINGS, layers)
    work = shard.begin(TEXTS, 1000)
    given = [torch.from_numpy(hidden) for hidden in incoming] if incoming else None
    outgoing = shard.step(work, range(len(work.batches)), given)
    values = {str(site): array for (_, site), array in shard.finish(work).values.items()}
    return values, [hidden.numpy() for hidden in outgoing]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layers", [range(HALF), range(HALF, LAYERS), range(LAYERS)])
def test_loading_takes_little_more_than_the_shards_own_tensors(
    tiny_model: Path, big_model: Path, processes: Any, layers: range, dtype: torch.dtype
) -> None:
    own, rise = apart(processes, load_and_touch, tiny_model, big_model, layers, dtype, False)
    assert rise < 1.2 * own
    if is_packed(dtype, torch.device("cpu")):
        _, rise = apart(processes, load_and_touch, tiny_model, big_model, layers, dtype, True)
        assert rise < 1.2 * own


def test_a_model_larger_than_an_actors_memory_runs_in_shards(big_model: Path, processes: Any) -> None:
    """The address space may grow by three quarters of the model: room for each half, not for all."""
    in_float32 = 2 * sum(path.stat().st_size for path in big_model.glob("*.safetensors"))
    limit = in_float32 * 3 // 4
    with pytest.raises(UserError, match=r"allocate memory.*; cut the model into more shards"):
        apart(processes, read_shard, big_model, range(LAYERS), None, limit)
    whole, _ = apart(processes, read_shard, big_model, range(LAYERS), None, None)
    found, hidden = apart(processes, read_shard, big_model, range(HALF), None, limit)
    rest, _ = apart(processes, read_shard, big_model, range(HALF, LAYERS), hidden, limit)
    found |= rest
    assert found.keys() == whole.keys()
    for site, values in whole.items():
        assert np.array_equal(found[site], values)
