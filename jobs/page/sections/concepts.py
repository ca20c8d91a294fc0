"""Details of one or all concepts: experts, top-activating sentences, neighbors, disagreements between
model and people, and steering."""

from __future__ import annotations

import numpy as np

from jobs.engine.keeping import are_kept
from jobs.page.figures import interactive
from jobs.page.sections import steering
from jobs.page.study_data import StudyData
from jobs.results.rows import Row, group_rows
from storage.store.activation_files import SiteActivations
from storage.store.manifest import Manifest
from storage.tables import N_TOP_SENTENCES

MAX_EXPERTS = 10
MAX_NEIGHBORS = 10
MAX_DISAGREEMENTS = 5

_EXPERTS_WITH_SENTENCES = 3
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

_FILES = """
SELECT path, first, sentences, width
FROM activation_files JOIN sites USING (run, pooling, layer, site)
WHERE (run, pooling, layer, site) = ($run, $pooling, $layer, $site)
ORDER BY first
"""

_TOP_SENTENCES = """
SELECT unit, sentence_id, value FROM top_sentences
WHERE (run, pooling, layer, site) = ($run, $pooling, $layer, $site) AND list_contains($units, unit)
ORDER BY unit, rank
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
    """Whether the store has the view's activations, or the top sentences that were taken from them."""
    return _activations(data) is not None


def _activations(data: StudyData) -> Manifest | None:
    for stage in data.stages("activations"):
        key = {name: stage.params[name] for name in ("model", "revision", "concept_set")}
        is_latent = "dictionary" in stage.params
        if not stage.dropped and not is_latent and key.items() <= data.view.parameters.items():
            return stage
    return None


def _add_top_sentences(data: StudyData, experts: list[Row]) -> None:
    """Add `top_sentences` to every expert: value, text and concepts. Every site is read once."""
    activations = _activations(data)
    if activations is None:
        return
    top: list[tuple[Row, list[tuple[int, float]]]] = []
    for (layer, site), rows in group_rows(experts, "layer", "site").items():
        find = _max_activating if are_kept(activations.params) else _stored_top_sentences
        top += zip(rows, find(data, activations, layer, site, rows), strict=True)
    ids = sorted({sentence_id for _, matches in top for sentence_id, _ in matches})
    sentences = {
        row["sentence_id"]: (row["text"], row["concepts"]) for row in data.query(_SENTENCES, ids=ids)
    }
    for expert, matches in top:
        expert["top_sentences"] = [[value, *sentences[sentence_id]] for sentence_id, value in matches]


def _max_activating(
    data: StudyData, activations: Manifest, layer: int, site: str, experts: list[Row]
) -> list[list[tuple[int, float]]]:
    """(sentence id, value) of the highest activations of every expert of a site; ties by sentence id."""
    files = data.query(_FILES, run=activations.fingerprint, layer=layer, site=site)
    if not files:
        return [[] for _ in experts]
    records_by_path = {record.path: record for record in activations.files}
    records = [records_by_path[row["path"]] for row in files]
    paths = [activations.folder / record.path for record in records]
    site_files = SiteActivations(paths, files[0]["width"], records)
    values = site_files.read()[[row["unit"] for row in experts]]
    ids = np.concatenate([np.arange(row["first"], row["first"] + row["sentences"]) for row in files])
    order = np.argsort(-values, axis=1, kind="stable")[:, :N_TOP_SENTENCES]
    return [
        [(int(ids[column]), float(unit[column])) for column in columns]
        for unit, columns in zip(values, order, strict=True)
    ]


def _stored_top_sentences(
    data: StudyData, activations: Manifest, layer: int, site: str, experts: list[Row]
) -> list[list[tuple[int, float]]]:
    """The same, from the table that was made of activations that were not kept."""
    units = [row["unit"] for row in experts]
    rows = data.query(_TOP_SENTENCES, run=activations.fingerprint, layer=layer, site=site, units=units)
    by_unit = group_rows(rows, "unit")
    return [
        [(row["sentence_id"], row["value"]) for row in by_unit.get(unit, [])][:N_TOP_SENTENCES]
        for unit in units
    ]
