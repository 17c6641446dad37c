"""Filters that go: what hangs together, which are small, and that nothing else changes."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributions import Categorical

from companion.blocks import without_blocks
from companion.models import Subsample, digits_net, mlp, resnet20, vgg16_bn
from companion.pruning import (
    channel_norms,
    cost,
    couple,
    filter_norms,
    finetune,
    plan,
    prune_filters,
    rebuild,
    widest_gap,
    zero_filters,
)
from companion.pruning.filters import constants, remove
from companion.pruning.filters._trace import BatchNorm, Constant


def randomize(model: nn.Module) -> nn.Module:
    """Batch norms as no training leaves them: scales and shifts of either sign, statistics far from 0 and 1."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """max|Δy| / max|y| in eval mode."""
    with torch.no_grad():
        y, z = one.eval()(x), other.eval()(x)
    return float((y - z).abs().max() / y.abs().max())


def removed(model: nn.Module, x: Tensor, share: float = 0.5) -> tuple[nn.Module, nn.Module, int]:
    """`model` with a random share of its channels zeroed, the same without them, and how many constants stayed."""
    coupling = couple(model, x)
    gone = (torch.rand(len(coupling.free)) < share) & coupling.free
    for channels in coupling.filters.values():  # every layer keeps a filter
        gone[channels[0]] &= not gone[channels].all()
    small, kept = remove(model, coupling, constants(model, coupling, x), gone)
    zeroed = {name: gone[channels].nonzero().flatten().tolist() for name, channels in coupling.filters.items()}
    return zero_filters(model, zeroed), small, int(kept.sum())


# ----------------------------------------------------------------------------------------------------------- exactness
@pytest.mark.slow
def test_the_fixture_goes_to_145_thousand_parameters(device: torch.device) -> None:
    model = randomize(resnet20(shortcut="B")).to(device)
    half = {name: range(0, module.out_channels, 2) for name, module in model.named_modules() if name.endswith(".conv1")}
    masked = zero_filters(model, half)
    assert parameters(masked) == 272_474
    x = torch.randn(4, 3, 32, 32, device=device)
    smaller, report = prune_filters(masked, x, norm="l2", threshold=0.0)
    assert parameters(smaller) == report.after.parameters_dense == 144_140
    assert report.zeroed == {name: list(indices) for name, indices in half.items()}
    assert {name: len(filters) for name, filters in report.constant.items()} == dict.fromkeys(half, 1)
    assert distance(masked, smaller, x) <= 1e-5
    in_double, _ = prune_filters(masked.double(), x.double(), norm="l2", threshold=0.0, repeats=0)
    assert distance(masked, in_double, x.double()) <= 1e-10


def narrow(make: Callable[..., nn.Module], **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: make(weights=None, num_classes=10, **arguments)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-20 A": (resnet20, (3, 32, 32)),
    "ResNet-20 B": (lambda: resnet20(shortcut="B"), (3, 32, 32)),
    "VGG-16": (lambda: vgg16_bn(width=8), (3, 32, 32)),
    "digits": (digits_net, (1, 8, 8)),
    "perceptron": (lambda: mlp([64, 32, 32, 10]), (1, 8, 8)),
    "ResNet-18": (narrow(torchvision.models.resnet18), (3, 33, 33)),
    "ResNet-50": (narrow(torchvision.models.resnet50), (3, 33, 33)),
    "ResNeXt": (  # grouped convolutions
        lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 10, groups=8,
                                          width_per_group=8),
        (3, 33, 33),
    ),
    "MobileNet": (narrow(torchvision.models.mobilenet_v2), (3, 33, 33)),  # depthwise convolutions
    "DenseNet": (lambda: torchvision.models.DenseNet(8, (3, 3), 16, num_classes=10), (3, 33, 33)),  # norms before
    "EfficientNet": (narrow(torchvision.models.efficientnet_b0), (3, 33, 33)),  # gates
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
                              nn.Linear(6 * 16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
        (3, 8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_removal_is_exact(name: str, device: torch.device) -> None:
    make, shape = ARCHITECTURES[name]
    model = randomize(make()).to(device).eval()
    x = torch.randn(3, *shape, device=device)
    zeroed, small, _ = removed(model, x)
    assert parameters(small) < 0.6 * parameters(model)
    assert distance(zeroed, small, x) <= 1e-5
    x = x.double()
    zeroed, small, _ = removed(model.double(), x)
    assert distance(zeroed, small, x) <= 1e-10


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Random stacks of convolution, norm, activation and pooling, some of them residual."""

    class Residual(nn.Module):
        def __init__(self, branch: nn.Module) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    def convolution(inputs: int, outputs: int, keep_size: bool) -> list[nn.Module]:
        kernel = draw(st.sampled_from([1, 3]))
        dilation = draw(st.sampled_from([1, 2])) if kernel == 3 else 1
        same = dilation * (kernel - 1) // 2
        layer = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=1 if keep_size else draw(st.sampled_from([1, 2])),
            padding=same if keep_size else draw(st.sampled_from([0, 1, 2])),
            dilation=dilation,
            groups=draw(st.sampled_from([1, 1, 2, inputs if outputs % inputs == 0 else 1])),
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(["zeros", "zeros", "replicate", "circular"])) if keep_size else "zeros",
        )
        norm = draw(st.sampled_from([[], [nn.BatchNorm2d(outputs)], [nn.BatchNorm2d(outputs, affine=False)]]))
        activation = draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Identity()]))
        return [layer, *norm, activation]

    layers: list[nn.Module] = []
    width = 3
    for _ in range(draw(st.integers(1, 3))):
        outputs = draw(st.sampled_from([4, 6]))
        if width == 3:
            layers += [nn.Conv2d(3, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        else:
            layers += convolution(width, outputs, keep_size=False)
        width = outputs
        if draw(st.booleans()):
            inner = draw(st.sampled_from([4, 6]))
            layers += [Residual(nn.Sequential(*convolution(width, inner, True), *convolution(inner, width, True)))]
        layers += draw(st.sampled_from([[], [nn.ReLU()], [nn.MaxPool2d(3, 1, 1)], [nn.AvgPool2d(2, 1)]]))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(), st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
def test_removal_is_exact_for_random_networks_masks_and_statistics(model: nn.Module, seed: int, share: float) -> None:
    torch.manual_seed(seed)
    model = randomize(copy.deepcopy(model)).double().eval()
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    zeroed, small, _ = removed(model, x, share)
    with torch.no_grad():
        y, z = zeroed(x), small(x)
    assert (y - z).abs().max() <= 1e-10 * y.abs().max().clamp(min=1e-12)


class Minus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def stack(reader: nn.Module, shift: float = 1.0, activation: nn.Module | None = None) -> nn.Sequential:
    """A convolution whose batch norm turns zeros into `shift`, an activation, and a layer that reads it."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation or nn.ReLU(), reader, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.constant_(model[1].bias, shift)
    return model.eval()


@pytest.mark.parametrize(
    ("model", "stays"),
    [
        (stack(nn.Conv2d(4, 2, 3, padding=1)), 1),
        (stack(nn.Conv2d(4, 2, 3, padding="same")), 1),
        (stack(nn.Conv2d(4, 2, 1, padding="same")), 0),  # of one pixel: nothing is padded
        (stack(nn.Conv2d(4, 2, 3, padding=1), activation=Minus()), 1),  # a constant channel that carries −1
        (stack(nn.Conv2d(4, 2, 3, padding=1), shift=-1.0), 0),  # silent behind the ReLU
        (stack(nn.Conv2d(4, 2, 3)), 0),  # no padding: a bias
        (stack(nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")), 0),
        (stack(nn.Conv2d(4, 2, 1, bias=False)), 0),
        (stack(nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2))), 0),
    ],
)
def test_a_constant_channel_stays_only_where_padding_needs_one(model: nn.Sequential, stays: int) -> None:
    x = torch.randn(2, 3, 8, 8)
    masked = zero_filters(model, {"0": [0, 2, 3]})
    smaller, report = prune_filters(masked, x, norm="l1", threshold=0.0, repeats=0)
    assert smaller[0].out_channels == 1 + stays
    assert sum(map(len, report.constant.values())) == stays
    assert distance(masked, smaller, x) <= 1e-6


class Forks(nn.Module):
    """Two branches; a padded convolution reads each, so that each keeps a constant channel, and one reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(2))
        self.alone = nn.ModuleList(nn.Conv2d(6, 2, 3, padding=1) for _ in range(2))
        self.both = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        read = [stem(x) for stem in self.stems]
        alone = [conv(y) for conv, y in zip(self.alone, read, strict=True)]
        return torch.cat([*alone, self.both(torch.cat(read, 1))], 1)


def test_a_layer_that_reads_two_constant_channels_is_given_the_constants_once() -> None:
    model, x = randomize(Forks()).eval(), torch.randn(2, 1, 9, 9)
    for stem in model.stems:
        nn.init.constant_(stem[1].bias, 5.0)
    masked = zero_filters(model, {f"stems.{i}.0": [0, 1, 2, 3] for i in range(2)})
    smaller, report = prune_filters(masked, x, norm="l1", threshold=0.0, repeats=0)
    assert [stem[0].out_channels for stem in smaller.stems] == [3, 3] and len(report.constant) == 2
    assert distance(masked, smaller, x) <= 1e-6


def test_a_bias_goes_into_the_running_mean_where_there_is_no_bias() -> None:
    model = stack(nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)))
    smaller, _ = prune_filters(zero_filters(model, {"0": [1]}), torch.randn(2, 3, 8, 8), norm="l1", threshold=0.0)
    assert smaller[3][0].bias is None and (smaller[3][1].running_mean != 0).all()
    bare = stack(nn.Conv2d(4, 2, 1, bias=False))
    smaller, _ = prune_filters(zero_filters(bare, {"0": [1]}), torch.randn(2, 3, 8, 8), norm="l1", threshold=0.0)
    assert smaller[3].bias is not None


def test_removing_without_the_constants_is_wrong_and_this_is_how_wrong() -> None:
    """The trap itself: cutting the channels out, as if they were silent, moves the outputs by a third and more."""
    torch.manual_seed(1)
    model = randomize(resnet20(shortcut="B")).eval()
    x = torch.randn(4, 3, 32, 32)
    coupling = couple(model, x)
    gone = torch.zeros_like(coupling.free)
    for name, channels in coupling.filters.items():
        if name.endswith(".conv1"):
            gone[channels[::2]] = True
    known = constants(model, coupling, x)
    silent = type(known)({name: torch.zeros_like(c) for name, c in known.emitted.items()}, known.carried)
    zeroed = zero_filters(model, {n: gone[c].nonzero().flatten().tolist() for n, c in coupling.filters.items()})
    naive, _ = remove(model, coupling, silent, gone)
    exact, _ = remove(model, coupling, known, gone)
    assert parameters(naive) < parameters(exact) < 1.1 * parameters(naive)
    assert distance(zeroed, naive, x) > 0.1 and distance(zeroed, exact, x) < 1e-5


# ------------------------------------------------------------------------------------------------------------ coupling
def test_a_residual_stream_is_one_channel_from_the_stem_to_the_classifier() -> None:
    coupling = couple(resnet20(), torch.randn(1, 3, 32, 32))
    assert len(coupling.free) == 16 + 16 + 32 + 3 * (16 + 32 + 64) + 10 and int(coupling.free.sum()) == 400
    stem = int(coupling.filters["conv1"][0])  # type A: channel 0 is 8 of the second stage, 24 of the third
    writers = {"conv1": [0]}
    writers |= {f"layer{s}.{b}.conv2": [place] for s, place in ((1, 0), (2, 8), (3, 24)) for b in range(3)}
    assert coupling.writers(stem) == writers
    assert coupling.readers(stem)["layer2.0.conv1"] == [0] and coupling.readers(stem)["linear"] == [24]
    outer = int(coupling.filters["layer3.0.conv2"][2])
    assert coupling.writers(outer) == {f"layer3.{b}.conv2": [2] for b in range(3)}
    inner = int(coupling.filters["layer1.0.conv1"][5])
    assert coupling.writers(inner) == {"layer1.0.conv1": [5]} and coupling.readers(inner) == {"layer1.0.conv2": [5]}
    assert coupling.norm_of["layer1.0.conv1"] == "layer1.0.bn1" and "linear" not in coupling.norm_of


def test_grouped_convolutions_lose_the_same_place_in_every_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Flatten(), nn.Linear(12 * 16, 2))
    coupling = couple(model, torch.randn(1, 3, 6, 6))
    assert coupling.writers(int(coupling.filters["0"][1])) == {"0": [1, 3, 5, 7]}
    assert coupling.writers(int(coupling.filters["1"][0])) == {"1": [0, 3, 6, 9]}


class Padded(nn.Conv2d): ...


class Conv1d(nn.Conv2d): ...


class Instances1d(nn.InstanceNorm2d): ...


@pytest.mark.parametrize("kind", [Padded, Conv1d])
def test_the_name_of_a_class_says_nothing_of_its_axes(kind: type[nn.Conv2d]) -> None:
    def channels(kind: type[nn.Conv2d], norm: type[nn.InstanceNorm2d]) -> dict[str, list[int]]:
        model = nn.Sequential(kind(3, 6, 3), norm(6), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 3))
        return {name: slots.tolist() for name, slots in couple(model, torch.randn(1, 3, 8, 8)).inputs.items()}

    assert channels(kind, Instances1d) == channels(nn.Conv2d, nn.InstanceNorm2d)


def test_what_the_network_returns_stays() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.body(x)
            return features, self.head(features.relu())

    coupling = couple(TwoHeads(), torch.randn(2, 4))
    assert not coupling.free.any()
    with pytest.raises(ValueError, match="none of the filters may go"):
        prune_filters(TwoHeads(), torch.randn(2, 4), macs=0.5)


# ---------------------------------------------------------------------------------------------------- held, not refused
class Around(nn.Module):
    """A network around one function of a tensor of six channels; what reads its outcome can always be pruned."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], width: int = 6, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        for name, module in modules.items():
            setattr(self, name, module)
        self.then = nn.Sequential(nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.then(self.function(self, self.first(x))).mean((2, 3)))


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def halves(m: nn.Module, x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return torch.cat([one, m.cv(other)], 1)


def written(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :6] = x.flip(1)
    return y


def beside(m: nn.Module, x: Tensor) -> Tensor:
    if m.training:
        m.beside = m.aux(x)
    return x


HELD: dict[str, tuple[Callable[[], nn.Module], str | None]] = {  # None: all but the output can go
    "PReLU": (lambda: Around(lambda m, x: m.act(x), act=nn.PReLU(6)), "parameter or buffer of fixed size"),
    "PReLU, one slope": (lambda: Around(lambda m, x: m.act(x), act=nn.PReLU()), None),
    "group norm": (lambda: Around(lambda m, x: m.norm(x), norm=nn.GroupNorm(2, 6)), r"in norm \(GroupNorm\)"),
    "functional group norm": (lambda: Around(lambda m, x: F.group_norm(x, 1)), "group_norm in the model"),
    "transposed": (lambda: Around(lambda m, x: m.up(x), up=nn.ConvTranspose2d(6, 6, 3)), r"up \(ConvTranspose2d\)"),
    "layer scale": (lambda: scaled_by_parameter(), "parameter or buffer of fixed size"),
    "padded average": (lambda: Around(lambda m, x: F.avg_pool2d(x, 3, 1, 1)), "would not read a constant"),
    "padded maximum": (lambda: Around(lambda m, x: F.max_pool2d(x, 3, 1, 1)), None),
    "instance norm": (lambda: Around(lambda m, x: m.norm(x), norm=nn.InstanceNorm2d(6, affine=True)), None),
    "twice": (lambda: Around(lambda m, x: m.cv(m.cv(x)), cv=nn.Conv2d(6, 6, 1)), "cv is called twice"),
    "auxiliary": (lambda: Around(beside, aux=nn.Conv2d(6, 2, 1)), "aux reads it, in training only"),
    "idle": (lambda: Around(lambda m, x: x, idle=nn.Conv2d(6, 6, 1)), "does not call it"),
    "padded by hand": (lambda: Around(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1)), width=8), "works along the channels"),
    "picked": (lambda: Around(lambda m, x: x[:, :4], width=4), "picks or reorders channels"),
    "reordered": (lambda: Around(lambda m, x: x.roll(1, 1)), "picks or reorders channels"),
    "written to": (lambda: Around(written), "picks or reorders channels"),
    "shuffled": (lambda: Around(shuffled), "over several axes"),
    "spatial gate": (lambda: Around(lambda m, x: x * m.cv(x).sigmoid(), cv=nn.Conv2d(6, 1, 1)), "depends on other"),
    "channel gate": (
        lambda: Around(lambda m, x: x * m.cv(x.mean((2, 3), True)).sigmoid(), cv=nn.Conv2d(6, 6, 1)), None,
    ),
    "halves": (lambda: Around(halves, cv=nn.Conv2d(3, 3, 1)), None),
    "glu": (lambda: Around(lambda m, x: F.glu(x, 1), width=3), None),
    "depthwise, two filters a channel": (
        lambda: Around(lambda m, x: m.cv(x), width=12, cv=nn.Conv2d(6, 12, 3, padding=1, groups=6)), None,
    ),
    "sizes in the code": (lambda: Around(lambda m, x: x.view(-1, 6, 6, 6)), "the network without it is another one"),
    "no statistics": (
        lambda: Around(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(6, track_running_stats=False)), None,
    ),
}  # fmt: skip


def scaled_by_parameter() -> nn.Module:
    model = Around(lambda m, x: x * m.gamma)
    model.gamma = nn.Parameter(torch.ones(6, 1, 1))
    return model


@pytest.mark.parametrize("name", HELD)
def test_what_cannot_go_exactly_is_held_and_the_rest_goes(name: str) -> None:
    make, why = HELD[name]
    torch.manual_seed(1)
    model, x = randomize(make()).eval(), torch.randn(2, 3, 8, 8)
    smaller, report = prune_filters(model, x, norm="l2", relative="rank", threshold=0.45, repeats=0)
    assert len(report.zeroed["then.0"]) == 4 and report.error < 1e-12
    assert distance(zero_filters(model, report.zeroed), smaller, x) < 1e-5
    held = {layer: reason for layer, reason in report.held.items() if layer != "last"}
    if why is None:
        assert not held and report.zeroed["first.0"]
    else:
        assert any(re.search(why, reason) for reason in held.values())


def odd_is_padded(m: nn.Module, x: Tensor) -> Tensor:
    up = F.interpolate(F.max_pool2d(x, 2), scale_factor=2)
    return torch.cat([x, F.pad(up, (0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]))], 1)


class PaddedToEven(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


def strided(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)


PADDED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "by the network": (lambda: Around(odd_is_padded, width=12), "would not read a constant"),
    "by a layer": (lambda: Around(lambda m, x: m.cv(x), cv=PaddedToEven(6, 6, 2, 2)), "another one: its outputs"),
    "where it is longer": (lambda: Around(lambda m, x: m.cv(strided(x)), cv=PaddedToEven(6, 6, 2, 2)), "another one"),
}


@pytest.mark.parametrize("name", PADDED)
def test_removal_is_exact_at_sizes_that_are_padded_and_the_example_is_not(name: str) -> None:
    make, why = PADDED[name]
    torch.manual_seed(0)
    model = randomize(make()).eval()
    smaller, report = prune_filters(model, torch.randn(2, 3, 18, 18), norm="l2", relative="rank", threshold=0.45,
                                    repeats=0)  # fmt: skip
    assert re.search(why, report.held["first.0"]) and len(report.zeroed["then.0"]) == 4 and report.error < 1e-12
    zeroed = zero_filters(model, report.zeroed)
    assert all(distance(zeroed, smaller, torch.randn(2, 3, *size)) < 1e-5 for size in ((19, 18), (21, 23), (30, 17)))


@pytest.mark.parametrize("size", [(8,), (3, 8, 8)])
def test_a_size_that_the_network_refuses_is_not_asked_for(size: tuple[int, ...]) -> None:
    flat = math.prod(size)
    model = nn.Sequential(nn.Flatten(), nn.Linear(flat, 6), nn.ReLU(), nn.Linear(6, 2))
    _, report = prune_filters(model, torch.randn(2, *size), parameters=0.6, repeats=0)
    assert report.error < 1e-12 and report.held == {"3": "the network returns it"}


def test_no_longer_text_is_read_where_a_table_of_positions_may_end() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(20, 8), nn.Embedding(12, 8)
            self.body = nn.Sequential(nn.Conv1d(8, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3))
            self.last, self.lengths = nn.Linear(8, 4), set[int]()

        def forward(self, x: Tensor) -> Tensor:
            self.lengths.add(x.shape[1])
            x = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
            return self.last(self.body(x.transpose(1, 2)).amax(2))

    model = Text()
    _, report = prune_filters(model, torch.randint(20, (2, 12)), parameters=0.8, repeats=0)
    assert max(model.lengths) == 12 and len(model.lengths) == 3 and report.error < 1e-12


def test_what_a_layer_read_is_measured_before_another_overwrites_it() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.then, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 2, 1)
            self.beside = nn.Conv2d(6, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.then(x)
            x.relu_().mul_(3).add_(1)  # after `then` has read it, before `beside` does
            return self.last(y + self.beside(x))

    torch.manual_seed(0)
    model, x = Overwriting().eval(), torch.randn(1, 3, 8, 8)
    norms = channel_norms(model, coupling := couple(model, x), "activation", x)[coupling.filters["first"]]
    with torch.no_grad():
        before = model.first(x)
        after = before.relu() * 3 + 1
    expected = torch.maximum(*(read.transpose(0, 1).flatten(1).double().std(dim=1) for read in (before, after)))
    assert torch.allclose(norms, expected)
    smaller, report = prune_filters(model, x, norm="l2", relative="rank", threshold=0.45, repeats=0)
    assert report.zeroed["first"] and report.held == {"last": "the network returns it"} and report.error < 1e-12
    assert distance(zero_filters(model, report.zeroed), smaller, x) < 1e-5


def test_shared_parameters_are_held() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    model[2].weight = model[0].weight
    held = couple(model, torch.randn(1, 4)).held
    assert held == dict.fromkeys("02", "0 and 2 share a parameter") | {"4": "the network returns it"}


def test_a_network_that_does_not_run_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="Sequential does not run on this example: RuntimeError"):
        couple(nn.Sequential(nn.Linear(3, 2)), torch.randn(1, 4))


# ------------------------------------------------------------------------------------------------------- golden choices
GOLDEN = json.loads((ROOT / "tests" / "golden" / "filter_choices.json").read_text())
MAKE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20_a": (resnet20, 32),
    "resnet20_thin": (lambda: resnet20(width=8), 16),
    "vgg16": (lambda: vgg16_bn(width=8), 32),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("key", GOLDEN)
def test_the_same_filters_are_chosen_as_when_the_registered_runs_began(key: str) -> None:
    name, norm, relative, target = key.split(" ", 3)
    make, size = MAKE[name]
    torch.manual_seed(0)
    model = randomize(make().double())
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    how = {"norm": norm, "relative": None if relative == "None" else relative, **json.loads(target)}
    _, report = prune_filters(model, x, floor=0, repeats=0, **how)
    found = {name: getattr(report, name) for name in ("zeroed", "constant", "kept")}
    found |= {name: getattr(report.after, f"{name}_dense") for name in ("parameters", "macs")}
    assert found == GOLDEN[key]


# ----------------------------------------------------------------------------------------------------- inputs and plans
class Image(Tensor):
    """A subclass such as torchvision's `tv_tensors`."""


def test_an_example_that_is_a_subclass_of_tensor_changes_nothing() -> None:
    model, x = randomize(digits_net(width=8, blocks=2)), torch.randn(2, 1, 8, 8)
    plain, wrapped = (
        prune_filters(model, one, norm="folded", macs=0.5, repeats=0)[1] for one in (x, x.as_subclass(Image))
    )
    assert plain.zeroed == wrapped.zeroed
    assert couple(model, x.as_subclass(Image)).norm_of == couple(model, x).norm_of != {}


@dataclasses.dataclass
class Answer:
    logits: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, one: Tensor, other: Tensor) -> Answer:
        return Answer(self.last((self.a(one) + self.b(other)).relu()))


@pytest.mark.parametrize("kind", [tuple, dict])
def test_several_inputs_by_place_or_by_name_and_outputs_in_a_dataclass(kind: type) -> None:
    example = {"one": torch.randn(3, 4), "other": torch.randn(3, 3)}
    with torch.inference_mode():
        smaller, report = prune_filters(
            Named(), example if kind is dict else tuple(example.values()), norm="l2", parameters=0.6, repeats=2
        )
    assert report.filters["a"][1] == report.filters["b"][1] < 8 and report.held == {"last": "the network returns it"}
    assert smaller(**example).logits.shape == (3, 2)


def returning(function: Callable[[Tensor], Any]) -> nn.Module:
    """A network whose first layer scales its filters by the mean of all, so that none can go exactly."""

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * (2 + self.weight.mean()), self.bias)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = Scaled(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return function(self.last(self.b(self.a(x).relu()).relu()))

    return Net()


def linked(x: Tensor) -> Any:
    """An object that refers to itself."""
    node = types.SimpleNamespace(logits=x)
    node.parent = node
    return node


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        torch.fft.fft,
        lambda x: types.SimpleNamespace(logits=x),
        lambda x: [Categorical(logits=x)],
        linked,
    ],
    ids=["tensor", "complex", "namespace", "distribution", "linked"],
)
def test_whatever_holds_the_outputs_is_held_and_compared(function: Callable[[Tensor], Any]) -> None:
    smaller, report = prune_filters(returning(function), torch.randn(4, 6), norm="l2", macs=0.8, repeats=0)
    assert smaller.last.out_features == 3 and "last" in report.held
    assert smaller.a.out_features == 8 and report.held["a"].startswith("the network without it is another one")
    assert smaller.b.out_features < 8 and report.error < 1e-10


@pytest.mark.parametrize("function", [lambda x: x.argmax(1), lambda x: (x > 0, None), lambda x: None])
def test_outputs_that_cannot_be_compared_are_refused(function: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueError, match="prune the network that returns its logits"):
        prune_filters(returning(function), torch.randn(4, 6), norm="l2", macs=0.8, repeats=0)


def test_wrong_arguments_are_refused_in_one_sentence(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"macs=50: so few macs\? for a share of them give macs=0.5"):
        prune_filters(net, X, macs=50)
    with pytest.raises(ValueError, match=r"example=\(1, 1, 8, 8\) holds no tensor"):
        prune_filters(net, (1, 1, 8, 8), macs=0.5)
    with pytest.raises(ValueError, match=r"floor=2 must lie in"):
        prune_filters(net, X, macs=0.5, floor=2)


@pytest.mark.parametrize("threshold", [math.nan, -1.0, True, "gaps", "0.5", [0.5, 1.0]])
def test_a_threshold_that_is_none_is_refused(threshold: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^threshold={re.escape(repr(threshold))} must (be a number|lie in \[0, inf\])"
    ):
        prune_filters(mlp([8, 6, 2]), torch.randn(2, 8), norm="l2", threshold=threshold, repeats=0)


def test_a_threshold_may_be_negative_where_the_norm_is_a_function_of_ones_own() -> None:
    model, x = mlp([8, 6, 2]), torch.randn(2, 8)
    _, report = prune_filters(model, x, norm=lambda w: torch.arange(len(w)) - 3.0, threshold=-2.0, repeats=0)
    assert report.zeroed == {"linear1": [0, 1]}


def test_an_example_of_no_inputs_is_refused() -> None:
    for example, shape in ((torch.randn(0, 8), r"\(0, 8\)"), (torch.tensor(1.0), r"\(\)")):
        with pytest.raises(ValueError, match=f"^example has the shape {shape}: give a batch of one input or more"):
            prune_filters(mlp([8, 6, 2]), example, macs=0.8)


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (lambda w: w.abs().sum(), r"norm gives the shape \(\) for the weight of 'linear1': .* each of the 6 filters"),
        (lambda w: w.abs(), r"norm gives the shape \(6, 8\)"),
        (lambda w: float(w.abs().sum()) * 0, r"norm gives 0.0 for the weight of 'linear1'"),
        (lambda w: w.sum(1) * math.nan, "norm gives NaN for 6 of the 6 filters of 'linear1'"),
    ],
)
def test_a_norm_that_is_not_one_number_a_filter_is_refused(norm: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_filters(mlp([8, 6, 2]), torch.randn(2, 8), norm=norm, macs=0.8)


def test_a_network_of_no_numbers_is_told_from_a_choice_of_no_layers() -> None:
    model = mlp([8, 6, 2])
    nn.init.constant_(model.linear1.weight, math.nan)
    with pytest.raises(ValueError, match="norm='l2' is a finite number for none of the filters that may go"):
        prune_filters(model, torch.randn(2, 8), norm="l2", macs=0.8)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"linear3": [0]}, r"no layer of .* matches 'linear3'; close names: \['linear"),
        ({"linear1": [1, 6]}, r"layer 'linear1' has 6 filters, from 0 to 5; given: \[6\]"),
        ({"linear1": [-7]}, r"from 0 to 5; given: \[-7\]"),
        ({"linear1": [True, False]}, "filter=True must be a whole number"),
        ({"linear1": [1.5]}, "filter=1.5 must be a whole number"),
        ({"relu1": [0]}, "'relu1' is no layer with a weight"),
        ({"linear?": [0]}, r"'linear\?' is no layer with a weight"),
    ],
)
def test_filters_that_are_not_there_cannot_be_zeroed(filters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zero_filters(mlp([8, 6, 2]), filters)


def test_filters_of_a_wrapped_network_are_zeroed_by_the_names_of_the_bare_one() -> None:
    model = mlp([8, 6, 2])
    zeroed = zero_filters(nn.DataParallel(model), {"linear1": np.array([1, -1])})
    assert type(zeroed) is type(model)
    assert zeroed.linear1.weight.any(dim=1).tolist() == [True, False, True, True, True, False]
    assert model.linear1.weight.any(dim=1).all()
    assert not zero_filters(nn.Linear(3, 2), {"": [0]}).weight[0].any()


def test_a_share_of_any_kind_of_float_is_a_share(net: nn.Module) -> None:
    plain, numpy = (prune_filters(net, X, parameters=share, repeats=0)[1] for share in (0.625, np.float32(0.625)))
    assert plain.zeroed == numpy.zeroed and plain.parameters <= 0.625


@pytest.mark.slow
def test_every_layer_keeps_a_tenth_of_its_filters_unless_asked() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25).eval(), torch.randn(1, 3, 32, 32)
    _, report = prune_filters(model, x, macs=0.3, repeats=0)
    assert all(left >= math.ceil(0.1 * before) for before, left in report.filters.values())
    assert report.kept
    _, bare = prune_filters(model, x, macs=0.3, floor=0, repeats=0)
    assert min(left / before for before, left in bare.filters.values()) < 0.1


@pytest.mark.parametrize(("floor", "left"), [(0.28, 7), (0.281, 8), (0, 1), (None, 1)])  # 0.28 * 25 > 7 in floats
def test_a_floor_is_a_share_of_the_filters_and_one_of_them_at_least(floor: float | None, left: int) -> None:
    _, report = prune_filters(mlp([64, 25, 10]), X, norm="l2", threshold=1e9, floor=floor, repeats=0)
    assert report.filters["linear1"] == (25, left) and len(report.kept["linear1"]) == left


def test_a_frozen_network_stays_frozen() -> None:
    model = stack(nn.Conv2d(4, 2, 1, bias=False)).requires_grad_(False)
    smaller, _ = prune_filters(zero_filters(model, {"0": [1]}), torch.randn(2, 3, 8, 8), norm="l1", threshold=0.0)
    assert smaller[3].bias is not None and not any(p.requires_grad for p in smaller.parameters())


def without_branches() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = randomize(resnet20()).eval()
    with torch.no_grad():
        for block in ("layer1.1", "layer2.0"):
            model.get_submodule(f"{block}.conv1").weight *= 1e-6
    return prune_filters(model, torch.randn(2, 3, 32, 32), norm="l2", threshold=1e-3, empty="identity", repeats=0)


def ends(model: nn.Module) -> list[Any]:
    """What is in the place of branches that are gone."""
    return [module for module in model.modules() if isinstance(module, Constant)]


def test_a_network_without_branches_can_be_pruned_again() -> None:
    model, first = without_branches()
    assert len(first.branches) == 2
    smaller, second = prune_filters(model, torch.randn(2, 3, 32, 32), norm="l2", relative="rank", macs=0.5, repeats=0)
    assert second.macs <= 0.5 and second.held == {"linear": "the network returns it"} and second.error < 1e-10
    assert second.zeroed["conv1"] and all(end.value.numel() < 64 for end in ends(smaller)) and len(ends(smaller)) == 2
    assert distance(zero_filters(model, second.zeroed), smaller, torch.randn(2, 3, 32, 32)) < 1e-5


@pytest.mark.slow
def test_a_plan_and_a_state_dict_are_a_network_in_a_fresh_process(tmp_path: Path) -> None:
    model, _ = without_branches()
    smaller, _ = prune_filters(model, torch.randn(2, 3, 32, 32), norm="l2", macs=0.5, repeats=0)
    x = torch.randn(2, 3, 32, 32)
    (tmp_path / "plan.json").write_text(json.dumps(plan(smaller)))
    with torch.no_grad():
        torch.save((smaller.state_dict(), x, smaller.eval()(x)), tmp_path / "smaller.pt")
    code = (
        "import json, pathlib, torch\nfrom companion.models import resnet20\nfrom companion.pruning import rebuild\n"
        "model = rebuild(resnet20(), json.loads(pathlib.Path('plan.json').read_text())).eval()\n"
        "state, x, y = torch.load('smaller.pt', weights_only=True)\nmodel.load_state_dict(state)\n"
        "assert torch.allclose(model(x), y, atol=1e-5)\nprint(sum(p.numel() for p in model.parameters()))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == parameters(smaller)


def test_a_plan_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="the plan has a Conv2d 'conv1', Sequential has none"):
        rebuild(nn.Sequential(nn.Linear(2, 2)), plan(resnet20()))
    with pytest.raises(ValueError, match="type='Linear' is unknown"):
        rebuild(nn.Sequential(nn.Conv2d(2, 2, 1)), plan(nn.Sequential(nn.Linear(2, 2))))


@pytest.mark.parametrize("kind", ["compiled", "checkpointed"])
def test_wrapped_parts_are_named_as_bare_ones(kind: str) -> None:
    def wrapped(model: nn.Module) -> Any:
        for i, block in enumerate(model.layer1):
            model.layer1[i] = torch.compile(block) if kind == "compiled" else checkpoint_wrapper(block)
        return model

    torch.manual_seed(0)
    model, x = resnet20(width=4), torch.randn(2, 3, 8, 8)
    expected, _ = prune_filters(model, x, threshold=0.45, relative="rank", layers="layer1.*.conv1", repeats=0)
    with torch.compiler.set_stance("force_eager"):
        smaller, report = prune_filters(
            wrapped(model), x, threshold=0.45, relative="rank", layers="layer1.*.conv1", repeats=0
        )
        assert len(report.zeroed) == 3 and plan(smaller) == plan(expected)
        for original in (resnet20(width=4), wrapped(resnet20(width=4))):
            again = rebuild(original, plan(smaller))
            assert plan(again) == plan(smaller)
            again.load_state_dict(
                (expected if type(original.layer1[0]) is type(expected.layer1[0]) else smaller).state_dict()
            )
            assert distance(again, smaller, x) == 0


def test_a_network_of_computed_weights_without_blocks_is_rebuilt_as_it_is() -> None:
    def network() -> nn.Module:
        model = digits_net(width=4, blocks=2)
        nn.utils.parametrizations.weight_norm(model.layer1[0].conv1)
        return model

    shorter = without_blocks(network(), "layer1.1")
    again = rebuild(network(), json.loads(json.dumps(plan(shorter))))
    again.load_state_dict(shorter.state_dict())
    assert distance(again, shorter, torch.randn(2, 1, 8, 8)) == 0


def test_a_grouped_network_without_biases_is_rebuilt() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8),
                          nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))  # fmt: skip
    model, x = randomize(model).eval(), torch.randn(2, 3, 6, 6)
    smaller, _ = prune_filters(model, x, norm="l2", relative="rank", threshold=0.45, repeats=0)
    again = rebuild(model, plan(smaller))
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again.eval()(x), smaller.eval()(x)) and parameters(model) > parameters(again)


@pytest.mark.parametrize("how", ["parametrized", "weight norm", "old weight norm", "spectral norm", "torch's pruning"])
def test_weights_that_are_computed_are_pruned_as_they_are(how: str) -> None:
    model, x = mlp([4, 8, 6, 2]), torch.randn(3, 4)
    make: dict[str, Callable[[nn.Module], Any]] = {
        "parametrized": nn.utils.parametrizations.orthogonal,
        "weight norm": nn.utils.parametrizations.weight_norm,
        "old weight norm": nn.utils.weight_norm,
        "spectral norm": nn.utils.spectral_norm,
        "torch's pruning": lambda layer: torch.nn.utils.prune.ln_structured(layer, "weight", 0.5, 2, 0),
    }
    make[how](model.linear2)
    model(x)  # as after a step of training: the weight has a history
    with torch.no_grad():
        y = model.eval()(x)
    smaller, report = prune_filters(model, x, norm="l2", threshold=0.0, repeats=0)
    assert distance(model, smaller, x) < 1e-5 and torch.allclose(model(x), y)
    assert report.zeroed == ({"linear2": sorted(report.zeroed["linear2"])} if how == "torch's pruning" else {})
    assert len(report.zeroed.get("linear2", [])) == (3 if how == "torch's pruning" else 0)
    fresh = mlp([4, 8, 6, 2])
    make[how](fresh.linear2)
    for original in (fresh, model):
        again = rebuild(original, json.loads(json.dumps(plan(smaller))))
        again.load_state_dict(smaller.state_dict())
        assert torch.equal(again.eval()(x), smaller.eval()(x))
    for refused in (lambda: zero_filters(model, {"linear2": [0]}), lambda: couple(model, x)):
        with pytest.raises(ValueError, match=r"\['linear2'\] compute their weights"):
            refused()


# --------------------------------------------------------------------------------------------------------------- norms
def test_norms_against_their_definitions() -> None:
    model, x = randomize(digits_net(width=4, blocks=1)), torch.randn(6, 1, 8, 8)
    coupling = couple(model, x)
    name, block = "layer1.0.conv1", model.layer1[0]
    weight, bn = block.conv1.weight.detach(), block.bn1
    assert torch.allclose(filter_norms(model, "l1")[name], weight.abs().sum((1, 2, 3)))
    assert torch.allclose(filter_norms(model, "l2")[name], weight.square().sum((1, 2, 3)).sqrt())
    assert torch.equal(filter_norms(model, "bn", coupling)[name], bn.weight.detach().abs())
    fused = nn.utils.fuse_conv_bn_eval(block.conv1.eval(), bn.eval())  # "folded" is the norm of the fused filter
    folded = filter_norms(model, "folded", coupling)
    assert torch.allclose(folded[name], fused.weight.flatten(1).norm(dim=1), rtol=1e-5)
    assert torch.allclose(folded["linear"], model.linear.weight.norm(dim=1))
    for own, scale in (
        (nn.BatchNorm2d(4), bn.eps**-0.5 * weight.flatten(1).norm(dim=1)),
        (nn.BatchNorm2d(4, track_running_stats=False), torch.ones(4)),
    ):  # a filter that never varied; and where nothing is kept of how filters vary, |γ|
        block.bn1 = randomize(own)
        if own.running_var is not None:
            own.running_var.zero_()
        found = filter_norms(model, "folded", couple(model, x))[name]
        assert torch.allclose(found, own.weight.detach().abs() * scale)
    block.bn1 = bn
    assert torch.equal(filter_norms(model, lambda w: w.flatten(1)[:, 0])[name], weight[:, 0, 0, 0])
    read: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    activation = channel_norms(model, coupling, "activation", x)
    std = read[-1].transpose(0, 1).flatten(1).double().std(dim=1)
    assert torch.allclose(activation[coupling.filters[name]], std, rtol=1e-5)


def test_folded_norms_and_the_network_do_not_see_the_scale_before_a_batch_norm() -> None:
    model, x = digits_net(width=4, blocks=1).eval(), torch.randn(4, 1, 8, 8)
    coupling = couple(model, x)
    scaled = copy.deepcopy(model)
    conv, bn = scaled.layer1[0].conv1, scaled.layer1[0].bn1
    with torch.no_grad():  # σ is what training would have measured
        conv.weight[0] *= 10
        bn.running_mean[0] *= 10
        bn.running_var[0] *= 100
    assert distance(model, scaled, x) < 1e-4
    place = "layer1.0.conv1"
    assert filter_norms(scaled)[place][0] > 9 * filter_norms(model)[place][0]
    folded = [filter_norms(m, "folded", coupling)[place] for m in (model, scaled)]
    assert torch.allclose(*folded, rtol=1e-4)


def rescale(model: nn.Module, what: str, factor: float) -> None:
    """The same function of a stack of convolutions 0, 3 and 6, other sizes: what convolution 3 weighs, what it reads,
    or what it emits and convolution 6 reads."""
    first, norm, last = model[1], model[4], model[6]
    if what == "filter":
        model[3].weight *= factor
    elif what == "input":
        first.weight *= factor
        first.bias *= factor
    else:
        norm.weight *= factor
        norm.bias *= factor
        last.weight /= factor
    if what in ("filter", "input"):  # σ is what training would have measured
        norm.running_mean *= factor
        norm.running_var.add_(norm.eps).mul_(factor**2).sub_(norm.eps)


def input_deviation(model: nn.Sequential, layer: int, x: Tensor) -> float:
    """Root mean square over channels of the deviation of each channel that a layer reads."""
    return float(model[:layer](x).transpose(0, 1).flatten(1).var(dim=1).mean().sqrt())


# The table of chapter 10: the factor of each norm when the filter, the layer's input, or γ and β are multiplied by f.
INVARIANCE: dict[str, dict[str, Callable[[float], float]]] = {
    "filter": {"l1": lambda f: f, "l2": lambda f: f},
    "input": {"folded": lambda f: 1 / f},
    "output": {norm: lambda f: f for norm in ("bn", "folded", "folded · input", "activation")},
}


@pytest.mark.parametrize("what", INVARIANCE)
@torch.no_grad()
def test_what_each_norm_changes_with(what: str) -> None:
    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    torch.manual_seed(0)
    model, x = nn.Sequential(*conv(3, 4), *conv(4, 6), nn.Conv2d(6, 2, 1)), torch.randn(16, 3, 9, 9)
    model = randomize(model).double().eval()
    x, scaled = x.double(), copy.deepcopy(model)
    rescale(scaled, what, 0.5)
    assert torch.allclose(model(x), scaled(x))
    coupling = couple(model, x[:1])
    sizes: list[dict[str, Tensor]] = []
    for net in (model, scaled):
        found = {norm: filter_norms(net, norm, coupling)["3"] for norm in ("l1", "l2", "bn", "folded")}
        found["folded · input"] = found["folded"] * input_deviation(net, 3, x)
        found["activation"] = channel_norms(net, coupling, "activation", x)[coupling.filters["3"]]
        sizes.append(found)
    for norm, before in sizes[0].items():
        after, factor = sizes[1][norm], INVARIANCE[what].get(norm, lambda f: 1.0)(0.5)
        assert torch.allclose(after, factor * before), (what, norm)
        assert torch.equal(after.argsort(), before.argsort())  # one factor for the whole layer: the order stays
        assert torch.allclose(after / after.mean(), before / before.mean())


def test_a_channel_is_as_large_as_the_largest_of_its_filters() -> None:
    model, x = digits_net(width=4, blocks=2), torch.randn(2, 1, 8, 8)
    coupling = couple(model, x)
    norms = filter_norms(model, "l2")
    stream = ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    largest = torch.stack([norms[name] for name in stream]).amax(0)
    assert torch.allclose(channel_norms(model, coupling, "l2")[coupling.filters["conv1"]].float(), largest)
    without = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    slimming = channel_norms(without, known := couple(without, torch.randn(2, 3)), "bn")
    assert slimming[known.filters["0"]].isfinite().all() and slimming[known.filters["2"]].isinf().all()


def test_the_widest_gap() -> None:
    assert widest_gap(torch.tensor([1.0, 4.0, 5.0, 100.0, 110.0])) == pytest.approx((5 * 100) ** 0.5)
    assert widest_gap(torch.tensor([0.001, 0.1, 1.0, 3.0])) == pytest.approx(0.01)  # a hundredfold, though small
    assert widest_gap(torch.tensor([0.0, 1e-9, 1.0])) == 0
    with pytest.raises(ValueError, match="no gap"):
        widest_gap(torch.ones(3))


def test_unknown_norms_are_refused() -> None:
    model, x = mlp([4, 4, 2]), torch.randn(2, 4)
    with pytest.raises(ValueError, match="norm='l3'"):
        filter_norms(model, "l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs coupling"):
        filter_norms(model, "folded")
    with pytest.raises(ValueError, match="no layer is followed by a batch norm"):
        prune_filters(model, x, norm="bn", macs=0.5)
    with pytest.raises(ValueError, match="needs example"):
        channel_norms(model, couple(model, x), "activation")


# ---------------------------------------------------------------------------------------------------------- thresholds
@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(3)
    return randomize(digits_net(width=8, blocks=3)).eval()


X = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)


def test_absolute_threshold_takes_what_is_at_most_it(net: nn.Module) -> None:
    coupling = couple(net, X)
    norms = channel_norms(net, coupling, "l2")
    limit = float(norms[coupling.free].median())
    _, report = prune_filters(net, X, norm="l2", threshold=limit, repeats=0)
    for name, channels in coupling.filters.items():
        below = (coupling.free & (norms <= limit))[channels].nonzero().flatten().tolist()
        assert report.zeroed.get(name, []) == below
    assert report.threshold == limit


def test_relative_threshold_is_one_of_each_layer(net: nn.Module) -> None:
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled.layer1[0].conv1.weight *= 100  # all filters of a layer alike: nothing changes inside it
    for relative, limit in (("mean", 0.95), ("rank", 0.6)):
        one, other = (
            prune_filters(m, X, norm="l2", threshold=limit, relative=relative, repeats=0)[1] for m in (net, scaled)
        )
        assert one.zeroed == other.zeroed and one.zeroed
    coupling = couple(net, X)
    norms = channel_norms(net, coupling, "l2")
    _, report = prune_filters(net, X, norm="l2", threshold=0.95, relative="mean", repeats=0)
    for name, filters in report.zeroed.items():
        own = norms[coupling.filters[name]]
        assert (own <= 0.95 * own.mean()).nonzero().flatten().tolist() == filters
    for limit in (0.45, 3 / 8):  # the ranks of eight are 0, 1/8 … 7/8
        _, report = prune_filters(net, X, norm="l2", threshold=limit, relative="rank", repeats=0)
        for name, filters in report.zeroed.items():  # half of eight, and the smaller half
            own = norms[coupling.filters[name]]
            assert sorted(own.argsort()[:4].tolist()) == filters
        assert {name: len(filters) for name, filters in report.zeroed.items()} == dict.fromkeys(
            [name for name in report.filters if name != "linear"], 4
        )


def test_gap_threshold_finds_the_filters_that_training_shrank(net: nn.Module) -> None:
    shrunk = copy.deepcopy(net)
    with torch.no_grad():
        shrunk.layer1[1].conv1.weight[[1, 4]] *= 1e-5
    _, report = prune_filters(shrunk, X, norm="l2", threshold="gap", repeats=0)
    assert report.zeroed == {"layer1.1.conv1": [1, 4]}


@pytest.mark.parametrize("norm", ["l1", "l2", "bn", "folded", "activation"])
def test_budget_is_reached_and_just_so(net: nn.Module, norm: Any) -> None:
    for what in ("macs", "parameters"):
        smaller, report = prune_filters(net, X, norm=norm, repeats=0, **{what: 0.5})  # type: ignore[arg-type]
        counted = getattr(cost(smaller, X[:1]), f"{what}_dense")
        whole = getattr(report.before, f"{what}_dense")
        assert counted == getattr(report.after, f"{what}_dense") <= 0.5 * whole
        assert getattr(report, what) > 0.35  # one channel of the stream is an eighth of most layers
    _, report = prune_filters(net, X, parameters=1500, norm=norm, repeats=0)
    assert 1000 < report.after.parameters_dense <= 1500
    again = prune_filters(net, X, parameters=report.after.parameters_dense, norm=norm, repeats=0)[1]
    assert again.zeroed == report.zeroed  # a budget that is met to the parameter


def test_accuracy_target_takes_as_much_as_it_may(net: nn.Module) -> None:
    seen: list[float] = []

    def evaluate(model: nn.Module) -> float:
        seen.append(parameters(model) / parameters(net))
        return seen[-1]  # stands for an accuracy that falls as filters go

    smaller, report = prune_filters(net, X, accuracy=0.7, evaluate=evaluate, norm="l2", repeats=0)
    assert 0.7 <= parameters(smaller) / parameters(net) < 0.8
    assert len(seen) < 10 and max(s for s in seen if s < 0.7) < parameters(smaller) / parameters(net)
    assert report.parameters == pytest.approx(parameters(smaller) / parameters(net))
    whole = parameters(net)
    _, report = prune_filters(
        net, X, accuracy=0.7, evaluate=lambda model: 1.0 if parameters(model) == whole else 0.7, norm="l2", repeats=0
    )
    assert {len(gone) for gone in report.zeroed.values()} == {7}  # of eight: just reached is reached
    with pytest.raises(ValueError, match="the whole network has 1"):
        prune_filters(net, X, accuracy=1.1, evaluate=evaluate)


def test_impossible_and_unclear_targets_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        prune_filters(net, X)
    with pytest.raises(ValueError, match="exactly one of"):
        prune_filters(net, X, macs=0.5, threshold=0.1)
    with pytest.raises(ValueError, match="exactly one of"):
        prune_filters(net, X, accuracy=0.5)
    with pytest.raises(ValueError, match="ask for no less"):
        prune_filters(net, X, macs=1e-6)
    for share in (2.0, 0.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="share to be left"):
            prune_filters(net, X, parameters=share)
    for target in ("parameters", "macs"):
        for share in ("0.5", True, [0.5]):
            with pytest.raises(ValueError, match=f"{target}=.* must be a number"):
                prune_filters(net, X, **{target: share})
    for answer in ("0.9", torch.ones(2), True):
        with pytest.raises(ValueError, match=r"evaluate\(model\)=.* must be a number"):
            prune_filters(net, X, accuracy=0.5, evaluate=lambda model, answer=answer: answer)
    with pytest.raises(ValueError, match=r"evaluate\(model\)=nan must lie in"):
        prune_filters(net, X, accuracy=0.5, evaluate=lambda model: math.nan)
    with pytest.raises(ValueError, match=r"accuracy='0\.9' must be a number"):
        prune_filters(net, X, accuracy="0.9", evaluate=lambda model: 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="relative="):
        prune_filters(net, X, macs=0.5, relative="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty="):
        prune_filters(net, X, macs=0.5, empty="no")  # type: ignore[arg-type]


def test_only_the_chosen_layers_lose_filters(net: nn.Module) -> None:
    _, report = prune_filters(net, X, macs=0.7, layers="layer1.*.conv1", repeats=0)
    assert report.zeroed and all(name.endswith(".conv1") for name in report.zeroed)
    with pytest.raises(ValueError, match="none of the filters may go"):
        prune_filters(net, X, macs=0.7, layers="linear")


def test_a_layer_with_nothing_left_keeps_its_largest_or_is_refused(net: nn.Module) -> None:
    small = copy.deepcopy(net)
    with torch.no_grad():
        small.layer1[1].conv1.weight *= 1e-5
    norms = filter_norms(small, "l2")["layer1.1.conv1"]
    smaller, report = prune_filters(small, X, norm="l2", threshold=1e-2, repeats=0)
    assert report.kept == {"layer1.1.conv1": [int(norms.argmax())]}
    assert distance(zero_filters(small, report.zeroed), smaller, X) < 1e-5
    with pytest.raises(ValueError, match=r"layer1\.1\.conv1 would lose all its 8 filters"):
        prune_filters(small, X, norm="l2", threshold=1e-2, empty="refuse", repeats=0)


class Tokens(nn.Module):
    """Channels last, gated or not, and a mean over the tokens, after which channels lie one axis earlier."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated, self.read, self.head = gated, nn.Linear(4, 12 if gated else 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        return self.head((F.glu(x) if self.gated else x.relu()).mean(1))


@pytest.mark.parametrize("gated", [False, True])
def test_channels_of_tokens_go_through_gates_and_a_mean(gated: bool) -> None:
    model, x = Tokens(gated), torch.randn(3, 5, 4)
    smaller, report = prune_filters(model, x, norm="l2", relative="rank", threshold=0.4, repeats=0)
    assert report.held == {"head": "the network returns it"} and smaller.head.in_features == 3
    assert distance(zero_filters(model, report.zeroed), smaller, x) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shrunk", ["conv1", "conv2"])
@pytest.mark.parametrize("name", ["ResNet-20 A", "ResNet-20 B", "ResNet-18"])
def test_a_branch_of_nothing_becomes_the_identity_by_choice(name: str, shrunk: str, device: torch.device) -> None:
    make, shape = ARCHITECTURES[name]
    model = randomize(make()).to(device).eval()
    blocks = ["layer1.1", "layer2.0", "layer3.1"]
    with torch.no_grad():
        for block in blocks:
            model.get_submodule(f"{block}.{shrunk}").weight *= 1e-6
    x = torch.randn(2, *shape, device=device)
    smaller, report = prune_filters(model, x, norm="l2", threshold=1e-3, empty="identity", repeats=0)
    assert report.branches == [f"{block}.conv2" for block in blocks]
    assert all(report.filters[f"{block}.conv1"][1] == 0 for block in blocks)
    assert distance(zero_filters(model, report.zeroed), smaller, x) < 1e-5
    macs = cost(model, x[:1]).macs_dense
    gone = sum(layer.macs_dense for layer in cost(model, x[:1]).layers if layer.name in report.zeroed)
    assert report.after.macs_dense <= macs - gone
    torch.export.export(smaller.eval(), (x,))
    kept, _ = prune_filters(model, x, norm="l2", threshold=1e-3, empty="keep", repeats=0)
    assert cost(kept, x[:1]).macs_dense > report.after.macs_dense


class Strides(nn.Module):
    """Two branches of nothing, of which one halves the width of a map and not its height."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 3)
        self.one = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.two = nn.Sequential(nn.Conv2d(6, 6, 3, (1, 2), 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        for branch in (self.one, self.two):
            nn.init.constant_(branch[0].weight, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        return self.head((F.max_pool2d(x, 1, (1, 2)) + self.two(x)).mean((2, 3)))


def test_a_branch_that_nothing_stands_for_keeps_its_largest_and_the_others_go() -> None:
    model, x = Strides(), torch.randn(2, 1, 9, 12)
    smaller, report = prune_filters(model, x, norm="l2", threshold=1e-3, empty="identity", repeats=0)
    assert report.branches == ["one.2"]
    assert report.filters["one.0"] == (6, 0) and {n: len(kept) for n, kept in report.kept.items()} == {"two.0": 1}
    assert distance(zero_filters(model, report.zeroed), smaller, x) < 1e-5


def test_a_branch_stays_whose_last_layer_is_weak_in_part() -> None:
    torch.manual_seed(0)
    model, x = randomize(digits_net(width=8, blocks=2)).eval(), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        model.layer1[1].conv1.weight[2] = 0
        model.layer1[1].conv2.weight[:7] *= 1e-6  # its channels are the stream's, which other filters write too
    _, report = prune_filters(model, x, norm="l2", threshold=1e-3, empty="identity", repeats=0)
    assert report.branches == [] and report.zeroed == {"layer1.1.conv1": [2]}


class Twice(nn.Module):
    """A branch that halves its maps twice, beside a shortcut that does so at once and adds no channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 3)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1))
        self.shortcut = Subsample(6, 6, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.shortcut(x) + self.branch(x)).mean((2, 3)))


def test_strides_of_a_branch_multiply_and_a_shortcut_without_new_channels_is_cut() -> None:
    model, x = Twice(), torch.randn(2, 1, 12, 12)
    cut, report = prune_filters(model, x, norm="l2", macs=0.7, layers=["stem", "branch.2"], repeats=0)
    assert report.zeroed["stem"] and (cut.shortcut.before, cut.shortcut.after) == (0, 0)
    nn.init.constant_(model.branch[0].weight, 1e-6)
    smaller, report = prune_filters(model, x, norm="l2", threshold=1e-3, empty="identity", repeats=0)
    assert report.branches == ["branch.2"] and smaller.branch[0].stride == 4
    assert distance(zero_filters(model, report.zeroed), smaller, x) < 1e-5


def test_an_empty_layer_outside_of_a_branch_keeps_its_largest() -> None:
    model = mlp([64, 8, 8, 10])
    nn.init.constant_(model.linear2.weight, 1e-6)
    _, report = prune_filters(model, X, norm="l2", threshold=1e-3, empty="identity", repeats=0)
    assert report.branches == [] and len(report.kept["linear2"]) == 1
    alone = Around(lambda m, x: x + m.cv(x), cv=nn.Conv2d(6, 6, 1))  # a branch of one layer is none
    nn.init.constant_(alone.cv.weight, 1e-6)
    _, report = prune_filters(alone, torch.randn(2, 3, 8, 8), norm="l2", threshold=1e-3, empty="identity", repeats=0)
    assert report.branches == [] and report.zeroed == {}


# ------------------------------------------------------------------------------------- the smaller network and its life
def test_report_says_what_went_and_what_it_saves(net: nn.Module) -> None:
    smaller, report = prune_filters(net, X, macs=0.5, repeats=3)
    table = report.table()
    for name, module in smaller.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == table.left[name] == table.filters[name] - table.removed[name]
            gone = len(report.zeroed.get(name, [])) - len(report.constant.get(name, []))
            assert table.removed[name] == gone
    assert report.before.macs_dense == cost(net, X[:1]).macs_dense and report.error <= 1e-10
    assert report.latency_before is not None and len(report.latency_before.seconds) == 3
    assert report.latency_after is not None
    assert report.speedup == report.latency_before.median / report.latency_after.median
    assert "MACs" in repr(report) and "× as fast" in repr(report)
    masked = zero_filters(net, {"layer1.0.conv2": [0, 1, 2]})  # its zeros are multiplied, before and after
    fewer, report = prune_filters(masked, X, norm="l2", macs=0.9, layers="layer1.2.conv1", repeats=0)
    assert report.macs == pytest.approx(cost(fewer, X[:1]).macs_dense / cost(masked, X[:1]).macs_dense)
    assert prune_filters(net, X, macs=0.5, repeats=0)[1].speedup is None


def test_the_given_network_is_left_as_it_was() -> None:
    model = randomize(digits_net(width=4, blocks=2)).train()
    model.conv1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller, _ = prune_filters(model, X, macs=0.5, norm="activation", repeats=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(module.training and not module._forward_pre_hooks for module in smaller.modules())
    assert not smaller.conv1.weight.requires_grad and smaller.linear.weight.requires_grad


def test_smaller_network_is_a_plain_module(net: nn.Module, tmp_path: Any) -> None:
    smaller, report = prune_filters(net, X, macs=0.5, repeats=0)
    assert report.constant  # there is a constant channel to carry along
    exported = torch.export.export(smaller.eval(), (X,)).module()
    assert torch.allclose(exported(X), smaller(X), atol=1e-5)
    twin = copy.deepcopy(smaller)
    with torch.no_grad():
        twin.linear.weight.zero_()
    torch.save(smaller.state_dict(), tmp_path / "smaller.pt")
    twin.load_state_dict(torch.load(tmp_path / "smaller.pt", weights_only=True))
    assert torch.equal(twin.eval()(X), smaller.eval()(X))
    again, second = prune_filters(smaller, X, macs=0.5, repeats=0)
    assert second.after.macs_dense <= 0.5 * report.after.macs_dense and again(X).shape == (4, 10)


def test_constant_channels_stay_constant_in_training() -> None:
    torch.manual_seed(0)
    model = randomize(digits_net(width=8, blocks=2))
    smaller, report = prune_filters(model, X, norm="l2", relative="rank", threshold=0.45, repeats=0)
    assert report.constant
    coupling = couple(smaller, X)
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    smaller.train()
    for _ in range(5):
        loss = F.cross_entropy(smaller(torch.randn(16, 1, 8, 8)), torch.randint(10, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    silent = {name: norms == 0 for name, norms in filter_norms(smaller, "l2").items()}
    assert sum(int(s.sum()) for s in silent.values()) == sum(map(len, report.constant.values()))
    assert len(coupling.free) and torch.isfinite(smaller(X)).all()


def test_finetune_says_before_and_after() -> None:
    model = mlp([4, 8, 2])

    def train(model: nn.Module) -> str:
        nn.init.zeros_(model.linear2.weight)
        return "history"

    def evaluate(model: nn.Module) -> float:
        return float(model.linear2.weight.detach().abs().sum())

    outcome = finetune(model, train, evaluate)
    assert outcome.before > 0 and outcome.after == 0 and outcome.history == "history"
