"""What a human data set says about the concepts of a sweep, and what of it was left out, and why."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from alignment.statistics.taxonomy import taxonomy_similarity
from alignment.statistics.triplets import triplet_similarity
from alignment.statistics.vectors import cosine_matrix
from alignment.text.word_matching import normal_form, singular
from storage.errors import UserError
from storage.readers.human import (
    Ceiling,
    HumanSet,
    Items,
    read_categories,
    read_items,
    read_pairs,
    read_triplets,
)
from storage.readers.taxonomy import DATA, INDEX, read_nouns
from storage.store.fingerprint import fingerprint, hash_file

Pair = tuple[str, str]
Triplet = tuple[str, str, str]

OTHER_PART_OF_SPEECH = "another part of speech"
SAME_WORD = "a word with itself"
NO_CONCEPT = "no concept"
NO_NUMBER = "no number"
NO_NOUN = "no noun of WordNet"


@dataclass(frozen=True)
class Dropped:
    """What was left out: a pair or triplet of words, or an item with all its pairs."""

    words: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Judgments:
    """Judgments of pairs or of triplets of the concepts.

    `scores` gives each unordered pair, its names in order, once; a higher score is more alike.
    `raters` gives each pair's scores by rater. `triplets` lists two that are alike and the odd one.
    """

    name: str
    identity: str
    scores: dict[Pair, float] = field(default_factory=dict)
    raters: dict[Pair, list[float]] = field(default_factory=dict)
    triplets: list[Triplet] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ceiling: Ceiling | None = None
    of_triplets: bool = False

    @property
    def groups(self) -> Sequence[tuple[str, ...]]:
        """The pairs or triplets of concepts."""
        return self.triplets if self.of_triplets else list(self.scores)

    def counted(self, n: int) -> str:
        """So many of these, in words."""
        return f"{n:,} {'triplet' if self.of_triplets else 'pair'}{'' if n == 1 else 's'}"

    @property
    def concepts(self) -> set[str]:
        """All that are judged."""
        return {name for group in self.groups for name in group}


def judge(
    human: HumanSet, concepts: list[str], senses: Mapping[str, str | None] | None = None
) -> Judgments:
    """Read a human data set and keep what it says about the concepts. `senses` are those of WordNet.

    Raises UserError for a file that is wrong. What is odd but can be used is told in the notes.
    """
    find = _finder(concepts, human.lemma)
    read: dict[str, Callable[[HumanSet, Callable[[str], str | None]], Judgments]] = {
        "pairs": _from_pairs,
        "matrix": _from_matrix,
        "embeddings": _from_vectors,
        "features": _from_vectors,
        "categories": _from_categories,
        "triplets": _from_triplets,
        "wordnet": lambda human, _: _from_wordnet(human, concepts, senses or {}),
    }
    found = replace(read[human.kind](human, find), ceiling=human.ceiling)
    counts = Counter(each.reason for each in found.dropped)
    why = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    left_out = f"; left out: {why}" if why else ""
    note = f"{human.name}: {found.counted(len(found.groups))} of these concepts{left_out}"
    return replace(found, notes=[*found.notes, note])


def _finder(concepts: list[str], lemma: bool) -> Callable[[str], str | None]:
    """What gives the concept that a word names, None where there is none."""
    by_form: dict[str, str] = {}
    for name in concepts:
        if (same := by_form.setdefault(normal_form(name), name)) != name:
            raise UserError(f"concepts {same!r} and {name!r} are one word in human data")

    @cache
    def find(word: str) -> str | None:
        form = normal_form(word)
        return by_form.get(form, by_form.get(singular(form)) if lemma and form else None)

    return find


def _identity(human: HumanSet, found: Any) -> str:
    """Stands for the file and for what was read from it: other columns are other judgments."""
    return fingerprint([hash_file(human.path), human.kind, found])


def _from_pairs(human: HumanSet, find: Callable[[str], str | None]) -> Judgments:
    scores: dict[Pair, list[float]] = defaultdict(list)
    raters: dict[Pair, list[list[float]]] = defaultdict(list)
    dropped = []
    sign = -1 if human.dissimilar else 1
    for rated in read_pairs(human):
        words = rated.first, rated.second
        if not all(word.endswith(human.suffix) for word in words):
            dropped.append(Dropped(words, OTHER_PART_OF_SPEECH))
            continue
        names = [find(word.removesuffix(human.suffix)) for word in words]
        if None in names:
            dropped.append(Dropped(words, NO_CONCEPT))
        elif names[0] == names[1]:
            dropped.append(Dropped(words, SAME_WORD))
        else:
            first, second = sorted(name for name in names if name)
            scores[first, second].append(sign * rated.score)
            raters[first, second].append([sign * each for each in rated.raters])
    means = {pair: sum(values) / len(values) for pair, values in sorted(scores.items())}
    again = [pair for pair, values in scores.items() if len(values) > 1]
    against = [pair for pair in again if len(set(scores[pair])) > 1]
    notes = []
    if again:
        first, second = pair = (against or again)[0]
        given = ", ".join(f"{sign * score:g}" for score in scores[pair])
        notes.append(
            f"{human.name}: pairs that are rated more than once: {len(again)}, {len(against)} of them "
            f"differently; their mean counts. The first: {first!r} and {second!r}: {given}"
        )
    of_raters = {
        pair: [_mean(scores) for scores in zip(*raters[pair], strict=True)]
        for pair in means
        if human.raters
    }
    identity = _identity(
        human, [[*pair, score, *map(str, of_raters.get(pair, []))] for pair, score in means.items()]
    )
    return Judgments(human.name, identity, means, of_raters, dropped=dropped, notes=notes)


def _mean(scores: Iterable[float]) -> float:
    """The mean of a rater's scores of a pair that stands twice, of those that are there."""
    there = [score for score in scores if not math.isnan(score)]
    return sum(there) / len(there) if there else math.nan


def _from_matrix(human: HumanSet, find: Callable[[str], str | None]) -> Judgments:
    items = read_items(human)
    values = -items.values if human.dissimilar else items.values
    return _from_square(human, items.names, values, find)


def _from_vectors(human: HumanSet, find: Callable[[str], str | None]) -> Judgments:
    items = read_items(human)
    known = [number for number, name in enumerate(items.names) if find(name)]
    square = np.full((len(items.names), len(items.names)), np.nan)
    wanted = np.array(known, np.int64)
    if known:
        square[np.ix_(wanted, wanted)] = _compared(human, items, wanted)
    return _from_square(human, items.names, square, find)


def _compared(human: HumanSet, items: Items, wanted: Any) -> Any:
    values = items.values
    if human.vectors == "cosine" and len(empty := wanted[~values[wanted].any(axis=1)]):
        raise UserError(
            f"{human.path}: all numbers of {items.names[empty[0]]!r} are 0, so it has no cosine with "
            "others: leave it out, or compare by `vectors: dot`"
        )
    try:
        if human.vectors == "softmax":
            return triplet_similarity(values, wanted)
        if human.vectors == "dot":
            return values[wanted] @ values[wanted].T
        return cosine_matrix(values[wanted])
    except ValueError as error:
        raise UserError(f"{human.path}: {error}") from error


def _from_square(
    human: HumanSet, names: list[str], values: Any, find: Callable[[str], str | None]
) -> Judgments:
    place: dict[str, int] = {}
    dropped = []
    for number, name in enumerate(names):
        concept = find(name)
        if concept is None:
            dropped.append(Dropped((name,), NO_CONCEPT))
        elif concept in place:
            raise UserError(
                f"{human.path}: the items {names[place[concept]]!r} and {name!r} are both {concept!r}"
            )
        else:
            place[concept] = number
    scores = {}
    ordered = sorted(place)
    for at, first in enumerate(ordered):
        for second in ordered[at + 1 :]:
            score = float(values[place[first], place[second]])
            if np.isnan(score):
                dropped.append(Dropped((first, second), NO_NUMBER))
            else:
                scores[first, second] = score
    identity = _identity(human, [[*pair, score] for pair, score in scores.items()])
    return Judgments(human.name, identity, scores, dropped=dropped)


def _from_categories(human: HumanSet, find: Callable[[str], str | None]) -> Judgments:
    """Two concepts are alike (1) when a category holds both, else unlike (0)."""
    categories: dict[str, set[str]] = defaultdict(set)
    dropped = []
    for category, word in read_categories(human):
        concept = find(word)
        if concept is None:
            dropped.append(Dropped((word, category), NO_CONCEPT))
        else:
            categories[concept].add(category)
    ordered = sorted(categories)
    scores = {
        (first, second): float(bool(categories[first] & categories[second]))
        for at, first in enumerate(ordered)
        for second in ordered[at + 1 :]
    }
    identity = _identity(human, [[*pair, score] for pair, score in scores.items()])
    return Judgments(human.name, identity, scores, dropped=dropped)


def _from_wordnet(human: HumanSet, concepts: list[str], senses: Mapping[str, str | None]) -> Judgments:
    nouns = read_nouns(human.path)
    synsets = {name: nouns.synset(name, senses.get(name)) for name in sorted(concepts)}
    known = {name: synset for name, synset in synsets.items() if synset is not None}
    dropped = [Dropped((name,), NO_NOUN) for name in synsets if name not in known]
    try:
        square = taxonomy_similarity(nouns.hypernyms, list(known.values()), human.taxonomy)
    except ValueError as error:
        raise UserError(f"{human.path}: {error}") from error
    ends = zip(*np.triu_indices(len(known), 1), strict=True)
    names = list(known)
    scores = {(names[first], names[second]): float(square[first, second]) for first, second in ends}
    listed = [[*pair, score] for pair, score in scores.items()]
    files = [hash_file(human.path / name) for name in (INDEX, DATA)]
    identity = fingerprint([files, human.taxonomy, listed])
    return Judgments(human.name, identity, scores, dropped=dropped)


def _from_triplets(human: HumanSet, find: Callable[[str], str | None]) -> Judgments:
    kept, dropped = [], []
    for words in read_triplets(human):
        names = [name for name in map(find, words) if name]
        if len(names) < 3:
            dropped.append(Dropped(words, NO_CONCEPT))
        elif len(set(names)) < 3:
            dropped.append(Dropped(words, SAME_WORD))
        else:
            first, second = sorted(names[:2])
            kept.append((first, second, names[2]))
    identity = _identity(human, [list(each) for each in kept])
    return Judgments(human.name, identity, triplets=kept, dropped=dropped, of_triplets=True)
