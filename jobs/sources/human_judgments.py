"""Human judgments of a sweep's concepts, and the items of the data set that were left out and why."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from alignment.statistics.taxonomy import taxonomy_similarity
from alignment.statistics.triplets import triplet_similarity
from alignment.statistics.vectors import cosine_matrix
from alignment.text.word_matching import normalize_word, singularize
from storage.errors import UserError
from storage.readers.human import (
    HumanSet,
    Items,
    NoiseCeiling,
    read_association_items,
    read_categories,
    read_items,
    read_pairs,
    read_triplets,
)
from storage.readers.wordnet import NOUN_FILES, find_noun, read_hypernyms
from storage.store.fingerprint import fingerprint, hash_file

Pair = tuple[str, str]
ConceptLookup = Callable[[str], str | None]

SAME_WORD = "a word with itself"
NO_CONCEPT = "no concept"


@dataclass(frozen=True)
class DroppedItem:
    """A pair or triplet of words, or an item with all its pairs, that was left out."""

    words: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Judgments:
    """Judgments of pairs or triplets of the concepts.

    `scores` has the similarity of each unordered pair, its names sorted; `raters` the scores of each
    pair by rater. A triplet has the two similar concepts, sorted, and the odd one out.
    """

    name: str
    identity: str = ""
    scores: dict[Pair, float] = field(default_factory=dict)
    raters: dict[Pair, list[float]] = field(default_factory=dict)
    triplets: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: list[DroppedItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ceiling: NoiseCeiling | None = None
    are_triplets: bool = False

    @property
    def groups(self) -> Sequence[tuple[str, ...]]:
        """The pairs or triplets of concepts."""
        return self.triplets if self.are_triplets else list(self.scores)

    def describe_count(self, n: int) -> str:
        """A number of pairs or triplets, in words."""
        return f"{n:,} {'triplet' if self.are_triplets else 'pair'}{'' if n == 1 else 's'}"

    @property
    def concepts(self) -> set[str]:
        """All concepts with judgments."""
        return {name for group in self.groups for name in group}


def load_judgments(
    human: HumanSet, concepts: list[str], senses: Mapping[str, str | None] | None = None
) -> Judgments:
    """Read a human data set and keep its judgments of the concepts; `senses` are WordNet's.

    Notes report irregularities that do not prevent the use. Raises UserError for an invalid file.
    """
    find_concept = _make_concept_lookup(concepts, human.lemma)
    readers: dict[str, Callable[[HumanSet, ConceptLookup], Judgments]] = {
        "pairs": _from_pairs,
        "matrix": _from_matrix,
        "embeddings": _from_vectors,
        "features": _from_vectors,
        "associations": _from_associations,
        "categories": _from_categories,
        "triplets": _from_triplets,
        "wordnet": lambda human, _: _from_wordnet(human, concepts, senses or {}),
    }
    judgments = readers[human.kind](human, find_concept)
    counts = Counter(item.reason for item in judgments.dropped)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    left_out = f"; left out: {reasons}" if reasons else ""
    count = judgments.describe_count(len(judgments.groups))
    return replace(
        judgments,
        identity=_identity(human, judgments),
        ceiling=human.ceiling,
        notes=[*judgments.notes, f"{human.name}: {count} of these concepts{left_out}"],
    )


def _make_concept_lookup(concepts: list[str], lemma: bool) -> ConceptLookup:
    """A function from a word to the concept it names, or None."""
    by_form: dict[str, str] = {}
    for name in concepts:
        if (same := by_form.setdefault(normalize_word(name), name)) != name:
            raise UserError(f"concepts {same!r} and {name!r} map to the same word in human data")

    @cache
    def find_concept(word: str) -> str | None:
        form = normalize_word(word)
        return by_form.get(form, by_form.get(singularize(form)) if lemma and form else None)

    return find_concept


def _identity(human: HumanSet, judgments: Judgments) -> str:
    """Fingerprint of the file and of what was read from it: other columns are other judgments."""
    rows: list[list[Any]] = [list(triplet) for triplet in judgments.triplets]
    for pair, score in judgments.scores.items():
        rows.append([*pair, score, *map(str, judgments.raters.get(pair, []))])
    if human.kind == "wordnet":
        files = [hash_file(human.path / name) for name in NOUN_FILES]
        return fingerprint([files, human.taxonomy, rows])
    return fingerprint([hash_file(human.path), human.kind, rows])


def _from_pairs(human: HumanSet, find_concept: ConceptLookup) -> Judgments:
    scores: dict[Pair, list[float]] = defaultdict(list)
    raters: dict[Pair, list[list[float]]] = defaultdict(list)
    dropped = []
    sign = -1 if human.dissimilar else 1
    for rated in read_pairs(human):
        words = rated.first, rated.second
        if not all(word.endswith(human.suffix) for word in words):
            dropped.append(DroppedItem(words, "another part of speech"))
            continue
        names = [find_concept(word.removesuffix(human.suffix)) for word in words]
        if None in names:
            dropped.append(DroppedItem(words, NO_CONCEPT))
        elif names[0] == names[1]:
            dropped.append(DroppedItem(words, SAME_WORD))
        else:
            first, second = sorted(name for name in names if name)
            scores[first, second].append(sign * rated.score)
            raters[first, second].append([sign * score for score in rated.raters])
    means = {pair: sum(values) / len(values) for pair, values in sorted(scores.items())}
    duplicates = [pair for pair, values in scores.items() if len(values) > 1]
    conflicting = [pair for pair in duplicates if len(set(scores[pair])) > 1]
    notes = []
    if duplicates:
        first, second = pair = (conflicting or duplicates)[0]
        values = ", ".join(f"{sign * score:g}" for score in scores[pair])
        notes.append(
            f"{human.name}: duplicate pairs: {len(duplicates)} ({len(conflicting)} with different "
            f"scores); scores averaged. The first: {first!r} and {second!r}: {values}"
        )
    ratings = [score for pair in scores for row in raters[pair] for score in row]
    if missing := sum(map(math.isnan, ratings)):
        notes.append(
            f"{human.name}: {missing:,} of {len(ratings):,} ratings by individual raters are missing"
        )
    rater_scores = {
        pair: [_mean_ignoring_nan(scores) for scores in zip(*raters[pair], strict=True)]
        for pair in means
        if human.raters
    }
    return Judgments(human.name, scores=means, raters=rater_scores, dropped=dropped, notes=notes)


def _mean_ignoring_nan(scores: Iterable[float]) -> float:
    """Mean of a rater's scores of a duplicate pair; NaN if there is none."""
    observed = [score for score in scores if not math.isnan(score)]
    return sum(observed) / len(observed) if observed else math.nan


def _from_matrix(human: HumanSet, find_concept: ConceptLookup) -> Judgments:
    items = read_items(human)
    sign = -1 if human.dissimilar else 1
    return _from_square(human, items.names, sign * items.values, find_concept)


def _from_vectors(human: HumanSet, find_concept: ConceptLookup) -> Judgments:
    items = read_items(human)
    matched = np.flatnonzero([find_concept(name) is not None for name in items.names])
    square = np.full((len(items.names), len(items.names)), np.nan)
    if matched.size:
        square[np.ix_(matched, matched)] = _item_similarity(human, items, matched)
    return _from_square(human, items.names, square, find_concept)


def _from_associations(human: HumanSet, find_concept: ConceptLookup) -> Judgments:
    """Cosines of the strengths of the responses. Only cues that name a concept are kept: all of them are
    too many for a table."""
    items, others = read_association_items(human, lambda cue: find_concept(cue) is not None)
    indices = np.arange(len(items.names))
    square = _item_similarity(human, items, indices) if indices.size else np.empty((0, 0))
    judgments = _from_square(human, items.names, square, find_concept)
    return replace(judgments, dropped=[DroppedItem((cue,), NO_CONCEPT) for cue in others])


def _item_similarity(human: HumanSet, items: Items, indices: Any) -> Any:
    """Similarities of the items with these indices, by their vectors."""
    values = items.values
    if human.vectors == "cosine" and len(zeros := indices[~values[indices].any(axis=1)]):
        raise UserError(
            f"{human.path}: {items.names[zeros[0]]!r} is the zero vector; cosine is undefined. "
            "Remove it, or set `vectors: dot`"
        )
    try:
        if human.vectors == "softmax":
            return triplet_similarity(values, indices)
        if human.vectors == "dot":
            return values[indices] @ values[indices].T
        return cosine_matrix(values[indices])
    except ValueError as error:
        raise UserError(f"{human.path}: {error}") from error


def _from_square(
    human: HumanSet, names: list[str], values: Any, find_concept: ConceptLookup
) -> Judgments:
    rows: dict[str, int] = {}
    dropped = []
    for row, name in enumerate(names):
        concept = find_concept(name)
        if concept is None:
            dropped.append(DroppedItem((name,), NO_CONCEPT))
        elif concept in rows:
            raise UserError(
                f"{human.path}: the items {names[rows[concept]]!r} and {name!r} both name {concept!r}"
            )
        else:
            rows[concept] = row
    scores = {}
    for first, second in combinations(sorted(rows), 2):
        score = float(values[rows[first], rows[second]])
        if np.isnan(score):
            dropped.append(DroppedItem((first, second), "no number"))
        else:
            scores[first, second] = score
    return Judgments(human.name, scores=scores, dropped=dropped)


def _from_categories(human: HumanSet, find_concept: ConceptLookup) -> Judgments:
    """Two concepts are similar (1) if they share a category, otherwise not (0)."""
    categories: dict[str, set[str]] = defaultdict(set)
    dropped = []
    for category, word in read_categories(human):
        concept = find_concept(word)
        if concept is None:
            dropped.append(DroppedItem((word, category), NO_CONCEPT))
        else:
            categories[concept].add(category)
    scores = {
        (first, second): float(bool(categories[first] & categories[second]))
        for first, second in combinations(sorted(categories), 2)
    }
    return Judgments(human.name, scores=scores, dropped=dropped)


def _from_wordnet(human: HumanSet, concepts: list[str], senses: Mapping[str, str | None]) -> Judgments:
    synsets = {name: find_noun(human.path, name, senses.get(name)) for name in sorted(concepts)}
    covered = {name: synset for name, synset in synsets.items() if synset is not None}
    dropped = [DroppedItem((name,), "no noun of WordNet") for name in synsets if name not in covered]
    try:
        hypernyms = read_hypernyms(human.path, covered.values())
        square = taxonomy_similarity(hypernyms, list(covered.values()), human.taxonomy)
    except ValueError as error:
        raise UserError(f"{human.path}: {error}") from error
    pairs = combinations(enumerate(covered), 2)
    scores = {(a, b): float(square[row, column]) for (row, a), (column, b) in pairs}
    return Judgments(human.name, scores=scores, dropped=dropped)


def _from_triplets(human: HumanSet, find_concept: ConceptLookup) -> Judgments:
    triplets, dropped = [], []
    for words in read_triplets(human):
        names = [name for name in map(find_concept, words) if name]
        if len(names) < 3:
            dropped.append(DroppedItem(words, NO_CONCEPT))
        elif len(set(names)) < 3:
            dropped.append(DroppedItem(words, SAME_WORD))
        else:
            first, second = sorted(names[:2])
            triplets.append((first, second, names[2]))
    return Judgments(human.name, triplets=triplets, dropped=dropped, are_triplets=True)
