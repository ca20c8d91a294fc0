"""The quality filter must accept sentences that can represent a concept and give the reason for the
others: a wrong sentence, or a lost one, biases all subsequent numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.text import quality
from alignment.text.quality import (
    CollectedSentences,
    SentenceFilter,
    collect_sentences,
    has_pos,
    is_in_language,
    split_sentences,
    word_trigrams,
)
from alignment.text.word_matching import ConceptWord, WordFinder, find_word
from storage.readers.concepts import read_concepts

DEMO = Path(__file__).parent.parent / "examples" / "men-core.csv"
CONCEPTS = [
    ConceptWord("cat"),
    ConceptWord("dog"),
    ConceptWord("ice cream"),
    ConceptWord("ice"),
    ConceptWord("watch", "verb"),
]
FILTER = SentenceFilter(CONCEPTS)


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
def test_text_is_split_and_stripped_of_markup(text: str, sentences: list[str]) -> None:
    """Models write lists, emphasis and quotes, which a neuron could respond to instead of the
    concept."""
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("text", "concept", "reason"),
    [
        ("The cat slept on the warm stove.", 0, None),
        ("All their cats slept on the warm stove.", 0, None),
        ("The kitten slept on the warm stove.", 0, quality.MISSING_WORD),
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
        ("The cat-like robot slept on the stove.", 0, quality.MISSING_WORD),
        ("The cat slept on the warm stove and", 0, quality.INCOMPLETE),
        ("slept beside the cat on the warm stove.", 0, quality.INCOMPLETE),
        ("Die cat schläft heute auf dem warmen Ofen.", 0, quality.OTHER_LANGUAGE),
        ("We watched the birds from the window.", 4, None),
        ("His watch stopped at ten to four.", 4, quality.OTHER_POS),
    ],
)
def test_every_rejection_reason_applies_where_it_should(
    text: str, concept: int, reason: str | None
) -> None:
    """A reason that never applies lets bad sentences in; one that applies too often loses good ones."""
    assert FILTER.rejection_reason(text, [concept]) == reason


def test_neutral_sentences_mention_no_concept() -> None:
    """A negative that mentions a concept would lower the AP of its experts."""
    assert FILTER.rejection_reason("The train to the coast was late again.", []) is None
    assert FILTER.rejection_reason("The train to the coast has no dogs.", []) == quality.OTHER_CONCEPT


def test_repeated_sentences_are_rejected_and_counted() -> None:
    """With repetitions, a neuron that responds to one sentence would look like an expert."""
    texts = [
        "The cat slept on the warm stove all day.",
        "the cat slept, on the warm stove, all day!",
        "The cat slept on the warm stove all night.",
        "Nobody had fed the cat since Monday.",
    ]
    collected = collect_sentences([texts[0], texts[1].capitalize(), *texts[2:]], FILTER, [0], 10)
    assert collected.sentences == [texts[0], texts[3]]
    assert collected.rejected == {quality.REPEAT: 1, quality.NEAR_REPEAT: 1}
    assert collected.examples[quality.NEAR_REPEAT] == texts[2]
    assert collect_sentences(texts, FILTER, [0], 1).sentences == texts[:1]


WORDS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=8).map(" ".join)


@given(st.lists(WORDS, max_size=8))
def test_near_repeats_match_pairwise_comparison(texts: list[str]) -> None:
    """The trigram index is only a shortcut for comparing with every collected sentence."""
    collected = CollectedSentences()
    for text in texts:
        trigrams = word_trigrams(text)
        is_repeat = text in collected.sentences
        for other_trigrams in map(word_trigrams, collected.sentences):
            smaller = min(len(trigrams), len(other_trigrams))
            is_repeat |= smaller > 0 and 2 * len(trigrams & other_trigrams) > smaller
        assert (collected.repetition_reason(text) is not None) == is_repeat
        if not is_repeat:
            collected.add(text)


def test_the_demo_sentences_pass_the_filter() -> None:
    """The demo must show what the filter accepts."""
    demo = read_concepts(DEMO, "demo")
    names = [concept.name for concept in demo.concepts]
    sentence_filter = SentenceFilter([ConceptWord(name) for name in names])
    collected: dict[str, CollectedSentences] = {}
    for sentence in demo.sentences:
        (name,), text = sentence.concepts, sentence.text
        earlier = collected.setdefault(name, CollectedSentences())
        assert sentence_filter.rejection_reason(text, [names.index(name)], check_pos=False) is None, text
        assert earlier.repetition_reason(text) is None, text
        earlier.add(text)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The quick brown fox jumps over the lazy dog.", "en", True),
        ("Photosynthesis turns light into sugar.", "en", True),
        ("Der schnelle Fuchs springt über den faulen Hund.", "en", False),
        ("Le chat dort toute la journée dans la cuisine.", "fr", True),
        ("El gato duerme toda la tarde en la cocina.", "en", False),
        ("Le chat dort toute la journée dans la cuisine.", "en", False),
    ],
)
def test_the_language_of_a_sentence_is_recognized(text: str, language: str, expected: bool) -> None:
    """Models drift into other languages, and corpora mix them."""
    assert is_in_language(text, language) == expected


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("They plant trees.", ConceptWord("plant"), False),
        ("The plants grow.", ConceptWord("plant"), True),
        ("They plant trees.", ConceptWord("plant", "verb"), True),
        ("Bacon is made from pork.", ConceptWord("bacon"), True),
        ("The red house is old.", ConceptWord("red", "adjective"), True),
        ("Pflanzen wachsen.", ConceptWord("Pflanze", "verb", "de"), True),
        ("She went to Paris by train.", ConceptWord("Paris"), True),
        ("He met Fox and Wolf there.", ConceptWord("fox"), False),
        ("He gave up after a while.", ConceptWord("give up", "verb"), True),
    ],
)
def test_the_part_of_speech_is_recognized(text: str, word: ConceptWord, expected: bool) -> None:
    """The verb "watch" and the noun are different concepts."""
    assert has_pos(text, word) == expected


@pytest.mark.parametrize(
    ("text", "words", "matches"),
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
def test_words_of_many_concepts_are_matched_in_one_pass(
    text: str, words: list[str], matches: set[int]
) -> None:
    """A missed word lets a sentence of another concept in; a spurious one loses it."""
    assert WordFinder([ConceptWord(word) for word in words]).find(text) == matches


@settings(deadline=None)  # the first example loads a dictionary
@given(st.lists(st.sampled_from(["cat", "Cats", "dog", "dogged", "ice", "cream", ",", "-", "Élèves"])))
def test_the_one_pass_search_matches_one_pattern_per_word(parts: list[str]) -> None:
    """The fast search in bytes must not differ from the exact search in text."""
    text = " ".join(parts)
    words = [
        ConceptWord("cat"),
        ConceptWord("dog"),
        ConceptWord("élève", language="fr"),
        ConceptWord("cream"),
    ]
    expected = {number for number, word in enumerate(words) if find_word(text, word)}
    assert WordFinder(words).find(text) == expected


@pytest.mark.parametrize(
    ("text", "word", "matches"),
    [
        ("Two mice saw a mouse's tail.", ConceptWord("mouse"), ["mice", "mouse"]),
        ("Fish, fishes, fishing, Fisher", ConceptWord("fish"), ["Fish", "fishes"]),
        ("Fungi and funguses grow.", ConceptWord("fungus"), ["Fungi", "funguses"]),
        (
            "All mothers-in-law and my mother in law",
            ConceptWord("mother-in-law"),
            ["mothers-in-law", "mother in law"],
        ),
        (
            "A Jack-o’-lantern, two jack-o'-lanterns",
            ConceptWord("jack-o'-lantern"),
            ["Jack-o’-lantern", "jack-o'-lanterns"],
        ),
        ("CAFÉS, cafe", ConceptWord("café"), ["CAFÉS", "cafe"]),
        (
            "ice\N{NON-BREAKING HYPHEN}cream, Ice\ncreams",
            ConceptWord("ice_cream"),
            ["ice\N{NON-BREAKING HYPHEN}cream", "Ice\ncreams"],
        ),
        ("at home--cat--and", ConceptWord("cat"), ["cat"]),
        ("cat-like, copy-cat, concatenate", ConceptWord("cat"), []),
        ("In .NET, not the net", ConceptWord(".NET"), [".NET"]),
        ("She ran, runs and is running.", ConceptWord("run", "verb"), ["ran", "runs", "running"]),
        ("They gave up; I give up.", ConceptWord("give up", "verb"), ["gave up", "give up"]),
    ],
)
def test_a_word_matches_its_inflections_and_no_other_word(
    text: str, word: ConceptWord, matches: list[str]
) -> None:
    """Both by its pattern and in the search for many words."""
    assert [text[start:end] for start, end in find_word(text, word)] == matches
    assert WordFinder([word]).find(text) == ({0} if matches else set())
