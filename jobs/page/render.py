"""The whole page as one HTML file that asks no host for anything, and its figures as files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from jobs.page.figures import interactive, static
from jobs.page.figures.colours import DARK
from jobs.page.figures.spec import Cell, Figure, Interval, Rounded, Section, Table, numbers
from jobs.page.pairs import Pairs
from jobs.page.sections import (
    alignment,
    hierarchy,
    layers_and_training,
    models,
    provenance,
    similarity,
    steering,
)
from jobs.page.sections.concepts import details, excited
from jobs.page.study import Source
from storage import __version__
from storage.store.layout import escaped

FIGURES = "figures"

_CONCEPTS_IN_PACK = 64


def sections(source: Source) -> list[Section]:
    """Everything but the concepts' pages, in the order of the page."""
    pairs = Pairs(source) if source.views else None
    merges = hierarchy.grow(pairs) if pairs else None
    leaves = hierarchy.leaf_order(merges) if pairs else []
    return [
        alignment.section(source),
        similarity.section(source, pairs, leaves),
        layers_and_training.section(source),
        hierarchy.section(source, pairs, merges),
        steering.section(source),
        models.section(source),
        provenance.section(source),
    ]


def page(source: Source, title: str, found: list[Section], live: bool = False) -> str:
    """The HTML of a page. A `live` one asks its server for the details of a concept; another has those
    of all concepts in it, packed."""
    script = (files("jobs.page") / "templates" / "page.js").read_text(encoding="utf-8")
    drawn = [figure for section in found for figure in section.figures]
    packs = [] if live or not source.views else list(_packs(details(source)))
    template = _environment().get_template("page.html")
    return template.render(
        title=title,
        version=__version__,
        sections=found,
        view=source.view if source.views else None,
        views=source.views if live else source.views[:1],
        more_views=len(source.views) - 1,
        number=source.number,
        concepts=list(source.domains),
        finished=source.study.asked is not None,
        human_set=source.human_set,
        excited=bool(source.views) and excited(source),
        live=live,
        script=script,
        hashes=[_hash(script), plotly_hash()],
        plotly=plotly_pack(),
        figures={figure.name: interactive.draw(figure) for figure in drawn},
        packs=packs,
        pack_size=_CONCEPTS_IN_PACK,
        dark=DARK,
    )


def paper_figures(found: list[Section]) -> Iterator[tuple[str, bytes]]:
    """(name of the file, content) of each figure in each format."""
    for section in found:
        for figure in section.figures:
            for form, content in static.draw(figure):
                yield f"{FIGURES}/{escaped(figure.name)}.{form}", content


def _packs(found: dict[str, Any]) -> Iterator[str]:
    """Details of some concepts at a time, so that opening one unpacks few."""
    rows = list(found.values())
    for start in range(0, len(rows), _CONCEPTS_IN_PACK):
        yield _pack(json.dumps(rows[start : start + _CONCEPTS_IN_PACK], allow_nan=False))


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def plotly_pack() -> str:
    """The source of Plotly, packed: 5 MB become 2."""
    return _pack(get_plotlyjs())


@cache
def plotly_hash() -> str:
    """What a content security policy calls the source of Plotly."""
    return _hash(get_plotlyjs())


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _cell(value: Cell) -> str:
    """A cell as it is shown."""
    if value is None:
        return "–"
    if isinstance(value, Interval):
        return f"[{value.low:.2f}, {value.high:.2f}]"
    if isinstance(value, Rounded):
        return f"{value.value:.2f}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def _with_code(text: str) -> Markup:
    """Text in which code stands between backquotes."""
    parts = [
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _numbers(figure: Figure) -> Table:
    return numbers(figure.body)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("jobs.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "numbers": _numbers, "with_code": _with_code}
    return environment
