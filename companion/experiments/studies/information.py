"""How near to the truth do estimators of mutual information come, on distributions whose information is known?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from companion.experiments.plan import Tier
from companion.experiments.recipes import Methods
from companion.experiments.registry import Later, experiment

TASKS = [
    "normal 1×1, ρ = 0.75",
    "exponential of normal 1×1, ρ = 0.75",
    "student 1×1, 1 degrees, independent scale matrix",
    "uniform + uniform noise, ε = 0.1",
    "3 bumps of 0.3 + noise of 0.3",
    "spiral of normal 3×3, 2 pairs of ρ = 0.8",
    "normal 5×5, 2 pairs of ρ = 0.8",
    "student 5×5, 3 degrees, all ρ = 0.5",
    "normal 25×25, 2 pairs of ρ = 0.8",
    "half-cube of normal 25×25, 2 pairs of ρ = 0.8",
    "normal 50×50, all ρ = 0.5",
]
# estimator → its options, and sizes: [examples, samples, most features of x and y together]
CRITIC = {"steps": 800, "patience": 5}
ESTIMATORS: Mapping[str, tuple[dict[str, Any], list[list[int]]]] = {
    "ksg": ({"k": 3}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 20], [100_000, 1, 2]]),
    "ksg2": ({"k": 3}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 10]]),
    "gaussian": ({}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 100], [100_000, 1, 50]]),
    "binning": ({"bins": 10}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 100], [100_000, 1, 2]]),
    "renyi": ({}, [[100, 5, 100], [500, 1, 100]]),
    "infonce": (CRITIC, [[1000, 2, 100], [10_000, 1, 100]]),
    "nwj": (CRITIC, [[1000, 2, 100], [10_000, 1, 100]]),
    "dv": (CRITIC, [[1000, 2, 100], [10_000, 1, 100]]),
}
GRID = {
    "dimensions": [1, 2, 5, 10, 20],
    "correlations": [0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99],
    "sizes": [[1000, 1, 100]],
}
DRY = {"sizes": [[100, 1, 100]]}  # a hundred examples, once


def estimators(names: Iterable[str], **settings: Any) -> Methods:
    """Estimators as methods."""
    return {
        name: {"estimator": name, "options": options, "sizes": sizes, **settings}
        for name, (options, sizes) in ESTIMATORS.items()
        if name in names
    }


experiment(
    "information_grid",
    "What does each estimator say of Gaussian pairs, as their correlation and their number grow?",
    smoke=Tier({"dimensions": [1, 2], "correlations": [0.0, 0.9]}, estimators(("ksg", "gaussian"), **DRY)),
    laptop=Tier({}, estimators(("ksg", "gaussian", "binning", "infonce", "nwj"), **GRID)),
)(Later("distributions", "known_information"))

experiment(
    "known_information",
    "How near to the truth does each estimator of mutual information come, where the truth is known?",
    smoke=Tier({"tasks": TASKS[:2]}, estimators(("ksg", "gaussian", "binning"), **DRY)),
    laptop=Tier({"tasks": TASKS}, estimators(ESTIMATORS)),
)(Later("distributions", "known_information"))
