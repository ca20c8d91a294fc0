"""Writing sentences with vLLM against transformers' `generate`: the same model, prompts and machine.

Needs vLLM: `make bench ONLY=generate` runs it in the environment of `make test-vllm`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray

from alignment.text.word_matching import Word
from benchmarks.measure import record
from cluster.models.generation import TRANSFORMERS, VLLM, EngineName, Settings, Writer
from cluster.models.weights import resolve
from cluster.runtime.devices import native_dtype
from jobs.sources.generate import Task, Unit, write_unit
from jobs.sources.prompts import FACT, STORY, Subject
from storage.readers.concepts import read_concepts

_MODEL = "smollm2-135m-instruct"
_CONCEPTS, _SENTENCES, _IN_SLICE = 64, 32, 16
_DEMO = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


def generate() -> None:
    """64 concepts x 32 sentences, asked for once each, on all cores; the engines, which are started
    before, take turns at 16 concepts: sentences kept a second."""
    concepts = read_concepts(_DEMO, "demo").concepts[:_CONCEPTS]
    words = tuple(Word(concept.name) for concept in concepts)
    task = Task(
        words, [FACT, STORY], _SENTENCES, at_once=1, rounds=1, temperature=0.8, language="en", seed=0
    )
    subjects = [Subject(each.name, "noun", f"a kind of {each.domain}") for each in concepts]
    taken: dict[EngineName, float] = {VLLM: 0.0, TRANSFORMERS: 0.0}
    kept = dict.fromkeys(taken, 0)
    cores = os.cpu_count() or 1
    # for Ray each core is there twice: the engines take turns
    ray.init(address="local", num_cpus=2 * cores, include_dashboard=False, log_to_driver=False)
    # vLLM uses all cores by itself; of the other engine one runs on each
    engines = {VLLM: _start(VLLM, 1, cores), TRANSFORMERS: _start(TRANSFORMERS, cores, 1)}
    for first in range(0, _CONCEPTS, _IN_SLICE):
        for name, writers in engines.items():
            started = time.perf_counter()
            drafts = _write(writers, first, subjects[first : first + _IN_SLICE], task)
            taken[name] += time.perf_counter() - started
            kept[name] += sum(len(draft["kept"]) for draft in drafts)
            print(
                f"{name}: {first + len(drafts)} concepts, {taken[name]:.0f} s, {kept[name]} kept",
                flush=True,
            )
    ray.shutdown()
    record(
        "generate",
        kept[VLLM] / taken[VLLM],
        kept[TRANSFORMERS] / taken[TRANSFORMERS],
        "sentences/s",
        "none",
    )
    for name, seconds in taken.items():
        rate = _CONCEPTS * _SENTENCES / seconds
        print(f"{'':16} {name}: {rate:.2f} asked for a second, {kept[name] / rate / seconds:.0%} kept")


def _start(engine: EngineName, number: int, cores: int) -> list[Writer]:
    """Engines that have written something."""
    started = time.perf_counter()
    weights, settings = resolve(_MODEL, "main", Path()), Settings(engine, native_dtype())
    writers = [Writer(weights, settings, {"CPU": float(cores)}) for _ in range(number)]
    subjects = [Subject("cat", "noun", "a small animal")] * number
    _write(writers, 0, subjects, Task((Word("cat"),) * number, [FACT], 1, 1, 1, 0.8, "en", 0))
    print(f"{engine}: the first sentence after {time.perf_counter() - started:.0f} s", flush=True)
    return writers


def _write(
    writers: list[Writer], first: int, subjects: list[Subject], task: Task
) -> list[dict[str, Any]]:
    """What the engines write of the concepts, each its share of these."""
    size = -(-len(subjects) // len(writers))
    units = [Unit(first + at, subjects[at : at + size]) for at in range(0, len(subjects), size)]
    asked = zip(writers, units, strict=True)
    written = ray.get([writer.submit(write_unit, unit, task) for writer, unit in asked])
    return [draft for drafts in written for draft in drafts]
