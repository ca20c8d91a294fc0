"""Stage `sentences`: the concepts, their sentences and where each concept's word stands in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from alignment.words import find_word
from jobs.stage import Outcome, Stage
from storage import schemas
from storage.commit import write_table
from storage.concepts import ConceptSet
from storage.place import read_table

KIND = "sentences"
CONCEPTS_FILE = "concepts.parquet"
SENTENCES_FILE = "sentences.parquet"
MEMBERSHIPS_FILE = "memberships.parquet"


def plan(concepts: ConceptSet) -> Stage:
    """The stage for a concept set that was read."""

    def run(stage: Stage, store: Path) -> Outcome:
        folder = stage.folder(store)
        tables = {
            CONCEPTS_FILE: _concepts(concepts),
            SENTENCES_FILE: _sentences(concepts),
            MEMBERSHIPS_FILE: _memberships(concepts),
        }
        files = [write_table(folder, name, table) for name, table in tables.items()]
        return Outcome(files, _notes(concepts))

    params = {"concept_set": concepts.label, "content": concepts.content_hash}
    return Stage(KIND, concepts.name, params, run)


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
        spans.setdefault(row["sentence_id"], []).extend(row["spans"])
    rows = _read(stage, store, SENTENCES_FILE).to_pylist()
    return [(row["text"], spans.get(row["sentence_id"], [])) for row in rows]


def read_memberships(stage: Stage, store: Path) -> tuple[Any, Any, int]:
    """Sentence ids and, side by side, numbers of their concepts; and how many sentences there are."""
    table = _read(stage, store, MEMBERSHIPS_FILE)
    number = {name: index for index, name in enumerate(read_concept_names(stage, store))}
    concepts = [number[name] for name in table.column("concept").to_pylist()]
    n_sentences = _read(stage, store, SENTENCES_FILE).num_rows
    return table.column("sentence_id").to_numpy(), concepts, n_sentences


def _read(stage: Stage, store: Path, name: str) -> pa.Table:
    (path,) = stage.result(store).paths(name)
    return read_table(path)


def _concepts(concepts: ConceptSet) -> pa.Table:
    counts = dict.fromkeys((concept.name for concept in concepts.concepts), 0)
    for sentence in concepts.sentences:
        for name in sentence.concepts:
            counts[name] += 1
    return pa.Table.from_pylist(
        [
            {
                "concept_set": concepts.label,
                "concept": concept.name,
                "domain": concept.domain,
                "sense": concept.sense,
                "n_sentences": counts[concept.name],
            }
            for concept in concepts.concepts
        ],
        schemas.CONCEPTS,
    )


def _sentences(concepts: ConceptSet) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "concept_set": concepts.label,
                "sentence_id": number,
                "text": sentence.text,
                "source": sentence.source,
                "prompt": sentence.prompt,
            }
            for number, sentence in enumerate(concepts.sentences)
        ],
        schemas.SENTENCES,
    )


def _memberships(concepts: ConceptSet) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "concept_set": concepts.label,
                "sentence_id": number,
                "concept": name,
                "role": "positive",
                "spans": [edge for span in find_word(sentence.text, name) for edge in span],
            }
            for number, sentence in enumerate(concepts.sentences)
            for name in sentence.concepts
        ],
        schemas.MEMBERSHIPS,
    )


def _notes(concepts: ConceptSet) -> list[str]:
    notes = []
    without = [
        (name, sentence.text)
        for sentence in concepts.sentences
        for name in sentence.concepts
        if not find_word(sentence.text, name)
    ]
    if without:
        name, text = without[0]
        notes.append(
            f"{len(without)} sentences do not contain their concept's word, first {name!r}: {text!r}"
        )
    if concepts.ignored_columns:
        notes.append(f"columns not used: {', '.join(concepts.ignored_columns)}")
    return notes


if __name__ == "__main__":
    from jobs.cli import run_file

    run_file("sentences")
