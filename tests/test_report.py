"""What a report could get wrong: say more than its numbers, mix sweeps, or hide that something is
missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import rankdata

from jobs.page.figures.spec import Lines
from jobs.page.pairs import Pairs
from jobs.page.render import page, paper_figures, sections
from jobs.page.sections import steering
from jobs.page.sections.concepts import details
from jobs.page.sections.layers_and_training import over_finding, parameters
from jobs.page.study import Source, Study, newest_study
from jobs.page.wording import agrees, differs
from storage.database import is_activations, open_store
from storage.errors import UserError
from storage.store import layout, manifest
from tests import many, tiny
from tests.hostile import HOSTILE, source_of

# --- what is said -------------------------------------------------------------------------------


def row(rho: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {
        "rho": rho, "ci_low": low, "ci_high": high, "agreement": "spearman", "reference": "glove-50",
        "difference": rho, "difference_low": low, "difference_high": high,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rho", "low", "high", "agreement", "difference"),
    [
        (0.4, 0.1, 0.6, "agrees with", "more than"),
        (0.4, -0.01, 0.7, "not distinguishable", "not distinguishable"),
        (0.4, 0.0, 0.7, "not distinguishable", "not distinguishable"),
        (-0.4, -0.6, -0.1, "disagrees with", "less than"),
        (0.4, None, None, "no interval can be had", "Its difference to"),
    ],
)
def test_nothing_is_claimed_that_an_interval_does_not_allow(
    rho: float, low: float | None, high: float | None, agreement: str, difference: str
) -> None:
    assert agreement in agrees("it", row(rho, low, high), "people")
    said = differs(row(rho, low, high))
    assert said is not None
    assert difference in said


def test_equal_similarities_agree_with_nothing() -> None:
    assert "nothing can agree" in agrees("it", row(None, None, None), "people")
    assert differs(row(None, None, None)) is None


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
def test_a_models_size_is_read_from_its_name(model: str, expected: float | None) -> None:
    assert parameters(model) == expected


# --- what is read -------------------------------------------------------------------------------


def test_neighbours_and_disagreements_are_those_of_a_count_by_hand(store: Path) -> None:
    with source_of(store) as source:
        pairs = Pairs(source)
        found = details(source)
        shown = source.ask("FROM shown")
        model, names = pairs.model, pairs.names
    assert set(found) == set(names) == {HOSTILE.get(name, name) for name in tiny.CONCEPTS}
    for place, name in enumerate(names):
        near = [(other, value) for other, value in zip(names, model[place], strict=True) if value > 0]
        near = [each for each in near if each[0] != name]
        assert sorted(near) == sorted(map(tuple, found[name]["model"]))
        values = [value for _, value in found[name]["model"]]
        assert values == sorted(values, reverse=True)
    rated = [each for each in shown if each["score"] is not None]
    assert len(rated) == len(tiny.PAIR_SCORES)
    ranks = [
        (rankdata([-(each[key] or 0) for each in rated]) - 1) / (len(rated) - 1)
        for key in ("similarity", "score")
    ]
    expected = {
        frozenset((each["concept_a"], each["concept_b"])): (one, two)
        for each, one, two in zip(rated, *ranks, strict=True)
    }
    for name, detail in found.items():
        assert detail["disagreements"]
        apart = [abs(one - two) for *_, one, two in detail["disagreements"]]
        assert apart == pytest.approx(sorted(apart, reverse=True))
        for other, _, _, one, two in detail["disagreements"]:
            assert (one, two) == pytest.approx(expected[frozenset((name, other))])


def test_the_sentences_of_an_expert_are_those_with_the_highest_activations(store: Path) -> None:
    with source_of(store) as source:
        Pairs(source)
        found = details(source)["bus"]
        best = found["experts"][0]
        expected = source.ask(
            "SELECT value, text FROM activations JOIN sentences USING (concept_set, sentence_id) "
            "WHERE pooling = 'max' AND layer = $layer AND site = $site AND unit = $unit "
            "ORDER BY value DESC, sentence_id LIMIT 5",
            **{name: best[name] for name in ("layer", "site", "unit")},
        )
        aps = [each["ap"] for each in found["experts"]]
        top = source.ask("SELECT max(ap) AS ap FROM experts WHERE concept = 'bus' AND pooling = 'max'")
    assert [(value, text) for value, text, _ in best["excited_by"]] == [
        (each["value"], each["text"]) for each in expected
    ]
    assert aps == sorted(aps, reverse=True)
    assert aps[0] == top[0]["ap"]


def test_the_page_is_of_one_sweep_alone(store: Path) -> None:
    """A store may hold the results of others: their rows must not mix in."""
    study = newest_study(store)
    everything = {each.fingerprint for kind in layout.KINDS for each in manifest.done(store, kind)}
    kinds = [each.kind for each in study.runs.values()]
    assert "report" not in kinds
    assert {"sentences", "activations", "experts", "similarity", "alignment", "hierarchy"} <= set(kinds)
    assert study.asked is not None
    assert study.asked["controls"] == ["split-half"]
    some = [each for each in study.runs if study.runs[each].kind == "experts"]
    with open_store(store, some) as connection:
        runs = {run for (run,) in connection.sql("SELECT run FROM runs").fetchall()}
    assert runs == set(some) < everything


def test_what_is_missing_is_said_with_the_way_to_get_it(store: Path, tmp_path: Path) -> None:
    """A store in which only the first stages are done, one stage more at a time."""
    told = {
        "sentences": [
            "No alignment with people",
            "No similarities",
            "Nothing is known of single concepts",
        ],
        "activations": ["No similarities in this store"],
        "experts": ["No similarities in this store"],
        "similarity": ["No alignment with people in this store", "No training steps to compare"],
        "alignment": ["The sweep file is kept when", "baselines: [glove]", "No measure of the domains"],
    }
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    marks = {
        kind: [each.folder / layout.SUCCESS for each in manifest.done(copy, kind)]
        for kind in layout.KINDS
    }
    kept = {mark: mark.read_bytes() for found in marks.values() for mark in found}
    for mark in kept:
        mark.unlink()
    with pytest.raises(UserError, match="nothing is done"):
        newest_study(copy)
    for kind in ("sentences", "activations", "experts", "controls", "similarity", "alignment"):
        for mark in marks[kind]:
            mark.write_bytes(kept[mark])
        with source_of(copy) as source:
            html = page(source, "part", sections(source))
        for text in told.get(kind, []):
            assert re.sub(r"<[^>]*>", "", html).count(text), (kind, text)


def test_dropped_activations_are_told_and_are_no_reason_to_fail(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    for each in manifest.done(copy, "activations"):
        manifest.drop(each, is_activations, "to see")
    with source_of(copy) as source:
        html = page(source, "dropped", sections(source))
    assert "the raw activations were deleted" in html
    assert "scored, then deleted to save space" in html


@pytest.mark.parametrize(("n", "times"), [(12, 1), (45, 0)])
def test_what_intervals_of_few_concepts_are_worth_is_said_once(
    tmp_path: Path, n: int, times: int
) -> None:
    with source_of(many.make_store(tmp_path / "store", n)) as source:
        html = page(source, "few", sections(source))
    assert html.count("a 95% interval may be somewhat too narrow or too wide") == times


@pytest.mark.parametrize(
    ("n", "said"),
    [(1, "this set has only one"), (2, "are joined first"), (3, "are joined first")],
)
def test_a_few_concepts_have_a_page_too(tmp_path: Path, n: int, said: str) -> None:
    root = many.make_store(tmp_path / "store", n)
    with source_of(root) as source:
        found = sections(source)
        html = page(source, "few", found)
    assert said in html
    assert "This sweep is not finished." in html
    assert len(list(paper_figures(found))) == (0 if n == 1 else 8)


def test_a_model_that_failed_is_named(store: Path) -> None:
    """The sweep goes on without it, and its page must not look as if nobody had asked for it."""
    with source_of(store) as source:
        (model,) = {each.params["model"] for each in source.runs if each.kind == "activations"}
        assert source.absent == []
        asked = [
            {"id": model, "revisions": ["main", "step*"]},
            {"id": "other/model", "revisions": ["step1", "all"]},
        ]
        study = Study("asked", source.study.runs, {**(source.study.asked or {}), "models": asked})
        other = Source(source.connection, study)
        assert other.absent == ["other/model@step1"]
        assert "other/model@step1: it failed" in page(other, "failed", sections(other))


@pytest.mark.parametrize(
    ("lows", "said"),
    [
        (
            [None, -0.1, 0.05, 0.1],
            "first distinguishable from chance at step 16; at the last of 4, 1.02k, it",
        ),
        (
            [None, -0.1, -0.1, -0.1],
            "At none of 4 steps is agreement with people distinguishable from chance",
        ),
    ],
)
def test_when_agreement_shows_is_said_as_far_as_intervals_allow(
    lows: list[float | None], said: str
) -> None:
    rows = [
        {**row(0.3, low, None if low is None else 0.5), "step": step}
        for low, step in zip(lows, (0, 4, 16, 1024), strict=True)
    ]
    assert said in over_finding(rows, "step")


_STEERED = """
CREATE OR REPLACE TEMP VIEW {table} AS
SELECT 'model' AS model, 'main' AS revision, 'max' AS pooling, {concept} selection, k::BIGINT AS k,
    {sign} * k / 10 AS change, {sign} * k / 10 - 0.1 AS change_low, {sign} * k / 10 + 0.1 AS change_high,
    NULL::DOUBLE AS others, NULL::DOUBLE AS others_low, NULL::DOUBLE AS others_high,
    0.5 AS containing, 0.4 AS containing_low, 0.6 AS containing_high
FROM (VALUES ('ap'), ('random'), ('none')) AS s(selection), (VALUES (0), (3), (30)) AS ks(k)
"""


@pytest.mark.parametrize(("sign", "said"), [(1, "raises"), (0, "does not distinguishably change")])
def test_steering_is_shown_where_it_was_tried(store: Path, sign: int, said: str) -> None:
    """What stands for the stage's tables here are views of the same names and columns."""
    with source_of(store) as source:
        Pairs(source)
        assert details(source, "bus")["bus"]["steering"] is None
        assert "has tried it" in steering.section(source).missing[0]
    with source_of(store) as source:
        views = {"steering_doses": "", "steering": "'bus' AS concept,"}
        for table, concept in views.items():
            source.connection.execute(_STEERED.format(table=table, concept=concept, sign=sign))
        source.connection.execute(
            "CREATE TEMP VIEW steering_prompts AS SELECT *, 'I say' AS prompt, ['<b>', 'b'] AS "
            "continuations FROM steering"
        )
        Pairs(source)
        (figure,) = steering.section(source).figures
        assert said in figure.finding
        assert isinstance(figure.body, Lines)
        (own, words) = figure.body.panels
        assert [line.name for line in own.lines] == ["highest AP", "nothing forced", "random neurons"]
        assert own.lines[0].x == [3, 30]
        assert words.lines[0].y == [0.5, 0.5]
        found = details(source, "bus")["bus"]["steering"]
        assert {each["k"] for each in found["samples"]} == {30}
        assert found["samples"][0]["continuations"] == ["<b>", "b"]
        assert len(found["figure"]["data"]) == 12
