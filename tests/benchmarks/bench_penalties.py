"""What penalties cost, as ratios to a plain training step.

    python tests/benchmarks/bench_penalties.py [--rounds 7] [--device cpu] [--threads 1]

ResNet-20, batch 128, SGD with momentum, float32 (`bench_speed.py` takes bfloat16 too). Each round takes, one after the
other in alternating order, `--steps` steps of every kind: plain, with each penalty, under random masks. A penalty that
is due at every n-th step only is timed over whole cycles. On the CPU processor time is taken, which other processes
disturb less than the clock. A ratio is that of one round; printed are the median and its 95 % interval (order
statistics), and the bound it is held to.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from bench_pruning import interval
from torch import Tensor, nn
from torch.nn import functional as F

from companion.experiments.records import provenance
from companion.models import resnet20
from companion.pruning import RandomPruning
from companion.regularizers import (
    AugmentedCKASparsity,
    CKASparsity,
    FeatureFlow,
    GroupLasso,
    KineticEnergy,
    NetworkSlimming,
)
from companion.training import sgd

# name → (what is built, the bound)
PENALTIES: dict[str, tuple[Callable[[nn.Module], Any], float | None]] = {
    "CKA-SR": (lambda model: CKASparsity(model, 1e-4), 1.02),
    "CKA-SR, every example and batch": (lambda model: CKASparsity(model, 1e-4, examples=None, every=1), 1.12),
    "AugCKA-SR": (lambda model: AugmentedCKASparsity(model, 0.1), 1.10),
    "feature flow, arXiv": (lambda model: FeatureFlow(model), 1.06),
    "feature flow, journal": (lambda model: FeatureFlow(model, variant="journal"), 1.06),
    "feature flow, across stages": (lambda model: FeatureFlow(model, across_stages=True), 1.10),
    "kinetic energy": (lambda model: KineticEnergy(model), 1.10),
    "network slimming": (lambda model: NetworkSlimming(model, 1e-4), None),
    "group lasso": (lambda model: GroupLasso(model, 1e-4), None),
}


def stepping(
    x: Tensor, y: Tensor, build: Callable[[nn.Module], Any] | None, *, masked: bool = False, bfloat16: bool = False
) -> Callable[[], None]:
    """A training step of a network of its own, with the penalty that is built for it."""
    model = resnet20(shortcut="B").to(x.device)
    optimizer = sgd(model)
    penalty = build(model) if build is not None else None
    masks = RandomPruning(model, optimizer, 0.95) if masked else None

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(x), y)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        if masks is not None:
            masks.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="in a round; a multiple of 5, CKA-SR's cycle")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device, started, begin = arguments.device, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x, y = torch.randn(128, 3, 32, 32, device=device), torch.randint(10, (128,), device=device)

    def seconds(task: Callable[[], None]) -> float:
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(arguments.steps):
            task()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    tasks = {"plain step": stepping(x, y, None)}
    tasks |= {name: stepping(x, y, build) for name, (build, _) in PENALTIES.items()}
    tasks["random masks"] = stepping(x, y, None, masked=True)
    bounds = {name: bound for name, (_, bound) in PENALTIES.items()} | {"random masks": 1.05}
    ratios: dict[str, list[float]] = {name: [] for name in bounds}
    for turn in range(-1, arguments.rounds):  # one round warms up
        times = {name: seconds(task) for name, task in list(tasks.items())[:: 1 if turn % 2 else -1]}
        if turn >= 0:
            for name in bounds:
                ratios[name].append(times[name] / times["plain step"])
    print(f"plain step {times['plain step'] / arguments.steps:.4f} s of the last round")
    for name, values in ratios.items():
        median, low, high = interval(values)
        bound = "" if bounds[name] is None else f", bound {bounds[name]:.2f}"
        print(f"{name:32} {median:.4f} of a plain step, 95 % interval {low:.4f} … {high:.4f}{bound}")
    print(
        json.dumps(
            {
                **provenance(device, started, time.perf_counter() - begin),
                "threads": arguments.threads,
                "ratios": {name: [round(value, 4) for value in interval(values)] for name, values in ratios.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
