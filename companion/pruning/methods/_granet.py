"""Gradual pruning with neuroregeneration."""

from __future__ import annotations

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from companion._checks import between
from companion.pruning._masks import METHODS, Masks, Options, updates_in
from companion.pruning._schedules import cosine_decay, cubic


@METHODS.register("granet", title="GraNet")
class GraNet(Masks):
    """Gradual pruning with zero-cost neuroregeneration (Liu et al. 2021, arXiv 2106.10404).

    At the u-th update prune by global magnitude to

        s_u = s_i + (s − s_i)(1 − (1 − u/n)³),   n updates until end·steps,

    then in each layer drop the share floor + (drop − floor)/2 · (1 + cos(π t / steps)) of the alive weights, and grow
    as many where `abs(∂L/∂w)` is largest. This exchange goes on after the pruning has ended.

    Args:
        sparsity: share of all weights that are 0 in the end, in [0, 1); exact.
        steps: optimizer steps of the whole training.
        every: steps between two updates.
        initial: s_i; 0.5 for sparse-to-sparse, 0 for dense-to-sparse.
        drop, floor: first and last share of the alive weights that an update exchanges; it does not rise.
        end: share of the training after which no further pruning happens.
        density: of the random masks at the start: "erk", "uniform", "global".
        options: `layers`, `dense`, `grain`, `seed`, as for `Masks`; so are the errors.

    >>> import torch
    >>> from companion.models import mlp
    >>> model = mlp([64, 32, 10])
    >>> GraNet(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.9, steps=1000, every=100)
    GraNet(2 layers, sparsity 0.5, step 0)
    """

    by_gradient = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sparsity: float,
        *,
        steps: int,
        every: int = 1000,
        initial: float = 0.5,
        drop: float = 0.5,
        floor: float = 0.005,
        end: float = 0.5,
        density: str = "erk",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, optimizer, **options)
        between(0, 1, open_high=True, sparsity=sparsity)
        between(0, sparsity, initial=initial)
        between(0, 1, open_low=True, drop=drop, end=end)
        between(0, drop, floor=floor)
        self.require_reachable(sparsity)
        self.sparsity, self.initial, self.horizon, self.every = sparsity, initial, steps, every
        self.drop, self.floor, self.updates = drop, floor, updates_in(steps, every, end)
        self.prune(initial, density, "random")

    def update(self) -> None:
        u = self.steps // self.every
        if u <= self.updates:
            self.prune(cubic(u / self.updates, self.sparsity, self.initial), "global")
        if self.steps < self.horizon:
            self.regrow(cosine_decay(self.steps / self.horizon, self.drop, self.floor), "gradient")
