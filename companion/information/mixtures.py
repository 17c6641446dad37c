r"""Gaussian mixtures: information about a layer that adds noise.

A deterministic layer of continuous features has infinite information about its input. Add noise, T = h(X) + N(0, σ²I),
and with n equally likely inputs T is a mixture of n Gaussians, I(X;T) lies between 0 and ln n, and pairs of centres
bound it (Kolchinsky & Tracey 2017, arXiv 1706.02419):

    −⟨ln ⟨exp(−‖h_i − h_j‖²/8σ²)⟩_j⟩_i  ≤  I(X;T)  ≤  −⟨ln ⟨exp(−‖h_i − h_j‖²/2σ²)⟩_j⟩_i.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion._checks import between, one_of, require_number
from companion.information.estimates import Estimate, continuous, discrete, estimate, mean_error, same_rows
from companion.information.neighbors import _blocks

SIDES = {"upper": 2.0, "lower": 8.0}  # Kullback–Leibler distance above, Bhattacharyya distance below


def _spread(h: Float[Tensor, "n d"], noise: float, bound: str, block: int | None) -> Float[Tensor, "n"]:
    """−ln ⟨exp(−‖h_i − h_j‖² / (2 or 8) σ²)⟩_j for each i."""
    require_number(noise=noise)
    if not noise > 0:
        raise ValueError(
            f"noise={noise}: without noise a deterministic continuous layer has infinite information about its input. "
            "Give the standard deviation of the noise that the layer has or that you add, in units of its features"
        )
    between(1e-150, 1e150, noise=noise)  # float64 holds its square
    one_of(bound=(bound, SIDES))
    width = SIDES[bound] * noise**2
    h = h - h.mean(0)  # an offset would eat up the digits of the distances
    norms = h.square().sum(1)
    fine = noise**2 < 1e-10 * float(norms.detach().amax())  # the difference of norms is too coarse for so little noise
    parts = []
    for rows in _blocks(h, block):
        if fine:
            squared = torch.cdist(h[rows], h, compute_mode="donot_use_mm_for_euclid_dist").square()
        else:
            squared = (norms[rows, None] + norms[None, :] - 2 * h[rows] @ h.T).clamp(min=0)
        parts.append(math.log(len(h)) - torch.logsumexp(-squared / width, 1))
    return torch.cat(parts)


def kolchinsky_tracey(
    h: Float[Tensor, "examples features"],
    *,
    noise: float,
    bound: str = "upper",
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """Upper or lower bound of I(X;T) for T = h(X) + N(0, σ²I), σ the `noise`; differentiable.

    X is one of these examples, each with the same probability.

    It is a bound for *these* inputs: ln n is the most it can say, so examples must far outnumber what the layer tells
    apart. The value depends on `noise`, which belongs into every figure that shows it.

    Raises:
        ValueError: noise that is not positive, or whose square float64 does not hold; an unknown bound, NaN, infinite
            values.

    >>> apart = 1000 * torch.arange(8.0)[:, None]  # eight inputs that noise of 1 cannot mix up
    >>> f"{kolchinsky_tracey(apart, noise=1.0, unit='bits').value:.1f}"
    '3.0'
    """
    h = continuous(h, "h", constant=True)
    value, error = mean_error(_spread(h, noise, bound, block))
    assumes = f"Gaussian noise of deviation {noise:g} on every feature; equally likely examples"
    name = f"kolchinsky-tracey {bound}"
    return estimate(value, error, unit, estimator=name, assumes=assumes, bound=bound, examples=len(h))


def noisy_label_information(
    h: Float[Tensor, "examples features"],
    y: Int[Tensor, "examples"],
    *,
    noise: float,
    bound: str = "upper",
    unit: str = "nats",
    block: int | None = None,
) -> Estimate:
    """I(T;Y) = I(X;T) − Σ_y p(y) I(X;T | Y=y) for T = h(X) + N(0, `noise`²·I) and the label Y of X, each part by the
    bound of `kolchinsky_tracey`. Differentiable. A difference of bounds is no bound.

    Raises:
        ValueError: mismatched rows; see `kolchinsky_tracey`.

    >>> apart = 1000 * torch.arange(8.0)[:, None]
    >>> f"{noisy_label_information(apart, torch.arange(8) % 2, noise=1.0, unit='bits').value:.1f}"
    '1.0'
    """
    h = continuous(h, "h", constant=True)
    labels, classes = discrete(y, "y")
    same_rows(h, labels)
    terms = _spread(h, noise, bound, block)
    for c in range(classes):
        members = (labels.to(h.device) == c).nonzero()[:, 0]
        terms = terms.index_add(0, members, -_spread(h[members], noise, bound, block))
    value, error = mean_error(terms)
    assumes = f"Gaussian noise of deviation {noise:g} on every feature; equally likely examples"
    name = f"kolchinsky-tracey {bound}, by class"
    return estimate(value, error, unit, estimator=name, assumes=assumes, examples=len(h))
