r"""Kernels: information-like quantities that need no density.

- *Matrix-based Rényi entropy* (Sánchez Giraldo, Rao & Príncipe 2015):  S_α(A) = ln tr(A^α) / (1 − α) of a kernel matrix
  with tr A = 1;  S_α(A, B) that of A∘B / tr(A∘B);  I_α = S_α(A) + S_α(B) − S_α(A, B).
- *Normalised HSIC* (Fukumizu et al. 2007; Ma, Lewis & Kleijn 2020, the HSIC bottleneck):  tr(R_X R_Y) with
  R = K̄(K̄ + ε n I)⁻¹ and K̄ the centred kernel matrix.

Neither is the mutual information of Shannon.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion._checks import between
from companion._numbers import _resolution, as_tensor
from companion.information.estimates import ESTIMATORS, Estimate, continuous, estimate, same_rows
from companion.similarity import Kernel, h_center
from companion.similarity._kernels import _kernel_matrix


def _gram(x: Any, kernel: Kernel, name: str, constant: bool = False) -> Float[Tensor, "n n"]:
    """Kernel matrix in float64; what is rounding in the features' own dtype stays no variation."""
    return _kernel_matrix(continuous(x, name, constant=constant), kernel, as_tensor(x, name).dtype)[0]


def _density(x: Any, kernel: Kernel, name: str) -> Float[Tensor, "n n"]:
    """Kernel matrix with unit diagonal, divided by n, so that its trace is 1."""
    k = _gram(x, kernel, name)
    # An example at the mean has no direction, and rounding must not give it one.
    least = _resolution(as_tensor(x, name).dtype) ** 2 * k.diagonal().amax()
    scale = torch.maximum(k.diagonal(), least).clamp(min=torch.finfo(k.dtype).tiny).sqrt()
    return k / (scale[:, None] * scale) / len(k)


def _renyi(a: Float[Tensor, "n n"], alpha: float) -> Float[Tensor, ""]:
    if alpha == 2:
        return -a.square().sum().log()
    # Eigenvalues at 0 have no derivative of their own, and what rounding makes of them a small α would count.
    spectrum = torch.linalg.eigvalsh(a)
    spectrum = spectrum[spectrum > len(a) * torch.finfo(a.dtype).eps * spectrum[-1]]
    return spectrum.pow(alpha).sum().log() / (1 - alpha)


def _check_alpha(alpha: float) -> None:
    between(0, math.inf, open_low=True, open_high=True, alpha=alpha)
    if alpha == 1:
        raise ValueError("alpha must be positive and not 1; 1.01 is close to Shannon's entropy, 2 needs no eigenvalues")


def renyi_entropy(
    x: Float[Tensor, "examples features"], *, alpha: float = 1.01, kernel: Kernel = "rbf", unit: str = "nats"
) -> Estimate:
    """Matrix-based Rényi entropy S_α of x, between 0 and ln n. Differentiable. O(n³), O(n²) for `alpha=2`.

    Raises:
        ValueError: α ≤ 0, 1 or infinite; NaN, infinite values, constant columns; an unknown kernel or unit.

    >>> far_apart = 1000 * torch.arange(8.0)[:, None]
    >>> f"{renyi_entropy(far_apart, alpha=2, kernel=lambda x: torch.eye(len(x)), unit='bits').value:.1f}"
    '3.0'
    """
    _check_alpha(alpha)
    a = _density(x, kernel, "x")
    return estimate(_renyi(a, alpha), None, unit, estimator="renyi", assumes=_belief(alpha, kernel), examples=len(a))


@ESTIMATORS.register(
    "renyi", title="matrix-based Rényi", x="any", y="any", bound="not Shannon's", finite=False, by_distance=True
)
def renyi(
    x: Float[Tensor, "examples *p"],
    y: Float[Tensor, "examples *q"],
    *,
    alpha: float = 1.01,
    kernel: Kernel = "rbf",
    unit: str = "nats",
) -> Estimate:
    """Matrix-based Rényi mutual information S_α(A) + S_α(B) − S_α(A∘B/tr). Differentiable.

    Raises:
        ValueError: mismatched rows; see `renyi_entropy`.

    >>> x = torch.randn(100, 2)
    >>> bool(renyi(x, x).value > renyi(x, torch.randn(100, 2)).value)
    True
    """
    _check_alpha(alpha)
    a, b = _density(x, kernel, "x"), _density(y, kernel, "y")
    same_rows(a, b)
    joint = a * b
    value = _renyi(a, alpha) + _renyi(b, alpha) - _renyi(joint / joint.trace(), alpha)
    return estimate(value, None, unit, estimator="renyi", assumes=_belief(alpha, kernel), examples=len(a))


def _belief(alpha: float, kernel: Kernel) -> str:
    return f"that the eigenvalues of this kernel matrix stand for the density (alpha {alpha:g}, kernel {kernel!r})"


def normalized_hsic(
    x: Float[Tensor, "examples *p"],
    y: Float[Tensor, "examples *q"],
    *,
    kernel: Kernel = "rbf",
    ridge: float = 1e-3,
) -> Float[Tensor, ""]:
    """nHSIC = tr(R_X R_Y) with R = K̄(K̄ + ε n I)⁻¹, a number ≥ 0 without unit. Differentiable, float64.

    Args:
        ridge: ε. As ε → 0 nHSIC tends to the sum of squared canonical correlations of both sides in feature space; for
            an RBF kernel, whose matrix of different examples has full rank, to n − 1 whatever the data.

    Raises:
        ValueError: mismatched rows, ε ≤ 0 or infinite, NaN, infinite values; an unknown kernel.

    >>> x = torch.randn(100, 2)
    >>> bool(normalized_hsic(x, x) > normalized_hsic(x, torch.randn(100, 2)) > 0)
    True
    """
    between(0, math.inf, open_low=True, open_high=True, ridge=ridge)  # at 0 nHSIC of an RBF kernel counts examples
    a, b = (_whitened(_gram(z, kernel, name, constant=True), ridge) for name, z in (("x", x), ("y", y)))
    same_rows(a, b)
    return (a * b).sum()


def _whitened(k: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    k = h_center(k)
    return torch.linalg.solve(k + ridge * len(k) * torch.eye(len(k), dtype=k.dtype, device=k.device), k)
