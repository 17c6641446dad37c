"""Sparse evolutionary training."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import nn
from torch.optim import Optimizer

from companion._checks import between
from companion.pruning._masks import METHODS, Masks, Options, updates_in


@METHODS.register("set", title="SET")
class SET(Masks):
    """Sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780): random masks that evolve.

    Every `every` steps, in each layer: drop the share `drop` of the alive weights with the smallest `abs(w)`, grow
    as many at random. A new weight is drawn from 𝒩(0, σ²) with σ the root mean square of the layer's weights before
    (the scale is ours).

    Args:
        sparsity, density, options: as for `RandomPruning`.
        every: steps between two updates.
        drop: share of the alive weights that an update exchanges, in (0, 1].
        steps: no update from this step on; None for no end.

    >>> from companion.models import mlp
    >>> model = mlp([64, 32, 10])
    >>> SET(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.9, every=100, drop=0.3)
    SET(2 layers, sparsity 0.8999, step 0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sparsity: float,
        *,
        every: int = 100,
        drop: float = 0.3,
        steps: int | None = None,
        density: str = "erk",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, optimizer, **options)
        between(0, 1, open_low=True, drop=drop)
        self.every, self.drop, self.end = every, drop, math.inf if steps is None else steps
        updates_in(every if steps is None else steps, every)
        self.prune(sparsity, density, "random")

    @torch.no_grad()
    def update(self) -> None:
        if self.steps >= self.end:
            return
        before = {name: mask.clone() for name, mask in self._masks.items()}
        sigma = {
            name: weight.norm() / weight.count_nonzero().clamp(min=1).sqrt() for name, weight in self.weights.items()
        }
        self.regrow(self.drop, "random")
        random = self.generator(stream=1)
        for name, weight in self.weights.items():
            new = self._masks[name] > before[name]
            drawn = torch.randn(weight.shape, generator=random).to(weight)
            weight.copy_(torch.where(new, sigma[name] * drawn, weight))
