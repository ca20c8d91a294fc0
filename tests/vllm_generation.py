"""Tests vLLM as an engine of the `sentences` stage.

Run by `make test-vllm` in a separate environment; `make test` does not collect this file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.runtime.session import shutdown_on_exit
from jobs import planner, sentences
from jobs.config.loader import read_sweep
from jobs.engine.stage import run_if_needed
from storage.store import layout

WORDS = """concept,sense
cat,a small animal with soft fur that people keep at home
airplane,a machine with wings that flies people over long distances
"""


@pytest.mark.filterwarnings("default")
def test_vllm_generates_the_sentences_of_a_sweep(tmp_path: Path) -> None:
    """vLLM in a Ray actor could fail to start, fail with more prompts than a batch, ignore the prompt
    or add a second BOS; then no sentence would pass the filter."""
    (tmp_path / "words.csv").write_text(WORDS)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "concepts: {source: generate, words: words.csv, model: smollm2-135m-instruct, sentences: 24, "
        "rounds: 1, fewest: 2}\n"
        "models: [smollm2-135m-instruct]\n"
    )
    planned = planner.plan_sweep(read_sweep(file))
    (stage,) = planned.stages
    assert stage.params["engine"] == "vllm"
    store = layout.create_store(planned.sweep.store_path)
    with shutdown_on_exit():
        run_if_needed(stage, store)
    concept_set = sentences.read_concept_set(stage, store)
    assert set(concept_set.count_sentences()) == {"cat", "airplane"}
    assert {sentence.prompt for sentence in concept_set.sentences} == {"fact", "story"}
    assert not any(sentence.flags for sentence in concept_set.sentences)
    print("\n".join(sentence.text for sentence in concept_set.sentences))
