"""Runs that take whole blocks out of published networks.

A block that goes leaves its shortcut and the ReLU behind it: where its input and output agree that is the identity, as
the input is not negative. Every block's input is kept while the blocks behind it run without it, so that only they are
computed anew.
"""

from __future__ import annotations

import copy
import time
import timeit
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from companion import blocks, data, models
from companion.blocks._removal import SCORES
from companion.experiments import quantities
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.pretrained import Part, network, seen
from companion.experiments.records import Run, packed
from companion.experiments.removal import without_branches
from companion.experiments.trainings import score
from companion.pruning import cost
from companion.similarity import alignment, gram

ROWS = 128  # images that pass a block together


class Passing(NamedTuple):
    """Features of the images that are judged, and of those on which batch norm is estimated anew (None: it stays)."""

    judged: Tensor
    seen: Tensor | None


class Chain:
    """A residual network that runs block by block, without those that are gone.

    >>> net, images = models.digits_net().eval(), torch.randn(5, 1, 8, 8)
    >>> chain = Chain(net)
    >>> torch.allclose(chain.logits(chain.start(images)), net(images), atol=1e-5)
    True
    """

    def __init__(self, model: models.ResNet) -> None:
        model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
        self.norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.momentum = None  # the statistics of the one batch that is seen
        found = {name: module for name, module in model.named_modules() if isinstance(module, models.BasicBlock)}
        self.blocks: dict[str, nn.Module] = dict(found)
        self.shortcuts = {name: nn.Sequential(block.shortcut, block.relu2) for name, block in found.items()}
        self.stem = nn.Sequential(model.conv1, model.bn1, model.relu)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.linear)

    def start(self, judged: Tensor, seen: Tensor | None = None) -> Passing:
        """Images behind the stem."""
        return self._through(self.stem, Passing(judged, seen))

    def step(self, name: str, at: Passing, gone: Collection[str] = ()) -> Passing:
        """Features behind a block."""
        return self._through((self.shortcuts if name in gone else self.blocks)[name], at)

    def logits(self, at: Passing, gone: Collection[str] = (), since: int = 0) -> Float[Tensor, "examples classes"]:
        """What the blocks from number `since` on make of features."""
        for name in list(self.blocks)[since:]:
            at = self.step(name, at, gone)
        return self.head(at.judged)

    def without_each(self, at: Passing, gone: Collection[str] = ()) -> dict[str, Float[Tensor, "examples classes"]]:
        """Block → logits without it and those `gone`; `""` → logits without these alone."""
        found = {}
        for number, name in enumerate(self.blocks, start=1):
            if name not in gone:
                found[name] = self.logits(self.step(name, at, [name]), gone, number)
            at = self.step(name, at, gone)
        return {"": self.head(at.judged), **found}

    def every_subset(self, at: Passing) -> Iterator[tuple[tuple[str, ...], list[Tensor], Tensor]]:
        """Every set of blocks that may be gone, features behind the stem and each block without them, and logits."""

        def below(names: list[str], gone: tuple[str, ...], path: list[Passing]) -> Iterator[Any]:
            if not names:
                yield gone, [features.judged for features in path], self.head(path[-1].judged)
                return
            first, *rest = names
            for more in ((), (first,)):
                yield from below(rest, gone + more, [*path, self.step(first, path[-1], more)])

        yield from below(list(self.blocks), (), [at])

    def _through(self, module: nn.Module, at: Passing) -> Passing:
        seen = at.seen
        if seen is not None:
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.reset_running_stats()
            seen = module.train()(seen)
            module.eval()
        return Passing(torch.cat([module(part) for part in at.judged.split(ROWS)]), seen)


def judged(
    logits: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"], bits: bool = True
) -> dict[str, Any]:
    """An evaluation as a record keeps it, with one bit an example."""
    right: Bool[Tensor, " examples"] = logits.argmax(1) == labels
    found = score(float(right.double().mean()), len(right), float(F.cross_entropy(logits, labels)))
    return found | ({"right": packed(right.cpu().numpy())} if bits else {})


def batch(run: Run, place: Workplace, part: Part, examples: int) -> tuple[Tensor, Tensor]:
    """The first images of a part of the data set, and their labels."""
    images, _ = seen({**run.settings, "examples": examples}, place, part)
    x, y = next(iter(data.DeviceLoader(images, len(images), device=place.device)))
    return x.contiguous(memory_format=torch.channels_last), y


@torch.inference_mode()
def block_deletion(run: Run, place: Workplace) -> Outcome:
    """Every block taken out singly: the network as it stands on the first `examples` test images, and with all batch
    norms estimated anew on the first `seen` training images, in one batch, on the first `refreshed` of them.

    The result holds `test` and `refreshed`, of the whole network, and `blocks`, whose `single` has an entry a block.
    """
    s = run.settings
    chain = Chain(cast(models.ResNet, network(run, place, s["model"])))
    images, labels = batch(run, place, "test", s["examples"])
    parts = [chain.without_each(chain.start(part)) for part in images.split(4 * ROWS)]
    raw = {name: judged(torch.cat([part[name] for part in parts]), labels) for name in parts[0]}
    again, _ = batch(run, place, "train", s["seen"])
    anew = chain.without_each(chain.start(images[: s["refreshed"]], again))
    refreshed = {name: judged(logits, labels[: s["refreshed"]]) for name, logits in anew.items()}
    single = [{"block": name, "raw": raw[name], "refreshed": refreshed[name]} for name in chain.blocks]
    return Outcome({"test": raw[""], "refreshed": refreshed[""], "blocks": {"single": single}}, [], {})


@torch.inference_mode()
def block_subsets(run: Run, place: Workplace) -> Outcome:
    """Every set of blocks taken out: the network as it stands on the first `examples` test images, with all batch norms
    estimated anew on the first `seen` training images there, and on the `chosen` training images after these.

    The measure `subsets` holds `blocks` and, set by set (bit k of its place in a list: block k is gone), right answers
    of `raw`, `refreshed` and `chosen` and the sum `chosen_loss`. With batch norm estimated anew, on the first `mapped`
    test images: unbiased CKA in hundredths of every two of stem and blocks (`cka`, the upper triangle row by row) and
    the mean relative steps in thousandths (`steps`, 0 for a block that is gone or changes the shape).
    """
    s = run.settings
    chain = Chain(cast(models.ResNet, network(run, place, s["model"])))
    names = list(chain.blocks)
    images, labels = batch(run, place, "test", s["examples"])
    known, truth = batch(run, place, "train", s["seen"] + s["chosen"])
    both, targets = torch.cat([images, known[s["seen"] :]]), torch.cat([labels, truth[s["seen"] :]])
    count, n = 2 ** len(names), len(labels)
    kept = ("raw", "refreshed", "chosen", "chosen_loss", "cka", "steps")
    found: dict[str, list[Any]] = {name: [0] * count for name in kept}

    def place_of(gone: Collection[str]) -> int:
        return sum(2**k for k, name in enumerate(names) if name in gone)

    for gone, _, logits in chain.every_subset(chain.start(images)):
        found["raw"][place_of(gone)] = int((logits.argmax(1) == labels).sum())
    kernels: dict[int, tuple[Tensor, Tensor]] = {}  # with the features, so that no other tensor gets their id
    for gone, path, logits in chain.every_subset(chain.start(both, known[: s["seen"]])):
        at, right = place_of(gone), logits.argmax(1) == targets
        found["refreshed"][at], found["chosen"][at] = int(right[:n].sum()), int(right[n:].sum())
        found["chosen_loss"][at] = quantities.rounded(float(F.cross_entropy(logits[n:], targets[n:])), 4)
        # The paths of neighbours begin with the same tensors.
        kernels = {id(x): kernels[id(x)] if id(x) in kernels else (x, gram(x[: s["mapped"]])) for x in path}
        table = alignment([kernels[id(x)][1] for x in path])
        rows, columns = torch.triu_indices(len(path), len(path), offset=1)
        found["cka"][at] = (100 * table[rows, columns]).round().int().tolist()
        found["steps"][at] = [
            round(1000 * float(((y - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).mean()))
            if x.shape == y.shape
            else 0
            for x, y in pairwise(x[: s["mapped"]] for x in path)
        ]
    intact = {"correct": found["raw"][0], "examples": n}
    return Outcome({"test": intact}, [], {"subsets": {"blocks": names, **found}})


def block_effects(run: Run, place: Workplace) -> Outcome:
    """`blocks.block_effects` on the first `examples` test images: column → block → value, without what is undefined."""
    images, _ = batch(run, place, "test", run.settings["examples"])
    table = blocks.block_effects(network(run, place, run.settings["model"]), images).drop(columns="undefined")
    effects = {column: quantities.rounded(values.dropna().to_dict(), 6) for column, values in table.items()}
    return Outcome({"examples": table.attrs["examples"]}, [], {"effects": effects})


SCORED = ("cka", "step", "influence")  # columns of `block_effects`


def block_removal(run: Run, place: Workplace) -> Outcome:
    """Blocks whose input and output agree leave one after the other; all batch norms are estimated anew on the first
    `seen` training images, in one batch, and all choices are made on the `chosen` training images after these.

    At once: in the order of each of `SCORED`, of the loss without the block (`"damage"`), or of chance (`random`
    orders); `"greedy"`: so many times the block without which the network of the moment has the smallest loss.

    The result holds `test`, of the whole network on the first `examples` test images, and `orders`: name → `gone`, in
    order, and `levels`, for each number of blocks gone the multiply-adds left, processor seconds for 100 images (the
    least of five), and `test`.
    """
    s = run.settings
    model = network(run, place, s["model"])
    chain = Chain(cast(models.ResNet, model))
    known, truth = batch(run, place, "train", s["seen"] + s["chosen"])
    seen, chosen, truth = known[: s["seen"]], known[s["seen"] :], truth[s["seen"] :]
    free = [name for name, shortcut in chain.shortcuts.items() if isinstance(shortcut[0], nn.Identity)]
    table = blocks.block_effects(model, chosen, free)
    orders = {score: list((SCORES[score] * table[score]).sort_values(kind="stable").index) for score in SCORED}
    images, labels = batch(run, place, "test", s["examples"])
    with torch.inference_mode():

        def losses(gone: Collection[str]) -> dict[str, float]:
            found = chain.without_each(chain.start(chosen, seen), gone)
            return {name: float(F.cross_entropy(found[name], truth)) for name in free if name in found}

        single = losses(())
        orders["damage"] = sorted(single, key=single.__getitem__)
        orders["greedy"] = orders["damage"][:1]
        while len(orders["greedy"]) < s["greedy"]:
            left = losses(orders["greedy"])
            orders["greedy"].append(min(left, key=left.__getitem__))
        for number in range(s["random"]):
            chance = torch.randperm(len(free), generator=torch.Generator().manual_seed(number)).tolist()
            orders[f"random{number}"] = [free[k] for k in chance]

        def level(gone: list[str]) -> dict[str, Any]:
            shorter = without_branches(model, gone).to(memory_format=torch.channels_last)
            seconds = min(timeit.repeat(lambda: shorter(images[:100]), timer=time.process_time, repeat=5, number=1))
            tested = judged(chain.logits(chain.start(images, seen), gone), labels, bits=False)
            macs = cost(shorter, images[:1]).macs_dense
            return {"gone": len(gone), "macs": macs, "seconds": quantities.rounded(seconds), "test": tested}

        found = {
            name: {"gone": order, "levels": [level(order[:k]) for k in s["levels"] if k <= len(order)]}
            for name, order in orders.items()
        }
        return Outcome({"test": level([])["test"], "whole": level([]), "orders": found}, [], {})
