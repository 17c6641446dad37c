"""What masks and updates cost, as ratios to a plain training step; and how an update grows with the network.

    python tests/benchmarks/bench_pruning.py [--rounds 7] [--device cpu] [--threads 1]

ResNet-20, batch 128, SGD with momentum, float32. Each round times, one after the other in alternating order: a plain
step, a step with masks held, the masks' part of it alone, and one prune-and-grow update of RigL and of GraNet at
sparsity 0.95. A ratio is that of one round; printed are the median and the 95 % interval of the median (order
statistics). Aims: a masked step at most 1.05 (its masks alone 0.05), an update at most 0.1; the interval's lower end
decides. Then the seconds of an update from ResNet-20 to torchvision's
ResNet-50, 25.5 million weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from scipy.stats import binom
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50

from companion.experiments.records import provenance
from companion.models import resnet20, resnet56
from companion.pruning import GraNet, Masks, RandomPruning, RigL
from companion.training import sgd


def seconds(task: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median, and the order statistics that hold it with at least 95 % (all values where there are too few)."""
    ordered, n = sorted(values), len(values)
    k = int(binom.ppf(0.025, n, 0.5))
    return statistics.median(values), ordered[max(k - 1, 0)], ordered[min(n - k, n - 1)]


def updating(model: nn.Module, method: type[RigL] | type[GraNet]) -> Callable[[], None]:
    """One update, again and again at the same point of the schedule: what `step()` does more when one is due."""
    sparsity = method(model, sgd(model), 0.95, steps=1000, every=100)
    for p in model.parameters():
        p.grad = torch.randn_like(p)

    def update() -> None:
        sparsity.steps = 300
        sparsity.update()

    return update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device, started, begin = arguments.device, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    x, y = torch.randn(128, 3, 32, 32, device=device), torch.randint(10, (128,), device=device)

    def stepping(sparse: bool) -> Callable[[], None]:
        model = resnet20(shortcut="B").to(device)
        optimizer = sgd(model)
        sparsity: Masks | None = RandomPruning(model, optimizer, 0.95) if sparse else None

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if sparsity is not None:
                sparsity.step()

        return step

    tasks = {"plain step": stepping(False), "masked step": stepping(True)}
    held = resnet20(shortcut="B").to(device)
    optimizer = sgd(held)
    masks = RandomPruning(held, optimizer, 0.95)
    F.cross_entropy(held(x), y).backward()
    optimizer.step()  # from now on there is momentum to mask
    tasks["masks alone"] = masks.step
    tasks |= {f"{m.__name__} update": updating(resnet20(shortcut="B").to(device), m) for m in (RigL, GraNet)}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(-2, arguments.rounds):  # two rounds warm up
        for name, task in list(tasks.items())[:: 1 if turn % 2 else -1]:
            elapsed = seconds(task, device)
            if turn >= 0:
                times[name].append(elapsed)
    ratios = {
        name: interval([own / plain for own, plain in zip(values, times["plain step"], strict=True)])
        for name, values in times.items()
        if name != "plain step"
    }
    print(f"plain step {statistics.median(times['plain step']):.4f} s")
    for name, (median, low, high) in ratios.items():
        print(f"{name:14} {median:.4f} of a plain step, 95 % interval {low:.4f} … {high:.4f}")

    growth = {}
    for build in (resnet20, resnet56, resnet18, resnet50):
        model = build().to(device)
        weights = sum(w.numel() for w in Masks(model, None).weights.values())
        update = updating(model, RigL)
        update()
        growth[build.__name__] = weights, min(seconds(update, device) for _ in range(3))
        print(f"{build.__name__:14} {weights:12,} weights, an update of RigL {growth[build.__name__][1]:.4f} s")
    print(
        json.dumps(
            {
                **provenance(device, started, time.perf_counter() - begin),
                "threads": arguments.threads,
                "ratios": {name: [round(value, 4) for value in values] for name, values in ratios.items()},
                "update_seconds": {name: [weights, round(value, 5)] for name, (weights, value) in growth.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
