r"""Nearest neighbours: entropy and mutual information of continuous variables without a model of their density.

If the k-th nearest neighbour of x_i is ε_i away, the density near x_i is about k/n over the volume of a ball of radius
ε_i. With max-norm balls, which are cubes, this gives

- Kozachenko & Leonenko (1987):  h(X) = ψ(n) − ψ(k) + d ⟨ln 2ε_i⟩;
- KSG (Kraskov, Stögbauer & Grassberger 2004, eqs. 8 and 9):  I₁ = ψ(n) + ψ(k) − ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩ and
  I₂ = ψ(n) + ψ(k) − 1/k − ⟨ψ(n_x) + ψ(n_y)⟩;
- Ross (2014), X continuous and Y discrete:  I = ψ(n) + ψ(k) − ⟨ψ(n_y) + ψ(m)⟩;
- Gao, Kannan, Oh & Viswanath (2017), mixtures of both:  I = ⟨ψ(k̃) + ln n − ψ(n_x) − ψ(n_y)⟩.

Distances are max-norm. In few dimensions a CPU searches k-d trees; otherwise, and on a GPU, blocks of rows are compared
with all: memory O(n · block). Chapter *Measuring information* derives all four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from scipy.spatial import KDTree
from torch import Tensor

from companion.information.estimates import (
    Estimate,
    TooFewExamplesError,
    continuous,
    discrete,
    estimate,
    mean_error,
    same_rows,
)

BLOCK = {"cpu": 2**20, "cuda": 2**25}  # distances in one block of rows
TREE = 16  # up to so many joint dimensions k-d trees are faster than comparing all pairs


# ----------------------------------------------------------------------------------------------------------- distances
def _distances(rows: Float[Tensor, "block d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "block n"]:
    """Max-norm distances, exact differences: equal distances are equal to the last bit."""
    if x.shape[1] == 1:
        return (rows - x.T).abs_()
    return torch.cdist(rows, x, p=float("inf"))


def _blocks(x: Float[Tensor, "n d"], block: int | None) -> Iterator[slice]:
    """Runs of rows, so that a block of distances fits."""
    n = len(x)
    size = block or max(1, BLOCK.get(x.device.type, BLOCK["cpu"]) // n)
    for start in range(0, n, size):
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
        return _exact(x[:, 0].sort().values, x[:, 0], radius)
    return torch.from_numpy(
        KDTree(x.numpy()).query_ball_point(x.numpy(), radius.numpy(), p=math.inf, return_length=True)
    )


def _nearest(x: Float[Tensor, "n d"], k: int) -> tuple[Any, Any]:
    """Distances of each point to the k points nearest to it, itself the first, and their places (CPU)."""
    return KDTree(x.numpy()).query(x.numpy(), k, p=math.inf)


def _exact(ordered: Float[Tensor, "n"], at: Float[Tensor, "n"], radius: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Number of sorted values v with |v − at_i| ≤ radius_i, the difference rounded as a distance is: searching for the
    sums at ± radius would round differently."""

    def first(holds: Callable[[Tensor], Tensor]) -> Int[Tensor, "n"]:
        """The first place whose value holds; all after it hold too."""
        low, high = torch.zeros_like(at, dtype=torch.long), torch.full_like(at, len(ordered), dtype=torch.long)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            yes = holds(ordered[middle.clamp(max=len(ordered) - 1)])
            low, high = torch.where(open_ & ~yes, middle + 1, low), torch.where(open_ & yes, middle, high)
        return low

    return first(lambda v: v - at > radius) - first(lambda v: at - v <= radius)


def _kth_distance(x: Float[Tensor, "n d"], k: int, block: int | None) -> Float[Tensor, "n"]:
    """Distance of each point to its k-th nearest other point."""
    if _use_tree(x, block):
        return torch.from_numpy(_nearest(x, k + 1)[0][:, k])
    return _by_blocks(x, block, lambda rows: (_distances(x[rows], x).kthvalue(k + 1).values,))[0]


def _check(n: int, k: int, what: str = "examples") -> None:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k={k} must be a whole number of neighbours, at least 1")
    if n <= k:
        raise TooFewExamplesError(f"{n} {what} have no {k}-th neighbour each: need more than k = {k}, or a smaller k")


def _refuse_atoms(distances: Float[Tensor, "n"], k: int) -> None:
    same = int((distances == 0).sum())
    if same:
        raise ValueError(
            f"{same} examples have {k} others exactly equal to them; a continuous variable never does. Use "
            "estimator='mixed' if parts are discrete (ReLU zeros, pixels), 'discrete' if all is, or drop duplicates"
        )


# ------------------------------------------------------------------------------------------------------------- entropy
def entropy(
    x: Float[Tensor, "examples features"], *, k: int = 3, unit: str = "nats", block: int | None = None
) -> Estimate:
    """Differential entropy h(X) by Kozachenko & Leonenko: ψ(n) − ψ(k) + d ⟨ln 2ε_i⟩.

    Args:
        block: compare so many rows at a time with all, instead of searching trees.

    Raises:
        ValueError: fewer than k + 1 examples, NaN, infinite values, constant columns, repeated examples.

    >>> f"{entropy(10 * torch.rand(2000, 1)).value:.1f}, ln 10 = {math.log(10):.3f}"
    '2.3, ln 10 = 2.303'
    """
    x = continuous(x)
    n, d = x.shape
    _check(n, k)
    distances = _kth_distance(x, k, block)
    _refuse_atoms(distances, k)
    offset = torch.digamma(torch.tensor([n, k], dtype=torch.float64))
    value, error = mean_error(d * (2 * distances).log())
    assumes = "independent examples of a density that is flat within k neighbours"
    value = value + float(offset[0] - offset[1])
    return estimate(value, error, unit, estimator="kozachenko-leonenko", assumes=assumes, examples=n)


# -------------------------------------------------------------------------------------------------- mutual information
def _error(parts: int, n: int, value: Callable[[Tensor], Tensor]) -> Float[Tensor, ""] | None:
    """Standard error by Holmes & Nemenman (2019): the variance over `parts` disjoint subsets of n/parts examples,
    divided by `parts`, since the variance goes like 1/n. None for 0 parts."""
    if parts == 0:
        return None
    if parts < 2:
        raise ValueError(f"parts={parts}; a spread needs at least 2 subsets, 5 for instance; 0 for no error")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return torch.stack([value(rows) for rows in order.chunk(parts)]).std() / parts**0.5


def ksg(
    x: Float[Tensor, "examples p"],
    y: Float[Tensor, "examples q"],
    *,
    k: int = 3,
    variant: int = 1,
    parts: int = 0,
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(X;Y) of two continuous variables by KSG 1 or 2.

    Variant 1 takes the cube that reaches the k-th neighbour in the joint space and counts, in x and y alone, who lies
    *strictly* inside. Variant 2 takes the smallest rectangle around the k neighbours and counts who lies in it, edge
    included; neighbours at equal distance count together. Nothing is added to the data to break ties.

    Args:
        k: neighbours. Few: little bias, more variance.
        parts: number of disjoint subsets whose spread gives the standard error (Holmes & Nemenman 2019), 5 for
            instance; 0: no error. Theory has none; the spread of the n terms, which depend on each other, is up to
            twice too small, and so is this one where a subset's neighbours are far, in 5 dimensions and more.
        block: compare so many rows at a time with all, instead of searching trees.

    Raises:
        ValueError: mismatched rows, at most k examples, NaN, infinite values, constant columns, examples with k exact
            copies, a variant other than 1 or 2.

    >>> x = torch.randn(1000, 1)
    >>> found = ksg(x, x + torch.randn(1000, 1), parts=5)
    >>> abs(float(found) - 0.5 * math.log(2)) < 0.2, found.unit, found.estimator
    (True, 'nats', 'ksg1')
    """
    x, y = _pair(x, y, k)
    if variant not in (1, 2):
        raise ValueError(f"variant={variant!r} is unknown; KSG has variants 1 and 2")
    n = len(x)
    psi = torch.digamma(torch.tensor([n, k], dtype=torch.float64, device=x.device))
    if variant == 1:
        radius, n_x, n_y = _ksg1_counts(x, y, k, block)
        terms = psi.sum() - torch.digamma(n_x.double() + 1) - torch.digamma(n_y.double() + 1)
    else:
        radius, within, n_x, n_y = _ksg2_counts(x, y, k, block)
        terms = psi[0] + torch.digamma(within) - 1 / within - torch.digamma(n_x.double()) - torch.digamma(n_y.double())
    _refuse_atoms(radius, k)
    error = _error(parts, n, lambda rows: ksg(x[rows], y[rows], k=k, variant=variant, block=block).value)
    assumes = f"independent examples of a density that is flat within {k} neighbours"
    return estimate(terms.mean(), error, unit, estimator=f"ksg{variant}", assumes=assumes, examples=n)


def _pair(x: Any, y: Any, k: int) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
    x, y = continuous(x).detach(), continuous(y, "y").detach()
    same_rows(x, y)
    _check(len(x), k)
    return x, y.to(x.device)


def _ksg1_counts(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int, block: int | None
) -> tuple[Float[Tensor, "n"], Num[Tensor, "n"], Num[Tensor, "n"]]:
    """ε_i, and how many others lie strictly closer than ε_i in x and in y."""
    joint = torch.cat([x, y], 1)
    if _use_tree(joint, block):
        radius = _kth_distance(joint, k, block)
        inside = torch.nextafter(radius, torch.zeros_like(radius))
        return radius, _count(x, inside) - 1, _count(y, inside) - 1

    def counts(rows: slice) -> tuple[Tensor, ...]:
        dx, dy = _distances(x[rows], x), _distances(y[rows], y)
        radius = torch.maximum(dx, dy).kthvalue(k + 1).values
        return radius, *((d < radius[:, None]).sum(1) - 1 for d in (dx, dy))

    radius, n_x, n_y = _by_blocks(x, block, counts)
    return radius, n_x, n_y


def _ksg2_counts(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], k: int, block: int | None
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Num[Tensor, "n"], Num[Tensor, "n"]]:
    """ε_i, the number of neighbours within it (k without ties), and the others in the rectangle's sides."""
    joint = torch.cat([x, y], 1)
    n = len(x)
    if _use_tree(joint, block) and n > k + 1:
        distances, index = _nearest(joint, k + 2)
        if (distances[:, k] < distances[:, k + 1]).all():  # no ties: k neighbours each (and the point itself, at 0)
            near = torch.from_numpy(index[:, : k + 1])
            sides = [(z[near] - z[:, None]).abs().amax((1, 2)) for z in (x, y)]
            within = torch.full((n,), float(k), dtype=torch.float64)
            return torch.from_numpy(distances[:, k]), within, _count(x, sides[0]) - 1, _count(y, sides[1]) - 1

    def counts(rows: slice) -> tuple[Tensor, ...]:
        dx, dy = _distances(x[rows], x), _distances(y[rows], y)
        both = torch.maximum(dx, dy)
        radius = both.kthvalue(k + 1).values
        near = both <= radius[:, None]
        sides = ((d <= (d * near).amax(1, keepdim=True)).sum(1) - 1 for d in (dx, dy))
        return radius, near.sum(1) - 1, *sides

    radius, within, n_x, n_y = _by_blocks(x, block, counts)
    return radius, within, n_x, n_y


def mixed_ksg(
    x: Float[Tensor, "examples p"],
    y: Float[Tensor, "examples q"],
    *,
    k: int = 3,
    parts: int = 0,
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(X;Y) where either may have atoms and a density at once (Gao et al. 2017): ReLU layers, pixels, zero-inflated
    counts. Arguments as for `ksg`.

    An example with k copies takes all its copies as neighbours and counts copies in x and in y; any other counts as in
    KSG 1. The paper writes ln(n_x + 1), counted up to the edge, for ψ(n_x): that is further off where one side is at an
    atom and the other is not.

    Raises:
        ValueError: mismatched rows, at most k examples, NaN, infinite values, constant columns.

    >>> x = torch.randn(1000, 1)
    >>> relu = x.clamp(min=0)  # half an atom, half a density
    >>> bool(mixed_ksg(relu, (x > 0).float()).value > 0.5)  # the truth is ln 2
    True
    """
    x, y = _pair(x, y, k)
    n = len(x)

    def counts(rows: slice) -> tuple[Tensor, ...]:
        dx, dy = _distances(x[rows], x), _distances(y[rows], y)
        both = torch.maximum(dx, dy)
        radius = both.kthvalue(k + 1, keepdim=True).values
        atom = radius == 0
        near = torch.where(atom[:, 0], (both == 0).sum(1), k)
        return near, *(torch.where(atom, d == 0, d < radius).sum(1) for d in (dx, dy))

    near, n_x, n_y = _by_blocks(x, block, counts)
    terms = torch.digamma(near) + math.log(n) - torch.digamma(n_x) - torch.digamma(n_y)
    error = _error(parts, n, lambda rows: mixed_ksg(x[rows], y[rows], k=k, block=block).value)
    assumes = "independent examples; atoms, or a density that is flat within k neighbours"
    return estimate(terms.mean(), error, unit, estimator="mixed", assumes=assumes, examples=n)


def ross(
    x: Float[Tensor, "examples p"],
    y: Int[Tensor, "examples *columns"],
    *,
    k: int = 3,
    parts: int = 0,
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(X;Y) of a continuous X and a discrete Y, a class label for instance (Ross 2014).

    For each example: the distance to its k-th neighbour among those of its own class, then how many of all classes lie
    within. Arguments as for `ksg`.

    Raises:
        ValueError: mismatched rows, a class with at most k examples, only one class, NaN, infinite values, constant
            columns, examples with k exact copies in their class.

    >>> y = torch.arange(2).repeat(500)
    >>> x = torch.randn(1000, 1) + 10 * y[:, None]
    >>> f"{ross(x, y, unit='bits').value:.1f}"  # two classes that never meet
    '1.0'
    """
    x = continuous(x).detach()
    labels, classes = discrete(y, "y")
    same_rows(x, labels)
    labels, n = labels.to(x.device), len(x)
    sizes = torch.bincount(labels, minlength=classes)
    if classes < 2:
        raise ValueError("y has one class only: it carries no information; is it the right column?")
    _check(int(sizes.min()), k, "examples of the rarest class")
    radius = x.new_empty(n)
    for c in range(classes):
        members = labels == c
        radius[members] = _kth_distance(x[members], k, block)
    _refuse_atoms(radius, k)
    inside = torch.nextafter(radius, torch.zeros_like(radius))
    if _use_tree(x, block):
        within = _count(x, inside).double()
    else:
        (within,) = _by_blocks(x, block, lambda rows: ((_distances(x[rows], x) <= inside[rows, None]).sum(1),))
    psi = torch.digamma(torch.tensor([n, k], dtype=torch.float64, device=x.device)).sum()
    # `within` counts the point itself, strictly inside; the k-th neighbour on the edge makes up for it.
    terms = psi - torch.digamma(sizes[labels].double()) - torch.digamma(within)
    error = _error(parts, n, lambda rows: ross(x[rows], labels[rows], k=k, block=block).value)
    assumes = f"independent examples; within each class a density that is flat within {k} neighbours"
    return estimate(terms.mean(), error, unit, estimator="ross", assumes=assumes, examples=n)
