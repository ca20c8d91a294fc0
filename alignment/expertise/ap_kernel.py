"""The compiled parts of expertise: the walks over a neuron's sentences, highest activation first, that
serve all concepts at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Unsigned = npt.NDArray[np.unsignedinteger[Any]]
"""Unsigned, so that an index needs no look at its sign."""
Ids = npt.NDArray[np.uint32]

STEPS = 20
"""Neurons are counted above AP 0, 1/STEPS, 2/STEPS, ..."""

WHOLE, COUNT, LIST, SCORE = range(4)
"""What a walk does with a piece: all of it; or, where the sentences of one threshold do not fit in one
piece, in walks over all of them one after another: count them, count those that are listed, and score;
then the threshold is left with a whole piece, be it empty."""


class Seen(NamedTuple):
    """What a walk carries from one piece of a neuron's sentences to the next; zero before the first.

    Of each concept, and of none: positives so far, negatives that are listed, and the sums that make AP,
    raw AP and AUROC. And how many shared negatives lie above the present threshold, and at or above it.
    """

    tp: Integers
    extra: Integers
    precision: Floats
    raw: Floats
    twice: Integers
    marked: Integers


def nothing_seen(n_concepts: int) -> Seen:
    """What a walk begins with."""
    whole = np.zeros((3, n_concepts + 1), np.int64)
    sums = np.zeros((2, n_concepts + 1))
    return Seen(whole[0], whole[1], sums[0], sums[1], whole[2], np.zeros(2, np.int64))


class SeenShuffled(NamedTuple):
    """What a walk with shuffled labels carries. What belongs to a shuffle and a concept is at their
    common place; there are shared negatives of each shuffle, and sentences at or above the threshold."""

    tp: npt.NDArray[np.int32]
    extra: npt.NDArray[np.int32]
    precision: Floats
    marked: Floats
    sentences: Integers


def nothing_seen_shuffled(n_shuffles: int, n_concepts: int) -> SeenShuffled:
    """What a walk with shuffled labels begins with."""
    size = n_shuffles * (n_concepts + 1)
    tp, extra = np.zeros(size, np.int32), np.zeros(size, np.int32)
    return SeenShuffled(tp, extra, np.zeros(size), np.zeros(n_shuffles), np.zeros(1, np.int64))


@numba.njit(cache=True, nogil=True)
def relabel(order: Unsigned, shift: int, ids: Unsigned) -> None:
    """Put `ids[id]` in the place of each id of a packed order."""
    one = np.uint64(1)
    low = (one << np.uint64(shift)) - one
    for row in range(order.shape[0]):
        for place in range(order.shape[1]):
            packed = np.uint64(order[row, place])
            order[row, place] = (packed & ~low) | np.uint64(ids[packed & low])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def walk(
    order: Unsigned,
    shift: int,
    phase: int,
    ends: bool,
    first_of: Ids,
    mark: Integers,
    more_starts: Integers,
    more: Ids,
    listed_starts: Integers,
    listed: Ids,
    own: Integers,
    weight: Floats,
    seen: Seen,
    ap: Floats,
    ap_raw: Floats,
    above: Integers,
) -> None:
    """Fill `ap`, `ap_raw` and `above`, of shape (neurons, concepts), with sums over each concept's
    positives: of the precision at their threshold, weighted and not, and of twice the number of
    negatives that lie above them (a tie counts half).

    `order` holds, a row a neuron, (key << shift | kind), highest activation first; sentences with one
    key are one threshold. It and what follows are those of an `alignment.expertise.sorted_chunks.Piece`: where it does
    not end the neuron, `seen` carries what the next piece goes on from, and is zero again at the end.
    Then come the tables of `alignment.expertise.labels.Kinds`. `own` is 1 for the concepts whose positives are
    marked, and are therefore counted among the negatives first.
    """
    n_concepts, n_sentences = len(own) - 1, order.shape[1]
    with_more, with_listed = len(more) > 0, len(listed) > 0
    counting = phase in (WHOLE, COUNT)
    high = np.uint64(shift)
    low = (np.uint64(1) << high) - np.uint64(1)
    tp, extra, precision, raw, twice = seen.tp, seen.extra, seen.precision, seen.raw, seen.twice
    for row in range(order.shape[0]):
        keys = order[row]
        before, marked = seen.marked[0], seen.marked[1]
        first = 0
        while first < n_sentences:
            key = np.uint64(keys[first]) >> high
            last = first
            while counting:
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
            if not counting:
                last = n_sentences
            if with_listed and phase in (WHOLE, LIST):
                for place in range(first, last):
                    kind = np.uint64(keys[place]) & low
                    for entry in range(listed_starts[kind], listed_starts[kind + 1]):
                        extra[listed[entry]] += 1
            if phase not in (WHOLE, SCORE):
                break
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
        seen.marked[1] = marked
        if phase == WHOLE:
            seen.marked[0] = marked
        if not ends:
            continue
        for concept in range(n_concepts):
            ap[row, concept] = precision[concept]
            ap_raw[row, concept] = raw[concept]
            # of its own positives each two are one above the other, and each is a tie with itself
            own_pairs = own[concept] * tp[concept] * tp[concept]
            above[row, concept] = twice[concept] - own_pairs
        tp[:] = 0
        extra[:] = 0
        precision[:] = 0.0
        raw[:] = 0.0
        twice[:] = 0
        seen.marked[:] = 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def walk_shuffled(
    order: Unsigned,
    shift: int,
    phase: int,
    ends: bool,
    places: Unsigned,
    kinds: Unsigned,
    mark: Integers,
    more_starts: Integers,
    more: Ids,
    listed_starts: Integers,
    listed: Ids,
    own: Integers,
    weight: Floats,
    n_positive: Integers,
    seen: SeenShuffled,
    best: Floats,
    counts: Integers,
) -> None:
    """Count neurons by their AP under shuffled labels, all shuffles in one walk.

    `order` holds (key << shift | sentence); `places` and `kinds` are those of an
    `alignment.expertise.label_permutations.Given`; the rest is as for `walk`. Raises `best`, of shape (shuffles,
    concepts), to the highest AP, and adds each neuron to `counts`, of shape (shuffles, concepts,
    STEPS), in the last step that its AP is strictly above.
    """
    n_concepts, n_sentences, n_shuffles = len(own) - 1, order.shape[1], places.shape[1]
    with_more, with_listed = len(more) > 0, len(listed) > 0
    counting = phase in (WHOLE, COUNT)
    high = np.uint64(shift)
    low = (np.uint64(1) << high) - np.uint64(1)
    width = n_concepts + 1
    all_marked = mark.min() == 1
    owned, weights = np.empty(n_shuffles * width), np.empty(n_shuffles * width)
    for place in range(n_shuffles * width):
        weights[place] = weight[place % width]
        owned[place] = own[place % width]
    tp, extra, precision, marked = seen.tp, seen.extra, seen.precision, seen.marked
    for row in range(order.shape[0]):
        keys = order[row]
        first = 0
        while first < n_sentences:
            key = np.uint64(keys[first]) >> high
            last = first
            while counting:
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
            if counting:
                seen.sentences[0] += last - first
            else:
                last = n_sentences
            if phase not in (WHOLE, SCORE):
                break
            if all_marked:
                marked[:] = seen.sentences[0]
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
        if not ends:
            continue
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
        tp[:] = 0
        extra[:] = 0
        precision[:] = 0.0
        marked[:] = 0.0
        seen.sentences[0] = 0
