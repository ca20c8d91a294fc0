"""AP and AUROC of neurons under one labeling, in one Triton kernel.

Triton comes with torch for NVIDIA GPUs and is not a dependency of this project: `ap_torch` does the same
in torch operations. The positives of a concept are sorted in registers, or, if these do not hold them,
counted by place, as listed negatives are.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from alignment.expertise.labels_torch import LabelTensors
from alignment.expertise.place_counts_triton import BITS, count_places, place_bytes, read_count
from alignment.expertise.ranks_torch import Ranks

MAX_SORTED = 1024
"""Concepts with more positives are not sorted."""

PAIRS = 512
"""Neurons times positives of one program at a time: their ranks and counts stay in registers."""

_UNSORTED = 16
"""Positives of one program at a time where they are not sorted."""


def count_bytes(labels: LabelTensors, n_sentences: int) -> int:
    """Working memory of `score_labels` per neuron for counts by place."""
    is_counted = (not _is_sorted(labels, n_sentences), len(labels.negatives) > 0)
    return sum(is_counted) * place_bytes(n_sentences, len(labels.weight))


def score_labels(
    ranks: Ranks, pool_counts: torch.Tensor | None, labels: LabelTensors, ap_only: bool
) -> torch.Tensor:
    """AP, raw AP and AUROC, or AP alone, in float64, of shape (scores, concepts, neurons).

    `pool_counts` are the counts of `labels.pool`. Any layout of `ranks` will do; `store_by_sentence`
    makes the fastest.
    """
    n_neurons, n_concepts = len(ranks.at_least), len(labels.weight)
    shape = (1 if ap_only else 3, n_concepts, n_neurons)
    scores = torch.empty(shape, dtype=torch.float64, device=ranks.at_least.device)
    n_sentences = ranks.at_least.shape[1]
    is_sorted = _is_sorted(labels, n_sentences)
    n_positives = _sorted_size(labels) if is_sorted else _UNSORTED
    neurons_in_block = max(1, PAIRS // n_positives)
    has_negatives = len(labels.negatives) > 0
    unread = ranks.at_least.new_empty(2, 1, 1, 1)
    positives = unread if is_sorted else count_places(ranks.order, labels.positives, n_concepts)
    negatives = count_places(ranks.order, labels.negatives, n_concepts) if has_negatives else unread
    place_stride, word_stride = (positives if negatives is unread else negatives)[0].stride()[:2]
    _score_kernel[(triton.cdiv(n_neurons, neurons_in_block) * n_concepts,)](
        scores,
        ranks.at_least,
        ranks.above,
        ranks.at_least if pool_counts is None else pool_counts,
        labels.positives.sentences,
        labels.positives.starts,
        *positives,
        *negatives,
        labels.own_in_pool,
        labels.weight,
        labels.own_pairs,
        labels.pairs_x2,
        n_neurons,
        n_concepts,
        n_neurons * n_concepts,
        n_sentences,
        *ranks.at_least.stride(),
        0 if pool_counts is None else pool_counts.stride(0),
        place_stride,
        word_stride,
        labels.all_in_pool,
        pool_counts is not None,
        has_negatives,
        ap_only,
        is_sorted,
        neurons_in_block,
        n_positives,
        BITS,
        # one warp sorts without shared memory
        num_warps=1,
        # products are rounded, as in the other kernels
        enable_fp_fusion=False,
    )
    return scores


def _sorted_size(labels: LabelTensors) -> int:
    """The size of a tensor of a concept's positives: a power of 2, as Triton requires."""
    return int(max(_UNSORTED, triton.next_power_of_2(labels.positives.largest)))


def _is_sorted(labels: LabelTensors, n_sentences: int) -> bool:
    """Whether positives are sorted: their keys must fit 32 bits."""
    size = _sorted_size(labels)
    return size <= MAX_SORTED and (n_sentences + 2) * size <= 2**31


@triton.jit  # type: ignore[untyped-decorator]
def _score_kernel(  # type: ignore[no-untyped-def]
    scores,
    at_least,
    above,
    pool_counts,
    positives,
    positive_starts,
    positive_counts,
    positive_bits,
    negative_counts,
    negative_bits,
    own_in_pool,
    weights,
    own_pairs,
    pairs_x2,
    n_neurons,
    n_concepts,
    score_stride,
    n_sentences,
    neuron_stride,
    sentence_stride,
    pool_stride,
    place_stride,
    word_stride,
    all_in_pool: tl.constexpr,
    has_pool_counts: tl.constexpr,
    has_negatives: tl.constexpr,
    ap_only: tl.constexpr,
    is_sorted: tl.constexpr,
    neurons_in_block: tl.constexpr,
    positives_in_block: tl.constexpr,
    bits: tl.constexpr,
) -> None:
    """Scores of a block of neurons for one concept; see `score_labels`."""
    program = tl.program_id(0)
    concept = program % n_concepts
    neurons = (program // n_concepts).to(tl.int64) * neurons_in_block + tl.arange(0, neurons_in_block)
    is_neuron = neurons < n_neurons
    rows, pool_rows = neurons * neuron_stride, neurons[:, None] * pool_stride
    # of the concept in the neurons' first words
    words = neurons[:, None] * place_stride + concept
    own, weight = tl.load(own_in_pool + concept), tl.load(weights + concept)
    first, end = tl.load(positive_starts + concept), tl.load(positive_starts + concept + 1)
    n_positive = (end - first).to(tl.float64)
    precision = tl.zeros((neurons_in_block,), tl.float64)
    raw_precision = tl.zeros((neurons_in_block,), tl.float64)
    above_x2 = tl.zeros((neurons_in_block,), tl.int64)
    for start in range(first, end, positives_in_block):
        entries = start + tl.arange(0, positives_in_block)
        is_pair = is_neuron[:, None] & (entries < end)[None, :]
        sentences = tl.load(positives + entries, mask=entries < end, other=0).to(tl.int64)
        cells = rows[:, None] + sentences[None, :] * sentence_stride
        if is_sorted:
            # sorted after all others
            rank = tl.load(at_least + cells, mask=is_pair, other=-1)
            rank, true = _sort(rank, n_sentences, end - first, positives_in_block)
        else:
            rank = tl.load(at_least + cells, mask=is_pair, other=1)
            true = read_count(positive_counts, positive_bits, words, rank, is_pair, word_stride, bits)
        pool = _pool(pool_counts, pool_rows, rank, is_pair, all_in_pool, has_pool_counts)
        negatives_x2 = pool
        # a concept's own positives are not its negatives
        false = pool - own * true
        if has_negatives:
            listed = read_count(negative_counts, negative_bits, words, rank, is_pair, word_stride, bits)
            false += listed
            negatives_x2 += listed
        term = true.to(tl.float64) / (true.to(tl.float64) + weight * false.to(tl.float64))
        precision += tl.sum(tl.where(is_pair, term, 0.0), axis=1)
        if not ap_only:
            term = true.to(tl.float64) / (true + false).to(tl.float64)
            raw_precision += tl.sum(tl.where(is_pair, term, 0.0), axis=1)
            n_above = tl.load(above + cells, mask=is_pair, other=0)
            negatives_x2 += _pool(pool_counts, pool_rows, n_above, is_pair, all_in_pool, has_pool_counts)
            if has_negatives:
                # in another order than the ranks, but of the same positives
                negatives_x2 += read_count(
                    negative_counts, negative_bits, words, n_above, is_pair, word_stride, bits
                )
            above_x2 += tl.sum(tl.where(is_pair, negatives_x2.to(tl.int64), 0), axis=1)
    out = concept.to(tl.int64) * n_neurons + neurons
    tl.store(scores + out, precision / n_positive, mask=is_neuron)
    if not ap_only:
        tl.store(scores + score_stride + out, raw_precision / n_positive, mask=is_neuron)
        # positives in the pool: one of any two is above the other, and each ties with itself
        total = above_x2.to(tl.float64) - tl.load(own_pairs + concept)
        auroc = 1.0 - total / tl.load(pairs_x2 + concept)
        tl.store(scores + 2 * score_stride + out, auroc, mask=is_neuron)


@triton.jit  # type: ignore[untyped-decorator]
def _sort(rank, n_sentences, n_positive, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """The ranks in each row, those of the lowest activations first, and the number of positives at or
    above each."""
    index = tl.arange(0, size)[None, :]
    # Of equal ranks, the first has the highest key, and so has every key up to the last of them.
    keys = tl.sort(n_sentences - rank, dim=1) * size + (size - 1 - index)
    keys = tl.associative_scan(keys, 1, _maximum)
    n_below = size - 1 - keys % size
    return n_sentences - keys // size, n_positive - n_below


@triton.jit
def _maximum(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b)


@triton.jit  # type: ignore[untyped-decorator]
def _pool(  # type: ignore[no-untyped-def]
    pool_counts, pool_rows, rank, is_pair, all_in_pool: tl.constexpr, has_pool_counts: tl.constexpr
):
    """The number of shared negatives among a neuron's first `rank` sentences."""
    if all_in_pool:
        count = rank
    elif has_pool_counts:
        count = tl.load(pool_counts + pool_rows + rank, mask=is_pair, other=0)
    else:
        count = tl.zeros(rank.shape, tl.int32)
    return count
