"""The command line of the experiments; see `companion.experiments`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from companion import records, training
from companion.experiments import observations, registry
from companion.experiments.plan import TIERS, Experiment, Workplace
from companion.experiments.runner import OtherBlockError, load_or_run, perform, problems, recorded
from companion.records import Records


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write i/n with 1 ≤ i ≤ n, such as 2/8")
    return int(index), int(count)


def _experiment(text: str) -> str:
    try:
        return registry.find(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m companion.experiments", description="Run experiments and read their records."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments, their questions and tiers")
    run = commands.add_parser("run", help="make the records that are missing")
    run.add_argument("name", type=_experiment, metavar="EXPERIMENT", help="its name, see `list`")
    run.add_argument("--tier", choices=TIERS, default="laptop")
    run.add_argument("--seeds", type=int, nargs="+", help="instead of the tier's")
    run.add_argument("--methods", nargs="+", help="only these of the tier's")
    run.add_argument("--sparsities", type=float, nargs="+", help="only these of the tier's")
    run.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    run.add_argument("--jobs", type=int, default=1, help="processes that share the runs, on this device")
    run.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="i/n",
        help="only every n-th run, from the i-th: for a job array",
    )
    run.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="instead of the registry's; see `pace`"
    )
    run.add_argument("--data", type=Path, default=None, help="data root (default: COMPANION_DATA)")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    pace = commands.add_parser("pace", help="images a second of a training step here, in float32 and in bfloat16")
    pace.add_argument("--size", type=int, default=16, help="pixels a side (default: 16)")
    commands.add_parser("status", help="what is recorded, of how many runs")
    table = commands.add_parser("table", help="means with 95 %% intervals over seeds")
    table.add_argument("name", type=_experiment, metavar="EXPERIMENT", help="its name, see `list`")
    table.add_argument("--tier", choices=TIERS, default="laptop")
    commands.add_parser("verify", help="check every record against hash index, schema, registry and itself")
    commands.add_parser("index", help="enter records that came from elsewhere into the hash index")
    for command in commands.choices.values():
        command.add_argument(
            "--results", type=Path, default=None, help="folder of results (default: the repository's book/results)"
        )
    return parser


def _run(arguments: argparse.Namespace, root: Path) -> int:
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: at least 1")
    if arguments.jobs > 1 and "WORLD_SIZE" in os.environ:
        raise ValueError(f"--jobs {arguments.jobs} under torchrun: its ranks share one run; --jobs shares several")
    if arguments.jobs > 1:
        # The same command n times: locks keep two workers off one run.
        threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
        flags = [argument for argument in sys.argv[1:] if not argument.startswith("--jobs")]
        if "--jobs" in sys.argv:
            at = sys.argv.index("--jobs")
            flags = [*sys.argv[1:at], *sys.argv[at + 2 :]]
        command = [sys.executable, "-m", "companion.experiments", *flags, "--quiet"]
        workers = [
            subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}) for _ in range(arguments.jobs)
        ]
        return max(worker.wait() for worker in workers)
    with training.distributed() as here:
        return _work(arguments, root, here)


def _work(arguments: argparse.Namespace, root: Path, here: training.Place) -> int:
    """The runs one after the other: this process alone, or all ranks of a process group together."""
    place = Workplace(device=here.device, data=arguments.data, progress=not arguments.quiet)
    if arguments.device and here.world_size > 1:
        raise ValueError(f"--device {arguments.device}: torchrun gives each rank its own; hide the GPUs for the CPU")
    if arguments.device:
        place = dataclasses.replace(place, device=torch.device(arguments.device))
    if arguments.precision:
        place = dataclasses.replace(place, how={"precision": arguments.precision})
    index, count = arguments.shard
    runs = registry.find(arguments.name).runs(arguments.tier, arguments.seeds)
    for name, key in (("methods", "method"), ("sparsities", "sparsity")):
        wanted, there = getattr(arguments, name), {getattr(run, key) for run in runs}
        if unknown := set(wanted or []) - there:
            raise ValueError(f"--{name} {sorted(unknown)}: unknown; there are {sorted(there, key=str)}")
        runs = [run for run in runs if not wanted or getattr(run, key) in wanted]
    for run in runs[index - 1 :: count]:
        clock = time.perf_counter()
        known = recorded(run, root) is not None
        try:
            record = perform(run, place, root)
        except OtherBlockError as error:
            if here.rank == 0:
                print(f"left: {error}", flush=True)
            continue
        outcome = (
            "another runner is at it"
            if record is None
            else "recorded"
            if known
            else f"done in {time.perf_counter() - clock:.0f} s"
        )
        accuracy = (
            f", test accuracy {100 * record.accuracy():.2f} %" if record is not None and "test" in record.result else ""
        )
        if here.rank == 0:
            print(f"{run}: {outcome}{accuracy}", flush=True)
    return 0


def _each_tier() -> Iterator[tuple[Experiment, str]]:
    return ((experiment, tier) for experiment in registry.EXPERIMENTS.values() for tier in experiment.tiers)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    root = records.results_root(arguments.results)
    try:
        if arguments.command == "list":
            for experiment in registry.EXPERIMENTS.values():
                counts = ", ".join(f"{tier} {len(experiment.runs(tier))} runs" for tier in experiment.tiers)
                print(f"{experiment.name}: {experiment.question} ({counts})")
        elif arguments.command == "run":
            return _run(arguments, root)
        elif arguments.command == "pace":
            for precision, rate in observations.pace_of_steps(arguments.size).items():
                print(f"{precision}: {rate:.0f} images a second")
        elif arguments.command == "status":
            for experiment, tier in _each_tier():
                runs = experiment.runs(tier)
                done = sum(recorded(run, root) is not None for run in runs)
                print(f"{experiment.name} {tier}: {done} of {len(runs)} recorded" + ("" if done else ", not run"))
        elif arguments.command == "table":
            made = load_or_run(arguments.name, arguments.tier, root=root)
            scored = Records([record for record in made if "test" in record.result], made.missing)
            print(
                scored.table().to_string(index=False)
                if len(scored)
                else "\n".join(f"{r.run}: {r.result}" for r in made)
            )
        elif arguments.command == "verify":
            found = problems(root)
            print("\n".join(found) if found else f"{len(list(root.glob('*/*/*.json')))} records, all in order")
            return 1 if found else 0
        elif arguments.command == "index":
            new = records.enlist(root, sorted(root.glob("*/*/*.json")))
            print(f"{len(new)} records entered, {len(records.index(root))} listed")
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
