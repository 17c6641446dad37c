"""What do the features of published nets look like? Maps of similarity, and the paths of images."""

from __future__ import annotations

from companion.experiments.plan import Tier
from companion.experiments.recipes import Methods
from companion.experiments.registry import Later, experiment

PUBLISHED: Methods = {
    f"resnet{depth}": {"model": f"resnet{depth}", "weights": "akamaster"} for depth in (20, 32, 44, 56)
}
UNTRAINED: Methods = {f"resnet{depth}-untrained": {"model": f"resnet{depth}", "weights": None} for depth in (20, 56)}
PAIRS: Methods = {"resnet20-vs-resnet56": {"model": "resnet20", "other": "resnet56", "weights": "akamaster"}}
DIGITS: Methods = {"digits_net-untrained": {"model": "digits_net"}}

experiment(
    "published_cka",
    "How similar are the layers of really trained CIFAR-10 ResNets to each other?",
    smoke=Tier({"dataset": "digits", "examples": 200, "geometry": 10, "weights": None}, DIGITS),
    paper=Tier({"dataset": "cifar10", "examples": 10_000, "geometry": 15}, PUBLISHED | UNTRAINED | PAIRS),
)(Later("pretrained", "published_cka"))

experiment(
    "published_flow",
    "How long and how curved are the paths of images through published ResNets, and does it depend on the image?",
    smoke=Tier({"dataset": "digits", "examples": 100, "weights": None}, DIGITS),
    paper=Tier({"dataset": "cifar10", "examples": 2000}, PUBLISHED | UNTRAINED),
)(Later("pretrained", "published_flow"))
