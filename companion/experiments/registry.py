"""The registry: every experiment by its name, with the settings of its tiers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from companion.experiments.at_scale import pace, train_and_prune_on_photographs, train_on_photographs
from companion.experiments.estimators import known_information
from companion.experiments.observations import published_cka, published_flow, throughput
from companion.experiments.plan import Experiment, Tier
from companion.experiments.studies import EXPERIMENTS as STUDIES
from companion.experiments.trainings import lottery, train, train_and_prune

# The papers' CIFAR recipe (CKA-SR's released code), with 5,000 of the training images held out.
CIFAR = {
    "dataset": "cifar10",
    "validation": 5000,
    "model": "resnet20",
    "model_options": {"shortcut": "B"},
    "batch_size": 128,
    "epochs": 160,
    "schedule": "multistep",
    "milestones": [80, 120],
    "lr": 0.1,
    "weight_decay": 5e-4,
    "precision": "bfloat16",
    "channels_last": True,
    "compile": True,
}
# The same at half the resolution and a twentieth of the epochs: minutes on two cores, far above chance.
CIFAR_LAPTOP = CIFAR | {
    "pool": 2,
    "padding": 2,
    "epochs": 8,
    "schedule": "one_cycle",
    "milestones": [],
    "lr": 0.2,
    "compile": False,
}
DIGITS = {
    "dataset": "digits",
    "validation": 200,
    "model": "digits_net",
    "batch_size": 64,
    "epochs": 3,
    "schedule": "one_cycle",
    "lr": 0.1,
    "weight_decay": 5e-4,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    f"resnet{depth}": {"model": f"resnet{depth}", "weights": "akamaster"} for depth in (20, 32, 44, 56)
}
UNTRAINED: dict[str, dict[str, Any]] = {
    f"resnet{depth}-untrained": {"model": f"resnet{depth}", "weights": None} for depth in (20, 56)
}
PAIRS = {"resnet20-vs-resnet56": {"model": "resnet20", "other": "resnet56", "weights": "akamaster"}}

STEP = {"precision": "bfloat16", "channels_last": True, "compile": False}
READ = {"model": None, "workers": 2}

# Those of the published table; first the one of the published sweep, then the extreme one that still learns.
PUBLISHED_SPARSITIES = (0.95, 0.98, 0.7, 0.85, 0.9, 0.998)

# Sparse training at the laptop's tier: many runs, so fewer epochs still.
SPARSE_LAPTOP = CIFAR_LAPTOP | {"epochs": 5}
RANDOM = {"pruning": {"kind": "RandomPruning", "density": "erk"}}
# Updates as often in a run as in the paper's: 1,000 steps of 160 epochs.
GRANET = {"pruning": {"kind": "GraNet", "every": 1000}}
GRANET_LAPTOP = {"pruning": {"kind": "GraNet", "every": 50}}
GRANET_DIGITS = {"pruning": {"kind": "GraNet", "every": 10}}


def _cka_sr(beta: float) -> dict[str, Any]:
    return {"penalties": [{"kind": "CKASparsity", "beta": beta, "examples": 8, "every": 5}]}


def _aug_cka_sr(beta: float) -> dict[str, Any]:
    return {"penalties": [{"kind": "AugmentedCKASparsity", "beta": beta}]}


def _with_penalties(host: str, cka_sr: float = 1e-4, aug_cka_sr: float = 0.1) -> dict[str, dict[str, Any]]:
    """A host method alone and with both penalties; default strengths: the released code's, and the appendix's."""
    return {host: {}, f"{host}+cka_sr": _cka_sr(cka_sr), f"{host}+aug_cka_sr": _aug_cka_sr(aug_cka_sr)}


# The same number for each; every range holds the published strength. Of the recorded ones at tier laptop these are best
# on the validation images (a test compares).
CHOSEN = {"cka_sr": 1e-3, "aug_cka_sr": 0.03}


def _cka_sr_each(*betas: float) -> dict[str, dict[str, Any]]:
    """CKA-SR under random masks, a method a strength."""
    return {f"random+cka_sr_{beta:g}": _cka_sr(beta) for beta in betas}


STRENGTHS: dict[str, dict[str, Any]] = {
    **_cka_sr_each(1e-4, 1e-3, 1e-2, 1e-1),
    **{f"random+aug_cka_sr_{beta:g}": _aug_cka_sr(beta) for beta in (0.03, 0.1, 0.3, 1.0)},
}
SWEEP = {"random": {}, **_cka_sr_each(1e-4, 1e-3, 1e-2, 1e-1)}
SWEEP_PAPER = {
    "random": {},
    **_cka_sr_each(1e-5, 2e-5, 5e-5, 8e-5, 1e-4, 2e-4, 5e-4, 8e-4, 1e-3, 2e-3, 5e-3, 1e-2),
}

# Dense training under a penalty, then pruning: weights at once, filters with fine-tuning.
PRUNE = {
    "sparsities": [0.5, 0.7, 0.8, 0.9],
    "macs": [0.5, 0.25],
    "norm": "folded",
    "batches": 20,
    "epochs": 1,
    "lr": 0.02,
}
UNTUNED = PRUNE | {"epochs": 0}  # what is to be chosen is what pruning itself takes away
PRUNE_PAPER = PRUNE | {"batches": 100, "epochs": 40, "lr": 0.01}


def _penalty(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"penalties": [{"kind": kind, **arguments}]}


NONE: dict[str, dict[str, Any]] = {"none": {}}
# Three strengths for each. Those in `PENALISED` and `VGG_PENALISED` are the best at tier laptop: on held-out images,
# averaged over all levels of pruning (a test compares).
CANDIDATES: dict[str, dict[str, Any]] = {
    **{f"cka_sr_{beta:g}": _cka_sr(beta) for beta in (1e-3, 3e-3, 1e-2)},
    **{f"aug_cka_sr_{beta:g}": _aug_cka_sr(beta) for beta in (0.03, 0.1, 0.3)},
    **{f"ffr_length_{k:g}": _penalty("FeatureFlow", length=k, curvature=0.0) for k in (0.01, 0.03, 0.1)},
    **{
        f"ffr_curvature_{k:g}": _penalty("FeatureFlow", length=0.0, curvature=k, variant="journal")
        for k in (0.01, 0.03, 0.1)
    },
    **{f"ffr_length_curvature_{k:g}": _penalty("FeatureFlow", length=k, curvature=k) for k in (0.01, 0.02, 0.05)},
    **{f"group_lasso_{k:g}": _penalty("GroupLasso", strength=k) for k in (1e-4, 3e-4, 1e-3)},
    **{f"slimming_{k:g}": _penalty("NetworkSlimming", strength=k) for k in (1e-3, 3e-3, 1e-2)},
}
PENALISED: dict[str, dict[str, Any]] = {
    **NONE,
    "cka_sr": CANDIDATES["cka_sr_0.01"],
    "aug_cka_sr": CANDIDATES["aug_cka_sr_0.3"],
    "ffr_length": CANDIDATES["ffr_length_0.01"],
    "ffr_curvature": CANDIDATES["ffr_curvature_0.01"],
    "ffr_length_curvature": CANDIDATES["ffr_length_curvature_0.01"],
    "group_lasso": CANDIDATES["group_lasso_0.0003"],
    "slimming": CANDIDATES["slimming_0.003"],
}
PENALISED["cka_sr+ffr_length"] = {"penalties": PENALISED["cka_sr"]["penalties"] + PENALISED["ffr_length"]["penalties"]}
TITLES: Mapping[str, str] = {
    "none": "no penalty",
    "group_lasso": "group lasso",
    "slimming": "slimming",
    "ffr_length": "FFR length",
    "ffr_curvature": "FFR curvature",
    "ffr_length_curvature": "FFR both",
    "cka_sr": "CKA-SR",
    "aug_cka_sr": "AugCKA-SR",
    "cka_sr+ffr_length": "CKA-SR + length",
}
AGAIN = {name: PENALISED[name] for name in ("none", "cka_sr", "aug_cka_sr", "ffr_length_curvature")}

# The same question for a plain net and for other images. A VGG halves the resolution five times, so it keeps it whole.
VGG = {"model": "vgg16_bn", "model_options": {}}
VGG_LAPTOP = SPARSE_LAPTOP | VGG | {"model_options": {"width": 8}, "pool": 1, "padding": 4, "prune": PRUNE}
VGG_PENALISED = NONE | {
    "group_lasso": CANDIDATES["group_lasso_0.0001"],
    "slimming": CANDIDATES["slimming_0.003"],
    "ffr_length": CANDIDATES["ffr_length_0.01"],
    "ffr_length_curvature": CANDIDATES["ffr_length_curvature_0.02"],
}
VGG_CANDIDATES = {name: chosen for name, chosen in CANDIDATES.items() if name.rpartition("_")[0] in VGG_PENALISED}
TINY = {"dataset": "tiny_imagenet_20", "validation": 1000, "padding": 4, "epochs": 10, "prune": PRUNE}
TINY_PENALISED = NONE | {"ffr_length_curvature": PENALISED["ffr_length_curvature"]}


def _selection(
    candidates: Mapping[str, Mapping[str, Any]], laptop: Mapping[str, Any], paper: Mapping[str, Any]
) -> dict[str, Tier]:
    """The tiers in which strengths are chosen: beside a net without penalty, not fine-tuned, a seed of its own."""
    recipes = {
        "smoke": DIGITS | {"prune": UNTUNED},
        "laptop": {**laptop, "prune": UNTUNED, "epochs": 2},
        "paper": {**paper, "prune": PRUNE_PAPER | {"epochs": 0}},
    }
    return {tier: Tier(settings, {**NONE, **candidates}, seeds=(100,)) for tier, settings in recipes.items()}


# What the two abstracts leave open, one choice at a time; `dense_penalties` has the rest.
FLOW = PENALISED["ffr_length_curvature"]["penalties"][0]
FLOW_CHOICES: dict[str, dict[str, Any]] = {
    name: {"penalties": [FLOW | choice]}
    for name, choice in {
        "l1": {"norm": 1},
        "before_relu": {"before_relu": True},
        "across_stages": {"across_stages": True},
        "journal": {"variant": "journal"},
    }.items()
}

# ImageNet. Of the recipe behind CKA-SR's code are known: the batch, four times 192, the learning rate, the warm-up, the
# epochs, label smoothing, weight decay, the density, and a dense classifier. The cosine and the precision are ours.
IMAGENET: dict[str, Any] = {
    "dataset": "imagenet",
    "size": 224,
    "workers": 12,
    "model": "resnet18",
    "batch_size": 768,
    "device_batch": 192,
    "epochs": 100,
    "schedule": "cosine",
    "warmup": 5,
    "lr": 0.4,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
    "precision": "bfloat16",
    "channels_last": True,
    "compile": True,
    "checkpoint_every": 200,
}
# The same in small: one or two ranks, a step of two parts.
IMAGENET_DRAWN = IMAGENET | {
    "dataset": "drawn",
    "size": 32,
    "workers": 0,
    "batch_size": 32,
    "device_batch": 16,
    "epochs": 2,
    "warmup": 1,
    "lr": 0.05,
    "precision": "float32",
    "compile": False,
    "checkpoint_every": 2,
}
# Real photographs, so few that only their pace means anything.
IMAGENET_SAMPLE = IMAGENET_DRAWN | {
    "dataset": "sample",
    "photographs": 256,
    "size": 224,
    "workers": 2,
    "batch_size": 64,
    "device_batch": 32,
    "checkpoint_every": None,
}
RANDOM_IMAGENET = {"pruning": RANDOM["pruning"] | {"dense": "fc"}}
WHOLE_BATCH: dict[str, dict[str, Any]] = {
    "random": RANDOM_IMAGENET,
    "random+cka_sr": RANDOM_IMAGENET | _penalty("CKASparsity", beta=1e-5, examples=None, every=1),
}
THIN = {"model": "resnet50", "model_options": {"width_per_group": 16}}
IMAGENET_PRUNE = PRUNE_PAPER | {"sparsities": [0.5, 0.8, 0.9], "epochs": 20}
IMAGENET_PRUNE_DRAWN = PRUNE | {"sparsities": [0.5, 0.8], "macs": [0.5], "batches": 4}
IMAGENET_FLOW = NONE | {"ffr_length_curvature": PENALISED["ffr_length_curvature"]}

# Estimators of information where the truth is known.
KNOWN_TASKS = [
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
ESTIMATORS: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "ksg": ({"k": 3}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 20], [100_000, 1, 2]]),
    "ksg2": ({"k": 3}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 10]]),
    "gaussian": ({}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 100], [100_000, 1, 50]]),
    "binning": ({"bins": 10}, [[100, 10, 100], [1000, 5, 100], [10_000, 2, 100], [100_000, 1, 2]]),
    "renyi": ({}, [[100, 5, 100], [500, 1, 100]]),
    "infonce": (CRITIC, [[1000, 2, 100], [10_000, 1, 100]]),
    "nwj": (CRITIC, [[1000, 2, 100], [10_000, 1, 100]]),
    "dv": (CRITIC, [[1000, 2, 100], [10_000, 1, 100]]),
}
GRID: dict[str, Any] = {
    "dimensions": [1, 2, 5, 10, 20],
    "correlations": [0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99],
    "sizes": [[1000, 1, 100]],
}


def _known(names: Iterable[str], smoke: bool = False, **settings: Any) -> dict[str, dict[str, Any]]:
    """Estimators as methods; at tier smoke a hundred examples, once."""
    return {
        name: {
            "estimator": name,
            "options": ESTIMATORS[name][0],
            "sizes": [[100, 1, 100]] if smoke else ESTIMATORS[name][1],
            **settings,
        }
        for name in names
    }


_EXPERIMENTS = (
    Experiment(
        "published_cka",
        "How similar are the layers of really trained CIFAR-10 ResNets to each other?",
        published_cka,
        {
            "smoke": Tier(
                {"dataset": "digits", "examples": 200, "geometry": 10, "weights": None},
                {"digits_net-untrained": {"model": "digits_net"}},
            ),
            "paper": Tier({"dataset": "cifar10", "examples": 10_000, "geometry": 15}, PUBLISHED | UNTRAINED | PAIRS),
        },
    ),
    Experiment(
        "dense_cifar10",
        "How accurate is a dense ResNet-20, and what do its features and weights look like?",
        train,
        {
            "smoke": Tier(DIGITS, {"dense": {}}, seeds=(0, 1)),
            "laptop": Tier(CIFAR_LAPTOP, {"dense": {}}, seeds=(0, 1, 2)),
            "paper": Tier(CIFAR, {"dense": {}}, seeds=(0, 1, 2)),
        },
    ),
    Experiment(
        "dense_cifar10_full_width",
        "How far does the full-width, full-resolution net come in 16 epochs on two cores?",
        train,
        {
            "smoke": Tier(DIGITS, {"dense": {}}),
            "laptop": Tier(CIFAR_LAPTOP | {"pool": 1, "padding": 4, "epochs": 16, "compile": True}, {"dense": {}}),
        },
    ),
    Experiment(
        "random_masks_strengths",
        "Which strength of each penalty is best on held-out images, for a seed that is reported nowhere else?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, STRENGTHS, sparsities=(0.9,), seeds=(100,)),
            "laptop": Tier(SPARSE_LAPTOP | RANDOM, STRENGTHS, sparsities=(0.95,), seeds=(100,)),
        },
    ),
    Experiment(
        "random_masks",
        "Does CKA-SR make training under fixed random masks more accurate?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, _with_penalties("random"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | RANDOM,
                _with_penalties("random", **CHOSEN),
                sparsities=(0.9, 0.98),
                seeds=(0, 1, 2, 3, 4),
            ),
            "paper": Tier(
                CIFAR | RANDOM, _with_penalties("random"), sparsities=PUBLISHED_SPARSITIES, seeds=(0, 1, 2, 3, 4)
            ),
        },
    ),
    Experiment(
        "random_masks_cifar100",
        "Cell by cell of the published table: does CKA-SR help under fixed random masks on CIFAR-100?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, _with_penalties("random"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | RANDOM | {"dataset": "cifar100"},
                _with_penalties("random", **CHOSEN),
                sparsities=(0.9, 0.98),
                seeds=(0, 1, 2),
            ),
            "paper": Tier(
                CIFAR | RANDOM | {"dataset": "cifar100", "validation": 0},
                _with_penalties("random"),
                sparsities=PUBLISHED_SPARSITIES,
                seeds=tuple(range(10)),
            ),
        },
    ),
    Experiment(
        "dense_cifar100",
        "Does CKA-SR make dense training on CIFAR-100 more accurate?",
        train,
        {
            "smoke": Tier(DIGITS, _with_penalties("none")),
            "laptop": Tier(SPARSE_LAPTOP | {"dataset": "cifar100"}, _with_penalties("none", **CHOSEN), seeds=(0, 1, 2)),
            "paper": Tier(
                CIFAR | {"dataset": "cifar100", "validation": 0}, _with_penalties("none"), seeds=(0, 1, 2, 3, 4)
            ),
        },
    ),
    Experiment(
        "random_masks_beta",
        "How does the strength of CKA-SR move the accuracy under fixed random masks?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, SWEEP, sparsities=(0.9,)),
            "laptop": Tier(SPARSE_LAPTOP | RANDOM, SWEEP, sparsities=(0.95,), seeds=(0, 1)),
            "paper": Tier(
                CIFAR | RANDOM,
                SWEEP_PAPER,
                sparsities=(0.95,),
                seeds=(0, 1, 2, 3, 4),
            ),
        },
    ),
    Experiment(
        "granet",
        "Does CKA-SR make gradual pruning with regrowth more accurate?",
        train,
        {
            "smoke": Tier(DIGITS | GRANET_DIGITS, _with_penalties("granet"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | GRANET_LAPTOP,
                _with_penalties("granet", **CHOSEN),
                sparsities=(0.98, 0.9),
                seeds=(0, 1, 2),
            ),
            "paper": Tier(
                CIFAR | GRANET, _with_penalties("granet"), sparsities=PUBLISHED_SPARSITIES, seeds=(0, 1, 2, 3, 4)
            ),
        },
    ),
    Experiment(
        "lottery",
        "Does CKA-SR find better lottery tickets?",
        lottery,
        {
            "smoke": Tier(DIGITS | {"levels": 2, "rewind": 0}, _with_penalties("lottery"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | {"levels": 4, "rewind": 0, "epochs": 3},
                _with_penalties("lottery", **CHOSEN),
                sparsities=(0.9,),
                seeds=(0, 1, 2),
            ),
            "paper": Tier(
                CIFAR | {"levels": 13, "rewind": 0},
                _with_penalties("lottery"),
                sparsities=PUBLISHED_SPARSITIES,
                seeds=(0, 1, 2),
            ),
        },
    ),
    Experiment(
        "dense_penalties_strengths",
        "Which strength leaves a dense net most accurate once it is pruned, on held-out images and a seed of its own?",
        train_and_prune,
        _selection(CANDIDATES, SPARSE_LAPTOP, CIFAR),
    ),
    Experiment(
        "dense_penalties",
        "Which penalties on a dense network make its weights, or its filters, removable?",
        train_and_prune,
        {
            "smoke": Tier(DIGITS | {"prune": PRUNE}, PENALISED),
            "laptop": Tier(SPARSE_LAPTOP | {"prune": PRUNE}, PENALISED, seeds=(0, 1, 2, 3, 4)),
            "paper": Tier(CIFAR | {"prune": PRUNE_PAPER, "model": "resnet56"}, PENALISED, seeds=(0, 1, 2)),
        },
    ),
    Experiment(
        "dense_penalties_again",
        "Do the differences after pruning come again, on five new seeds?",
        train_and_prune,
        {
            "smoke": Tier(DIGITS | {"prune": PRUNE}, AGAIN, seeds=(5,)),
            "laptop": Tier(SPARSE_LAPTOP | {"prune": PRUNE}, AGAIN, seeds=(5, 6, 7, 8, 9)),
        },
    ),
    Experiment(
        "dense_penalties_vgg_strengths",
        "Which strength is best for a plain net, on held-out images and a seed of its own?",
        train_and_prune,
        _selection(VGG_CANDIDATES, VGG_LAPTOP, CIFAR | VGG),
    ),
    Experiment(
        "dense_penalties_vgg",
        "Which penalties make the filters of a plain net, without any shortcut, removable?",
        train_and_prune,
        {
            "smoke": Tier(DIGITS | {"prune": PRUNE}, VGG_PENALISED),
            "laptop": Tier(VGG_LAPTOP, VGG_PENALISED, seeds=(0, 1, 2)),
            "paper": Tier(CIFAR | VGG | {"prune": PRUNE_PAPER}, VGG_PENALISED, seeds=(0, 1, 2)),
        },
    ),
    Experiment(
        "dense_penalties_tiny",
        "Does feature-flow regularisation make filters removable on photographs of another data set?",
        train_and_prune,
        {
            "smoke": Tier(DIGITS | {"prune": PRUNE}, TINY_PENALISED),
            "laptop": Tier(SPARSE_LAPTOP | TINY, TINY_PENALISED, seeds=(0, 1, 2)),
            "paper": Tier(
                CIFAR | {"dataset": "tiny_imagenet_200", "model": "resnet56", "prune": PRUNE_PAPER},
                TINY_PENALISED,
                seeds=(0, 1, 2),
            ),
        },
    ),
    Experiment(
        "flow_choices",
        "Does it matter how feature-flow regularisation is read: which norm, where, across stages, which curvature?",
        train_and_prune,
        {
            "smoke": Tier(DIGITS | {"prune": UNTUNED}, FLOW_CHOICES),
            "laptop": Tier(SPARSE_LAPTOP | {"prune": UNTUNED}, FLOW_CHOICES, seeds=(0, 1, 2)),
            "paper": Tier(CIFAR | {"model": "resnet56", "prune": PRUNE_PAPER}, FLOW_CHOICES, seeds=(0, 1, 2)),
        },
    ),
    Experiment(
        "imagenet_random_masks",
        "Does CKA-SR make training under fixed random masks more accurate on ImageNet?",
        train_on_photographs,
        {
            "smoke": Tier(IMAGENET_DRAWN, WHOLE_BATCH, sparsities=(0.95,)),
            "paper": Tier(IMAGENET, WHOLE_BATCH, sparsities=(0.95,), seeds=(0, 1, 2)),
        },
        ranks=True,
    ),
    Experiment(
        "imagenet_flow",
        "Does feature-flow regularisation make the filters of a dense ResNet-50 removable on ImageNet?",
        train_and_prune_on_photographs,
        {
            "smoke": Tier(IMAGENET_DRAWN | THIN | {"prune": IMAGENET_PRUNE_DRAWN}, IMAGENET_FLOW),
            "paper": Tier(IMAGENET | {"model": "resnet50", "prune": IMAGENET_PRUNE}, IMAGENET_FLOW, seeds=(0, 1, 2)),
        },
        ranks=True,
    ),
    Experiment(
        "imagenet_pace",
        "How many photographs a second get through reading, training and evaluation?",
        pace,
        {
            "smoke": Tier(IMAGENET_DRAWN, {"resnet18": {}}),
            "laptop": Tier(
                IMAGENET_SAMPLE,
                {
                    "resnet18": {},
                    "resnet18+cka_sr": _penalty("CKASparsity", beta=1e-5, examples=None, every=1),
                    "resnet50": {"model": "resnet50"},
                    "resnet50+ffr": {"model": "resnet50"} | IMAGENET_FLOW["ffr_length_curvature"],
                },
            ),
        },
        ranks=True,
    ),
    Experiment(
        "published_flow",
        "How long and how curved are the paths of images through published ResNets, and does it depend on the image?",
        published_flow,
        {
            "smoke": Tier(
                {"dataset": "digits", "examples": 100, "weights": None},
                {"digits_net-untrained": {"model": "digits_net"}},
            ),
            "paper": Tier({"dataset": "cifar10", "examples": 2000}, PUBLISHED | UNTRAINED),
        },
    ),
    Experiment(
        "known_information",
        "How near to the truth does each estimator of mutual information come, where the truth is known?",
        known_information,
        {
            "smoke": Tier({"tasks": KNOWN_TASKS[:2]}, _known(["ksg", "gaussian", "binning"], smoke=True)),
            "laptop": Tier({"tasks": KNOWN_TASKS}, _known(ESTIMATORS)),
        },
    ),
    Experiment(
        "information_grid",
        "What does each estimator say of Gaussian pairs, as their correlation and their number grow?",
        known_information,
        {
            "smoke": Tier({"dimensions": [1, 2], "correlations": [0.0, 0.9]}, _known(["ksg", "gaussian"], smoke=True)),
            "laptop": Tier({}, _known(["ksg", "gaussian", "binning", "infonce", "nwj"], **GRID)),
        },
    ),
    Experiment(
        "throughput",
        "How many images does a training step, or the reading of files, get through in a second?",
        throughput,
        {
            "smoke": Tier(STEP | {"size": 8, "batch_size": 16, "steps": 3}, {"digits_net": {"model": "digits_net"}}),
            "laptop": Tier(
                STEP | {"precision": "float32", "size": 224, "batch_size": 32, "steps": 8},
                {"resnet18": {"model": "resnet18"}, "read": READ},
            ),
            "paper": Tier(
                STEP | {"size": 224, "batch_size": 192, "steps": 50},
                {
                    "resnet18": {"model": "resnet18"},
                    "resnet50": {"model": "resnet50"},
                    "read": READ | {"workers": 12, "steps": 3},
                },
            ),
        },
    ),
)
EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType({e.name: e for e in (*_EXPERIMENTS, *STUDIES)})


def find(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none; names those whose names are near, or all.

    >>> sorted(find("random_masks").tiers)
    ['laptop', 'paper', 'smoke']
    """
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS)
        raise ValueError(
            f"no experiment {name!r}; " + (f"close names: {near}" if near else f"there are {[*EXPERIMENTS]}")
        )
    return EXPERIMENTS[name]
