"""Criteria: a score for each weight; those that score highest stay, or grow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion._registry import Registry

CRITERIA: Registry[Callable[[Tensor], Tensor]] = Registry("criterion")


@CRITERIA.register("magnitude", title="abs(w)")
def magnitude(weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`abs(w)`."""
    return weight.detach().abs()


@CRITERIA.register("gradient", title="abs(∂L/∂w)")
def gradient(weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`abs(∂L/∂w)`, also of weights under a mask.

    Raises:
        ValueError: there is no gradient.
    """
    if weight.grad is None:
        raise ValueError(
            "a weight has no gradient: call step() after backward() and optimizer.step(), before zero_grad()"
        )
    return weight.grad.abs()


def top(scores: Float[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """The k largest scores, exactly k of them; of equal ones the first, NaN last of all. No wait for the device.

    >>> top(torch.tensor([1.0, 3.0, 1.0, 1.0]), 3).tolist()
    [True, True, True, False]
    """
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    threshold = scores.kthvalue(len(scores) - k + 1).values
    above, tied = scores > threshold, scores == threshold
    return above | (tied & (tied.cumsum(0, dtype=torch.int32) <= k - above.sum()))
