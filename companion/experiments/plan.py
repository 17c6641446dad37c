"""What an experiment is: runs in tiers, and where and by which function they are performed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from companion.experiments.recipes import Recipe, completed
from companion.experiments.records import Run

if TYPE_CHECKING:
    import torch

TIERS = ("smoke", "laptop", "paper")


# ------------------------------------------------------------------------------------------------------- what a run is
# Settings that say how a training is computed, not what: no part of its identity. They stand in the settings of older
# records; now a record's provenance says which were used.
HOW = ("precision", "channels_last", "compile", "workers")


def identity(run: Run) -> str:
    """What a run is, as a line of JSON, without what only says how it is computed (`HOW`): two runs of one identity are
    the same run.

    >>> settings = {"lr": 0.1, "schedule": "cosine"}
    >>> fast, plain = (Run("any", "smoke", "none", 0, None, settings | how) for how in ({"compile": True}, {}))
    >>> identity(fast) == identity(plain)
    True
    """
    return json.dumps({**dataclasses.asdict(run), "settings": _without_how(completed(run.settings))}, sort_keys=True)


# --------------------------------------------------------------------------------------------------------- experiments
@dataclass(frozen=True)
class Tier:
    """The runs of an experiment at one scale: methods × sparsities × seeds.

    Attributes:
        settings: what all runs share: a recipe, or JSON values.
        methods: name → what is particular to it, over `settings`.

    >>> Tier(settings={"epochs": 2}, methods={"none": {}, "l1": {"strength": 0.1}}, seeds=(0, 1)).sparsities
    (None,)
    """

    settings: Recipe | Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    sparsities: Sequence[float | None] = (None,)
    seeds: Sequence[int] = (0,)

    def of(self, method: str) -> dict[str, Any]:
        """The settings of a method's runs, every argument written out."""
        if isinstance(self.settings, Recipe):
            return dataclasses.replace(self.settings, **self.methods[method]).settings()
        return completed({**self.settings, **self.methods[method]})


PLAIN: Mapping[str, Any] = {"precision": "float32", "channels_last": False, "compile": False, "workers": 0}


def _device() -> torch.device:
    import torch  # here, because plans alone need none of it

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _work() -> Path:
    try:
        return Path(os.environ.get("COMPANION_WORK") or Path.home() / ".cache/companion/work")
    except RuntimeError as error:
        raise ValueError(f"no folder for runs in progress ({error}): set COMPANION_WORK") from error


@dataclass(frozen=True)
class Workplace:
    """Where and how runs are made; nothing here changes their result beyond rounding.

    Attributes:
        device: where models and data live.
        data: data root, see `data.data_root`.
        work: folder of checkpoints and locks of runs in progress; survives interruption.
        progress: show progress bars.
        how: how trainings are computed, over what the tier says: keys of `HOW`.
    """

    device: torch.device = field(default_factory=_device)
    data: Path | None = None
    work: Path = field(default_factory=_work)
    progress: bool = False
    how: Mapping[str, Any] = field(default_factory=dict)

    def computing(self) -> dict[str, Any]:
        """How runs are computed here: plainly, unless `how` says otherwise."""
        return {**PLAIN, **self.how}


class Outcome(NamedTuple):
    """What a run found: see `Record`."""

    result: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]]
    measures: Mapping[str, Any]


Perform = Callable[[Run, Workplace], Outcome]


@dataclass(frozen=True)
class Experiment:
    """A named experiment: the question it answers, the function that performs a run, and its tiers.

    Attributes:
        ranks: whether several processes may perform a run together, under `torchrun`: each calls `perform`, and the
            outcome is rank 0's.
        blocks: whether all runs of a seed must be made on one model of processor, computed alike: then no difference
            between methods is one between machines.

    >>> from companion.experiments import find
    >>> runs = find("random_masks").runs("smoke", seeds=[0])
    >>> len({run.method for run in runs}) > 1, {run.seed for run in runs}
    (True, {0})
    """

    name: str
    question: str
    perform: Perform
    tiers: Mapping[str, Tier]
    ranks: bool = False
    blocks: bool = False

    def runs(self, tier: str, seeds: Iterable[int] | None = None) -> list[Run]:
        """Every run of a tier, seed by seed, so that an interrupted sweep has whole seeds.

        Raises:
            ValueError: an unknown tier.
        """
        if tier not in self.tiers:
            raise ValueError(f"experiment {self.name} has no tier {tier!r}; it has {list(self.tiers)}")
        plan = self.tiers[tier]
        cells = itertools.product(plan.seeds if seeds is None else seeds, plan.sparsities, plan.methods)
        settings = {method: _without_how(plan.of(method)) for method in plan.methods}
        return [Run(self.name, tier, method, seed, sparsity, settings[method]) for seed, sparsity, method in cells]

    def how(self, run: Run) -> dict[str, Any]:
        """How the registry would have a run computed: keys of `HOW`."""
        return {key: value for key, value in self.tiers[run.tier].of(run.method).items() if key in HOW}


def is_training(settings: Mapping[str, Any]) -> bool:
    """Whether they are a recipe's: then `HOW` is open, and of anything else (a pace, a map) part of the settings."""
    return "schedule" in settings


def _without_how(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training without those that say how it is computed; of anything else, all."""
    return {key: value for key, value in settings.items() if key not in HOW or not is_training(settings)}
