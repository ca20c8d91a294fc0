"""Memory of a device for the pooled values of all sentences in a block of layers, neuron by neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.activations.max_pooling import POOLINGS
from cluster.activations.pooling_shard import overflow_error
from cluster.models.sites import Site
from storage.errors import excerpt
from storage.store.commit import all_finite

_REORDERED_BYTES = 256 << 20


@dataclass(frozen=True)
class PooledValues:
    """Values of one pooling at sites of one width, (sites * units, sentences), on the device: float16 of
    neurons, float32 of hidden states. Row `i * units + unit` is a unit of site `i`."""

    pooling: str
    sites: tuple[Site, ...]
    values: torch.Tensor

    def of_sites(self) -> Iterator[tuple[Site, torch.Tensor]]:
        """Each site and its values, (units, sentences)."""
        return zip(self.sites, torch.split(self.values, self.sites[0].width), strict=True)


@dataclass(frozen=True)
class PoolingGroup:
    """Values of poolings that are computed together, at sites of one width, (poolings, sites, units,
    sentences)."""

    poolings: tuple[str, ...]
    sites: tuple[Site, ...]
    values: torch.Tensor

    def of_site(self, site: Site) -> torch.Tensor:
        """Values of a site, (poolings, units, sentences)."""
        return self.values[:, self.sites.index(site)]


class BlockBuffer:
    """Pooled values of a block of layers.

    Batches are written one after another, so a column is first a sentence's place among the batches,
    and after `finish` its place in the set: writing whole rows of columns is many times as fast.
    """

    def __init__(
        self, dtypes: Mapping[tuple[str, Site], torch.dtype], n_sentences: int, device: torch.device
    ) -> None:
        poolings: dict[Site, list[str]] = {}
        for pooling, site in dtypes:
            poolings.setdefault(site, []).append(pooling)
        groups: dict[tuple[tuple[str, ...], int, torch.dtype], list[Site]] = {}
        for site, names in poolings.items():
            for together in _split_poolings(names):
                key = together, site.width, dtypes[together[0], site]
                groups.setdefault(key, []).append(site)
        self.groups: list[PoolingGroup] = []
        for (together, width, dtype), sites in groups.items():
            shape = (len(together), len(sites), width, n_sentences)
            # An expert without tokens is not run: its neurons stay 0.
            allocate = torch.zeros if any(site.part == "experts" for site in sites) else torch.empty
            values = allocate(shape, dtype=dtype, device=device)
            self.groups.append(PoolingGroup(together, tuple(sites), values))
        self._by_site = {site: [g for g in self.groups if site in g.sites] for site in poolings}

    def groups_of(self, site: Site) -> list[PoolingGroup]:
        """The groups that a site's values are written to."""
        return self._by_site[site]

    def finish(self, order: Sequence[int], texts: Sequence[str]) -> list[PooledValues]:
        """All values, with a column for each sentence of the set; `order` are the sentences in the order
        in which they were written. Raises NeuralignError, naming the first sentence, if a value is not
        finite."""
        columns = torch.empty(len(order), dtype=torch.int64)
        columns[torch.tensor(order)] = torch.arange(len(order))
        for group in self.groups:
            _reorder(group.values, columns)
            if (place := _find_not_finite(group.values)) is not None:
                pooling, site = group.poolings[place[0]], group.sites[place[1]]
                sentence = f", sentence {excerpt(texts[place[2]])}"
                raise overflow_error(site, pooling, sentence)
        return [
            PooledValues(pooling, group.sites, values.flatten(0, 1))
            for group in self.groups
            for pooling, values in zip(group.poolings, group.values, strict=True)
        ]


def _split_poolings(poolings: Sequence[str]) -> list[tuple[str, ...]]:
    """The maxima together, and each other pooling alone."""
    maxima = tuple(pooling for pooling in poolings if pooling in POOLINGS)
    others: list[tuple[str, ...]] = [(pooling,) for pooling in poolings if pooling not in POOLINGS]
    return [maxima, *others] if maxima else others


def _reorder(values: torch.Tensor, columns: torch.Tensor) -> None:
    """Reorder the last dimension in place, in a limited amount of further memory."""
    rows = values.flatten(0, -2)
    rows_in_part = max(1, _REORDERED_BYTES // (rows.shape[1] * rows.itemsize))
    index = columns.to(values.device)
    for part in torch.split(rows, rows_in_part):
        if part.device.type == "cpu":
            # NumPy gathers several times as fast on a CPU.
            part.copy_(torch.from_numpy(np.take(part.numpy(), columns.numpy(), axis=1)))
        else:
            part.copy_(part.index_select(1, index))


def _find_not_finite(values: torch.Tensor) -> tuple[int, int, int] | None:
    """Pooling, site and sentence of the first value that is not finite, if any."""
    if values.device.type == "cpu":
        if all_finite(values.numpy()):
            return None
    else:
        is_finite = torch.stack(torch.aminmax(values, dim=-1)).isfinite()
        if bool(is_finite.all()):
            return None
    for pooling, sites in enumerate(values):
        for site, units in enumerate(sites):
            if len(found := (~units.isfinite()).any(dim=0).nonzero()):
                return pooling, site, int(found[0])
    return None
