"""A shard whose neurons can be changed, with gradients of log-probabilities. Imports no Ray.

The last shard has the language-model head. A neuron is changed where it is read, at every token.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from alignment.arrays import Floats, Ints
from cluster.models.divisible import CACHEABLE
from cluster.models.hooks import extract_hidden_state, replace_hidden_state
from cluster.models.shard import ForwardState, ModelShard
from cluster.models.sites import Site
from cluster.models.written_columns import written_columns
from cluster.steering.interventions import SiteKey, SteeredSequence, SteeringBatch
from storage.errors import NeuralignError

_Changes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Rows, units, scales and offsets, of equal length."""

UnitRange = tuple[SiteKey, int]
"""A site, and the first of the units in a tensor of its values: experts have one tensor each."""


class _ShardCache(DynamicCache):
    """Keys and values of a shard's layers, which are numbered as in the full model."""

    def __init__(self, config: Any, first_layer: int) -> None:
        super().__init__(config=config)
        self._first_layer = first_layer

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        return super().update(key_states, value_states, layer_idx - self._first_layer, *args, **kwargs)

    def select(self, rows: Sequence[int]) -> _ShardCache:
        """A copy of some rows, which may repeat."""
        selected = copy.copy(self)
        selected.layers = [copy.copy(layer) for layer in self.layers]
        selected.batch_select_indices(torch.tensor(rows))
        return selected


@dataclass
class _PastInputs:
    """The inputs of all tokens so far, (rows, tokens, ...), which are run again with each further one:
    for architectures whose cache is not known to give the same values."""

    inputs: torch.Tensor | None = None

    def select(self, rows: Sequence[int]) -> _PastInputs:
        """A copy of some rows, which may repeat."""
        return _PastInputs(None if self.inputs is None else self.inputs[list(rows)])


_Cache = _ShardCache | _PastInputs


@dataclass
class ForwardRecord:
    """A batch's forward pass through a shard, kept for the backward pass."""

    incoming: torch.Tensor
    outgoing: torch.Tensor
    activations: dict[UnitRange, torch.Tensor]


@dataclass(kw_only=True)
class _SteeringState(ForwardState):
    changes: dict[SiteKey, _Changes]
    is_recorded: bool
    entry: torch.Tensor | None = None
    activations: dict[UnitRange, torch.Tensor] = field(default_factory=dict)


class SteeringShard(ModelShard[_SteeringState]):
    """Layers [a, b) of a model, whose sites can be changed; the last shard gives log-probabilities."""

    with_head = True

    @cached_property
    def _widths(self) -> dict[SiteKey, int]:
        return {(site.layer, site.name): site.width for site in self.sites}

    def run(
        self, batch: SteeringBatch, incoming: Sequence[torch.Tensor] | None
    ) -> list[torch.Tensor] | list[Floats]:
        """Hidden states after the shard, (rows, tokens, width), one of the batch and one of each of its
        `branches`, from those before it (None for the first shard). From the last shard, log P of the
        targets of each row and its branches."""
        cache = self.new_cache() if batch.branches else None
        states: list[torch.Tensor] = []
        log_p: list[list[Floats]] = []
        with torch.inference_mode():
            for index, part in enumerate([batch, *batch.branches]):
                inputs = _token_ids(part.rows) if incoming is None else incoming[index]
                past = cache if cache is None or part is batch else cache.select(part.indices)
                state, logits = self._forward(part.rows, inputs, part.n_scored_positions, cache=past)
                if logits is None:
                    states.append(self._outgoing(state))
                else:
                    log_p.append(_split_by_row(self._target_log_p(part, logits), part))
        return batch.merge_branches(log_p) if self.is_last else states

    def forward_recorded(self, batch: SteeringBatch, incoming: torch.Tensor | None) -> ForwardRecord:
        """Run a batch for a later `backward`. The outgoing value of the last shard is the sum of log P
        over all targets."""
        inputs = _token_ids(batch.rows) if incoming is None else incoming
        state, logits = self._forward(batch.rows, inputs, batch.n_scored_positions, is_recorded=True)
        outgoing = self._outgoing(state) if logits is None else self._target_log_p(batch, logits).sum()
        if state.entry is None:
            raise NeuralignError(f"{type(self.model).__name__}: its first layer did not run")
        return ForwardRecord(state.entry, outgoing, state.activations)

    def backward(
        self, record: ForwardRecord, gradient: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[SiteKey, Floats]]:
        """Gradients of the sum of log P: of the hidden state before the shard, from that after it (None
        for the last shard); and, by site, (2, rows, units), of the neurons, alone and times their
        activations, summed over tokens."""
        inputs = [record.incoming, *record.activations.values()]
        if gradient is not None:
            gradient = gradient.to(self.device)
        incoming_gradient, *site_gradients = torch.autograd.grad(
            record.outgoing, inputs, gradient, allow_unused=True
        )
        sums = {}
        for (key, first), site_gradient in zip(record.activations, site_gradients, strict=True):
            values = record.activations[key, first].detach().double()
            gradients = torch.zeros_like(values) if site_gradient is None else site_gradient.double()
            parts = torch.stack([gradients.sum(1), (gradients * values).sum(1)]).cpu().numpy()
            if key not in sums:
                sums[key] = np.zeros((2, values.shape[0], self._widths[key]))
            sums[key][:, :, first : first + values.shape[2]] = parts
        return incoming_gradient, sums

    def read_units(self, record: ForwardRecord, units: Mapping[SiteKey, Ints]) -> dict[SiteKey, Floats]:
        """Activations of some units of this shard's sites in a recorded batch, (rows x tokens, units); 0
        where a routed expert did not run."""
        n_tokens = math.prod(record.incoming.shape[:-1][-2:])
        values = {key: np.zeros((n_tokens, len(units[key]))) for key in self._widths if key in units}
        for (key, first), activations in record.activations.items():
            if key in values:
                present = (units[key] >= first) & (units[key] < first + activations.shape[-1])
                read = activations.detach()[..., units[key][present] - first].flatten(0, -2)
                values[key][:, present] = read.double().cpu().numpy()
        return values

    def column_products(self, units: Mapping[SiteKey, Ints]) -> dict[SiteKey, Floats]:
        """Scalar products of the columns of weights by which units of this shard's sites are multiplied,
        (units, units), by site. Units that are the output of their module have unit vectors."""
        products = {}
        for site in self.sites:
            key = (site.layer, site.name)
            if key in units:
                self._check_units(site, units[key])
                columns = written_columns(self._modules[site.layer], site, torch.from_numpy(units[key]))
                products[key] = (
                    np.eye(len(units[key])) if columns is None else (columns @ columns.T).cpu().numpy()
                )
        return products

    def new_cache(self) -> _Cache:
        """An empty cache of what precedes a token."""
        if self._model_type not in CACHEABLE:
            return _PastInputs()
        return _ShardCache(self._config, self.layers.start)

    def decode_step(
        self, sequences: Sequence[SteeredSequence], inputs: Ints | torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Run further tokens, (rows, tokens), or the hidden state before the shard, after the cached
        tokens: the hidden state after the shard or, from the last shard, log P of the next token,
        (rows, vocabulary)."""
        with torch.inference_mode():
            state, logits = self._forward(sequences, inputs, 1, cache=cache)
            return self._outgoing(state) if logits is None else logits[:, -1].float().log_softmax(-1)

    def eos_token_ids(self) -> set[int]:
        """Tokens that end a text."""
        ids = self._config.eos_token_id
        return set(ids if isinstance(ids, list) else [ids]) - {None}

    def _forward(
        self,
        sequences: Sequence[SteeredSequence],
        inputs: Ints | torch.Tensor,
        n_logits: int,
        is_recorded: bool = False,
        cache: _Cache | None = None,
    ) -> tuple[_SteeringState, torch.Tensor | None]:
        """Run token ids or a hidden state; the last shard gives logits of at least the last `n_logits`
        positions."""
        n_rows, n_tokens = inputs.shape[:2]
        options: dict[str, Any] = {"use_cache": isinstance(cache, _ShardCache)}
        n_past = 0
        if isinstance(cache, _ShardCache):
            n_past = cache.get_seq_length()
            options["past_key_values"] = cache
        elif isinstance(cache, _PastInputs):
            inputs = torch.as_tensor(inputs)
            if cache.inputs is not None:
                inputs = torch.cat([cache.inputs, inputs], dim=1)
            cache.inputs = inputs
        mask = torch.ones(n_rows, n_past + inputs.shape[1], dtype=torch.int64, device=self.device)
        if self.is_last and self._supports_logits_to_keep:
            options["logits_to_keep"] = max(1, n_logits)
        state = _SteeringState(changes=self._make_changes(sequences), is_recorded=is_recorded)
        output = self._run_model(state, inputs, attention_mask=mask, **options)
        if self.is_last:
            return state, output.logits[:, -n_tokens:]
        state.outgoing = self._outgoing(state)[..., -n_tokens:, :]
        return state, None

    @cached_property
    def _supports_logits_to_keep(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def _make_changes(self, sequences: Sequence[SteeredSequence]) -> dict[SiteKey, _Changes]:
        """The changed rows and units of each site that has any, and how they change."""
        interventions = [sequence.intervention for sequence in sequences]
        tensors = {}
        for site in self.sites:
            key = (site.layer, site.name)
            changed = [
                (row, changes[key]) for row, changes in enumerate(interventions) if key in changes
            ]
            if not changed:
                continue
            rows = np.repeat([row for row, _ in changed], [len(change.units) for _, change in changed])
            units = np.concatenate([change.units for _, change in changed]).astype(np.int64)
            self._check_units(site, units)
            scales, offsets = (
                np.concatenate([getattr(change, name) for _, change in changed]).astype(np.float32)
                for name in ("scales", "offsets")
            )
            tensors[key] = (
                torch.from_numpy(rows).to(self.device),
                torch.from_numpy(units).to(self.device),
                torch.from_numpy(scales).to(self.device, self.dtype),
                torch.from_numpy(offsets).to(self.device, self.dtype),
            )
        return tensors

    @staticmethod
    def _check_units(site: Site, units: Ints) -> None:
        if len(units) and not 0 <= units.min() <= units.max() < site.width:
            raise NeuralignError(f"{site}: has {site.width} units; cannot change unit {units.max()}")

    def _target_log_p(self, batch: SteeringBatch, logits: torch.Tensor) -> torch.Tensor:
        """log P of the targets of all rows, concatenated."""
        offset = batch.length - logits.shape[1]
        indices = [
            (row, target.position - offset, target.token)
            for row, sequence in enumerate(batch.rows)
            for target in sequence.targets
        ]
        rows, positions, tokens = (
            torch.tensor(indices, dtype=torch.int64, device=self.device).reshape(-1, 3).unbind(1)
        )
        log_p = logits.float().log_softmax(-1)[rows, positions, tokens]
        if bool(log_p.isnan().any()):
            raise NeuralignError(
                "the model's output is NaN; try dtype float32, or check the model's weights"
            )
        return log_p

    def _on_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = self._state
        if state is None or not state.is_recorded:
            return super()._on_entry(module, args, kwargs)
        hidden = state.incoming
        if hidden is None:
            hidden = extract_hidden_state(args or (kwargs["hidden_states"],))
        if hidden is None:
            return None
        state.entry = hidden.detach().requires_grad_()
        return replace_hidden_state(state.entry, args, kwargs)

    def _on_site(self, site: Site, values: Any, first_unit: int = 0) -> Any:
        """Replace a site's values by the changed ones."""
        state, hidden = self._state, extract_hidden_state(values)
        key = (site.layer, site.name)
        if state is None or hidden is None or not (state.is_recorded or key in state.changes):
            return None
        # A copy, which only this module sees; some layers flatten rows and tokens for their MLP.
        width = hidden.shape[-1]
        steered = hidden.reshape(*state.shape, width).clone()
        if key in state.changes:
            rows, units, scales, offsets = state.changes[key]
            present = (units >= first_unit) & (units < first_unit + width)
            where = (rows[present], slice(None), units[present] - first_unit)
            # Advanced indices around a slice come first: (units, tokens).
            steered[where] = scales[present, None] * steered[where] + offsets[present, None]
        if state.is_recorded:
            if (key, first_unit) in state.activations:
                raise NeuralignError(f"{site}: its module runs more than once in a forward pass")
            state.activations[key, first_unit] = steered
        steered = steered.reshape(hidden.shape)
        if isinstance(values, list):
            return [steered, *values[1:]]
        return (steered, *values[1:]) if isinstance(values, tuple) else steered


def _token_ids(sequences: Sequence[SteeredSequence]) -> Ints:
    return np.array([sequence.ids for sequence in sequences], np.int64)


def _split_by_row(values: torch.Tensor, batch: SteeringBatch) -> list[Floats]:
    ends = np.cumsum([len(row.targets) for row in batch.rows])[:-1]
    return list(np.split(values.double().cpu().numpy(), ends))
