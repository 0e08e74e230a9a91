"""Reports as a browser shows them: from file://, silent, sorted, filtered, explored, hostile text as text."""

from __future__ import annotations

import json

import browser as driver
import pytest
from cirbench.reports.build import build, write
from cirbench.reports.collect import collect
from fake_records import HOSTILE, write_run

from cirbench.runs.store import find_records

pytestmark = pytest.mark.skipif(driver.find() is None, reason="needs Chromium (chromium or google-chrome in PATH)")

ROWS = "[...document.querySelectorAll('[data-x=rows] tr.q')]"

CONTRAST = """(() => {
  const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = c => {
    probe.fillStyle = c;
    probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data];
  };
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = rgb(c).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)') return c;
    }
  };
  let worst = [99];
  const texts = 'h1, h2, h3, p, td, th, .soft, .sd, .ci, a, .hit, .miss, svg text, button';
  for (const e of document.querySelectorAll(texts)) {
    const s = getComputedStyle(e), ink = e.closest('svg') && s.fill !== 'none' ? s.fill : s.color;
    const [a, b] = [light(ink), light(under(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 120), ink, under(e)];
  }
  return worst;
})()"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    browser = driver.Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def suite(tmp_path_factory, made_up, made_up_page):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, made_up_page)
    return path, collect(find_records([made_up]))[0]


@pytest.fixture
def page(chrome, suite):
    chrome.console.clear()
    chrome.requests.clear()
    chrome.open(suite[0])
    yield chrome
    assert chrome.console == []
    assert [u for u in chrome.requests if not u.startswith("data:")] == [suite[0].as_uri()]


def start(page):
    """Bring the explorer into view and wait for its first rows."""
    page.run("document.querySelector('[data-explorer]').scrollIntoView()")
    page.wait(f"{ROWS}.length")


def choose(page, **values):
    """Set controls of the explorer and wait until it has settled."""
    for name, value in values.items():
        page.run(
            f"(() => {{ const e = document.querySelector('[data-x={name}]'); e.value = {json.dumps(str(value))};"
            " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
    page.run("new Promise(r => setTimeout(r, 250))")
    page.wait("!document.querySelector('[data-explorer]').hasAttribute('aria-busy')")


def test_every_section_renders_and_the_page_is_silent(page):
    found = page.run("[...document.querySelectorAll('main section')].map(s => [s.id, s.offsetHeight])")
    assert len(found) == 11 and all(height > 60 for _, height in found)
    start(page)
    assert page.run("[...document.images].every(i => !i.complete || i.naturalWidth > 0)")


def test_sorting_by_mouse_and_by_key(page):
    shown = "[...document.querySelectorAll('#main-0-0 tbody tr')].map(r => +r.cells[2].dataset.v)"
    before = page.run(shown)
    assert before == sorted(before, reverse=True)
    page.run("document.querySelectorAll('#main-0-0 thead button')[2].focus()")
    page.press("Enter", 13)
    page.press("Enter", 13)
    assert page.run(shown) == sorted(before)
    assert page.run("document.querySelectorAll('#main-0-0 th')[2].getAttribute('aria-sort')") == "ascending"
    page.press(" ", 32)
    assert page.run(shown) == sorted(before, reverse=True)
    page.run("document.querySelector('#main-0-0 thead button').click()")
    names = page.run("[...document.querySelectorAll('#main-0-0 tbody th')].map(e => e.textContent)")
    assert names == sorted(names) and len(page.run("[...document.querySelectorAll('#main-0-0 [aria-sort]')]")) == 1


def test_sorting_under_a_common_heading(page):
    """Two rows of heads: the second column below the second heading is not the second of the table."""
    page.run("document.querySelectorAll('[data-table=groups]')[0].closest('details').open = true")
    head = "[...document.querySelectorAll('[data-table=groups] thead tr:nth-child(2) th')]"
    column = page.run(f"{head}.findIndex(e => e.textContent === 'balanced')")
    page.run(f"{head}[{column} + 3].querySelector('button').click()")
    cells = "[...document.querySelectorAll('[data-table=groups] tbody tr')].map(r => ({...r.cells[%d].dataset}))"
    shown = page.run(cells % (column + 3 + 1))
    assert {d["metric"] for d in shown} == {"balanced/R@5"}
    assert [float(d["v"]) for d in shown] == sorted((float(d["v"]) for d in shown), reverse=True)


def test_settings_unfold_and_are_found(page):
    visible = "[...document.querySelectorAll('#main-0-0 tbody tr')].filter(r => r.offsetHeight).length"
    few, every = page.run(visible), page.run("document.querySelectorAll('#main-0-0 tbody tr').length")
    assert few < every
    page.run("document.querySelector('#main-0-0 + .unfold').focus()")
    page.press("Enter", 13)
    assert page.run(visible) == every
    assert page.run("document.querySelector('#main-0-0 + .unfold').getAttribute('aria-expanded')") == "true"
    page.press(" ", 32)
    assert page.run(visible) == few


def test_the_tab_key_reaches_everything_in_order_and_focus_is_seen(page):
    page.run("document.body.focus()")
    place = """(() => {
      const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
      const all = [...document.querySelectorAll('*')];
      return [all.indexOf(e), e.id || e.className || e.tagName, s.outlineStyle, parseFloat(s.outlineWidth), r.width,
              e.closest('#queries') !== null];
    })()"""
    seen = []
    for _ in range(400):
        page.press("Tab", 9)
        seen.append(page.run(place))
        if seen[-1][5]:
            break
    assert seen[0][1] == "skip" and seen[-1][5], seen[-1]
    order = [s[0] for s in seen]
    assert order == sorted(set(order)), "focus goes back or stays"
    for _, name, style, width, size, _ in seen:
        assert style != "none" and width >= 2 and size > 0, name
    wanted = page.run(
        "[...document.querySelectorAll('a, button, input, summary, [tabindex=\"0\"]')]"
        ".filter(e => !e.closest('#queries') && e.offsetParent && !e.closest('details:not([open]) > :not(summary)')"
        " && (e.compareDocumentPosition(document.querySelector('#queries')) & 4)).length"
    )
    assert len(seen) - 1 >= wanted > 30


def test_filtering_the_table(page):
    page.run(
        "(() => { const e = document.querySelector('[data-filter]'); e.value = 'no-e';"
        " e.dispatchEvent(new Event('input')); })()"
    )
    rows = "[...document.querySelectorAll('#main-0-0 tbody tr')]"
    visible = page.run(f"{rows}.filter(r => r.offsetHeight).map(r => r.cells[0].innerText)")
    assert visible == ["dwc no-emd"]


def test_explorer_agrees_with_the_records(page, suite):
    test = suite[1]
    start(page)
    a, b = (test.arms[n].records[0].rankings["rank/scenes"] for n in (0, 3))
    choose(page, a=0, b=3, k=10, mode="ab")
    wanted = [q["id"] for q, x, y in zip(test.queries, a, b, strict=True) if x <= 10 < y]
    assert wanted and page.run(f"{ROWS}.map(r => r.dataset.query)") == wanted[:25]
    assert page.run("document.querySelector('[data-x=count]').textContent").startswith(f"{len(wanted)} of 60 ")
    choose(page, mode="all", sort="worst")
    ranks = page.run(f"{ROWS}.map(r => +r.cells[3].textContent)")
    assert ranks == sorted(map(int, a), reverse=True)[:25]
    for mode, test_of in {
        "ba": lambda x, y: x > 5 >= y, "none": lambda x, y: x > 5 < y, "both": lambda x, y: x <= 5 >= y,
    }.items():
        choose(page, mode=mode, k=5, sort="file")
        wanted = [q["id"] for q, x, y in zip(test.queries, a, b, strict=True) if test_of(x, y)]
        assert page.run(f"{ROWS}.map(r => r.dataset.query)") == wanted[:25], mode
    choose(page, mode="all", group=2)
    wanted = [q["id"] for q in test.queries if q["group"] == "image-dominant"]
    assert page.run(f"{ROWS}.map(r => r.dataset.query)") == wanted
    choose(page, group=-1)
    page.run("document.querySelector('[data-x=next]').click()")
    page.wait(f"{ROWS}[0]?.dataset.query === {json.dumps(test.queries[25]['id'])}")
    assert page.run("document.querySelector('[data-x=count]').textContent") == "60 of 60 queries, page 2 of 3"
    choose(page, text="circle", sort="file", edit=1)
    wanted = [q["id"] for q in test.queries if "circle" in q["texts"][0] and q["extra"]["edit"] == "reshape"]
    assert page.run(f"{ROWS}.map(r => r.dataset.query)") == wanted


def test_a_query_opens_with_its_pictures_and_all_ranks(page, suite):
    test = suite[1]
    start(page)
    choose(page, mode="pics")
    query = page.run(f"{ROWS}[0].dataset.query")
    n = next(n for n, q in enumerate(test.queries) if q["id"] == query)
    page.run(f"{ROWS}[0].querySelector('button').focus()")
    page.press("Enter", 13)
    page.wait("document.querySelector('.detail .ranks')")
    items = "[...document.querySelectorAll('.detail .ranks li')]"
    shown = page.run(f"{items}.map(e => [...e.children].map(c => c.textContent))")
    assert shown == [[a.label, str(a.records[0].rankings["rank/scenes"][n])] for a in test.arms]
    top = test.arms[0].records[0].rankings["top/text"][n, :10]
    first = "document.querySelector('.detail .strip')"
    strip = page.run(f"[...{first}.querySelectorAll('.pic > :first-child')].map(e => e.title)")
    assert strip == [test.gallery[t] for t in top]
    marked = page.run(f"[...{first}.querySelectorAll('.pic.t > :first-child')].map(e => e.title)")
    assert marked == [t for t in test.queries[n]["targets"] if t in strip]
    assert page.run("[...document.querySelectorAll('.detail img')].every(i => i.naturalWidth === 48)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_over_the_edge_and_text_has_contrast(page, suite, width, scheme):
    page.open(suite[0], width, 900, scheme)
    start(page)
    assert page.run("document.documentElement.scrollWidth") <= width
    ratio = page.run(CONTRAST)
    assert ratio[0] >= 4.5, ratio


def test_without_pictures_names_stand_in_their_place(chrome, suite, tmp_path):
    records = [r for arm in suite[1].arms for r in arm.records]
    write(tmp_path / "bare.html", build(records, images=False))
    chrome.open(tmp_path / "bare.html")
    start(chrome)
    chrome.run(f"{ROWS}[0].querySelector('button').click()")
    chrome.wait("document.querySelector('.detail .ranks')")
    assert chrome.run("document.images.length") == 0
    query = suite[1].queries[0]
    names = chrome.run("[...document.querySelectorAll('.detail .ask .none')].map(e => e.textContent)")
    assert names == [query["reference"], *query["targets"]]


def test_it_prints_what_is_folded(page):
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("[...document.querySelectorAll('details:not(.noprint)')].every(d => d.open)")
    page.call("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('nav, .tools, .ex, .unfold')].every(e => !e.offsetHeight)"
    assert page.run(hidden) and page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.call("Emulation.setEmulatedMedia", media="")
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("[...document.querySelectorAll('details:not(.noprint)')].every(d => !d.open)")


def test_theme_button(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.run("document.querySelector('#theme').click()")
    assert page.run(paper) != light and page.run("document.querySelector('#theme').textContent") == "Light"


def test_hostile_text_is_shown_as_text(chrome, tmp_path):
    names = "<img src=x onerror=window.hacked=1>{:04d}\"'"
    for n, variant in enumerate(("<b>bold & $x^2$ 'quoted'", "\u202eright to left 👩‍🚀")):
        write_run(tmp_path / "runs", texts=HOSTILE, names=names, notes=HOSTILE, queries=18, gallery=40, steps=20,
                  variant=variant, overrides={"method.mutual_weight": n + 2})
    write_run(tmp_path / "runs", texts=HOSTILE, names=names, notes=HOSTILE, queries=18, gallery=40)
    write(tmp_path / "h.html", build(find_records([tmp_path / "runs"]), title=HOSTILE[1]))
    chrome.console.clear()
    chrome.requests.clear()
    chrome.open(tmp_path / "h.html")
    assert chrome.run("document.querySelector('h1').textContent") == HOSTILE[1]
    start(chrome)
    for number in range(len(HOSTILE)):
        chrome.run(f"{ROWS}[{number}].click()")
    chrome.wait(f"document.querySelectorAll('.detail .ranks').length === {len(HOSTILE)}")
    assert chrome.run("[...document.querySelectorAll('.detail .caption')].map(e => e.textContent)") == list(HOSTILE)
    notes = chrome.run("[...document.querySelectorAll('#provenance li')].map(e => e.textContent)")
    assert notes == list(HOSTILE)
    labels = chrome.run("[...document.querySelectorAll('#main-0-0 tbody th')].map(e => e.textContent)")
    assert sorted(labels) == ["dwc", "dwc <b>bold & $x^2$ 'quoted'", "dwc \u202eright to left 👩‍🚀"]
    assert "dwc <b>bold & $x^2$ 'quoted'" in chrome.run("document.querySelector('.fig svg').textContent")
    assert chrome.run("window.hacked") is None and chrome.console == []
    assert chrome.run("document.documentElement.scrollWidth") <= 1280
    assert [u for u in chrome.requests if not u.startswith("data:")] == [(tmp_path / "h.html").as_uri()]
