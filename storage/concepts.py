"""Reading a concept set that the user brings: one row per sentence of a concept."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from storage.errors import UserError
from storage.fingerprint import fingerprint

FEWEST_SENTENCES = 2
_REQUIRED = ("concept", "text")
_OPTIONAL = ("domain", "sense", "source", "prompt", "role")


@dataclass(frozen=True)
class Concept:
    """A concept as the user gives it."""

    name: str
    domain: str | None
    sense: str | None


@dataclass(frozen=True)
class Sentence:
    """One sentence and the concepts that it is about."""

    text: str
    source: str | None
    prompt: str | None
    concepts: list[str]


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
                "concepts": [[c.name, c.domain, c.sense] for c in self.concepts],
                "sentences": [[s.text, s.source, s.prompt, s.concepts] for s in self.sentences],
            }
        )

    @property
    def label(self) -> str:
        """Its name with the start of its hash: two sets that differ never share a label."""
        return f"{self.name}@{self.content_hash[:8]}"


def read_concepts(path: Path, name: str) -> ConceptSet:
    """Read a CSV with the columns `concept` and `text`, and optionally domain, sense, source, prompt.

    A sentence that stands under several concepts is one sentence with several memberships.

    Raises UserError, naming file and line, for a missing file or column, text that is not UTF-8, an
    empty name or sentence, a sentence that stands twice under one concept, a concept with two
    domains or senses, and a concept with fewer than 2 sentences.
    """
    rows, ignored = _rows(path)
    concepts: dict[str, Concept] = {}
    sentences: dict[str, Sentence] = {}
    lines: dict[tuple[str, str], int] = {}
    spelled: dict[str, str] = {}
    for line, row in rows:
        where = f"{path}: line {line}"
        concept = Concept(row["concept"], row["domain"] or None, row["sense"] or None)
        text = row["text"]
        if not re.search(r"\w", concept.name.replace("_", "")):
            raise UserError(f"{where}: the concept {concept.name!r} has no letter; give it a name")
        other = spelled.setdefault(concept.name.lower(), concept.name)
        if other != concept.name:
            raise UserError(
                f"{where}: concepts {concept.name!r} and {other!r} differ only in case; human data sets "
                "do not tell them apart"
            )
        if not text:
            raise UserError(f"{where}: the sentence of {concept.name!r} is empty")
        if row["role"] not in ("", "positive"):
            raise UserError(f"{where}: role is {row['role']!r}; allowed: positive")
        known = concepts.setdefault(concept.name, concept)
        if known != concept:
            raise UserError(
                f"{where}: concept {concept.name!r} has domain {concept.domain!r} and sense "
                f"{concept.sense!r} here, but {known.domain!r} and {known.sense!r} before"
            )
        first = lines.setdefault((concept.name, text), line)
        if first != line:
            raise UserError(
                f"{where}: this sentence stands under {concept.name!r} already, in line {first}: "
                f"{text!r}"
            )
        sentence = sentences.setdefault(
            text, Sentence(text, row["source"] or None, row["prompt"] or None, [])
        )
        sentence.concepts.append(concept.name)
    found = ConceptSet(name, list(concepts.values()), list(sentences.values()), ignored)
    _check(path, found)
    return found


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            missing = [column for column in _REQUIRED if column not in columns]
            if missing:
                raise UserError(
                    f"{path}: has no column {missing[0]!r}; its columns are "
                    f"{', '.join(columns) or 'none'}, needed are {', '.join(_REQUIRED)}"
                )
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path}: line {reader.line_num}: not {len(columns)} columns")
                values = {name: row.get(name, "").strip() for name in (*_REQUIRED, *_OPTIONAL)}
                rows.append((reader.line_num, values))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error.reason}") from error
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV file: {error}") from error
    return rows, [column for column in columns if column not in (*_REQUIRED, *_OPTIONAL)]


def _check(path: Path, found: ConceptSet) -> None:
    counts = dict.fromkeys((concept.name for concept in found.concepts), 0)
    for sentence in found.sentences:
        for name in sentence.concepts:
            counts[name] += 1
    for name, count in counts.items():
        if count < FEWEST_SENTENCES:
            raise UserError(
                f"{path}: concept {name!r} has {count} sentence; at least {FEWEST_SENTENCES} are needed"
            )
    if len(counts) < 2:
        raise UserError(f"{path}: has {len(counts)} concepts; at least 2 are needed to compare")
