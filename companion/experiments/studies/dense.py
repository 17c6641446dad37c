"""Dense nets, trained as they are: what the others are compared with."""

from __future__ import annotations

from dataclasses import replace

from companion.experiments.plan import Tier
from companion.experiments.recipes import CIFAR, CIFAR_LAPTOP, DIGITS, Methods
from companion.experiments.registry import experiment, train

DENSE: Methods = {"dense": {}}

experiment(
    "dense_cifar10",
    "How accurate is a dense ResNet-20, and what do its features and weights look like?",
    smoke=Tier(DIGITS, DENSE, seeds=(0, 1)),
    laptop=Tier(CIFAR_LAPTOP, DENSE, seeds=(0, 1, 2)),
    paper=Tier(CIFAR, DENSE, seeds=(0, 1, 2)),
)(train)

experiment(
    "dense_cifar10_full_width",
    "How far does the full-width, full-resolution net come in 16 epochs on two cores?",
    smoke=Tier(DIGITS, DENSE),
    laptop=Tier(replace(CIFAR_LAPTOP, pool=1, padding=4, epochs=16, compile=True), DENSE),
)(train)
