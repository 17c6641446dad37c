"""Trained ImageNet networks and photographs, as several studies look at them; nothing is trained.

A run looks at its photographs in one order drawn at random, for folders are in the order of classes and neighbours
there are alike. No record holds an image.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from companion import models, training
from companion._checks import one_of
from companion._files import filled_aside
from companion.blocks import find_blocks
from companion.data import IMAGENET_MEAN, IMAGENET_STD, ImageNetLoader, imagenet
from companion.experiments import quantities
from companion.experiments.plan import Workplace
from companion.experiments.recipes import Methods
from companion.experiments.records import Run, packed
from companion.features import evaluating

DRAWN: dict[str, Any] = {
    "dataset": "drawn",
    "photographs": 32,
    "size": 32,
    "channels_last": True,
    "weights": None,
    "options": {"width": 0.25, "classes": 8},
}
SAMPLE: dict[str, Any] = {
    "dataset": "imagenet",
    "photographs": 1000,
    "size": 224,
    "channels_last": True,
    "weights": "imagenet",
    "options": {},
}
LITE: Methods = {"efficientnet_lite0": {"model": "efficientnet_lite0"}}
OTHERS: Methods = {name: {"model": name, "weights": "IMAGENET1K_V1"} for name in ("resnet50", "vit_b_16")}


BATCH = 25


def drawn_photographs(root: Path, classes: int = 8, train: int = 16, val: int = 5) -> Path:
    """A folder `{train,val}/CLASS/*.JPEG` of gratings, a direction and a colour for each class: ImageNet for a dry run.

    The files have several sizes, as photographs do, and are the same whenever they are drawn. What is there stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     drawn = drawn_photographs(Path(folder), classes=2, train=3, val=1)
    ...     len(imagenet("train", drawn)), len(imagenet("val", drawn))
    (6, 2)

    Returns:
        the folder, under `root`.
    """
    folder = root / f"drawn-{classes}-{train}-{val}"
    if folder.is_dir():
        return folder
    chance = np.random.default_rng(0)
    with filled_aside(folder) as aside:
        for split, label, index in itertools.chain(
            itertools.product(["train"], range(classes), range(train)),
            itertools.product(["val"], range(classes), range(val)),
        ):
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
    for sample in folder.samples:
        turns.append((before[sample[1]], sample))
        before[sample[1]] += 1
    chosen = [sample for _, sample in sorted(turns, key=lambda turn: turn[0])][: s["photographs"]]
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


def scored(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """As `trainings.scored`, of logits that are there."""
    right = logits.argmax(1) == labels
    loss = float(nn.functional.cross_entropy(logits, labels))
    return {
        "correct": int(right.sum()),
        "examples": len(right),
        "loss": quantities.rounded(loss, 6),
        "right": packed(right),
    }


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
    blocks, inputs = set(find_blocks(model)), list(images)
    for number, (name, part) in enumerate(parts):
        if name in blocks:
            before, rest = (nn.Sequential(*(p for _, p in some)) for some in (parts[:number], parts[number:]))
            yield Tail(name, rest, "0", list(inputs), before)
        inputs = outputs(part, inputs)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Batch by batch, in evaluation mode."""
    with evaluating(model):
        return [model(x) for x in inputs]


def judged(model: nn.Module, inputs: Sequence[Tensor], labels: Tensor) -> dict[str, Any]:
    """`scored` of a network on inputs that are there."""
    return scored(torch.cat(outputs(model, inputs)).cpu(), labels)


def half(labels: Tensor) -> int:
    """Batches that make up the first half of the photographs."""
    return len(labels) // (2 * BATCH) or 1
