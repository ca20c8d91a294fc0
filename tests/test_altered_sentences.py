"""The controls on altered sentences: what was altered must be known, and only that may differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import sentences
from jobs.engine.stage import Stage, run_if_needed
from storage.errors import UserError
from storage.readers.concepts import Concept, ConceptSet, Sentence

TEXTS = {"An owl met two owls.": ("owl",), "An owl and a cat saw a thing.": ("owl", "cat")}


def make_stages(store: Path, alteration: str, language: str = "en") -> tuple[Stage, Stage]:
    """Finished stages of two sentences, and of the altered ones."""
    texts = [Sentence(text, concepts=names) for text, names in TEXTS.items()]
    concept_set = ConceptSet("set", [Concept("owl"), Concept("cat")], texts)
    original = sentences.plan(concept_set, language)
    altered = sentences.plan_altered(concept_set, original, language, 0, alteration)
    for stage in (original, altered):
        run_if_needed(stage, store)
    return original, altered


def test_the_placeholder_has_the_role_of_the_word(tmp_path: Path) -> None:
    """The poolings `concept` and `context` of masked sentences would take a "thing" of the author's for
    the word, or all tokens for the context."""
    _, masked = make_stages(tmp_path, sentences.MASKED)
    texts = sentences.read_texts(masked, tmp_path)
    assert [text for text, _ in texts] == ["A thing met two things.", "A thing and a thing saw a thing."]
    found = [[text[a:b] for a, b in zip(s[::2], s[1::2], strict=True)] for text, s in texts]
    assert found == [["thing", "things"], ["thing", "thing"]]
    assert texts[1][1] == [2, 7, 14, 19]


@pytest.mark.parametrize("alteration", sentences.ALTERATIONS)
def test_altered_sentences_are_a_concept_set_of_their_own(tmp_path: Path, alteration: str) -> None:
    """Their activations would be taken for those of the original sentences."""
    original, altered = make_stages(tmp_path, alteration)
    assert altered.params["concept_set"] == f"{original.params['concept_set']} {alteration}"
    assert sentences.count_sentences(altered, tmp_path) == {"owl": 2, "cat": 1}


def test_words_of_another_language_are_not_masked_in_english(tmp_path: Path) -> None:
    """An English placeholder in a German sentence would be a change of language, not a control."""
    with pytest.raises(UserError, match="baselines: masked: the placeholder is English"):
        make_stages(tmp_path, sentences.MASKED, "de")
