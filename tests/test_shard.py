"""Activations of neighboring sentences, padding or special tokens could leak into a sentence's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.text.word_matching import find_word
from cluster.activations.batching import batch_sentences
from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import PAD_ID, ActivationSettings
from cluster.models.shard import MAX_TOKENS
from cluster.models.sites import Site
from cluster.models.tokenizer import Text, Tokenizer
from cluster.models.weights import ensure_local, resolve
from storage.errors import NeuralignError, UserError
from storage.store.activation_files import RESIDUAL
from tests import tiny
from tests.pooled import Pooled, pool, read_texts, run_layers

TOLERANCE = 1e-5
POOLINGS = ["max", "concept", "concept-max", "context", "before"]
Values = npt.NDArray[np.floating[Any]]


def make_texts(count: int) -> list[Text]:
    texts = []
    for name, sentence in tiny.sentences()[:count]:
        spans = [edge for span in find_word(sentence, name) for edge in span]
        texts.append(Text(sentence, spans))
    return texts


def settings_for(poolings: list[str]) -> ActivationSettings:
    return ActivationSettings("float32", "mlp", poolings)


def load_shard(folder: Path, poolings: list[str]) -> BlockShard:
    return BlockShard(folder, settings_for(poolings))


def run_shard(folder: Path, texts: list[Text], poolings: list[str], budget: int = 100) -> Pooled:
    return pool(folder, settings_for(poolings), texts, budget)


def run_in_float32(
    folder: Path, poolings: list[str], texts: list[Text], budget: int, pad_id: int = PAD_ID
) -> dict[Any, Values]:
    """Pooled values, (sentences, units), without rounding to float16."""
    shard, sentences = load_shard(folder, poolings), read_texts(folder, settings_for(poolings), texts)
    dtypes = dict.fromkeys(shard.pooled_dtypes, torch.float32)
    pooled, _ = run_layers(shard, sentences, budget, dtypes=dtypes, pad_id=pad_id)
    return {key: values.T for key, values in pooled.items()}


def assert_close(actual: Values, expected: Values) -> None:
    """Rounding errors scale with the largest summands."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def run_one_by_one(folder: Path, texts: list[Text]) -> dict[tuple[str, int], Values]:
    """Pooled activations from the full model in float64, one unpadded sentence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    activations: dict[tuple[str, int], list[Any]] = {}
    hidden_states: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):

        def hook(_: Any, inputs: Any, number: int = number) -> None:
            hidden_states[number] = inputs[0][0]

        layer.mlp.down_proj.register_forward_pre_hook(hook)
    for text in texts:
        encoded = tokenizer(text.text, return_offsets_mapping=True, return_special_tokens_mask=True)
        with torch.no_grad():
            model(torch.tensor([encoded["input_ids"]]))
        real = [not special for special in encoded["special_tokens_mask"]]
        start, end = text.spans
        concept = [
            is_real and bool(text.text[max(a, start) : min(b, end)].strip())
            for is_real, (a, b) in zip(real, encoded["offset_mapping"], strict=True)
        ]
        first, last = concept.index(True), len(concept) - 1 - concept[::-1].index(True)
        masks = {
            "max": real,
            "concept": [index == last for index in range(len(real))],
            "concept-max": concept,
            "before": [is_real and index < first for index, is_real in enumerate(real)],
            "context": [
                is_real and not is_concept for is_real, is_concept in zip(real, concept, strict=True)
            ],
        }
        for number, hidden in hidden_states.items():
            for pooling, mask in masks.items():
                pooled = hidden[torch.tensor(mask)].amax(dim=0)
                activations.setdefault((pooling, number), []).append(pooled.numpy())
    return {key: np.array(values).T for key, values in activations.items()}


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_pooled_activations_match_single_sentences(tiny_model: Path, budget: int) -> None:
    """Padding or batching that changes a sentence's activations."""
    texts = make_texts(24)
    expected = run_one_by_one(tiny_model, texts)
    activations = run_shard(tiny_model, texts, POOLINGS, budget)
    for (pooling, site), values in activations.items():
        if site.name != RESIDUAL:
            # tolerance: rounding to float16
            np.testing.assert_allclose(values, expected[pooling, site.layer], rtol=6e-4, atol=TOLERANCE)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_pooled_hidden_states_match_single_sentences(tiny_model: Path, budget: int) -> None:
    """A mean or last token that includes padding, or another token than the last of the word."""
    texts = make_texts(12)
    activations = run_shard(tiny_model, texts, ["max"], budget)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    hidden_states: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _, __, out, n=number: hidden_states.update({n: out[0]}))
    states = {(kind, site.layer): values for (kind, site), values in activations.items()}
    for column, text in enumerate(texts):
        encoded = tokenizer(text.text, return_offsets_mapping=True)
        with torch.no_grad():
            model(torch.tensor([encoded["input_ids"]]))
        at_word = max(
            n for n, (start, _) in enumerate(encoded["offset_mapping"]) if start < text.spans[1]
        )
        for number, hidden in hidden_states.items():
            # the first token is the BOS
            expected = {"mean": hidden[1:].mean(dim=0), "last": hidden[-1], "concept": hidden[at_word]}
            for kind, values in expected.items():
                assert_close(states[kind, number][:, column], values.numpy())


@pytest.mark.parametrize("pad_id", [0, 7, 299])
def test_activations_do_not_depend_on_the_batch_or_the_pad_token(tiny_model: Path, pad_id: int) -> None:
    """Attention to padding."""
    texts, poolings = make_texts(12), [*POOLINGS, "mean", "last"]
    alone = run_in_float32(tiny_model, poolings, texts, 1)
    together = run_in_float32(tiny_model, poolings, texts, 10_000, pad_id)
    reversed_ = run_in_float32(tiny_model, poolings, texts[::-1], 10_000, pad_id)
    for key, values in alone.items():
        assert_close(together[key], values)
        assert_close(reversed_[key][::-1], values)


def test_the_demo_model_does_not_mix_sentences() -> None:
    """The same with trained weights."""
    folder = ensure_local(resolve("smollm2-135m-instruct", "main", Path()))
    texts = make_texts(6)
    alone = run_in_float32(folder, ["max"], texts, 1)
    for key, values in run_in_float32(folder, ["max"], texts, 10_000).items():
        assert_close(values, alone[key])


def test_a_special_token_is_never_pooled(tiny_model: Path, tmp_path: Path) -> None:
    """A pooled BOS, which a huge embedding would reveal."""
    from safetensors.torch import load_file, save_file

    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    texts = make_texts(6)
    tokenizer = Tokenizer(tiny_model, MAX_TOKENS)
    # without value projections tokens do not influence one another
    for name in list(weights):
        if "v_proj" in name:
            weights[name].zero_()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    plain = run_shard(tmp_path, texts, ["max"], 100)
    weights["model.embed_tokens.weight"][0] = torch.linspace(-50, 90, 32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with_huge_bos = run_shard(tmp_path, texts, ["max"], 100)
    assert tokenizer(texts[:1])[0].ids[0] == 0
    for key, values in plain.items():
        assert np.array_equal(with_huge_bos[key], values)


def test_the_sites_are_the_inputs_of_the_down_projections(tiny_model: Path) -> None:
    sites = load_shard(tiny_model, ["max"]).sites
    assert sites == [Site(layer, "mlp.hidden", "mlp.down_proj", "input", 48) for layer in range(3)]
    assert [str(site) for site in sites] == ["L00.mlp.hidden", "L01.mlp.hidden", "L02.mlp.hidden"]


def test_a_value_beyond_float16_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    """Infinities in the store."""
    from safetensors.torch import load_file, save_file

    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e6
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        NeuralignError, match=r"L01\.mlp\.hidden, pooling max, sentence .*: .* exceeds float16's range"
    ):
        run_shard(tmp_path, make_texts(6), ["max"], 100)


def test_a_site_without_output_is_an_error(tiny_model: Path) -> None:
    """A file of uninitialized memory."""
    shard = load_shard(tiny_model, ["max"])
    shard.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(NeuralignError, match=r"L01\.mlp\.hidden: has no output"):
        run_layers(shard, read_texts(tiny_model, settings_for(["max"]), make_texts(3)), 100)


def test_a_sentence_without_tokens_to_pool_is_an_error(tiny_model: Path) -> None:
    """-inf from a maximum over no tokens."""
    with pytest.raises(UserError, match="only its concept's word"):
        run_shard(tiny_model, [Text("cat", [0, 3])], POOLINGS)
    with pytest.raises(UserError, match="before its concept's word"):
        run_shard(tiny_model, [Text("noise " * 100 + "cat", [600, 603])], POOLINGS)
    activations = run_shard(tiny_model, [Text("No concept here.", [])], POOLINGS)
    values = {(pooling, site.name): values for (pooling, site), values in activations.items()}
    assert np.array_equal(values["concept", "mlp.hidden"], values["max", "mlp.hidden"])


def test_a_space_token_is_not_part_of_a_word(tiny_model: Path) -> None:
    """Similar embeddings of all words, where a tokenizer makes a token of the space before a word."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = Tokenizer(tiny_model, MAX_TOKENS).word_ids("xylophone")
    assert tokenizer(" xylophone", add_special_tokens=False)["input_ids"] != ids
    assert tokenizer.decode(ids) == "xylophone"


def test_truncated_sentences_are_counted_or_an_error(tiny_model: Path) -> None:
    """Silent truncation, or truncation of the concept's word."""
    long = Text("noise " * 100 + "cat", [600, 603])
    assert read_texts(tiny_model, settings_for(["max"]), [long]).n_truncated == 1
    with pytest.raises(UserError) as error:
        run_shard(tiny_model, [long], ["concept"])
    assert len(str(error.value)) < 250


def test_a_truncated_model_is_a_one_line_error(tiny_model: Path, tmp_path: Path) -> None:
    """A traceback from safetensors."""
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError) as error:
        load_shard(tmp_path, ["max"])
    assert "\n" not in str(error.value)


def test_a_missing_weight_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    """Randomly initialized weights."""
    from safetensors.torch import load_file, save_file

    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj"):
        load_shard(tmp_path, ["max"])


def test_batches_hold_every_sentence_once_within_the_budget() -> None:
    """Lost sentences, or batches that exceed memory."""
    lengths = [5, 9, 1, 30, 7, 7, 2]
    batches = batch_sentences(lengths, 16)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    for batch in batches:
        assert len(batch) * max(lengths[index] for index in batch) <= 16 or len(batch) == 1
    assert batches == batch_sentences(lengths, 16)
