"""The built site as others get it: whole without a network, found by search engines, shown with title and picture."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import HTML, PAGES, ROOT, of_each, tags

import companion
from scripts.repository import repository, slug

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.pages

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
BASE = CONFIG["html"]["baseurl"]
CONTENT = [name for name in PAGES if name.startswith(("book/", "notebooks/"))]

# What a browser fetches by itself when it shows a page or reads a style sheet.
RESOURCES = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
    "embed": "src",
}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}


def parsed(name: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / name).read_text(), "html.parser")


@of_each(PAGES)
def test_page_names_no_resource_elsewhere(name: str) -> None:
    named = [given[RESOURCES[tag]] for tag, given in tags(HTML / name) if given.get(RESOURCES.get(tag, ""))]
    named += [
        given["href"] for tag, given in tags(HTML / name) if tag == "link" and FETCHED_LINKS & {*given["rel"].split()}
    ]
    assert named or name == "index.html"  # which only leads on
    assert not [resource for resource in named if re.match(r"(https?:)?//", resource)]


def test_style_sheets_name_no_resource_elsewhere() -> None:
    sheets = list(HTML.glob("_static/**/*.css"))
    assert sheets
    away = re.compile(r"(?:@import\s+|url\()\s*[\"']?((?:https?:)?//[^\"')]+)")
    named = {sheet.name: away.findall(sheet.read_text(errors="replace")) for sheet in sheets}
    assert not {name: found for name, found in named.items() if found}


@of_each(CONTENT)
def test_a_link_to_the_page_is_shown_with_title_text_and_picture(name: str) -> None:
    seen = {given["property"]: given["content"] for tag, given in tags(HTML / name) if "property" in given}
    assert seen["og:title"] and len(seen["og:description"]) > 40 and seen["og:image:alt"]
    assert seen["og:url"] == urljoin(BASE, name)
    assert seen["og:image"].startswith(BASE) and (HTML / seen["og:image"].removeprefix(BASE)).exists()


def test_site_map_lists_every_page() -> None:
    listed = re.findall(r"<loc>(.*?)</loc>", (HTML / "sitemap.xml").read_text())
    assert set(CONTENT) <= {address.removeprefix(BASE) for address in listed}
    assert "search.html" not in {address.removeprefix(BASE) for address in listed}


def test_pages_are_published_where_the_repository_is() -> None:
    owner, name = slug(repository(ROOT)[0]).split("/")
    assert BASE == CONFIG["sphinx"]["config"]["ogp_site_url"] == f"https://{owner}.github.io/{name}/"


def test_a_page_that_moved_leads_to_where_it_is() -> None:
    for old, new in CONFIG["sphinx"]["config"]["redirects"].items():
        assert (HTML / urljoin(f"{old}.html", new)).exists(), f"{old} leads to {new}, which is not there"


def test_pages_tell_how_to_cite_and_what_changed() -> None:
    citing, changes = parsed("book/citing.html").get_text(), parsed("book/changelog.html").get_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"version = {{{companion.__version__}}}" in citing and citation["repository-code"] in citing
    for title in ("Learning Sparse Neural Networks with Identity Layers", "Feature Flow Regularization"):
        assert title in citing
    assert companion.__version__ in changes and "Added" in changes


def test_paper_holds_the_article_and_nothing_to_click(page: Page, site: str) -> None:
    page.emulate_media(media="print")
    page.goto(urljoin(site, "notebooks/02_similarity.html"))
    page.wait_for_load_state("networkidle")
    assert page.locator("article h1").first.is_visible()
    for part in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", "button.copybtn", ".headerlink"):
        assert page.locator(part).count() and not page.locator(f"{part}:visible").count(), part
    assert page.locator("div.cell_input pre").first.evaluate("e => getComputedStyle(e).whiteSpace") == "pre-wrap"
    boxes = "div.cell_input, div.cell_input div, div.cell_input pre"
    rules = page.eval_on_selector_all(boxes, "all => all.map(e => getComputedStyle(e).breakInside)")
    assert set(rules) == {"auto"}  # long code goes on over the page's end


def test_the_site_reads_from_a_disk(browser: Browser, tmp_path: Path) -> None:
    """Unpacked from the zip of `make offline`, without a server and with the network off."""
    shutil.copytree(HTML, tmp_path / "site", ignore=shutil.ignore_patterns("_sources"))
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        failed: list[str] = []
        page.on("requestfailed", lambda request: failed.append(request.url))
        for name in ("book/intro.html", "notebooks/02_similarity.html"):
            page.goto((tmp_path / "site" / name).as_uri())
            page.wait_for_load_state("networkidle")
            page.evaluate("window.MathJax?.startup?.promise")
            untypeset = "[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')).length"
            assert page.evaluate(untypeset) == 0
        page.locator(".cka-map").wait_for()  # an explorable
        assert not failed
        # From a disk a browser lets no script read another page: results come without their excerpts.
        page.goto((tmp_path / "site" / "search.html").as_uri() + "?q=CKA")
        page.wait_for_selector("#search-results li a")
