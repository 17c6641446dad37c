"""Does a short path of features make whole residual branches removable?"""

from __future__ import annotations

from typing import Any

from companion.experiments.plan import Experiment, Tier
from companion.experiments.studies.recipes import DIGITS, HALF_RESOLUTION, PRUNE, feature_flow, penalised
from companion.experiments.trainings import train_and_prune

LENGTHS: dict[str, dict[str, Any]] = {
    "none": {"penalties": []},
    **penalised(**{f"ffr_length_{length:g}": feature_flow(length, 0.0) for length in (0.01, 0.03, 0.1)}),
}
SHORTER: dict[str, Any] = PRUNE | {
    "sparsities": [0.8, 0.9],
    "macs": [0.5],
    "depth": {"greedy": 5, "examples": 2000, "batches": 10, "fine_tune": [2, 4]},
}

EXPERIMENTS = (
    Experiment(
        "depth",
        "Does feature-flow regularisation at any strength make whole residual branches removable?",
        train_and_prune,
        {
            "smoke": Tier(
                DIGITS | {"prune": SHORTER | {"depth": SHORTER["depth"] | {"greedy": 2, "fine_tune": [1]}}},
                LENGTHS,
                seeds=(50,),
            ),
            "laptop": Tier(HALF_RESOLUTION | {"prune": SHORTER}, LENGTHS, seeds=tuple(range(50, 65))),
        },
        blocks=True,
    ),
)
