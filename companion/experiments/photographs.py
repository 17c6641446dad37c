"""Runs on ImageNet, by one process or by several ranks under `torchrun`.

`trainings.train` and `removal.train_and_prune` do the work; what is particular to photographs is their `ImageTask`.
Every rank reads its slice of each global batch, gradients are averaged, masks are rank 0's, evaluations are summed over
the ranks, rank 0 writes.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torchvision
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder

from companion import data, training
from companion._checks import one_of
from companion._files import filled_aside
from companion.experiments import quantities, removal, trainings
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.recipes import PhotographRecipe
from companion.experiments.records import Run


def drawn_photographs(root: Path, classes: int = 8, train: int = 16, val: int = 5) -> Path:
    """A folder `{train,val}/CLASS/*.JPEG` under `root` of gratings, a direction and a colour for each class: ImageNet
    for a dry run. The files have several sizes and are the same whenever they are drawn. What is there stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     drawn = drawn_photographs(Path(folder), classes=2, train=3, val=1)
    ...     len(data.imagenet("train", drawn)), len(data.imagenet("val", drawn))
    (6, 2)
    """
    folder = root / f"drawn-{classes}-{train}-{val}"
    if folder.is_dir():
        return folder
    chance = np.random.default_rng(0)
    with filled_aside(folder) as aside:
        parts = (itertools.product([split], range(classes), range(n)) for split, n in (("train", train), ("val", val)))
        for split, label, index in itertools.chain(*parts):
            height, width = chance.integers(40, 80, 2)
            row, column = np.mgrid[:height, :width]
            angle, phase = np.pi * label / classes, chance.uniform(0, 2 * np.pi)
            wave = np.sin(0.5 * (row * np.sin(angle) + column * np.cos(angle)) + phase)
            tint = 0.5 + 0.5 * np.cos(2 * np.pi * (label / classes + np.arange(3) / 3))
            pixels = 128 + 70 * wave[..., None] * tint + chance.normal(0, 20, (height, width, 3))
            path = aside / split / f"class{label}" / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, format="JPEG", quality=90)
    return folder


class Photographs(trainings.ImageTask):
    """ImageNet's photographs as the task of a run: a rank's slice of every batch, and of the images to evaluate.

    The recipe names the data: `"imagenet"`, whose validation images are the test set; `"drawn"`, a few gratings in
    JPEG files for a dry run; or `"sample"`, validation images alone, which are trained on too: no accuracy of theirs
    means anything. `photographs` takes so many of them, evenly.

    A step is of `batch_size` examples. Batch norm and penalties see `device_batch` of them at a time: fewer ranks take
    several such parts one after the other. A penalty is computed on the last part of each rank and averaged over them.
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
        options |= {"seed": run.seed, "device": place.device, "rank": training.rank(), "world_size": ranks}
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


train = functools.partial(trainings.train, kind=Photographs)
train_and_prune = functools.partial(removal.train_and_prune, kind=Photographs)


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
    evaluation = seen / (time.perf_counter() - clock)
    rates = {"reading": reading, "training": history[-1]["images_per_second"], "evaluation": evaluation}
    curve = [{key: value for key, value in epoch.items() if "accuracy" not in key} for epoch in history]
    result = {"images_per_second": quantities.rounded(rates), "photographs": int(seen), "ranks": training.world_size()}
    return Outcome(result, curve, {})
