"""Experiments on ImageNet, by one process or by several ranks under `torchrun`.

python -m companion.experiments run imagenet_random_masks --tier smoke
torchrun --nproc-per-node 4 -m companion.experiments run imagenet_random_masks --tier paper
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from companion.experiments.plan import Tier
from companion.experiments.recipes import (
    IMAGENET,
    IMAGENET_DRAWN,
    IMAGENET_SAMPLE,
    PRUNE_PAPER,
    Methods,
    Prune,
    cka_sr,
    feature_flow,
    penalised,
    random_masks,
)
from companion.experiments.registry import Later, experiment

RANDOM = {"pruning": random_masks(dense="fc")}
WHOLE_BATCH = cka_sr(1e-5, examples=None, every=1)
METHODS: Methods = {"random": RANDOM, "random+cka_sr": {**RANDOM, "penalties": (WHOLE_BATCH,)}}
THIN: dict[str, Any] = {"model": "resnet50", "model_options": {"width_per_group": 16}}
PRUNED = replace(PRUNE_PAPER, sparsities=(0.5, 0.8, 0.9), epochs=20)
FLOW: Methods = {"none": {}, **penalised(ffr_length_curvature=feature_flow(0.01, 0.01))}

experiment(
    "imagenet_random_masks",
    "Does CKA-SR make training under fixed random masks more accurate on ImageNet?",
    ranks=True,
    smoke=Tier(IMAGENET_DRAWN, METHODS, sparsities=(0.95,)),
    paper=Tier(IMAGENET, METHODS, sparsities=(0.95,), seeds=(0, 1, 2)),
)(Later("photographs", "train"))

experiment(
    "imagenet_flow",
    "Does feature-flow regularisation make the filters of a dense ResNet-50 removable on ImageNet?",
    ranks=True,
    smoke=Tier(replace(IMAGENET_DRAWN, **THIN, prune=Prune((0.5, 0.8), (0.5,), batches=4)), FLOW),
    paper=Tier(replace(IMAGENET, model="resnet50", prune=PRUNED), FLOW, seeds=(0, 1, 2)),
)(Later("photographs", "train_and_prune"))

experiment(
    "imagenet_pace",
    "How many photographs a second get through reading, training and evaluation?",
    ranks=True,
    smoke=Tier(IMAGENET_DRAWN, {"resnet18": {}}),
    laptop=Tier(
        IMAGENET_SAMPLE,
        {
            "resnet18": {},
            "resnet18+cka_sr": {"penalties": (WHOLE_BATCH,)},
            "resnet50": {"model": "resnet50"},
            "resnet50+ffr": {"model": "resnet50", **FLOW["ffr_length_curvature"]},
        },
    ),
)(Later("photographs", "pace"))
