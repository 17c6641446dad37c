r"""Feature similarity: HSIC and CKA, biased and unbiased, of two feature matrices or all pairs of layers in one pass.

Rows are examples. With a kernel matrix K of one layer and L of the other, n × n,

- biased (Gretton et al. 2005):  HSIC₀ = ⟨HKH, HLH⟩ / (n−1)²,  H = I − 11ᵀ/n;
- unbiased (Song et al. 2012):   HSIC₁ = ⟨K̃, L̃⟩ / (n(n−3)),  K̃ the *U-centred* matrix of Székely & Rizzo (2014);
- CKA = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))  (Kornblith et al. 2019).

Few examples and many features is the usual case, and there the biased value is near 1 whatever the layers do;
`unbiased=True` is the default everywhere. The unbiased value can be negative. A *dead* layer, one that gives every
example the same features (to the unbiased value: every example but one), has no CKA; it is **defined as 0** in its own
row and column, with gradient 0. The same means: but for rounding in the dtype of the features, on any processor and in
batches of any size; what a network makes of rounding later, such as a batch norm that divides it by √ε, is not seen.
Chapter *Feature similarity* derives everything here.

All functions compute in float32 (float64 for float64 features), whatever autocast says, and sum in float64; features
are centred first, so a common offset changes nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchmetrics import Metric

from companion.features import (
    FeatureTap,
    Layers,
    Reducer,
    _resolution,
    batches,
    device_of,
    evaluating,
    resolve_reducer,
    unwrap,
)

__all__ = [
    "BLOCK",
    "MINIMUM",
    "ExactCKA",
    "Interval",
    "Kernel",
    "MinibatchCKA",
    "alignment",
    "cka",
    "cka_interval",
    "cka_map",
    "cka_matrix",
    "gram",
    "h_center",
    "hsic",
    "linear_kernel",
    "rbf_kernel",
    "u_center",
]

Kernel: TypeAlias = "str | Callable[[Tensor], Tensor]"

MINIMUM = 4  # HSIC₁ divides by n − 3
BLOCK = 64  # examples
NARROW = 16_384  # widest M that ExactCKA accumulates: 2 GiB of float64


# -------------------------------------------------------------------------------------------------------------- kernels
def linear_kernel(x: Float[Tensor, "examples features"]) -> Float[Tensor, "examples examples"]:
    """K = XXᵀ.

    >>> linear_kernel(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[ 5., 11.],
            [11., 25.]])
    """
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
    return _rbf(x, x.new_zeros(()), bandwidth, scale)


def _rbf(x: Tensor, alike: Float[Tensor, ""], bandwidth: float | None = None, scale: float = 1.0) -> Tensor:
    """`rbf_kernel` of features for which a squared distance up to `alike` is rounding."""
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
    """Kernel matrix of centred features, in float32 (float64 for float64 features) whatever autocast says.

    Centring changes neither K̃ nor HKH, but without it a common offset eats up float32's digits. What the rounding of
    the features alone may make is no variation: the kernel matrix of examples that are alike to it is 0, and where all
    but one are alike, U-centring leaves nothing.

    Args:
        kernel: `"linear"`, `"rbf"`, a function of the feature matrix, or `"precomputed"`: x is a kernel matrix already.

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
    if kernel == "precomputed":
        if x.ndim != 2 or x.shape[0] != x.shape[1]:
            raise ValueError(f"a precomputed kernel matrix is (examples, examples); got shape {tuple(x.shape)}")
        return x, x.new_full((), _resolution(x.dtype) ** 2)
    if not callable(kernel) and kernel not in KERNELS:
        raise ValueError(
            f"kernel={kernel!r} is unknown; use one of {[*KERNELS, 'precomputed']}, or a function of the feature matrix"
        )
    if x.ndim < 2:
        raise ValueError(f"features are (examples, features); got shape {tuple(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        if kernel in KERNELS and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1)  # a kernel does not ask for the order of the features; this one costs no copy
        x = x.flatten(1)
        n, p = x.shape
        sums = torch.float64 if x.dtype == torch.float64 else torch.float32
        resolution = max(_resolution(dtype or x.dtype), _resolution(sums))
        if kernel == "linear":
            k, spread, offset = _CenteredGram.apply(x)
            alike, noise = _rounding(resolution, spread, n * offset, p)
        else:
            x = x.to(sums)
            mean = x.mean(0)
            x = x - mean
            spread, offset = x.detach().square().sum(), mean.detach().square().sum()
            alike, noise = _rounding(resolution, spread, n * offset, p)
            # Two examples, each off by what is allowed, are twice as far apart.
            k = kernel(x) if callable(kernel) else _rbf(x, 4 * alike / n)
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


class _CenteredGram(torch.autograd.Function):
    """K = X̃X̃ᵀ of centred features X̃, with ‖X̃‖² and ‖mean‖².

    Since K is symmetric, the backward pass ∂L/∂X̃ = (G + Gᵀ) X̃ is one product, where autograd would take two.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "n features"]) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        centred = x - mean  # in the precision of the mean, without a copy of x in it
        k = _upper_blocks(centred) if x.device.type == "cpu" and len(x) > 2 * BLOCK else linear_kernel(centred)
        k = k.triu() + k.triu(1).T  # symmetric to the last bit
        spread, offset = k.trace(), mean.square().sum()
        ctx.mark_non_differentiable(spread, offset)
        ctx.save_for_backward(centred)
        return k, spread, offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors
        g = g + g.T
        return (g - g.mean(0)) @ centred  # centring back: of the few columns of G, not of the many of the product


def _upper_blocks(x: Float[Tensor, "n features"]) -> Float[Tensor, "n n"]:
    """XXᵀ, only its blocks on and above the diagonal: 5/8 of the work for 256 examples.

    Each block is a batch of products over runs of about 1,000 features, which the threads share.
    """
    n, p = x.shape
    runs = max(1, math.ceil(p / 1024))
    x = F.pad(x, (0, -p % runs))
    y = x.view(n, runs, -1).transpose(0, 1)  # runs n width
    k = x.new_zeros(n, n)
    for i in range(0, n, BLOCK):
        k[i : i + BLOCK, i:] = (y[:, i : i + BLOCK] @ y[:, i:].mT).sum(0)
    return k


# ------------------------------------------------------------------------------------------------------------- centring
def u_center(k: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """U-centred K̃: zero diagonal, and every row sums to zero (Székely & Rizzo 2014, eq. 2.2).

    >>> k = u_center(linear_kernel(torch.randn(6, 3, dtype=torch.float64)))
    >>> bool(k.diagonal().eq(0).all()), torch.allclose(k.sum(1), torch.zeros_like(k[0]))
    (True, True)
    """
    n, zeros = len(k), k.new_zeros(len(k))
    k = k.diagonal_scatter(zeros)
    rows = k.sum(1) / (n - 2)
    total = rows.sum() / (n - 1)
    return (k - rows[:, None] - (rows - total)[None, :]).diagonal_scatter(zeros)


def h_center(k: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """HKH with H = I − 11ᵀ/n: every row sums to zero.

    >>> h_center(torch.eye(2))
    tensor([[ 0.5000, -0.5000],
            [-0.5000,  0.5000]])
    """
    rows = k.mean(1)
    return k - rows[:, None] - (rows - rows.mean())[None, :]


def _centered(k: Float[Tensor, "n n"], unbiased: bool) -> Float[Tensor, "n n"]:
    """The centred kernel matrix in float64, scaled so that the HSIC of two layers is the inner product of theirs."""
    n, resolution, k = k.shape[0], _resolution(k.dtype), k.double()
    centred = _above(u_center(k) if unbiased else h_center(k), resolution**2 * k.detach().square().sum())
    return centred / (math.sqrt(n * (n - 3)) if unbiased else n - 1)


def _above(centred: Float[Tensor, "n n"], noise: Float[Tensor, ""]) -> Float[Tensor, "n n"]:
    """0 in place of a matrix whose squared norm is no more than rounding leaves."""
    return centred * (centred.detach().square().sum() > noise)


def _ratio(cross: Float[Tensor, "a b"], own: Float[Tensor, "a"], other: Float[Tensor, "b"]) -> Float[Tensor, "a b"]:
    """CKA from the three HSICs; 0, with gradient 0, where a layer is dead (its HSIC with itself is 0)."""
    norm = torch.where(own > 0, own, 1).sqrt()[:, None] * torch.where(other > 0, other, 1).sqrt()[None, :]
    return torch.where((own > 0)[:, None] & (other > 0)[None, :], cross / norm, 0)


def _conclude(
    cross: Float[Tensor, "a b"],
    own: Float[Tensor, "a"],
    other: Float[Tensor, "b"],
    names: Iterable[str],
    other_names: Iterable[str],
) -> Float[Tensor, "a b"]:
    """`_ratio` after one look at the values: refuses NaN and infinity, warns once of dead layers."""
    values = [*zip(names, own.tolist(), strict=True), *zip(other_names, other.tolist(), strict=True)]
    broken = dict.fromkeys(name for name, value in values if not math.isfinite(value))
    if broken:
        raise ValueError(f"features hold NaN or infinite values, or overflow when squared, at layers {[*broken]}")
    dead = dict.fromkeys(name for name, value in values if value <= 0)
    if dead:
        warnings.warn(
            f"dead layers, the same features for all examples, or all but one: {[*dead]}; their CKA is defined as 0",
            stacklevel=3,
        )
    return _ratio(cross, own, other)


# ------------------------------------------------------------------------------------------------- two layers, or a few
def _check(features: Mapping[str, Tensor]) -> None:
    if not features:
        raise ValueError("give at least one feature matrix")
    for name, x in features.items():
        if x.ndim < 2:
            raise ValueError(f"{name} must be (examples, features); got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {x.dtype}")
        if len(x) < MINIMUM:
            raise ValueError(f"{name} has {len(x)} examples; HSIC needs at least {MINIMUM}")
    counts = {name: len(x) for name, x in features.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"features must have the same examples (rows) in the same order; got {counts} rows")


def _label(features: Sequence[Tensor] | Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    items = features.items() if isinstance(features, Mapping) else enumerate(features)
    return {f"{side}[{key!r}]": x for key, x in items}


def hsic(
    x: Float[Tensor, "examples features_x"],
    y: Float[Tensor, "examples features_y"],
    *,
    unbiased: bool = True,
    kernel: Kernel = "linear",
) -> Float[Tensor, ""]:
    """Hilbert–Schmidt independence criterion: HSIC₁ (`unbiased`), or HSIC₀ with the factor 1/(n−1)². Differentiable,
    float64.

    The unit is that of the two kernels' product; shifting x or y changes nothing.

    Raises:
        ValueError: fewer than 4 examples, different numbers of examples, NaN or infinite features, an unknown kernel.

    >>> x = torch.randn(100, 3)
    >>> f"{hsic(x, 2 * x + 5) / hsic(x, x):.2f}"  # a linear kernel grows with the square
    '4.00'
    """
    _check({"x": x, "y": y})
    a, b = _rows((x, y), unbiased, kernel)
    for name, row in (("x", a), ("y", b)):
        if not torch.isfinite(row).all():
            raise ValueError(f"{name} holds NaN or infinite values, or overflows when squared")
    return a @ b


def cka(
    x: Float[Tensor, "examples features_x"],
    y: Float[Tensor, "examples features_y"],
    *,
    unbiased: bool = True,
    kernel: Kernel = "linear",
) -> Float[Tensor, ""]:
    """Centred kernel alignment of two feature matrices, a number ≤ 1 without unit. Differentiable, float64.

    Invariant to rotation, reflection, scale and shift of the features of either side. With `unbiased` the value can be
    negative; without it, it is ≥ 0 and close to 1 whenever features outnumber examples. A constant x or y gives 0 with
    gradient 0.

    >>> x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    >>> y = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    >>> f"8 unrelated: biased {cka(x, y, unbiased=False):.2f}; flipped and scaled: {cka(x, -3 * x.flip(1)):.2f}"
    '8 unrelated: biased 0.97; flipped and scaled: 1.00'

    Raises:
        ValueError: see `hsic`.

    Warns:
        UserWarning: x or y is dead.
    """
    return _all_pairs({"x": x}, {"y": y}, unbiased, kernel)[0, 0]


def cka_matrix(
    xs: Sequence[Float[Tensor, "examples ..."]] | Mapping[str, Float[Tensor, "examples ..."]],
    ys: Sequence[Float[Tensor, "examples ..."]] | Mapping[str, Float[Tensor, "examples ..."]] | None = None,
    *,
    unbiased: bool = True,
    kernel: Kernel = "linear",
) -> Float[Tensor, "layers_x layers_y"]:
    """CKA of every pair of feature matrices, those in `xs` against those in `ys` (None: against each other).
    Differentiable.

    Each kernel matrix is built once; all pairs are one matrix product. Features of conv maps are flattened.

    Raises:
        ValueError: see `hsic`; the message names the layer.

    Warns:
        UserWarning: dead layers, once and by name.

    >>> x = torch.randn(100, 3)
    >>> cka_matrix([x, 10 * x]).round(decimals=3)
    tensor([[1., 1.],
            [1., 1.]], dtype=torch.float64)
    """
    return _all_pairs(_label(xs, "xs"), None if ys is None else _label(ys, "ys"), unbiased, kernel)


def alignment(grams: Iterable[Float[Tensor, "n n"]], unbiased: bool = True) -> Float[Tensor, "layers layers"]:
    """CKA of all pairs from kernel matrices (`gram`): for a penalty, since nothing is checked and no device waited
    for.

    >>> x = torch.randn(100, 3)
    >>> alignment([gram(x), gram(-x)]).round(decimals=3)
    tensor([[1., 1.],
            [1., 1.]], dtype=torch.float64)
    """
    return _ratio(*_hsics(_rows(grams, unbiased, "precomputed")))


def _all_pairs(
    xs: Mapping[str, Tensor], ys: Mapping[str, Tensor] | None, unbiased: bool, kernel: Kernel
) -> Float[Tensor, "layers_x layers_y"]:
    _check({**xs, **(ys or {})})
    a = _rows(xs.values(), unbiased, kernel)
    b = None if ys is None else _rows(ys.values(), unbiased, kernel)
    return _conclude(*_hsics(a, b), xs, xs if ys is None else ys)


def _rows(features: Iterable[Tensor], unbiased: bool, kernel: Kernel) -> Float[Tensor, "layers n_n"]:
    """One centred kernel matrix a row: all HSICs are then the inner products of rows."""
    return torch.stack([_centered(gram(x, kernel), unbiased).flatten() for x in features])


def _hsics(a: Float[Tensor, "a n_n"], b: Float[Tensor, "b n_n"] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """HSICs of rows across and with themselves, as `_ratio` takes them."""
    if b is None:
        cross = a @ a.T
        return cross, cross.diagonal(), cross.diagonal()
    return a @ b.T, a.square().sum(1), b.square().sum(1)


# ------------------------------------------------------------------------------------------------------------ intervals
@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `level` is the nominal coverage, `error` the standard error."""

    value: float
    low: float
    high: float
    error: float
    level: float


def cka_interval(
    x: Float[Tensor, "examples features_x"],
    y: Float[Tensor, "examples features_y"],
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
    the jackknife is up to √2 and halves up to 2 times too wide. Where a few directions dominate, they cover a little
    less often than `level` says.

    Raises:
        ValueError: see `hsic`; a level outside (0, 1); an unknown method; fewer than 8 examples or than 2 subsamples.

    >>> x = torch.randn(100, 3)
    >>> found = cka_interval(x, x + torch.randn(100, 3))
    >>> found.low < found.value < found.high, found.level
    (True, 0.95)
    """
    _check({"x": x, "y": y})
    n = x.shape[0]
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    if n < 2 * MINIMUM:
        raise ValueError(f"an interval needs at least {2 * MINIMUM} examples; got {n}")
    with torch.no_grad():
        # HSIC₁ of every subset comes from these; scaling K by a constant cancels in CKA, centring it is allowed. With
        # each goes its noise, because a subset of examples may be dead where the whole is not.
        wholes = [
            (_centered(k, unbiased=True), share * k.double().square().sum() / (n * (n - 3)))
            for k, share in (_kernel_matrix(z, kernel) for z in (x, y))
        ]
        value = float(_conclude(*_hsics(*(k.view(1, -1) for k, _ in wholes)), ["x"], ["y"]))
        if method == "jackknife":
            left_out = _jackknife(*wholes)
            error = float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())
        elif method == "subsample":
            size = n // 2 if size is None else size
            if not MINIMUM <= size < n:
                raise ValueError(f"size={size} must be at least {MINIMUM} and less than the {n} examples")
            if subsamples < 2:
                raise ValueError(f"subsamples={subsamples} must be at least 2")
            generator = torch.Generator().manual_seed(seed)
            subsets = (torch.randperm(n, generator=generator)[:size].to(x.device) for _ in range(subsamples))
            pairs = ([_above(u_center(k[s][:, s]), least).view(1, -1) for k, least in wholes] for s in subsets)
            draws = torch.stack([_ratio(*_hsics(*pair)) for pair in pairs])
            error = float((draws - value).square().mean().sqrt()) * math.sqrt(size / (n - size))
        else:
            raise ValueError(f"method={method!r} is unknown; use 'jackknife' or 'subsample'")
    half = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64))) * error
    return Interval(value, value - half, value + half, error, level)


def _jackknife(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Float[Tensor, "n"]:
    """Unbiased CKA without example i, for every i, from each side's U-centred matrix (zero diagonal, zero row sums) and
    its noise.

    HSIC₁'s three sums, tr(KL), 1ᵀK1·1ᵀL1 and 1ᵀKL1, lose example i's row and column. As all row sums were 0, row a now
    sums to −k_ai, the total stays 0, and what is left of 1ᵀKL1 is Σ_a k_ai l_ai.
    """
    m = x[0].shape[0] - 1

    def without(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        removed = (k * l).sum(1)
        return (k * l).sum() - 2 * removed - 2 / (m - 2) * removed  # the same factor in all three cancels

    (kx, noise_x), (ky, noise_y) = x, y
    own, other = without(kx, kx), without(ky, ky)
    live = (own > noise_x) & (other > noise_y)
    return torch.where(live, without(kx, ky) / (own.clamp(min=0).sqrt() * other.clamp(min=0).sqrt()), 0)


# ------------------------------------------------------------------------------------------- all layers, batch by batch
class _LayerPairs(Metric):
    """What the two streaming estimators share: layer names, the checks at the end, one warning for dead layers."""

    full_state_update = False
    examples: Tensor

    def __init__(self, layers: Iterable[str], other_layers: Iterable[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = list(layers)
        self.other_layers = None if other_layers is None else list(other_layers)
        if not self.layers or self.other_layers == []:
            raise ValueError("name at least one layer")
        self.add_state("examples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Same as `update`: the CKA of a single minibatch is not an estimate worth returning."""
        self.update(*args, **kwargs)

    def _given(
        self, features: Mapping[str, Tensor], other: Mapping[str, Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The features of this update in the order of the names; refuses what is missing or does not match."""
        if (other is None) != (self.other_layers is None):
            raise ValueError("features of a second model go with other_layers=..., and only with it")
        rows = []
        for names, given in ((self.layers, features), (self.other_layers or [], other or {})):
            missing = [name for name in names if name not in given]
            if missing:
                raise ValueError(f"no features for layers {missing}; got {list(given)}")
            rows.append([given[name].detach() for name in names])
        labels = [*self.layers, *self._other_labels]
        shapes = {label: tuple(x.shape) for label, x in zip(labels, rows[0] + rows[1], strict=True)}
        if any(len(shape) < 2 for shape in shapes.values()):
            raise ValueError(f"features must be (examples, features); got shapes {shapes}")
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"features must have the same examples (rows); got shapes {shapes}")
        return rows[0], rows[1]

    @property
    def _other_labels(self) -> list[str]:
        return [f"other {name}" for name in self.other_layers or []]

    def _count(self) -> int:
        """Number of examples of all ranks: `compute` runs on the reduced sums."""
        self.total = int(self.examples)
        if self.total < MINIMUM:
            raise ValueError(f"{self.total} examples in all; HSIC needs at least {MINIMUM}")
        return self.total

    def _finish(self, cross: Tensor, own: Tensor, other: Tensor) -> Float[Tensor, "layers other_layers"]:
        if self.other_layers is None:
            return _conclude(cross, own, own, self.layers, self.layers)
        return _conclude(cross, own, other, self.layers, self._other_labels)


class MinibatchCKA(_LayerPairs):
    """Streaming CKA of all pairs of layers: HSIC averaged over minibatches, the ratio taken once (Nguyen, Raghu &
    Kornblith 2021).

    A torchmetrics metric: `update` with each batch's features, `compute` at the end; under torch.distributed the sums
    are added across ranks. Batches count by their number of examples; one with fewer than 4 is joined to the batch
    before it (or after it, if it is the first), whose features are kept for that. With `unbiased=False` each batch
    brings the small-sample bias of its own size, which no number of batches removes; it is there to show that.

    Args:
        layers, other_layers: names of the rows and, for two models, of the columns.

    Raises:
        ValueError: missing layers, mismatched examples (`update`); fewer than 4 examples in all, NaN or infinite
            features (`compute`).

    >>> metric = MinibatchCKA(["first", "second"])
    >>> for _ in range(5):
    ...     x = torch.randn(32, 8)
    ...     metric.update({"first": x, "second": x @ torch.randn(8, 8)})
    >>> metric.compute().shape, metric.total
    (torch.Size([2, 2]), 160)
    """

    cross: Tensor
    own: Tensor
    other: Tensor

    def __init__(
        self,
        layers: Iterable[str],
        other_layers: Iterable[str] | None = None,
        *,
        unbiased: bool = True,
        kernel: Kernel = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(layers, other_layers, **kwargs)
        self.unbiased, self.kernel = unbiased, kernel
        a, b = len(self.layers), len(self.other_layers or [])
        for name, shape in (("cross", (a, b or a)), ("own", (a,)), ("other", (b,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self._forget()

    def _forget(self) -> None:
        # Features of the latest batch and their share of the sums, in case a small batch follows.
        self._last: tuple[list[Tensor], list[Tensor], dict[str, Tensor | int]] | None = None

    def reset(self) -> None:
        super().reset()
        self._forget()

    def update(self, features: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch: layer name → (examples, features)."""
        xs, ys = self._given(features, other)
        if self._last is not None and min(len(xs[0]), len(self._last[0][0])) < MINIMUM:
            if self.kernel == "precomputed":
                raise ValueError(f"precomputed kernel matrices need at least {MINIMUM} examples in every batch")
            last_xs, last_ys, last = self._last
            self._add(last, -1)
            xs = [torch.cat(pair) for pair in zip(last_xs, xs, strict=True)]
            ys = [torch.cat(pair) for pair in zip(last_ys, ys, strict=True)]
        sums = self._sums(xs, ys)
        self._add(sums, +1)
        self._last = xs, ys, sums

    def _sums(self, xs: list[Tensor], ys: list[Tensor]) -> dict[str, Tensor | int]:
        """The HSICs of one batch times its number of examples."""
        n = len(xs[0])
        if n < MINIMUM:
            return {"examples": n}
        b = _rows(ys, self.unbiased, self.kernel) if ys else None
        cross, own, other = _hsics(_rows(xs, self.unbiased, self.kernel), b)
        return {"examples": n, "cross": n * cross, "own": n * own, "other": n * other[: len(ys)]}

    def _add(self, sums: Mapping[str, Tensor | int], sign: int) -> None:
        for name, value in sums.items():
            setattr(self, name, getattr(self, name) + sign * value)

    def compute(self) -> Float[Tensor, "layers other_layers"]:
        """CKA of every pair of layers, float64."""
        self._count()
        return self._finish(self.cross, self.own, self.other)


class ExactCKA(_LayerPairs):
    r"""Exact linear CKA on all examples in one pass, for narrow features; memory does not depend on the number of
    examples.

    Accumulates M = ZᵀZ with Z = [features of all layers | squared row norms per layer | 1] in float64. Shifting the
    features is a linear map of Z, so M can be centred afterwards (M → TᵀMT) and M's of several ranks brought to one
    origin and added. With centred X, Y and squared norms a_i = ‖x_i‖², b_i = ‖y_i‖² the unbiased estimator needs no n ×
    n matrix:

        n(n−3)·HSIC₁ = ‖XᵀY‖²_F − n/(n−2)·Σ a_i b_i + Σ a_i Σ b_i / ((n−1)(n−2)),    (n−1)²·HSIC₀ = ‖XᵀY‖²_F.

    M takes 8·P² bytes for P features in all layers together, `compute` a few times that: use it after `average_pool`.
    Under torch.distributed every rank needs one update; its batch may be empty.

    Raises:
        ValueError: see `MinibatchCKA`; more than 16,384 features in all.

    >>> x, y = torch.randn(100, 3), torch.randn(100, 4)
    >>> metric = ExactCKA(["x", "y"])
    >>> for batch in range(0, 100, 20):
    ...     metric.update({"x": x[batch : batch + 20], "y": y[batch : batch + 20]})
    >>> torch.allclose(metric.compute()[0, 1], cka(x, y))
    True
    """

    moments: Tensor

    def __init__(
        self, layers: Iterable[str], other_layers: Iterable[str] | None = None, *, unbiased: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(layers, other_layers, **kwargs)
        self.unbiased = unbiased
        # First row: the origin that the features were shifted by; below it M. Its size is known after the first batch.
        self.add_state("moments", torch.zeros(1, 1, dtype=torch.float64), dist_reduce_fx=self._merge)
        self._forget()

    def _forget(self) -> None:
        self.widths: list[int] = []
        self._resolutions: list[float] = []  # of the features of each layer, see `features._resolution`

    def reset(self) -> None:
        super().reset()
        self._forget()

    def update(self, features: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch of any size: layer name → (examples, features)."""
        xs, ys = self._given(features, other)
        rows = [x.flatten(1).double() for x in xs + ys]
        resolutions = [_resolution(x.dtype) for x in xs + ys]
        widths = [x.shape[1] for x in rows]
        p = sum(widths)
        if not self.widths:
            total = p + len(widths) + 1
            if total > NARROW:
                raise ValueError(
                    f"{p} features in {len(widths)} layers need {8 * total**2 / 2**30:.1f} GiB; "
                    "reduce them (reduce='average_pool') or use MinibatchCKA"
                )
            self.widths = widths
            self.moments = rows[0].new_zeros(total + 1, total)
            # Near the data, so that nothing cancels.
            self.moments[0, :p] = torch.cat([x.sum(0) / max(len(x), 1) for x in rows])
        elif widths != self.widths:
            raise ValueError(f"layer widths changed from {self.widths} to {widths}")
        self._resolutions = [max(pair) for pair in zip(resolutions, self._resolutions or resolutions, strict=True)]
        shifted = [x - origin for x, origin in zip(rows, self.moments[0, :p].split(widths), strict=True)]
        norms = [x.square().sum(1, keepdim=True) for x in shifted]
        z = torch.cat([*shifted, *norms, torch.ones_like(norms[0])], dim=1)
        self.moments[1:].addmm_(z.T, z)
        self.examples = self.examples + len(z)

    def _translate(self, m: Float[Tensor, "z z"], shift: Float[Tensor, "features"]) -> Float[Tensor, "z z"]:
        """M of the features minus `shift`: a linear map of Z's columns, x → x − d, a → a − 2xᵀd + ‖d‖², 1 → 1."""
        p, parts = sum(self.widths), shift.split(self.widths)
        squares = torch.stack([d.square().sum() for d in parts])

        def columns(m: Tensor) -> Tensor:
            x, norms, one = m[:, :p], m[:, p:-1], m[:, -1:]
            inner = torch.stack([xs @ d for xs, d in zip(x.split(self.widths, dim=1), parts, strict=True)], dim=1)
            return torch.cat([x - one * shift, norms - 2 * inner + one * squares, one], dim=1)

        return columns(columns(m).T)  # M is symmetric

    def _merge(self, moments: Float[Tensor, "ranks z1 z"]) -> Float[Tensor, "z1 z"]:
        """Sum over ranks, each brought to the origin of the one with most examples."""
        p, origin = sum(self.widths), moments[moments[:, -1, -1].argmax(), 0]
        parts = [self._translate(m[1:], (origin - m[0])[:p]) for m in moments]
        return torch.cat([origin[None], torch.stack(parts).sum(0)])

    def compute(self) -> Float[Tensor, "layers other_layers"]:
        """CKA of every pair of layers, float64."""
        n, p = self._count(), sum(self.widths)
        shift = self.moments[-1, :p] / n
        m = self._translate(self.moments[1:], shift)
        products, norms, totals = m[:p, :p], m[p:-1, p:-1], m[-1, p:-1]
        blocks = [row.split(self.widths, dim=1) for row in products.split(self.widths)]
        hsic = biased = torch.stack([torch.stack([block.square().sum() for block in row]) for row in blocks])
        if self.unbiased:
            hsic = hsic - n / (n - 2) * norms + totals[:, None] * totals[None, :] / ((n - 1) * (n - 2))
        offsets = torch.stack([mean.square().sum() for mean in (self.moments[0, :p] + shift).split(self.widths)])
        resolutions, widths = (m.new_tensor(values) for values in (self._resolutions, self.widths))
        alike, noise = _rounding(resolutions, totals, n * offsets, widths)
        # The difference above has rounding of its own: 1e-12.
        live = (totals > alike) & (hsic.diagonal() > (noise + 1e-12) * biased.diagonal())
        hsic = hsic * live[:, None] * live[None, :]
        a, own = len(self.layers), hsic.diagonal()
        return self._finish(hsic[:a, :a] if self.other_layers is None else hsic[:a, a:], own[:a], own[a:])


def cka_map(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    layers: Layers,
    *,
    other: nn.Module | None = None,
    other_layers: Layers | None = None,
    estimator: str = "minibatch",
    unbiased: bool = True,
    kernel: Kernel = "linear",
    reduce: Reducer = "flatten",
    select: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
) -> pd.DataFrame:
    """CKA of all pairs of layers of one model, or of two on the same inputs, in one pass over the data.

    The models run in evaluation mode without gradients and are left as they were. Under torch.distributed every rank
    passes its own share of the data and gets the value for all of it. Shares may be uneven, even empty tensors; of one
    with fewer than 4 examples the minibatch estimator sees nothing.

    Args:
        data: inputs (examples, …), cut into batches of `batch_size`; or an iterable of `x` or `(x, y)` batches.
        layers: names, types or a predicate: see `features.find_layers`. `other_layers` does the same for `other`
            (default: as `layers`).
        estimator: `"minibatch"` (any width, any kernel), or `"exact"` (linear, all examples at once, narrow features).
        reduce: how maps and tokens become rows: see `features.REDUCERS`.

    Returns:
        a table, layers × layers, rows and columns in order of execution; `.attrs` tells the number of examples and the
        estimator.

    Raises:
        ValueError: fewer than 4 examples, NaN or infinite features, unknown layers, kernel, estimator or reducer.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    >>> cka_map(model, torch.randn(100, 4), nn.Linear).round(2).loc["0", "0"]
    np.float64(1.0)
    """
    if estimator not in ("minibatch", "exact"):
        raise ValueError(f"estimator={estimator!r} is unknown; use 'minibatch' or 'exact'")
    if estimator == "exact" and kernel != "linear":
        raise ValueError(f"estimator='exact' needs kernel='linear', not {kernel!r}")
    reducer = resolve_reducer(reduce)
    keep = reducer if estimator == "exact" else lambda x: gram(reducer(x), kernel)
    # Bare models: a wrapper's forward may talk to other ranks, which may have fewer batches.
    models = [(unwrap(model), layers)]
    if other is not None:
        models.append((unwrap(other), layers if other_layers is None else other_layers))
    metric: MinibatchCKA | ExactCKA | None = None
    with ExitStack() as stack:
        taps = []
        for net, chosen in models:
            stack.enter_context(evaluating(net))
            taps.append(stack.enter_context(FeatureTap(net, chosen, reduce=keep, select=select)))
        for x in batches(data, batch_size, minimum=MINIMUM):
            for net, _ in models:
                net(x.to(device_of(net, x)))
            if metric is None:
                metric = (
                    ExactCKA(*taps, unbiased=unbiased)
                    if estimator == "exact"
                    else MinibatchCKA(*taps, unbiased=unbiased, kernel="precomputed")
                )
                metric = metric.to(next(iter(taps[0].values())).device)
            metric.update(*taps)
    if metric is None:
        raise ValueError("data holds no batch")
    value = metric.compute()
    columns = metric.other_layers or metric.layers
    table = pd.DataFrame(value.cpu().numpy(), index=metric.layers, columns=columns)
    table.attrs = {"examples": metric.total, "estimator": estimator, "unbiased": unbiased, "kernel": str(kernel)}
    return table
