"""What is known of one concept, or of all: experts, sentences that excite them, neighbours,
disagreements, and how steering it behaves where that was tried."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.page.figures import interactive
from jobs.page.sections import steering
from jobs.page.study import Source
from storage.store.activation_files import SiteFiles
from storage.store.manifest import Manifest

EXPERTS_SHOWN = 10
NEIGHBOURS = 10
DISAGREEMENTS = 5
SENTENCES = 5

_EXCITED = 3
"""For so many of a concept's experts the page has sentences; served, for all of them."""

_COUNTS = """
SELECT concept, count(*) AS n FROM experts
WHERE (model, revision, concept_set, pooling) = ($model, $revision, $concept_set, $pooling)
    AND ap > $threshold
GROUP BY concept
"""

_FILES = """
SELECT path, first, sentences FROM activation_files
WHERE (run, pooling, layer, site) = ($run, $pooling, $layer, $site)
ORDER BY first
"""

_WIDTH = "SELECT width FROM sites WHERE (run, pooling, layer, site) = ($run, $pooling, $layer, $site)"

_TEXTS = """
SELECT sentence_id, text, coalesce(concepts, []) AS concepts
FROM sentences LEFT JOIN (
    SELECT sentence_id, list(concept ORDER BY concept) AS concepts FROM memberships
    WHERE role = 'positive' AND concept_set = $concept_set GROUP BY sentence_id
) USING (sentence_id)
WHERE concept_set = $concept_set AND list_contains($ids, sentence_id)
"""

Detail = dict[str, Any]


def details(source: Source, concept: str | None = None) -> dict[str, Detail]:
    """What the page shows of each concept, or of one. Reads the table `shown` (`jobs.page.pairs`)."""
    found: dict[str, Detail] = {
        row["concept"]: {
            "name": row["concept"],
            "domain": row["domain"],
            "sense": row["sense"],
            "sentences": row["n_sentences"],
            "n_experts": None,
            "experts": [],
            "model": [],
            "people": [],
            "disagreements": [],
            "steering": None,
        }
        for row in source.ask(
            "FROM concepts WHERE concept_set = $concept_set AND ($concept IS NULL OR concept = "
            "$concept)",
            concept_set=source.concept_set,
            concept=concept,
        )
    }
    view = source.view
    if view.threshold is not None:
        for detail in found.values():
            detail["n_experts"] = 0
        for row in source.ask(_COUNTS, threshold=view.threshold, **view.parameters):
            if row["concept"] in found:
                found[row["concept"]]["n_experts"] = row["n"]
    for row in source.ask_named("nearest", concept=concept, count=NEIGHBOURS):
        found[row["concept"]][row["source"]].append([row["other"], row["value"]])
    for row in source.ask_named("disagreements", concept=concept, count=DISAGREEMENTS):
        names = ("other", "similarity", "score", "model_rank", "people_rank")
        found[row["concept"]]["disagreements"].append([row[name] for name in names])
    rows = source.ask_named("best_experts", concept=concept, count=EXPERTS_SHOWN, **view.parameters)
    for row in rows:
        found[row.pop("concept")]["experts"].append(row)
    if concept is None:
        _add_sentences(source, [row for each in found.values() for row in each["experts"][:_EXCITED]])
    else:
        _add_sentences(source, rows)
    for name, told in steering.of_concepts(source, concept).items():
        drawn = interactive.draw(steering.figure(name, told["rows"]))
        found[name]["steering"] = {"figure": drawn, "samples": told["samples"]}
    return found


def excited(source: Source) -> bool:
    """Whether the activations of the view are still in the store."""
    return _activations(source) is not None


def _activations(source: Source) -> Manifest | None:
    view = source.view
    for each in source.runs:
        if each.kind == "activations" and not each.dropped:
            held = {name: each.params[name] for name in ("model", "revision", "concept_set")}
            if held.items() <= view.parameters.items():
                return each
    return None


def _add_sentences(source: Source, experts: list[Detail]) -> None:
    """Give each expert the sentences that excite it most: value, text and the concepts it is
    about. Each site is read once."""
    read = _activations(source)
    if read is None:
        return
    sites: dict[tuple[int, str], list[Detail]] = {}
    for row in experts:
        sites.setdefault((row["layer"], row["site"]), []).append(row)
    strongest = [
        (row, found)
        for (layer, site), rows in sites.items()
        for row, found in zip(rows, _strongest(source, read, layer, site, rows), strict=True)
    ]
    ids = sorted({number for _, found in strongest for number, _ in found})
    texts = {
        row["sentence_id"]: (row["text"], row["concepts"])
        for row in source.ask(_TEXTS, ids=ids, concept_set=source.concept_set)
    }
    for row, found in strongest:
        row["excited_by"] = [[value, *texts[number]] for number, value in found]


def _strongest(
    source: Source, read: Manifest, layer: int, site: str, experts: list[Detail]
) -> list[list[tuple[int, float]]]:
    """(sentence, value) of the sentences with the highest activations of each expert of one site. Equal
    values go by the sentence's number."""
    place = {"pooling": source.view.pooling, "layer": layer, "site": site, "run": read.fingerprint}
    files = source.ask(_FILES, **place)
    if not files:
        return [[] for _ in experts]
    (width,) = source.ask(_WIDTH, **place)
    values = SiteFiles([read.folder / row["path"] for row in files], width["width"]).read()
    values = values[[row["unit"] for row in experts]]
    ids = np.concatenate([np.arange(row["first"], row["first"] + row["sentences"]) for row in files])
    order = np.argsort(-values, axis=1, kind="stable")[:, :SENTENCES]
    return [
        [(int(ids[column]), float(own[column])) for column in columns]
        for own, columns in zip(values, order, strict=True)
    ]
