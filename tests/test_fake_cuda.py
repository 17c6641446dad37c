"""CUDA without a card: whatever is public or registered runs on a fake `cuda` device and gives what the CPU gives.

Nothing is listed by hand: a new measure, reducer, penalty, mask method or estimator is tested by being public or
registered. A parameter of a new name says what it is in `ARGUMENTS`. What needs a real card: `tests/gpu.sh`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torchmetrics
from fake_cuda import CUDA, FakeCuda
from torch import Tensor, nn

import companion.experiments.controls  # noqa: F401 - registers the placebos
from companion import models, pruning, similarity
from companion.features import REDUCERS, FeatureTap
from companion.information import InformationGate, InformationPlane, estimators, mutual_information
from companion.information.estimates import ESTIMATORS
from companion.pruning import METHODS, LotteryTicket
from companion.regularizers import PENALTIES, VIBNet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fake_cuda() -> Iterator[None]:
    with FakeCuda():
        yield


def agree(call: Callable[[torch.device], Any], lies_on: torch.device = CUDA) -> None:
    """The call gives the same on both devices, and its tensors lie where it ran, or where it is said."""
    torch.manual_seed(0)
    expected = list(found(call(CPU)))
    torch.manual_seed(0)
    got = list(found(call(CUDA)))
    assert {x.device for x in got if isinstance(x, Tensor)} <= {lies_on}
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.cpu() if isinstance(one, Tensor) else one, other, equal_nan=True)


def found(value: Any) -> Iterator[Tensor | float]:
    """Every tensor and number of a result."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Tensor | bool | int | float):
        yield value
    elif isinstance(value, Mapping):
        yield from found(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from found(part)


def on(device: torch.device, make: Callable[[], Any]) -> Any:
    with device:
        return make()


def normal(*shape: int) -> Callable[[torch.device], Tensor]:
    return lambda device: torch.randn(*shape, device=device)


def classes(n: int = 16) -> Callable[[torch.device], Tensor]:
    return lambda device: torch.arange(n, device=device) % 3


def net(device: torch.device) -> nn.Module:
    return on(device, lambda: models.digits_net(width=4, blocks=2))


def images(device: torch.device) -> Tensor:
    return torch.randn(16, 1, 8, 8, device=device)


# ------------------------------------------------------------------------------------------------------- what a test is
def test_the_detector_detects() -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    for mixed in (
        lambda: there + here,
        lambda: here @ there,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there[0], here[0]]),
        lambda: here[0].add_(there[0]),
        lambda: here[there.long()],
        lambda: nn.functional.linear(there, torch.ones(3, 3)),
        lambda: torch.randn(3, device=CUDA, generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match=r"same device|'cuda' device"):
            mixed()
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        there.numpy()
    for fine in (there + here[0], there[here.long()], here.to(there.device), here.cuda(), torch.zeros_like(there)):
        assert fine.device == CUDA and fine.is_cuda
    assert torch.ones(2, 2, device=CUDA).copy_(torch.eye(2)).sum().item() == 2
    assert not there.cpu().is_cuda and there.cpu().numpy().sum() == 3


def test_gradients_and_copies_stay_there() -> None:
    model = net(CPU).to("cuda")
    model(images(CUDA)).sum().backward()
    twin = copy.deepcopy(model)
    for p in (*model.parameters(), *twin.parameters()):
        assert isinstance(p, nn.Parameter) and p.device == CUDA
    assert all(p.grad.device == CUDA for p in model.parameters())
    with pytest.raises(RuntimeError, match="same device"):
        model(images(CPU))


# ----------------------------------------------------------------------------------------------- every public function
MATRIX, OTHER = normal(16, 4), normal(16, 3)
PATH = [normal(16, 6) for _ in range(4)]


def named(device: torch.device) -> dict[str, Tensor]:
    with FeatureTap(net(device), "layer1.*") as features:
        features.model(images(device))
    return dict(features)


ARGUMENTS: dict[str, Callable[[torch.device], Any]] = {
    **{"x": MATRIX, "y": OTHER, "h": MATRIX, "k": lambda device: torch.eye(16, device=device) + 1},
    "xs": lambda device: {"a": MATRIX(device), "b": OTHER(device)},
    **dict.fromkeys(("path", "features: Sequence"), lambda device: [x(device) for x in PATH]),
    "features: Mapping": named,
    "grams": lambda device: [x @ x.T for x in (MATRIX(device), OTHER(device))],
    "scores": normal(16, 16),
    "covariance": lambda device: torch.eye(7, device=device) + 0.1,
    **{"split": lambda device: 4, "noise": lambda device: 0.5, "shape": lambda device: (4,)},
    "probabilities": lambda device: torch.full((4,), 0.25, device=device),
    "table": lambda device: torch.full((2, 4), 0.125, device=device),
    "edges": lambda device: [torch.linspace(-1, 1, 5, device=device) for _ in range(4)],
    **{"mean": normal(8), "variance": lambda device: torch.ones(8, device=device)},
    **{"model": net, "data": images, "example": images, "layers": lambda device: "layer1.*"},
    "coupling": lambda device: pruning.couple(net(CPU), images(CPU)),
    "filters": lambda device: {"layer1.0.conv1": [0]},
    "plan": lambda device: pruning.plan(net(device)),
    "norms": lambda device: torch.arange(6.0, device=device).square(),
    **{"train": lambda device: lambda model: None, "evaluate": lambda device: lambda model: 0.5},
}
BESIDES: dict[str, dict[str, Callable[[torch.device], Any]]] = {  # where the name does not say all
    **{name: {"x": classes(), "y": classes()} for name in ("discrete_entropy", "discrete_mutual_information")},
    **{name: {"y": classes()} for name in ("ross", "noisy_label_information")},
    "variational_bound": {"x": normal(64, 2), "y": normal(64, 2), "steps": lambda device: 2, "batch": lambda device: 8},
}
ELSEWHERE = {
    **dict.fromkeys(("latency", "latencies"), "ask CUDA for the time"),
    **dict.fromkeys(
        ("couple", "prune_filters"), "follow tensors below torch's functions, where the fake ones are plain"
    ),
}
LIES_ON = {"channel_norms": CPU}  # beside the coupling that counts the channels


def public() -> Iterator[tuple[str, str]]:
    """Every public function that takes tensors or a model."""
    for part in ("features", "similarity", "information", "flow", "pruning"):
        module = importlib.import_module(f"companion.{part}")
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing) and name not in ELSEWHERE:
                required = [p for p in inspect.signature(thing).parameters.values() if p.default is p.empty]
                if any("Tensor" in str(p.annotation) or "Module" in str(p.annotation) for p in required):
                    yield part, name


def arguments(function: Callable[..., Any], device: torch.device) -> dict[str, Any]:
    """A value for each required parameter, by its name."""
    besides = BESIDES.get(function.__name__, {})
    given, takes = {}, inspect.signature(function).parameters
    for name, parameter in takes.items():
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        kind = next((kind for kind in ("Mapping", "Sequence") if kind in str(parameter.annotation)), "")
        make = besides.get(name) or ARGUMENTS.get(f"{name}: {kind}") or ARGUMENTS.get(name)
        assert make, f"{function.__name__} takes {name}: say in ARGUMENTS what that is"
        given[name] = make(device)
    return given | {name: make(device) for name, make in besides.items() if name in takes.keys() - given.keys()}


@pytest.mark.parametrize(("part", "name"), list(public()))
def test_public_functions(part: str, name: str) -> None:
    function = getattr(importlib.import_module(f"companion.{part}"), name)
    agree(lambda device: function(**arguments(function, device)), LIES_ON.get(name, CUDA))


# ------------------------------------------------------------------------------------------------------ every registry
@pytest.mark.parametrize("reduce", REDUCERS)
def test_reducers(reduce: str) -> None:
    def reduced(device: torch.device) -> Any:
        with FeatureTap(net(device), (nn.Conv2d, nn.Linear), reduce=reduce) as features:
            features.model(images(device))
        return dict(features)

    agree(lambda device: REDUCERS[reduce](torch.randn(4, 8, 5, 5, device=device)))
    agree(lambda device: REDUCERS[reduce](torch.randn(4, 7, 8, device=device), torch.ones(4, 7, device=device)))
    agree(reduced)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators(estimator: str) -> None:
    kinds = estimators()[estimator]
    x, y = (classes(64) if kinds[side] == "discrete" else normal(64, 2) for side in ("x", "y"))
    takes = inspect.signature(ESTIMATORS[estimator]).parameters
    options = {key: value for key, value in {"steps": 3, "batch": 8, "parts": 2}.items() if key in takes}
    agree(lambda device: mutual_information(x(device), y(device), estimator, **options))


STREAMS = [
    name
    for name in similarity.__all__
    if inspect.isclass(kind := getattr(similarity, name)) and issubclass(kind, torchmetrics.Metric)
]


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("name", STREAMS)
def test_streams(name: str, kernel: str) -> None:
    kind = getattr(similarity, name)
    if kernel != "linear" and "kernel" not in inspect.signature(kind).parameters:
        pytest.skip("the linear kernel alone")

    def streamed(device: torch.device) -> Any:
        metric = kind(["0", "1"], **({} if kernel == "linear" else {"kernel": kernel})).to(device)
        for n in (16, 5):
            metric.update({key: torch.randn(n, 8, device=device) for key in ("0", "1")})
        return metric.compute()

    agree(streamed)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties(penalty: str) -> None:
    """Values, and the gradients of two steps."""
    takes = {key for kind in PENALTIES[penalty].__mro__ for key in inspect.signature(kind.__init__).parameters}
    settings = {key: 0.1 for key in ("beta", "length", "curvature", "strength") if key in takes}
    settings |= {"every": 2} if "every" in takes else {}

    def penalised(device: torch.device) -> Any:
        model = net(device)
        added = PENALTIES[penalty](model, **settings)
        values = []
        for _ in range(3):  # due, not due, and due again
            loss = model(images(device)).square().mean()
            values.append(added())
            (loss + values[-1]).backward()
        return values, [p.grad for p in model.parameters()], added.last

    agree(penalised)


@pytest.mark.parametrize("method", METHODS)
def test_masks(method: str) -> None:
    takes = inspect.signature(METHODS[method]).parameters
    settings = {"sparsity": 0.8, "steps": 4, "every": 1, "drop": 0.3, "alpha": 0.1, "levels": 2}
    settings = {key: value for key, value in settings.items() if key in takes}

    def steps(model: nn.Module, masks: Any, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(images(device)).square().mean().backward()
            optimizer.step()
            masks.step()

    def masked(device: torch.device) -> Any:
        model = net(device)

        def train(model: nn.Module, build: Callable[..., Any]) -> None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            steps(model, build(optimizer), optimizer, device)

        if METHODS[method] is LotteryTicket:
            ticket = LotteryTicket(model, train, **settings)
            ticket.run()
            return model, ticket.masks
        train(model, lambda optimizer: built.append(METHODS[method](model, optimizer, **settings)) or built[-1])
        return model, built[-1].masks, built[-1].density()

    built: list[Any] = []
    agree(masked)


# -------------------------------------------------------------------------------------------------------- layers, tools
def test_gates() -> None:
    def gated(device: torch.device) -> Any:
        gate = on(device, lambda: InformationGate(4))
        return gate(MATRIX(device)), gate.eval()(MATRIX(device))

    agree(gated)


def test_variational_bottleneck() -> None:
    def squeezed(device: torch.device) -> Any:
        model = on(device, lambda: nn.Sequential(nn.Linear(4, 6), InformationGate(6), nn.Linear(6, 2)))
        penalty = VIBNet(model)
        model(MATRIX(device))
        value = penalty.penalty()
        value.backward()
        return value, [p.grad for p in model.parameters()]

    agree(squeezed)


@pytest.mark.parametrize("settings", [{"noise": 0.5}, {"bins": 4}, {"bins": 4, "fixed": (-1.0, 1.0)}], ids=str)
def test_information_plane(settings: dict[str, Any]) -> None:
    agree(
        lambda device: InformationPlane(images(device), classes()(device), "layer1.*", **settings).record(
            net(device), 0
        )
    )
