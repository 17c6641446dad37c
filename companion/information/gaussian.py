r"""Gaussian variables: everything about information is in the covariance matrix.

- entropy:  h(X) = ½ ln|2πe Σ_X|;
- mutual information:  I(X;Y) = ½ ln(|Σ_X||Σ_Y| / |Σ|) = −½ Σ ln(1 − ρ_i²) with the canonical correlations ρ_i
  (Hotelling 1936; Gelfand & Yaglom 1957);
- information bottleneck:  Chechik, Globerson, Tishby & Weiss (2005), the whole curve in closed form.

Chapter *Identity layers* derives the first two, chapter *The information bottleneck* the third.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion._checks import between, whole_number
from companion._numbers import _resolution, as_tensor, float64
from companion.information.estimates import (
    ESTIMATORS,
    Estimate,
    TooFewExamplesError,
    continuous,
    estimate,
    rounding_share,
    same_rows,
    scale,
)


# --------------------------------------------------------------------------------------------------------- closed forms
def _factor(covariance: Tensor, rounding: Float[Tensor, "*batch d"] | float = 0.0) -> Float[Tensor, "*batch d d"]:
    """Cholesky factor of a covariance matrix in float64; refuses what is none.

    Args:
        rounding: the share of each variance that is the data's rounding, besides that of the covariance and the sums.
    """
    c = torch.as_tensor(covariance)
    if c.ndim < 2 or c.shape[-1] != c.shape[-2] or c.shape[-1] == 0:
        raise ValueError(f"covariance must be (…, d, d); got shape {tuple(c.shape)}")
    coarse, c = _resolution(c.dtype), float64(c)
    if not torch.isfinite(c).all():
        raise ValueError("covariance holds NaN or infinite values")
    if not torch.allclose(c, c.mT, rtol=1e-6, atol=1e-9 * float(c.detach().abs().max())):
        raise ValueError("covariance is not symmetric; give a covariance, not the data: covariance(x)")
    factor, failed = torch.linalg.cholesky_ex((c + c.mT) / 2)
    # The squared pivots are what the variables before it leave of each variance. Of 0, rounding makes any small number.
    left, variance = (z.diagonal(dim1=-2, dim2=-1) for z in (factor.square(), c))
    least = rounding + max(c.shape[-1] * _resolution(c.dtype), coarse)
    if failed.any() or (left <= least * variance).any():
        raise ValueError(
            "covariance is not positive definite: a variable is a linear function of others, and the information "
            "infinite. Drop it, use more examples than variables, or shrink: covariance(x, shrinkage='analytic')"
        )
    return factor


def gaussian_entropy(covariance: Float[Tensor, "*batch d d"], unit: str = "nats") -> Float[Tensor, "*batch"]:
    """h(X) = ½ ln|2πe Σ|, the differential entropy of a Gaussian, and the largest that any X with this covariance has.
    Differentiable, float64.

    Raises:
        ValueError: not a square, symmetric, positive definite matrix; an unknown unit.

    >>> f"{gaussian_entropy(torch.eye(2)):.3f}"
    '2.838'
    """
    factor = _factor(covariance)
    d = factor.shape[-1]
    nats = d / 2 * math.log(2 * math.pi * math.e) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return nats / scale(unit)


def canonical_correlations(covariance: Float[Tensor, "*batch d d"], split: int) -> Float[Tensor, "*batch k"]:
    """ρ_1 ≥ … ≥ ρ_k, k = min(p, q), of X, the first p = `split` variables, and Y, the other q: the singular values of
    Σ_X^{−½} Σ_XY Σ_Y^{−½} (Hotelling 1936).

    Raises:
        ValueError: not a covariance matrix; `split` that is no whole number from 1 to d−1.

    >>> canonical_correlations(torch.tensor([[1, 0.8], [0.8, 1]]), split=1)
    tensor([0.8000], dtype=torch.float64)
    """
    factor = _factor(covariance)
    d = factor.shape[-1]
    if not 0 < whole_number(split=split) < d:
        raise ValueError(f"split={split} must leave variables on both sides: 1 to {d - 1} of {d}")
    # Σ = LLᵀ in blocks: Σ_X = L₁₁L₁₁ᵀ and Σ_YX = L₂₁L₁₁ᵀ, so the whitened cross-covariance is L_Y⁻¹ L₂₁.
    lower = factor[..., split:, :]
    own = torch.linalg.cholesky(lower @ lower.mT)
    whitened = torch.linalg.solve_triangular(own, factor[..., split:, :split], upper=False)
    return torch.linalg.svdvals(whitened).clamp(max=1)


def gaussian_mutual_information(
    covariance: Float[Tensor, "*batch d d"], split: int, unit: str = "nats"
) -> Float[Tensor, "*batch"]:
    """I(X;Y) = −½ Σ ln(1 − ρ_i²) of jointly Gaussian X, the first `split` variables, and Y, the others.
    Differentiable, float64. From data: `mutual_information(x, y, estimator="gaussian")`.

    Raises:
        ValueError: see `canonical_correlations`.

    >>> f"{gaussian_mutual_information(torch.tensor([[1, 0.8], [0.8, 1]]), split=1):.3f}"
    '0.511'
    """
    rho = canonical_correlations(covariance, split)
    return -0.5 * torch.log1p(-rho.square()).sum(-1) / scale(unit)


# ------------------------------------------------------------------------------------------------------------ from data
def covariance(
    x: Float[Tensor, "examples features"], shrinkage: float | str = 0.0
) -> Float[Tensor, "features features"]:
    """Sample covariance with divisor n − 1, its *correlations* shrunk towards 0: Σ_ij (1 − λ) for i ≠ j.

    Variances stay as they are, so an estimate of information from it does not depend on the features' units.

    Args:
        shrinkage: λ in [0, 1], or `"analytic"`: the λ that minimises the expected squared error, estimated from the
            data (Schäfer & Strimmer 2005, eq. 8 for target D). With more variables than examples λ > 0 is needed.

    Raises:
        ValueError: fewer than 3 examples, NaN, infinite values, constant columns, λ outside [0, 1].

    >>> covariance(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]), shrinkage=0.5)
    tensor([[1., 1.],
            [1., 4.]], dtype=torch.float64)
    """
    x = continuous(x)
    n, d = x.shape
    if n < 3:
        raise TooFewExamplesError(f"{n} examples; a covariance with its correlations needs at least 3")
    x = x - x.mean(0)
    full = x.T @ x / (n - 1)
    if isinstance(shrinkage, str):
        if shrinkage != "analytic":
            raise ValueError(f"shrinkage={shrinkage!r} is unknown; use a number in [0, 1] or 'analytic'")
        z = x / full.diagonal().sqrt()
        r = z.T @ z / (n - 1)
        # Σ_k (w_kij − w̄_ij)² with w_kij = z_ki z_kj, without the n × d × d array.
        spread = z.square().T @ z.square() - (z.T @ z).square() / n
        variance = n / (n - 1) ** 3 * spread
        off = ~torch.eye(d, dtype=torch.bool, device=x.device)
        total = r[off].square().sum()
        strength = float((variance[off].sum() / total).clamp(0, 1)) if total > 0 else 1.0
    else:
        between(0, 1, shrinkage=shrinkage)
        strength = float(shrinkage)
    return (1 - strength) * full + strength * torch.diag(full.diagonal())


def _sampled_bias(n: int, p: int, q: int) -> float:
    """E[Î] − I of the plug-in Gaussian MI of n examples, exact: ½ (Σ_{i≤p} + Σ_{i≤q} − Σ_{i≤p+q}) ψ((n − i)/2), from
    the expected log-determinant of a Wishart matrix (Misra, Singh & Demchuk 2005)."""

    def log_determinant(d: int) -> float:
        return float(torch.digamma((n - torch.arange(1, d + 1, dtype=torch.float64)) / 2).sum())

    return 0.5 * (log_determinant(p) + log_determinant(q) - log_determinant(p + q))


@ESTIMATORS.register(
    "gaussian", title="Gaussian", x="Gaussian", y="Gaussian", bound="neither", finite=False, by_distance=True
)
def gaussian_estimate(x: Any, y: Any, *, shrinkage: float | str = 0.0, unit: str = "nats") -> Estimate:
    """I(X;Y) from the sample covariance, as if X and Y were jointly Gaussian. Differentiable.

    Without shrinkage its bias, about pq/2n, is exactly known for Gaussian data and taken off, so the value can be
    negative. Standard error to first order: √(Σ ρ_i² / n), which is 0 for independent variables. With Gaussian
    marginals the value is a lower bound, for others it may lie on either side of the truth.

    Raises:
        ValueError: mismatched rows, NaN, infinite values, constant columns; without shrinkage too few examples
            (n ≤ p + q + 1), or a singular covariance.

    >>> x = torch.randn(1000, 1)
    >>> found = gaussian_estimate(x, x + torch.randn(1000, 1))
    >>> abs(float(found) - 0.5 * math.log(2)) < 0.15  # nats
    True
    """
    dtypes = [as_tensor(z, "x and y").dtype for z in (x, y)]
    x, y = continuous(x), continuous(y, "y")
    same_rows(x, y)
    n, p, q = len(x), x.shape[1], y.shape[1]
    if shrinkage == 0 and n <= p + q + 1:
        raise TooFewExamplesError(
            f"{n} examples of {p} + {q} features; a covariance without shrinkage needs at least {p + q + 2}: "
            "use shrinkage='analytic', or fewer features"
        )
    sigma = covariance(torch.cat([x, y.to(x)], 1), shrinkage)
    shares = [rounding_share(z.detach(), dtype).to(x.device) for z, dtype in zip((x, y), dtypes, strict=True)]
    _factor(sigma, rounding=torch.cat(shares))
    rho = canonical_correlations(sigma, p)
    value = -0.5 * torch.log1p(-rho.square()).sum() - (_sampled_bias(n, p, q) if shrinkage == 0 else 0)
    error = (rho.detach().square().sum() / n).sqrt() if shrinkage == 0 else None
    assumes = "jointly Gaussian variables" + ("" if shrinkage == 0 else f", correlations shrunk ({shrinkage})")
    return estimate(value, error, unit, estimator="gaussian", assumes=assumes, examples=n)


# -------------------------------------------------------------------------------------------------- Gaussian bottleneck
@dataclass(frozen=True)
class GaussianBottleneck:
    """The information bottleneck min I(X;T) − β I(T;Y) for jointly Gaussian X and Y (Chechik et al. 2005).

    The optimal T is Gaussian, T = AX + ξ with ξ ~ N(0, I). Each eigenvalue λ_i = 1 − ρ_i² of Σ_{X|Y} Σ_X⁻¹ is a
    direction of X that opens at its own critical β_i = 1/(1 − λ_i) = 1/ρ_i².

    Attributes:
        eigenvalues: λ_1 ≤ λ_2 ≤ …, one for each of the p variables of X; 1 where nothing is known of Y.
        directions: rows v_iᵀ, left eigenvectors of Σ_{X|Y} Σ_X⁻¹, scaled to v_iᵀ Σ_X v_i = 1.

    >>> bottleneck = GaussianBottleneck.of(torch.tensor([[1, 0.8], [0.8, 1]]), split=1)
    >>> float(bottleneck.critical.round(decimals=4)), [float(i.round(decimals=3)) for i in bottleneck.curve(betas=10)]
    (1.5625, [1.386, 0.458])
    """

    eigenvalues: Float[Tensor, "p"]
    directions: Float[Tensor, "p p"]

    @classmethod
    def of(cls, covariance: Float[Tensor, "d d"], split: int) -> GaussianBottleneck:
        """The bottleneck of X, the first `split` variables, about Y, the others.

        Raises:
            ValueError: see `canonical_correlations`.
        """
        rho = canonical_correlations(covariance, split)
        sigma = float64(torch.as_tensor(covariance))
        own = torch.linalg.cholesky(sigma[:split, :split])
        cross = torch.linalg.solve_triangular(own, sigma[:split, split:], upper=False)
        explained = cross @ torch.linalg.solve(sigma[split:, split:], cross.mT)  # eigenvalues ρ²
        vectors = torch.linalg.eigh(explained).eigenvectors.flip(1)  # largest ρ first
        squares = torch.cat([rho.square(), rho.new_zeros(split - len(rho))])[:split]
        return cls(1 - squares, torch.linalg.solve_triangular(own.mT, vectors, upper=True).mT)

    @property
    def critical(self) -> Float[Tensor, "p"]:
        """β_i = 1/(1 − λ_i), where the i-th direction opens; ∞ for directions that say nothing about Y."""
        return 1 / (1 - self.eigenvalues)

    def projection(self, beta: float) -> Float[Tensor, "p p"]:
        """The optimal A: rows α_i v_iᵀ with α_i² = (β(1 − λ_i) − 1)/λ_i, 0 for directions that are still closed."""
        beta = float(_betas(beta))
        gain = (beta * (1 - self.eigenvalues) - 1) / self.eigenvalues
        return gain.clamp(min=0).sqrt()[:, None] * self.directions

    def curve(
        self, betas: float | Sequence[float] | Float[Tensor, "*betas"], unit: str = "nats"
    ) -> tuple[Float[Tensor, "*betas"], Float[Tensor, "*betas"]]:
        """(I(X;T), I(T;Y)) at the optimum for each β: ½ Σ ln((β−1)(1−λ_i)/λ_i) and that minus ½ Σ ln(β(1−λ_i)), over
        the open directions.

        Raises:
            ValueError: a β that is not positive; an unknown unit.
        """
        beta = _betas(betas).to(self.eigenvalues)
        opened = beta[..., None] > self.critical
        lam, b = self.eigenvalues, torch.where(opened, beta[..., None], 2.0)
        safe = torch.where(opened, lam, 0.5)
        compressed = 0.5 * torch.where(opened, ((b - 1) * (1 - safe) / safe).log(), 0).sum(-1)
        lost = 0.5 * torch.where(opened, (b * (1 - safe)).log(), 0).sum(-1)
        return compressed / scale(unit), (compressed - lost) / scale(unit)


def _betas(betas: float | Sequence[float] | Tensor) -> Tensor:
    beta = torch.as_tensor(betas, dtype=torch.float64)
    if not (beta > 0).all():
        raise ValueError(f"beta must be positive, got {betas}")
    return beta
