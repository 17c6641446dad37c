"""What an experiment is: runs in tiers, and where and by which function they are performed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from companion.experiments.records import Run

TIERS = ("smoke", "laptop", "paper")


# ------------------------------------------------------------------------------------------------------- what a run is
# Settings that say how a training is computed, not what: no part of its identity. They stand in the settings of older
# records; now a record's provenance says which were used.
HOW = ("precision", "channels_last", "compile", "workers")

_CKA = {"layers": None, "form": "signed", "kernel": "linear"}
_MASKS = {"density": "erk", "dense": None, "grain": "weight"}
# What the settings of older records left to defaults, as these were when the runs were made. This is history: where a
# default changes, this table does not. The registry itself leaves nothing out (a test holds it against the signatures).
LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    "CKASparsity": {"examples": 8, "every": 5, "pairs": "stage", "estimator": "unbiased", "reduction": "sum", **_CKA},
    "AugmentedCKASparsity": {
        "examples": None,
        "every": 1,
        "pairs": "all",
        "estimator": "biased",
        "reduction": "mean",
        **_CKA,
    },
    "FeatureFlow": {
        "variant": "arxiv",
        "norm": 2,
        "reduction": "mean",
        "across_stages": False,
        "before_relu": False,
        "layers": None,
        "examples": None,
        "every": 1,
    },
    "GroupLasso": {"layers": None},
    "NetworkSlimming": {"layers": None},
    "RandomPruning": _MASKS,
    "GraNet": {"initial": 0.5, "drop": 0.5, "floor": 0.005, "end": 0.5, **_MASKS},
    "one_cycle": {"rise": 0.3, "start": 1 / 25, "end": 1e-4},
    "multistep": {"gamma": 0.1, "warmup": 0},
    "cosine": {"warmup": 0, "floor": 0},
    "training": {"momentum": 0.9, "nesterov": True, "decay_norm_and_bias": True, "label_smoothing": 0.0},
}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run with every argument written out: what is not there is what it was, by `LEFT_OUT`.

    Settings of runs that do not train stay as they are.

    >>> found = completed({"lr": 0.1, "schedule": "cosine", "penalties": [{"kind": "GroupLasso", "strength": 0.1}]})
    >>> found["momentum"], found["schedule_options"]["floor"], found["penalties"][0]["layers"]
    (0.9, 0, None)
    """

    def whole(described: Mapping[str, Any]) -> dict[str, Any]:
        return {**LEFT_OUT.get(described["kind"], {}), **described}

    full = dict(settings)
    if "schedule" in full:
        options = {**LEFT_OUT.get(full["schedule"], {}), **full.get("schedule_options", {})}
        if "warmup" in full:  # older settings have it beside the schedule's name
            options["warmup"] = full.pop("warmup")
        if milestones := full.pop("milestones", None):
            options["milestones"] = milestones
        full = {**LEFT_OUT["training"], **full, "schedule_options": options}
    if "penalties" in full:
        full["penalties"] = [whole(described) for described in full["penalties"]]
    if full.get("pruning") is not None:
        full["pruning"] = whole(full["pruning"])
    return full


def identity(run: Run) -> str:
    """What a run is, as a line of JSON: its experiment, tier, method, sparsity, seed and completed settings, without
    those that say how a training is computed (`HOW`). Two runs of one identity are the same run.

    >>> ways = {"precision": "bfloat16", "compile": True}, {}
    >>> fast, plain = ({"lr": 0.1, "schedule": "cosine", **how} for how in ways)
    >>> identity(Run("any", "smoke", "none", 0, None, fast)) == identity(Run("any", "smoke", "none", 0, None, plain))
    True
    """
    return json.dumps({**dataclasses.asdict(run), "settings": _without_how(completed(run.settings))}, sort_keys=True)


# --------------------------------------------------------------------------------------------------------- experiments
@dataclass(frozen=True)
class Tier:
    """The runs of an experiment at one scale: methods × sparsities × seeds.

    Attributes:
        settings: what all runs share; JSON values. Of trainings, keys of `HOW` say how they are computed unless the
            workplace says otherwise, and are not part of a run.
        methods: name → what is particular to it, over `settings`.

    >>> Tier(settings={"epochs": 2}, methods={"none": {}, "l1": {"strength": 0.1}}, seeds=(0, 1)).sparsities
    (None,)
    """

    settings: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    sparsities: Sequence[float | None] = (None,)
    seeds: Sequence[int] = (0,)


PLAIN: Mapping[str, Any] = {"precision": "float32", "channels_last": False, "compile": False, "workers": 0}


@dataclass(frozen=True)
class Workplace:
    """Where and how runs are made; nothing here changes their result beyond rounding.

    Attributes:
        device: where models and data live.
        data: data root, see `data.data_root`.
        work: folder of checkpoints and locks of runs in progress; survives interruption.
        progress: show progress bars.
        how: how runs are computed, over what the tier says: keys of `HOW`.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    data: Path | None = None
    work: Path = field(
        default_factory=lambda: Path(os.environ.get("COMPANION_WORK", Path.home() / ".cache/companion/work"))
    )
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
    perform: Callable[[Run, Workplace], Outcome]
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
        return [
            Run(self.name, tier, method, seed, sparsity, _without_how(completed(self._merged(tier, method))))
            for seed, sparsity, method in cells
        ]

    def how(self, run: Run) -> dict[str, Any]:
        """How the registry would have a run computed: keys of `HOW`.

        >>> from companion.experiments import find
        >>> experiment = find("random_masks")
        >>> experiment.how(experiment.runs("paper")[0])
        {'precision': 'bfloat16', 'channels_last': True, 'compile': True}
        """
        return {key: value for key, value in self._merged(run.tier, run.method).items() if key in HOW}

    def _merged(self, tier: str, method: str) -> dict[str, Any]:
        return {**self.tiers[tier].settings, **self.tiers[tier].methods[method]}


def _without_how(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training without those that say how it is computed; of anything else (a pace, a map), all."""
    return {key: value for key, value in settings.items() if key not in HOW or "schedule" not in settings}
