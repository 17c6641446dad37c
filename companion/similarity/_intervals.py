"""How sure CKA is: intervals over the drawing of examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from companion._checks import at_least, between, one_of, whole_number
from companion._numbers import float64
from companion._progress import progress
from companion.similarity._cka import _above, _centered, _conclude, _hsics, _matrices, _ratio
from companion.similarity._kernels import MINIMUM, Kernel, _kernel_matrix, u_center


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `level` is the nominal coverage, `error` the standard error."""

    value: float
    low: float
    high: float
    error: float
    level: float


def cka_interval(
    x: Float[Tensor, "examples *features_x"],
    y: Float[Tensor, "examples *features_y"],
    *,
    level: float = 0.95,
    method: str = "jackknife",
    kernel: Kernel = "linear",
    subsamples: int = 200,
    size: int | None = None,
    seed: int = 0,
) -> Interval:
    """Confidence interval of unbiased CKA over the drawing of examples.

    `method="jackknife"` leaves out one example at a time, all n in O(n²) from the sums that HSIC₁ consists of.
    `method="subsample"` recomputes CKA on `subsamples` random subsets of `size` examples (default n/2) drawn *without*
    replacement and rescales their spread by √(size/(n − size)) (the delete-d jackknife). Resampling *with* replacement,
    the bootstrap, is a trap: a duplicated example puts a copy of the removed diagonal back into the kernel matrix, and
    unrelated features look alike.

    Where features by far outnumber examples both are cautious: the estimate's spread then falls as 1/n, not 1/√n, and
    the jackknife is about √2 and halves √3 times too wide, with 8 examples nearly 2 and 3 times. Where a few directions
    dominate, they cover a little less often than `level` says.

    Raises:
        ValueError: see `hsic`; a level outside (0, 1); an unknown method; fewer than 8 examples or than 2 subsamples.

    >>> x = torch.randn(100, 3)
    >>> found = cka_interval(x, x + torch.randn(100, 3))
    >>> found.low < found.value < found.high, found.level
    (True, 0.95)
    """
    one_of(method=(method, ("jackknife", "subsample")))
    between(0, 1, open_low=True, open_high=True, level=level)
    x, y = _matrices({"x": x, "y": y}, kernel).values()
    n = x.shape[0]
    if n < 2 * MINIMUM:
        raise ValueError(f"an interval needs at least {2 * MINIMUM} examples; got {n}")
    with torch.no_grad():
        # HSIC₁ of every subset comes from these; scaling K by a constant cancels in CKA, centring it is allowed. With
        # each goes its noise, because a subset of examples may be dead where the whole is not.
        wholes = [
            (_centered(k, unbiased=True), float64(share) * float64(k).square().sum() / (n * (n - 3)))
            for k, share in (_kernel_matrix(z, kernel) for z in (x, y))
        ]
        value = float(_conclude(*_hsics(*(k.view(1, -1) for k, _ in wholes)), ["x"], ["y"]))
        if method == "jackknife":
            left_out = _jackknife(*wholes)
            error = float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())
        else:
            size = n // 2 if size is None else size
            between(MINIMUM, n, open_high=True, size=whole_number(size=size))
            at_least(2, subsamples=subsamples)
            generator = torch.Generator().manual_seed(whole_number(seed=seed))
            turns = progress(range(subsamples), "subsamples")
            subsets = (torch.randperm(n, generator=generator)[:size].to(wholes[0][0].device) for _ in turns)
            pairs = ([_above(u_center(k[s][:, s]), least).view(1, -1) for k, least in wholes] for s in subsets)
            draws = torch.stack([_ratio(*_hsics(*pair)) for pair in pairs])
            error = float((draws - value).square().mean().sqrt()) * math.sqrt(size / (n - size))
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(value, value - half, value + half, error, level)


def _without_each(k: Float[Tensor, "n n"], l: Float[Tensor, "n n"]) -> tuple[Tensor, Float[Tensor, "n"]]:  # noqa: E741
    """HSIC₁ of two `_centered` matrices, and that without example i, for every i.

    The three sums, tr(KL), 1ᵀK1·1ᵀL1 and 1ᵀKL1, lose example i's row and column. As all row sums were 0, row a now sums
    to −k_ai, the total stays 0, and what is left of 1ᵀKL1 is Σ_a k_ai l_ai.
    """
    n = len(k)
    removed = (k * l).sum(1)
    whole = removed.sum()
    return whole, (whole - (2 + 2 / (n - 3)) * removed) * (n * (n - 3) / ((n - 1) * (n - 4)))


def _jackknife(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Float[Tensor, "n"]:
    """Unbiased CKA without example i, for every i, from each side's centred matrix and its noise."""
    (kx, noise_x), (ky, noise_y) = x, y
    own, other, cross = (_without_each(*pair)[1] for pair in ((kx, kx), (ky, ky), (kx, ky)))
    live = (own > noise_x) & (other > noise_y)
    return torch.where(live, cross / (own.clamp(min=0).sqrt() * other.clamp(min=0).sqrt()), 0)
