"""A sweep of many models of the hub, of which only the configurations are there, as if downloaded."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def _hub(cache: Path, models: int, revisions: int) -> list[str]:
    """The hub's cache on this machine, with so many revisions of so many models."""
    names = []
    for number in range(models):
        names.append(f"zoo/model-{number}")
        for step in range(revisions):
            add_revision(cache, number, step)
    return names


def add_revision(cache: Path, number: int, step: int) -> None:
    """Add a revision to one of the models."""
    folder = cache / f"models--zoo--model-{number}"
    commit = hashlib.sha1(f"{number} {step}".encode(), usedforsecurity=False).hexdigest()
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / f"step{step}").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    content = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 12,
    }
    (snapshot / "config.json").write_text(json.dumps(content))


def write_study(folder: Path, models: int, revisions: int, concepts: int, each: int) -> Path:
    """A sweep file of all revisions of so many models, over concepts of `each` sentences."""
    names = _hub(folder / "hub", models, revisions)
    with (folder / "concepts.csv").open("w") as sentences:
        rows = csv.writer(sentences)
        rows.writerow(["concept", "domain", "text"])
        for concept in range(concepts):
            for number in range(each):
                text = f"Nobody saw a thing{concept} in the place of number {number} again."
                rows.writerow([f"thing{concept}", f"domain{concept % 27}", text])
    pairs = "".join(f"thing{n},thing{n + 1},{n % 7}\n" for n in range(concepts - 1))
    (folder / "human.csv").write_text(f"a,b,score\n{pairs}")
    listed = "".join(f"  - {{id: {name}, revisions: all, dtype: bfloat16}}\n" for name in names)
    file = folder / "study.yaml"
    file.write_text(
        f"concepts: concepts.csv\nhuman: [{{name: mine, path: human.csv}}]\nmodels:\n{listed}"
    )
    return file


def environment(file: Path) -> dict[str, str]:
    """What a process needs to find the models of a sweep file."""
    return {
        **os.environ,
        "PYTHONPATH": str(_ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(file.parent / "hub"),
    }
