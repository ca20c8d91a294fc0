"""Stage `sentences` from text: one pass over the corpus samples the sentences of all concepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.text.quality import Collected, Gate, collect
from alignment.text.sentence_sampling import Sampler
from alignment.text.word_matching import WordFinder
from jobs.config import Harvest, Sweep
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Stage
from jobs.sentences import KIND, label_of, short_of, word_of, write
from storage.errors import WorkFailed
from storage.readers.concepts import Concept, ConceptSet, Sentence
from storage.readers.corpus import Unreadable, find_files, identity, read_pieces

DRAWN_PER_WANTED = 8
"""Sentences drawn for each that is wanted: the quality gate drops some, the tagger more."""

_BYTES_PER_TICK = 1 << 20


def plan(sweep: Sweep, wanted: Harvest, concepts: Sequence[Concept]) -> Stage:
    """The stage that takes the sentences of the concepts from the sweep's corpus."""
    names = [wanted.corpus] if isinstance(wanted.corpus, str) else wanted.corpus
    files = find_files(names, sweep.folder)
    params: dict[str, Any] = {
        "concepts": [list(vars(concept).values()) for concept in concepts],
        "corpus": [identity(path) for path in files],
        "seed": sweep.seed,
        **wanted.model_dump(include={"sentences", "pool", "column", "language", "source"}),
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, wanted, list(concepts), files)

    params["concept_set"] = label_of(sweep.concept_set, params)
    return Stage(KIND, sweep.concept_set, params, run)


def _run(
    stage: Stage, store: Path, wanted: Harvest, concepts: list[Concept], files: list[Path]
) -> Outcome:
    words = [word_of(concept, wanted.language) for concept in concepts]
    seed = stage.params["seed"]
    sampler = Sampler(
        WordFinder(words), wanted.sentences * DRAWN_PER_WANTED, wanted.pool * DRAWN_PER_WANTED, seed
    )
    unreadable = Unreadable()
    size = sum(path.stat().st_size for path in files) // _BYTES_PER_TICK
    with progress(stage.name, size, "MB") as advance:
        fed = 0
        for path in files:
            for piece in read_pieces(path, wanted.column, unreadable):
                sampler.feed(piece)
                fed += len(piece)
                if fed >= _BYTES_PER_TICK:
                    advance(fed // _BYTES_PER_TICK)
                    fed %= _BYTES_PER_TICK

    gate = Gate(words, wanted.language)
    collected = {}
    for number, concept in enumerate(concepts):
        each = collect(sampler.of_word(number), gate, [number], wanted.sentences)
        # without what tells repeats: it takes more memory than the sentences
        collected[concept.name] = Collected(each.kept, each.dropped, each.examples)
    found = [
        Sentence(text, source="harvest", concepts=[name], seed=seed)
        for name, each in collected.items()
        for text in each.kept
    ]
    neutral = collect(sampler.neutral(), gate, [], wanted.pool)
    # what was drawn takes more memory than what is kept
    del sampler
    found += [Sentence(text, source="harvest", pool=True, seed=seed) for text in neutral.kept]
    notes = short_of(collected, wanted.sentences, wanted.needed)
    if len(neutral.kept) < wanted.pool:
        short = (
            f"{wanted.pool} neutral sentences were asked for (pool); the corpus has {len(neutral.kept)}"
        )
        if 2 * len(neutral.kept) < wanted.pool:
            raise WorkFailed(short, [f"{reason}: {n}" for reason, n in neutral.dropped.most_common(3)])
        notes.append(short)
    if unreadable.lines:
        notes.append(f"{unreadable.lines} lines of the corpus not read, first {unreadable.first}")
    made = ConceptSet(stage.label, concepts, found)
    return Outcome(write(stage, store, made, wanted.language, collected), notes)
