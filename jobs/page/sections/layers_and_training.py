"""Alignment and experts by layer and kind of site, over training, and by model size."""

from __future__ import annotations

import re
from operator import itemgetter

from cluster.models.weights import is_random_init
from jobs.page.figures.spec import Figure, IntervalPlot, IntervalRow, Line, LinePlot, Panel, Section
from jobs.page.study_data import StudyData, explain_missing_similarities, model_key, training_step
from jobs.page.wording import chance_level, format_interval, pluralize, si_format
from jobs.results.rows import STATISTIC_NAMES, Row, group_rows
from storage.store.activation_files import POOLINGS

_LAYER_COUNTS = """
SELECT pooling, layer, site, n_experts, share FROM expert_places
WHERE (model, revision, concept_set) = ($model, $revision, $concept_set) AND threshold = $threshold
ORDER BY site, layer
"""

_ALIGNMENT = """
FROM alignment
WHERE representation = $experts AND concept_set = $concept_set AND measure = $measure
    AND human_set = $human_set AND subset = 'all'
    AND threshold IS NOT DISTINCT FROM $threshold AND top IS NOT DISTINCT FROM $top
ORDER BY model, revision, layer, site
"""

_MODEL_COUNTS = """
SELECT model, revision, pooling, sum(n_experts)::BIGINT AS n_experts FROM expert_places
WHERE threshold = $threshold AND concept_set = $concept_set GROUP BY ALL
"""

_ESTIMATE = ("rho", "ci_low", "ci_high")
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([mb])(?![a-z])", re.IGNORECASE)


def section(data: StudyData) -> Section:
    """Alignment and share of experts by layer and kind of site; over training steps and model sizes if
    the sweep has several."""
    anchor, title = "layers", "Where in the model, and when in training?"
    if not data.views:
        return Section(anchor, title, missing=[explain_missing_similarities(data)])
    rows = data.query(_ALIGNMENT)
    rows = [row for row in _sort_by_pooling(rows) if row["agreement"] == rows[0]["agreement"]]
    figures, missing = _layer_figures(data, rows)
    n_experts = {model_key(row): row["n_experts"] for row in data.query(_MODEL_COUNTS)}
    model_rows = [
        {**row, "n_experts": n_experts.get(model_key(row))}
        for row in rows
        if row["layer"] is None and row["site"] is None
    ]
    for result in (_training_figure(data, model_rows), _size_figure(data, model_rows)):
        if isinstance(result, Figure):
            figures.append(result)
        else:
            missing.append(result)
    return Section(anchor, title, [], figures, missing=missing)


def _sort_by_pooling(rows: list[Row]) -> list[Row]:
    """Rows in the page's order of poolings."""
    return sorted(rows, key=lambda row: POOLINGS.index(row["pooling"]))


def _layer_figures(data: StudyData, rows: list[Row]) -> tuple[list[Figure], list[str]]:
    view = data.view
    model_rows = [row for row in rows if (row["model"], row["revision"]) == (view.model, view.revision)]
    layers = [row for row in model_rows if row["layer"] is not None and row["site"] is None]
    counts = _sort_by_pooling(data.query(_LAYER_COUNTS))
    panels, missing = [], []
    notes = [f"{view.model}@{view.revision}; experts: {view.criterion}."]
    if layers:
        statistic = STATISTIC_NAMES[layers[0]["agreement"]]
        panels.append(Panel(f"{statistic} ({data.human_set})", _lines(layers, "layer", *_ESTIMATE)))
        notes.append(
            f"Agreement with human judgments ({data.human_set}) uses the experts of one layer at "
            "a time; bands: 95% CI."
        )
    else:
        missing.append(
            "No alignment by layer: add `similarity: {scopes: [model, layer]}` to the sweep file, and "
            "human data with enough rated pairs."
        )
    if counts:
        panels.append(Panel("share of all experts", _share_lines(counts), percent=True))
        notes.append("Shares are of all experts in the model.")
    else:
        missing.append("No expert counts by layer: experts are counted at AP thresholds only.")
    figures = []
    if panels:
        finding = _layer_finding([row for row in layers if row["pooling"] == view.pooling], counts, data)
        figures.append(Figure("layers", finding, " ".join(notes), LinePlot(panels, "layer")))
    sites = [row for row in model_rows if row["site"] is not None and row["pooling"] == view.pooling]
    if sites:
        figures.append(_site_figure(data, sites))
    return figures, missing


def _share_lines(counts: list[Row]) -> list[Line]:
    """One line per pooling and kind of site."""
    has_sites = len({row["site"] for row in counts}) > 1
    return [
        Line(
            f"{pooling} pooling" + (f", {site}" if has_sites else ""),
            [row["layer"] for row in points],
            [row["share"] for row in points],
        )
        for (pooling, site), points in group_rows(counts, "pooling", "site").items()
    ]


def _lines(rows: list[Row], x: str, *columns: str) -> list[Line]:
    """One line per pooling: the values of a column and, optionally, the bounds of their CIs."""
    return [
        Line(f"{pooling} pooling", *([row[name] for row in points] for name in (x, *columns)))
        for pooling, points in group_rows(rows, "pooling").items()
    ]


def _layer_finding(layers: list[Row], counts: list[Row], data: StudyData) -> str:
    findings = []
    defined = [row for row in layers if row["rho"] is not None]
    if defined:
        best = max(defined, key=lambda row: row["rho"])
        rho = format_interval(best["rho"], best["ci_low"], best["ci_high"])
        finding = (
            f"layer {best['layer']} agrees best of {pluralize(len(defined), 'layer')} ({rho}, selected "
            "on the same pairs)"
        )
        if best["q"] is not None and best["q"] >= 0.05:
            finding += f", not distinguishable from chance (q {best['q']:.2f})"
        findings.append(finding)
    shares: dict[int, float] = {}
    for row in counts:
        if row["pooling"] == data.view.pooling:
            shares[row["layer"]] = shares.get(row["layer"], 0) + row["share"]
    if shares:
        layer, share = max(shares.items(), key=itemgetter(1))
        findings.append(f"layer {layer} has the most experts ({share:.0%} of all)")
    text = "; ".join(findings) or "expert neurons by layer"
    return text[0].upper() + text[1:]


def _site_figure(data: StudyData, rows: list[Row]) -> Figure:
    best = max(rows, key=lambda row: -1 if row["rho"] is None else row["rho"])
    finding = (
        f"Of {len(rows)} kinds of site, {best['site']} agrees best with human judgments (selected on "
        "the same pairs)"
    )
    note = f"{data.view.settings}, of one kind of site only. Bars: 95% CI."
    intervals = [IntervalRow(row["site"], row["rho"], row["ci_low"], row["ci_high"]) for row in rows]
    body = IntervalPlot(intervals, STATISTIC_NAMES[rows[0]["agreement"]], chance_level(rows[0]))
    return Figure("sites", finding, note, body)


def _training_figure(data: StudyData, rows: list[Row]) -> Figure | str:
    """Agreement and experts of the view's model over its training."""
    checkpoints = [
        {**row, "step": step}
        for row in rows
        if row["model"] == data.view.model and (step := training_step(row["revision"])) is not None
    ]
    if len({row["step"] for row in checkpoints}) < 2:
        return (
            "No training steps to compare: list several checkpoints, `revisions: [step512, "
            "step143000]`, in the sweep file."
        )
    return _progression(data, "training", "training step", "step", checkpoints)


def _size_figure(data: StudyData, rows: list[Row]) -> Figure | str:
    """Agreement and experts by model size, at the last checkpoint of every model."""
    last: dict[str, Row] = {}
    for row in rows:
        step = training_step(row["revision"]) or 0
        size = parse_size(row["model"])
        if is_random_init(row["revision"]) or size is None:
            continue
        key = f"{row['model']} {row['pooling']}"
        if key not in last or step >= last[key]["step"]:
            last[key] = {**row, "step": step, "size": size}
    if len({row["size"] for row in last.values()}) < 2:
        return "No model sizes to compare: list models of one family, with sizes in their names."
    axis = "parameters (from model names)"
    return _progression(data, "sizes", axis, "size", list(last.values()))


def _progression(data: StudyData, name: str, axis: str, x: str, rows: list[Row]) -> Figure:
    """Agreement and number of experts against the column `x`, on a log axis."""
    rows = sorted(rows, key=lambda row: row[x])
    statistic = STATISTIC_NAMES[rows[0]["agreement"]]
    panels = [
        Panel(f"{statistic} ({data.human_set})", _lines(rows, x, *_ESTIMATE)),
        Panel("experts, summed over concepts", _lines(rows, x, "n_experts")),
    ]
    note = f"Experts: {data.view.criterion}, of the whole model. Bands: pointwise 95% CI. Log axis."
    if rows[0][x] == 0:
        note += f" {x.capitalize()} 0 is drawn at the left edge."
    view_rows = [row for row in rows if row["pooling"] == data.view.pooling]
    return Figure(name, progression_finding(view_rows, x), note, LinePlot(panels, axis, log=True))


def progression_finding(rows: list[Row], x: str) -> str:
    """Where agreement first exceeds chance, and its last value."""
    distinguishable = [
        row for row in rows if row["ci_low"] is not None and row["ci_low"] > chance_level(row)
    ]
    last = rows[-1]
    rho = format_interval(last["rho"], last["ci_low"], last["ci_high"])
    if not distinguishable:
        return (
            f"Agreement with human judgments is not distinguishable from chance at any of {len(rows)} "
            f"{x}s; at the last, {si_format(last[x])}, it is {rho}"
        )
    return (
        f"Agreement with human judgments is first distinguishable from chance at {x} "
        f"{si_format(distinguishable[0][x])}; at the last of {len(rows)}, {si_format(last[x])}, "
        f"it is {rho}"
    )


def parse_size(model: str) -> float | None:
    """The number of parameters according to a model's name, such as 135m or 1.7B."""
    match = _SIZE.search(model.rsplit("/", 1)[-1].replace("-", " ").replace("_", " "))
    return float(match[1]) * (1e6 if match[2].lower() == "m" else 1e9) if match else None
