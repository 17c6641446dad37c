"""Experiments that train: one network, or a lottery ticket's many levels."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from companion import data, models, training
from companion._checks import one_of
from companion.experiments import controls, quantities
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.recipes import Part, Recipe
from companion.experiments.records import Run, packed
from companion.features import batches
from companion.pruning import METHODS, LotteryTicket, Masks
from companion.regularizers import FeaturePenalty

# What the kind of a recipe's part names.
Kinds: TypeAlias = Mapping[str, Callable[..., Any]]
SCHEDULES: Kinds = {kind.__name__: kind for kind in (training.multistep, training.cosine, training.one_cycle)}
PENALTIES: Kinds = {kind.__name__: kind for kind in controls.PENALTIES.values()}
MASKS: Kinds = {kind.__name__: kind for kind in METHODS.values()}
Loader: TypeAlias = "data.DeviceLoader | data.ImageNetLoader"


def build(kinds: Kinds, part: Part, *args: Any, **offered: Any) -> Any:
    """What a part of a recipe describes. Of what is `offered` it gets what its signature asks for, such as a `seed`."""
    one_of(kind=(part.kind, kinds))
    asked = inspect.signature(kinds[part.kind]).parameters
    options = {name: value for name, value in offered.items() if name in asked}
    return kinds[part.kind](*args, **part.arguments, **options)


def score(accuracy: float, examples: float, loss: float) -> dict[str, Any]:
    """An evaluation as a record keeps it."""
    return {"correct": round(accuracy * examples), "examples": int(examples), "loss": quantities.rounded(loss, 6)}


def scored(model: nn.Module, loader: Loader) -> dict[str, Any]:
    """`score` of a model, with one bit an example: which are right. Under several ranks, without: each has its part."""
    right: list[Tensor] = []
    found = score(**training.evaluate(model, loader, right=right))
    return found if training.world_size() > 1 else found | {"right": packed(torch.cat(right).cpu().numpy())}


class ImageTask(NamedTuple):
    """The images of a run: to train on, to follow the training with (named `split`, so many `examples`), to test on.

    So many batches (`accumulate`) of the training images make one step.
    """

    run: Run
    place: Workplace
    recipe: Recipe
    loader: Loader
    followed: Loader
    split: str
    examples: int
    tested: Loader
    classes: int
    accumulate: int = 1

    @classmethod
    def of(cls, run: Run, place: Workplace) -> Self:
        """The images that the run's recipe names. With no `validation` images, as in the CKA-SR authors' script for
        CIFAR-100, every epoch is followed on the test set: for reporting only, the result is the last epoch's."""
        r = Recipe.of(run.settings)
        full, test = (_shrink(data.load(r.dataset, part, place.data), r.pool or 1) for part in ("train", "test"))
        split, kept, held_out = "test", full, test
        if r.validation:
            # The split has a seed of its own: every run of an experiment holds out the same images.
            split, (kept, held_out) = "validation", full.split(r.validation, seed=0)
        loader = data.DeviceLoader(
            kept,
            r.batch_size,
            shuffle=True,
            augment=r.dataset != "digits",
            padding=4 if r.padding is None else r.padding,
            drop_last=True,
            seed=run.seed,
            device=place.device,
        )
        followed, tested = (data.DeviceLoader(part, 1000, device=place.device) for part in (held_out, test))
        return cls(run, place, r, loader, followed, split, len(held_out), tested, len(full.classes))

    def network(self) -> nn.Module:
        """The untrained network; its initial weights are part of the run's seed."""
        training.seed_everything(self.run.seed)
        network = getattr(models, self.recipe.model)
        return network(classes=self.classes, **(self.recipe.model_options or {})).to(self.place.device)

    def masks(self, model: nn.Module) -> Callable[[Optimizer], Masks] | None:
        """The masks that the recipe names, once there is an optimizer; None where it names none."""
        if (part := self.recipe.pruning) is None:
            return None
        given = Part(part.kind, {**part.arguments, "sparsity": self.run.sparsity, "seed": self.run.seed})
        steps = self.recipe.epochs * math.ceil(len(self.loader) / self.accumulate)
        return lambda optimizer: build(MASKS, given, model, optimizer, steps=steps)

    def fit(
        self,
        model: nn.Module,
        masks: Callable[[Optimizer], Masks] | None = None,
        checkpoint: str = "",
        recipe: Recipe | None = None,
    ) -> list[dict[str, Any]]:
        """Train `model` under the recipe's penalties, and masks made for its optimizer; the curve, an entry an epoch,
        with the cosines between the gradients of the loss and of each penalty."""
        r = recipe or self.recipe
        how = self.place.computing()
        optimizer = training.sgd(model, r.lr, r.momentum, r.nesterov, r.weight_decay, r.decay_norm_and_bias)
        options = dict(r.schedule.arguments)
        milestones = options.pop("milestones", [])
        schedule = build(SCHEDULES, Part(r.schedule.kind, options), *milestones)
        penalties = [build(PENALTIES, part, model, seed=self.run.seed) for part in r.penalties or []]
        images, labels = (part[:128] for part in next(iter(self.followed)))

        def on_epoch(entry: dict[str, Any]) -> None:
            if penalties:
                entry |= quantities.gradient_cosines(model, images, labels, {p.name: p for p in penalties})

        history = training.fit(
            model,
            self.loader,
            optimizer,
            epochs=r.epochs,
            schedule=schedule,
            validation=self.followed,
            penalty=penalties,
            sparsity=None if masks is None else masks(optimizer),
            loss=nn.CrossEntropyLoss(label_smoothing=r.label_smoothing),
            accumulate=self.accumulate,
            on_epoch=on_epoch,
            **{name: how[name] for name in ("precision", "channels_last", "compile")},
            checkpoint=self.place.work / self.run.path.with_suffix(f".pt{checkpoint}"),
            checkpoint_every=getattr(r, "checkpoint_every", None),
            seed=self.run.seed,
            progress=self.place.progress,
        )
        for penalty in penalties:
            if isinstance(penalty, FeaturePenalty):
                penalty.remove()  # measuring is no training pass
        named = ({key.replace("validation", self.split): value for key, value in entry.items()} for entry in history)
        return quantities.rounded(list(named), 6)

    def outcome(self, model: nn.Module, history: Sequence[Mapping[str, Any]]) -> Outcome:
        """The net of the last epoch on `test` and on what was held out, and which epoch was best on the images that
        the training was followed with."""
        accuracy, loss = f"{self.split}_accuracy", f"{self.split}_loss"
        last, best = history[-1], max(history, key=lambda epoch: epoch[accuracy])
        result = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "zeros": sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1),
            "test": scored(model, self.tested),
            self.split: score(last[accuracy], self.examples, last[loss]),
            f"best_{self.split}": {"epoch": best["epoch"], "accuracy": best[accuracy]},
        }
        return Outcome(result, history, self.measured(model))

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """`quantities.of_network` of the first test images."""
        return quantities.of_network(model, torch.cat(list(itertools.islice(batches(self.tested), 2))))

    def knowledge(self, model: nn.Module) -> dict[str, Any]:
        """`quantities.information` of the images that `outcome` measures with."""
        images, labels = (torch.cat(parts) for parts in zip(*itertools.islice(self.tested, 2), strict=True))
        return {"information": quantities.information(model, images, labels)}


def _shrink(images: data.Images, pool: int) -> data.Images:
    """The images at a tier's resolution: blocks of `pool` × `pool` pixels averaged."""
    if pool == 1:
        return images
    small = F.avg_pool2d(images.images.float(), pool).round().to(torch.uint8)
    return dataclasses.replace(images, images=small)


def train(run: Run, place: Workplace, kind: type[ImageTask] = ImageTask) -> Outcome:
    """Train one network by the run's recipe, on images of this kind, and measure it; nothing is selected on the test
    set."""
    task = kind.of(run, place)
    model = task.network()
    return task.outcome(model, task.fit(model, task.masks(model)))


def lottery(run: Run, place: Workplace) -> Outcome:
    """Find a lottery ticket in `levels` prunings, each a training by the run's recipe. The result is the last level's;
    `levels` in it holds every level's sparsity and test score, level 0 the dense net's.

    Raises:
        ValueError: the file of its progress is damaged.
    """
    task = ImageTask.of(run, place)
    model = task.network()
    progress = place.work / run.path.with_suffix(".pt.ticket")
    levels: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []

    def trained(model: nn.Module, masked: Callable[[Optimizer], Masks]) -> None:
        training.save_checkpoint(progress, {"ticket": ticket.state_dict(), "levels": levels})
        history[:] = task.fit(model, masked, checkpoint=f".level{ticket.level}")
        kept = sum(int(mask.sum()) for mask in ticket.masks.values())
        held = sum(mask.numel() for mask in ticket.masks.values())
        levels.append({"sparsity": 1 - kept / held, "test": score(**training.evaluate(model, task.tested))})

    options = {"levels": task.recipe.levels, "rewind": task.recipe.rewind, "seed": run.seed}
    ticket = LotteryTicket(model, trained, cast(float, run.sparsity), **cast(dict[str, Any], options))
    if progress.exists():
        there = training.load_checkpoint(progress)
        saved = tree_map_only(Tensor, lambda x: x.to(place.device), there)
        ticket.load_state_dict(saved["ticket"])
        levels += saved["levels"]
    ticket.run()
    outcome = task.outcome(model, history)
    return outcome._replace(result={**outcome.result, "levels": quantities.rounded(levels, 6)})
