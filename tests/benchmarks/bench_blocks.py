"""What `block_effects` costs beside the bare forward pass.

    python tests/benchmarks/bench_blocks.py [--repeats 5] [--threads 2] [--network resnet20] [--json result.json]

Noise images of 32×32 pixels (64×64 for torchvision's networks) in batches of 256. Both run in turns; a ratio
is that of one round, and its median counts. Processor time is judged, because others use the machine too; wall time
stands beside it. Memory is the peak of a fresh process that does one of the two, less that of a process that has only
built the network and the data.

Aims: at most 1.5 times the forward pass's processor time and 1.3 times its memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from companion.blocks import block_effects
from companion.experiments.records import provenance
from companion.models import resnet20

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # network, examples, pixels
    "resnet20": (resnet20, 1024, 32),
    "resnet50": (torchvision.models.resnet50, 256, 64),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 512, 64),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(image_size=64), 256, 64),
}


def forward(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for x in images.split(256):
            model(x)


METHODS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "nothing": lambda model, images: None,
    "forward pass": forward,
    "block_effects": block_effects,
}


def setting(name: str) -> tuple[nn.Module, Tensor]:
    make, examples, pixels = NETWORKS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(examples, 3, pixels, pixels)


def seconds(method: str, model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Processor time and wall time of one run."""
    process, wall = time.process_time(), time.perf_counter()
    METHODS[method](model, images)
    return time.process_time() - process, time.perf_counter() - wall


def peak(method: str, arguments: argparse.Namespace) -> float:
    """MiB of a fresh process."""
    options = [f"--threads={arguments.threads}", f"--network={arguments.network}"]
    command = [sys.executable, __file__, "--memory-of", method, *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        METHODS[arguments.memory_of](*setting(arguments.network))
        unit = 1 if sys.platform == "darwin" else 1024
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
        return

    started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    # First, while this process is small: a child's peak begins with its parent's size.
    mib = {method: peak(method, arguments) for method in METHODS}
    memory = (mib["block_effects"] - mib["nothing"]) / (mib["forward pass"] - mib["nothing"])
    model, images = setting(arguments.network)
    times: dict[str, list[tuple[float, float]]] = {"forward pass": [], "block_effects": []}
    block_effects(model, images[:64])  # imports
    for _ in range(arguments.repeats):
        for method, found in times.items():
            found.append(seconds(method, model, images))
    rounds = zip(times["block_effects"], times["forward pass"], strict=True)
    processor, wall = zip(*((a[0] / b[0], a[1] / b[1]) for a, b in rounds), strict=True)

    where = provenance(torch.device("cpu"), started, time.perf_counter() - begin)
    print(f"{arguments.network}, {where['processor']}, {where['threads']} threads, {arguments.repeats} rounds")
    for name, found, aim in (("processor time", processor, 1.5), ("wall time", wall, None), ("memory", (memory,), 1.3)):
        middle = statistics.median(found)
        verdict = "" if aim is None else f"   aim {aim}: {'reached' if middle <= aim else 'NOT REACHED'}"
        print(f"{name:15}{middle:6.2f} × forward ({min(found):.2f}–{max(found):.2f}){verdict}")
    print("peak, MiB:", {method: round(value) for method, value in mib.items()})
    if arguments.json:
        result = {**where, "network": arguments.network, "seconds_cpu_wall": times, "peak_mib": mib, "memory": memory}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
