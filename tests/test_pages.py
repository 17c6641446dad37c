"""The built book as a reader meets it: whole, readable by everyone, at every width, without a request to elsewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from bs4 import BeautifulSoup
from conftest import HTML, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.pages

PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
every_page = pytest.mark.parametrize("name", PAGES)

# What axe finds in the theme's own markup and we cannot mend: (rule, part of the selector, reason).
UPSTREAM: tuple[tuple[str, str, str], ...] = ()


@pytest.fixture
def visit(page: Page, site: str) -> Iterator[Callable[[str], Page]]:
    """Opens a page of the book, waits until it is drawn, and at the end fails on what went wrong underway."""
    faults: list[str] = []
    # Browsers ask the root for an icon when a page names none, as the redirect at the book's entrance does.
    page.on(
        "console",
        lambda message: (
            message.type == "error"
            and message.location["url"] != urljoin(site, "/favicon.ico")
            and faults.append(f"console: {message.text} {message.location['url']}")
        ),
    )
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    page.on("response", lambda response: response.status >= 400 and faults.append(f"{response.status}: {response.url}"))
    page.on("request", lambda request: off_site(request.url, site) and faults.append(f"off the site: {request.url}"))

    def visit(name: str) -> Page:
        return drawn(page, urljoin(site, name))

    yield visit
    assert not faults


def drawn(page: Page, address: str) -> Page:
    """The page at this address, its scripts run and its math typeset."""
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.evaluate("window.MathJax?.startup?.promise")
    return page


def off_site(url: str, site: str) -> bool:
    """Does this request leave the book?"""
    return not url.startswith((site, "data:", "blob:"))


def test_book_is_built(site: str) -> None:
    assert "search.html" in PAGES
    assert any(name.startswith("book/") for name in PAGES)


@every_page
def test_page_loads_and_its_math_is_typeset(name: str, visit: Callable[[str], Page]) -> None:
    page = visit(name)
    assert page.title()
    untypeset = page.evaluate(
        """() => [...document.querySelectorAll(".math")].filter((math) => !math.querySelector("mjx-container"))
                 .map((math) => math.textContent)"""
    )
    assert not untypeset
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0


@every_page
def test_every_figure_has_alternative_text_and_caption(name: str, visit: Callable[[str], Page]) -> None:
    images = visit(name).evaluate(
        """() => [...document.querySelectorAll("article img")].map((image) => ({
          source: image.getAttribute("src"), alt: image.alt, drawn: image.complete && image.naturalWidth > 0,
          caption: image.closest("figure")?.querySelector("figcaption")?.innerText ?? ""}))"""
    )
    for image in images:
        assert image["drawn"], image
        assert len(image["alt"]) > 10 and not re.search(r"[0-9a-f]{16}|_images|\.(png|svg)$", image["alt"]), image
        assert len(image["caption"].split()) > 3, image


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_the_page(name: str, scheme: Any, browser: Browser, site: str) -> None:
    with browser.new_context(color_scheme=scheme, reduced_motion="reduce") as context:
        page = drawn(context.new_page(), urljoin(site, name))
        page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        assert not barriers(page)


def barriers(page: Page) -> list[str]:
    """axe's serious and critical findings on the open page."""
    import axe_playwright_python

    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    violations = page.evaluate("axe.run({resultTypes: ['violations'], preload: false})")["violations"]
    return [
        f"{violation['impact']} {violation['id']} at {node['target']}: {node['failureSummary']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not any(violation["id"] == rule and part in str(node["target"]) for rule, part, _ in UPSTREAM)
    ]


@every_page
def test_nothing_overflows_on_a_phone(name: str, visit: Callable[[str], Page], page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    visit(name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    beyond = page.evaluate(
        """() => {
          const contained = (element) => element && element.tagName !== "BODY" &&
            (getComputedStyle(element).overflowX !== "visible" || contained(element.parentElement));
          return [...document.querySelectorAll("article *")]
            .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
            .filter((element) => !contained(element.parentElement))
            .map((element) => element.outerHTML.slice(0, 120));
        }"""
    )
    assert not beyond


@every_page
def test_links_within_the_book_lead_somewhere(name: str) -> None:
    dead = []
    for link in parsed(HTML / name).find_all("a", href=True):
        path, anchor = urldefrag(str(link["href"]))
        if re.match(r"\w+:", path):
            continue
        target = (HTML / name).parent / unquote(path) if path else HTML / name
        if not target.exists() or (anchor and target.suffix == ".html" and unquote(anchor) not in anchors(target)):
            dead.append(link["href"])
    assert not dead


@functools.cache
def parsed(path: Path) -> BeautifulSoup:
    """A built page as a tree of tags."""
    return BeautifulSoup(path.read_text(), "html.parser")


@functools.cache
def anchors(path: Path) -> set[str]:
    """The places of a built page that a link can name."""
    return {str(tag["id"]) for tag in parsed(path).find_all(id=True)}


def test_search_finds_cka(visit: Callable[[str], Page]) -> None:
    page = visit("search.html?q=CKA")
    page.wait_for_selector("#search-results li a")
    assert "Feature similarity" in page.inner_text("#search-results")
    assert not barriers(page)


def test_code_can_be_copied(visit: Callable[[str], Page], page: Page) -> None:
    notebooks = [name for name in PAGES if name.startswith("notebooks/")]
    assert notebooks
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in notebooks:
        visit(name)
        cell = page.locator("div.cell_input").first
        cell.hover()
        cell.locator("button.copybtn").click()
        assert page.evaluate("navigator.clipboard.readText()").strip() == cell.locator("pre").inner_text().strip()


def test_colour_mode_can_be_chosen(visit: Callable[[str], Page]) -> None:
    page = visit(next(name for name in PAGES if name.startswith("book/")))
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.mode"))
    assert seen == {"light", "dark", "auto"}


def test_paper_is_white(visit: Callable[[str], Page], page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    visit(PAGES[0])
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    seen = page.evaluate(
        """() => {
          const theme = () => document.documentElement.dataset.theme;
          return [theme(), dispatchEvent(new Event("beforeprint")) && theme(),
                  dispatchEvent(new Event("afterprint")) && theme()];
        }"""
    )
    assert seen == ["dark", "light", "dark"]


def test_colab_button_opens_the_page_s_own_notebook(visit: Callable[[str], Page]) -> None:
    from scripts.repository import colab_link, repository

    for name in PAGES:
        if name.startswith("notebooks/"):
            link = visit(name).locator('.dropdown-launch-buttons a[href*="colab"]').get_attribute("href")
            assert link == colab_link(*repository(ROOT), name.replace(".html", ".ipynb"))
