"""Optimizers and learning-rate schedules: thin names over torch's, with the papers' defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from companion._checks import between, require_number

LRSchedule: TypeAlias = Callable[[Optimizer, int, int], LRScheduler]
"""A function of (optimizer, steps an epoch, epochs) to a torch scheduler, which the loop steps after every step."""


def sgd(
    model: nn.Module,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 5e-4,
    decay_norm_and_bias: bool = True,
) -> SGD:
    """SGD with Nesterov momentum. The defaults are CKA-SR's CIFAR recipe, which decays every parameter;
    `decay_norm_and_bias=False` spares those with fewer than two dimensions (norm scales and shifts, biases).

    >>> [(len(group["params"]), group["weight_decay"]) for group in sgd(nn.Linear(4, 2)).param_groups]
    [(2, 0.0005)]
    """
    return SGD(_groups(model, weight_decay, decay_norm_and_bias), lr=lr, momentum=momentum, nesterov=nesterov)


def adamw(
    model: nn.Module,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.05,
    decay_norm_and_bias: bool = False,
) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019); by default norm parameters and biases are spared from weight decay.

    >>> [(len(group["params"]), group["weight_decay"]) for group in adamw(nn.Linear(4, 2)).param_groups]
    [(1, 0.05), (1, 0.0)]
    """
    return AdamW(_groups(model, weight_decay, decay_norm_and_bias), lr=lr, betas=betas)


def _groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    spared = [p for p in trained if p.ndim < 2 and not decay_norm_and_bias]
    decayed = [p for p in trained if p.ndim > 1 or decay_norm_and_bias]
    pairs = ((decayed, weight_decay), (spared, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in pairs if params]


def multistep(*milestones: float, gamma: float = 0.1, warmup: float = 0) -> LRSchedule:
    """Multiply the learning rate by `gamma` at each milestone (in epochs), after `warmup` epochs of linear rise.

    Raises:
        ValueError: a milestone that is no number; a negative or infinite warm-up, and once the schedule is used, one
            that is as long as the training.

    >>> scheduler = multistep(2)(sgd(nn.Linear(4, 2)), 1, 3)  # one step an epoch, three epochs
    >>> [scheduler.lr_lambdas[0](step) for step in range(3)]  # times the learning rate
    [1.0, 1.0, 0.1]
    """
    for milestone in milestones:
        require_number(milestone=milestone)
    return _by_epoch(
        f"multistep{milestones} gamma={gamma} warmup={warmup}",
        warmup,
        lambda epoch, epochs: gamma ** sum(epoch >= milestone for milestone in milestones),
    )


def cosine(warmup: float = 0, floor: float = 0) -> LRSchedule:
    """Half a cosine from the learning rate down to `floor` times it, after `warmup` epochs of linear rise.

    Raises:
        ValueError: as of `multistep`, the warm-up.

    >>> scheduler = cosine()(sgd(nn.Linear(4, 2)), 1, 2)  # one step an epoch, two epochs
    >>> [round(scheduler.lr_lambdas[0](step), 3) for step in range(3)]  # times the learning rate
    [1.0, 0.5, 0.0]
    """
    return _by_epoch(
        f"cosine warmup={warmup} floor={floor}",
        warmup,
        lambda epoch, epochs: floor + (1 - floor) * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2,
    )


def one_cycle(rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> LRSchedule:
    """One cycle (Smith & Topin 2018): up from `start` × the learning rate to all of it during the share `rise` of the
    training, then down by a cosine to `start·end` × it; momentum the other way round.

    Raises:
        ValueError: a share `rise` outside [0, 1], a `start` outside (0, 1], an `end` that is not above 0.

    >>> optimizer = sgd(nn.Linear(4, 2), lr=0.1)
    >>> scheduler = one_cycle(rise=0.5)(optimizer, 5, 2)  # five steps an epoch, two epochs
    >>> round(optimizer.param_groups[0]["lr"], 3)  # a 25th of the learning rate, to begin with
    0.004
    """
    between(0, 1, rise=rise)
    between(0, 1, open_low=True, start=start)
    between(0, math.inf, open_low=True, open_high=True, end=end)

    def schedule(optimizer: Optimizer, steps: int, epochs: int) -> LRScheduler:
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps * epochs,
            pct_start=rise,
            div_factor=1 / start,
            final_div_factor=1 / end,
        )

    schedule.__name__ = f"one_cycle rise={rise} start={start} end={end}"
    return schedule


def _by_epoch(name: str, warmup: float, factor: Callable[[float, int], float]) -> LRSchedule:
    """The learning rate times factor(epochs done, epochs in all), taken anew before every step."""
    between(0, math.inf, open_high=True, warmup=warmup)

    def schedule(optimizer: Optimizer, steps: int, epochs: int) -> LRScheduler:
        if warmup >= epochs:
            raise ValueError(f"warmup={warmup} of {epochs} epochs: warm up for less than the whole training")

        def multiplier(step: int) -> float:
            rising = step < warmup * steps  # which may end within a step: it rises no further than to 1
            return min(1.0, (step + 1) / (warmup * steps)) if rising else factor(step / steps, epochs)

        return LambdaLR(optimizer, multiplier)

    schedule.__name__ = name
    return schedule
