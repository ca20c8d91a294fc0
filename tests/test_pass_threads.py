"""Batches that run in several threads of one process could get each other's values, or lose an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.activations.block_shard import BlockShard
from cluster.activations.ordered_threads import map_in_order
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.tokenizer import Text
from storage.errors import NeuralignError
from tests import plain_forward
from tests.test_model_pass import (
    DIVISIONS,
    POOLINGS,
    assert_identical,
    make_pass,
    model,
    run_pass,
    run_shard,
    settings_for,
)
from tests.test_shard import make_texts

__all__ = ["model"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_the_same_for_any_threads_and_blocks(
    model: Path,
    tmp_path: Path,
    dtype: str,
) -> None:
    """A hook that pools the hidden values of another thread's batch, hidden states in another order, or
    sums that depend on the number of cores."""
    settings, texts = settings_for(dtype, [*POOLINGS, "mean", "last"]), make_texts(36)
    expected = run_shard(model, settings, texts)
    for threads in (1, 2, 3):
        for blocks in DIVISIONS:
            for memory_bytes in (0, 1 << 30):
                actual = run_pass(
                    make_pass(model, settings, texts, tmp_path, blocks, memory_bytes, threads)
                )
                assert_identical(actual, expected)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "mamba2", "big_bird", "gemma2"])
def test_layers_that_keep_something_between_calls_give_the_same_values(
    tmp_path: Path, model_type: str
) -> None:
    """Experts, convolutions and attention that changes with the length, shared by threads."""
    folder = plain_forward.save_model(tmp_path / "model", model_type)
    settings = ActivationSettings("float32", "linears", ["max", "mean"])
    texts = [Text(text, []) for text in plain_forward.SENTENCES * 8]
    expected = run_shard(folder, settings, texts)
    for _ in range(3):
        assert_identical(run_pass(make_pass(folder, settings, texts, tmp_path, threads=3)), expected)


def test_batches_run_at_once_on_one_core_each(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads that wait for each other, or take the cores of other actors."""
    run, together = BlockShard.run, threading.Barrier(3, timeout=30)
    threads: list[int] = []

    def met(shard: BlockShard, *arguments: Any) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            threads.append(torch.get_num_threads())
            if len(threads) <= 3:
                together.wait()
        return run(shard, *arguments)

    monkeypatch.setattr(BlockShard, "run", met)
    run_pass(make_pass(model, settings_for(), make_texts(36), tmp_path, threads=3))
    assert set(threads) == {1}


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_batch_is_reported_as_it_is(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    """The error of a later batch, of a stopped thread, or none; or all batches run for nothing."""
    run, started = BlockShard.run, list[int]()

    def failing(shard: BlockShard, batch: Any, *arguments: Any) -> torch.Tensor:
        number = int(arguments[-1].start)
        started.append(number)
        if number >= 8:
            # The first to fail is not the first in order.
            time.sleep(0.3 if number < 12 else 0)
            raise NeuralignError(f"sentence {number} failed")
        return run(shard, batch, *arguments)

    monkeypatch.setattr(BlockShard, "run", failing)
    model_pass = make_pass(model, settings_for(), make_texts(300), tmp_path, threads=threads)
    firsts = [0]
    for rows in model_pass.batches:
        firsts.append(firsts[-1] + len(rows))
    first_failing = next(first for first in firsts if first >= 8)
    with pytest.raises(NeuralignError, match=f"^sentence {first_failing} failed$"):
        run_pass(model_pass)
    assert len(started) < 20 < len(model_pass.batches)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_arguments_are_not_made_long_before_they_are_needed(threads: int) -> None:
    """All hidden states of a set in memory, because the model is slower than the disk."""
    made, taken = 0, 0

    def arguments() -> Iterator[int]:
        nonlocal made
        for number in range(100):
            made += 1
            yield number

    for result in map_in_order(lambda number: number * number, arguments(), threads):
        assert result == taken * taken
        taken += 1
        assert made - taken <= 2 * threads
    assert taken == 100
