"""Sparse training methods, one file each: a few lines of schedule, density and criterion on top of `Masks`.

Here t counts optimizer steps, s is the sparsity. Chapter *Random, magnitude, lottery, dynamic* derives each.
"""

from __future__ import annotations

from companion.pruning.methods._dst import DST, surrogate
from companion.pruning.methods._granet import GraNet
from companion.pruning.methods._itop import RigLITOP
from companion.pruning.methods._lottery import LotteryTicket
from companion.pruning.methods._magnitude import MagnitudePruning
from companion.pruning.methods._random import RandomPruning
from companion.pruning.methods._rigl import RigL
from companion.pruning.methods._set import SET

__all__ = [
    "DST",
    "SET",
    "GraNet",
    "LotteryTicket",
    "MagnitudePruning",
    "RandomPruning",
    "RigL",
    "RigLITOP",
    "surrogate",
]
