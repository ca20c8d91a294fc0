"""vLLM as an engine of the `sentences` stage. Run by `make test-vllm` in an environment of its own:
`make test` does not collect this file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.runtime.session import disconnected_after
from jobs import planner, sentences
from jobs.config import read_sweep
from jobs.engine.stage import ensure
from storage.store import layout

WORDS = """concept,sense
cat,a small animal with soft fur that people keep at home
airplane,a machine with wings that flies people over long distances
"""


@pytest.mark.filterwarnings("default")
def test_vllm_writes_the_sentences_of_a_sweep(tmp_path: Path) -> None:
    """vLLM in a Ray actor could fail to start, fail at more prompts than it takes in at once, ignore the
    prompt or be given a second BOS; then no sentence would pass the gate."""
    (tmp_path / "words.csv").write_text(WORDS)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "concepts: {source: generate, words: words.csv, model: smollm2-135m-instruct, sentences: 24, "
        "rounds: 1, fewest: 2}\n"
        "models: [smollm2-135m-instruct]\n"
    )
    planned = planner.plan(read_sweep(file))
    (stage,) = planned.stages
    assert stage.params["engine"] == "vllm"
    store = layout.create(planned.sweep.store_path)
    with disconnected_after():
        ensure(stage, store)
    made = sentences.read_set(stage, store)
    assert set(made.counts()) == {"cat", "airplane"}
    assert {each.prompt for each in made.sentences} == {"fact", "story"}
    assert not any(each.flags for each in made.sentences)
    print("\n".join(each.text for each in made.sentences))
