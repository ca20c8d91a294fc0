"""Details of one or all concepts: experts, top-activating sentences, neighbors, disagreements between
model and people, and steering."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from jobs.page.figures import interactive
from jobs.page.sections import steering
from jobs.page.study_data import StudyData
from jobs.results.rows import Row, group_rows
from jobs.scoring.block_scores import SiteKey
from jobs.scoring.stored_top_sentences import read_top_sentences
from storage.store.manifest import Manifest
from storage.tables import N_TOKEN_EXPERTS

MAX_EXPERTS = 10
MAX_NEIGHBORS = 10
MAX_DISAGREEMENTS = 5

_EXPERTS_WITH_SENTENCES = N_TOKEN_EXPERTS
"""Experts per concept with sentences in the report; `serve` has sentences for all of them."""

_COUNTS = """
SELECT concept, count(*) AS n FROM experts
WHERE (model, revision, concept_set, pooling) = ($model, $revision, $concept_set, $pooling)
    AND ap > $threshold
GROUP BY concept
"""

_TOKENS = """
SELECT DISTINCT concept, n_tokens FROM concept_tokens
WHERE (model, revision, concept_set) = ($model, $revision, $concept_set)
"""

_SITES = """
SELECT layer, site FROM activation_files WHERE (run, pooling) = ($run, $pooling)
UNION SELECT layer, site FROM top_sentences WHERE (run, pooling) = ($run, $pooling)
"""

_TOP_TOKENS = """
SELECT layer, site, unit, sentence_id, value, char_start, char_end FROM top_tokens
WHERE (run, pooling) = ($run, $pooling) ORDER BY layer, site, unit, rank
"""

_SENTENCES = """
SELECT sentence_id, text, coalesce(concepts, []) AS concepts
FROM sentences LEFT JOIN (
    SELECT sentence_id, list(concept ORDER BY concept) AS concepts FROM memberships
    WHERE role = 'positive' AND concept_set = $concept_set GROUP BY sentence_id
) USING (sentence_id)
WHERE concept_set = $concept_set AND list_contains($ids, sentence_id)
"""


def concept_details(data: StudyData, concept: str | None = None) -> dict[str, Row]:
    """Details of every concept, or of one, as JSON values. Reads `view_pairs` (`jobs.page.pairs`)."""
    query = "FROM concepts WHERE concept_set = $concept_set AND ($concept IS NULL OR concept = $concept)"
    has_threshold = data.view.threshold is not None
    details: dict[str, Row] = {
        row["concept"]: {
            "name": row["concept"],
            "domain": row["domain"],
            "sense": row["sense"],
            "sentences": row["n_sentences"],
            "n_tokens": None,
            "n_experts": 0 if has_threshold else None,
            "experts": [],
            "model": [],
            "people": [],
            "disagreements": [],
            "steering": None,
        }
        for row in data.query(query, concept=concept)
    }
    for row in data.query(_TOKENS):
        if row["concept"] in details:
            details[row["concept"]]["n_tokens"] = row["n_tokens"]
    if has_threshold:
        for row in data.query(_COUNTS):
            if row["concept"] in details:
                details[row["concept"]]["n_experts"] = row["n"]
    for row in data.named_query("nearest", concept=concept, count=MAX_NEIGHBORS):
        details[row["concept"]][row["source"]].append([row["other"], row["value"]])
    for row in data.named_query("disagreements", concept=concept, count=MAX_DISAGREEMENTS):
        columns = ("other", "similarity", "score", "model_rank", "people_rank")
        details[row["concept"]]["disagreements"].append([row[name] for name in columns])
    experts = data.named_query("best_experts", concept=concept, count=MAX_EXPERTS)
    for row in experts:
        details[row.pop("concept")]["experts"].append(row)
    if concept is None:
        experts = [
            row for detail in details.values() for row in detail["experts"][:_EXPERTS_WITH_SENTENCES]
        ]
    _add_top_sentences(data, experts)
    for name, curve in steering.concept_steering(data, concept).items():
        figure = interactive.draw(steering.figure(name, curve["rows"]))
        details[name]["steering"] = {"figure": figure, "samples": curve["samples"]}
    return details


def has_top_sentences(data: StudyData) -> bool:
    """Whether the store has top sentences of the view's experts, or the activations to find them."""
    return any(_find_run(data, kind) is not None for kind in ("top_tokens", "activations"))


def _find_run(data: StudyData, kind: str) -> Manifest | None:
    """The stage of a kind for the neurons of the view, unless files of it were deleted."""
    for stage in data.stages(kind):
        key = {name: stage.params[name] for name in ("model", "revision", "concept_set")}
        is_latent = "dictionary" in stage.params
        if not stage.dropped and not is_latent and key.items() <= data.view.parameters.items():
            return stage
    return None


class _TopSentence(NamedTuple):
    """A sentence and a neuron's value on it; first and last character of the token of the maximum, both
    0 where it is not known."""

    sentence_id: int
    value: float
    start: int = 0
    end: int = 0


_Neuron = tuple[int, str, int]


def _add_top_sentences(data: StudyData, experts: list[Row]) -> None:
    """Add `top_sentences` to every expert: value, the text before the token of the maximum, the token,
    the text after it, and the sentence's concepts."""
    top = _stored_top_tokens(data)
    rest = [(row["layer"], row["site"], row["unit"]) for row in experts]
    top |= _max_activating(data, [neuron for neuron in rest if neuron not in top])
    ids = sorted({each.sentence_id for sentences in top.values() for each in sentences})
    rows = {row["sentence_id"]: row for row in data.query(_SENTENCES, ids=ids)}
    for expert in experts:
        sentences = top.get((expert["layer"], expert["site"], expert["unit"]))
        if sentences is None:
            continue
        expert["top_sentences"] = [
            [
                each.value,
                *_split(rows[each.sentence_id]["text"], each),
                rows[each.sentence_id]["concepts"],
            ]
            for each in sentences
        ]


def _split(text: str, sentence: _TopSentence) -> tuple[str, str, str]:
    """The text before, of and after the token. In three parts, because JavaScript counts other
    characters than Python."""
    return text[: sentence.start], text[sentence.start : sentence.end], text[sentence.end :]


def _stored_top_tokens(data: StudyData) -> dict[_Neuron, list[_TopSentence]]:
    """The top sentences of each concept's best experts, with their tokens."""
    run = _find_run(data, "top_tokens")
    if run is None:
        return {}
    rows = data.query(_TOP_TOKENS, run=run.fingerprint)
    return {
        neuron: [
            _TopSentence(row["sentence_id"], row["value"], row["char_start"] or 0, row["char_end"] or 0)
            for row in group
        ]
        for neuron, group in group_rows(rows, "layer", "site", "unit").items()
    }


def _max_activating(data: StudyData, neurons: Collection[_Neuron]) -> dict[_Neuron, list[_TopSentence]]:
    """The top sentences of other neurons, if activations or what was made of them are there. Every site
    is read once."""
    run = _find_run(data, "activations")
    if run is None:
        return {}
    units: dict[tuple[int, str], set[int]] = {}
    for layer, site, unit in neurons:
        units.setdefault((layer, site), set()).add(unit)
    found = {}
    for row in data.query(_SITES, run=run.fingerprint):
        layer, site = row["layer"], row["site"]
        if (layer, site) in units:
            key = SiteKey(data.view.pooling, layer, site)
            top = read_top_sentences(run, key, np.array(sorted(units[layer, site])))
            for unit, ids, values in zip(*(column.tolist() for column in top), strict=True):
                found[layer, site, unit] = list(map(_TopSentence, ids, values))
    return found
