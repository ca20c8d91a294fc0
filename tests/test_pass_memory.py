"""A pass could need the memory of a complete model, or more of it with every sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from cluster.activations import model_pass as model_pass_module
from cluster.activations.block_shard import BlockShard
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.spool import SpoolSettings
from cluster.models.tokenizer import Text
from tests.limited_pass import PassArguments, make_large_model, run_pass
from tests.pooled import read_texts
from tests.test_shard import make_texts

MB = 1 << 20


def test_a_model_four_times_larger_than_memory_runs_in_blocks(tiny_model: Path, tmp_path: Path) -> None:
    """Weights of all blocks in memory, other values, or weights that are read for each batch."""
    n_weights = make_large_model(tmp_path / "model")
    model, spool = str(tmp_path / "model"), str(tmp_path / "spool")
    whole = PassArguments(model, str(tiny_model), spool, sentences=6, budget=64)
    free = n_weights * torch.float32.itemsize // 4
    limited = run_pass(replace(whole, free=free))
    in_one_block = run_pass(whole)
    assert limited.digest == in_one_block.digest
    assert limited.blocks > 4
    assert in_one_block.blocks == 1
    assert limited.weights_read == in_one_block.weights_read == n_weights


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


def measure_growth(
    model: Path, spool: Path, n_sentences: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """By how many bytes a pass in three blocks grows this process, beyond the largest block's values;
    and the bytes of these."""
    settings = ActivationSettings("float32", ["mlp.hidden"], ["max"], include_hidden_states=False)
    texts = [Text(f"The cat {number}.", []) for number in range(n_sentences)]
    sentences = read_texts(model, settings, texts)
    made = ModelPass(
        model,
        settings,
        sentences,
        1024,
        SpoolSettings(spool, 0),
        blocks=[range(1), range(1, 2), range(2, 3)],
        threads=2,
    )
    run, sizes = BlockShard.run, [rss()]

    def measured(shard: BlockShard, *arguments: object) -> torch.Tensor:
        sizes.append(rss())
        return run(shard, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockShard, "run", measured)
    values: list[int] = []

    def consume(block: Block) -> None:
        sizes.append(rss())
        values.append(sum(pooled.values.nbytes for pooled in block.pooled))

    made.run(consume)
    monkeypatch.setattr(BlockShard, "run", run)
    return max(sizes) - sizes[0] - max(values), max(values)


def rss() -> int:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss


@pytest.mark.slow
def test_memory_is_flat_over_many_sentences(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes that stay of each batch or in the files of hidden states, until a large set runs out
    of memory."""
    measure_growth(tiny_model, tmp_path, 10_000, monkeypatch)
    growths = []
    for n_sentences in (10_000, 100_000):
        growth, values = measure_growth(tiny_model, tmp_path, n_sentences, monkeypatch)
        assert values == n_sentences * 48 * 2
        growths.append(growth)
    assert growths[1] - growths[0] < 12 * MB, growths
