"""The compiled part of expertise: one walk over a neuron's sorted sentences for all concepts."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def walk(
    order: npt.NDArray[Any],
    shift: Any,
    positive_starts: Integers,
    positive_concepts: Integers,
    shared: npt.NDArray[np.bool_],
    negative_starts: Integers,
    negative_concepts: Integers,
    n_positive: Integers,
    n_negative: Integers,
    weight: Floats,
    ap: Floats,
    ap_raw: Floats,
    auroc: Floats,
) -> None:
    """Fill `ap`, `ap_raw` and `auroc`, of shape (neurons, concepts).

    `order` holds, a row a neuron, (key << shift | sentence), highest activation first; sentences with
    one key are one threshold. The labels are those of `alignment.expertise.Labels`.
    """
    n_concepts = len(n_positive)
    low = (np.uint64(1) << shift) - np.uint64(1)
    touched = np.empty(n_concepts, np.int64)
    # of the sentences of one threshold: positives, marked positives, listed negatives
    positives = np.zeros(n_concepts, np.int64)
    marked_positives = np.zeros(n_concepts, np.int64)
    listed = np.zeros(n_concepts, np.int64)
    for row in range(order.shape[0]):
        keys = order[row]
        tp = np.zeros(n_concepts, np.int64)
        marked_tp = np.zeros(n_concepts, np.int64)
        listed_fp = np.zeros(n_concepts, np.int64)
        ap[row] = 0.0
        ap_raw[row] = 0.0
        auroc[row] = 0.0
        marked_before = np.int64(0)
        first = 0
        while first < len(keys):
            key = np.uint64(keys[first]) >> shift
            n_touched = 0
            marked = np.int64(0)
            last = first
            while last < len(keys) and np.uint64(keys[last]) >> shift == key:
                sentence = np.int64(np.uint64(keys[last]) & low)
                mark = np.int64(shared[sentence])
                marked += mark
                for entry in range(positive_starts[sentence], positive_starts[sentence + 1]):
                    concept = positive_concepts[entry]
                    if positives[concept] + listed[concept] == 0:
                        touched[n_touched] = concept
                        n_touched += 1
                    positives[concept] += 1
                    marked_positives[concept] += mark
                for entry in range(negative_starts[sentence], negative_starts[sentence + 1]):
                    concept = negative_concepts[entry]
                    if positives[concept] + listed[concept] == 0:
                        touched[n_touched] = concept
                        n_touched += 1
                    listed[concept] += 1
                last += 1
            for index in range(n_touched):
                concept = touched[index]
                negatives_before = marked_before - marked_tp[concept] + listed_fp[concept]
                negatives = marked - marked_positives[concept] + listed[concept]
                tp[concept] += positives[concept]
                marked_tp[concept] += marked_positives[concept]
                listed_fp[concept] += listed[concept]
                if positives[concept] > 0:
                    step = positives[concept] / n_positive[concept]
                    fp = negatives_before + negatives
                    ap[row, concept] += step * (tp[concept] / (tp[concept] + weight[concept] * fp))
                    ap_raw[row, concept] += step * (tp[concept] / (tp[concept] + fp))
                    below = n_negative[concept] - negatives_before - 0.5 * negatives
                    auroc[row, concept] += step * (below / n_negative[concept])
                positives[concept] = 0
                marked_positives[concept] = 0
                listed[concept] = 0
            marked_before += marked
            first = last
