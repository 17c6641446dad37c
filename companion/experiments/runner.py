"""The runner: it turns runs into records, continues what was interrupted, and checks what is there."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from companion._checks import one_of
from companion._ranks import on_rank_zero, world_size
from companion.experiments import records, registry
from companion.experiments.plan import Experiment, Workplace, identity
from companion.experiments.records import Record, Records, Run

_ALONE = threading.Lock()  # a run seeds the random numbers of its process: of several threads, one at a time


class OtherBlockError(RuntimeError):
    """Runs of this seed were made on another processor, or computed otherwise."""


def recorded(run: Run, root: Path) -> Record | None:
    """The record of exactly this run (see `plan.identity`); None where it has not run, or ran with other settings.

    Raises:
        DamagedRecordError: the file that should hold it is no record.

    >>> run = registry.find("published_cka").runs("paper")[0]
    >>> recorded(run, records.results_root()).run == run
    True
    """
    path = root / run.path
    if not path.exists():
        return None
    record = records.load(path)
    return record if identity(record.run) == identity(run) else None


def perform(run: Run, place: Workplace, root: Path) -> Record | None:
    """The run's record: read where there is one, else made and written. None when another runner is at it.

    In a process group every rank calls it and gets the record; rank 0 alone reads, locks and writes.

    Raises:
        ValueError: several ranks, and an experiment that is for one; a folder that cannot be written to.
        OtherBlockError: an experiment in blocks (`Experiment.blocks`), whose runs of this seed were made otherwise.
    """
    experiment = registry.find(run.experiment)
    place = dataclasses.replace(place, how={**experiment.how(run), **place.how})
    if world_size() > 1 and not experiment.ranks:
        several = [e.name for e in registry.EXPERIMENTS.values() if e.ranks]
        raise ValueError(
            f"{experiment.name} is for one process, not for {world_size()} ranks: start it without torchrun, and share "
            f"its runs by --jobs or --shard. For several ranks there are {several}"
        )
    checkpoint = place.work / run.path.with_suffix(".pt")
    with _ALONE, ExitStack() as held:
        there, free = on_rank_zero(lambda: _claim(run, checkpoint, root, held))
        if not free:
            return there
        if experiment.blocks:
            on_rank_zero(lambda: _same_block(experiment, run, place, root))
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        outcome = experiment.perform(run, place)
        # Of a run that was interrupted, the epochs before count too.
        seconds = max(time.perf_counter() - clock, sum(epoch.get("seconds", 0) for epoch in outcome.curve))

        def write() -> Record:
            made = records.provenance(place.device, started, seconds, place.computing())
            record = Record(run, *outcome, provenance=made)
            record.save(root)
            for leftover in checkpoint.parent.glob(f"{checkpoint.name}*"):
                leftover.unlink(missing_ok=True)
            return record

        return on_rank_zero(write)


def _claim(run: Run, checkpoint: Path, root: Path, held: ExitStack) -> tuple[Record | None, bool]:
    """The record, if there is one, and whether the run is ours to make: locked as long as `held` is open."""
    if (there := _finished(run, root)) is not None:
        return there, False
    for folder in ((root / run.path).parent, checkpoint.parent):  # now, and not after hours of training
        _writable(folder)
    try:
        held.enter_context(FileLock(checkpoint.with_suffix(".run"), timeout=0))
    except Timeout:
        return None, False
    there = _finished(run, root)  # written while we waited for the lock
    return there, there is None


def _finished(run: Run, root: Path) -> Record | None:
    """The record, if there is one, in good order: also after a kill between record and index."""
    if (there := recorded(run, root)) is not None:
        records.mend(root, run)
    return there


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror}): give another --results, or COMPANION_WORK"
        ) from error


class Attempt(NamedTuple):
    """What became of a run: its record, where there is one; what to say of it; seconds, where it was made now."""

    record: Record | None
    said: str = ""
    seconds: float = 0.0


def attempt(run: Run, place: Workplace, root: Path) -> Attempt:
    """`perform`, where a run that cannot be made now does not stop those after it: it is in other hands, its block is
    another machine's, or its training diverged.

    >>> found = attempt(registry.find("published_cka").runs("paper")[0], Workplace(), records.results_root())
    >>> found.said, found.record is not None
    ('recorded', True)
    """
    clock = time.perf_counter()
    try:
        if (there := on_rank_zero(lambda: _finished(run, root))) is not None:
            return Attempt(there, "recorded")
        record = perform(run, place, root)
    except OtherBlockError as error:
        return Attempt(None, f"left: {error}")
    except FloatingPointError as error:
        return Attempt(None, f"diverged: {error}")
    if record is None:
        return Attempt(None, "another runner is at it")
    return Attempt(record, "", time.perf_counter() - clock)


def _same_block(experiment: Experiment, run: Run, place: Workplace, root: Path) -> None:
    """Refuse to mix machines or ways of computing among the runs of a seed."""
    here = records.block(records.provenance(place.device, "", 0.0, place.computing()))
    for other in experiment.runs(run.tier, [run.seed]):
        if (there := recorded(other, root)) is not None and (block := records.block(there.provenance)) != here:
            raise OtherBlockError(
                f"{run}: runs of seed {run.seed} were made with {block}, here it would be {here}. All of a seed are "
                f"made alike: go on there, or remove the records of this seed to make them anew"
            )


def load_or_run(
    name: str,
    tier: str = "laptop",
    *,
    mode: str = "replay",
    seeds: Iterable[int] | None = None,
    place: Workplace | None = None,
    results: str | Path | None = None,
) -> Records:
    """The records of an experiment: replayed from the book's results, or made here.

    Args:
        mode: `"replay"` reads what is recorded; runs without a record are in `.missing`. `"run"` makes every run anew
            in the work folder, where it continues if interrupted, and leaves the book's records alone.
        results: folder of results to read, default `records.results_root()`.

    Raises:
        ValueError: unknown experiment, tier or mode; `"replay"` where nothing is recorded.

    >>> records = load_or_run("published_cka", tier="paper")
    >>> records.one(method="resnet20").frame("cka").shape
    (11, 11)
    """
    one_of(mode=(mode, ("replay", "run")))
    if mode == "replay":
        found = replay(name, tier, seeds=seeds, results=results)
        if not found:
            raise ValueError(
                f"nothing is recorded for {name} at tier {tier} under {records.results_root(results)}; "
                f"python -m companion.experiments run {name} --tier {tier} makes the records"
            )
        return found
    runs = registry.find(name).runs(tier, seeds)
    place = place or Workplace(progress=True)
    made = [perform(run, place, place.work / "results") for run in runs]
    return Records([record for record in made if record is not None])


def replay(
    name: str, tier: str = "laptop", *, seeds: Iterable[int] | None = None, results: str | Path | None = None
) -> Records:
    """The records of an experiment that are there; the runs without one are in `.missing`, which may be all.

    Raises:
        ValueError: unknown experiment or tier.
        DamagedRecordError: a damaged record.

    >>> found = replay("published_cka", tier="paper")
    >>> {record.run.experiment for record in found}
    {'published_cka'}
    """
    folder = records.results_root(results)
    there = [(run, recorded(run, folder)) for run in registry.find(name).runs(tier, seeds)]
    return Records(
        [record for _, record in there if record is not None], [run for run, record in there if record is None]
    )


def problems(root: Path) -> list[str]:
    """What is wrong with the records under `root`: against the hash index, their schema, the registry, themselves."""
    listed = records.index(root)
    found = [f"{name}: listed in {records.INDEX}, but not there" for name in listed if not (root / name).exists()]
    found += [f"{name}: listed twice in {records.INDEX}" for name in records.listed_twice(root)]
    found += [
        f"{half.relative_to(root)}: in the making, or half a file that a kill left"
        for half in sorted(root.rglob("*.part"))
    ]
    for path in sorted(root.glob("*/*/*.json")):
        shown = path.relative_to(root)
        digest = listed.get(shown.as_posix())
        if path.is_dir():
            found.append(f"{shown}: a folder")
            continue
        if digest is None:
            found.append(f"{shown}: not listed in {records.INDEX}; `python -m companion.experiments index` enters it")
        elif digest != records.sha256(path):
            found.append(f"{shown}: changed since it was written, says {records.INDEX}")
        try:
            record = records.load(path)
        except records.DamagedRecordError as error:
            found.append(str(error))
            continue
        try:
            found += [f"{shown}: {problem}" for problem in records.problems(record)]
        except (TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:  # of parts inside the parts
            found.append(f"{shown}: parts of other types: {error!r}")
        if record.run.path != shown:
            found.append(f"{shown}: holds the run {record.run}")
        if path.stat().st_size > records.LIMIT:
            found.append(f"{shown}: {path.stat().st_size} bytes; at most {records.LIMIT}")
        if (
            record.run.experiment not in registry.EXPERIMENTS
            or record.run.tier not in registry.EXPERIMENTS[record.run.experiment].tiers
        ):
            found.append(f"{shown}: the registry has no {record.run.experiment} at tier {record.run.tier}")
        elif not any(
            identity(record.run) == identity(run)
            for run in registry.EXPERIMENTS[record.run.experiment].runs(record.run.tier, [record.run.seed])
        ):
            found.append(f"{shown}: its method, sparsity or settings are not the registry's")
    return found
