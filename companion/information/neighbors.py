r"""Nearest neighbours: entropy and mutual information of continuous variables without a model of their density.

If the k-th nearest neighbour of x_i is ε_i away, the density near x_i is about k/n over the volume of a ball of radius
ε_i. With max-norm balls, which are cubes, this gives

- Kozachenko & Leonenko (1987):  h(X) = ψ(n) − ψ(k) + d ⟨ln 2ε_i⟩;
- KSG (Kraskov, Stögbauer & Grassberger 2004, eqs. 8 and 9):  I₁ = ψ(n) + ψ(k) − ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩ and
  I₂ = ψ(n) + ψ(k) − 1/k − ⟨ψ(n_x) + ψ(n_y)⟩;
- Ross (2014), X continuous and Y discrete:  I = ψ(n) + ψ(k) − ⟨ψ(n_y) + ψ(m)⟩;
- Gao, Kannan, Oh & Viswanath (2017), mixtures of both:  I = ⟨ψ(k̃) + ln n − ψ(n_x) − ψ(n_y)⟩.

Distances are max-norm, each column measured in its own spread (`estimates.standardised`): information does not depend
on the units of a column, so no estimate does. Where neighbours lie at equal distances, as they do on pixels or counts,
all at the edge count, in the joint space and on both sides; equal means to 1e-9 of the distance. In few dimensions a
CPU searches k-d trees; otherwise, and on a GPU, blocks of rows are compared with all: memory O(n · block). Chapter
*Measuring information* derives I₁ and Ross's.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from scipy.spatial import KDTree
from torch import Tensor

from companion._checks import at_least, one_of, whole_number
from companion._numbers import as_tensor
from companion._progress import progress
from companion.information.estimates import (
    ESTIMATORS,
    Estimate,
    TooFewExamplesError,
    continuous,
    discrete,
    estimate,
    is_discrete,
    mean_error,
    rounding_share,
    same_rows,
    standardised,
)

BLOCK = {"cpu": 2**20, "cuda": 2**25}  # distances in one block of rows
TREE = 16  # up to so many joint dimensions k-d trees are faster than comparing all pairs
MANY = 20  # joint dimensions beyond which neighbours of any sample that one has are far away
TIE = 1e-9  # share of a distance by which equal ones differ after rounding


# ----------------------------------------------------------------------------------------------------------- distances
def _distances(rows: Float[Tensor, "block d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "block n"]:
    """Max-norm distances, exact differences: equal distances are equal to the last bit."""
    if x.shape[1] == 1:
        return (rows - x.T).abs_()
    return torch.cdist(rows, x, p=float("inf"))


def _blocks(x: Float[Tensor, "n d"], block: int | None) -> Iterator[slice]:
    """Runs of rows, so that a block of distances fits."""
    n = len(x)
    if block is not None:
        at_least(1, block=block)
    size = block or max(1, BLOCK.get(x.device.type, BLOCK["cpu"]) // n)
    for start in progress(range(0, n, size), "neighbours"):
        yield slice(start, min(start + size, n))


def _by_blocks(
    x: Float[Tensor, "n d"], block: int | None, row: Callable[[slice], tuple[Tensor, ...]]
) -> list[Float[Tensor, "n"]]:
    """Numbers of each example, computed for a block of rows at a time, in float64."""
    found: list[Tensor] = []
    for rows in _blocks(x, block):
        parts = row(rows)
        # Written in place: small results kept between the blocks would break up the memory that blocks reuse.
        found = found or [x.new_empty(len(x)) for _ in parts]
        for whole, part in zip(found, parts, strict=True):
            whole[rows] = part.to(whole)
    return found


def _use_tree(x: Tensor, block: int | None) -> bool:
    return block is None and x.device.type == "cpu" and x.shape[1] <= TREE


def _count(x: Float[Tensor, "n d"], radius: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """How many points lie within distance ≤ radius_i of x_i, itself included (CPU)."""
    if x.shape[1] == 1:
        at = x[:, 0].contiguous()
        ordered = at.sort().values
        return torch.searchsorted(ordered, at + radius, right=True) - torch.searchsorted(ordered, at - radius)
    tree = KDTree(x.numpy())
    return torch.from_numpy(tree.query_ball_point(x.numpy(), radius.numpy(), p=math.inf, return_length=True))


def _nearest(x: Float[Tensor, "n d"], k: int) -> tuple[Any, Any]:
    """Distances of each point to the k points nearest to it, itself the first, and their places (CPU)."""
    return KDTree(x.numpy()).query(x.numpy(), k, p=math.inf)


def _kth_distance(x: Float[Tensor, "n d"], k: int, block: int | None) -> Float[Tensor, "n"]:
    """Distance of each point to its k-th nearest other point."""
    if _use_tree(x, block):
        return torch.from_numpy(_nearest(x, k + 1)[0][:, k])
    return _by_blocks(x, block, lambda rows: (_distances(x[rows], x).kthvalue(k + 1).values,))[0]


def _check(n: int, k: int, what: str = "examples") -> None:
    at_least(1, k=k)
    if n <= k:
        raise TooFewExamplesError(f"{n} {what} have no {k}-th neighbour each: need more than k = {k}, or a smaller k")


def _copies(x: Float[Tensor, "n d"]) -> Int[Tensor, "kinds"]:
    """How often each of the different rows occurs."""
    return torch.unique(x, dim=0, return_counts=True)[1]


def _refuse_copies(x: Float[Tensor, "n d"], k: int) -> None:
    """Equal rows, of which a density has none: they pass for near neighbours, and move an estimate by about half their
    share in nats. A few are said; one in twenty are refused, and k copies of one, which leave no distance."""
    counts = _copies(x)
    same = int(counts[counts > 1].sum())
    if not same:
        return
    found = (
        f"{same} of {len(x)} examples are exactly equal to another; those of a continuous variable never are. Drop "
        "duplicates, make up by noise for digits that were rounded off, or use estimator='mixed' if parts are discrete "
        "(ReLU zeros, pixels), 'discrete' if all is"
    )
    if 20 * same >= len(x) or counts.max() > k:
        raise ValueError(found)
    warnings.warn(found, stacklevel=3)


def _warn_of_copies(x: Float[Tensor, "n d"], k: int) -> None:
    """Equal rows where atoms may be: k copies are one. That most have fewer is the mark of a sample used twice."""
    counts = _copies(x)
    few = int(counts[(counts > 1) & (counts <= k)].sum())
    if 2 * few > len(x):
        warnings.warn(
            f"{few} of {len(x)} examples are exactly equal to another, but each to fewer than k = {k}; where examples "
            "were used twice, as in oversampling, and are no atoms, the estimate is too large: drop duplicates",
            stacklevel=3,
        )


# ------------------------------------------------------------------------------------------------------------- entropy
def entropy(
    x: Float[Tensor, "examples features"], *, k: int = 3, unit: str = "nats", block: int | None = None
) -> Estimate:
    """Differential entropy h(X) by Kozachenko & Leonenko: ψ(n) − ψ(k) + d ⟨ln 2ε_i⟩.

    Args:
        block: compare so many rows at a time with all, instead of searching trees.

    Raises:
        ValueError: fewer than k + 1 examples, NaN, infinite values, constant columns, columns that are a linear
            function of others (the truth is −∞), one example in twenty equal to another, k copies of one.

    Warns:
        UserWarning: more than 20 features, where the estimate is far too high; fewer equal examples.

    >>> f"{entropy(10 * torch.rand(2000, 1)).value:.1f}, ln 10 = {math.log(10):.3f}"
    '2.3, ln 10 = 2.303'
    """
    dtype, x = as_tensor(x, "x").dtype, continuous(x).detach()
    n, d = x.shape
    _check(n, k)
    least = torch.linalg.svdvals((x - x.mean(0)) / x.std(0))[-1].square() / n  # of the variances in all directions
    if n > d and least <= rounding_share(x, dtype).amax():
        raise ValueError("x has columns that are a linear function of others, and the entropy is −∞: drop such columns")
    _warn_of_many(d, n, "are far too high")
    x, scale = standardised(x)
    _refuse_copies(x, k)
    distances = _kth_distance(x, k, block)
    offset = torch.digamma(torch.tensor([n, k], dtype=torch.float64))
    value, error = mean_error(d * (2 * distances).log())
    assumes = "independent examples of a density that is flat within k neighbours"
    value = value + scale.log().sum() + float(offset[0] - offset[1])
    return estimate(value, error, unit, estimator="kozachenko-leonenko", assumes=assumes, examples=n)


# -------------------------------------------------------------------------------------------------- mutual information
def _averaged(
    terms: Callable[..., Float[Tensor, "n"]], x: Tensor, y: Tensor, parts: int, unit: str, **rest: Any
) -> Estimate:
    """The mean of the terms, with the standard error of Holmes & Nemenman (2019): the variance over `parts` disjoint
    subsets of n/parts examples, divided by `parts`, since the variance goes like 1/n. No error for 0 parts."""
    n, error = len(x), None
    parts = whole_number(parts=parts)
    value = terms(x, y).mean()
    if parts:
        if parts < 2:
            raise ValueError(f"parts={parts}; a spread needs at least 2 subsets, 5 for instance; 0 for no error")
        if n // parts < 2:
            raise TooFewExamplesError(f"{n} examples are too few for parts={parts}")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        subsets = order.tensor_split(parts)  # unlike `chunk` always as many
        error = torch.stack([terms(x[rows], y[rows]).mean() for rows in subsets]).std() / parts**0.5
    return estimate(value, error, unit, examples=n, df=max(parts - 1, 0), **rest)


@ESTIMATORS.register("ksg", title="KSG 1", x="continuous", y="continuous", bound="neither", finite=True)
def ksg(
    x: Float[Tensor, "examples *p"],
    y: Float[Tensor, "examples *q"],
    *,
    k: int = 3,
    variant: int = 1,
    parts: int = 0,
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(X;Y) of two continuous variables by KSG 1 or 2. The same at any scale of a column.

    Variant 1 takes the cube that reaches the k-th neighbour in the joint space and counts, in x and y alone, who lies
    *strictly* inside, and one on the edge; where an example has several there, all of them. Variant 2 takes the
    smallest rectangle around the k neighbours and counts who lies in it, edge included.

    Args:
        k: neighbours. Few: little bias, more variance.
        parts: number of disjoint subsets whose spread gives the standard error (Holmes & Nemenman 2019), 5 for
            instance, up to twice too small in 5 dimensions and more; 0: no error, for theory has none.
        block: compare so many rows at a time with all, instead of searching trees.

    Raises:
        ValueError: mismatched rows, at most k examples, NaN, infinite values, constant columns, one example in twenty
            equal to another, k copies of one, classes (integers, or few values), a variant other than 1 or 2, `parts`
            or `block` that are no such numbers.

    Warns:
        UserWarning: more than 20 features together, where the estimate collapses; fewer equal examples.

    >>> x = torch.randn(1000, 1)
    >>> found = ksg(x, x + torch.randn(1000, 1), parts=5)
    >>> abs(float(found) - 0.5 * math.log(2)) < 0.2, found.unit, found.estimator
    (True, 'nats', 'ksg1')
    """
    _refuse_classes(x=x, y=y)
    x, y = _pair(x, y, k)
    one_of(variant=(variant, (1, 2)))
    _refuse_copies(torch.cat([x, y], 1), k)
    terms = functools.partial(_ksg_terms, k=k, variant=variant, block=block)
    assumes = f"independent examples of a density that is flat within {k} neighbours"
    return _averaged(terms, x, y, parts, unit, estimator=f"ksg{variant}", assumes=assumes)


ESTIMATORS.register("ksg2", title="KSG 2", x="continuous", y="continuous", bound="neither", finite=True)(
    functools.partial(ksg, variant=2)
)


def _ksg_terms(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int, variant: int, block: int | None
) -> Float[Tensor, "n"]:
    _check(len(x), k)
    near, n_x, n_y = (_ksg1_counts if variant == 1 else _ksg2_counts)(x, y, k, block)
    joint = torch.digamma(x.new_tensor(len(x))) + torch.digamma(near) - (0 if variant == 1 else 1 / near)
    return joint - torch.digamma(n_x) - torch.digamma(n_y)


def _pair(x: Any, y: Any, k: int) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
    """x and y, each column in its spread."""
    x, y = continuous(x).detach(), continuous(y, "y").detach()
    same_rows(x, y)
    _check(len(x), k)
    _warn_of_many(x.shape[1] + y.shape[1], len(x), "collapse towards 0")
    return standardised(x)[0], standardised(y)[0].to(x.device)


def _warn_of_many(features: int, n: int, fate: str) -> None:
    if features > MANY:
        warnings.warn(
            f"{features} features together: in so many dimensions the nearest of {n} examples are far away, and "
            f"estimates from neighbours {fate}; reduce the features first, or take them for Gaussian "
            "(estimator='gaussian', gaussian_entropy)",
            stacklevel=4,
        )


def _refuse_classes(**variables: Any) -> None:
    for name, values in variables.items():
        if is_discrete(values):
            raise ValueError(
                f"{name} holds integers or classes, not a continuous variable; use estimator='ross' for classes of a "
                "continuous variable, 'discrete' if both are classes, or give numbers as floats"
            )
        rows = continuous(values, name, constant=True)
        kinds = len(torch.unique(rows, dim=0))
        if 20 * kinds <= len(rows) and kinds > 1:
            raise ValueError(
                f"{name} has {kinds} different values in {len(rows)} examples, so it is discrete; use estimator='ross' "
                "for classes of a continuous variable, 'mixed' where parts are discrete, 'discrete' if both are"
            )


def _ksg1_counts(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int, block: int | None) -> tuple[Tensor, ...]:
    """As digamma's arguments, the neighbours within ε_i: in the joint space, in x and in y.

    Without ties these are k and one more than lie strictly inside, of which one reaches to the edge. Where several lie
    on the edge of a side, all of them count; among exact copies (ε_i = 0) the example itself, too.
    """
    joint = torch.cat([x, y], 1)
    if _use_tree(joint, block):
        radius = _kth_distance(joint, k, block)
        low, high = radius * (1 - TIE), radius * (1 + TIE)
        near = _count(joint, high) - 1
        inside, edge = [_count(z, low) for z in (x, y)], [_count(z, high) - 1 for z in (x, y)]
    else:

        def counts(rows: slice) -> tuple[Tensor, ...]:
            dx, dy = _distances(x[rows], x), _distances(y[rows], y)
            both = torch.maximum(dx, dy)
            radius = both.kthvalue(k + 1, keepdim=True).values
            low, high = radius * (1 - TIE), radius * (1 + TIE)
            sides = ((d < low).sum(1) for d in (dx, dy)), ((d <= high).sum(1) - 1 for d in (dx, dy))
            return radius[:, 0], (both <= high).sum(1) - 1, *sides[0], *sides[1]

        radius, near, *sides = _by_blocks(x, block, counts)
        inside, edge = sides[:2], sides[2:]
    atom = radius == 0
    n_x, n_y = (torch.where(atom, e + 1, torch.maximum(i, e)).double() for i, e in zip(inside, edge, strict=True))
    return (near + atom.long()).double(), n_x, n_y


def _ksg2_counts(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int, block: int | None) -> tuple[Tensor, ...]:
    """The number of neighbours within ε_i (k without ties), and of the others in the rectangle's sides."""
    joint = torch.cat([x, y], 1)
    if _use_tree(joint, block) and len(x) > k + 1:
        distances, index = _nearest(joint, k + 2)
        if (distances[:, k] * (1 + TIE) < distances[:, k + 1]).all():  # no ties: k neighbours each, and the point
            near = torch.from_numpy(index[:, : k + 1])
            sides = [(z[near] - z[:, None]).abs().amax((1, 2)) * (1 + TIE) for z in (x, y)]
            within = torch.full((len(x),), float(k), dtype=torch.float64)
            n_x, n_y = ((_count(z, side) - 1).double() for z, side in zip((x, y), sides, strict=True))
            return within, n_x, n_y

    def counts(rows: slice) -> tuple[Tensor, ...]:
        dx, dy = _distances(x[rows], x), _distances(y[rows], y)
        both = torch.maximum(dx, dy)
        radius = both.kthvalue(k + 1).values
        near = both <= radius[:, None] * (1 + TIE)
        sides = ((d <= (d * near).amax(1, keepdim=True) * (1 + TIE)).sum(1) - 1 for d in (dx, dy))
        return near.sum(1) - 1, *sides

    return tuple(_by_blocks(x, block, counts))


@ESTIMATORS.register("mixed", title="mixed KSG", x="any", y="any", bound="neither", finite=False, by_distance=True)
def mixed_ksg(
    x: Float[Tensor, "examples *p"],
    y: Float[Tensor, "examples *q"],
    *,
    k: int = 3,
    parts: int = 0,
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(X;Y) where either may have atoms and a density at once (Gao et al. 2017): ReLU layers, pixels, zero-inflated
    counts. Arguments as for `ksg`. The same at any scale of a column.

    An example with k copies takes all its copies as neighbours and counts copies in x and in y; any other counts as in
    KSG 1, up to the edge where neighbours are tied, with ψ(n_x) for the paper's ln(n_x + 1).

    Raises:
        ValueError: as for `ksg`, atoms excepted.

    Warns:
        UserWarning: as for `ksg`; of equal examples, where most have copies, but fewer than k.

    >>> x = torch.randn(1000, 1)
    >>> relu = x.clamp(min=0)  # half an atom, half a density
    >>> bool(mixed_ksg(relu, (x > 0).float()).value > 0.5)  # the truth is ln 2
    True
    """
    terms = functools.partial(_mixed_terms, k=k, block=block)
    assumes = "independent examples; atoms, or a density that is flat within k neighbours"
    x, y = _pair(x, y, k)
    _warn_of_copies(torch.cat([x, y], 1), k)
    return _averaged(terms, x, y, parts, unit, estimator="mixed", assumes=assumes)


def _mixed_terms(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int, block: int | None) -> Float[Tensor, "n"]:
    _check(len(x), k)
    near, n_x, n_y = _ksg1_counts(x, y, k, block)
    return torch.digamma(near) + math.log(len(x)) - torch.digamma(n_x) - torch.digamma(n_y)


@ESTIMATORS.register("ross", title="Ross", x="any", y="discrete", bound="neither", finite=False)
def ross(
    x: Float[Tensor, "examples *p"],
    y: Shaped[Tensor, "examples *columns"],
    *,
    k: int = 3,
    parts: int = 0,
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(X;Y) of a continuous X and a discrete Y, a class label for instance (Ross 2014); X may have atoms, too. The
    same at any scale of a column.

    For each example: the distance to its k-th neighbour among those of its own class, then how many of all classes lie
    within, up to the edge; where neighbours of its class are tied there, all of them count. Arguments as for `ksg`.

    Raises:
        ValueError: mismatched rows, a class with at most k examples, only one class, NaN, infinite values, constant
            columns.

    Warns:
        UserWarning: most examples have copies, but fewer than k.

    >>> y = torch.arange(2).repeat(500)
    >>> x = torch.randn(1000, 1) + 10 * y[:, None]
    >>> f"{ross(x, y, unit='bits').value:.1f}"  # two classes that never meet
    '1.0'
    """
    x = continuous(x).detach()
    labels, classes = discrete(y, "y")
    same_rows(x, labels)
    if classes < 2:
        raise ValueError("y has one class only: it carries no information; is it the right column?")
    terms = functools.partial(_ross_terms, k=k, block=block)
    assumes = f"independent examples; within each class a density that is flat within {k} neighbours"
    at_least(1, k=k)
    x, labels = standardised(x)[0], labels.to(x.device)
    _warn_of_copies(torch.cat([x, labels[:, None]], 1), k)
    return _averaged(terms, x, labels, parts, unit, estimator="ross", assumes=assumes)


def _ross_terms(x: Float[Tensor, "n p"], labels: Int[Tensor, "n"], k: int, block: int | None) -> Float[Tensor, "n"]:
    radius, near, sizes = (x.new_empty(len(x)) for _ in range(3))
    for c in labels.unique():
        members = labels == c
        own = x[members]
        _check(len(own), k, "examples of the rarest class")
        radius[members] = _kth_distance(own, k, block)
        near[members] = _within(own, radius[members] * (1 + TIE), block)
        sizes[members] = float(len(own))
    within = _within(x, radius * (1 + TIE), block)
    psi = torch.digamma
    return psi(x.new_tensor(len(x))) + psi(near) - psi(sizes) - psi(within)


def _within(x: Float[Tensor, "n d"], radius: Float[Tensor, "n"], block: int | None) -> Float[Tensor, "n"]:
    """How many others lie within distance ≤ radius_i of x_i."""
    if _use_tree(x, block):
        return _count(x, radius).double() - 1
    return _by_blocks(x, block, lambda rows: ((_distances(x[rows], x) <= radius[rows, None]).sum(1),))[0] - 1
