"""Stage `sentences`: concepts, their sentences, and the positions of each concept's word in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.text.quality import CollectedSentences, SentenceFilter
from alignment.text.word_masking import mask_words
from alignment.text.word_matching import NOUN, ConceptWord, find_word, has_word, shuffle_words
from jobs.engine.stage import Stage, StageOutput
from storage import tables
from storage.errors import UserError, WorkFailed, excerpt
from storage.readers.concepts import NEGATIVE, POOL, POSITIVE, Concept, ConceptSet, Sentence
from storage.store.commit import FileRecord, write_table
from storage.store.fingerprint import fingerprint

KIND = "sentences"
SHUFFLED, MASKED = "shuffled", "masked"
ALTERATIONS = (SHUFFLED, MASKED)
"""Baselines that read altered sentences."""

Spans = list[tuple[int, int]]
_SENTENCES_PER_BATCH = 4096
"""Sentences, or rows of a table, that are processed together."""
_SENTENCE_COLUMNS = [
    name for name in tables.SENTENCES.schema.names if name not in ("concept_set", "sentence_id")
]


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


def plan_altered(
    concept_set: ConceptSet, sentences: Stage, language: str, seed: int, alteration: str
) -> Stage:
    """The stage for the same sentences, altered: `shuffled` puts their words in random order, so that
    each keeps its concept's word but loses its meaning; `masked` replaces its concept's word by "thing".

    Raises UserError for masked words of another language than English.
    """
    params: dict[str, Any] = {
        "concept_set": f"{sentences.params['concept_set']} {alteration}",
        "language": language,
    }
    if alteration == SHUFFLED:
        params["seed"] = seed
    elif language != "en":
        raise UserError(
            f"baselines: {MASKED}: the placeholder is English and the sentences are in {language!r}; "
            "remove this baseline"
        )

    def run(stage: Stage, store: Path) -> StageOutput:
        words = _concept_words(concept_set, language)
        if alteration == SHUFFLED:
            rng = np.random.default_rng(seed)
            texts = [
                shuffle_words(sentence.text, [words[name] for name in sentence.concepts], rng)
                for sentence in concept_set.sentences
            ]
            find_spans = None
        else:
            texts = [_mask(sentence, words)[0] for sentence in concept_set.sentences]

            def find_spans(sentence_id: int, name: str) -> Spans:
                return _mask(concept_set.sentences[sentence_id], words)[1][name]

        pairs = zip(concept_set.sentences, texts, strict=True)
        altered_set = replace(
            concept_set, sentences=[replace(sentence, text=text) for sentence, text in pairs]
        )
        return StageOutput(write_concept_set(stage, store, altered_set, language, {}, find_spans))

    return Stage(KIND, f"{sentences.label} {alteration}", params, run, {"sentences": sentences})


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
    find_spans: Callable[[int, str], Spans] | None = None,
) -> list[FileRecord]:
    """Commit the tables of a concept set; `collected` has the dropped sentences of each concept.

    `find_spans` gives the occurrences of a concept's word in a sentence, by the sentence's id and the
    concept's name; by default, they are found in its text.
    """
    words = _concept_words(concept_set, language)

    def find_in_text(sentence_id: int, name: str) -> Spans:
        return find_word(concept_set.sentences[sentence_id].text, words[name])

    label = stage.params["concept_set"]
    make_tables: dict[str, Callable[[], pa.Table]] = {
        tables.CONCEPTS.file: lambda: _concept_table(concept_set, label),
        tables.SENTENCES.file: lambda: _sentence_table(concept_set, label),
        tables.MEMBERSHIPS.file: lambda: _membership_table(
            concept_set, label, find_spans or find_in_text
        ),
        tables.DROPPED.file: lambda: _dropped_table(collected, label),
    }
    records = []
    # one at a time, because they take as much memory as the sentences
    for name, make in make_tables.items():
        records.append(write_table(stage.folder(store), name, make()))
        pa.default_memory_pool().release_unused()
    return records


def read_concept_set(stage: Stage, store: Path) -> ConceptSet:
    """The concept set of a finished stage."""
    roles: dict[int, dict[str, list[str]]] = {}
    memberships = _memberships(stage, store)
    for sentence_id, name, role in _iterate(memberships, ("sentence_id", "concept", "role")):
        roles.setdefault(sentence_id, {}).setdefault(role, []).append(name)
    sentences = []
    stored = stage.read_table(store, tables.SENTENCES.file)
    for sentence_id, *values in _iterate(stored, ("sentence_id", *_SENTENCE_COLUMNS)):
        concepts_by_role = roles.pop(sentence_id)
        sentences.append(
            Sentence(
                **dict(zip(_SENTENCE_COLUMNS, values, strict=True)),
                concepts=tuple(concepts_by_role.get(POSITIVE, ())),
                negative_of=tuple(concepts_by_role.get(NEGATIVE, ())),
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


def count_sentences(stage: Stage, store: Path) -> dict[str, int]:
    """Number of positive sentences of each concept, in the set's order."""
    table = stage.read_table(store, tables.CONCEPTS.file)
    return dict(_iterate(table, ("concept", "n_sentences")))


def count_neutral_sentences(stage: Stage, store: Path) -> int:
    """Number of sentences in the pool, which are negatives of all concepts."""
    return int(pc.sum(pc.equal(_memberships(stage, store).column("role"), POOL)).as_py() or 0)


def count_flags(stage: Stage, store: Path) -> dict[str, Counter[str]]:
    """How often each quality flag was given to positive sentences of each concept."""
    table = stage.read_table(store, tables.SENTENCES.file)
    flags = {number: flags for number, flags in _iterate(table, ("sentence_id", "flags")) if flags}
    counts = defaultdict[str, Counter[str]](Counter)
    for number, name, role in _iterate(_memberships(stage, store), ("sentence_id", "concept", "role")):
        if role == POSITIVE and number in flags:
            counts[name].update(flags[number])
    return counts


def _memberships(stage: Stage, store: Path) -> pa.Table:
    return stage.read_table(store, tables.MEMBERSHIPS.file)


def read_concept_names(stage: Stage, store: Path) -> list[str]:
    """Names of the concepts, in the set's order."""
    names: list[str] = stage.read_table(store, tables.CONCEPTS.file).column("concept").to_pylist()
    return names


def read_concept_words(stage: Stage, store: Path) -> list[ConceptWord]:
    """The words of the concepts, in the set's order."""
    rows = stage.read_table(store, tables.CONCEPTS.file).to_pylist()
    language = stage.params["language"]
    return [concept_word(Concept(row["concept"], pos=row["pos"]), language) for row in rows]


def read_domains(stage: Stage, store: Path) -> dict[str, str | None]:
    """Domain of each concept, in the set's order."""
    rows = stage.read_table(store, tables.CONCEPTS.file).to_pylist()
    return {row["concept"]: row["domain"] for row in rows}


def read_texts(stage: Stage, store: Path) -> list[tuple[str, list[int]]]:
    """Text of every sentence, by sentence id, and the character spans of its concepts' words."""
    spans: dict[int, list[int]] = {}
    for row in _memberships(stage, store).to_pylist():
        if row["role"] == POSITIVE:
            spans.setdefault(row["sentence_id"], []).extend(row["spans"])
    rows = stage.read_table(store, tables.SENTENCES.file).to_pylist()
    return [(row["text"], spans.get(row["sentence_id"], [])) for row in rows]


def read_positives(stage: Stage, store: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Each concept's sentences: its name, a text and the character spans of its word, which are flat
    (start, end, start, end, ...)."""
    texts = stage.read_table(store, tables.SENTENCES.file).column("text").to_pylist()
    memberships = _memberships(stage, store)
    for name, sentence_id, role, spans in _iterate(
        memberships, ("concept", "sentence_id", "role", "spans")
    ):
        if role == POSITIVE:
            yield name, texts[sentence_id], spans


def read_memberships(stage: Stage, store: Path, role: str = POSITIVE) -> tuple[Any, Any, int]:
    """Sentence ids and concept indices of the members of a role, as parallel arrays (no indices for the
    pool), and the number of sentences."""
    table = _memberships(stage, store)
    rows = table.filter(pc.equal(table.column("role"), role))
    index = {name: number for number, name in enumerate(read_concept_names(stage, store))}
    names = [] if role == POOL else rows.column("concept").to_pylist()
    concepts = np.array([index[name] for name in names], np.int64)
    n_sentences = stage.read_table(store, tables.SENTENCES.file).num_rows
    return rows.column("sentence_id").to_numpy(), concepts, n_sentences


def _iterate(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of a large table as tuples of the given columns."""
    for batch in table.to_batches(_SENTENCES_PER_BATCH):
        yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


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
    return _make_table(
        tables.SENTENCES.schema,
        concept_set,
        lambda sentence_id, sentence: [
            (label, sentence_id, *(getattr(sentence, name) for name in _SENTENCE_COLUMNS))
        ],
    )


def _mask(sentence: Sentence, words: Mapping[str, ConceptWord]) -> tuple[str, dict[str, Spans]]:
    return mask_words(sentence.text, {name: words[name] for name in sentence.concepts})


def _membership_table(
    concept_set: ConceptSet, label: str, find_spans: Callable[[int, str], Spans]
) -> pa.Table:
    def make_rows(sentence_id: int, sentence: Sentence) -> list[tuple[Any, ...]]:
        memberships: list[tuple[str | None, str, Spans]] = [
            *((name, POSITIVE, find_spans(sentence_id, name)) for name in sentence.concepts),
            *((name, NEGATIVE, []) for name in sentence.negative_of),
            *([(None, POOL, [])] if sentence.pool else []),
        ]
        return [
            (label, sentence_id, name, role, list(chain.from_iterable(spans)))
            for name, role, spans in memberships
        ]

    return _make_table(tables.MEMBERSHIPS.schema, concept_set, make_rows)


def _make_table(
    schema: pa.Schema,
    concept_set: ConceptSet,
    make_rows: Callable[[int, Sentence], list[tuple[Any, ...]]],
) -> pa.Table:
    """The rows of all sentences, with the columns of the schema.

    They are made in batches, because they take several times the memory of the table.
    """
    numbered = enumerate(concept_set.sentences)
    batches = []
    while batch := list(islice(numbered, _SENTENCES_PER_BATCH)):
        rows = [row for sentence_id, sentence in batch for row in make_rows(sentence_id, sentence)]
        if rows:
            columns = dict(zip(schema.names, zip(*rows, strict=True), strict=True))
            batches.append(pa.RecordBatch.from_pydict(columns, schema))
    return pa.Table.from_batches(batches, schema)


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
    sentences = concept_set.sentences
    repetitions = _find_repetitions(sentences)
    flagged = []
    # one tuple for all sentences of the same flags, to save memory
    shared_flags: dict[tuple[str, ...], tuple[str, ...]] = {}
    for first in range(0, len(sentences), _SENTENCES_PER_BATCH):
        batch = sentences[first : first + _SENTENCES_PER_BATCH]
        candidates = []
        for sentence in batch:
            members = [indexed[name] for name in sentence.concepts]
            check_pos = all(concept.pos is not None for _, concept in members)
            candidates.append((sentence.text, [index for index, _ in members], check_pos))
        reasons = quality_filter.rejection_reasons(candidates)
        for number, (sentence, reason) in enumerate(zip(batch, reasons, strict=True), first):
            is_checked = bool(sentence.concepts or sentence.pool)
            flags = [reason if is_checked else None, *repetitions.get(number, ())]
            unique = tuple(dict.fromkeys(filter(None, flags)))
            unique = shared_flags.setdefault(unique, unique)
            flagged.append(replace(sentence, flags=unique) if unique else sentence)
    return replace(concept_set, sentences=flagged)


def _find_repetitions(sentences: Sequence[Sentence]) -> dict[int, list[str]]:
    """By the number of a sentence, how it repeats an earlier one of each of its concepts."""
    members = defaultdict[str, list[int]](list)
    for number, sentence in enumerate(sentences):
        for name in sentence.concepts:
            members[name].append(number)
    reasons = defaultdict[int, dict[str, str]](dict)
    for name, numbers in members.items():
        # one concept at a time, because the index of trigrams takes more memory than the sentences
        collected = CollectedSentences()
        for number in numbers:
            if reason := collected.repetition_reason(sentences[number].text):
                reasons[number][name] = reason
            collected.add(sentences[number].text)
    return {
        number: [by_name[name] for name in sentences[number].concepts if name in by_name]
        for number, by_name in reasons.items()
    }


def _make_notes(concept_set: ConceptSet, language: str) -> list[str]:
    notes = []
    words = _concept_words(concept_set, language)
    without_word = [
        (name, sentence.text)
        for sentence in concept_set.sentences
        for name in sentence.concepts
        if not has_word(sentence.text, words[name])
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
