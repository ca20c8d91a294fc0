"""Human data of every kind in a sweep: unusable data must be reported, never give a number."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from alignment.statistics.matrix_correlation import MATRIX_MEASURES, correlate_matrices
from jobs.config.loader import read_sweep
from jobs.planner import plan_sweep
from storage.database import open_store
from tests import tiny
from tests.commands import neuralign


def test_every_kind_of_judgment_and_unusable_data_are_reported(study: Path, tmp_path: Path) -> None:
    """A set without overlap, with too few pairs or with equal scores could give NaN, or be ignored
    silently."""
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
    warnings = [
        "warning: constant: all scores are equal; correlation is undefined",
        "warning: few: 4 pairs to compare with; 10 are needed",
        "warning: strangers: 0 pairs to compare with; 10 are needed",
    ]
    plan_lines = neuralign("plan", file).stdout.splitlines()
    assert [line for line in plan_lines if line.startswith("warning")] == warnings
    assert "mine: 12 pairs of these concepts" in plan_lines
    assert "odd: 12 triplets of these concepts" in plan_lines
    assert "strangers: 0 pairs of these concepts; left out: 1 no concept" in plan_lines
    run = neuralign("run", file)
    assert run.returncode == 0, run.stderr
    run_lines = run.stderr.splitlines()
    assert run_lines[:3] == warnings
    assert all(f"  note: {line.removeprefix('warning: ')}" in run_lines for line in warnings)
    assert "warning" not in neuralign("run", file).stderr
    with open_store(folder / "results/sweep") as connection:
        rows = connection.sql(
            "SELECT human_set, agreement, count(*), count(rho), count(p), count(ceiling), "
            "count(*) FILTER (isnan(rho) OR isnan(p)) FROM alignment "
            "WHERE run != (SELECT run FROM runs WHERE stage = 'alignment' ORDER BY finished LIMIT 1) "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert [row[:2] for row in rows] == [
        ("mine", "kendall"),
        ("mine", "pearson"),
        ("odd", "triplets"),
        ("raters", "kendall"),
        ("raters", "pearson"),
    ]
    assert all(row[3] > 0 and row[6] == 0 for row in rows)
    assert all(row[4] > 0 for row in rows)
    assert all((row[5] > 0) == (row[0] == "raters") for row in rows)
    compared = neuralign("compare", folder / "results/sweep", "--human", "odd")
    assert "odd: odd-one-out accuracy, 12 triplets of 5 concepts" in compared.stdout
    assert max(map(len, compared.stdout.splitlines())) <= 80


def test_a_comparison_with_missing_data_lists_the_available_data(study: Path) -> None:
    """Without the list the user would have to guess the names of rows and sets."""
    store = study / "results/sweep"
    compared = neuralign("compare", store, "--human", "mine")
    assert "mine: Spearman's rho, 12 pairs of 6 concepts" in compared.stdout
    assert "With fewer than 40 concepts, 95% CIs may cover 91 to 98%." in compared.stdout
    for options, message in (
        (
            ["--human", "mine", "--against", "max pooling"],
            "'max pooling': ambiguous; it matches: ",
        ),
        (["--human", "mine", "--against", "word2vec"], "'word2vec': no row matches; rows: "),
        (["--human", "men"], "no comparison with 'men'; available: mine"),
        (["--human", "mine", "--agreement", "kendall"], "no kendall for 'mine'; available: spearman"),
        (["--human", "mine", "--threshold", "0.55"], "no experts at the threshold 0.55; available: 0.5"),
    ):
        comparison = neuralign("compare", store, *options)
        assert (comparison.returncode, comparison.stderr.count("\n")) == (2, 1)
        assert message in comparison.stderr


def test_differences_to_a_row_equal_the_stored_ones_or_their_negatives(study: Path) -> None:
    """They are recomputed from the store; on other pairs the numbers would differ."""
    store = study / "results/sweep"
    with open_store(store) as connection:
        stored = connection.sql(
            "SELECT model, measure, difference, difference_low, difference_high FROM alignment WHERE "
            "representation IN ('word vectors', 'sentence encoder') AND difference IS NOT NULL"
        ).fetchall()
    measures = ("cosine", "centred cosine", "standardized cosine")
    assert {row[:2] for row in stored} == {
        *(("glove-50", measure) for measure in measures),
        *(("mine", measure) for measure in measures[1:]),
        ("tiny", "cosine"),
    }
    options = ("compare", store, "--human", "mine", "--against")
    to_mine = neuralign(*options, "mine word vectors").stdout
    assert "Difference: relative to mine word" in " ".join(to_mine.split())
    for model, measure, value, low, high in stored:
        assert f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" in to_mine, (model, measure)
        if (model, measure) == ("glove-50", "cosine"):
            # by part of its label: the row without a treatment
            from_glove = neuralign(*options, "GLOVE").stdout
            assert f"{-value:+.2f} [{-high:+.2f}, {-low:+.2f}]" in from_glove
    assert max(map(len, to_mine.splitlines())) <= 80


def test_other_columns_of_a_human_file_are_other_judgments(study: Path, tmp_path: Path) -> None:
    """With the same fingerprint, the alignment with the old column would be reused."""
    for name in ("concepts.csv", "human.csv"):
        shutil.copy(study / name, tmp_path)
    lines = (tmp_path / "human.csv").read_text().splitlines()
    rows = [f"{line},{number}" for number, line in enumerate(lines[1:])]
    (tmp_path / "human.csv").write_text("\n".join([lines[0] + ",other", *rows]) + "\n")
    fingerprints = set()
    for column in ("score", "other"):
        file = tmp_path / "sweep.yaml"
        file.write_text(
            f"concepts: concepts.csv\nmodels: [{study / 'model'}]\n"
            f"human: [{{name: mine, path: human.csv, columns: [a, b, {column}]}}]\n"
        )
        fingerprints.add(plan_sweep(read_sweep(file)).stages[-1].fingerprint)
    assert len(fingerprints) == 2


def test_cka_and_whitened_need_a_score_of_every_pair(study: Path, tmp_path: Path) -> None:
    """Values of matrices with holes would be of made-up similarities; on whole matrices, rows of the
    table must have the values of the matrices in the store."""
    shutil.copytree(study, tmp_path / "study")
    folder = tmp_path / "study"
    random = np.random.default_rng(0)
    names = list(tiny.CONCEPTS)
    square = random.random((len(names), len(names)))
    square += square.T
    lines = [",".join([name, *map(str, row)]) for name, row in zip(names, square.tolist(), strict=True)]
    (folder / "full.csv").write_text("\n".join([",".join(["", *names]), *lines]))
    file = folder / "sweep.yaml"
    text = file.read_text()
    file.write_text(
        text.replace(
            "human: [{name: mine, path: human.csv}]",
            "agreement: [pearson, cka, whitened]\nhuman:\n  - {name: mine, path: human.csv}\n"
            "  - {name: full, path: full.csv, kind: matrix}\n",
        )
    )
    reasons = [
        f"mine: {measure} needs a score of every pair of concepts; 12 of 15 have one"
        for measure in ("cka", "whitened")
    ]
    planned = neuralign("plan", file).stdout.splitlines()
    assert [line for line in planned if "warning" in line] == [f"warning: {line}" for line in reasons]
    run = neuralign("run", file)
    assert run.returncode == 0, run.stderr
    assert all(f"  note: {line}" in run.stderr.splitlines() for line in reasons)
    with open_store(folder / "results/sweep") as connection:
        connection.execute(
            "CREATE TEMP TABLE mine AS FROM alignment WHERE run = "
            "(SELECT run FROM runs WHERE stage = 'alignment' ORDER BY finished DESC LIMIT 1)"
        )
        found = connection.sql("SELECT DISTINCT human_set, agreement FROM mine ORDER BY ALL").fetchall()
        values = dict(
            connection.sql(
                "SELECT agreement, rho FROM mine WHERE human_set = 'full' AND model = 'mine' "
                "AND measure = 'cosine' AND subset = 'all'"
            ).fetchall()
        )
        pairs = connection.sql(
            "SELECT DISTINCT concept_a, concept_b, similarity FROM similarity "
            "WHERE model = 'mine' AND measure = 'cosine'"
        ).fetchall()
        (p, low, high) = connection.sql(
            "SELECT count(p), count(ci_low), count(ci_high) FROM mine WHERE agreement = 'cka'"
        ).fetchall()[0]
        subsets = connection.sql("SELECT DISTINCT subset FROM mine WHERE agreement = 'cka'").fetchall()
    assert found == [("full", "cka"), ("full", "pearson"), ("full", "whitened"), ("mine", "pearson")]
    assert p > 0
    assert low == high > 0
    assert subsets == [("all",)]
    model = np.zeros((len(names), len(names)))
    for first, second, value in pairs:
        model[names.index(first), names.index(second)] = value
    model += model.T
    for measure in MATRIX_MEASURES:
        expected = correlate_matrices(measure, model[None], square).values[0]
        assert values[measure] == pytest.approx(expected, abs=1e-12)
    store = folder / "results/sweep"
    compared = neuralign(
        "compare", store, "--human", "full", "--agreement", "cka", "--against", "mine word vectors"
    )
    assert compared.returncode == 0, compared.stderr
    assert "full: debiased CKA, 15 pairs of 6 concepts" in compared.stdout


def test_matrices_have_no_bootstrap(tmp_path: Path) -> None:
    """A concept that is drawn twice has no similarity with itself."""
    file = tiny.write_sweep(tmp_path, extra="agreement: [cka]\ninterval: concept-bootstrap\n")
    planned = neuralign("plan", file)
    assert (planned.returncode, planned.stderr.count("\n")) == (2, 1)
    assert "agreement[0]: 'cka' needs interval: jackknife" in planned.stderr
