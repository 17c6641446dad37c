"""A training step of ResNet-20, batch 128: fast settings against plain ones, and `fit` against a bare loop.

    python tests/benchmarks/bench_fit.py [--pairs 7] [--steps 20] [--device cpu] [--threads 2]

(b) `fit` with bfloat16, channels_last and torch.compile against `fit` with none of them. Aim: at least 2.5 × faster.
(c) `fit` against a hand-written loop of the same settings that measures nothing, plain and fast. Aim: ≤ 3 % slower.

The images are random: their content does not change the time. Passes alternate; a ratio is that of neighbours; the
first pair warms up (and compiles) and is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from companion.data import DeviceLoader, Images
from companion.experiments.records import provenance
from companion.models import resnet20
from companion.training import fit, sgd

FAST = {"precision": "bfloat16", "channels_last": True, "compile": True}


def loader(steps: int, device: torch.device) -> DeviceLoader:
    pixels = torch.randint(256, (128 * steps, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (128 * steps,))
    images = Images(pixels, labels, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, "noise")
    return DeviceLoader(images, 128, shuffle=True, augment=True, device=device)


def bare_loop(model: nn.Module, data: DeviceLoader, fast: bool) -> Callable[[], float]:
    """A function that takes one pass and returns its seconds."""
    model.train()
    layout = torch.channels_last if fast else torch.contiguous_format
    forward = torch.compile(model.to(memory_format=layout)) if fast else model
    optimizer = sgd(model)

    def one_pass() -> float:
        begin = time.perf_counter()
        for x, y in data:
            with torch.autocast(data.device.type, torch.bfloat16, enabled=fast):
                logits = forward(x.contiguous(memory_format=layout))
            loss = nn.functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if data.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return one_pass


def alternate(
    model: nn.Module, data: DeviceLoader, other: Callable[[], float], pairs: int, **options: Any
) -> list[tuple[float, float]]:
    """(seconds of one pass of `fit`, seconds of other()) for each pair: the other pass runs between two epochs."""
    seconds = []
    history = fit(
        model,
        data,
        sgd(model),
        epochs=pairs + 1,
        progress=False,
        on_epoch=lambda record: seconds.append(other()),
        **options,
    )
    return list(zip([record["seconds"] for record in history], seconds, strict=True))[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, started, begin = arguments.device, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    data = loader(arguments.steps, device)

    def net() -> nn.Module:
        torch.manual_seed(0)
        return resnet20().to(device)

    plain = net()

    def plain_pass() -> float:
        return fit(plain, data, sgd(plain), epochs=1, progress=False)[0]["seconds"]

    def fast_and_plain() -> list[tuple[float, float]]:
        return [(slow, fast) for fast, slow in alternate(net(), data, plain_pass, arguments.pairs, **FAST)]

    comparisons: dict[str, Callable[[], list[tuple[float, float]]]] = {
        "(b) plain fit / fast fit": fast_and_plain,
        "(c) fit / bare loop, plain": lambda: alternate(net(), data, bare_loop(net(), data, False), arguments.pairs),
        "(c) fit / bare loop, fast": lambda: alternate(
            net(), data, bare_loop(net(), data, True), arguments.pairs, **FAST
        ),
    }
    results: dict[str, Any] = {}
    for name, compare in comparisons.items():
        times = compare()
        ratios = [above / below for above, below in times]
        above, below = (1000 * statistics.median(side) / arguments.steps for side in zip(*times, strict=True))
        results[name] = {
            "ratio": {"median": round(statistics.median(ratios), 3), "all": [round(ratio, 3) for ratio in ratios]},
            "milliseconds_a_step": [round(above, 1), round(below, 1)],
        }
        low, median, high = min(ratios), statistics.median(ratios), max(ratios)
        print(
            f"{name:28} {median:.3f} (from {low:.3f} to {high:.3f}), ms a step: {above:.1f} / {below:.1f}", flush=True
        )
    print(json.dumps({**provenance(device, started, time.perf_counter() - begin), **results}))


if __name__ == "__main__":
    main()
