"""The smallest weights go, at once or gradually."""

from __future__ import annotations

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from companion._checks import between
from companion.pruning._masks import METHODS, Masks, Options, updates_in
from companion.pruning._schedules import SparsitySchedule, cubic


@METHODS.register("magnitude", title="Magnitude pruning")
class MagnitudePruning(Masks):
    """Magnitude pruning: the smallest `abs(w)` go, at once or gradually (Zhu & Gupta 2017, arXiv 1710.01878).

        s_u = s (1 − (1 − u/n)³)   at the u-th of n updates.

    What is gone stays gone, also under a schedule that falls.

    Args:
        sparsity: share of all weights that are 0 in the end, in [0, 1); exact.
        steps: None to prune now, once; else the optimizer steps over which the schedule stretches.
        every: steps between two updates.
        schedule: `cubic`, `iterative`, `one_shot`, or any function of (share of the steps passed, `sparsity`).
        density: "global" (one comparison across layers), "erk", "uniform".
        options: `layers`, `dense`, `grain`, `seed`, as for `Masks`; so are the errors.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 1))
    >>> model[0].weight.data = torch.tensor([[0.5, -2.0, 1.0]])
    >>> MagnitudePruning(model, None, sparsity=1 / 3).masks["0"]
    tensor([[False,  True,  True]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sparsity: float,
        *,
        steps: int | None = None,
        every: int = 100,
        schedule: SparsitySchedule = cubic,
        density: str = "global",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, optimizer, **options)
        between(0, 1, open_high=True, sparsity=sparsity)
        self.sparsity, self.schedule, self.density_by = sparsity, schedule, density
        self.updates = 0 if steps is None else updates_in(steps, every)
        self.every = every if steps is not None else 0
        shares = [] if steps is None else [u / self.updates for u in range(self.updates + 1)]
        planned = [schedule(share, sparsity) for share in shares] or [sparsity]
        for value in planned:  # a schedule of one's own may rise above what it is given, and fail in mid-training
            between(0, 1, open_high=True, sparsity=value)
        self.require_reachable(max(planned), density)
        self.prune(planned[0], density)

    def update(self) -> None:
        u = self.steps // self.every
        if u <= self.updates:
            self.prune(self.schedule(u / self.updates, self.sparsity), self.density_by)
