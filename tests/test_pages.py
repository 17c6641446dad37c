"""The built book as a reader meets it: whole, readable by everyone, at every width, without a request to elsewhere."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from conftest import HTML, MOVED, PAGES, ROOT, of_each, tags
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.pages

NOTEBOOKS = [name for name in PAGES if name.startswith("notebooks/")]
EXPLORABLE = [name for name in PAGES if "explorable" in {given.get("class") for _, given in tags(HTML / name)}]

CSP = "Content-Security-Policy"

# What axe finds in the theme's own markup and we cannot mend: (rule, part of the selector, reason).
UPSTREAM: tuple[tuple[str, str, str], ...] = ()

# What every page fetches, and a browser keeps: styles, scripts and fonts, and the words to search for.
SHARED = re.compile(r"_static/|searchindex\.js")
LEAST = {1280: 12.0, 390: 6.0}  # pixels of a figure's smallest text as seen, by the width of the window: 9 points, 4.5


def watched(page: Page, site: str) -> list[str]:
    """What will have gone wrong on this page by the time somebody looks."""
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
    return faults


def drawn(page: Page, address: str) -> Page:
    """The page at this address, its scripts run and its math typeset."""
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.evaluate("window.MathJax?.startup?.promise")
    return page


def off_site(url: str, site: str) -> bool:
    """Does this request leave the book?"""
    return not url.startswith((site, "data:", "blob:"))


@pytest.fixture
def visit(page: Page, site: str) -> Iterator[Callable[[str], Page]]:
    """Opens a page of the book, waits until it is drawn, and at the end fails on what went wrong underway."""
    faults = watched(page, site)
    yield lambda name: drawn(page, urljoin(site, name))
    assert not faults


class Visit(NamedTuple):
    """One visit on which a page is looked at in several ways."""

    page: Page
    faults: list[str]
    first_view: dict[str, int]  # bytes of what the first view fetched


@pytest.fixture(scope="module")
def seen(name: str, browser: Browser, site: str) -> Iterator[Visit]:
    """The page of this name on a desktop, drawn once for all the tests about it."""
    with browser.new_context(
        viewport={"width": 1280, "height": 900},
        color_scheme="light",
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    ) as context:
        page = context.new_page()
        faults, requests = watched(page, site), []
        page.on("requestfinished", lambda request: requests.append(request))
        drawn(page, urljoin(site, name))
        sizes = {request.url.removeprefix(site): request.sizes()["responseBodySize"] for request in requests}
        yield Visit(page, faults, sizes)


def test_book_is_built(site: str) -> None:
    assert "search.html" in PAGES
    assert any(name.startswith("book/") for name in PAGES)
    assert NOTEBOOKS


@of_each(PAGES)
def test_math_is_typeset(name: str, seen: Visit) -> None:
    assert seen.page.title()
    untypeset = seen.page.evaluate(
        """() => [...document.querySelectorAll(".math")].filter((math) => !math.querySelector("mjx-container"))
                 .map((math) => math.textContent)"""
    )
    assert not untypeset
    assert seen.page.locator("mjx-merror, [data-mjx-error]").count() == 0


@of_each(PAGES)
def test_page_is_light(name: str, seen: Visit) -> None:
    own = {address: size for address, size in seen.first_view.items() if not SHARED.match(address)}
    assert own and sum(own.values()) <= 1.2e6, own
    formulas, searches = seen.page.locator(".math").count() > 0, name == "search.html"
    fetched = " ".join(seen.first_view)
    assert ("mathjax" in fetched) == formulas and ("searchindex.js" in fetched) == searches
    assert "fontawesome.js" not in fetched
    assert sum(seen.first_view.values()) <= (3e6 if formulas else 1.8e6), seen.first_view
    pictures = {given["src"] for tag, given in tags(HTML / name) if tag == "img" and "_images/" in given["src"]}
    assert sum(((HTML / name).parent / picture).stat().st_size for picture in pictures) <= 1.5e6, pictures


@of_each(PAGES)
def test_code_fits_beside_both_sidebars(name: str, seen: Visit) -> None:
    """Cells, the folded ones unfolded, and the programs of the text; an address may be longer."""
    wide = seen.page.evaluate(
        """() => {
          const folded = [...document.querySelectorAll("article details:not([open])")];
          for (const details of folded) details.open = true;
          const wide = [...document.querySelectorAll("article :is(.highlight-python, .highlight-ipython3) pre")]
            .filter((code) => code.scrollWidth > code.clientWidth)
            .flatMap((code) => code.innerText.split("\\n"))
            .filter((line) => line.length > 88 && !line.includes("://"));
          for (const details of folded) details.open = false;
          return wide;
        }"""
    )
    assert not wide


@of_each(PAGES)
def test_every_figure_has_alternative_text_and_caption(name: str, seen: Visit) -> None:
    images = seen.page.evaluate(
        """async () => {
          const images = [...document.querySelectorAll("article img")];
          for (const image of images) image.loading = "eager";  // what the reader has not scrolled to yet
          await Promise.all(images.map((image) => image.decode().catch(() => {})));
          return images.map((image) => ({
            source: image.getAttribute("src"), alt: image.alt, drawn: image.complete && image.naturalWidth > 0,
            width: image.getBoundingClientRect().width, column: image.closest("article").clientWidth,
            stretch: image.naturalWidth / image.naturalHeight / (image.clientWidth / image.clientHeight),
            caption: image.closest("figure")?.querySelector("figcaption")?.innerText ?? ""}))
        }"""
    )
    for image in images:
        assert image["drawn"] and image["width"] <= image["column"], image
        assert len(image["alt"]) > 10 and not re.search(r"[0-9a-f]{16}|_images|\.(png|svg)$", image["alt"]), image
        assert len(image["caption"].split()) > 3, image
        assert 0.95 < image["stretch"] < 1.05, image


def small_texts(page: Page, least: float) -> list[str]:
    """Figures and explorables of the open page whose smallest text is seen smaller than so many pixels.

    A figure's file says how small its text is in points, and how many of its pixels make an inch.
    """
    small = []
    for address, shown in page.evaluate(
        """() => [...document.querySelectorAll("article figure img")].map((image) => {
          const look = getComputedStyle(image);
          return [image.src, image.clientWidth - parseFloat(look.paddingLeft) - parseFloat(look.paddingRight)];
        })"""
    ):
        with Image.open(HTML / unquote(urlparse(address).path).lstrip("/")) as picture:
            if "Smallest text" in picture.info:
                inches = picture.width / picture.info["dpi"][0]
                pixels = float(picture.info["Smallest text"].removesuffix(" pt")) / 72 * shown / inches
                small += [f"{address}: {pixels:.1f}"] if pixels < least - 0.1 else []
    return small + page.evaluate(
        """(least) => [...document.querySelectorAll(".explorable-view *")].filter((element) => {
          const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
          if (!texts.some((text) => text.data.trim())) return false;
          const matrix = element instanceof SVGElement ? element.getScreenCTM() : {a: 1, b: 0};
          const pixels = parseFloat(getComputedStyle(element).fontSize) * Math.hypot(matrix.a, matrix.b);
          return element.getClientRects().length && pixels < least - 0.1;
        }).map((element) => element.outerHTML)""",
        least,
    )


@of_each(PAGES)
def test_text_in_figures_is_large_enough(name: str, seen: Visit) -> None:
    assert not small_texts(seen.page, LEAST[1280])


@of_each(NOTEBOOKS)
def test_code_can_be_copied(name: str, seen: Visit) -> None:
    """With the names in it that lead to the API, as plain text."""
    for number in (0, 1):
        cell = seen.page.locator("div.cell_input").nth(number)
        cell.evaluate("cell => cell.closest('details')?.setAttribute('open', '')")  # a reader unfolds it first
        cell.hover()
        cell.locator("button.copybtn").click()
        copied = seen.page.evaluate("navigator.clipboard.readText()")
        assert copied.strip() == cell.locator("pre").inner_text().strip()
        assert cell.locator("a.code-link").count() > 0


@of_each(NOTEBOOKS)
def test_colab_button_opens_the_page_s_own_notebook(name: str, seen: Visit) -> None:
    from scripts.repository import colab_link, repository

    link = seen.page.locator('.dropdown-launch-buttons a[href*="colab"]').get_attribute("href")
    assert link == colab_link(repository(ROOT)[0], name.replace(".html", ".ipynb"))


def faint(page: Page) -> list[str]:
    """Texts whose colour stands out too little (WCAG 2.2, AA: 4.5, large ones 3) from the first ground below them.

    Everything that is folded is unfolded for it. axe leaves what something else might cover undecided, all of the
    sidebar for one.
    """
    return page.evaluate(
        """() => {
          const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
          const known = new Map();
          const values = (colour) => {
            if (!known.has(colour)) {
              canvas.clearRect(0, 0, 1, 1);
              canvas.fillStyle = colour;
              canvas.fillRect(0, 0, 1, 1);
              const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
              known.set(colour, [r, g, b, a / 255]);
            }
            return known.get(colour);
          };
          const over = ([r, g, b, a], below) => [r, g, b].map((value, k) => a * value + (1 - a) * below[k]);
          const ground = (element) => {
            if (!element) return [255, 255, 255];
            const own = values(getComputedStyle(element).backgroundColor);
            return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
          };
          const luminance = (colour) => colour
            .map((value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4)
            .reduce((sum, value, k) => sum + [0.2126, 0.7152, 0.0722][k] * value, 0);
          const written = (element) => element.matches("mjx-container") || [...element.childNodes]
            .some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());

          const folded = [...document.querySelectorAll("details:not([open])")];
          const hidden = [...document.querySelectorAll(".toggle-hidden")];
          for (const details of folded) details.open = true;
          for (const box of hidden) box.classList.remove("toggle-hidden");
          const found = new Map(), seen = {opacityProperty: true, visibilityProperty: true};
          for (const element of document.querySelectorAll("body *")) {
            if (!written(element) || !element.checkVisibility(seen)) continue;
            if (element.closest("mjx-assistive-mml, script, .explorable")) continue;
            const look = getComputedStyle(element), below = ground(element);
            const size = parseFloat(look.fontSize), bold = parseInt(look.fontWeight) >= 700;
            const lights = [luminance(over(values(look.color), below)), luminance(below)].sort((a, b) => b - a);
            const ratio = (lights[0] + 0.05) / (lights[1] + 0.05);
            const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
            if (ratio < least)
              found.set(look.color + below, `${ratio.toFixed(2)}: ${element.outerHTML.slice(0, 160)}`);
          }
          for (const details of folded) details.open = false;
          for (const box of hidden) box.classList.add("toggle-hidden");
          return [...found.values()];
        }"""
    )


def in_scheme(page: Page, scheme: Any) -> Page:
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
    return page


@of_each(PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(name: str, scheme: Any, seen: Visit) -> None:
    assert not faint(in_scheme(seen.page, scheme))


def test_faint_text_is_found(page: Page) -> None:
    page.set_content(
        "<p style='color: #777'>grey</p><p style='color: #767676'>darker</p><h1 style='color: #888'>large</h1>"
        "<div style='background: #222'><details><p style='color: rgba(255, 255, 255, 0.4)'>pale</p></details></div>"
    )
    assert [line[:4] for line in faint(page)] == ["4.48", "3.73"]


@of_each(PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_the_page(name: str, scheme: Any, seen: Visit) -> None:
    assert not barriers(in_scheme(seen.page, scheme), only=["link-in-text-block"] if scheme == "dark" else [])


def barriers(page: Page, only: list[str] | None = None) -> list[str]:
    """axe's serious and critical findings on the open page, by all of its rules or by these."""
    import axe_playwright_python

    page.evaluate(f"window.axe || {(Path(axe_playwright_python.__file__).parent / 'axe.min.js').read_text()}")
    # Code has thousands of tokens in a few looks: one of each stays, those like it become text without a look.
    found = page.evaluate(
        """only => {
          const looks = new Set();
          for (const token of document.querySelectorAll("pre span")) {
            const look = [token, token.parentElement, token.closest("pre").parentElement, token.closest(".cell_output")]
              .map((element) => `${element?.tagName} ${element?.className} ${element?.style.cssText}`).join();
            if (looks.has(look)) token.replaceWith(...token.childNodes);
            looks.add(look);
          }
          const options = {resultTypes: ["violations"], preload: false};
          if (only.length) options.runOnly = {type: "rule", values: only};
          return axe.run(options);
        }""",
        only or [],
    )
    return [
        f"{violation['impact']} {violation['id']} at {node['target']}: {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not any(violation["id"] == rule and part in str(node["target"]) for rule, part, _ in UPSTREAM)
    ]


@of_each(PAGES)
def test_nothing_went_wrong_underway(name: str, seen: Visit) -> None:
    assert not seen.faults


@of_each(PAGES)
def test_nothing_overflows_on_a_phone(name: str, seen: Visit) -> None:
    """The page drawn before, narrowed: its math need not be typeset again."""
    page = seen.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
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
    assert not small_texts(page, LEAST[390])
    assert not seen.faults


@of_each(PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_formulas_are_seen_whole(name: str, width: int, seen: Visit) -> None:
    """Nothing of a formula lies beyond the box or the line that it stands in: a phone shows no bar to scroll by."""
    seen.page.set_viewport_size({"width": width, "height": 900})
    cut = seen.page.evaluate(
        """() => {
          const folded = [...document.querySelectorAll("article details:not([open])")];
          const hidden = [...document.querySelectorAll("article .toggle-hidden")];
          for (const details of folded) details.open = true;
          for (const box of hidden) box.classList.remove("toggle-hidden");
          const around = (element) => /^(inline|contents)/.test(getComputedStyle(element).display)
            ? around(element.parentElement) : element;
          const cut = [...document.querySelectorAll("article mjx-container")].filter((formula) => {
            if (formula.getAttribute("display")) return formula.scrollWidth > formula.clientWidth + 1;
            const box = around(formula.parentElement);
            const edge = box.getBoundingClientRect().right - parseFloat(getComputedStyle(box).paddingRight);
            return formula.getBoundingClientRect().right > edge + 1;
          }).map((formula) => formula.innerText.replaceAll(/\\s/g, ""));
          for (const details of folded) details.open = false;
          for (const box of hidden) box.classList.add("toggle-hidden");
          return cut;
        }"""
    )
    assert not cut


@of_each(EXPLORABLE)
def test_a_reader_without_scripts_sees_the_first_frame(name: str, browser: Browser, site: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(urljoin(site, name))
        for figure in page.locator("figure.explorable").all():
            image = figure.locator("img")
            image.scroll_into_view_if_needed()
            assert image.is_visible() and len(image.get_attribute("alt") or "") > 40
            assert (image.bounding_box() or {})["height"] > 100
            assert len(figure.locator("figcaption").inner_text().split()) > 3


@of_each(NOTEBOOKS)
def test_no_widget_waits_for_a_kernel(name: str) -> None:
    waiting = r"\b\w+\(children=|jupyter-widgets|widget-view|application/javascript"
    assert not re.search(waiting, (HTML / name).read_text())


@of_each(PAGES)
def test_links_within_the_book_lead_somewhere(name: str) -> None:
    dead = []
    for tag, given in tags(HTML / name):
        path, anchor = urldefrag(given.get("href", ""))
        if tag != "a" or re.match(r"\w+:", path):
            continue
        target = (HTML / name).parent / unquote(path) if path else HTML / name
        if not target.exists() or (anchor and target.suffix == ".html" and unquote(anchor) not in anchors(target)):
            dead.append(given["href"])
    assert not dead


@functools.cache
def anchors(path: Path) -> set[str]:
    """The places of a built page that a link can name."""
    return {given["id"] for _, given in tags(path) if "id" in given}


@of_each(NOTEBOOKS)
def test_names_in_code_lead_to_the_api(name: str) -> None:
    """Those in cells and those in the text, each to the entry of its own name."""
    code = [given["href"] for _, given in tags(HTML / name) if given.get("class") == "code-link"]
    assert len(code) >= 5
    assert all(re.fullmatch(r"\.\./book/api/\w+\.html#(module-)?companion[\w.]*", address) for address in code)


def test_names_in_the_text_lead_to_the_api() -> None:
    link = r'<a class="reference internal" href="[^"#]*api/\w+\.html#([^"]+)"[^>]*><code[^>]*><span class="pre">([^<]+)'
    pages = ("notebooks/02_similarity.html", "book/glossary.html", "book/changelog.html")
    linked = {found for name in pages for found in re.findall(link, (HTML / name).read_text())}
    assert linked > {
        ("companion.similarity.cka_map", "cka_map"),
        ("companion.experiments.statistics.Mean.detectable", "Mean.detectable"),
        ("module-companion.flow", "companion.flow"),
    }


@of_each([*PAGES, *(f"{name}.html" for name in MOVED)])
def test_a_browser_is_told_to_run_the_page_s_own_scripts_alone(name: str) -> None:
    text = (HTML / name).read_text()
    if "<head>" not in text:
        assert "<script" not in text  # the book's entrance only leads on
        return
    [policy] = [given["content"] for _, given in tags(HTML / name) if given.get("http-equiv") == CSP]
    kinds = {kind: allowed.split() for kind, _, allowed in (part.partition(" ") for part in policy.split("; "))}
    assert kinds["default-src"] == kinds["base-uri"] == ["'none'"]
    inline = re.findall(r"<script(?![^>]* src=)[^>]*>(.*?)</script>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(lines.encode()).digest()).decode() for lines in inline}
    assert sorted(kinds["script-src"]) == ["'self'", *sorted(f"'sha256-{digest}'" for digest in hashes)]
    assert text.index(CSP) < text.index("<script")
    assert not [given for _, given in tags(HTML / name) if any(key.startswith("on") for key in given)]


def test_a_script_that_comes_into_a_page_is_not_run(page: Page, site: str) -> None:
    faults = watched(page, site)
    drawn(page, urljoin(site, "book/intro.html"))
    assert not faults
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", '<img src="data:," alt="" onerror="window.ran = true">');
        }"""
    )
    page.wait_for_timeout(500)
    assert not page.evaluate("window.ran")
    assert len(faults) == 2 and all("Content Security Policy" in fault for fault in faults)  # which `watched` sees


def test_what_is_folded_opens_and_the_page_prints(visit: Callable[[str], Page]) -> None:
    page = visit("notebooks/02_similarity.html")
    code = page.locator("details.hide pre").first
    assert not code.is_visible()
    page.locator("details.hide summary").first.click()
    assert code.is_visible()
    answer = page.locator(".admonition.dropdown").first
    answer.scroll_into_view_if_needed()
    hidden = answer.evaluate("box => box.offsetHeight")
    answer.locator("button.toggle-button").click()
    assert answer.evaluate("box => box.offsetHeight") > hidden
    page.evaluate("window.print = () => (window.printed = true)")
    page.locator(".btn-download-pdf-button").first.evaluate("button => button.click()")
    assert page.evaluate("window.printed")


def test_search_finds_cka(visit: Callable[[str], Page]) -> None:
    page = visit("search.html?q=CKA")
    page.get_by_text("Search finished").wait_for()  # results come one by one
    assert "Feature similarity" in page.inner_text("#search-results")
    assert not barriers(page)


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
