"""CUDA without a card: forward passes on a fake `cuda` device, where torch refuses any mix of devices.

torch's fake tensors have a shape, a type and a device, and no values, so they run where no GPU is. A function that asks
for a value (`.item()`) gets the answer that its case names. Backward passes need a real context: `tests/gpu.sh`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from companion import flow, models, pruning, regularizers
from companion.features import REDUCERS, FeatureTap, extract
from companion.information import InformationGate, gaussian_mutual_information, infonce
from companion.information import kernels as information_kernels
from companion.similarity import ExactCKA, MinibatchCKA, cka, cka_interval, cka_matrix, hsic

CUDA = torch.device("cuda", 0)


class Answers(TorchDispatchMode):
    """What a value of a fake tensor is taken to be, where code asks for one."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return bool(self.value) if kind is torch.bool else float(self.value) if kind.is_floating_point else 1
        if func in (torch.ops.aten.allclose.default, torch.ops.aten.equal.default):
            return bool(self.value)
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((args[0].numel() if self.value else 0, args[0].ndim), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[1.0, 0.0], ids=["values are 1", "values are 0"])
def fake(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything made in the test lies on the fake GPU unless it names another device. A branch on a value is taken
    one way in one case and the other way in the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fake tensors warn where an address is looked at
        with FakeTensorMode(), Answers(request.param):
            yield


def on_gpu(make: Callable[[], Any]) -> Any:
    with CUDA:
        return make()


def images(n: int = 16) -> Tensor:
    return torch.randn(n, 3, 32, 32, device=CUDA)


def devices(found: Any) -> set[str]:
    if isinstance(found, Tensor):
        return {found.device.type}
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
    return {device for part in parts for device in devices(part)}


def agreed(call: Callable[[], Any], refusals: tuple[type[Exception], ...] = (ValueError,)) -> Any:
    """The result of `call`, or None where the answers lead it into a refusal of its own. A mix of devices is torch's
    own error and fails the test."""
    try:
        return call()
    except refusals as error:
        assert "device" not in str(error), error
        return None


def test_the_detector_detects(fake: None) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        _ = torch.ones(3, device=CUDA) + torch.ones(3)
    assert float(torch.ones(1, device=CUDA)) in (0.0, 1.0)


# ------------------------------------------------------------------------------------------------------------- measures
@pytest.mark.parametrize("name", REDUCERS)
def test_reducers(fake: None, name: str) -> None:
    assert REDUCERS[name](torch.randn(4, 8, 5, 5, device=CUDA)).device.type == "cuda"


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_similarity(fake: None, kernel: str, unbiased: bool) -> None:
    x, y = torch.randn(16, 10, device=CUDA), torch.randn(16, 6, device=CUDA)
    for call in (
        lambda: hsic(x, y, kernel=kernel, unbiased=unbiased),
        lambda: cka(x, y, kernel=kernel, unbiased=unbiased),
        lambda: cka_matrix([x, y, x], kernel=kernel, unbiased=unbiased),
    ):
        assert devices(agreed(call)) <= {"cuda"}


def test_intervals(fake: None) -> None:
    agreed(lambda: cka_interval(torch.randn(32, 10, device=CUDA), torch.randn(32, 6, device=CUDA)))


@pytest.mark.parametrize(("kind", "options"), [(MinibatchCKA, {}), (MinibatchCKA, {"kernel": "rbf"}), (ExactCKA, {})])
def test_streams(fake: None, kind: Callable[..., Any], options: dict[str, Any]) -> None:
    metric = on_gpu(lambda: kind(["0", "1"], **options))
    for n in (16, 5):
        metric.update({name: torch.randn(n, 8, device=CUDA) for name in ("0", "1")})
    assert devices(agreed(metric.compute)) <= {"cuda"}


@pytest.mark.parametrize("reduce", REDUCERS)
def test_taps(fake: None, reduce: str) -> None:
    model = on_gpu(models.resnet20)
    with FeatureTap(model, (nn.Conv2d, nn.Linear), reduce=reduce) as features:
        model(images())
    assert len(features) > 19 and devices(dict(features)) == {"cuda"}
    assert devices(extract(model, images(), "layer1.*", reduce=reduce)) == {"cuda"}


@pytest.mark.parametrize("across_stages", [True, False])
def test_flow(fake: None, across_stages: bool) -> None:
    model = on_gpu(models.resnet20)
    assert devices(vars(flow.trajectory(model, images(), across_stages=across_stages))) == {"cuda"}


def test_information(fake: None) -> None:
    x, y = torch.randn(16, 4, device=CUDA), torch.randn(16, 3, device=CUDA)
    covariance = torch.eye(7, device=CUDA)
    for call in (
        lambda: gaussian_mutual_information(covariance, 4),
        lambda: information_kernels.renyi(x, y).value,
        lambda: information_kernels.normalized_hsic(x, y),
    ):
        agreed(call, (ValueError, IndexError))  # "there is a constant column, and none is constant"
    assert infonce(x @ x.T).device.type == "cuda"  # the other bounds pick by a mask: no shape without values
    gate = on_gpu(lambda: InformationGate(4))
    assert gate(x).device.type == "cuda" and gate.eval()(x).device.type == "cuda"


# ------------------------------------------------------------------------------------------------------------ penalties
PENALTIES: dict[str, Callable[[nn.Module], Any]] = {
    "CKA-SR": lambda m: regularizers.CKASparsity(m, 0.1),
    "CKA-SR, all pairs, rbf": lambda m: regularizers.CKASparsity(m, 0.1, pairs="all", kernel="rbf", every=1),
    "AugCKA-SR": lambda m: regularizers.AugmentedCKASparsity(m, 0.1),
    "FFR, arXiv": lambda m: regularizers.FeatureFlow(m, 0.1, 0.1),
    "FFR, journal": lambda m: regularizers.FeatureFlow(m, 0.1, 0.1, variant="journal", across_stages=True),
    "kinetic energy": lambda m: regularizers.KineticEnergy(m, 0.1),
    "L1": lambda m: regularizers.L1(m, 0.1),
    "group lasso": lambda m: regularizers.GroupLasso(m, 0.1),
    "slimming": lambda m: regularizers.NetworkSlimming(m, 0.1),
    "orthogonality": lambda m: regularizers.Orthogonality(m, 0.1),
}


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties(fake: None, kind: str) -> None:
    model = on_gpu(models.resnet20).train()
    penalty = PENALTIES[kind](model)
    for _ in range(2):  # due, and not due
        model(images())
        assert agreed(penalty, (ValueError, RuntimeWarning)).device.type == "cuda"


# ---------------------------------------------------------------------------------------------------------------- masks
METHODS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], pruning.Masks]] = {
    "random": lambda m, o: pruning.RandomPruning(m, o, sparsity=0.9),
    "magnitude": lambda m, o: pruning.MagnitudePruning(m, o, sparsity=0.9, steps=4, every=1),
    "SET": lambda m, o: pruning.SET(m, o, sparsity=0.9, steps=4, every=1),
    "RigL": lambda m, o: pruning.RigL(m, o, sparsity=0.9, steps=4, every=1),
    "GraNet": lambda m, o: pruning.GraNet(m, o, sparsity=0.9, steps=4, every=1),
    "DST": lambda m, o: pruning.DST(m, o, alpha=0.1),
}


@pytest.mark.parametrize("method", METHODS)
def test_masks(fake: None, method: str) -> None:
    model = on_gpu(models.resnet20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = METHODS[method](model, optimizer)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        agreed(masks.step)
    assert devices(masks.masks) == {"cuda"} and devices(masks.state_dict()["masks"]) <= {"cuda", "cpu"}
