"""Schedules: how sparse at which time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from companion._checks import at_least

SparsitySchedule: TypeAlias = Callable[[float, float], float]
"""A function of (t, final) to a sparsity: t is the share of the pruning that has passed, `final` the sparsity at 1."""


def constant(t: float, final: float) -> float:
    """The same all the time.

    >>> [constant(t, final=0.9) for t in (0.0, 0.5, 1.0)]
    [0.9, 0.9, 0.9]
    """
    return final


def one_shot(t: float, final: float, at: float = 1.0) -> float:
    """Dense until t = `at`, then all at once.

    >>> [one_shot(t, final=0.9, at=0.5) for t in (0.0, 0.5, 1.0)]
    [0.0, 0.9, 0.9]
    """
    return final if t >= at else 0.0


def iterative(t: float, final: float, levels: int = 5) -> float:
    """1 − (1 − final)^(level/levels): every level takes the same share of what is left (Frankle & Carbin 2019).

    >>> [round(iterative(t, final=0.75, levels=2), 3) for t in (0.0, 0.5, 1.0)]
    [0.0, 0.5, 0.75]

    Raises:
        ValueError: fewer than one level.
    """
    at_least(1, levels=levels)
    return 1 - (1 - final) ** (math.floor(t * levels + 1e-9) / levels)


def cubic(t: float, final: float, initial: float = 0.0) -> float:
    """initial + (final − initial)(1 − (1 − t)³): fast while there is much to spare (Zhu & Gupta 2017, 1710.01878).

    >>> [round(cubic(t, final=0.8), 3) for t in (0.0, 0.5, 1.0)]
    [0.0, 0.7, 0.8]
    """
    return initial + (final - initial) * (1 - (1 - t) ** 3)


def cosine_decay(t: float, start: float, floor: float = 0.0) -> float:
    """Half a cosine from `start` to `floor`: the share of weights that one prune-and-grow update exchanges.

    >>> [round(cosine_decay(t, start=0.3), 3) for t in (0.0, 0.5, 1.0)]
    [0.3, 0.15, 0.0]
    """
    return floor + (start - floor) * (1 + math.cos(math.pi * t)) / 2
