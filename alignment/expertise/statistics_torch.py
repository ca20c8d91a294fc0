"""`alignment.expertise.scoring.activation_statistics` on a torch device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from alignment.arrays import Ints
from alignment.expertise.device_chunks import DeviceChunks
from alignment.expertise.labels_torch import Groups, LabelTensors

_CHUNK_BYTES = 1 << 30
"""Working memory for a chunk of rows, unless a single row needs more."""

_BYTES_PER_VALUE = 64
"""Working memory per row and sentence."""

_QUANTILES = (0.5, 0.9)


def activation_statistics_torch(
    values: torch.Tensor, labels: LabelTensors, neurons: Ints, concepts: Ints, chunks: DeviceChunks
) -> npt.NDArray[np.float32]:
    """Median and 90th percentile on the positives, and mean on the negatives, of selected neurons.

    Row i of the result, of shape (pairs, 3), is for neuron `neurons[i]` and `concepts[i]`. `values` has
    shape (neurons, sentences), on the device of the labels.
    """
    if not len(neurons):
        return np.empty((0, 3), np.float32)
    selected, rows = np.unique(neurons, return_inverse=True)
    pool_sums = torch.cat(
        chunks.run(
            "means of the negatives",
            len(selected),
            _chunk_size(values.shape[1]),
            lambda part: _sum_pool(values[torch.tensor(selected[part], device=values.device)], labels),
        )
    )
    pairs = torch.tensor(np.stack([neurons, concepts, rows]), device=values.device)
    statistics = chunks.run(
        "activations on positives",
        len(neurons),
        _chunk_size(max(labels.positives.largest, labels.negatives.largest)),
        lambda part: _statistics(values, labels, pool_sums, *pairs[:, part]),
    )
    return torch.cat(statistics).cpu().numpy()


def _chunk_size(n_values: int) -> int:
    """The number of rows of `n_values` that are processed at a time."""
    return max(1, _CHUNK_BYTES // (_BYTES_PER_VALUE * n_values))


def _sum_pool(values: torch.Tensor, labels: LabelTensors) -> torch.Tensor:
    """The sum over the shared negatives, by neuron."""
    if labels.all_in_pool:
        return values.sum(1, dtype=torch.float64)
    if labels.pool is None:
        return torch.zeros(len(values), dtype=torch.float64, device=values.device)
    return torch.where(labels.pool, values, 0).sum(1, dtype=torch.float64)


def _statistics(
    values: torch.Tensor,
    labels: LabelTensors,
    pool_sums: torch.Tensor,
    neurons: torch.Tensor,
    concepts: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Statistics of pairs; `rows` are those of their neurons in `pool_sums`."""
    on, is_positive = _members(values, labels.positives, neurons, concepts)
    total = pool_sums[rows]
    # the pool is shared, but a concept's own positives are not its negatives
    total -= labels.own_in_pool[concepts] * torch.where(is_positive, on, 0).sum(1, dtype=torch.float64)
    if len(labels.negatives):
        off, is_negative = _members(values, labels.negatives, neurons, concepts)
        total += torch.where(is_negative, off, 0).sum(1, dtype=torch.float64)
    ordered = torch.where(is_positive, on, torch.inf).sort(dim=1).values
    quantiles = [_quantile(ordered, is_positive.sum(1), quantile) for quantile in _QUANTILES]
    return torch.stack([*quantiles, total / labels.n_negative[concepts]], dim=1).float()


def _members(
    values: torch.Tensor, groups: Groups, neurons: torch.Tensor, concepts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A neuron's values in float32 on the sentences of its concept, one row per pair, and which of them
    are such: rows are as long as the largest concept."""
    column = torch.arange(groups.largest, device=values.device)
    first, end = groups.starts[concepts], groups.starts[concepts + 1]
    entries = first[:, None] + column
    is_member = entries < end[:, None]
    sentences = groups.sentences[entries.clamp_(max=len(groups) - 1)]
    return values[neurons[:, None], sentences].float(), is_member


def _quantile(ordered: torch.Tensor, counts: torch.Tensor, quantile: float) -> torch.Tensor:
    """The quantile of the first `counts` values of each row, in float64, interpolated as by numpy."""
    position = (counts - 1).double() * quantile
    below = position.floor()
    low, high = (
        ordered.gather(1, index.long()[:, None])[:, 0]
        for index in (below, torch.minimum(below + 1, counts - 1))
    )
    weight, difference = position - below, high - low
    return torch.where(weight < 0.5, low + difference * weight, high - difference * (1 - weight))
