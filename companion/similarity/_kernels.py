"""Kernel matrices of features, and what in them may be the rounding of the features alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from companion._checks import given
from companion._numbers import _resolution, as_tensor
from companion.similarity._fast import CenteredGram

Kernel: TypeAlias = "str | Callable[[Tensor], Tensor]"

MINIMUM = 4  # HSIC₁ divides by n − 3


def linear_kernel(x: Float[Tensor, "examples features"]) -> Float[Tensor, "examples examples"]:
    """K = XXᵀ, of the features as they are.

    >>> linear_kernel(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[ 5., 11.],
            [11., 25.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(_sums(x))
        return x @ x.T


def rbf_kernel(
    x: Float[Tensor, "examples features"], bandwidth: float | None = None, scale: float = 1.0
) -> Float[Tensor, "examples examples"]:
    """K_ij = exp(−‖x_i − x_j‖² / 2σ²).

    Args:
        bandwidth: σ, in units of the features. None: `scale` times the median distance between examples that differ
            (the lower one of two middle values), a constant for the gradient (detached).
        scale: the fraction of the median; `functools.partial(rbf_kernel, scale=0.4)` makes such a kernel.

    >>> rbf_kernel(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)[0, 1]  # exp(−½)
    tensor(0.6065)
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(_sums(x))
        return _rbf(x - x.mean(0), x.new_zeros(()), bandwidth, scale)


def _sums(x: Tensor) -> torch.dtype:
    """In which kernel matrices are computed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rbf(x: Tensor, alike: Float[Tensor, ""], bandwidth: float | None = None, scale: float = 1.0) -> Tensor:
    """`rbf_kernel` of centred features for which a squared distance up to `alike` is rounding: an offset would eat up
    the digits of the distances."""
    norms = x.square().sum(1)
    distances = (norms[:, None] + norms[None, :] - 2 * x @ x.T).clamp(min=0)
    if bandwidth is None:
        # So is what the difference above leaves of equal examples.
        alike = torch.maximum(alike, 16 * torch.finfo(x.dtype).eps * norms.detach().amax())
        variance = scale**2 * _median_distance(distances.detach(), alike)
    elif bandwidth > 0:
        variance = torch.as_tensor(bandwidth**2, dtype=x.dtype, device=x.device)
    else:
        raise ValueError(f"bandwidth must be a positive length, not {bandwidth}")
    return torch.exp(-distances / (2 * variance))


def _median_distance(squared: Float[Tensor, "n n"], alike: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Median of the squared distances above `alike`; 1 where there are none (any bandwidth will do)."""
    pairs = squared.flatten().sort().values
    equal = (pairs <= alike).sum()  # counted and gathered on the device: nanmedian would wait for it
    median = pairs.gather(0, (equal + (len(pairs) - equal - 1) // 2).view(1))[0]
    return torch.where(equal < len(pairs), median, 1)


KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {"linear": linear_kernel, "rbf": rbf_kernel}


def gram(x: Float[Tensor, "n *feature"], kernel: Kernel = "linear") -> Float[Tensor, "n n"]:
    """Kernel matrix in float32 (float64 for float64 features) whatever autocast says; for `"linear"` and `"rbf"` of
    centred features.

    Centring changes neither K̃ nor HKH of these two, but without it a common offset eats up float32's digits. What the
    rounding of the features alone may make is no variation: the kernel matrix of examples that are alike to it is 0,
    and where all but one are alike, U-centring leaves nothing.

    Args:
        kernel: `"linear"`, `"rbf"`, a function of the feature matrix, which it is given as it is, or `"precomputed"`: x
            is a kernel matrix already.

    Raises:
        ValueError: an unknown kernel; a precomputed matrix that is not square; features without a second dimension.

    >>> gram(torch.tensor([[10.0, 1.0], [10.0, -1.0]]))  # the offset of 10 is gone
    tensor([[ 1., -1.],
            [-1.,  1.]])
    """
    return _kernel_matrix(x, kernel)[0]


def _kernel_matrix(
    x: Float[Tensor, "n *feature"], kernel: Kernel, dtype: torch.dtype | None = None
) -> tuple[Float[Tensor, "n n"], Float[Tensor, ""]]:
    """`gram`, and the share of its squared norm that may be rounding's where U-centring leaves little.

    Args:
        dtype: in which the features were computed, if that is not their own.
    """
    x = as_tensor(x, "features")
    if kernel == "precomputed":
        if x.ndim != 2 or x.shape[0] != x.shape[1]:
            raise ValueError(f"a precomputed kernel matrix is (examples, examples); got shape {tuple(x.shape)}")
        return x, x.new_full((), _resolution(x.dtype) ** 2)
    if not callable(kernel) and not (isinstance(kernel, str) and kernel in KERNELS):
        raise ValueError(
            f"kernel={given(kernel)} is unknown; use one of {[*KERNELS, 'precomputed']}, or a function of the feature "
            "matrix"
        )
    if x.ndim < 2:
        raise ValueError(f"features are (examples, features); got shape {tuple(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        if kernel in KERNELS and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1)  # a kernel does not ask for the order of the features; this one costs no copy
        x = x.flatten(1)
        n, p = x.shape
        sums = _sums(x)
        coarse = (dtype or x.dtype).itemsize < 4  # finer ones resolve what varies beside any channel
        resolution = max(_resolution(dtype or x.dtype), _resolution(sums))
        if kernel == "linear":
            k, spread, offset = CenteredGram.apply(x)
        else:
            x = x.to(sums)
            mean = x.mean(0)
            centred = x - mean
            spread, offset = centred.detach().square().sum(), mean.detach().square().sum()
        alike, noise = _rounding(resolution, spread, n * offset, p)
        if coarse:
            fine = x.detach().to(sums)
            means = fine.mean(0)
            variances = (fine - means).square_().mean(0)  # a third of `var_mean`'s time
            spread, alike, noise = _by_feature(resolution, n, variances, means, spread, alike, noise)
        if callable(kernel):
            # The errors of `_rounding`, of X in place of X̃.
            k, noise = kernel(x), torch.full_like(noise, 4 * resolution**2 / max(p, 1))
        elif kernel == "rbf":
            # Two examples, each off by what is allowed, are twice as far apart.
            k = _rbf(centred, 4 * alike / n)
        noise = noise + _resolution(sums) ** 2
        if n >= MINIMUM:
            # What U-centring leaves goes where it is rounding. "<": squares that overflow or vanish decide nothing.
            left, whole = u_center(k.detach()), k.detach().flatten()
            lone = left.flatten() @ left.flatten() < noise * (whole @ whole)
            k = torch.addcmul(k, left, lone.to(k.dtype), value=-1)
        return k * (spread > alike), noise


def _rounding(resolution: Any, spread: Tensor, offset: Tensor, features: Any) -> tuple[Tensor, Tensor]:
    """What rounding alone may make of features X: the spread ‖X̃‖² of the centred rows where all examples are alike,
    and, where all but one are, the share of ‖K‖² = ‖X̃X̃ᵀ‖² that U-centring leaves.

    Errors E change K by X̃Eᵀ + EX̃ᵀ, at most twice ‖X̃Eᵀ‖, which is about ‖X̃‖‖E‖/√p if they have no direction of their
    own. If a single example makes up X̃, ‖K‖ = ‖X̃‖², and the others have the size of the mean.

    Args:
        offset: n times the squared norm of the mean, so that ‖X‖² = ‖X̃‖² + offset.
        features: their number p.
    """
    return resolution**2 * (spread + offset), 4 * resolution**2 * offset / (spread * features)


def _by_feature(
    resolution: float, n: int, variances: Tensor, means: Tensor, spread: Tensor, alike: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Spread, and what rounding may make of it, as `_rounding` says; of features that vary alone where more is left of
    them than rounding may make of as many features of average size. A large and constant channel then hides nothing.
    """
    varies = variances > resolution**2 * (variances + means**2)
    own = n * (variances * varies).sum()
    limit = resolution**2 * (own + n * len(means) * means.abs().mean() ** 2)
    share = 4 * (resolution * n) ** 2 * (variances * means**2 * varies).sum() / own**2
    more = own > limit
    return (
        torch.where(more, own, spread),
        torch.where(more, limit, alike),
        torch.where(more, torch.minimum(noise, share), noise),
    )


def u_center(k: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """U-centred K̃: zero diagonal, and every row sums to zero (Székely & Rizzo 2014, eq. 2.2).

    >>> k = u_center(linear_kernel(torch.randn(6, 3, dtype=torch.float64)))
    >>> bool(k.diagonal().eq(0).all()), torch.allclose(k.sum(1), torch.zeros_like(k[0]))
    (True, True)
    """
    n, k = len(k), k.clone().fill_diagonal_(0)
    rows = k.sum(1) / (n - 2)
    total = rows.sum() / (n - 1)
    k -= rows[:, None]
    k -= (rows - total)[None, :]
    return k.fill_diagonal_(0)


def h_center(k: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """HKH with H = I − 11ᵀ/n: every row sums to zero.

    >>> h_center(torch.eye(2))
    tensor([[ 0.5000, -0.5000],
            [-0.5000,  0.5000]])
    """
    rows = k.mean(1)
    return k - rows[:, None] - (rows - rows.mean())[None, :]
