"""Failures of figures: names rendered as markup, colors without a dark variant, hidden steps, selected
maxima that look like other values, or output that is not reproducible."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.page.figures import interactive, static
from jobs.page.figures.colors import DARK
from jobs.page.figures.spec import (
    Dendrogram,
    Figure,
    GraphPlot,
    Heatmap,
    IntervalPlot,
    IntervalRow,
    Line,
    LinePlot,
    Palette,
    Panel,
)
from jobs.report import write_latest


def test_figure_files_are_complete_and_reproducible(store: Path, report: Path, tmp_path: Path) -> None:
    names = {"layers", "tree", "graph", "domains", "coherence", "similarity-model", "similarity-people"}
    stems = {path.stem for path in (report / "figures").glob("*.png")}
    assert names < stems
    assert stems == {path.stem for path in (report / "figures").glob("*.svg")}
    write_latest(store, tmp_path)
    for path in report.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(report)).read_bytes(), path


def test_text_is_escaped() -> None:
    """Plotly renders some HTML in labels and hover text, and a percent sign starts a variable."""
    name = "<b>x</b> %{y} &amp;"
    groups = [name, "(no domain)"]
    bodies: list[IntervalPlot | LinePlot | Dendrogram | GraphPlot] = [
        IntervalPlot([IntervalRow(name, 0.1)], name, 0.0, [(name, 0.2)]),
        LinePlot([Panel(name, [Line(name, [1, 2], [0.1, 0.2])])], name),
        Dendrogram([name, "b"], groups, Palette(groups), [[(0, 0), (1, 0), (1, 1), (0, 1)]], name),
        GraphPlot([name, "b"], groups, Palette(groups), np.zeros((2, 2)), [(0, 1, 0.5)], name),
    ]
    for body in bodies:
        plot = interactive.draw(Figure("x", "x", "x", body))
        custom_data = [trace.pop("customdata", None) for trace in plot["data"]]
        text = json.dumps(plot)
        assert "<b>x" not in text, body
        templates = [trace.get("hovertemplate", "") for trace in plot["data"]]
        assert not any("%{y} &amp" in template for template in templates)
        assert custom_data


def test_every_color_has_a_dark_variant() -> None:
    body = LinePlot(
        [Panel("y", [Line(str(n), [1, 2], [0.1, 0.2], [0, 0], [1, 1]) for n in range(8)])], "x"
    )
    text = json.dumps(interactive.draw(Figure("x", "x", "x", body)))
    assert set(re.findall(r"#[0-9a-f]{6}", text)) <= set(DARK)


def test_step_0_is_drawn_at_the_left_of_a_log_axis() -> None:
    """The untrained checkpoint must not disappear, although log 0 is undefined."""
    steps = [0, 1, 4, 16, 64, 256]
    body = LinePlot([Panel("y", [Line("max", steps, [0.0] * 5 + [0.2])])], "training step", log=True)
    plot = interactive.draw(Figure("x", "x", "x", body))
    assert plot["data"][0]["x"] == [0.25, 1, 4, 16, 64, 256]
    assert plot["data"][0]["customdata"][0].startswith("training step 0<")
    assert plot["layout"]["xaxis"]["ticktext"] == ["0", "1", "4", "16", "64", "256"]


@pytest.mark.parametrize(
    ("x", "ticks"),
    [
        ([135e6, 360e6, 1.7e9], [135e6, 360e6, 1.7e9]),
        ([0, *(2**n for n in range(10)), *range(1000, 99_000, 1000)], [0, 10, 100, 1000, 10_000]),
        ([1000, 1010], [1000, 1010]),
        ([1000, 1010, 143_000], [1000, 143_000]),
        ([5], [5]),
    ],
)  # fmt: skip
def test_ticks_of_a_log_axis_do_not_overlap(x: list[float], ticks: list[float]) -> None:
    body = LinePlot([Panel("y", [Line("max", x, [0.1] * len(x))])], "step", log=True)
    assert body.x_ticks() == ticks


def test_a_selected_maximum_is_hollow() -> None:
    rows = [
        IntervalRow("all layers", 0.3, 0.2, 0.4),
        IntervalRow("best of 60", 0.5, 0.4, 0.6, is_maximum=True),
    ]
    plot = interactive.draw(Figure("x", "x", "x", IntervalPlot(rows, "rho", 0.0)))
    assert {trace["name"]: trace["marker"]["symbol"] for trace in plot["data"]} == {
        "neurons": "circle",
        "neurons, best of several": "circle-open",
    }


def test_a_point_without_an_interval_interrupts_the_band() -> None:
    line = Line("max", [0, 1, 2, 3], [0.1, None, 0.2, 0.3], [0, None, 0.1, 0.2], [0.2, None, 0.3, 0.4])
    band, _ = interactive.draw(Figure("x", "x", "x", LinePlot([Panel("y", [line])], "layer")))["data"]
    assert band["x"] == [0, 0, None, 2, 3, 3, 2, None]


def test_long_names_do_not_widen_a_static_figure() -> None:
    """A PNG has its width in bytes 16 to 20; 85 mm at 300 dpi are 1,004 pixels."""
    names = [f"{'a very long name ' * 9}{n}" for n in range(3)]
    groups = ["one domain " * 9, "b", "b"]
    bodies: list[IntervalPlot | Dendrogram | GraphPlot | Heatmap] = [
        IntervalPlot([IntervalRow(name, 0.1, 0.0, 0.2) for name in names], "rho", 0.0),
        Dendrogram(names, groups, Palette(groups), [[(0, 0), (1, 0), (1, 1), (0, 1)]], "distance"),
        GraphPlot(names, groups, Palette(groups), np.eye(3)[:, :2], [(0, 1, 0.5)], "similarity"),
        Heatmap(names, groups, np.eye(3), "similarity"),
    ]
    for body in bodies:
        png, svg = (content for _, content in static.draw(Figure("x", "The finding", "x", body)))
        assert 1000 < int.from_bytes(png[16:20], "big") < 1010
        assert b"The finding" in svg
