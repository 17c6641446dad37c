"""Pruning: masks on the weights of a plain model, kept up while any optimizer trains it; and what sparsity saves.

>>> import torch
>>> from companion.models import mlp
>>> model = mlp([64, 32, 10])
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> sparsity = RigL(model, optimizer, sparsity=0.9, steps=100, every=10)
>>> for _ in range(100):
...     loss = model(torch.randn(8, 64)).square().mean()
...     optimizer.zero_grad(); loss.backward(); optimizer.step()
...     sparsity.step()
>>> int(model.linear1.weight.count_nonzero() + model.linear2.weight.count_nonzero()), round(sparsity.density(), 3)
(237, 0.1)

`axes` holds densities, schedules and criteria, `masks` what every method does with them, `methods`, `lottery` and
`thresholds` the methods, `cost` the counts and times; `filters` takes whole filters out of a network, with
`filters_coupling` (what hangs together) and `filters_removal` (what changes nothing).

Chapter *What sparsity is and what it buys* counts with `cost` and times with `latency`, chapter *Random, magnitude,
lottery, dynamic* derives the methods, chapter *From small norms to a smaller network* takes filters out.
"""

from __future__ import annotations

from companion.pruning.axes import constant, cosine, cubic, erk, iterative, one_shot, uniform
from companion.pruning.cost import Cost, Latency, cost, latencies, latency
from companion.pruning.filters import (
    FilterReport,
    FineTuning,
    channel_norms,
    filter_norms,
    finetune,
    prune_filters,
    widest_gap,
)
from companion.pruning.filters_coupling import Coupling, couple
from companion.pruning.filters_removal import zero_filters
from companion.pruning.lottery import LotteryTicket
from companion.pruning.masks import Masks, Options
from companion.pruning.methods import SET, GraNet, MagnitudePruning, RandomPruning, RigL, RigLITOP
from companion.pruning.thresholds import DST, surrogate

__all__ = [
    "DST",
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
    "cosine",
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
    "prune_filters",
    "surrogate",
    "uniform",
    "widest_gap",
    "zero_filters",
]
