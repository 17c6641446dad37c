"""The linear kernel matrix of centred features, computed faster than the equation says."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # examples


class CenteredGram(torch.autograd.Function):
    """K = X̃X̃ᵀ of centred features X̃, with ‖X̃‖² and ‖mean‖².

    Since K is symmetric, the backward pass ∂L/∂X̃ = (G + Gᵀ) X̃ is one product, where autograd would take two.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "n features"]) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        centred = x - mean  # in the precision of the mean, without a copy of x in it
        k = _upper_blocks(centred) if x.device.type == "cpu" and len(x) > 2 * BLOCK else centred @ centred.T
        k = k.triu() + k.triu(1).T  # symmetric to the last bit
        spread, offset = k.trace(), mean.square().sum()
        ctx.mark_non_differentiable(spread, offset)
        ctx.save_for_backward(centred)
        return k, spread, offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors
        g = g + g.T
        return (g - g.mean(0)) @ centred  # centring back: of the few columns of G, not of the many of the product


def _upper_blocks(x: Float[Tensor, "n features"]) -> Float[Tensor, "n n"]:
    """XXᵀ, only its blocks on and above the diagonal: 5/8 of the work for 256 examples."""
    k = x.new_zeros(len(x), len(x))
    for i in range(0, len(x), BLOCK):
        k[i : i + BLOCK, i:] = x[i : i + BLOCK] @ x[i:].T
    return k
