"""Is CKA more than chance: its values when the examples of one side are permuted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from companion._checks import at_least, between, whole_number
from companion._progress import progress
from companion.similarity._cka import _conclude, _hsics, _label, _matrices, _rows
from companion.similarity._kernels import Kernel

if TYPE_CHECKING:
    import pandas as pd

BATCH = 2**22  # entries of permuted kernel matrices at a time


@dataclass(frozen=True)
class Null:
    """CKA beside its values under permutation.

    Attributes:
        value: the CKA itself.
        p: (1 + #{permuted ≥ value}) / (1 + permutations).
        mean: of the permuted values: where this CKA's scale has its zero.
        high: the value above which p ≤ 1 − level, the ⌈level · (permutations + 1)⌉-th smallest permuted one; infinite
            where there are fewer.

    >>> x = torch.randn(30, 3)
    >>> found = cka_null(x, -x, permutations=99)
    >>> found.p, found.high < found.value
    (0.01, True)
    """

    value: float
    p: float
    mean: float
    high: float
    level: float
    permutations: int


def cka_null(
    x: Float[Tensor, "examples *features_x"],
    y: Float[Tensor, "examples *features_y"],
    *,
    permutations: int = 999,
    unbiased: bool = True,
    kernel: Kernel = "linear",
    level: float = 0.95,
    seed: int = 0,
) -> Null:
    """Permutation test of CKA(x, y) against independence, one-sided.

    Permuting the rows of y keeps both kernel matrices and breaks what links them. Under independence p is at most u
    with probability at most u, for any widths, kernel and estimator, if the examples are *exchangeable*: drawn
    independently from one distribution. Tokens or places of one image, frames of one film, or augmentations of one
    picture are not, and p is then too small; permute images, not places (`reduce="flatten"`, not `"per_position"`). A
    small p says that two layers are dependent, not that they are alike: any two layers of one network are, since both
    see the input.

    Raises:
        ValueError: see `hsic`; no permutation; a level outside (0, 1).

    Warns:
        UserWarning: x or y is dead; its p is 1.

    The biased value needs the null most. Its zero is not 0, but near 1 where features vary in many more
    directions than there are examples:

    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = (torch.randn(128, 4096, generator=generator) for _ in range(2))
    >>> biased, unbiased = cka_null(x, y, unbiased=False), cka_null(x, y)
    >>> round(biased.value, 2), round(biased.mean, 2), abs(unbiased.value) < 0.05, abs(unbiased.mean) < 0.002
    (0.97, 0.97, True, True)
    >>> biased.p > 0.05, unbiased.p > 0.05
    (True, True)
    """
    found = _against_null({"x": x}, {"y": y}, permutations, unbiased, kernel, level, seed)
    numbers = {name: float(found[name]) for name in ("value", "p", "mean", "high")}
    return Null(**numbers, level=level, permutations=permutations)


def cka_null_map(
    xs: Mapping[str, Float[Tensor, "examples ..."]],
    ys: Mapping[str, Float[Tensor, "examples ..."]] | None = None,
    *,
    permutations: int = 999,
    unbiased: bool = True,
    kernel: Kernel = "linear",
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """`cka_null` of all pairs of layers (`features.extract` has their features): xs with ys, or those of xs alone.

    All pairs see the same permutations. `p_best` compares a pair with the largest permuted value of *any* pair: the
    chance that the best of unrelated pairs reaches it. It is what the highest value of a map must be judged by, and
    holds for all pairs at once (Westfall & Young 1993).

    Returns:
        (layer of xs, layer of ys) → value, p, p_best, mean, high, as in `Null`; `.attrs["high_best"]` is the value
        above which p_best ≤ 1 − level.

    Raises:
        ValueError: see `cka_null`; a single layer without `ys`.

    >>> x, y = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    >>> table = cka_null_map({"a": x, "b": y, "c": -x})
    >>> table.value.idxmax(), *table.p_best.round(2)
    (('a', 'c'), 1.0, 0.0, 1.0)
    """
    import pandas as pd

    if ys is None and len(xs) < 2:
        raise ValueError(f"pairs need two layers; got {[*xs]}")
    others = None if ys is None else _label(ys, "ys")
    found = _against_null(xs if ys is None else _label(xs, "xs"), others, permutations, unbiased, kernel, level, seed)
    pairs = [(a, b) for i, a in enumerate(xs) for b in ([*xs][i + 1 :] if ys is None else ys)]
    high_best = float(found.pop("high_best"))
    table = pd.DataFrame(
        {name: column.cpu().numpy() for name, column in found.items()},
        pd.MultiIndex.from_tuples(pairs, names=["layer", "other_layer"]),
    )
    table.attrs = {"high_best": high_best}
    return table


def _against_null(
    xs: Mapping[str, Tensor],
    ys: Mapping[str, Tensor] | None,
    permutations: int,
    unbiased: bool,
    kernel: Kernel,
    level: float,
    seed: int,
) -> dict[str, Float[Tensor, "..."]]:
    at_least(1, permutations=permutations)
    between(0, 1, open_low=True, open_high=True, level=level)
    given = _matrices({**xs, **(ys or {})}, kernel)
    with torch.no_grad():
        a = _rows([given[name] for name in xs], unbiased, kernel)
        b = a if ys is None else _rows([given[name] for name in ys], unbiased, kernel)
        value = _conclude(*_hsics(a, b), xs, xs if ys is None else ys)
        a, b = (k / torch.where(k.any(1), k.norm(dim=1), 1)[:, None] for k in (a, b))
        n = round(a.shape[1] ** 0.5)
        generator = torch.Generator().manual_seed(whole_number(seed=seed))
        draws = []
        for start in progress(range(0, permutations, step := max(1, BATCH // n**2)), "permutations"):
            number = min(step, permutations - start)
            orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(number)]).to(a.device)
            shuffled = (k.view(n, n)[orders[:, :, None], orders[:, None, :]].flatten(1) for k in b)
            draws.append(torch.stack([a @ k.T for k in shuffled], 1))  # layers, other layers, permutations
        null = torch.cat(draws, 2)
        chosen = torch.ones_like(value, dtype=torch.bool)
        pairs = (chosen if ys is not None else chosen.triu(1)).nonzero(as_tuple=True)
        value, null = value[pairs], null[pairs]
        # Equal values may differ by rounding, those of kernel matrices in float32 by some 1e-8.
        exact = all(x.dtype == torch.float64 for x in given.values())
        reached = value[:, None] - (1e-12 if exact else 1e-6)

        def p(draws: Tensor) -> Tensor:
            return (1 + (draws >= reached).sum(1)).double() / (1 + permutations)

        def high(draws: Tensor) -> Tensor:
            place = math.ceil(level * (permutations + 1) * (1 - 1e-12))  # less what rounding adds to a whole number
            if place > permutations:
                return torch.full_like(draws[..., 0], math.inf)
            return draws.kthvalue(place).values

        return {
            "value": value,
            "p": p(null),
            "p_best": p(null.amax(0, keepdim=True)),
            "mean": null.mean(1),
            "high": high(null),
            "high_best": high(null.amax(0)),
        }
