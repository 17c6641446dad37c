"""Trained ImageNet networks on photographs: what the studies measure, against the library and by hand."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch
from torch import nn

from companion import models
from companion.experiments import EXPERIMENTS, Workplace
from companion.experiments.imagenet_nets import by_chance, in_parts, inner, intervals, outputs, seen, silenced, tails
from companion.experiments.records import unpacked
from companion.pruning import zero_filters
from companion.similarity import MinibatchCKA, cka, cka_interval, gram

STUDIES = ("photographs_features", "photographs_blocks", "photographs_filters")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    return Workplace(device=torch.device("cpu"), work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def features() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(48, 20)
    return {"a": x, "b": x + torch.randn(48, 20), "c": torch.randn(48, 6)}


def lite(**options) -> nn.Sequential:
    torch.manual_seed(1)
    model = models.efficientnet_lite0(classes=5, width=0.25, **options).eval()
    for module in model.modules():  # statistics as of a trained network: a silent filter is then not zero
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_()
            module.running_mean.normal_()
    return model


# ---------------------------------------------------------------------------------------------------------- photographs
def test_photographs_come_evenly_from_the_classes_and_in_no_order_of_theirs(place) -> None:
    run = EXPERIMENTS["photographs_features"].runs("smoke")[0]
    found = seen(run, place)
    assert set(Counter(found.labels.tolist()).values()) == {4}  # 32 of 40, 8 classes
    assert not torch.equal(found.labels, found.labels.sort().values)
    assert torch.equal(torch.cat([labels for _, labels in found.loader]), found.labels)
    other = seen(dataclasses.replace(run, seed=1), place)
    assert not torch.equal(other.labels, found.labels)
    with pytest.raises(ValueError, match=r"41 photographs are wanted; .* has 40"):
        seen(dataclasses.replace(run, settings={**run.settings, "photographs": 41}), place)


@pytest.mark.parametrize("name", STUDIES)
def test_a_dry_run_keeps_numbers_and_no_image(name: str, place) -> None:
    experiment = EXPERIMENTS[name]
    run = experiment.runs("smoke")[0]
    outcome = experiment.perform(run, place)
    text = json.dumps(outcome._asdict(), allow_nan=False)
    assert len(text) < 100_000  # the pixels of the 32 images alone would take as much
    test = outcome.result["test"]
    assert unpacked(test["right"], test["examples"]).sum() == test["correct"]


# ------------------------------------------------------------------------------------------------------------- features
def test_cka_in_parts_is_the_librarys(features) -> None:
    grams = {name: gram(x) for name, x in features.items()}
    found = in_parts(grams, 12)
    parts = [slice(first, first + 12) for first in range(0, 48, 12)]
    metric = MinibatchCKA(["a", "b", "c"])
    for part in parts:
        metric.update({name: x[part] for name, x in features.items()})
    assert found["parts"] == 4
    assert torch.allclose(torch.tensor(found["unbiased"]).double(), metric.compute(), atol=2e-4)
    biased = sum(cka(features["a"][part], features["b"][part], unbiased=False) for part in parts) / 4
    single = torch.stack([cka(features["a"][part], features["b"][part]) for part in parts])
    assert found["biased"][0][1] == pytest.approx(float(biased), abs=2e-4)
    assert found["spread"][0][1] == pytest.approx(float(single.std()), abs=2e-4)


def test_intervals_are_the_librarys(features) -> None:
    found = intervals({name: gram(x) for name, x in features.items()})
    one = cka_interval(features["a"], features["b"])
    assert [found[key][0][1] for key in ("value", "low", "high")] == pytest.approx(
        [one.value, one.low, one.high], abs=2e-4
    )
    assert found["biased"][0][2] == pytest.approx(float(cka(features["a"], features["c"], unbiased=False)), abs=2e-4)


def test_chance_is_where_unrelated_features_are(features) -> None:
    grams = {name: gram(x) for name, x in features.items()}
    found = by_chance(grams, 48, seed=0)
    a, b, c = 0, 1, 2
    assert abs(found["unbiased"]["mean"][a][c]) < 0.02 < found["biased"]["mean"][a][c]
    assert found["unbiased"]["observed"][a][b] > found["unbiased"]["largest"] > found["unbiased"]["high"][a][c]
    assert found["unbiased"]["observed"][a][b] == pytest.approx(float(cka(features["a"], features["b"])), abs=2e-4)


# -------------------------------------------------------------------------------------------------------------- removal
@pytest.mark.parametrize("network", [lite(), nn.ModuleDict({"net": lite()})["net"], models.resnet20(width=4).eval()])
def test_a_tail_is_the_rest_of_its_network(network: nn.Module) -> None:
    images = [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32, 32)]
    whole = outputs(network, images)
    found = list(tails(network, images))
    assert [tail.block for tail in found][:2] == (
        ["layer1.0", "layer2.0"] if found[0].name == "0" else ["layer1.0", "layer1.1"]
    )
    for tail in found:
        assert all(
            torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs(tail.model, tail.inputs), whole, strict=True)
        )
        both = nn.Sequential(tail.before, tail.model)
        assert torch.allclose(outputs(both, images)[0], whole[0], atol=1e-5)
        assert type(tail.model.get_submodule(tail.name)) is type(network.get_submodule(tail.block))


def test_a_filter_cut_out_with_its_norm_is_silent_and_a_zeroed_one_is_not() -> None:
    model, x = lite(), torch.randn(2, 3, 32, 32)
    emitted: dict[str, torch.Tensor] = {}

    def after(network: nn.Module) -> torch.Tensor:
        network.get_submodule("layer3.1.relu1").register_forward_hook(lambda _m, _x, y: emitted.update(y=y))
        with torch.no_grad():
            network(x)
        return emitted["y"][:, [0, 3]]

    gone = {"layer3.1.conv1": [0, 3]}
    norm = model.get_submodule("layer3.1.bn1")
    constant = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    assert after(silenced(model, gone)).abs().max() == 0
    assert torch.allclose(
        after(zero_filters(model, gone)), constant[[0, 3]].clamp(0, 6).view(1, 2, 1, 1).expand(2, 2, 4, 4), atol=1e-6
    )


def test_the_filters_inside_a_block_are_those_that_nothing_else_reads() -> None:
    assert inner(lite(), "layer2.0") == ["layer2.0.conv1", "layer2.0.conv2"] and inner(lite(), "layer1.0") == []
    assert inner(models.resnet20(width=4), "layer2.0") == ["layer2.0.conv1"]
