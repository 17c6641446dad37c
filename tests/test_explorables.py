"""The book's explorables: what they show, in a live notebook and in the page, by mouse, finger and keyboard."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HTML, PATIENCE, ROOT, leave_math
from PIL import Image

from companion.experiments import quantities, replay
from companion.experiments.explorables import (
    block_sets_data,
    cka_epochs_data,
    cka_map_data,
    flow_path_data,
    information_grid_data,
    mask_life_data,
    network_name,
    penalty_strengths_data,
)
from companion.experiments.records import Record, Run
from companion.widgets import explorable, parts
from scripts.explorables import FIGURE, data, included, written

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FOLDER = ROOT / "book" / "explorables"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/module.js"))
CHAPTERS = {
    figure.replace("-", "_"): path.relative_to(ROOT).with_suffix(".html").as_posix()
    for path in sorted(ROOT.glob("notebooks/*.ipynb"))
    for figure in FIGURE.findall(path.read_text().replace('\\"', '"'))
}
every = pytest.mark.parametrize("name", NAMES)
in_browser = pytest.mark.pages


# ----------------------------------------------------------------------------------------------- what they are made of
def test_every_explorable_stands_in_a_chapter() -> None:
    assert set(CHAPTERS) == set(NAMES) and len(NAMES) == 7


@every
def test_it_is_small_and_needs_nothing_else(name: str) -> None:
    module, style, shown, picture = parts(name)
    assert len((FOLDER / name / "module.js").read_text().splitlines()) < 250
    assert len(written(shown)) < 200_000 and len(picture) < 100_000
    assert set(re.findall(r"https?://[^\"]+", module + style)) == {"http://www.w3.org/2000/svg"}  # a name, no address
    assert not re.search(r"\b(import|require|fetch|XMLHttpRequest|eval)\b|@import|url\(", module + style)
    assert module.count("export ") == 1 and "export default { render };" in module
    assert Image.open(io.BytesIO(picture)).size[0] > 1200


def test_colours_are_those_of_matplotlib() -> None:
    import matplotlib

    (text,) = re.findall(r"const VIRIDIS = \(([^)]+)\)", (FOLDER / "explorable.js").read_text())
    stops = (255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, 33))[:, :3]).round().astype(int)
    assert re.findall(r"[0-9a-f]{6}", text) == ["{:02x}{:02x}{:02x}".format(*stop) for stop in stops]


def test_an_unknown_name_or_datum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name=.cka_maps. is unknown.*did you mean .cka_map."):
        explorable("cka_maps")
    with pytest.raises(ValueError, match="data='networsk' is unknown"):
        explorable("cka_map", networsk=[])


# ---------------------------------------------------------------------------------------------------- the live notebook
def test_without_anywidget_the_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "anywidget", None)
    shown = explorable("cka_map")
    assert shown.data == parts("cka_map").picture


@every
def test_a_widget_has_module_style_and_data(name: str) -> None:
    pytest.importorskip("anywidget")
    widget = explorable(name)
    state = widget.get_state()
    module, style, own, picture = parts(name)
    assert (state["_esm"], state["_css"]) == (module, style)
    assert {key: state[key] for key in own} == own
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/png"] == base64.b64encode(picture).decode() and bundle["text/plain"] == f"explorable({name!r})"
    assert explorable(name, state={}).state == {}


@pytest.mark.slow
def test_a_notebook_shows_it_live() -> None:
    pytest.importorskip("anywidget")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [f"from companion.widgets import explorable\nexplorable({name!r})" for name in NAMES[:2]]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbclient.NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(ROOT)}}).execute()
    models = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    for name, cell in zip(NAMES, notebook.cells, strict=False):
        view = cell.outputs[0].data["application/vnd.jupyter.widget-view+json"]["model_id"]
        assert models[view]["state"]["_esm"] == parts(name).module
        assert models[view]["state"]["state"] == parts(name).data["state"]
    # anywidget keeps one style for each of these.
    assert len({model["state"]["_anywidget_id"] for model in models.values() if "_esm" in model["state"]}) == 2


# ------------------------------------------------------------------------------------------------------------- the data
@pytest.mark.parametrize("name", ["block_sets", "cka_map", "information_grid", "penalty_strengths"])
def test_the_data_are_those_of_the_records(name: str) -> None:
    assert (FOLDER / name / "data.json").read_text() == written(data(name)), (
        f"run: python scripts/explorables.py {name}"
    )


LAYERS = ["relu", "layer1.0", "layer1.1", "layer2.0", "linear"]


def record(method: str = "resnet20", layers: list[str] = LAYERS, seed: int = 0) -> Record:
    """A record as `published_cka` writes it, of ten images."""
    random = np.random.default_rng(seed)
    cka = random.uniform(-0.1, 1, (len(layers), len(layers)))
    geometry = {
        "layers": layers,
        "points": random.normal(size=(len(layers), 10, 2)).round(3).tolist(),
        "explained": random.uniform(0, 1, len(layers)).round(3).tolist(),
        "images": list(range(3, 13)),
        "labels": [0, 1] * 5,
        "classes": ["cat", "ship"],
    }
    measures = {"cka": {"layers": layers, "values": cka.tolist()}, "geometry": geometry}
    return Record(Run("published_cka", "paper", method, 0), {}, [], measures, {})


def test_maps_hold_the_record_rounded() -> None:
    given = record()
    shown = cka_map_data([given])
    (network,) = shown["networks"]
    assert network["cka"] == given.measures["cka"]["values"]
    assert network["explained"] == given.measures["geometry"]["explained"]
    for drawn, points in zip(network["points"], given.measures["geometry"]["points"], strict=True):
        ratio = np.sqrt(np.square(points).sum(1).mean())
        assert np.abs(np.array(drawn) * ratio - points).max() <= 0.005 * ratio + 1e-12
    assert network["first"] == [1, 3] and shown["state"] == {"network": 0, "row": 1, "column": 3}
    assert network["layers"] == ["stem", "layer1.0", "layer1.1", "layer2.0", "logits"]
    assert [(c["name"], c["shape"]) for c in shown["classes"]] == [("cat", "circle"), ("ship", "square")]
    assert network_name("resnet20-untrained") == "ResNet-20, untrained"


def test_maps_are_refused_when_they_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no records"):
        cka_map_data([])
    bare = dataclasses.replace(record(), measures={"cka": record().measures["cka"]})
    with pytest.raises(ValueError, match=r"measures \['cka'\]; an explorable needs"):
        cka_map_data([bare])
    other = record()
    other.measures["geometry"]["images"][0] = 99
    with pytest.raises(ValueError, match="other images"):
        cka_map_data([record(), other])


def test_a_layer_without_variation_is_a_point() -> None:
    dead = record()
    dead.measures["geometry"]["points"][2] = [[0.0, 0.0]] * 10
    assert cka_map_data([dead])["networks"][0]["points"][2] == [[0.0, 0.0]] * 10


def test_sets_of_blocks_begin_with_the_two_of_least_loss_and_are_refused_without_a_record() -> None:
    (made,) = replay("block_subsets")
    shown, found = block_sets_data(made), made.measures["subsets"]
    pairs = {at: found["chosen_loss"][at] for at in range(512) if bin(at).count("1") == 2}
    assert len(pairs) == 36 and pairs[shown["state"]["gone"]] == min(pairs.values())
    assert shown["refreshed"][0] == found["refreshed"][0] and shown["examples"] == made.run.settings["examples"]
    layers = len(shown["blocks"]) + 1
    assert {len(row) for row in shown["cka"]} == {layers * (layers - 1) // 2}
    with pytest.raises(ValueError, match=r"measures \['cka', 'geometry'\]; an explorable needs subsets"):
        block_sets_data(record())


def test_every_estimator_answers_every_setting() -> None:
    shown = parts("information_grid").data
    shape = len(shown["pairs"]), len(shown["correlations"])
    for table in (shown["truth"], *(estimator["values"] for estimator in shown["estimators"])):
        assert (len(table), {len(row) for row in table}) == (shape[0], {shape[1]})
    assert len(shown["estimators"]) >= 4
    with pytest.raises(ValueError, match="no records"):
        information_grid_data([record()])


def nets(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nets of the explorable of penalties, by method."""
    return {"none": shown["none"]} | {
        f"{penalty['method']}_{strength['label']}": strength["net"]
        for penalty in shown["penalties"]
        for strength in penalty["strengths"]
    }


def neighbours(net: dict[str, Any]) -> float:
    """Mean CKA of each block and the next."""
    layers = parts("penalty_strengths").data["layers"]
    blocks = [k for k, layer in enumerate(layers) if layer.startswith("layer")]
    return float(np.mean([net["cka"][a][b] for a, b in itertools.pairwise(blocks)]))


def test_nets_under_penalties_are_those_of_their_records() -> None:
    shown, records = parts("penalty_strengths").data, replay("dense_penalties_strengths")
    found = nets(shown)
    assert set(found) == {record.run.method for record in records} and len(shown["penalties"]) == 7
    for record in records:
        net = found[record.run.method]
        assert net["accuracy"][0] == pytest.approx(quantities.percent(record), abs=0.051)
        assert net["accuracy"][4] == pytest.approx(quantities.after_pruning(0.9)(record), abs=0.051)
        assert net["accuracy"][6] == pytest.approx(quantities.after_removal(0.25, "pruned")(record), abs=0.051)
        assert len(net["accuracy"]) == len(shown["pruned"]) and len(net["inner"]) == len(shown["blocks"])
        assert np.mean(net["steps"]) == pytest.approx(quantities.path_length(record))
        assert np.radians(np.mean(net["angles"])) == pytest.approx(quantities.path_angle(record), abs=0.01)
        assert neighbours(net) == pytest.approx(quantities.cka_of_neighbours(record), abs=0.01)
    for penalty in shown["penalties"]:
        values = [float(strength["label"]) for strength in penalty["strengths"]]
        assert len(values) == 3 and values == sorted(values)


def test_nets_under_penalties_are_refused_without_their_reference() -> None:
    records = list(replay("dense_penalties_strengths"))
    with pytest.raises(ValueError, match="one without a penalty"):
        penalty_strengths_data([record for record in records if record.run.method != "none"])
    with pytest.raises(ValueError, match=r"as many of one as of another"):
        penalty_strengths_data(records[:-1])


def lives(*names: str) -> dict[str, list[torch.Tensor]]:
    """Three masks of five units on 3 × 3 pixels for each name."""
    torch.manual_seed(0)
    return {name: [torch.rand(5, 9) < density for density in (0.6, 0.4, 0.4)] for name in names}


def bits(shown: dict[str, Any], method: str) -> np.ndarray:
    """Masks of a method: epochs × units × pixels."""
    frames = next(m["frames"] for m in shown["methods"] if m["name"] == method)
    shape = shown["units"], shown["side"] ** 2
    unpacked = [np.unpackbits(np.frombuffer(base64.b64decode(f), dtype=np.uint8))[: np.prod(shape)] for f in frames]
    return np.array(unpacked, dtype=bool).reshape(-1, *shape)


def test_masks_can_be_unpacked() -> None:
    given = lives("a", "b", "c")
    shown = mask_life_data(given, torch.linspace(0, 1, 9))
    assert (shown["side"], shown["units"], shown["state"]) == (3, 5, {"method": 1, "epoch": 2})
    for name, masks in given.items():
        np.testing.assert_array_equal(bits(shown, name), np.array([mask.numpy() for mask in masks]))


def test_masks_and_paths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the same number of masks"):
        mask_life_data({}, torch.rand(9))
    with pytest.raises(ValueError, match="10 pixels"):
        mask_life_data(lives("a"), torch.rand(10))
    uneven = lives("a", "b")
    uneven["b"].pop()
    with pytest.raises(ValueError, match=r"methods with \[2, 3\] masks"):
        mask_life_data(uneven, torch.rand(9))
    with pytest.raises(ValueError, match="square"):
        mask_life_data({"a": [torch.ones(2, 6) > 0]}, torch.rand(6))
    path = {"points": torch.rand(4, 3, 2), "length": torch.rand(4, 2), "angle": torch.rand(4, 1)}
    for given in ({}, {"net": path}, {"net": path | {"guesses": torch.zeros(4, 2)}}):
        with pytest.raises(ValueError, match="at least one net"):
            flow_path_data(torch.rand(4, 1, 8, 8), torch.arange(4), given)


def test_masks_move_as_their_methods_say() -> None:
    shown = parts("mask_life").data
    names = [method["name"] for method in shown["methods"]]
    assert names == ["random, ERK", "SET", "RigL", "GraNet", "gradual magnitude"]
    masks = {name: bits(shown, name) for name in names}
    assert len({m.shape for m in masks.values()}) == 1
    assert (masks["random, ERK"] == masks["random, ERK"][0]).all()
    for name in ("SET", "RigL"):  # the number of each layer never changes, its places do
        assert len(set(masks[name].sum((1, 2)))) == 1
        assert (masks[name][0] != masks[name][-1]).any()
    assert masks["gradual magnitude"][0].all()
    for name in ("GraNet", "gradual magnitude"):
        assert masks[name][0].sum() > 4 * masks[name][-1].sum()
    assert not (masks["gradual magnitude"][1:] & ~masks["gradual magnitude"][:-1]).any()  # nothing comes back
    edge = np.isin(np.arange(shown["side"] ** 2) % shown["side"], (0, shown["side"] - 1))
    outside = {name: m[-1][:, edge].sum() / m[-1].sum() for name, m in masks.items()}
    assert outside["random, ERK"] > outside["RigL"] > outside["GraNet"]


@pytest.mark.slow
def test_masks_are_those_that_the_chapter_trains() -> None:
    made, stored = data("mask_life"), parts("mask_life").data
    assert [method["name"] for method in stored["methods"]] == [method["name"] for method in made["methods"]]
    np.testing.assert_allclose(stored["ink"], made["ink"], atol=5e-4)
    for method in made["methods"]:
        here, there = bits(made, method["name"]), bits(stored, method["name"])
        # Where training leads differs between processors; where it starts does not, nor how fast the masks thin out.
        np.testing.assert_array_equal(there[0], here[0])
        np.testing.assert_allclose(there.mean((1, 2)), here.mean((1, 2)), atol=0.03)


def test_a_shadow_is_never_longer_than_its_path() -> None:
    shown = parts("flow_path").data
    images, blocks = len(shown["images"]), len(shown["nets"][0]["points"][0])
    assert sorted(shown["labels"]) == sorted(list(range(10)) * 3) and {len(p) for p in shown["images"]} == {64}
    for net in shown["nets"]:
        assert np.shape(net["points"]) == (images, blocks, 2) and np.shape(net["guesses"]) == (images, blocks)
        assert (seen_lengths(net) <= np.array(net["length"]) + 0.02).all()
        assert ((np.array(net["angle"]) > 0) & (np.array(net["angle"]) < 180)).all()
    trained, untrained = shown["nets"]
    right = [np.mean(np.array(net["guesses"])[:, -1] == shown["labels"]) for net in (trained, untrained)]
    assert right[0] > 0.9 > 0.5 > right[1]
    assert np.mean(trained["angle"]) < np.mean(untrained["angle"])


def seen_lengths(net: dict[str, Any]) -> np.ndarray:
    """Lengths of the steps in the picture: images × steps."""
    return np.linalg.norm(np.diff(np.array(net["points"]), axis=1), axis=2)


@pytest.mark.slow
def test_paths_are_those_that_the_chapter_trains() -> None:
    made, stored = data("flow_path"), parts("flow_path").data
    assert all(made[key] == stored[key] for key in ("images", "labels", "state"))
    for net, kept in zip(made["nets"], stored["nets"], strict=True):
        assert kept["name"] == net["name"], "run: python scripts/explorables.py flow_path"
        # Where training leads differs a little between processors.
        np.testing.assert_allclose(np.mean(kept["length"], 0), np.mean(net["length"], 0), rtol=0.2)
        np.testing.assert_allclose(np.mean(kept["angle"], 0), np.mean(net["angle"], 0), atol=8)


# -- maps of CKA, epoch by epoch
def life(*layers: str, epochs: int = 2) -> list[tuple[pd.DataFrame, float]]:
    """Maps in which block i and block j have a CKA of 1 / (1 + i + j), and accuracies."""
    places = np.arange(len(layers))
    table = pd.DataFrame(1 / (1 + places[:, None] + places), layers, layers)
    return [(table, 0.1 * epoch) for epoch in range(epochs)]


def test_maps_over_epochs_are_rounded_and_averaged_inside_stages() -> None:
    shown = cka_epochs_data({"a": life("layer1.0", "layer1.1", "layer2.0", "layer2.1")})
    assert shown["stages"] == [["stage 1", 0, 2], ["stage 2", 2, 2]] and shown["state"] == {"epoch": 1}
    (net,) = shown["nets"]
    assert net["cka"][0][0] == [1, 0.5, 0.33, 0.25] and net["accuracy"] == [0, 10]
    assert net["inside"] == [round((1 / 2 + 1 / 6) / 2, 2)] * 2


def test_maps_over_epochs_that_do_not_fit_are_refused() -> None:
    blocks = ("layer1.0", "layer1.1")
    for lives in ({}, {"a": life(*blocks), "b": life(*blocks, epochs=3)}, {"a": life(*blocks), "b": life("layer1.0")}):
        with pytest.raises(ValueError, match="give the same of all"):
            cka_epochs_data(lives)
    with pytest.raises(ValueError, match="no two are of one stage"):
        cka_epochs_data({"a": life("layer1.0", "layer2.0")})


@pytest.mark.slow
def test_maps_over_epochs_are_those_that_the_chapter_trains() -> None:
    made, stored = data("cka_epochs"), parts("cka_epochs").data
    assert all(made[key] == stored[key] for key in ("layers", "stages", "state"))
    for net, kept in zip(made["nets"], stored["nets"], strict=True):
        assert kept["name"] == net["name"], "run: python scripts/explorables.py cka_epochs"
        # Where training leads differs a little between processors; where it starts does not.
        np.testing.assert_allclose(kept["cka"][0], net["cka"][0], atol=0.02)
        np.testing.assert_allclose(kept["inside"], net["inside"], atol=0.15)
        assert min(kept["accuracy"][-1], net["accuracy"][-1]) > 95
    without, under = stored["nets"]
    assert without["inside"][-1] > 0.9 > 0.4 > under["inside"][-1]


# -------------------------------------------------------------------------------------------------- in a page from disk
@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a bare page with an explorable from disk, in a context of one's choice; no script may fail."""
    faults: list[str] = []
    contexts = []

    def opened(name: str, **options: Any) -> Page:
        figure = f'<figure class="explorable" id="explorable-{name.replace("_", "-")}"><div>no scripts</div></figure>'
        file = tmp_path / f"{name}.html"
        file.write_text(f'<!doctype html><meta charset="utf-8">{included(figure, lambda path: path, tmp_path)}')
        context = browser.new_context(
            **{"viewport": {"width": 1000, "height": 900}, "reduced_motion": "reduce"} | options
        )
        contexts.append(context)
        page = context.new_page()
        page.clock.install()  # time passes when a test says so
        listen(page, faults)
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


def listen(page: Page, faults: list[str]) -> None:
    """Note what goes wrong in the page."""
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))


def sentence(page: Page) -> str:
    return page.locator(".explorable-sentence").inner_text()


# A model as anywidget hands it over, with the widget's traits; what it hears is kept in `window.model`.
LIVE = """async ([module, traits]) => {
  const address = URL.createObjectURL(new Blob([module], {type: "text/javascript"}));
  const {render} = (await import(address)).default;
  const listeners = [];
  window.saved = 0;
  window.model = {
    get: (key) => traits[key],
    set: (key, value) => { traits[key] = value; listeners.forEach(([e, f]) => e === `change:${key}` && f()); },
    on: (event, listener) => listeners.push([event, listener]),
    save_changes: () => { window.saved += 1; },
  };
  document.body.innerHTML = "<div></div>";
  window.ended = await render({model: window.model, el: document.body.firstChild});
  return document.body.firstChild.innerHTML;
}"""


@in_browser
@every
def test_page_and_notebook_draw_the_same(name: str, opened: Callable[..., Page]) -> None:
    """The page's script and the widget's ES module are one: what they draw is equal, to the last letter."""
    page = opened(name)
    before = page.locator("figure > div").inner_html()
    module, _, traits, _ = parts(name)
    assert len(before) > 1000 and before == page.evaluate(LIVE, [module, traits])


@in_browser
@every
def test_a_control_and_the_kernel_change_the_same_state(name: str, opened: Callable[..., Page]) -> None:
    page = opened(name)
    module, _, traits, _ = parts(name)
    page.evaluate(LIVE, [module, traits])
    first = sentence(page)
    if name == "cka_map":
        page.locator('[role="gridcell"]').first.click()
    elif name == "block_sets":
        page.locator("input[type=checkbox]").last.click()
    else:
        page.locator("input[type=range]").last.focus()
        page.keyboard.press("ArrowLeft")
    state = page.evaluate("window.model.get('state')")
    assert state != traits["state"] and state.keys() == traits["state"].keys() and page.evaluate("window.saved") == 1
    assert sentence(page) != first
    page.evaluate("state => window.model.set('state', state)", traits["state"])  # as an assignment in Python does
    assert sentence(page) == first
    page.evaluate("window.ended?.()")


# -- CKA maps
def cell(page: Page, i: int, j: int) -> Locator:
    return page.locator(f'.cka-grid [data-cell="{i},{j}"]')


def said(network: dict[str, Any], i: int, j: int) -> str:
    """How the sentence must begin."""
    return f"{network['layers'][i]} and {network['layers'][j]}: CKA {network['cka'][i][j]:.2f}"


@in_browser
def test_first_map_already_tells_the_story(opened: Callable[..., Page]) -> None:
    page, shown = opened("cka_map"), parts("cka_map").data
    network = shown["networks"][0]
    assert sentence(page).startswith(said(network, *network["first"])) and "little in common" in sentence(page)
    assert page.locator('.cka-grid [role="gridcell"]').count() == len(network["layers"]) ** 2
    for side in ("left", "right"):
        marks = page.locator(f".cka-{side} svg > *")
        assert marks.count() == len(shown["images"])
        assert len({mark.evaluate("mark => mark.style.transform") for mark in marks.all()[:20]}) > 15
    for text, layer in zip(page.locator(".cka-share").all_inner_texts(), network["first"], strict=True):
        percent = re.fullmatch(r"shows (\d+) % of its variance", text)
        assert percent and abs(int(percent[1]) - 100 * network["explained"][layer]) <= 0.5


@in_browser
def test_the_right_picture_is_turned_onto_the_left(opened: Callable[..., Page]) -> None:
    """As numpy turns it: orthogonal Procrustes."""
    page, shown = opened("cka_map"), parts("cka_map").data
    places = {}
    for side in ("left", "right"):
        moves = page.locator(f".cka-{side} svg > *").evaluate_all("all => all.map((mark) => mark.style.transform)")
        places[side] = np.array([[float(v) for v in re.findall(r"-?[\d.]+", move)] for move in moves]) * [1, -1]
        places[side] -= places[side].mean(0)
    left, right = (np.array(shown["networks"][0]["points"][layer]) for layer in shown["networks"][0]["first"])
    u, _, v = np.linalg.svd(right.T @ left)
    expected = right @ (u @ v)
    expected -= expected.mean(0)
    cosine = (expected * places["right"]).sum() / np.linalg.norm(expected) / np.linalg.norm(places["right"])
    assert cosine > 0.9999


@in_browser
def test_hover_shows_a_pair_and_a_click_keeps_it(opened: Callable[..., Page]) -> None:
    page, network = opened("cka_map"), parts("cka_map").data["networks"][0]
    before = sentence(page)
    cell(page, 4, 5).hover()
    assert sentence(page).startswith(said(network, 4, 5))
    page.locator(".cka-detail").hover()
    assert sentence(page) == before
    cell(page, 4, 5).click()
    page.locator(".cka-detail").hover()
    assert sentence(page).startswith(said(network, 4, 5))
    assert cell(page, 4, 5).get_attribute("aria-selected") == "true"
    assert page.locator('.cka-grid [aria-selected="true"]').count() == 1


@in_browser
def test_keys_choose_a_pair(opened: Callable[..., Page]) -> None:
    page, shown = opened("cka_map"), parts("cka_map").data
    network = shown["networks"][0]
    i, j = network["first"]
    page.locator("select").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.cell") == f"{i},{j}"
    moves = {"ArrowDown": (1, 0), "ArrowLeft": (1, -1), "ArrowUp": (0, -1), "ArrowRight": (0, 0)}
    for key, (down, right) in moves.items():
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.cell") == f"{i + down},{j + right}"
        assert sentence(page).startswith(said(network, i + down, j + right))
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(said(network, i, 0))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    assert page.locator(".cka-left .cka-of-class").count() == shown["labels"].count(0)


@in_browser
def test_another_network_starts_with_its_own_first_pair(opened: Callable[..., Page]) -> None:
    page = opened("cka_map")
    for k, network in enumerate(parts("cka_map").data["networks"]):
        page.locator("select").select_option(str(k))
        assert sentence(page).startswith(said(network, *network["first"]))
        assert page.locator('.cka-grid [role="row"]').count() == len(network["layers"])


@in_browser
def test_a_mark_finds_its_image_on_both_sides(opened: Callable[..., Page]) -> None:
    page, shown = opened("cka_map"), parts("cka_map").data
    page.locator(".cka-left svg [data-image='7']").hover(force=True)
    found = [page.locator(f".cka-{side} .cka-this").get_attribute("data-image") for side in ("left", "right")]
    assert found[0] == found[1]
    image = int(found[0] or -1)
    name = shown["classes"][shown["labels"][image]]["name"]
    assert page.locator(".cka-detail").inner_text() == f"Image {shown['images'][image]} of the test set: {name}."
    page.locator(".explorable-sentence").hover()
    assert page.locator(".cka-this").count() == 0


# -- paths
@in_browser
def test_a_path_is_chosen_and_walked(opened: Callable[..., Page]) -> None:
    page, shown = opened("flow_path"), parts("flow_path").data
    first, net, labels = shown["state"]["image"], shown["nets"][0], shown["labels"]
    blocks = len(net["points"][0])
    detail = page.locator(".flow-detail")
    assert sentence(page).startswith(f"A {labels[first]} after block {blocks} of {blocks}")
    share = round(100 * seen_lengths(net)[first].sum() / sum(net["length"][first]))
    assert detail.inner_text().startswith(f"The picture shows {share} % of the length")
    page.locator(".flow-thumbs button").nth(0).click()
    assert sentence(page).startswith(f"A {labels[0]} after block")
    assert page.locator('.flow-thumbs [aria-pressed="true"]').count() == 1
    page.locator("input").focus()
    page.keyboard.press("Home")
    assert sentence(page).startswith(f"A {labels[0]} after block 1 of {blocks}")
    assert f"would say {net['guesses'][0][0]}" in sentence(page)
    assert page.locator(".flow-dots .flow-coming").count() == blocks - 1
    page.locator("select").select_option("1")
    assert f"of its {round(sum(shown['nets'][1]['angle'][0]))}° of turning" in detail.inner_text()


# -- estimators
@in_browser
def test_sliders_choose_pairs_and_correlation(opened: Callable[..., Page]) -> None:
    page, shown = opened("information_grid"), parts("information_grid").data
    i, j = shown["state"]["pairs"], shown["state"]["correlation"]
    assert f"{shown['truth'][i][j]:.2f} nats" in sentence(page)
    page.locator("input").nth(1).focus()  # the number of pairs
    page.keyboard.press("ArrowRight")
    assert f"{shown['pairs'][i + 1]} pairs" in sentence(page)
    page.locator("input").nth(0).focus()  # the correlation
    page.keyboard.press("ArrowLeft")
    assert f"correlation {shown['correlations'][j - 1]:.2f}" in sentence(page)
    assert f"{shown['truth'][i + 1][j - 1]:.2f} nats" in sentence(page)
    assert page.locator(".information-grid circle").count() == len(shown["estimators"])


# -- masks
def told(method: str, epoch: int) -> str:
    """How the sentence of the masks must begin."""
    masks = bits(parts("mask_life").data, method)
    text = f"{masks[epoch].sum():,} of {masks[epoch].size:,} weights alive."
    if epoch:
        died, grew = (masks[epoch - 1] & ~masks[epoch]).sum(), (masks[epoch] & ~masks[epoch - 1]).sum()
        text += f" Since epoch {epoch - 1}, {died:,} died and {grew:,} grew;"
    return f"{method}, {f'epoch {epoch}' if epoch else 'at the start'}: {text}"


@in_browser
def test_keys_move_through_the_epochs_of_masks(opened: Callable[..., Page]) -> None:
    page, shown = opened("mask_life"), parts("mask_life").data
    last = shown["state"]["epoch"]
    method = shown["methods"][shown["state"]["method"]]["name"]
    masks, (now, before) = bits(shown, method), (last, last - 1)
    assert sentence(page).startswith(told(method, last))
    kinds = {
        "alive": masks[now] & masks[before],
        "grown": masks[now] & ~masks[before],
        "died": masks[before] & ~masks[now],
    }
    for state, weights in kinds.items():
        drawn = page.locator(f".explorable-panels > div > svg .life-{state}").get_attribute("d") or ""
        assert drawn.count("M") == weights.sum()
    page.locator("select").select_option("1")
    slider = page.locator("input")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert sentence(page).startswith(told("SET", last - 1))
    page.keyboard.press("Home")
    assert sentence(page).startswith(told("SET", 0)) and slider.get_attribute("aria-valuetext") == "start"
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "epoch 1"


@in_browser
def test_masks_play_only_for_readers_who_want_motion(opened: Callable[..., Page]) -> None:
    assert not opened("mask_life").locator("button").is_visible()  # reduced motion: the slider alone
    page = opened("mask_life", reduced_motion="no-preference")
    page.clock.pause_at(page.evaluate("Date.now()") + 60_000)  # installed, it still runs by itself; here it waits
    play, slider, last = page.locator("button"), page.locator("input"), parts("mask_life").data["state"]["epoch"]
    page.clock.run_for(5000)
    assert slider.input_value() == str(last)  # nothing moves by itself
    play.click()
    assert play.inner_text() == "Pause" and slider.input_value() == "0"
    page.clock.run_for(1600)
    assert slider.input_value() == "3"
    play.click()
    page.clock.run_for(5000)
    assert slider.input_value() == "3" and play.inner_text() == "Play"
    play.click()
    page.clock.run_for(60_000)
    assert slider.input_value() == str(last) and play.inner_text() == "Play"  # it ends


# -- maps of CKA while nets learn
@in_browser
def test_keys_move_through_the_epochs_of_maps(opened: Callable[..., Page]) -> None:
    page, shown = opened("cka_epochs"), parts("cka_epochs").data
    last, size = shown["state"]["epoch"], len(shown["layers"])

    def told(epoch: int) -> str:
        when = f"After epoch {epoch}" if epoch else "Before the training"
        values = ", ".join(f"{net['inside'][epoch]:.2f} {net['name']}" for net in shown["nets"])
        return f"{when}: mean CKA inside stages {values}."

    assert sentence(page) == told(last) and page.locator(".explorable-maps rect").count() == 2 * size**2
    page.locator("input").focus()
    page.keyboard.press("Home")
    assert sentence(page) == told(0)
    starts = page.locator(".explorable-maps svg").evaluate_all(
        "maps => maps.map((map) => [...map.querySelectorAll('rect')].map((cell) => cell.style.fill))"
    )
    assert starts[0] == starts[1] and len(set(starts[0])) > 5  # one start for both
    page.keyboard.press("ArrowRight")
    assert sentence(page) == told(1)


# -- penalties
def strong(penalty: int, strength: int) -> str:
    """How the sentence of the penalties must begin."""
    shown = parts("penalty_strengths").data
    chosen = shown["penalties"][penalty]
    label, net = (chosen["strengths"][strength][key] for key in ("label", "net"))
    right, without = net["accuracy"][0], shown["none"]["accuracy"][0]
    return f"{chosen['name']} at {label}: {right:.1f} % right, without a penalty {without:.1f} %"


@in_browser
def test_keys_choose_penalty_and_strength(opened: Callable[..., Page]) -> None:
    page, shown = opened("penalty_strengths"), parts("penalty_strengths").data
    assert sentence(page).startswith(strong(*shown["state"].values()))
    labels = len(shown["pruned"]) + 2 * len(shown["blocks"])
    for kind in ("chosen", "none"):
        assert page.locator(f".explorable-panels circle.strengths-{kind}").count() == labels
    assert page.locator("polyline").count() == 2 * len(shown["none"]["angles"])
    slider = page.locator("input")
    for penalty, entry in enumerate(shown["penalties"]):
        page.locator("select").select_option(str(penalty + 1))
        slider.focus()
        page.keyboard.press("Home")
        for strength, step in enumerate(entry["strengths"]):
            assert sentence(page).startswith(strong(penalty, strength))
            assert slider.get_attribute("aria-valuetext") == step["label"]
            note = page.locator(".explorable-maps .explorable-note").nth(1).inner_text()
            assert abs(float(note.rpartition(" ")[2]) - neighbours(step["net"])) <= 0.0051
            page.keyboard.press("ArrowRight")
    fills = "cells => cells.map((cell) => cell.style.fill)"
    maps = page.locator(".explorable-maps rect").evaluate_all(fills)
    assert len(maps) == 2 * len(shown["layers"]) ** 2 and maps[: len(maps) // 2] != maps[len(maps) // 2 :]
    page.locator("select").select_option("0")
    assert slider.is_disabled()
    assert sentence(page).startswith(f"No penalty: {shown['none']['accuracy'][0]:.1f} % right")
    maps = page.locator(".explorable-maps rect").evaluate_all(fills)
    assert maps[: len(maps) // 2] == maps[len(maps) // 2 :]


# -- sets of blocks
def kept(gone: int) -> str:
    """How the sentence of the sets must begin."""
    shown = parts("block_sets").data
    names = [name for k, name in enumerate(shown["blocks"]) if gone >> k & 1]
    right, raw = (100 * shown[key][gone] / shown["examples"] for key in ("refreshed", "raw"))
    who = f"Without {', '.join(names)}" if names else "With every block"
    return f"{who}: {right:.1f} % right, {raw:.1f} % with"


@in_browser
def test_keys_take_blocks_away(opened: Callable[..., Page]) -> None:
    page, shown = opened("block_sets"), parts("block_sets").data
    gone = shown["state"]["gone"]
    boxes, count = page.locator("input"), len(shown["blocks"])
    assert boxes.count() == count and sentence(page).startswith(kept(gone))
    for k in (0, 3, count - 1, 3):
        boxes.nth(k).focus()
        page.keyboard.press("Space")
        gone ^= 1 << k
        assert sentence(page).startswith(kept(gone))
        assert [boxes.nth(j).is_checked() for j in range(count)] == [not gone >> j & 1 for j in range(count)]
        heights = page.locator(".sets-bar").evaluate_all(
            "bars => bars.map((bar) => Number(bar.getAttribute('height')))"
        )
        assert [height > 0 for height in heights] == [step > 0 for step in shown["steps"][gone]]
    for k in range(count):  # all back
        if gone >> k & 1:
            boxes.nth(k).click()
    assert sentence(page).startswith(kept(0)) and "one set of this size" in sentence(page)


# -- all of them
@in_browser
@pytest.mark.parametrize("name", ["cka_map", "penalty_strengths"])
def test_marks_glide_unless_the_reader_wants_no_motion(name: str, opened: Callable[..., Page]) -> None:
    mark = {"cka_map": ".cka-left svg > *", "penalty_strengths": "circle.strengths-chosen"}[name]
    duration = f"parseFloat(getComputedStyle(document.querySelector('.explorable-panels {mark}')).transitionDuration)"
    assert opened(name, reduced_motion="no-preference").evaluate(duration) > 0.2
    assert opened(name, reduced_motion="reduce").evaluate(duration) == 0


@in_browser
@every
def test_a_finger_finds_it_on_a_phone(name: str, opened: Callable[..., Page]) -> None:
    page = opened(name, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    first = sentence(page)
    target = page.locator('[role="gridcell"]' if name == "cka_map" else "input").first
    target.tap(position={"x": 3, "y": (target.bounding_box() or {})["height"] / 2})
    assert sentence(page) != first


# ---------------------------------------------------------------------------------------------------------- in the book
@pytest.fixture(scope="module")
def chapter(name: str, browser: Browser, site: str) -> Iterator[Page]:
    """The chapter with the explorable, as the book has it."""
    faults: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce") as context:
        leave_math(context)
        page = context.new_page()
        listen(page, faults)
        page.goto(site + CHAPTERS[name])
        page.wait_for_selector(".explorable-view")
        yield page
    assert not faults


every_chapter = pytest.mark.parametrize("name", NAMES, scope="module")
TEXTS = (".explorable-sentence", ".explorable-head label", ".explorable-head select", ".explorable-note", "svg text")
MARKS = (
    ".sets-here",
    ".sets-bar",
    ".life-alive",
    ".life-grown",
    ".flow-line",
    ".ig-dot",
    "circle.strengths-chosen",
    "circle.strengths-none",
)


@in_browser
@every_chapter
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_every_light(name: str, scheme: Any, chapter: Page) -> None:
    chapter.emulate_media(color_scheme=scheme)
    chapter.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
    ground = chapter.evaluate("getComputedStyle(document.body).backgroundColor")
    checked = 0
    for parts_, least in ((TEXTS, 4.5), (MARKS, 3)):
        for part in parts_:
            for element in chapter.locator(f".explorable-view {part}").all()[:1]:
                colour = element.evaluate(
                    """element => {
                      const look = getComputedStyle(element);
                      if (!(element instanceof SVGElement)) return look.color;
                      return look.fill === "none" ? look.stroke : look.fill;
                    }"""
                )
                assert contrast(colour, ground) >= least, part
                checked += 1
    assert checked >= 3


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two CSS colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        values = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@in_browser
@every_chapter
def test_it_fits_a_phone(name: str, chapter: Page) -> None:
    chapter.set_viewport_size({"width": 390, "height": 844})
    for option in range(chapter.locator(".explorable-view option").count()):
        chapter.locator(".explorable-view select").select_option(str(option))
        assert chapter.evaluate("document.documentElement.scrollWidth") <= 390
        edges = "all => Math.max(...all.map((part) => part.getBoundingClientRect().right))"
        assert chapter.locator(".explorable-view *").evaluate_all(edges) <= 390


@in_browser
@every
def test_the_book_has_its_script_and_its_picture(name: str, site: str) -> None:
    sources = re.findall(rf'"(\.\./book/explorables/{name}/[\w.]+)"', (HTML / CHAPTERS[name]).read_text())
    assert {Path(source).name for source in sources} == {"style.css", "script.js", "picture.png"}
    assert all((HTML / CHAPTERS[name]).parent.joinpath(source).exists() for source in sources)


# ------------------------------------------------------------------------------------------- sliders that compute anew
def recomputed(chapter: str) -> dict[str, Any]:
    """The names of a chapter's cells that a slider runs again."""
    from scripts.cells import tagged

    return tagged(ROOT / "notebooks" / f"{chapter}.ipynb", "recompute")


@pytest.mark.slow
def test_the_biased_estimate_follows_theory_at_any_width() -> None:
    estimates = recomputed("02_similarity")["estimates"]
    for examples, width in ((8, 256), (32, 64), (128, 16)):
        found = estimates(examples, width, draws=20)
        assert found["biased"].mean() == pytest.approx(width / (width + examples), abs=0.03)
        chance = np.sqrt(2 / (examples * (examples - 3)))
        assert abs(found["unbiased"].mean()) < 4 * chance / np.sqrt(20) and len(found) == 20


def test_few_neighbours_scatter_and_many_pull_down() -> None:
    by_neighbours = recomputed("07_information")["by_neighbours"]
    found = by_neighbours(0.9, pairs=1, examples=300)
    truth = -0.5 * np.log(1 - 0.9**2)
    assert found.shape == (8, 7)
    assert abs(found[3].mean() - truth) < 0.05 and found[50].mean() < truth - 0.1
    assert found[1].std() > found[10].std()
    assert by_neighbours(0.0, 1, 300, draws=2).abs().to_numpy().max() < 0.3


@pytest.mark.slow
def test_a_net_is_trained_anew_under_both_strengths() -> None:
    pulled = recomputed("14_identity_meets_flow")["pulled"]
    (_, free), (_, apart), (_, short) = (pulled(*strengths) for strengths in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.1)))
    step, alike = (lambda steps, k=k: np.mean([pair[k] for pair in steps]) for k in (0, 1))
    assert alike(apart) < alike(free) - 0.1 and step(short) < step(free) and len(free) == 3
