"""Human data of every kind against a sweep: what cannot be used must be told, and never be a number."""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs.config import read_sweep
from jobs.planner import plan as plan_sweep
from storage.database import open_store
from tests.commands import neuralign


def test_every_kind_of_judgment_and_what_cannot_be_used_is_told(study: Path, tmp_path: Path) -> None:
    """Beside the pairs: triplets, other measures, raters; and a set without overlap, with too few
    pairs, with one score for all. None may end in a number that is none, or in silence."""
    shutil.copytree(study, tmp_path / "study")
    folder = tmp_path / "study"
    pairs = (folder / "human.csv").read_text().splitlines()
    (folder / "constant.csv").write_text(
        "\n".join([pairs[0], *(line.rsplit(",", 1)[0] + ",3" for line in pairs[1:])])
    )
    (folder / "few.csv").write_text("\n".join(pairs[:5]))
    (folder / "strangers.csv").write_text("a,b,score\nking,queen,3\n")
    (folder / "raters.csv").write_text(
        "\n".join(
            [pairs[0] + ",r1,r2", *(f"{line},{n % 4},{n % 3}" for n, line in enumerate(pairs[1:]))]
        )
    )
    triplets = [("cat", "dog", "car"), ("cat", "cow", "bus"), ("car", "bus", "cow")] * 4
    (folder / "odd.csv").write_text("\n".join(["a,b,odd", *map(",".join, triplets)]))
    file = folder / "sweep.yaml"
    file.write_text(
        file.read_text().replace(
            "human: [{name: mine, path: human.csv}]",
            "agreement: [kendall, pearson]\nhuman:\n  - {name: mine, path: human.csv}\n"
            "  - {name: constant, path: constant.csv}\n  - {name: few, path: few.csv}\n"
            "  - {name: strangers, path: strangers.csv}\n"
            "  - {name: raters, path: raters.csv, raters: [r1, r2]}\n"
            "  - {name: odd, path: odd.csv, kind: triplets}\n",
        )
    )
    warned = [
        "warning: constant: all scores are equal, so nothing can agree with them",
        "warning: few: 4 pairs to compare with; 10 are needed",
        "warning: strangers: 0 pairs to compare with; 10 are needed",
    ]
    planned = neuralign("plan", file).stdout.splitlines()
    assert [line for line in planned if line.startswith("warning")] == warned
    assert "mine: 12 pairs of these concepts" in planned
    assert "odd: 12 triplets of these concepts" in planned
    assert "strangers: 0 pairs of these concepts; left out: 1 no concept" in planned
    done = neuralign("run", file)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[:3] == warned
    assert all(f"  note: {line.removeprefix('warning: ')}" in told for line in warned)
    assert "warning" not in neuralign("run", file).stderr
    with open_store(folder / "results/sweep") as connection:
        found = connection.sql(
            "SELECT human_set, agreement, count(*), count(rho), count(p), count(ceiling), "
            "count(*) FILTER (isnan(rho) OR isnan(p)) FROM alignment "
            "WHERE run != (SELECT run FROM runs WHERE stage = 'alignment' ORDER BY finished LIMIT 1) "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert [row[:2] for row in found] == [
        ("mine", "kendall"),
        ("mine", "pearson"),
        ("odd", "triplets"),
        ("raters", "kendall"),
        ("raters", "pearson"),
    ]
    assert all(row[3] > 0 and row[6] == 0 for row in found)
    assert all(row[4] > 0 for row in found)
    assert all((row[5] > 0) == (row[0] == "raters") for row in found)
    compared = neuralign("compare", folder / "results/sweep", "--human", "odd")
    assert "odd: share predicted on the same 12 triplets of 5 concepts" in compared.stdout
    assert max(map(len, compared.stdout.splitlines())) <= 80


def test_comparing_with_what_is_not_there_says_what_is(study: Path) -> None:
    store = study / "results/sweep"
    compared = neuralign("compare", store, "--human", "mine")
    assert "mine: Spearman's rho on the same 12 pairs of 6 concepts" in compared.stdout
    assert "Of fewer than 40 concepts, 95% intervals may cover 91 to 98%." in compared.stdout
    for options, message in (
        (
            ["--human", "mine", "--against", "max pooling"],
            "'max pooling': several of the rows: neurons, ",
        ),
        (["--human", "mine", "--against", "word2vec"], "'word2vec': none of the rows: "),
        (["--human", "men"], "holds no comparison with 'men'; it has: mine"),
        (["--human", "mine", "--agreement", "kendall"], "has no kendall for 'mine'; it has spearman"),
        (["--human", "mine", "--threshold", "0.55"], "no experts at the threshold 0.55; it has 0.5"),
    ):
        refused = neuralign("compare", store, *options)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert message in refused.stderr


def test_differences_to_a_row_are_those_that_the_sweep_stored_or_turned_round(study: Path) -> None:
    """Recomputed from what the store holds: on other pairs they would be other numbers."""
    store = study / "results/sweep"
    with open_store(store) as connection:
        stored = connection.sql(
            "SELECT model, difference, difference_low, difference_high FROM alignment WHERE "
            "representation IN ('word vectors', 'sentence encoder') AND difference IS NOT NULL"
        ).fetchall()
    assert len(stored) == 2
    options = ("compare", store, "--human", "mine", "--against")
    to_mine = neuralign(*options, "mine word vectors").stdout
    assert "Difference: less that of mine word" in to_mine
    for model, value, low, high in stored:
        assert f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" in to_mine, model
        if model == "glove-50":
            from_glove = neuralign(*options, "GLOVE").stdout
            assert f"{-value:+.2f} [{-high:+.2f}, {-low:+.2f}]" in from_glove
    assert max(map(len, to_mine.splitlines())) <= 80


def test_other_columns_of_a_human_file_are_other_judgments(study: Path, tmp_path: Path) -> None:
    for name in ("concepts.csv", "human.csv"):
        shutil.copy(study / name, tmp_path)
    lines = (tmp_path / "human.csv").read_text().splitlines()
    both = [f"{line},{number}" for number, line in enumerate(lines[1:])]
    (tmp_path / "human.csv").write_text("\n".join([lines[0] + ",other", *both]) + "\n")
    last = set()
    for column in ("score", "other"):
        file = tmp_path / "sweep.yaml"
        file.write_text(
            f"concepts: concepts.csv\nmodels: [{study / 'model'}]\n"
            f"human: [{{name: mine, path: human.csv, columns: [a, b, {column}]}}]\n"
        )
        last.add(plan_sweep(read_sweep(file)).stages[-1].fingerprint)
    assert len(last) == 2
