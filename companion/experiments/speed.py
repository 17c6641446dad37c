"""How fast a network trains on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision

from companion import data, models, training
from companion._checks import at_least
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.quantities import rounded
from companion.experiments.records import Run
from companion.training.precision import fastest_precision, seconds

HOW = ("precision", "channels_last", "compile")


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
        options = {name: s[name] for name in HOW}
        x = torch.randn(batch, 1 if s["model"] == "digits_net" else 3, size, size, device=place.device)
        y = torch.arange(batch, device=place.device) % 10
        model = network().to(place.device)
        optimizer = training.sgd(model)

        def step() -> Any:
            return training.fit(model, [(x, y)], optimizer, epochs=1, progress=False, **options)

    rates = [batch / seconds(step, place.device) for _ in range(s["steps"] + 2)][2:]
    low, median, high = torch.tensor(rates).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    found = {"low": low, "median": median, "high": high, "steps": s["steps"]}
    return Outcome({"images_per_second": rounded(found)}, [], {})


def fastest(device: torch.device) -> str:
    """The precision in which a ResNet-20 trains fastest on this device, as `fit(precision="auto")` finds it."""
    images, labels = torch.randn(128, 3, 32, 32), torch.arange(128) % 10
    model = models.resnet20(shortcut="B").to(device)
    return fastest_precision(model, [(images, labels)], torch.nn.functional.cross_entropy, channels_last=True)


def pace_of_steps(size: int, batch: int = 128, steps: int = 20, rounds: int = 3) -> dict[str, float]:
    """Images a second of a ResNet-20's training step on this processor, by precision, best of a few rounds in turn."""
    at_least(1, size=size, batch=batch, steps=steps, rounds=rounds)
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
