"""Failures of the report: claims that the numbers do not support, mixed sweeps, or silent omissions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import rankdata

from jobs.page.figures.dose_response import draw_dose_response
from jobs.page.figures.spec import LinePlot, RoundedCell
from jobs.page.pairs import ConceptPairs
from jobs.page.render import figure_files, make_sections, render_page
from jobs.page.sections import alignment, models, steering
from jobs.page.sections.concepts import concept_details
from jobs.page.sections.layers_and_training import parse_size, progression_finding
from jobs.page.study import Study, latest_study
from jobs.page.study_data import StudyData
from jobs.page.wording import agreement_sentence, difference_sentence, pseudo_concept_sentence
from storage.database import is_activation_file, open_store
from storage.errors import UserError
from storage.store import layout, manifest
from tests import many, tiny
from tests.hostile import HOSTILE, open_study

# --- wording -------------------------------------------------------------------------------


def row(rho: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {
        "rho": rho, "ci_low": low, "ci_high": high, "agreement": "spearman", "reference": "glove-50",
        "difference": rho, "difference_low": low, "difference_high": high,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rho", "low", "high", "agreement", "difference"),
    [
        (0.4, 0.1, 0.6, "agrees with", "higher than"),
        (0.4, -0.01, 0.7, "not distinguishable", "not distinguishable"),
        (0.4, 0.0, 0.7, "not distinguishable", "not distinguishable"),
        (-0.4, -0.6, -0.1, "disagrees with", "lower than"),
        (0.4, None, None, "CI unavailable", "not compared, for lack of a CI, with"),
    ],
)
def test_claims_are_limited_by_the_interval(
    rho: float, low: float | None, high: float | None, agreement: str, difference: str
) -> None:
    assert agreement in agreement_sentence("it", row(rho, low, high), "people")
    bag = {**row(0.2, 0.1, 0.3), "reference": "bag of words"}
    sentence = difference_sentence([row(rho, low, high), bag])
    assert sentence is not None
    assert re.search(f"{difference} (from )?that of glove-50", sentence)
    assert sentence.endswith(", and higher than that of bag of words (difference +0.20 [+0.10, +0.30]).")


def test_agreement_of_equal_similarities_is_undefined() -> None:
    assert "is undefined" in agreement_sentence("it", row(None, None, None), "people")
    assert difference_sentence([]) is None


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (
            [(5, 2), (4, 3), (1, 9)],
            "2 of 3 concepts have more experts than another word that was chosen by "
            "frequency alone (median 4, of these words 3).",
        ),
        (
            [(2, 2), (4, 3), (1, 9), (0, 0)],
            "for 3 of 4 concepts, another word that was chosen by frequency alone has at "
            "least as many experts (median 2, of the concepts 2): to have many is not special",
        ),
    ],
)
def test_what_pseudo_concepts_show_is_said_whichever_way_it_falls(
    counts: list[tuple[int, int]], text: str
) -> None:
    """Ties counted for the concepts, or a failed control left unsaid."""
    assert text in pseudo_concept_sentence(counts)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("EleutherAI/pythia-70m", 70e6),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.7e9),
        ("smollm2-135m-instruct", 135e6),
        ("gpt2", None),
        ("bert-base", None),
    ],
)
def test_model_size_is_parsed_from_the_name(model: str, expected: float | None) -> None:
    assert parse_size(model) == expected


def test_the_lead_compares_with_all_references_and_tells_of_pseudo_concepts(store: Path) -> None:
    """Only the reference that the neurons reach, or another pooling's pseudo-concepts."""
    with open_study(store) as data:
        lead = " ".join(alignment.section(data).lead)
        assert "pseudo-concepts" not in lead
        view = data.view
        data.connection.execute(
            "CREATE TEMP TABLE alignment_differences AS SELECT * EXCLUDE (reference, difference, "
            "difference_low, difference_high), r.* FROM alignment, (VALUES ('mine', -0.1, -0.3, 0.1), "
            "('bag of words', 0.2, 0.1, 0.3)) AS r(reference, difference, difference_low, "
            "difference_high)"
        )
        data.connection.execute(
            "CREATE TEMP TABLE pseudo_concepts AS SELECT $1 AS model, $2 AS revision, $3 AS "
            "concept_set, pooling, $4::DOUBLE AS threshold, n AS concept_n_experts, 3 AS n_experts "
            "FROM (VALUES ('max', 4), ('max', 5), ('max', 1), ('concept', 0)) AS v(pooling, n)",
            [view.model, view.revision, view.concept_set, view.threshold],
        )
        lead = " ".join(alignment.section(data).lead)
    assert (
        "This agreement is not distinguishable from that of mine (difference -0.10 [-0.30, +0.10]), and "
        "higher than that of bag of words (difference +0.20 [+0.10, +0.30])."
    ) in lead
    assert "(pseudo-concepts): 2 of 3 concepts have more experts" in lead


# --- data -------------------------------------------------------------------------------


def test_neighbors_and_disagreements_match_a_direct_computation(store: Path) -> None:
    with open_study(store) as data:
        pairs = ConceptPairs(data)
        details = concept_details(data)
        rows = data.query("FROM view_pairs")
        model, names = pairs.model, pairs.names
    assert set(details) == set(names) == {HOSTILE.get(name, name) for name in tiny.CONCEPTS}
    for name, similarities in zip(names, model, strict=True):
        neighbors = [
            (neighbor, value)
            for neighbor, value in zip(names, similarities, strict=True)
            if value > 0 and neighbor != name
        ]
        assert sorted(neighbors) == sorted(map(tuple, details[name]["model"]))
        values = [value for _, value in details[name]["model"]]
        assert values == sorted(values, reverse=True)
    rated = [row for row in rows if row["score"] is not None]
    assert len(rated) == len(tiny.PAIR_SCORES)
    ranks = [
        (rankdata([-(row[key] or 0) for row in rated]) - 1) / (len(rated) - 1)
        for key in ("similarity", "score")
    ]
    expected = {
        frozenset((row["concept_a"], row["concept_b"])): (model_rank, human_rank)
        for row, model_rank, human_rank in zip(rated, *ranks, strict=True)
    }
    for name, detail in details.items():
        assert detail["disagreements"]
        differences = [abs(model - human) for *_, model, human in detail["disagreements"]]
        assert differences == pytest.approx(sorted(differences, reverse=True))
        for concept, _, _, *pair_ranks in detail["disagreements"]:
            assert pair_ranks == pytest.approx(expected[frozenset((name, concept))])


def test_top_sentences_have_the_highest_activations(store: Path) -> None:
    with open_study(store) as data:
        ConceptPairs(data)
        experts = concept_details(data)["bus"]["experts"]
        best = experts[0]
        expected = data.query(
            "SELECT value, text FROM activations JOIN sentences USING (concept_set, sentence_id) "
            "WHERE pooling = 'max' AND layer = $layer AND site = $site AND unit = $unit "
            "ORDER BY value DESC, sentence_id LIMIT 5",
            **{name: best[name] for name in ("layer", "site", "unit")},
        )
        aps = [expert["ap"] for expert in experts]
        (top,) = data.query(
            "SELECT max(ap) AS ap FROM experts WHERE concept = 'bus' AND pooling = 'max'"
        )
    assert [(value, "".join(parts)) for value, *parts, _ in best["top_sentences"]] == [
        (row["value"], row["text"]) for row in expected
    ]
    assert aps == sorted(aps, reverse=True)
    assert aps[0] == top["ap"]


def test_the_page_excludes_other_sweeps(store: Path) -> None:
    """A store may contain the results of several sweeps."""
    study = latest_study(store)
    all_runs = {stage.fingerprint for stage in manifest.completed(store)}
    kinds = [stage.kind for stage in study.runs.values()]
    assert "report" not in kinds
    assert {"sentences", "activations", "experts", "similarity", "alignment", "hierarchy"} <= set(kinds)
    assert study.config is not None
    assert study.config["controls"] == ["split-half"]
    experts = {run for run, stage in study.runs.items() if stage.kind == "experts"}
    with open_store(store, experts) as connection:
        runs = {run for (run,) in connection.sql("SELECT run FROM runs").fetchall()}
    assert runs == experts < all_runs


def test_missing_results_are_listed_with_instructions(store: Path, tmp_path: Path) -> None:
    """Restores the stages of a store one at a time."""
    messages = {
        "sentences": [
            "No alignment with human judgments",
            "No similarities",
            "No concept details yet",
        ],
        "activations": ["No similarities in this store"],
        "experts": ["No similarities in this store"],
        "similarity": [
            "No alignment with human judgments in this store",
            "No training steps to compare",
        ],
        "alignment": ["The sweep file is stored when", "baselines: [glove]", "No domain AUC"],
    }
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    marks = {
        kind: [stage.folder / layout.SUCCESS for stage in manifest.completed(copy, kind)]
        for kind in layout.STAGE_KINDS
    }
    contents = {mark: mark.read_bytes() for paths in marks.values() for mark in paths}
    for mark in contents:
        mark.unlink()
    with pytest.raises(UserError, match="no stage has finished"):
        latest_study(copy)
    for kind in ("sentences", "activations", "experts", "controls", "similarity", "alignment"):
        for mark in marks[kind]:
            mark.write_bytes(contents[mark])
        with open_study(copy) as data:
            html = render_page(data, "part", make_sections(data))
        for text in messages.get(kind, []):
            assert text in re.sub(r"<[^>]*>", "", html), kind


def test_dropped_activations_are_reported(store: Path, tmp_path: Path) -> None:
    """A page without sentences though the best experts' are stored, or that does not say why it has
    none."""
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    for stage in manifest.completed(copy, "activations"):
        manifest.drop_files(stage, is_activation_file, "to see")
    message = "the raw activations were deleted"
    with open_study(copy) as data:
        assert message not in render_page(data, "dropped", make_sections(data))
        (best,) = [detail["experts"][0] for detail in concept_details(data, "bus").values()]
    with open_study(store) as data:
        ConceptPairs(data)
        (expected,) = [detail["experts"][0] for detail in concept_details(data, "bus").values()]
    assert best == expected
    assert best["top_sentences"]
    for stage in manifest.completed(copy, "top_tokens"):
        shutil.rmtree(stage.folder)
    with open_study(copy) as data:
        html = render_page(data, "dropped", make_sections(data))
    assert message in html
    assert "deleted after scoring to save space" in html


@pytest.mark.parametrize(("n", "times"), [(12, 1), (45, 0)])
def test_the_coverage_warning_appears_once(tmp_path: Path, n: int, times: int) -> None:
    with open_study(many.make_store(tmp_path / "store", n)) as data:
        html = render_page(data, "few", make_sections(data))
    assert html.count("the actual coverage") == times


@pytest.mark.parametrize(
    ("n", "text"),
    [(1, "the set has only one"), (2, "merge first"), (3, "merge first")],
)
def test_a_page_with_few_concepts_renders(tmp_path: Path, n: int, text: str) -> None:
    with open_study(many.make_store(tmp_path / "store", n)) as data:
        sections = make_sections(data)
        html = render_page(data, "few", sections)
    assert text in html
    assert "This sweep is not finished." in html
    assert len(list(figure_files(sections))) == (0 if n == 1 else 8)


def test_rows_without_a_threshold_have_no_numbers_of_experts(store: Path) -> None:
    """Those of the experts, or the reliability of their Jaccard index, would stand beside the AUROC."""
    with open_study(store) as data:
        (table,) = models.section(data).tables
    rows = {str(row[0]): (row[8], row[9]) for row in table.rows}
    (counted,) = [row for label, row in rows.items() if label.endswith("@main: neurons, max pooling")]
    assert counted[0] is not None
    without = [row for label, row in rows.items() if "AUROC" in label]
    assert without
    assert set(without) == {(None, None)}


def test_failed_models_are_listed(store: Path) -> None:
    """A sweep continues without a failed model, which the page must not omit silently."""
    with open_study(store) as data:
        (model,) = {stage.params["model"] for stage in data.stages("activations")}
        assert data.failed_models == []
        configs = [
            {"id": model, "revisions": ["main", "step*"]},
            {"id": "other/model", "revisions": ["step1", "all"]},
        ]
        config = {**(data.study.config or {}), "models": configs}
        partial = StudyData(data.connection, Study("partial", data.study.runs, config))
        assert partial.failed_models == ["other/model@step1"]
        assert "other/model@step1: failed" in render_page(partial, "failed", make_sections(partial))


@pytest.mark.parametrize(
    ("lows", "text"),
    [
        (
            [None, -0.1, 0.05, 0.1],
            "first distinguishable from chance at step 16; at the last of 4, 1.02k, it",
        ),
        (
            [None, -0.1, -0.1, -0.1],
            "is not distinguishable from chance at any of 4 steps",
        ),
    ],
)
def test_the_onset_of_agreement_is_limited_by_the_intervals(lows: list[float | None], text: str) -> None:
    rows = [
        {**row(0.3, low, None if low is None else 0.5), "step": step}
        for low, step in zip(lows, (0, 4, 16, 1024), strict=True)
    ]
    assert text in progression_finding(rows, "step")


_STEERING = """
CREATE OR REPLACE TEMP VIEW {table} AS
SELECT 'model' AS model, 'main' AS revision, 'max' AS pooling, {concept} selection,
    CASE WHEN k = 0 THEN 'none' ELSE 'clamp' END AS intervention, k::BIGINT AS k,
    {sign} * k / 10 AS change, {sign} * k / 10 - 0.1 AS change_low, {sign} * k / 10 + 0.1 AS change_high,
    NULL::DOUBLE AS others, NULL::DOUBLE AS others_low, NULL::DOUBLE AS others_high,
    0.5 AS containing, 0.4 AS containing_low, 0.6 AS containing_high,
    -k / 10 AS in_sentences, -k / 10 - 0.1 AS in_sentences_low, -k / 10 + 0.1 AS in_sentences_high,
    k / 9 AS log_perplexity, k / 9 - 0.1 AS log_perplexity_low, k / 9 + 0.1 AS log_perplexity_high,
    CASE WHEN selection = 'ap' THEN 7 END AS n_compared, k * 1.5::DOUBLE AS displacement,
    change - 1 AS change_difference, change - 2 AS change_difference_low,
    change AS change_difference_high,
    others AS others_difference, others AS others_difference_low, others AS others_difference_high,
    in_sentences AS in_sentences_difference, in_sentences_low AS in_sentences_difference_low,
    in_sentences_high AS in_sentences_difference_high, log_perplexity AS log_perplexity_difference,
    log_perplexity_low AS log_perplexity_difference_low,
    log_perplexity_high AS log_perplexity_difference_high
FROM (VALUES ('none', 0), ('ap', 3), ('ap', 30), ('random', 3), ('random', 30)) AS doses(selection, k)
"""


@pytest.mark.parametrize(
    ("sign", "effect", "than"),
    [
        (1, "raises", ", more than random neurons do (difference +2.00 [+1.00, +3.00])"),
        (0, "does not distinguishably change", "not distinguishably more than random"),
    ],
)
def test_steering_results_are_shown(store: Path, sign: int, effect: str, than: str) -> None:
    """Views with the names and columns of the stage's tables replace the stage."""
    with open_study(store) as data:
        ConceptPairs(data)
        assert concept_details(data, "bus")["bus"]["steering"] is None
        assert "add `steering:`" in steering.section(data).missing[0]
    with open_study(store) as data:
        views = {"steering_doses": "", "steering": "'bus' AS concept,"}
        for table, concept in views.items():
            data.connection.execute(_STEERING.format(table=table, concept=concept, sign=sign))
        data.connection.execute(
            "CREATE TEMP VIEW steering_prompts AS SELECT *, 'I say' AS prompt, ['<b>', 'b'] AS "
            "continuations FROM steering"
        )
        ConceptPairs(data)
        section = steering.section(data)
        figure, in_sentences = section.figures
        assert effect in figure.finding
        assert than in figure.finding
        (differences,) = section.tables
        assert [row[:4] for row in differences.rows] == [["clamp", "ap", 3, 7], ["clamp", "ap", 30, 7]]
        assert differences.rows[1][4] == RoundedCell(45)
        assert differences.rows[1][7] == "-3.00 [-3.10, -2.90]"
        assert isinstance(in_sentences.body, LinePlot)
        own, neutral = in_sentences.body.panels
        assert [line.name for line in own.lines] == ["clamped", "control of clamped"]
        assert own.lines[0].y == [-0.3, -3]
        assert neutral.lines[1].high == pytest.approx([3 / 9 + 0.1, 30 / 9 + 0.1])
        assert isinstance(figure.body, LinePlot)
        log_p, words = figure.body.panels
        assert [line.name for line in log_p.lines] == ["highest AP", "random neurons"]
        assert log_p.lines[0].x == [3, 30]
        assert words.lines[0].y == [0.5, 0.5]
        assert (log_p.baseline, words.baseline) == (0, 0.5)
        curve = concept_details(data, "bus")["bus"]["steering"]
        assert {sample["k"] for sample in curve["samples"]} == {0, 30}
        assert curve["samples"][0]["continuations"] == ["<b>", "b"]
        assert len(curve["figure"]["data"]) == 8
        rows = data.query("SELECT *, 9 AS n_concepts FROM steering_doses")
    assert draw_dose_response(rows, "model").startswith(b"\x89PNG")
