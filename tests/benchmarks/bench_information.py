"""KSG beside NPEET on continuous distributions with known information; memory and growth.

    python tests/benchmarks/bench_information.py

NPEET is not on the package index; put a clone of github.com/gregversteeg/NPEET on the path to have it measured. Its
noise is switched off, and both get each column in its own spread, as `ksg` takes it, so that both look at the same
numbers. Times are processor time of one thread, in turns.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from companion.experiments.distributions import correlated, tasks
from companion.information import ksg
from companion.information.estimates import standardised

ROUNDS = 3


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def against_npeet(n: int = 2000, count: int = 40) -> None:
    """All tasks once a round, ours and theirs in turns; error against the truth by family."""
    try:
        from npeet import entropy_estimators as npeet
    except ImportError:
        npeet = None
        print("NPEET: not installed, not measured")
    else:
        npeet.add_noise = lambda x, intens=0.0: x
    chosen = [task for task in tasks().values() if task.family not in ("class", "discrete")]
    # Every second of the plain normal ones goes, so that 40 remain and every family is there.
    spare = [task.name for task in chosen if task.family == "normal"][: len(chosen) - count]
    chosen = [task for task in chosen if task.name not in spare]
    samples = {task.name: [standardised(z)[0] for z in task.sample(n, seed=0)] for task in chosen}
    totals: dict[str, list[float]] = {"ours": [], "NPEET": []}
    for _ in range(ROUNDS):
        totals["ours"].append(sum(seconds(lambda x=x, y=y: ksg(x, y)) for x, y in samples.values()))
        if npeet:
            pairs = [(x.numpy(), y.numpy()) for x, y in samples.values()]
            totals["NPEET"].append(sum(seconds(lambda x=x, y=y: npeet.mi(x, y, base=math.e)) for x, y in pairs))
    print(f"{len(chosen)} tasks, n = {n}: ours {statistics.median(totals['ours']):.2f} s", end="")
    if npeet:
        ratios = [a / b for a, b in zip(totals["ours"], totals["NPEET"], strict=True)]
        theirs = statistics.median(totals["NPEET"])
        print(f", NPEET {theirs:.2f} s, ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    print("\nerror against the truth, mean of |estimate − truth| in nats")
    errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task in chosen:
        x, y = samples[task.name]
        errors[task.family]["ours"].append(abs(float(ksg(x, y)) - task.truth))
        if npeet:
            errors[task.family]["NPEET"].append(abs(npeet.mi(x.numpy(), y.numpy(), base=math.e) - task.truth))
    for family, by in errors.items():
        means = ", ".join(f"{name} {statistics.mean(values):.3f}" for name, values in by.items())
        print(f"  {family:8} {len(by['ours']):3} tasks: {means}")


def growth() -> None:
    """Processor seconds and memory of one estimate, each in a fresh process, as n and dimension grow."""
    print("\n  n      features   seconds   MiB over the start")
    cells = [(n, 1) for n in (1000, 10_000, 100_000)] + [(n, 3) for n in (1000, 10_000)]
    cells += [(2000, d) for d in (2, 5, 10, 25, 50)] + [(n, 25) for n in (1000, 4000, 8000)]
    for n, d in cells:
        command = [sys.executable, __file__, "--one", str(n), str(d)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="", flush=True)


def memory(field: str) -> float:
    """MiB of this process by Linux' count: VmRSS now, VmHWM at its peak since the mark was reset."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def one(n: int, d: int) -> None:
    x, y = correlated(d, 0.5).sample(n, seed=0)
    ksg(x[:100], y[:100])
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    before = memory("VmRSS")
    took = seconds(lambda: ksg(x, y))
    print(f"{n:7,}  {d:3} + {d:<3}  {took:8.3f}   {memory('VmHWM') - before:8.0f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--one" in sys.argv:
        one(int(sys.argv[-2]), int(sys.argv[-1]))
    else:
        against_npeet()
        growth()
