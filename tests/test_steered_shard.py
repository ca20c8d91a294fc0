"""Clamps that miss their neurons, or gradients that differ from the full model's, would make
attributions and effects meaningless."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.models.partial_model import shard_layers
from cluster.models.shard import ShardSettings
from cluster.models.tokenizer import Tokenizer
from cluster.steering.interventions import (
    NO_INTERVENTION,
    ChangedUnits,
    Intervention,
    PrefixSharedWords,
    PromptedWord,
    SteeredSequence,
    SteeringBatch,
    batch_sequences,
)
from cluster.steering.shard import SteeringShard
from cluster.steering.tokens import sample_tokens
from storage.errors import NeuralignError
from tests.test_partial import ARCHITECTURES, LAYERS, save_model

PROMPTS = ["The", "Nobody knows why a", "My aunt drew one"]
TOLERANCE = 1e-5
_N_DECODED = 6
Floats = npt.NDArray[np.float64]


def load_shards(folder: Path, sites: str | list[str], shards: int, dtype: str = "float32") -> Any:
    settings = ShardSettings(dtype, sites)
    return [SteeringShard(folder, settings, shard_layers(folder, i, shards)) for i in range(shards)]


def make_words(folder: Path, names: Sequence[str] = ("cat", "weatherman")) -> list[PromptedWord]:
    tokenizer = Tokenizer(folder, 64)
    return [
        PromptedWord(*map(tuple, tokenizer.encode_prompt(prompt, name)))
        for name in names
        for prompt in PROMPTS
    ]


def target_log_p(
    shards: list[SteeringShard], sequences: list[SteeredSequence], budget: int = 60
) -> list[Floats]:
    """log P of the targets of each sequence, through all shards."""
    log_p: dict[int, Any] = {}
    for batch in batch_sequences(sequences, budget):
        output: Any = None
        for shard in shards:
            output = shard.run(batch, output)
        log_p |= dict(zip(batch.indices, output, strict=True))
    return [log_p[index] for index in range(len(sequences))]


def gradient_sums(shards: list[SteeringShard], batch: SteeringBatch) -> dict[Any, Floats]:
    """Sums of gradients at all sites, through all shards."""
    records, output = [], None
    for shard in shards:
        records.append(shard.forward_recorded(batch, output))
        output = records[-1].outgoing.detach()
    gradient = None
    all_sums: dict[Any, Floats] = {}
    for shard, record in zip(reversed(shards), reversed(records), strict=True):
        gradient, sums = shard.backward(record, gradient)
        all_sums |= sums
    return all_sums


def to_sequence(word: PromptedWord, intervention: Intervention = NO_INTERVENTION) -> SteeredSequence:
    return SteeredSequence(word.sequence, intervention, word.targets)


def test_a_model_whose_output_is_nan_is_refused(tiny_model: Path) -> None:
    """The table of attributions refused it, which ended the sweep of all models."""
    shards = load_shards(tiny_model, "mlp", 1)
    sequences = [to_sequence(word) for word in make_words(tiny_model)]
    with torch.no_grad():
        for weights in shards[0].model.get_output_embeddings().parameters():
            weights.fill_(torch.nan)
    with pytest.raises(NeuralignError, match="the model's output is NaN"):
        target_log_p(shards, sequences)


def random_intervention(shards: list[SteeringShard], per_site: int = 2, seed: int = 0) -> Intervention:
    random = np.random.default_rng(seed)
    return {
        (site.layer, site.name): ChangedUnits(
            random.permutation(site.width)[:per_site],
            # Clamped, and changed in proportion.
            np.resize(np.array([0, 1.5], np.float32), per_site),
            random.normal(0, 2, per_site).astype(np.float32),
        )
        for shard in shards
        for site in shard.sites[::2]
    }


class ReferenceModel:
    """transformers' full model, one sequence at a time, with explicit hooks."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def log_p(
        self,
        word: PromptedWord,
        sites: Sequence[Any],
        intervention: Intervention = NO_INTERVENTION,
        activations: dict[Any, torch.Tensor] | None = None,
    ) -> Any:
        """Sum of log-softmax over the word's tokens; fills `activations` by site."""
        modules = dict(self.model.named_modules())
        hooks: list[Any] = []
        for site in sites:
            (name,) = (path for path in modules if path.endswith(f".{site.layer}.{site.module}"))
            clamp = self._make_clamp((site.layer, site.name), intervention, activations)
            if site.part == "input":
                hooks.append(
                    modules[name].register_forward_pre_hook(
                        lambda _, args, c=clamp: (c(args[0]), *args[1:])
                    )
                )
            else:
                hooks.append(
                    modules[name].register_forward_hook(
                        lambda _, __, out, c=clamp: _change_first(c, out)
                    )
                )
        ids = torch.tensor([word.prefix + word.tokens])
        logits = self.model(ids).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        prefix_length = len(word.prefix)
        return sum(logits[prefix_length + index - 1, token] for index, token in enumerate(word.tokens))

    @staticmethod
    def _make_clamp(
        key: Any, intervention: Intervention, activations: Any
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        def clamp(values: torch.Tensor) -> torch.Tensor:
            values = values.clone()
            if key in intervention:
                change = intervention[key]
                for unit, scale, offset in zip(change.units, change.scales, change.offsets, strict=True):
                    values[..., int(unit)] = float(scale) * values[..., int(unit)] + float(offset)
            if activations is not None:
                activations[key] = values
            return values

        return clamp


def _change_first(change: Callable[[torch.Tensor], torch.Tensor], out: Any) -> Any:
    return change(out) if isinstance(out, torch.Tensor) else (change(out[0]), *out[1:])


def test_sites_selected_by_name_are_clamped(tiny_model: Path) -> None:
    """Attention outputs are tuples, and inputs one of several arguments; clamping an input must not
    change the residual stream."""
    for pattern in ("self_attn", "mlp.act_fn", "post_attention_layernorm:input"):
        shards = load_shards(tiny_model, [pattern], 2)
        sites = [site for shard in shards for site in shard.sites]
        intervention = random_intervention(shards)
        words = make_words(tiny_model)
        expected = [ReferenceModel(tiny_model).log_p(word, sites, intervention).item() for word in words]
        actual = [
            values.sum()
            for values in target_log_p(shards, [to_sequence(word, intervention) for word in words])
        ]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_clamped_log_p_and_gradients_match_the_full_model(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    """Wrong positions, heads, logit scales or sites of an architecture, in one shard or two."""
    folder = save_model(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    reference = ReferenceModel(folder)
    for sites in ("mlp", "linears"):
        whole, halves = (load_shards(folder, sites, shards) for shards in (1, 2))
        intervention = random_intervention(whole)
        words = make_words(folder)
        cases = [(word, clamps) for word in words for clamps in (NO_INTERVENTION, intervention)]
        sequences = [to_sequence(word, clamps) for word, clamps in cases]
        expected = [reference.log_p(word, whole[0].sites, clamps).item() for word, clamps in cases]
        actual = [values.sum() for values in target_log_p(whole, sequences)]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
        assert abs(np.diff(expected)[::2]).min() > 1e-3, "the intervention should matter here"
        in_halves = [values.sum() for values in target_log_p(halves, sequences)]
        np.testing.assert_allclose(in_halves, actual, rtol=0, atol=TOLERANCE)
        # words that share their prompt's forward pass, in batches of one row and of several
        shared_words = PrefixSharedWords(words)
        for shards, budget in ((whole, 60), (halves, 60), (halves, 1)):
            shared = shared_words.log_p(
                target_log_p(shards, list(shared_words.sequences(intervention)), budget)
            )
            np.testing.assert_allclose(shared, expected[1::2], rtol=0, atol=TOLERANCE)

        for word in words[::5]:
            activations: dict[Any, torch.Tensor] = {}
            value = reference.log_p(word, whole[0].sites, intervention, activations)
            gradients = torch.autograd.grad(value, list(activations.values()), allow_unused=True)
            for shards in (whole, halves):
                (batch,) = batch_sequences([to_sequence(word, intervention)], 60)
                sums = gradient_sums(shards, batch)
                assert sums.keys() == activations.keys()
                for key, gradient in zip(activations, gradients, strict=True):
                    # the reference also runs the word's last token, which has no target
                    values = activations[key].flatten(0, -2)
                    slope = torch.zeros_like(values) if gradient is None else gradient.flatten(0, -2)
                    expected_sums = slope.sum(0), (slope * values.detach()).sum(0)
                    for sums_of_shard, sums_of_reference in zip(sums[key], expected_sums, strict=True):
                        scale = max(1.0, float(sums_of_reference.abs().max()))
                        np.testing.assert_allclose(
                            sums_of_shard[0], sums_of_reference.detach(), rtol=0, atol=TOLERANCE * scale
                        )


def test_attributions_match_finite_differences_towards_the_on_value(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Attributions with a wrong sign, scale or sum over tokens. In float64, on an architecture without
    float32 steps."""
    folder = save_model(tmp_path, tiny_model, ARCHITECTURES["gpt2"], torch.float64)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    shards = load_shards(folder, "linears", 2, "float64")
    word = make_words(folder, ["weatherman"])[1]
    assert len(word.tokens) > 1
    (batch,) = batch_sequences([to_sequence(word)], 60)
    sums = gradient_sums(shards, batch)
    for site in [site for shard in shards for site in shard.sites]:
        unit, on = site.width // 3, 1.5
        module = model.transformer.h[site.layer].get_submodule(site.module)

        def log_p_after(step: float, module: Any = module, unit: int = unit, on: float = on) -> float:
            def move(_: Any, __: Any, values: torch.Tensor) -> torch.Tensor:
                moved = values.clone()
                moved[..., unit] += step * (on - values[..., unit])
                return moved

            hook = module.register_forward_hook(move)
            with torch.no_grad():
                log_p = model(torch.tensor([word.prefix + word.tokens])).logits[0].log_softmax(-1)
            hook.remove()
            first = len(word.prefix) - 1
            return float(sum(log_p[first + index, token] for index, token in enumerate(word.tokens)))

        gradient, product = (total[0, unit] for total in sums[site.layer, site.name])
        slope = (log_p_after(1e-4) - log_p_after(-1e-4)) / 2e-4
        assert on * gradient - product == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_continuations_match_the_full_model(tmp_path: Path, tiny_model: Path, name: str) -> None:
    """A cache that confuses the layers of a shard with those of the full model."""
    folder = save_model(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    whole = load_shards(folder, "mlp", 1)
    prompt = Tokenizer(folder, 64).encode_prompt(PROMPTS[1], "")[0]
    for intervention in (NO_INTERVENTION, random_intervention(whole)):
        expected = decode_without_cache(whole, prompt, intervention)
        if intervention is NO_INTERVENTION:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            ids = torch.tensor([prompt])
            generated = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=_N_DECODED,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert generated[0, len(prompt) :].tolist() == expected
        for shards in (1, LAYERS):
            assert (
                decode_with_cache(load_shards(folder, "mlp", shards), prompt, intervention) == expected
            )


def decode_without_cache(
    whole: list[SteeringShard], prompt: list[int], intervention: Intervention
) -> list[int]:
    ids = list(prompt)
    for _ in range(_N_DECODED):
        log_p = whole[0].decode_step(
            [SteeredSequence(tuple(ids), intervention)], np.array([ids]), whole[0].new_cache()
        )
        ids.append(int(log_p.argmax()))
    return ids[len(prompt) :]


def decode_with_cache(
    shards: list[SteeringShard], prompt: list[int], intervention: Intervention
) -> list[int]:
    caches = [shard.new_cache() for shard in shards]
    sequences = [SteeredSequence(tuple(prompt), intervention)] * 2
    decoded, tokens = [], np.array([prompt, prompt])
    for _ in range(_N_DECODED):
        output: Any = tokens
        for shard, cache in zip(shards, caches, strict=True):
            output = shard.decode_step(sequences, output, cache)
        tokens = sample_tokens(output, np.zeros(2), 0)
        assert tokens[0] == tokens[1]
        decoded.append(int(tokens[0, 0]))
    return decoded
