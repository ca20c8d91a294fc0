"""Small WordNet databases in WordNet's own format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LICENSE = "  1 This line stands for the license.\n"


@dataclass(frozen=True)
class Synset:
    """A noun synset: its words (separated by spaces), hypernyms (indices of synsets) and gloss."""

    words: str
    hypernyms: Sequence[int] = ()
    gloss: str = ""
    symbol: str = "@"


def write_nouns(folder: Path, synsets: Sequence[Synset]) -> list[int]:
    """Write index.noun and data.noun; returns the offset of each synset."""
    folder.mkdir(exist_ok=True)
    offsets = [0] * len(synsets)
    position = len(LICENSE)
    for index, synset in enumerate(synsets):
        offsets[index] = position
        position += len(_data_line(offsets, index, synset).encode())
    lines = [_data_line(offsets, index, synset) for index, synset in enumerate(synsets)]
    (folder / "data.noun").write_text(LICENSE + "".join(lines))
    senses: dict[str, list[int]] = {}
    for offset, synset in zip(offsets, synsets, strict=True):
        for word in synset.words.split():
            senses.setdefault(word, []).append(offset)
    index_lines = []
    for word, word_offsets in sorted(senses.items()):
        n, listed = len(word_offsets), " ".join(f"{offset:08}" for offset in word_offsets)
        index_lines.append(f"{word} n {n} 1 @ {n} 0 {listed}  \n")
    (folder / "index.noun").write_text(LICENSE + "".join(index_lines))
    return offsets


def _data_line(offsets: Sequence[int], index: int, synset: Synset) -> str:
    words = synset.words.split()
    pointers = "".join(f" {synset.symbol} {offsets[parent]:08} n 0000" for parent in synset.hypernyms)
    return (
        f"{offsets[index]:08} 03 n {len(words):02x} {' 0 '.join(words)} 0 {len(synset.hypernyms):03}"
        f"{pointers} | {synset.gloss}  \n"
    )
