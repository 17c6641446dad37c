"""The package that the book *Identity & Flow: learning sparse neural networks from their features* teaches with.

The names that people type first can be imported from here; each module is loaded when one of its names is asked for.

>>> from companion import cka
>>> cka.__module__
'companion.similarity._cka'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"  # the only place: packaging reads it from here

_MODULES = {
    "experiments": ("load_or_run",),
    "features": ("FeatureTap", "extract"),
    "information": ("mutual_information",),
    "models": ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg16_bn"),
    "pruning": (
        *("DST", "SET", "GraNet", "LotteryTicket", "MagnitudePruning", "RandomPruning", "RigL", "RigLITOP"),
        *("cost", "latency", "prune_filters"),
    ),
    "regularizers": (
        *("L1", "AugmentedCKASparsity", "CKASparsity", "FeatureFlow", "GroupLasso", "NetworkSlimming", "Orthogonality"),
    ),
    "similarity": ("cka", "cka_interval", "cka_map", "cka_matrix", "hsic"),
    "training": ("evaluate", "fit"),
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"companion.{module}"), name)
    raise AttributeError(f"module 'companion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
