"""`alignment.expertise.scoring` in torch, from ranks of positives, for devices without fast loops."""

from __future__ import annotations

import numpy as np
import torch

from alignment.arrays import AnyFloats
from alignment.expertise.label_permutations import LabelPermutations
from alignment.expertise.labels import Labels
from alignment.expertise.scoring import ApHistogram, Scores, check_inputs, negative_weights


def score_with_permutations_torch(
    device: str, values: AnyFloats, labels: Labels, permutations: LabelPermutations, prevalence: float
) -> tuple[Scores, ApHistogram]:
    """`alignment.expertise.scoring.score_with_permutations` on a torch device.

    Raises:
        ValueError: if `values` contains non-finite numbers or does not match `labels`.
    """
    check_inputs(values, labels, prevalence)
    on_device = torch.from_numpy(values).to(device).to(torch.float32)
    if not bool(torch.isfinite(on_device).all()):
        raise ValueError("values are not finite")
    scores = _score(on_device, labels, prevalence)
    permuted = (_score(on_device, labels.take(sources), prevalence).ap for sources in permutations)
    histograms = [ApHistogram.from_ap(scores.ap), *map(ApHistogram.from_ap, permuted)]
    return scores, ApHistogram.stack(histograms)


def _score(values: torch.Tensor, labels: Labels, prevalence: float) -> Scores:
    in_pool, n_negative = labels.patterns.positives_in_pool, labels.n_negative
    weight = negative_weights(labels, prevalence)
    pool = _sort(values, np.flatnonzero(labels.in_shared_pool))
    listed = labels.listed_negatives
    columns = []
    for concept, positives in enumerate(labels.positives):
        on = _sort(values, positives)
        off = _sort(values, listed[concept])
        at_least, strictly_above = (
            (_count_above(on, on, equal), _count_above(pool, on, equal) + _count_above(off, on, equal))
            for equal in (True, False)
        )
        true = at_least[0]
        false, false_above = (
            n_off - in_pool[concept] * n_on for n_on, n_off in (at_least, strictly_above)
        )
        ap = (true / (true + weight[concept] * false)).mean(dim=1)
        ap_raw = (true / (true + false)).mean(dim=1)
        auroc = 1 - (false + false_above).mean(dim=1) / (2 * n_negative[concept])
        columns.append(torch.stack([ap, ap_raw, auroc]))
    return Scores(*torch.stack(columns, dim=2).cpu().numpy())


def _sort(values: torch.Tensor, sentences: np.ndarray) -> torch.Tensor:
    # a copy, because arrays shared between workers are read-only
    chosen = torch.tensor(sentences, device=values.device)
    return values[:, chosen].sort(dim=1).values


def _count_above(ascending: torch.Tensor, values: torch.Tensor, equal: bool) -> torch.Tensor:
    """Per row, the number of `ascending` values above each of `values`, or also equal to it."""
    n_below = torch.searchsorted(ascending, values, right=not equal)
    return (ascending.shape[1] - n_below).to(torch.float64)
