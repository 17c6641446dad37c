"""What is lost when whole blocks are taken out of published nets? The chapter *Which blocks can go?* shows it."""

from __future__ import annotations

from companion.experiments.plan import Tier
from companion.experiments.registry import Later, experiment
from companion.experiments.studies.pretrained import DIGITS, PUBLISHED

experiment(
    "block_deletion",
    "What does a published CIFAR-10 ResNet lose when one of its blocks is taken out?",
    smoke=Tier({"dataset": "digits", "weights": None, "examples": 60, "refreshed": 40, "seen": 40}, DIGITS),
    laptop=Tier({"dataset": "cifar10", "examples": 10_000, "refreshed": 2000, "seen": 500}, PUBLISHED),
    paper=Tier({"dataset": "cifar10", "examples": 10_000, "refreshed": 10_000, "seen": 2000}, PUBLISHED),
)(Later("deletion", "block_deletion"))

experiment(
    "block_subsets",
    "Which sets of the nine blocks of a published ResNet-20 can go?",
    smoke=Tier({"dataset": "digits", "weights": None, "examples": 30, "chosen": 20, "seen": 20, "mapped": 20}, DIGITS),
    laptop=Tier(
        {"dataset": "cifar10", "examples": 1000, "chosen": 500, "seen": 500, "mapped": 200},
        {"resnet20": PUBLISHED["resnet20"]},
    ),
)(Later("deletion", "block_subsets"))

experiment(
    "block_effects",
    "How far does each block of a published CIFAR-10 ResNet take its input?",
    smoke=Tier({"dataset": "digits", "weights": None, "examples": 60}, DIGITS),
    laptop=Tier({"dataset": "cifar10", "examples": 2000}, PUBLISHED),
)(Later("deletion", "block_effects"))

experiment(
    "block_removal",
    "In which order should blocks leave a published ResNet-56?",
    smoke=Tier(
        {"dataset": "digits", "weights": None, "examples": 40, "chosen": 20, "seen": 20}
        | {"levels": [1, 2], "greedy": 2, "random": 2},
        DIGITS,
    ),
    laptop=Tier(
        {"dataset": "cifar10", "examples": 1000, "chosen": 250, "seen": 250}
        | {"levels": [3, 6, 9, 12, 15, 18], "greedy": 6, "random": 3},
        {"resnet56": PUBLISHED["resnet56"]},
    ),
)(Later("deletion", "block_removal"))
