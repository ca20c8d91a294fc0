"""Latents of a sparse autoencoder: an encoder that is applied another way than it was trained gives
numbers that look as good as the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.activations.shard import Settings, Shard
from cluster.activations.tokens import Text
from cluster.models.sites import Side
from cluster.models.sparse_autoencoder import Activation, Dictionary, Encoder
from jobs.config import read_sweep
from jobs.planner import plan
from storage.errors import UserError
from tests import tiny

INPUTS, LATENTS = 32, 80


def tensors(inputs: int = INPUTS) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "W_enc": torch.randn(inputs, LATENTS),
        "b_enc": torch.randn(LATENTS),
        "b_dec": torch.randn(inputs),
        "threshold": torch.rand(LATENTS),
    }


def made(path: Path, content: dict[str, torch.Tensor] | None = None, **how: Any) -> Dictionary:
    save_file(content or tensors(), path / "sae.safetensors")
    settings: dict[str, Any] = {
        "layer": 1,
        "module": "",
        "side": "output",
        "activation": "relu",
        "k": None,
        "centred": False,
    }
    return Dictionary("sae", path / "sae.safetensors", **{**settings, **how})


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("jumprelu", None), ("topk", 5)])
def test_latents_are_those_of_a_loop(
    tmp_path: Path, activation: Activation, k: int | None, centred: bool
) -> None:
    own = {name: tensor.double().numpy() for name, tensor in tensors().items()}
    dictionary = made(tmp_path, activation=activation, k=k, centred=centred)
    hidden = torch.randn(2, 3, INPUTS)
    found = Encoder(dictionary, INPUTS, torch.device("cpu"))(hidden)
    assert dictionary.check() == found.shape[-1] == LATENTS
    for row, column in np.ndindex(2, 3):
        x = hidden[row, column].double().numpy() - own["b_dec"] * centred
        before = x @ own["W_enc"] + own["b_enc"]
        expected = np.maximum(before, 0)
        if activation == "jumprelu":
            expected[before <= own["threshold"]] = 0
        if activation == "topk":
            expected[np.argsort(expected)[:-5]] = 0
        np.testing.assert_allclose(found[row, column].numpy(), expected, atol=1e-4)


def test_weights_are_known_by_their_name_and_shape(tmp_path: Path) -> None:
    """Some files hold them the other way round; a square matrix is known by its name."""
    own = tensors()
    hidden = torch.randn(4, INPUTS)
    expected = torch.relu(hidden @ own["W_enc"] + own["b_enc"])
    turned = own["W_enc"].T.contiguous()
    for content in (
        own,
        {"encoder.weight": turned, "encoder.bias": own["b_enc"]},
        {"W_enc": turned, "b_enc": own["b_enc"]},
    ):
        found = Encoder(made(tmp_path, content), INPUTS, torch.device("cpu"))(hidden)
        torch.testing.assert_close(found, expected)
    square = torch.randn(INPUTS, INPUTS)
    for name, weights in (("W_enc", square), ("encoder.weight", square.T.contiguous())):
        found = Encoder(made(tmp_path, {name: weights}), INPUTS, torch.device("cpu"))(hidden)
        torch.testing.assert_close(found, torch.relu(hidden @ square))


@pytest.mark.parametrize(("module", "side"), [("", "output"), ("mlp", "output"), ("mlp", "input")])
def test_a_shard_reads_latents_where_it_is_told(
    tmp_path: Path, tiny_model: Path, module: str, side: Side
) -> None:
    dictionary = made(tmp_path, module=module, side=side)
    settings = Settings("float32", "mlp", ["max", "last"], states=False, dictionary=dictionary)
    texts = [Text(text, []) for _, text in tiny.sentences()[:7]]
    reading = Shard(tiny_model, settings).read(texts, 60)
    assert {(site.layer, site.name, site.width) for _, site in reading.values} == {(1, "sae", LATENTS)}
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    seen: dict[str, torch.Tensor] = {}
    place = model.model.layers[1].get_submodule(module)
    place.register_forward_hook(lambda _, given, out: seen.update(input=given[0], output=out))
    own = tensors()
    for column, text in enumerate(texts):
        with torch.no_grad():
            model(torch.tensor([tokenizer(text.text)["input_ids"]]))
        latents = torch.relu(seen[side][0, 1:] @ own["W_enc"] + own["b_enc"])
        for pooling, expected in (("max", latents.amax(dim=0)), ("last", latents[-1])):
            ((_, values),) = (each for each in reading.values.items() if each[0][0] == pooling)
            np.testing.assert_allclose(values[:, column], expected.numpy(), rtol=1e-3, atol=1e-3)
    other = Shard(tiny_model, settings, range(2, 3))
    assert other.sites == []


def test_a_dictionary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    own = tensors()
    for content, how, message in (
        (own, {"centred": None}, "has b_dec; say whether"),
        ({"W_enc": own["W_enc"]}, {"centred": True}, "has no b_dec to subtract"),
        ({"weights": own["W_enc"]}, {}, "has none of W_enc, encoder.weight; it has weights"),
        ({"W_enc": own["b_enc"]}, {}, "expected two dimensions"),
        ({"W_enc": own["W_enc"]}, {"activation": "jumprelu"}, "has none of threshold"),
        (own, {"activation": "topk", "k": 81}, "k is 81, but there are 80 latents"),
    ):
        with pytest.raises(UserError, match=message):
            made(tmp_path, content, **how).check()
    for content, inputs, message in (
        (own, 31, "values there are 31 wide"),
        ({"W_enc": own["W_enc"], "b_enc": own["b_dec"]}, 32, "a bias has 32 numbers; expected 80"),
    ):
        with pytest.raises(UserError, match=message):
            Encoder(made(tmp_path, content), inputs, torch.device("cpu"))
    (tmp_path / "sae.safetensors").write_text("nothing")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        Dictionary("a", tmp_path / "sae.safetensors", 0, "", "output", "relu", None, None).check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("layer: 3", "layer: 3: 'model' has layers 0 to 2"),
        ("layer: 1, at: mlp", "at: 'mlp': expected MODULE:input or :output"),
        ("layer: 1, k: 4", "k: goes with activation: topk"),
        ("layer: 1, activation: topk", "k: goes with activation: topk"),
        ("layer: 1, model: other", "model: 'other': name the one of the models"),
        ("layer: 1", "has b_dec; say whether"),
        ("layer: 1, width: 3", "baselines[0].width: unknown key; allowed: name, dictionary, layer"),
    ],
)
def test_a_sweep_file_that_uses_a_dictionary_wrongly_is_refused(
    tmp_path: Path, tiny_model: Path, given: str, message: str
) -> None:
    made(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    file = tiny.write_sweep(
        tmp_path, extra=f"baselines: [{{name: sae, dictionary: sae.safetensors, {given}}}]\n"
    )
    with pytest.raises(UserError) as caught:
        plan(read_sweep(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_latents_are_planned_as_a_control_of_the_one_model(tmp_path: Path, tiny_model: Path) -> None:
    made(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    wanted = "{name: sae, dictionary: sae.safetensors, layer: 1, b_dec: ignore}"
    file = tiny.write_sweep(tmp_path, extra=f"baselines: [random-init, {wanted}]\n")
    stages = plan(read_sweep(file)).stages
    found = [(stage.kind, stage.label) for stage in stages if "latents" in stage.label]
    assert found == [("controls", "model@main sae latents"), ("similarity", "model@main sae latents")]
    read = [stage.params["sites"] for stage in stages if stage.kind == "activations"]
    assert read == ["mlp", "mlp", ["sae"]]
    compared = next(stage for stage in stages if (stage.kind, stage.label) == found[1])
    assert compared.params["representation"] == "experts, sae latents"
