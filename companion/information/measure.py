"""`mutual_information`: one name for all estimators."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from companion._numbers import as_tensor, float64
from companion.information.estimates import (
    ESTIMATORS,
    Estimate,
    continuous,
    is_classes,
    is_discrete,
    rounding_share,
    scale,
)


def mutual_information(
    x: Shaped[Tensor, "examples *p"],
    y: Shaped[Tensor, "examples *q"],
    estimator: str | None = None,
    *,
    unit: str = "nats",
    **options: Any,
) -> Estimate:
    """I(X;Y) from examples, by the estimator of one's choice; `estimators()` tells them apart.

    Args:
        x, y: rows are the same examples in the same order; a vector is one feature.
        estimator: None: by the types. Floats on both sides: `"ksg"`. Integers, truth values or words on one side are
            classes: `"ross"`; on both: `"discrete"`.
        options: the estimator's own, `k=3` for neighbours, `bins=10` for binning, `steps=2000` for a critic.

    Raises:
        ValueError: an unknown estimator; mismatched rows, NaN, infinite values, constant columns, too few examples,
            classes where the estimator takes continuous variables.

    Warns:
        UserWarning: y is a linear function of x, or x of y: the true information of continuous variables is infinite;
            or the estimator takes one column of classes for numbers.

    >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> y = x + torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    >>> print(f"{mutual_information(x, y, k=3).value:.1f} nats; the truth is {0.5 * torch.log(torch.tensor(2.0)):.2f}")
    0.3 nats; the truth is 0.35
    """
    classes = is_discrete(x), is_discrete(y)
    if estimator is None:
        estimator = ("ksg", "ross", "discrete")[sum(classes)]
        if classes == (True, False):
            x, y = y, x
    measure = ESTIMATORS[estimator]
    scale(unit)  # refused before anything is computed
    if ESTIMATORS.facts[estimator].get("by_distance"):
        x, y = _numbers(x, "x", estimator), _numbers(y, "y", estimator)
    if ESTIMATORS.facts[estimator]["finite"] and not any(classes):
        _warn_if_infinite(x, y)
    return measure(x, y, unit=unit, **options)


def _numbers(values: Any, name: str, estimator: str) -> Any:
    """Integers as floats; of one column, which looks like classes, it is said."""
    if not is_discrete(values):
        return values
    if is_classes(values):
        warnings.warn(
            f"{name} is one column of integers or classes, and {estimator!r} goes by how far apart their numbers are: "
            "for classes use estimator='ross' or 'discrete', counts give as floats",
            stacklevel=3,
        )
    return float64(as_tensor(values, name))


def estimators() -> dict[str, dict[str, str]]:
    """What each estimator of `mutual_information` is called, takes for x and y, and is a bound of.

    >>> estimators()["ross"]
    {'title': 'Ross', 'x': 'any', 'y': 'discrete', 'bound': 'neither'}
    """
    return {
        name: {fact: facts[fact] for fact in ("title", "x", "y", "bound")} for name, facts in ESTIMATORS.facts.items()
    }


def _warn_if_infinite(x: Any, y: Any) -> None:
    """Looks for a linear function between x and y, the one case of infinite information that a sample gives away."""
    dtypes = [as_tensor(z, "x and y").dtype for z in (x, y)]
    x = continuous(x)
    y = continuous(y, "y").to(x.device)
    if len(x) != len(y) or len(x) <= x.shape[1] + y.shape[1] + 1:
        return
    rounding = [rounding_share(z, dtype) for z, dtype in zip((x, y), dtypes, strict=True)]
    x, y = ((z - z.mean(0)) / z.std(0) for z in (x, y))
    for one, other, share in ((x, y, rounding[0].amax() + rounding[1]), (y, x, rounding[1].amax() + rounding[0])):
        rest = other - one @ torch.linalg.lstsq(one, other).solution
        if (rest.square().mean(0) <= share).any():
            warnings.warn(
                "one variable is a linear function of the other without noise: for continuous variables the true "
                "information is infinite, and what an estimator returns only grows with the number of examples. Say "
                "what noise there is (kolchinsky_tracey), or bin (estimator='binning') and name the bin width",
                stacklevel=3,
            )
            return
