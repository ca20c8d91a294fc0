"""What a figure could get wrong: take names for markup, lose a colour on dark ground, hide a step, show
the best of many like any other, or differ from one time to the next."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.page.figures import interactive, static
from jobs.page.figures.colours import DARK
from jobs.page.figures.spec import (
    Estimate,
    Estimates,
    Figure,
    Graph,
    Line,
    Lines,
    Matrix,
    Palette,
    Panel,
    Tree,
)
from jobs.report import write_newest


def test_every_figure_is_a_file_for_papers_too_and_the_same_each_time(
    store: Path, report: Path, tmp_path: Path
) -> None:
    names = {"layers", "tree", "graph", "domains", "coherence", "similarity-model", "similarity-people"}
    found = {path.stem for path in (report / "figures").glob("*.png")}
    assert names < found
    assert found == {path.stem for path in (report / "figures").glob("*.svg")}
    write_newest(store, tmp_path)
    for path in report.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(report)).read_bytes(), path


def test_text_is_drawn_to_the_letter_and_never_taken_for_markup() -> None:
    """Plotly takes some HTML for markup, in labels as in hovers, and a percent sign for a variable."""
    name = "<b>x</b> %{y} &amp;"
    groups = [name, "(no domain)"]
    bodies: list[Estimates | Lines | Tree | Graph] = [
        Estimates([Estimate(name, 0.1)], name, 0.0, [(name, 0.2)]),
        Lines([Panel(name, [Line(name, [1, 2], [0.1, 0.2])])], name),
        Tree([name, "b"], groups, Palette(groups), [[(0, 0), (1, 0), (1, 1), (0, 1)]], name),
        Graph([name, "b"], groups, Palette(groups), np.zeros((2, 2)), [(0, 1, 0.5)], name),
    ]
    for body in bodies:
        drawn = interactive.draw(Figure("x", "x", "x", body))
        clicked = [trace.pop("customdata", None) for trace in drawn["data"]]
        text = json.dumps(drawn)
        assert "<b>x" not in text, body
        templates = [trace.get("hovertemplate", "") for trace in drawn["data"]]
        assert not any("%{y} &amp" in each for each in templates)
        assert clicked


def test_every_colour_of_a_figure_has_one_for_dark_ground() -> None:
    body = Lines([Panel("y", [Line(str(n), [1, 2], [0.1, 0.2], [0, 0], [1, 1]) for n in range(8)])], "x")
    text = json.dumps(interactive.draw(Figure("x", "x", "x", body)))
    assert set(re.findall(r"#[0-9a-f]{6}", text)) <= set(DARK)


def test_step_0_stands_to_the_left_of_all_others_and_is_called_so() -> None:
    """On a logarithmic axis it has no place: a checkpoint before training must not vanish."""
    steps = [0, 1, 4, 16, 64, 256]
    body = Lines([Panel("y", [Line("max", steps, [0.0] * 5 + [0.2])])], "training step", log=True)
    drawn = interactive.draw(Figure("x", "x", "x", body))
    assert drawn["data"][0]["x"] == [0.25, 1, 4, 16, 64, 256]
    assert drawn["data"][0]["customdata"][0].startswith("training step 0<")
    assert drawn["layout"]["xaxis"]["ticktext"] == ["0", "1", "4", "16", "64", "256"]


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
def test_an_axis_over_steps_or_sizes_tells_what_it_has_room_for(
    x: list[float], ticks: list[float]
) -> None:
    body = Lines([Panel("y", [Line("max", x, [0.1] * len(x))])], "step", log=True)
    assert body.ticks() == ticks


def test_the_best_of_several_does_not_look_like_the_others() -> None:
    rows = [Estimate("all layers", 0.3, 0.2, 0.4), Estimate("best of 60", 0.5, 0.4, 0.6, chosen=True)]
    drawn = interactive.draw(Figure("x", "x", "x", Estimates(rows, "rho", 0.0)))
    assert {each["name"]: each["marker"]["symbol"] for each in drawn["data"]} == {
        "neurons": "circle",
        "neurons, best of several": "circle-open",
    }


def test_a_band_does_not_reach_over_points_that_have_no_interval() -> None:
    line = Line("max", [0, 1, 2, 3], [0.1, None, 0.2, 0.3], [0, None, 0.1, 0.2], [0.2, None, 0.3, 0.4])
    band, _ = interactive.draw(Figure("x", "x", "x", Lines([Panel("y", [line])], "layer")))["data"]
    assert band["x"] == [0, 0, None, 2, 3, 3, 2, None]


def test_a_figure_for_papers_is_as_wide_as_a_column_whatever_its_names() -> None:
    """PNG tells its size in bytes 16 to 24: 85 mm at 300 dots an inch are 1,004."""
    names = [f"{'a very long name ' * 9}{n}" for n in range(3)]
    groups = ["one domain " * 9, "b", "b"]
    bodies: list[Estimates | Tree | Graph | Matrix] = [
        Estimates([Estimate(name, 0.1, 0.0, 0.2) for name in names], "rho", 0.0),
        Tree(names, groups, Palette(groups), [[(0, 0), (1, 0), (1, 1), (0, 1)]], "distance"),
        Graph(names, groups, Palette(groups), np.eye(3)[:, :2], [(0, 1, 0.5)], "similarity"),
        Matrix(names, groups, np.eye(3), "similarity"),
    ]
    for body in bodies:
        png, svg = (content for _, content in static.draw(Figure("x", "What it says", "x", body)))
        assert 1000 < int.from_bytes(png[16:20], "big") < 1010
        assert b"What it says" in svg
