"""Densities: how many weights each layer keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from companion._checks import between
from companion._registry import Registry

Shapes: TypeAlias = Mapping[str, Sequence[int]]
DENSITIES: Registry[Callable[[Shapes, float, Collection[str]], dict[str, int]]] = Registry("density")


@DENSITIES.register("uniform", title="uniform")
def uniform(shapes: Shapes, sparsity: float, dense: Collection[str] = ()) -> dict[str, int]:
    """Weights that each layer keeps when all have the same density.

    Args:
        shapes: layer → shape of its weight.
        sparsity: share of all weights that go. Exact: `round(sparsity · N)` of N weights.
        dense: layers that keep all; the others pay for them.

    Raises:
        ValueError: a sparsity outside [0, 1), an unknown layer, or dense layers that hold more than what is kept.

    >>> uniform({"conv": (16, 3, 3, 3), "linear": (10, 16)}, sparsity=0.8)
    {'conv': 86, 'linear': 32}
    """
    return whole(spread({name: math.prod(shape) for name, shape in shapes.items()}, shapes, sparsity, dense))


@DENSITIES.register("erk", title="Erdős–Rényi-kernel")
def erk(shapes: Shapes, sparsity: float, dense: Collection[str] = ()) -> dict[str, int]:
    """Weights that each layer keeps under Erdős–Rényi-kernel densities (Evci et al. 2020, arXiv 1911.11134).

        density_l = ε · (n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w),

    without the kernel's part for a linear layer; ε follows from the sparsity, and a layer that would be denser than 1
    is dense. Arguments and errors as for `uniform`.

    >>> erk({"conv": (16, 3, 3, 3), "linear": (10, 16)}, sparsity=0.8)
    {'conv': 58, 'linear': 60}
    """
    return whole(spread({name: sum(shape) for name, shape in shapes.items()}, shapes, sparsity, dense))


def spread(parts: Mapping[str, int], shapes: Shapes, sparsity: float, dense: Collection[str] = ()) -> dict[str, float]:
    """Share out what is kept in proportion to `parts`, no layer getting more than it has; not yet whole numbers."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    kept, full = number_kept(sum(sizes.values()), sparsity), set(dense)
    if full - sizes.keys():
        raise ValueError(f"dense={sorted(full - sizes.keys())}: no such layer; there are {list(sizes)}")
    while True:
        rest = kept - sum(sizes[name] for name in full)
        if rest < 0:
            raise ValueError(
                f"sparsity={sparsity} keeps {kept} weights, the dense layers alone have {kept - rest}: "
                "lower the sparsity, or let fewer layers be dense"
            )
        epsilon = rest / (sum(parts[name] for name in sizes if name not in full) or 1)
        over = {name for name in sizes if name not in full and epsilon * parts[name] > sizes[name]}
        if not over:
            return {name: sizes[name] if name in full else epsilon * parts[name] for name in sizes}
        full |= over


def whole(shares: Mapping[str, float]) -> dict[str, int]:
    """Round to whole numbers with the same sum, each within one (method of the largest remainder)."""
    counts = {name: math.floor(share + 1e-9) for name, share in shares.items()}
    missing = round(sum(shares.values())) - sum(counts.values())
    for name in sorted(shares, key=lambda name: counts[name] - shares[name])[:missing]:
        counts[name] += 1
    return counts


def within(counts: Mapping[str, int], alive: Mapping[str, int]) -> dict[str, int]:
    """Counts with the same sum, as far as there is so much, none of them above what is alive.

    >>> within({"conv": 60, "linear": 40}, {"conv": 50, "linear": 90}), within({"conv": 60}, {"conv": 50})
    ({'conv': 50, 'linear': 50}, {'conv': 50})
    """
    most = {name: min(count, alive[name]) for name, count in counts.items()}
    room = {name: alive[name] - count for name, count in most.items()}
    excess = min(sum(counts.values()) - sum(most.values()), sum(room.values()))
    more = whole({name: excess * free / (sum(room.values()) or 1) for name, free in room.items()})
    return {name: most[name] + more[name] for name in counts}


def number_kept(weights: int, sparsity: float) -> int:
    """Of so many weights `round(sparsity · weights)` go; the number that stays."""
    between(0, 1, open_high=True, sparsity=sparsity)
    return weights - round(float(sparsity) * weights)  # a tensor of one number, too
