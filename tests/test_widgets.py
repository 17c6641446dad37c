"""The explorer for live notebooks, driven through its traits, and the data that both explorables draw."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

from companion.blocks import label
from companion.experiments.records import Record, Run
from companion.widgets import (
    WORDS,
    MaskExplorer,
    cka_explorer,
    explorable_data,
    explorable_script,
    mask_life_data,
    mask_life_script,
    network_name,
    turned,
    words,
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


def test_data_hold_the_record_rounded() -> None:
    given = record()
    data = explorable_data([given])
    (network,) = data["networks"]
    assert network["cka"] == given.measures["cka"]["values"]
    for shown, points in zip(network["points"], given.measures["geometry"]["points"], strict=True):
        ratio = np.sqrt(np.square(points).sum(1).mean())
        assert np.abs(np.array(shown) * ratio - points).max() <= 0.005 * ratio + 1e-12
    assert network["first"] == [1, 3]  # first block, last block
    assert network["layers"] == ["stem", "layer1.0", "layer1.1", "layer2.0", "logits"]
    assert data["shapes"] == ["circle", "square"]
    assert data["images"] == list(range(3, 13))
    assert data["colours"][0] == [68, 1, 84] and data["colours"][-1] == [253, 231, 37]  # viridis


def test_script_is_json_behind_one_name_and_always_the_same() -> None:
    script = explorable_script([record()])
    assert json.loads(script.removeprefix("window.ckaMapData = ").removesuffix(";\n")) == explorable_data([record()])
    assert script == explorable_script([record()])


def test_data_are_refused_when_they_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no records"):
        explorable_data([])
    bare = dataclasses.replace(record(), measures={"cka": record().measures["cka"]})
    with pytest.raises(ValueError, match=r"measures \['cka'\]; an explorer needs"):
        explorable_data([bare])
    other = record()
    other.measures["geometry"]["images"][0] = 99
    with pytest.raises(ValueError, match="other images"):
        explorable_data([record(), other])


def test_a_layer_without_variation_is_a_point() -> None:
    dead = record()
    dead.measures["geometry"]["points"][2] = [[0.0, 0.0]] * 10
    assert explorable_data([dead])["networks"][0]["points"][2] == [[0.0, 0.0]] * 10


def test_turning_undoes_any_rotation_or_reflection() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    for angle in (0.0, 1.0, 2.5):
        for mirror in (1, -1):
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, mirror])
            assert np.allclose(turned(points @ turn, points), points)


def test_names_and_words() -> None:
    assert network_name("resnet56") == "ResNet-56, trained"
    assert network_name("resnet20-untrained") == "ResNet-20, untrained"
    assert [words(value) for value in (1.0, 0.9, 0.6, 0.59, -0.2)] == [WORDS[k][1] for k in (0, 0, 1, 2, 3)]


def test_explorer_follows_its_traits() -> None:
    explorer = cka_explorer([record(), record("resnet20-untrained", seed=1)])
    first = explorer.picture.value
    assert explorer.controls["network"].value == "ResNet-20, trained"
    assert (explorer.controls["row"].value, explorer.controls["column"].value) == ("layer1.0", "layer2.0")
    explorer.controls["row"].value = "stem"
    value = record().measures["cka"]["values"][0][3]
    assert explorer.sentence.value == f"<b>stem and layer2.0: CKA {value:.2f}</b>, {words(value)}."
    assert explorer.picture.value != first
    assert Image.open(io.BytesIO(explorer.picture.value)).size[0] >= 800
    with pytest.raises(traitlets.TraitError):
        explorer.controls["row"].value = "layer9.0"


def test_explorer_offers_the_layers_of_the_chosen_network() -> None:
    deeper = [*LAYERS[:-1], "layer2.1", "layer2.2", "linear"]
    explorer = cka_explorer([record(), record("resnet32", deeper)])
    explorer.controls["column"].value = "logits"
    explorer.controls["network"].value = "ResNet-32, trained"
    assert (explorer.controls["row"].value, explorer.controls["column"].value) == ("layer1.0", "layer2.2")
    assert list(explorer.controls["row"].options) == [label(name) for name in deeper]
    explorer.controls["network"].value = "ResNet-20, trained"
    assert (explorer.controls["row"].value, explorer.controls["column"].value) == ("layer1.0", "layer2.0")
    explorer.controls["column"].value = "stem"
    assert "layer1.0 and stem" in explorer.sentence.value


def test_explorer_leaves_out_records_without_geometry() -> None:
    between = dataclasses.replace(record("resnet20-vs-resnet56"), measures={"cka": record().measures["cka"]})
    assert list(cka_explorer([record(), between]).controls["network"].options) == ["ResNet-20, trained"]


def test_explorer_is_a_picture_where_there_is_no_kernel() -> None:
    explorer = cka_explorer([record()])
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(explorer._repr_mimebundle_())


# --------------------------------------------------------------------------------------------- masks, epoch by epoch
def lives(units: int = 5, side: int = 3, epochs: int = 2) -> dict[str, list[torch.Tensor]]:
    """Random masks of three methods, at the start and after every epoch."""
    return {name: [torch.rand(units, side**2) < 0.4 for _ in range(epochs + 1)] for name in ("a", "b", "c")}


def test_mask_data_hold_every_bit() -> None:
    given, ink = lives(), torch.rand(9)
    data = mask_life_data(given, ink)
    assert (data["side"], data["units"], data["first"]) == (3, 5, 1)
    assert data["ink"] == pytest.approx(ink.tolist(), abs=5e-4)
    for method, (name, life) in zip(data["methods"], given.items(), strict=True):
        assert method["name"] == name
        for frame, mask in zip(method["frames"], life, strict=True):
            bits = np.unpackbits(np.frombuffer(base64.b64decode(frame), dtype=np.uint8))[: mask.numel()]
            np.testing.assert_array_equal(bits.reshape(mask.shape), mask)
    text = mask_life_script(given, ink)
    assert json.loads(text.removeprefix("window.maskLifeData = ").removesuffix(";\n")) == data


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the same number of masks"):
        mask_life_data({}, torch.rand(9))
    with pytest.raises(ValueError, match="10 pixels"):
        mask_life_data(lives(), torch.rand(10))
    uneven = lives()
    uneven["b"].pop()
    with pytest.raises(ValueError, match=r"methods with \[2, 3\] masks"):
        mask_life_data(uneven, torch.rand(9))
    with pytest.raises(ValueError, match="square"):
        mask_life_data({"a": [torch.ones(2, 6) > 0]}, torch.rand(6))


def test_mask_explorer_follows_its_traits() -> None:
    given = lives()
    explorer = MaskExplorer(given, torch.rand(9))
    method, epoch = explorer.controls["method"], explorer.controls["epoch"]
    assert (method.value, epoch.value, epoch.max) == ("b", 2, 2)
    first = explorer.picture.value
    now, before = given["b"][2], given["b"][1]
    assert explorer.sentence.value == (
        f"<b>b, epoch 2: {int(now.sum())} of 45 weights alive.</b> Since the epoch before "
        f"{int((before & ~now).sum())} died and {int((now & ~before).sum())} grew."
    )
    epoch.value = 0
    assert "0 died and 0 grew" in explorer.sentence.value
    method.value = "c"
    assert explorer.sentence.value.startswith(f"<b>c, epoch 0: {int(given['c'][0].sum())} of 45")
    assert explorer.picture.value != first
    assert Image.open(io.BytesIO(explorer.picture.value)).size[0] >= 800
    assert "image/png" in explorer._repr_mimebundle_()
