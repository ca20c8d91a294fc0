"""What a figure could get wrong: take names for markup, lose a colour on dark ground, hide a step, show
the best of many like any other, or differ from one time to the next."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from jobs.page import web
from jobs.page.colours import DARK
from jobs.page.figure import Estimate, Estimates, Figure, Graph, Line, Lines, Palette, Panel, Tree
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
        drawn = web.draw(Figure("x", "x", "x", body))
        clicked = [trace.pop("customdata", None) for trace in drawn["data"]]
        text = json.dumps(drawn)
        assert "<b>x" not in text, body
        templates = [trace.get("hovertemplate", "") for trace in drawn["data"]]
        assert not any("%{y} &amp" in each for each in templates)
        assert clicked


def test_every_colour_of_a_figure_has_one_for_dark_ground() -> None:
    body = Lines([Panel("y", [Line(str(n), [1, 2], [0.1, 0.2], [0, 0], [1, 1]) for n in range(8)])], "x")
    text = json.dumps(web.draw(Figure("x", "x", "x", body)))
    assert set(re.findall(r"#[0-9a-f]{6}", text)) <= set(DARK)
