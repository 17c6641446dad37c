r"""Discrete variables: entropy and mutual information from counts, and bins that make continuous variables discrete.

With n_i of n examples showing symbol i, the *plug-in* entropy −Σ (n_i/n) ln(n_i/n) is too small by about (m−1)/2n for m
symbols, and mutual information too large by about (m_x − 1)(m_y − 1)/2n. The other estimators take some of that off:

- Miller–Madow (1955):  + (m − 1)/2n;
- Grassberger (2003, physics/0307138):  ln n − (1/n) Σ n_i G(n_i);
- shrinkage (Hausser & Strimmer 2009):  the plug-in of λ/m + (1 − λ) n_i/n.

Chapter *Measuring information* derives the bias.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from companion._checks import at_least, one_of
from companion._numbers import as_tensor, float64
from companion.information.estimates import (
    ESTIMATORS,
    Estimate,
    constant_columns,
    continuous,
    discrete,
    estimate,
    is_classes,
    mean_error,
    same_rows,
    scale,
)

COUNTED = ("plug-in", "miller-madow", "grassberger", "shrinkage")
LARGEST = 10**7  # pairs of symbols in a table that shrinkage builds


# ---------------------------------------------------------------------------------------------------------- exact sums
def _probabilities(p: Any, name: str) -> Float[Tensor, "..."]:
    p = float64(torch.as_tensor(p))
    if p.numel() == 0 or not torch.isfinite(p).all() or (p < 0).any() or abs(float(p.detach().sum()) - 1) > 1e-6:
        raise ValueError(f"{name} must be probabilities that sum to 1; they sum to {float(p.detach().sum()):.6g}")
    return p


def entropy_of(probabilities: Float[Tensor, "*symbols"], unit: str = "nats") -> Float[Tensor, ""]:
    """H = −Σ p ln p of known probabilities, of any shape. Exact and differentiable.

    Raises:
        ValueError: negative numbers, or a sum that is not 1.

    >>> f"{entropy_of(torch.full((8,), 1 / 8), 'bits'):.1f}"
    '3.0'
    """
    p = _probabilities(probabilities, "probabilities")
    return -torch.xlogy(p, torch.where(p > 0, p, 1)).sum() / scale(unit)


def mutual_information_of(table: Float[Tensor, "x y"], unit: str = "nats") -> Float[Tensor, ""]:
    """I(X;Y) = H(X) + H(Y) − H(X,Y) of a known joint table p(x, y). Exact and differentiable.

    Raises:
        ValueError: not a matrix of probabilities.

    >>> f"{mutual_information_of(torch.eye(2) / 2, 'bits'):.1f}"
    '1.0'
    """
    p = _probabilities(table, "table")
    if p.ndim != 2:
        raise ValueError(f"table must be (x, y); got shape {tuple(p.shape)}")
    return entropy_of(p.sum(1), unit) + entropy_of(p.sum(0), unit) - entropy_of(p, unit)


# ---------------------------------------------------------------------------------------------------------- from counts
def _grassberger(n: Float[Tensor, "*symbols"]) -> Float[Tensor, "*symbols"]:
    """G(n) = ψ(n) + ½ (−1)ⁿ (ψ((n+1)/2) − ψ(n/2))."""
    sign = 1 - 2 * (n % 2)
    return torch.digamma(n) + 0.5 * sign * (torch.digamma((n + 1) / 2) - torch.digamma(n / 2))


def _shrunk(counts: Float[Tensor, "*symbols"]) -> Float[Tensor, "*symbols"]:
    """Probabilities shrunk towards equal ones by the λ that minimises the expected squared error, estimated."""
    n, m = counts.sum(), counts.numel()
    p = counts / n
    distance = (1 / m - p).square().sum()
    strength = ((1 - p.square().sum()) / ((n - 1) * distance)).clamp(0, 1) if distance > 0 and n > 1 else 1.0
    return strength / m + (1 - strength) * p


def _entropy(counts: Float[Tensor, "symbols"], correction: str) -> Float[Tensor, ""]:
    n, seen = counts.sum(), counts[counts > 0]
    if correction == "shrinkage":
        return entropy_of(_shrunk(counts))
    if correction == "grassberger":
        return n.log() - (seen * _grassberger(seen)).sum() / n
    plug_in = entropy_of(seen / n)
    return plug_in + (len(seen) - 1) / (2 * n) if correction == "miller-madow" else plug_in


def discrete_entropy(
    x: Shaped[Tensor, "examples *columns"], *, correction: str = "grassberger", unit: str = "nats"
) -> Estimate:
    """H(X) from examples of a discrete variable; a row of a matrix is one symbol.

    Args:
        correction: `"plug-in"`, `"miller-madow"`, `"grassberger"` or `"shrinkage"` (over the symbols that were seen).

    Returns:
        the estimate; its standard error is that of the mean of −ln p(x_i). The plug-in value is a lower bound in
        expectation.

    Raises:
        ValueError: no examples, NaN, values that look continuous, an unknown correction or unit.

    Warns:
        UserWarning: nearly every example is the only one of its symbol.

    >>> coin = torch.tensor([0, 1]).repeat(500)
    >>> f"{discrete_entropy(coin, correction='plug-in', unit='bits').value:.1f}"
    '1.0'
    """
    one_of(correction=(correction, COUNTED))
    labels, m = discrete(x)
    _warn_of_single(len(labels), m, "symbols", "how many different symbols there are")
    counts = torch.bincount(labels, minlength=m).double()
    _, error = mean_error(-(counts / counts.sum()).log()[labels])
    bound = "lower" if correction == "plug-in" else "neither"
    assumes = "independent examples" + ("" if correction == "plug-in" else ", most symbols seen")
    value = _entropy(counts, correction)
    return estimate(value, error, unit, estimator=correction, assumes=assumes, bound=bound, examples=len(labels))


@ESTIMATORS.register("discrete", title="counts", x="discrete", y="discrete", bound="neither", finite=False)
def discrete_mutual_information(
    x: Shaped[Tensor, "examples *columns"],
    y: Shaped[Tensor, "examples *columns_y"],
    *,
    correction: str = "grassberger",
    unit: str = "nats",
) -> Estimate:
    """I(X;Y) = H(X) + H(Y) − H(X,Y) of two discrete variables, each entropy estimated with `correction`.

    Shrinkage acts on the joint table of all pairs of symbols, the margins are those of the shrunk table. The plug-in
    value is an upper bound in expectation when X and Y are independent, and tends to be one otherwise.

    Raises:
        ValueError: mismatched rows; see `discrete_entropy`.

    Warns:
        UserWarning: nearly every example is the only one of its pair of symbols, as rows of many columns are: the
            plug-in value is then about H(Y), whatever X has to do with Y.

    >>> x = torch.arange(4).repeat(250)  # y is the last bit of x
    >>> f"{discrete_mutual_information(x, x % 2, correction='plug-in', unit='bits').value:.1f}"
    '1.0'
    """
    found, pairs = _information(x, y, correction, unit)
    _warn_of_single(found.examples, pairs, "pairs of symbols", "whether x and y go together")
    return found


def _information(x: Any, y: Any, correction: str, unit: str = "nats") -> tuple[Estimate, int]:
    """I(X;Y) and the number of different pairs."""
    one_of(correction=(correction, COUNTED))
    (a, p), (b, q) = discrete(x), discrete(y, "y")
    same_rows(a, b)
    b, n = b.to(a.device), len(a)
    # Only pairs that occur are counted: rows of many columns have too many symbols for a table.
    pairs, pair, joint = torch.unique(a * q + b, return_inverse=True, return_counts=True)
    counts = [torch.bincount(a, minlength=p).double(), torch.bincount(b, minlength=q).double()]
    if correction == "shrinkage":
        if p * q > LARGEST:
            raise ValueError(f"{p} × {q} pairs of symbols are too many for a table; use another correction")
        table = joint.new_zeros(p * q, dtype=torch.float64).index_add(0, pairs, joint.double())
        value = mutual_information_of(_shrunk(table).view(p, q))
    else:
        value = _entropy(counts[0], correction) + _entropy(counts[1], correction) - _entropy(joint.double(), correction)
    _, error = mean_error((joint[pair] * n / (counts[0][a] * counts[1][b])).log())
    assumes = f"independent examples, most of {p} × {q} pairs of symbols seen"
    return estimate(value, error, unit, estimator=correction, assumes=assumes, examples=len(a)), len(pairs)


def _warn_of_single(examples: int, kinds: int, what: str, unknown: str) -> None:
    if kinds > 0.9 * examples:
        warnings.warn(
            f"{examples} examples show {kinds} {what}, nearly each its own, so the value follows from their number and "
            f"does not tell {unknown}: use fewer bins, columns or symbols, or more examples",
            stacklevel=3,
        )


# --------------------------------------------------------------------------------------------------------------- bins
def bin_edges(x: Float[Tensor, "examples features"], bins: int = 30) -> list[Float[Tensor, "_"]]:
    """Inner edges of bins of equal mass for each column, learned from the data; `bin_index` applies them.

    A value that more than one example in `bins` shares is an *atom* and gets a bin of its own, so the zeros of a ReLU
    stay together and do not use up the quantiles of what is active. What is constant but for rounding is one atom.

    Args:
        bins: number of bins for what is not an atom.

    Raises:
        ValueError: NaN, infinite values, fewer than 2 bins.

    >>> bin_edges(torch.arange(8.0)[:, None], bins=4)
    [tensor([2., 4., 6.], dtype=torch.float64)]
    """
    dtype, x = as_tensor(x, "x").dtype, continuous(x, constant=True)
    at_least(2, bins=bins)
    constant = constant_columns(x, dtype).tolist()
    return [
        _atom(column.amin(), column.amax()) if still else _column_edges(column, bins)
        for column, still in zip(x.T, constant, strict=True)
    ]


def _atom(low: Float[Tensor, "*atoms"], high: Float[Tensor, "*atoms"]) -> Float[Tensor, "_"]:
    """The edges of an atom's own bin. Bins are [edge, next edge): it reaches to the next representable number."""
    return torch.stack([low, torch.nextafter(high, torch.full_like(high, torch.inf))]).flatten()


def _column_edges(column: Float[Tensor, "n"], bins: int) -> Float[Tensor, "_"]:
    values, counts = torch.unique(column, return_counts=True)
    atoms = values[counts * bins > len(column)]
    inner = column[~torch.isin(column, atoms)]
    if len(inner):
        # torch.quantile refuses long inputs; the sorted values at the ranks are the same.
        parts = torch.linspace(0, 1, bins + 1, dtype=column.dtype, device=column.device)[1:-1]
        inner = inner.sort().values[(parts * len(inner)).long().clamp(max=len(inner) - 1)]
    return torch.unique(torch.cat([inner, _atom(atoms, atoms)]))


def fixed_edges(features: int, bins: int = 30, low: float = -1.0, high: float = 1.0) -> list[Float[Tensor, "_"]]:
    """The same inner edges for every column, equally spaced from `low` to `high`, whatever the data: as Shwartz-Ziv &
    Tishby (2017) binned tanh layers. For history only: a ReLU layer overflows them, everything above `high` is one bin.

    Raises:
        ValueError: ends that are infinite or not in order, fewer than 2 bins.

    >>> fixed_edges(features=1, bins=4)
    [tensor([-0.5000,  0.0000,  0.5000], dtype=torch.float64)]
    """
    at_least(2, bins=bins)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low={low}, high={high}: low must be below high, and both finite")
    return [torch.linspace(low, high, bins + 1, dtype=torch.float64)[1:-1] for _ in range(features)]


def bin_index(
    x: Float[Tensor, "examples features"], edges: list[Float[Tensor, "_"]]
) -> Shaped[Tensor, "examples features"]:
    """The bin that each value falls in: how many inner edges are ≤ it.

    Raises:
        ValueError: NaN, infinite values, not one list of edges for each column, edges that do not rise or are NaN.

    >>> bin_index(torch.tensor([[0.0], [1.0], [5.0]]), edges=[torch.tensor([1.0, 2.0])]).flatten()
    tensor([0, 1, 2])
    """
    x = continuous(x, constant=True)
    if len(edges) != x.shape[1]:
        raise ValueError(f"{len(edges)} lists of edges for {x.shape[1]} columns")
    edges = [as_tensor(e, "edges").to(x) for e in edges]
    for number, e in enumerate(edges):
        if not torch.equal(e, e.sort().values):  # NaN equals nothing
            raise ValueError(f"the edges of column {number} must rise, without NaN: use bin_edges, or sort them")
    columns = [torch.searchsorted(e, column.contiguous(), right=True) for e, column in zip(edges, x.T, strict=True)]
    return torch.stack(columns, 1)


def _codes(x: Any, name: str, bins: int) -> Tensor:
    """Bins of each column; the labels of one column of classes, whose order and distances mean nothing."""
    if is_classes(x):
        return discrete(x, name)[0]
    x = continuous(x, name).detach()
    return bin_index(x, bin_edges(x, bins))


@ESTIMATORS.register("binning", title="binning", x="any", y="any", bound="neither", finite=False)
def binned(
    x: Shaped[Tensor, "examples *p"],
    y: Shaped[Tensor, "examples *q"],
    *,
    bins: int = 10,
    correction: str = "grassberger",
    unit: str = "nats",
) -> Estimate:
    """I between x and y cut into bins that are learned from the data, column by column. One column of integers are
    classes, each a bin of its own.

    Binning can only lose information, so the binned variables' true information is a lower bound; with few examples
    for each pair of bins the estimate of it is too large. The value depends on `bins` either way.

    Raises:
        ValueError: see `bin_edges` and `discrete_mutual_information`.

    Warns:
        UserWarning: nearly every example is alone in its pair of bins: the value says how many examples there are.

    >>> x = torch.rand(1000, 1)
    >>> f"{binned(x, x, bins=8, unit='bits').value:.1f}"  # eight bins of equal mass
    '3.0'
    """
    at_least(2, bins=bins)  # also of classes, which need none
    codes = [_codes(z, name, bins) for z, name in ((x, "x"), (y, "y"))]
    found, pairs = _information(codes[0], codes[1], correction)
    _warn_of_single(len(x), pairs, "pairs of bins", "whether x and y go together")
    assumes = f"{bins} bins of equal mass a column keep what matters, and are few for {len(x)} examples"
    return estimate(found.value, found.error, unit, estimator="binning", assumes=assumes, examples=len(x))
