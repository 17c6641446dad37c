# The names that `companion` offers, each loaded from its module when it is asked for.
from .features import FeatureTap, extract
from .information import mutual_information
from .models import resnet20
from .pruning import (
    DST,
    SET,
    GraNet,
    LotteryTicket,
    MagnitudePruning,
    RandomPruning,
    RigL,
    cost,
    latency,
    prune_filters,
)
from .regularizers import AugmentedCKASparsity, CKASparsity, FeatureFlow, GroupLasso, NetworkSlimming
from .similarity import cka, cka_interval, cka_map, hsic
from .training import evaluate, fit

__version__: str
__all__ = [
    "DST",
    "SET",
    "AugmentedCKASparsity",
    "CKASparsity",
    "FeatureFlow",
    "FeatureTap",
    "GraNet",
    "GroupLasso",
    "LotteryTicket",
    "MagnitudePruning",
    "NetworkSlimming",
    "RandomPruning",
    "RigL",
    "cka",
    "cka_interval",
    "cka_map",
    "cost",
    "evaluate",
    "extract",
    "fit",
    "hsic",
    "latency",
    "mutual_information",
    "prune_filters",
    "resnet20",
]
