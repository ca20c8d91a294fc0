"""On a GPU, neurons are scored in torch: the scores must be those of the CPU, and the number of
operations must not grow with the concepts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import _disable_current_modes

from alignment.arrays import AnyFloats, Ints
from alignment.expertise import ap_torch, scoring_torch
from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import (
    Labels,
    labels_against_others,
    labels_against_pool,
    labels_from_own_negatives,
    labels_matched_by_length,
    split_half,
)
from alignment.expertise.labels_torch import Groups, LabelTensors
from alignment.expertise.ranks_torch import rank_sentences
from alignment.expertise.scoring import (
    REFERENCE_PREVALENCE,
    activation_statistics,
    score_neurons,
    score_with_permutations,
)
from alignment.expertise.scoring_torch import (
    BlockScorer,
    ExpertScores,
    find_ap_triton_problem,
    score_with_permutations_torch,
)
from tests.operations import count_operations
from tests.test_expertise import TOLERANCE, problems


def _in_torch() -> Any:
    """Without Triton, even where it works."""
    return patch.object(scoring_torch, "find_ap_triton_problem", lambda *_: "not wanted")


@settings(max_examples=200, deadline=None)
@given(
    problems(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([REFERENCE_PREVALENCE, 1e-9, 0.01, 0.9]),
    st.sampled_from([1, 20_000, 1 << 30]),
)
def test_torch_matches_the_cpu_kernel(
    problem: tuple[AnyFloats, Labels], seed: int, prevalence: float, chunk_bytes: int
) -> None:
    """The device must affect neither which neurons are experts nor the chance baseline, whether a chunk
    holds one neuron or all."""
    values, labels = problem
    permutations = permute_labels(labels, 3, seed)
    expected, expected_histogram = score_with_permutations(values, labels, permutations, prevalence)
    with _in_torch(), patch.object(scoring_torch, "WORKING_BYTES", chunk_bytes):
        scores, histogram = score_with_permutations_torch(
            "cpu", values, labels, permutations, prevalence
        )
    # the same sums in the same order: bit for bit
    for name in ("ap", "ap_raw", "auroc"):
        assert np.array_equal(getattr(scores, name), getattr(expected, name)), name
    assert np.array_equal(histogram.max_ap, expected_histogram.max_ap)
    assert np.array_equal(histogram.n_above, expected_histogram.n_above)


def _labelings(n_sentences: int, n_concepts: int) -> list[tuple[Labels, Ints]]:
    """All labelings of a sweep, each with the sentences that it labels: every sentence, both halves, and
    negatives that are sampled, matched by length, or a pool. Some sentences have two concepts."""
    sentences = np.append(np.arange(n_sentences), np.arange(n_concepts, 2 * n_concepts))
    concepts = np.arange(len(sentences)) % n_concepts
    concepts[n_sentences:] = (concepts[n_sentences:] + 1) % n_concepts
    sentences, concepts = np.unique(np.stack([sentences, concepts]), axis=1)
    everything = np.arange(n_sentences)
    half = split_half(sentences, concepts, n_sentences, 0)
    labelings = [(labels_against_others(sentences, concepts, n_sentences, n_concepts), everything)]
    for number in (0, 1):
        ids = np.flatnonzero(half == number)
        chosen = half[sentences] == number
        members = np.searchsorted(ids, sentences[chosen]), concepts[chosen]
        labelings.append((labels_against_others(*members, len(ids), n_concepts), ids))
    lengths = np.random.default_rng(0).integers(5, 25, n_sentences)
    pool = np.arange(n_sentences - n_sentences // 5, n_sentences)
    outside = sentences < pool[0]
    others = [
        labels_against_others(sentences, concepts, n_sentences, n_concepts, 2),
        labels_matched_by_length(sentences, concepts, lengths, n_concepts),
        labels_against_pool(sentences[outside], concepts[outside], pool, n_sentences, n_concepts),
    ]
    return labelings + [(labels, everything) for labels in others]


def _values(n_neurons: int, n_sentences: int) -> AnyFloats:
    """Random activations, of which every second neuron has many ties."""
    values = np.random.default_rng(0).standard_normal((n_neurons, n_sentences))
    values[::2] = np.round(values[::2])
    return values.astype(np.float16)


def _spread(labelings: list[tuple[Labels, Ints]]) -> list[Labels]:
    n_sentences = labelings[0][0].n_sentences
    return [labels.spread(sentences, n_sentences) for labels, sentences in labelings]


def test_one_sort_serves_all_labelings() -> None:
    """Sentences outside a half must not count in its scores, and the experts or kept scores of one
    labeling must not be returned for another."""
    labelings = _labelings(120, 4)
    values, floor = _values(30, 120), 0.35
    permutations = permute_labels(labelings[0][0], 4, 0)
    chunk_bytes = 7 * 120 * scoring_torch._BYTES_PER_VALUE
    with _in_torch(), patch.object(scoring_torch, "WORKING_BYTES", chunk_bytes):
        scorer = BlockScorer(_spread(labelings), permutations, REFERENCE_PREVALENCE, "cpu")
        kinds = [["ap", "auroc"], ["auroc"], *[()] * (len(labelings) - 2)]
        result = scorer.score(torch.from_numpy(values), floor, kinds)
    kept = zip(kinds, result.kept, strict=True)
    for (labels, sentences), experts in zip(labelings, result.experts, strict=True):
        expected = score_neurons(np.ascontiguousarray(values[:, sentences]), labels)
        is_expert = expected.ap > floor
        concepts, neurons = np.nonzero(is_expert.T)
        assert 0 < len(neurons) < expected.ap.size
        assert np.array_equal(experts.concepts, concepts)
        assert np.array_equal(experts.neurons, neurons)
        for name in ("ap", "ap_raw", "auroc"):
            assert np.array_equal(getattr(experts, name), getattr(expected, name)[neurons, concepts])
        names, arrays = next(kept)
        assert arrays.keys() == set(names)
        for name, array in expected.keep(names).items():
            assert array.dtype == arrays[name].dtype
            assert np.array_equal(array, arrays[name])
    _, histogram = score_with_permutations(values, labelings[0][0], permutations)
    assert np.array_equal(result.histogram.max_ap, histogram.max_ap)
    assert np.array_equal(result.histogram.n_above, histogram.n_above)


def _count_operations(labelings: list[Labels], n_permutations: int) -> int:
    permutations = permute_labels(labelings[0], n_permutations, 0)
    with _in_torch():
        scorer = BlockScorer(labelings, permutations, REFERENCE_PREVALENCE, "cpu")
    values = torch.from_numpy(_values(20, labelings[0].n_sentences))
    return count_operations(lambda: scorer.score(values, 0.4)).total()


@pytest.mark.parametrize("n_concepts", [2, 40])
def test_the_number_of_operations_does_not_depend_on_the_number_of_concepts(n_concepts: int) -> None:
    """Some twenty launches per concept and permutation made a GPU slower than one CPU core."""
    labelings = _spread(_labelings(400, n_concepts))
    first = _count_operations(labelings[:1], 0)
    counts = []
    for labels in labelings:
        alone = _count_operations([labels], 0)
        permuted = _count_operations([labels], 10) - alone
        counts.append((alone, permuted / 10, _count_operations([labelings[0], labels], 0) - first))
    # all sentences as negatives, halves, and listed or pooled negatives: alone, a permutation, one more
    assert counts == [(48, 14, 28), *[(47, 14, 27)] * 2, *[(46, 13, 26)] * 3]


@pytest.mark.parametrize("number", [0, 3])
# of Triton's interpreter
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_number_of_triton_launches_does_not_depend_on_the_number_of_concepts(number: int) -> None:
    """The same for the kernels that a GPU uses, without and with listed negatives."""
    pytest.importorskip("alignment.expertise.ap_triton")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    values, launches = torch.from_numpy(_values(2, 60)), 0
    run = interpreter.GridExecutor.__call__

    def launch(*arguments: Any, **options: Any) -> Any:
        nonlocal launches
        launches += 1
        with _disable_current_modes():
            return run(*arguments, **options)

    def count(labels: Labels, n_permutations: int) -> int:
        nonlocal launches
        permutations = permute_labels(labels, n_permutations, 0)
        scorer = BlockScorer([labels], permutations, REFERENCE_PREVALENCE, "cpu")
        assert scorer.triton_problem is None
        launches = 0
        operations = count_operations(lambda: scorer.score(values, 0.4))
        # Allocations launch nothing.
        return launches + sum(n for name, n in operations.items() if "empty" not in name)

    with patch.object(interpreter.GridExecutor, "__call__", launch):
        counts = {
            n_concepts: [count(_spread(_labelings(60, n_concepts))[number], n) for n in (0, 2)]
            for n_concepts in (2, 5)
        }
    alone, permuted = counts[2]
    assert counts[5] == counts[2]
    assert alone <= 60
    assert permuted - alone <= 2 * 15


def test_keys_of_many_concepts_and_sentences_need_64_bits() -> None:
    """The product of concepts and sentences exceeds 32 bits in large sets: ranks would be sorted by the
    wrong concept."""
    for labels in _spread(_labelings(120, 4)):
        tensors = LabelTensors.of(labels, REFERENCE_PREVALENCE, "cpu")
        wide = replace(
            tensors,
            positives=replace(tensors.positives, keys=tensors.positives.keys.long()),
            entry_keys=tensors.entry_keys.long(),
            offsets=tensors.offsets.long(),
        )
        ranks = rank_sentences(torch.from_numpy(_values(6, 120)))
        expected = ap_torch.score_labels(ranks, tensors, ap_only=False)
        assert torch.equal(ap_torch.score_labels(ranks, wide, ap_only=False), expected)
    many = Groups.of([np.arange(1)] * 50_000, 50_000, "cpu")
    assert many.keys[-1].item() == 49_999 * 50_001
    # twice as many groups, with the listed negatives
    ids = np.arange(40_000)
    labels = labels_from_own_negatives(ids, ids, ids, np.roll(ids, 1), 40_000, 40_000)
    tensors = LabelTensors.of(labels, REFERENCE_PREVALENCE, "cpu")
    assert tensors.entry_keys.max().item() == 79_999 * 40_001


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_cannot_be_scored_are_rejected(bad: float, dtype: type) -> None:
    """A NaN would sort somewhere and yield a plausible score, and another set's values would be scored
    under the wrong labels."""
    labels = labels_against_others(np.arange(4), np.array([0, 0, 1, 1]), 4, 2)
    scorer = BlockScorer([labels], None, REFERENCE_PREVALENCE, "cpu")
    values = torch.tensor(
        [[0, 1, 2, 3], [0, 1, bad, 2]], dtype=torch.from_numpy(np.empty(0, dtype)).dtype
    )
    with pytest.raises(ValueError, match="not finite"):
        scorer.score(values, 0.4)
    with pytest.raises(ValueError, match=r"\(neurons, 4 sentences\), got \(2, 3\)"):
        scorer.score(values[:, :3], 0.4)


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from([1, 1 << 30]))
def test_activation_statistics_match_the_cpu(
    problem: tuple[AnyFloats, Labels], chunk_bytes: int
) -> None:
    """Steering clamps neurons to the median: it must not depend on the device."""
    values, labels = problem
    random = np.random.default_rng(0)
    # with digits that are rounded off when quantiles are interpolated
    values = (values * random.lognormal(0, 1, values.shape)).astype(values.dtype)
    concepts, neurons = (index.ravel() for index in np.indices((labels.n_concepts, len(values))))
    chosen = random.random(len(neurons)) < 0.5
    chosen[-1] = True
    neurons, concepts = neurons[chosen], concepts[chosen]
    scores = np.zeros(len(neurons))
    experts = ExpertScores(neurons, concepts, scores, scores, scores)
    with _in_torch():
        scorer = BlockScorer([labels, labels], None, REFERENCE_PREVALENCE, "cpu")
    expected = np.stack(activation_statistics(values, labels, neurons, concepts), axis=1)
    with patch("alignment.expertise.statistics_torch._CHUNK_BYTES", chunk_bytes):
        actual = scorer.activation_statistics(torch.from_numpy(values), 1, experts)
    assert np.array_equal(actual[:, :2], expected[:, :2])
    np.testing.assert_allclose(actual[:, 2], expected[:, 2], rtol=1e-6, atol=1e-6)
    none = ExpertScores(neurons[:0], concepts[:0], scores[:0], scores[:0], scores[:0])
    assert scorer.activation_statistics(torch.from_numpy(values), 0, none).shape == (0, 3)


def _find_ap_triton_problem(labelings: list[Labels], device: str) -> str | None:
    tensors = [LabelTensors.of(labels, REFERENCE_PREVALENCE, device) for labels in labelings]
    return find_ap_triton_problem(tensors, labelings[0].n_sentences)


@pytest.mark.parametrize(
    ("max_sorted", "n_sentences", "n_concepts"), [(1024, 100, 2), (0, 100, 2), (0, 192, 34)]
)
# of Triton's interpreter
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_triton_matches_torch(max_sorted: int, n_sentences: int, n_concepts: int) -> None:
    """Its kernels rank and count in other ways, few positives by sorting and many by place. On a GPU, or
    on a CPU with TRITON_INTERPRET=1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labelings = _spread(_labelings(n_sentences, n_concepts))
    ap_triton = pytest.importorskip("alignment.expertise.ap_triton")
    ranks_triton = pytest.importorskip("alignment.expertise.ranks_triton")
    values = torch.from_numpy(_values(3, n_sentences)).to(device)
    permutations = permute_labels(labelings[0], 1, 0)
    # fewer neurons and sentences at a time than there are
    with (
        patch.object(ap_triton, "MAX_SORTED", max_sorted),
        patch.object(ap_triton, "PAIRS", 128),
        patch.object(ranks_triton, "TILE", 64),
    ):
        assert _find_ap_triton_problem(labelings, device) is None
        result = BlockScorer(labelings, permutations, 0.1, device).score(values, -1.0)
    with _in_torch():
        expected = BlockScorer(labelings, permutations, 0.1, device).score(values, -1.0)
    for pairs, expected_pairs in zip(result.experts, expected.experts, strict=True):
        for name in ("ap", "ap_raw", "auroc"):
            np.testing.assert_allclose(
                getattr(pairs, name), getattr(expected_pairs, name), rtol=0, atol=TOLERANCE
            )
    np.testing.assert_allclose(
        result.histogram.max_ap, expected.histogram.max_ap, rtol=0, atol=TOLERANCE
    )


def test_without_a_working_triton_scores_are_computed_in_torch() -> None:
    """Triton compiles with the machine's C compiler: a GPU node without one must still score."""
    values, (labels, _) = _values(10, 60), _labelings(60, 3)[0]
    with patch.dict("sys.modules", {"alignment.expertise.ap_triton": None}):
        assert "ap_triton" in (_find_ap_triton_problem([labels], "cpu") or "")
        result = BlockScorer([labels], None, REFERENCE_PREVALENCE, "cpu").score(
            torch.from_numpy(values), 2.0
        )
    assert np.array_equal(result.histogram.max_ap[0], score_neurons(values, labels).ap.max(0))
