"""Files of published human data in their own layout: a reader of another layout would give other
numbers, or none, without the user knowing."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from jobs.config.comparison import HumanData
from jobs.sources.human_judgments import Judgments, load_judgments
from storage.errors import UserError
from storage.readers.published_sets import PUBLISHED_FORMATS, PublishedFormatName
from tests import tiny
from tests.commands import neuralign

CONCEPTS = ["cat", "dog", "sea lion"]


def judge(folder: Path, format_name: PublishedFormatName, **options: str) -> Judgments:
    """The judgments of CONCEPTS in the file of a format."""
    human = HumanData.model_validate(
        {"name": "mine", "path": "published", "format": format_name, **options}
    )
    return load_judgments(human.resolve(folder), CONCEPTS)


def cosine(first: dict[str, float], second: dict[str, float]) -> float:
    product = sum(value * second.get(name, 0) for name, value in first.items())
    lengths = [math.sqrt(sum(value**2 for value in row.values())) for row in (first, second)]
    return product / (lengths[0] * lengths[1])


def test_things_has_the_published_probabilities_of_choice(tmp_path: Path) -> None:
    """THINGS's embedding has no names, and its similarity is no cosine: all other objects count."""
    random = np.random.default_rng(0)
    rows = random.exponential(size=(6, 4)) * (random.random((6, 4)) < 0.6)
    names = ["aardvark", "cat", "bat1", "dog", "sea_lion", "zucchini"]
    np.savetxt(tmp_path / "published", rows, fmt="%.6f")
    (tmp_path / "unique_id.txt").write_text("\n".join(names) + "\n")
    judgments = judge(tmp_path, "things", items="unique_id.txt")
    rounded = np.loadtxt(tmp_path / "published")
    for first, second in itertools.combinations(("cat", "dog", "sea_lion"), 2):
        a, b = names.index(first), names.index(second)
        choices = []
        for k in set(range(6)) - {a, b}:
            pairs = [math.exp(rounded[i] @ rounded[j]) for i, j in ((a, b), (a, k), (b, k))]
            choices.append(pairs[0] / sum(pairs))
        pair = (first.replace("_", " "), second.replace("_", " "))
        assert judgments.scores[pair] == pytest.approx(np.mean(choices), abs=1e-12)
    assert [item.words for item in judgments.dropped] == [("aardvark",), ("bat1",), ("zucchini",)]


def test_leuven_has_a_row_per_exemplar(tmp_path: Path) -> None:
    """The names of features contain commas, apostrophes and parentheses."""
    (tmp_path / "published").write_text(
        'exemplar,barks,"as the saying goes, ""wet""",can\'t fly,chirps (tsjilpt)\n'
        "ant,0,0,0,0\ncat,0,1,4,0\ndog,4,2,4,0\nsea lion,3,0,4,1\n"
    )
    judgments = judge(tmp_path, "leuven")
    rows = {"cat": [0, 1, 4, 0], "dog": [4, 2, 4, 0], "sea lion": [3, 0, 4, 1]}
    for (a, first), (b, second) in itertools.combinations(rows.items(), 2):
        expected = cosine(*(dict(zip("wxyz", map(float, row), strict=True)) for row in (first, second)))
        assert judgments.scores[a, b] == pytest.approx(expected, abs=1e-12)


def test_mcrae_counts_the_people_who_listed_a_feature(tmp_path: Path) -> None:
    """Of its many numbers per row, only the production frequency is a feature's."""
    header = "Concept Feature WB_Label WB_Maj WB_Min BR_Label Prod_Freq Rank_PF Sum_PF_No_Tax"
    features = {
        "cat": {"beh_-_meows": 22.0, "an_animal": 14.0, "has_fur": 20.0},
        "dog": {"an_animal": 18.0, "has_fur": 11.0, "beh_-_barks": 30.0},
        "sea_lion": {"an_animal": 5.0, "lives_in_water": 9.0},
        "bat_(animal)": {"beh_-_flies": 25.0},
    }
    rows = [
        (concept, feature, "beh", "e", "beh", "visual-motion", f"{count:.0f}", str(rank), "77")
        for concept, counts in features.items()
        for rank, (feature, count) in enumerate(counts.items(), 1)
    ]
    text = "\r\n".join("\t".join(row) for row in (header.split(), *rows))
    (tmp_path / "published").write_bytes(text.encode())
    judgments = judge(tmp_path, "mcrae")
    for a, b in itertools.combinations(("cat", "dog", "sea_lion"), 2):
        pair = (a.replace("_", " "), b.replace("_", " "))
        assert judgments.scores[pair] == pytest.approx(cosine(features[a], features[b]), abs=1e-12)
    # The animal or the club: people rated one meaning, so the word alone is not matched.
    assert [item.words for item in judgments.dropped] == [("bat_(animal)",)]


SWOW = (
    "cue\tresponse\tR123\tN\tR123.Strength\n"
    "ant\t\t1\t2\t0.5\n"
    'cat\tdog\t60\t100\t0.6\ncat\t"\t30\t100\t0.3\ncat\t\t10\t100\t0.1\n'
    "dog\tcat\t40\t80\t0.5\ndog\tb'gosh\t24\t80\t0.3\ndog\tnone\t16\t80\t0.2\n"
    'sea lion\tdog\t10\t40\t0.25\nsea lion\t"\t10\t40\t0.25\nsea lion\tnone\t20\t40\t0.5\n'
)


def test_swow_is_read_without_quotes_and_with_an_empty_response(tmp_path: Path) -> None:
    """R wrote the file without quotes: a quotation mark would join lines, and the words none and na, or
    an empty response, which the file has, would stop the run."""
    (tmp_path / "published").write_text(SWOW)
    judgments = judge(tmp_path, "swow")
    strengths = {
        "cat": {"dog": 0.6, '"': 0.3},
        "dog": {"cat": 0.5, "b'gosh": 0.3, "none": 0.2},
        "sea lion": {"dog": 0.25, '"': 0.25, "none": 0.5},
    }
    for a, b in itertools.combinations(CONCEPTS, 2):
        expected = cosine(strengths[a], strengths[b])
        assert judgments.scores[a, b] == pytest.approx(expected, abs=1e-12)
    assert [item.words for item in judgments.dropped] == [("ant",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column 'cue' between tabs"),
        (SWOW.replace("R123.Strength", "R1.Strength"), "has no column 'R123.Strength' between tabs"),
        (SWOW.replace("\t", ","), "has no column 'cue' between tabs"),
        (SWOW + "dog\tcat\t1\t80\n", "line 12: expected 5 columns between tabs, got 4"),
        (SWOW + "dog\tcat\t1\t80\t0.1\n", "line 12: 'dog' has the response 'cat' twice"),
        (SWOW + "dog\twolf\t1\t80\tNA\n", "line 12: the strength is 'NA'"),
    ],
)
def test_other_associations_are_rejected(tmp_path: Path, content: str, message: str) -> None:
    """A wrong line would become a strength."""
    (tmp_path / "published").write_text(content)
    with pytest.raises(UserError) as caught:
        judge(tmp_path, "swow")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_associations_without_a_concept_are_reported(tmp_path: Path) -> None:
    """A cue list in another language must end in a note, not in a traceback."""
    (tmp_path / "published").write_text(SWOW.replace("cat", "chat").replace("dog", "chien"))
    assert judge(tmp_path, "swow").scores == {}


@pytest.mark.parametrize(
    ("human", "message"),
    [
        ("{format: things, path: p}", "items: is missing; format things has its names in unique_id.txt"),
        ("{format: swow, path: p, kind: pairs}", "kind: not allowed for format swow"),
        ("{format: mcrae, path: p, columns: [1, 2, 3]}", "columns: not allowed for format mcrae"),
        ("{format: leuven, path: p, items: i}", "items: not allowed for format leuven"),
        ("{format: vice, path: p}", "format: 'vice': expected 'things', 'leuven', 'mcrae' or 'swow'"),
    ],
)
def test_a_format_takes_no_other_options(tmp_path: Path, human: str, message: str) -> None:
    """Options that a format overrules would be ignored silently."""
    file = tiny.write_sweep(tmp_path)
    text = file.read_text().replace("{name: mine, path: human.csv}", f"{{name: mine, {human[1:]}")
    file.write_text(text)
    done = neuralign("plan", file)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_every_format_is_listed_with_its_source_and_license() -> None:
    """Without them, nobody could get a file or know how it may be used."""
    printed = " ".join(neuralign("human").stdout.split())
    assert set(PUBLISHED_FORMATS) == set(get_args(PublishedFormatName))
    for name, published in PUBLISHED_FORMATS.items():
        assert f"{name}: {published.kind}, path: {published.file}" in printed
        for text in (published.citation, f"license: {published.license}; {published.source}"):
            assert text in printed
