"""A device without float64, such as Apple's MPS: what needs it is computed on the CPU, and nothing else moves.

The device with values of `fake_cuda` stands for it: it is called `cuda` here and refuses float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, FakeCuda, OnCuda, tensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from companion import _numbers, flow, models
from companion.information import bin_edges, discrete_entropy, gaussian_mutual_information, mutual_information
from companion.regularizers import PENALTIES
from companion.similarity import ExactCKA, MinibatchCKA, cka, cka_interval, cka_matrix, hsic


class Refuses(TorchFunctionMode):
    """No float64 on the fake device, as torch says it on a Mac."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, OnCuda) and x.dtype == torch.float64 for x in tensors(out)):
            raise TypeError("the device has no float64")
        return out


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_numbers, "WITHOUT_FLOAT64", frozenset({"cuda"}))
    with FakeCuda(), Refuses():
        yield


def devices(found: Any) -> set[str]:
    return {x.device.type for x in tensors(found)}


def net() -> nn.Module:
    with CUDA:
        return models.digits_net()


def rows(width: int = 6) -> Tensor:
    return torch.randn(32, width, device=CUDA)


def test_the_detector_detects(narrow: None) -> None:
    with pytest.raises(TypeError, match="no float64"):
        rows().double()
    with pytest.raises(TypeError, match="no float64"):
        rows().to("cpu", torch.float64).to(CUDA)


def test_a_mac_is_such_a_device() -> None:
    assert _numbers.float64_device(torch.device("mps")).type == "cpu"
    assert _numbers.float64_device(CUDA) == CUDA
    x = torch.randn(3)
    assert _numbers.float64(x).dtype == torch.float64 and torch.equal(_numbers.float64(x).float(), x)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_similarity(narrow: None, kernel: str) -> None:
    x, y = rows(), rows(4)
    for call in (
        lambda: hsic(x, y, kernel=kernel),
        lambda: cka(x, y, kernel=kernel, unbiased=False),
        lambda: cka_matrix([x, y], kernel=kernel),
    ):
        assert devices(call()) <= {"cpu"}
    assert cka_interval(x, y, kernel=kernel).low < 1
    assert cka_interval(x, y, kernel=kernel, method="subsample", subsamples=2).low < 1


@pytest.mark.parametrize("kind", [MinibatchCKA, ExactCKA])
def test_streams(narrow: None, kind: Callable[..., Any]) -> None:
    metric = kind(["0", "1"]).to(CUDA)
    for n in (16, 3):
        metric.update({name: torch.randn(n, 8, device=CUDA) for name in ("0", "1")})
    assert devices(metric.compute()) <= {"cpu"}


def test_information(narrow: None) -> None:
    x, y, labels = rows(4), rows(3), torch.zeros(32, dtype=torch.int64, device=CUDA)
    for call in (
        lambda: gaussian_mutual_information(torch.eye(7, device=CUDA), 4),
        lambda: mutual_information(x, y, estimator="gaussian"),
        lambda: mutual_information(x, y, estimator="renyi"),
        lambda: bin_edges(x),
        lambda: discrete_entropy(labels),
    ):
        assert call() is not None


@pytest.mark.parametrize("kind", ["cka_sr", "aug_cka_sr", "feature_flow", "hsic_bottleneck"])
def test_penalties(narrow: None, kind: str) -> None:
    """The loss is on the model's device, and so is what is added to it."""
    model = net().train()
    penalty = PENALTIES[kind](model, 0.1)
    model(torch.randn(8, 1, 8, 8, device=CUDA))
    value = penalty()
    assert (value.device.type, value.dtype) == ("cuda", torch.float32)


def test_flow(narrow: None) -> None:
    path = flow.trajectory(net(), torch.randn(4, 1, 8, 8, device=CUDA))
    assert devices(vars(path)) == {"cuda"}
