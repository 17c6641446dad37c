"""The information plane: exact cases, what is written on its figure, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn

from companion.information import InformationPlane, kolchinsky_tracey


def data(n: int = 120) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6)
    return x, (x[:, 0] > 0).long()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


class Step(nn.Module):
    """The sign of the first feature: one bit."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1].sign()


def test_a_layer_of_one_bit(device: torch.device) -> None:
    x, y = data()
    x, y = x.to(device), y.to(device)
    h = -sum(p * math.log2(p) for p in (float((y == c).double().mean()) for c in (0, 1)))
    binned = InformationPlane(x, y, Step, bins=5).record(nn.Sequential(Step()), 0)["0"]
    noisy = InformationPlane(x, y, Step, noise=0.01).record(nn.Sequential(Step()), 0)["0"]
    for about_x, about_y in (binned, noisy):
        assert float(about_x) == pytest.approx(h, abs=1e-6) and float(about_y) == pytest.approx(h, abs=1e-6)


def test_records_through_training_and_leaves_the_model_alone() -> None:
    x, y = data()
    model = net().train()
    plane = InformationPlane(x, y, nn.Linear, noise=0.5, unit="nats")
    for epoch in range(3):
        found = plane.record(model, epoch)
        with torch.no_grad():
            model[0].weight.mul_(1.5)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    table = plane.table()
    assert table["epoch"].tolist() == [0, 0, 1, 1, 2, 2] and table["layer"].tolist() == ["0", "2"] * 3
    assert (table["I(T;Y)"] <= table["I(X;T)"] + 1e-9).all()
    assert float(found["2"][0]) == pytest.approx(table["I(X;T)"].iloc[-1])
    values = table[table["layer"] == "0"]["I(X;T)"]
    assert values.is_monotonic_increasing  # larger weights drown the same noise


def test_the_measurement_stands_on_the_figure() -> None:
    x, y = data()
    plane = InformationPlane(x, y, nn.ReLU, bins=3, unit="bits")
    plane.record(net(), 0)
    figure, ax = plt.subplots()
    plane.draw(ax, "digits")
    titles = (ax.get_title(place) for place in ("left", "center", "right"))  # the book's style moves it
    words = " ".join([*titles, *(text.get_text() for text in ax.texts)])
    assert "3 bins a unit, learned from the data" in words and "infinite" in words
    assert "120 examples it is at most 6.9 bits" in words
    assert ax.get_xlabel() == "I(X;T) in bits"
    plt.close(figure)
    noisy = InformationPlane(x, y, nn.ReLU, noise=0.1)
    assert noisy.model == "T = layer + N(0, 0.1²), upper bound"
    assert "fixed from -1 to 1" in InformationPlane(x, y, nn.ReLU, bins=30, fixed=(-1, 1)).model


def test_warns_when_all_examples_are_told_apart() -> None:
    x, y = data()
    with pytest.warns(UserWarning, match="tell all 120 examples apart"):
        InformationPlane(x, y, nn.Linear, noise=1e-4).record(net(), 0)


@pytest.mark.parametrize("given", [lambda y: y.numpy(), lambda y: y.tolist()])
def test_labels_need_not_be_a_tensor(given: Callable[[Tensor], Any]) -> None:
    x, y = data()
    planes = [InformationPlane(x, labels, nn.Linear, bins=3) for labels in (y, given(y))]
    one, two = (plane.of(x[:, :1])[1] for plane in planes)
    assert float(one) == float(two) > 0


def test_noise_of_a_plane_is_that_of_the_bound() -> None:
    x, y = data()
    t = torch.randn(120, 3)
    about_x, _ = InformationPlane(x, y, nn.Linear, noise=0.7, bound="lower", unit="nats").of(t)
    assert float(about_x) == float(kolchinsky_tracey(t, noise=0.7, bound="lower"))


def test_refuses() -> None:
    x, y = data()
    for options in ({}, {"noise": 1.0, "bins": 3}):
        with pytest.raises(ValueError, match="infinite"):
            InformationPlane(x, y, nn.Linear, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goes with bins"):
        InformationPlane(x, y, nn.Linear, noise=1.0, fixed=(-1, 1))
    with pytest.raises(ValueError, match=r"high=inf.*both finite"):
        InformationPlane(x, y, nn.Linear, bins=3, fixed=(0, math.inf))
    with pytest.raises(ValueError, match="bins=1 must be at least 2"):
        InformationPlane(x, y, nn.Linear, bins=1)
    with pytest.raises(ValueError, match="y is a list without numbers"):
        InformationPlane(x, ["word"] * 120, nn.Linear, noise=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="120 rows and y 119"):
        InformationPlane(x, y[:-1], nn.Linear, noise=1.0)
    with pytest.raises(ValueError, match="bound='both' is unknown"):
        InformationPlane(x, y, nn.Linear, noise=1.0, bound="both")
    with pytest.raises(ValueError, match="unit='bans'"):
        InformationPlane(x, y, nn.Linear, noise=1.0, unit="bans")
    with pytest.raises(ValueError, match="nothing recorded"):
        InformationPlane(x, y, nn.Linear, noise=1.0).draw(plt.gca())
    plt.close()
