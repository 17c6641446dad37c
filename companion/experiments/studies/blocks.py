"""Does a short path of features make whole residual branches removable? A study of the third round."""

from __future__ import annotations

from dataclasses import replace

from companion.experiments.plan import Tier
from companion.experiments.recipes import DIGITS_WIDE, HALF_RESOLUTION, Depth, Methods, Prune, feature_flow, penalised
from companion.experiments.registry import experiment, train_and_prune

LENGTHS: Methods = {
    "none": {"penalties": ()},
    **penalised(**{f"ffr_length_{length:g}": feature_flow(length, 0.0) for length in (0.01, 0.03, 0.1)}),
}
SHORTER = Prune((0.8, 0.9), (0.5,), depth=Depth(greedy=5, examples=2000, batches=10, fine_tune=(2, 4)))
DRY = replace(SHORTER, depth=Depth(greedy=2, examples=2000, batches=10, fine_tune=(1,)))

experiment(
    "depth",
    "Does feature-flow regularisation at any strength make whole residual branches removable?",
    blocks=True,
    smoke=Tier(replace(DIGITS_WIDE, prune=DRY), LENGTHS, seeds=(50,)),
    laptop=Tier(replace(HALF_RESOLUTION, prune=SHORTER), LENGTHS, seeds=tuple(range(50, 65))),
)(train_and_prune)
