"""Runs that train nothing: they look at trained ImageNet networks on photographs, and take parts of them away.

A run looks at its photographs in one order drawn at random, for folders are in the order of classes and neighbours
there are alike. No record holds an image.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from companion import flow, models, training
from companion._checks import one_of
from companion.blocks import block_effects, find_blocks, without_blocks
from companion.data import IMAGENET_MEAN, IMAGENET_STD, ImageNetLoader, imagenet
from companion.experiments import quantities
from companion.experiments.deletion import judged
from companion.experiments.photographs import drawn_photographs
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.records import Run
from companion.features import evaluating, extract
from companion.pruning import cost, latencies, prune_filters, zero_filters
from companion.similarity import alignment, cka_interval, cka_null_map, gram, u_center

BATCH = 25
PARTS = (8, 32, 192)
PERMUTATIONS = 100
SHARES = (0.1, 0.25)  # of every block's filters
OF_A_BLOCK = 0.5


class Seen(NamedTuple):
    """A network, and what of the photographs it sees."""

    model: nn.Module
    loader: ImageNetLoader
    labels: Tensor


def seen(run: Run, place: Workplace) -> Seen:
    """The network of a run, and its photographs in an order drawn at random, of as many classes as there are.

    Raises:
        ValueError: an unknown data set; fewer photographs than the run wants.
        FileNotFoundError: photographs or weights are not there.
    """
    s = run.settings
    one_of(dataset=(s["dataset"], ("imagenet", "drawn")))
    folder = imagenet("val", place.data if s["dataset"] == "imagenet" else drawn_photographs(place.work))
    if len(folder.samples) < s["photographs"]:
        raise ValueError(f"{s['photographs']} photographs are wanted; {folder.root} has {len(folder.samples)}")
    # One of every class, then a second one, …: the folder of all 50,000 gives a thousand of a thousand classes.
    before: Counter[int] = Counter()
    turns = []
    for _, label in folder.samples:
        turns.append(before[label])
        before[label] += 1
    chosen = [folder.samples[k] for k in np.argsort(turns, kind="stable")[: s["photographs"]]]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(run.seed))
    folder.samples = [chosen[index] for index in order]
    training.seed_everything(run.seed)
    if s["model"] == "efficientnet_lite0":
        model: nn.Module = models.efficientnet_lite0(weights=s["weights"], root=place.data, **s["options"])
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    else:
        model, mean, std = getattr(torchvision.models, s["model"])(weights=s["weights"]), IMAGENET_MEAN, IMAGENET_STD
    computing = place.computing()
    options: dict[str, Any] = {key: computing[key] for key in ("workers", "channels_last")}
    loader = ImageNetLoader(folder, BATCH, size=s["size"], mean=mean, std=std, device=place.device, **options)
    if computing["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return Seen(model.to(place.device).eval(), loader, torch.tensor([label for _, label in folder.samples]))


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Batch by batch, in evaluation mode."""
    with evaluating(model):
        return [model(x) for x in inputs]


def answers(model: nn.Module, inputs: Sequence[Tensor], labels: Tensor) -> dict[str, Any]:
    """`judged` of a network on inputs that are there."""
    return judged(torch.cat(outputs(model, inputs)).cpu(), labels)


class Tail(NamedTuple):
    """A network from a block on: the `model`, the block's name in it, what it gets (a batch after the other), and what
    stands before it."""

    block: str
    model: nn.Module
    name: str
    inputs: list[Tensor]
    before: nn.Module


def tails(model: nn.Module, images: Sequence[Tensor]) -> Iterator[Tail]:
    """What follows when each block gets its inputs. Of an `nn.Sequential` nothing before the block is computed twice;
    any other network runs from the images on."""
    if not isinstance(model, nn.Sequential):
        for name in find_blocks(model):
            yield Tail(name, model, name, list(images), nn.Identity())
        return
    parts: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        stage = isinstance(child, nn.Sequential)
        parts += [(f"{name}.{key}", block) for key, block in child.named_children()] if stage else [(name, child)]
    found, inputs = set(find_blocks(model)), list(images)
    for number, (name, part) in enumerate(parts):
        if name in found:
            before, rest = (nn.Sequential(*(p for _, p in some)) for some in (parts[:number], parts[number:]))
            yield Tail(name, rest, "0", list(inputs), before)
        inputs = outputs(part, inputs)


# ------------------------------------------------------------------------------------------------------------- features
def features(run: Run, place: Workplace) -> Outcome:
    """Top-1; what every block does; CKA of all pairs with intervals, in parts, and by chance; steps and angles.

    Measures are `effects`, the columns of `blocks.block_effects`; `cka`, of all photographs at once, with `low` and
    `high`; `parts`, see `in_parts`; `chance`, see `by_chance`; `paths`, quantiles over photographs of relative steps
    and turning angles.
    """
    model, loader, labels = seen(run, place)
    effects = block_effects(model, loader).drop(columns="undefined")
    head = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    found = extract(model, loader, [*find_blocks(model), head])
    logits = found[head].cpu()
    path = flow.measure({name: x for name, x in found.items() if name != head})
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    grams = {name: gram(found.pop(name)).cpu() for name in [*found]}
    n = len(labels)
    measures = {
        "effects": {"blocks": [*effects.index], **{c: _numbers(effects[c]) for c in effects}},
        "cka": {"layers": [*grams], **intervals(grams)},
        "parts": {str(part): in_parts(grams, part) for part in PARTS if part <= n // 2},
        "chance": {str(part): by_chance(grams, part, run.seed) for part in (*PARTS, n) if part <= n},
        "paths": {
            "steps": path.steps,
            "step": quantities.rounded(path.relative_length.cpu().quantile(shares, dim=1).T.tolist()),
            "turns": path.turns,
            "angle": quantities.rounded(path.angle.cpu().rad2deg().quantile(shares, dim=1).T.tolist()),
        },
    }
    return Outcome({"test": judged(logits, labels)}, [], measures)


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Rounded; None where there is none, for JSON has no NaN."""
    return [None if math.isnan(value) else quantities.rounded(float(value)) for value in values]


def intervals(grams: Mapping[str, Tensor]) -> dict[str, Any]:
    """Unbiased CKA of all pairs with its interval; and biased CKA."""
    kernels = [*grams.values()]
    tables = {key: torch.ones(len(kernels), len(kernels)) for key in ("value", "low", "high")}
    for i, j in itertools.combinations(range(len(kernels)), 2):
        found = cka_interval(kernels[i], kernels[j], kernel="precomputed")
        for key, table in tables.items():
            table[i, j] = table[j, i] = getattr(found, key)
    tables["biased"] = alignment(kernels, unbiased=False)
    return {key: quantities.rounded(table.tolist()) for key, table in tables.items()}


def in_parts(grams: Mapping[str, Tensor], size: int) -> dict[str, Any]:
    """CKA of all pairs from parts of so many photographs: the mean of the parts' biased values; unbiased, from sums of
    HSIC₁ over the parts; and the standard deviation of a single part's unbiased value."""
    n = len(next(iter(grams.values())))
    biased, sums, single = [], [], []
    for first in range(0, n - size + 1, size):
        kernels = [k[first : first + size, first : first + size] for k in grams.values()]
        biased.append(alignment(kernels, unbiased=False))
        single.append(alignment(kernels))
        rows = torch.stack([u_center(k).flatten() for k in kernels]).double()
        sums.append(rows @ rows.T)
    products = torch.stack(sums).sum(0)
    own = products.diagonal().sqrt()
    found = {"biased": torch.stack(biased).mean(0), "unbiased": products / (own[:, None] * own)}
    found["spread"] = torch.stack(single).std(0)
    return {"parts": len(single), **{key: quantities.rounded(table.tolist()) for key, table in found.items()}}


def by_chance(grams: Mapping[str, Tensor], size: int, seed: int) -> dict[str, Any]:
    """`similarity.cka_null_map` of the first so many photographs: `observed` values, `mean` and 95 % quantile (`high`)
    of the shuffled ones for every pair, and the 95 % quantile of the `largest` of all pairs."""
    kernels = {name: k[:size, :size] for name, k in grams.items()}
    found: dict[str, Any] = {}
    for name, unbiased in (("biased", False), ("unbiased", True)):
        null = cka_null_map(kernels, unbiased=unbiased, kernel="precomputed", permutations=PERMUTATIONS, seed=seed)
        found[name] = {"largest": quantities.rounded(null.attrs["high_best"])}
        for key, column in (("mean", "mean"), ("high", "high"), ("observed", "value")):
            table = torch.ones(len(kernels), len(kernels), dtype=torch.float64)
            i, j = torch.triu_indices(len(kernels), len(kernels), offset=1)
            table[i, j] = table[j, i] = torch.tensor(null[column].to_numpy(), dtype=torch.float64)
            found[name][key] = quantities.rounded(table.tolist())
    return found


# --------------------------------------------------------------------------------------------------------------- blocks
def blocks(run: Run, place: Workplace) -> Outcome:
    """Top-1 without each block that can pass its input on; and on the second half of the photographs, after all batch
    norms that come later are re-estimated on the first. `refreshed` is the control: every batch norm, no block removed.

    Of EfficientNet-Lite0 also `misaligned`: with the usual symmetric padding of PyTorch instead of TensorFlow's.
    """
    model, loader, labels = seen(run, place)
    images = [x for x, _ in loader]
    first = len(labels) // (2 * BATCH) or 1  # batches of the first half
    rest = labels[first * BATCH :]
    result = {"test": answers(model, images, labels)}
    refreshed = copy.deepcopy(model)
    update_bn(images[:first], refreshed)
    result["refreshed"] = answers(refreshed, images[first:], rest)
    misaligned = copy.deepcopy(model)
    padded = [m for m in misaligned.modules() if isinstance(m, models.SameConv2d)]
    if padded:
        for convolution in padded:  # another forward, the same weights
            convolution.__class__ = nn.Conv2d  # type: ignore[assignment]
            convolution.padding = tuple((size - 1) // 2 for size in convolution.kernel_size)
        result["misaligned"] = answers(misaligned, images, labels)
    removed = {}
    for tail in tails(model, images):
        try:
            shorter = without_blocks(tail.model, [tail.name], tail.inputs[0])
        except ValueError:  # its output has another shape than its input
            continue
        again = without_blocks(tail.model, [tail.name], recalibrate=tail.inputs[:first])
        removed[tail.block] = {
            "removed": answers(shorter, tail.inputs, labels),
            "refreshed": answers(again, tail.inputs[first:], rest),
        }
    return Outcome(result, [], {"removed": removed})


# -------------------------------------------------------------------------------------------------------------- filters
def inner(model: nn.Module, block: str) -> list[str]:
    """The layers of a block whose filters it alone reads: its convolutions, or linear layers, but the last."""
    whole = model.get_submodule(block)
    if isinstance(whole, models.MBConv) and not whole.expanded:
        return []  # its depthwise convolution goes with the channels of the stream
    return [
        f"{block}.{name}"
        for name, layer in whole.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith(("downsample", "self_attention"))
    ][:-1]


def silenced(model: nn.Module, filters: Mapping[str, Sequence[int]]) -> nn.Module:
    """What is left if filters are cut out with their biases and norms, as if a zeroed filter emitted zero."""
    model = zero_filters(model, filters)
    names = [name for name, _ in model.named_modules()]
    with torch.no_grad():
        for name, gone in filters.items():
            layer = model.get_submodule(name)
            follows = model.get_submodule(names[names.index(name) + 1])  # the norm that reads a convolution
            norm = follows if isinstance(follows, nn.BatchNorm2d) else nn.Identity()
            for parameter in (getattr(layer, "bias", None), *norm.parameters()):
                if parameter is not None:
                    parameter[list(gone)] = 0
    return model


def filters(run: Run, place: Workplace) -> Outcome:
    """Filters inside the blocks with the smallest folded norms go: a share of every block's (`together`), and half of
    one block's (`single`), with top-1 and logits of exact and of naive removal.

    `deviation` is the largest difference of logits from the network in which the filters are zero, as a share of the
    largest logit. `seconds` are single forward passes of one photograph, of all networks in turns.
    """
    model, loader, labels = seen(run, place)
    images = [x for x, _ in loader]
    macs = cost(model, images[0][:1]).macs_dense
    result = {"test": answers(model, images, labels), "macs": macs}
    layers = {block: inner(model, block) for block in find_blocks(model)}
    options: dict[str, Any] = {"relative": "rank", "repeats": 0}
    together = {}
    for share in SHARES:
        every = [name for names in layers.values() for name in names]
        smaller, report = prune_filters(model, images[0][:2], layers=every, threshold=share, **options)
        found = _both(model, smaller, report.zeroed, images, labels)
        together[f"{share:g}"] = found | {"macs": report.after.macs_dense}
    single, timed = {}, {"whole": model}
    for tail in tails(model, images):
        names = [f"{tail.name}{name.removeprefix(tail.block)}" for name in layers[tail.block]]
        if not names:
            continue
        smaller, report = prune_filters(tail.model, tail.inputs[0][:2], layers=names, threshold=OF_A_BLOCK, **options)
        saved = report.before.macs_dense - report.after.macs_dense
        found = _both(tail.model, smaller, report.zeroed, tail.inputs, labels)
        single[tail.block] = found | {"macs": macs - saved}
        stored = torch.channels_last if place.computing()["channels_last"] else torch.contiguous_format
        timed[tail.block] = nn.Sequential(tail.before, smaller).to(memory_format=stored)
    measured = latencies(timed, images[0][:1], repeats=15, warmup=2)
    seconds = {name: quantities.rounded(list(one.seconds)) for name, one in measured.items()}
    return Outcome(result, [], {"together": together, "single": single, "seconds": seconds})


def _both(
    model: nn.Module, smaller: nn.Module, zeroed: Mapping[str, Sequence[int]], inputs: Sequence[Tensor], labels: Tensor
) -> dict[str, Any]:
    """Exact and naive removal: top-1, and how far some photographs' logits are from those with zeroed filters."""
    exact, naive = (torch.cat(outputs(net, inputs)).cpu() for net in (smaller, silenced(model, zeroed)))
    meant = outputs(zero_filters(model, zeroed), inputs[:1])[0].cpu()
    off = [float((found[: len(meant)] - meant).abs().max() / meant.abs().max()) for found in (exact, naive)]
    return {
        "filters": sum(map(len, zeroed.values())),
        "exact": judged(exact, labels) | {"deviation": quantities.rounded(off[0])},
        "naive": judged(naive, labels) | {"deviation": quantities.rounded(off[1])},
    }
