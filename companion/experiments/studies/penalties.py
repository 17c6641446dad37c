"""Which penalties on a dense net make its weights, or its filters, removable?"""

from __future__ import annotations

from dataclasses import replace

from companion.experiments.plan import Tier
from companion.experiments.recipes import (
    CIFAR,
    DIGITS,
    PRUNE,
    PRUNE_PAPER,
    SPARSE_LAPTOP,
    UNTUNED,
    Methods,
    Recipe,
    aug_cka_sr,
    cka_sr,
    feature_flow,
    group_lasso,
    penalised,
    slimming,
)
from companion.experiments.registry import experiment, train_and_prune

NONE: Methods = {"none": {}}
# Three strengths for each. Those in `PENALISED` and `VGG_PENALISED` are the best at tier laptop: on held-out images,
# averaged over all levels of pruning (a test compares).
CANDIDATES = penalised(
    **{f"cka_sr_{beta:g}": cka_sr(beta) for beta in (1e-3, 3e-3, 1e-2)},
    **{f"aug_cka_sr_{beta:g}": aug_cka_sr(beta) for beta in (0.03, 0.1, 0.3)},
    **{f"ffr_length_{k:g}": feature_flow(k, 0.0) for k in (0.01, 0.03, 0.1)},
    **{f"ffr_curvature_{k:g}": feature_flow(0.0, k, variant="journal") for k in (0.01, 0.03, 0.1)},
    **{f"ffr_length_curvature_{k:g}": feature_flow(k, k) for k in (0.01, 0.02, 0.05)},
    **{f"group_lasso_{k:g}": group_lasso(k) for k in (1e-4, 3e-4, 1e-3)},
    **{f"slimming_{k:g}": slimming(k) for k in (1e-3, 3e-3, 1e-2)},
)
PENALISED: Methods = {
    **NONE,
    "cka_sr": CANDIDATES["cka_sr_0.01"],
    "aug_cka_sr": CANDIDATES["aug_cka_sr_0.3"],
    "ffr_length": CANDIDATES["ffr_length_0.01"],
    "ffr_curvature": CANDIDATES["ffr_curvature_0.01"],
    "ffr_length_curvature": CANDIDATES["ffr_length_curvature_0.01"],
    "group_lasso": CANDIDATES["group_lasso_0.0003"],
    "slimming": CANDIDATES["slimming_0.003"],
    "cka_sr+ffr_length": {"penalties": (cka_sr(0.01), feature_flow(0.01, 0.0))},
}
AGAIN = {name: PENALISED[name] for name in ("none", "cka_sr", "aug_cka_sr", "ffr_length_curvature")}


def selection(candidates: Methods, laptop: Recipe, paper: Recipe) -> tuple[Tier, ...]:
    """The tiers in which strengths are chosen: beside a net without penalty, not fine-tuned, a seed of its own."""
    dry, short = replace(DIGITS, prune=UNTUNED), replace(laptop, prune=UNTUNED, epochs=2)
    full = replace(paper, prune=replace(PRUNE_PAPER, epochs=0))
    return tuple(Tier(recipe, NONE | candidates, seeds=(100,)) for recipe in (dry, short, full))


# ------------------------------------------------------------------------------------------------------------ ResNet-20
DRY, LAPTOP = replace(DIGITS, prune=PRUNE), replace(SPARSE_LAPTOP, prune=PRUNE)
DEEP = replace(CIFAR, model="resnet56", prune=PRUNE_PAPER)

experiment(
    "dense_penalties_strengths",
    "Which strength leaves a dense net most accurate once it is pruned, on held-out images and a seed of its own?",
    *selection(CANDIDATES, SPARSE_LAPTOP, CIFAR),
)(train_and_prune)

experiment(
    "dense_penalties",
    "Which penalties on a dense network make its weights, or its filters, removable?",
    smoke=Tier(DRY, PENALISED),
    laptop=Tier(LAPTOP, PENALISED, seeds=(0, 1, 2, 3, 4)),
    paper=Tier(DEEP, PENALISED, seeds=(0, 1, 2)),
)(train_and_prune)

experiment(
    "dense_penalties_again",
    "Do the differences after pruning come again, on five new seeds?",
    smoke=Tier(DRY, AGAIN, seeds=(5,)),
    laptop=Tier(LAPTOP, AGAIN, seeds=(5, 6, 7, 8, 9)),
)(train_and_prune)

# What the two abstracts of FFR leave open, one choice at a time; `dense_penalties` has the rest.
CHOICES = penalised(
    l1=feature_flow(0.01, 0.01, norm=1),
    before_relu=feature_flow(0.01, 0.01, before_relu=True),
    across_stages=feature_flow(0.01, 0.01, across_stages=True),
    journal=feature_flow(0.01, 0.01, variant="journal"),
)
experiment(
    "flow_choices",
    "Does it matter how feature-flow regularisation is read: which norm, where, across stages, which curvature?",
    smoke=Tier(replace(DIGITS, prune=UNTUNED), CHOICES),
    laptop=Tier(replace(SPARSE_LAPTOP, prune=UNTUNED), CHOICES, seeds=(0, 1, 2)),
    paper=Tier(DEEP, CHOICES, seeds=(0, 1, 2)),
)(train_and_prune)

# ---------------------------------------------------------------------------------------------------------- a plain net
# Without any shortcut. A VGG halves the resolution five times, so it keeps it whole.
VGG = replace(CIFAR, model="vgg16_bn", model_options={})
VGG_LAPTOP = replace(SPARSE_LAPTOP, model="vgg16_bn", model_options={"width": 8}, pool=1, padding=4, prune=PRUNE)
VGG_PENALISED = NONE | {
    "group_lasso": CANDIDATES["group_lasso_0.0001"],
    "slimming": CANDIDATES["slimming_0.003"],
    "ffr_length": CANDIDATES["ffr_length_0.01"],
    "ffr_length_curvature": CANDIDATES["ffr_length_curvature_0.02"],
}
VGG_CANDIDATES = {name: one for name, one in CANDIDATES.items() if name.rpartition("_")[0] in VGG_PENALISED}

experiment(
    "dense_penalties_vgg_strengths",
    "Which strength is best for a plain net, on held-out images and a seed of its own?",
    *selection(VGG_CANDIDATES, VGG_LAPTOP, VGG),
)(train_and_prune)

experiment(
    "dense_penalties_vgg",
    "Which penalties make the filters of a plain net, without any shortcut, removable?",
    smoke=Tier(DRY, VGG_PENALISED),
    laptop=Tier(VGG_LAPTOP, VGG_PENALISED, seeds=(0, 1, 2)),
    paper=Tier(replace(VGG, prune=PRUNE_PAPER), VGG_PENALISED, seeds=(0, 1, 2)),
)(train_and_prune)

# --------------------------------------------------------------------------------------------------------- other images
TINY = replace(LAPTOP, dataset="tiny_imagenet_20", validation=1000, padding=4, epochs=10)
TINY_PENALISED = {name: PENALISED[name] for name in ("none", "ffr_length_curvature")}

experiment(
    "dense_penalties_tiny",
    "Does feature-flow regularisation make filters removable on photographs of another data set?",
    smoke=Tier(DRY, TINY_PENALISED),
    laptop=Tier(TINY, TINY_PENALISED, seeds=(0, 1, 2)),
    paper=Tier(replace(DEEP, dataset="tiny_imagenet_200"), TINY_PENALISED, seeds=(0, 1, 2)),
)(train_and_prune)
