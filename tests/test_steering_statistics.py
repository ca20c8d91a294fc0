"""Means that do not cover, controls that are no controls, and words read from the wrong place would all
pass for results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alignment.statistics.steering import draw_like, mean_over_both, mean_over_prompts, rank_agreement
from cluster.steering.interventions import NOTHING, Reading, Row, Word, cut
from cluster.steering.pipeline import choose


def test_the_interval_over_prompts_is_students() -> None:
    values = np.random.default_rng(0).normal(1, 2, 8)
    found = mean_over_prompts(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(values.mean())
    alone = mean_over_prompts(values[:1])
    assert (alone.value, alone.low, alone.high) == (values[0], None, None)


@pytest.mark.parametrize("by_concept", [0.0, 1.0])
@pytest.mark.parametrize("by_prompt", [0.0, 1.0])
def test_the_interval_over_concepts_and_prompts_covers(by_concept: float, by_prompt: float) -> None:
    """Whatever the values vary by: with one of both left out it would be too narrow."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        values = (
            random.normal(0, by_concept, (24, 1))
            + random.normal(0, by_prompt, (1, 8))
            + random.normal(0, 1, (24, 8))
        )
        found = mean_over_both(values)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered >= 0.92 * 400
    one = mean_over_both(np.ones((1, 8)))
    assert (one.value, one.low) == (1, None)


def test_ranks_agree_or_cannot_be_had() -> None:
    one, other = np.random.default_rng(2).normal(size=(2, 50))
    assert rank_agreement(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert rank_agreement(one, np.exp(one)) == pytest.approx(1)
    assert rank_agreement(one, np.ones(50)) is None
    assert rank_agreement(one[:1], other[:1]) is None


def test_random_controls_are_of_the_same_sites_and_no_experts() -> None:
    chosen = [(0, "a", 3), (1, "a", 0), (0, "a", 1), (0, "b", 2), (0, "a", 0)]
    widths = {(0, "a"): 8, (1, "a"): 8, (0, "b"): 4}
    experts = {*chosen, (1, "a", 7)}
    drawn = draw_like(chosen, widths, experts, 0)
    assert [place[:2] for place in drawn] == [place[:2] for place in chosen]
    assert len(set(drawn)) == len(drawn)
    assert not experts.intersection(drawn)
    assert all(unit < widths[layer, site] for layer, site, unit in drawn)
    assert draw_like(chosen, widths, experts, 0) == drawn
    assert draw_like(chosen[:3], widths, experts, 0) == drawn[:3]
    assert draw_like(chosen, widths, experts, 1) != drawn
    # layer 0 has two that are no experts, so the third cannot be had
    assert len(draw_like(chosen, {**widths, (0, "a"): 5}, experts, 0)) == 4


_IDS = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)


def _log_p(before: Sequence[int], token: int) -> float:
    return float(hash((tuple(before), token)) % 1000)


@given(st.lists(st.tuples(_IDS, _IDS), min_size=1, max_size=12), st.integers(1, 20))
def test_words_that_share_a_prompt_are_read_as_if_alone(
    words: list[tuple[tuple[int, ...], tuple[int, ...]]], budget: int
) -> None:
    given_words = [Word(before, tokens) for before, tokens in words]
    reading = Reading(given_words)
    rows = list(reading.rows(NOTHING))
    assert len(rows) == len(reading) == len({word.before for word in given_words})
    alone = {(word.before, word.sequence) for word in given_words}
    assert sum(row.tokens for row in rows) <= sum(len(sequence) for _, sequence in alone)
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for batch in cut(rows, budget):
        assert len(batch.rows) == 1 or sum(row.tokens for row in batch.rows) <= budget
        values: list[list[np.ndarray]] = []
        for part in (batch, *batch.branches):
            assert {len(row.ids) for row in part.rows} == {part.length}
            values.append([])
            for at, row in enumerate(part.rows):
                before = () if part is batch else batch.rows[part.numbers[at]].ids
                assert all(
                    part.length - part.wanted <= each.position < part.length for each in row.targets
                )
                values[-1].append(
                    np.array(
                        [
                            _log_p(before + row.ids[: each.position + 1], each.token)
                            for each in row.targets
                        ]
                    )
                )
        for number, joined in zip(batch.numbers, batch.joined(values), strict=True):
            found[number] = joined
    expected = [
        sum(_log_p(word.before + word.tokens[:at], token) for at, token in enumerate(word.tokens))
        for word in given_words
    ]
    assert reading.log_p(found).tolist() == expected


def test_a_batch_wants_no_position_before_the_first_target() -> None:
    word = Word((1, 2, 3), (4, 5))
    (batch,) = cut([Row(word.sequence, targets=word.targets)], 1)
    assert (batch.length, batch.wanted) == (4, 2)


def test_tokens_are_chosen_as_often_as_their_probability_says() -> None:
    p = np.array([0.5, 0.0, 0.2, 0.3])
    with np.errstate(divide="ignore"):
        log_p = torch.tensor(np.log(p)).repeat(10_000, 1)
    chances = (np.arange(10_000) + 0.5) / 10_000
    for temperature in (1.0, 0.5):
        drawn = choose(log_p, chances, temperature)
        assert drawn.shape == (10_000, 1)
        expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        assert np.bincount(drawn[:, 0], minlength=4) / 10_000 == pytest.approx(expected, abs=2e-4)
    assert choose(log_p[:2], np.array([0.0, 1 - 1e-16]), 1.0).ravel().tolist() == [0, 3]
    assert set(choose(log_p, chances, 0)[:, 0]) == {0}
