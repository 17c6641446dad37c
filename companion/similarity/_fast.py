"""The linear kernel matrix of centred features, computed faster than the equation says."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# K's rows in a block, and how many numbers of X̃ stay in a processor's cache meanwhile, but so many columns at least.
# No powers of two: rows of 2 KiB would contend for the same lines of it.
BLOCK, CACHED, COLUMNS = 48, 73_728, 384


class CenteredGram(torch.autograd.Function):
    """K = X̃X̃ᵀ of centred features X̃, with ‖X̃‖² and ‖mean‖².

    Since K is symmetric, a processor computes only its blocks on and above the diagonal, and the backward pass
    ∂L/∂X̃ = (G + Gᵀ) X̃ is one product, where autograd would take two. X̃ is never written as a whole.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "n features"]) -> tuple[Tensor, Tensor, Tensor]:
        n, p = x.shape
        in_parts = x.is_cpu and not torch.compiler.is_compiling()
        block, ctx.columns = (BLOCK, max(COLUMNS, CACHED // max(n, 1))) if in_parts else (max(n, 1), max(p, 1))
        # In the precision of the mean, without a copy of x in it.
        mean = x.new_empty(p, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        k, centred = mean.new_zeros(n, n), _buffer(mean, n, ctx.columns)
        products: list[tuple[Tensor, ...]] = []
        for part, own in zip(x.split(ctx.columns, 1), mean.split(ctx.columns), strict=True):
            if not products or len(own) < ctx.columns:
                centred = centred[:, : len(own)]
                products = [(k[i : i + block, i:], centred[i : i + block], centred[i:].T) for i in range(0, n, block)]
            torch.sub(part, torch.mean(part, 0, dtype=own.dtype, out=own), out=centred)
            for into, rows, columns in products:
                into.addmm_(rows, columns)
        k = k.triu() + k.triu(1).T  # symmetric to the last bit
        spread, offset = k.trace(), mean.square().sum()
        ctx.mark_non_differentiable(spread, offset)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, mean)
        return k, spread, offset

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        g = g + g.T
        g = g - g.mean(0)  # centring back: of the few columns of G, not of the many of the product
        if torch.is_grad_enabled():  # a second derivative is asked for: autograd must see how this one follows from x
            wide = x.to(mean.dtype)
            return (g @ (wide - wide.mean(0))).to(x.dtype)
        back = torch.empty_like(x, dtype=mean.dtype, memory_format=torch.contiguous_format)
        centred = _buffer(mean, len(x), ctx.columns)
        for part, own, into in zip(*(each.split(ctx.columns, -1) for each in (x, mean, back)), strict=True):
            torch.mm(g, torch.sub(part, own, out=centred[:, : len(own)]), out=into)
        return back.to(x.dtype)


def _buffer(mean: Float[Tensor, " features"], n: int, columns: int) -> Float[Tensor, "n columns"]:
    return mean.new_empty(n, min(columns, len(mean)))
