"""The rigged lottery."""

from __future__ import annotations

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from companion._checks import between
from companion.pruning._masks import METHODS, Masks, Options, updates_in
from companion.pruning._schedules import cosine_decay


@METHODS.register("rigl", title="RigL")
class RigL(Masks):
    """Rigged lottery (Evci et al. 2020, arXiv 1911.11134): drop by magnitude, grow by gradient.

    Every `every` steps until T_end = end·steps, in each layer: drop the share

        drop_t = floor + (drop − floor)/2 · (1 + cos(π t / T_end))

    of the alive weights with the smallest `abs(w)`, grow as many where `abs(∂L/∂w)` is largest; new weights start at 0.
    The optimizer's step is taken too (RigL's own code leaves it out on an update).

    Args:
        sparsity, density, options: as for `RandomPruning`.
        steps: optimizer steps of the whole training.
        every: steps between two updates.
        drop, floor: first and last share of the alive weights that an update exchanges; it does not rise.
        end: share of the training after which no update happens.

    >>> import torch
    >>> from companion.models import mlp
    >>> model = mlp([64, 32, 10])
    >>> RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.9, steps=1000, every=100)
    RigL(2 layers, sparsity 0.8999, step 0)
    """

    by_gradient = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sparsity: float,
        *,
        steps: int,
        every: int = 100,
        drop: float = 0.3,
        floor: float = 0.0,
        end: float = 0.75,
        density: str = "erk",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, optimizer, **options)
        between(0, 1, open_low=True, drop=drop, end=end)
        between(0, drop, floor=floor)
        updates_in(steps, every, end)
        self.every, self.drop, self.floor, self.end = every, drop, floor, end * steps
        self.prune(sparsity, density, "random")

    def update(self) -> None:
        if self.steps < self.end:
            self.regrow(cosine_decay(self.steps / self.end, self.drop, self.floor), "gradient")
