"""Filters: which are small, how many may go, and the network without them.

>>> import torch
>>> from companion.models import digits_net
>>> model, x = digits_net(width=8, blocks=2), torch.randn(2, 1, 8, 8)
>>> smaller, report = prune_filters(model, x, norm="l2", macs=0.5)
>>> smaller(x).shape, report.macs <= 0.5
(torch.Size([2, 10]), True)

`couple` says which channels hang together, `remove` takes them out without changing anything else, `plan` and
`rebuild` keep the architecture that is left. Chapter *From small norms to a smaller network* explains them.
"""

from __future__ import annotations

from companion.pruning.filters._coupling import Coupling, couple
from companion.pruning.filters._norms import channel_norms, filter_norms, widest_gap
from companion.pruning.filters._plan import plan, rebuild
from companion.pruning.filters._pruning import FilterReport, FineTuning, finetune, prune_filters
from companion.pruning.filters._removal import Constants, constants, remove, zero_filters

__all__ = [
    "Constants",
    "Coupling",
    "FilterReport",
    "FineTuning",
    "channel_norms",
    "constants",
    "couple",
    "filter_norms",
    "finetune",
    "plan",
    "prune_filters",
    "rebuild",
    "remove",
    "widest_gap",
    "zero_filters",
]
