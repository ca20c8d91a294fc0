"""What a page could get wrong in a real browser: run what is in the data, ask a host for something, cut
off what does not fit, leave a figure empty, or keep one waiting."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from jobs.page.render import page, sections
from jobs.page.serve import Server
from tests import browser, many, tiny
from tests.hostile import DOMAIN, HOSTILE, HUMAN, SENTENCE, source_of

MOST_BYTES = 10_000_000

needs_chromium = pytest.mark.skipif(
    browser.CHROMIUM is None or browser.DRIVER is None,
    reason="needs Debian's packages chromium and chromium-driver",
)


_COVERED = """
[...document.querySelectorAll('.plot')].flatMap((plot) => {
  const shown = [...plot.querySelectorAll('.main-svg text')]
    .map((text) => [text.textContent, text.getBoundingClientRect()])
    .filter(([text, box]) => text.trim() && box.width > 0);
  const covers = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
  return shown.flatMap(([text, box], place) => shown.slice(place + 1)
    .filter(([, other]) => covers(box, other))
    .map(([other]) => `${plot.dataset.figure}: ${text} on ${other}`));
})
"""
"""Labels of a figure that lie on each other."""


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


@needs_chromium
@pytest.mark.parametrize(
    ("width", "scheme"), [(400, "light"), (400, "dark"), (800, "light"), (1920, "dark")]
)
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
    assert window.ask(_COVERED.strip()) == []
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
def test_a_dark_page_is_printed_on_light_ground_and_as_wide_as_paper(
    window: browser.Browser, report: Path
) -> None:
    window.open((report / "report.html").as_uri(), 1920, "dark")
    window.wait_until_drawn()
    drawn = (
        "[...document.querySelectorAll('.plot')].map((plot) =>"
        " [plot.querySelector('.main-svg').clientWidth,"
        " getComputedStyle(plot.querySelector('text:not(:empty)')).fill])"
    )
    before = window.ask(drawn)
    window.ask("window.dispatchEvent(new Event('beforeprint'))")
    window.wait(f"{drawn}.every(([width, fill]) => width === 640 && fill !== 'rgb(230, 232, 235)')")
    window.ask("window.dispatchEvent(new Event('afterprint'))")
    window.wait(f"JSON.stringify({drawn}) === {json.dumps(json.dumps(before, separators=(',', ':')))}")
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
    # either is more than the page takes by itself: a busy machine keeps it waiting, and what it computes
    # is seen when some of the next figure is drawn too
    for _ in range(10):
        window.open(path.as_uri())
        window.wait("document.querySelector('.plot[data-drawn]') !== null")
        computed = window.computed()
        loaded = window.ask("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
        drawn = window.ask("Number(document.querySelector('.plot[data-drawn]').dataset.after) / 1000")
        window.wait_until_drawn()
        print(f"{len(html) / 1e6:.1f} MB; loaded, drawn, computed after {loaded}, {drawn}, {computed} s")
        seconds = min(max(loaded, drawn), computed)
        if seconds < 3:
            break
    assert 0 < seconds < 3
    window.ask("location.hash = 'concept=' + encodeURIComponent('concept 1853')")
    window.wait("document.getElementById('detail').dataset.concept === 'concept 1853'")
    window.screenshot("many")
    assert window.complaints() == []
