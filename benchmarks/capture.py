"""The activations stage against the model alone, and pipelines against replicas."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel

from benchmarks import zoo
from benchmarks.measure import empty, record, seconds, side_by_side
from cluster.activations.batching import pad
from cluster.activations.shard import PAD_ID, ActivationShard
from cluster.models.weights import ensure_local
from jobs.activations import TOKEN_BUDGET

_SENTENCES = 2048
_ROUNDS = 2
_UNIT = "sentences/s"


def capture() -> None:
    """One shard on one core with three poolings and commits, against its model alone on one core with
    the same batches."""
    torch.set_num_threads(1)
    texts = zoo.demo_texts(_SENTENCES)
    folder = ensure_local(zoo.demo_model())
    shard = ActivationShard(folder, zoo.SETTINGS)
    model = AutoModel.from_pretrained(folder, dtype=shard.dtype).eval()
    work = [shard.begin(unit, TOKEN_BUDGET) for unit in zoo.in_units(texts)]

    def bare() -> None:
        with torch.inference_mode():
            for unit in work:
                for rows in unit.batches:
                    batch = pad([unit.sentences.tokens[row] for row in rows], PAD_ID, shard.device)
                    model(batch.ids, attention_mask=batch.attention, use_cache=False)

    with zoo.pipelines(1) as (replicas, store):
        ours, theirs = side_by_side(
            lambda: zoo.run(replicas, texts, store), bare, _ROUNDS, lambda: empty(store)
        )
    record("capture", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 0.95")
    _print_rate(model, sum(sum(unit.sentences.lengths) for unit in work) / ours)


def pipeline() -> None:
    """Two shards on one core each, against two unsharded replicas on one core each."""
    texts = zoo.demo_texts(_SENTENCES)
    with zoo.pipelines(2, 1, 1) as ((sharded, *unsharded), store):
        ours, theirs = side_by_side(
            lambda: zoo.run([sharded], texts, store),
            lambda: zoo.run(unsharded, texts, store),
            _ROUNDS,
            lambda: empty(store),
        )
    record("pipeline", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 0.80")


def replicas() -> None:
    """Two replicas on one core each, against one."""
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
    """Print the FLOP rate of the stage next to that of a large matrix product on this machine."""
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
