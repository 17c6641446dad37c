"""The explorable of the chapter *Identity meets Flow*: its data, and that it answers to keys, fingers and the eye."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ROOT, leave_math

from companion.experiments import quantities, replay
from scripts.penalty_strengths import chapter, strengths_script

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = ROOT / "book" / "_static" / "explorables"
CHAPTER = "notebooks/13_identity_meets_flow.html"
IN_BROWSER = pytest.mark.pages


def drawn() -> dict[str, Any]:
    """What the page draws."""
    text = (FOLDER / "penalty_strengths.data.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.penaltyStrengthsData = ").removesuffix(";\n"))


def neighbours(net: dict[str, Any], data: dict[str, Any]) -> float:
    """Mean CKA of each block and the next."""
    blocks = [k for k, layer in enumerate(data["layers"]) if layer.startswith("layer")]
    return float(np.mean([net["cka"][a][b] for a, b in itertools.pairwise(blocks)]))


# ------------------------------------------------------------------------------------------------------------- the data
def test_the_data_are_those_of_the_records() -> None:
    records = replay("dense_penalties_strengths")
    if records.missing:
        pytest.skip(f"not run: {[run.method for run in records.missing]}")
    made = strengths_script(chapter())
    stored = (FOLDER / "penalty_strengths.data.js").read_text(encoding="utf-8")
    assert stored == made, "run: python scripts/penalty_strengths.py"
    data = drawn()
    by_name = {record.run.method: record for record in records}
    nets = {"none": data["none"]} | {
        f"{penalty['method']}_{strength['label']}": strength["net"]
        for penalty in data["penalties"]
        for strength in penalty["strengths"]
    }
    assert set(nets) == set(by_name)
    for name, net in nets.items():
        record = by_name[name]
        assert net["accuracy"][0] == pytest.approx(quantities.percent(record), abs=0.051)
        assert net["accuracy"][4] == pytest.approx(quantities.after_pruning(0.9)(record), abs=0.051)
        assert net["accuracy"][6] == pytest.approx(quantities.after_removal(0.25, "pruned")(record), abs=0.051)
        assert np.mean(net["steps"]) == pytest.approx(quantities.path_length(record))
        assert np.radians(np.mean(net["angles"])) == pytest.approx(quantities.path_angle(record), abs=0.01)
        assert neighbours(net, data) == pytest.approx(quantities.cka_of_neighbours(record), abs=0.01)


def test_every_penalty_has_three_strengths_and_every_net_the_same_parts() -> None:
    data = drawn()
    assert len({penalty["name"] for penalty in data["penalties"]}) == 7
    nets = [data["none"]]
    for penalty in data["penalties"]:
        values = [float(strength["label"]) for strength in penalty["strengths"]]
        assert len(values) == 3 and values == sorted(values)
        nets += [strength["net"] for strength in penalty["strengths"]]
    layers, blocks = len(data["layers"]), len(data["blocks"])
    for net in nets:
        assert np.shape(net["cka"]) == (layers, layers)
        assert np.shape(net["inner"]) == np.shape(net["last"]) == (blocks,)
        assert np.shape(net["accuracy"]) == (len(data["pruned"]),) and min(net["accuracy"]) > 0
        assert len(net["steps"]) == 2 * len(net["angles"])
    first, strength = data["first"]
    assert 0 <= first < len(data["penalties"]) and 0 <= strength < 3


def test_it_is_small_and_needs_nothing_else() -> None:
    code = (FOLDER / "penalty_strengths.js").read_text()
    style = (FOLDER / "penalty_strengths.css").read_text() + (FOLDER / "explorable.css").read_text()
    assert len(code.splitlines()) < 200 and len((FOLDER / "penalty_strengths.data.js").read_bytes()) < 60_000
    assert re.findall(r"https?://[^\"]+", code + style) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\b(import|require|fetch|XMLHttpRequest)\b", code)


def test_all_explorables_share_one_style() -> None:
    for path in FOLDER.glob("*.css"):
        if path.name != "explorable.css":
            assert '@import url("explorable.css");' in path.read_text(), path.name


# ---------------------------------------------------------------------------------------------------------- in the page
@pytest.fixture
def opened(browser: Browser, site: str) -> Iterator[Callable[..., Page]]:
    """Opens the chapter at its explorable; no script may fail."""
    faults: list[str] = []
    contexts = []

    def opened(**options: Any) -> Page:
        context = browser.new_context(
            **({"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options)
        )
        contexts.append(context)
        leave_math(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(site + CHAPTER, wait_until="networkidle")
        page.locator(".penalty-strengths").scroll_into_view_if_needed()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


def told(data: dict[str, Any], penalty: int, strength: int) -> str:
    """How the sentence must begin."""
    chosen = data["penalties"][penalty]
    label, net = (chosen["strengths"][strength][key] for key in ("label", "net"))
    right, without = net["accuracy"][0], data["none"]["accuracy"][0]
    return f"{chosen['name']} at {label}: {right:.1f} % right, without a penalty {without:.1f} %"


@IN_BROWSER
def test_first_frame_already_tells_the_story(opened: Callable[..., Page]) -> None:
    page, data = opened(), drawn()
    assert page.locator(".strengths-sentence").inner_text().startswith(told(data, *data["first"]))
    assert page.locator(".strengths-maps rect").count() == 2 * len(data["layers"]) ** 2
    fills = page.locator(".strengths-maps rect").evaluate_all("cells => cells.map((cell) => cell.style.fill)")
    half = len(fills) // 2
    assert fills[:half] != fills[half:]
    labels = len(data["pruned"]) + 2 * len(data["blocks"])
    assert page.locator(".strengths-panels circle.strengths-chosen").count() == labels
    assert page.locator(".strengths-panels circle.strengths-none").count() == labels
    assert page.locator(".strengths-panels polyline").count() == 2 * len(data["none"]["angles"])


@IN_BROWSER
def test_keys_choose_penalty_and_strength(opened: Callable[..., Page]) -> None:
    page, data = opened(), drawn()
    sentence, slider = page.locator(".strengths-sentence"), page.locator(".strengths-head input")
    for penalty, entry in enumerate(data["penalties"]):
        page.locator(".strengths-head select").select_option(str(penalty))
        slider.focus()
        page.keyboard.press("Home")
        for strength, step in enumerate(entry["strengths"]):
            assert sentence.inner_text().startswith(told(data, penalty, strength))
            assert slider.get_attribute("aria-valuetext") == f"strength {step['label']}"
            note = page.locator(".strengths-maps .strengths-note").nth(1).inner_text()
            assert abs(float(note.rpartition(" ")[2]) - neighbours(step["net"], data)) <= 0.0051
            page.keyboard.press("ArrowRight")
    page.locator(".strengths-head select").select_option("-1")
    assert slider.is_disabled()
    assert sentence.inner_text().startswith(f"No penalty: {data['none']['accuracy'][0]:.1f} % right")
    fills = page.locator(".strengths-maps rect").evaluate_all("cells => cells.map((cell) => cell.style.fill)")
    assert fills[: len(fills) // 2] == fills[len(fills) // 2 :]


@IN_BROWSER
def test_a_finger_moves_the_strength_on_a_phone(opened: Callable[..., Page]) -> None:
    page, data = opened(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}), drawn()
    slider = page.locator(".strengths-head input")
    slider.tap(position={"x": 3, "y": (slider.bounding_box() or {})["height"] / 2})
    assert page.locator(".strengths-sentence").inner_text().startswith(told(data, data["first"][0], 0))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    parts = page.locator(".penalty-strengths *")
    assert parts.evaluate_all("all => Math.max(...all.map((part) => part.getBoundingClientRect().right))") <= 390


@IN_BROWSER
def test_marks_glide_unless_the_reader_wants_no_motion(opened: Callable[..., Page]) -> None:
    duration = "getComputedStyle(document.querySelector('circle.strengths-chosen')).transitionDuration"
    assert opened(reduced_motion="no-preference").evaluate(duration) == "0.3s"
    assert opened(reduced_motion="reduce").evaluate(duration) == "0s"


@IN_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_can_be_seen_in_every_light(scheme: str, opened: Callable[..., Page]) -> None:
    from test_explorables import contrast

    page = opened(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for part, style, least in (
        (".strengths-sentence", "color", 4.5),
        (".strengths-note", "color", 4.5),
        (".strengths-panels text", "fill", 4.5),
        ("circle.strengths-chosen", "fill", 3),
        ("circle.strengths-none", "stroke", 3),
        ("polyline.strengths-none", "stroke", 3),
    ):
        colour = page.locator(part).first.evaluate(f"element => getComputedStyle(element).{style}")
        assert contrast(colour, ground) >= least, part
