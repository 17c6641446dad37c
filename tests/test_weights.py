"""Weights that are not there yet, and weights that are complex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from companion.pruning import DST, MagnitudePruning, Masks, cost, couple, filter_norms, prune_filters, zero_filters
from companion.regularizers import L1, GroupLasso, NetworkSlimming

X = torch.randn(2, 4)


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(100))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: MagnitudePruning(model, None, 0.5),
        lambda model: MagnitudePruning(model, None, 0.5, layers=nn.Linear),
        lambda model: Masks(model, None, layers="0", dense="1"),
        lambda model: DST(model, torch.optim.SGD(model.parameters(), 0.1), alpha=0.1),
        lambda model: L1(model, 0.1),
        lambda model: GroupLasso(model, 0.1, layers=nn.Linear),
        lambda model: cost(model, X),
        lambda model: couple(model, X),
        lambda model: filter_norms(model),
        lambda model: prune_filters(model, X, norm="l2", macs=0.8),
        lambda model: zero_filters(model, {"1": [0]}),
    ],
)
def test_lazy_layers_are_refused_by_name(make: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"^layer '1' is lazy: run the model once first$"):
        make(lazy())


def test_a_lazy_batch_norm_is_not_passed_over() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="layer '2' is lazy"):
        NetworkSlimming(model, 0.1)


def test_layers_beside_a_lazy_one_and_layers_that_have_run_are_masked() -> None:
    model = lazy()
    assert list(MagnitudePruning(model, None, 0.5, layers="0").report().index) == ["0"]
    assert L1(model, 1.0, layers="0")().item() > 0
    model(X)
    assert list(MagnitudePruning(model, None, 0.5, layers=nn.Linear).report().index) == ["0", "1"]


def test_penalties_of_complex_weights_are_those_of_their_absolute_values() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.complex64))
    model[0].weight.data = torch.tensor([[0.0, 0.0], [3j, 2 + 2j]])
    assert L1(model, 1.0)().item() == pytest.approx(3 + 8**0.5)
    lasso = GroupLasso(model, 1.0)()
    assert lasso.dtype == torch.float32 and lasso.item() == pytest.approx(2**0.5 * 17**0.5)
    lasso.backward()
    assert torch.allclose(model[0].weight.grad, (2 / 17) ** 0.5 * model[0].weight.detach())
