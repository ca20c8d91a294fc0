"""AP and AUROC of neurons under one labeling, in torch operations: a constant number of them."""

from __future__ import annotations

import torch

from alignment.expertise.labels_torch import Groups, LabelTensors
from alignment.expertise.ranks_torch import Ranks


def score_labels(
    ranks: Ranks, pool_counts: torch.Tensor | None, labels: LabelTensors, ap_only: bool
) -> torch.Tensor:
    """AP, raw AP and AUROC, or AP alone, in float64, of shape (scores, concepts, neurons).

    `pool_counts` are the counts of `labels.pool`. Ranks are sorted by concept, so that a concept's
    positives are in the same columns for every neuron, highest first: they are summed in that order, as
    in `ap_kernel`.
    """
    positives, negatives = labels.positives, labels.negatives
    keys = _sorted_keys(ranks, positives)
    true = _count(keys, keys, labels.positive_starts, equal=True)
    in_pool = _count_pool(keys - positives.keys, pool_counts, labels)
    # a concept's own positives are not its negatives
    false = torch.addcmul(in_pool, true, labels.positive_in_pool, value=-1)
    if len(negatives):
        listed_keys = _sorted_keys(ranks, negatives)
        listed = _count(listed_keys, keys, labels.negative_starts, equal=True)
        false += listed
    weighted = (false * labels.positive_weights).add_(true)
    ap = _by_concept(true / weighted, labels, "mean")
    if ap_only:
        return ap[None]
    ap_raw = _by_concept(true.double() / false.add_(true), labels, "mean")
    # in another order than the keys, but of the same concepts
    above = ranks.above.index_select(1, positives.sentences)
    above_x2 = in_pool + _count_pool(above, pool_counts, labels)
    if len(negatives):
        above_x2 += listed.add_(_count(listed_keys, keys, labels.negative_starts, equal=False))
    # positives in the pool: one of any two is above the other, and each ties with itself
    total = _by_concept(above_x2.double(), labels, "sum") - labels.own_pairs[:, None]
    return torch.stack([ap, ap_raw, 1 - total / labels.pairs_x2[:, None]])


def _sorted_keys(ranks: Ranks, groups: Groups) -> torch.Tensor:
    """The ranks of the groups' sentences, sorted by concept, then rank."""
    keys = ranks.at_least.index_select(1, groups.sentences) + groups.keys
    return keys.sort(dim=1).values


def _count(
    keys: torch.Tensor, thresholds: torch.Tensor, starts: torch.Tensor, equal: bool
) -> torch.Tensor:
    """The number of `keys` of the threshold's concept that are above it, or also equal to it; `starts`
    has the first column of that concept in `keys`."""
    return torch.searchsorted(keys, thresholds, right=equal, out_int32=True).sub_(starts)


def _count_pool(
    n_sentences: torch.Tensor, pool_counts: torch.Tensor | None, labels: LabelTensors
) -> torch.Tensor:
    """The number of shared negatives among a neuron's first `n_sentences`."""
    if pool_counts is not None:
        return pool_counts.gather(1, n_sentences.long())
    return n_sentences if labels.all_in_pool else torch.zeros_like(n_sentences)


def _by_concept(values: torch.Tensor, labels: LabelTensors, reduction: str) -> torch.Tensor:
    """The sum or mean over each concept's positives, in their order; of shape (concepts, neurons)."""
    lengths = labels.n_positive.expand(len(values), -1)
    return torch.segment_reduce(values, reduction, lengths=lengths, axis=1, unsafe=True).T
