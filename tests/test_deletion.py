"""Blocks taken out of networks: the study's chain against networks that are written without them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from companion import models
from companion.experiments import EXPERIMENTS, Workplace, replay
from companion.experiments.deletion import Chain
from companion.experiments.records import unpacked
from companion.experiments.removal import without_branches
from companion.similarity import cka


@pytest.fixture
def net() -> models.ResNet:
    """Two stages, so that one block changes the shape; batch norms that do something."""
    torch.manual_seed(0)
    model = models.ResNet((2, 2), width=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # more than pass a block together


def calibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose batch norms have the statistics of one batch."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return model.eval()


@pytest.mark.parametrize("anew", [False, True])
@torch.no_grad()
def test_a_chain_computes_what_the_network_without_those_blocks_computes(
    net: models.ResNet, images: Tensor, anew: bool
) -> None:
    chain, before = Chain(net), copy.deepcopy(net.state_dict())
    seen = torch.randn(50, 3, 8, 8) if anew else None
    start = chain.start(images, seen)
    gone = ["layer2.1"]
    found = chain.without_each(start, gone)
    assert list(found) == ["", "layer1.0", "layer1.1", "layer2.0"]
    for name, logits in found.items():
        shorter = without_branches(net, [*gone, *filter(None, [name])])
        expected = (calibrated(shorter, seen) if seen is not None else shorter)(images)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.allclose(found["layer1.0"], found[""], atol=0.01)  # the blocks do something


@torch.no_grad()
def test_every_subset_comes_once_with_its_own_features(net: models.ResNet, images: Tensor) -> None:
    chain, seen = Chain(net), torch.randn(50, 3, 8, 8)
    subsets = list(chain.every_subset(chain.start(images, seen)))
    every = itertools.chain.from_iterable(itertools.combinations(chain.blocks, k) for k in range(5))
    assert sorted(gone for gone, _, _ in subsets) == sorted(every) and len(subsets) == 16
    for gone, path, logits in subsets[::3]:
        expected = calibrated(without_branches(net, gone), seen)
        torch.testing.assert_close(logits, expected(images), rtol=1e-4, atol=1e-4)
        assert len(path) == 5 and torch.equal(path[2], path[1]) == ("layer1.1" in gone)


def perform(name: str):
    experiment = EXPERIMENTS[name]
    (run,) = experiment.runs("smoke")
    return run, experiment.perform(run, Workplace(device=torch.device("cpu")))


def test_a_deletion_holds_a_bit_for_every_image() -> None:
    run, (result, _, _) = perform("block_deletion")
    single = result["blocks"]["single"]
    assert [entry["block"] for entry in single] == [f"layer1.{k}" for k in range(4)]
    for entry in [result, *single]:
        for part, examples in (("raw", "examples"), ("refreshed", "refreshed")):
            found = entry.get(part) or entry["test"]
            assert found["examples"] == run.settings[examples]
            assert unpacked(found["right"], found["examples"]).sum() == found["correct"]


def test_subsets_agree_with_the_deletions_and_with_the_library() -> None:
    run, (result, _, measures) = perform("block_subsets")
    found, s = measures["subsets"], run.settings
    deleted = perform("block_deletion")[1].result
    for k, entry in enumerate(deleted["blocks"]["single"]):  # 30 of its 60 images
        right = unpacked(entry["raw"]["right"], 60)[: s["examples"]]
        assert found["raw"][2**k] == right.sum()
    assert found["raw"][0] == result["test"]["correct"]
    assert {len(found[name]) for name in found if name != "blocks"} == {16}
    # The first set with two blocks gone, against the library on a network written so.
    from companion.experiments.deletion import batch, network

    place = Workplace(device=torch.device("cpu"))
    (images, _), (known, _) = batch(run, place, "test", s["mapped"]), batch(run, place, "train", s["seen"])
    shorter = calibrated(without_branches(network(run, place, s["model"]), ["layer1.0", "layer1.1"]), known)
    with torch.no_grad():
        features = [shorter.relu(shorter.bn1(shorter.conv1(images)))]
        for block in shorter.layer1:
            features.append(block(features[-1]))
    path = [x.flatten(1) for x in features]
    steps = [1000 * float(((y - x).norm(dim=1) / x.norm(dim=1)).mean()) for x, y in itertools.pairwise(path)]
    assert steps[:2] == [0, 0]
    np.testing.assert_allclose(found["steps"][3], steps, atol=1)
    pairs = list(itertools.combinations(features, 2))
    np.testing.assert_allclose(found["cka"][3], [100 * float(cka(*pair)) for pair in pairs], atol=0.51)


def test_effects_are_those_of_the_library_without_what_is_undefined() -> None:
    run, (result, _, measures) = perform("block_effects")
    effects = measures["effects"]
    assert result["examples"] == run.settings["examples"] and set(effects["cka"]) == {f"layer1.{k}" for k in range(4)}
    assert set(effects["angle"]) == {f"layer1.{k}" for k in range(3)}  # after the last block nothing turns
    for name in effects["step"]:
        assert effects["step_low"][name] <= effects["step"][name] <= effects["step_high"][name]
        assert effects["influence"][name] == pytest.approx(1 - effects["cosine"][name], abs=1e-5)


def test_blocks_leave_in_the_order_of_their_scores_and_greedily_by_loss() -> None:
    run, (result, _, _) = perform("block_removal")
    s, orders = run.settings, result["orders"]
    place = Workplace(device=torch.device("cpu"))
    from companion.experiments.deletion import batch, network

    model = network(run, place, s["model"])
    (images, labels), (known, truth) = batch(run, place, "test", 40), batch(run, place, "train", 40)
    assert {"cka", "step", "influence", "damage", "greedy", "random0", "random1"} == set(orders)
    assert all(sorted(set(order["gone"])) == sorted(order["gone"]) for order in orders.values())

    def loss(gone: tuple[str, ...]) -> float:
        with torch.no_grad():
            logits = calibrated(without_branches(model, gone), known[:20])(known[20:])
        return float(nn.functional.cross_entropy(logits, truth[20:]))

    names = [f"layer1.{k}" for k in range(4)]
    first = min(names, key=lambda name: loss((name,)))
    assert orders["damage"]["gone"] == sorted(names, key=lambda name: loss((name,)))
    assert orders["greedy"]["gone"] == [first, min(set(names) - {first}, key=lambda name: loss((first, name)))]
    for order in orders.values():
        for level, count in zip(order["levels"], s["levels"], strict=True):
            shorter = calibrated(without_branches(model, order["gone"][:count]), known[:20])
            with torch.no_grad():
                right = int((shorter(images).argmax(1) == labels).sum())
            assert level["gone"] == count and level["test"]["correct"] == right
            assert level["macs"] < result["whole"]["macs"]


def test_what_the_chapter_says_of_its_orders() -> None:
    """Up to nine blocks every score beats the mean of three random orders; at fifteen, step and influence lie below
    all three. New statistics bring back some of the loss, not always most."""
    (removal,) = replay("block_removal")
    right = {
        name: {level["gone"]: level["test"]["correct"] for level in order["levels"]}
        for name, order in removal.result["orders"].items()
    }
    random = [levels for name, levels in right.items() if name.startswith("random")]
    for gone in (3, 6, 9):
        assert all(right[s][gone] > np.mean([r[gone] for r in random]) for s in ("damage", "cka", "step", "influence"))
    assert all(right[score][15] < min(r[15] for r in random) for score in ("step", "influence"))
    assert all(right[score][12] > np.mean([r[12] for r in random]) for score in ("damage", "cka"))


def test_what_the_chapter_says_of_every_set() -> None:
    """Least loss finds the most accurate sets up to three blocks, the order by CKA those of four and five."""
    (subsets,) = replay("block_subsets")
    found = subsets.measures["subsets"]
    table = replay("block_effects").one(method="resnet20").measures["effects"]
    order = sorted(table["step"], key=lambda name: -table["cka"][name])

    def place(gone: Iterable[str]) -> int:
        return sum(2 ** found["blocks"].index(name) for name in gone)

    for count in range(1, 6):
        sets = list(map(place, itertools.combinations(table["step"], count)))
        least, most = min(sets, key=found["chosen_loss"].__getitem__), max(found["refreshed"][at] for at in sets)
        assert (found["refreshed"][least] == most) == (count <= 3)
        assert (found["refreshed"][place(order[:count])] == most) == (count >= 3)
