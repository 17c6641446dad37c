"""Write the page *Status* from what is stored: which notebook ran, when and on what; which experiments have records;
and the table of experiments on the page *Running experiments* from the registry.

python scripts/status.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

from companion._files import write_aside
from companion.experiments import EXPERIMENTS, replay
from companion.experiments.records import Records

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "status.md"
RUNNING = ROOT / "book" / "running.md"
REGISTERED = re.compile(r"(?<=\n\n)\| name \| question \|.*?(?=\n\n)", re.DOTALL)  # the table on that page
UNKNOWN = "not recorded"  # of an execution, in a notebook that was stored before such things were kept

HEAD = """\
# Status

What ran, when, on what, and for how long. This page is written by code from the stored notebooks and
[records](running.md); a test compares it with them. What did not run is not listed.

## Notebooks

The outputs on a chapter's page are those of this execution. That they are current is tested at every change: the cells
whose outputs the text cites are executed again and compared. Seconds are by the clock on the wall, whatever else the
machine did. *Not recorded* stands where a notebook was executed before such things were kept.

"""

EXPERIMENTS_HEAD = """\

## Experiments

Of {registered} experiments that are [registered](running.md), {recorded} have records. One row for each tier that ran;
*seeds* counts those that have a record, of those that are planned. The time is the sum over runs, several of which may
have run side by side.

"""


def contents(root: Path = ROOT) -> list[str]:
    """The notebooks in the table of contents, in its order, relative to `root`."""
    parts = yaml.safe_load((root / "_toc.yml").read_text())["parts"]
    files = (chapter["file"] for part in parts for chapter in part["chapters"])
    return [f"{name}.ipynb" for name in files if name.startswith("notebooks/")]


def executed(notebook: nbformat.NotebookNode) -> bool:
    """Whether the notebook has run from top to bottom; a cell that the runner skips does not count."""
    cells = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and "skip-execution" not in cell.metadata.get("tags", []) and cell.source.strip()
    ]
    counts = [cell.execution_count for cell in cells]
    return bool(counts) and None not in counts and counts == sorted(counts)


def title(notebook: nbformat.NotebookNode) -> str:
    """The notebook's first heading."""
    return notebook.cells[0].source.partition("\n")[0].removeprefix("# ").strip()


def notebooks(root: Path = ROOT) -> Iterator[list[str]]:
    """One row for each notebook of the contents that has run."""
    for name in contents(root):
        notebook = nbformat.read(root / name, as_version=4)
        if executed(notebook):
            yield [f"[{title(notebook)}](../{name})", *execution(notebook.metadata.get("execution", {}))]


def execution(seen: dict[str, Any]) -> list[str]:
    """When, how many seconds, and on what."""
    if not seen:
        return [UNKNOWN, "–", "–"]
    threads = f", {seen['threads']} thread{'s' if seen['threads'] != 1 else ''}"
    device = seen["accelerator"] or seen["processor"] + threads
    versions = f"Python {seen['python']}, torch {seen['torch']}, torchvision {seen['torchvision']}"
    return [seen["started"][:10], f"{seen['wall_seconds']:.0f}", f"{device}; {versions}"]


def experiments(root: Path = ROOT) -> Iterator[list[str]]:
    """One row for each experiment and tier that has a record."""
    for name, experiment in EXPERIMENTS.items():
        for tier in experiment.tiers:
            found = replay(name, tier, results=root / "book" / "results")
            if len(found):
                yield [f"`{name}`, {tier}", *progress(found), *where(found)]


def progress(found: Records) -> list[str]:
    """Runs and seeds that are recorded, of those that are planned."""
    here = {record.run.seed for record in found}
    planned = here | {run.seed for run in found.missing}
    return [f"{len(found)} of {len(found) + len(found.missing)}", f"{len(here)} of {len(planned)}"]


def where(found: Sequence[Any]) -> list[str]:
    """Last day, summed time, and the devices with their versions of torch, of an experiment's records."""
    seen = [record.provenance for record in found]
    hours = sum(one["wall_seconds"] for one in seen) / 3600
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    devices = sorted({f"{one['accelerator'] or one['processor']}, torch {one['torch']}" for one in seen})
    return [max(one["started"] for one in seen)[:10], time, "; ".join(devices)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def registered() -> str:
    """The table of experiments: what each asks, and how many runs its tiers have."""
    rows = []
    for name, experiment in EXPERIMENTS.items():
        runs = ", ".join(f"{tier} {len(experiment.runs(tier))}" for tier in experiment.tiers)
        rows.append([f"`{name}`", experiment.question, runs])
    return table(["name", "question", "runs"], rows).rstrip()


def page(root: Path = ROOT) -> str:
    """The page's text."""
    chapters, runs = list(notebooks(root)), list(experiments(root))
    counts = {"registered": len(EXPERIMENTS), "recorded": len({row[0].partition(",")[0] for row in runs})}
    return (
        HEAD
        + table(["chapter", "ran on", "seconds", "with"], chapters)
        + EXPERIMENTS_HEAD.format(**counts)
        + table(["experiment, tier", "runs", "seeds", "last run", "time", "with"], runs)
    )


if __name__ == "__main__":
    write_aside(PAGE, page())
    write_aside(RUNNING, REGISTERED.sub(lambda _: registered(), RUNNING.read_text()))
    print(f"{PAGE.relative_to(ROOT)}: {len(list(notebooks()))} notebooks, {len(list(experiments()))} experiments")
