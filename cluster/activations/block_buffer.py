"""Memory of a device for the pooled values of all sentences in a block of layers, neuron by neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cluster.activations.column_order import REORDERED_BYTES, reorder_columns, transpose_rows
from cluster.activations.ordered_threads import map_in_order
from cluster.activations.pooling_shard import overflow_error
from cluster.models.sites import Site
from cluster.models.token_roles import POOLED_ROLES
from storage.errors import NeuralignError, excerpt


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
    """Values of poolings that are computed together, at sites of one width: on a GPU (poolings, sites,
    units, sentences), on a CPU (poolings, sites, sentences, units) until all are there."""

    poolings: tuple[str, ...]
    sites: tuple[Site, ...]
    values: torch.Tensor

    def of_sites(self) -> Iterator[tuple[Site, torch.Tensor]]:
        """Each site and its values, (poolings, units, sentences)."""
        values = self.values if self.values.device.type == "cuda" else self.values.mT
        return zip(self.sites, values.unbind(1), strict=True)

    def finish(self, columns: torch.Tensor, threads: int) -> tuple[torch.Tensor, bool]:
        """The values with these columns, (poolings, sites * units, sentences), in the memory of
        `values`; and whether all are finite."""
        if self.values.device.type == "cuda":
            return self.values.flatten(1, 2), reorder_columns(self.values.flatten(0, -2), columns)
        of_sites = self.values.flatten(0, 1).unbind()
        # Each takes the memory of a site.
        n_at_once = min(threads, max(1, REORDERED_BYTES // of_sites[0].nbytes))
        are_finite = list(
            map_in_order(lambda rows: transpose_rows(rows, columns)[1], of_sites, n_at_once)
        )
        return self.values.view(len(self.poolings), -1, len(columns)), all(are_finite)


class BlockBuffer:
    """Pooled values of a block of layers.

    Batches are written one after another, so a column is first a sentence's place among the batches,
    and after `finish` its place in the set: writing columns side by side is many times as fast. On a CPU
    a column is a row of memory until then: a column of a batch would take a page of memory a unit.
    """

    def __init__(
        self, dtypes: Mapping[tuple[str, Site], torch.dtype], n_sentences: int, device: torch.device
    ) -> None:
        poolings: dict[Site, list[str]] = {}
        for pooling, site in dtypes:
            poolings.setdefault(site, []).append(pooling)
        self._poolings = poolings
        groups: dict[tuple[tuple[str, ...], int, torch.dtype], list[Site]] = {}
        for site, names in poolings.items():
            for together in _split_poolings(names):
                key = together, site.width, dtypes[together[0], site]
                groups.setdefault(key, []).append(site)
        self.groups: list[PoolingGroup] = []
        for (together, width, dtype), sites in groups.items():
            of_site = (width, n_sentences) if device.type == "cuda" else (n_sentences, width)
            shape = (len(together), len(sites), *of_site)
            # An expert without tokens is not run: its neurons stay 0.
            allocate = torch.zeros if any(site.part == "experts" for site in sites) else torch.empty
            values = allocate(shape, dtype=dtype, device=device)
            self.groups.append(PoolingGroup(together, tuple(sites), values))
        self._by_site: dict[Site, list[tuple[tuple[str, ...], torch.Tensor]]] = {}
        for group in self.groups:
            for site, values in group.of_sites():
                self._by_site.setdefault(site, []).append((group.poolings, values))

    def of_site(self, site: Site) -> list[tuple[tuple[str, ...], torch.Tensor]]:
        """Poolings that are computed together, and where a site's values are written, (poolings, units,
        sentences)."""
        return self._by_site[site]

    def finish(self, order: Sequence[int], texts: Sequence[str], threads: int = 1) -> list[PooledValues]:
        """All values, with a column for each sentence of the set; `order` are the sentences in the order
        in which they were written.

        Raises:
            NeuralignError: if a value is not finite, naming the first site in the order of the model and
                of `dtypes`, its first pooling and the first sentence.
        """
        columns = torch.empty(len(order), dtype=torch.int64)
        columns[torch.tensor(order)] = torch.arange(len(order))
        pooled, are_finite = list[PooledValues](), True
        for group in self.groups:
            finished, is_finite = group.finish(columns, threads)
            are_finite &= is_finite
            pooled += [
                PooledValues(pooling, group.sites, values)
                for pooling, values in zip(group.poolings, finished, strict=True)
            ]
        if not are_finite:
            raise next(self._overflow_errors(pooled, texts))
        return pooled

    def _overflow_errors(
        self, pooled: Sequence[PooledValues], texts: Sequence[str]
    ) -> Iterator[NeuralignError]:
        """The errors of values that are not finite, in the order of the layers: the first may have
        caused the others. They do not depend on the groups."""
        by_key = {(group.pooling, site): values for group in pooled for site, values in group.of_sites()}
        for site in sorted(self._poolings, key=lambda site: site.layer):
            for pooling in self._poolings[site]:
                values = by_key[pooling, site]
                if len(columns := (~values.isfinite()).any(dim=0).nonzero()):
                    yield overflow_error(site, pooling, f", sentence {excerpt(texts[int(columns[0])])}")


def _split_poolings(poolings: Sequence[str]) -> list[tuple[str, ...]]:
    """The maxima together, and each other pooling alone."""
    maxima = tuple(pooling for pooling in poolings if pooling in POOLED_ROLES)
    others: list[tuple[str, ...]] = [(pooling,) for pooling in poolings if pooling not in POOLED_ROLES]
    return [maxima, *others] if maxima else others
