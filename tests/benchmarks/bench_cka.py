"""All-pairs CKA of a 20-layer ResNet: ours, pytorch-cka and torch_cka beside the bare forward pass.

    python tests/benchmarks/bench_cka.py [--repeats 5] [--threads 2] [--device cpu] [--json result.json]

2,000 noise images of 32×32 pixels in batches of 256; the layers are the 19 convolutions and the linear layer of
ResNet-20. All methods get the same batches and run in turns; a ratio is that of one round, and its median counts. Wall
time is judged; the time of the process on the CPU stands beside it, for machines that others use too.

Memory is the growth of a fresh process's peak, which has run the forward pass before, while one method runs. Errors are
the largest over all pairs against float64, from the same float32 features, of the method's *own* definition: unbiased
HSIC summed over batches, ours weighted by their examples, the others' batches all alike, pytorch-cka's value clamped to
[0, 1]. The second error is that of a network in which an in-place ReLU follows each of the layers.

Aims: at most 1.5 times the forward pass, 1.2 times with groups of 64 examples inside each batch; at most .95 times
pytorch-cka; at least 8 times faster than torch_cka; peak memory below both; errors of at most 1e-6.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import cka as pytorch_cka
import torch
import torch_cka
from torch import Tensor, nn

from companion.experiments.records import provenance
from companion.features import find_layers
from companion.models import resnet20
from companion.similarity import cka_map

LAYERS = (nn.Conv2d, nn.Linear)


class Batches(list[tuple[Tensor]]):
    """(x,) batches with the attribute that torch_cka asks its loaders for."""

    dataset = "noise"


def noise(examples: int, device: torch.device) -> Batches:
    images = torch.randn(examples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batches((x.to(device),) for x in images.split(256))


def network(inplace: bool, data: Batches) -> nn.Module:
    """ResNet-20 whose batch norms know the data; with `inplace` an in-place ReLU follows each of its layers."""
    torch.manual_seed(0)
    model = resnet20()
    for name, layer in find_layers(model, LAYERS).items() if inplace else ():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Sequential(layer, nn.ReLU(inplace=True)))
    model.to(data[0][0].device)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the plain mean over the batches
    forward(model.train(), data)
    return model.eval()


# ------------------------------------------------------------------------------------------------------------- methods
def forward(model: nn.Module, data: Batches) -> None:
    with torch.no_grad():
        for (x,) in data:
            model(x)


def companion(model: nn.Module, data: Batches) -> Tensor:
    return torch.tensor(cka_map(model, data, LAYERS).to_numpy())


def by_groups(model: nn.Module, data: Batches) -> Tensor:
    return torch.tensor(cka_map(model, data, LAYERS, group=64).to_numpy())


def by_pytorch_cka(model: nn.Module, data: Batches) -> Tensor:
    device = data[0][0].device
    names = list(find_layers(model, LAYERS))
    return pytorch_cka.compute_cka(model, model, data, layers=names, device=device, progress=False)[0]


def by_torch_cka(model: nn.Module, data: Batches) -> Tensor:
    names = list(find_layers(model, LAYERS))
    model = copy.deepcopy(model)  # it leaves its hooks behind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure = torch_cka.CKA(model, model, model1_layers=names, model2_layers=names, device=data[0][0].device)
        measure.compare(data)
    return measure.export()["CKA"]


METHODS: dict[str, Callable[[nn.Module, Batches], Tensor | None]] = {
    "forward pass": forward,
    "companion": companion,
    "groups of 64": by_groups,
    "pytorch-cka": by_pytorch_cka,
    "torch_cka": by_torch_cka,
}


# --------------------------------------------------------------------------------------------------------- measurements
def seconds(method: str, model: nn.Module, data: Batches) -> tuple[float, float]:
    """Wall time and CPU time of one run."""
    wait = torch.cuda.synchronize if data[0][0].is_cuda else lambda: None
    wait()
    wall, process = time.perf_counter(), time.process_time()
    METHODS[method](model, data)
    wait()
    return time.perf_counter() - wall, time.process_time() - process


def peak_memory(method: str, model: nn.Module, data: Batches) -> float:
    """Growth of the peak while the method runs, in MiB: of this process, or of what it has allocated on CUDA."""
    if data[0][0].is_cuda:
        before = torch.cuda.memory_allocated()
        METHODS[method](model, data)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    METHODS[method](model, data)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**20


def references(model: nn.Module, data: Batches) -> dict[str, Tensor]:
    """Each method's own definition in float64, by the three terms of Song et al. (2012), from the float32 features."""
    grams: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        x = output.flatten(1).double()  # now, before an in-place ReLU
        grams.append((x @ x.T).fill_diagonal_(0))

    handles = [layer.register_forward_hook(keep) for layer in find_layers(model, LAYERS).values()]
    sums = {"by examples": torch.zeros(()), "by batches": torch.zeros(())}
    for (x,) in data:
        forward(model, Batches([(x,)]))
        n, k = len(x), torch.stack(grams).cpu()
        grams.clear()
        rows, total = k.sum(2), k.sum((1, 2))
        three = (
            k.flatten(1) @ k.flatten(1).T + total[:, None] * total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T
        )
        hsic = three / (n * (n - 3))
        sums = {"by examples": sums["by examples"] + n * hsic, "by batches": sums["by batches"] + hsic}
    for handle in handles:
        handle.remove()
    value = {name: h / (h.diagonal()[:, None] * h.diagonal()).sqrt() for name, h in sums.items()}
    alike = value["by batches"]
    return {"companion": value["by examples"], "pytorch-cka": alike.clamp(0, 1), "torch_cka": alike}


def errors(model: nn.Module, data: Batches) -> dict[str, float]:
    """Largest error of each method; NaN for one that gives up."""
    found = {}
    for method, expected in references(model, data).items():
        try:
            value = METHODS[method](model, data)
        except AssertionError:  # torch_cka: "HSIC computation resulted in NANs"
            value = torch.full_like(expected, torch.nan)
        found[method] = float((value.cpu() - expected).abs().max())
    return found


def in_a_fresh_process(method: str, arguments: argparse.Namespace) -> float:
    options = [f"--{name}={getattr(arguments, name)}" for name in ("examples", "threads", "device")]
    command = [sys.executable, __file__, "--memory-of", method, *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# -------------------------------------------------------------------------------------------------------------- report
def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started, begin, device = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter(), arguments.device
    data = noise(arguments.examples, device)
    model = network(False, data)
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, model, data))
        return

    memory = {method: round(in_a_fresh_process(method, arguments), 1) for method in METHODS}
    error = {"plain": errors(model, data), "in-place ReLUs": errors(network(True, data), data)}  # and a warm-up
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for _ in range(arguments.repeats):
        for method in METHODS:
            times[method].append(seconds(method, model, data))

    def ratio(one: str, other: str, clock: int = 0) -> dict[str, float]:
        return summary([a[clock] / b[clock] for a, b in zip(times[one], times[other], strict=True)])

    where = provenance(device, started, time.perf_counter() - begin)
    print(f"{where['accelerator'] or where['processor']}, {where['threads']} threads, {arguments.repeats} rounds")
    print(f"{'':13}  seconds  × forward   from     to  × by CPU     MiB     error  in place")
    for method in METHODS:
        wall, cpu = ratio(method, "forward pass"), ratio(method, "forward pass", 1)
        found = [f"{error[net][method]:10.1e}" if method in error[net] else f"{'':10}" for net in error]
        print(
            f"{method:14}{statistics.median(t for t, _ in times[method]):9.2f}{wall['median']:11.2f}{wall['low']:7.2f}"
            f"{wall['high']:7.2f}{cpu['median']:10.2f}{memory[method]:8.0f}{found[0]}{found[1]}"
        )

    ratios = {
        "companion / forward pass": ratio("companion", "forward pass"),
        "groups of 64 / forward pass": ratio("groups of 64", "forward pass"),
        "companion / pytorch-cka": ratio("companion", "pytorch-cka"),
        "torch_cka / companion": ratio("torch_cka", "companion"),
    }
    peers = min(memory["pytorch-cka"], memory["torch_cka"])
    worst = max(found["companion"] for found in error.values())
    verdicts = {
        "at most 1.5 × the forward pass": (ratios["companion / forward pass"]["median"], 1.5, "<="),
        "groups at most 1.2 × the forward": (ratios["groups of 64 / forward pass"]["median"], 1.2, "<="),
        "at most 0.95 × pytorch-cka": (ratios["companion / pytorch-cka"]["median"], 0.95, "<="),
        "torch_cka at least 8 × ours": (ratios["torch_cka / companion"]["median"], 8, ">="),
        "peak memory below both, MiB": (memory["companion"], peers, "<"),
        "error at most 1e-6": (worst, 1e-6, "<="),
    }
    compare = {"<=": float.__le__, ">=": float.__ge__, "<": float.__lt__}
    reached = {aim: compare[sign](float(value), float(bound)) for aim, (value, bound, sign) in verdicts.items()}
    print()
    for aim, (value, bound, _) in verdicts.items():
        print(f"{aim:34}{value:10.3g} against {bound:8.3g}   {'reached' if reached[aim] else 'NOT REACHED'}")

    if arguments.json:
        seconds_ = {method: [[round(t, 3) for t in pair] for pair in pairs] for method, pairs in times.items()}
        result = {
            **where,
            "examples": arguments.examples,
            "seconds_wall_cpu": seconds_,
            "ratios": ratios,
            "ratios_cpu": {name: ratio(*name.split(" / "), 1) for name in ratios},
            "peak_mib": memory,
            "errors": error,
            "reached": reached,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
