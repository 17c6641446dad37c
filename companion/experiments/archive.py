"""The archive: which runs have a record, whether what is there is in order, and how records from elsewhere come in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from companion._files import write_aside
from companion.experiments import records, registry
from companion.experiments.plan import identity
from companion.experiments.records import Record, Records, Run


def recorded(run: Run, root: Path) -> Record | None:
    """The record of exactly this run (see `plan.identity`); None where it has not run, or ran with other settings.

    >>> run = registry.find("published_cka").runs("paper")[0]
    >>> recorded(run, records.results_root()).run == run
    True
    """
    path = root / run.path
    if not path.exists():
        return None
    record = records.load(path)
    return record if identity(record.run) == identity(run) else None


def replay(
    name: str,
    tier: str = "laptop",
    *,
    seeds: Iterable[int] | None = None,
    results: str | Path | None = None,
    some: bool = False,
) -> Records:
    """The records of an experiment that are there; the runs without one are in `.missing`: all, unless `some`.

    Raises:
        ValueError: unknown experiment or tier; with `some`, nothing is recorded.
        DamagedRecordError: a damaged record.

    >>> found = replay("published_cka", tier="paper")
    >>> {record.run.experiment for record in found}
    {'published_cka'}
    """
    folder = records.results_root(results)
    there = [(run, recorded(run, folder)) for run in registry.find(name).runs(tier, seeds)]
    found = Records([r for _, r in there if r is not None], [run for run, r in there if r is None])
    if some and not found:
        raise ValueError(
            f"nothing is recorded for {name} at tier {tier} under {folder}; "
            f"python -m companion.experiments run {name} --tier {tier} makes the records"
        )
    return found


def problems(root: Path) -> list[str]:
    """What is wrong with the records under `root`: against the hash index, their schema, the registry, themselves."""
    listed = records.index(root)
    found = [f"{name}: listed in {records.INDEX}, but not there" for name in listed if not (root / name).exists()]
    found += [f"{name}: listed twice in {records.INDEX}" for name in records.listed_twice(root)]
    halves = sorted(half.relative_to(root) for half in root.rglob("*.part"))
    found += [f"{half}: in the making, or half a file that a kill left" for half in halves]
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
        found += [f"{shown}: {problem}" for problem in _problems(record, path)]
        if record.run.path != shown:
            found.append(f"{shown}: holds the run {record.run}")
    return found


def _problems(record: Record, path: Path) -> list[str]:
    """What is wrong with a record in itself, in its size, and against the registry."""
    try:
        found = records.problems(record)
    except (TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:  # of parts inside the parts
        found = [f"parts of other types: {error!r}"]
    if path.stat().st_size > records.LIMIT:
        found.append(f"{path.stat().st_size} bytes; at most {records.LIMIT}")
    run, known = record.run, registry.EXPERIMENTS
    if run.experiment not in known or run.tier not in known[run.experiment].tiers:
        found.append(f"the registry has no {run.experiment} at tier {run.tier}")
    elif identity(run) not in map(identity, known[run.experiment].runs(run.tier, [run.seed])):
        found.append("its method, sparsity or settings are not the registry's")
    return found


def other_block(run: Run, made: Mapping[str, Any], root: Path) -> str:
    """Why a run of this provenance cannot stand beside the recorded ones of its seed (see `Experiment.blocks`); empty
    where it can."""
    experiment, here = registry.find(run.experiment), records.block(made)
    for other in experiment.runs(run.tier, [run.seed]) if experiment.blocks else ():
        if (there := recorded(other, root)) is not None and (block := records.block(there.provenance)) != here:
            return f"{run}: runs of seed {run.seed} were made with {block}, this one with {here}"
    return ""


def add(file: Path, root: Path) -> tuple[Path, bool]:
    """Add a record that was made elsewhere, byte for byte; returns where it lies now, and whether it is new.

    Raises:
        ValueError: it is not in order (`problems`), of no registered run, made by no commit or one with changes, unlike
            the others of its seed, not what the hash index of its own folder says, or another than what is there.
    """
    record = records.load(file)
    found = _problems(record, file)
    sessions = [record.provenance, *record.provenance.get("resumed", [])]
    commits = {session.get("commit") if session.get("clean") is not False else None for session in sessions}
    if len(commits) > 1 or None in commits:
        found.append(
            "its provenance names no commit that made it, several, or one with changes: nobody could make it again"
        )
    beside = records.index(file.parents[2]) if len(file.parents) > 2 else {}
    if beside.get(record.run.path.as_posix(), digest := records.sha256(file)) != digest:
        found.append(f"changed since it was written, says {file.parents[2] / records.INDEX}")
    if not found and (problem := other_block(record.run, record.provenance, root)):
        found.append(problem)
    if found:
        raise ValueError(f"{file}: " + "; ".join(found))
    path = root / record.run.path
    new = not path.exists()
    if not new and records.sha256(path) != digest:
        raise ValueError(f"{file}: {path} holds another record of this run; remove the one that should not stay")
    if new:
        write_aside(path, file.read_bytes())
    records.enlist(root, [path])
    return path, new
