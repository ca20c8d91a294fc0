"""The activations stage against the bare model body, and pipelines against replicas."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel

from benchmarks import zoo
from benchmarks.measure import empty, record, seconds, side_by_side
from cluster.activations.shard import PAD_ID, Shard
from cluster.activations.tokens import pad
from cluster.models.weights import materialise
from jobs.activations import TOKEN_BUDGET

_SENTENCES = 2048
_ROUNDS = 2
_UNIT = "sentences/s"


def capture() -> None:
    """One shard on one core, three poolings and every commit, against its model on one core with the
    same batches, nothing read and nothing written."""
    torch.set_num_threads(1)
    texts = zoo.demo_texts(_SENTENCES)
    folder = materialise(zoo.demo_model())
    shard = Shard(folder, zoo.SETTINGS)
    model = AutoModel.from_pretrained(folder, dtype=shard.dtype).eval()
    work = [shard.begin(unit, TOKEN_BUDGET) for unit in zoo.in_units(texts)]

    def bare() -> None:
        with torch.inference_mode():
            for each in work:
                for rows in each.batches:
                    batch = pad([each.tokens[row] for row in rows], PAD_ID, shard.device)
                    model(batch.ids, attention_mask=batch.attention, use_cache=False)

    with zoo.pipelines(1) as (replicas, store):
        ours, theirs = side_by_side(
            lambda: zoo.run(replicas, texts, store), bare, _ROUNDS, lambda: empty(store)
        )
    record("capture", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 0.95")
    _print_rate(model, sum(len(tokens.ids) for each in work for tokens in each.tokens) / ours)


def pipeline() -> None:
    """Two shards on a core each against two replicas of the whole model on a core each."""
    texts = zoo.demo_texts(_SENTENCES)
    with zoo.pipelines(2, 1, 1) as ((cut, *whole), store):
        ours, theirs = side_by_side(
            lambda: zoo.run([cut], texts, store),
            lambda: zoo.run(whole, texts, store),
            _ROUNDS,
            lambda: empty(store),
        )
    record("pipeline", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 0.80")


def replicas() -> None:
    """Two replicas on a core each against one."""
    texts = zoo.demo_texts(_SENTENCES)
    with zoo.pipelines(1, 1) as (both, store):
        ours, theirs = side_by_side(
            lambda: zoo.run(both, texts, store),
            lambda: zoo.run(both[:1], texts, store),
            _ROUNDS,
            lambda: empty(store),
        )
    record("replicas", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 1.8")


def _print_rate(model: nn.Module, tokens_per_second: float) -> None:
    """What the stage's sentences need of matrix products, beside what a large product reaches here."""
    weights = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embed" not in name
    ]
    size = 2048
    square = torch.randn(size, size, dtype=next(model.parameters()).dtype)
    square @ square
    peak = 2 * size**3 / min(seconds(lambda: square @ square) for _ in range(3))
    used = 2 * sum(weights) * tokens_per_second
    print(f"{'':16} {used / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f} in a large matrix product")
