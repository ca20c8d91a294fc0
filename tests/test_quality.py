"""The quality gate must let through what can stand for a concept and say why the rest cannot: a
sentence that slips through, or a good one that is lost, bends every number that comes after."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.text import quality
from alignment.text.quality import Collected, Gate, collect, has_pos, is_in, split, trigrams
from alignment.text.word_matching import Word, WordFinder, find_word
from storage.readers.concepts import read_concepts

DEMO = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"
CONCEPTS = [Word("cat"), Word("dog"), Word("ice cream"), Word("ice"), Word("watch", "verb")]
GATE = Gate(CONCEPTS)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. The cat sat.\n2) A dog ran!", ["The cat sat.", "A dog ran!"]),
        ("- **The cat** sat here.", ["The cat sat here."]),
        ("“The cat sat here.”", ["The cat sat here."]),
        ('"The cat sat here."', ["The cat sat here."]),
        ('The cat said "no" to it.', ['The cat said "no" to it.']),
        ("Mr. Smith saw a cat. It ran off.", ["Mr. Smith saw a cat.", "It ran off."]),
        ("The cats' names are 'Tom' and 'Kit'.", ["The cats' names are 'Tom' and 'Kit'."]),
        ("'Tis the cat.", ["'Tis the cat."]),
        ("‘The cat’s dish is here’.", ["The cat’s dish is here."]),
        (
            'It said, "No." "The cat sat here, and slept."',
            ['It said, "No."', "The cat sat here, and slept."],
        ),
        ("( The cat sat here.", ["The cat sat here."]),
        ("The cat (a tom) sat here.", ["The cat (a tom) sat here."]),
        ("**Fact 2:** The *cat* _sat_ here.", ["The cat sat here."]),
        ("The sentence is: “The cat sat here.”", ["The cat sat here."]),
        ("J. Smith saw a cat.", ["J. Smith saw a cat."]),
        ("  \n\n ", []),
    ],
)
def test_a_text_is_split_and_its_marks_are_taken_off(text: str, sentences: list[str]) -> None:
    assert split(text) == sentences


@pytest.mark.parametrize(
    ("text", "concept", "reason"),
    [
        ("The cat slept on the warm stove.", 0, None),
        ("All their cats slept on the warm stove.", 0, None),
        ("The kitten slept on the warm stove.", 0, quality.NO_WORD),
        ("The cat and the dog slept there.", 0, quality.OTHER_CONCEPT),
        ("He sells the best ice cream in town.", 2, None),
        ("He sells the best ice cream in town.", 3, quality.OTHER_CONCEPT),
        ("The cat slept.", 0, quality.SHORT),
        ("The cat " + "and the mouse " * 20 + "slept.", 0, quality.LONG),
        ("I'm sorry, but I cannot write about a cat.", 0, quality.REFUSAL),
        ('The word "cat" has three letters in it.', 0, quality.REFUSAL),
        ("Unfortunately, I cannot write about a cat.", 0, quality.REFUSAL),
        ("The cat (noun: a small animal) was there.", 0, quality.REFUSAL),
        ("A cat is a noun for a small animal.", 0, quality.REFUSAL),
        ("[Name] saw a cat in the garden.", 0, quality.REFUSAL),
        ("The cat-like robot slept on the stove.", 0, quality.NO_WORD),
        ("The cat slept on the warm stove and", 0, quality.NOT_WHOLE),
        ("slept beside the cat on the warm stove.", 0, quality.NOT_WHOLE),
        ("Die cat schläft heute auf dem warmen Ofen.", 0, quality.OTHER_LANGUAGE),
        ("We watched the birds from the window.", 4, None),
        ("His watch stopped at ten to four.", 4, quality.OTHER_POS),
    ],
)
def test_each_objection_is_raised_where_it_holds(text: str, concept: int, reason: str | None) -> None:
    assert GATE.objection(text, [concept]) == reason


def test_a_neutral_sentence_names_no_concept() -> None:
    assert GATE.objection("The train to the coast was late again.", []) is None
    assert GATE.objection("The train to the coast has no dogs.", []) == quality.OTHER_CONCEPT


def test_a_sentence_that_says_what_a_kept_one_says_is_dropped_and_counted() -> None:
    """Repeats would make a neuron that knows one sentence look as if it knew the concept."""
    texts = [
        "The cat slept on the warm stove all day.",
        "the cat slept, on the warm stove, all day!",
        "The cat slept on the warm stove all night.",
        "Nobody had fed the cat since Monday.",
    ]
    found = collect([texts[0], texts[1].capitalize(), *texts[2:]], GATE, [0], 10)
    assert found.kept == [texts[0], texts[3]]
    assert found.dropped == {quality.REPEAT: 1, quality.NEAR_REPEAT: 1}
    assert found.examples[quality.NEAR_REPEAT] == texts[2]
    assert collect(texts, GATE, [0], 1).kept == texts[:1]


WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=8).map(" ".join)


@given(st.lists(WORDS, max_size=8))
def test_near_repeats_are_those_of_each_two_compared(texts: list[str]) -> None:
    """The index of trigrams is only a faster way: against comparing with every kept sentence."""
    found = Collected()
    for text in texts:
        own = trigrams(text)
        near = any(
            own and trigrams(kept) and 2 * len(own & trigrams(kept)) > min(len(own), len(trigrams(kept)))
            for kept in found.kept
        )
        assert (found.repeats(text) is not None) == (near or text in found.kept)
        if not found.repeats(text):
            found.keep(text)


def test_the_demos_sentences_pass_the_gate() -> None:
    demo = read_concepts(DEMO, "demo")
    names = [concept.name for concept in demo.concepts]
    gate = Gate([Word(name) for name in names])
    kept: dict[str, Collected] = {}
    for sentence in demo.sentences:
        (name,) = sentence.concepts
        of_concept = kept.setdefault(name, Collected())
        assert gate.objection(sentence.text, [names.index(name)], check_pos=False) is None, sentence.text
        assert of_concept.repeats(sentence.text) is None, sentence.text
        of_concept.keep(sentence.text)


@pytest.mark.parametrize(
    ("text", "language", "is_it"),
    [
        ("The quick brown fox jumps over the lazy dog.", "en", True),
        ("Photosynthesis turns light into sugar.", "en", True),
        ("Der schnelle Fuchs springt über den faulen Hund.", "en", False),
        ("Le chat dort toute la journée dans la cuisine.", "fr", True),
        ("El gato duerme toda la tarde en la cocina.", "en", False),
        ("Le chat dort toute la journée dans la cuisine.", "en", False),
    ],
)
def test_a_sentence_of_another_language_is_told(text: str, language: str, is_it: bool) -> None:
    assert is_in(text, language) == is_it


@pytest.mark.parametrize(
    ("text", "word", "has"),
    [
        ("They plant trees.", Word("plant"), False),
        ("The plants grow.", Word("plant"), True),
        ("They plant trees.", Word("plant", "verb"), True),
        ("Bacon is made from pork.", Word("bacon"), True),
        ("The red house is old.", Word("red", "adjective"), True),
        ("Pflanzen wachsen.", Word("Pflanze", "verb", "de"), True),
        ("She went to Paris by train.", Word("Paris"), True),
        ("He met Fox and Wolf there.", Word("fox"), False),
        ("He gave up after a while.", Word("give up", "verb"), True),
    ],
)
def test_the_part_of_speech_is_told(text: str, word: Word, has: bool) -> None:
    assert has_pos(text, word) == has


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("Ice creams melt.", ["ice", "ice cream"], {1}),
        ("Ice, ice-cream", ["ice", "ice cream"], {0, 1}),
        ("“Cats”—dogs", ["cat", "dog"], {0, 1}),
        ("cat cats dog", ["cat", "dog"], {0, 1}),
        ("The leaves fall.", ["leaf", "leave"], {0, 1}),
        ("BÄR und ÄRA", ["Bär", "ära", "är"], {0, 1}),
        ("C++ is no C.", ["C++", "C#"], {0}),
        ("concatenate", ["cat"], set()),
    ],
)
def test_the_words_of_many_concepts_are_found_at_once(
    text: str, words: list[str], found: set[int]
) -> None:
    assert WordFinder([Word(word) for word in words]).find(text) == found


@settings(deadline=None)  # the first example loads a dictionary
@given(st.lists(st.sampled_from(["cat", "Cats", "dog", "dogged", "ice", "cream", ",", "-", "Élèves"])))
def test_what_is_found_at_once_is_what_is_found_one_by_one(parts: list[str]) -> None:
    """Fast search through bytes, against a pattern for each word."""
    text = " ".join(parts)
    words = [Word("cat"), Word("dog"), Word("élève", language="fr"), Word("cream")]
    expected = {number for number, word in enumerate(words) if find_word(text, word)}
    assert WordFinder(words).find(text) == expected


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("Two mice saw a mouse's tail.", Word("mouse"), ["mice", "mouse"]),
        ("Fish, fishes, fishing, Fisher", Word("fish"), ["Fish", "fishes"]),
        ("Fungi and funguses grow.", Word("fungus"), ["Fungi", "funguses"]),
        (
            "All mothers-in-law and my mother in law",
            Word("mother-in-law"),
            ["mothers-in-law", "mother in law"],
        ),
        (
            "A Jack-o’-lantern, two jack-o'-lanterns",
            Word("jack-o'-lantern"),
            ["Jack-o’-lantern", "jack-o'-lanterns"],
        ),
        ("CAFÉS, cafe", Word("café"), ["CAFÉS", "cafe"]),
        (
            "ice\N{NON-BREAKING HYPHEN}cream, Ice\ncreams",
            Word("ice_cream"),
            ["ice\N{NON-BREAKING HYPHEN}cream", "Ice\ncreams"],
        ),
        ("at home--cat--and", Word("cat"), ["cat"]),
        ("cat-like, copy-cat, concatenate", Word("cat"), []),
        ("In .NET, not the net", Word(".NET"), [".NET"]),
        ("She ran, runs and is running.", Word("run", "verb"), ["ran", "runs", "running"]),
        ("They gave up; I give up.", Word("give up", "verb"), ["gave up", "give up"]),
    ],
)
def test_a_word_is_found_in_its_forms_and_in_no_other_word(
    text: str, word: Word, found: list[str]
) -> None:
    """Both by its pattern and in the search for many words at once."""
    assert [text[start:end] for start, end in find_word(text, word)] == found
    assert WordFinder([word]).find(text) == ({0} if found else set())
