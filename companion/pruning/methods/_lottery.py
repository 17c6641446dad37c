"""The lottery ticket: train, prune, rewind, and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from companion._checks import at_least, between
from companion.pruning._masks import METHODS, Masks, Options
from companion.pruning._schedules import iterative

Train: TypeAlias = Callable[[nn.Module, Callable[[Optimizer], Masks]], Any]
"""A function of (model, masked): it trains the model with a fresh optimizer and steps `masked(optimizer)` after it."""


@METHODS.register("lottery", title="Lottery ticket")
class LotteryTicket:
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, arXiv 1803.03635).

    Train the dense network. Then, level by level: prune the smallest `abs(w)` across all layers so that

        1 − s_level = (1 − s)^(level/levels),

    put what is left back to the values it had at step `rewind`, and train again. With rewind=0 those are the initial
    ones; larger networks need an early step (Frankle et al. 2020, arXiv 1912.05671). Everything in the model's
    `state_dict` is put back, norms and their statistics too; each training starts its own schedule anew.

    Args:
        train: called levels + 1 times; what it returns is kept.
        sparsity: share of all weights that are 0 in the end, in [0, 1); exact.
        levels: number of prunings; by default as many as take 20 % of the remaining weights each, as in the paper.
        rewind: optimizer step of the dense training to whose weights the ticket goes back.
        options: `layers`, `dense`, `grain`, `seed`, as for `Masks`; so are the errors.

    Attributes:
        level: 0 while the dense network trains, `levels` at the end.
        masks: of the present level, layer → bool tensor; they fit any model with such layers (`Masks`).
        start: the state to which the model is put back; None before step `rewind`.
        initial: the state in which the dense training began, to begin it again after an interruption; None before it
            and after it.

    Raises:
        ValueError: see `Masks`; no such sparsity, levels or rewind; a training that ends before step `rewind`, or does
            not call `masked(optimizer)`.

    >>> import torch
    >>> from companion.models import mlp
    >>> def train(model, masked):  # `fit(..., sparsity=masked(optimizer))` in earnest
    ...     sparsity = masked(torch.optim.SGD(model.parameters(), lr=0.1))
    ...     sparsity.step()
    ...     return round(sparsity.density(), 2)
    >>> LotteryTicket(mlp([64, 32, 10]), train, sparsity=0.75, levels=2).run()  # what each training returned
    [1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        sparsity: float,
        *,
        levels: int | None = None,
        rewind: int = 0,
        **options: Unpack[Options],
    ) -> None:
        between(0, 1, open_high=True, sparsity=sparsity)
        if levels is None:
            levels = max(1, round(math.log(1 - sparsity) / math.log(0.8)))
        at_least(1, levels=levels)
        at_least(0, rewind=rewind)
        self.model, self.train, self.sparsity = model, train, sparsity
        self.levels, self.rewind, self.level, self.options = levels, rewind, 0, options
        masks = Masks(model, None, **options)
        masks.require_reachable(sparsity)
        self.masks: dict[str, Tensor] = masks.masks
        self.start: dict[str, Tensor] | None = None
        self.initial: dict[str, Tensor] | None = None
        if rewind == 0:
            self.remember()

    def run(self) -> list[Any]:
        """Train all levels that are left; returns what `train` returned at each. The model ends sparse and trained.

        A level that was interrupted begins anew, from the state in which it began.
        """
        outcomes = []
        while self.level <= self.levels:
            if self.level > 0 or self.rewind == 0:
                self.reset()
            else:
                self._begin()
            self._held: Masks | None = None
            outcomes.append(self.train(self.model, self.masked))
            if self._held is None:
                raise ValueError("train(model, masked) trained without masked(optimizer): call its step() in the loop")
            if self.start is None:
                raise ValueError(f"rewind={self.rewind}: the training ended before that step")
            if self.level < self.levels:
                self._held.prune(iterative((self.level + 1) / self.levels, self.sparsity, self.levels), "global")
                self.masks = self._held.masks
            self.level, self.initial = self.level + 1, None
        return outcomes

    def _begin(self) -> None:
        """The dense training from where it began, whose step `rewind` is still to come."""
        if self.initial is None:
            self.initial = self._present()
        self.model.load_state_dict(self.initial)
        self.start = None

    def masked(self, optimizer: Optimizer) -> Masks:
        """The present masks on the model, for one training."""
        self._held = _Watched(self, optimizer)
        return self._held

    def remember(self) -> None:
        """Take the model's present state as the one to go back to."""
        self.start = self._present()

    def _present(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def reset(self) -> nn.Module:
        """Make the model the ticket: the remembered state under the present masks."""
        if self.start is None:
            raise ValueError(f"no state to go back to yet: step {self.rewind} of the dense training has not come")
        self.model.load_state_dict(self.start)
        Masks(self.model, None, self.masks, **self.options)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Level, masks, start and initial: with them `run()` goes on at the beginning of the level that was
        interrupted."""
        return {"level": self.level, "masks": dict(self.masks), "start": self.start, "initial": self.initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self.level, self.masks, self.start = state["level"], dict(state["masks"]), state["start"]
        self.initial = state.get("initial")


class _Watched(Masks):
    """Masks held fixed, which remember the weights of step `rewind` on the way."""

    def __init__(self, ticket: LotteryTicket, optimizer: Optimizer) -> None:
        super().__init__(ticket.model, optimizer, ticket.masks, **ticket.options)
        self.ticket = ticket

    def step(self) -> None:
        super().step()
        if self.ticket.start is None and self.steps == self.ticket.rewind:
            self.ticket.remember()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start": self.ticket.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.ticket.start = state["start"]
