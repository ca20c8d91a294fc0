"""What is known of one concept, or of all: experts, sentences that excite them, neighbours,
disagreements, and how steering it behaves where that was tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.page import steered, web
from jobs.page.source import Source
from storage.errors import StoreError

EXPERTS_SHOWN = 10
NEIGHBOURS = 10
DISAGREEMENTS = 5
SENTENCES = 3

_EXCITED = 3
"""For so many of a concept's experts the page has sentences; served, for all of them."""

_COUNTS = """
SELECT concept, count(*) AS n FROM experts
WHERE (model, revision, concept_set, pooling) = ($model, $revision, $concept_set, $pooling)
    AND ap > $threshold
GROUP BY concept
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
    for name, told in steered.of_concepts(source, concept).items():
        drawn = web.draw(steered.figure(name, told["rows"]))
        found[name]["steering"] = {"figure": drawn, "samples": told["samples"]}
    return found


def excited(source: Source) -> bool:
    """Whether the activations of the view are still in the store."""
    view = source.view
    return any(
        each.kind == "activations"
        and each.params["model"] == view.model
        and each.params["revision"] == view.revision
        and not each.dropped
        for each in source.runs
    )


def _add_sentences(source: Source, experts: list[Detail]) -> None:
    """Give each expert the sentences that excite it most; one query a site."""
    if not excited(source):
        return
    sites: dict[tuple[int, str], list[Detail]] = {}
    for row in experts:
        sites.setdefault((row["layer"], row["site"]), []).append(row)
    for (layer, site), rows in sites.items():
        units = sorted({row["unit"] for row in rows})
        of_unit: dict[int, list[list[Any]]] = {}
        for unit, *told in sentences(source, layer, site, units):
            of_unit.setdefault(unit, []).append(told)
        for row in rows:
            row["excited_by"] = of_unit.get(row["unit"], [])


def sentences(
    source: Source, layer: int, site: str, units: list[int]
) -> Iterator[tuple[int, float, str, list[str]]]:
    """(unit, value, text, concepts) of the sentences that excite units of a site most.

    Raises StoreError where the activations were dropped.
    """
    if not excited(source):
        raise StoreError("the raw activations were dropped (experts.keep_activations is false)")
    at = {**source.view.parameters, "layer": layer, "site": site, "units": units}
    source.connection.execute("SET VARIABLE place = $place", {"place": at})
    for row in source.ask_named("exciting_sentences", count=SENTENCES):
        yield row["unit"], row["value"], row["text"], row["concepts"]
