"""What a report could get wrong: say more than its numbers, run what is in the data, ask a host for
something, hide that something is missing, or let strangers read what is served."""

from __future__ import annotations

import base64
import csv
import gzip
import http.client
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from cluster.shard import Settings
from jobs import sweep
from jobs.config import read_sweep
from jobs.page import steered, web
from jobs.page.colours import DARK
from jobs.page.concepts import details
from jobs.page.figure import Estimate, Estimates, Figure, Graph, Line, Lines, Palette, Panel, Tree
from jobs.page.pairs import Pairs
from jobs.page.places import parameters
from jobs.page.render import page, sections
from jobs.page.said import agrees, differs
from jobs.page.serve import Server, served
from jobs.page.source import Source, newest_study
from jobs.report import write_newest
from storage import layout, manifest
from storage.database import is_activations, open_store
from storage.errors import UserError
from tests import browser, many, tiny
from tests.faults import in_one_process

RUNS = "document.title='it ran'"
HOSTILE = {
    "cat": f"<script>{RUNS}</script>",
    "dog": f"</script><img src=x onerror={RUNS}>",
    "car": "a<br>b & %{x} $y$",
}
"""Names of concepts that are code where they are not escaped."""

SENTENCE = f"Nobody saw </script><script>{RUNS}</script> coming."
DOMAIN, HUMAN = "<b>vehicle</b>", "<i>mine</i>"
MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished sweep over the tiny model, in whose data every name is hostile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(tiny_model, folder / "model")
    extra = "resamples: 100\nbaselines: [input-embedding, contextual]\ncontrols: [split-half]\n"
    file = tiny.write_sweep(folder, extra=extra)
    rows = [
        (HOSTILE.get(name, name), {"vehicle": DOMAIN}.get(tiny.CONCEPTS[name], "animal"), text)
        for name, text in [*tiny.sentences(), ("bus", SENTENCE)]
    ]
    pairs = [(HOSTILE.get(a, a), HOSTILE.get(b, b), score) for a, b, score in tiny.PAIR_SCORES]
    _write(folder / "concepts.csv", ("concept", "domain", "text"), rows)
    _write(folder / "human.csv", ("a", "b", "score"), pairs)
    text = file.read_text().replace("name: mine", f"name: '{HUMAN}'")
    file.write_text(text.replace("[max, concept, context]", "[max, context]"))
    read = read_sweep(file, folder / "store")
    planned = sweep.plan(read)
    with in_one_process(planned.weights[0], Settings("float32", "mlp", list(read.neurons.pooling))):
        sweep.run(planned)
    torch.set_num_threads(threads)
    return folder / "store"


def _write(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@contextmanager
def source_of(store: Path) -> Iterator[Source]:
    study = newest_study(store)
    with open_store(store, study.runs) as connection:
        yield Source(connection, study)


@pytest.fixture(scope="module")
def report(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that store, as the command writes it."""
    out = tmp_path_factory.mktemp("out")
    write_newest(store, out)
    return out


# --- what is said -------------------------------------------------------------------------------


def row(rho: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {
        "rho": rho, "ci_low": low, "ci_high": high, "agreement": "spearman", "reference": "glove-50",
        "difference": rho, "difference_low": low, "difference_high": high,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rho", "low", "high", "agreement", "difference"),
    [
        (0.4, 0.1, 0.6, "agrees with", "more than"),
        (0.4, -0.01, 0.7, "not distinguishable", "not distinguishable"),
        (0.4, 0.0, 0.7, "not distinguishable", "not distinguishable"),
        (-0.4, -0.6, -0.1, "disagrees with", "less than"),
        (0.4, None, None, "no interval can be had", "Its difference to"),
    ],
)
def test_nothing_is_claimed_that_an_interval_does_not_allow(
    rho: float, low: float | None, high: float | None, agreement: str, difference: str
) -> None:
    assert agreement in agrees("it", row(rho, low, high), "people")
    said = differs(row(rho, low, high))
    assert said is not None
    assert difference in said


def test_equal_similarities_agree_with_nothing() -> None:
    assert "nothing can agree" in agrees("it", row(None, None, None), "people")
    assert differs(row(None, None, None)) is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("EleutherAI/pythia-70m", 70e6),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.7e9),
        ("smollm2-135m-instruct", 135e6),
        ("gpt2", None),
        ("bert-base", None),
    ],
)
def test_a_models_size_is_read_from_its_name(model: str, expected: float | None) -> None:
    assert parameters(model) == expected


# --- what is read -------------------------------------------------------------------------------


def test_neighbours_and_disagreements_are_those_of_a_count_by_hand(store: Path) -> None:
    with source_of(store) as source:
        pairs = Pairs(source)
        found = details(source)
        shown = source.ask("FROM shown")
        model, names = pairs.model, pairs.names
    assert set(found) == set(names) == {HOSTILE.get(name, name) for name in tiny.CONCEPTS}
    for place, name in enumerate(names):
        near = [(other, value) for other, value in zip(names, model[place], strict=True) if value > 0]
        near = [each for each in near if each[0] != name]
        assert sorted(near) == sorted(map(tuple, found[name]["model"]))
        values = [value for _, value in found[name]["model"]]
        assert values == sorted(values, reverse=True)
    rated = [each for each in shown if each["score"] is not None]
    assert len(rated) == len(tiny.PAIR_SCORES)
    ranks = [
        (rankdata([-(each[key] or 0) for each in rated]) - 1) / (len(rated) - 1)
        for key in ("similarity", "score")
    ]
    expected = {
        frozenset((each["concept_a"], each["concept_b"])): (one, two)
        for each, one, two in zip(rated, *ranks, strict=True)
    }
    for name, detail in found.items():
        assert detail["disagreements"]
        apart = [abs(one - two) for *_, one, two in detail["disagreements"]]
        assert apart == pytest.approx(sorted(apart, reverse=True))
        for other, _, _, one, two in detail["disagreements"]:
            assert (one, two) == pytest.approx(expected[frozenset((name, other))])


def test_the_sentences_of_an_expert_are_those_with_the_highest_activations(store: Path) -> None:
    with source_of(store) as source:
        Pairs(source)
        found = details(source)["bus"]
        best = found["experts"][0]
        expected = source.ask(
            "SELECT value, text FROM activations JOIN sentences USING (concept_set, sentence_id) "
            "WHERE pooling = 'max' AND layer = $layer AND site = $site AND unit = $unit "
            "ORDER BY value DESC, sentence_id LIMIT 3",
            **{name: best[name] for name in ("layer", "site", "unit")},
        )
        aps = [each["ap"] for each in found["experts"]]
        top = source.ask("SELECT max(ap) AS ap FROM experts WHERE concept = 'bus' AND pooling = 'max'")
    assert [(value, text) for value, text, _ in best["excited_by"]] == [
        (each["value"], each["text"]) for each in expected
    ]
    assert aps == sorted(aps, reverse=True)
    assert aps[0] == top[0]["ap"]


def test_the_page_is_of_one_sweep_alone(store: Path) -> None:
    """A store may hold the results of others: their rows must not mix in."""
    study = newest_study(store)
    everything = {each.fingerprint for kind in layout.KINDS for each in manifest.done(store, kind)}
    kinds = [each.kind for each in study.runs.values()]
    assert "report" not in kinds
    assert {"sentences", "activations", "experts", "similarity", "alignment", "hierarchy"} <= set(kinds)
    assert study.asked is not None
    assert study.asked["controls"] == ["split-half"]
    some = [each for each in study.runs if study.runs[each].kind == "experts"]
    with open_store(store, some) as connection:
        runs = {run for (run,) in connection.sql("SELECT run FROM runs").fetchall()}
    assert runs == set(some) < everything


def test_what_is_missing_is_said_with_the_way_to_get_it(store: Path, tmp_path: Path) -> None:
    """A store in which only the first stages are done, one stage more at a time."""
    told = {
        "sentences": [
            "No alignment with people",
            "No similarities",
            "Nothing is known of single concepts",
        ],
        "activations": ["No similarities in this store"],
        "experts": ["No similarities in this store"],
        "similarity": ["No alignment with people in this store", "No training steps to compare"],
        "alignment": ["The sweep file is kept when", "baselines: [glove]", "No measure of the domains"],
    }
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    marks = {
        kind: [each.folder / layout.SUCCESS for each in manifest.done(copy, kind)]
        for kind in layout.KINDS
    }
    kept = {mark: mark.read_bytes() for found in marks.values() for mark in found}
    for mark in kept:
        mark.unlink()
    with pytest.raises(UserError, match="nothing is done"):
        newest_study(copy)
    for kind in ("sentences", "activations", "experts", "controls", "similarity", "alignment"):
        for mark in marks[kind]:
            mark.write_bytes(kept[mark])
        with source_of(copy) as source:
            html = page(source, "part", sections(source))
        for text in told.get(kind, []):
            assert re.sub(r"<[^>]*>", "", html).count(text), (kind, text)


def test_dropped_activations_are_told_and_are_no_reason_to_fail(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    for each in manifest.done(copy, "activations"):
        manifest.drop(each, is_activations, "to see")
    with source_of(copy) as source:
        html = page(source, "dropped", sections(source))
    assert "the raw activations were deleted" in html
    assert "scored, then deleted to save space" in html


_STEERED = """
CREATE OR REPLACE TEMP VIEW {table} AS
SELECT 'model' AS model, 'main' AS revision, 'max' AS pooling, {concept} selection, k::BIGINT AS k,
    {sign} * k / 10 AS change, {sign} * k / 10 - 0.1 AS change_low, {sign} * k / 10 + 0.1 AS change_high,
    NULL::DOUBLE AS others, NULL::DOUBLE AS others_low, NULL::DOUBLE AS others_high,
    0.5 AS containing, 0.4 AS containing_low, 0.6 AS containing_high
FROM (VALUES ('ap'), ('random'), ('none')) AS s(selection), (VALUES (0), (3), (30)) AS ks(k)
"""


@pytest.mark.parametrize(("sign", "said"), [(1, "raises"), (0, "does not distinguishably change")])
def test_steering_is_shown_where_it_was_tried(store: Path, sign: int, said: str) -> None:
    """What stands for the stage's tables here are views of the same names and columns."""
    with source_of(store) as source:
        Pairs(source)
        assert details(source, "bus")["bus"]["steering"] is None
        assert "has tried it" in steered.section(source).missing[0]
    with source_of(store) as source:
        views = {"steering_doses": "", "steering": "'bus' AS concept,"}
        for table, concept in views.items():
            source.connection.execute(_STEERED.format(table=table, concept=concept, sign=sign))
        source.connection.execute(
            "CREATE TEMP VIEW steering_prompts AS SELECT *, 'I say' AS prompt, ['<b>', 'b'] AS "
            "continuations "
            "FROM steering"
        )
        Pairs(source)
        (figure,) = steered.section(source).figures
        assert said in figure.finding
        assert isinstance(figure.body, Lines)
        (own, words) = figure.body.panels
        assert [line.name for line in own.lines] == ["ap", "none", "random"]
        assert own.lines[0].x == [3, 30]
        assert words.lines[0].y == [0.5, 0.5]
        found = details(source, "bus")["bus"]["steering"]
        assert {each["k"] for each in found["samples"]} == {30}
        assert found["samples"][0]["continuations"] == ["<b>", "b"]
        assert len(found["figure"]["data"]) == 12


# --- the file -----------------------------------------------------------------------------------


def test_the_page_is_one_small_file_whose_data_stay_text(report: Path) -> None:
    html = (report / "report.html").read_text()
    assert len(html.encode()) < MOST_BYTES
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    for text in (*HOSTILE.values(), SENTENCE, DOMAIN, HUMAN):
        markup = re.search(r"</?(script|img|b|i|br)[ >/]", text)
        if markup:
            assert text not in html
    packed = re.findall(r'<script type="text/plain" class="pack">(.*?)</script>', html)
    (rows,) = [json.loads(gzip.decompress(base64.b64decode(each))) for each in packed]
    assert {each["name"] for each in rows} >= set(HOSTILE.values())


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


# --- served -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    with served(store, 0) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(server: Server, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_only_who_has_the_token_gets_an_answer(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    cookie = f"{server.cookie}={server.token}"
    for path in ("/", "/api/concept?name=bus", "/?token=wrong", "/?token=", "/?token=%FF"):
        assert get(server, path)[0] == 403
        assert get(server, path, Cookie=f"{server.cookie}=wrong")[0] == 403
    status, headers, _ = get(
        server, urlsplit(server.address).path + "?" + urlsplit(server.address).query
    )
    assert (status, headers["Location"]) == (303, "/")
    assert headers["Set-Cookie"].startswith(cookie)
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    # a name that some other site made point here
    assert get(server, "/", Cookie=cookie, Host=f"elsewhere.example:{server.server_port}")[0] == 403
    status, headers, html = get(server, "/", Cookie=cookie)
    assert status == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.token not in html


def test_details_are_answered_from_the_store(server: Server, store: Path) -> None:
    cookie = f"{server.cookie}={server.token}"
    for view in (0, 1, 0):
        status, _, text = get(
            server, f"/api/concept?name={quote(HOSTILE['cat'])}&view={view}", Cookie=cookie
        )
        assert status == 200
        found = json.loads(text)
        study = newest_study(store)
        with open_store(store, study.runs) as connection:
            source = Source(connection, study, view)
            Pairs(source)
            expected = details(source, HOSTILE["cat"])[HOSTILE["cat"]]
        assert found == json.loads(json.dumps(expected))
        assert all(each["excited_by"] for each in found["experts"])
    for path, status in (
        ("/api/concept?name=nobody", 404),
        ("/api/concept?name=bus&view=99", 404),
        ("/api/concept?name=bus&view=-1", 400),
        ("/?view=x", 400),
        ("/etc/passwd", 404),
    ):
        assert get(server, path, Cookie=cookie)[0] == status


def test_a_port_that_is_taken_is_the_users_mistake(server: Server, store: Path) -> None:
    with pytest.raises(UserError, match="name another one"), served(store, server.server_port):
        pass
    with pytest.raises(UserError, match="name another one"), served(store, 70000):
        pass


# --- in a browser -------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    browser.CHROMIUM is None or browser.DRIVER is None,
    reason="needs Debian's packages chromium and chromium-driver",
)


@pytest.fixture(scope="module")
def window() -> Iterator[browser.Browser]:
    with browser.started() as made:
        yield made


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1920])
def test_the_page_draws_everything_within_its_width_and_asks_nobody(
    window: browser.Browser, report: Path, width: int, scheme: str
) -> None:
    address = (report / "report.html").as_uri()
    window.requests()
    window.open(f"{address}#concept={quote(HOSTILE['cat'])}", width, scheme)
    window.wait_until_drawn()
    window.wait("document.getElementById('shown-concept') !== null")
    window.screenshot(f"tiny-{width}-{scheme}")
    assert window.complaints() == []
    assert {each.partition("#")[0] for each in window.requests()} == {address}
    assert window.ask("document.title") == "sweep"
    assert window.ask("document.documentElement.scrollWidth") <= width
    empty = (
        "[...document.querySelectorAll('.plot')].filter((each) => !each.querySelector('.main-svg path'))"
    )
    assert window.ask(f"{empty}.map((each) => each.dataset.figure)") == []
    # no label is cut off at a figure's edge
    cut = window.ask(
        "[...document.querySelectorAll('.plot')].flatMap((plot) => {"
        " const box = plot.getBoundingClientRect();"
        " return [...plot.querySelectorAll('.main-svg text')].filter((text) => {"
        "  const own = text.getBoundingClientRect();"
        "  return own.width > 0 && (own.left < box.left - 2 || own.right > box.right + 2"
        "   || own.top < box.top - 2 || own.bottom > box.bottom + 2);"
        " }).map((text) => `${plot.dataset.figure}: ${text.textContent}`);"
        "})"
    )
    assert cut == []
    dark = window.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    colour = window.ask("getComputedStyle(document.querySelector('.plot .xtick text')).fill")
    assert colour == ("rgb(230, 232, 235)" if dark else "rgb(27, 31, 36)")


@needs_chromium
def test_hover_sort_and_a_concepts_page_work_by_mouse_and_by_keyboard(
    window: browser.Browser, report: Path
) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    window.open((report / "report.html").as_uri())
    window.wait_until_drawn()
    driver = window.driver
    point = driver.find_element(By.CSS_SELECTOR, ".plot[data-figure^=alignment] .point")
    ActionChains(driver).scroll_to_element(point).move_to_element(point).perform()
    window.wait("document.querySelector('.hoverlayer .hovertext') !== null")
    assert "neurons, max pooling" in window.ask("document.querySelector('.hoverlayer').textContent")
    # a node of the graph opens its concept, whose name is shown to the letter
    nodes = driver.find_elements(By.CSS_SELECTOR, ".plot[data-figure=graph] .point")
    ActionChains(driver).scroll_to_element(nodes[0]).move_to_element(nodes[0]).click().perform()
    window.wait("document.getElementById('shown-concept') !== null")
    first = window.ask("document.getElementById('shown-concept').textContent")
    assert first in {HOSTILE.get(name, name) for name in tiny.CONCEPTS}
    # sorting by a column of numbers, both ways
    cells = "[...document.querySelectorAll('#models td:nth-child(3)')].map((each) => each.dataset.value)"
    for order in (1, -1):
        driver.find_element(By.CSS_SELECTOR, "#models th:nth-child(3) button").send_keys(Keys.ENTER)
        values = [float(each) for each in window.ask(cells) if each is not None]
        assert len(values) > 5
        assert values == sorted(values, reverse=order < 0)
    # by keyboard alone: to the field, a name, Enter
    field = driver.find_element(By.ID, "name")
    window.ask("document.getElementById('view'), document.querySelector('nav a:last-child').focus()")
    field.send_keys(HOSTILE["car"], Keys.ENTER)
    window.wait(f"document.getElementById('detail').dataset.concept === {json.dumps(HOSTILE['car'])}")
    shown = window.ask("document.getElementById('detail').textContent")
    for text in ("Best experts", "What excites them", "Nearest in the model", "Where they differ most"):
        assert text in shown
    field.clear()
    field.send_keys("nobody", Keys.ENTER)
    window.wait("document.getElementById('detail').textContent.includes('No concept is called nobody')")
    reached = set()
    driver.find_element(By.CSS_SELECTOR, ".skip").send_keys("")
    for _ in range(80):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        reached.add(window.ask("document.activeElement.tagName + document.activeElement.className"))
    assert {"A", "SUMMARY", "INPUT", "BUTTON", "DIVscroll"} <= reached
    assert window.complaints() == []


@needs_chromium
def test_the_served_page_answers_live_and_changes_its_view(
    window: browser.Browser, server: Server
) -> None:
    window.requests()
    window.open(server.address)
    window.wait_until_drawn()
    assert window.ask("location.search") == ""
    window.ask("location.hash = 'concept=bus'")
    window.wait("document.getElementById('detail').dataset.concept === 'bus'")
    assert SENTENCE in window.ask("document.getElementById('detail').textContent") or window.ask(
        "document.querySelectorAll('#detail blockquote').length"
    )
    window.ask(
        "(() => { const view = document.getElementById('view'); view.value = '1';"
        " view.dispatchEvent(new Event('change')); })()"
    )
    window.wait("location.search === '?view=1' && document.readyState === 'complete'")
    window.wait_until_drawn()
    assert "context pooling" in window.ask("document.querySelector('header').textContent")
    assert window.ask("document.title") == "sweep"
    own = f"http://127.0.0.1:{server.server_port}/"
    assert all(each.startswith(own) for each in window.requests())
    assert window.complaints() == []


@needs_chromium
def test_the_page_of_1854_concepts_opens_within_three_seconds(
    window: browser.Browser, tmp_path: Path
) -> None:
    root = many.make_store(tmp_path / "store")
    with source_of(root) as source:
        html = page(source, "many", sections(source))
    assert len(html.encode()) < MOST_BYTES
    path = tmp_path / "many.html"
    path.write_text(html)
    seconds = []
    # the machine may be busy with something else for a while
    for _ in range(3):
        window.open(path.as_uri())
        window.wait("document.querySelector('.plot[data-drawn]') !== null")
        loaded = window.ask("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
        drawn = window.ask("Number(document.querySelector('.plot[data-drawn]').dataset.after) / 1000")
        window.wait_until_drawn()
        seconds.append((drawn, loaded))
    print(f"{len(html) / 1e6:.1f} MB; first figure and load after {min(seconds)} s")
    assert max(min(seconds)) < 3
    window.ask("location.hash = 'concept=' + encodeURIComponent('concept 1853')")
    window.wait("document.getElementById('detail').dataset.concept === 'concept 1853'")
    window.screenshot("many")
    assert window.complaints() == []
