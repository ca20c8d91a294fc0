"""Writing sentences with vLLM against transformers' `generate`: the same model, prompts and machine.

Needs vLLM: `make bench ONLY=generate` runs it in the environment of `make test-vllm`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import record, seconds
from jobs import generate as stage_module
from jobs import sweep
from jobs.config import read_sweep
from jobs.stage import ensure
from storage import layout
from storage.concepts import read_concepts
from storage.errors import WorkFailed

_CONCEPTS, _SENTENCES = 64, 32
_DEMO = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


def generate() -> None:
    """64 concepts x 32 sentences, asked for once each, from the start of the engine: sentences kept a
    second on all cores."""
    ours, ours_kept = _in_a_process_of_its_own("vllm")
    theirs, theirs_kept = _in_a_process_of_its_own("transformers")
    record("generate", ours_kept / ours, theirs_kept / theirs, "sentences/s", "none")
    asked = _CONCEPTS * _SENTENCES
    for name, taken, kept in (("vllm", ours, ours_kept), ("transformers", theirs, theirs_kept)):
        print(f"{'':16} {name}: {asked / taken:.2f} asked for a second, {kept / asked:.0%} kept")


def _in_a_process_of_its_own(engine: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "benchmarks.generate", engine]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    taken, kept = json.loads(told.splitlines()[-1])
    return taken, kept


def _measure(engine: str) -> tuple[float, int]:
    """Seconds, and sentences kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        concepts = read_concepts(_DEMO, "demo").concepts[:_CONCEPTS]
        rows = [f"{concept.name},a kind of {concept.domain or 'thing'}" for concept in concepts]
        (folder / "words.csv").write_text("\n".join(["concept,sense", *rows]) + "\n")
        file = folder / "sweep.yaml"
        file.write_text(
            f"concepts: {{source: generate, words: words.csv, model: smollm2-135m-instruct, "
            f"sentences: {_SENTENCES}, rounds: 1, engine: {engine}}}\nmodels: [smollm2-135m-instruct]\n"
        )
        planned = sweep.plan(read_sweep(file))
        (stage,) = planned.stages
        store = layout.create(planned.sweep.store_path)

        def work() -> None:
            try:
                ensure(stage, store)
            except WorkFailed as failed:
                # one round is not enough for all concepts; any other failure is one
                if "have fewer than" not in failed.summary:
                    raise

        taken = seconds(work)
        drafts = (stage.folder(store) / stage_module.DRAFTS).glob("*.json")
        kept = sum(len(draft["kept"]) for path in drafts for draft in json.loads(path.read_text()))
    return taken, kept


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
