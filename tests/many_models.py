"""A sweep of many models from the Hugging Face Hub, with only their configurations in the cache."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def _hub(cache: Path, models: int, revisions: int) -> list[str]:
    """Fill a Hub cache with the given numbers of models and revisions; return the models' ids."""
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


def write_study(folder: Path, models: int, revisions: int, concepts: int, sentences: int) -> Path:
    """Write a sweep of all revisions of the models, with `sentences` sentences per concept."""
    names = _hub(folder / "hub", models, revisions)
    with (folder / "concepts.csv").open("w") as table:
        rows = csv.writer(table)
        rows.writerow(["concept", "domain", "text"])
        for concept in range(concepts):
            for number in range(sentences):
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
    """Environment variables with which a process finds the models of a sweep file."""
    return {
        **os.environ,
        "PYTHONPATH": str(_ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(file.parent / "hub"),
    }
