"""A steering shard as a Ray actor, and the requests that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any

import numpy as np
import torch

from alignment.arrays import Floats, Ints
from cluster.runtime.shard_group import ModelActor
from cluster.steering.interventions import SiteKey, SteeredSequence, SteeringBatch
from cluster.steering.shard import ForwardRecord, SteeringShard
from cluster.steering.tokens import sample_tokens

TOKEN_BUDGET = 1024
Attempt = tuple[str, str]
"""A request's name, and an id of this attempt at it."""


@dataclass(frozen=True)
class AttributionTargets:
    """Neurons of a site to attribute, as arrays of equal length: the group of sequences (a word after
    some prompts), the unit, and the value to which it would be clamped."""

    groups: Ints
    units: Ints
    on_values: Floats


@dataclass(frozen=True)
class AttributionRequest:
    """Neurons to attribute, each as the mean over the sequences of its group."""

    name: str
    sequences: list[SteeredSequence]
    targets: Mapping[SiteKey, AttributionTargets]
    budget: int = TOKEN_BUDGET


@dataclass(frozen=True)
class UnitsRequest:
    """Sequences in which units are read; units by site, ascending."""

    name: str
    sequences: list[SteeredSequence]
    units: Mapping[SiteKey, Ints]
    budget: int = TOKEN_BUDGET


@dataclass(frozen=True)
class UnitsRead:
    """Units of one site, ascending, their activations at all tokens of some sequences, (tokens, units),
    and the scalar products of their columns of weights, (units, units)."""

    units: Ints
    activations: Floats
    products: Floats


@dataclass(frozen=True)
class Continuations:
    """Sequences to continue. `uniforms`, (sequences, tokens), are random numbers in [0, 1) that select
    the tokens; at temperature 0 the likeliest is taken."""

    sequences: list[SteeredSequence]
    uniforms: Floats
    temperature: float


@dataclass(frozen=True)
class SteeringRequest:
    """Sequences whose targets' log P is measured, and sequences to continue."""

    name: str
    sequences: list[SteeredSequence]
    continuations: Continuations | None = None
    budget: int = TOKEN_BUDGET


@dataclass(frozen=True)
class SteeringResult:
    """log P of the targets of each measured sequence, and the text of each continuation."""

    log_p: list[Floats]
    texts: list[str]


@dataclass
class _AttemptState:
    """What a shard keeps of an attempt, by batch; gradient sums by site and group."""

    attempt_id: str
    records: dict[int, ForwardRecord] = field(default_factory=dict)
    sums: dict[SiteKey, dict[int, Floats]] = field(default_factory=dict)
    activations: dict[SiteKey, list[Floats]] = field(default_factory=dict)
    caches: dict[int, Any] = field(default_factory=dict)
    tokens: dict[int, list[Ints]] = field(default_factory=dict)


class SteeringActor(ModelActor[SteeringShard]):
    """Holds a steering shard on one device. Arguments with an underscore are only dependencies."""

    shard_class = SteeringShard
    _states: dict[str, _AttemptState]

    def run(self, batch: SteeringBatch, incoming: Any, _earlier_batch: object) -> Any:
        """Run a batch: the next shard's input, or log P from the last shard."""
        return [_to_host(output) for output in self._shard.run(batch, incoming)]

    def forward(
        self, attempt: Attempt, number: int, batch: SteeringBatch, incoming: Any, _earlier_batch: object
    ) -> Any:
        """Run a batch for a backward pass, which the last shard begins: the next shard's input or, from
        the last shard, the gradient for the one before."""
        state = self._state_of(attempt)
        state.records[number] = self._shard.forward_recorded(batch, incoming)
        if self._shard.is_last:
            return self.backward(attempt, number, batch, None)
        return _to_host(state.records[number].outgoing.detach())

    def backward(self, attempt: Attempt, number: int, batch: SteeringBatch, gradient: Any) -> Any:
        """Run a batch's backward pass, and add each row's gradients to the sums of its group."""
        state = self._state_of(attempt)
        incoming_gradient, sums = self._shard.backward(state.records.pop(number), gradient)
        for key, row_sums in sums.items():
            group_sums = state.sums.setdefault(key, {})
            for index, row in enumerate(batch.rows):
                group_sums[row.group] = group_sums.get(row.group, 0.0) + row_sums[:, index]
        return _to_host(incoming_gradient)

    def attribute(
        self, attempt: Attempt, request: AttributionRequest, earlier: dict[SiteKey, Floats], *_: object
    ) -> dict[SiteKey, Floats]:
        """Attributions at this shard's sites, added to those of earlier shards.

        gradient x (on - activation), summed over tokens, is on x (sum of gradients) minus the sum of
        gradient x activation.
        """
        sums = self._state_of(attempt).sums
        attributions = dict(earlier)
        group_sizes = np.bincount([sequence.group for sequence in request.sequences])
        for key, targets in request.targets.items():
            if key in sums:
                group_sums = dict(sorted(sums[key].items()))
                rows = np.searchsorted(list(group_sums), targets.groups)
                stacked = np.stack(list(group_sums.values()))  # (groups, 2, units)
                gradients, products = stacked[rows, :, targets.units].T
                totals = targets.on_values * gradients - products
                attributions[key] = totals / group_sizes[targets.groups]
        del self._states[attempt[0]]
        return attributions

    def read(
        self,
        attempt: Attempt,
        batch: SteeringBatch,
        units: Mapping[SiteKey, Ints],
        incoming: Any,
        _earlier_batch: object,
    ) -> Any:
        """Run a batch and keep the activations of some units: the next shard's input."""
        record = self._shard.forward_recorded(batch, incoming)
        activations = self._state_of(attempt).activations
        for key, values in self._shard.read_units(record, units).items():
            activations.setdefault(key, []).append(values)
        return _to_host(record.outgoing.detach())

    def gather_units(
        self,
        attempt: Attempt,
        units: Mapping[SiteKey, Ints],
        earlier: dict[SiteKey, UnitsRead],
        *_: object,
    ) -> dict[SiteKey, UnitsRead]:
        """The units that were read at this shard's sites, with those of earlier shards."""
        activations = self._state_of(attempt).activations
        products = self._shard.column_products(units)
        del self._states[attempt[0]]
        return earlier | {
            key: UnitsRead(units[key], np.concatenate(activations[key]), products[key])
            for key in products
        }

    def decode_step(
        self, attempt: Attempt, number: int, continuations: Continuations, step: int, inputs: Any
    ) -> Any:
        """Continue a batch by one token: its hidden states or, from the last shard, the tokens. `inputs`
        are the previous shard's hidden states or, for the first shard, the last tokens."""
        state = self._state_of(attempt)
        if step == 0:
            state.caches[number] = self._shard.new_cache()
            if self._shard.is_first:
                inputs = np.array([sequence.ids for sequence in continuations.sequences], np.int64)
        output = self._shard.decode_step(continuations.sequences, inputs, state.caches[number])
        if step + 1 == continuations.uniforms.shape[1]:
            del state.caches[number]
        if not self._shard.is_last:
            return _to_host(output)
        tokens = sample_tokens(output, continuations.uniforms[:, step], continuations.temperature)
        state.tokens.setdefault(number, []).append(tokens)
        return tokens

    def decode_texts(self, attempt: Attempt, number: int, _last_tokens: object) -> list[str]:
        """The continuations of a batch, each up to its first end-of-text token."""
        tokens = np.concatenate(self._state_of(attempt).tokens.pop(number), axis=1)
        eos = self._shard.eos_token_ids()
        return [
            self._shard.tokenizer.decode(takewhile(lambda token: token not in eos, row))
            for row in tokens.tolist()
        ]

    def release(self, attempt: Attempt, _result: object) -> None:
        """Drop the state of a request."""
        self._states.pop(attempt[0], None)

    def gather(
        self, indices: Sequence[Sequence[int]], n_measured: int, *results: list[Any]
    ) -> SteeringResult:
        """Results of all batches in the order of their sequences; the first `n_measured` are log P, the
        others texts."""
        return SteeringResult(
            _restore_order(indices[:n_measured], results[:n_measured]),
            _restore_order(indices[n_measured:], results[n_measured:]),
        )

    def _state_of(self, attempt: Attempt) -> _AttemptState:
        name, attempt_id = attempt
        if name not in self._states or self._states[name].attempt_id != attempt_id:
            # Discards the sums of a failed attempt.
            self._states[name] = _AttemptState(attempt_id)
        return self._states[name]


def _to_host(values: Any) -> Any:
    return values.cpu() if isinstance(values, torch.Tensor) else values


def _restore_order(indices: Sequence[Sequence[int]], results: Sequence[Sequence[Any]]) -> list[Any]:
    by_index = dict(zip(chain(*indices), chain(*results), strict=True))
    return [by_index[index] for index in range(len(by_index))]
