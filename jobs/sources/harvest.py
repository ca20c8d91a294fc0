"""Stage `sentences` for harvested sentences, sampled for all concepts in one pass over a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignment.text.quality import CollectedSentences, SentenceFilter, collect_sentences
from alignment.text.sentence_sampling import SentenceSampler
from alignment.text.word_matching import WordFinder
from jobs.config.concepts import HarvestedSentences
from jobs.config.sweep import Sweep
from jobs.engine.progress import progress
from jobs.engine.stage import Stage, StageOutput
from jobs.sentences import KIND, check_enough_sentences, concept_word, make_label, write_concept_set
from storage.errors import WorkFailed
from storage.readers.concepts import Concept, ConceptSet, Sentence
from storage.readers.corpus import UnreadableLines, file_identity, find_files, read_chunks

SAMPLES_PER_SENTENCE = 8
"""Candidates per requested sentence: the quality filter rejects some, the part-of-speech tagger more."""

_BYTES_PER_TICK = 1 << 20


def plan(sweep: Sweep, config: HarvestedSentences, concepts: Sequence[Concept]) -> Stage:
    """The stage that samples the sentences of the concepts from a corpus."""
    names = [config.corpus] if isinstance(config.corpus, str) else config.corpus
    files = find_files(names, sweep.folder)
    params: dict[str, Any] = {
        "concepts": [list(vars(concept).values()) for concept in concepts],
        "corpus": [file_identity(path) for path in files],
        "seed": sweep.seed,
        **config.model_dump(include={"sentences", "pool", "column", "language", "source"}),
    }
    params["concept_set"] = make_label(sweep.concept_set, params)
    return Stage(KIND, sweep.concept_set, params, partial(_run, config, list(concepts), files))


def _run(
    config: HarvestedSentences, concepts: list[Concept], files: list[Path], stage: Stage, store: Path
) -> StageOutput:
    words = [concept_word(concept, config.language) for concept in concepts]
    seed = stage.params["seed"]
    factor = SAMPLES_PER_SENTENCE
    sampler = SentenceSampler(WordFinder(words), config.sentences * factor, config.pool * factor, seed)
    unreadable = UnreadableLines()
    size = sum(path.stat().st_size for path in files) // _BYTES_PER_TICK
    with progress(stage.name, size, "MB") as advance:
        n_bytes = 0
        for path in files:
            for chunk in read_chunks(path, config.column, unreadable):
                sampler.add_text(chunk)
                ticks, n_bytes = divmod(n_bytes + len(chunk), _BYTES_PER_TICK)
                if ticks:
                    advance(ticks)

    sentence_filter = SentenceFilter(words, config.language)
    collected = {}
    for index, concept in enumerate(concepts):
        candidates = sampler.sentences_of_word(index)
        accepted = collect_sentences(candidates, sentence_filter, [index], config.sentences)
        # without the index of repetitions, which takes more memory than the sentences
        collected[concept.name] = CollectedSentences(
            accepted.sentences, accepted.rejected, accepted.examples
        )
    sentences = [
        Sentence(text, source="harvest", concepts=(name,), seed=seed)
        for name, accepted in collected.items()
        for text in accepted.sentences
    ]
    neutral = collect_sentences(sampler.neutral_sentences(), sentence_filter, [], config.pool)
    # the candidates take more memory than the accepted sentences
    del sampler
    sentences += [Sentence(text, source="harvest", pool=True, seed=seed) for text in neutral.sentences]
    notes = check_enough_sentences(collected, config.sentences, config.min_sentences)
    n_neutral = len(neutral.sentences)
    if n_neutral < config.pool:
        shortage = f"{config.pool} neutral sentences were requested (pool); the corpus has {n_neutral}"
        if 2 * n_neutral < config.pool:
            reasons = [f"{reason}: {n}" for reason, n in neutral.rejected.most_common(3)]
            raise WorkFailed(shortage, reasons)
        notes.append(shortage)
    if unreadable.lines:
        notes.append(f"{unreadable.lines} unreadable lines in the corpus; the first: {unreadable.first}")
    concept_set = ConceptSet(stage.label, concepts, sentences)
    return StageOutput(write_concept_set(stage, store, concept_set, config.language, collected), notes)
