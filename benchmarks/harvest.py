"""Harvesting the sentences of 500 concepts from 1 GB of text against splitting its lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from alignment.harvest import Sampler
from alignment.quality import Gate, collect
from alignment.words import Word, WordFinder
from benchmarks.measure import record, seconds
from jobs.harvest import DRAWN_PER_WANTED
from storage.concepts import read_concepts
from storage.corpus import Unreadable, read_pieces
from storage.human import known_set, read_pairs

_BYTES, _CONCEPTS, _SENTENCES = 1_000_000_000, 500, 32
_DEMO = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


def harvest() -> None:
    """One process, one thread: from the file to the sentences that pass the gate, in MB/s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        _write_text(path)
        # a process of its own, so that its memory is that of a harvest
        command = [sys.executable, "-m", "benchmarks.harvest", str(path)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        ours, kept, megabytes = json.loads(told)
        theirs = seconds(lambda: _split_lines(path))
        size = path.stat().st_size / 1e6
    record("harvest", size / ours, size / theirs, "MB/s", "ours at least 20 MB/s, at most 500 MB")
    print(f"{'':16} {kept:,} sentences kept of {_CONCEPTS} concepts; {megabytes:.0f} MB at most")


def _write_text(path: Path) -> None:
    """The demo's sentences over and over, 8 in a paragraph, until it is 1 GB."""
    texts = [each.text for each in read_concepts(_DEMO, "demo").sentences]
    paragraphs = [" ".join(texts[at : at + 8]) for at in range(0, len(texts), 8)]
    block = ("\n\n".join(paragraphs) + "\n\n").encode()
    with path.open("wb") as file:
        for _ in range(-(-_BYTES // len(block))):
            file.write(block)


def _measure_ours(path: Path) -> tuple[float, int, float]:
    """Seconds, sentences kept, and the most memory that the process held, in MB."""
    kept = 0

    def work() -> None:
        nonlocal kept
        pairs = [(pair.first, pair.second) for pair in read_pairs(known_set("men"))]
        nouns = [pair for pair in pairs if all(word.endswith("-n") for word in pair)]
        names = {word.removesuffix("-n") for pair in nouns for word in pair}
        words = [Word(name) for name in sorted(names)[:_CONCEPTS]]
        sampler = Sampler(WordFinder(words), _SENTENCES * DRAWN_PER_WANTED)
        for piece in read_pieces(path, "text", Unreadable()):
            sampler.feed(piece)
        gate = Gate(words)
        for number in range(len(words)):
            kept += len(collect(sampler.of_word(number), gate, [number], _SENTENCES).kept)

    taken = seconds(work)
    return taken, kept, _most_memory()


def _most_memory() -> float:
    """The most memory that this process held, in MB; what getrusage tells may be that of its parent."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    return int(kilobytes) / 1e3


def _split_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(len(line.split()) for line in file)


if __name__ == "__main__":
    print(json.dumps(_measure_ours(Path(sys.argv[1]))))
