"""Stage `sentences`: the concepts, their sentences and where each concept's word stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.text.quality import Collected, Gate
from alignment.text.word_matching import NOUN, Word, find_word, shuffled
from jobs.engine.stage import Outcome, Stage
from storage import tables
from storage.errors import WorkFailed, excerpt
from storage.readers.concepts import NEGATIVE, POOL, POSITIVE, Concept, ConceptSet, Sentence
from storage.store.commit import FileRecord, write_table
from storage.store.fingerprint import fingerprint
from storage.store.paths import read_table

KIND = "sentences"
CONCEPTS_FILE = "concepts.parquet"
SENTENCES_FILE = "sentences.parquet"
MEMBERSHIPS_FILE = "memberships.parquet"
DROPPED_FILE = "dropped.parquet"
SHUFFLED = "shuffled"


def plan(concepts: ConceptSet, language: str = "en") -> Stage:
    """The stage for a concept set that was read: its sentences are flagged, none is dropped."""

    def run(stage: Stage, store: Path) -> Outcome:
        flagged = _flagged(concepts, language)
        files = write(stage, store, flagged, language, {})
        return Outcome(files, _notes(flagged, language))

    params = {"concept_set": concepts.label, "content": concepts.content_hash, "language": language}
    return Stage(KIND, concepts.name, params, run)


def plan_shuffled(concepts: ConceptSet, texts: Stage, language: str, seed: int) -> Stage:
    """The stage for the sentences of another one with the words of each in an order drawn by lot: the
    concepts' words stay, what the sentences say of them does not."""
    label = f"{texts.params['concept_set']} {SHUFFLED}"

    def run(stage: Stage, store: Path) -> Outcome:
        random = np.random.default_rng(seed)
        words = {concept.name: word_of(concept, language) for concept in concepts.concepts}
        mixed = [
            replace(each, text=shuffled(each.text, [words[name] for name in each.concepts], random))
            for each in concepts.sentences
        ]
        changed = replace(concepts, sentences=mixed)
        return Outcome(write(stage, store, changed, language, {}))

    params = {"concept_set": label, "language": language, "seed": seed}
    return Stage(KIND, f"{texts.label} {SHUFFLED}", params, run, {"sentences": texts})


def label_of(name: str, params: Mapping[str, Any]) -> str:
    """The label of a set that is still to be made: its name with the start of a hash of what it is
    made from."""
    return f"{name}@{fingerprint(params)[:8]}"


def short_of(collected: Mapping[str, Collected], wanted: int, needed: int) -> list[str]:
    """A note on the concepts that have fewer sentences than were wanted.

    Raises WorkFailed, with the reasons, for those that have fewer than are needed.
    """
    short = {name: each for name, each in collected.items() if len(each.kept) < wanted}
    failures = [
        f"{name}: {len(each.kept)} kept; dropped: "
        + (", ".join(f"{reason} ({n})" for reason, n in each.dropped.most_common(3)) or "none found")
        for name, each in short.items()
        if len(each.kept) < needed
    ]
    if failures:
        raise WorkFailed(
            f"{len(failures)} of {len(collected)} concepts have fewer than {needed} sentences (fewest)",
            failures,
        )
    if not short:
        return []
    name = min(short, key=lambda each: len(short[each].kept))
    return [
        f"{len(short)} concepts have fewer than {wanted} sentences, the fewest {name!r}: "
        f"{len(short[name].kept)}"
    ]


def word_of(concept: Concept, language: str) -> Word:
    """The word that a concept is looked for by."""
    return Word(concept.name, concept.pos or NOUN, language)


def write(
    stage: Stage,
    store: Path,
    concepts: ConceptSet,
    language: str,
    collected: Mapping[str, Collected],
) -> list[FileRecord]:
    """Commit the tables of a concept set; `collected` says what was dropped for each concept."""
    label = stage.params["concept_set"]
    tables = {
        CONCEPTS_FILE: _concepts(concepts, label),
        SENTENCES_FILE: _sentences(concepts, label),
        MEMBERSHIPS_FILE: _memberships(concepts, label, language),
        DROPPED_FILE: _dropped(collected, label),
    }
    return [write_table(stage.folder(store), name, table) for name, table in tables.items()]


def read_set(stage: Stage, store: Path) -> ConceptSet:
    """The concept set that the stage holds."""
    rows = _read(stage, store, SENTENCES_FILE).to_pylist()
    roles: dict[int, dict[str, list[str]]] = {}
    for row in _read(stage, store, MEMBERSHIPS_FILE).to_pylist():
        roles.setdefault(row["sentence_id"], {}).setdefault(row["role"], []).append(row["concept"])
    sentences = []
    for row in rows:
        own = roles[row.pop("sentence_id")]
        del row["concept_set"]
        sentences.append(
            Sentence(
                **row,
                concepts=own.get(POSITIVE, []),
                negative_of=own.get(NEGATIVE, []),
                pool=POOL in own,
            )
        )
    concepts = [
        Concept(row["concept"], row["domain"], row["sense"], row["pos"])
        for row in _read(stage, store, CONCEPTS_FILE).to_pylist()
    ]
    return ConceptSet(stage.label, concepts, sentences)


def read_dropped(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """The rows of the stage's `dropped` table."""
    rows: list[dict[str, Any]] = _read(stage, store, DROPPED_FILE).to_pylist()
    return rows


def read_concept_names(stage: Stage, store: Path) -> list[str]:
    """Names of the concepts, in the set's order."""
    names: list[str] = _read(stage, store, CONCEPTS_FILE).column("concept").to_pylist()
    return names


def read_domains(stage: Stage, store: Path) -> dict[str, str | None]:
    """Domain of each concept, in the set's order."""
    table = _read(stage, store, CONCEPTS_FILE)
    return dict(
        zip(table.column("concept").to_pylist(), table.column("domain").to_pylist(), strict=True)
    )


def read_texts(stage: Stage, store: Path) -> list[tuple[str, list[int]]]:
    """Every sentence in the order of its id, with the spans of all its concepts' words."""
    spans: dict[int, list[int]] = {}
    for row in _read(stage, store, MEMBERSHIPS_FILE).to_pylist():
        if row["role"] == POSITIVE:
            spans.setdefault(row["sentence_id"], []).extend(row["spans"])
    rows = _read(stage, store, SENTENCES_FILE).to_pylist()
    return [(row["text"], spans.get(row["sentence_id"], [])) for row in rows]


def read_memberships(stage: Stage, store: Path, role: str = POSITIVE) -> tuple[Any, Any, int]:
    """Ids of the sentences of a role and, side by side, numbers of their concepts (none for the pool);
    and how many sentences there are."""
    table = _read(stage, store, MEMBERSHIPS_FILE)
    rows = table.filter(pc.equal(table.column("role"), role))
    number = {name: index for index, name in enumerate(read_concept_names(stage, store))}
    names = [] if role == POOL else rows.column("concept").to_pylist()
    concepts = np.array([number[name] for name in names], np.int64)
    n_sentences = _read(stage, store, SENTENCES_FILE).num_rows
    return rows.column("sentence_id").to_numpy(), concepts, n_sentences


def _read(stage: Stage, store: Path, name: str) -> pa.Table:
    (path,) = stage.result(store).paths(name)
    return read_table(path)


def _concepts(concepts: ConceptSet, label: str) -> pa.Table:
    counts = concepts.counts()
    rows = [
        {"concept_set": label, "concept": each.name, **vars(each), "n_sentences": counts[each.name]}
        for each in concepts.concepts
    ]
    return pa.Table.from_pylist(rows, tables.CONCEPTS)


def _sentences(concepts: ConceptSet, label: str) -> pa.Table:
    rows = [
        {"concept_set": label, "sentence_id": number, **vars(sentence)}
        for number, sentence in enumerate(concepts.sentences)
    ]
    return pa.Table.from_pylist(rows, tables.SENTENCES)


def _memberships(concepts: ConceptSet, label: str, language: str) -> pa.Table:
    words = {concept.name: word_of(concept, language) for concept in concepts.concepts}

    def row(
        number: int, name: str | None, role: str, spans: Iterable[tuple[int, int]]
    ) -> dict[str, Any]:
        return {
            "concept_set": label,
            "sentence_id": number,
            "concept": name,
            "role": role,
            "spans": [edge for span in spans for edge in span],
        }

    rows = []
    for number, sentence in enumerate(concepts.sentences):
        rows += [
            row(number, name, POSITIVE, find_word(sentence.text, words[name]))
            for name in sentence.concepts
        ]
        rows += [row(number, name, NEGATIVE, []) for name in sentence.negative_of]
        if sentence.pool:
            rows.append(row(number, None, POOL, []))
    return pa.Table.from_pylist(rows, tables.MEMBERSHIPS)


def _dropped(collected: Mapping[str, Collected], label: str) -> pa.Table:
    rows = [
        {
            "concept_set": label,
            "concept": name,
            "reason": reason,
            "dropped": count,
            "example": each.examples[reason],
        }
        for name, each in collected.items()
        for reason, count in each.dropped.most_common()
    ]
    return pa.Table.from_pylist(rows, tables.DROPPED)


def _flagged(concepts: ConceptSet, language: str) -> ConceptSet:
    """The set with what the quality gate objects to in each sentence.

    The part of speech is looked at only where the file gives one.
    """
    gate = Gate([word_of(concept, language) for concept in concepts.concepts], language)
    known = {concept.name: (number, concept) for number, concept in enumerate(concepts.concepts)}
    collected: dict[str, Collected] = {}
    flagged = []
    for sentence in concepts.sentences:
        own = [known[name] for name in sentence.concepts]
        flags: list[str | None] = []
        if own or sentence.pool:
            check_pos = all(concept.pos is not None for _, concept in own)
            flags.append(gate.objection(sentence.text, [number for number, _ in own], check_pos))
        for name in sentence.concepts:
            of_concept = collected.setdefault(name, Collected())
            flags.append(of_concept.repeats(sentence.text))
            of_concept.keep(sentence.text)
        flagged.append(replace(sentence, flags=list(dict.fromkeys(flag for flag in flags if flag))))
    return replace(concepts, sentences=flagged)


def _notes(concepts: ConceptSet, language: str) -> list[str]:
    notes = []
    words = {concept.name: word_of(concept, language) for concept in concepts.concepts}
    without = [
        (name, sentence.text)
        for sentence in concepts.sentences
        for name in sentence.concepts
        if not find_word(sentence.text, words[name])
    ]
    if without:
        name, text = without[0]
        notes.append(
            f"{len(without)} sentences do not contain their concept's word, first {name!r}: "
            f"{excerpt(text)}"
        )
    flagged = [(each.flags, each.text) for each in concepts.sentences if each.flags]
    if flagged:
        flags, text = flagged[0]
        notes.append(
            f"the quality gate objects to {len(flagged)} sentences, which are kept (see their flags), "
            f"first {', '.join(flags)}: {excerpt(text)}"
        )
    if concepts.ignored_columns:
        notes.append(f"columns not used: {', '.join(concepts.ignored_columns)}")
    return notes


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("sentences")
