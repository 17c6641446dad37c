"""What removing filters takes and brings: beside torch-pruning, and measured speed beside counted multiply-adds.

    python tests/benchmarks/bench_filters.py [--rounds 7] [--batches 1 4 16 64 256] [--device cpu] [--threads 1]

**Removal.** Every second filter of each block's first convolution is zero (batch norms random), and goes. Printed are
seconds of ours (trace, measure the constants, cut, and check in float64 that nothing changed) and of ours without the
check, as ratios to torch-pruning's (trace and cut) of the same round; the parameters left; and max|Δy|/max|y| against
the network with zeros.

**Speed.** ResNet-20 and VGG-16 lose filters until half of the multiply-adds are left, in every layer the same share
("rank"), or where the norms are smallest ("norm"). Printed are, for each batch size, the latency of the dense network
over that of the smaller one, beside the ratio of multiply-adds and that of bytes of activations that are written. A
ratio is that of one round; printed are medians and 95 % intervals of the median (order statistics).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
import torch_pruning
from scipy.stats import binom
from torch import Tensor, nn
from torchvision.models import resnet18

from companion.experiments.records import provenance
from companion.features import evaluating
from companion.models import resnet20, resnet56, vgg16_bn
from companion.pruning import couple, latencies, prune_filters, zero_filters
from companion.pruning.filters import constants, remove


def seconds(task: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    made = task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, made


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median, and the order statistics that hold it with at least 95 % (all values where there are too few)."""
    ordered, n = sorted(values), len(values)
    k = int(binom.ppf(0.025, n, 0.5))
    return statistics.median(values), ordered[max(k - 1, 0)], ordered[min(n - k, n - 1)]


def masked(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, list[int]]]:
    """A network with random batch norms and every second inner filter zero."""
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    half = {
        name: list(range(0, module.out_channels, 2))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name.endswith(".conv1")
    }
    return zero_filters(model, half), half


def by_torch_pruning(model: nn.Module, half: dict[str, list[int]], x: Tensor) -> nn.Module:
    model = copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model, (x,), verbose=False)
    for name, indices in half.items():
        graph.get_pruning_group(model.get_submodule(name), torch_pruning.prune_conv_out_channels, indices).prune()
    return model


def by_us(model: nn.Module, half: dict[str, list[int]], x: Tensor) -> nn.Module:
    coupling = couple(model, x)
    gone = torch.zeros_like(coupling.free)
    for name, indices in half.items():
        gone[coupling.filters[name][indices]] = True
    return remove(model, coupling, constants(model, coupling, x), gone)[0]


def error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with evaluating(model), evaluating(small):
        y, z = model(x), small(x)
    return float((y - z).abs().max() / y.abs().max())


def written(model: nn.Module, x: Tensor) -> int:
    """Bytes that convolutions, norms and activations write in one forward pass."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * output.element_size()

    handles = [m.register_forward_hook(count) for m in model.modules() if not any(True for _ in m.children())]
    with evaluating(model):
        model(x)
    for handle in handles:
        handle.remove()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device, started, begin = arguments.device, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="torch_pruning")

    removal: dict[str, Any] = {}
    builds: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "ResNet-20 B": (lambda: resnet20(shortcut="B"), 32),
        "ResNet-56 B": (lambda: resnet56(shortcut="B"), 32),
        "ResNet-18": (resnet18, 224),
    }
    for name, (build, size) in builds.items():
        model, half = masked(build)
        model, x = model.to(device), torch.randn(2, 3, size, size, device=device)
        tasks: dict[str, Callable[[], nn.Module]] = {
            "torch-pruning": lambda model=model, half=half, x=x: by_torch_pruning(model, half, x),
            "ours": lambda model=model, x=x: prune_filters(model, x, norm="l2", threshold=0.0, repeats=0)[0],
            "ours, unchecked": lambda model=model, half=half, x=x: by_us(model, half, x),
        }
        times: dict[str, list[float]] = {task: [] for task in tasks}
        small = {}
        for turn in range(-1, arguments.rounds):
            for task, run in list(tasks.items())[:: 1 if turn % 2 else -1]:
                elapsed, small[task] = seconds(run, device)
                if turn >= 0:
                    times[task].append(elapsed)
        removal[name] = {"parameters": sum(p.numel() for p in model.parameters())}
        for task in tasks:
            ratio = interval([own / other for own, other in zip(times[task], times["torch-pruning"], strict=True)])
            left, wrong = sum(p.numel() for p in small[task].parameters()), error(model, small[task], x)
            removal[name][task] = {
                "seconds": round(statistics.median(times[task]), 4),
                "ratio": [round(value, 3) for value in ratio],
                "parameters": left,
                "error": float(f"{wrong:.2g}"),
            }
            print(
                f"{name:12} {task:16} {statistics.median(times[task]):7.3f} s, {ratio[0]:5.2f} of torch-pruning's "
                f"[{ratio[1]:.2f}, {ratio[2]:.2f}], {left:,} parameters left, error {wrong:.1e}"
            )

    speed: dict[str, Any] = {}
    for name, model in {"ResNet-20 B": resnet20(shortcut="B"), "VGG-16": vgg16_bn()}.items():
        model = model.to(device).eval()
        x = torch.randn(max(arguments.batches), 3, 32, 32, device=device)
        networks, ratios = {"dense": model}, {}
        for how, relative in (("rank", "rank"), ("norm", None)):
            networks[how], report = prune_filters(model, x[:2], norm="l1", relative=relative, macs=0.5, repeats=0)
            ratios[how] = 1 / report.macs, written(model, x[:1]) / written(networks[how], x[:1])
        for batch in arguments.batches:
            repeats = arguments.rounds * (5 if batch <= 16 else 1)
            measured = latencies(networks, x[:batch], repeats=repeats, warmup=2)
            for how, (macs, memory) in ratios.items():
                rounds = zip(measured["dense"].seconds, measured[how].seconds, strict=True)
                faster = interval([dense / small for dense, small in rounds])
                speed[f"{name}, {how}, batch {batch}"] = [round(value, 3) for value in (*faster, macs, memory)]
                print(
                    f"{name:12} {how:5} batch {batch:3}: {faster[0]:.2f}× as fast [{faster[1]:.2f}, {faster[2]:.2f}], "
                    f"{macs:.2f}× fewer MACs, {memory:.2f}× fewer bytes written"
                )
    print(
        json.dumps(
            {
                **provenance(device, started, time.perf_counter() - begin),
                "threads": arguments.threads,
                "torch-pruning": torch_pruning.__version__,
                "removal": removal,
                "speed": speed,
            }
        )
    )


if __name__ == "__main__":
    main()
