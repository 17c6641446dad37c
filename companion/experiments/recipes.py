"""Recipes: what a training is, in typed values. `dataclasses.replace(CIFAR, epochs=5)` is another training.

A record holds a recipe as JSON, with every argument written out, so that a default which changes later does not change
what a run was. `completed` writes out what the settings of older records left to defaults. Page *Running experiments*
lists what is registered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

__all__ = ["Depth", "Part", "PhotographRecipe", "Prune", "Recipe"]


@dataclass(frozen=True)
class Part:
    """A penalty, masks, or a schedule: the name it is registered under, and its arguments.

    >>> Part("L1", {"strength": 0.1, "layers": None}).settings()
    {'kind': 'L1', 'strength': 0.1, 'layers': None}
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Part:
        """The part that `settings` describe."""
        return cls(settings["kind"], {name: value for name, value in settings.items() if name != "kind"})

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.arguments}


@dataclass(frozen=True)
class Depth:
    """How whole residual branches are taken out after training, see `removal.blocks_removed`."""

    greedy: int
    examples: int
    batches: int
    fine_tune: Sequence[int]


@dataclass(frozen=True)
class Prune:
    """How a dense net is pruned after training, see `removal.train_and_prune`."""

    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9)
    macs: Sequence[float] = (0.5, 0.25)
    norm: Literal["l1", "l2", "bn", "folded", "activation"] = "folded"
    batches: int = 20
    epochs: int = 1
    lr: float = 0.02
    criteria: Sequence[str] | None = None
    images: Sequence[float] | None = None
    depth: Depth | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training, and what is done with the net afterwards. What is None is no part of it.

    Attributes:
        validation: so many training images are held out; with 0 the test set is followed.
        pool, padding: blocks of `pool` × `pool` pixels are averaged; so many zeros around one that is cropped.
        levels, rewind: of a lottery ticket.
        precision, channels_last, compile, workers: how a training is computed where nobody says otherwise; no part of
            what it is.

    >>> DIGITS.epochs, replace(DIGITS, epochs=5).settings()["epochs"]
    (3, 5)
    """

    dataset: str
    model: str
    batch_size: int
    epochs: int
    lr: float
    schedule: Part
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True
    label_smoothing: float = 0.0
    validation: int | None = None
    pool: int | None = None
    padding: int | None = None
    model_options: Mapping[str, Any] | None = None
    penalties: Sequence[Part] | None = None
    pruning: Part | None = None
    prune: Prune | None = None
    levels: int | None = None
    rewind: int | None = None
    precision: str | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    workers: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The recipe that a record's settings describe; what older records left out is what it was.

        Raises:
            ValueError: settings of no recipe; the message names them.
        """
        s = completed(settings)
        fields = {f.name for f in dataclasses.fields(cls)} | {"schedule_options"}
        if unknown := set(s) - fields:
            raise ValueError(f"settings {sorted(unknown)} are unknown to a {cls.__name__}; it has {sorted(fields)}")
        try:
            s["schedule"] = Part(s["schedule"], s.pop("schedule_options"))
            for name, read in _READ.items():
                if s.get(name) is not None:
                    s[name] = read(s[name])
            return cls(**s)
        except (KeyError, TypeError) as error:
            raise ValueError(f"settings {sorted(settings)} are no {cls.__name__}: {error}") from error

    def settings(self) -> dict[str, Any]:
        """As a record holds it: JSON, every argument written out."""
        found = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        found |= {"schedule": self.schedule.kind, "schedule_options": _plain(self.schedule.arguments)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PhotographRecipe(Recipe):
    """A training on ImageNet, see `photographs.Photographs`.

    Attributes:
        size: pixels a side after cropping.
        device_batch: examples that batch norm and penalties see at a time; `batch_size` of them make a step.
        checkpoint_every: steps between two checkpoints inside an epoch; None: only after each epoch.
        photographs: so many of a sample.
    """

    size: int
    device_batch: int
    checkpoint_every: int | None = None
    photographs: int | None = None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "checkpoint_every": self.checkpoint_every}


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, Part):
        return _plain(value.settings())
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: _plain(item) for name, item in fields.items() if item is not None}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _prune(settings: Mapping[str, Any]) -> Prune:
    depth = settings.get("depth")
    return Prune(**{**settings, "depth": depth and Depth(**depth)})


_READ: Mapping[str, Callable[[Any], Any]] = {
    "penalties": lambda parts: tuple(Part.of(part) for part in parts),
    "pruning": Part.of,
    "prune": _prune,
}


# ------------------------------------------------------------------------------------------------------------ schedules
def multistep(*milestones: int, gamma: float = 0.1, warmup: int = 0) -> Part:
    return Part("multistep", {"milestones": milestones, "gamma": gamma, "warmup": warmup})


def one_cycle(rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> Part:
    return Part("one_cycle", {"rise": rise, "start": start, "end": end})


def cosine(warmup: int = 0, floor: float = 0) -> Part:
    return Part("cosine", {"warmup": warmup, "floor": floor})


# ---------------------------------------------------------------------------------------------------------------- masks
def random_masks(dense: str | None = None) -> Part:
    """Fixed random masks, by Erdős–Rényi kernel densities."""
    return Part("RandomPruning", {"density": "erk", "dense": dense, "grain": "weight"})


def granet(every: int) -> Part:
    """GraNet as its authors have it, but for the steps between two updates."""
    options = {"initial": 0.5, "drop": 0.5, "floor": 0.005, "end": 0.5, "density": "erk", "dense": None}
    return Part("GraNet", {"every": every, **options, "grain": "weight"})


# ------------------------------------------------------------------------------------------------------------ penalties
STRENGTHS = ("beta", "length", "curvature", "strength")


def cka_sr(
    beta: float, kind: str = "CKASparsity", *, form: str = "signed", examples: int | None = 8, every: int = 5
) -> Part:
    """CKA-SR as its released code has it: 8 examples, every 5th batch."""
    where = {"layers": None, "pairs": "stage", "estimator": "unbiased", "form": form, "reduction": "sum"}
    return Part(kind, {"beta": beta, "examples": examples, "every": every, **where, "kernel": "linear"})


def aug_cka_sr(beta: float, kind: str = "AugmentedCKASparsity", *, form: str = "signed") -> Part:
    """AugCKA-SR as the appendix has it: every example of every batch, biased, a mean over all pairs of blocks."""
    plain = cka_sr(beta, kind, form=form, examples=None, every=1).arguments
    return Part(kind, {**plain, "pairs": "all", "estimator": "biased", "reduction": "mean"})


def feature_flow(
    length: float,
    curvature: float,
    *,
    variant: str = "arxiv",
    norm: int = 2,
    across_stages: bool = False,
    before_relu: bool = False,
) -> Part:
    """Our reading of FFR's arXiv version, one choice at a time."""
    choices = {"variant": variant, "norm": norm, "across_stages": across_stages, "before_relu": before_relu}
    rest = {"reduction": "mean", "layers": None, "examples": None, "every": 1}
    return Part("FeatureFlow", {"length": length, "curvature": curvature, **choices, **rest})


def group_lasso(strength: float) -> Part:
    return Part("GroupLasso", {"strength": strength, "layers": None})


def slimming(strength: float) -> Part:
    return Part("NetworkSlimming", {"strength": strength, "layers": None})


Methods = dict[str, dict[str, Any]]  # name → what is particular to it, over the recipe of its tier


def penalised(**penalties: Part) -> Methods:
    """Methods that are one penalty each, by name."""
    return {name: {"penalties": (penalty,)} for name, penalty in penalties.items()}


# -------------------------------------------------------------------------------------------------------- older records
# What the settings of older records left to defaults, as these were when the runs were made: by kind, no strength.
LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    **{
        part.kind: {name: value for name, value in part.arguments.items() if name not in STRENGTHS}
        for part in (cka_sr(0), aug_cka_sr(0), feature_flow(0, 0), group_lasso(0), slimming(0))
    },
    **{part.kind: part.arguments for part in (random_masks(), one_cycle(), cosine())},
    "GraNet": {name: value for name, value in granet(0).arguments.items() if name != "every"},
    "multistep": {"gamma": 0.1, "warmup": 0},
    "training": {"momentum": 0.9, "nesterov": True, "decay_norm_and_bias": True, "label_smoothing": 0.0},
}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training with every argument written out: what is not there is what it was, by `LEFT_OUT`.

    >>> found = completed({"lr": 0.1, "schedule": "cosine", "penalties": [{"kind": "GroupLasso", "strength": 0.1}]})
    >>> found["momentum"], found["schedule_options"]["floor"], found["penalties"][0]["layers"]
    (0.9, 0, None)
    """

    def whole(described: Mapping[str, Any]) -> dict[str, Any]:
        return {**LEFT_OUT.get(described["kind"], {}), **described}

    full = dict(settings)
    if "schedule" in full:
        options = {**LEFT_OUT.get(full["schedule"], {}), **full.get("schedule_options", {})}
        if "warmup" in full:  # older settings have it beside the schedule's name
            options["warmup"] = full.pop("warmup")
        if milestones := full.pop("milestones", None):
            options["milestones"] = milestones
        full = {**LEFT_OUT["training"], **full, "schedule_options": options}
    if "penalties" in full:
        full["penalties"] = [whole(described) for described in full["penalties"]]
    if full.get("pruning") is not None:
        full["pruning"] = whole(full["pruning"])
    return full


# -------------------------------------------------------------------------------------------------------------- recipes
# The papers' CIFAR recipe (CKA-SR's released code), with 5,000 of the training images held out.
CIFAR = Recipe(
    dataset="cifar10",
    validation=5000,
    model="resnet20",
    model_options={"shortcut": "B"},
    batch_size=128,
    epochs=160,
    schedule=multistep(80, 120),
    lr=0.1,
    precision="bfloat16",
    channels_last=True,
    compile=True,
)
# The same at half the resolution and a twentieth of the epochs: minutes on two cores, far above chance.
CIFAR_LAPTOP = replace(CIFAR, pool=2, padding=2, epochs=8, schedule=one_cycle(), lr=0.2, compile=False)
# Sparse training at the laptop's tier: many runs, so fewer epochs still.
SPARSE_LAPTOP = replace(CIFAR_LAPTOP, epochs=5)
# A dry run of seconds.
DIGITS = Recipe(
    dataset="digits", validation=200, model="digits_net", batch_size=64, epochs=3, schedule=one_cycle(), lr=0.1
)

# Of the third round: the same, with the net's width written out.
HALF_RESOLUTION = replace(SPARSE_LAPTOP, model_options={"shortcut": "B", "width": 16})
# CKA-SR's released recipe with a quarter of its 160 epochs, at full resolution and width.
QUARTER = replace(HALF_RESOLUTION, pool=1, padding=4, epochs=40, schedule=multistep(20, 30), lr=0.1)
DIGITS_WIDE = replace(DIGITS, model_options={"width": 16, "blocks": 4})

# Pruning after dense training: weights at once, filters with fine-tuning.
PRUNE = Prune()
UNTUNED = replace(PRUNE, epochs=0)  # what is to be chosen is what pruning itself takes away
PRUNE_PAPER = replace(PRUNE, batches=100, epochs=40, lr=0.01)

# ImageNet. Of the recipe behind CKA-SR's code are known: the batch, four times 192, the learning rate, the warm-up, the
# epochs, label smoothing, weight decay, the density, and a dense classifier. The cosine and the precision are ours.
IMAGENET = PhotographRecipe(
    dataset="imagenet",
    size=224,
    workers=12,
    model="resnet18",
    batch_size=768,
    device_batch=192,
    epochs=100,
    schedule=cosine(warmup=5),
    lr=0.4,
    weight_decay=1e-4,
    label_smoothing=0.1,
    precision="bfloat16",
    channels_last=True,
    compile=True,
    checkpoint_every=200,
)
# The same in small: one or two ranks, a step of two parts.
IMAGENET_DRAWN = replace(
    IMAGENET,
    dataset="drawn",
    size=32,
    workers=0,
    batch_size=32,
    device_batch=16,
    epochs=2,
    schedule=cosine(warmup=1),
    lr=0.05,
    precision="float32",
    compile=False,
    checkpoint_every=2,
)
# Real photographs, so few that only their pace means anything.
IMAGENET_SAMPLE = replace(
    IMAGENET_DRAWN,
    dataset="sample",
    photographs=256,
    size=224,
    workers=2,
    batch_size=64,
    device_batch=32,
    checkpoint_every=None,
)
