"""The runner: it turns runs into records, and continues what was interrupted."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from companion._checks import one_of
from companion._files import sweep, write_aside
from companion._ranks import on_rank_zero, world_size
from companion.experiments import records, registry
from companion.experiments.archive import other_block, recorded, replay
from companion.experiments.plan import PLAIN, Workplace, identity, is_training
from companion.experiments.records import Record, Records, Run
from companion.training.loop import compiler_works
from companion.training.measuring import emulates_bfloat16

_ALONE = threading.Lock()  # a run seeds the random numbers of its process: of several threads, one at a time


class OtherBlockError(RuntimeError):
    """Runs of this seed were made on another processor, or computed otherwise."""


def perform(run: Run, place: Workplace, root: Path) -> Record | None:
    """The run's record: read where there is one, else made and written. None when another runner is at it.

    In a process group every rank calls it and gets the record; rank 0 alone reads, locks and writes.

    Raises:
        ValueError: several ranks, and an experiment that is for one; a precision or the like for a run that is no
            training, and is computed as its settings say; a folder that cannot be written to; a checkpoint
            of other settings, or of an older version, or whose note of them is damaged.
        OtherBlockError: an experiment in blocks (`Experiment.blocks`), whose runs of this seed, or the beginning of
            this run, were made otherwise.
    """
    experiment = registry.find(run.experiment)
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
        place = dataclasses.replace(place, how=_how(run, place))
        clock = time.perf_counter()
        sessions = on_rank_zero(lambda: _begin(run, place, checkpoint, root))
        outcome = experiment.perform(run, place)
        sessions[-1]["wall_seconds"] = time.perf_counter() - clock

        def write() -> Record:
            record = Record(run, *outcome, provenance=records.of_sessions(sessions))
            record.save(root)
            for leftover in checkpoint.parent.glob(f"{checkpoint.name}*"):
                leftover.unlink(missing_ok=True)
            return record

        return on_rank_zero(write)


def _how(run: Run, place: Workplace) -> dict[str, Any]:
    """How the run is computed here: what is asked for, where this device can do it."""
    asked = registry.find(run.experiment).how(run)
    if not is_training(run.settings):
        if place.how:
            given = ", ".join(f"{key}={value!r}" for key, value in place.how.items())
            raise ValueError(f"{given}: {run.experiment} is no training, and computed as its settings say")
        return asked
    how = {**PLAIN, **asked, **place.how}
    if how["precision"] == "bfloat16" and emulates_bfloat16(place.device):
        how["precision"] = "float32"  # as `training.autocast` has it
    return how | {"compile": bool(how["compile"]) and compiler_works(place.device.type)}


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
    there = _finished(run, root)  # written between the first look and the lock
    return there, there is None


def _begin(run: Run, place: Workplace, checkpoint: Path, root: Path) -> list[dict[str, Any]]:
    """The provenances of the sessions that worked at the run, this one the last. They and what the run is stand beside
    its checkpoint: the next session asks whether that is of the same run."""
    here = records.provenance(place.device, datetime.now(UTC).isoformat(timespec="seconds"), 0.0, place.how)
    blocks = registry.find(run.experiment).blocks
    if blocks and (problem := other_block(run, here, root)):
        raise OtherBlockError(
            f"{problem}. All of a seed are made alike: go on there, or remove the seed's records to make them anew"
        )
    note, settings = checkpoint.with_suffix(".pt.begun"), json.loads(identity(run))["settings"]
    sweep(note)  # the lock is ours: nobody else is writing it
    sessions: list[dict[str, Any]] = []
    saved = [file for file in checkpoint.parent.glob(f"{checkpoint.name}*") if file.suffix not in (".begun", ".lock")]
    if saved:
        older: dict[str, Any] = {"settings": {"begun": "by an older version"}, "sessions": []}
        try:
            began = json.loads(note.read_text()) if note.exists() else older
            theirs, sessions = dict(began["settings"]), [dict(session) for session in began["sessions"]]
        except (ValueError, TypeError, KeyError, IsADirectoryError) as error:
            raise ValueError(f"{note} is damaged ({error!r}): delete {checkpoint}* to begin anew") from error
        differing = [
            f"{key}: {theirs.get(key)!r} there, {settings.get(key)!r} here"
            for key in sorted({*theirs, *settings})
            if theirs.get(key) != settings.get(key)
        ]
        if differing:
            raise ValueError(
                f"{checkpoint} is of other settings ({'; '.join(differing)}): go on with these, or delete "
                f"{checkpoint}* to begin anew"
            )
        # Nobody asks a killed process how long it worked: until it last saved.
        last = max(file.stat().st_mtime for file in saved)
        sessions[-1]["wall_seconds"] = max(0.0, last - datetime.fromisoformat(sessions[-1]["started"]).timestamp())
        if blocks and (there := records.block(sessions[-1])) != (block := records.block(here)):
            raise OtherBlockError(f"{run} was begun with {there}, not {block}: go on there, or delete {checkpoint}*")
    sessions.append(here)
    write_aside(note, json.dumps({"settings": settings, "sessions": sessions}))
    return sessions


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
    another machine's, or its training diverged."""
    clock = time.perf_counter()
    try:
        if (there := on_rank_zero(lambda: _finished(run, root))) is not None:
            return Attempt(there, "recorded")
        record = perform(run, place, root)
    except OtherBlockError as error:
        return Attempt(None, f"left: {error}")
    except FloatingPointError as error:
        return Attempt(None, f"diverged: {error}")
    return Attempt(record, "" if record else "another runner is at it", time.perf_counter() - clock)


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
        mode: `"replay"` reads what is recorded. `"run"` makes every run anew in the work folder, where it continues if
            interrupted, and leaves the book's records alone. Runs without a record are in `.missing`, also those that
            another runner is at.
        results: folder of results to read, default `records.results_root()`.

    Raises:
        ValueError: unknown experiment, tier or mode; `"replay"` where nothing is recorded.

    >>> records = load_or_run("published_cka", tier="paper")
    >>> records.one(method="resnet20").frame("cka").shape
    (11, 11)
    """
    one_of(mode=(mode, ("replay", "run")))
    if mode == "replay":
        return replay(name, tier, seeds=seeds, results=results, some=True)
    runs = registry.find(name).runs(tier, seeds)
    place = place or Workplace(progress=True)
    made = [perform(run, place, place.work / "results") for run in runs]
    busy = [run for run, record in zip(runs, made, strict=True) if record is None]
    return Records([record for record in made if record is not None], busy)
