"""HSIC and CKA of two layers, or of a few."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion._numbers import _resolution, as_tensor, float64
from companion.similarity._kernels import MINIMUM, Kernel, gram, h_center, u_center


def _matrices(features: Mapping[str, Any], kernel: Kernel) -> dict[str, Tensor]:
    """The features, or kernel matrices, as tensors; refuses what has no HSIC."""
    if not features:
        raise ValueError("give at least one feature matrix")
    found = {name: as_tensor(x, name) for name, x in features.items()}
    for name, x in found.items():
        if x.ndim < 2:
            raise ValueError(f"{name} must be (examples, features); got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {x.dtype}")
        if len(x) < MINIMUM:
            raise ValueError(f"{name} has {len(x)} examples; HSIC needs at least {MINIMUM}")
        if kernel == "precomputed":
            _require_symmetric(name, x)
    counts = {name: len(x) for name, x in found.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"features must have the same examples (rows) in the same order; got {counts} rows")
    return found


def _require_symmetric(name: str, x: Tensor) -> None:
    # Half precision rounds to 1e-3 of the largest entry; features are off by far more. Other shapes are refused later.
    if x.ndim == 2 and x.shape[0] == x.shape[1] > 0 and (x - x.T).abs().amax() > 1e-3 * x.abs().amax():
        raise ValueError(f"{name} is not symmetric, so it is no kernel matrix; of features leave kernel as it is")


def _label(features: Sequence[Tensor] | Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    items = features.items() if isinstance(features, Mapping) else enumerate(features)
    return {f"{side}[{key!r}]": x for key, x in items}


def hsic(
    x: Float[Tensor, "examples *features_x"],
    y: Float[Tensor, "examples *features_y"],
    *,
    unbiased: bool = True,
    kernel: Kernel = "linear",
) -> Float[Tensor, ""]:
    """Hilbert–Schmidt independence criterion: HSIC₁ (`unbiased`), or HSIC₀ with the factor 1/(n−1)². Differentiable,
    float64.

    The unit is that of the two kernels' product; shifting x or y changes nothing, unless a function given as `kernel`,
    which sees the features as they are, minds.

    Raises:
        ValueError: fewer than 4 examples, different numbers of examples, NaN or infinite features, an unknown kernel.

    >>> x = torch.randn(100, 3)
    >>> f"{hsic(x, 2 * x + 5) / hsic(x, x):.2f}"  # a linear kernel grows with the square
    '4.00'
    """
    a, b = _rows(_matrices({"x": x, "y": y}, kernel).values(), unbiased, kernel)
    for name, row in (("x", a), ("y", b)):
        if not torch.isfinite(row).all():
            raise ValueError(f"{name} holds NaN or infinite values, or overflows when squared")
    return a @ b


def cka(
    x: Float[Tensor, "examples *features_x"],
    y: Float[Tensor, "examples *features_y"],
    *,
    unbiased: bool = True,
    kernel: Kernel = "linear",
) -> Float[Tensor, ""]:
    """Centred kernel alignment of two feature matrices, a number ≤ 1 without unit. Differentiable, float64.

    Invariant to rotation, reflection, scale and shift of the features of either side. With `unbiased` the value can be
    negative; without it, it is ≥ 0, and close to 1 where the features vary in many more directions than there are
    examples. A constant x or y gives 0 with gradient 0. A function given as `kernel` sees the features as they are, and
    need not be invariant to anything.

    Raises:
        ValueError: see `hsic`.

    Warns:
        UserWarning: x or y is dead.

    >>> x, y = torch.randn(2, 8, 256, generator=torch.Generator().manual_seed(0))
    >>> f"8 unrelated: biased {cka(x, y, unbiased=False):.2f}; flipped and scaled: {cka(x, -3 * x.flip(1)):.2f}"
    '8 unrelated: biased 0.97; flipped and scaled: 1.00'
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
    return _ratio(*_hsics(_rows(list(grams), unbiased, "precomputed")))


def _all_pairs(
    xs: Mapping[str, Tensor], ys: Mapping[str, Tensor] | None, unbiased: bool, kernel: Kernel
) -> Float[Tensor, "layers_x layers_y"]:
    found = _matrices({**xs, **(ys or {})}, kernel)
    a = _rows([found[name] for name in xs], unbiased, kernel)
    b = None if ys is None else _rows([found[name] for name in ys], unbiased, kernel)
    return _conclude(*_hsics(a, b), xs, xs if ys is None else ys)


def _rows(features: Collection[Tensor], unbiased: bool, kernel: Kernel) -> Float[Tensor, "layers n_n"]:
    """One centred kernel matrix a row: all HSICs are then the inner products of rows."""
    matrices = (_centered(gram(x, kernel), unbiased).flatten() for x in features)
    if torch.is_grad_enabled():
        return torch.stack(list(matrices))
    first = next(matrices)
    rows = first.new_empty(len(features), len(first))  # written where they stay, in a third of the time
    for row, matrix in zip(rows, itertools.chain([first], matrices), strict=True):
        row.copy_(matrix)
    return rows


def _hsics(a: Float[Tensor, "a n_n"], b: Float[Tensor, "b n_n"] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """HSICs of rows across and with themselves, as `_ratio` takes them."""
    if b is None:
        cross = a @ a.T
        return cross, cross.diagonal(), cross.diagonal()
    return a @ b.T, a.square().sum(1), b.square().sum(1)


# ---------------------------------------------------------------------------------- sums
def _centered(k: Float[Tensor, "n n"], unbiased: bool) -> Float[Tensor, "n n"]:
    """The centred kernel matrix in float64, scaled so that the HSIC of two layers is the inner product of theirs."""
    n, resolution, k = k.shape[0], _resolution(k.dtype), float64(k)
    centred = _above(u_center(k) if unbiased else h_center(k), resolution**2 * k.detach().square().sum())
    return centred / (math.sqrt(n * (n - 3)) if unbiased else n - 1)


def _above(centred: Float[Tensor, "n n"], noise: Float[Tensor, ""]) -> Float[Tensor, "n n"]:
    """0 in place of a matrix whose squared norm is no more than rounding leaves."""
    return centred * (centred.detach().square().sum() > noise)


def _ratio(cross: Float[Tensor, "a b"], own: Float[Tensor, "a"], other: Float[Tensor, "b"]) -> Float[Tensor, "a b"]:
    """CKA from three HSICs; 0, with gradient 0, where a layer is dead (its HSIC with itself is 0). NaN stays NaN."""
    dead, other_dead = own <= 0, other <= 0
    norm = torch.where(dead, 1, own).sqrt()[:, None] * torch.where(other_dead, 1, other).sqrt()[None, :]
    return torch.where(dead[:, None] | other_dead[None, :], 0, cross / norm)


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
            f"dead layers, the same features for all examples, or all but one, or orthogonal ones: {[*dead]}; "
            "their CKA is defined as 0",
            stacklevel=3,
        )
    return _ratio(cross, own, other)
