"""The registry: every experiment by its name. The files of `studies` register theirs where they define them.

A list of names needs no torch: what performs runs is named, and imported when the first run is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from companion._registry import Registry
from companion.experiments.plan import TIERS, Experiment, Outcome, Perform, Tier, Workplace
from companion.experiments.records import Run

P = TypeVar("P", bound=Perform)
EXPERIMENTS: Registry[Experiment] = Registry("experiment")


@dataclass(frozen=True)
class Later:
    """A function of a module of `companion.experiments` that performs runs; the module is imported by the first run."""

    module: str
    function: str

    def imported(self) -> Perform:
        return cast(Perform, getattr(importlib.import_module(f"companion.experiments.{self.module}"), self.function))

    def __call__(self, run: Run, place: Workplace) -> Outcome:
        return self.imported()(run, place)


train, lottery = Later("trainings", "train"), Later("trainings", "lottery")
train_and_prune = Later("removal", "train_and_prune")


def experiment(
    name: str,
    question: str,
    smoke: Tier,
    laptop: Tier | None = None,
    paper: Tier | None = None,
    *,
    ranks: bool = False,
    blocks: bool = False,
) -> Callable[[P], P]:
    """Register an experiment; what is decorated performs its runs. For `ranks` and `blocks` see `Experiment`."""
    tiers = {name: tier for name, tier in zip(TIERS, (smoke, laptop, paper), strict=True) if tier is not None}

    def add(perform: P) -> P:
        EXPERIMENTS.register(name)(Experiment(name, question, perform, tiers, ranks, blocks))
        return perform

    return add


def find(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none; names all, and one that is near.

    >>> sorted(find("random_masks").tiers)
    ['laptop', 'paper', 'smoke']
    """
    return EXPERIMENTS[name]
