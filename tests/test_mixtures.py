"""Routed experts could be read in another order, after the router's weight, or for the wrong tokens.

The values of seven architectures, each with its own gate and layout of weights, are compared with plain
loops over tokens and experts that are written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.shard import ShardSettings
from cluster.models.sites import find_sites_from_config
from cluster.models.tokenizer import Text
from cluster.steering.interventions import SteeredSequence, Target, batch_sequences, clamp_units
from cluster.steering.shard import SteeringShard
from storage.errors import UserError
from tests import pooled
from tests.architectures import tiny_config
from tests.plain_forward import SENTENCES, PlainForward, Values, save_model

Expert = Callable[[Any, int, torch.Tensor], torch.Tensor]
"""Neurons of an expert, (width,), from the experts' module, its number and a token's hidden state."""

NAMED = ["mlp.experts", "mlp.router"]
TEXTS = [Text(sentence, []) for sentence in SENTENCES]


def gated(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = (experts.gate_up_proj[expert] @ hidden).chunk(2)
    values: torch.Tensor = silu(gate) * up
    return values


def interleaved(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """gpt-oss: gates and ups alternate, are limited, and have biases."""
    product = hidden @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = product[0::2].clamp(max=7.0), product[1::2].clamp(-7.0, 7.0)
    values: torch.Tensor = (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return values


def transposed(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = (hidden @ experts.gate_up_proj[expert]).chunk(2)
    values: torch.Tensor = silu(gate) * up
    return values


ARCHITECTURES: dict[str, tuple[str, Expert]] = {
    "olmoe": ("mlp", gated),
    "qwen2_moe": ("mlp", gated),
    "qwen3_moe": ("mlp", gated),
    "mixtral": ("mlp", gated),
    "gpt_oss": ("mlp", interleaved),
    "deepseek_v3": ("mlp", gated),
    "llama4_text": ("feed_forward", transposed),
}


def plain_neurons(folder: Path, model_type: str) -> dict[str, list[Values]]:
    """Neurons, (tokens, experts x width), and router logits of every sentence, by site."""
    path, expert_of = ARCHITECTURES[model_type]
    plain = PlainForward(folder, model_type)
    neurons: dict[str, list[Values]] = {}

    def hook(number: int, block: Any) -> Any:
        def compute(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            tokens = inputs[0].reshape(-1, inputs[0].shape[-1])
            router = block.gate if hasattr(block, "gate") else block.router
            bias = getattr(router, "bias", None)
            logits = tokens @ router.weight.T + (0 if bias is None else bias)
            chosen, scale = choose(model_type, block, router, logits)
            rows = []
            for token in range(len(tokens)):
                parts = [
                    expert_of(block.experts, expert, tokens[token] * scale[token, expert])
                    if chosen[token, expert]
                    else None
                    for expert in range(logits.shape[1])
                ]
                width = next(len(part) for part in parts if part is not None)
                rows.append(torch.cat([torch.zeros(width) if part is None else part for part in parts]))
            neurons.setdefault(f"L{number:02d}.mlp.experts", []).append(
                torch.stack(rows).double().numpy()
            )
            neurons.setdefault(f"L{number:02d}.mlp.router", []).append(logits.double().numpy())

        return compute

    for number, layer in enumerate(plain.layers(4)):
        block = getattr(layer, path)
        if hasattr(block, "experts"):
            block.register_forward_pre_hook(hook(number, block))
    plain.run()
    return neurons


def choose(
    model_type: str, block: Any, router: Any, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which experts each token is routed to, and by what its hidden state is multiplied."""
    scores, scale = logits, torch.ones_like(logits)
    if model_type == "deepseek_v3":
        # The bias only selects.
        scores = logits.sigmoid() + router.e_score_correction_bias
    elif model_type == "llama4_text":
        scale = logits.sigmoid()
    chosen = torch.zeros_like(logits, dtype=torch.bool)
    return chosen.scatter(
        1, scores.topk(2 if model_type != "llama4_text" else router.top_k).indices, True
    ), scale


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_routed_neuron_equals_a_plain_loop(tmp_path: Path, model_type: str) -> None:
    """Neurons of another expert, or weighted by the router."""
    save_model(tmp_path, model_type)
    settings = ActivationSettings("float32", NAMED, ["max", "mean"], include_hidden_states=False)
    values = pooled.pool(tmp_path, settings, TEXTS, 60)
    plain = plain_neurons(tmp_path, model_type)
    assert {str(site) for _, site in values} == set(plain)
    for (pooling, site), actual in values.items():
        # without the BOS
        tokens = [sentence[1:] for sentence in plain[str(site)]]
        pool = np.max if pooling == "max" else np.mean
        expected = np.stack([pool(sentence, axis=0) for sentence in tokens], 1)
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("model_type", ["qwen2_moe", "llama4_text"])
def test_a_clamped_expert_is_clamped_on_its_tokens_alone(tmp_path: Path, model_type: str) -> None:
    """A clamp on tokens that the expert does not see, or on another expert's neuron."""
    save_model(tmp_path, model_type)
    shard = SteeringShard(tmp_path, ShardSettings("float32", ["mlp.experts"]))
    site = shard.sites[-1]
    ids = (1, 20, 30, 40, 50, 60)
    targets = [Target(position, 30) for position in range(len(ids))]
    plain = PlainForward(tmp_path, model_type)
    path, _ = ARCHITECTURES[model_type]
    block = getattr(plain.layers(4)[site.layer], path)
    width = site.width // 4
    for unit in (0, width + 3, 3 * width + 1):
        intervention = {
            (site.layer, site.name): clamp_units(np.array([unit]), np.array([3.0], np.float32))
        }
        (batch,) = batch_sequences([SteeredSequence(ids, intervention, targets)], 100)
        (actual,) = shard.run(batch, None)
        hook = block.register_forward_hook(clamp_output(plain, model_type, block, unit, width, 3.0))
        with torch.no_grad():
            logits = plain.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        hook.remove()
        np.testing.assert_allclose(actual, logits.log_softmax(-1)[:, 30], atol=1e-4)


def clamp_output(
    plain: PlainForward, model_type: str, block: Any, unit: int, width: int, value: float
) -> Any:
    """A hook that changes a block's output as a clamped neuron would: by its column of the down
    projection, on the tokens routed to its expert, times the router's weight."""
    expert, index = divmod(unit, width)
    _, expert_of = ARCHITECTURES[model_type]

    def hook(_: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
        tokens = inputs[0].reshape(-1, inputs[0].shape[-1])
        router = block.gate if hasattr(block, "gate") else block.router
        logits = tokens @ router.weight.T
        chosen, scale = choose(model_type, block, router, logits)
        main = output[0] if isinstance(output, tuple) else output
        changed = main.clone().reshape(len(tokens), -1)
        for token in range(len(tokens)):
            down = block.experts.down_proj[expert]
            if model_type == "llama4_text":
                # Every expert runs on every token; 0 where it is not routed.
                weight, factor = float(scale[token, expert] * chosen[token, expert]), 1.0
                column = down[index]
            else:
                weight, column = 1.0, down[:, index]
                probabilities = logits.softmax(-1)[token]
                factor = float(probabilities[expert]) * bool(chosen[token, expert])
                if plain.model.config.norm_topk_prob:
                    factor /= float(probabilities[chosen[token]].sum())
            current = expert_of(block.experts, expert, tokens[token] * weight)[index]
            changed[token] += factor * (value - current) * column
        changed = changed.reshape(main.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt_oss", "llama4_text"])
def test_columns_of_experts_are_those_of_their_down_projection(tmp_path: Path, model_type: str) -> None:
    """Another expert's column, or a row of a matrix that is stored transposed."""
    save_model(tmp_path, model_type)
    shard = SteeringShard(tmp_path, ShardSettings("float32", ["mlp.experts"]))
    site = shard.sites[-1]
    path, _ = ARCHITECTURES[model_type]
    experts = getattr(PlainForward(tmp_path, model_type).layers(4)[site.layer], path).experts
    width = site.width // 4
    units = np.array([0, width + 3, 3 * width + 1])
    columns = []
    for unit in units:
        down = experts.down_proj[unit // width].detach().double()
        columns.append(down[:, unit % width] if model_type == "qwen2_moe" else down[unit % width])
    key = (site.layer, site.name)
    products = shard.column_products({key: units})[key]
    for first, second in np.ndindex(3, 3):
        expected = sum(
            a * b for a, b in zip(columns[first].tolist(), columns[second].tolist(), strict=True)
        )
        assert products[first, second] == pytest.approx(expected, abs=1e-6)


def test_gradients_of_experts_are_those_of_finite_differences(tmp_path: Path) -> None:
    """Attributions that leave out experts, or take one for another."""
    save_model(tmp_path, "qwen2_moe")
    shard = SteeringShard(tmp_path, ShardSettings("float32", ["mlp.experts"]))
    site = shard.sites[-1]
    key, width = (site.layer, site.name), site.width // 4

    def log_p(unit: int, value: float) -> float:
        clamp = clamp_units(np.array([unit]), np.array([value], np.float32))
        (batch,) = batch_sequences([SteeredSequence((20,), {key: clamp}, [Target(0, 30)])], 100)
        return float(shard.run(batch, None)[0][0])

    (batch,) = batch_sequences([SteeredSequence((20,), targets=[Target(0, 30)])], 100)
    recorded = shard.forward_recorded(batch, None)
    _, sums = shard.backward(recorded, None)
    assert sums[key].shape == (2, 1, site.width)
    first_units = sorted(start for site_key, start in recorded.activations if site_key == key)
    # two experts for the one token
    assert len(first_units) == 2
    gradients, expected = [], np.zeros(site.width)
    for start in first_units:
        values = recorded.activations[key, start].detach()[0, 0].numpy()
        for index in np.flatnonzero(values)[:6]:
            step = 0.05
            difference = log_p(start + index, values[index] + step) - log_p(
                start + index, values[index] - step
            )
            gradients.append((sums[key][0, 0, start + index], difference / (2 * step)))
        expected[start : start + width] = values
    actual, differences = np.array(gradients).T
    np.testing.assert_allclose(actual, differences, atol=0.02 * np.abs(differences).max())
    assert np.allclose(sums[key][1, 0], sums[key][0, 0] * expected)


def test_a_router_is_not_a_site_where_its_logits_are_not_one_product() -> None:
    """ZAYA's router is a network; its first matrix could pass for the logits."""
    with pytest.raises(UserError, match=r"no layer of ZayaModel has 'mlp.router'"):
        find_sites_from_config(tiny_config("zaya"), ["mlp.router"])
    found = find_sites_from_config(tiny_config("gemma4"), ["mlp.hidden", "mlp.experts"])
    assert {site.name for site in found.sites} == {"mlp.hidden", "mlp.experts"}
