"""The masked-word control must leave nothing of the word: not its number of letters, its article or its
capital; and the placeholder must be where the word was."""

from __future__ import annotations

import pytest

from alignment.text.word_masking import mask_words
from alignment.text.word_matching import VERB, ConceptWord, find_word


def mask(text: str, *names: str, pos: str = "noun") -> tuple[str, dict[str, list[tuple[int, int]]]]:
    return mask_words(text, {name: ConceptWord(name, pos) for name in names})


@pytest.mark.parametrize(
    ("name", "text", "masked"),
    [
        ("cat", "The cat saw two cats.", "The thing saw two things."),
        (
            "cat",
            "Cats sleep. A cat-like dog is no catalog.",
            "Things sleep. A cat-like dog is no catalog.",
        ),
        ("apple", "An apple fell; an apple, an  apple.", "A thing fell; a thing, a  thing."),
        ("sheep", "Ten sheep ate.", "Ten thing ate."),
        ("polar_bear", "A polar bear met polar-bears.", "A thing met things."),
        ("Paris", "Paris is far; we love Paris.", "Thing is far; we love thing."),
        ("ford", "Is that your Ford? Fords rust.", "Is that your thing? Things rust."),
        ("cat", 'He said, "Cats sleep."', 'He said, "Things sleep."'),
        ("café", "Two cafés and a cafe.", "Two things and a thing."),
        ("cat", "Nobody is here.", "Nobody is here."),
    ],
)
def test_every_form_of_the_word_is_replaced_in_its_number(name: str, text: str, masked: str) -> None:
    """A form that stays, "an" before the placeholder or a capital inside a sentence would let the model
    know the word that is masked."""
    assert mask(text, name)[0] == masked


def test_a_verb_has_no_plural() -> None:
    """The form "runs" of a verb would become the plural of a noun."""
    assert mask("He runs and ran.", "run", pos=VERB)[0] == "He thing and thing."


def test_spans_are_those_of_the_placeholders() -> None:
    """Other pooling roles would be given to the placeholder than to the word, or the role of the word to
    a "thing" of the author's."""
    text = "A polar bear and a cat met a thing; bears fled from the cats."
    masked, spans = mask(text, "polar bear", "bear", "cat", "dog")
    assert masked == "A thing and a thing met a thing; things fled from the things."
    found = find_word(masked, "thing")
    assert spans == {
        "polar bear": [found[0]],
        "bear": [found[0], found[3]],
        "cat": [found[1], found[4]],
        "dog": [],
    }
