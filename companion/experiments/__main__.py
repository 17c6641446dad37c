"""The command line of the experiments; see `companion.experiments`."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.experiments import archive, executors, records, registry
from companion.experiments.plan import TIERS, Workplace
from companion.experiments.records import Records, Run

if TYPE_CHECKING:  # a command that only reads records loads no torch
    import torch

    from companion.experiments.runner import Attempt


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write i/n with 1 ≤ i ≤ n, such as 2/8")
    return int(index), int(count)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least 0")
    return int(text)


def _experiment(text: str) -> str:
    try:
        return registry.find(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _device(text: str) -> torch.device:
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r}: cpu, cuda, or cuda:1") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        raise argparse.ArgumentTypeError(f"{text}: there is no such device here; use cpu")
    return device


class _Parser(argparse.ArgumentParser):
    """No abbreviations: `--job 2` is a mistake, and would be taken for `--jobs 2`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m companion.experiments", description="Run experiments and read their records.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments, their questions and tiers")
    run = commands.add_parser("run", help="make the records that are missing")
    run.add_argument("name", type=_experiment, metavar="EXPERIMENT", help="its name, see `list`")
    run.add_argument("--tier", choices=TIERS, default="laptop")
    run.add_argument("--seeds", type=_seed, nargs="+", help="instead of the tier's")
    run.add_argument("--methods", nargs="+", help="only these of the tier's")
    run.add_argument("--sparsities", type=float, nargs="+", help="only these of the tier's")
    run.add_argument("--device", type=_device, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    run.add_argument("--jobs", type=int, default=1, help="processes that share the runs, on this device")
    run.add_argument(
        "--executor", help=f"who makes the runs: {executors.NAMES}; or module:function, which returns an executor"
    )
    part = "only every n-th run, from the i-th: for a job array"
    run.add_argument("--shard", type=_shard, default=(1, 1), metavar="i/n", help=part)
    faster = "instead of the registry's; auto: what `pace` finds the faster"
    run.add_argument("--precision", choices=("float32", "bfloat16", "float16", "auto"), help=faster)
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
    brought = commands.add_parser("import", help="check records that were made elsewhere, and add them")
    brought.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a record, best in its folder of results")
    where = "folder of results (default: the repository's book/results)"
    for command in commands.choices.values():
        command.add_argument("--results", type=Path, default=None, help=where)
    return parser


def _run(arguments: argparse.Namespace, root: Path) -> int:
    from companion import training
    from companion.experiments.runner import attempt

    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: at least 1")
    several = arguments.jobs > 1 or arguments.executor is not None
    if several and "WORLD_SIZE" in os.environ:
        raise ValueError("--jobs and --executor under torchrun: its ranks share one run; these share several")
    runs = _chosen(arguments)
    if not several:
        with training.distributed() as here:
            if arguments.device and here.world_size > 1:
                raise ValueError(
                    f"--device {arguments.device}: torchrun gives each rank its own; hide the GPUs for the CPU"
                )
            place = _place(arguments, arguments.device or here.device)
            attempts = ((run, functools.partial(attempt, run, place, root)) for run in runs)
            return _report(runs, attempts, root, bar=not arguments.quiet, speaks=here.rank == 0)
    place = _place(arguments, arguments.device or Workplace().device)
    with executors.open_executor(arguments.executor, arguments.jobs) as executor:
        waiting = {executor.submit(attempt, run, place, root): run for run in runs}
        finished = ((waiting[future], future.result) for future in as_completed(waiting))
        return _report(runs, finished, root, bar=not arguments.quiet)


def _chosen(arguments: argparse.Namespace) -> list[Run]:
    """The runs that the command names."""
    index, count = arguments.shard
    runs = registry.find(arguments.name).runs(arguments.tier, arguments.seeds)
    for name, key in (("methods", "method"), ("sparsities", "sparsity")):
        wanted, there = getattr(arguments, name), {getattr(run, key) for run in runs}
        if unknown := set(wanted or []) - there:
            raise ValueError(f"--{name} {sorted(unknown)}: unknown; there are {sorted(there, key=str)}")
        runs = [run for run in runs if not wanted or getattr(run, key) in wanted]
    if index > len(runs):
        print(f"--shard {index}/{count}: there is nothing to do, of {len(runs)} runs none is its own", file=sys.stderr)
    return runs[index - 1 :: count]


def _place(arguments: argparse.Namespace, device: torch.device) -> Workplace:
    precision = arguments.precision
    if precision == "auto":
        from companion.experiments import speed

        precision = speed.fastest(device)
        print(f"precision: {precision}, the faster one on this {device.type}", file=sys.stderr)
    how = {"precision": precision} if precision else {}
    return Workplace(device=device, data=arguments.data, progress=not arguments.quiet, how=how)


def _report(
    runs: Sequence[Run],
    attempts: Iterable[tuple[Run, Callable[[], Attempt]]],
    root: Path,
    *,
    bar: bool,
    speaks: bool = True,
) -> int:
    """Say what became of every run as it ends; the exit status is 0 if all have a record."""
    from companion._progress import progress

    recorded_now = 0
    for run, made in progress(attempts, "runs", len(runs)) if bar and len(runs) > 1 else attempts:
        found = made()
        recorded_now += found.record is not None
        if not speaks:
            continue
        outcome = found.said or f"done in {found.seconds:.0f} s"
        if found.record is not None and "test" in found.record.result:
            outcome += f", test accuracy {100 * found.record.accuracy():.2f} %"
        if found.record is not None and not found.said:
            outcome += f": {root / run.path}"
        print(f"{run}: {outcome}", flush=True)
    complete = recorded_now == len(runs)
    if speaks:
        told = f"{recorded_now} of {len(runs)} runs are recorded in {root}"
        print(told, file=sys.stdout if complete else sys.stderr)
    return 0 if complete else 1


def _status(root: Path) -> int:
    """Say how much of each experiment is recorded; the exit status is 2 if one is damaged, which hides no other."""
    damaged: list[records.DamagedRecordError] = []
    for experiment, tier in ((one, tier) for one in registry.EXPERIMENTS.values() for tier in one.tiers):
        runs, done, before = experiment.runs(tier), 0, len(damaged)
        for run in runs:
            try:
                done += archive.recorded(run, root) is not None
            except records.DamagedRecordError as error:
                damaged.append(error)
        rest = f", {bad} damaged" if (bad := len(damaged) - before) else "" if done else ", not run"
        print(f"{experiment.name} {tier}: {done} of {len(runs)} recorded{rest}")
    for found in damaged:
        print(f"error: {found}", file=sys.stderr)
    return 2 if damaged else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    root = records.results_root(arguments.results)
    try:
        if arguments.results is not None and arguments.command not in ("run", "import") and not root.is_dir():
            raise ValueError(f"{root} holds no record: there is no such folder; is --results right?")
        if arguments.command == "list":
            for experiment in registry.EXPERIMENTS.values():
                counts = ", ".join(f"{tier} {len(experiment.runs(tier))} runs" for tier in experiment.tiers)
                print(f"{experiment.name}: {experiment.question} ({counts})")
        elif arguments.command == "run":
            return _run(arguments, root)
        elif arguments.command == "pace":
            from companion.experiments import speed

            for precision, rate in speed.pace_of_steps(arguments.size).items():
                print(f"{precision}: {rate:.0f} images a second")
        elif arguments.command == "status":
            return _status(root)
        elif arguments.command == "table":
            made = archive.replay(arguments.name, arguments.tier, results=root, some=True)
            scored = Records([record for record in made if "test" in record.result], made.missing)
            print(
                scored.table().to_string(index=False)
                if len(scored)
                else "\n".join(f"{r.run}: {r.result}" for r in made)
            )
        elif arguments.command == "verify":
            found, count = archive.problems(root), len(list(root.glob("*/*/*.json")))
            if not found and not count:
                raise ValueError(
                    f"{root} holds no record EXPERIMENT/TIER/RUN.json; is --results the folder of results?"
                )
            print("\n".join(found) if found else f"{count} records, all in order")
            return 1 if found else 0
        elif arguments.command == "index":
            files = sorted(root.glob("*/*/*.json"))
            if folders := [path for path in files if path.is_dir()]:
                raise ValueError(f"{folders[0]}: a folder, where a record should be")
            new = records.enlist(root, files)
            print(f"{len(new)} records entered, {len(records.index(root))} listed")
        elif arguments.command == "import":
            for file in arguments.files:
                path, added = archive.add(file.resolve(), root)
                print(f"{path}: {'added' if added else 'was there'}, SHA-256 {records.sha256(path)}")
    except BrokenExecutor:
        print("error: a worker died, killed or out of memory; the same command goes on from there", file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
