"""Harvesting sentences of 500 concepts from 1 GB of text, against splitting its lines."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from alignment.text.quality import has_pos
from alignment.text.word_matching import ConceptWord, find_word
from benchmarks.measure import record, run_process
from storage.readers.concepts import read_concepts
from storage.readers.human import builtin_human_set, read_pairs

_BYTES, _CONCEPTS, _SENTENCES = 1_000_000_000, 500, 32
_DEMO = Path(__file__).parent.parent / "examples" / "men-core.csv"
_SLOT = "\0"


def harvest() -> None:
    """The stage, from the start of its process to the committed tables, in MB per CPU second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nouns = _nouns()
        text = folder / "text.txt"
        _write_text(text, nouns)
        (folder / "words.csv").write_text("\n".join(["concept", *nouns]) + "\n")
        (folder / "sweep.yaml").write_text(
            f"concepts: {{source: harvest, words: words.csv, corpus: text.txt, sentences: {_SENTENCES}, "
            "pool: 400}\nmodels: [smollm2-135m-instruct]\n"
        )
        ours, megabytes = run_process(
            [sys.executable, "-m", "jobs.sentences", str(folder / "sweep.yaml")]
        )
        started = time.process_time()
        _split_lines(text)
        theirs = time.process_time() - started
        size = text.stat().st_size / 1e6
    record("harvest", size / ours, size / theirs, "MB/s", "ours at least 20 MB/s, at most 500 MB")
    print(f"{'':16} {_CONCEPTS} concepts x {_SENTENCES} sentences; peak memory {megabytes:.0f} MB")


def _nouns() -> list[str]:
    """The first nouns of MEN that the tagger accepts, without "people", the plural of "person"."""
    pairs = [(pair.first, pair.second) for pair in read_pairs(builtin_human_set("men"))]
    names = {word.removesuffix("-n") for pair in pairs for word in pair if word.endswith("-n")}
    nouns = [noun for noun in sorted(names) if has_pos(f"They saw the {noun} there.", ConceptWord(noun))]
    return [noun for noun in nouns if noun != "people"][:_CONCEPTS]


def _write_text(path: Path, nouns: list[str]) -> None:
    """The demo's sentences repeated up to 1 GB, 8 per paragraph, each time with another noun in place of
    their own, or with a word that is not a concept."""
    templates = []
    for sentence in read_concepts(_DEMO, "demo").sentences:
        text = sentence.text
        for start, end in reversed(find_word(text, sentence.concepts[0])):
            text = text[:start] + _SLOT + text[end:]
        templates.append(text)
    block = (
        "\n\n".join(" ".join(templates[start : start + 8]) for start in range(0, len(templates), 8))
        + "\n\n"
    )
    written = 0
    with path.open("w") as file:
        while written < _BYTES:
            for noun in [*nouns, "gizmo"]:
                written += file.write(block.replace(_SLOT, noun))


def _split_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(len(line.split()) for line in file)
