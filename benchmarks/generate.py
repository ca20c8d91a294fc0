"""Generating sentences with vLLM and with transformers: the same model, prompts and machine.

Needs vLLM: `make bench ONLY=generate` runs it in the environment of `make test-vllm`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray

from alignment.text.word_matching import ConceptWord
from benchmarks.measure import record
from cluster.models.generation import TRANSFORMERS, VLLM, EngineName, EngineSettings, GenerationWorker
from cluster.models.weights import resolve
from cluster.runtime.devices import count_gpus, default_dtype
from jobs.config.concepts import GeneratedSentences
from jobs.sources.generate import GenerationTask, GenerationUnit, generate_unit
from jobs.sources.prompts import Subject
from storage.readers.concepts import read_concepts

_MODEL = "smollm2-135m-instruct"
_CONCEPTS, _SENTENCES, _IN_SLICE = 64, 32, 16
_DEMO = Path(__file__).parent.parent / "examples" / "men-core.csv"


def generate() -> None:
    """64 concepts x 32 sentences in one round on all cores; the engines are started first and alternate
    every 16 concepts: accepted sentences per second."""
    concepts = read_concepts(_DEMO, "demo").concepts[:_CONCEPTS]
    task = _make_task([concept.name for concept in concepts], _SENTENCES)
    subjects = [Subject(row.name, "noun", f"a kind of {row.domain}") for row in concepts]
    spent: dict[EngineName, float] = {VLLM: 0.0, TRANSFORMERS: 0.0}
    accepted = dict.fromkeys(spent, 0)
    cores = os.cpu_count() or 1
    # Ray counts each core twice because the engines alternate
    ray.init(address="local", num_cpus=2 * cores, include_dashboard=False, log_to_driver=False)
    # one vLLM engine uses all cores; transformers gets one worker per core
    engines = {VLLM: _start(VLLM, 1, cores), TRANSFORMERS: _start(TRANSFORMERS, cores, 1)}
    for first in range(0, _CONCEPTS, _IN_SLICE):
        for name, writers in engines.items():
            started = time.perf_counter()
            drafts = _write(writers, first, subjects[first : first + _IN_SLICE], task)
            spent[name] += time.perf_counter() - started
            accepted[name] += sum(len(draft["kept"]) for draft in drafts)
            print(
                f"{name}: {first + len(drafts)} concepts, {spent[name]:.0f} s, "
                f"{accepted[name]} accepted",
                flush=True,
            )
    ray.shutdown()
    record(
        "generate",
        accepted[VLLM] / spent[VLLM],
        accepted[TRANSFORMERS] / spent[TRANSFORMERS],
        "sentences/s",
        "none",
    )
    for name, seconds in spent.items():
        rate = _CONCEPTS * _SENTENCES / seconds
        print(
            f"{'':16} {name}: {rate:.2f} requested per second, "
            f"{accepted[name] / rate / seconds:.0%} accepted"
        )


def _make_task(words: list[str], sentences: int) -> GenerationTask:
    config = GeneratedSentences(
        source="generate", words=words, model=_MODEL, sentences=sentences, rounds=1
    )
    return GenerationTask([ConceptWord(word) for word in words], config, seed=0)


def _start(engine: EngineName, number: int, cores: int) -> list[GenerationWorker]:
    """Start engines and generate two sentences with each."""
    started = time.perf_counter()
    settings = EngineSettings(engine, default_dtype(count_gpus() > 0))
    weights = resolve(_MODEL, "main", Path())
    writers = [GenerationWorker(weights, settings, {"CPU": float(cores)}) for _ in range(number)]
    subjects = [Subject("cat", "noun", "a small animal")] * number
    _write(writers, 0, subjects, _make_task(["cat"] * number, 2))
    print(f"{engine}: the first sentences after {time.perf_counter() - started:.0f} s", flush=True)
    return writers


def _write(
    writers: list[GenerationWorker], first: int, subjects: list[Subject], task: GenerationTask
) -> list[dict[str, Any]]:
    """Generate sentences of the concepts, split evenly over the engines."""
    size = -(-len(subjects) // len(writers))
    units = [
        GenerationUnit(first + start, subjects[start : start + size])
        for start in range(0, len(subjects), size)
    ]
    assignments = zip(writers, units, strict=True)
    written = ray.get([writer.submit(generate_unit, unit, task) for writer, unit in assignments])
    return [draft for drafts in written for draft in drafts]
