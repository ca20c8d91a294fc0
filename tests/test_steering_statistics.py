"""Intervals that do not cover, controls that are experts, and words scored at the wrong position would
all pass for results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alignment.statistics.steering import (
    attribution_correlation,
    mean_of_sample,
    mean_two_way_clustered,
    sample_control_neurons,
)
from cluster.steering.interventions import (
    NO_INTERVENTION,
    PrefixSharedWords,
    PromptedWord,
    SteeredSequence,
    batch_sequences,
)
from cluster.steering.tokens import sample_tokens


def test_the_interval_over_prompts_matches_scipy() -> None:
    """Few prompts need Student's t: a normal interval would be too narrow."""
    values = np.random.default_rng(0).normal(1, 2, 8)
    mean = mean_of_sample(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high))
    assert mean.value == pytest.approx(values.mean())
    single = mean_of_sample(values[:1])
    assert (single.value, single.low, single.high) == (values[0], None, None)


@pytest.mark.parametrize("by_concept", [0.0, 1.0])
@pytest.mark.parametrize("by_prompt", [0.0, 1.0])
def test_the_interval_over_concepts_and_prompts_covers(by_concept: float, by_prompt: float) -> None:
    """Ignoring the variance over concepts, or that over prompts, would make it too narrow."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        values = (
            random.normal(0, by_concept, (24, 1))
            + random.normal(0, by_prompt, (1, 8))
            + random.normal(0, 1, (24, 8))
        )
        mean = mean_two_way_clustered(values)
        assert mean.low is not None
        assert mean.high is not None
        covered += mean.low <= 0 <= mean.high
    assert covered >= 0.92 * 400
    single = mean_two_way_clustered(np.ones((1, 8)))
    assert (single.value, single.low) == (1, None)


def test_the_two_way_clustered_interval_matches_sums_over_clusters() -> None:
    """A variance of other clusters than concepts and prompts, or with single values counted twice."""
    random = np.random.default_rng(3)
    values = random.normal(size=(5, 1)) + random.normal(size=(1, 4)) + random.normal(size=(5, 4))
    cells = [(concept, prompt, values[concept, prompt]) for concept in range(5) for prompt in range(4)]
    mean = sum(value for *_, value in cells) / 20

    def clustered_by(position: int) -> float:
        sums: dict[int, float] = {}
        for cell in cells:
            cluster = int(cell[position])
            sums[cluster] = sums.get(cluster, 0) + cell[2] - mean
        correction = len(sums) / (len(sums) - 1)
        return correction * sum(total**2 for total in sums.values()) / 20**2

    by_concept, by_prompt = clustered_by(0), clustered_by(1)
    residuals = 0.0
    for concept, prompt, value in cells:
        of_concept = sum(values[concept]) / 4
        of_prompt = sum(values[:, prompt]) / 5
        residuals += (value - of_concept - of_prompt + mean) ** 2
    variance = by_concept + by_prompt - residuals / (4 * 3) / 20
    assert variance > max(by_concept, by_prompt)
    margin = stats.t.ppf(0.975, 3) * variance**0.5
    estimate = mean_two_way_clustered(values)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (mean, mean - margin, mean + margin)
    )


def test_attribution_correlations_match_scipy_or_are_undefined() -> None:
    """Constant attributions must give no correlation rather than NaN."""
    estimated, measured = np.random.default_rng(2).normal(size=(2, 50))
    expected = stats.spearmanr(estimated, measured).statistic
    assert attribution_correlation(estimated, measured) == pytest.approx(expected)
    assert attribution_correlation(estimated, np.exp(estimated)) == pytest.approx(1)
    assert attribution_correlation(estimated, np.ones(50)) is None
    assert attribution_correlation(estimated[:1], measured[:1]) is None


def test_control_neurons_have_the_sites_of_the_experts_and_are_not_experts() -> None:
    """Controls from other sites, repeated ones or experts would not isolate the effect of expertise."""
    experts = [(0, "a", 3), (1, "a", 0), (0, "a", 1), (0, "b", 2), (0, "a", 0)]
    widths = {(0, "a"): 8, (1, "a"): 8, (0, "b"): 4}
    excluded = {*experts, (1, "a", 7)}
    controls = sample_control_neurons(experts, widths, excluded, 0)
    assert [neuron[:2] for neuron in controls] == [neuron[:2] for neuron in experts]
    assert len(set(controls)) == len(controls)
    assert not excluded.intersection(controls)
    assert all(unit < widths[layer, site] for layer, site, unit in controls)
    assert sample_control_neurons(experts, widths, excluded, 0) == controls
    assert sample_control_neurons(experts[:3], widths, excluded, 0) == controls[:3]
    assert sample_control_neurons(experts, widths, excluded, 1) != controls
    # with 5 units, site (0, "a") has two candidates for three experts
    assert len(sample_control_neurons(experts, {**widths, (0, "a"): 5}, excluded, 0)) == 4


_IDS = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)


def _log_p(prefix: Sequence[int], token: int) -> float:
    return float(hash((tuple(prefix), token)) % 1000)


@given(st.lists(st.tuples(_IDS, _IDS), min_size=1, max_size=12), st.integers(1, 20))
def test_words_with_a_shared_prompt_are_scored_as_if_alone(
    words: list[tuple[tuple[int, ...], tuple[int, ...]]], budget: int
) -> None:
    """A value of another word, or of the wrong position, would pass for the effect of steering."""
    prompted_words = [PromptedWord(prefix, tokens) for prefix, tokens in words]
    shared = PrefixSharedWords(prompted_words)
    sequences = list(shared.sequences(NO_INTERVENTION))
    assert len(sequences) == len(shared) == len({word.prefix for word in prompted_words})
    alone = {(word.prefix, word.sequence) for word in prompted_words}
    assert sum(row.n_tokens for row in sequences) <= sum(len(sequence) for _, sequence in alone)
    target_log_p: list[np.ndarray] = [np.empty(0)] * len(sequences)
    for batch in batch_sequences(sequences, budget):
        assert len(batch.rows) == 1 or sum(row.n_tokens for row in batch.rows) <= budget
        values: list[list[np.ndarray]] = []
        for part in (batch, *batch.branches):
            assert {len(row.ids) for row in part.rows} == {part.length}
            first_scored = part.length - part.n_scored_positions
            values.append([])
            for index, row in enumerate(part.rows):
                prefix = () if part is batch else batch.rows[part.indices[index]].ids
                assert all(first_scored <= target.position < part.length for target in row.targets)
                log_p = [_log_p(prefix + row.ids[: t.position + 1], t.token) for t in row.targets]
                values[-1].append(np.array(log_p))
        for index, merged in zip(batch.indices, batch.merge_branches(values), strict=True):
            target_log_p[index] = merged
    expected = [
        sum(_log_p(word.prefix + word.tokens[:end], token) for end, token in enumerate(word.tokens))
        for word in prompted_words
    ]
    assert shared.log_p(target_log_p).tolist() == expected


def test_a_batch_scores_no_position_before_the_first_target() -> None:
    """Logits of every position of a long prompt would not fit in memory."""
    word = PromptedWord((1, 2, 3), (4, 5))
    (batch,) = batch_sequences([SteeredSequence(word.sequence, targets=word.targets)], 1)
    assert (batch.length, batch.n_scored_positions) == (4, 2)


def test_tokens_are_sampled_with_their_probabilities() -> None:
    """A bias in sampling would look like an effect of steering on the continuations."""
    p = np.array([0.5, 0.0, 0.2, 0.3])
    with np.errstate(divide="ignore"):
        log_p = torch.tensor(np.log(p)).repeat(10_000, 1)
    uniform = (np.arange(10_000) + 0.5) / 10_000
    for temperature in (1.0, 0.5):
        tokens = sample_tokens(log_p, uniform, temperature)
        assert tokens.shape == (10_000, 1)
        expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        assert np.bincount(tokens[:, 0], minlength=4) / 10_000 == pytest.approx(expected, abs=2e-4)
    assert sample_tokens(log_p[:2], np.array([0.0, 1 - 1e-16]), 1.0).ravel().tolist() == [0, 3]
    assert set(sample_tokens(log_p, uniform, 0)[:, 0]) == {0}
