"""The registry: every experiment by its name. The files of `studies` register theirs where they define them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from companion._registry import Registry
from companion.experiments.plan import TIERS, Experiment, Perform, Tier

P = TypeVar("P", bound=Perform)
EXPERIMENTS: Registry[Experiment] = Registry("experiment")


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
