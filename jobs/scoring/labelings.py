"""Labelings: the positives and negatives of every concept, for the experts and for each control.

A labeling is a function of the parameters of the stage `experts` or `controls`, and of the sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.arrays import Ints
from alignment.expertise.label_permutations import LabelPermutations, permute_labels
from alignment.expertise.labels import (
    Labels,
    draw_positives,
    labels_against_others,
    labels_against_pool,
    labels_against_rest,
    labels_from_own_negatives,
    labels_matched_by_length,
    split_half,
)
from alignment.text.bag_of_words import split_words
from alignment.text.pseudo_words import choose_pseudo_words
from alignment.text.word_matching import inflections
from jobs import sentences
from jobs.config.analysis import OWN, count_sampled_negatives
from jobs.engine.stage import Stage
from storage.errors import UserError
from storage.readers.concepts import NEGATIVE, POOL

EXPERTS = "experts"
"""Name of the labeling that is no control."""
HALVES = ("half 1", "half 2")
LENGTH_MATCHED = "length-matched"
PSEUDO_CONCEPTS = "pseudo-concepts"
COUNT_MATCHED = "count-matched"
"""The concepts themselves, with as many sentences as their pseudo-concepts have."""
RELABELED_CONTROLS = (*HALVES, LENGTH_MATCHED, PSEUDO_CONCEPTS, COUNT_MATCHED)


class PseudoConcepts(NamedTuple):
    """For each concept, in the set's order, another word, the ids of the sentences that have it, and
    those of equally many sentences of the concept."""

    words: list[str]
    sentence_ids: list[Ints]
    concept_sentence_ids: list[Ints]


@dataclass(frozen=True)
class Labeling:
    """The labels of some sentences, `sentence_ids`, and their permutations.

    `params` are those of the stage `experts` or `controls`; `concepts` are in the set's order.
    """

    params: Mapping[str, Any]
    concepts: list[str]
    labels: Labels
    sentence_ids: Ints
    permutations: LabelPermutations

    @property
    def name(self) -> str:
        return labeling_name(self.params)


def labeling_name(params: Mapping[str, Any]) -> str:
    """The control's name, or `experts`."""
    return str(params.get("control", EXPERTS))


def make_labeling(params: Mapping[str, Any], sentences_stage: Stage, store: Path) -> Labeling:
    """The labeling of a stage with these parameters.

    Raises UserError for a control that the sentences do not allow.
    """
    concepts = sentences.read_concept_names(sentences_stage, store)
    control = params.get("control")
    if control in RELABELED_CONTROLS:
        try:
            labels, sentence_ids = _make_control_labels(params, sentences_stage, store)
        except ValueError as error:
            raise UserError(f"controls: {control}: {error}; remove this control") from error
    else:
        labels = read_labels(params, sentences_stage, store)
        sentence_ids = np.arange(labels.n_sentences)
    # Cached properties: computed once here instead of in every task.
    _ = labels.patterns, labels.n_negative, labels.grouped_positives, labels.grouped_negatives
    permutations = permute_labels(labels, params["permutations"], params["seed"])
    return Labeling(params, concepts, labels, sentence_ids, permutations)


def read_labels(params: Mapping[str, Any], sentences_stage: Stage, store: Path) -> Labels:
    """The positives and negatives of every concept, according to `experts.negatives`."""
    n_concepts = len(sentences.read_concept_names(sentences_stage, store))
    ids, members, n_sentences = sentences.read_memberships(sentences_stage, store)
    if params["negatives"] == OWN:
        negatives = sentences.read_memberships(sentences_stage, store, NEGATIVE)[:2]
        return labels_from_own_negatives(ids, members, *negatives, n_sentences, n_concepts)
    if params["negatives"] == POOL:
        pool, _, _ = sentences.read_memberships(sentences_stage, store, POOL)
        return labels_against_pool(ids, members, pool, n_sentences, n_concepts)
    n_sampled = count_sampled_negatives(params["negatives"])
    return labels_against_others(ids, members, n_sentences, n_concepts, n_sampled, params["seed"])


def read_pseudo_concepts(sentences_stage: Stage, store: Path, seed: int) -> PseudoConcepts:
    """Words that occur in nearly as many of the concepts' sentences as a concept has, and that are no
    concept's word in any inflection; and equally many sentences of each concept, drawn at random.
    Raises ValueError if there are too few such words."""
    ids, members, _ = sentences.read_memberships(sentences_stage, store)
    positives = np.unique(ids)
    texts = sentences.read_texts(sentences_stage, store)
    words = sentences.read_concept_words(sentences_stage, store)
    excluded = {
        part
        for word in words
        for form in inflections(word.name, word.pos, word.language)
        for part in split_words(form)
    }
    # Sentences of several concepts stay, or these would have fewer than their own pseudo-concepts.
    is_shared = np.bincount(ids)[ids] > 1
    fewest, most = (np.bincount(each, minlength=len(words)) for each in (members[is_shared], members))
    chosen, indices = choose_pseudo_words(
        [texts[n][0] for n in positives], fewest.tolist(), most.tolist(), excluded, seed
    )
    is_kept = draw_positives(ids, members, [len(rows) for rows in indices], seed)
    return PseudoConcepts(
        chosen,
        [positives[rows] for rows in indices],
        [ids[is_kept & (members == concept)] for concept in range(len(words))],
    )


def _make_control_labels(
    params: Mapping[str, Any], sentences_stage: Stage, store: Path
) -> tuple[Labels, Ints]:
    """The labels of a relabeled control, and the ids of the sentences that they label."""
    control, seed = params["control"], params["seed"]
    n_concepts = len(sentences.read_concept_names(sentences_stage, store))
    ids, members, n_sentences = sentences.read_memberships(sentences_stage, store)
    if control == LENGTH_MATCHED:
        texts = sentences.read_texts(sentences_stage, store)
        lengths = np.array([len(text.split()) for text, _ in texts])
        labels = labels_matched_by_length(ids, members, lengths, n_concepts, seed)
        return labels, np.arange(n_sentences)
    if control in (PSEUDO_CONCEPTS, COUNT_MATCHED):
        pseudo = read_pseudo_concepts(sentences_stage, store, seed)
        is_pseudo = control == PSEUDO_CONCEPTS
        own = pseudo.sentence_ids if is_pseudo else pseudo.concept_sentence_ids
        labeled = np.unique(ids if is_pseudo else np.concatenate(own))
        members = np.repeat(np.arange(n_concepts), list(map(len, own)))
        ids = np.searchsorted(labeled, np.concatenate(own))
        return labels_against_rest(ids, members, len(labeled), n_concepts), labeled
    half = split_half(ids, members, n_sentences, seed)
    half_ids = np.flatnonzero(half == HALVES.index(control))
    in_half = np.isin(ids, half_ids)
    ids, members = np.searchsorted(half_ids, ids[in_half]), members[in_half]
    n_sampled = count_sampled_negatives(params["negatives"])
    # Half of the sentences hold half of the negatives.
    n_sampled = max(1, n_sampled // 2) if n_sampled else None
    labels = labels_against_others(ids, members, len(half_ids), n_concepts, n_sampled, seed)
    return labels, half_ids
