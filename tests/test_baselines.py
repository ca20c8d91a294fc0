"""A baseline that is read wrongly makes the neurons look better than they are: vectors must be those of
the file for the right word, an encoder's those of its own recipe, and shuffling must change the order of
the words and nothing else."""

from __future__ import annotations

import gc
import gzip
import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models import FastText, KeyedVectors
from gensim.models.fasttext import save_facebook_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from alignment.text.word_matching import find_word, shuffled
from cluster.models.sentence_encoder import Encoder
from cluster.models.weights import materialise, resolve_encoder
from jobs import sentences
from jobs.config import read_sweep
from jobs.engine.stage import ensure
from jobs.planner import baseline_stages
from storage.errors import UserError
from storage.readers.concepts import read_concepts
from storage.readers.word_vectors import read_vectors
from tests import tiny

WORDS = ["cat", "Paris", "polar_bear", "sea-lion", "dog"]
SENTENCES = ["A cat.", "The dog and the old cat sat there.", "Nobody saw a cow in the rain today."]


@pytest.fixture(scope="module")
def vectors() -> KeyedVectors:
    found = KeyedVectors(7)
    found.add_vectors(WORDS, np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32))
    return found


@pytest.mark.parametrize("kind", ["word2vec text", "word2vec binary", "glove", "glove.gz"])
def test_a_file_of_word_vectors_is_known_by_its_content(
    tmp_path: Path, vectors: KeyedVectors, kind: str
) -> None:
    """Its name says nothing: .txt, .vec and .bin are used for all of them."""
    path = tmp_path / ("vectors.gz" if kind.endswith("gz") else "vectors")
    binary = kind == "word2vec binary"
    vectors.save_word2vec_format(str(tmp_path / "saved"), binary=binary)
    content = (tmp_path / "saved").read_bytes()
    if "glove" in kind:
        content = content.partition(b"\n")[2]
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    found = read_vectors(path, ["cat", "Cat", "paris", "polar bear", "sea_lion", "sofa"])
    expected = {"cat": "cat", "Cat": "cat", "polar bear": "polar_bear", "sea_lion": "sea-lion"}
    assert found.keys() == expected.keys()
    for concept, word in expected.items():
        np.testing.assert_allclose(found[concept], vectors[word], rtol=1e-6)


def test_a_vector_without_a_direction_is_none(tmp_path: Path) -> None:
    """It would stop the sweep, after hours, at the first such word."""
    file = tiny.write_sweep(tmp_path, model="none", extra="baselines: [{name: w, path: w.vec}]\n")
    rows = [f"{word} {number} 1" for number, word in enumerate(tiny.CONCEPTS)]
    rows[0], rows[1] = "cat 0 0", "dog nan 1"
    (tmp_path / "w.vec").write_text("\n".join(rows) + "\n")
    wanted = read_sweep(file)
    texts = sentences.plan(read_concepts(tmp_path / "concepts.csv", "tiny"), "en")
    (stage,) = baseline_stages(wanted, texts)
    for each in (texts, stage):
        ensure(each, wanted.store_path)
    assert stage.result(wanted.store_path).notes == ["w: no word vector for cat, dog"]


def test_fasttext_makes_vectors_of_words_that_it_never_saw(tmp_path: Path) -> None:
    texts = [sentence.lower().rstrip(".").split() for sentence in SENTENCES] * 5
    model = FastText(texts, vector_size=6, min_count=1, bucket=50, seed=1, workers=1, epochs=1)
    save_facebook_model(model, str(tmp_path / "model.bin"))
    found = read_vectors(tmp_path / "model.bin", ["cat", "Dog", "cats"])
    assert "cats" not in model.wv.key_to_index
    for concept, word in (("cat", "cat"), ("Dog", "dog"), ("cats", "cats")):
        np.testing.assert_allclose(found[concept], model.wv[word], rtol=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"word,x,y\ncat,1,2\n", b"cat one two\n", b"2 3\ncat 1 2 3\n", b"\x00\x01\x02" * 99]
)
def test_what_is_no_file_of_word_vectors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with warnings.catch_warnings():
        # gensim leaves a file that it cannot read to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(UserError, match=r"v\.txt: is no file of word vectors") as caught:
            read_vectors(tmp_path / "v.txt", ["cat"])
        assert "\n" not in str(caught.value)
        del caught
        gc.collect()
    with pytest.raises(UserError, match="no such file"):
        read_vectors(tmp_path / "none", ["cat"])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["cls_token", "mean_tokens", "max_tokens", "lasttoken"])
def test_an_encoder_is_that_of_a_loop_over_single_texts(
    tmp_path: Path, pooling: str, normalise: bool
) -> None:
    """Padding must not show, and the pooling must be the one that the folder names."""
    folder = tiny.make_encoder(tmp_path, pooling, normalise)
    found = Encoder(folder)([*SENTENCES, "word " * 40])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip([*SENTENCES, "word " * 40], found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:20]])
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0]
        pools = {
            "cls_token": hidden[0],
            "mean_tokens": hidden.mean(dim=0),
            "max_tokens": hidden.amax(dim=0),
            "lasttoken": hidden[-1],
        }
        expected = pools[pooling].numpy()
        if normalise:
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_the_packaged_encoder_gives_the_numbers_of_its_model_card() -> None:
    encoder = Encoder(materialise(resolve_encoder("all-minilm-l6-v2", "main", Path())))
    (vector,) = encoder(["This is an example sentence"])
    # huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    assert vector[:4] == pytest.approx([0.0676569, 0.0634959, 0.0487131, 0.0793049], abs=1e-5)
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_an_encoder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    folder = tiny.make_encoder(tmp_path / "encoder")
    for name, content, message in (
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', "wants a prompt"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "wants its texts in lower case"),
        ("modules.json", "[{]", "is no JSON"),
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}]',
            "the modules Transformer; known",
        ),
    ):
        before = (folder / name).read_text() if (folder / name).is_file() else "{}"
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=message):
            Encoder(folder)
        (folder / name).write_text(before)
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(UserError, match="pools by pooling_mode_weightedmean_tokens"):
        Encoder(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(UserError, match=r"no modules\.json"):
        Encoder(folder)
    with pytest.raises(UserError, match="is no folder"):
        resolve_encoder("./nowhere/at/all", "main", tmp_path)


def test_another_pooling_is_another_encoder(tmp_path: Path) -> None:
    """What makes an encoder lies in subfolders too; a result must not outlive a change there."""
    folder = tiny.make_encoder(tmp_path)
    before = resolve_encoder(str(folder), "main", Path()).identity
    config = folder / "1_Pooling/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooling_mode_cls_token": True}))
    assert resolve_encoder(str(folder), "main", Path()).identity != before


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "polar bear", "Polar bears,", "sat", "on.", "ice"])),
    st.integers(0, 9),
)
def test_shuffling_keeps_each_word_and_the_concepts_whole(words: list[str], seed: int) -> None:
    text = " ".join(words)
    found = shuffled(text, ["polar bear"], np.random.default_rng(seed))
    assert Counter(found.split()) == Counter(text.split())
    assert len(find_word(found, "polar bear")) >= len(find_word(text, "polar bear"))
    assert found == shuffled(text, ["polar bear"], np.random.default_rng(seed))


def test_shuffling_shuffles() -> None:
    text = "the old polar bear sat down on the thin ice of the bay"
    orders = {shuffled(text, ["polar bear"], np.random.default_rng(seed)) for seed in range(20)}
    assert len(orders) == 20
    assert all("polar bear" in order for order in orders)


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ("[word2vec]", "baselines[0]: 'word2vec': expected 'glove', 'input-embedding'"),
        ("[{name: mine}]", "baselines[0].path: is missing"),
        ("[{name: mine, path: a.vec, dim: 3}]", "baselines[0].dim: unknown key; allowed: name, path"),
        ("[{name: e, encoder: x, pool: max}]", "baselines[0].pool: unknown key; allowed: name, encoder"),
        ("[glove, glove]", "baselines: 'glove' is listed twice"),
        ("[{name: a, path: b}, {name: a, encoder: c}]", "baselines: 'a' is listed twice"),
    ],
)
def test_a_sweep_file_that_names_baselines_wrongly_is_refused(
    tmp_path: Path, baselines: str, message: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(f"concepts: a.csv\nmodels: [a]\nbaselines: {baselines}\n")
    with pytest.raises(UserError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    assert message in str(caught.value)
