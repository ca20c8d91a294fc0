"""WordNet's similarities are compared with neurons as human ones are: a miscounted edge or depth would
look like disagreement. NLTK computes them too, from the same files."""

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
from storage.readers.wordnet import find_noun, read_hypernyms
from tests.wordnet_files import LICENSE, Synset, write_nouns

WORDNET = Path("/usr/share/wordnet")
ReadWithNltk = Callable[[Path], Any]


@pytest.fixture
def read_with_nltk(monkeypatch: pytest.MonkeyPatch) -> ReadWithNltk:
    """NLTK's WordNet reader, which needs the file lexnames, not included by Debian."""
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        def map_wn(self, version: str = "wordnet") -> None:
            """Skip the mapping to a second WordNet."""

    def read(folder: Path) -> Any:
        (folder / "lexnames").write_text("".join(f"{number:02}\tname\t1\n" for number in range(45)))
        # NLTK reads only from its own folders
        monkeypatch.setattr(nltk.data, "path", [str(folder)])
        with pytest.warns(UserWarning, match="multilingual"):
            return Reader(str(folder), None)

    return read


def compare_with_nltk(folder: Path, reader: Any, synsets: list[int]) -> float:
    """Check both measures with NLTK's paths and depths; returns how often NLTK's Wu-Palmer is equal.

    It differs where a noun has several hypernyms: NLTK uses the common ancestor whose shortest path to
    the root is longest, not the one that maximizes the similarity, and its path may go down to it.
    """
    hypernyms = read_hypernyms(folder, synsets)
    path = taxonomy_similarity(hypernyms, synsets, "path")
    wu_palmer = taxonomy_similarity(hypernyms, synsets, "wu-palmer")
    nltk_synsets = [reader.synset_from_pos_and_offset("n", synset) for synset in synsets]
    is_equal = []
    for row, column in itertools.combinations(range(len(synsets)), 2):
        first, second = nltk_synsets[row], nltk_synsets[column]
        assert path[row, column] == pytest.approx(first.path_similarity(second))
        first_edges, second_edges = (
            dict(sorted(synset.hypernym_distances(), key=lambda distance: -distance[1]))
            for synset in (first, second)
        )
        expected = [
            2 * depth / (2 * depth + first_edges[common] + second_edges[common])
            for common in first.common_hypernyms(second)
            for depth in [common.max_depth() + 1]
        ]
        assert wu_palmer[row, column] == pytest.approx(max(expected))
        is_equal.append(wu_palmer[row, column] == pytest.approx(first.wup_similarity(second)))
    return float(np.mean(is_equal))


@pytest.mark.parametrize("max_hypernyms", [1, 3])
def test_similarities_in_random_taxonomies_equal_nltks(
    tmp_path: Path, read_with_nltk: ReadWithNltk, max_hypernyms: int
) -> None:
    """Multiple inheritance would break them: trees, which must agree fully, and graphs."""
    random = np.random.default_rng(max_hypernyms)
    synsets = [Synset("n000", gloss="root")]
    for number in range(1, 60):
        count = min(number, int(random.integers(1, max_hypernyms + 1)))
        hypernyms = sorted(random.choice(number, count, replace=False).tolist())
        synsets.append(Synset(f"n{number:03}", hypernyms, f"noun {number:03}"))
    offsets = write_nouns(tmp_path, synsets)
    for pos in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"{pos}.exc").write_text("")
        if pos != "noun":
            (tmp_path / f"data.{pos}").write_text(LICENSE)
            (tmp_path / f"index.{pos}").write_text(LICENSE)
    (tmp_path / "cntlist.rev").write_text("")
    assert [find_noun(tmp_path, synset.words, None) for synset in synsets] == offsets
    share = compare_with_nltk(tmp_path, read_with_nltk(tmp_path), offsets)
    assert share == 1 if max_hypernyms == 1 else 0.5 < share < 1


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs Debian's wordnet-base")
def test_similarities_of_mens_nouns_in_wordnet_equal_nltks(
    tmp_path: Path, read_with_nltk: ReadWithNltk
) -> None:
    """A full release may hold what the small ones do not."""
    for file in WORDNET.iterdir():
        shutil.copy(file, tmp_path)
    lines = ASSETS["men"].path().read_text().splitlines()[1:]
    words = sorted({word[:-2] for line in lines for word in line.split(",")[:2] if word.endswith("-n")})
    random = np.random.default_rng(0)
    synsets = {find_noun(WORDNET, str(word), None) for word in random.choice(words, 90, replace=False)}
    present = [synset for synset in synsets if synset is not None]
    assert compare_with_nltk(WORDNET, read_with_nltk(tmp_path), present) > 0.9
