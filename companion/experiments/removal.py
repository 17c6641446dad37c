"""Experiments that prune after training: weights, filters, whole residual branches."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from companion import models, training
from companion._ranks import buffers_of_rank_zero
from companion.experiments import quantities
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.recipes import Prune, cosine
from companion.experiments.records import Run
from companion.experiments.trainings import ImageTask, score, scored
from companion.pruning import Masks, cost, prune_filters


def train_and_prune(run: Run, place: Workplace, kind: type[ImageTask] = ImageTask) -> Outcome:
    """Train a dense network, then prune copies of it by the recipe's `prune`: what did the penalties make removable?

    * `sparsities`: the smallest weights go, at once, over all layers, by each of the `criteria`, `"magnitude"` (the
      default) or `"scale_free"`, see `scale_free`;
    * `macs`, shares of the dense net's: whole filters go, by their `norm` relative to the mean of their layer;
    * `depth`: whole residual branches go, see `blocks_removed`.

    Batch norm's statistics are estimated anew on `batches` training batches; what has fewer filters is fine-tuned
    without penalties for `epochs` from `lr` on. The result holds, besides that of `train`, `weights`, `filters` and
    `blocks`, an entry a level; the measures `ImageTask.knowledge`, too.
    """
    task = kind.of(run, place)
    model = task.network()
    outcome = task.outcome(model, task.fit(model))
    after = _Afterwards(task)
    parts = {"weights": weights_removed, "filters": filters_removed, "blocks": blocks_removed}
    found = {name: quantities.rounded(remove(model, after), 6) for name, remove in parts.items()}
    found = {name: entries for name, entries in found.items() if entries or name != "blocks"}
    return outcome._replace(result={**outcome.result, **found}, measures={**outcome.measures, **task.knowledge(model)})


class _Afterwards(NamedTuple):
    """What is done with every pruned network of a run: batch norm refreshed, fine-tuned, scored."""

    task: ImageTask

    @property
    def chosen(self) -> Prune:
        return cast(Prune, self.task.recipe.prune)

    def refreshed(self, network: nn.Module, number: int | None = None) -> nn.Module:
        """Batch norm's statistics anew, on so many training batches."""
        loader = self.task.loader
        loader.epoch = loader.start = 0  # the same batches, whether the training was interrupted or not
        update_bn(itertools.islice(loader, number or self.chosen.batches), network, self.task.place.device)
        buffers_of_rank_zero(network)
        return network

    def scores(self, network: nn.Module, images: bool = False) -> dict[str, Any]:
        """On the test images, with a bit for each where `images`, and on those held out."""
        test = scored(network, self.task.tested) if images else score(**training.evaluate(network, self.task.tested))
        return {"test": test, self.task.split: score(**training.evaluate(network, self.task.followed))}

    def tuned(self, network: nn.Module, name: str) -> nn.Module:
        """The network after a short training without penalties; `name` is that of its checkpoint."""
        # A cosine, since what stays is trained already.
        epochs, lr, dense = self.chosen.epochs, self.chosen.lr, self.task.recipe
        recipe = replace(dense, epochs=epochs, lr=lr, schedule=cosine(), penalties=None)
        self.task.fit(network, checkpoint=f".{name}", recipe=recipe)
        return network


def weights_removed(model: nn.Module, after: _Afterwards) -> list[dict[str, Any]]:
    """Copies of `model` without their smallest weights, level by level: see `train_and_prune`."""
    chosen, entries = after.chosen, []
    for criterion in chosen.criteria or ["magnitude"]:
        factors = scale_free(model, next(iter(after.task.followed))[0]) if criterion == "scale_free" else {}
        for sparsity in chosen.sparsities:
            pruned = copy.deepcopy(model)
            masks = Masks(pruned, None)
            factor_of = {id(weight): factors.get(name, 1.0) for name, weight in masks.weights.items()}

            def size(weight: Tensor, factor_of: Mapping[int, Tensor | float] = factor_of) -> Tensor:
                return weight.abs() * factor_of[id(weight)]

            masks.prune(sparsity, "global", size)
            scores = after.scores(after.refreshed(pruned), sparsity in (chosen.images or []))
            entries.append({"criterion": criterion, "sparsity": sparsity, "pruned": scores})
    return entries


def scale_free(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """layer → σ(x_j)/σ(y_i) for each of its weights w_ij; times abs(w_ij) it is the share of the output's deviation
    that the weight carries. Scaling a filter before a batch norm changes nothing, nor does scaling a channel and the
    weights that read it back.

    >>> import torch
    >>> layer = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> share = layer[0].weight.abs() * scale_free(layer, torch.randn(100, 1))["0"]
    >>> bool((share - 1).abs() < 1e-6)
    True
    """
    factors = {}
    for name, (entering, leaving) in quantities.deviations(model, images).items():
        weight = model.get_submodule(name).weight
        rest = [1] * (weight.ndim - 2)  # type: ignore[operator]
        factors[name] = entering.view(1, -1, *rest) / leaving.clamp(min=1e-12).view(-1, 1, *rest)
    return factors


def filters_removed(model: nn.Module, after: _Afterwards) -> list[dict[str, Any]]:
    """Smaller networks without the filters of smallest norm, fine-tuned: see `train_and_prune`."""
    chosen, entries = after.chosen, []
    example = next(iter(after.task.followed))[0][:64]
    for share in chosen.macs:
        smaller, report = prune_filters(
            model, example, norm=chosen.norm, relative="mean", macs=share, repeats=0, empty="keep", floor=0
        )
        entry = {
            "macs": report.macs,
            "parameters": report.parameters,
            "left": report.table()["left"].to_dict(),
            "pruned": after.scores(after.refreshed(smaller)),
        }
        if chosen.epochs:
            entry["fine_tuned"] = after.scores(after.tuned(smaller, f"macs{share:g}"))
        entries.append(entry)
    return entries


def without_branches(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of a network whose named residual blocks are their shortcuts alone, with the ReLU behind: what it computes
    with γ = β = 0 in the last batch norm of these blocks.

    >>> import torch
    >>> model = models.digits_net().eval()
    >>> images = torch.randn(5, 1, 8, 8)
    >>> shorter = without_branches(model, ["layer1.1"])
    >>> _ = nn.init.zeros_(model.layer1[1].bn2.weight)  # its shift is 0 from the start
    >>> torch.equal(shorter(images), model(images))
    True
    """
    shorter = copy.deepcopy(model)
    for name in names:
        block = shorter.get_submodule(name)
        if not isinstance(block, models.BasicBlock):
            raise ValueError(
                f"{name} is a {type(block).__name__}; a residual block (BasicBlock) has a branch to remove"
            )
        shorter.set_submodule(name, nn.Sequential(OrderedDict(shortcut=block.shortcut, relu=block.relu2)))
    return shorter


def blocks_removed(model: nn.Module, after: _Afterwards) -> dict[str, Any]:
    """Copies of `model` without whole residual branches: each block singly, and in a greedy order.

    By `prune["depth"]`: `greedy` blocks go one after the other, each time the one whose loss costs least on the first
    `examples` held-out images with batch norm refreshed on `batches` batches; after `fine_tune` of them a copy is
    fine-tuned.

    Returns:
        `single`: for each block the scores without it, `raw` and with batch norm `refreshed`; `greedy`: for each number
        of blocks which are gone, the multiply-adds left, and the scores `pruned` and `fine_tuned`.
    """
    if (chosen := after.chosen.depth) is None:
        return {}
    example = next(iter(after.task.followed))[0][:1]
    names = [name for name, module in model.named_modules() if isinstance(module, models.BasicBlock)]
    judged = list(itertools.islice(after.task.followed, -(-chosen.examples // 1000)))

    def cheap(gone: Sequence[str]) -> float:
        return training.evaluate(after.refreshed(without_branches(model, gone), chosen.batches), judged)["accuracy"]

    single = []
    for name in names:
        shorter = without_branches(model, [name])
        raw = score(**training.evaluate(shorter, after.task.tested))
        refreshed = score(**training.evaluate(after.refreshed(shorter), after.task.tested))
        single.append({"block": name, "raw": raw, "refreshed": refreshed})
    gone: list[str] = []
    greedy = []
    for number in range(1, chosen.greedy + 1):
        gone = max(([*gone, name] for name in names if name not in gone), key=cheap)
        shorter = after.refreshed(without_branches(model, gone))
        entry: dict[str, Any] = {"gone": gone, "macs": cost(shorter, example).macs_dense}
        entry["pruned"] = after.scores(shorter, images=True)
        if number in chosen.fine_tune:
            entry["fine_tuned"] = after.scores(after.tuned(shorter, f"blocks{number}"), images=True)
        greedy.append(entry)
    return {"single": single, "greedy": greedy}
