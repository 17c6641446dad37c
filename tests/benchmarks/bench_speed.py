"""What the page *Speed* shows: ratios to what one would do without the package, each of one round.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_speed.py [cka steps removal growth] [--rounds 5]

Each part writes `tests/benchmarks/records/PROCESSOR/PART.json`, from which `scripts/speed.py` writes the page. The
tasks of a part run in turn, in alternating order, after one round that warms up; a ratio is that of one round, of what
takes a second or less the ratio of the shortest of two or three turns in it. Taken is the time of the process on one
thread of a processor, which others disturb less than the clock on the wall; their share of its caches remains.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bench_cka
import bench_filters
import bench_penalties
import torch
import torchvision
from torch import Tensor, nn

from companion._files import write_aside
from companion.experiments.records import provenance
from companion.features import find_layers
from companion.models import resnet20, resnet56
from companion.pruning import prune_filters
from companion.similarity import cka_map

RECORDS = Path(__file__).parent / "records"
CPU = torch.device("cpu")
Tasks = Mapping[str, Callable[[], Any]]


def timed(tasks: Tasks, rounds: int, best: int = 1) -> dict[str, list[float]]:
    """Seconds of each task, round by round: the shortest of `best` turns."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(-1, rounds * best):
        for name, task in list(tasks.items())[:: 1 if turn % 2 else -1]:
            begin = time.process_time()
            task()
            if turn >= 0:
                seconds[name].append(time.process_time() - begin)
    return {name: [min(found[i : i + best]) for i in range(0, len(found), best)] for name, found in seconds.items()}


def ratios(one: list[float], other: list[float]) -> list[float]:
    return [round(a / b, 4) for a, b in zip(one, other, strict=True)]


def line(what: str, against: str, seconds: dict[str, list[float]], one: str, other: str, aim: float) -> dict[str, Any]:
    return {"what": what, "against": against, "aim": aim, "ratios": ratios(seconds[one], seconds[other])}


# --------------------------------------------------------------------------------------------------------------- parts
def cka(rounds: int) -> dict[str, Any]:
    """All pairs of the 20 layers of ResNet-20, on 512 images in batches of 256."""
    data = bench_cka.noise(512, CPU)
    model = bench_cka.network(False, data)
    names = ("forward pass", "companion", "groups of 64", "pytorch-cka")
    seconds = timed({name: functools.partial(bench_cka.METHODS[name], model, data) for name in names}, rounds, best=2)
    whole, groups = "`cka_map`, all pairs of 20 layers", "`cka_map(group=64)`, the same"
    return {
        "lines": [
            line(whole, "the forward pass", seconds, "companion", "forward pass", 1.5),
            line(groups, "the forward pass", seconds, "groups of 64", "forward pass", 1.2),
            line(whole, "pytorch-cka", seconds, "companion", "pytorch-cka", 0.95),
        ]
    }


def steps(rounds: int) -> dict[str, Any]:
    """Training steps of ResNet-20, batch 128, in float32 and under autocast to bfloat16."""
    x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    every = {name: found for name, found in bench_penalties.PENALTIES.items() if found[1] and name != "CKA-SR"}
    lines = []
    for precision in ("float32", "bfloat16"):
        make = functools.partial(bench_penalties.stepping, x, y, bfloat16=precision == "bfloat16")
        seconds = timed({"": make(None)} | {name: make(build) for name, (build, _) in every.items()}, rounds)
        lines += [
            line(f"a step with {name}, {precision}", "a plain step", seconds, name, "", aim or 0)
            for name, (_, aim) in every.items()
        ]
    return {"lines": lines}


def removal(rounds: int) -> dict[str, Any]:
    """Every second filter of each block's first convolution goes, on a batch of two."""
    builds: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "ResNet-20": (lambda: resnet20(shortcut="B"), 32),
        "ResNet-56": (lambda: resnet56(shortcut="B"), 32),
        "ResNet-18": (torchvision.models.resnet18, 224),
    }
    lines = []
    for name, (build, size) in builds.items():
        model, half = bench_filters.masked(build)
        x = torch.randn(2, 3, size, size)
        tasks: Tasks = {
            "torch-pruning": functools.partial(bench_filters.by_torch_pruning, model, half, x),
            "unchecked": functools.partial(bench_filters.by_us, model, half, x),
            "checked": functools.partial(prune_filters, model, x, norm="l2", threshold=0.0, repeats=0),
        }
        seconds = timed(tasks, rounds, best=3)
        for how, aim in (("unchecked", 2.0), ("checked", 3.0)):
            what = f"filters of {name} at {size} pixels removed, {how}"
            lines.append(line(what, "torch-pruning", seconds, how, "torch-pruning", aim))
    return {"lines": lines}


def growth(rounds: int) -> dict[str, Any]:
    """CKA of all pairs against the forward pass, as one number grows and the others stay: 20 layers, 256 examples in
    one batch, width 8."""

    def pair(at: int, *, layers: int = 20, examples: int = 256, width: int = 8, batch: int = 256) -> Tasks:
        torch.manual_seed(0)
        model, x = resnet20(width=width).eval(), torch.randn(examples, 3, 32, 32)
        names = list(find_layers(model, bench_cka.LAYERS))[:: 20 // layers]

        def forward() -> None:
            with torch.no_grad():
                for part in x.split(batch):
                    model(part)

        def compared() -> Tensor:
            return torch.tensor(cka_map(model, x, names, batch_size=batch).to_numpy())

        return {f"{at} forward": forward, f"{at} cka": compared}

    curves = {}
    points = {"layers": (2, 5, 10, 20), "examples": (256, 512, 1024), "width": (4, 8, 16), "batch": (64, 128, 256)}
    for what, places in points.items():
        tasks: dict[str, Callable[[], Any]] = {}
        for at in places:
            tasks |= pair(at, **{what: at})
        seconds = timed(tasks, rounds)
        curves[what] = [{"at": at, "ratios": ratios(seconds[f"{at} cka"], seconds[f"{at} forward"])} for at in places]
    return {"curves": curves}


PARTS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "cka": cka,
    "steps": steps,
    "removal": removal,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in arguments.parts or PARTS:
        started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        torch.manual_seed(0)
        found = PARTS[name](arguments.rounds)
        where = provenance(CPU, started, time.perf_counter() - begin)
        text = json.dumps({"rounds": arguments.rounds, **found, "provenance": where})
        place = RECORDS / re.sub(r"\W+", "_", where["processor"]).lower()
        place.mkdir(exist_ok=True, parents=True)
        write_aside(place / f"{name}.json", text + "\n")
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
