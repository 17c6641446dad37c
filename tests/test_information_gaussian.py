"""Gaussian information in closed form, from data, and its bottleneck."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from companion.information import (
    GaussianBottleneck,
    canonical_correlations,
    covariance,
    gaussian_entropy,
    gaussian_estimate,
    gaussian_mutual_information,
)


def random_covariance(d: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    a = torch.randn(d, 2 * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a @ a.T / (2 * d)).to(device)


def pair(rho: float) -> Tensor:
    return torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- closed forms
def test_entropy_equals_scipy_and_the_determinant(device: torch.device) -> None:
    for d in (1, 3, 10):
        sigma = random_covariance(d, d, device)
        expected = stats.multivariate_normal(cov=sigma.cpu().numpy()).entropy()
        assert gaussian_entropy(sigma).item() == pytest.approx(expected, abs=1e-10)
        assert gaussian_entropy(sigma, "bits").item() == pytest.approx(expected / math.log(2), abs=1e-10)


def test_mutual_information_equals_the_determinants(device: torch.device) -> None:
    for p, q in ((1, 1), (2, 5), (6, 3)):
        sigma = random_covariance(p + q, p, device)
        by_entropy = gaussian_entropy(sigma[:p, :p]) + gaussian_entropy(sigma[p:, p:]) - gaussian_entropy(sigma)
        assert gaussian_mutual_information(sigma, p).item() == pytest.approx(by_entropy.item(), abs=1e-10)
    assert gaussian_mutual_information(pair(0.8), 1).item() == pytest.approx(-0.5 * math.log(1 - 0.64), abs=1e-12)
    assert gaussian_mutual_information(pair(0.6), 1, "bits").item() == pytest.approx(-0.5 * math.log2(0.64), abs=1e-12)


def test_tiny_information_keeps_its_digits() -> None:
    assert gaussian_mutual_information(pair(1e-7), 1).item() == pytest.approx(5e-15, rel=1e-6)


def test_batches_are_as_one_by_one() -> None:
    sigmas = torch.stack([random_covariance(5, seed) for seed in range(6)]).view(2, 3, 5, 5)
    for function in (gaussian_entropy, lambda c: gaussian_mutual_information(c, 2)):
        together = function(sigmas)
        assert together.shape == (2, 3)
        assert together[1, 2].item() == pytest.approx(function(sigmas[1, 2]).item(), abs=1e-12)


def test_canonical_correlations_find_what_was_hidden() -> None:
    rho = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    sigma = torch.eye(7, dtype=torch.float64)
    sigma[:3, 3:6], sigma[3:6, :3] = torch.diag(rho), torch.diag(rho)
    # Any invertible map of either side leaves them and the information as they are.
    maps = torch.block_diag(random_covariance(3, 1) + 1, random_covariance(4, 2) + 1)
    torch.testing.assert_close(canonical_correlations(maps @ sigma @ maps.T, 3), rho)
    expected = gaussian_mutual_information(sigma, 3)
    torch.testing.assert_close(gaussian_mutual_information(maps @ sigma @ maps.T, 3), expected)


def test_data_processing_inequality() -> None:
    """A linear map of X plus noise can only lose information about Y."""
    sigma = random_covariance(6, 3)
    for seed in range(10):
        a = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        top = torch.cat([a @ sigma[:3, :3] @ a.T + 0.1 * torch.eye(2), a @ sigma[:3, 3:]], 1)
        bottom = torch.cat([sigma[3:, :3] @ a.T, sigma[3:, 3:]], 1)
        assert gaussian_mutual_information(torch.cat([top, bottom]), 2) < gaussian_mutual_information(sigma, 3)


def test_gradients() -> None:
    def symmetric(a: Tensor) -> Tensor:
        return a @ a.mT + torch.eye(a.shape[-1])

    a = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: gaussian_entropy(symmetric(a)), a)
    assert torch.autograd.gradcheck(lambda a: gaussian_mutual_information(symmetric(a), 2), a)
    x, y = torch.randn(2, 12, 2, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(lambda x: gaussian_estimate(x, y + x).value, x.requires_grad_())


# ------------------------------------------------------------------------------------------------------------ from data
@pytest.mark.slow
def test_bias_is_taken_off_exactly() -> None:
    """The mean over many small samples is the truth, where the plug-in value is several deviations above it."""
    p, n, draws = 3, 15, 2000
    sigma = random_covariance(2 * p, 5)
    factor = torch.linalg.cholesky(sigma)
    truth = gaussian_mutual_information(sigma, p).item()
    z = torch.randn(draws, n, 2 * p, dtype=torch.float64) @ factor.T
    corrected = torch.stack([gaussian_estimate(s[:, :p], s[:, p:]).value for s in z])
    plug_in = torch.stack([gaussian_mutual_information(torch.cov(s.T), p) for s in z[:200]])
    error = corrected.std().item() / math.sqrt(draws)
    assert abs(corrected.mean().item() - truth) < 4 * error
    assert plug_in.mean().item() - truth > 0.3


def test_standard_error_is_the_spread() -> None:
    n, rho = 400, 0.7
    factor = torch.linalg.cholesky(pair(rho))
    found = [gaussian_estimate(*(torch.randn(n, 2, dtype=torch.float64) @ factor.T).split(1, 1)) for _ in range(300)]
    spread = np.std([float(f) for f in found])
    assert float(found[0].error or 0) == pytest.approx(spread, rel=0.2)
    low, high = found[0].interval()
    assert low < float(found[0]) < high


def test_shrinkage_rescues_few_examples() -> None:
    d, n = 40, 30
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)
    with pytest.raises(ValueError, match="shrinkage='analytic'"):
        gaussian_estimate(x, y)
    shrunk = gaussian_estimate(x, y, shrinkage="analytic")
    assert 0 <= float(shrunk) < 2 and shrunk.error is None
    assert gaussian_estimate(x, y, shrinkage=1.0).value.item() == pytest.approx(0, abs=1e-12)


def test_analytic_shrinkage_equals_its_definition() -> None:
    x = torch.randn(20, 4, dtype=torch.float64) @ random_covariance(4)
    z = (x - x.mean(0)) / x.std(0)
    w = z[:, :, None] * z[:, None, :]
    variance = 20 / 19**3 * (w - w.mean(0)).square().sum(0)
    off = ~torch.eye(4, dtype=torch.bool)
    strength = min(1, float(variance[off].sum() / torch.corrcoef(x.T)[off].square().sum()))
    expected = torch.where(off, (1 - strength) * torch.cov(x.T), torch.cov(x.T))
    torch.testing.assert_close(covariance(x, "analytic"), expected)


def test_information_does_not_depend_on_units() -> None:
    x, y = torch.randn(50, 3), torch.randn(50, 2)
    y[:, 0] += x[:, 0]
    for shrinkage in (0.0, "analytic"):
        one = gaussian_estimate(x, y, shrinkage=shrinkage).value
        torch.testing.assert_close(
            gaussian_estimate(1e3 * x - 7, 1e-2 * y, shrinkage=shrinkage).value, one, rtol=1e-4, atol=0
        )


# ----------------------------------------------------------------------------------------------------------- bottleneck
def test_bottleneck_curve_is_what_its_projection_gives() -> None:
    sigma = random_covariance(7, 4)
    bottleneck = GaussianBottleneck.of(sigma, 4)
    for beta in (1.01, 3.0, 20.0, 1e4):
        a = bottleneck.projection(beta)
        a = a[a.abs().sum(1) > 0]
        expected = [0.0, 0.0]
        if len(a):
            own = a @ sigma[:4, :4] @ a.T + torch.eye(len(a))
            to_x = gaussian_entropy(own) - gaussian_entropy(torch.eye(len(a)))
            cross = a @ sigma[:4, 4:]
            joint = torch.cat([torch.cat([own, cross], 1), torch.cat([cross.T, sigma[4:, 4:]], 1)])
            expected = [to_x.item(), gaussian_mutual_information(joint, len(a)).item()]
        found = bottleneck.curve(beta)
        assert [v.item() for v in found] == pytest.approx(expected, abs=1e-9)
        bits = bottleneck.curve(beta, "bits")
        assert [v.item() * math.log(2) for v in bits] == pytest.approx(expected, abs=1e-9)


def test_directions_open_at_their_critical_beta() -> None:
    sigma = random_covariance(6, 8)
    bottleneck = GaussianBottleneck.of(sigma, 3)
    rho = canonical_correlations(sigma, 3)
    torch.testing.assert_close(bottleneck.critical, 1 / rho.square())
    for i, critical in enumerate(bottleneck.critical.tolist()):
        for factor, rank in ((0.999, i), (1.001, i + 1)):
            assert torch.linalg.matrix_rank(bottleneck.projection(factor * critical), tol=1e-9) == rank
    nothing = bottleneck.curve(0.99 * float(bottleneck.critical[0]))
    assert [float(v) for v in nothing] == [0, 0]


def test_bottleneck_curve_is_optimal_concave_and_ends_at_all_there_is() -> None:
    sigma = random_covariance(6, 9)
    bottleneck = GaussianBottleneck.of(sigma, 3)
    betas = torch.logspace(0, 6, 400)
    x, y = bottleneck.curve(betas)
    truth = gaussian_mutual_information(sigma, 3)
    assert y[-1].item() == pytest.approx(truth.item(), abs=1e-5) and (y <= truth).all()
    open_ = x > 1e-6
    slope = y[open_].diff() / x[open_].diff()
    assert (slope.diff() < 1e-9).all()
    # On the curve dI(T;Y)/dI(X;T) = 1/β, and no random T of the same form lies above it.
    torch.testing.assert_close(slope, 1 / betas[open_][1:].double(), rtol=0.05, atol=0)
    for seed in range(50):
        a = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        own = a @ sigma[:3, :3] @ a.T + torch.eye(3)
        cross = a @ sigma[:3, 3:]
        joint = torch.cat([torch.cat([own, cross], 1), torch.cat([cross.T, sigma[3:, 3:]], 1)])
        to_x, to_y = 0.5 * torch.logdet(own), gaussian_mutual_information(joint, 3)
        for beta in (2.0, 5.0, 50.0):
            best = bottleneck.curve(beta)
            assert to_x - beta * to_y >= best[0] - beta * best[1] - 1e-9


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_entropy(torch.ones(2, 3)), "must be"),
        (lambda: gaussian_entropy(torch.ones(2, 2)), "not positive definite"),
        (lambda: gaussian_entropy(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        (lambda: gaussian_entropy(torch.full((2, 2), math.nan)), "NaN"),
        (lambda: gaussian_entropy(torch.eye(2), "bytes"), "unit='bytes'"),
        (lambda: gaussian_mutual_information(torch.eye(3), 3), "split=3"),
        (lambda: gaussian_mutual_information(torch.eye(3), 1.0), r"split=1\.0 must be a whole number"),
        (lambda: canonical_correlations(torch.eye(3), 0), "split=0"),
        (lambda: covariance(torch.ones(5, 2)), "constant columns"),
        (lambda: covariance(torch.randn(2, 2)), "at least 3"),
        (lambda: covariance(torch.randn(9, 2), 1.5), r"\[0, 1\]"),
        (lambda: covariance(torch.randn(9, 2), "much"), "'analytic'"),
        (lambda: gaussian_estimate(torch.randn(9, 2), torch.randn(8, 2)), "9 rows and y 8"),
        (lambda: gaussian_estimate(torch.randn(9), torch.zeros(9)), "y has 1 constant"),
        (lambda: GaussianBottleneck.of(torch.eye(3), 1).curve(-1.0), "positive"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_dependence_is_refused_whatever_the_last_bits_say(dtype: torch.dtype) -> None:
    """The last pivot is 0 and rounding makes it any small number: 33 nats, infinity, or an error."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        x, weights = torch.randn(100, 3, generator=generator), torch.randn(3, 2, generator=generator)
        x, weights = x.to(dtype), weights.to(dtype)
        for y in (x @ weights, x @ weights + 100):
            with pytest.raises(ValueError, match="information infinite"):
                gaussian_estimate(x, y)
        noisy = x @ weights + 1e-3 * torch.randn(100, 2, generator=generator).to(dtype)
        assert 5 < float(gaussian_estimate(x, noisy)) < 20
        slope = float(weights[0, 0])
        with pytest.raises(ValueError, match="not positive definite"):
            gaussian_mutual_information(torch.tensor([[1, slope], [slope, slope**2]], dtype=torch.float64), 1)
        for columns in (torch.cat([x, x @ weights], 1), torch.stack([x[:, 0], slope * x[:, 0]], 1)):
            with pytest.raises(ValueError, match="not positive definite"):  # in the rounding of its own type
                gaussian_mutual_information(torch.cov(columns.T), 1)
    for gap in (1e-6, 1e-12):
        expected = -0.5 * math.log(gap * (2 - gap))
        assert gaussian_mutual_information(pair(1 - gap), 1).item() == pytest.approx(expected, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(rho=st.floats(-0.999, 0.999), p=st.integers(1, 3))
def test_information_is_never_negative(rho: float, p: int) -> None:
    sigma = torch.eye(2 * p, dtype=torch.float64)
    sigma[0, p] = sigma[p, 0] = rho
    expected = -0.5 * math.log1p(-rho * rho)
    assert gaussian_mutual_information(sigma, p).item() == pytest.approx(expected, rel=1e-9, abs=1e-15)
