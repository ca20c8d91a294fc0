"""The compiled parts of expertise: packing a neuron's sentences for the sort, and the walks over the
sorted order that serve all concepts at once."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint32]
"""Unsigned, so that an index needs no look at its sign."""

STEPS = 20
"""Neurons are counted above AP 0, 1/STEPS, 2/STEPS, ..."""


@numba.njit(cache=True, nogil=True)
def pack(bits: npt.NDArray[Any], sign: int, exponent: int, ids: Ids, shift: int, out: Any) -> bool:
    """Fill `out`, of shape (neurons, sentences), with (key << shift | id) of each sentence; False when a
    value is not finite.

    `bits` are those of the floats. The key keeps their order reversed, so that an ordinary integer sort
    puts the highest first; negative zero equals zero.
    """
    below = np.uint64(sign - 1)
    infinite = np.uint64(exponent)
    finite = True
    for row in range(bits.shape[0]):
        bad = 0
        for place in range(bits.shape[1]):
            value = np.uint64(bits[row, place])
            bad |= (value & infinite) == infinite
            key = value if value > np.uint64(sign) else below - (value & below)
            out[row, place] = (key << np.uint64(shift)) | np.uint64(ids[place])
        finite = finite and bad == 0
    return finite


@numba.njit(cache=True, nogil=True)
def relabel(order: npt.NDArray[Any], shift: int, ids: Ids) -> None:
    """Put `ids[id]` in the place of each id of a packed order."""
    one = np.uint64(1)
    low = (one << np.uint64(shift)) - one
    for row in range(order.shape[0]):
        for place in range(order.shape[1]):
            packed = np.uint64(order[row, place])
            order[row, place] = (packed & ~low) | np.uint64(ids[packed & low])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def walk(
    order: npt.NDArray[Any],
    shift: int,
    first_of: Ids,
    mark: Integers,
    more_starts: Integers,
    more: Ids,
    listed_starts: Integers,
    listed: Ids,
    own: Integers,
    weight: Floats,
    ap: Floats,
    ap_raw: Floats,
    above: Integers,
) -> None:
    """Fill `ap`, `ap_raw` and `above`, of shape (neurons, concepts), with sums over each concept's
    positives: of the precision at their threshold, weighted and not, and of twice the number of
    negatives that lie above them (a tie counts half).

    `order` holds, a row a neuron, (key << shift | kind), highest activation first; sentences with one
    key are one threshold. What follows are the tables of `alignment.expertise.Kinds`. `own` is 1 for
    the concepts whose positives are marked, and are therefore counted among the negatives first.
    """
    n_concepts, n_sentences = len(own) - 1, order.shape[1]
    with_more, with_listed = len(more) > 0, len(listed) > 0
    high = np.uint64(shift)
    low = (np.uint64(1) << high) - np.uint64(1)
    # one place more than there are concepts, for the sentences that are positives of none
    tp = np.empty(n_concepts + 1, np.int64)
    extra = np.empty(n_concepts + 1, np.int64)
    precision = np.empty(n_concepts + 1, np.float64)
    raw = np.empty(n_concepts + 1, np.float64)
    twice = np.empty(n_concepts + 1, np.int64)
    for row in range(order.shape[0]):
        keys = order[row]
        tp[:] = 0
        extra[:] = 0
        precision[:] = 0.0
        raw[:] = 0.0
        twice[:] = 0
        before = np.int64(0)
        first = 0
        while first < n_sentences:
            key = np.uint64(keys[first]) >> high
            marked = before
            last = first
            while True:
                kind = np.uint64(keys[last]) & low
                concept = first_of[kind]
                marked += mark[kind]
                tp[concept] += 1
                twice[concept] += extra[concept]
                if with_more:
                    for entry in range(more_starts[kind], more_starts[kind + 1]):
                        concept = more[entry]
                        tp[concept] += 1
                        twice[concept] += extra[concept]
                last += 1
                if last == n_sentences or np.uint64(keys[last]) >> high != key:
                    break
            if with_listed:
                for place in range(first, last):
                    kind = np.uint64(keys[place]) & low
                    for entry in range(listed_starts[kind], listed_starts[kind + 1]):
                        extra[listed[entry]] += 1
            for place in range(first, last):
                kind = np.uint64(keys[place]) & low
                concept = first_of[kind]
                true = np.float64(tp[concept])
                false = marked - tp[concept] * own[concept] + extra[concept]
                precision[concept] += true / (true + weight[concept] * false)
                raw[concept] += true / (true + false)
                twice[concept] += before + marked + extra[concept]
                if with_more:
                    for entry in range(more_starts[kind], more_starts[kind + 1]):
                        concept = more[entry]
                        true = np.float64(tp[concept])
                        false = marked - tp[concept] * own[concept] + extra[concept]
                        precision[concept] += true / (true + weight[concept] * false)
                        raw[concept] += true / (true + false)
                        twice[concept] += before + marked + extra[concept]
            before = marked
            first = last
        for concept in range(n_concepts):
            ap[row, concept] = precision[concept]
            ap_raw[row, concept] = raw[concept]
            # of its own positives each two are one above the other, and each is a tie with itself
            own_pairs = own[concept] * tp[concept] * tp[concept]
            above[row, concept] = twice[concept] - own_pairs


@numba.njit(cache=True, nogil=True, error_model="numpy")
def walk_shuffled(
    order: npt.NDArray[Any],
    shift: int,
    kinds: Ids,
    first_of: Ids,
    mark: Integers,
    more_starts: Integers,
    more: Ids,
    listed_starts: Integers,
    listed: Ids,
    own: Integers,
    weight: Floats,
    n_positive: Integers,
    best: Floats,
    counts: Integers,
) -> None:
    """Count neurons by their AP under shuffled labels, all shuffles in one walk.

    `order` holds (key << shift | sentence), and `kinds`, of shape (sentences, shuffles), the kind that a
    sentence is given; the other tables are those of `walk`. Raises `best`, of shape (shuffles,
    concepts), to the highest AP, and adds each neuron to `counts`, of shape (shuffles, concepts,
    STEPS), in the last step that its AP is strictly above.
    """
    n_concepts, n_sentences, n_shuffles = len(own) - 1, order.shape[1], kinds.shape[1]
    with_more, with_listed = len(more) > 0, len(listed) > 0
    high = np.uint64(shift)
    low = (np.uint64(1) << high) - np.uint64(1)
    # what belongs to a shuffle and a concept is at their common place
    width = n_concepts + 1
    places = np.empty(kinds.shape, np.uint32)
    for each in range(n_sentences):
        for shuffle in range(n_shuffles):
            places[each, shuffle] = first_of[kinds[each, shuffle]] + shuffle * width
    all_marked = mark.min() == 1
    owned, weights = np.empty(n_shuffles * width), np.empty(n_shuffles * width)
    for place in range(n_shuffles * width):
        weights[place] = weight[place % width]
        owned[place] = own[place % width]
    tp = np.empty(n_shuffles * width, np.int32)
    extra = np.empty(n_shuffles * width, np.int32)
    precision = np.empty(n_shuffles * width, np.float64)
    marked = np.empty(n_shuffles, np.float64)
    for row in range(order.shape[0]):
        keys = order[row]
        tp[:] = 0
        extra[:] = 0
        precision[:] = 0.0
        marked[:] = 0.0
        first = 0
        while first < n_sentences:
            key = np.uint64(keys[first]) >> high
            last = first
            while True:
                sentence = np.uint64(keys[last]) & low
                given = places[sentence]
                for shuffle in range(n_shuffles):
                    tp[given[shuffle]] += 1
                if not all_marked:
                    for shuffle in range(n_shuffles):
                        marked[shuffle] += mark[kinds[sentence, shuffle]]
                if with_more or with_listed:
                    for shuffle in range(n_shuffles):
                        kind = kinds[sentence, shuffle]
                        for entry in range(more_starts[kind], more_starts[kind + 1]):
                            tp[more[entry] + shuffle * width] += 1
                        for entry in range(listed_starts[kind], listed_starts[kind + 1]):
                            extra[listed[entry] + shuffle * width] += 1
                last += 1
                if last == n_sentences or np.uint64(keys[last]) >> high != key:
                    break
            if all_marked:
                marked[:] = last
            for at in range(first, last):
                sentence = np.uint64(keys[at]) & low
                given = places[sentence]
                for shuffle in range(n_shuffles):
                    place = given[shuffle]
                    true = np.float64(tp[place])
                    false = marked[shuffle] - true * owned[place] + extra[place]
                    precision[place] += true / (true + weights[place] * false)
                if with_more:
                    for shuffle in range(n_shuffles):
                        kind = kinds[sentence, shuffle]
                        for entry in range(more_starts[kind], more_starts[kind + 1]):
                            place = more[entry] + shuffle * width
                            true = np.float64(tp[place])
                            false = marked[shuffle] - true * owned[place] + extra[place]
                            precision[place] += true / (true + weights[place] * false)
            first = last
        for shuffle in range(n_shuffles):
            for concept in range(n_concepts):
                score = precision[shuffle * width + concept] / n_positive[concept]
                best[shuffle, concept] = max(best[shuffle, concept], score)
                step = min(int(score * STEPS), STEPS - 1)
                # the product is rounded: an AP that is a step itself is not above it
                if step / STEPS >= score:
                    step -= 1
                elif step + 1 < STEPS and (step + 1) / STEPS < score:
                    step += 1
                counts[shuffle, concept, step] += 1
