"""Latents of a sparse autoencoder: an encoder applied in another way than it was trained gives numbers
that look as good as the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.hooks import Side
from cluster.models.sparse_autoencoder import Activation, LatentEncoder, SparseAutoencoder
from cluster.models.tokenizer import Text
from jobs.config.loader import read_sweep
from jobs.planner import plan_sweep
from storage.errors import UserError
from tests import tiny
from tests.pooled import pool

INPUTS, LATENTS = 32, 80


def tensors(inputs: int = INPUTS) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "W_enc": torch.randn(inputs, LATENTS),
        "b_enc": torch.randn(LATENTS),
        "b_dec": torch.randn(inputs),
        "threshold": torch.rand(LATENTS),
    }


def make_autoencoder(
    path: Path, content: dict[str, torch.Tensor] | None = None, **settings: Any
) -> SparseAutoencoder:
    save_file(content or tensors(), path / "sae.safetensors")
    defaults: dict[str, Any] = {
        "layer": 1,
        "module": "",
        "side": "output",
        "activation": "relu",
        "k": None,
        "centred": False,
    }
    return SparseAutoencoder("sae", path / "sae.safetensors", **{**defaults, **settings})


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("jumprelu", None), ("topk", 5)])
def test_latents_equal_those_of_a_loop(
    tmp_path: Path, activation: Activation, k: int | None, centred: bool
) -> None:
    """A wrong order of bias, activation and threshold changes which latents are active."""
    weights = {name: tensor.double().numpy() for name, tensor in tensors().items()}
    autoencoder = make_autoencoder(tmp_path, activation=activation, k=k, centred=centred)
    hidden = torch.randn(2, 3, INPUTS)
    latents = LatentEncoder(autoencoder, INPUTS, torch.device("cpu"))(hidden)
    assert autoencoder.validate() == latents.shape[-1] == LATENTS
    for row, column in np.ndindex(2, 3):
        x = hidden[row, column].double().numpy() - weights["b_dec"] * centred
        preactivations = x @ weights["W_enc"] + weights["b_enc"]
        expected = np.maximum(preactivations, 0)
        if activation == "jumprelu":
            expected[preactivations <= weights["threshold"]] = 0
        if activation == "topk":
            expected[np.argsort(expected)[:-5]] = 0
        np.testing.assert_allclose(latents[row, column].numpy(), expected, atol=1e-4)


def test_the_orientation_of_weights_is_inferred_from_name_and_shape(tmp_path: Path) -> None:
    """Some files have them transposed; for a square matrix only the name decides."""
    weights = tensors()
    hidden = torch.randn(4, INPUTS)
    expected = torch.relu(hidden @ weights["W_enc"] + weights["b_enc"])
    transposed = weights["W_enc"].T.contiguous()
    for content in (
        weights,
        {"encoder.weight": transposed, "encoder.bias": weights["b_enc"]},
        {"W_enc": transposed, "b_enc": weights["b_enc"]},
    ):
        latents = LatentEncoder(make_autoencoder(tmp_path, content), INPUTS, torch.device("cpu"))(hidden)
        torch.testing.assert_close(latents, expected)
    square = torch.randn(INPUTS, INPUTS)
    for name, matrix in (("W_enc", square), ("encoder.weight", square.T.contiguous())):
        latents = LatentEncoder(make_autoencoder(tmp_path, {name: matrix}), INPUTS, torch.device("cpu"))(
            hidden
        )
        torch.testing.assert_close(latents, torch.relu(hidden @ square))


@pytest.mark.parametrize(("module", "side"), [("", "output"), ("mlp", "output"), ("mlp", "input")])
def test_a_shard_computes_latents_at_the_configured_module(
    tmp_path: Path, tiny_model: Path, module: str, side: Side
) -> None:
    """At another module, the encoder still gives plausible latents."""
    autoencoder = make_autoencoder(tmp_path, module=module, side=side)
    settings = ActivationSettings(
        "float32", "mlp", ["max", "last"], include_hidden_states=False, sparse_autoencoder=autoencoder
    )
    texts = [Text(text, []) for _, text in tiny.sentences()[:7]]
    activations = pool(tiny_model, settings, texts, 60)
    assert {(site.layer, site.name, site.width) for _, site in activations} == {(1, "sae", LATENTS)}
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    captured: dict[str, torch.Tensor] = {}
    submodule = model.model.layers[1].get_submodule(module)
    submodule.register_forward_hook(
        lambda _, inputs, output: captured.update(input=inputs[0], output=output)
    )
    weights = tensors()
    for column, text in enumerate(texts):
        with torch.no_grad():
            model(torch.tensor([tokenizer(text.text)["input_ids"]]))
        latents = torch.relu(captured[side][0, 1:] @ weights["W_enc"] + weights["b_enc"])
        for pooling, expected in (("max", latents.amax(dim=0)), ("last", latents[-1])):
            ((_, values),) = (item for item in activations.items() if item[0][0] == pooling)
            np.testing.assert_allclose(values[:, column], expected.numpy(), rtol=1e-3, atol=1e-3)
    last_layer = BlockShard(tiny_model, settings, range(2, 3))
    assert last_layer.sites == []


def test_an_autoencoder_that_does_not_fit_is_rejected(tmp_path: Path) -> None:
    """Applied with a wrong bias or width, it would give wrong latents or stop the sweep late."""
    weights = tensors()
    for content, settings, message in (
        (weights, {"centred": None}, "has b_dec; set b_dec: subtract or ignore"),
        ({"W_enc": weights["W_enc"]}, {"centred": True}, "has no b_dec to subtract"),
        ({"weights": weights["W_enc"]}, {}, "has none of W_enc, encoder.weight; it has weights"),
        ({"W_enc": weights["b_enc"]}, {}, "expected two dimensions"),
        ({"W_enc": weights["W_enc"]}, {"activation": "jumprelu"}, "has none of threshold"),
        (weights, {"activation": "topk", "k": 81}, "k is 81, but there are 80 latents"),
    ):
        with pytest.raises(UserError, match=message):
            make_autoencoder(tmp_path, content, **settings).validate()
    for content, inputs, message in (
        (weights, 31, "the activations have width 31"),
        (
            {"W_enc": weights["W_enc"], "b_enc": weights["b_dec"]},
            32,
            "a bias has 32 values; expected 80",
        ),
    ):
        with pytest.raises(UserError, match=message):
            LatentEncoder(make_autoencoder(tmp_path, content), inputs, torch.device("cpu"))
    (tmp_path / "sae.safetensors").write_text("nothing")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        SparseAutoencoder(
            "a", tmp_path / "sae.safetensors", 0, "", "output", "relu", None, None
        ).validate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("layer: 3", "layer: 3: 'model' has layers 0 to 2"),
        ("layer: 1, at: mlp", "at: 'mlp': expected MODULE:input or :output"),
        ("layer: 1, k: 4", "k: required for, and only allowed with, activation: topk"),
        ("layer: 1, activation: topk", "k: required for, and only allowed with, activation: topk"),
        ("layer: 1, model: other", "model: 'other': expected the model that"),
        ("layer: 1", "has b_dec; set b_dec: subtract or ignore"),
        ("layer: 1, width: 3", "baselines[0].width: unknown key; allowed: name, dictionary, layer"),
    ],
)
def test_invalid_autoencoder_settings_in_a_sweep_file_are_rejected(
    tmp_path: Path, tiny_model: Path, options: str, message: str
) -> None:
    make_autoencoder(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    file = tiny.write_sweep(
        tmp_path, extra=f"baselines: [{{name: sae, dictionary: sae.safetensors, {options}}}]\n"
    )
    with pytest.raises(UserError) as caught:
        plan_sweep(read_sweep(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_latents_are_planned_as_a_control_of_the_trained_model(tmp_path: Path, tiny_model: Path) -> None:
    """Latents of the random-init control would be those of a model that the autoencoder never saw."""
    make_autoencoder(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    baseline = "{name: sae, dictionary: sae.safetensors, layer: 1, b_dec: ignore}"
    file = tiny.write_sweep(tmp_path, extra=f"baselines: [random-init, {baseline}]\n")
    stages = plan_sweep(read_sweep(file)).stages
    planned = [(stage.kind, stage.label) for stage in stages if "latents" in stage.label]
    assert planned == [("controls", "model@main sae latents"), ("similarity", "model@main sae latents")]
    sites = [stage.params["sites"] for stage in stages if stage.kind == "activations"]
    assert sites == ["mlp", "mlp", "mlp", "mlp", ["sae"]]
    similarity_stage = next(stage for stage in stages if (stage.kind, stage.label) == planned[1])
    assert similarity_stage.params["representation"] == "experts, sae latents"
