"""Stage `sentences`: concepts, their sentences, and the positions of each concept's word in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.text.quality import CollectedSentences, SentenceFilter
from alignment.text.word_matching import NOUN, ConceptWord, find_word, shuffle_words
from jobs.engine.stage import Stage, StageOutput
from storage import tables
from storage.errors import WorkFailed, excerpt
from storage.readers.concepts import NEGATIVE, POOL, POSITIVE, Concept, ConceptSet, Sentence
from storage.store.commit import FileRecord, write_table
from storage.store.fingerprint import fingerprint

KIND = "sentences"
SHUFFLED = "shuffled"


def plan(concept_set: ConceptSet, language: str = "en") -> Stage:
    """The stage for user-provided sentences, which get quality flags but are never dropped."""

    def run(stage: Stage, store: Path) -> StageOutput:
        flagged = _flag_sentences(concept_set, language)
        files = write_concept_set(stage, store, flagged, language, {})
        return StageOutput(files, _make_notes(flagged, language))

    params = {
        "concept_set": concept_set.label,
        "content": concept_set.content_hash,
        "language": language,
    }
    return Stage(KIND, concept_set.name, params, run)


def plan_shuffled(concept_set: ConceptSet, sentences: Stage, language: str, seed: int) -> Stage:
    """The stage for the same sentences with their words in random order: each sentence keeps its
    concept's word but loses its meaning."""
    label = f"{sentences.params['concept_set']} {SHUFFLED}"

    def run(stage: Stage, store: Path) -> StageOutput:
        rng = np.random.default_rng(seed)
        words = _concept_words(concept_set, language)
        shuffled_sentences = [
            replace(
                sentence,
                text=shuffle_words(sentence.text, [words[name] for name in sentence.concepts], rng),
            )
            for sentence in concept_set.sentences
        ]
        shuffled_set = replace(concept_set, sentences=shuffled_sentences)
        return StageOutput(write_concept_set(stage, store, shuffled_set, language, {}))

    params = {"concept_set": label, "language": language, "seed": seed}
    return Stage(KIND, f"{sentences.label} {SHUFFLED}", params, run, {"sentences": sentences})


def make_label(name: str, params: Mapping[str, Any]) -> str:
    """The label of a concept set to harvest or generate: its name and a short hash of its settings."""
    return f"{name}@{fingerprint(params)[:8]}"


def check_enough_sentences(
    collected: Mapping[str, CollectedSentences], requested: int, required: int
) -> list[str]:
    """A note on the concepts with fewer sentences than requested.

    Raises:
        WorkFailed: if concepts have fewer than `required`, with the drop reasons of each.
    """
    counts = {name: len(result.sentences) for name, result in collected.items()}
    short = {name: count for name, count in counts.items() if count < requested}
    failures = []
    for name, count in short.items():
        if count < required:
            rejected = collected[name].rejected.most_common(3)
            reasons = [f"{reason} ({n_dropped})" for reason, n_dropped in rejected]
            failures.append(f"{name}: {count} kept; dropped: {', '.join(reasons) or 'none'}")
    if failures:
        summary = f"{len(failures)} of {len(collected)} concepts have fewer than {required} sentences"
        raise WorkFailed(f"{summary} (`fewest`)", failures)
    if not short:
        return []
    name = min(short, key=lambda name: short[name])
    return [
        f"{len(short)} concepts have fewer than {requested} sentences; the fewest: {name!r} with "
        f"{short[name]}"
    ]


def concept_word(concept: Concept, language: str) -> ConceptWord:
    """The word to match in text for a concept."""
    return ConceptWord(concept.name, concept.pos or NOUN, language)


def write_concept_set(
    stage: Stage,
    store: Path,
    concept_set: ConceptSet,
    language: str,
    collected: Mapping[str, CollectedSentences],
) -> list[FileRecord]:
    """Commit the tables of a concept set; `collected` has the dropped sentences of each concept."""
    label = stage.params["concept_set"]
    tables_by_file = {
        tables.CONCEPTS.file: _concept_table(concept_set, label),
        tables.SENTENCES.file: _sentence_table(concept_set, label),
        tables.MEMBERSHIPS.file: _membership_table(concept_set, label, language),
        tables.DROPPED.file: _dropped_table(collected, label),
    }
    return [write_table(stage.folder(store), name, table) for name, table in tables_by_file.items()]


def read_concept_set(stage: Stage, store: Path) -> ConceptSet:
    """The concept set of a finished stage."""
    rows = stage.read_table(store, tables.SENTENCES.file).to_pylist()
    roles: dict[int, dict[str, list[str]]] = {}
    for row in stage.read_table(store, tables.MEMBERSHIPS.file).to_pylist():
        roles.setdefault(row["sentence_id"], {}).setdefault(row["role"], []).append(row["concept"])
    sentences = []
    for row in rows:
        concepts_by_role = roles[row.pop("sentence_id")]
        del row["concept_set"]
        sentences.append(
            Sentence(
                **row,
                concepts=concepts_by_role.get(POSITIVE, []),
                negative_of=concepts_by_role.get(NEGATIVE, []),
                pool=POOL in concepts_by_role,
            )
        )
    concepts = [
        Concept(row["concept"], row["domain"], row["sense"], row["pos"])
        for row in stage.read_table(store, tables.CONCEPTS.file).to_pylist()
    ]
    return ConceptSet(stage.label, concepts, sentences)


def read_dropped(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `dropped` table."""
    rows: list[dict[str, Any]] = stage.read_table(store, tables.DROPPED.file).to_pylist()
    return rows


def read_concept_names(stage: Stage, store: Path) -> list[str]:
    """Names of the concepts, in the set's order."""
    names: list[str] = stage.read_table(store, tables.CONCEPTS.file).column("concept").to_pylist()
    return names


def read_domains(stage: Stage, store: Path) -> dict[str, str | None]:
    """Domain of each concept, in the set's order."""
    rows = stage.read_table(store, tables.CONCEPTS.file).to_pylist()
    return {row["concept"]: row["domain"] for row in rows}


def read_texts(stage: Stage, store: Path) -> list[tuple[str, list[int]]]:
    """Text of every sentence, by sentence id, and the character spans of its concepts' words."""
    spans: dict[int, list[int]] = {}
    for row in stage.read_table(store, tables.MEMBERSHIPS.file).to_pylist():
        if row["role"] == POSITIVE:
            spans.setdefault(row["sentence_id"], []).extend(row["spans"])
    rows = stage.read_table(store, tables.SENTENCES.file).to_pylist()
    return [(row["text"], spans.get(row["sentence_id"], [])) for row in rows]


def read_memberships(stage: Stage, store: Path, role: str = POSITIVE) -> tuple[Any, Any, int]:
    """Sentence ids and concept indices of the members of a role, as parallel arrays (no indices for the
    pool), and the number of sentences."""
    table = stage.read_table(store, tables.MEMBERSHIPS.file)
    rows = table.filter(pc.equal(table.column("role"), role))
    index = {name: number for number, name in enumerate(read_concept_names(stage, store))}
    names = [] if role == POOL else rows.column("concept").to_pylist()
    concepts = np.array([index[name] for name in names], np.int64)
    n_sentences = stage.read_table(store, tables.SENTENCES.file).num_rows
    return rows.column("sentence_id").to_numpy(), concepts, n_sentences


def _concept_words(concept_set: ConceptSet, language: str) -> dict[str, ConceptWord]:
    return {concept.name: concept_word(concept, language) for concept in concept_set.concepts}


def _concept_table(concept_set: ConceptSet, label: str) -> pa.Table:
    counts = concept_set.count_sentences()
    rows = [
        {
            "concept_set": label,
            "concept": concept.name,
            **vars(concept),
            "n_sentences": counts[concept.name],
        }
        for concept in concept_set.concepts
    ]
    return pa.Table.from_pylist(rows, tables.CONCEPTS.schema)


def _sentence_table(concept_set: ConceptSet, label: str) -> pa.Table:
    rows = [
        {"concept_set": label, "sentence_id": sentence_id, **vars(sentence)}
        for sentence_id, sentence in enumerate(concept_set.sentences)
    ]
    return pa.Table.from_pylist(rows, tables.SENTENCES.schema)


def _membership_table(concept_set: ConceptSet, label: str, language: str) -> pa.Table:
    words = _concept_words(concept_set, language)
    memberships: list[tuple[int, str | None, str, list[tuple[int, int]]]] = []
    for sentence_id, sentence in enumerate(concept_set.sentences):
        memberships += [
            (sentence_id, name, POSITIVE, find_word(sentence.text, words[name]))
            for name in sentence.concepts
        ]
        memberships += [(sentence_id, name, NEGATIVE, []) for name in sentence.negative_of]
        if sentence.pool:
            memberships.append((sentence_id, None, POOL, []))
    rows = [
        {
            "concept_set": label,
            "sentence_id": sentence_id,
            "concept": name,
            "role": role,
            "spans": [offset for span in spans for offset in span],
        }
        for sentence_id, name, role, spans in memberships
    ]
    return pa.Table.from_pylist(rows, tables.MEMBERSHIPS.schema)


def _dropped_table(collected: Mapping[str, CollectedSentences], label: str) -> pa.Table:
    rows = [
        {
            "concept_set": label,
            "concept": name,
            "reason": reason,
            "dropped": count,
            "example": result.examples[reason],
        }
        for name, result in collected.items()
        for reason, count in result.rejected.most_common()
    ]
    return pa.Table.from_pylist(rows, tables.DROPPED.schema)


def _flag_sentences(concept_set: ConceptSet, language: str) -> ConceptSet:
    """The set with the quality filter's flags on each sentence.

    Parts of speech are checked only for concepts whose file specifies them.
    """
    quality_filter = SentenceFilter(list(_concept_words(concept_set, language).values()), language)
    indexed = {concept.name: (index, concept) for index, concept in enumerate(concept_set.concepts)}
    collected: dict[str, CollectedSentences] = {}
    flagged = []
    for sentence in concept_set.sentences:
        members = [indexed[name] for name in sentence.concepts]
        flags: list[str | None] = []
        if members or sentence.pool:
            check_pos = all(concept.pos is not None for _, concept in members)
            indices = [index for index, _ in members]
            flags.append(quality_filter.rejection_reason(sentence.text, indices, check_pos))
        for name in sentence.concepts:
            previous = collected.setdefault(name, CollectedSentences())
            flags.append(previous.repetition_reason(sentence.text))
            previous.add(sentence.text)
        flagged.append(replace(sentence, flags=list(dict.fromkeys(flag for flag in flags if flag))))
    return replace(concept_set, sentences=flagged)


def _make_notes(concept_set: ConceptSet, language: str) -> list[str]:
    notes = []
    words = _concept_words(concept_set, language)
    without_word = [
        (name, sentence.text)
        for sentence in concept_set.sentences
        for name in sentence.concepts
        if not find_word(sentence.text, words[name])
    ]
    if without_word:
        name, text = without_word[0]
        notes.append(
            f"{len(without_word)} sentences do not contain their concept's word, first {name!r}: "
            f"{excerpt(text)}"
        )
    flagged = [sentence for sentence in concept_set.sentences if sentence.flags]
    if flagged:
        notes.append(
            f"{len(flagged)} sentences have quality flags and were kept (column `flags`), first "
            f"{', '.join(flagged[0].flags)}: {excerpt(flagged[0].text)}"
        )
    if concept_set.ignored_columns:
        notes.append(f"unused columns: {', '.join(concept_set.ignored_columns)}")
    return notes


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("sentences")
