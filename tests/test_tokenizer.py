"""A model's inputs must be its own: which tokens begin a text, and which are text at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_checks import check_tokens
from cluster.models.token_roles import AFTER, BEFORE, IGNORED, NO_WORD, WORD, WORD_END
from cluster.models.tokenizer import InputOptions, Text, Tokenizer
from jobs.config.models import Model
from storage.database import open_store
from storage.errors import UserError
from tests import tiny
from tests.pooled import pool

MAX_TOKENS = 64
WITH_BOS, WITHOUT_BOS = InputOptions(add_bos=True), InputOptions(add_bos=False)
SKIPPING_FIRST = InputOptions(skip_first_token=True)
SKIPPING = InputOptions(add_bos=False, skip_first_token=True)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer(tiny_model, MAX_TOKENS)


def real_text(tokenizer: Tokenizer, text: str) -> str:
    (sentence,) = tokenizer([Text(text, [])])
    return tokenizer.decode(
        token for token, role in zip(sentence.ids, sentence.roles, strict=True) if role != IGNORED
    )


def test_the_text_of_a_special_token_is_not_pooled(tiny_model: Path, tmp_path: Path) -> None:
    """A sentence that contains `<s>` would pool the activations of the token that begins texts."""
    saved = AutoTokenizer.from_pretrained(tiny_model)
    saved.add_tokens([AddedToken("<mark>", special=True)])
    saved.add_tokens([AddedToken("<own>", special=False)])
    saved.save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path, MAX_TOKENS)
    text = "The <s> cat<mark> sat on <own>."
    (sentence,) = tokenizer([Text(text, [4, 7, 8, 11])])
    special = [index for index, token in enumerate(sentence.ids) if token in (0, len(saved) - 2)]
    assert len(special) == 3  # with the BOS
    assert [sentence.roles[index] for index in special] == [IGNORED] * 3
    assert real_text(tokenizer, text) == "The  cat sat on <own>."
    assert tokenizer.word_ids("<s>") == []
    assert tokenizer.encode_prompt("The cat", "<s>")[1] == []


def test_a_word_outside_the_vocabulary_is_text(tmp_path: Path) -> None:
    """Its token is special, but stands for a word that the model reads."""
    backend = Backend(models.WordLevel({"[UNK]": 0, "the": 1, "sat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    (sentence,) = Tokenizer(tmp_path, MAX_TOKENS)([Text("the cat sat [UNK]", [4, 7])])
    assert sentence.ids == [1, 0, 2, 0]
    assert sentence.roles == [BEFORE, WORD_END, AFTER, IGNORED]


def make_word_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer that makes a token of every letter and space, and adds no others."""
    vocabulary = {letter: number for number, letter in enumerate(" abcdefghijklmnopqrstuvwxyz.")}
    backend = Backend(models.WordLevel(vocabulary, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return Tokenizer(folder, MAX_TOKENS)


def test_tokens_are_told_apart_by_their_place_relative_to_the_words_occurrences(tmp_path: Path) -> None:
    """Text between two occurrences, which has read the first, would pass for text before the word; or
    only the sentence's last occurrence would have an end."""
    tokenizer = make_word_tokenizer(tmp_path)
    (twice,) = tokenizer([Text("a cat or cats.", [2, 5, 9, 13])])
    assert twice.roles == [
        *[BEFORE] * 2,
        *(WORD, WORD, WORD_END),
        *[AFTER] * 4,
        *(WORD, WORD, WORD, WORD_END),
        AFTER,
    ]
    (first,) = tokenizer([Text("ox.", [0, 2])])
    assert first.roles == [WORD, WORD_END, AFTER]
    (without,) = tokenizer([Text("a b", [])])
    assert without.roles == [NO_WORD] * 3
    (skipped,) = tokenizer([Text("a or a", [0, 1, 5, 6])], SKIPPING_FIRST)
    assert skipped.roles == [IGNORED, *[AFTER] * 4, WORD_END]


def test_a_sentence_cut_inside_its_word_is_rejected(tmp_path: Path) -> None:
    """The first piece of a word, which may be that of many words, would pass for the word."""
    tokenizer = make_word_tokenizer(tmp_path)
    text = Text("a " * 30 + "catfish", [60, 67])
    (sentence,) = tokenizer([text])
    with pytest.raises(UserError, match="truncated after 64 tokens, before its concept's word ends"):
        check_tokens(text, sentence, ["max", "concept"])
    check_tokens(text, sentence, ["concept-max", "context", "before"])


def test_add_bos_decides_whether_texts_begin_with_a_bos(tokenizer: Tokenizer) -> None:
    """A study of the BOS would run the same model twice."""
    text = Text("The cat sat.", [4, 7])
    (default,), (with_bos,), (without,) = (
        tokenizer([text], options) for options in (InputOptions(), WITH_BOS, WITHOUT_BOS)
    )
    assert default == with_bos
    assert default.ids == [0, *without.ids]
    assert default.roles == [IGNORED, *without.roles]
    assert WORD_END in without.roles
    prefix, word = tokenizer.encode_prompt("The", "cat")
    assert tokenizer.encode_prompt("The", "cat", WITH_BOS) == (prefix, word)
    assert tokenizer.encode_prompt("The", "cat", WITHOUT_BOS) == (prefix[1:], word)


def test_add_bos_is_rejected_for_a_tokenizer_without_a_bos(tiny_model: Path, tmp_path: Path) -> None:
    backend = AutoTokenizer.from_pretrained(tiny_model).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path, MAX_TOKENS)
    with pytest.raises(UserError, match="add_bos: the tokenizer has no BOS token"):
        tokenizer([Text("The cat sat.", [])], WITH_BOS)


def test_a_skipped_first_token_is_in_no_pooling(tiny_model: Path) -> None:
    """The attention sink would dominate maxima and means."""
    text = Text("The old cat sat.", [8, 11])
    poolings = ["max", "context", "mean", "concept"]
    settings = [
        ActivationSettings("float32", "mlp", poolings, inputs=options)
        for options in (SKIPPING, WITHOUT_BOS)
    ]
    (sentence,) = Tokenizer(tiny_model, MAX_TOKENS)([text], SKIPPING)
    assert [role == IGNORED for role in sentence.roles] == [True] + [False] * (len(sentence.ids) - 1)
    skipped, whole = (pool(tiny_model, each, [text], 100) for each in settings)
    changed = {
        pooling for pooling, site in whole if (skipped[pooling, site] != whole[pooling, site]).any()
    }
    # The hidden states have the poolings mean, last and concept.
    assert changed == {"max", "context", "mean"}


def test_a_sentence_whose_word_is_only_its_skipped_first_token_is_rejected(tokenizer: Tokenizer) -> None:
    """Its pooling `concept` would silently take in the whole sentence."""
    text = Text("a b c d", [0, 1])
    (sentence,) = tokenizer([text], SKIPPING)
    with pytest.raises(UserError, match="has no token of its concept's word that is pooled"):
        check_tokens(text, sentence, ["concept"])
    check_tokens(text, sentence, ["max"])
    (with_bos,) = tokenizer([text], InputOptions(skip_first_token=True))
    check_tokens(text, with_bos, ["concept"])


def test_default_options_leave_fingerprints_as_they_were() -> None:
    """Every finished study would be computed again."""
    assert Model(id="a").input_params() == {}
    assert not {"add_bos", "skip_first_token"} & Model(id="a").model_dump(mode="json").keys()
    model = Model(id="a", add_bos=False, skip_first_token=True)
    assert model.input_params() == {"add_bos": False, "skip_first_token": True}


def test_unreadable_tokenizers_are_rejected_in_one_line(tmp_path: Path) -> None:
    tiny.make_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        Tokenizer(tmp_path, MAX_TOKENS)


def test_the_number_of_tokens_of_each_concepts_word_is_in_the_store(
    study: Path, tiny_model: Path
) -> None:
    """A comparison of models could not tell words of one token from words in pieces."""
    with open_store(study / "results/sweep") as connection:
        rows = connection.sql("SELECT DISTINCT concept, n_tokens FROM concept_tokens").fetchall()
    backend = AutoTokenizer.from_pretrained(tiny_model)
    ids = {
        concept: backend(f" {concept}", add_special_tokens=False).input_ids for concept in tiny.CONCEPTS
    }
    # A token of the space before the word does not count.
    assert dict(rows) == {
        concept: sum(bool(str(backend.decode([token])).strip()) for token in tokens)
        for concept, tokens in ids.items()
    }
