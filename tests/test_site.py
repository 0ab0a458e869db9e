"""The built site in a headless browser: complete, self-contained, readable, and it moves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import ROOT, SITE

VENDORED = (ROOT / "_build" / "vendor" / "node_modules").is_dir()
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.glob("book/**/*.html"))
PAGES += [
    name for name in ("index.html", "genindex.html", "search.html") if (SITE / name).is_file()
]
NOTEBOOK_PAGES = [p for p in PAGES if (SITE / "_sources" / p).with_suffix(".ipynb").is_file()]

WIDE = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
VIEWS: dict[str, dict[str, Any]] = {
    "wide": {"viewport": WIDE, "color_scheme": "light"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
}

# The state of a figure that a slider may change: its text, its images and drawings, its canvases.
STATE = """f => f.innerHTML + [...f.querySelectorAll('canvas')].map(c => c.toDataURL()).join()
    + [...f.querySelectorAll('input, output')].map(i => i.type == 'range' ? '' : i.value).join()"""

SHOWN = """a => [...a.querySelectorAll('img, svg, input, .widget-readout')]
    .map(e => e.getBoundingClientRect().width + (e.value ?? e.textContent)).join()"""

SILENT = "[...document.images].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 80))"
BROKEN = """[...document.images].filter(i => i.complete && !i.naturalWidth && i.getAttribute('src'))
    .map(i => i.src.slice(0, 80))"""

# A page's text without its listings, and what must not stand in it.
PROSE = """(article => {
    article?.querySelectorAll('pre, script, style').forEach(element => element.remove());
    return article?.textContent ?? '';
})(document.querySelector('article')?.cloneNode(true))"""
LEFT_OVER = re.compile(r"\{(?:cite|eq|ref|numref|term|doc|glue|prf)(?::\w+)*\}|@@[\w-]+@@")


@dataclass
class Visit:
    """A page in the browser, and what went wrong on it."""

    page: Any
    outside: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    name, view = request.param
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    seen = Visit(page)

    def asked(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            seen.outside.append(request.url)

    def answered(response: Any) -> None:
        if response.status >= 400 and not response.url.endswith("favicon.ico"):
            seen.missing.append(f"{response.status} {response.url}")

    page.on("request", asked)
    page.on("response", answered)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.goto(f"{address}/{name}", wait_until="load")
    page.wait_for_timeout(600)  # scripts that run after the page has loaded
    yield seen
    context.close()


def every(pages: list[str], *views: str) -> pytest.MarkDecorator:
    """Each page in each view."""
    cases = [(page, view) for page in pages for view in views]
    ids = [f"{page.removesuffix('.html')}-{view}" for page, view in cases]
    return pytest.mark.parametrize("visit", cases, ids=ids, indirect=True)


def test_the_site_has_pages(site: object) -> None:
    assert PAGES


@every(PAGES, "wide", "phone", "dark")
def test_page_is_whole(visit: Visit) -> None:
    """Nothing missing, no script fails, every image can be told, nothing moves sideways."""
    assert visit.missing == []
    assert visit.errors == []
    if VENDORED:
        assert visit.outside == []
    assert visit.page.evaluate(SILENT) == []
    assert visit.page.evaluate(BROKEN) == []
    root = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    assert visit.page.evaluate(root) <= 1, "the page scrolls sideways"


@every(PAGES, "wide")
def test_no_markup_is_left_as_text(visit: Visit) -> None:
    """A role or directive that was not understood would stand on the page in braces."""
    assert LEFT_OVER.findall(visit.page.evaluate(PROSE)) == []


@every(PAGES, "wide")
def test_mathematics_is_typeset(visit: Visit) -> None:
    if visit.page.locator(".math").count() == 0:
        return
    if not VENDORED:
        pytest.skip("MathJax comes from the default CDN")
    visit.page.wait_for_selector("mjx-container", state="attached")
    assert visit.page.evaluate("MathJax.version").startswith("3.")
    assert visit.page.locator("mjx-merror").count() == 0


@every(NOTEBOOK_PAGES, "wide", "phone")
def test_native_sliders_move(visit: Visit) -> None:
    """Each ``input[type=range]`` follows the keyboard and changes something in its figure."""
    for number, slider in enumerate(visible(visit, "input[type=range]")):
        figure = slider.locator("xpath=(ancestor::figure|ancestor::*[@class])[1]")
        output = slider.locator(
            "xpath=ancestor::*[contains(concat(' ', @class, ' '), ' output ')][1]"
        )
        figure = output if output.count() else figure
        value, state = slider.input_value(), figure.evaluate(STATE)
        slider.scroll_into_view_if_needed()
        slider.focus()
        at_end = value == slider.evaluate("s => s.max || '100'")
        for _ in range(3):
            slider.press("ArrowLeft" if at_end else "ArrowRight")
        visit.page.wait_for_timeout(300)
        assert slider.input_value() != value, f"slider {number} does not move"
        assert figure.evaluate(STATE) != state, f"slider {number} changes nothing"
    assert visit.errors == []


@every(NOTEBOOK_PAGES, "wide")
def test_widget_sliders_move(visit: Visit) -> None:
    """The same for the sliders of ipywidgets, linked in the browser."""
    if not VENDORED:
        pytest.skip("the widget manager comes from the default CDN")
    views = visit.page.locator("script[type='application/vnd.jupyter.widget-view+json']").count()
    if views:
        visit.page.wait_for_selector(".jupyter-widgets", state="attached")
        visit.page.wait_for_timeout(500)
    for number, slider in enumerate(visible(visit, ".noUi-handle")):
        area = slider.locator("xpath=ancestor::*[contains(@class, 'widget-subarea')][1]")
        value, state = slider.get_attribute("aria-valuenow"), area.evaluate(SHOWN)
        slider.focus()
        for _ in range(3):
            slider.press("ArrowRight")
        visit.page.wait_for_timeout(300)
        assert slider.get_attribute("aria-valuenow") != value, f"slider {number} does not move"
        assert area.evaluate(SHOWN) != state, f"slider {number} changes nothing"
    silent = (
        "[...document.querySelectorAll('.widget-subarea img')].filter(i => !i.alt.trim()).length"
    )
    assert visit.page.evaluate(silent) == 0
    assert visit.errors == []


@every(NOTEBOOK_PAGES, "dark")
def test_dark_mode_is_dark(visit: Visit) -> None:
    """The theme follows the system, and the text keeps its contrast."""
    assert visit.page.evaluate("document.documentElement.dataset.theme") == "dark"
    colours = visit.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    text, ground = (luminance(colour) for colour in colours)
    assert (text + 0.05) / (ground + 0.05) > 7


def visible(visit: Visit, selector: str) -> list[Any]:
    """The elements that a reader sees, in the order of the page."""
    return [found for found in visit.page.locator(selector).all() if found.is_visible()]


def luminance(colour: str) -> float:
    """Relative luminance of a CSS ``rgb(...)`` colour, as WCAG defines it."""
    red, green, blue = (
        float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]
    )
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
