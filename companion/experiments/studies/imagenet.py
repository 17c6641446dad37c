"""Experiments on ImageNet, by one process or by several ranks under `torchrun`.

    python -m companion.experiments run imagenet_random_masks --tier smoke
    torchrun --nproc-per-node 4 -m companion.experiments run imagenet_random_masks --tier paper

`trainings.train` and `removal.train_and_prune` do the work; what is particular to photographs is their `ImageTask`.
Every rank reads its slice of each global batch, gradients are averaged, masks are rank 0's, evaluations are summed over
the ranks, rank 0 writes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torchvision
from torch import nn
from torchvision.datasets import ImageFolder

from companion import data, training
from companion._checks import one_of
from companion.experiments import quantities
from companion.experiments.photographs import drawn_photographs
from companion.experiments.plan import Outcome, Tier, Workplace
from companion.experiments.recipes import (
    IMAGENET,
    IMAGENET_DRAWN,
    IMAGENET_SAMPLE,
    PRUNE_PAPER,
    Methods,
    PhotographRecipe,
    Prune,
    cka_sr,
    feature_flow,
    penalised,
    random_masks,
)
from companion.experiments.records import Run
from companion.experiments.registry import experiment
from companion.experiments.removal import train_and_prune
from companion.experiments.trainings import ImageTask, train


class Photographs(ImageTask):
    """ImageNet's photographs as the task of a run: a rank's slice of every batch, and of the images to evaluate.

    The recipe names the data: `"imagenet"`, whose validation images are the test set; `"drawn"`, a few gratings in
    JPEG files for a dry run; or `"sample"`, validation images alone, which are trained on too: no accuracy of theirs
    means anything. `photographs` takes so many of them, evenly.

    A step is of `batch_size` examples. Batch norm and penalties see `device_batch` of them at a time, whatever the
    number of ranks: fewer ranks take several such parts one after the other. A penalty is computed on the last part of
    each rank and averaged over the ranks, so with fewer ranks its gradient has the same mean and more noise.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from companion.experiments import find
    >>> run = find("imagenet_random_masks").runs("smoke")[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     task = Photographs.of(run, Workplace(work=Path(folder)))
    >>> task.recipe.batch_size, task.recipe.device_batch, task.accumulate  # one rank takes two parts a step
    (32, 16, 2)
    """

    __slots__ = ()

    @classmethod
    def of(cls, run: Run, place: Workplace) -> Self:
        """The photographs that the run's recipe names.

        Raises:
            ValueError: an unknown data set; a number of ranks that cannot make up a batch.
            FileNotFoundError: as `data.imagenet`.
        """
        r, ranks = PhotographRecipe.of(run.settings), training.world_size()
        accumulate, rest = divmod(r.batch_size, r.device_batch * ranks)
        if rest or not accumulate:
            most = r.batch_size // r.device_batch
            raise ValueError(
                f"{ranks} ranks with {r.device_batch} examples each do not make up steps of {r.batch_size}: "
                f"start {[n for n in range(1, most + 1) if most % n == 0]} ranks"
            )
        kept, tested = _folders(r, place)
        how = place.computing()
        options: dict[str, Any] = {"size": r.size, "workers": how["workers"], "channels_last": how["channels_last"]}
        options |= {"seed": run.seed, "device": place.device}
        options |= {"rank": training.rank(), "world_size": ranks}
        loader = data.ImageNetLoader(kept, r.device_batch * ranks, train=True, **options)
        test = data.ImageNetLoader(tested, r.device_batch * ranks, **options)
        return cls(run, place, r, loader, test, "test", len(tested), test, len(kept.classes), accumulate)

    def network(self) -> nn.Module:
        """torchvision's network, untrained; its initial weights are part of the run's seed."""
        training.seed_everything(self.run.seed)
        network = getattr(torchvision.models, self.recipe.model)
        return network(num_classes=self.classes, **(self.recipe.model_options or {})).to(self.place.device)

    def outcome(self, model: nn.Module, history: Sequence[Mapping[str, Any]]) -> Outcome:
        """As for any task; and the number of ranks, of which penalties and batch norm take notice."""
        found = super().outcome(model, history)
        return found._replace(result={**found.result, "ranks": training.world_size()})

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """As for any task, without the list of all filters, which no record could hold."""
        found = super().measured(model)
        for layer in found["weights"]["layers"]:
            for single in ("filter_norms", "bn_scale", "bn_deviation"):
                layer.pop(single, None)
        return found

    def knowledge(self, model: nn.Module) -> dict[str, Any]:
        """Nothing: information between layers of thousands of channels would want more images than a batch has."""
        return {}


def _folders(recipe: PhotographRecipe, place: Workplace) -> tuple[ImageFolder, ImageFolder]:
    """The photographs to train on and to test on."""
    one_of(dataset=(recipe.dataset, ("imagenet", "sample", "drawn")))
    if recipe.dataset == "sample":
        sample = data.imagenet("val", place.data)
        chosen = np.linspace(0, len(sample) - 1, recipe.photographs or len(sample)).astype(int)
        sample.samples = [sample.samples[index] for index in chosen]
        return sample, sample
    root = place.data if recipe.dataset == "imagenet" else drawn_photographs(place.work)
    return data.imagenet("train", root), data.imagenet("val", root)


# ---------------------------------------------------------------------------------------------------------- experiments
RANDOM = {"pruning": random_masks(dense="fc")}
WHOLE_BATCH = cka_sr(1e-5, examples=None, every=1)
METHODS: Methods = {"random": RANDOM, "random+cka_sr": {**RANDOM, "penalties": (WHOLE_BATCH,)}}
FLOW: Methods = {"none": {}, **penalised(ffr_length_curvature=feature_flow(0.01, 0.01))}

experiment(
    "imagenet_random_masks",
    "Does CKA-SR make training under fixed random masks more accurate on ImageNet?",
    ranks=True,
    smoke=Tier(IMAGENET_DRAWN, METHODS, sparsities=(0.95,)),
    paper=Tier(IMAGENET, METHODS, sparsities=(0.95,), seeds=(0, 1, 2)),
)(functools.partial(train, kind=Photographs))

experiment(
    "imagenet_flow",
    "Does feature-flow regularisation make the filters of a dense ResNet-50 removable on ImageNet?",
    ranks=True,
    smoke=Tier(
        replace(
            IMAGENET_DRAWN,
            model="resnet50",
            model_options={"width_per_group": 16},
            prune=Prune((0.5, 0.8), (0.5,), batches=4),
        ),
        FLOW,
    ),
    paper=Tier(
        replace(IMAGENET, model="resnet50", prune=replace(PRUNE_PAPER, sparsities=(0.5, 0.8, 0.9), epochs=20)),
        FLOW,
        seeds=(0, 1, 2),
    ),
)(functools.partial(train_and_prune, kind=Photographs))


@experiment(
    "imagenet_pace",
    "How many photographs a second get through reading, training and evaluation?",
    ranks=True,
    smoke=Tier(IMAGENET_DRAWN, {"resnet18": {}}),
    laptop=Tier(
        IMAGENET_SAMPLE,
        {
            "resnet18": {},
            "resnet18+cka_sr": {"penalties": (WHOLE_BATCH,)},
            "resnet50": {"model": "resnet50"},
            "resnet50+ffr": {"model": "resnet50", **FLOW["ffr_length_curvature"]},
        },
    ),
)
def pace(run: Run, place: Workplace) -> Outcome:
    """How many photographs a second are read, trained on and evaluated, all ranks together; no accuracy.

    The result holds `images_per_second` of `reading` (decoding and cropping alone), `training` (the last epoch, its
    reading included) and `evaluation`, and how many `photographs` were evaluated: each once, whatever the ranks.
    """
    task = Photographs.of(run, place)
    model = task.network()
    clock = time.perf_counter()
    read = sum(len(labels) for _, labels in task.loader) * training.world_size()
    reading = read / (time.perf_counter() - clock)
    history = task.fit(model, task.masks(model))
    clock = time.perf_counter()
    seen = training.evaluate(model, task.tested)["examples"]
    rates = {
        "reading": reading,
        "training": history[-1]["images_per_second"],
        "evaluation": seen / (time.perf_counter() - clock),
    }
    curve = [{key: value for key, value in epoch.items() if "accuracy" not in key} for epoch in history]
    result = {"images_per_second": quantities.rounded(rates), "photographs": int(seen), "ranks": training.world_size()}
    return Outcome(result, curve, {})
