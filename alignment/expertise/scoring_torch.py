"""Expertise in torch, for devices on which a compiled loop over sentences is slow: the same numbers as
`alignment.expertise.scoring`, from sorted activations and the ranks of the positives."""

from __future__ import annotations

import numpy as np
import torch

from alignment.expertise.label_permutations import Shuffles
from alignment.expertise.labels import Labels
from alignment.expertise.scoring import Scores, Tally, check, joined, tally, weight_of_negatives
from alignment.expertise.sorted_chunks import Values


def expertise_and_chance_on(
    device: str, values: Values, labels: Labels, shuffles: Shuffles, prevalence: float
) -> tuple[Scores, Tally]:
    """What `alignment.expertise.scoring.expertise_and_chance` gives, computed on a device.

    Raises ValueError for values that are not finite or do not fit the labels.
    """
    check(values, labels, prevalence)
    on_device = torch.from_numpy(values).to(device).to(torch.float32)
    if not bool(torch.isfinite(on_device).all()):
        raise ValueError("values are not finite")
    scores = _scores(on_device, labels, prevalence)
    shuffled = [tally(_scores(on_device, labels.of(each), prevalence).ap) for each in shuffles]
    return scores, joined([tally(scores.ap), *shuffled])


def _scores(values: torch.Tensor, labels: Labels, prevalence: float) -> Scores:
    own, n_negative = labels.kinds.own, labels.n_negative
    weight = weight_of_negatives(labels, prevalence)
    shared = _sorted(values, np.flatnonzero(labels.shared))
    listed = labels.listed_negatives
    columns = []
    for concept, positives in enumerate(labels.positives):
        on = _sorted(values, positives)
        extra = _sorted(values, listed[concept])
        at_least, more = (
            (_above(on, on, equal), _above(shared, on, equal) + _above(extra, on, equal))
            for equal in (True, False)
        )
        true = at_least[0]
        false, strictly = (negatives - own[concept] * found for found, negatives in (at_least, more))
        columns.append(
            torch.stack(
                [
                    (true / (true + weight[concept] * false)).mean(dim=1),
                    (true / (true + false)).mean(dim=1),
                    1 - (false + strictly).mean(dim=1) / (2 * n_negative[concept]),
                ]
            )
        )
    ap, ap_raw, auroc = torch.stack(columns, dim=2).cpu().numpy()
    return Scores(ap, ap_raw, auroc)


def _sorted(values: torch.Tensor, sentences: np.ndarray) -> torch.Tensor:
    # a copy: what workers share is read-only
    chosen = torch.tensor(sentences, device=values.device)
    return values[:, chosen].sort(dim=1).values


def _above(held: torch.Tensor, values: torch.Tensor, equal: bool) -> torch.Tensor:
    """How many of a neuron's held values are above each of its values, or equal to it as well."""
    below = torch.searchsorted(held, values, right=not equal)
    return (held.shape[1] - below).to(torch.float64)
