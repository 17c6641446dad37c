"""What the trainings of the third round share, with every argument written out."""

from __future__ import annotations

from typing import Any

SGD: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "decay_norm_and_bias": True}
ONE_CYCLE: dict[str, Any] = {
    "schedule": "one_cycle",
    "schedule_options": {"rise": 0.3, "start": 1 / 25, "end": 1e-4},
    "label_smoothing": 0.0,
}
# How trainings are computed where nobody says otherwise; no part of what they are.
FAST: dict[str, Any] = {"precision": "bfloat16", "channels_last": True, "compile": False}

# ResNet-20 on CIFAR-10 at half the resolution, five epochs: two minutes on one core.
HALF_RESOLUTION: dict[str, Any] = {
    "dataset": "cifar10",
    "validation": 5000,
    "pool": 2,
    "padding": 2,
    "model": "resnet20",
    "model_options": {"shortcut": "B", "width": 16},
    "batch_size": 128,
    "epochs": 5,
    "lr": 0.2,
    **ONE_CYCLE,
    **SGD,
    **FAST,
}
# CKA-SR's released recipe with a quarter of its 160 epochs, at full resolution and width.
QUARTER: dict[str, Any] = {
    **HALF_RESOLUTION,
    "pool": 1,
    "padding": 4,
    "epochs": 40,
    "schedule": "multistep",
    "schedule_options": {"milestones": [20, 30], "gamma": 0.1, "warmup": 0},
    "lr": 0.1,
}
# A dry run of seconds.
DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "validation": 200,
    "model": "digits_net",
    "model_options": {"width": 16, "blocks": 4},
    "batch_size": 64,
    "epochs": 3,
    "lr": 0.1,
    **ONE_CYCLE,
    **SGD,
}

RANDOM_MASKS: dict[str, Any] = {
    "pruning": {"kind": "RandomPruning", "density": "erk", "dense": None, "grain": "weight"}
}
PRUNE: dict[str, Any] = {"norm": "folded", "batches": 20, "epochs": 1, "lr": 0.02}


def cka_sr(beta: float, kind: str = "CKASparsity", form: str = "signed") -> dict[str, Any]:
    """CKA-SR as its released code has it: 8 examples, every 5th batch."""
    return {
        "kind": kind,
        "beta": beta,
        "examples": 8,
        "every": 5,
        "layers": None,
        "pairs": "stage",
        "estimator": "unbiased",
        "form": form,
        "reduction": "sum",
        "kernel": "linear",
    }


def aug_cka_sr(beta: float, kind: str = "AugmentedCKASparsity", form: str = "signed") -> dict[str, Any]:
    """AugCKA-SR as the appendix has it: every example of every batch, biased, a mean over all pairs of blocks."""
    return {
        **cka_sr(beta, kind, form),
        "examples": None,
        "every": 1,
        "pairs": "all",
        "estimator": "biased",
        "reduction": "mean",
    }


def feature_flow(length: float, curvature: float) -> dict[str, Any]:
    """Our reading of FFR's arXiv version."""
    return {
        "kind": "FeatureFlow",
        "length": length,
        "curvature": curvature,
        "variant": "arxiv",
        "norm": 2,
        "reduction": "mean",
        "across_stages": False,
        "before_relu": False,
        "layers": None,
        "examples": None,
        "every": 1,
    }


def penalised(**penalties: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Methods that are one penalty each, by name."""
    return {name: {"penalties": [penalty]} for name, penalty in penalties.items()}
