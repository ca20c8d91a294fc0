"""Prompts for generated sentences: facts and short stories about a concept, each with a variation."""

from __future__ import annotations

import random
from dataclasses import dataclass

FACT, STORY = "fact", "story"

VARIATIONS = {
    FACT: [
        "Say where it is found.",
        "Say what it looks, sounds or feels like.",
        "Say what people use it for or do with it.",
        "Say what it is made of or which parts it has.",
        "Say how it differs from something like it.",
        "Say how it comes about, grows or is made.",
        "Say what happens to it over time.",
        "Say how people long ago thought of it.",
        "Say what its size, number, speed or price may be.",
        "Say what is good or bad about it.",
        "Say what belongs with it or is often near it.",
        "Say something about it that surprises people.",
        "Begin with a word other than its name.",
        "Say it as an expert would.",
        "Say it so that a child understands.",
        "Say it with an example.",
    ],
    STORY: [
        "It is early morning.",
        "It happens on a journey.",
        "Two neighbours disagree.",
        "A child is curious.",
        "Somebody has lost something.",
        "It rains, and there is time to wait.",
        "An old woman remembers.",
        "It happens at work.",
        "A letter has come.",
        "Friends are on holiday.",
        "Something goes wrong, but not badly.",
        "It happens in a small town at night.",
        "Somebody is afraid without reason.",
        "A stranger asks for help.",
        "It is somebody's birthday.",
        "It is told by a friend.",
    ],
}

_INSTRUCTIONS = {
    FACT: (
        'Write a sentence that states a fact about "{name}" ({pos}: {definition}). {turn} '
        'Use the word "{name}" in it.',
        'Write {count} sentences that state different facts about "{name}" ({pos}: {definition}). '
        '{turn} Use the word "{name}" in each of them.',
    ),
    STORY: (
        'Write one sentence of a short story with "{name}" ({pos}: {definition}) in it. {turn} '
        'Use the word "{name}" in it.',
        'Write a short story of {count} sentences with "{name}" ({pos}: {definition}) in it. {turn} '
        'Use the word "{name}" in each of them.',
    ),
}
_CLOSING = (" Answer with the sentence only.", " Answer with the sentences only, one a line.")
_IN_LANGUAGE = " Write in the language with the code {language}."

TEMPLATES = [VARIATIONS, _INSTRUCTIONS, _CLOSING, _IN_LANGUAGE]
"""The complete wording, for the stage's fingerprint: a change of wording changes the sentences."""


@dataclass(frozen=True)
class Subject:
    """A concept with its definition."""

    name: str
    pos: str
    definition: str


def make_prompt(subject: Subject, kind: str, count: int, language: str, rng: random.Random) -> str:
    """A prompt for `count` sentences of a kind, with a random variation."""
    instruction = _INSTRUCTIONS[kind][count > 1].format(
        name=subject.name.replace("_", " "),
        pos=subject.pos,
        definition=subject.definition,
        count=count,
        turn=rng.choice(VARIATIONS[kind]),
    )
    in_language = "" if language == "en" else _IN_LANGUAGE.format(language=language)
    return instruction + _CLOSING[count > 1] + in_language
