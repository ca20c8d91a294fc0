"""A baseline with wrong numbers makes the neurons look better than they are: word vectors must be those
of the right word, sentence embeddings must follow the encoder's configuration, and shuffling must change
only the order of words."""

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

from alignment.text.word_matching import find_word, shuffle_words
from cluster.models.sentence_encoder import SentenceEncoder
from cluster.models.weights import ensure_local, resolve_encoder
from jobs import hierarchy, sentences
from jobs.config.loader import read_sweep
from jobs.engine.stage import run_if_needed
from jobs.planner import baseline_stages
from storage.errors import UserError
from storage.readers.concepts import read_concepts
from storage.readers.word_vectors import read_vectors
from tests import tiny

WORDS = ["cat", "Paris", "polar_bear", "sea-lion", "dog"]
SENTENCES = ["A cat.", "The dog and the old cat sat there.", "Nobody saw a cow in the rain today."]


@pytest.fixture(scope="module")
def vectors() -> KeyedVectors:
    keyed = KeyedVectors(7)
    keyed.add_vectors(WORDS, np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32))
    return keyed


@pytest.mark.parametrize(
    "kind", ["word2vec text", "word2vec text.gz", "word2vec binary", "glove", "glove.gz"]
)
def test_the_format_of_word_vectors_is_detected_from_the_content(
    tmp_path: Path, vectors: KeyedVectors, kind: str
) -> None:
    """The extensions .txt, .vec and .bin are used for all formats; a wrong guess gives wrong vectors."""
    path = tmp_path / ("vectors.gz" if kind.endswith("gz") else "vectors")
    binary = kind == "word2vec binary"
    vectors.save_word2vec_format(str(tmp_path / "saved"), binary=binary)
    content = (tmp_path / "saved").read_bytes()
    if "glove" in kind:
        content = content.partition(b"\n")[2]
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    loaded = read_vectors(path, ["cat", "Cat", "paris", "polar bear", "sea_lion", "sofa"])
    expected = {"cat": "cat", "Cat": "cat", "polar bear": "polar_bear", "sea_lion": "sea-lion"}
    assert loaded.keys() == expected.keys()
    for concept, word in expected.items():
        np.testing.assert_allclose(loaded[concept], vectors[word], rtol=1e-6)


def test_a_vector_of_zeros_has_no_similarities_and_a_note(tmp_path: Path) -> None:
    """It would stop the sweep at the first such word, or be reported as a word that the file lacks."""
    file = tiny.write_sweep(tmp_path, model="none", extra="baselines: [{name: w, path: w.vec}]\n")
    rows = [f"{word} {number} 1" for number, word in enumerate(tiny.CONCEPTS)]
    rows[0] = "cat 0 0"
    del rows[1]
    (tmp_path / "w.vec").write_text("\n".join(rows) + "\n")
    sweep = read_sweep(file)
    sentences_stage = sentences.plan(read_concepts(tmp_path / "concepts.csv", "tiny"), "en")
    (stage,) = baseline_stages(sweep, sentences_stage)
    run_if_needed(sentences_stage, sweep.store_path)
    run_if_needed(stage, sweep.store_path)
    notes = stage.read_manifest(sweep.store_path).notes
    assert notes == ["w: no word vector for dog", "w: the word vector is zero for cat"]


def test_few_covered_concepts_have_no_hierarchy(tmp_path: Path) -> None:
    """With only one domain of two concepts left, the sweep ended in a division by zero."""
    file = tiny.write_sweep(tmp_path, model="none", extra="baselines: [{name: w, path: w.vec}]\n")
    (tmp_path / "w.vec").write_text("cat 1 2\ndog 2 1\ncow 2 2\nbus 1 1\n")
    sweep = read_sweep(file)
    sentences_stage = sentences.plan(read_concepts(tmp_path / "concepts.csv", "tiny"), "en")
    (similarity_stage,) = baseline_stages(sweep, sentences_stage)
    stage = hierarchy.plan(similarity_stage, sentences_stage, 10, 0)
    for each in (sentences_stage, similarity_stage, stage):
        run_if_needed(each, sweep.store_path)
    (note,) = stage.read_manifest(sweep.store_path).notes
    assert note == "w: no hierarchy: no two domains have two of its concepts each"


def test_fasttext_gives_vectors_of_unknown_words(tmp_path: Path) -> None:
    """A word without an entry of its own would be reported as missing."""
    texts = [sentence.lower().rstrip(".").split() for sentence in SENTENCES] * 5
    model = FastText(texts, vector_size=6, min_count=1, bucket=50, seed=1, workers=1, epochs=1)
    save_facebook_model(model, str(tmp_path / "model.bin"))
    loaded = read_vectors(tmp_path / "model.bin", ["cat", "Dog", "cats"])
    assert "cats" not in model.wv.key_to_index
    for concept, word in (("cat", "cat"), ("Dog", "dog"), ("cats", "cats")):
        np.testing.assert_allclose(loaded[concept], model.wv[word], rtol=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"word,x,y\ncat,1,2\n", b"cat one two\n", b"2 3\ncat 1 2 3\n", b"\x00\x01\x02" * 99]
)
def test_a_file_without_word_vectors_is_rejected(tmp_path: Path, content: bytes) -> None:
    """Misread, it would be a baseline of noise."""
    (tmp_path / "v.txt").write_bytes(content)
    with warnings.catch_warnings():
        # gensim leaves an unreadable file open until it is collected
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(UserError, match=r"v\.txt: is not a file of word vectors") as caught:
            read_vectors(tmp_path / "v.txt", ["cat"])
        assert "\n" not in str(caught.value)
        del caught
        gc.collect()
    with pytest.raises(UserError, match="no such file"):
        read_vectors(tmp_path / "none", ["cat"])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["cls_token", "mean_tokens", "max_tokens", "lasttoken"])
def test_sentence_embeddings_equal_those_of_single_texts(
    tmp_path: Path, pooling: str, normalize: bool
) -> None:
    """Padding must not change the numbers, and the pooling must be the configured one."""
    folder = tiny.make_encoder(tmp_path, pooling, normalize)
    embeddings = SentenceEncoder(folder)([*SENTENCES, "word " * 40])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip([*SENTENCES, "word " * 40], embeddings, strict=True):
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
        if normalize:
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_the_packaged_encoder_gives_the_numbers_of_its_model_card() -> None:
    """An independent source: our own loop could share an error with the encoder."""
    encoder = SentenceEncoder(ensure_local(resolve_encoder("all-minilm-l6-v2", "main", Path())))
    (vector,) = encoder(["This is an example sentence"])
    # huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    assert vector[:4] == pytest.approx([0.0676569, 0.0634959, 0.0487131, 0.0793049], abs=1e-5)
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_an_encoder_with_unsupported_modules_is_rejected(tmp_path: Path) -> None:
    """Ignoring a module would give other embeddings than the published ones."""
    folder = tiny.make_encoder(tmp_path / "encoder")
    for name, content, message in (
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', "requires a prompt"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "requires lower-cased input"),
        ("modules.json", "[{]", "is not valid JSON"),
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}]',
            "has Transformer; supported",
        ),
    ):
        before = (folder / name).read_text() if (folder / name).is_file() else "{}"
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=message):
            SentenceEncoder(folder)
        (folder / name).write_text(before)
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(UserError, match="pools by pooling_mode_weightedmean_tokens"):
        SentenceEncoder(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(UserError, match=r"no modules\.json"):
        SentenceEncoder(folder)
    with pytest.raises(UserError, match="is not a folder"):
        resolve_encoder("./nowhere/at/all", "main", tmp_path)


def test_another_pooling_is_another_encoder(tmp_path: Path) -> None:
    """Configuration is also in subfolders; results must not survive a change there."""
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
def test_shuffling_keeps_all_words_and_multi_word_concepts(words: list[str], seed: int) -> None:
    """A lost word, or a concept that is split, would change more than the order."""
    text = " ".join(words)
    shuffled = shuffle_words(text, ["polar bear"], np.random.default_rng(seed))
    assert Counter(shuffled.split()) == Counter(text.split())
    assert len(find_word(shuffled, "polar bear")) >= len(find_word(text, "polar bear"))
    assert shuffled == shuffle_words(text, ["polar bear"], np.random.default_rng(seed))


def test_shuffling_changes_the_order() -> None:
    """Without it the control would equal the experiment."""
    text = "the old polar bear sat down on the thin ice of the bay"
    orders = {shuffle_words(text, ["polar bear"], np.random.default_rng(seed)) for seed in range(20)}
    assert len(orders) == 20
    assert all("polar bear" in order for order in orders)


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ("[word2vec]", "baselines[0]: 'word2vec': expected 'glove', 'bag-of-words', 'context-words', "),
        ("[{name: mine}]", "baselines[0].path: is missing"),
        ("[{name: mine, path: a.vec, dim: 3}]", "baselines[0].dim: unknown key; allowed: name, path"),
        ("[{name: e, encoder: x, pool: max}]", "baselines[0].pool: unknown key; allowed: name, encoder"),
        ("[glove, glove]", "baselines[1]: 'glove' is listed twice"),
        ("[{name: a, path: b}, {name: a, encoder: c}]", "baselines[1]: 'a' is listed twice"),
    ],
)
def test_invalid_baselines_in_a_sweep_file_are_rejected(
    tmp_path: Path, baselines: str, message: str
) -> None:
    """A misspelled baseline that is ignored would be missing from the report."""
    (tmp_path / "sweep.yaml").write_text(f"concepts: a.csv\nmodels: [a]\nbaselines: {baselines}\n")
    with pytest.raises(UserError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    assert message in str(caught.value)
