"""Experiments: a registry of named experiments, the runner that turns one into records, and the command line.

    python -m companion.experiments list
    python -m companion.experiments run dense_cifar10 --tier laptop
    python -m companion.experiments status
    python -m companion.experiments table dense_cifar10 --tier laptop
    python -m companion.experiments verify

An experiment is methods × sparsities × seeds in up to three tiers: `smoke` (seconds, no download), `laptop` (minutes a
run on two cores) and `paper` (the papers' recipe, one GPU). Each cell is a `Run`; a finished run is a `Record` in
`book/results`. A sweep continues where it stopped: recorded runs are not repeated, a killed run resumes from its
checkpoint, and several runners on one folder share the work.

See page *Running experiments*.
"""

from __future__ import annotations

from companion.experiments.at_scale import Photographs, drawn_photographs, pace
from companion.experiments.estimators import known_information
from companion.experiments.observations import published_cka, published_flow, throughput
from companion.experiments.plan import TIERS, Experiment, Outcome, Tier, Workplace
from companion.experiments.registry import EXPERIMENTS, TITLES, find
from companion.experiments.runner import OtherBlockError, load_or_run, perform, problems, recorded, replay
from companion.experiments.trainings import Task, lottery, score, train, train_and_prune

__all__ = [
    "EXPERIMENTS",
    "TIERS",
    "TITLES",
    "Experiment",
    "OtherBlockError",
    "Outcome",
    "Photographs",
    "Task",
    "Tier",
    "Workplace",
    "drawn_photographs",
    "find",
    "known_information",
    "load_or_run",
    "lottery",
    "pace",
    "perform",
    "problems",
    "published_cka",
    "published_flow",
    "recorded",
    "replay",
    "score",
    "throughput",
    "train",
    "train_and_prune",
]
