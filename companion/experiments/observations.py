"""Experiments on networks as they are: maps of published nets, and how fast a network trains."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import nn

from companion import data, models, training
from companion.blocks import compared_layers
from companion.experiments import quantities
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.records import Run
from companion.experiments.trainings import score
from companion.similarity import cka_map


def _published_images(settings: Mapping[str, Any], place: Workplace) -> data.Images:
    """Test images as published weights saw theirs: normalised by ImageNet's mean and deviation."""
    images = data.load(settings["dataset"], "test", place.data)
    if settings["dataset"] != "digits":
        images = dataclasses.replace(images, mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD)
    return images.subset(range(min(settings["examples"], len(images))))


def _network(run: Run, place: Workplace, name: str, weights: str | None) -> nn.Module:
    training.seed_everything(run.seed)
    options = {"weights": weights, "root": place.data} if weights else {}
    return getattr(models, name)(**options).to(place.device).eval()


def published_cka(run: Run, place: Workplace) -> Outcome:
    """CKA maps, geometry and accuracy of a network with published (or untrained) weights on test images."""
    s = run.settings
    images = _published_images(s, place)
    loader = data.DeviceLoader(images, 256, device=place.device)

    model = _network(run, place, s["model"], s["weights"])
    result = {"test": score(**training.evaluate(model, loader))}
    if "other" in s:
        other = _network(run, place, s["other"], s["weights"])
        table = cka_map(model, loader, compared_layers(model), other=other, other_layers=compared_layers(other))
        return Outcome(result, [], {"cka": quantities.matrix(table)})
    layers = compared_layers(model)
    maps = {
        "cka": cka_map(model, loader, layers),
        "cka_biased": cka_map(model, loader, layers, unbiased=False),
        "cka_pooled": cka_map(model, loader, layers, reduce="average_pool", estimator="exact"),
        "cka_convs": cka_map(model, loader, quantities.convolutions),
    }
    # The same number of images of every class, the first ones of the test set.
    chosen = (
        torch.cat([(images.labels == label).nonzero()[: s["geometry"], 0] for label in range(len(images.classes))])
        .sort()
        .values
    )
    inputs = next(iter(data.DeviceLoader(images.subset(chosen), len(chosen), device=place.device)))[0]
    geometry = quantities.geometry(model, inputs) | {
        "images": chosen.tolist(),
        "labels": images.labels[chosen].tolist(),
        "classes": list(images.classes),
    }
    return Outcome(
        result, [], {name: quantities.matrix(table) for name, table in maps.items()} | {"geometry": geometry}
    )


def published_flow(run: Run, place: Workplace) -> Outcome:
    """Paths of test images through a network with published (or untrained) weights: `quantities.flow_by_example`."""
    s = run.settings
    images = _published_images(s, place)
    loader = data.DeviceLoader(images, 256, device=place.device)
    model = _network(run, place, s["model"], s["weights"])
    inputs, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    result = {"test": score(**training.evaluate(model, loader))}
    return Outcome(result, [], {"flow": quantities.flow_by_example(model, inputs, labels)})


def throughput(run: Run, place: Workplace) -> Outcome:
    """Images per second of a training step (`steps` of them, after two that warm up), or of reading ImageNet's files.

    The result holds quartiles: a machine that does other things besides has a spread.
    """
    s = run.settings
    training.seed_everything(run.seed)
    size, batch = s["size"], s["batch_size"]
    step: Callable[[], Any]
    if s["model"] is None:
        folder = data.imagenet("val", place.data)
        reader = data.ImageNetLoader(folder, batch, train=True, size=size, workers=s["workers"], device=place.device)
        step = iter(reader).__next__
    else:
        network = getattr(models, s["model"], None) or getattr(torchvision.models, s["model"])
        options = {"channels_last": s["channels_last"], "precision": s["precision"], "compile": s["compile"]}
        channels = 1 if s["model"] == "digits_net" else 3
        x, y = (
            torch.randn(batch, channels, size, size, device=place.device),
            torch.arange(batch, device=place.device) % 10,
        )
        model = network().to(place.device)
        optimizer = training.sgd(model)

        def step() -> Any:
            return training.fit(model, [(x, y)], optimizer, epochs=1, progress=False, **options)

    rates = []
    for index in range(s["steps"] + 2):
        clock = time.perf_counter()
        step()
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        if index >= 2:
            rates.append(batch / (time.perf_counter() - clock))
    low, median, high = torch.tensor(rates).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    found = {"low": low, "median": median, "high": high, "steps": s["steps"]}
    return Outcome({"images_per_second": quantities.rounded(found)}, [], {})


def pace_of_steps(size: int, batch: int = 128, steps: int = 20, rounds: int = 3) -> dict[str, float]:
    """Images a second of a ResNet-20's training step on this processor, by precision, best of a few rounds in turn.

    bfloat16 is twice as fast as float32 where a processor has units for it, and less than half as fast elsewhere.

    >>> sorted(pace_of_steps(size=4, batch=8, steps=1, rounds=1))
    ['bfloat16', 'float32']
    """
    model = models.resnet20(shortcut="B")
    optimizer = training.sgd(model)
    batches = [(torch.randn(batch, 3, size, size), torch.arange(batch) % 10)] * steps
    options: dict[str, Any] = {"epochs": 1, "channels_last": True, "progress": False}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(rounds):
        for precision, seen in rates.items():
            history = training.fit(model, batches, optimizer, precision=precision, **options)
            seen.append(history[-1]["images_per_second"])
    return {precision: max(seen) for precision, seen in rates.items()}
