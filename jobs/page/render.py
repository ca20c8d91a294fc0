"""The page as one self-contained HTML file, and its figures as files."""

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
from jobs.page.figures.colors import DARK
from jobs.page.figures.spec import Cell, IntervalCell, RoundedCell, Section, value_table
from jobs.page.pairs import ConceptPairs
from jobs.page.sections import (
    alignment,
    hierarchy,
    layers_and_training,
    models,
    provenance,
    similarity,
    steering,
)
from jobs.page.sections.concepts import concept_details, has_top_sentences
from jobs.page.study_data import StudyData
from storage.store.layout import escape_name
from storage.tables import N_TOKEN_EXPERTS
from storage.version import __version__

FIGURES = "figures"

_CONCEPTS_PER_PACK = 64


def make_sections(data: StudyData) -> list[Section]:
    """All sections except the concept details, in page order."""
    pairs = ConceptPairs(data) if data.views else None
    return [
        alignment.section(data),
        similarity.section(data, pairs),
        layers_and_training.section(data),
        hierarchy.section(data, pairs),
        steering.section(data),
        models.section(data),
        provenance.section(data),
    ]


def render_page(data: StudyData, title: str, sections: list[Section], live: bool = False) -> str:
    """The HTML of a page. A `live` page requests concept details from its server; otherwise the details
    of all concepts are embedded, compressed."""
    script = (files("jobs.page") / "templates" / "page.js").read_text(encoding="utf-8")
    figures = [figure for section in sections for figure in section.figures]
    packs = [] if live or not data.views else list(_compressed_details(concept_details(data)))
    plotly, plotly_hash = _plotly()
    template = _environment().get_template("page.html")
    return template.render(
        title=title,
        version=__version__,
        sections=sections,
        data=data,
        has_top_sentences=bool(data.views) and has_top_sentences(data),
        live=live,
        script=script,
        hashes=[_hash(script), plotly_hash],
        plotly=plotly,
        figures={figure.name: interactive.draw(figure) for figure in figures},
        packs=packs,
        pack_size=_CONCEPTS_PER_PACK,
        n_token_experts=N_TOKEN_EXPERTS,
        dark=DARK,
    )


def figure_files(sections: list[Section]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every figure in every format."""
    for section in sections:
        for figure in section.figures:
            for image_format, content in static.draw(figure):
                yield f"{FIGURES}/{escape_name(figure.name)}.{image_format}", content


def _compressed_details(details: dict[str, Any]) -> Iterator[str]:
    """Concept details in packs, so that opening a concept decompresses few others."""
    rows = list(details.values())
    for start in range(0, len(rows), _CONCEPTS_PER_PACK):
        yield _compress(json.dumps(rows[start : start + _CONCEPTS_PER_PACK], allow_nan=False))


def _compress(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def _plotly() -> tuple[str, str]:
    """Plotly's source, compressed from 5 MB to 2 MB, and its hash."""
    source = get_plotlyjs()
    return _compress(source), _hash(source)


def _hash(script: str) -> str:
    """A script's hash for the content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _format_cell(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, IntervalCell):
        return f"[{value.low:.2f}, {value.high:.2f}]"
    if isinstance(value, RoundedCell):
        return f"{value.value:.2f}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def _with_code(text: str) -> Markup:
    """Escaped text with backquoted parts as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("jobs.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _format_cell, "values": value_table, "with_code": _with_code}
    return environment
