"""The activations stage against the model alone, and its threads and shards against one core."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks import zoo
from benchmarks.measure import empty, record, seconds, side_by_side
from cluster.activations.batching import batch_sentences, pad
from cluster.activations.pooling_shard import PAD_ID
from cluster.activations.sentence_set import tokenize
from cluster.models.shard import MAX_TOKENS
from cluster.models.tokenizer import Tokenizer
from cluster.models.weights import ensure_local

_SENTENCES = 2048
_ROUNDS = 2
_UNIT = "sentences/s"


def capture() -> None:
    """One shard on one core with three poolings and commits, against its model alone on one core with
    the same batches. Both load the model."""
    torch.set_num_threads(1)
    texts = zoo.demo_texts(_SENTENCES)
    folder = ensure_local(zoo.demo_model())
    tokenizer = Tokenizer(folder, MAX_TOKENS)
    sentences = tokenize(tokenizer, texts, zoo.SETTINGS.inputs, zoo.SETTINGS.poolings)
    batches = batch_sentences(sentences.lengths, zoo.TOKEN_BUDGET)

    def bare() -> None:
        model = zoo.bare_model(folder)
        with torch.inference_mode():
            for rows in batches:
                batch = pad([sentences.tokens[row] for row in rows], PAD_ID, torch.device("cpu"))
                model(batch.ids, attention_mask=batch.attention, use_cache=False)

    with zoo.workers((1, 1)) as ((worker,), store):
        ours, theirs = side_by_side(
            lambda: zoo.run(worker, texts, store), bare, _ROUNDS, lambda: empty(store)
        )
    record("capture", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 0.97")
    _print_rate(zoo.bare_model(folder), sum(sentences.lengths) / ours)


def pipeline() -> None:
    """Two shards on one core each, against one shard on two cores."""
    texts = zoo.demo_texts(_SENTENCES)
    with zoo.workers((2, 1), (1, 2)) as ((sharded, whole), store):
        ours, theirs = side_by_side(
            lambda: zoo.run(sharded, texts, store),
            lambda: zoo.run(whole, texts, store),
            _ROUNDS,
            lambda: empty(store),
        )
    record("pipeline", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 0.80")


def threads() -> None:
    """One shard on two cores, against one core."""
    texts = zoo.demo_texts(_SENTENCES)
    with zoo.workers((1, 2), (1, 1)) as ((two, one), store):
        ours, theirs = side_by_side(
            lambda: zoo.run(two, texts, store),
            lambda: zoo.run(one, texts, store),
            _ROUNDS,
            lambda: empty(store),
        )
    record("threads", _SENTENCES / ours, _SENTENCES / theirs, _UNIT, "ratio at least 1.8")


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
