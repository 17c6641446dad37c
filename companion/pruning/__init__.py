"""Pruning: masks on the weights of a plain model, kept up while any optimizer trains it; and what sparsity saves.

Masks and what they choose by are here, `methods` holds the methods, one file each, found by name in `METHODS`;
`filters` takes whole filters out of a network.

Chapter *What sparsity is and what it buys* counts with `cost` and times with `latency`, chapter *Random, magnitude,
lottery, dynamic* derives the methods, chapter *From small norms to a smaller network* takes filters out.
"""

from __future__ import annotations

from companion.pruning._cost import Cost, Latency, cost, latencies, latency
from companion.pruning._criteria import CRITERIA
from companion.pruning._densities import DENSITIES, erk, uniform
from companion.pruning._masks import METHODS, Masks, Options
from companion.pruning._schedules import constant, cosine_decay, cubic, iterative, one_shot
from companion.pruning.filters import (
    Coupling,
    FilterReport,
    FineTuning,
    channel_norms,
    couple,
    filter_norms,
    finetune,
    plan,
    prune_filters,
    rebuild,
    widest_gap,
    zero_filters,
)
from companion.pruning.methods import (
    DST,
    SET,
    GraNet,
    LotteryTicket,
    MagnitudePruning,
    RandomPruning,
    RigL,
    RigLITOP,
    surrogate,
)

__all__ = [
    "CRITERIA",
    "DENSITIES",
    "DST",
    "METHODS",
    "SET",
    "Cost",
    "Coupling",
    "FilterReport",
    "FineTuning",
    "GraNet",
    "Latency",
    "LotteryTicket",
    "MagnitudePruning",
    "Masks",
    "Options",
    "RandomPruning",
    "RigL",
    "RigLITOP",
    "channel_norms",
    "constant",
    "cosine_decay",
    "cost",
    "couple",
    "cubic",
    "erk",
    "filter_norms",
    "finetune",
    "iterative",
    "latencies",
    "latency",
    "one_shot",
    "plan",
    "prune_filters",
    "rebuild",
    "surrogate",
    "uniform",
    "widest_gap",
    "zero_filters",
]
