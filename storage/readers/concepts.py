"""Concept sets: concepts and their sentences, from rows that each assign a sentence to a concept."""

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

MIN_SENTENCES = 2
Item = TypeVar("Item")
POSITIVE, NEGATIVE, POOL = "positive", "negative", "pool"
ROLES = (POSITIVE, NEGATIVE, POOL)
_PARTS_OF_SPEECH = {
    **{pos: pos for pos in ("noun", "verb", "adjective", "adverb")},
    **{"n": "noun", "v": "verb", "a": "adjective", "adj": "adjective", "r": "adverb", "adv": "adverb"},
}


@dataclass(frozen=True)
class Concept:
    """A concept as defined by the user."""

    name: str
    domain: str | None = None
    sense: str | None = None
    pos: str | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with its provenance and quality flags.

    It is a positive of `concepts`, a negative of `negative_of` and, in the `pool`, of all concepts.
    """

    text: str
    source: str | None = None
    prompt: str | None = None
    concepts: tuple[str, ...] = ()
    negative_of: tuple[str, ...] = ()
    pool: bool = False
    generator: str | None = None
    revision: str | None = None
    seed: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConceptSet:
    """A named collection of concepts and their sentences, in the order of the file."""

    name: str
    concepts: list[Concept]
    sentences: list[Sentence]
    ignored_columns: list[str] = field(default_factory=list)

    @cached_property
    def content_hash(self) -> str:
        """Fingerprint of the contents, without the name."""
        return fingerprint(
            {
                "concepts": [[c.name, c.domain, c.sense, c.pos] for c in self.concepts],
                "sentences": [
                    (s.text, s.source, s.prompt, s.concepts, s.negative_of, s.pool)
                    for s in self.sentences
                ],
            }
        )

    @property
    def label(self) -> str:
        """The name with the first digits of the hash: different sets have different labels."""
        return f"{self.name}@{self.content_hash[:8]}"

    def count_sentences(self) -> dict[str, int]:
        """Number of positive sentences of each concept."""
        counts = dict.fromkeys((concept.name for concept in self.concepts), 0)
        for sentence in self.sentences:
            for name in sentence.concepts:
                counts[name] += 1
        return counts


def read_concepts(path: Path, name: str, columns: Mapping[str, str] | None = None) -> ConceptSet:
    """Read a concept set from a table or a folder (see `concept_files`).

    A file has the columns `concept` and `text`, and optionally domain, sense, pos, source, prompt and
    role; `columns` maps these to the names in the file. A sentence listed under several concepts is one
    sentence with several memberships. Its role is `positive` (the default), `negative` (of this concept)
    or `pool` (of all concepts; `concept` is ignored).

    Raises:
        UserError: with file and line, for a missing file or column, text that is not UTF-8, an empty
            name or sentence, a duplicate sentence of a concept, a concept with two domains, senses or
            parts of speech, or with fewer than 2 positive sentences.
    """
    rows, ignored = concept_files.read_concept_rows(path, columns or {}, ("concept", "text"))
    concepts: dict[str, Concept] = {}
    sentences: dict[str, Sentence] = {}
    # one tuple for all sentences of the same concepts, to save memory
    shared_names: dict[tuple[str, ...], tuple[str, ...]] = {}
    for location, row in rows:
        where = f"{path}: {location}"
        role = row["role"] or POSITIVE
        if role not in ROLES:
            raise UserError(f"{where}: role is {role!r}; allowed: {', '.join(ROLES)}")
        text = row["text"]
        concept = None if role == POOL else _parse_concept(row, where, concepts)
        if not text:
            raise UserError(f"{where}: the sentence of {row['concept'] or role!r} is empty")
        sentence = sentences.get(text) or Sentence(text, row["source"] or None, row["prompt"] or None)
        if concept is None:
            is_duplicate = sentence.pool
            sentence = replace(sentence, pool=True)
        else:
            is_duplicate = concept.name in (*sentence.concepts, *sentence.negative_of)
            earlier = sentence.concepts if role == POSITIVE else sentence.negative_of
            names = (*earlier, concept.name)
            names = shared_names.setdefault(names, names)
            if role == POSITIVE:
                sentence = replace(sentence, concepts=names)
            else:
                sentence = replace(sentence, negative_of=names)
        if is_duplicate:
            first = _find_first(path, columns or {}, concept, text)
            owner = f"for {concept.name!r}" if concept else "in the pool"
            raise UserError(f"{where}: duplicate sentence {owner}, first in {first}: {text!r}")
        sentences[text] = sentence
    for sentence in sentences.values():
        if sentence.pool and sentence.concepts:
            raise UserError(
                f"{path}: a sentence of {sentence.concepts[0]!r} is also in the pool of neutral "
                f"sentences: {sentence.text!r}"
            )
    concept_set = ConceptSet(name, list(concepts.values()), list(sentences.values()), ignored)
    _check_counts(path, concept_set)
    return concept_set


def _find_first(path: Path, columns: Mapping[str, str], concept: Concept | None, text: str) -> str:
    """The location of a sentence's first row; read again, because all locations would take memory."""
    rows, _ = concept_files.read_concept_rows(path, columns, ("concept", "text"))
    owner = concept and concept.name
    return next(
        location
        for location, row in rows
        if row["text"] == text and (None if row["role"] == POOL else row["concept"]) == owner
    )


def read_concept_names(path: Path) -> list[Concept]:
    """Read concepts without sentences: the column `concept`, and optionally domain, sense and pos.

    A file with sentences works too. Raises UserError as `read_concepts` does.
    """
    rows, _ = concept_files.read_concept_rows(path, {}, ("concept",))
    concepts: dict[str, Concept] = {}
    for location, row in rows:
        _parse_concept(row, f"{path}: {location}", concepts)
    return _require_two(concepts, str(path))


def write_concepts(path: Path, concepts: ConceptSet) -> None:
    """Write a concept set in the format of the path's suffix; without a suffix, a folder."""
    by_name = {concept.name: concept for concept in concepts.concepts}
    rows = []
    for sentence in concepts.sentences:
        memberships = [
            *((name, POSITIVE) for name in sentence.concepts),
            *((name, NEGATIVE) for name in sentence.negative_of),
            *([("", POOL)] if sentence.pool else []),
        ]
        for name, role in memberships:
            concept = by_name.get(name, Concept(""))
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
    concept_files.write_concept_rows(path, rows)


def concepts_from_names(names: Iterable[str], where: str) -> list[Concept]:
    """Concepts with names only. Raises UserError for names that a file could not have either."""
    concepts: dict[str, Concept] = {}
    for name in names:
        _register(Concept(name), where, concepts)
    return _require_two(concepts, where)


def _require_two(concepts: Mapping[str, Item], where: str) -> list[Item]:
    if len(concepts) < 2:
        raise UserError(f"{where}: has {len(concepts)} concepts; at least 2 are needed to compare")
    return list(concepts.values())


def _parse_concept(row: Mapping[str, str], where: str, concepts: dict[str, Concept]) -> Concept:
    """The concept of a row, which must agree with earlier rows (`concepts`, by lower-case name)."""
    pos = row["pos"].lower()
    if pos and pos not in _PARTS_OF_SPEECH:
        raise UserError(f"{where}: pos is {row['pos']!r}; allowed: {', '.join(_PARTS_OF_SPEECH)}")
    concept = Concept(
        row["concept"], row["domain"] or None, row["sense"] or None, _PARTS_OF_SPEECH.get(pos)
    )
    earlier = _register(concept, where, concepts)
    for key, value in vars(concept).items():
        earlier_value = getattr(earlier, key)
        if value != earlier_value:
            raise UserError(
                f"{where}: concept {concept.name!r} has the {key} {value!r} here, but "
                f"{earlier_value!r} before"
            )
    return earlier


def _register(concept: Concept, where: str, concepts: dict[str, Concept]) -> Concept:
    """The registered concept of this name; registers `concept` if it is new."""
    earlier = concepts.get(concept.name.lower())
    if earlier is None:
        if not re.search(r"\w", concept.name.replace("_", "")):
            raise UserError(f"{where}: invalid concept name {concept.name!r}: it has no letter or digit")
        earlier = concepts[concept.name.lower()] = concept
    if earlier.name != concept.name:
        raise UserError(
            f"{where}: concepts {concept.name!r} and {earlier.name!r} differ only in case; human data "
            "sets do not distinguish them"
        )
    return earlier


def _check_counts(path: Path, concept_set: ConceptSet) -> None:
    counts = concept_set.count_sentences()
    for name, count in counts.items():
        if count < MIN_SENTENCES:
            noun = "sentence" if count == 1 else "sentences"
            raise UserError(
                f"{path}: concept {name!r} has {count} {noun}; at least {MIN_SENTENCES} are needed"
            )
    _require_two(counts, str(path))
