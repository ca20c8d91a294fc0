"""A contiguous range of a model's layers whose neurons can be forced. Knows nothing of Ray.

The last shard has the model's head. A neuron is forced where it is read: at every token, whatever the
module that computes it says.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from cluster.activations.shard import Settings
from cluster.activations.tokens import Tokenizer
from cluster.models.partial_model import layer_count, load_layers
from cluster.models.sites import Site, find_sites, hidden_values, with_hidden
from cluster.steering.interventions import Batch, Floats, Integers, Row, Where
from storage.errors import NeuralignError

LONGEST = 512


class _Cache(DynamicCache):
    """Keys and values of a shard's layers; a layer goes by its number in the whole model."""

    def __init__(self, config: Any, first: int) -> None:
        super().__init__(config=config)
        self._first = first

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        return super().update(key_states, value_states, layer_idx - self._first, *args, **kwargs)

    def of(self, rows: Sequence[int]) -> _Cache:
        """What is remembered of some of the rows, of each as often as it is named."""
        chosen = copy.copy(self)
        chosen.layers = [copy.copy(layer) for layer in self.layers]
        chosen.batch_select_indices(torch.tensor(rows))
        return chosen


@dataclass
class Tape:
    """One batch's way through a shard, kept to go back over it."""

    incoming: torch.Tensor
    outgoing: torch.Tensor
    seen: dict[Where, torch.Tensor]


@dataclass
class _Now:
    """What the hooks are to do with the batch that runs."""

    shape: tuple[int, int]
    incoming: torch.Tensor | None
    forced: dict[Where, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    taped: bool
    entered: torch.Tensor | None = None
    outgoing: torch.Tensor | None = None
    seen: dict[Where, torch.Tensor] = field(default_factory=dict)


class SteeredShard:
    """Layers [a, b) of a model, with the sites in them; the last shard gives log-probabilities."""

    def __init__(
        self, folder: Path, settings: Settings, layers: range | None = None, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        count = layer_count(folder, settings.remote_code)
        self.layers = range(count) if layers is None else layers
        self.first, self.last = self.layers.start == 0, self.layers.stop == count
        self.model, numbered = load_layers(
            folder, self.layers, self.dtype, settings.remote_code, head=self.last
        )
        self.model.eval().requires_grad_(False).to(self.device)
        self._config = self.model.config.get_text_config()
        self.sites = find_sites(self.model, numbered, settings.sites)
        self.tokenizer = Tokenizer(folder, LONGEST, settings.remote_code)
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self._now: _Now | None = None
        self._watch(numbered)

    def run(
        self, batch: Batch, incoming: Sequence[torch.Tensor] | None
    ) -> list[torch.Tensor] | list[Floats]:
        """The hidden states after the shard; of the last shard, log P of each row's targets and those of
        its branches.

        There is a hidden state, of shape (rows, tokens, width), for the batch and for each of its
        `branches`. `incoming` are those before the shard, None for the first.
        """
        parts = [batch, *batch.branches]
        cache = self.cache() if batch.branches else None
        states: list[torch.Tensor] = []
        found: list[list[Floats]] = []
        with torch.inference_mode():
            for at, part in enumerate(parts):
                given = _ids(part.rows) if incoming is None else incoming[at]
                past = cache if cache is None or part is batch else cache.of(part.numbers)
                now, logits = self._forward(part.rows, given, part.wanted, cache=past)
                if logits is None:
                    states.append(_outgoing(now))
                else:
                    found.append(_split(self._log_p(part, logits), part))
        return batch.joined(found) if self.last else states

    def tape(self, batch: Batch, incoming: torch.Tensor | None) -> Tape:
        """Run a batch so that `back` can go over it. In the last shard `outgoing` is the sum of the log
        P of all targets."""
        given = _ids(batch.rows) if incoming is None else incoming
        now, logits = self._forward(batch.rows, given, batch.wanted, taped=True)
        outgoing = _outgoing(now) if logits is None else self._log_p(batch, logits).sum()
        if now.entered is None:
            raise NeuralignError(f"{type(self.model).__name__}: its first layer did not run")
        return Tape(now.entered, outgoing, now.seen)

    def back(
        self, tape: Tape, gradient: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[Where, tuple[Floats, Floats]]]:
        """Gradients of the sum of log P: at the hidden state before the shard; and, for each site and
        summed over the tokens, at its neurons, and that times their activations, each (rows, units).

        `gradient` is that at the hidden state after the shard, None for the last.
        """
        places = list(tape.seen)
        given = None if gradient is None else gradient.to(self.device)
        found = torch.autograd.grad(
            tape.outgoing, [tape.incoming, *tape.seen.values()], given, allow_unused=True
        )
        sums = {}
        for place, slope in zip(places, found[1:], strict=True):
            seen = tape.seen[place].detach()
            exact = torch.zeros_like(seen) if slope is None else slope.double()
            slopes, products = exact.sum(1), (exact * seen.double()).sum(1)
            sums[place] = (slopes.cpu().numpy(), products.cpu().numpy())
        return found[0], sums

    def cache(self) -> Any:
        """Room for what is remembered of the tokens that were read."""
        return _Cache(self._config, self.layers.start)

    def grow(self, rows: Sequence[Row], given: Integers | torch.Tensor, cache: Any) -> torch.Tensor:
        """Read further tokens, of shape (rows, tokens), or the hidden state before the shard, after what
        is in the cache. Gives the hidden state after the shard; the last shard, log P of all tokens that
        may come next, (rows, vocabulary)."""
        with torch.inference_mode():
            now, logits = self._forward(rows, given, 1, cache=cache)
            return _outgoing(now) if logits is None else logits[:, -1].float().log_softmax(-1)

    def stops(self) -> set[int]:
        """Tokens that end a text."""
        found = self._config.eos_token_id
        return set(found if isinstance(found, list) else [found]) - {None}

    def _forward(
        self,
        rows: Sequence[Row],
        given: Integers | torch.Tensor,
        wanted: int,
        taped: bool = False,
        cache: Any = None,
    ) -> tuple[_Now, torch.Tensor | None]:
        """Run tokens or a hidden state; the last shard gives logits of the last `wanted` positions
        or of more."""
        count, tokens = given.shape[:2]
        incoming = None
        inputs: dict[str, Any] = {}
        if isinstance(given, torch.Tensor):
            # the model makes its masks and positions from these; the first layer gets the real ones
            inputs["inputs_embeds"] = torch.zeros(given.shape, dtype=self.dtype, device=self.device)
            incoming = given.to(self.device)
        else:
            inputs["input_ids"] = torch.from_numpy(given).to(self.device)
        past = 0 if cache is None else cache.get_seq_length()
        mask = torch.ones(count, past + tokens, dtype=torch.int64, device=self.device)
        if self.last and self._keeps:
            inputs["logits_to_keep"] = max(1, wanted)
        now = self._now = _Now((count, tokens), incoming, self._forcing(rows), taped)
        try:
            found = self.model(
                **inputs, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
            )
        finally:
            # without a batch the hooks do nothing
            self._now = None
        return now, found.logits if self.last else None

    def _forcing(
        self, rows: Sequence[Row]
    ) -> dict[Where, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each site where some row forces units: these rows, the units and values, side by side."""
        forced = {}
        for site in self.sites:
            where = (site.layer, site.name)
            found = [(at, row.forced[where]) for at, row in enumerate(rows) if where in row.forced]
            if not found:
                continue
            numbers = np.repeat([at for at, _ in found], [len(each.units) for _, each in found])
            units = np.concatenate([each.units for _, each in found]).astype(np.int64)
            values = np.concatenate([each.values for _, each in found]).astype(np.float32)
            if len(units) and not 0 <= units.min() <= units.max() < site.width:
                raise NeuralignError(f"{site}: has {site.width} units; asked for {units.max()}")
            forced[where] = (
                torch.from_numpy(numbers).to(self.device),
                torch.from_numpy(units).to(self.device),
                torch.from_numpy(values).to(self.device, self.dtype),
            )
        return forced

    def _log_p(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """log P of the targets of all rows, side by side."""
        offset = batch.length - logits.shape[1]
        where = [
            (at, target.position - offset, target.token)
            for at, row in enumerate(batch.rows)
            for target in row.targets
        ]
        rows, positions, tokens = torch.tensor(where, device=self.device).reshape(-1, 3).unbind(1)
        return logits.float().log_softmax(-1)[rows, positions, tokens]

    def _watch(self, numbered: dict[int, nn.Module]) -> None:
        numbered[self.layers.start].register_forward_pre_hook(self._enter, with_kwargs=True)
        for site in self.sites:
            module = numbered[site.layer].get_submodule(site.module)
            if site.side == "input":
                module.register_forward_pre_hook(lambda _, given, site=site: self._steer(site, given))
            else:
                module.register_forward_hook(lambda _, __, given, site=site: self._steer(site, given))
        numbered[self.layers.stop - 1].register_forward_hook(self._leave)

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        now = self._now
        if now is None or (now.incoming is None and not now.taped):
            return None
        hidden = (
            now.incoming
            if now.incoming is not None
            else hidden_values(inputs or (named["hidden_states"],))
        )
        if now.taped and hidden is not None:
            hidden = now.entered = hidden.detach().requires_grad_()
        return None if hidden is None else with_hidden(hidden, inputs, named)

    def _steer(self, site: Site, given: Any) -> Any:
        """What a site's module is given, or gives, with the forced values in their places."""
        now, hidden = self._now, hidden_values(given)
        where = (site.layer, site.name)
        if now is None or hidden is None or not (now.taped or where in now.forced):
            return None
        # some layers run their MLP on all tokens in one row; a copy is seen by this module alone
        changed = hidden.reshape(*now.shape, hidden.shape[-1]).clone()
        if where in now.forced:
            rows, units, values = now.forced[where]
            changed[rows, :, units] = values.unsqueeze(1)
        if now.taped:
            now.seen[where] = changed
        changed = changed.reshape(hidden.shape)
        if isinstance(given, list):
            return [changed, *given[1:]]
        return (changed, *given[1:]) if isinstance(given, tuple) else changed

    def _leave(self, _: nn.Module, __: tuple[Any, ...], given: Any) -> None:
        if self._now is not None:
            self._now.outgoing = hidden_values(given)


def _outgoing(now: _Now) -> torch.Tensor:
    if now.outgoing is None:
        raise NeuralignError("the last layer of a shard did not run")
    return now.outgoing


def _ids(rows: Sequence[Row]) -> Integers:
    return np.array([row.ids for row in rows], np.int64)


def _split(values: torch.Tensor, batch: Batch) -> list[Floats]:
    counts = np.cumsum([len(row.targets) for row in batch.rows])[:-1]
    return list(np.split(values.double().cpu().numpy(), counts))
