"""The tap: what it takes, what it keeps, and that it leaves no trace."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from companion import cka, cka_interval, cka_map
from companion._numbers import _resolution
from companion.blocks import block_effects
from companion.features import (
    REDUCERS,
    FeatureTap,
    average_pool,
    batches,
    evaluating,
    extract,
    find_layers,
    flatten,
    per_position,
    unwrap,
)
from companion.flow import trajectory
from companion.models import digits_net
from companion.regularizers import CKASparsity, FeatureFlow
from companion.similarity import gram


def small_net() -> nn.Sequential:
    """Every layer that a test taps is followed by an in-place ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
        nn.ReLU(inplace=True),
    )


def images(n: int = 7) -> Tensor:
    return torch.randn(n, 3, 4, 4)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Nested(nn.Module):
    """Blocks in blocks, and one ReLU that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.ModuleDict({"block": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "head": nn.Linear(4, 2)})
        self.relu = nn.ReLU(inplace=True)
        self.tied = self.stage["head"]  # the same module under a second name

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stage["block"][0](x))
        x = self.relu(self.stage["block"][1](x))
        return self.tied(x)


# ------------------------------------------------------------------------------------------------------ choosing layers
@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("2", ["2"]),
        (["6", "0"], ["0", "6"]),
        (("0", "6"), ["0", "6"]),
        (iter(["0", "6"]), ["0", "6"]),
        (nn.Conv2d, ["0", "2"]),
        ((nn.Conv2d, nn.Linear), ["0", "2", "6"]),
        ([nn.Conv2d, "6"], ["0", "2", "6"]),
        (lambda name, module: name > "2" and isinstance(module, nn.ReLU), ["4", "7"]),
        ("[0-2]", ["0", "1", "2"]),
        ("[!0-5]", ["6", "7"]),
        ("*", list("01234567")),
    ],
)
def test_find_layers(layers: Any, names: list[str]) -> None:
    model = small_net()
    found = find_layers(model, layers)
    assert list(found) == names  # in the order of the model, not of the request
    assert all(found[name] is model[int(name)] for name in names)


def test_find_layers_in_nested_models() -> None:
    model = Nested()
    assert list(find_layers(model, "stage.*")) == ["stage.block", "stage.head"]  # a dot ends a star
    assert list(find_layers(model, "stage.**")) == ["stage.block", "stage.block.0", "stage.block.1", "stage.head"]
    assert list(find_layers(model, "**.[0-9]")) == ["stage.block.0", "stage.block.1"]
    assert list(find_layers(model, nn.Linear)) == ["stage.block.0", "stage.block.1", "stage.head"]
    assert list(find_layers(model, lambda name, module: name.endswith(".0"))) == ["stage.block.0"]


def test_unknown_layer_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no layer of Nested matches 'stage\.blok\.0'.*'stage\.block\.0'"):
        find_layers(Nested(), "stage.blok.0")
    with pytest.raises(ValueError, match=r"'layer9\.\*'.*close names: \['stage"):
        find_layers(Nested(), ["relu", "layer9.*"])


@pytest.mark.parametrize("layers", [nn.Conv3d, [], (), lambda name, module: False])
def test_empty_choice_says_what_there_is(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"chooses no layer of Sequential.*BatchNorm2d.*Conv2d"):
        find_layers(small_net(), layers)


@pytest.mark.parametrize("layers", [nn.Linear, "linear", None])
def test_a_model_that_is_one_layer_itself_is_told_to_be_wrapped(layers: Any) -> None:
    layers = layers or (lambda name, module: True)
    with pytest.raises(ValueError, match=r"the model is itself a Linear, .* wrap it: nn\.Sequential\(model\)"):
        find_layers(nn.Linear(8, 8), layers)


def test_a_module_or_a_number_is_no_choice() -> None:
    model = small_net()
    with pytest.raises(ValueError, match="layers=a Conv2d: choose by name, by type"):
        find_layers(model, model[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers=0: choose by name"):
        find_layers(model, [0])  # type: ignore[list-item]


# -------------------------------------------------------------------------------------------------------- what it keeps
def test_features_are_those_of_the_moment(device: torch.device) -> None:
    """An in-place ReLU after the layer changes the layer's output, not what the tap stored; also without a reducer."""
    model, x = small_net().eval().to(device), images().to(device)
    before, mixed = model[0](x).detach(), model[3](model[2](model[1](model[0](x)))).detach()
    assert (before < 0).any() and (mixed < 0).any()  # or the ReLU would change nothing

    def two(x: Tensor) -> Tensor:
        return x[:, :2]

    cases = ((None, Tensor.clone, (7, 4, 4, 4)), ("flatten", flatten, (7, 64)), (two, two, (7, 2, 4, 4)))
    for reduce, reduced, shape in cases:
        with FeatureTap(model, ("0", "3"), reduce=reduce) as features:
            model(x)
        assert features["0"].shape == shape
        assert torch.equal(features["0"], reduced(before))
        assert torch.equal(features["3"], reduced(mixed))


def test_features_keep_their_graph_on_request() -> None:
    """detach=False serves penalties: the gradient is that of the layer's output, in-place ReLU or not."""
    model, x = small_net().eval(), images()
    with FeatureTap(model, nn.Conv2d, detach=False) as features:
        model(x)
        (features["0"].square().sum() + features["2"].square().sum()).backward()
    got = model[0].weight.grad
    model.zero_grad()
    out = model[0](x)
    (out.square().sum() + model[2](out.relu()).square().sum()).backward()
    torch.testing.assert_close(got, model[0].weight.grad)
    with FeatureTap(model, nn.Conv2d) as features:
        model(x)
    assert not features["0"].requires_grad


def test_output_and_gradients_of_the_model_do_not_change() -> None:
    model, x = small_net(), images()
    model.eval()(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    plain = model(x)
    model.zero_grad()
    with FeatureTap(model, "*"):
        tapped = model(x)
        tapped.sum().backward()
    assert torch.equal(plain, tapped)
    for p, grad in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p.grad, grad)


def test_order_is_that_of_execution_and_each_forward_starts_anew() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Backwards()
    with FeatureTap(model, nn.Linear) as features:
        for n in (5, 3):
            model(torch.randn(n, 4))
            assert list(features) == ["first", "second"]
            assert {len(x) for x in features.values()} == {n}


def test_a_module_called_twice_gives_two_entries() -> None:
    model, x = Nested(), torch.randn(6, 4)
    with FeatureTap(model, ["relu", "stage.head"]) as features:
        for _ in range(2):
            model(x)
            assert list(features) == ["relu", "relu#2", "stage.head"]
    hidden = model.stage["block"][0](x).relu()
    assert torch.equal(features["relu"], hidden)
    assert torch.equal(features["relu#2"], model.stage["block"][1](hidden).relu())


def test_a_layer_that_does_not_run_has_no_features() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].spare = nn.Linear(4, 4)
    with FeatureTap(model, nn.Linear) as features:
        model(torch.randn(3, 4))
    assert list(features) == ["0"]
    with pytest.raises(ValueError, match="none of the chosen layers ran"):
        extract(model, torch.randn(3, 4), "0.spare")


def test_mapping() -> None:
    model = small_net()
    tap = FeatureTap(model, nn.Conv2d)
    with tap, pytest.raises(KeyError, match="run model"):
        tap["0"]
    with tap:
        model(images())
        with pytest.raises(RuntimeError, match="attached already"):
            tap.attach()
    with pytest.raises(KeyError, match=r"'1'.*there are \['0', '2'\]"):
        tap["1"]
    assert len(tap) == 2 and "0" in tap and "1" not in tap
    assert repr(tap) == "FeatureTap(Sequential, 2 layers: ['0', '2'], features={'0': (7, 64), '2': (7, 96)})"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_between_batches_is_small_beside_the_rule(dtype: torch.dtype) -> None:
    """The layers after a dead one, in batches of five sizes: from one to the next they differ by less than half of what
    counts as the same."""
    widths = [3, 8, 16, 32, 64]
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*(part for conv in convolutions for part in (conv, nn.ReLU())), nn.Flatten())
    model.append(nn.Linear(64 * 64, 256))
    nn.init.zeros_(convolutions[0].weight)
    nn.init.uniform_(convolutions[0].bias, 0, 1)
    x = torch.randn(64, 3, 8, 8)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        parts = [extract(model, part, (nn.Conv2d, nn.Linear)) for part in x.split([1, 5, 16, 19, 23])]
    for name in parts[0]:
        features = torch.cat([part[name].double() for part in parts])
        spread, energy = (features - features.mean(0)).square().sum(), features.square().sum()
        assert parts[0][name].dtype == dtype
        assert (spread / energy).sqrt() < _resolution(dtype) / 2, name


# -------------------------------------------------------------------------------------------------------------- outputs
@dataclass
class Out:
    hidden: Tensor
    extra: Any = None


class Returns(nn.Module):
    """A model whose layer `inner` returns x as the given function packs it."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.inner = _Pack(pack)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class _Pack(nn.Module):
    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(x)


@pytest.mark.parametrize(
    "pack",
    [lambda x: (x, None), lambda x: [x], lambda x: {"out": x, "name": "a"}, lambda x: Out(x), lambda x: Out(x, "a")],
    ids=["tuple", "list", "dict", "dataclass", "dataclass with text"],
)
def test_a_single_tensor_is_found(pack: Any) -> None:
    x = torch.randn(3, 4)
    model = Returns(pack)
    with FeatureTap(model, "inner") as features:
        model(x)
    assert torch.equal(features["inner"], x)


@pytest.mark.parametrize(
    ("pack", "message", "select"),
    [
        (lambda x: (x, 2 * x), r"tuple with 2 tensors.*select=lambda output: output\[0\]", lambda out: out[1]),
        (lambda x: {"a": x, "b": 2 * x}, r"dict with 2 tensors.*lambda output: output\['a'\]", lambda out: out["b"]),
        (lambda x: Out(x, 2 * x), r"Out with 2 tensors.*lambda output: output\.hidden", lambda out: out.extra),
        (lambda x: ((x, 2 * x),), r"tuple with 0 tensors.*lambda output: \.\.\.", lambda out: out[0][1]),
    ],
    ids=["tuple", "dict", "dataclass", "nested tuple"],
)
def test_several_tensors_need_select(pack: Any, message: str, select: Any) -> None:
    x = torch.randn(3, 4)
    model = Returns(pack)
    with pytest.raises(ValueError, match=f"layer 'inner' returns a {message}"), FeatureTap(model, "inner"):
        model(x)
    assert hooks(model) == 0
    with FeatureTap(model, "inner", select=select) as features:
        model(x)
    assert torch.equal(features["inner"], 2 * x)


def test_no_tensor_at_all_is_refused() -> None:
    model = Returns(lambda x: "text")
    with pytest.raises(ValueError, match="returns a str with 0 tensors"), FeatureTap(model, "inner"):
        model(torch.randn(3, 4))


# ------------------------------------------------------------------------------------------------------------- no trace
def test_hooks_are_gone_after_exit_and_after_an_exception() -> None:
    model = small_net()
    model[0].register_forward_hook(lambda *args: None)  # the user's own hook stays
    with FeatureTap(model, "*"):
        assert hooks(model) == 1 + 8 + 3  # each layer, the model itself before, after and at an end, and the user's
    assert hooks(model) == 1
    with pytest.raises(RuntimeError), FeatureTap(model, "*"):
        model(torch.randn(2, 1, 4, 4))
    assert hooks(model) == 1
    with pytest.raises(ZeroDivisionError), FeatureTap(model, "*"):
        _ = 1 / 0
    assert hooks(model) == 1


def test_the_model_does_not_hold_the_tap() -> None:
    model = small_net()
    with FeatureTap(model, "*") as tap:
        model(images())
    gone = weakref.ref(tap)
    del tap
    gc.collect()
    assert gone() is None


def test_modes_and_devices_stay(device: torch.device) -> None:
    """Each module's own flag: a model with frozen batch norms is in neither mode as a whole."""
    model = small_net().to(device).train()
    model[3].eval()
    modes = [m.training for m in model.modules()]
    x = images().to(device)
    statistics = model[3].running_mean.clone()
    with FeatureTap(model, nn.Conv2d):
        model(x)
    assert [m.training for m in model.modules()] == modes
    with evaluating(model):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()
    model.train()
    extract(model, x.cpu(), nn.Conv2d)  # the data go to the model, not the model to the data
    assert all(m.training for m in model.modules())
    assert torch.equal(model[3].running_mean, statistics)
    assert {p.device.type for p in model.parameters()} == {device.type}
    assert hooks(model) == 0


# ------------------------------------------------------------------------------------------------------------- wrappers
@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def check_wrapped(wrapped: nn.Module, bare: nn.Module, x: Tensor) -> None:
    """A tap on the wrapper sees what a tap on the bare model sees, under the bare model's names."""
    with FeatureTap(bare, (nn.Conv2d, nn.Linear)) as expected:
        bare(x)
    with FeatureTap(wrapped, (nn.Conv2d, nn.Linear)) as features:
        wrapped(x)
    assert list(features) == list(expected) == ["0", "2", "6"]
    for name in features:
        torch.testing.assert_close(features[name], expected[name])
    torch.testing.assert_close(extract(wrapped, x, "2")["2"], expected["2"])
    assert hooks(bare) == 0 and unwrap(wrapped) is bare


def test_distributed_data_parallel(one_process: None) -> None:
    model = small_net().eval()
    check_wrapped(DistributedDataParallel(model), model, images())


def test_data_parallel() -> None:
    model = small_net().eval()
    check_wrapped(DataParallel(model), model, images())


def test_data_parallel_over_several_devices_is_refused() -> None:
    model = nn.Sequential(DataParallel(small_net()))
    model[0].device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"DataParallel on devices \[0, 1\].*one device"):
        FeatureTap(model, nn.Conv2d)


class Backend:
    """A torch.compile backend that counts how often compiled code runs."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch.compiler.reset()
    yield Backend()
    torch.compiler.reset()


def compile_model(model: nn.Sequential, backend: Backend) -> nn.Module:
    return torch.compile(model, backend=backend)


def compile_in_place(model: nn.Sequential, backend: Backend) -> nn.Module:
    model.compile(backend=backend)
    return model


def compile_child(model: nn.Sequential, backend: Backend) -> nn.Module:
    return nn.Sequential(torch.compile(model[:3], backend=backend), *model[3:])


def compile_child_in_place(model: nn.Sequential, backend: Backend) -> nn.Module:
    model[2].compile(backend=backend)
    return model


@pytest.mark.parametrize("used", [True, False], ids=["compiled before the tap", "not yet compiled"])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (compile_model, ["0", "2", "6"]),
        (compile_in_place, ["0", "2", "6"]),
        (compile_child, ["0.0", "0.2", "4"]),
        (compile_child_in_place, ["0", "2", "6"]),
    ],
)
def test_compiled_models(make: Any, names: list[str], used: bool, backend: Backend) -> None:
    """Tapped, a compiled model runs eagerly; afterwards it runs compiled as before, and its graph knows no hook."""
    bare, x = small_net().eval(), images()
    expected = extract(bare, x, (nn.Conv2d, nn.Linear))
    plain = bare(x)
    model = make(bare, backend)
    if used:
        model(x)
        assert backend.graphs == backend.calls == 1
    graphs, calls = backend.graphs, backend.calls
    with FeatureTap(model, (nn.Conv2d, nn.Linear)) as features:
        torch.testing.assert_close(model(x), plain)
        assert backend.calls == calls
    assert list(features) == names
    for got, want in zip(features.values(), expected.values(), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(model(x), plain)
    assert (backend.graphs, backend.calls) == (max(graphs, 1), calls + 1)
    torch.testing.assert_close([*extract(model, x, nn.Conv2d).values()][1], expected["2"])


@pytest.mark.slow
def test_a_tap_inside_the_compiled_graph(backend: Backend) -> None:
    """compiled=True, attached before the first call: features come out of compiled code, gradients too."""
    bare, x = small_net().eval(), images()
    model = compile_model(bare, backend)
    with FeatureTap(model, nn.Conv2d, detach=False, compiled=True) as features:
        for _ in range(3):
            model(x)
        features["2"].square().sum().backward()
        stored = {name: value.detach() for name, value in features.items()}
    assert backend.calls >= 3
    grad = bare[0].weight.grad.clone()
    model(images(5))
    assert list(features) == ["0", "2"] and {len(v) for v in features.values()} == {7}  # nothing is stored any more
    bare.zero_grad()
    hidden = bare[0](x)
    torch.testing.assert_close(stored["0"], hidden.flatten(1))
    bare[2](hidden.relu()).square().sum().backward()
    torch.testing.assert_close(grad, bare[0].weight.grad)


def test_autocast(device: torch.device) -> None:
    """Features have the layer's own dtype; reducers see bf16, measures decide."""
    model, x = small_net().eval().to(device), images().to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16), FeatureTap(model, nn.Conv2d) as features:
        model(x)
    assert {v.dtype for v in features.values()} == {torch.bfloat16}
    torch.testing.assert_close(features["0"].float(), model[0](x).flatten(1), rtol=2e-2, atol=2e-2)


def test_resnet18() -> None:
    model = torchvision.models.resnet18(weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    features = extract(model, x, "layer?.?", reduce="average_pool")
    widths = {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}
    assert [v.shape[1] for v in features.values()] == [w for w in widths.values() for _ in range(2)]
    assert list(features) == [f"{stage}.{i}" for stage in widths for i in range(2)]
    torch.testing.assert_close(features["layer4.1"], nn.Sequential(*list(model.children())[:-1])(x).flatten(1))
    with FeatureTap(model, nn.ReLU) as relus:
        model(x)
    assert list(relus)[:3] == ["relu", "layer1.0.relu", "layer1.0.relu#2"] and len(relus) == 1 + 8 * 2


def test_vit_b_16() -> None:
    """Tokens, a layer that returns (tensor, None), and one whose forward never runs (inside nn.MultiheadAttention)."""
    model = torchvision.models.vit_b_16(weights=None, image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    features = extract(model, x, "encoder.layers.*.self_attention", reduce=None)
    assert len(features) == 12 and {v.shape for v in features.values()} == {(2, 5, 768)}
    pooled = extract(model, x, "encoder.layers.encoder_layer_1?", reduce="average_pool")
    assert {name: tuple(v.shape) for name, v in pooled.items()} == {
        f"encoder.layers.encoder_layer_{i}": (2, 768) for i in (10, 11)
    }
    linear = extract(model, x, nn.Linear)
    assert "heads.head" in linear and not any(name.endswith("out_proj") for name in linear)


# ------------------------------------------------------------------------------------------------------------- reducers
def test_reducer_shapes() -> None:
    maps, tokens, rows = torch.randn(5, 3, 2, 4), torch.randn(5, 6, 3), torch.randn(5, 3)
    shapes = {
        "flatten": [(5, 24), (5, 18), (5, 3)],
        "average_pool": [(5, 3), (5, 3), (5, 3)],
        "per_position": [(40, 3), (30, 3), (5, 3)],
    }
    assert set(shapes) == set(REDUCERS)
    for name, expected in shapes.items():
        assert [tuple(REDUCERS[name](x).shape) for x in (maps, tokens, rows)] == expected


def test_reducer_values() -> None:
    maps, tokens = torch.randn(5, 3, 2, 4), torch.randn(5, 6, 3)
    assert torch.equal(flatten(maps)[2], maps[2].reshape(-1))
    torch.testing.assert_close(average_pool(maps)[2], maps[2].mean((1, 2)))
    torch.testing.assert_close(average_pool(tokens)[2], tokens[2].mean(0))
    assert torch.equal(per_position(maps)[2 * 8 + 1 * 4 + 3], maps[2, :, 1, 3])
    assert torch.equal(per_position(tokens)[2 * 6 + 4], tokens[2, 4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_average_over_many_tokens_fits_into_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Their sum does not, nor does bfloat16 count further than 256."""
    tokens = (torch.rand(2, 1200, 4) * 100 + 100).to(device, dtype)
    mask = torch.ones(2, 1200, dtype=torch.long, device=device)
    mask[0, 701:] = 0
    found = average_pool(tokens, mask)
    expected = torch.stack([tokens[0, :701].double().mean(0), tokens[1].double().mean(0)])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_what_reducers_do_to_shifted_images() -> None:
    """A cyclic shift moves features between columns (flatten), between rows (per position), or nowhere (pooled)."""
    maps = torch.randn(5, 3, 4, 4)
    shifted = maps.roll(1, dims=3)
    torch.testing.assert_close(average_pool(shifted), average_pool(maps))
    assert not torch.allclose(flatten(shifted), flatten(maps))
    one, other = per_position(maps), per_position(shifted)
    assert not torch.allclose(one, other)
    assert torch.equal(one.sort(dim=0).values, other.sort(dim=0).values)
    columns = torch.arange(48).view(3, 4, 4).roll(1, dims=2).flatten()
    assert torch.equal(flatten(shifted), flatten(maps)[:, columns])


def test_unknown_reducer() -> None:
    with pytest.raises(ValueError, match=r"reduce='mean' is unknown; use one of \['flatten', 'average_pool'"):
        FeatureTap(small_net(), "0", reduce="mean")


# -------------------------------------------------------------------------------------------------------------- batches
def test_extract_keeps_the_order_of_the_data() -> None:
    model, x = small_net().eval(), images(11)
    whole = extract(model, x, nn.Conv2d)
    for data in (x, [(part, None) for part in x.split(3)], iter(x.split(5))):
        parts = extract(model, data, nn.Conv2d, batch_size=4)
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name])
    with pytest.raises(ValueError, match="no batch"):
        extract(model, [], nn.Conv2d)


@pytest.mark.parametrize(
    ("sizes", "minimum", "joined"),
    [
        ([4, 4, 3], 4, [4, 7]),
        ([3, 4, 4], 4, [7, 4]),
        ([4, 2, 4], 4, [6, 4]),
        ([4, 1, 2, 5], 4, [7, 5]),
        ([1] * 11, 4, [4, 7]),  # never more than one batch and what is too small for one
        ([4, 3, 3, 4], 4, [4, 6, 4]),
        ([1, 1, 1], 4, [3]),
        ([4, 4, 3], 1, [4, 4, 3]),
    ],
)
def test_small_batches_are_joined(sizes: list[int], minimum: int, joined: list[int]) -> None:
    x = torch.arange(sum(sizes))
    got = list(batches(iter(x.split(sizes)), minimum=minimum))
    assert [len(part) for part in got] == joined
    assert torch.equal(torch.cat(got), x)


def test_bad_batches() -> None:
    with pytest.raises(ValueError, match="batch_size=3 must be at least 4"):
        list(batches(torch.zeros(9, 2), batch_size=3, minimum=4))
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        list(batches(torch.zeros(9, 2), batch_size=0))
    with pytest.raises(ValueError, match="not str"):
        list(batches(["text"]))
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 7\) are too small alone"):
        list(batches([torch.zeros(2, 5), torch.zeros(2, 7)], minimum=4))


# ---------------------------------------------------------------------------------------------------- rows are examples
class Tokens(nn.Module):
    """Tokens (examples, tokens, 16) into layers that take them as `layout` says; out come examples first again."""

    def __init__(self, layer: nn.Module, first: bool) -> None:
        super().__init__()
        self.layer, self.first = layer, first

    def forward(self, x: Tensor, **options: Tensor) -> Any:
        return self.layer(x if self.first else x.transpose(0, 1))


@pytest.mark.parametrize("tokens", [25, 40], ids=["25 tokens", "as many tokens as examples"])
def test_sequence_first_layers_give_examples_first(tokens: int) -> None:
    x = torch.randn(40, tokens, 16)
    layer = nn.TransformerEncoderLayer(16, 2, 32).eval()
    model = Tokens(layer, first=False)
    with torch.no_grad():
        expected = layer(x.transpose(0, 1)).transpose(0, 1)
    found = extract(model, x, "layer")
    assert found["layer"].shape == (40, tokens * 16)
    torch.testing.assert_close(found["layer"], expected.flatten(1))
    torch.testing.assert_close(extract(model, x, "layer", reduce="average_pool")["layer"], expected.mean(1))
    batch_first = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    batch_first.load_state_dict(layer.state_dict())
    torch.testing.assert_close(extract(Tokens(batch_first, True), x, "layer")["layer"], expected.flatten(1))


def test_what_sequence_first_layers_are_made_of_is_sequence_first_too() -> None:
    x = torch.randn(6, 6, 16)  # as many tokens as examples
    layer = nn.TransformerEncoderLayer(16, 2, 32).eval()
    batch_first = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    batch_first.load_state_dict(layer.state_dict())
    names = ["layer.linear1", "layer.norm2", "layer"]
    found = extract(Tokens(layer, False), x, names)
    for name, expected in extract(Tokens(batch_first, True), x, names).items():
        torch.testing.assert_close(found[name], expected)


@settings(max_examples=30)
@given(
    examples=st.integers(1, 6),
    tokens=st.integers(1, 6),
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention, nn.TransformerEncoderLayer]),
    select=st.booleans(),
    pooled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_layout_of_sequences_changes_no_feature(
    examples: int, tokens: int, kind: Any, select: bool, pooled: bool, seed: int
) -> None:
    """Whether a layer takes tokens or examples first, and whether or not there are as many of them."""
    torch.manual_seed(seed)
    x = torch.randn(examples, tokens, 8)
    sizes = (8, 4) if issubclass(kind, nn.RNNBase) else (8, 2)
    several = kind is nn.MultiheadAttention
    features = []
    for first in (False, True):
        torch.manual_seed(seed)
        layer = kind(*sizes, batch_first=first).eval()
        model = Tokens(layer, first)
        if several:
            model.forward = functools.partial(lambda m, x: m.layer(*[x if m.first else x.transpose(0, 1)] * 3), model)
        picks = kind in (nn.MultiheadAttention, nn.GRU, nn.RNN) or (kind is nn.LSTM and select)
        chosen = (lambda output: output[0]) if picks else None
        reduce = "average_pool" if pooled else "flatten"
        features.append(extract(model, x, "layer", select=chosen, reduce=reduce)["layer"])
    assert features[0].shape == (examples, features[1].shape[1])
    torch.testing.assert_close(*features)


def test_a_layout_that_nothing_tells_is_refused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.linear = nn.MultiheadAttention(8, 2), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.attention(x, x, x)[0])

    model = Tokens(Block(), False).eval()
    turned = {"layer": lambda output: output.transpose(0, 1)}
    for tokens, reason in ((5, r"\(5, 6, 8\) for 6 examples: dimension 0"), (6, "which dimension holds the examples")):
        x = torch.randn(6, tokens, 8)
        with pytest.raises(ValueError, match=reason):
            extract(model, x, "layer")
        found = extract(model, x, "layer", select=turned, reduce=None)["layer"]
        torch.testing.assert_close(found, model(x).transpose(0, 1).detach())
    weights = extract(model, x, "layer.attention", select=lambda output: output[1], reduce=None)["layer.attention"]
    torch.testing.assert_close(weights, model.layer.attention(*[x.transpose(0, 1)] * 3)[1].detach())
    tokens_first = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32))
    with pytest.raises(ValueError, match=r"for 25 examples, for it takes \(tokens, examples, features\)"):
        extract(tokens_first, torch.randn(25, 40, 16), "0")


@pytest.mark.parametrize(
    "data",
    [None, 3, "text", np.zeros((9, 4), "float32"), TensorDataset(torch.zeros(9, 4)), {"input": torch.zeros(9, 4)}],
    ids=lambda data: type(data).__name__,
)
def test_what_is_no_data_is_refused_in_one_sentence(data: Any) -> None:
    with pytest.raises(ValueError, match=r"^data is a \w+; give a tensor of examples or an iterable of batches"):
        extract(nn.Sequential(nn.Linear(4, 2)), data, "0")
    with pytest.raises(ValueError, match=r"^data is a \w+; give"):
        list(batches(data))


def test_other_kinds_of_arguments_are_refused_in_one_sentence() -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.zeros(9, 4)
    for call, message in (
        (lambda: extract("resnet", x, "0"), "the model is 'resnet'; give a torch.nn.Module"),
        (lambda: extract(np.zeros((9, 9)), x, "0"), "the model is a ndarray; give a torch.nn.Module"),
        (lambda: extract(model, x, None), "layers=None: choose by name, by type"),
        (lambda: extract(model, x, "0", batch_size="4"), "batch_size='4' must be a whole number"),
        (lambda: extract(model, x, "0", batch_size=np.zeros((3, 3))), "batch_size=a ndarray must be a whole number"),
        (lambda: cka(x, x, kernel=["rbf"]), r"kernel=\['rbf'\] is unknown"),
        (lambda: cka_interval(torch.randn(9, 4), torch.randn(9, 4), level="0.9"), "level='0.9' must be a number"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            call()


def test_rows_that_are_not_examples_are_refused_with_the_remedy() -> None:
    x = torch.randn(40, 25, 16)
    model = Tokens(nn.Sequential(nn.Linear(16, 8)), first=False)
    with pytest.raises(ValueError, match=r"'layer\.0' \(Linear\) gives \(25, 40, 8\) for 40 examples.*transpose"):
        extract(model, x, "layer.0")
    found = extract(model, x, "layer.0", select={"layer.0": lambda output: output.transpose(0, 1)}, reduce=None)
    torch.testing.assert_close(found["layer.0"], model.layer(x))
    with pytest.raises(ValueError, match=r"select='layer' is unknown"):
        extract(model, x, "layer.0", select={"layer": lambda output: output})


def test_a_packed_sequence_is_not_its_last_state() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 6, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.gru(nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 3), batch_first=True))

    with pytest.raises(ValueError, match=r"'gru' returns a tuple with 1 tensors.*select"):
        extract(Packed(), torch.randn(30, 5, 4), "gru")
    last = extract(Packed(), torch.randn(30, 5, 4), "gru", select=lambda output: output[1][-1])
    assert last["gru"].shape == (30, 6)


class Swapped(nn.Module):
    """A block that works on channels last, (examples, height, width, channels), as in a Swin Transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


@pytest.mark.parametrize(
    ("model", "shape", "layer", "positions"),
    [
        (nn.Sequential(nn.Conv1d(2, 8, 5)), (20, 2, 12), "0", (2,)),
        (nn.Sequential(nn.Conv1d(2, 8, 5), nn.ReLU()), (20, 2, 12), "1", (2,)),  # as many positions as channels
        (nn.Sequential(nn.Sequential(nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.ReLU())), (20, 2, 12), "0", (2,)),
        (nn.Sequential(nn.Linear(5, 6), nn.GELU()), (20, 7, 5), "1", (1,)),
        (nn.Sequential(Swapped(6)), (20, 6, 6, 6), "0", (1, 2)),
        (nn.Sequential(Swapped(6), nn.ReLU()), (20, 4, 4, 6), "1", (1, 2)),
        (nn.Sequential(nn.Conv2d(3, 5, 3)), (20, 3, 7, 7), "0", (2, 3)),
        (nn.Sequential(nn.Conv3d(2, 3, 2)), (20, 2, 5, 5, 5), "0", (2, 3, 4)),
        (nn.Sequential(torchvision.models.convnext.CNBlock(8, 1e-6, 0.0)), (20, 8, 4, 4), "0", (2, 3)),
        (nn.Sequential(torchvision.models.convnext.LayerNorm2d(4)), (20, 4, 4, 4), "0", (2, 3)),
    ],
    ids=[
        "Conv1d",
        "its ReLU",
        "a block",
        "tokens",
        "last, square",
        "its ReLU, last",
        "Conv2d",
        "Conv3d",
        "ConvNeXt",
        "LN2d",
    ],
)
def test_channels_are_found_by_the_layer(model: nn.Module, shape: Any, layer: str, positions: tuple[int, ...]) -> None:
    x = torch.randn(*shape)
    raw = extract(model, x, layer, reduce=None)[layer]
    torch.testing.assert_close(extract(model, x, layer, reduce="average_pool")[layer], raw.mean(positions))
    rows = extract(model, x, layer, reduce="per_position")[layer]
    torch.testing.assert_close(rows, raw.movedim(positions, tuple(range(1, 1 + len(positions)))).flatten(0, -2))


class Dense(nn.Module):
    """A dense net's layer: what comes in, and 16 channels more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), x], 1)


class Joined(nn.Module):
    """The same of (examples, height, width, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.linear(x), x], -1)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


@pytest.mark.parametrize(
    ("model", "shape", "layer", "positions"),
    [
        (nn.Sequential(Dense(12)), (5, 12, 16, 16), "0", (2, 3)),
        (nn.Sequential(Dense(12), nn.ReLU()), (5, 12, 16, 16), "1", (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 16, 1), nn.PixelShuffle(2)), (5, 3, 8, 8), "1", (2, 3)),
        (nn.Sequential(Joined()), (5, 16, 16, 12), "0", (1, 2)),
        (nn.Sequential(nn.Linear(3, 16), nn.GLU()), (5, 7, 7, 3), "1", (1, 2)),
        (nn.Sequential(nn.Conv2d(3, 16, 1), Last()), (5, 3, 6, 6), "1", (1, 2)),
        (nn.Sequential(nn.Conv2d(3, 16, 1), Last()), (5, 3, 6, 4), "1", (1, 2)),
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 1), Last())), (5, 3, 6, 6), "0", (1, 2)),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 6, 6])), (5, 3, 6, 6), "1", (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 6, 6]), nn.ReLU()), (5, 3, 6, 6), "2", (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.RMSNorm([8, 6, 6])), (5, 3, 6, 6), "1", (2, 3)),
    ],
    ids=["dense", "its ReLU", "shuffle", "dense, last", "GLU", "moved", "oblong", "inside", "LN", "its ReLU", "RMS"],
)
def test_an_image_as_large_as_weights_are_wide(model: nn.Module, shape: Any, layer: str, positions: Any) -> None:
    """Averaged over height and channels, without a word, where a width alone decided, or a class for all its shapes."""
    x = torch.randn(*shape)
    raw = extract(model, x, layer, reduce=None)[layer]
    torch.testing.assert_close(extract(model, x, layer, reduce="average_pool")[layer], raw.mean(positions))


def test_tokens_that_became_a_map_have_their_channels_first() -> None:
    """A segmentation head on 6 × 10 tokens, and dropout behind it, which has no weights of its own."""
    model = nn.Sequential(
        nn.Linear(5, 24), torchvision.ops.Permute([0, 2, 1]), nn.Unflatten(2, (6, 10)), nn.Dropout2d()
    ).eval()
    x = torch.randn(3, 60, 5)
    found = extract(model, x, "3", reduce="average_pool")["3"]
    torch.testing.assert_close(found, model(x).mean((2, 3)))


def test_maps_of_which_width_and_kind_tell_different_things_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gives \(5, 28, 12, 16\): are the channels dimension 1 or the last"):
        extract(nn.Sequential(Dense(12)), torch.randn(5, 12, 12, 16), "0", reduce="average_pool")


def test_channels_of_what_goes_into_a_layer_are_those_that_it_takes() -> None:
    narrowing = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))).eval()
    for x, layer, reduced in ((torch.randn(12, 3, 8, 8), "1", narrowing[0]), (torch.randn(12, 3, 6, 16), "0", None)):
        with torch.no_grad(), FeatureTap(narrowing, layer, reduce="average_pool", inputs=True) as tap:
            narrowing(x)
            torch.testing.assert_close(tap[layer], (reduced(x) if reduced else x).mean((2, 3)))
    x = torch.randn(12, 3, 8, 8)
    found = block_effects(narrowing, x, "1", reduce="average_pool").cka["1"]
    expected = cka(*(part(x).detach().mean((2, 3)) for part in (narrowing[0], narrowing)))
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_sequences_of_unknown_layout_are_refused() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(ValueError, match=r"'inner\.0' \(Identity\) gives \(5, 3, 4\): are the channels"):
        extract(Folded(), torch.randn(5, 3, 4), "inner.0", reduce="average_pool")
    assert extract(Folded(), torch.randn(5, 3, 4), "inner.0")["inner.0"].shape == (5, 12)  # flat it does not matter


# ----------------------------------------------------------------------------------------- passes, threads, checkpoints
def test_layers_that_run_alone_have_their_last_call() -> None:
    model, a, b = small_net().eval(), images(5), images(7)
    with FeatureTap(model, "0") as tap:
        model[0](a)
        for _ in range(3):
            model[0](b)
        assert list(tap) == ["0"] and torch.equal(tap["0"], model[0](b).flatten(1))
        model(a)
        assert len(tap["0"]) == 5
        model[0](b)
        assert list(tap) == ["0"] and len(tap["0"]) == 7
    with FeatureTap(model, nn.Conv2d) as tap:
        model(a)
        model[2](model[0](b))  # as `forward_features` does
        assert list(tap) == ["0", "2"] and {len(x) for x in tap.values()} == {7}
        model[0](b)
        assert list(tap) == ["2", "0"]  # the order of their last calls


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
        self.head, self.reentrant = nn.Linear(6, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("layers", ["blocks.?", "blocks.?.0", "blocks.?.1"])
def test_penalties_under_activation_checkpointing_have_the_same_gradient(layers: str) -> None:
    plain, saving = Checkpointed(None), Checkpointed(False)
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, saving):
        penalty = CKASparsity(model, 1.0, layers=layers, pairs="all")
        model.zero_grad()
        for step in range(3):  # at the defaults one of five is due
            torch.manual_seed(step)
            (model(torch.randn(12, 6, requires_grad=True)).square().mean() + penalty()).backward()
            names = list(penalty._tap)
            assert names == sorted(names)  # the second run of each block leaves no trace
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert any(g.abs().max() > 1e-3 for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_checkpoint_that_gives_no_gradient_back_is_refused() -> None:
    model = Checkpointed(True)
    penalty = CKASparsity(model, 1.0, layers="blocks.?", pairs="all")
    with pytest.raises(ValueError, match=r"'blocks\.0' runs without gradients.*use_reentrant=False"):
        model(torch.randn(12, 6, requires_grad=True))
    with torch.no_grad():  # a pass that wants no gradients, such as one that renews batch norm's statistics
        model(torch.randn(12, 6))
    penalty.remove()
    assert extract(model, torch.randn(12, 6), "blocks.?")["blocks.0"].shape == (12, 6)


def test_threads_that_share_a_model_wait_for_each_other() -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.Dropout(), nn.Linear(64, 64), nn.Dropout(), nn.Linear(64, 4)).train()
    data = [torch.randn(40, 6) for _ in range(4)]
    expected = [extract(model, x, nn.Linear, batch_size=4) for x in data]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: extract(model, data[k % 4], nn.Linear, batch_size=4), range(24)))
    for k, features in enumerate(found):
        assert all(torch.equal(features[name], expected[k % 4][name]) for name in features)
    assert all(module.training for module in model.modules()) and hooks(model) == 0


def test_a_tap_does_not_see_another_threads_passes() -> None:
    model, x = small_net().eval(), images(5)
    with FeatureTap(model, "0") as tap, ThreadPoolExecutor(1) as pool:
        model(x)
        pool.submit(model, images(3)).result()
        assert len(tap["0"]) == 5


class Chunked(nn.Module):
    """Calls itself, hooks included, on pieces of a large batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8:
            return torch.cat([self(piece) for piece in x.split(8)])
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("measure", [extract, cka_map, trajectory])
def test_a_model_that_calls_itself_is_refused_and_works_where_it_does_not(measure: Any) -> None:
    """Its last piece alone was kept: 4 of 20 rows, without a word."""
    model, x = Chunked(), torch.randn(20, 4)
    with pytest.raises(ValueError, match="Chunked calls itself in its forward pass"):
        measure(model, x, ["a", "b"])
    assert hooks(model) == 0
    measure(model, x, ["a", "b"], batch_size=8)
    with FeatureTap(model, "b") as tap:
        for _ in range(2):
            with pytest.raises(ValueError, match="calls itself"):
                model(x)
            assert not tap
            model(x[:8])
            assert torch.equal(tap["b"], model(x[:8]).detach())


@pytest.mark.parametrize("penalised", [FeatureFlow, functools.partial(CKASparsity, pairs="all")])
def test_a_penalised_model_that_calls_itself_is_refused_in_training_alone(penalised: Any) -> None:
    model, x = Chunked(), torch.randn(20, 4)
    penalty, free = penalised(model, layers=["a", "b"], every=2), copy.deepcopy(model)
    free(x)  # the copy of a tapped model is not tapped
    for _ in range(2):
        with pytest.raises(ValueError, match="calls itself"):
            model(x)
        model(x[:8])
        value = penalty()
        assert value != 0
        model(x)  # nothing is due
        assert penalty() == 0
    model.train()(x[:8])
    model.eval()(x)
    assert torch.equal(penalty(), value)


def test_a_pass_that_was_interrupted_is_none_of_a_model_that_calls_itself() -> None:
    """Ctrl-C in a notebook: no hook is told."""
    model, x = small_net().eval(), images()
    with FeatureTap(model, "0") as tap:
        with model[2].register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
            model(x)
        model(x)
        assert torch.equal(tap["0"], model[0](x).flatten(1).detach())


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("measure", [extract, cka_map, block_effects, trajectory])
def test_a_batch_for_which_forward_runs_the_model_several_times_is_refused(measure: Any) -> None:
    """The last time alone was kept: 8 of 24 examples, and of two views the second."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.randn(24, 4)
    for data, forward in (
        (x, lambda net, batch: torch.cat([net(piece) for piece in batch.split(8)])),
        ([(x, -x)], lambda net, batch: (net(batch[0]), net(batch[1]))),
    ):
        with pytest.raises(ValueError, match=r"forward runs Sequential [23] times on one batch"):
            measure(model, data, ["0", "1"], forward=forward)
    # Once for each of two batches, where `block_effects` runs each anew, for a block overwrites its input.
    found, expected = (
        measure(model, x, ["0", "1"], batch_size=12, forward=forward)
        for forward in (None, lambda net, batch: net(batch))
    )
    if measure is extract:
        assert torch.equal(found["1"], expected["1"])
    elif measure is not trajectory:
        pd.testing.assert_frame_equal(found, expected)


def test_a_net_that_runs_the_other_one_is_compared_with_it() -> None:
    model, x = Chunked(), torch.randn(24, 4)
    other = nn.Sequential(model, nn.Linear(6, 6))
    expected = cka_map(model, x, "b", other=other, other_layers="1", batch_size=8)
    found = cka_map(model, x, "b", other=other, other_layers="1", batch_size=8, forward=lambda net, batch: net(batch))
    pd.testing.assert_frame_equal(found, expected)


# ----------------------------------------------------------------------------------------------- inputs of real models
class Named(nn.Module):
    """A text model that takes its inputs by name and returns a tuple from its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.encoder = nn.Embedding(50, 8), _Pack(lambda x: (2 * x, 3 * x))
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(self.encoder(self.embedding(input_ids))[0])}


def test_mapping_batches_and_masks() -> None:
    model, ids = Named(), torch.randint(0, 50, (6, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]] * 3)
    batches_ = [{"input_ids": ids[i : i + 3], "attention_mask": mask[i : i + 3]} for i in (0, 3)]
    embedded = model.embedding(ids).detach()
    pooled = extract(model, batches_, "embedding", reduce="average_pool")["embedding"]
    for i in range(6):
        torch.testing.assert_close(pooled[i], embedded[i][mask[i].bool()].mean(0))
    rows = extract(model, [(b, None) for b in batches_], "embedding", reduce="per_position")["embedding"]
    torch.testing.assert_close(rows, torch.cat([embedded[i][mask[i].bool()] for i in range(6)]))
    flat = extract(model, batches_, "embedding")["embedding"].view(6, 5, 8)
    assert flat[0, 3:].abs().sum() == 0 and torch.equal(flat[1], embedded[1])
    unmasked = extract(model, [{"input_ids": ids}], "embedding", reduce="average_pool")["embedding"]
    torch.testing.assert_close(unmasked, embedded.mean(1))
    by_hand = extract(
        model, [(ids, mask)], "head", reduce="average_pool", forward=lambda net, b: net(b[0], attention_mask=b[1])
    )
    masked = (model.head(2 * embedded) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(by_hand["head"], masked.detach())


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(5, 5).masked_fill(torch.arange(5) > 2, -torch.inf),  # what is added to scores: 0 counts, not 1
        torch.ones(5, 5).tril(),  # who may look at whom, in a batch of as many examples as tokens
        torch.tensor([[1, 1, 2, 2, 0]] * 5),  # two sequences in each row
    ],
    ids=["added", "causal", "packed"],
)
@pytest.mark.parametrize("reduce", [*REDUCERS])
def test_a_mask_that_does_not_say_which_tokens_count_is_refused(mask: Tensor, reduce: str) -> None:
    batch = {"input_ids": torch.randint(0, 50, (5, 5)), "attention_mask": mask}
    with pytest.raises(ValueError, match="which tokens count is not known"):
        extract(Named(), [batch], "embedding", reduce=reduce)


def test_batches_of_other_lengths() -> None:
    model = Named()
    data = [{"input_ids": torch.randint(0, 50, (4, length))} for length in (5, 7)]
    assert extract(model, data, "embedding", reduce="average_pool")["embedding"].shape == (8, 8)
    with pytest.raises(ValueError, match=r"'embedding' gives \[\(40,\), \(56,\)\] features in different batches"):
        extract(model, data, "embedding")


class Bottleneck(nn.Module):
    """One ReLU for three widths, defined after all layers, as in torchvision's ResNet-50; here as wide as maps are."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand, self.relu = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.narrow = self.relu(self.reduce(x))
        self.wide = self.relu(x + self.expand(self.narrow))
        return self.wide


def test_channels_of_a_layer_without_weights_are_those_of_the_layer_that_ran_before_it() -> None:
    """The one defined before it has the width of the other axis: averages over channels, without a word."""
    model = Bottleneck().eval()
    found = extract(model, torch.randn(5, 16, 16, 16), "relu", reduce="average_pool")
    torch.testing.assert_close(found["relu"], model.narrow.mean((2, 3)))
    torch.testing.assert_close(found["relu#2"], model.wide.mean((2, 3)))
    rows = extract(model, torch.randn(5, 16, 16, 16), "relu", reduce="per_position")["relu"]
    torch.testing.assert_close(rows, model.narrow.permute(0, 2, 3, 1).flatten(0, 2))


def test_the_last_layer_of_the_pass_before_says_nothing_of_the_first() -> None:
    """The classifier ran last and is as wide as the maps: averages over channels from the second batch on."""
    model, x = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 4)), torch.randn(6, 4, 4, 4)
    found = extract(model, x, "0", reduce="average_pool", batch_size=3)["0"]
    torch.testing.assert_close(found, x.relu().mean((2, 3)))


class Sometimes(nn.Module):
    """Its second layer runs where the inputs are positive on average, as early exits have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) if x.mean() > 0 else y


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("measure", [extract, cka_map, block_effects, trajectory])
def test_a_layer_that_runs_in_some_batches_alone_is_refused(measure: Any, sign: int) -> None:
    """Its rows would be those of other examples than the rest's: 8 of 16 here, without a word."""
    x = torch.randn(16, 4) + sign * torch.tensor([3.0, -3.0]).repeat_interleave(8)[:, None]
    with pytest.raises(ValueError, match=r"layers \['second'\] run in some batches and not in others|no trajectory"):
        measure(Sometimes(), x, ["first", "second"], batch_size=8)


def test_select_is_for_outputs_that_are_no_tensors() -> None:
    """A tuple and a tensor in one call: the function picks from the tuple, and the tensor stays whole."""
    model, ids = Named(), torch.randint(0, 50, (6, 5))
    found = extract(model, [{"input_ids": ids}], ["encoder", "head"], select=lambda output: output[0])
    doubled = 2 * model.embedding(ids).detach()
    torch.testing.assert_close(found["encoder"], doubled.flatten(1))
    torch.testing.assert_close(found["head"], model.head(doubled).detach().flatten(1))
    with pytest.raises(ValueError, match=r"nothing to select.*\['head'\] are tensors already"):
        extract(model, [{"input_ids": ids}], "head", select=lambda output: output[:, 0])
    by_layer = {"head": lambda output: output[:, 0], "encoder": lambda output: output[1]}
    found = extract(model, [{"input_ids": ids}], ["encoder", "head"], select=by_layer)
    torch.testing.assert_close(found["head"], model.head(doubled[:, 0]).detach())
    torch.testing.assert_close(found["encoder"], (1.5 * doubled).flatten(1))


def test_a_layer_that_another_one_bypasses() -> None:
    attention = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    with pytest.raises(ValueError, match=r"none of the chosen layers ran.*out_proj"):
        extract(attention, torch.randn(6, 5, 16), "0.self_attn.out_proj")


@pytest.mark.parametrize("foreign", ["numpy", "shared"])
def test_features_in_memory_that_others_write_to_are_kept(foreign: str) -> None:
    """NumPy's arrays and shared memory change without torch's knowledge: a tap has its own copy."""
    array = np.ones((5, 4), dtype=np.float32)
    x = torch.from_numpy(array) if foreign == "numpy" else torch.ones(5, 4).share_memory_()
    with FeatureTap(nn.Sequential(nn.Identity(), nn.Linear(4, 2)), "0", reduce=None) as features:
        features.model(x)
        x.numpy()[:] = 7
        assert (features["0"] == 1).all()


def test_a_kernel_matrix_is_differentiated_at_the_features_that_were_given() -> None:
    """A layer that is overwritten by the next one (in place) enters as it was when it was tapped."""
    torch.manual_seed(0)
    found = {}
    for inplace in (False, True):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 2)).train()
        net.load_state_dict(found.get("weights", net.state_dict()))
        found["weights"] = copy.deepcopy(net.state_dict())
        with FeatureTap(net, "0", reduce=None, detach=False) as features:
            loss = net(torch.linspace(-1, 1, 20).view(5, 4)).sum()
            (loss + features["0"].square().sum() + gram(features["0"]).square().sum()).backward()
        found[inplace] = [features["0"].detach(), *(p.grad for p in net.parameters())]
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other)
    assert (found[True][0] < 0).any()


class WithHead(nn.Module):
    """A wrapper of one's own, whose child is called as DistributedDataParallel calls its."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.fc = Swapped(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.module(x))


def test_a_child_called_module_keeps_its_name() -> None:
    model = nn.Sequential(WithHead())[0]
    model.module.fc = nn.Linear(4, 4)
    found = find_layers(model, nn.Linear)
    assert {name: tuple(layer.weight.shape) for name, layer in found.items()} == {
        "module.linear": (4, 4),
        "module.fc": (4, 4),
        "fc": (2, 4),
    }
    assert all(model.get_submodule(name) is layer for name, layer in found.items())
    assert [*find_layers(DataParallel(model), "module.linear")] == ["module.linear"]
    torch.testing.assert_close(extract(model, torch.ones(3, 4), "fc")["fc"], model(torch.ones(3, 4)).detach())


def test_two_modules_of_one_name_are_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    model[0].add_module("_orig_mod", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"two modules of Sequential are called '0\.0'"):
        find_layers(model, nn.Linear)


def test_an_average_of_weights_is_the_net_that_it_averages() -> None:
    net, x = digits_net(width=4), torch.randn(16, 1, 8, 8)
    averaged = AveragedModel(net)
    pd.testing.assert_frame_equal(cka_map(averaged, x), cka_map(net, x))
    pd.testing.assert_frame_equal(block_effects(averaged, x), block_effects(net, x))
    assert torch.equal(trajectory(averaged, x).length, trajectory(net, x).length)
    for penalty in (CKASparsity(averaged, every=1), FeatureFlow(averaged)):
        averaged.train()(x)
        assert penalty().isfinite()


class Tagger(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 32, bidirectional=True, batch_first=True, **options)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.rnn(x)[0])


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 16, 8, 8), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("options", "width"), [({}, 64), ({"proj_size": 5}, 10)], ids=["hidden", "projected"])
@pytest.mark.parametrize("tokens", [5, 10, 31, 32, 64])
@pytest.mark.parametrize("layer", ["rnn", "drop"])
def test_channels_of_a_layer_that_reads_both_ways(options: Any, width: int, tokens: int, layer: str) -> None:
    model, x = Tagger(**options), torch.randn(9, tokens, 8)
    pick = {"rnn": lambda output: output[0]}
    raw = extract(model, x, layer, select=pick if layer == "rnn" else None, reduce=None)[layer]
    found = extract(model, x, layer, select=pick if layer == "rnn" else None, reduce="average_pool")[layer]
    assert found.shape == (9, width)
    torch.testing.assert_close(found, raw.mean(1))


def test_as_many_tokens_as_a_weight_is_wide() -> None:
    """Averaged over channels, without a word, where the width of the weights is not that of the output."""
    gated = nn.Sequential(nn.Sequential(nn.Linear(8, 64), nn.GLU()))
    assert extract(gated, torch.randn(9, 31, 8), "0", reduce="average_pool")["0"].shape == (9, 32)
    for layer in ("0", "0.1"):
        with pytest.raises(ValueError, match="are the channels dimension 1 or the last"):
            extract(gated, torch.randn(9, 64, 8), layer, reduce="average_pool")
    model = Patches()
    x = torch.randn(9, 3, 24, 24)
    raw = extract(model, x, "drop", reduce=None)["drop"]
    torch.testing.assert_close(extract(model, x, "drop", reduce="average_pool")["drop"], raw.mean(1))
    with pytest.raises(ValueError, match="are the channels dimension 1 or the last"):
        extract(model, torch.randn(9, 3, 32, 32), "drop", reduce="average_pool")


@pytest.mark.parametrize("steps", [3, None], ids=["of one length", "of several"])
def test_lists_of_single_examples_are_left_as_they_come(steps: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(2, 7, (4, 32), generator=generator)
    data = [[torch.randn(steps or int(n), 6) for n in row] for row in long]
    given = [len(batch) for batch in batches(data, minimum=8, whole=True)]
    assert given == [32] * 4
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])
    table = block_effects(
        model,
        data,
        reduce=lambda x: x.mean(1),
        forward=lambda net, batch: net(nn.utils.rnn.pad_sequence(batch, batch_first=True)),
    )
    assert table.attrs["examples"] == 128
    with pytest.raises(ValueError, match="batches of 3 and 1 tensors cannot be joined"):
        list(batches([data[0][:3], [torch.randn(2, 6)]], minimum=8, whole=True))


def test_collated_lists_are_joined_as_before() -> None:
    data = [[torch.ones(n, 3), torch.zeros(n)] for n in (5, 2)]
    assert [len(x) for x, _ in batches(data, minimum=4, whole=True)] == [7]


def test_a_model_that_takes_a_list_of_examples() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 8, 3)

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.body(torch.stack([image[:, :8, :8] for image in images]))

    data = [[torch.randn(3, 9, 8 + i) for i in range(6)] for _ in range(2)]
    found = extract(Detector(), data, "body", forward=lambda model, batch: model(batch), reduce="average_pool")
    assert found["body"].shape == (12, 8)


def test_masked_tokens_without_a_number_count_as_little_as_any() -> None:
    """Attention leaves NaN at tokens that see none."""
    x, mask = torch.randn(4, 3, 2), torch.tensor([[1, 1, 0]] * 4)
    x[:, 2] = torch.nan
    torch.testing.assert_close(average_pool(x, mask), x[:, :2].mean(1))
    torch.testing.assert_close(flatten(x, mask), torch.cat([x[:, :2].flatten(1), torch.zeros(4, 2)], 1))


def test_reducers_that_take_a_mask_are_given_it() -> None:
    model, ids = Named(), torch.randint(0, 50, (6, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]] * 3)
    batch = {"input_ids": ids, "attention_mask": mask}
    last = extract(model, [batch], "embedding", reduce=lambda x, mask: x[torch.arange(6), mask.sum(1) - 1])
    torch.testing.assert_close(last["embedding"], model.embedding(ids)[torch.arange(6), mask.sum(1) - 1].detach())
    raw = extract(model, [batch], "embedding", reduce=None)["embedding"]
    assert torch.equal(raw, model.embedding(ids)) and raw[0, 3:].all()
    extract(model, [batch], "embedding", reduce=torch.relu)


def test_transforms_of_torch_func_are_refused_in_one_sentence() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(10, 4)
    with FeatureTap(net, "0"), pytest.raises(ValueError, match=r"inside a transform of torch\.func, such as"):
        torch.func.vmap(net)(x)


def test_a_convolution_is_known_by_what_it_is_and_not_by_the_name_of_its_class() -> None:
    """An activation of 4 tokens with 4 channels, after a convolution on maps: which is which nothing tells."""

    class Padded(nn.Conv2d): ...

    for kind in (nn.Conv2d, Padded):
        model = nn.Sequential(kind(3, 4, 2, 2), nn.Flatten(2), nn.ReLU())
        assert extract(model, torch.randn(9, 3, 4, 4), "0", reduce="average_pool")["0"].shape == (9, 4)
        with pytest.raises(ValueError, match="are the channels dimension 1 or the last"):
            extract(model, torch.randn(9, 3, 4, 4), "2", reduce="average_pool")
