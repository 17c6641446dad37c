"""What every registered estimator of mutual information promises; a new one is tested here by its registration."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.information import estimators, mutual_information
from companion.information.estimates import ESTIMATORS

OPTIONS: dict[str, dict[str, Any]] = {key: {"steps": 300, "batch": 64} for key in ("infonce", "nwj", "dv")}
every = pytest.mark.parametrize("name", ESTIMATORS)


def pair(name: str, related: bool, n: int = 1200) -> tuple[Tensor, Tensor, float]:
    """Examples of the kind that the estimator takes, and their information in nats: a Gaussian pair with ρ = .9, or
    three classes, the second the same as the first in 80 of 100 examples."""
    generator = torch.Generator().manual_seed(0)
    kinds = estimators()[name]
    if kinds["y"] == "discrete":
        x = torch.randint(0, 3, (n,), generator=generator)
        copied = torch.rand(n, generator=generator) < 0.8
        y = torch.where(copied, x, torch.randint(0, 3, (n,), generator=generator))
        y = y if related else torch.randint(0, 3, (n,), generator=generator)
        table = 0.8 * torch.eye(3) / 3 + 0.2 * torch.ones(3, 3) / 9
        truth = float((table * (table * 9).log()).sum()) if related else 0.0
        return (x if kinds["x"] == "discrete" else x + 0.1 * torch.rand(n, generator=generator)), y, truth
    rho = 0.9 if related else 0.0
    x, e = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * e, -0.5 * math.log(1 - rho**2)


@every
def test_independent_variables_share_nothing(name: str) -> None:
    x, y, _ = pair(name, related=False)
    found = mutual_information(x, y, name, **OPTIONS.get(name, {}))
    assert abs(float(found)) < (0.2 if name == "renyi" else 0.1) and found.examples > 0 and found.unit == "nats"


@pytest.mark.slow
@every
def test_a_known_pair_in_nats_and_bits(name: str) -> None:
    x, y, truth = pair(name, related=True)
    found = mutual_information(x, y, name, **OPTIONS.get(name, {}))
    assert found.bound in ("upper", "lower", "neither")
    if name != "renyi":  # not Shannon's
        assert float(found) == pytest.approx(truth, abs=0.15)
        assert found.bound == estimators()[name]["bound"]
    bits = mutual_information(x, y, name, unit="bits", **OPTIONS.get(name, {}))
    assert float(bits) == pytest.approx(float(found) / math.log(2))


@every
def test_x_and_y_change_places(name: str) -> None:
    kinds = estimators()[name]
    if kinds["x"] != kinds["y"] or name in OPTIONS:  # a critic is another one
        pytest.skip("x and y are not the same to this estimator")
    x, y, _ = pair(name, related=True, n=300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = mutual_information(x, y, name), mutual_information(y, x, name)
    assert float(one) == pytest.approx(float(other), abs=1e-9)


@every
def test_order_of_examples_and_arrays(name: str) -> None:
    x, y, _ = pair(name, related=True, n=300)
    options = {"steps": 50, "batch": 32} if name in OPTIONS else {}
    value = float(mutual_information(x, y, name, **options))
    assert float(mutual_information(x.numpy(), y.numpy(), name, **options)) == pytest.approx(value, abs=1e-9)
    if name not in OPTIONS:  # a split in other parts
        order = torch.randperm(300)
        assert float(mutual_information(x[order], y[order], name)) == pytest.approx(value, abs=1e-9)


@every
def test_bad_input_is_refused_in_one_sentence(name: str) -> None:
    x, y, _ = pair(name, related=True, n=200)
    for bad in ((x, y[:-1]), (x[:0], y[:0]), (x.double() * math.nan, y), (np.full(200, None), y)):
        with pytest.raises(ValueError, match=r"rows|at least one|symbol|NaN|numbers") as refusal:
            mutual_information(*bad, name)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="unit='dits' is unknown"):
        mutual_information(x, y, name, unit="dits")


def test_names_come_from_where_estimators_are_defined() -> None:
    assert list(estimators()) == list(ESTIMATORS) and len(ESTIMATORS) == 11
    titles = [facts["title"] for facts in estimators().values()]
    assert len(set(titles)) == len(titles)
    with pytest.raises(ValueError, match=r"estimator='kgs' is unknown.*did you mean 'ksg'"):
        mutual_information(torch.randn(9), torch.randn(9), "kgs")


def test_bins_that_are_never_filled_are_said() -> None:
    x, y = torch.randn(2, 500, 12)
    with pytest.warns(UserWarning, match="500 examples show 500 pairs of bins"):
        mutual_information(x, y, "binning")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mutual_information(x[:, :1], y[:, :1], "binning")


@pytest.mark.parametrize("name", ["gaussian", "renyi", "mixed", "dv"])
def test_classes_that_are_taken_for_numbers_are_said(name: str) -> None:
    x, labels, _ = pair("ross", related=True, n=200)
    options = {"steps": 1, "batch": 16} if name in OPTIONS else {}
    with pytest.warns(UserWarning, match=f"y is one column of integers or classes, and '{name}' goes by how far"):
        mutual_information(x, labels, name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mutual_information(x, labels.double() + 0.01 * torch.rand(200), name, **options)


@settings(max_examples=30)
@given(
    name=st.sampled_from(["binning", "gaussian", "ksg", "ksg2", "mixed", "ross", "discrete"]),
    exponents=st.lists(st.floats(-6, 6), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_units_order_and_names_change_nothing(name: str, exponents: list[float], seed: int) -> None:
    """The unit of a column, the order of the examples and of the columns, and what classes are called."""
    generator = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, 120, 2, generator=generator, dtype=torch.float64)
    y, kinds = x + e, estimators()[name]
    classes, order = (y[:, 0] > 0).long() + (y[:, 1] > 1).long(), torch.randperm(120, generator=generator)
    factors = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    if kinds["y"] == "discrete":
        y, other = classes, torch.tensor([7, -1, 30])[classes]
    else:
        y, other = y, (y * factors).flip(1)
    x = (x[:, 0] > 0).long() if kinds["x"] == "discrete" else x
    changed = 5 - 3 * x if kinds["x"] == "discrete" else x.flip(1) * factors
    value = float(mutual_information(x, y, name))
    assert float(mutual_information(changed[order], other[order], name)) == pytest.approx(value, abs=1e-8)
