"""Stage `sentences` for generated sentences: a language model writes them until enough are accepted."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignment.text.quality import CollectedSentences, SentenceFilter, collect_sentences
from alignment.text.word_matching import ConceptWord
from cluster.models import generation
from cluster.models.weights import Weights, resolve
from cluster.runtime.devices import count_gpus, default_dtype
from cluster.runtime.queue import WorkQueue
from cluster.runtime.session import connect
from jobs.config.concepts import GeneratedSentences
from jobs.config.sweep import Sweep
from jobs.engine.progress import progress
from jobs.engine.stage import Stage, StageOutput, run_missing_units
from jobs.sentences import KIND, check_enough_sentences, concept_word, make_label, write_concept_set
from jobs.sources.prompts import TEMPLATES, Subject, make_prompt
from storage.errors import UserError
from storage.readers import wordnet
from storage.readers.concepts import Concept, ConceptSet, Sentence
from storage.store.checksums import read_checked
from storage.store.commit import FileRecord, write_json
from storage.store.fingerprint import fingerprint

DRAFTS_DIR = "drafts"
CONCEPTS_PER_UNIT = 16
_TOKENS_PER_SENTENCE = 32
_MIN_ACCEPTANCE_RATE = 0.25
"""Lower bound of the acceptance rate that determines the number of prompts of a round."""


@dataclass(frozen=True)
class GenerationTask:
    """Settings that all work units share."""

    words: list[ConceptWord]
    config: GeneratedSentences
    seed: int


@dataclass(frozen=True)
class GenerationUnit:
    """Consecutive concepts, the first with the index `first`."""

    first: int
    subjects: list[Subject]

    @property
    def name(self) -> str:
        return f"{self.first:05}"


def plan(sweep: Sweep, config: GeneratedSentences, concepts: Sequence[Concept]) -> Stage:
    """The stage in which a language model writes the sentences of the concepts."""
    weights = resolve(config.model, config.revision, sweep.models_folder)
    settings = generation.EngineSettings(
        generation.choose_engine(config.engine),
        default_dtype(count_gpus() > 0) if config.dtype == "auto" else config.dtype,
        config.tensor_parallel,
    )
    subjects = _make_subjects(concepts, config, sweep.folder)
    params: dict[str, Any] = {
        "concepts": [list(vars(concept).values()) for concept in concepts],
        "definitions": [subject.definition for subject in subjects],
        "model": weights.model,
        "revision": weights.revision,
        "identity": weights.identity,
        "engine": settings.engine,
        "dtype": settings.dtype,
        "templates": fingerprint(TEMPLATES),
        "concepts_in_unit": CONCEPTS_PER_UNIT,
        "seed": sweep.seed,
        **config.model_dump(
            include={"sentences", "prompts", "at_once", "rounds", "temperature", "language", "source"}
        ),
    }
    params["concept_set"] = make_label(sweep.concept_set, params)
    run = partial(_run, config, list(concepts), subjects, weights, settings)
    return Stage(KIND, sweep.concept_set, params, run)


def _make_subjects(
    concepts: Sequence[Concept], config: GeneratedSentences, base_folder: Path
) -> list[Subject]:
    """The concepts with their definitions: from `sense`, or of the word's first sense in WordNet."""
    folder = wordnet.find_wordnet(base_folder / config.wordnet if config.wordnet else None)
    subjects, unknown = [], []
    for concept in concepts:
        pos = concept.pos or "noun"
        if concept.sense and not wordnet.is_sense_name(concept.sense):
            definition: str | None = concept.sense
        elif folder is None:
            raise UserError(
                f"concepts.words: {concept.name!r} has no definition in the column sense, and WordNet "
                "was not found; install Debian's wordnet-base, or set concepts.wordnet to a folder with "
                "index.noun and data.noun"
            )
        else:
            definition = wordnet.look_up_definition(folder, concept.name, pos, concept.sense)
        if definition:
            subjects.append(Subject(concept.name, pos, definition))
        else:
            unknown.append(f"{concept.name!r} ({concept.sense or pos})")
    if unknown:
        raise UserError(
            f"concepts.words: not in WordNet: {', '.join(unknown)}; define them in the column sense"
        )
    return subjects


def _run(
    config: GeneratedSentences,
    concepts: list[Concept],
    subjects: list[Subject],
    weights: Weights,
    settings: generation.EngineSettings,
    stage: Stage,
    store: Path,
) -> StageOutput:
    # not in plan(): a finished stage can be read where the engine is not installed
    generation.check_engine(settings.engine)
    folder = stage.folder(store)
    words = [concept_word(concept, config.language) for concept in concepts]
    task = GenerationTask(words, config, stage.params["seed"])
    units = [
        GenerationUnit(first, subjects[first : first + CONCEPTS_PER_UNIT])
        for first in range(0, len(subjects), CONCEPTS_PER_UNIT)
    ]
    connect()
    resources, replicas = generation.plan_engines(settings, config.replicas)

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        pending = list(missing)
        remaining = sum(len(unit.subjects) for unit in pending)
        queue: WorkQueue[GenerationUnit, list[dict[str, Any]]] = WorkQueue(
            lambda: generation.GenerationWorker(weights, settings, resources),
            lambda worker, unit: worker.submit(generate_unit, unit, task),
            describe=lambda unit: f"{stage.name}, concepts from {unit.subjects[0].name!r}",
            shrink=lambda unit: unit,
        )
        with progress(stage.name, len(subjects), "concepts", len(subjects) - remaining) as advance:
            for unit, drafts in queue.run(pending, min(replicas, len(pending))):
                yield unit.name, [write_json(folder, f"{DRAFTS_DIR}/{unit.name}.json", drafts)], {}
                advance(len(unit.subjects))

    draft_files, _ = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    drafts = [
        draft
        for record in draft_files
        for draft in json.loads(read_checked(folder / record.path, record.sha256))
    ]
    collected = {
        draft["concept"]: CollectedSentences(
            [text for text, _ in draft["kept"]], Counter(draft["dropped"]), draft["examples"]
        )
        for draft in drafts
    }
    notes = check_enough_sentences(collected, config.sentences, config.min_sentences)
    if not all(draft["chats"] for draft in drafts):
        notes.append(f"{weights.label} has no chat template; it received the prompts as plain text")
    sentences = [
        Sentence(
            text,
            source="generate",
            prompt=kind,
            concepts=(draft["concept"],),
            generator=weights.model,
            revision=weights.revision,
            seed=task.seed,
        )
        for draft in drafts
        for text, kind in draft["kept"]
    ]
    concept_set = ConceptSet(stage.label, concepts, sentences)
    return StageOutput(write_concept_set(stage, store, concept_set, config.language, collected), notes)


def generate_unit(
    engine: generation.Engine, unit: GenerationUnit, task: GenerationTask
) -> list[dict[str, Any]]:
    """Generate the sentences of a unit's concepts, in rounds of requests for the missing sentences.

    Runs in the engine's process. The prompts are determined by the task and the unit.
    """
    config = task.config
    sentence_filter = SentenceFilter(task.words, config.language)
    options = generation.SamplingOptions(_TOKENS_PER_SENTENCE * (config.at_once + 1), config.temperature)
    drafts = [_Draft(index, subject, task) for index, subject in enumerate(unit.subjects, unit.first)]
    for round_number in range(config.rounds):
        requests = [(draft, *prompt) for draft in drafts for prompt in draft.prompts(round_number)]
        if not requests:
            break
        seed = _make_rng(task.seed, unit.first, round_number).getrandbits(31)
        answers = engine.generate([prompt for _, _, prompt in requests], options, seed)
        for (draft, kind, _), answer in zip(requests, answers, strict=True):
            draft.add_answer(kind, answer, sentence_filter)
    return [{**draft.to_json(), "chats": engine.has_chat_template} for draft in drafts]


def _make_rng(*key: str | int) -> random.Random:
    """A random number generator seeded by `key`."""
    return random.Random(" ".join(map(str, key)))  # noqa: S311 - not for cryptography


class _Draft:
    """The accepted sentences of one concept, with the kind of prompt of each."""

    def __init__(self, index: int, subject: Subject, task: GenerationTask) -> None:
        self._index, self._subject, self._task = index, subject, task
        self._collected = CollectedSentences()
        self._kinds: list[str] = []
        kinds = task.config.prompts
        share, extra = divmod(task.config.sentences, len(kinds))
        self._quota: dict[str, int] = {
            kind: share + (number < extra) for number, kind in enumerate(kinds)
        }
        self._requested = 0

    def prompts(self, round_number: int) -> Iterator[tuple[str, str]]:
        """Kind and text of a round's prompts; the lower the acceptance rate so far, the more prompts."""
        count, language = self._task.config.at_once, self._task.config.language
        acceptance_rate = len(self._kinds) / self._requested if self._requested else 1.0
        accepted_per_answer = count * max(acceptance_rate, _MIN_ACCEPTANCE_RATE)
        rng = _make_rng(self._task.seed, self._subject.name, round_number)
        for kind, quota in self._quota.items():
            missing = quota - self._kinds.count(kind)
            for _ in range(math.ceil(missing / accepted_per_answer)):
                self._requested += count
                yield kind, make_prompt(self._subject, kind, count, language, rng)

    def add_answer(self, kind: str, answer: str, sentence_filter: SentenceFilter) -> None:
        """Add the sentences of an answer that pass the filter."""
        missing = self._quota[kind] - self._kinds.count(kind)
        before = len(self._collected.sentences)
        collect_sentences([answer], sentence_filter, [self._index], before + missing, self._collected)
        self._kinds += [kind] * (len(self._collected.sentences) - before)

    def to_json(self) -> dict[str, Any]:
        return {
            "concept": self._subject.name,
            "kept": list(zip(self._collected.sentences, self._kinds, strict=True)),
            "dropped": dict(self._collected.rejected),
            "examples": self._collected.examples,
        }
