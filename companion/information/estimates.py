"""What every estimator returns, and what every estimator refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import stdtrit
from torch import Tensor

from companion._checks import one_of
from companion._numbers import _resolution, as_tensor, float64, float64_device
from companion._registry import Registry

UNITS = {"nats": 1.0, "bits": math.log(2)}
BOUNDS = ("upper", "lower", "neither")

# Estimators of mutual information, registered where they are defined: `title`; what `x` and `y` may be; the `bound`
# that the estimate is; `finite`: whether the truth must be finite for it to mean anything; `by_distance`, of those that
# go by how far apart numbers are and do not refuse classes themselves: they get them as numbers, with a warning.
ESTIMATORS: Registry[Callable[..., "Estimate"]] = Registry("estimator")


class TooFewExamplesError(ValueError):
    """An estimator needs more examples than it was given; with more, the same call works."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An information quantity, how sure it is, and what was believed to get it.

    Attributes:
        value: the estimate, float64; a graph hangs on it where the estimator is differentiable.
        error: its standard error, or None where theory gives none.
        unit: `"nats"` or `"bits"`.
        estimator: the name of the estimator.
        assumes: what must hold for the value to mean anything, in words.
        bound: whether the estimator's expectation is an `"upper"` or a `"lower"` bound of the truth, or `"neither"`.
        examples: the number of examples it rests on.
        df: the error's degrees of freedom, one less than the parts or batches that it is the spread of; infinite where
            it comes from all examples.

    >>> found = Estimate(torch.tensor(1.0), torch.tensor(0.1), "nats", "ksg1", "independent examples")
    >>> found.to("bits")
    1.443 ± 0.14 bits, ksg1; assumes independent examples
    >>> tuple(round(side, 2) for side in found.interval())
    (0.8, 1.2)
    """

    value: Float[Tensor, ""]
    error: Float[Tensor, ""] | None
    unit: str
    estimator: str
    assumes: str
    bound: str = "neither"
    examples: int = 0
    df: float = math.inf

    def __float__(self) -> float:
        return float(self.value)

    def interval(self, z: float | None = None) -> tuple[float, float]:
        """value ± z · error, by default the 95 % interval of the *expectation*: bias is not in it. Its z is Student's
        for the degrees of freedom of the error, 2.78 for five parts; the normal 1.96 for infinitely many.

        Raises:
            ValueError: the theory of this estimator gives no error.
        """
        if self.error is None:
            raise ValueError(
                f"{self.estimator} has no standard error; repeat it on subsamples (parts=5) to see its spread"
            )
        if z is None:
            z = 1.96 if math.isinf(self.df) else float(stdtrit(self.df, 0.975))
        return float(self.value - z * self.error), float(self.value + z * self.error)

    def to(self, unit: str) -> Estimate:
        """The same in another unit."""
        factor = UNITS[self.unit] / scale(unit)
        error = None if self.error is None else self.error * factor
        return replace(self, value=self.value * factor, error=error, unit=unit)

    def __repr__(self) -> str:
        spread = "" if self.error is None else f" ± {float(self.error):.2g}"
        bound = "" if self.bound == "neither" else f" ({self.bound} bound)"
        return f"{float(self.value):.4g}{spread} {self.unit}{bound}, {self.estimator}; assumes {self.assumes}"


def estimate(value: Tensor, error: Tensor | None, unit: str, **rest: Any) -> Estimate:
    """An `Estimate` in `unit` from a value and an error in nats."""
    return Estimate(value, error, "nats", **rest).to(unit)


def scale(unit: str) -> float:
    """Nats in one `unit`.

    Raises:
        ValueError: neither nats nor bits.
    """
    one_of(unit=(unit, UNITS))
    return UNITS[unit]


def mean_error(terms: Float[Tensor, "n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
    """Mean of per-example terms and its standard error, as if the terms were independent; None for one term."""
    error = terms.detach().std() / math.sqrt(len(terms)) if len(terms) > 1 else None
    return terms.mean(), error


# --------------------------------------------------------------------------------------------------------------- input
def continuous(x: Any, name: str = "x", *, constant: bool = False) -> Float[Tensor, "examples features"]:
    """x as a float64 matrix, rows are examples; refuses what no estimator can use.

    A vector is one feature; maps are flattened. Constant columns, whose values differ by no more than rounding in the
    dtype of x, are refused unless `constant` is allowed.

    Raises:
        ValueError: no rows, NaN or infinite values, constant columns.
    """
    x = as_tensor(x, name)
    if x.ndim == 0 or x.shape[0] == 0 or x.numel() == 0:
        raise ValueError(f"{name} must be (examples, features) with at least one of each; got shape {tuple(x.shape)}")
    dtype, x = x.dtype, float64(x[:, None] if x.ndim == 1 else x.flatten(1))
    if not torch.isfinite(x).all():
        rows = (~torch.isfinite(x)).any(1).nonzero()[:, 0]
        raise ValueError(f"{name} holds NaN or infinite values in {len(rows)} rows, the first is {int(rows[0])}")
    if not constant:
        same = constant_columns(x, dtype).nonzero()[:, 0].tolist()
        if same:
            raise ValueError(
                f"{name} has {len(same)} constant columns, the first is {same[0]}; they carry no information: "
                f"drop them with x[:, (x - x.mean(0)).abs().amax(0) > {_resolution(dtype):.1e} * x.abs().amax(0)]"
            )
    return x


def constant_columns(x: Float[Tensor, "examples features"], dtype: torch.dtype) -> Bool[Tensor, "features"]:
    """Which columns are constant but for the rounding of `dtype`, in which they were computed."""
    return (x - x.mean(0)).abs().amax(0) <= _resolution(dtype) * x.abs().amax(0)


def rounding_share(x: Float[Tensor, "examples features"], dtype: torch.dtype) -> Float[Tensor, "features"]:
    """The share of each column's variance that may be the rounding of `dtype`, in which it was computed."""
    return _resolution(dtype) ** 2 * x.square().sum(0) / (x - x.mean(0)).square().sum(0)


def discrete(x: Any, name: str = "x") -> tuple[Tensor, int]:
    """Labels 0 … m−1 of the symbols in x, and their number m. A row of a matrix is one symbol; words are symbols, too.

    Raises:
        ValueError: no rows, NaN, or symbols that look continuous (floating-point values, nearly all of them different).
    """
    if not isinstance(x, Tensor) and _words(words := np.asarray(x)):
        x = np.unique(words, return_inverse=True)[1].reshape(words.shape)
    x = as_tensor(x, name)
    if x.ndim == 0 or x.shape[0] == 0 or x.numel() == 0:
        raise ValueError(f"{name} must hold one symbol for each example; got shape {tuple(x.shape)}")
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinite values; a symbol is an integer or a finite number")
    symbols, labels = torch.unique(x.reshape(len(x), -1), dim=0, return_inverse=True)
    if x.is_floating_point() and len(x) > 20 and len(symbols) > 0.9 * len(x):
        raise ValueError(
            f"{name} has {len(symbols)} different values in {len(x)} examples, so it looks continuous; "
            "use a continuous estimator, or bin it first: information.bin_index(x, information.bin_edges(x, bins))"
        )
    return labels.reshape(-1).to(float64_device(labels.device)), len(symbols)


def same_rows(x: Any, y: Any) -> None:
    """Refuses x and y that do not have the same examples."""
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y {len(y)}; they must be the same examples in the same order")


def is_discrete(x: Any) -> bool:
    """Whether x holds classes or counts by its type: integers, truth values or words."""
    if isinstance(x, Tensor):
        return not x.is_floating_point() and not x.is_complex()
    values = np.asarray(x)
    return values.dtype.kind in "biu" or _words(values)


def is_classes(x: Any) -> bool:
    """Whether x is one column of those: several are counts or pixels rather than classes."""
    return is_discrete(x) and math.prod(np.shape(x)[1:]) == 1


def _words(values: np.ndarray) -> bool:
    return values.dtype.kind in "US" or (values.dtype == object and all(isinstance(v, str) for v in values.flat))


def standardised(
    x: Float[Tensor, "examples features"],
) -> tuple[Float[Tensor, "examples features"], Float[Tensor, "features"]]:
    """Each column from its median on, in units of its spread, and that spread: the median of |x − median|, which heavy
    tails do not move; where it is 0, more than half of a column being one value, the root mean square of x − median."""

    def median(z: Tensor) -> Tensor:
        ordered = z.sort(0).values
        return (ordered[(len(z) - 1) // 2] + ordered[len(z) // 2]) / 2

    x = x - median(x)
    middle = median(x.abs())
    spread = torch.where(middle > 0, middle, x.square().mean(0).sqrt())
    return x / spread, spread
