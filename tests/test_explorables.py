"""The explorable of the chapter *Feature similarity*, by mouse, finger and keyboard; its data are the records'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT

from companion.experiments import load_or_run
from companion.widgets import explorable_data, explorable_script
from scripts.pictures import explored

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHAPTER = "notebooks/02_similarity.html"
FOLDER = ROOT / "book" / "_static" / "explorables"
IN_BROWSER = pytest.mark.pages


# ------------------------------------------------------------------------------------------------------------- the data
def test_the_data_are_those_of_the_records() -> None:
    records = explored(load_or_run("published_cka", tier="paper"))
    assert (FOLDER / "cka_map.data.js").read_text() == explorable_script(records), "run: python scripts/pictures.py"
    shown = explorable_data(records)
    for network, record in zip(shown["networks"], records, strict=True):
        assert network["cka"] == record.measures["cka"]["values"]
        assert network["explained"] == record.measures["geometry"]["explained"]
        assert len(network["points"]) == len(network["layers"]) == len(network["cka"])
        assert all(len(points) == len(shown["images"]) for points in network["points"])


def test_it_is_small_and_needs_nothing_else() -> None:
    code = (FOLDER / "cka_map.js").read_text()
    assert len(code.splitlines()) < 300
    # The SVG namespace is a name, not an address; nothing is imported or fetched.
    assert re.findall(r"https?://[^\"]+", code + (FOLDER / "cka_map.css").read_text()) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\b(import|require|fetch|XMLHttpRequest)\b", code)


# ---------------------------------------------------------------------------------------------------------- in the page
@pytest.fixture
def opened(browser: Browser, site: str) -> Iterator[Callable[..., Page]]:
    """Opens the chapter in a context of one's choice; no script may fail."""
    faults: list[str] = []
    contexts = []

    def opened(**options: Any) -> Page:
        usual = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(**usual | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(site + CHAPTER, wait_until="networkidle")
        page.locator(".cka-map").scroll_into_view_if_needed()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


def cell(page: Page, i: int, j: int) -> Locator:
    return page.locator(f'.cka-grid [data-cell="{i},{j}"]')


def sentence(page: Page) -> str:
    return page.locator(".cka-sentence").inner_text()


def drawn() -> dict[str, Any]:
    """What the page draws."""
    text = (FOLDER / "cka_map.data.js").read_text()
    return json.loads(text.removeprefix("window.ckaMapData = ").removesuffix(";\n"))


def said(network: dict[str, Any], i: int, j: int) -> str:
    """How the sentence must begin."""
    return f"{network['layers'][i]} and {network['layers'][j]}: CKA {network['cka'][i][j]:.2f}"


@IN_BROWSER
def test_first_frame_already_tells_the_story(opened: Callable[..., Page]) -> None:
    page, data = opened(), drawn()
    network = data["networks"][0]
    assert sentence(page).startswith(said(network, *network["first"]))
    assert "little in common" in sentence(page)
    assert page.locator('.cka-grid [role="gridcell"]').count() == len(network["layers"]) ** 2
    for side in ("left", "right"):
        marks = page.locator(f".cka-{side} svg > *")
        assert marks.count() == len(data["images"])
        assert len({mark.evaluate("mark => mark.style.transform") for mark in marks.all()[:20]}) > 15
    for text, layer in zip(page.locator(".cka-share").all_inner_texts(), network["first"], strict=True):
        percent = re.fullmatch(r"shows (\d+) % of its variance", text)
        assert percent and abs(int(percent[1]) - 100 * network["explained"][layer]) <= 0.5


@IN_BROWSER
def test_hover_shows_a_pair_and_a_click_keeps_it(opened: Callable[..., Page]) -> None:
    page, network = opened(), drawn()["networks"][0]
    before = sentence(page)
    cell(page, 4, 5).hover()
    assert sentence(page).startswith(said(network, 4, 5))
    page.locator(".cka-legend").hover(position={"x": 1, "y": 1})
    assert sentence(page) == before
    cell(page, 4, 5).click()
    page.locator(".cka-legend").hover(position={"x": 1, "y": 1})
    assert sentence(page).startswith(said(network, 4, 5))
    assert cell(page, 4, 5).get_attribute("aria-selected") == "true"
    assert page.locator('.cka-grid [aria-selected="true"]').count() == 1


@IN_BROWSER
def test_a_finger_chooses_a_pair(opened: Callable[..., Page]) -> None:
    page = opened(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    network = drawn()["networks"][0]
    cell(page, 2, 8).tap()
    assert sentence(page).startswith(said(network, 2, 8))
    page.locator(".cka-left svg").tap()  # anywhere: the nearest mark, if one is near
    cell(page, 0, 1).tap()
    assert sentence(page).startswith(said(network, 0, 1))


@IN_BROWSER
def test_keys_choose_a_pair(opened: Callable[..., Page]) -> None:
    page, network = opened(), drawn()["networks"][0]
    i, j = network["first"]
    page.locator(".cka-head select").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.cell") == f"{i},{j}"
    moves = {"ArrowDown": (1, 0), "ArrowLeft": (1, -1), "ArrowUp": (0, -1), "ArrowRight": (0, 0)}
    for key, (down, right) in moves.items():
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.cell") == f"{i + down},{j + right}"
        assert sentence(page).startswith(said(network, i + down, j + right))
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith(said(network, i, 0))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    assert page.locator(".cka-left .cka-of-class").count() == drawn()["labels"].count(0)


@IN_BROWSER
def test_another_network_starts_with_its_own_first_pair(opened: Callable[..., Page]) -> None:
    page, networks = opened(), drawn()["networks"]
    for k, network in enumerate(networks):
        page.locator(".cka-head select").select_option(str(k))
        assert sentence(page).startswith(said(network, *network["first"]))
        assert page.locator('.cka-grid [role="row"]').count() == len(network["layers"])


@IN_BROWSER
def test_a_mark_finds_its_image_on_both_sides(opened: Callable[..., Page]) -> None:
    page, data = opened(), drawn()
    page.locator(".cka-left svg [data-image='7']").hover(force=True)
    found = [page.locator(f".cka-{side} .cka-this").get_attribute("data-image") for side in ("left", "right")]
    assert found[0] == found[1]
    image = int(found[0] or -1)
    name = data["classes"][data["labels"][image]]
    assert page.locator(".cka-detail").inner_text() == f"Image {data['images'][image]} of the test set: {name}."
    page.locator(".cka-sentence").hover()
    assert page.locator(".cka-this").count() == 0


@IN_BROWSER
def test_marks_glide_unless_the_reader_wants_no_motion(opened: Callable[..., Page]) -> None:
    duration = "getComputedStyle(document.querySelector('.cka-left svg > *')).transitionDuration"
    assert opened(reduced_motion="no-preference").evaluate(duration) == "0.35s"
    assert opened(reduced_motion="reduce").evaluate(duration) == "0s"


@IN_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_every_light(scheme: str, opened: Callable[..., Page]) -> None:
    page = opened(color_scheme=scheme)
    for part in (".cka-sentence", ".cka-share", ".cka-detail", ".cka-legend button", ".cka-head select", ".cka-below"):
        text, ground = page.locator(part).first.evaluate(
            """element => {
              const ground = (node) => getComputedStyle(node).backgroundColor;
              let behind = element;
              while (behind.parentElement && ground(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
              return [getComputedStyle(element).color, ground(behind)];
            }"""
        )
        assert contrast(text, ground) >= 4.5, part
    mark = page.locator(".cka-left svg > *").first.evaluate("mark => getComputedStyle(mark).stroke")
    assert contrast(mark, page.evaluate("getComputedStyle(document.body).backgroundColor")) >= 3


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two CSS colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@IN_BROWSER
def test_it_fits_a_phone(opened: Callable[..., Page]) -> None:
    page = opened(viewport={"width": 390, "height": 844})
    for k in range(len(drawn()["networks"])):
        page.locator(".cka-head select").select_option(str(k))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        edge = "Math.max(...[...document.querySelectorAll('.cka-map *')].map((e) => e.getBoundingClientRect().right))"
        assert page.evaluate(edge) <= 390


@IN_BROWSER
def test_a_reader_without_scripts_sees_the_first_frame(opened: Callable[..., Page]) -> None:
    page = opened(java_script_enabled=False)
    image = page.locator(".cka-map img")
    assert image.is_visible()
    assert len(image.get_attribute("alt") or "") > 40
    assert (image.bounding_box() or {})["height"] > 100
