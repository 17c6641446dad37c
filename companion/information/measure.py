"""`mutual_information`: one name for all estimators."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion.information.discrete import binned, discrete_mutual_information
from companion.information.estimates import Estimate, continuous, rounding_share
from companion.information.gaussian import gaussian_estimate
from companion.information.kernels import renyi
from companion.information.neighbors import ksg, mixed_ksg, ross
from companion.information.variational import variational_bound

ESTIMATORS: Mapping[str, Callable[..., Estimate]] = {
    "ksg": ksg,
    "ksg2": functools.partial(ksg, variant=2),
    "mixed": mixed_ksg,
    "ross": ross,
    "gaussian": gaussian_estimate,
    "binning": binned,
    "discrete": discrete_mutual_information,
    "renyi": renyi,
    "infonce": functools.partial(variational_bound, bound="infonce"),
    "nwj": functools.partial(variational_bound, bound="nwj"),
    "dv": functools.partial(variational_bound, bound="dv"),
}
CONTINUOUS = ("ksg", "ksg2", "infonce", "nwj", "dv")  # the truth must be finite for these to mean anything


def mutual_information(
    x: Float[Tensor, "examples p"],
    y: Float[Tensor, "examples q"],
    estimator: str = "ksg",
    *,
    unit: str = "nats",
    **options: Any,
) -> Estimate:
    """I(X;Y) from examples, by the estimator of one's choice.

    ================  =================  ================  =============================
    estimator         x                  y                 bound
    ================  =================  ================  =============================
    "ksg", "ksg2"     continuous         continuous        neither
    "mixed"           either, atoms too  either            neither
    "ross"            continuous         discrete          neither
    "gaussian"        Gaussian           Gaussian          neither
    "binning"         any, few columns   any, few columns  neither
    "discrete"        discrete           discrete          neither
    "renyi"           any                any               not Shannon's information
    "infonce", "nwj"  any                any               lower
    "dv"              any                any               neither, from a finite sample
    ================  =================  ================  =============================

    Args:
        x, y: rows are the same examples in the same order; a vector is one feature.
        options: the estimator's own, `k=3` for neighbours, `bins=10` for binning, `steps=2000` for a critic.

    Raises:
        ValueError: an unknown estimator; mismatched rows, NaN, infinite values, constant columns, too few examples.

    Warns:
        UserWarning: y is a linear function of x, or x of y: the true information of continuous variables is infinite.

    >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> y = x + torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    >>> print(f"{mutual_information(x, y, k=3).value:.1f} nats; the truth is {0.5 * torch.log(torch.tensor(2.0)):.2f}")
    0.3 nats; the truth is 0.35
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is unknown; use one of {list(ESTIMATORS)}")
    if estimator in CONTINUOUS:
        _warn_if_infinite(x, y)
    return ESTIMATORS[estimator](x, y, unit=unit, **options)


def _warn_if_infinite(x: Any, y: Any) -> None:
    """Looks for a linear function between x and y, the one case of infinite information that a sample gives away."""
    dtypes = [torch.as_tensor(z).dtype for z in (x, y)]
    x, y = continuous(x), continuous(y, "y").to(torch.as_tensor(x).device)
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
