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

from companion.experiments import studies as studies  # registers the experiments
from companion.experiments.plan import TIERS, Experiment, Outcome, Tier, Workplace
from companion.experiments.registry import EXPERIMENTS, find
from companion.experiments.removal import train_and_prune
from companion.experiments.runner import OtherBlockError, load_or_run, perform, problems, recorded, replay
from companion.experiments.studies.penalties import TITLES
from companion.experiments.trainings import ImageTask, lottery, train

__all__ = [
    "EXPERIMENTS",
    "TIERS",
    "TITLES",
    "Experiment",
    "ImageTask",
    "OtherBlockError",
    "Outcome",
    "Tier",
    "Workplace",
    "find",
    "load_or_run",
    "lottery",
    "perform",
    "problems",
    "recorded",
    "replay",
    "train",
    "train_and_prune",
]
