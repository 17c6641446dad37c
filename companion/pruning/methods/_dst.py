"""Thresholds that are trained: dynamic sparse training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from companion._checks import between, given
from companion._ranks import from_rank_zero
from companion._weights import multiplies
from companion.features import Layers
from companion.pruning._masks import METHODS, Masks


def surrogate(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Long-tailed stand-in for the derivative of the unit step (Liu et al. 2020, eq. 4).

    With a = `abs(x)` it is 2 − 4a where a ≤ 0.4, 0.4 where 0.4 < a ≤ 1, else 0.

    >>> surrogate(torch.tensor([0.0, 0.25, -0.7, 2.0]))
    tensor([2.0000, 1.0000, 0.4000, 0.0000])
    """
    x = x.abs()
    return torch.where(x <= 0.4, 2 - 4 * x, 0.4 * (x <= 1))


@METHODS.register("dst", title="DST")
class DST(Masks):
    """Dynamic sparse training with trainable thresholds (Liu et al. 2020, arXiv 2005.06870).

    Each row w_i of a weight (see `Masks` on rows) has a threshold t_i, 0 at the start. The network computes with::

        w̃_ij = w_ij · S(|w_ij| − t_i),   S the unit step,

    and both are trained on  L(w̃) + α Σ_i exp(−t_i),  with `surrogate` σ for S'::

        ∂L/∂w_ij = ∂L/∂w̃_ij · (S(|w_ij| − t_i) + |w_ij| σ(|w_ij| − t_i)),
        ∂L/∂t_i  = − Σ_j ∂L/∂w̃_ij · w_ij · σ(|w_ij| − t_i).

    The sparsity is not chosen: it follows from α. (In other places "DST" means `RigLITOP`.)

    The model's own parameters hold w̃, so the model stays plain; w and t are kept here. In each `optimizer.step()` a
    hook of the optimizer, after the closure if there is one, puts w and the two gradients in place, and `step()` then
    masks anew: a masked weight lives on in `latent`, and can come back. What else is written to a weight, as by loading
    a checkpoint, becomes its w. Gradient clipping sees ∂L/∂w̃; weight decay acts on w alone. Else the optimizer treats t
    as it does w: with its learning rate, its momentum.

    Args:
        optimizer: any that takes another parameter group, for the thresholds: not `torch.optim.LBFGS`.
        alpha: weight α of the thresholds' term, above 0; it is `penalty()`, which `fit` adds by itself. In a loop of
            your own add it to the loss.
        floor: a layer of lower density starts again with thresholds 0, so that it cannot die.
        layers: as for `Masks`, which see for the rest.

    Raises:
        ValueError: see `Masks`; alpha not above 0; a floor outside [0, 1]; no optimizer, LBFGS, or one that has a
            learning-rate scheduler already.

    >>> from companion.models import mlp
    >>> model = mlp([64, 32, 10])
    >>> sparsity = DST(model, torch.optim.SGD(model.parameters(), lr=0.1), alpha=1e-4)
    >>> f"{sparsity.penalty():.4f}"  # one threshold of 0 for each of 42 rows
    '0.0042'
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        alpha: float,
        floor: float = 0.01,
        layers: Layers = multiplies,
    ) -> None:
        between(0, math.inf, open_low=True, open_high=True, alpha=alpha)
        between(0, 1, floor=floor)
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer={given(optimizer)}: DST trains thresholds, by one of torch such as sgd(model)")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                f"optimizer={type(optimizer).__name__} takes a single parameter group, and DST adds one for its "
                "thresholds: use another optimizer"
            )
        if any("initial_lr" in group for group in optimizer.param_groups):
            raise ValueError(
                "the optimizer has a learning-rate scheduler, which would not know the thresholds: build DST first, "
                "then the scheduler"
            )
        super().__init__(model, optimizer, layers=layers)
        self.alpha, self.floor, self.pending = alpha, floor, False
        self.latent = {name: from_rank_zero(weight.detach()).clone() for name, weight in self.weights.items()}
        self.thresholds = {
            name: nn.Parameter(weight.new_zeros(len(weight), *[1] * (weight.ndim - 1)))
            for name, weight in self.weights.items()
        }
        for group in list(optimizer.param_groups):
            held = {id(p) for p in group["params"]}
            own = {f"{name}.threshold": self.thresholds[name] for name, w in self.weights.items() if id(w) in held}
            if own:
                params = list(own.items() if "param_names" in group else own.values())
                optimizer.add_param_group({**group, "params": params, "weight_decay": 0.0})

    def penalty(self) -> Float[Tensor, ""]:
        """α Σ exp(−t) over all rows of all layers."""
        return self.alpha * torch.cat([t.flatten() for t in self.thresholds.values()]).neg().exp().sum()

    def step(self) -> None:
        if not self.active:
            return
        self._require_own()
        self.steps += 1
        if self.pending:  # else there was no optimizer step (float16 overflowed), and the model holds w̃
            for name, weight in self.weights.items():
                self.latent[name].copy_(weight.detach())
                self.thresholds[name].grad = None  # it is used up, and `model.zero_grad()` does not know of it
        else:
            self._take()
        self.pending = False
        self.apply()

    @torch.no_grad()
    def _take(self) -> None:
        """w ← what is not the w̃ that `apply` has left: somebody else wrote it."""
        for name, weight in self.weights.items():
            w = self.latent[name]
            w.copy_(torch.where(weight == w.where(self._masks[name] != 0, 0), w, weight))

    @torch.no_grad()
    def apply(self) -> None:
        """w̃ ← w ⊙ S(`abs(w)` − t)."""
        for name, weight in self.weights.items():
            w, t = self.latent[name], self.thresholds[name]
            t.mul_((w.abs() > t).float().mean() >= self.floor)
            alive = w.abs() > t
            self._masks[name].copy_(alive)
            self._seen[name] |= alive
            weight.copy_(w.where(alive, 0))
        self._alive = None

    @torch.no_grad()
    def _before_update(self) -> None:
        """w in place of w̃, and the gradients of w and t in place of that of w̃."""
        if self.pending:
            raise ValueError("optimizer.step() a second time without DST.step(): call it after each optimizer.step()")
        self.pending = True
        self._take()
        for name, weight in self.weights.items():
            w, t = self.latent[name], self.thresholds[name]
            if weight.grad is not None:
                slope = surrogate(w.abs() - t)
                to_threshold = -(weight.grad * w * slope).flatten(1).sum(1).view_as(t)
                t.grad = to_threshold if t.grad is None else t.grad + to_threshold
                weight.grad.mul_(self._masks[name] + w.abs() * slope)
            weight.copy_(w)

    def state_dict(self) -> dict[str, Any]:
        """Besides what `Masks` keeps: the weights before masking, and the thresholds."""
        thresholds = {name: t.detach().clone() for name, t in self.thresholds.items()}
        latent = {name: w.clone() for name, w in self.latent.items()}
        return super().state_dict() | {"latent": latent, "thresholds": thresholds}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._set(self.latent, state["latent"])
        self._set(self.thresholds, state["thresholds"])
        super().load_state_dict(state)
