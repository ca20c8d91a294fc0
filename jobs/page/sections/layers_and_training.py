"""Where in a model the experts are and agree with people, and when in training or at which size."""

from __future__ import annotations

import re
from typing import Any

from cluster.models.weights import RANDOM_INIT
from jobs.page.figures.spec import Estimate, Estimates, Figure, Line, Lines, Panel, Section
from jobs.page.study import Source, no_similarities, training_step
from jobs.page.wording import chance, interval, scaled
from jobs.results.summary import STATISTICS
from jobs.similarity import EXPERTS
from storage.store.activation_files import POOLINGS

Row = dict[str, Any]

_PLACES = """
SELECT pooling, layer, site, n_experts, share FROM expert_places
WHERE (model, revision, concept_set) = ($model, $revision, $concept_set) AND threshold = $threshold
ORDER BY site, layer
"""

_ALIGNED = """
FROM alignment
WHERE representation = $experts AND concept_set = $concept_set AND measure = $measure
    AND human_set = $human_set
    AND threshold IS NOT DISTINCT FROM $threshold AND top IS NOT DISTINCT FROM $top
ORDER BY model, revision, layer, site
"""

_COUNTS = """
SELECT model, revision, pooling, sum(n_experts)::BIGINT AS n FROM expert_places
WHERE threshold = $threshold AND concept_set = $concept_set GROUP BY ALL
"""

_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([mb])(?![a-z])", re.IGNORECASE)


def section(source: Source) -> Section:
    """Alignment and share of experts per layer and kind of site; over steps and sizes where the sweep
    has several."""
    anchor, title = "places", "Where in the model, and when in training?"
    if not source.views:
        return Section(anchor, title, missing=[no_similarities(source)])
    view = source.view
    rows = source.ask(
        _ALIGNED,
        experts=EXPERTS,
        concept_set=view.concept_set,
        measure=view.measure,
        human_set=source.human_set,
        threshold=view.threshold,
        top=view.top,
    )
    rows = [row for row in _by_pooling(rows) if row["agreement"] == rows[0]["agreement"]]
    counts = source.ask(_COUNTS, threshold=view.threshold, concept_set=view.concept_set)
    figures, missing = _where(source, rows)
    whole = [row for row in rows if row["layer"] is None and row["site"] is None]
    for found in (_over_steps(source, whole, counts), _over_sizes(source, whole, counts)):
        if isinstance(found, Figure):
            figures.append(found)
        else:
            missing.append(found)
    return Section(anchor, title, [], figures, missing=missing)


def _by_pooling(rows: list[Row]) -> list[Row]:
    """Rows in the order that poolings have on all of the page."""
    return sorted(rows, key=lambda row: POOLINGS.index(row["pooling"]))


def _where(source: Source, rows: list[Row]) -> tuple[list[Figure], list[str]]:
    view = source.view
    here = [row for row in rows if (row["model"], row["revision"]) == (view.model, view.revision)]
    layers = [row for row in here if row["layer"] is not None and row["site"] is None]
    counted = _by_pooling(
        source.ask(
            _PLACES,
            threshold=view.threshold,
            **{name: value for name, value in view.parameters.items() if name != "pooling"},
        )
    )
    panels, missing = [], []
    if layers:
        statistic = STATISTICS[layers[0]["agreement"]]
        panels.append(Panel(f"{statistic} ({source.human_set})", _lines(layers, "layer", "rho")))
    else:
        missing.append(
            "No alignment layer by layer: `similarity: {scopes: [model, layer]}` in the sweep file, and "
            "human data with enough rated pairs."
        )
    if counted:
        panels.append(Panel("share of all experts", _share_lines(counted), percent=True))
    else:
        missing.append("No counts of experts per layer: they are counted at thresholds of the AP.")
    notes = [f"{view.model}@{view.revision}; experts: {view.cut}."]
    if layers:
        notes.append(
            f"Agreement with people ({source.human_set}) is that of the experts of one layer alone; "
            "bands are 95% intervals."
        )
    if counted:
        notes.append("The shares are of all experts of the model.")
    found = _layer_finding([row for row in layers if row["pooling"] == view.pooling], counted, source)
    figures = [Figure("layers", found, " ".join(notes), Lines(panels, "layer"))] if panels else []
    kinds = [row for row in here if row["site"] is not None and row["pooling"] == view.pooling]
    if kinds:
        figures.append(_kinds(source, kinds))
    return figures, missing


def _share_lines(counted: list[Row]) -> list[Line]:
    sites = {row["site"] for row in counted}
    lines: dict[str, list[Row]] = {}
    for row in counted:
        name = f"{row['pooling']} pooling" + (f", {row['site']}" if len(sites) > 1 else "")
        lines.setdefault(name, []).append(row)
    return [
        Line(name, [row["layer"] for row in found], [row["share"] for row in found])
        for name, found in lines.items()
    ]


def _lines(rows: list[Row], x: str, y: str) -> list[Line]:
    """A line a pooling, with intervals."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row["pooling"], []).append(row)
    return [
        Line(
            f"{pooling} pooling",
            [row[x] for row in found],
            [row[y] for row in found],
            [row["ci_low"] for row in found],
            [row["ci_high"] for row in found],
        )
        for pooling, found in lines.items()
    ]


def _layer_finding(layers: list[Row], counted: list[Row], source: Source) -> str:
    said = []
    known = [row for row in layers if row["rho"] is not None]
    if known:
        best = max(known, key=lambda row: row["rho"])
        told = interval(best["rho"], best["ci_low"], best["ci_high"])
        said.append(f"Layer {best['layer']} agrees best of {len(known)} ({told}, chosen on these pairs)")
        if best["q"] is not None and best["q"] >= 0.05:
            said[-1] += f", which is not distinguishable from chance (q {best['q']:.2f})"
    own = [row for row in counted if row["pooling"] == source.view.pooling]
    if own:
        most = max(own, key=lambda row: row["share"])
        said.append(f"layer {most['layer']} has most experts, {most['share']:.0%} of all")
    told = "; ".join(said) or "where the experts are"
    return told[0].upper() + told[1:]


def _kinds(source: Source, rows: list[Row]) -> Figure:
    best = max(rows, key=lambda row: -1 if row["rho"] is None else row["rho"])
    finding = (
        f"Of {len(rows)} kinds of site, {best['site']} agrees best with people, on these very pairs"
    )
    estimates = [Estimate(row["site"], row["rho"], row["ci_low"], row["ci_high"]) for row in rows]
    note = (
        f"{source.view.label}; experts: {source.view.cut}, of one kind of site alone. "
        "Bars: 95% intervals."
    )
    statistic = STATISTICS[rows[0]["agreement"]]
    return Figure("sites", finding, note, Estimates(estimates, statistic, chance(rows[0])))


def _over_steps(source: Source, rows: list[Row], counts: list[Row]) -> Figure | str:
    """Agreement and experts of the looked-at model over its training."""
    own = [
        {**row, "step": step}
        for row in rows
        if row["model"] == source.view.model and (step := training_step(row["revision"])) is not None
    ]
    if len({row["step"] for row in own}) < 2:
        return (
            "No training steps to compare: name several checkpoints, `revisions: [step512, "
            "step143000]`, in the sweep file."
        )
    return _over(source, "training", "training step", "step", own, counts)


def _over_sizes(source: Source, rows: list[Row], counts: list[Row]) -> Figure | str:
    """Agreement and experts over the sizes that the models are named after."""
    last: dict[str, Row] = {}
    for row in rows:
        step = training_step(row["revision"]) or 0
        size = parameters(row["model"])
        if row["revision"] == RANDOM_INIT or size is None:
            continue
        key = f"{row['model']} {row['pooling']}"
        if key not in last or step >= last[key]["step"]:
            last[key] = {**row, "step": step, "size": size}
    own = list(last.values())
    if len({row["size"] for row in own}) < 2:
        return "No sizes to compare: name several models of one family, with their sizes in their names."
    return _over(source, "sizes", "parameters, from the models' names", "size", own, counts)


def _over(source: Source, name: str, axis: str, by: str, rows: list[Row], counts: list[Row]) -> Figure:
    rows = sorted(rows, key=lambda row: row[by])
    number = {(row["model"], row["revision"], row["pooling"]): row["n"] for row in counts}
    own = [row for row in rows if row["pooling"] == source.view.pooling]
    poolings: dict[str, list[Row]] = {}
    for row in rows:
        poolings.setdefault(row["pooling"], []).append(row)
    counted = [
        Line(
            f"{pooling} pooling",
            [row[by] for row in found],
            [number.get((row["model"], row["revision"], row["pooling"])) for row in found],
        )
        for pooling, found in poolings.items()
    ]
    statistic = STATISTICS[rows[0]["agreement"]]
    panels = [
        Panel(f"{statistic} ({source.human_set})", _lines(rows, by, "rho")),
        Panel("experts, summed over the concepts", counted),
    ]
    note = (
        f"Experts: {source.view.cut}, of the whole model. Bands are 95% intervals, each for its own "
        f"{by} alone. The axis is logarithmic."
    )
    if rows[0][by] == 0:
        note += " 0 has no place on such an axis; it stands at the left."
    return Figure(name, over_finding(own, by), note, Lines(panels, axis, log=True))


def over_finding(rows: list[Row], by: str) -> str:
    """When agreement shows, and what it is in the end."""
    shown = [row for row in rows if row["ci_low"] is not None and row["ci_low"] > chance(row)]
    last = rows[-1]
    told = interval(last["rho"], last["ci_low"], last["ci_high"])
    if not shown:
        return (
            f"At none of {len(rows)} {by}s is agreement with people distinguishable from chance; at the "
            f"last, {scaled(last[by])}, it is {told}"
        )
    return (
        f"Agreement with people is first distinguishable from chance at {by} {scaled(shown[0][by])}; at "
        f"the last of {len(rows)}, {scaled(last[by])}, it is {told}"
    )


def parameters(model: str) -> float | None:
    """How many parameters a model's name says that it has: 135m, 1.7B."""
    found = _SIZE.search(model.rsplit("/", 1)[-1].replace("-", " ").replace("_", " "))
    return float(found[1]) * (1e6 if found[2].lower() == "m" else 1e9) if found else None
