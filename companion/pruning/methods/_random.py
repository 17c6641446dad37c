"""Random masks, fixed before training."""

from __future__ import annotations

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from companion.pruning._masks import METHODS, Masks, Options


@METHODS.register("random", title="Random sparse training")
class RandomPruning(Masks):
    """Random sparse training (RST; Liu et al. 2022, arXiv 2202.02643): random masks, fixed before training.

        m_l uniform among the masks with n_l ones,   n_l by ERK.

    Args:
        sparsity: share of all weights that are 0, in [0, 1); exact.
        density: "erk", "uniform", or "global" (random across layers).
        options: `layers`, `dense`, `grain`, `seed`, as for `Masks`; so are the errors.

    >>> import torch
    >>> from companion.models import mlp
    >>> model = mlp([64, 32, 10])
    >>> sparsity = RandomPruning(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.9)
    >>> sparsity.alive, round(sparsity.density(), 3)
    ({'linear1': 165, 'linear2': 72}, 0.1)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sparsity: float,
        *,
        density: str = "erk",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, optimizer, **options)
        self.prune(sparsity, density, "random")
