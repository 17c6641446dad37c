"""Runs that train nothing: they look at published networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from companion import data, models, training
from companion.blocks import compared_layers
from companion.experiments import quantities
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.records import Run
from companion.experiments.trainings import score
from companion.similarity import cka_map

Part = Literal["train", "test"]


def seen(settings: Mapping[str, Any], place: Workplace, part: Part = "test") -> tuple[data.Images, data.DeviceLoader]:
    """Images as published weights saw theirs: normalised by ImageNet's mean and deviation."""
    images = data.load(settings["dataset"], part, place.data)
    if settings["dataset"] != "digits":
        images = dataclasses.replace(images, mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD)
    images = images.subset(range(min(settings["examples"], len(images))))
    return images, data.DeviceLoader(images, 256, device=place.device)


def network(run: Run, place: Workplace, name: str) -> nn.Module:
    training.seed_everything(run.seed)
    weights = run.settings["weights"]
    options = {"weights": weights, "root": place.data} if weights else {}
    return getattr(models, name)(**options).to(place.device).eval()


def published_cka(run: Run, place: Workplace) -> Outcome:
    """CKA maps, geometry and accuracy of a network with published (or untrained) weights on test images."""
    s = run.settings
    images, loader = seen(s, place)
    model = network(run, place, s["model"])
    result = {"test": score(**training.evaluate(model, loader))}
    if "other" in s:
        other = network(run, place, s["other"])
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
    of_class = [(images.labels == label).nonzero()[: s["geometry"], 0] for label in range(len(images.classes))]
    chosen = torch.cat(of_class).sort().values
    inputs = next(iter(data.DeviceLoader(images.subset(chosen), len(chosen), device=place.device)))[0]
    geometry = quantities.geometry(model, inputs) | {
        "images": chosen.tolist(),
        "labels": images.labels[chosen].tolist(),
        "classes": list(images.classes),
    }
    measures = {name: quantities.matrix(table) for name, table in maps.items()} | {"geometry": geometry}
    return Outcome(result, [], measures)


def published_flow(run: Run, place: Workplace) -> Outcome:
    """Paths of test images through a network with published (or untrained) weights: `quantities.flow_by_example`."""
    _, loader = seen(run.settings, place)
    model = network(run, place, run.settings["model"])
    inputs, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    result = {"test": score(**training.evaluate(model, loader))}
    return Outcome(result, [], {"flow": quantities.flow_by_example(model, inputs, labels)})
