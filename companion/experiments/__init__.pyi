# The names that `companion.experiments` offers, each loaded from its module when it is asked for.
from .archive import problems, recorded, replay
from .plan import TIERS, Experiment, Outcome, Tier, Workplace
from .registry import EXPERIMENTS, find
from .removal import train_and_prune
from .runner import OtherBlockError, load_or_run, perform
from .titles import TITLES
from .trainings import ImageTask, lottery, train

__all__ = [
    "EXPERIMENTS",
    "TIERS",
    "TITLES",
    "Experiment",
    "ImageTask",
    "OtherBlockError",
    "Outcome",
    "Tier",
    "Workplace",
    "find",
    "load_or_run",
    "lottery",
    "perform",
    "problems",
    "recorded",
    "replay",
    "train",
    "train_and_prune",
]
