"""Steering through the shards of a replica: hidden states forward, gradients backward, tokens round."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch

from cluster.activations.actor import own_device, settle_in
from cluster.activations.pipeline import Chain
from cluster.activations.shard import Settings
from cluster.activations.tokens import Tokenizer
from cluster.models.partial_model import shard_layers
from cluster.models.weights import Weights, materialise, read_config
from cluster.steering.interventions import Batch, Floats, Ids, Integers, Row, Where, Word, cut
from cluster.steering.shard import LONGEST, SteeredShard, Tape
from storage.errors import UserError

TOKEN_BUDGET = 1024
_AHEAD = 4
"""A shard begins a batch when the last shard is done with the one so many before."""


@dataclass(frozen=True)
class Sloped:
    """Neurons of a site whose attribution is wanted, side by side: the group of rows (a word after some
    prompts) that it is for, the neuron, and the value that it would be forced to."""

    groups: Integers
    units: Integers
    on: Floats


@dataclass(frozen=True)
class SlopeUnit:
    """Neurons' attributions that are wanted: means over the rows of the same group."""

    name: str
    rows: list[Row]
    wanted: Mapping[Where, Sloped]
    budget: int = TOKEN_BUDGET

    def smaller(self) -> SlopeUnit:
        """The same with smaller batches."""
        return replace(self, budget=max(1, self.budget // 2))


@dataclass(frozen=True)
class Growth:
    """How texts go on: `chances`, of shape (rows, tokens), are numbers in [0, 1) that choose the tokens;
    at temperature 0 it is always the likeliest one."""

    rows: list[Row]
    chances: Floats
    temperature: float


@dataclass(frozen=True)
class SteeringUnit:
    """Rows whose targets' log P is wanted, and rows that are to be gone on with."""

    name: str
    rows: list[Row]
    growth: Growth | None = None
    budget: int = TOKEN_BUDGET

    def smaller(self) -> SteeringUnit:
        """The same with smaller batches."""
        return replace(self, budget=max(1, self.budget // 2))


@dataclass(frozen=True)
class Steered:
    """What came of a unit: log P of the targets of each row, and the text that each other row goes on
    with."""

    log_p: list[Floats]
    texts: list[str]


@dataclass
class _Open:
    """What a shard holds of one attempt at a unit."""

    attempt: str
    tapes: dict[int, Tape] = field(default_factory=dict)
    sums: dict[Where, dict[int, tuple[Floats, Floats]]] = field(default_factory=dict)
    caches: dict[int, Any] = field(default_factory=dict)
    grown: dict[int, list[Integers]] = field(default_factory=dict)


class SteeringActor:
    """Holds a steered shard on one device. Arguments that begin with an underscore are there to be
    waited for."""

    def __init__(self, weights: Weights, settings: Settings, shard: int, shards: int) -> None:
        settle_in()
        self._weights = weights
        self._settings = settings
        self._place = (shard, shards)
        self._opened: dict[str, _Open] = {}

    def run(self, batch: Batch, incoming: Any, _before: object) -> Any:
        """Run a batch: what the next shard needs, or the log P that the last gives."""
        return [_to_host(each) for each in self._shard.run(batch, incoming)]

    def tape(
        self, of: tuple[str, str], number: int, batch: Batch, incoming: Any, _before: object
    ) -> Any:
        """Run a batch to go back over it; the last shard turns at once, and gives the gradient that the
        shard before it needs."""
        opened = self._open(of)
        opened.tapes[number] = self._shard.tape(batch, incoming)
        if self._shard.last:
            return self.back(of, number, batch, None)
        return _to_host(opened.tapes[number].outgoing.detach())

    def back(self, of: tuple[str, str], number: int, batch: Batch, gradient: Any) -> Any:
        """Go back over a batch, and add up what the rows of each group say of each neuron."""
        opened = self._open(of)
        incoming, sums = self._shard.back(opened.tapes.pop(number), gradient)
        for where, both in sums.items():
            kept = opened.sums.setdefault(where, {})
            for at, row in enumerate(batch.rows):
                slopes, products = kept.get(row.group, (0.0, 0.0))
                kept[row.group] = (slopes + both[0][at], products + both[1][at])
        return _to_host(incoming)

    def attribute(
        self, of: tuple[str, str], unit: SlopeUnit, earlier: dict[Where, Floats], *_batches: object
    ) -> dict[Where, Floats]:
        """The attributions that are wanted in this shard's sites, with those of other shards.

        gradient x (on - activation), summed over tokens, is on x (sum of gradients) less the sum of
        gradient x activation.
        """
        sums = self._open(of).sums
        found = dict(earlier)
        sizes = np.bincount([row.group for row in unit.rows])
        for where, wanted in unit.wanted.items():
            if where in sums:
                slopes, products = (
                    np.stack([sums[where][group][part] for group in sorted(sums[where])])
                    for part in range(2)
                )
                rows = np.searchsorted(sorted(sums[where]), wanted.groups)
                at = (rows, wanted.units)
                found[where] = (wanted.on * slopes[at] - products[at]) / sizes[wanted.groups]
        del self._opened[of[0]]
        return found

    def grow(self, of: tuple[str, str], number: int, growth: Growth, step: int, incoming: Any) -> Any:
        """Go on with a batch by one token. The first shard is given the token before, the others the
        hidden state; the last gives the token that comes."""
        opened = self._open(of)
        if step == 0:
            opened.caches[number] = self._shard.cache()
            if self._shard.first:
                incoming = np.array([row.ids for row in growth.rows], np.int64)
        found = self._shard.grow(growth.rows, incoming, opened.caches[number])
        if step + 1 == growth.chances.shape[1]:
            del opened.caches[number]
        if not self._shard.last:
            return _to_host(found)
        chosen = choose(found, growth.chances[:, step], growth.temperature)
        opened.grown.setdefault(number, []).append(chosen)
        return chosen

    def texts(self, of: tuple[str, str], number: int, _last: object) -> list[str]:
        """The texts of a batch, each up to the token that ends it."""
        grown = np.concatenate(self._open(of).grown.pop(number), axis=1)
        stops = self._shard.stops()
        texts = []
        for row in grown.tolist():
            end = next((at for at, token in enumerate(row) if token in stops), len(row))
            texts.append(self._shard.tokenizer.text(row[:end]))
        return texts

    def forget(self, of: tuple[str, str], _last: object) -> None:
        """Let go of what is held of a unit."""
        self._opened.pop(of[0], None)

    def gather(self, numbers: Sequence[Sequence[int]], kinds: int, *found: list[Any]) -> Steered:
        """The results of all rows in their order; the first `kinds` are log P, the others texts."""
        return Steered(
            _in_order(numbers[:kinds], found[:kinds]), _in_order(numbers[kinds:], found[kinds:])
        )

    def _open(self, of: tuple[str, str]) -> _Open:
        unit, attempt = of
        if unit not in self._opened or self._opened[unit].attempt != attempt:
            # nothing of an attempt that failed half way may be counted again
            self._opened[unit] = _Open(attempt)
        return self._opened[unit]

    @cached_property
    def _shard(self) -> SteeredShard:
        folder = materialise(self._weights)
        layers = shard_layers(folder, *self._place, self._weights.remote_code)
        return SteeredShard(folder, self._settings, layers, own_device())


class SteeringPipeline(Chain):
    """A chain of shards that steer."""

    def __init__(
        self, weights: Weights, settings: Settings, shards: int, resources: dict[str, float]
    ) -> None:
        super().__init__(ray.remote(SteeringActor), weights, settings, shards, resources)

    def attribute(self, unit: SlopeUnit) -> Any:
        """Send a unit forward and back; the reference of its attributions, by the place of the site."""
        of = (unit.name, uuid.uuid4().hex)
        done: list[Any] = []
        for number, batch in enumerate(cut(unit.rows, unit.budget)):
            given, passed, before = ray.put(batch), None, _before(done)
            for shard in self._shards:
                passed = shard.tape.remote(of, number, given, passed, before)
            for shard in reversed(self._shards[:-1]):
                passed = shard.back.remote(of, number, given, passed)
            done.append(passed)
        found: Any = {}
        for shard in self._shards:
            found = shard.attribute.remote(of, unit, found, *done)
        return found

    def steer(self, unit: SteeringUnit) -> Any:
        """Send a unit through all shards; the reference of what came of it (`Steered`)."""
        of = (unit.name, uuid.uuid4().hex)
        scored: list[Any] = []
        batches = cut(unit.rows, unit.budget)
        for batch in batches:
            given, passed, before = ray.put(batch), None, _before(scored)
            for shard in self._shards:
                passed = shard.run.remote(given, passed, before)
            scored.append(passed)
        texts: list[Any] = []
        if unit.growth is not None:
            growing = cut(unit.growth.rows, unit.budget)
            # as many batches at a time as there are shards, so that each shard has one to work on
            for first in range(0, len(growing), len(self._shards)):
                texts += self._grow(of, unit.growth, growing[first : first + len(self._shards)], first)
            batches += growing
        numbers = [batch.numbers for batch in batches]
        found = self._shards[-1].gather.remote(numbers, len(scored), *scored, *texts)
        for shard in self._shards:
            shard.forget.remote(of, found)
        return found

    def _grow(
        self, of: tuple[str, str], growth: Growth, batches: Sequence[Batch], first: int
    ) -> list[Any]:
        given = [
            ray.put(replace(growth, rows=batch.rows, chances=growth.chances[batch.numbers]))
            for batch in batches
        ]
        passed: list[Any] = [None] * len(batches)
        for step in range(growth.chances.shape[1]):
            for at, each in enumerate(given):
                for shard in self._shards:
                    passed[at] = shard.grow.remote(of, first + at, each, step, passed[at])
        last = self._shards[-1]
        return [last.texts.remote(of, first + at, token) for at, token in enumerate(passed)]


def choose(log_p: torch.Tensor, chances: Floats, temperature: float) -> Integers:
    """The next token of each row, of shape (rows, 1), from log P of all tokens: the likeliest at
    temperature 0, else the one where the cumulated probability passes the row's chance."""
    if temperature == 0:
        chosen = log_p.argmax(dim=1)
    else:
        cumulated = (log_p.double() / temperature).softmax(dim=1).cumsum(dim=1)
        given = torch.from_numpy(np.ascontiguousarray(chances)).to(log_p.device).unsqueeze(1)
        chosen = torch.searchsorted(cumulated, given, right=True).squeeze(1)
        # rounding may leave the sum of all below a chance
        chosen = chosen.clamp(max=log_p.shape[1] - 1)
    tokens: Integers = chosen.unsqueeze(1).cpu().numpy()
    return tokens


def tokens_of(
    weights: Weights, prompts: Sequence[str], words: Sequence[str], further: int
) -> tuple[list[Ids], list[list[Word]]]:
    """Tokens of each prompt; and, for each word, of it after each of the prompts.

    Raises UserError for a prompt or a word without tokens, and for a prompt that with a word, or with so
    many further tokens, is too long for the model.
    """
    folder = materialise(weights)
    tokenizer = Tokenizer(folder, LONGEST, weights.remote_code)
    config = read_config(folder, weights.remote_code).get_text_config()
    room = min(LONGEST, getattr(config, "max_position_embeddings", None) or LONGEST)
    starts = [tuple(tokenizer.after(prompt, "")[0]) for prompt in prompts]
    found = []
    for word in words:
        after = [Word(*map(tuple, tokenizer.after(prompt, word))) for prompt in prompts]
        if not all(each.tokens for each in after):
            raise UserError(f"steering: the word {word!r} has no token for model {weights.label}")
        found.append(after)
    for at, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        if not start or not all(after[at].before for after in found):
            raise UserError(f"steering.prompts: {prompt!r} has no token for model {weights.label}")
        longest = max([len(start) + further, *(len(after[at].sequence) + 1 for after in found)])
        if longest > room:
            raise UserError(
                f"steering.prompts: {prompt!r} comes to {longest} tokens with what follows it; "
                f"model {weights.label} reads {room}"
            )
    return starts, found


def _before(done: Sequence[Any]) -> Any:
    """What a batch is to wait for, so that the shards' hidden states do not pile up."""
    return done[-_AHEAD] if len(done) >= _AHEAD else None


def _to_host(found: Any) -> Any:
    return found.cpu() if isinstance(found, torch.Tensor) else found


def _in_order(numbers: Sequence[Sequence[int]], found: Sequence[Sequence[Any]]) -> list[Any]:
    placed = {
        number: each
        for some, batch in zip(numbers, found, strict=True)
        for number, each in zip(some, batch, strict=True)
    }
    return [placed[number] for number in range(len(placed))]
