"""Published values beside a store's own: only for the models and the human data that have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.page.figures.spec import RoundedCell
from jobs.page.render import make_sections
from jobs.results.published import find_published
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.hostile import open_study

_NOUNS = ("porch", "kitchen", "door", "staircase", "stair", "floor", "ceiling", "room")


@pytest.fixture(scope="module")
def pythia_store(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep of two models with the names of Pythias, over nouns of MEN."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("pythia-70m", "pythia-410m"):
        shutil.copytree(tiny_model, folder / "EleutherAI" / name)
    file = tiny.write_sweep(folder)
    (folder / "concepts.csv").write_text(
        "concept,text\n"
        + "".join(f"{noun},The {noun} number {n} was new.\n" for noun in _NOUNS for n in range(4))
    )
    file.write_text(
        "concepts: concepts.csv\nhuman: [men]\nneurons: {pooling: [max, concept]}\nresamples: 100\n"
        "experts: {threshold: [0.5, 0.6]}\nbaselines: []\nmodels:\n"
        "  - {id: EleutherAI/pythia-70m, dtype: float32, revisions: [main, random-init]}\n"
        "  - {id: EleutherAI/pythia-410m, dtype: float32}\n"
    )
    with in_one_process():
        done = neuralign("run", file)
    assert done.returncode == 0, done.stderr
    return folder / "results/sweep"


def test_compare_shows_the_published_value_beside_the_store_s(pythia_store: Path) -> None:
    """A reader could take one number for the other, or miss where the published one is from."""
    printed = neuralign("compare", pythia_store, "--human", "men").stdout
    lines = printed.splitlines()
    (line,) = (line for line in lines if line.startswith("EleutherAI/pythia-70m@main  "))
    (here,) = (
        line for line in lines if line.startswith("EleutherAI/pythia-70m@main: neurons, max pool")
    )
    assert line.split()[1] == "0.70"
    assert line.split()[2] in here
    assert [row.split()[1] for row in lines if row.startswith("people")] == ["0.84"]
    assert "Published: arXiv 2502.15090" in printed
    assert max(map(len, lines)) <= 80


def test_other_models_and_thresholds_have_no_published_value(pythia_store: Path) -> None:
    """A value of another model, of random weights or at another threshold would be made up."""
    printed = neuralign("compare", pythia_store, "--human", "men").stdout
    published = printed.partition("arXiv 2502.15090")[2]
    assert "pythia-410m" not in published
    assert "random-init" not in published
    other = neuralign("compare", pythia_store, "--human", "men", "--threshold", "0.6")
    assert other.returncode == 0
    assert "2502.15090" not in other.stdout


def test_the_page_cites_the_source_of_the_published_values(pythia_store: Path) -> None:
    """The page would show numbers that are not the study's, without a source."""
    with open_study(pythia_store) as data:
        (section,) = (part for part in make_sections(data) if part.anchor == "alignment")
    (table,) = (table for table in section.tables if "Published" in table.title)
    assert "arXiv 2502.15090" in table.title
    assert [tuple(row[1:3]) for row in table.rows] == [
        ("EleutherAI/pythia-70m@main", RoundedCell(0.70)),
        ("people", RoundedCell(0.84)),
    ]


def test_only_the_last_checkpoint_has_the_published_value() -> None:
    """The value of a trained model beside that of an early checkpoint would look like a failure."""
    row = {
        **dict.fromkeys(("layer", "site", "top", "ci_low", "ci_high")),
        **{"model": "EleutherAI/pythia-12b", "human_set": "men", "agreement": "spearman"},
        **{"representation": "experts", "pooling": "max", "measure": "jaccard", "threshold": 0.5},
        **{"subset": "all", "rho": 0.5},
    }
    rows = [{**row, "revision": revision} for revision in ("step1", "step143000", "random-init")]
    assert [value.label for value in find_published(rows)] == [
        "EleutherAI/pythia-12b@step143000",
        "people",
    ]
    others: list[dict[str, object]] = [
        {"human_set": "simlex999"},
        {"agreement": "pearson"},
        {"pooling": "concept"},
        {"layer": 3},
        {"representation": "experts, half 1"},
        {"subset": "one-token words"},
        {"model": "EleutherAI/pythia-12b-deduped"},
    ]
    assert all(not find_published([{**rows[1], **other}]) for other in others)
