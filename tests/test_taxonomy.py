"""WordNet's similarities are compared with neurons as people's are: an edge or a depth that is
miscounted would pass for disagreement. NLTK counts them too, from the same files."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.statistics.taxonomy import taxonomy_similarity
from storage.assets import ASSETS
from storage.readers.taxonomy import Nouns, read_nouns

WORDNET = Path("/usr/share/wordnet")
Read = Callable[[Path], Any]
_POS = ("noun", "verb", "adj", "adv")


@pytest.fixture
def nltks(monkeypatch: pytest.MonkeyPatch) -> Read:
    """NLTK's reader of a folder with WordNet's files, to which it needs one that Debian leaves out."""
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        def map_wn(self, version: str = "wordnet") -> None:
            """It would look for a second WordNet, to map this one's synsets to."""

    def read(folder: Path) -> Any:
        (folder / "lexnames").write_text("".join(f"{number:02}\tname\t1\n" for number in range(45)))
        # it reads nothing outside of its folders
        monkeypatch.setattr(nltk.data, "path", [str(folder)])
        with pytest.warns(UserWarning, match="multilingual"):
            return Reader(str(folder), None)

    return read


def write_wordnet(folder: Path, hypernyms: list[list[int]]) -> None:
    """WordNet's files for the nouns n0, n1, ...; the first is the root."""
    head = "  1 WordNet 3.0 Copyright 2006 by Princeton University.\n"
    at, offsets = len(head), []
    for above in hypernyms:
        offsets.append(at)
        at += len(_data(0, 0, [0] * len(above)))
    lines = [
        _data(number, offsets[number], [offsets[up] for up in above])
        for number, above in enumerate(hypernyms)
    ]
    for pos in _POS:
        (folder / f"data.{pos}").write_text(head)
        (folder / f"index.{pos}").write_text(head)
        (folder / f"{pos}.exc").write_text("")
    (folder / "data.noun").write_text(head + "".join(lines))
    index = [f"n{number:03} n 1 1 @ 1 0 {offset:08}  \n" for number, offset in enumerate(offsets)]
    (folder / "index.noun").write_text(head + "".join(index))
    (folder / "cntlist.rev").write_text("")


def _data(number: int, offset: int, above: list[int]) -> str:
    pointers = " ".join(f"@ {up:08} n 0000" for up in above)
    return f"{offset:08} 03 n 01 n{number:03} 0 {len(above):03} {pointers} | noun {number:03}\n"


def compare(nouns: Nouns, reader: Any, synsets: list[int]) -> float:
    """Both measures of each two synsets against NLTK's paths and depths; returns the share of pairs for
    which NLTK's own Wu-Palmer is the same.

    That one is another number where a noun has several above it: of the common nodes it takes one whose
    shortest way up is longest, not the one that makes the similarity highest, and it may go down to it.
    """
    path = taxonomy_similarity(nouns.hypernyms, synsets, "path")
    wu_palmer = taxonomy_similarity(nouns.hypernyms, synsets, "wu-palmer")
    theirs = [reader.synset_from_pos_and_offset("n", synset) for synset in synsets]
    same = []
    for row, column in itertools.combinations(range(len(synsets)), 2):
        one, other = theirs[row], theirs[column]
        assert path[row, column] == pytest.approx(one.path_similarity(other))
        up = [sorted(each.hypernym_distances(), key=lambda way: -way[1]) for each in (one, other)]
        edges, further = dict(up[0]), dict(up[1])
        found = [
            2 * depth / (2 * depth + edges[common] + further[common])
            for common in one.common_hypernyms(other)
            for depth in [common.max_depth() + 1]
        ]
        assert wu_palmer[row, column] == pytest.approx(max(found))
        same.append(wu_palmer[row, column] == pytest.approx(one.wup_similarity(other)))
    return float(np.mean(same))


@pytest.mark.parametrize("most_above", [1, 3])
def test_similarities_in_random_taxonomies_are_nltks(
    tmp_path: Path, nltks: Read, most_above: int
) -> None:
    """Trees, where both must be the same, and graphs in which a noun has up to three above it."""
    random = np.random.default_rng(most_above)
    hypernyms: list[list[int]] = [[]]
    for number in range(1, 60):
        count = min(number, int(random.integers(1, most_above + 1)))
        hypernyms.append(sorted(random.choice(number, count, replace=False).tolist()))
    write_wordnet(tmp_path, hypernyms)
    nouns, reader = read_nouns(tmp_path), nltks(tmp_path)
    synsets = [nouns.senses[f"n{number:03}"][0] for number in range(60)]
    same = compare(nouns, reader, synsets)
    assert same == 1 if most_above == 1 else 0.5 < same < 1


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs Debian's wordnet-base")
def test_similarities_of_mens_nouns_in_wordnet_are_nltks(tmp_path: Path, nltks: Read) -> None:
    for file in WORDNET.iterdir():
        shutil.copy(file, tmp_path)
    nouns, reader = read_nouns(WORDNET), nltks(tmp_path)
    lines = ASSETS["men"].path().read_text().splitlines()[1:]
    words = sorted({word[:-2] for line in lines for word in line.split(",")[:2] if word.endswith("-n")})
    random = np.random.default_rng(0)
    found = {nouns.synset(str(word), None) for word in random.choice(words, 90, replace=False)}
    assert compare(nouns, reader, [each for each in found if each is not None]) > 0.9
