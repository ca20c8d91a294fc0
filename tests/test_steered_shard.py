"""Forcing must do what it says, and gradients must be those of the whole model: else attributions and
measured effects are numbers of something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.activations.shard import Settings
from cluster.activations.tokens import Tokenizer
from cluster.models.partial_model import shard_layers
from cluster.steering.interventions import NOTHING, Batch, Forced, Reading, Row, Values, Word, cut
from cluster.steering.pipeline import choose
from cluster.steering.shard import SteeredShard
from tests.test_partial import ARCHITECTURES, LAYERS, make

PROMPTS = ["The", "Nobody knows why a", "My aunt drew one"]
TOLERANCE = 1e-5
_GROWN = 6
Floats = npt.NDArray[np.float64]


def shards_of(folder: Path, sites: str | list[str], shards: int, dtype: str = "float32") -> Any:
    settings = Settings(dtype, sites, [])
    return [SteeredShard(folder, settings, shard_layers(folder, at, shards)) for at in range(shards)]


def words(folder: Path, names: Sequence[str] = ("cat", "weatherman")) -> list[Word]:
    tokenizer = Tokenizer(folder, 64)
    return [Word(*map(tuple, tokenizer.after(prompt, name))) for name in names for prompt in PROMPTS]


def log_p(chain: list[SteeredShard], rows: list[Row], budget: int = 60) -> list[Floats]:
    """log P of the targets of each row, through the shards."""
    found: dict[int, Any] = {}
    for batch in cut(rows, budget):
        passed: Any = None
        for shard in chain:
            passed = shard.run(batch, passed)
        found |= dict(zip(batch.numbers, passed, strict=True))
    return [found[number] for number in range(len(rows))]


def slopes(chain: list[SteeredShard], batch: Batch) -> dict[Any, tuple[Floats, Floats]]:
    """What `back` says of all sites, through the shards."""
    tapes, passed = [], None
    for shard in chain:
        tapes.append(shard.tape(batch, passed))
        passed = tapes[-1].outgoing.detach()
    gradient = None
    found: dict[Any, tuple[Floats, Floats]] = {}
    for shard, tape in zip(reversed(chain), reversed(tapes), strict=True):
        gradient, sums = shard.back(tape, gradient)
        found |= sums
    return found


def row(word: Word, forced: Forced = NOTHING) -> Row:
    return Row(word.sequence, forced, word.targets)


def some_forced(chain: list[SteeredShard], per_site: int = 2, seed: int = 0) -> Forced:
    random = np.random.default_rng(seed)
    return {
        (site.layer, site.name): Values(
            random.permutation(site.width)[:per_site], random.normal(0, 2, per_site).astype(np.float32)
        )
        for shard in chain
        for site in shard.sites[::2]
    }


class Oracle:
    """transformers' whole model, one sequence at a time, with hooks that are written out."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def log_p(
        self,
        word: Word,
        sites: Sequence[Any],
        forced: Forced = NOTHING,
        see: dict[Any, torch.Tensor] | None = None,
    ) -> Any:
        """The sum over the word's tokens of log-softmax; `see` takes each site's values in."""
        named = dict(self.model.named_modules())
        hooks: list[Any] = []
        for site in sites:
            (name,) = (each for each in named if each.endswith(f".{site.layer}.{site.module}"))
            change = self._change((site.layer, site.name), forced, see)
            if site.side == "input":
                hooks.append(
                    named[name].register_forward_pre_hook(
                        lambda _, given, c=change: (c(given[0]), *given[1:])
                    )
                )
            else:
                hooks.append(
                    named[name].register_forward_hook(lambda _, __, out, c=change: _in_first(c, out))
                )
        ids = torch.tensor([word.before + word.tokens])
        logits = self.model(ids).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        start = len(word.before)
        return sum(logits[start + at - 1, token] for at, token in enumerate(word.tokens))

    @staticmethod
    def _change(where: Any, forced: Forced, see: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(values: torch.Tensor) -> torch.Tensor:
            values = values.clone()
            if where in forced:
                for unit, value in zip(forced[where].units, forced[where].values, strict=True):
                    values[..., int(unit)] = float(value)
            if see is not None:
                see[where] = values
            return values

        return change


def _in_first(change: Callable[[torch.Tensor], torch.Tensor], out: Any) -> Any:
    return change(out) if isinstance(out, torch.Tensor) else (change(out[0]), *out[1:])


def test_sites_that_are_named_are_forced(tiny_model: Path) -> None:
    """What an attention gives comes as one of several values, what goes in as one of several arguments;
    the residual stream beside a module's input stays what it is."""
    for pattern in ("self_attn", "mlp.act_fn", "post_attention_layernorm:input"):
        chain = shards_of(tiny_model, [pattern], 2)
        sites = [site for shard in chain for site in shard.sites]
        forced = some_forced(chain)
        asked = words(tiny_model)
        expected = [Oracle(tiny_model).log_p(word, sites, forced).item() for word in asked]
        found = [each.sum() for each in log_p(chain, [row(word, forced) for word in asked])]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forced_log_p_and_gradients_are_those_of_the_whole_model(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    """Of every architecture, cut and not: a wrong position, head, scale of logits or site shows."""
    folder = make(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    oracle = Oracle(folder)
    for sites in ("mlp", "linears"):
        whole, halves = (shards_of(folder, sites, shards) for shards in (1, 2))
        forced = some_forced(whole)
        asked = words(folder)
        rows = [row(word, each) for word in asked for each in (NOTHING, forced)]
        expected = [
            oracle.log_p(word, whole[0].sites, each).item()
            for word in asked
            for each in (NOTHING, forced)
        ]
        found = [each.sum() for each in log_p(whole, rows)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert abs(np.diff(expected)[::2]).min() > 1e-3, "forcing should matter here"
        in_halves = [each.sum() for each in log_p(halves, rows)]
        np.testing.assert_allclose(in_halves, found, rtol=0, atol=TOLERANCE)
        # words that share the reading of their prompt, in batches of one row and of several
        reading = Reading(asked)
        for chain, budget in ((whole, 60), (halves, 60), (halves, 1)):
            shared = reading.log_p(log_p(chain, list(reading.rows(forced)), budget))
            np.testing.assert_allclose(shared, expected[1::2], rtol=0, atol=TOLERANCE)

        for word in asked[::5]:
            see: dict[Any, torch.Tensor] = {}
            value = oracle.log_p(word, whole[0].sites, forced, see)
            given = torch.autograd.grad(value, list(see.values()), allow_unused=True)
            for chain in (whole, halves):
                (batch,) = cut([row(word, forced)], 60)
                sums = slopes(chain, batch)
                assert sums.keys() == see.keys()
                for where, gradient in zip(see, given, strict=True):
                    # the oracle has also read the word's last token, of which nothing is asked
                    values = see[where].flatten(0, -2)
                    slope = torch.zeros_like(values) if gradient is None else gradient.flatten(0, -2)
                    expect = slope.sum(0), (slope * values.detach()).sum(0)
                    for ours, theirs in zip(sums[where], expect, strict=True):
                        scale = max(1.0, float(theirs.abs().max()))
                        np.testing.assert_allclose(
                            ours[0], theirs.detach(), rtol=0, atol=TOLERANCE * scale
                        )


def test_attributions_are_what_small_steps_towards_the_on_value_do(
    tmp_path: Path, tiny_model: Path
) -> None:
    """In float64, on an architecture that keeps to it: the neuron is moved at every token at once."""
    folder = make(tmp_path, tiny_model, ARCHITECTURES["gpt2"], torch.float64)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    chain = shards_of(folder, "linears", 2, "float64")
    word = words(folder, ["weatherman"])[1]
    assert len(word.tokens) > 1
    (batch,) = cut([row(word)], 60)
    sums = slopes(chain, batch)
    for site in [site for shard in chain for site in shard.sites]:
        unit, on = site.width // 3, 1.5
        module = model.transformer.h[site.layer].get_submodule(site.module)

        def total(step: float, module: Any = module, unit: int = unit, on: float = on) -> float:
            def move(_: Any, __: Any, values: torch.Tensor) -> torch.Tensor:
                moved = values.clone()
                moved[..., unit] += step * (on - values[..., unit])
                return moved

            hook = module.register_forward_hook(move)
            with torch.no_grad():
                found = model(torch.tensor([word.before + word.tokens])).logits[0].log_softmax(-1)
            hook.remove()
            first = len(word.before) - 1
            return float(sum(found[first + at, token] for at, token in enumerate(word.tokens)))

        gradient, product = (each[0, unit] for each in sums[site.layer, site.name])
        slope = (total(1e-4) - total(-1e-4)) / 2e-4
        assert on * gradient - product == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_texts_go_on_as_the_whole_model_would_go_on(tmp_path: Path, tiny_model: Path, name: str) -> None:
    """Through the cache, in shards: layers count from another number there."""
    folder = make(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    whole = shards_of(folder, "mlp", 1)
    start = Tokenizer(folder, 64).after(PROMPTS[1], "")[0]
    for forced in (NOTHING, some_forced(whole)):
        expected = by_reading_all_again(whole, start, forced)
        if forced is NOTHING:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            ids = torch.tensor([start])
            given = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=_GROWN,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert given[0, len(start) :].tolist() == expected
        for shards in (1, LAYERS):
            assert by_cache(shards_of(folder, "mlp", shards), start, forced) == expected


def by_reading_all_again(whole: list[SteeredShard], start: list[int], forced: Forced) -> list[int]:
    ids = list(start)
    for _ in range(_GROWN):
        log_p = whole[0].grow([Row(tuple(ids), forced)], np.array([ids]), whole[0].cache())
        ids.append(int(log_p.argmax()))
    return ids[len(start) :]


def by_cache(chain: list[SteeredShard], start: list[int], forced: Forced) -> list[int]:
    caches = [shard.cache() for shard in chain]
    rows = [Row(tuple(start), forced)] * 2
    grown, given = [], np.array([start, start])
    for _ in range(_GROWN):
        passed: Any = given
        for shard, cache in zip(chain, caches, strict=True):
            passed = shard.grow(rows, passed, cache)
        given = choose(passed, np.zeros(2), 0)
        assert given[0] == given[1]
        grown.append(int(given[0, 0]))
    return grown
