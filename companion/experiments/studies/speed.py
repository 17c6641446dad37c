"""How fast does a network train, on this machine?"""

from __future__ import annotations

from companion.experiments.plan import Tier
from companion.experiments.registry import Later, experiment

STEP = {"precision": "bfloat16", "channels_last": True, "compile": False}
READ = {"model": None, "workers": 2}
PAPER = {"resnet18": {"model": "resnet18"}, "resnet50": {"model": "resnet50"}}

experiment(
    "throughput",
    "How many images does a training step, or the reading of files, get through in a second?",
    smoke=Tier(STEP | {"size": 8, "batch_size": 16, "steps": 3}, {"digits_net": {"model": "digits_net"}}),
    laptop=Tier(
        STEP | {"precision": "float32", "size": 224, "batch_size": 32, "steps": 8},
        {"resnet18": {"model": "resnet18"}, "read": READ},
    ),
    paper=Tier(
        STEP | {"size": 224, "batch_size": 192, "steps": 50}, {**PAPER, "read": READ | {"workers": 12, "steps": 3}}
    ),
)(Later("speed", "throughput"))
