"""Stage `sentences` by a language model: asked again, concept by concept, until enough are kept."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.text.quality import Collected, Gate, collect
from alignment.text.word_matching import Word
from cluster.models.generation import (
    Engine,
    Settings,
    Writer,
    Writing,
    check_engine,
    choose_engine,
    place_writers,
)
from cluster.models.weights import Weights, resolve
from cluster.runtime.devices import native_dtype
from jobs.config import Generate, Sweep
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Stage, run_missing_units
from jobs.sentences import KIND, label_of, short_of, word_of, write
from jobs.sources.prompts import TEMPLATES, Subject, prompt
from storage.errors import UserError
from storage.readers import wordnet
from storage.readers.concepts import Concept, ConceptSet, Sentence
from storage.store.commit import FileRecord, write_json
from storage.store.fingerprint import fingerprint

DRAFTS = "drafts"
CONCEPTS_IN_UNIT = 16
_TOKENS_A_SENTENCE = 32
_LEAST_KEPT = 0.25
"""The share of sentences that is reckoned to be kept, at the least, when asking again."""


@dataclass(frozen=True)
class Task:
    """What is asked for: the same for all units."""

    words: tuple[Word, ...]
    kinds: list[str]
    sentences: int
    at_once: int
    rounds: int
    temperature: float
    language: str
    seed: int


@dataclass(frozen=True)
class Unit:
    """Some of the concepts, by their numbers."""

    first: int
    subjects: list[Subject]

    @property
    def name(self) -> str:
        return f"{self.first:05}"


def plan(sweep: Sweep, wanted: Generate, concepts: Sequence[Concept]) -> Stage:
    """The stage in which the sweep's model writes the sentences of the concepts."""
    weights = resolve(wanted.model, wanted.revision, sweep.models_folder)
    settings = Settings(
        choose_engine(wanted.engine),
        native_dtype() if wanted.dtype == "auto" else wanted.dtype,
        wanted.tensor_parallel,
    )
    subjects = _subjects(concepts, wanted, sweep.folder)
    params: dict[str, Any] = {
        "concepts": [list(vars(concept).values()) for concept in concepts],
        "definitions": [subject.definition for subject in subjects],
        "model": weights.model,
        "revision": weights.revision,
        "identity": weights.identity,
        "engine": settings.engine,
        "dtype": settings.dtype,
        "templates": fingerprint(TEMPLATES),
        "concepts_in_unit": CONCEPTS_IN_UNIT,
        "seed": sweep.seed,
        **wanted.model_dump(
            include={"sentences", "prompts", "at_once", "rounds", "temperature", "language", "source"}
        ),
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, wanted, list(concepts), subjects, weights, settings)

    params["concept_set"] = label_of(sweep.concept_set, params)
    return Stage(KIND, sweep.concept_set, params, run)


def _subjects(concepts: Sequence[Concept], wanted: Generate, beside: Path) -> list[Subject]:
    """What each concept means: as its `sense` says, or its first sense in WordNet."""
    folder = wordnet.find_folder(beside / wanted.wordnet if wanted.wordnet else None)
    subjects, unknown = [], []
    for concept in concepts:
        pos = concept.pos or "noun"
        if concept.sense and not wordnet.is_sense(concept.sense):
            definition: str | None = concept.sense
        elif folder is None:
            raise UserError(
                f"concepts.words: {concept.name!r} has no definition in the column sense, and there is "
                "no WordNet to look it up in; install Debian's wordnet-base, or name a folder with "
                "index.noun and data.noun in concepts.wordnet"
            )
        else:
            definition = wordnet.define(folder, concept.name, pos, concept.sense)
        if definition:
            subjects.append(Subject(concept.name, pos, definition))
        else:
            unknown.append(f"{concept.name!r} ({concept.sense or pos})")
    if unknown:
        raise UserError(
            f"concepts.words: WordNet does not know {', '.join(unknown)}; "
            "define them in the column sense"
        )
    return subjects


def _run(
    stage: Stage,
    store: Path,
    wanted: Generate,
    concepts: list[Concept],
    subjects: list[Subject],
    weights: Weights,
    settings: Settings,
) -> Outcome:
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect

    # not when it is planned: a finished set is read where there is no such engine
    check_engine(settings.engine)
    folder = stage.folder(store)
    words = tuple(word_of(concept, wanted.language) for concept in concepts)
    task = Task(
        words,
        list(wanted.prompts),
        wanted.sentences,
        wanted.at_once,
        wanted.rounds,
        wanted.temperature,
        wanted.language,
        stage.params["seed"],
    )
    units = {
        unit.name: unit
        for unit in (
            Unit(first, subjects[first : first + CONCEPTS_IN_UNIT])
            for first in range(0, len(subjects), CONCEPTS_IN_UNIT)
        )
    }
    connect()
    resources, replicas = place_writers(settings, wanted.replicas)

    def start() -> Writer:
        return Writer(weights, settings, resources)

    def submit(writer: Writer, unit: Unit) -> Any:
        return writer.submit(write_unit, unit, task)

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        todo = list(missing)
        left = sum(len(unit.subjects) for unit in todo)
        queue: WorkQueue[Unit, list[dict[str, Any]]] = WorkQueue(
            start, submit, lambda unit: f"{stage.name}, concepts from {unit.subjects[0].name!r}", _same
        )
        with progress(stage.name, len(subjects), "concepts", len(subjects) - left) as advance:
            for unit, drafts in queue.run(todo, min(replicas, len(todo))):
                yield unit.name, [write_json(folder, f"{DRAFTS}/{unit.name}.json", drafts)], {}
                advance(len(unit.subjects))

    run_missing_units(folder, units, run)
    drafts = [
        draft for name in units for draft in json.loads((folder / DRAFTS / f"{name}.json").read_text())
    ]
    collected = {
        draft["concept"]: Collected(
            [text for text, _ in draft["kept"]], Counter(draft["dropped"]), draft["examples"]
        )
        for draft in drafts
    }
    notes = short_of(collected, wanted.sentences, wanted.needed)
    if not all(draft["chats"] for draft in drafts):
        notes.append(f"{weights.label} has no chat template: it was given the prompts as plain text")
    sentences = [
        Sentence(
            text,
            source="generate",
            prompt=kind,
            concepts=[draft["concept"]],
            generator=weights.model,
            revision=weights.revision,
            seed=task.seed,
        )
        for draft in drafts
        for text, kind in draft["kept"]
    ]
    made = ConceptSet(stage.label, concepts, sentences)
    return Outcome(write(stage, store, made, wanted.language, collected), notes)


def _same(unit: Unit) -> Unit:
    return unit


def write_unit(engine: Engine, unit: Unit, task: Task) -> list[dict[str, Any]]:
    """The sentences of a unit's concepts: asked for in rounds, each for what is still missing.

    Runs beside the engine. What is asked depends on the task and the unit alone.
    """
    gate = Gate(task.words, task.language)
    drafts = [_Draft(unit.first + place, subject, task) for place, subject in enumerate(unit.subjects)]
    for number in range(task.rounds):
        asked = [(draft, kind, text) for draft in drafts for kind, text in draft.prompts(number)]
        if not asked:
            break
        seed = _random(task.seed, unit.first, number).getrandbits(31)
        longest = _TOKENS_A_SENTENCE * (task.at_once + 1)
        written = engine.write([text for _, _, text in asked], Writing(longest, task.temperature), seed)
        for (draft, kind, _), text in zip(asked, written, strict=True):
            draft.take(kind, text, gate)
    return [{**draft.result(), "chats": engine.chats} for draft in drafts]


def _random(*what: str | int) -> random.Random:
    """Numbers that depend on what is given alone."""
    return random.Random(" ".join(map(str, what)))  # noqa: S311 - nothing is kept secret with it


class _Draft:
    """The sentences of one concept so far."""

    def __init__(self, number: int, subject: Subject, task: Task) -> None:
        self._number, self._subject, self._task = number, subject, task
        self._collected = Collected()
        self._kinds: list[str] = []
        share, rest = divmod(task.sentences, len(task.kinds))
        self._quota = {kind: share + (place < rest) for place, kind in enumerate(task.kinds)}
        self._asked = 0

    def prompts(self, number: int) -> Iterator[tuple[str, str]]:
        """Kind and text of the prompts of a round: more where few of the answers were kept so far."""
        kept = len(self._kinds) / self._asked if self._asked else 1.0
        an_answer = self._task.at_once * max(kept, _LEAST_KEPT)
        turns = _random(self._task.seed, self._subject.name, number)
        count, language = self._task.at_once, self._task.language
        for kind, quota in self._quota.items():
            missing = quota - self._kinds.count(kind)
            for _ in range(math.ceil(missing / an_answer)):
                self._asked += count
                yield kind, prompt(self._subject, kind, count, language, turns)

    def take(self, kind: str, text: str, gate: Gate) -> None:
        """Keep what is good of an answer."""
        missing = self._quota[kind] - self._kinds.count(kind)
        before = len(self._collected.kept)
        collect([text], gate, [self._number], before + missing, self._collected)
        self._kinds += [kind] * (len(self._collected.kept) - before)

    def result(self) -> dict[str, Any]:
        return {
            "concept": self._subject.name,
            "kept": list(zip(self._collected.kept, self._kinds, strict=True)),
            "dropped": dict(self._collected.dropped),
            "examples": self._collected.examples,
        }
