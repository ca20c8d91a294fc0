"""What `neuralign sentences` prints: the concepts of a sweep, or a sample of one concept's sentences."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs import sentences
from jobs.engine.stage import Stage
from storage.errors import UserError
from storage.readers.concepts import ConceptSet

SAMPLE = 10


def print_concepts(console: Console, stage: Stage, store: Path) -> None:
    """One line a concept: its sentences, and what the quality gate dropped or objects to, and why."""
    concepts = sentences.read_set(stage, store)
    objected: dict[str, Counter[str]] = {}
    for row in sentences.read_dropped(stage, store):
        objected.setdefault(row["concept"], Counter())[row["reason"]] = row["dropped"]
    made = stage.params.get("source") is not None
    if not made:
        for sentence in concepts.sentences:
            for name in sentence.concepts:
                objected.setdefault(name, Counter()).update(sentence.flags)
    table = Table(box=None, pad_edge=False)
    table.add_column("concept", overflow="fold")
    table.add_column("sentences", justify="right")
    table.add_column("dropped" if made else "flagged", justify="right")
    table.add_column("mostly because", overflow="fold")
    counts = concepts.counts()
    for concept in concepts.concepts:
        why = objected.get(concept.name, Counter())
        table.add_row(
            escape(concept.name),
            str(counts[concept.name]),
            str(why.total()),
            why.most_common(1)[0][0] if why else "",
        )
    console.print(table)
    pool = sum(sentence.pool for sentence in concepts.sentences)
    console.print(
        f"{len(counts)} concepts, {sum(counts.values()):,} sentences"
        + (f", {pool:,} neutral ones" if pool else "")
    )


def print_sample(console: Console, concepts: ConceptSet, name: str, seed: int) -> None:
    """Some sentences of a concept, drawn with the seed, in the order of the set.

    Raises UserError for a concept that the set does not have.
    """
    names = [concept.name for concept in concepts.concepts]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names[:10])} ..."
        raise UserError(f"--show {name}: the set has no such concept; {hint}")
    own = [sentence for sentence in concepts.sentences if name in sentence.concepts]
    size = min(SAMPLE, len(own))
    drawn = np.sort(np.random.default_rng(seed).choice(len(own), size, replace=False))
    for sentence in (own[place] for place in drawn):
        about = ", ".join(each for each in (sentence.prompt, *sentence.flags) if each)
        console.print(f"- {sentence.text}" + (f"  [{about}]" if about else ""), markup=False)
    console.print(f"{size} of {len(own)} sentences of {name}", markup=False)
