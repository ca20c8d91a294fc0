"""Average precision and AUROC of every neuron for every concept, from one sort per neuron.

A neuron's activations over all sentences are sorted once, highest first; one pass in that order updates
the true and false positives of every concept. Sentences with equal activations form one threshold, as in
scikit-learn's `average_precision_score` and `roc_auc_score`.

Average precision as expertise: Suau et al. 2022, arXiv 2110.02802, section 3.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.arrays import Allocator, AnyFloats, Floats, Ints
from alignment.expertise import ap_kernel, statistics_kernel
from alignment.expertise.label_permutations import LabelPermutations
from alignment.expertise.labels import Labels
from alignment.expertise.sorted_chunks import FLOAT_FORMATS, sorted_chunks

REFERENCE_PREVALENCE = 400 / 1400
"""Share of positives in the papers' data: 400 positive and 1,000 negative sentences per concept."""

AP, AUROC = "ap", "auroc"
SCORE_TYPES = {AP: np.float32, AUROC: np.float16}
"""Types in which the scores of all neurons are kept."""

_MAX_BATCH_BYTES = 4 << 20
"""Size of a batch of neurons, unless a single neuron is larger: it should fit in the CPU caches."""


@dataclass(frozen=True)
class Scores:
    """Expertise of every neuron for every concept: arrays of shape (neurons, concepts)."""

    ap: Floats
    ap_raw: Floats
    auroc: Floats

    def keep(self, kinds: Collection[str]) -> dict[str, AnyFloats]:
        """The scores of these kinds as they are kept: AP, and AUROC less 0.5.

        A float16 is finest near 0, where the AUROC of most neurons is: 0.0001 at an AUROC of 0.7.
        """
        kept: dict[str, AnyFloats] = {}
        if AP in kinds:
            kept[AP] = self.ap.astype(SCORE_TYPES[AP])
        if AUROC in kinds:
            kept[AUROC] = (self.auroc - 0.5).astype(SCORE_TYPES[AUROC])
        return kept


@dataclass(frozen=True)
class ApHistogram:
    """Neurons counted by their AP, under the actual labels (row 0) and under permuted ones.

    `max_ap`, of shape (1 + permutations, concepts), is the highest AP; `n_above`, of shape
    (1 + permutations, concepts, N_AP_BINS), the number of neurons whose AP is strictly above 0,
    1/N_AP_BINS, 2/N_AP_BINS, ...
    """

    max_ap: Floats
    n_above: Ints

    @classmethod
    def from_ap(cls, ap: Floats) -> ApHistogram:
        """The histogram of APs of shape (neurons, concepts), under one labeling."""
        counts = np.zeros((1, ap.shape[1], ap_kernel.N_AP_BINS), np.int64)
        ap_kernel.count_ap(ap, counts[0])
        return cls(ap.max(axis=0, initial=0.0, keepdims=True), _count_above(counts))

    @classmethod
    def stack(cls, parts: Sequence[ApHistogram]) -> ApHistogram:
        """Stack histograms of the same neurons under different labelings."""
        max_ap = np.concatenate([part.max_ap for part in parts])
        return cls(max_ap, np.concatenate([part.n_above for part in parts]))

    def merge(self, other: ApHistogram) -> ApHistogram:
        """The histogram of these neurons and of others."""
        return ApHistogram(np.maximum(self.max_ap, other.max_ap), self.n_above + other.n_above)


def score_neurons(values: AnyFloats, labels: Labels, prevalence: float = REFERENCE_PREVALENCE) -> Scores:
    """Average precision and AUROC of every neuron for every concept.

    `values` has shape (neurons, sentences), in float16 or float32. `ap` weights the negatives so that
    the share of positives is `prevalence` for every concept: precision = tp / (tp + w fp) with
    w = (positives / negatives) (1 - prevalence) / prevalence; `ap_raw` counts every sentence once. They
    equal scikit-learn's `average_precision_score` with and without these sample weights.

    Raises:
        ValueError: if `values` contains non-finite numbers or does not match `labels`.
    """
    return score_with_permutations(values, labels, None, prevalence)[0]


def score_with_permutations(
    values: AnyFloats,
    labels: Labels,
    permutations: LabelPermutations | None,
    prevalence: float = REFERENCE_PREVALENCE,
    allocate: Allocator = np.empty,
) -> tuple[Scores, ApHistogram]:
    """`score_neurons`, and the distribution of AP under the actual and any permuted labels.

    One sort serves all permutations, or as many as fit in memory. `allocate` provides the arrays that
    grow with the number of sentences.
    """
    check_inputs(values, labels, prevalence)
    patterns, n_concepts = labels.patterns, labels.n_concepts
    tables = (
        patterns.in_shared_pool, patterns.more_starts, patterns.more_concepts, patterns.listed_starts,
        patterns.listed_concepts, patterns.positives_in_pool,
        np.append(negative_weights(labels, prevalence), 0.0),
    )  # fmt: skip
    shape = (len(values), n_concepts)
    ap, ap_raw, above_x2 = np.empty(shape), np.empty(shape), np.empty(shape, np.int64)
    state = ap_kernel.initial_state(n_concepts)
    n_permutations = len(permutations) if permutations else 0
    max_ap = np.zeros((n_permutations, n_concepts))
    counts = np.zeros((n_permutations, n_concepts, ap_kernel.N_AP_BINS), np.int64)
    n_rows = max(1, _MAX_BATCH_BYTES // (8 * max(1, labels.n_sentences)))
    for permuted in permutations.permuted_labels(allocate) if permutations else [None]:
        if permuted is not None:
            part = permuted.permutations
            permuted_state = ap_kernel.initial_permuted_state(part.stop - part.start, n_concepts)
        for first in range(0, len(values), n_rows):
            rows = slice(first, first + n_rows)
            # without permutations a sentence's label pattern can replace its index
            ids = patterns.pattern if permuted is None else None
            for chunk in sorted_chunks(values[rows], ids):
                if permuted is not None:
                    ap_kernel.accumulate_permuted_ap(
                        *chunk, permuted.slots, permuted.patterns, *tables,
                        labels.n_positive, permuted_state, max_ap[part], counts[part],
                    )  # fmt: skip
                    if part.start:
                        # the actual labels were scored with the first permutations
                        continue
                    ap_kernel.replace_ids(chunk.order, chunk.shift, patterns.pattern)
                ap_kernel.accumulate_ap(
                    *chunk, patterns.first_concept, *tables,
                    state, ap[rows], ap_raw[rows], above_x2[rows],
                )  # fmt: skip
    ap /= labels.n_positive
    ap_raw /= labels.n_positive
    auroc = 1 - above_x2 / (2 * labels.n_positive * labels.n_negative)
    permuted_histogram = ApHistogram(max_ap, _count_above(counts))
    return Scores(ap, ap_raw, auroc), ApHistogram.stack([ApHistogram.from_ap(ap), permuted_histogram])


def check_inputs(values: AnyFloats, labels: Labels, prevalence: float) -> None:
    """Raise ValueError for invalid inputs of `score_neurons`, except non-finite values."""
    if values.ndim != 2 or values.shape[1] != labels.n_sentences:
        raise ValueError(
            f"expected values of shape (neurons, {labels.n_sentences} sentences), got {values.shape}"
        )
    if values.dtype not in FLOAT_FORMATS:
        raise ValueError(f"expected values in float16 or float32, got {values.dtype}")
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be between 0 and 1, got {prevalence}")


def negative_weights(labels: Labels, prevalence: float) -> Floats:
    """The weight of a negative of each concept at which the share of positives is `prevalence`."""
    return labels.n_positive / labels.n_negative * (1 - prevalence) / prevalence


def activation_statistics(
    values: AnyFloats, labels: Labels, neurons: Ints, concepts: Ints, allocate: Allocator = np.empty
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Median and 90th percentile on the positives, and mean on the negatives, of selected neurons.

    Each is for neuron `neurons[i]` and `concepts[i]`. `values` has shape (neurons, sentences);
    `allocate` provides the arrays that grow with them. Steering clamps a neuron to the median (Suau et
    al. 2022, section 4).
    """
    statistics = np.empty((len(neurons), 3), np.float32)
    selected, rows = np.unique(neurons, return_inverse=True)
    on = allocate(int(labels.n_positive.max()), np.float32)
    n_rows = max(1, _MAX_BATCH_BYTES // (4 * max(1, labels.n_sentences)))
    for first in range(0, len(selected), n_rows):
        batch = selected[first : first + n_rows]
        of_batch = allocate((len(batch), labels.n_sentences), np.float32)
        if values.dtype == np.float16:
            statistics_kernel.widen_rows(values.view(np.uint16), batch, of_batch)
        else:
            np.take(values, batch, axis=0, out=of_batch, mode="clip")
        pairs = np.flatnonzero((first <= rows) & (rows < first + n_rows))
        # Neuron by neuron, whose values are then in the CPU's caches.
        pairs = pairs[np.argsort(rows[pairs], kind="stable")]
        statistics_kernel.fill_statistics(
            of_batch, pairs, rows[pairs] - first, concepts, *labels.grouped_positives,
            *labels.grouped_negatives, statistics_kernel.sum_pool(of_batch, labels.in_shared_pool),
            labels.patterns.positives_in_pool, labels.n_negative, on, statistics,
        )  # fmt: skip
    p50, p90, negative_mean = statistics.T
    return p50, p90, negative_mean


def _count_above(counts: Ints) -> Ints:
    """From the counts per bin to the counts above the lower edge of each bin."""
    return np.flip(np.cumsum(np.flip(counts, axis=-1), axis=-1), axis=-1)
