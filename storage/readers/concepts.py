"""A concept set: concepts and their sentences, made of rows, one a sentence of a concept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from storage.errors import UserError
from storage.readers import concept_files
from storage.store.fingerprint import fingerprint

FEWEST_SENTENCES = 2
Item = TypeVar("Item")
POSITIVE, NEGATIVE, POOL = "positive", "negative", "pool"
ROLES = (POSITIVE, NEGATIVE, POOL)
_PARTS_OF_SPEECH = {
    **{pos: pos for pos in ("noun", "verb", "adjective", "adverb")},
    **{"n": "noun", "v": "verb", "a": "adjective", "adj": "adjective", "r": "adverb", "adv": "adverb"},
}


@dataclass(frozen=True)
class Concept:
    """A concept as the user gives it."""

    name: str
    domain: str | None = None
    sense: str | None = None
    pos: str | None = None


@dataclass(frozen=True)
class Sentence:
    """One sentence: the concepts that it is about, those that it is a negative of, and whether it is a
    negative of all (`pool`); where it comes from; and what the quality gate objects to."""

    text: str
    source: str | None = None
    prompt: str | None = None
    concepts: list[str] = field(default_factory=list)
    negative_of: list[str] = field(default_factory=list)
    pool: bool = False
    generator: str | None = None
    revision: str | None = None
    seed: int | None = None
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConceptSet:
    """A named collection of concepts and their sentences, in the order of the file."""

    name: str
    concepts: list[Concept]
    sentences: list[Sentence]
    ignored_columns: list[str] = field(default_factory=list)

    @cached_property
    def content_hash(self) -> str:
        """Stands for everything that is in the set, but not for its name."""
        return fingerprint(
            {
                "concepts": [[c.name, c.domain, c.sense, c.pos] for c in self.concepts],
                "sentences": [
                    [s.text, s.source, s.prompt, s.concepts, s.negative_of, s.pool]
                    for s in self.sentences
                ],
            }
        )

    @property
    def label(self) -> str:
        """Its name with the start of its hash: two sets that differ never share a label."""
        return f"{self.name}@{self.content_hash[:8]}"

    def counts(self) -> dict[str, int]:
        """How many positive sentences each concept has."""
        counts = dict.fromkeys((concept.name for concept in self.concepts), 0)
        for sentence in self.sentences:
            for name in sentence.concepts:
                counts[name] += 1
        return counts


def read_concepts(path: Path, name: str, columns: Mapping[str, str] | None = None) -> ConceptSet:
    """Read a concept set: a .csv, .jsonl or .parquet file with the columns `concept` and `text`, and
    optionally domain, sense, pos, source, prompt, role; or a folder with a `concept_list.csv`.

    `columns` gives the names that the columns have in the file. A sentence that stands under several
    concepts is one sentence with several memberships. Its role is `positive` (the default),
    `negative` (of this concept) or `pool` (of all concepts; `concept` is then not read).

    Raises UserError, naming file and line, for a missing file or column, text that is not UTF-8, an
    empty name or sentence, a sentence that stands twice under one concept, a concept with two
    domains, senses or parts of speech, and a concept with fewer than 2 positive sentences.
    """
    rows, ignored = concept_files.read_rows(path, columns or {}, ("concept", "text"))
    concepts: dict[str, Concept] = {}
    sentences: dict[str, Sentence] = {}
    places: dict[tuple[str, str], str] = {}
    for place, row in rows:
        where = f"{path}: {place}"
        role = row["role"] or POSITIVE
        if role not in ROLES:
            raise UserError(f"{where}: role is {role!r}; allowed: {', '.join(ROLES)}")
        text = row["text"]
        concept = None if role == POOL else _concept(row, where, concepts)
        if not text:
            raise UserError(f"{where}: the sentence of {row['concept'] or role!r} is empty")
        first = places.setdefault((concept.name if concept else "", text), place)
        if first != place:
            of = f"under {concept.name!r}" if concept else "in the pool"
            raise UserError(f"{where}: this sentence stands {of} already, in {first}: {text!r}")
        sentence = sentences.get(text) or Sentence(text, row["source"] or None, row["prompt"] or None)
        if concept is None:
            sentence = replace(sentence, pool=True)
        else:
            (sentence.concepts if role == POSITIVE else sentence.negative_of).append(concept.name)
        sentences[text] = sentence
    for sentence in sentences.values():
        if sentence.pool and sentence.concepts:
            raise UserError(
                f"{path}: a sentence of {sentence.concepts[0]!r} is in the pool of neutral sentences "
                f"too: {sentence.text!r}"
            )
    found = ConceptSet(name, list(concepts.values()), list(sentences.values()), ignored)
    _check(path, found)
    return found


def read_words(path: Path) -> list[Concept]:
    """Read concepts without sentences: the column `concept`, and optionally domain, sense and pos.

    A file with sentences will do as well: a concept counts once. Raises UserError as `read_concepts`.
    """
    rows, _ = concept_files.read_rows(path, {}, ("concept",))
    concepts: dict[str, Concept] = {}
    for place, row in rows:
        _concept(row, f"{path}: {place}", concepts)
    return _at_least_two(concepts, str(path))


def write_concepts(path: Path, concepts: ConceptSet) -> None:
    """Write a concept set in the format that the path's ending names; a folder without one."""
    known = {concept.name: concept for concept in concepts.concepts}
    rows = []
    for sentence in concepts.sentences:
        places = [
            *((name, POSITIVE) for name in sentence.concepts),
            *((name, NEGATIVE) for name in sentence.negative_of),
            *([("", POOL)] if sentence.pool else []),
        ]
        for name, role in places:
            concept = known.get(name, Concept(""))
            rows.append(
                {
                    "concept": name,
                    "domain": concept.domain or "",
                    "sense": concept.sense or "",
                    "pos": concept.pos or "",
                    "prompt": sentence.prompt or "",
                    "text": sentence.text,
                    "source": sentence.source or "",
                    "role": role,
                }
            )
    concept_files.write_rows(path, rows)


def named(names: Iterable[str], where: str) -> list[Concept]:
    """Concepts of which only the names are known; UserError as for those that a file names."""
    known: dict[str, Concept] = {}
    for name in names:
        _known(Concept(name), where, known)
    return _at_least_two(known, where)


def _at_least_two(concepts: Mapping[str, Item], where: str) -> list[Item]:
    if len(concepts) < 2:
        raise UserError(f"{where}: has {len(concepts)} concepts; at least 2 are needed to compare")
    return list(concepts.values())


def _concept(row: Mapping[str, str], where: str, known: dict[str, Concept]) -> Concept:
    """The concept of a row, which must be what it was in the rows before; `known` are those, by their
    names in lower case."""
    pos = row["pos"].lower()
    if pos and pos not in _PARTS_OF_SPEECH:
        raise UserError(f"{where}: pos is {row['pos']!r}; allowed: {', '.join(_PARTS_OF_SPEECH)}")
    concept = Concept(
        row["concept"], row["domain"] or None, row["sense"] or None, _PARTS_OF_SPEECH.get(pos)
    )
    before = _known(concept, where, known)
    for key, now in vars(concept).items():
        then = getattr(before, key)
        if now != then:
            raise UserError(
                f"{where}: concept {concept.name!r} has the {key} {now!r} here, but {then!r} before"
            )
    return concept


def _known(concept: Concept, where: str, known: dict[str, Concept]) -> Concept:
    """The concept of this name that is known, which this one is from here on if there is none."""
    found = known.get(concept.name.lower())
    if found is None:
        if not re.search(r"\w", concept.name.replace("_", "")):
            raise UserError(f"{where}: the concept {concept.name!r} has no letter; give it a name")
        found = known[concept.name.lower()] = concept
    if found.name != concept.name:
        raise UserError(
            f"{where}: concepts {concept.name!r} and {found.name!r} differ only in case; human data "
            "sets do not tell them apart"
        )
    return found


def _check(path: Path, found: ConceptSet) -> None:
    counts = found.counts()
    for name, count in counts.items():
        if count < FEWEST_SENTENCES:
            noun = "sentence" if count == 1 else "sentences"
            raise UserError(
                f"{path}: concept {name!r} has {count} {noun}; at least {FEWEST_SENTENCES} are needed"
            )
    _at_least_two(counts, str(path))
