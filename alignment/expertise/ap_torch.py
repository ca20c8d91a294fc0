"""AP and AUROC of neurons under one labeling, in torch operations: a constant number of them."""

from __future__ import annotations

import torch

from alignment.expertise.labels_torch import LabelTensors
from alignment.expertise.ranks_torch import Ranks


def score_labels(ranks: Ranks, labels: LabelTensors, ap_only: bool) -> torch.Tensor:
    """AP, raw AP and AUROC, or AP alone, in float64, of shape (scores, concepts, neurons).

    Ranks are sorted by concept, so that a concept's positives are in the same columns for every neuron,
    highest first: they are summed in that order, as in `ap_kernel`.
    """
    entries = ranks.at_least.index_select(1, labels.entries) + labels.entry_keys
    entries = entries.sort(dim=1).values
    keys = entries[:, : len(labels.positives)]
    thresholds = keys
    if len(labels.offsets) > 1:
        thresholds = (keys[:, None] + labels.offsets).flatten(1)
    true, *negatives = _count(entries, thresholds, labels, equal=True)
    if labels.all_in_pool:
        negatives.append(keys - labels.positives.keys)
    false = sum(negatives[1:], start=negatives[0])
    if labels.has_own_in_pool:
        # a concept's own positives are not its negatives
        false = torch.addcmul(false, true, labels.positive_in_pool, value=-1)
    weighted = (false * labels.positive_weights).add_(true)
    ap = _by_concept(true / weighted, labels, "mean")
    if ap_only:
        return ap[None]
    ap_raw = _by_concept(true.double() / (false + true), labels, "mean")
    _, *above = _count(entries, thresholds, labels, equal=False)
    if labels.all_in_pool:
        # in another order than the keys, but of the same concepts
        above.append(ranks.above.index_select(1, labels.positives.sentences))
    counts = [*negatives, *above]
    above_x2 = sum(counts[1:], start=counts[0])
    # positives in the pool: one of any two is above the other, and each ties with itself
    total = _by_concept(above_x2.double(), labels, "sum") - labels.own_pairs[:, None]
    return torch.stack([ap, ap_raw, 1 - total / labels.pairs_x2[:, None]])


def _count(
    entries: torch.Tensor, thresholds: torch.Tensor, labels: LabelTensors, equal: bool
) -> list[torch.Tensor]:
    """For each kind of entry, the number of those above each positive, or also equal to it, that are of
    its concept or, of the pool, of any."""
    counts = torch.searchsorted(entries, thresholds, right=equal, out_int32=True).sub_(labels.starts)
    return list(counts.view(len(counts), len(labels.offsets), -1).unbind(1))


def _by_concept(values: torch.Tensor, labels: LabelTensors, reduction: str) -> torch.Tensor:
    """The sum or mean over each concept's positives, in their order; of shape (concepts, neurons)."""
    lengths = labels.n_positive.expand(len(values), -1)
    return torch.segment_reduce(values, reduction, lengths=lengths, axis=1, unsafe=True).T
