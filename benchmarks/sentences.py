"""Checking a large concept set that was brought along, against reading its file."""

from __future__ import annotations

import csv
import random
import sys
import tempfile
import time
from pathlib import Path

from alignment.text.quality import lowercase_words
from benchmarks.measure import record, run_process
from storage.readers.concepts import read_concepts

_CONCEPTS, _SENTENCES = 2_000, 125
_WORDS = 8
_DEMO = Path(__file__).parent.parent / "examples" / "men-core.csv"
_TEMPLATES = (
    "Nobody knows why the {} came there with {}.",
    "We drew one {} in a field of {}.",
    "Is that your {}, or mine with {}?",
)


def sentences() -> None:
    """The command `neuralign sentences`, from the start of its process, in CPU seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_concepts(folder / "concepts.csv")
        (folder / "sweep.yaml").write_text("concepts: concepts.csv\nmodels: [smollm2-135m-instruct]\n")
        command = [str(Path(sys.executable).with_name("neuralign")), "sentences", "sweep.yaml"]
        ours, megabytes = run_process(command, folder)
        started = time.process_time()
        with (folder / "concepts.csv").open() as file:
            count = sum(1 for _ in csv.DictReader(file))
        theirs = time.process_time() - started
    record("sentences", ours, theirs, "s", "ours at most 20 s and 600 MB")
    print(f"{'':16} {count:,} sentences of {_CONCEPTS:,} concepts; peak memory {megabytes:.0f} MB")


def _write_concepts(path: Path) -> None:
    """Sentences of random words of the demo's sentences, with words that are concepts among them."""
    demo = read_concepts(_DEMO, "demo").sentences
    vocabulary = sorted({word for sentence in demo for word in lowercase_words(sentence.text)})
    names = vocabulary[:: max(1, len(vocabulary) // _CONCEPTS)][:_CONCEPTS]
    chance = random.Random(0)  # noqa: S311
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["concept", "text"])
        for name in names:
            for number in range(_SENTENCES):
                words = " ".join(chance.choices(vocabulary, k=_WORDS))
                rows.writerow([name, _TEMPLATES[number % len(_TEMPLATES)].format(name, words)])
