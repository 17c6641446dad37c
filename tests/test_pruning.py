"""Pruning: axes against closed forms, invariants of every method, each update by hand, copies, resumption, refusals."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from companion.data import DeviceLoader, digits
from companion.models import digits_net, mlp, resnet20
from companion.pruning import (
    CRITERIA,
    DENSITIES,
    DST,
    METHODS,
    SET,
    GraNet,
    LotteryTicket,
    MagnitudePruning,
    Masks,
    RandomPruning,
    RigL,
    RigLITOP,
    constant,
    cosine_decay,
    cost,
    cubic,
    erk,
    iterative,
    one_shot,
    surrogate,
    uniform,
)
from companion.pruning._criteria import top
from companion.training import fit, sgd

Make = Callable[[nn.Module, Any], Masks]

MAKE: dict[str, Make] = {
    "random": lambda model, optimizer: RandomPruning(model, optimizer, 0.9),
    "magnitude": lambda model, optimizer: MagnitudePruning(model, optimizer, 0.9),
    "gradual": lambda model, optimizer: MagnitudePruning(model, optimizer, 0.9, steps=80, every=10),
    "SET": lambda model, optimizer: SET(model, optimizer, 0.9, every=10),
    "RigL": lambda model, optimizer: RigL(model, optimizer, 0.9, steps=100, every=10),
    "RigLITOP": lambda model, optimizer: RigLITOP(model, optimizer, 0.9, steps=100, every=20),
    "GraNet": lambda model, optimizer: GraNet(model, optimizer, 0.9, steps=100, every=10),
    "GraNet from dense": lambda model, optimizer: GraNet(model, optimizer, 0.9, steps=100, every=10, initial=0),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: sgd(model, 0.05),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 1e-3, amsgrad=True),
}
WEIGHTS = 8 * 1 * 9 + 6 * 8 * 9 + 4 * 96  # of `net`: 72 + 432 + 384


def net(device: torch.device | str = "cpu") -> nn.Sequential:
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 4)).to(device)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsity: Masks,
    steps: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """A loop of one's own, on data that depend on the sparsity's step alone."""
    device = next(model.parameters()).device
    for _ in range(steps):
        random = torch.Generator().manual_seed(sparsity.steps)
        x = torch.randn(8, 1, 8, 8, generator=random).to(device)
        loss = F.cross_entropy(model(x), torch.randint(4, (8,), generator=random).to(device))
        if isinstance(sparsity, DST):
            loss = loss + sparsity.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsity.step()
        after()


def alive(model: nn.Module) -> int:
    return sum(int(m.weight.count_nonzero()) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    return ours == theirs


# ---------------------------------------------------------------------------------------------------------------- axes
shapes = st.dictionaries(
    st.sampled_from("abcdef"),
    st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(*[st.integers(1, 9)] * 4)),
    min_size=1,
)


@settings(deadline=None)
@given(shapes=shapes, sparsity=st.integers(0, 999).map(lambda n: n / 1000))
def test_densities_are_exact(shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    for counts in uniform(shapes, sparsity), erk(shapes, sparsity):
        assert sum(counts.values()) == total - round(sparsity * total)
        assert all(0 <= counts[name] <= sizes[name] for name in sizes)
    kept = total - round(sparsity * total)
    assert all(abs(n - Fraction(kept * sizes[name], total)) < 1 for name, n in uniform(shapes, sparsity).items())


@settings(deadline=None)
@given(shapes=shapes, sparsity=st.integers(0, 999).map(lambda n: n / 1000))
def test_erk_is_its_definition_within_one_weight(shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    """Probabilities raw_l = (n_in + n_out + kh + kw)/(n_in n_out kh kw), those above 1 set to 1 one by one."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept, dense = sum(sizes.values()) - round(sparsity * sum(sizes.values())), set[str]()
    while True:
        others = sizes.keys() - dense
        raw = {name: Fraction(sum(shapes[name]), sizes[name]) for name in others}
        scale = sum(raw[name] * sizes[name] for name in others) or 1
        epsilon = (kept - sum(sizes[name] for name in dense)) / Fraction(scale)
        largest = max(others, key=lambda name: raw[name], default=None)
        if largest is None or epsilon * raw[largest] <= 1:
            break
        dense.add(largest)
    for name, count in erk(shapes, sparsity).items():
        exact = sizes[name] if name in dense else epsilon * raw[name] * sizes[name]
        assert abs(count - exact) < 1 + 1e-6


def test_erk_keeps_the_published_shares_of_resnet50_flops() -> None:
    """RigL's README: at sparsity .80, .90, .95 ERK leaves .42, .24, .12 of the FLOPs; uniform .23, .13, .08 with the
    first convolution dense."""
    model = torchvision.models.resnet50(weights=None)
    dense = cost(model, torch.zeros(1, 3, 224, 224))
    assert round(dense.macs_dense / 1e9, 3) == 4.089
    macs = {layer.name: layer.macs_dense for layer in dense.layers if layer.macs_dense}
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in macs}
    for sparsity, published_erk, published_uniform in ((0.8, 0.42, 0.23), (0.9, 0.24, 0.13), (0.95, 0.12, 0.08)):
        found = erk(shapes, sparsity), uniform(shapes, sparsity, dense={"conv1"})
        shares = [
            sum(macs[n] * k / math.prod(shapes[n]) for n, k in counts.items()) / dense.macs_dense for counts in found
        ]
        assert shares == pytest.approx([published_erk, published_uniform], abs=0.0101)


def test_dense_layers_stay_dense_and_the_others_pay(device: torch.device) -> None:
    for density in ("erk", "uniform", "global"):
        model = net(device)
        found = RandomPruning(model, None, 0.5, density=density, dense="7")
        assert found.alive["7"] == 384
        assert sum(found.alive.values()) == alive(model) == WEIGHTS // 2


def test_schedules_are_their_closed_forms() -> None:
    assert [constant(t, 0.9) for t in (0, 0.5, 1)] == [0.9] * 3
    assert [one_shot(t, 0.9, at=0.5) for t in (0, 0.49, 0.5, 1)] == [0, 0, 0.9, 0.9]
    assert [1 - iterative(k / 4, 1 - 0.8**4, levels=4) for k in range(5)] == pytest.approx([0.8**k for k in range(5)])
    assert [1 - iterative(k / 49, 0.9, levels=49) for k in range(50)] == pytest.approx(
        [0.1 ** (k / 49) for k in range(50)]
    )
    assert [cubic(t, 0.9, 0.5) for t in (0, 0.5, 1)] == pytest.approx([0.5, 0.85, 0.9])
    assert [cosine_decay(t, 0.5, 0.1) for t in (0, 0.5, 1)] == pytest.approx([0.5, 0.3, 0.1])


@settings(deadline=None)
@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=60), k=st.integers(0, 60))
def test_top_takes_exactly_k_and_of_equal_ones_the_first(scores: list[int], k: int) -> None:
    k = min(k, len(scores))
    expected = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])
    assert top(torch.tensor(scores, dtype=torch.float32), k).nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("density", ["erk", "uniform", "global"])
def test_counts_are_exact_when_all_weights_are_equal(density: str, device: torch.device) -> None:
    for pruned in (1, 200, 887):
        model = net(device)
        for m in model.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.constant_(m.weight, -0.5)
        MagnitudePruning(model, None, pruned / WEIGHTS, density=density)
        assert alive(model) == WEIGHTS - pruned


def test_the_papers_network_has_its_maskable_weights() -> None:
    for classes, weights in ((10, 270_896), (100, 276_656)):
        report = RandomPruning(resnet20(classes, shortcut="B"), None, 0.98).report()
        assert report["weights"].sum() == weights
        assert report["alive"].sum() == weights - round(0.98 * weights)
    assert len(report) == 22


# -------------------------------------------------------------------------------------------------------- every method
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("method", MAKE)
def test_masked_weights_and_their_state_are_zero_after_every_step(
    method: str, optimizer_name: str, device: torch.device
) -> None:
    model = net(device)
    optimizer = OPTIMIZERS[optimizer_name](model)
    sparsity = MAKE[method](model, optimizer)

    def invariants() -> None:
        masks = sparsity.masks
        for name, weight in sparsity.weights.items():
            tensors = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
            assert len(tensors) == (1 if optimizer_name == "sgd" else 3)
            assert all(not t[~masks[name]].any() for t in (weight, *tensors))
        assert sum(int(mask.sum()) for mask in masks.values()) == sum(sparsity.alive.values())

    invariants_without_state = alive(model)
    assert invariants_without_state == round(sparsity.density() * WEIGHTS)
    train(model, optimizer, sparsity, 100, invariants)
    assert sum(sparsity.alive.values()) == WEIGHTS - round(0.9 * WEIGHTS)
    assert sparsity.density() == pytest.approx(0.1, abs=1 / WEIGHTS)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("method", MAKE)
def test_masks_follow_from_seed_and_training_alone(method: str) -> None:
    found = []
    for noise in (0, 1):
        torch.manual_seed(0)
        model = net()
        optimizer = OPTIMIZERS["sgd"](model)
        torch.manual_seed(noise)  # what others draw does not matter
        sparsity = MAKE[method](model, optimizer)
        train(model, optimizer, sparsity, 30)
        found.append(sparsity.masks)
    assert same(*found)


def test_random_masks_are_the_same_on_every_device_and_differ_by_seed(device: torch.device) -> None:
    masks = [
        RandomPruning(net(place), None, 0.7, seed=seed).masks for place, seed in ((device, 1), ("cpu", 1), ("cpu", 2))
    ]
    assert same({name: mask.cpu() for name, mask in masks[0].items()}, masks[1])
    assert not same(masks[1], masks[2])
    numpys = RandomPruning(net("cpu"), None, 0.7, seed=np.int64(1))
    assert same(numpys.masks, masks[1]) and type(numpys.seed) is int  # as a checkpoint keeps it
    for seed, message in ((-1, "seed=-1 must be at least 0"), (0.5, "seed=0.5 must be a whole number")):
        with pytest.raises(ValueError, match=message):
            RandomPruning(net("cpu"), None, 0.7, seed=seed)


@pytest.mark.parametrize("method", [*MAKE, "DST"])
def test_copies_and_saved_states_go_on_as_the_original(method: str, device: torch.device) -> None:
    make = MAKE.get(method, lambda model, optimizer: DST(model, optimizer, alpha=1e-2))
    model = net(device)
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = make(model, optimizer)
    train(model, optimizer, sparsity, 35)
    twin = copy.deepcopy((model, optimizer, sparsity))

    again = net(device)
    resumed = (again, OPTIMIZERS["sgd"](again))
    resumed = (*resumed, make(*resumed))
    for part, original in zip(resumed, (model, optimizer, sparsity), strict=True):
        part.load_state_dict(copy.deepcopy(original.state_dict()))

    runs = ((model, optimizer, sparsity), twin, resumed)
    for run in runs:
        train(*run, 35)
    for other in runs[1:]:
        assert same(other[0].state_dict(), model.state_dict())
        assert same(other[2].state_dict(), sparsity.state_dict())


@pytest.mark.parametrize("method", [*MAKE, "DST"])
def test_fit_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    make = MAKE.get(method, lambda model, optimizer: DST(model, optimizer, alpha=1e-2))
    images = digits("train").subset(range(96))

    class KilledError(Exception):
        pass

    def run(path: Path | None, kill: bool = False) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = digits_net(width=4, blocks=1)
        optimizer = sgd(model, 0.05)
        sparsity = make(model, optimizer)

        def on_epoch(record: dict[str, Any]) -> None:
            if kill and record["epoch"] == 3:
                raise KilledError

        history = fit(
            model,
            DeviceLoader(images, 8, shuffle=True),
            optimizer,
            epochs=4,
            sparsity=sparsity,
            checkpoint=path,
            checkpoint_every=5,
            seed=0,
            progress=False,
            on_epoch=on_epoch,
        )
        return model, (history, sparsity)

    straight, (history, _) = run(None)
    with pytest.raises(KilledError):
        run(tmp_path / "run.pt", kill=True)
    resumed, (_, sparsity) = run(tmp_path / "run.pt")
    assert same(straight.state_dict(), resumed.state_dict())
    assert history[-1]["sparsity"] == 1 - sparsity.density()


@pytest.mark.slow
def test_compiled_models_train_alike() -> None:
    model = net()
    twin, found = copy.deepcopy(model), []
    for candidate, forward in ((model, model), (twin, torch.compile(twin, backend="aot_eager"))):
        optimizer = OPTIMIZERS["sgd"](candidate)
        sparsity = RigL(forward, optimizer, 0.9, steps=20, every=5)
        train(forward, optimizer, sparsity, 20)
        found.append(candidate.state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def test_autocast_channels_last_and_fit(device: torch.device) -> None:
    model = digits_net(width=4, blocks=1).to(device)
    optimizer = sgd(model, 0.05)
    sparsity = GraNet(model, optimizer, 0.8, steps=24, every=4)
    loader = DeviceLoader(digits("train").subset(range(96)), 16, shuffle=True, device=device)
    history = fit(
        model, loader, optimizer, epochs=4, sparsity=sparsity, precision="bfloat16", channels_last=True, progress=False
    )
    assert [record["sparsity"] for record in history][1:] == pytest.approx([0.8] * 3, abs=1e-3)
    assert alive(model) == sum(sparsity.alive.values())
    weight = model.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight[~sparsity.masks["layer1.0.conv1"]].any()


def test_a_step_never_waits_for_the_device(device: torch.device) -> None:
    class NoWait(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func is not torch.ops.aten._local_scalar_dense.default
            assert func is not torch.ops.aten.nonzero.default
            return func(*args, **(kwargs or {}))

    for make in (lambda m, o: RigL(m, o, 0.9, steps=100, every=2), lambda m, o: DST(m, o, alpha=0.1)):
        model = net(device)
        optimizer = OPTIMIZERS["sgd"](model)
        sparsity = make(model, optimizer)
        train(model, optimizer, sparsity, 1)
        with NoWait():
            sparsity.step()  # RigL's second, with an update
            sparsity.step()


# ------------------------------------------------------------------------------------------------------ updates by hand
def set_gradients(model: nn.Module, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=random).to(p)


def ranked(scores: Tensor, among: Tensor) -> list[int]:
    """Flat indices among a mask, largest score first."""
    candidates = among.flatten().nonzero().flatten().tolist()
    return sorted(candidates, key=lambda i: -float(scores.flatten()[i]))


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda m, o: RigL(m, o, 0.8, steps=8, every=2), 0.3 * (1 + math.cos(math.pi * 2 / 6)) / 2),
        (lambda m, o: RigLITOP(m, o, 0.8, steps=8, every=2), 0.005 + 0.495 * (1 + math.cos(math.pi * 2 / 8)) / 2),
    ],
    ids=["RigL", "RigLITOP"],
)
def test_rigl_drops_the_smallest_and_grows_the_steepest(make: Make, share: float, device: torch.device) -> None:
    model = net(device)
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = make(model, optimizer)
    set_gradients(model)
    sparsity.step()
    before, values = sparsity.masks, {name: w.detach().clone() for name, w in sparsity.weights.items()}
    sparsity.step()
    for name, weight in sparsity.weights.items():
        alive = int(before[name].sum())
        exchanged = int(share * alive)
        kept = set(ranked(values[name].abs(), before[name])[: alive - exchanged])
        others = torch.tensor([i not in kept for i in range(weight.numel())])
        grown = set(ranked(weight.grad.abs(), others)[:exchanged])
        assert set(sparsity.masks[name].flatten().nonzero().flatten().tolist()) == kept | grown
        assert exchanged > 0
        new = sparsity.masks[name] & ~before[name]
        assert new.any()
        assert not weight[new].any()
        assert torch.equal(
            weight[sparsity.masks[name] & before[name]], values[name][sparsity.masks[name] & before[name]]
        )


@pytest.mark.parametrize("method", ["RigL", "GraNet"])
def test_the_share_that_is_exchanged_falls_to_its_floor(method: str) -> None:
    """A layer of 1,000 weights, of which half live; what is dropped cannot grow again, for it has no gradient."""
    model = nn.Sequential(nn.Linear(40, 25, bias=False))
    options: dict[str, Any] = {"steps": 10, "every": 1, "drop": 0.4, "floor": 0.1, "end": 1.0}
    kind, options = (RigL, options) if method == "RigL" else (GraNet, options | {"initial": 0.5, "end": 0.1})
    sparsity, exchanged = kind(model, OPTIMIZERS["sgd"](model), 0.5, **options), []
    for _ in range(10):
        before = sparsity.masks["0"]
        model[0].weight.data[before] = torch.rand(500) + 0.5
        model[0].weight.grad = torch.rand(25, 40) * ~before
        sparsity.step()
        exchanged.append(int((sparsity.masks["0"] & ~before).sum()))
    assert exchanged == [*(int(500 * (0.1 + 0.3 * (1 + math.cos(math.pi * t / 10)) / 2)) for t in range(1, 10)), 0]


@pytest.mark.parametrize("make", [MAKE["RigL"], MAKE["GraNet"]], ids=["RigL", "GraNet"])
@pytest.mark.parametrize("given", ["gradients", "a closure"])
def test_an_update_sees_the_gradients_of_the_loss(make: Make, given: str) -> None:
    """Torch's foreach SGD, which it takes on CUDA, adds Nesterov momentum to them in place."""
    model, x, y = net().double(), torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, foreach=True)
    sparsity = make(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(10):  # the tenth updates
        before = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        if given == "gradients":
            closure()
        optimizer.step(closure if given == "a closure" else None)
        sparsity.step()
    loss = F.cross_entropy(torch.func.functional_call(model, before, x), y)
    gradients = torch.autograd.grad(loss, [before[f"{name}.weight"] for name in sparsity.weights])
    assert all(torch.allclose(w.grad, g) for w, g in zip(sparsity.weights.values(), gradients, strict=True))


def test_rigl_stops_at_its_end() -> None:
    model = net()
    sparsity = RigL(model, OPTIMIZERS["sgd"](model), 0.8, steps=8, every=2)  # updates at 2 and 4 of T_end = 6
    changes = []
    for step in range(8):
        before = sparsity.masks
        set_gradients(model, step)
        sparsity.step()
        changes.append(not same(before, sparsity.masks))
    assert changes == [False, True, False, True, False, False, False, False]


def test_set_grows_at_random_with_random_values(device: torch.device) -> None:
    model = net(device)
    sparsity = SET(model, OPTIMIZERS["sgd"](model), 0.8, every=1, drop=0.3, steps=3)
    before, values = sparsity.masks, {name: w.detach().clone() for name, w in sparsity.weights.items()}
    sparsity.step()
    for name, weight in sparsity.weights.items():
        alive = int(before[name].sum())
        stayed = set(ranked(values[name].abs(), before[name])[: alive - int(0.3 * alive)])
        now = sparsity.masks[name]
        assert int(now.sum()) == alive
        assert stayed <= set(now.flatten().nonzero().flatten().tolist())
        new = weight[now & ~before[name]]
        assert len(new) > 0
        assert new.all()
        rms = values[name].square().sum().div(alive).sqrt()
        assert new.abs().max() < 5 * rms
    explored = sparsity.report()["explored"]
    assert (explored > sparsity.report()["density"]).all()
    sparsity.step()
    before = sparsity.masks
    sparsity.step()
    assert same(before, sparsity.masks)  # step 3 of 3: no update any more


def test_new_weights_of_set_are_normal_and_know_nothing_of_where_they_grow() -> None:
    """Thousands grow at once: from the very numbers that chose the places they would all come from one tail."""
    model = nn.Sequential(nn.Linear(400, 250, bias=False))
    sparsity = SET(model, OPTIMIZERS["sgd"](model), 0.8, every=1, drop=0.9)
    before, sigma = sparsity.masks["0"], float(model[0].weight.norm()) / math.sqrt(20_000)
    sparsity.step()
    new = model[0].weight.detach()[sparsity.masks["0"] & ~before]
    assert len(new) > 10_000
    assert scipy.stats.kstest(new / sigma, "norm").pvalue > 1e-3


def test_gradual_pruning_follows_the_cubic_to_the_weight() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = MagnitudePruning(model, optimizer, 0.95, steps=100, every=20)
    counts = []
    train(model, optimizer, sparsity, 110, lambda: counts.append(sum(sparsity.alive.values())))
    expected = [WEIGHTS - round(0.95 * (1 - (1 - u / 5) ** 3) * WEIGHTS) for u in range(6)]
    assert counts[18::20] == expected[:5]
    assert counts[19::20] == expected[1:]
    assert counts[-1] == expected[-1]


@pytest.mark.parametrize("density", ["uniform", "erk"])
def test_gradual_pruning_shares_out_at_every_update_as_it_is_told(density: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity, found = MagnitudePruning(model, optimizer, 0.8, steps=20, every=10, density=density), []
    shapes = {name: tuple(weight.shape) for name, weight in sparsity.weights.items()}
    train(model, optimizer, sparsity, 20, lambda: found.append(dict(sparsity.alive)))
    share = {"uniform": uniform, "erk": erk}[density]
    assert [found[9], found[19]] == [share(shapes, 0.8 * (1 - 0.5**3)), share(shapes, 0.8)]


def test_pruned_weights_are_the_smallest_of_all_and_never_return() -> None:
    model = net()
    sizes = torch.cat([m.weight.detach().flatten() for m in model if isinstance(m, nn.Conv2d | nn.Linear)]).abs()
    sparsity = MagnitudePruning(model, None, 0.6)
    masks = torch.cat([mask.flatten() for mask in sparsity.masks.values()])
    assert sizes[masks].min() > sizes[~masks].max()
    sparsity.prune(0.8, "global")
    after = torch.cat([mask.flatten() for mask in sparsity.masks.values()])
    assert not (after & ~masks).any()


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet_prunes_globally_then_exchanges_in_each_layer(initial: float) -> None:
    model = net()
    sparsity = GraNet(model, OPTIMIZERS["sgd"](model), 0.9, steps=40, every=5, initial=initial)
    assert alive(model) == WEIGHTS - round(initial * WEIGHTS)
    counts, changed = [], []
    for step in range(40):
        set_gradients(model, step)
        before = sparsity.masks
        sparsity.step()
        counts.append(sum(sparsity.alive.values()))
        changed.append(not same(before, sparsity.masks))
    expected = [WEIGHTS - round((initial + (0.9 - initial) * (1 - (1 - u / 4) ** 3)) * WEIGHTS) for u in range(5)]
    assert counts[4:20:5] == expected[1:]
    assert counts[20:] == [expected[-1]] * 20
    assert [step + 1 for step, change in enumerate(changed) if change][:4] == [5, 10, 15, 20]
    assert changed[24]  # the exchange goes on after the pruning
    assert not changed[39]  # the last step leaves no untrained weight


def test_any_criterion_and_whole_rows(device: torch.device) -> None:
    model = net(device)
    sparsity = Masks(model, None, grain="row")
    sparsity.prune(0.5, "uniform", lambda weight: weight.detach())
    for name, weight in sparsity.weights.items():
        rows = weight.detach().flatten(1).abs().amax(1) > 0
        assert int(rows.sum()) == sparsity.alive[name] == len(weight) // 2
        assert bool((sparsity.masks[name].flatten(1).float().mean(1) == rows.float()).all())
    assert sparsity.density() == 0.5
    assert sparsity.report()["alive"].sum() == WEIGHTS // 2
    again = Masks(net(device), None, sparsity.masks, grain="row")
    assert same(again.masks, sparsity.masks)
    pair = nn.Sequential(nn.Linear(4, 2, bias=False)).to(device)
    pair[0].weight.data = torch.tensor([[3.0, 0, 0, 0], [1.0, 1, 1, 1]], device=device)  # L2 3 and 2, L1 3 and 4
    assert MagnitudePruning(pair, None, 0.5, grain="row").masks["0"].all(1).tolist() == [True, False]

    set_gradients(model)
    whole = Masks(model, None, layers="7")
    whole.prune(0.25, "erk", "gradient")
    assert (
        whole.weights["7"].grad.abs()[whole.masks["7"]].min() >= whole.weights["7"].grad.abs()[~whole.masks["7"]].max()
    )


@pytest.mark.parametrize("make", [lambda m, o: RigL(m, o, 0.5, steps=20, every=5, grain="row"), MAKE["GraNet"]])
def test_rows_train_too(make: Make) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model)
    sparsity = make(model, optimizer)
    train(model, optimizer, sparsity, 20)
    assert all(not weight[~sparsity.masks[name]].any() for name, weight in sparsity.weights.items())


# -------------------------------------------------------------------------------------------------------- real models
class Tagger(nn.Module):
    """A transformer with an attention mask and two outputs, for sequences of which some end early."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.tags, self.label = nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.block(self.embedding(tokens), src_key_padding_mask=attention_mask == 0)
        kept = attention_mask[..., None]
        return self.tags(x), self.label((x * kept).sum(1) / kept.sum(1))


TOKENS = {"tokens": torch.arange(12).view(2, 6), "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])}


def trained_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tags, label = model(**TOKENS)
    optimizer.zero_grad()
    (F.cross_entropy(label, torch.tensor([0, 2])) + tags.square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda m, o: RandomPruning(m, o, 0.5),
        lambda m, o: RigL(m, o, 0.5, steps=8, every=2),
        lambda m, o: GraNet(m, o, 0.5, steps=8, every=2),
        lambda m, o: SET(m, o, 0.5, every=2),
    ],
    ids=["random", "RigL", "GraNet", "SET"],
)
def test_a_transformer_with_a_mask_keeps_its_zeros_under_adamw(make: Make) -> None:
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsity = make(model, optimizer)
    assert set(sparsity.weights) == {
        *("block.self_attn.in_proj_weight", "block.self_attn.out_proj", "block.linear1", "block.linear2"),
        *("tags", "label"),
    }
    for _ in range(4):
        trained_once(model, optimizer)
        sparsity.step()
        for name, weight in sparsity.weights.items():
            gone = ~sparsity.masks[name]
            assert int(weight.count_nonzero()) <= sparsity.alive[name] == int((~gone).sum())
            assert not weight[gone].any()
            assert not any(moment[gone].any() for key, moment in optimizer.state[weight].items() if key != "step")
    weights = sum(weight.numel() for weight in sparsity.weights.values())
    assert weights == 3 * 64 + 64 + 2 * 128 + 40 + 24
    assert sparsity.density() == sum(sparsity.alive.values()) / weights


def test_rigl_in_attention_drops_the_smallest_and_grows_the_steepest() -> None:
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsity = RigL(model, optimizer, 0.5, steps=10, every=2, drop=0.3, end=1.0)
    trained_once(model, optimizer)
    sparsity.step()
    before = sparsity.masks
    trained_once(model, optimizer)
    name = "block.self_attn.in_proj_weight"
    weight = sparsity.weights[name]
    values = (weight.detach() * before[name]).clone()
    sparsity.step()
    alive = int(before[name].sum())
    exchanged = int(0.15 * (1 + math.cos(math.pi * 2 / 10)) * alive)
    kept = set(ranked(values.abs(), before[name])[: alive - exchanged])
    others = torch.tensor([i not in kept for i in range(weight.numel())])
    grown = set(ranked(weight.grad.abs(), others)[:exchanged])
    assert exchanged > 0 and set(sparsity.masks[name].flatten().nonzero().flatten().tolist()) == kept | grown


def test_channels_last_changes_no_mask() -> None:
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = net().to(memory_format=layout)
        sparsity = MAKE["random"](model, None)
        masks.append(sparsity.masks)
        assert all(not weight[~sparsity.masks[name]].any() for name, weight in sparsity.weights.items())
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


# ------------------------------------------------------------------------------------------------- models and refusals
def test_layers_by_choice_shared_weights_and_attention() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 2)})
    model["b"].weight = model["a"].weight
    assert list(Masks(model, None).weights) == ["a", "attention.in_proj_weight", "attention.out_proj"]
    chosen = Masks(
        resnet20(shortcut="B"), None, layers=lambda name, m: isinstance(m, nn.Conv2d) and "shortcut" not in name
    )
    assert len(chosen.weights) == 19


def test_masks_fit_another_model_and_remove_leaves_it_plain() -> None:
    ticket = RandomPruning(net(), None, 0.8)
    model = net()
    keys, optimizer = list(model.state_dict()), OPTIMIZERS["sgd"](model)
    sparsity = Masks(model, optimizer, ticket.masks)
    train(model, optimizer, sparsity, 3)
    assert same(sparsity.masks, ticket.masks)
    assert alive(model) == WEIGHTS - round(0.8 * WEIGHTS)
    assert sparsity.remove() is model
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    train(model, optimizer, sparsity, 1)
    assert alive(model) > WEIGHTS - round(0.8 * WEIGHTS)
    assert sparsity.density() == pytest.approx(0.2, abs=1e-3)
    copy.deepcopy(model)


def test_report_has_a_row_a_layer() -> None:
    report = RandomPruning(net(), None, 0.75, density="uniform").report()
    assert list(report.index) == ["0", "3", "7"]
    assert report.loc["3"].to_dict() == {
        "shape": (6, 8, 3, 3),
        "weights": 432,
        "alive": 108,
        "density": 0.25,
        "explored": 0.25,
        "shared": "",
    }
    assert Masks(net(), None).report()["density"].eq(1).all()
    assert repr(RandomPruning(net(), None, 0.75)) == "RandomPruning(3 layers, sparsity 0.75, step 0)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, o: RandomPruning(m, o, 1.0), "sparsity=1.0"),
        (lambda m, o: RandomPruning(m, o, -0.1), "sparsity=-0.1"),
        (lambda m, o: MagnitudePruning(m, o, 1.5, steps=10, every=1), "sparsity=1.5"),
        (
            lambda m, o: RandomPruning(m, o, 0.5, density="ERK"),
            r"density='ERK' is unknown; use one of \['uniform', 'erk', 'global'\]",
        ),
        (lambda m, o: RandomPruning(m, o, 0.5, layers="conv9"), "no layer of Sequential matches 'conv9'"),
        (lambda m, o: RandomPruning(m, o, 0.5, layers=nn.BatchNorm2d), "two dimensions"),
        (lambda m, o: RandomPruning(m, o, 0.9, dense="7"), "the dense layers alone have 384"),
        (lambda m, o: RandomPruning(m, o, 0.9, dense="7", density="global"), "the dense layers alone have 384"),
        (lambda m, o: RandomPruning(m, o, 0.5, grain="column"), "grain='column'"),
        (lambda m, o: RandomPruning(m, sgd(net()), 0.5), "does not hold the weights of"),
        (lambda m, o: RandomPruning(m, torch.optim.SGD(m[0].parameters(), 0.1), 0.5), r"of \['3', '7'\]"),
        (lambda m, o: Masks(m, o, {"0": torch.ones(8, 1, 3, 3)}), "masks do not fit the model"),
        (lambda m, o: Masks(m, o, RandomPruning(net(), None, 0.5).masks, grain="row"), "cut through rows"),
        (lambda m, o: Masks(m, o).prune(0.5, "erk", "size"), "criterion='size'"),
        (lambda m, o: Masks(m, o).prune(0.5, "erk", "gradient"), "no gradient: call step"),
        (lambda m, o: RigL(m, o, 0.5, steps=100, every=80), "no update falls into the 75 steps"),
        (lambda m, o: RigL(m, o, 0.5, steps=100, every=0), "every=0"),
        (lambda m, o: SET(m, o, 0.5, drop=0), r"drop=0 must lie in \(0, 1\]"),
        (lambda m, o: SET(m, o, 0.5, drop=True), "drop=True must be a number"),
        (lambda m, o: GraNet(m, o, 0.5, steps=100, every=10, initial=0.6), "initial=0.6"),
        (lambda m, o: DST(m, o, alpha=0), "alpha=0"),
        (lambda m, o: LotteryTicket(m, lambda m, masked: None, 0.5, levels=0), "levels=0"),
        (lambda m, o: LotteryTicket(m, lambda m, masked: None, 0.5).run(), "without masked"),
        (lambda m, o: RigL(m, o, 0.5, steps="100"), "steps='100' must be a whole number"),
        (lambda m, o: GraNet(m, o, 0.5, steps=None), "steps=None must be a whole number"),
        (lambda m, o: RigL(m, o, 0.5, steps=100, every=10, drop=0.1, floor=0.5), r"floor=0.5 must lie in \[0, 0.1\]"),
        (lambda m, o: GraNet(m, o, 0.5, steps=100, every=10, drop=0.1, floor=0.5), "floor=0.5 must lie in"),
        (lambda m, o: DST(m, o, alpha=0.1, floor=5.0), r"floor=5.0 must lie in \[0, 1\]"),
        (lambda m, o: DST(m, o, alpha=0.1, floor="a"), "floor='a' must be a number"),
        (lambda m, o: DST(m, None, alpha=0.1), "optimizer=None: DST trains thresholds"),
        (lambda m, o: RandomPruning(m, m.parameters(), 0.5), "optimizer=<generator.* must be one of torch"),
        (lambda m, o: Masks(m, o, {"0": np.ones((8, 1, 3, 3))}), "masks=a dict must be layer → tensor"),
        (lambda m, o: Masks(m, o, [torch.ones(8, 1, 3, 3)]), "masks=a list must be layer → tensor"),
        (lambda m, o: Masks(m[:1], None, {"0": torch.full((8, 1, 3, 3), math.nan)}), r"masks of \['0'\] hold NaN"),
        (
            lambda m, o: Masks(m, o).prune(0.5, "erk", lambda w: w.abs().sum()),
            r"the weight's shape, \(8, 1, 3, 3\) in layer '0', as abs\(w\) is; got shape \(\)",
        ),
        (lambda m, o: Masks(m, o, grain="row").prune(0.5, "erk", lambda w: w.flatten(1).norm(dim=1)), r"shape \(8,\)"),
        (lambda m, o: Masks(m, o).prune(0.5, "erk", lambda w: w.detach().numpy()), "got ndarray"),
        (lambda m, o: MagnitudePruning(m, o, 0.5, schedule=partial(iterative, levels=0), steps=100), "levels=0"),
    ],
)
def test_nonsense_is_refused(make: Make, message: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=message):
        make(model, sgd(model))


def test_a_tensor_of_one_number_is_a_sparsity() -> None:
    half: Any = torch.tensor(0.5)
    assert sum(MagnitudePruning(net(), None, half).alive.values()) == WEIGHTS // 2


@pytest.mark.parametrize(
    "make",
    [
        lambda m, o, **of: GraNet(m, o, 0.95, steps=100, every=10, initial=0.2, density="uniform", **of),
        lambda m, o, **of: MagnitudePruning(m, o, 0.95, steps=100, every=10, **of),
        lambda m, o, **of: MagnitudePruning(m, o, 0.2, steps=100, every=10, schedule=lambda t, s: s + 0.7 * t, **of),
        lambda m, o, **of: LotteryTicket(m, lambda model, masked: None, 0.95, levels=3, **of),
    ],
    ids=["GraNet", "gradual", "own-schedule", "lottery"],
)
@pytest.mark.parametrize(("grain", "alone"), [("weight", 800), ("row", 20)])
def test_a_sparsity_that_dense_layers_forbid_is_refused_before_the_training(
    make: Callable[..., Any], grain: str, alone: int
) -> None:
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"the dense layers alone have {alone}:"):
        make(model, sgd(model), dense="2", grain=grain)
    assert same(model.state_dict(), before)


def test_gradual_pruning_counts_rows_or_weights_as_its_density_does() -> None:
    def made(density: str, sparsity: float) -> Masks:
        model = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 10))  # the dense layer: 300 of 360, 10 of 40
        options: Any = {"dense": "2", "grain": "row", "density": density}
        return MagnitudePruning(model, sgd(model), sparsity, steps=10, every=5, **options)

    assert made("global", 0.7).updates == made("uniform", 0.1).updates == 2
    with pytest.raises(ValueError, match="alone have 300"):
        made("uniform", 0.7)
    with pytest.raises(ValueError, match="alone have 10"):
        made("global", 0.8)


def test_a_schedule_is_asked_for_every_sparsity_before_the_training() -> None:
    for schedule in (lambda t, final: final if t < 1 else 1.0, lambda t, final: final if t != 0.5 else math.nan):
        with pytest.raises(ValueError, match=r"sparsity=(1.0|nan) must lie in \[0, 1\)"):
            MagnitudePruning(model := net(), sgd(model), 0.5, steps=100, every=50, schedule=schedule)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_refused_by_name(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, dtype=dtype))
    with pytest.raises(ValueError, match=r"the weights of \['1'\] are complex, and only real ones are masked"):
        MagnitudePruning(model, None, 0.5)
    assert MagnitudePruning(model, None, 0.5, layers="0").alive == {"0": 8}


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="masks do not fit"):
        RandomPruning(net(), None, 0.5).load_state_dict(RandomPruning(digits_net(), None, 0.5).state_dict())


@pytest.mark.parametrize("density", ["global", *DENSITIES])
@pytest.mark.parametrize("grain", ["weight", "row"])
def test_what_is_gone_stays_gone(density: str, grain: Any) -> None:
    """Under a schedule that falls, between densities, and where rounding moves a weight from layer to layer."""
    model = net()
    masks = Masks(model, None, dense="7", grain=grain)
    model[3].weight.data[0] = torch.nan  # scores last, yet is not gone
    masks.prune(0.4, "global", lambda weight: weight.abs())
    units = sum(mask.numel() for mask in masks._masks.values())
    for sparsity in (0.42, 0.43, 0.3, 0.5, 0.52, 0.45):
        before, gone = masks.masks, units - sum(masks.alive.values())
        masks.prune(sparsity, density)
        after, counts = masks.masks, {name: int((mask != 0).sum()) for name, mask in masks._masks.items()}
        assert not any(bool((after[name] & ~before[name]).any()) for name in after)
        assert counts == masks.alive
        if grain == "weight":
            assert units - sum(counts.values()) == max(gone, round(sparsity * units))
    assert after["7"].all()


# ------------------------------------------------------------------------------------------------------- lottery ticket
def digits_batches(examples: int = 128) -> DeviceLoader:
    return DeviceLoader(digits("train").subset(range(examples)), 32)


@pytest.mark.parametrize("rewind", [0, 3])
def test_lottery_ticket_rewinds_level_by_level(rewind: int) -> None:
    model, loader = digits_net(width=4, blocks=1), digits_batches()
    seen: list[dict[str, Tensor]] = []  # the model as each level begins, and as it was at step `rewind` of the first

    def train_ticket(model: nn.Module, masked: Callable[[Any], Masks]) -> float:
        optimizer = sgd(model, 0.05)
        sparsity = masked(optimizer)
        seen.append(copy.deepcopy(model.state_dict()))

        class Spy:
            def step(self) -> None:
                sparsity.step()
                if len(seen) == 1 and sparsity.steps == rewind:
                    seen[0] = copy.deepcopy(model.state_dict())

        fit(model, loader, optimizer, epochs=2, sparsity=Spy(), progress=False)
        return sparsity.density()

    ticket = LotteryTicket(model, train_ticket, sparsity=0.9, levels=2, rewind=rewind)
    densities = ticket.run()
    weights = sum(mask.numel() for mask in ticket.masks.values())
    expected = [1, 1 - round((1 - 0.1**0.5) * weights) / weights, 1 - round(0.9 * weights) / weights]
    assert densities == pytest.approx(expected)
    assert alive(model) == weights - round(0.9 * weights)
    for began in seen[1:]:
        for name, value in began.items():
            mask = began[name] != 0 if name.removesuffix(".weight") in ticket.masks else torch.ones_like(value).bool()
            assert torch.equal(value, torch.where(mask, seen[0][name], torch.zeros_like(value)))
    transferred = digits_net(width=4, blocks=1)
    assert same(Masks(transferred, None, ticket.masks).masks, ticket.masks)
    ticket.reset()
    assert alive(model) == weights - round(0.9 * weights)
    last = torch.cat([seen[0][f"{name}.weight"][mask] for name, mask in ticket.masks.items()])
    now = torch.cat([model.get_submodule(name).weight.detach()[mask] for name, mask in ticket.masks.items()])
    assert torch.equal(last, now)


def test_lottery_ticket_goes_on_where_it_stopped() -> None:
    loader = digits_batches(64)

    def run(stop_at: int | None, state: dict[str, Any] | None = None) -> tuple[LotteryTicket, dict[str, Any]]:
        torch.manual_seed(0)
        model, state_then = digits_net(width=4, blocks=1), {}

        def train_ticket(model: nn.Module, masked: Callable[[Any], Masks]) -> None:
            if ticket.level == stop_at:
                state_then.update(copy.deepcopy(ticket.state_dict()))
                raise InterruptedError
            optimizer = sgd(model, 0.05)
            fit(model, loader, optimizer, epochs=1, sparsity=masked(optimizer), progress=False)

        ticket = LotteryTicket(model, train_ticket, sparsity=0.8, levels=2)
        if state is not None:
            ticket.load_state_dict(state)
        with contextlib.suppress(InterruptedError):
            ticket.run()
        return ticket, state_then

    whole, _ = run(None)
    _, state = run(2)
    resumed, _ = run(None, state)
    assert same(whole.masks, resumed.masks)
    assert same(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize("killed_at", [1, 3])
@pytest.mark.parametrize("rewind", [0, 2])
@pytest.mark.parametrize("fresh", [False, True])
def test_lottery_ticket_begins_an_interrupted_dense_training_anew(killed_at: int, rewind: int, fresh: bool) -> None:
    def ticket(seed: int, killed_at: int | None = None) -> LotteryTicket:
        def train_ticket(model: nn.Module, masked: Callable[[Any], Masks]) -> dict[str, Tensor]:
            optimizer = torch.optim.SGD(model.parameters(), 0.05)
            sparsity = masked(optimizer)
            for _ in range(4):
                if sparsity.steps == killed_at:
                    raise InterruptedError
                train(model, optimizer, sparsity, 1)
            return copy.deepcopy(model.state_dict())

        torch.manual_seed(seed)
        return LotteryTicket(net(), train_ticket, 0.5, levels=1, rewind=rewind)

    whole, stopped, again = ticket(0), ticket(0, killed_at), ticket(fresh)
    expected = whole.run()
    with pytest.raises(InterruptedError):
        stopped.run()
    if fresh:
        again.load_state_dict(copy.deepcopy(stopped.state_dict()))
    else:
        stopped.train, again = again.train, stopped
    outcomes = again.run()
    assert same(dict(enumerate(outcomes)), dict(enumerate(expected)))
    assert same(again.masks, whole.masks) and same(again.start, whole.start) and again.initial is None


def test_lottery_levels_and_a_rewind_that_never_comes() -> None:
    assert LotteryTicket(net(), lambda m, masked: None, 1 - 0.8**7).levels == 7

    def no_steps(model: nn.Module, masked: Callable[[Any], Masks]) -> None:
        masked(sgd(model))

    with pytest.raises(ValueError, match="rewind=5"):
        LotteryTicket(net(), no_steps, 0.5, rewind=5).run()


# ------------------------------------------------------------------------------------------- what every method promises
def built(name: str, model: nn.Module, optimizer: Any, **changed: Any) -> Any:
    """A registered method with the arguments that it takes of these."""
    takes = inspect.signature(METHODS[name]).parameters
    settings = {"sparsity": 0.8, "steps": 20, "every": 4, "drop": 0.3, "alpha": 1e-2} | changed
    return METHODS[name](model, optimizer, **{key: value for key, value in settings.items() if key in takes})


def with_gradients(model: nn.Module) -> nn.Module:
    model(torch.randn(4, 1, 8, 8)).square().mean().backward()
    return model


@pytest.mark.parametrize("name", METHODS)
def test_every_registered_method_keeps_its_promises(name: str, device: torch.device) -> None:
    """A new method is one file; this is its test."""
    assert METHODS.facts[name]["title"]
    torch.manual_seed(0)
    model = net(device)
    if METHODS[name] is LotteryTicket:

        def train_level(model: nn.Module, masked: Callable[[Any], Masks]) -> float:
            optimizer = OPTIMIZERS["sgd"](model)
            train(model, optimizer, sparsity := masked(optimizer), 6)
            return sparsity.density()

        ticket = LotteryTicket(model, train_level, sparsity=0.8, levels=2)
        state = copy.deepcopy(ticket.state_dict())
        assert ticket.run()[-1] == pytest.approx(0.2, abs=1 / WEIGHTS) == alive(model) / WEIGHTS
        ticket.load_state_dict(state)
        assert ticket.level == 0 and ticket.run()[-1] == pytest.approx(0.2, abs=1 / WEIGHTS)
        return
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = built(name, model, optimizer)

    def holds() -> None:
        assert all(not weight[~sparsity.masks[key]].any() for key, weight in sparsity.weights.items())

    train(model, optimizer, sparsity, 22, holds)
    assert alive(model) <= sum(sparsity.alive.values()) == sum(int(mask.sum()) for mask in sparsity.masks.values())
    if "sparsity" in inspect.signature(METHODS[name]).parameters:
        assert sparsity.density() == pytest.approx(0.2, abs=1 / WEIGHTS)
    assert 0 < sparsity.density() < 1

    state = copy.deepcopy([part.state_dict() for part in (model, optimizer, sparsity)])
    again = net(device)
    again.load_state_dict(state[0])  # before the masks are built: what building cuts comes back
    twin = built(name, again, other := OPTIMIZERS["sgd"](again))
    other.load_state_dict(state[1])
    twin.load_state_dict(state[2])
    assert same(again.state_dict(), model.state_dict()) and same(twin.state_dict(), sparsity.state_dict())
    with pytest.raises(ValueError, match="does not hold the weights of"):
        built(name, net(device), sgd(net(device)))
    wrong = {"sparsity": 1.0, "every": 0, "drop": 0, "alpha": 0}
    for key in wrong.keys() & inspect.signature(METHODS[name]).parameters.keys():
        with pytest.raises(ValueError, match=f"{key}={wrong[key]}"):
            built(name, model := net(device), sgd(model), **{key: wrong[key]})


@pytest.mark.parametrize("density", [*DENSITIES, "global"])
@pytest.mark.parametrize("criterion", [*CRITERIA, "random"])
def test_every_density_and_criterion_counts_exactly(density: str, criterion: str) -> None:
    masks = Masks(model := with_gradients(net()), None)
    masks.prune(0.7, density, criterion)
    assert alive(model) == sum(masks.alive.values()) == WEIGHTS - round(0.7 * WEIGHTS)


def test_a_registered_name_is_found_and_another_is_refused() -> None:
    assert METHODS["rigl"] is RigL and METHODS.facts["rigl"]["title"] == "RigL"
    with pytest.raises(ValueError, match="did you mean 'granet'"):
        _ = METHODS["grant"]


# ------------------------------------------------------------------------------------------- states, gradients, and NaN
def trained(steps: int = 24) -> tuple[nn.Module, Any, Masks]:
    torch.manual_seed(0)
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = RigL(model, optimizer, 0.9, steps=100, every=10)
    train(model, optimizer, sparsity, steps)
    return model, optimizer, sparsity


@pytest.mark.parametrize("loads", ["before", "after"])
def test_building_masks_cuts_nothing_that_their_state_brings_back(loads: str) -> None:
    model, optimizer, sparsity = trained()
    again = net()
    other = OPTIMIZERS["sgd"](again)
    if loads == "before":
        again.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = RigL(again, other, 0.9, steps=100, every=10, seed=5)
    if loads == "after":
        again.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin.load_state_dict(sparsity.state_dict())
    assert same(again.state_dict(), model.state_dict()) and alive(again) == alive(model)
    for run in ((model, optimizer, sparsity), (again, other, twin)):
        run[2].seed = 0
        train(*run, 12)
    assert same(again.state_dict(), model.state_dict())


def test_random_masks_on_weights_that_are_sparse_already_are_refused() -> None:
    model, _, _ = trained()
    for make in (lambda m, o: RandomPruning(m, o, 0.9), MAKE["SET"], MAKE["RigL"], MAKE["GraNet"]):
        loaded = net()
        loaded.load_state_dict(model.state_dict())
        optimizer = OPTIMIZERS["sgd"](loaded)
        sparsity = make(loaded, optimizer)
        with pytest.raises(ValueError, match=r"\['0', '3', '7'\] were sparse already when"):
            train(loaded, optimizer, sparsity, 1)
    with pytest.raises(ValueError, match="were sparse already"):
        RandomPruning(model, None, 0.9)
    smaller = MagnitudePruning(model, None, 0.95)  # takes the zeros first, as it should
    assert alive(model) == sum(smaller.alive.values()) == WEIGHTS - round(0.95 * WEIGHTS)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grain", ["weight", "row"])
def test_a_masked_weight_is_zero_whatever_the_optimizer_made_of_it(
    bad: float, dtype: torch.dtype, grain: Any, device: torch.device
) -> None:
    model = net(device).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    sparsity = MagnitudePruning(model, optimizer, 0.6, grain=grain)
    set_gradients(model)
    weights, gone = sparsity.weights["3"], ~sparsity.masks["3"]
    assert weights.grad is not None
    weights.grad[gone] = bad
    optimizer.step()
    expected = torch.where(gone, 0, weights.detach())
    sparsity.step()
    assert torch.equal(weights, expected) and gone.any()
    assert not any(optimizer.state[weights][key][gone].any() for key in ("exp_avg", "exp_avg_sq"))
    weights.data[~gone] = bad  # what is alive is not hidden
    sparsity.step()
    assert not weights[~gone].isfinite().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["RigL", "RigLITOP", "GraNet"])
def test_an_update_without_sound_gradients_exchanges_nothing(method: str, bad: float) -> None:
    """As after a float16 overflow, where a scaler skips the optimizer's step and not the masks'."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = MAKE[method](model, optimizer)
    train(model, optimizer, sparsity, 49 if method != "RigLITOP" else 19)
    before = sparsity.masks
    assert sparsity.weights["3"].grad is not None
    sparsity.weights["3"].grad[0, 0] = bad
    sparsity.step()
    counts = {name: int(mask.sum()) for name, mask in sparsity.masks.items()}
    assert counts == sparsity.alive
    if method == "GraNet":  # its pruning needs no gradient; nothing comes back
        assert not any(bool((mask & ~before[name]).any()) for name, mask in sparsity.masks.items())
    else:
        assert same(before, sparsity.masks)
    assert sum(counts.values()) == WEIGHTS - round(0.9 * WEIGHTS)
    train(model, optimizer, sparsity, 1)


def test_scores_that_are_nan_come_last_and_counts_stay_exact() -> None:
    model = with_gradients(net())
    model[3].weight.grad[:] = torch.nan
    masks = Masks(model, None)
    masks.prune(0.6, "global", "gradient")
    assert alive(model) == sum(masks.alive.values()) == WEIGHTS - round(0.6 * WEIGHTS) and masks.alive["3"] == 0


@pytest.mark.parametrize("make", [MAKE["RigL"], MAKE["RigLITOP"], MAKE["GraNet"]])
def test_layers_without_gradients_are_refused_at_the_start(make: Make) -> None:
    model = net()
    model[3].requires_grad_(False)
    with pytest.raises(ValueError, match=r"grows by gradient and \['3'\] are frozen"):
        make(model, torch.optim.SGD(model.parameters(), 0.1))
    branched = nn.ModuleDict({"used": nn.Linear(4, 8), "idle": nn.Linear(4, 8)})
    optimizer = OPTIMIZERS["sgd"](branched)
    sparsity = make(branched, optimizer)
    branched["used"](torch.randn(3, 4)).square().mean().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"\['idle'\] have none: leave out by layers="):
        sparsity.step()


@pytest.mark.parametrize("make", [MAKE["RigL"], MAKE["GraNet"]])
def test_a_layer_that_is_frozen_in_the_course_of_the_training_is_named(make: Make) -> None:
    model = net()
    optimizer = sgd(model, 0.05)
    sparsity = make(model, optimizer)
    train(model, optimizer, sparsity, 5)
    model[3].requires_grad_(False)
    with pytest.raises(ValueError, match=r"\['3'\] have no gradient and other layers have"):
        train(model, optimizer, sparsity, 5)


@pytest.mark.parametrize("how", ["assign", "weight_norm"])
@pytest.mark.parametrize("method", ["random", "SET", "RigL", "DST"])
def test_weights_that_the_model_no_longer_has_are_refused(method: str, how: str) -> None:
    """What the masks zero would be parameters that nobody multiplies by."""
    model = net()
    optimizer = sgd(model, 0.05)
    sparsity = DST(model, optimizer, alpha=0.01) if method == "DST" else MAKE[method](model, optimizer)
    train(model, optimizer, sparsity, 2)
    if how == "assign":
        model[3].load_state_dict({"weight": torch.randn(6, 8, 3, 3)}, assign=True)
    else:
        torch.nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(ValueError, match=r"the weights of \['3'\] are other parameters now"):
        sparsity.step()


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_after_zero_grad_is_noticed(to_none: bool) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = RigL(model, optimizer, 0.9, steps=100, every=10)
    with_gradients(model)
    optimizer.step()
    optimizer.zero_grad(set_to_none=to_none)
    with pytest.raises(ValueError, match=r"before zero_grad\(\)"):
        sparsity.step()


@pytest.mark.parametrize("how", ["parametrized", "weight norm", "old weight norm", "torch's pruning"])
def test_weights_that_are_computed_are_refused_by_name(how: str) -> None:
    model = net()
    if how == "parametrized":
        nn.utils.parametrizations.spectral_norm(model[3])
    elif how == "weight norm":
        nn.utils.parametrizations.weight_norm(model[3])
    elif how == "old weight norm":
        nn.utils.weight_norm(model[3])
    else:
        torch.nn.utils.prune.random_unstructured(model[3], "weight", 0.5)
    with pytest.raises(ValueError, match=r"\['3'\] compute their weights from other parameters"):
        Masks(model, None)
    assert list(Masks(model, None, layers=["0", "7"]).weights) == ["0", "7"]


# --------------------------------------------------------------------------------------------------- dynamic thresholds
def test_surrogate_is_the_long_tailed_estimator() -> None:
    x = torch.tensor([-2, -1, -0.7, -0.4, -0.1, 0, 0.2, 0.5, 1.0, 1.1])
    assert surrogate(x).tolist() == pytest.approx([0, 0.4, 0.4, 0.4, 1.6, 2, 1.2, 0.4, 0.4, 0])


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * surrogate(ctx.saved_tensors[0])


@pytest.mark.parametrize("given", ["gradients", "a closure", "closure="])
def test_dst_is_autograd_through_the_mask(given: str, device: torch.device) -> None:
    """Three steps of plain SGD on w and t, with w̃ = w ⊙ S(|w| − t) inside the graph."""
    model = mlp([5, 7, 3]).double().to(device)
    alpha, rate, x = 0.1, 0.5, torch.randn(6, 5, dtype=torch.float64, device=device)
    w = [m.weight.detach().clone().requires_grad_() for m in (model.linear1, model.linear2)]
    b = [m.bias.detach().clone().requires_grad_() for m in (model.linear1, model.linear2)]
    t = [torch.zeros(len(v), 1, dtype=torch.float64, device=device, requires_grad=True) for v in w]
    optimizer = torch.optim.SGD(model.parameters(), rate)
    sparsity = DST(model, optimizer, alpha=alpha, floor=0.0)
    for _ in range(3):
        masked = [v * _Step.apply(v.abs() - s) for v, s in zip(w, t, strict=True)]
        hidden = F.linear(x, masked[0], b[0]).relu()
        loss = F.linear(hidden, masked[1], b[1]).square().mean() + alpha * sum((-s).exp().sum() for s in t)
        gradients = torch.autograd.grad(loss, [*w, *b, *t])
        with torch.no_grad():
            for value, gradient in zip([*w, *b, *t], gradients, strict=True):
                value -= rate * gradient

        def closure() -> Tensor:
            objective = model(x).square().mean() + sparsity.penalty()
            optimizer.zero_grad()
            objective.backward()
            return objective

        if given == "gradients":
            objective = closure()
            optimizer.step()
        else:
            objective = optimizer.step(closure=closure) if given == "closure=" else optimizer.step(closure)
        assert torch.allclose(objective, loss)
        sparsity.step()
    for mine, other in ((sparsity.latent, w), (sparsity.thresholds, t)):
        assert all(torch.allclose(a, b) for a, b in zip(mine.values(), other, strict=True))
    for layer, v, s in zip((model.linear1, model.linear2), w, t, strict=True):
        assert torch.allclose(layer.weight, v * (v.abs() > s))
        assert bool((layer.weight == 0).any())


@pytest.mark.parametrize("named", [False, True])
def test_dst_trains_its_thresholds_at_the_rate_of_their_weights(named: bool) -> None:
    """Where the loss has no gradient, the first step of plain SGD takes a threshold from 0 to rate · alpha."""
    model, rates = mlp([5, 7, 3]), {"linear1": 0.1, "linear2": 0.5}
    parameters = {name: list(getattr(model, name).named_parameters(name)) for name in rates}
    optimizer = torch.optim.SGD(
        [{"params": p if named else [q for _, q in p], "lr": rates[name]} for name, p in parameters.items()],
        lr=7.0,
        weight_decay=0.3,
    )
    sparsity = DST(model, optimizer, alpha=0.01)
    (0 * model(torch.randn(2, 5)).sum() + sparsity.penalty()).backward()
    optimizer.step()
    for name, rate in rates.items():
        assert torch.allclose(sparsity.thresholds[name], torch.tensor(rate * 0.01))


def test_dst_is_built_before_the_scheduler() -> None:
    model = net()
    optimizer = sgd(model)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.raises(ValueError, match="build DST first, then the scheduler"):
        DST(model, optimizer, alpha=0.01)
    assert len(optimizer.param_groups) == 1 and not optimizer._optimizer_step_pre_hooks


def test_dst_refuses_an_optimizer_of_one_parameter_group() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="optimizer=LBFGS takes a single parameter group, and DST adds one"):
        DST(model, optimizer, alpha=0.01)
    assert len(optimizer.param_groups) == 1 and not optimizer._optimizer_step_pre_hooks


def test_dst_prunes_more_with_alpha_and_lets_weights_return(device: torch.device) -> None:
    densities = []
    for alpha in (1e-4, 1e-3, 1e-2):
        torch.manual_seed(0)
        model = net(device)
        optimizer = sgd(model, 0.01)
        sparsity, masks = DST(model, optimizer, alpha=alpha), []
        for _ in range(60):
            train(model, optimizer, sparsity, 1)
            masks.append(torch.cat([mask.flatten() for mask in sparsity.masks.values()]))
        densities.append(sparsity.density())
        assert all(not weight[~sparsity.masks[name]].any() for name, weight in sparsity.weights.items())
        assert alive(model) <= sum(sparsity.alive.values()) == int(masks[-1].sum())
    assert densities[0] > densities[1] > densities[2]
    assert any(bool((~before & after).any()) for before, after in pairwise(masks))


def test_weight_decay_leaves_the_thresholds_of_dst_alone() -> None:
    """Far from any weight a threshold moves by its own term only: by lr · α e^−t."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=0.1)
    sparsity = DST(model, optimizer, alpha=0.01, floor=0.0)
    with torch.no_grad():
        sparsity.thresholds["7"].fill_(5.0)
    sparsity.apply()
    train(model, optimizer, sparsity, 1)
    expected = torch.full((4, 1), 5 + 0.5 * 0.01 * math.exp(-5))
    torch.testing.assert_close(sparsity.thresholds["7"].detach(), expected, rtol=1e-6, atol=0)


def test_dst_keeps_its_weights_when_the_optimizer_took_no_step() -> None:
    model = net()
    optimizer = sgd(model, 0.05)
    sparsity = DST(model, optimizer, alpha=0.01)
    train(model, optimizer, sparsity, 20)
    before = copy.deepcopy(sparsity.latent)
    sparsity.step()  # as after a float16 overflow
    assert same(sparsity.latent, before)


def test_dst_trains_alike_whoever_sets_the_gradients_to_zero() -> None:
    found = []
    for whose in (lambda model, optimizer: optimizer, lambda model, optimizer: model):
        torch.manual_seed(0)
        model = net()
        optimizer = sgd(model, 0.01)
        sparsity = DST(model, optimizer, alpha=0.01)
        for x in torch.randn(10, 8, 1, 8, 8):
            (model(x).square().mean() + sparsity.penalty()).backward()
            optimizer.step()
            sparsity.step()
            whose(model, optimizer).zero_grad()
        found.append({**sparsity.latent, **sparsity.thresholds})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]) and value.any()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("overflows", [False, True])
def test_dst_goes_on_from_weights_that_were_loaded(steps: int, overflows: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsity = DST(model, optimizer, alpha=0.1)
    train(model, optimizer, sparsity, steps)
    torch.manual_seed(1)
    loaded = net().state_dict()
    model.load_state_dict(loaded)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    if not overflows:
        optimizer.step()
    sparsity.step()
    for name, weight in sparsity.weights.items():
        assert torch.equal(sparsity.latent[name], loaded[f"{name}.weight"])
        assert torch.equal(weight, loaded[f"{name}.weight"].where(sparsity.masks[name], 0))


def test_dst_masks_what_is_not_a_number() -> None:
    model = net()
    sparsity = DST(model, OPTIMIZERS["sgd"](model), alpha=0.1)
    sparsity.latent["3"][0, 0] = torch.nan
    sparsity.apply()
    assert not sparsity.masks["3"][0, 0].any() and not model[3].weight[0, 0].any()


def test_dst_layers_cannot_die_and_steps_cannot_be_forgotten() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    sparsity = DST(model, optimizer, alpha=0.1)
    with torch.no_grad():
        sparsity.thresholds["7"].fill_(100.0)
    sparsity.apply()
    assert not sparsity.thresholds["7"].any()
    assert sparsity.alive["7"] == 384
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="second time"):
        optimizer.step()
    sparsity.step()
    sparsity.remove()
    optimizer.step()
    optimizer.step()
