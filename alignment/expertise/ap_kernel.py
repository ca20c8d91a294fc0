"""Numba kernels for AP and AUROC: one pass over a neuron's sorted sentences scores all concepts."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from alignment.arrays import Floats, Ints, UInt32s, UInts

N_AP_BINS = 20
"""Neurons are counted above AP 0, 1/N_AP_BINS, 2/N_AP_BINS, ..."""

FULL, COUNT, COUNT_LISTED, SCORE = range(4)
"""What a pass does with a chunk: everything; or, where the ties at one threshold span several chunks,
one pass over all of these for each of the following: count them, count their listed negatives, and
score. An empty FULL chunk then moves past the threshold."""


class ScanState(NamedTuple):
    """What a pass carries from one chunk of a neuron's sentences to the next; zero before the first.

    Per concept, plus one entry for "none": true positives, listed negatives, and the sums behind AP, raw
    AP and AUROC. `shared_fp` counts the shared negatives above the threshold, and at or above it.
    """

    tp: Ints
    listed_fp: Ints
    precision: Floats
    raw_precision: Floats
    negatives_above_x2: Ints
    shared_fp: Ints


def initial_state(n_concepts: int) -> ScanState:
    """The state before a neuron's first sentence."""
    counts = np.zeros((3, n_concepts + 1), np.int64)
    sums = np.zeros((2, n_concepts + 1))
    return ScanState(counts[0], counts[1], sums[0], sums[1], counts[2], np.zeros(2, np.int64))


class PermutedScanState(NamedTuple):
    """What a pass over permuted labels carries, with one slot per (permutation, concept).

    Shared negatives are counted per permutation, `n_scanned` all sentences at or above the threshold.
    """

    tp: npt.NDArray[np.int32]
    listed_fp: npt.NDArray[np.int32]
    precision: Floats
    shared_fp: Floats
    n_scanned: Ints


def initial_permuted_state(n_permutations: int, n_concepts: int) -> PermutedScanState:
    """The state of a pass over permuted labels before a neuron's first sentence."""
    tp, listed_fp = np.zeros((2, n_permutations * (n_concepts + 1)), np.int32)
    precision, shared_fp = np.zeros(len(tp)), np.zeros(n_permutations)
    return PermutedScanState(tp, listed_fp, precision, shared_fp, np.zeros(1, np.int64))


@numba.njit(cache=True, nogil=True)
def replace_ids(order: UInts, shift: int, ids: UInts) -> None:
    """Replace each id of a packed order by `ids[id]`."""
    one = np.uint64(1)
    low = (one << np.uint64(shift)) - one
    for row in range(order.shape[0]):
        for column in range(order.shape[1]):
            packed = np.uint64(order[row, column])
            order[row, column] = (packed & ~low) | np.uint64(ids[packed & low])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def accumulate_ap(
    order: UInts,
    shift: int,
    phase: int,
    is_last: bool,
    first_concept: UInt32s,
    in_shared_pool: Ints,
    more_starts: Ints,
    more_concepts: UInt32s,
    listed_starts: Ints,
    listed_concepts: UInt32s,
    positives_in_pool: Ints,
    weight: Floats,
    state: ScanState,
    ap: Floats,
    ap_raw: Floats,
    negatives_above_x2: Ints,
) -> None:
    """Sum over each concept's positives what its AP and AUROC need.

    Fills `ap` and `ap_raw` with the weighted and unweighted precision at the positives' thresholds, and
    `negatives_above_x2` with twice the number of negatives above them, ties counting half; all three
    have shape (neurons, concepts).

    `order` has one row per neuron of (key << shift | pattern), highest activation first; equal keys form
    one threshold. It and the next three arguments are those of a `sorted_chunks.SortedChunk`: before the
    last chunk of a neuron, `state` carries over to the next; after it, `state` is zero again. The arrays
    that follow are those of `labels.LabelPatterns`. `positives_in_pool` is 1 for concepts whose
    positives are in the shared pool, and are therefore counted among the negatives first.
    """
    n_concepts, n_sentences = len(positives_in_pool) - 1, order.shape[1]
    has_more, has_listed = len(more_concepts) > 0, len(listed_concepts) > 0
    counting = phase in (FULL, COUNT)
    high = np.uint64(shift)
    low = (np.uint64(1) << high) - np.uint64(1)
    tp, listed_fp, precision = state.tp, state.listed_fp, state.precision
    raw_precision, above_x2 = state.raw_precision, state.negatives_above_x2
    for row in range(order.shape[0]):
        keys = order[row]
        shared_above, shared_fp = state.shared_fp[0], state.shared_fp[1]
        first = 0
        while first < n_sentences:
            key = np.uint64(keys[first]) >> high
            last = first
            while counting:
                pattern = np.uint64(keys[last]) & low
                concept = first_concept[pattern]
                shared_fp += in_shared_pool[pattern]
                tp[concept] += 1
                above_x2[concept] += listed_fp[concept]
                if has_more:
                    for entry in range(more_starts[pattern], more_starts[pattern + 1]):
                        concept = more_concepts[entry]
                        tp[concept] += 1
                        above_x2[concept] += listed_fp[concept]
                last += 1
                if last == n_sentences or np.uint64(keys[last]) >> high != key:
                    break
            if not counting:
                last = n_sentences
            if has_listed and phase in (FULL, COUNT_LISTED):
                for column in range(first, last):
                    pattern = np.uint64(keys[column]) & low
                    for entry in range(listed_starts[pattern], listed_starts[pattern + 1]):
                        listed_fp[listed_concepts[entry]] += 1
            if phase not in (FULL, SCORE):
                break
            for column in range(first, last):
                pattern = np.uint64(keys[column]) & low
                concept = first_concept[pattern]
                true = np.float64(tp[concept])
                false = shared_fp - tp[concept] * positives_in_pool[concept] + listed_fp[concept]
                precision[concept] += true / (true + weight[concept] * false)
                raw_precision[concept] += true / (true + false)
                above_x2[concept] += shared_above + shared_fp + listed_fp[concept]
                if has_more:
                    for entry in range(more_starts[pattern], more_starts[pattern + 1]):
                        concept = more_concepts[entry]
                        true = np.float64(tp[concept])
                        false = shared_fp - tp[concept] * positives_in_pool[concept] + listed_fp[concept]
                        precision[concept] += true / (true + weight[concept] * false)
                        raw_precision[concept] += true / (true + false)
                        above_x2[concept] += shared_above + shared_fp + listed_fp[concept]
            shared_above = shared_fp
            first = last
        state.shared_fp[1] = shared_fp
        if phase == FULL:
            state.shared_fp[0] = shared_fp
        if not is_last:
            continue
        for concept in range(n_concepts):
            ap[row, concept] = precision[concept]
            ap_raw[row, concept] = raw_precision[concept]
            # positives in the pool: one of any two is above the other, and each ties with itself
            own_pairs = positives_in_pool[concept] * tp[concept] * tp[concept]
            negatives_above_x2[row, concept] = above_x2[concept] - own_pairs
        tp[:] = 0
        listed_fp[:] = 0
        precision[:] = 0.0
        raw_precision[:] = 0.0
        above_x2[:] = 0
        state.shared_fp[:] = 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def accumulate_permuted_ap(
    order: UInts,
    shift: int,
    phase: int,
    is_last: bool,
    slots: UInts,
    patterns: UInts,
    in_shared_pool: Ints,
    more_starts: Ints,
    more_concepts: UInt32s,
    listed_starts: Ints,
    listed_concepts: UInt32s,
    positives_in_pool: Ints,
    weight: Floats,
    n_positive: Ints,
    state: PermutedScanState,
    max_ap: Floats,
    counts: Ints,
) -> None:
    """Count neurons by their AP under permuted labels, all permutations in one pass.

    `order` holds (key << shift | sentence); `slots` and `patterns` are those of a
    `label_permutations.PermutedLabels`; the rest is as for `accumulate_ap`. Raises `max_ap`, of shape
    (permutations, concepts), to the highest AP, and adds each neuron to `counts`, of shape
    (permutations, concepts, N_AP_BINS), in the last bin whose lower edge its AP strictly exceeds.
    """
    n_concepts, n_sentences, n_permutations = len(positives_in_pool) - 1, order.shape[1], slots.shape[1]
    has_more, has_listed = len(more_concepts) > 0, len(listed_concepts) > 0
    counting = phase in (FULL, COUNT)
    high = np.uint64(shift)
    low = (np.uint64(1) << high) - np.uint64(1)
    width = n_concepts + 1
    all_shared = in_shared_pool.min() == 1
    own_in_pool, weights = np.empty(n_permutations * width), np.empty(n_permutations * width)
    for slot in range(n_permutations * width):
        weights[slot] = weight[slot % width]
        own_in_pool[slot] = positives_in_pool[slot % width]
    tp, listed_fp, precision, shared_fp = state.tp, state.listed_fp, state.precision, state.shared_fp
    for row in range(order.shape[0]):
        keys = order[row]
        first = 0
        while first < n_sentences:
            key = np.uint64(keys[first]) >> high
            last = first
            while counting:
                sentence = np.uint64(keys[last]) & low
                sentence_slots = slots[sentence]
                for permutation in range(n_permutations):
                    tp[sentence_slots[permutation]] += 1
                if not all_shared:
                    for permutation in range(n_permutations):
                        shared_fp[permutation] += in_shared_pool[patterns[sentence, permutation]]
                if has_more or has_listed:
                    for permutation in range(n_permutations):
                        pattern = patterns[sentence, permutation]
                        for entry in range(more_starts[pattern], more_starts[pattern + 1]):
                            tp[more_concepts[entry] + permutation * width] += 1
                        for entry in range(listed_starts[pattern], listed_starts[pattern + 1]):
                            listed_fp[listed_concepts[entry] + permutation * width] += 1
                last += 1
                if last == n_sentences or np.uint64(keys[last]) >> high != key:
                    break
            if counting:
                state.n_scanned[0] += last - first
            else:
                last = n_sentences
            if phase not in (FULL, SCORE):
                break
            if all_shared:
                shared_fp[:] = state.n_scanned[0]
            for column in range(first, last):
                sentence = np.uint64(keys[column]) & low
                sentence_slots = slots[sentence]
                for permutation in range(n_permutations):
                    slot = sentence_slots[permutation]
                    true = np.float64(tp[slot])
                    false = shared_fp[permutation] - true * own_in_pool[slot] + listed_fp[slot]
                    precision[slot] += true / (true + weights[slot] * false)
                if has_more:
                    for permutation in range(n_permutations):
                        pattern = patterns[sentence, permutation]
                        for entry in range(more_starts[pattern], more_starts[pattern + 1]):
                            slot = more_concepts[entry] + permutation * width
                            true = np.float64(tp[slot])
                            false = shared_fp[permutation] - true * own_in_pool[slot] + listed_fp[slot]
                            precision[slot] += true / (true + weights[slot] * false)
            first = last
        if not is_last:
            continue
        for permutation in range(n_permutations):
            for concept in range(n_concepts):
                score = precision[permutation * width + concept] / n_positive[concept]
                max_ap[permutation, concept] = max(max_ap[permutation, concept], score)
                counts[permutation, concept, _find_bin(score)] += 1
        tp[:] = 0
        listed_fp[:] = 0
        precision[:] = 0.0
        shared_fp[:] = 0.0
        state.n_scanned[0] = 0


@numba.njit(cache=True, nogil=True)
def count_ap(ap: Floats, counts: Ints) -> None:
    """Add each neuron of `ap`, (neurons, concepts), to `counts`, (concepts, N_AP_BINS), in the last bin
    whose lower edge its AP strictly exceeds."""
    for neuron in range(ap.shape[0]):
        for concept in range(ap.shape[1]):
            counts[concept, _find_bin(ap[neuron, concept])] += 1


@numba.njit(cache=True, nogil=True)
def _find_bin(score: float) -> int:
    """The last bin whose lower edge a positive AP strictly exceeds."""
    ap_bin = min(int(score * N_AP_BINS), N_AP_BINS - 1)
    # The product is rounded, and an AP equal to an edge does not exceed it.
    if ap_bin / N_AP_BINS >= score:
        return ap_bin - 1
    if ap_bin + 1 < N_AP_BINS and (ap_bin + 1) / N_AP_BINS < score:
        return ap_bin + 1
    return ap_bin
