"""What do small filters of a trained ImageNet network hold up?"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion import models
from companion.blocks import find_blocks
from companion.experiments import quantities
from companion.experiments.photographs import DRAWN, LITE, OTHERS, SAMPLE, outputs, scored, seen, tails
from companion.experiments.plan import Outcome, Tier, Workplace
from companion.experiments.records import Run
from companion.experiments.registry import experiment
from companion.pruning import cost, latencies, prune_filters, zero_filters

SHARES = (0.1, 0.25)
OF_A_BLOCK = 0.5


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
    model = copy.deepcopy(model)
    after = {name: module for name, module in model.named_modules()}
    names = [*after]
    with torch.no_grad():
        for name, gone in filters.items():
            follows = after[names[names.index(name) + 1]]  # the norm that reads a convolution, in our blocks and theirs
            for layer in (after[name], *([follows] if isinstance(follows, nn.BatchNorm2d) else [])):
                for parameter in (layer.weight, layer.bias):
                    if parameter is not None:
                        parameter[list(gone)] = 0
    return model


@experiment(
    "photographs_filters",
    "What do small filters of a trained ImageNet network hold up, removed exactly or cut out with their constants?",
    smoke=Tier(DRAWN, LITE),
    laptop=Tier({**SAMPLE, "photographs": 100}, LITE | OTHERS),
)
def photographs_filters(run: Run, place: Workplace) -> Outcome:
    """Filters inside the blocks with the smallest folded norms go: a share of every block's (`together`), and half of
    one block's (`single`), with top-1 and logits of exact and of naive removal.

    `deviation` is the largest difference of logits from the network in which the filters are zero, as a share of the
    largest logit. `seconds` are single forward passes of one photograph, of all networks in turns.
    """
    model, loader, labels = seen(run, place)
    images = [x for x, _ in loader]
    whole = outputs(model, images)
    macs = cost(model, images[0][:1]).macs_dense
    result = {"test": scored(torch.cat(whole).cpu(), labels), "macs": macs}
    layers = {block: inner(model, block) for block in find_blocks(model)}
    together = {}
    options: dict[str, Any] = {"relative": "rank", "repeats": 0}
    for share in SHARES:
        smaller, report = prune_filters(
            model,
            images[0][:2],
            layers=[name for names in layers.values() for name in names],
            threshold=share,
            **options,
        )
        together[f"{share:g}"] = _both(model, smaller, report.zeroed, images, labels) | {
            "macs": report.after.macs_dense
        }
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
        "exact": scored(exact, labels) | {"deviation": quantities.rounded(off[0])},
        "naive": scored(naive, labels) | {"deviation": quantities.rounded(off[1])},
    }
