"""A sentence's activations must be its own: not its neighbours', not the padding's, not those of a
special token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.text.word_matching import find_word
from cluster.activations import shard as shard_module
from cluster.activations.batching import batches
from cluster.activations.buffer import Gathered
from cluster.activations.shard import Reading, Settings, Shard
from cluster.activations.tokens import Text
from cluster.models.sites import Site
from cluster.models.weights import materialise, resolve
from storage.errors import NeuralignError, UserError
from storage.store.activation_files import RESIDUAL
from tests import tiny

TOLERANCE = 1e-5
POOLINGS = ["max", "concept", "context"]
Values = npt.NDArray[np.floating[Any]]


def texts(n: int) -> list[Text]:
    found = []
    for name, sentence in tiny.sentences()[:n]:
        spans = [edge for span in find_word(sentence, name) for edge in span]
        found.append(Text(sentence, spans))
    return found


def shard(folder: Path, poolings: list[str]) -> Shard:
    return Shard(folder, Settings("float32", "mlp", poolings))


def read(folder: Path, given: list[Text], poolings: list[str], budget: int = 100) -> Reading:
    return shard(folder, poolings).read(given, budget)


def read_in_float32(reader: Shard, given: list[Text], budget: int) -> dict[Any, Values]:
    """Pooled values, of shape (sentences, units), before they are stored in float16."""
    work = reader.begin(given, budget)
    work.gathered = Gathered(dict.fromkeys(work.gathered.values(), torch.float32), len(given))
    reader.step(work, range(len(work.batches)), None)
    return {key: values.T for key, values in reader.finish(work).values.items()}


def assert_close(found: Values, expected: Values) -> None:
    """Rounding is as large as the largest terms that were added."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def by_loop(folder: Path, given: list[Text]) -> dict[tuple[str, int], Values]:
    """Pooled activations one sentence at a time, without padding, from the whole model in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found: dict[tuple[str, int], list[Any]] = {}
    seen: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):

        def hook(_: Any, inputs: Any, number: int = number) -> None:
            seen[number] = inputs[0][0]

        layer.mlp.down_proj.register_forward_pre_hook(hook)
    for text in given:
        encoded = tokenizer(text.text, return_offsets_mapping=True, return_special_tokens_mask=True)
        with torch.no_grad():
            model(torch.tensor([encoded["input_ids"]]))
        real = [not special for special in encoded["special_tokens_mask"]]
        start, end = text.spans
        word = [
            is_real and bool(text.text[max(a, start) : min(b, end)].strip())
            for is_real, (a, b) in zip(real, encoded["offset_mapping"], strict=True)
        ]
        rows = {
            "max": real,
            "concept": word,
            "context": [r and not w for r, w in zip(real, word, strict=True)],
        }
        for number, hidden in seen.items():
            for pooling, chosen in rows.items():
                pooled = hidden[torch.tensor(chosen)].amax(dim=0)
                found.setdefault((pooling, number), []).append(pooled.numpy())
    return {key: np.array(values).T for key, values in found.items()}


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_pooled_activations_are_those_of_a_loop_over_single_sentences(
    tiny_model: Path, budget: int
) -> None:
    given = texts(24)
    expected = by_loop(tiny_model, given)
    reading = read(tiny_model, given, POOLINGS, budget)
    for (pooling, site), values in reading.values.items():
        if site.name != RESIDUAL:
            # half a step of float16 is lost in storing
            np.testing.assert_allclose(values, expected[pooling, site.layer], rtol=6e-4, atol=TOLERANCE)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_hidden_states_are_those_of_a_loop_over_single_sentences(tiny_model: Path, budget: int) -> None:
    """The mean over the real tokens and the last of them, whatever is padded behind it."""
    given = texts(12)
    reading = read(tiny_model, given, ["max"], budget)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    seen: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _, __, out, n=number: seen.update({n: out[0]}))
    states = {(pool, site.layer): values for (pool, site), values in reading.values.items()}
    for column, text in enumerate(given):
        with torch.no_grad():
            model(torch.tensor([tokenizer(text.text)["input_ids"]]))
        for number, hidden in seen.items():
            # the first token is the BOS
            for pool, expected in (("mean", hidden[1:].mean(dim=0)), ("last", hidden[-1])):
                found = states[pool, number][:, column]
                assert_close(found, expected.numpy())


@pytest.mark.parametrize("pad_id", [0, 7, 299])
def test_a_sentence_does_not_depend_on_its_batch_or_the_pad_token(
    tiny_model: Path, pad_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = texts(12)
    reader = shard(tiny_model, [*POOLINGS, "mean", "last"])
    alone = read_in_float32(reader, given, 1)
    monkeypatch.setattr(shard_module, "PAD_ID", pad_id)
    together = read_in_float32(reader, given, 10_000)
    reversed_ = read_in_float32(reader, given[::-1], 10_000)
    for key, values in alone.items():
        assert_close(together[key], values)
        assert_close(reversed_[key][::-1], values)


def test_the_real_model_does_not_mix_sentences_either() -> None:
    folder = materialise(resolve("smollm2-135m-instruct", "main", Path()))
    given = texts(6)
    reader = shard(folder, ["max"])
    alone = read_in_float32(reader, given, 1)
    for key, values in read_in_float32(reader, given, 10_000).items():
        assert_close(values, alone[key])


def test_a_special_token_is_never_pooled(tiny_model: Path, tmp_path: Path) -> None:
    """With an embedding of the BOS that is huge, anything that pooled it would show."""
    from safetensors.torch import load_file, save_file

    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    given = texts(6)
    before = shard(tiny_model, ["max"])
    # the value projection is cut, so that tokens cannot tell each other anything
    for name in list(weights):
        if "v_proj" in name:
            weights[name].zero_()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    plain = read(tmp_path, given, ["max"], 100)
    weights["model.embed_tokens.weight"][0] = torch.linspace(-50, 90, 32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loud = read(tmp_path, given, ["max"], 100)
    assert before.tokenizer(given[:1])[0].ids[0] == 0
    for key, values in plain.values.items():
        assert np.array_equal(loud.values[key], values)


def test_the_sites_are_the_inputs_of_the_down_projections(tiny_model: Path) -> None:
    sites = shard(tiny_model, ["max"]).sites
    assert sites == [Site(layer, "mlp.hidden", "mlp.down_proj", "input", 48) for layer in range(3)]
    assert [str(site) for site in sites] == ["L00.mlp.hidden", "L01.mlp.hidden", "L02.mlp.hidden"]


def test_a_value_past_float16_is_an_error_and_not_infinity(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e6
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(NeuralignError, match=r"L01\.mlp\.hidden, pooling max: .* past float16's range"):
        read(tmp_path, texts(6), ["max"], 100)


def test_a_site_that_gives_nothing_is_an_error(tiny_model: Path) -> None:
    """Its file would be filled with whatever the memory held before."""
    reader = shard(tiny_model, ["max"])
    reader.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(NeuralignError, match=r"L01\.mlp\.hidden: gave no values"):
        reader.read(texts(3), 100)


def test_a_sentence_that_a_pooling_cannot_read_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="nothing but its concept's word"):
        read(tiny_model, [Text("cat", [0, 3])], POOLINGS)
    with pytest.raises(UserError, match="before its concept's word"):
        read(tiny_model, [Text("noise " * 100 + "cat", [600, 603])], POOLINGS)
    reading = read(tiny_model, [Text("No concept here.", [])], POOLINGS)
    by_pooling = {pooling: values for (pooling, _), values in reading.values.items()}
    assert np.array_equal(by_pooling["concept"], by_pooling["max"])


def test_a_space_that_is_a_token_is_no_part_of_a_word(tiny_model: Path) -> None:
    """Some tokenizers make a token of the space before a word: it would make all words alike."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = shard(tiny_model, ["max"]).tokenizer.word_ids("xylophone")
    assert tokenizer(" xylophone", add_special_tokens=False)["input_ids"] != ids
    assert tokenizer.decode(ids) == "xylophone"


def test_a_long_sentence_is_cut_and_counted_where_its_word_is_not_needed(tiny_model: Path) -> None:
    long = Text("noise " * 100 + "cat", [600, 603])
    assert read(tiny_model, [long], ["max"]).truncated == 1
    with pytest.raises(UserError) as caught:
        read(tiny_model, [long], ["concept"])
    assert len(str(caught.value)) < 250


def test_a_folder_that_is_no_model_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as caught:
        shard(tmp_path, ["max"])
    assert "\n" not in str(caught.value)


def test_a_weight_that_the_files_lack_is_an_error_and_not_drawn(
    tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj"):
        shard(tmp_path, ["max"])


def test_batches_hold_every_sentence_once_and_keep_the_budget() -> None:
    lengths = [5, 9, 1, 30, 7, 7, 2]
    cut = batches(lengths, 16)
    assert sorted(position for batch in cut for position in batch) == list(range(7))
    for batch in cut:
        assert len(batch) * max(lengths[position] for position in batch) <= 16 or len(batch) == 1
    assert cut == batches(lengths, 16)
