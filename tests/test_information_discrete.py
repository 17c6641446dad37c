"""Counts and bins: against exact sums, against each other, and what they refuse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Tensor

from companion.experiments.distributions import tasks
from companion.information import (
    bin_edges,
    bin_index,
    binned,
    discrete_entropy,
    discrete_mutual_information,
    entropy_of,
    fixed_edges,
    mutual_information,
    mutual_information_of,
)
from companion.information.discrete import COUNTED


def channel(error: float) -> Tensor:
    return torch.tensor([[1 - error, error], [error, 1 - error]], dtype=torch.float64) / 2


# ---------------------------------------------------------------------------------------------------------- exact sums
def test_exact_sums_of_a_binary_channel() -> None:
    for error in (0.0, 0.1, 0.5):
        h = sum(-p * math.log2(p) for p in (error, 1 - error) if p)
        assert mutual_information_of(channel(error), "bits").item() == pytest.approx(1 - h, abs=1e-12)
    assert entropy_of(torch.tensor([0.5, 0.25, 0.125, 0.125]), "bits").item() == pytest.approx(1.75)


def test_information_is_a_divergence_and_obeys_the_chain_rule() -> None:
    p = torch.rand(4, 6, dtype=torch.float64)
    p /= p.sum()
    product = p.sum(1, keepdim=True) * p.sum(0)
    assert mutual_information_of(p).item() == pytest.approx((p * (p / product).log()).sum().item(), abs=1e-12)
    conditional = sum(p[i].sum() * entropy_of(p[i] / p[i].sum()) for i in range(4))
    assert (entropy_of(p.sum(0)) - mutual_information_of(p)).item() == pytest.approx(float(conditional), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), x=st.integers(1, 5), y=st.integers(1, 5), z=st.integers(1, 5))
def test_data_processing_inequality(seed: int, x: int, y: int, z: int) -> None:
    """X → Y → Z: what Z knows of X it has from Y."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(x, y, generator=generator, dtype=torch.float64) ** 3
    xy /= xy.sum()
    step = torch.rand(y, z, generator=generator, dtype=torch.float64) ** 3
    step /= step.sum(1, keepdim=True)
    assert mutual_information_of(xy @ step) + 1e-12 >= 0
    assert mutual_information_of(xy @ step) <= mutual_information_of(xy) + 1e-12


def test_gradients() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: mutual_information_of(t.flatten().softmax(0).view(3, 4)), logits)
    certain = torch.eye(2, dtype=torch.float64).div(2).requires_grad_()
    mutual_information_of(certain).backward()
    assert certain.grad is not None and torch.isfinite(certain.grad.diagonal()).all()


# ---------------------------------------------------------------------------------------------------------- from counts
def test_plug_in_is_the_exact_sum_of_the_frequencies(device: torch.device) -> None:
    x = torch.randint(0, 4, (500,), device=device)
    y = (x + torch.randint(0, 2, (500,), device=device)) % 4
    table = torch.zeros(4, 4, dtype=torch.float64)
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        table[a, b] += 1 / 500
    found = discrete_mutual_information(x, y, correction="plug-in")
    assert float(found) == pytest.approx(mutual_information_of(table).item(), abs=1e-12)
    assert float(discrete_entropy(x, correction="plug-in")) == pytest.approx(entropy_of(table.sum(1)).item(), abs=1e-12)


def test_corrections_equal_their_formulas() -> None:
    counts = np.array([7, 4, 1, 3])
    x, n = torch.repeat_interleave(torch.arange(4), torch.tensor(counts)), counts.sum()
    p = counts / n
    plug_in = -(p * np.log(p)).sum()
    assert float(discrete_entropy(x, correction="miller-madow")) == pytest.approx(plug_in + 3 / (2 * n), abs=1e-12)
    g = [digamma(c) + 0.5 * (-1) ** c * (digamma((c + 1) / 2) - digamma(c / 2)) for c in counts]
    assert float(discrete_entropy(x)) == pytest.approx(math.log(n) - (counts * g).sum() / n, abs=1e-12)
    strength = (1 - (p**2).sum()) / ((n - 1) * ((1 / 4 - p) ** 2).sum())
    q = min(1, strength) / 4 + (1 - min(1, strength)) * p
    assert float(discrete_entropy(x, correction="shrinkage")) == pytest.approx(-(q * np.log(q)).sum(), abs=1e-12)


def test_a_row_is_a_symbol_and_names_do_not_matter() -> None:
    x = torch.randint(0, 3, (400, 2))
    y = x.sum(1) + torch.randint(0, 2, (400,))
    code = 10 * x[:, 0] - x[:, 1]
    for correction in COUNTED:
        one = float(discrete_mutual_information(x, y, correction=correction))
        assert float(discrete_mutual_information(code, -7 * y, correction=correction)) == pytest.approx(one, abs=1e-12)
        assert float(discrete_mutual_information(y, x, correction=correction)) == pytest.approx(one, abs=1e-12)


def test_corrections_take_bias_off() -> None:
    """Independent symbols, 300 examples of 20 × 20 pairs: the truth is 0."""
    task = tasks()["independent, 20 × 20 symbols"]
    means = {}
    for correction in COUNTED:
        found = [discrete_mutual_information(*task.sample(300, s), correction=correction) for s in range(40)]
        means[correction] = float(np.mean([float(f) for f in found]))
    assert means["plug-in"] > 0.4  # (19 · 19) / (2 · 300) = 0.6 to first order
    for correction in COUNTED[1:]:
        assert abs(means[correction]) < 0.6 * means["plug-in"]


def test_standard_error_is_the_spread() -> None:
    task = tasks()["channel of 10 symbols, error 0.5"]
    found = [discrete_mutual_information(*task.sample(1500, s), correction="plug-in") for s in range(80)]
    spread = np.std([float(f) for f in found], ddof=1)
    assert float(found[0].error or 0) == pytest.approx(spread, rel=0.3)
    x = torch.randint(0, 4, (80, 600)) ** 2 // 3
    found = [discrete_entropy(row) for row in x]
    assert float(found[0].error or 0) == pytest.approx(np.std([float(f) for f in found], ddof=1), rel=0.3)


# ---------------------------------------------------------------------------------------------------------------- bins
def test_quantile_bins_have_equal_mass(device: torch.device) -> None:
    x = torch.randn(1000, 2, device=device).exp()
    codes = bin_index(x, bin_edges(x, 10))
    for column in codes.T:
        counts = torch.bincount(column)
        assert len(counts) == 10 and counts.min() >= 99 and counts.max() <= 101


def test_zeros_of_a_relu_are_a_bin_of_their_own() -> None:
    x = torch.randn(2000, 1).relu()
    (edges,) = bin_edges(x, 10)
    codes = bin_index(x, [edges])[:, 0]
    assert len(set(codes[x[:, 0] == 0].tolist())) == 1
    zero = codes[x[:, 0] == 0][0]
    assert not (codes[x[:, 0] > 0] == zero).any()
    active = torch.bincount(codes[x[:, 0] > 0])
    assert (active > 0).sum() == 10 and active[active > 0].min() > 0.8 * active.max()


def test_an_atom_holds_more_than_one_example_in_bins() -> None:
    """Of eight examples in four bins two alike are none, three are one."""
    two, three = torch.tensor([[0.0, 0, 1, 2, 3, 4, 5, 6], [0.0, 0, 0, 1, 2, 3, 4, 5]], dtype=torch.float64)
    assert bin_edges(two[:, None], 4)[0].tolist() == [1, 3, 5]
    above = np.nextafter(0.0, 1.0)
    assert bin_edges(three[:, None], 4)[0].tolist() == [0, above, 2, 3, 4]


def test_fixed_bins_overflow_on_relu_layers() -> None:
    """History: between −1 and 1 all that is larger is one bin, whatever it says."""
    x = 5 * torch.randn(1000, 1).relu()
    fixed, learned = fixed_edges(1, 30), bin_edges(x, 30)
    kept = [float(discrete_entropy(bin_index(x, edges))) for edges in (fixed, learned)]
    assert kept[0] < 1.5 < 2 < kept[1]
    assert bin_index(torch.tensor([[-9.0], [0.99], [9.0]]), fixed).flatten().tolist() == [0, 29, 29]


def test_constant_columns_have_one_bin() -> None:
    x = torch.cat([torch.zeros(50, 1), torch.randn(50, 1)], 1)
    assert set(bin_index(x, bin_edges(x, 5))[:, 0].tolist()) == {1}
    for value in (-3.0, 1e3):  # as a dead unit is that a network computed in batches of different sizes
        still = value * (1 + 2.0**-23 * torch.randint(-1, 2, (50, 1)))
        assert len(still.unique()) == 3
        assert set(bin_index(still, bin_edges(still, 5))[:, 0].tolist()) == {1}


def test_binning_is_near_the_truth_in_one_dimension() -> None:
    task = tasks()["normal 1×1, ρ = 0.75"]
    found = mutual_information(*task.sample(5000, 0), estimator="binning")
    assert float(found) == pytest.approx(task.truth, abs=0.07) and "10 bins" in found.assumes
    bent = binned(*tasks()["exponential of normal 1×1, ρ = 0.75"].sample(5000, 0))
    plain = binned(*task.sample(5000, 0))
    assert float(bent) == pytest.approx(float(plain), abs=1e-9)  # quantiles see the order only
    x, y = task.sample(300, 0)
    codes = [bin_index(z, bin_edges(z, 10)) for z in (x, y)]
    for correction in ("plug-in", "miller-madow", "grassberger", "shrinkage"):
        expected = float(discrete_mutual_information(*codes, correction=correction))
        assert float(binned(x, y, correction=correction)) == pytest.approx(expected, abs=1e-12)


def test_symbols_that_are_nearly_all_different_warn() -> None:
    """500 images of 20 pixels and shuffled labels: 2.31 nats where the truth is 0 and ln 10 = 2.30."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (500, 20), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, 10, (500,), generator=random)
    for correction in COUNTED:
        with pytest.warns(UserWarning, match="500 examples show 500 pairs of symbols"):
            mutual_information(pixels, labels, correction=correction)
    with pytest.warns(UserWarning, match="500 examples show 500 symbols"):
        discrete_entropy(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mutual_information(pixels[:, 0] // 32, labels)


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy_of(torch.tensor([0.5, 0.6])), "sum to 1.1"),
        (lambda: entropy_of(torch.tensor([1.5, -0.5])), "probabilities"),
        (lambda: mutual_information_of(torch.ones(2, 2, 1) / 4), r"must be \(x, y\)"),
        (lambda: discrete_entropy(torch.randn(100)), "looks continuous"),
        (lambda: discrete_entropy(torch.tensor([math.nan])), "NaN"),
        (lambda: discrete_entropy(torch.tensor([])), "one symbol"),
        (lambda: discrete_entropy(torch.arange(3), correction="magic"), "'magic'"),
        (lambda: discrete_mutual_information(torch.arange(3), torch.arange(4)), "3 rows and y 4"),
        (lambda: bin_edges(torch.randn(9, 1), 1), "bins=1"),
        (lambda: bin_index(torch.randn(9, 2), [torch.zeros(1)]), "1 lists of edges for 2"),
        (lambda: bin_index(torch.randn(9, 1), [torch.tensor([1.0, 0.0])]), "edges of column 0 must rise"),
        (lambda: bin_index(torch.randn(9, 1), [torch.tensor([math.nan])]), "edges of column 0 must rise, without NaN"),
        (lambda: fixed_edges(1, 5, 1, 0), "low must be below high"),
        (lambda: fixed_edges(1, 4, 0, math.inf), "high=inf: low must be below high, and both finite"),
        (lambda: binned(torch.arange(9) % 2, torch.arange(9) % 3, bins=0), "bins=0 must be at least 2"),
    ],
)
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:.*nearly each its own")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_any_symbols_give_a_finite_entropy(symbols: list[int]) -> None:
    for correction in COUNTED:
        value = float(discrete_entropy(torch.tensor(symbols), correction=correction))
        assert math.isfinite(value)
        assert correction != "plug-in" or -1e-9 <= value <= math.log(len(set(symbols))) + 1e-9


def test_binning_takes_one_column_of_integers_for_classes() -> None:
    """Whatever the classes are called: quantiles of their names would say nothing of them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 40, (4000,), generator=generator)
    x = (y % 4).float()[:, None] + 0.01 * torch.randn(4000, 1, generator=generator)
    names = torch.randperm(40, generator=generator)
    found = [
        float(mutual_information(x, labels, "binning", bins=4).value) for labels in (y, names[y], names[y][:, None])
    ]
    assert found == pytest.approx([math.log(4)] * 3, abs=0.1)  # bins of equal mass cut the groups a little
    assert found[1:] == pytest.approx(found[:1] * 2)
    assert float(mutual_information(y, names[y], "binning").value) == pytest.approx(math.log(40), abs=0.1)
    counts = torch.randint(0, 1000, (500, 3), generator=generator)  # several columns are numbers
    assert mutual_information(counts, counts[:, :1].float(), "binning", bins=4).value > 1
