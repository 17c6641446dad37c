"""In-time over-parameterization."""

from __future__ import annotations

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from companion.pruning._masks import METHODS, Options
from companion.pruning.methods._rigl import RigL


@METHODS.register("rigl-itop", title="RigL-ITOP")
class RigLITOP(RigL):
    """RigL as in-time over-parameterization (Liu et al. 2021, arXiv 2102.02887): fewer, larger updates until the end.

    RigL with more time between updates, half of the weights exchanged at first, and no early end: `explored` in
    `report()` is its rate R_s. The literature calls it "DST" too. Arguments as for `RigL`.

    >>> import torch
    >>> from companion.models import mlp
    >>> model = mlp([64, 32, 10])
    >>> RigLITOP(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.9, steps=1000, every=400)
    RigLITOP(2 layers, sparsity 0.8999, step 0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        sparsity: float,
        *,
        steps: int,
        every: int = 4000,
        drop: float = 0.5,
        floor: float = 0.005,
        end: float = 1.0,
        density: str = "erk",
        **options: Unpack[Options],
    ) -> None:
        exchange = {"drop": drop, "floor": floor, "end": end}
        super().__init__(model, optimizer, sparsity, steps=steps, every=every, density=density, **exchange, **options)
