"""Run notebooks in place and store their outputs; the metadata say when, how long, on what, with which versions.

python scripts/notebooks.py notebooks/02_similarity.ipynb ...
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from companion._files import write_aside

KEPT = ("started", "wall_seconds", "processor", "accelerator", "threads", "python", "torch", "torchvision", "companion")


def run(path: Path) -> float:
    """Execute the notebook at `path`, store its outputs there and return the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,  # one box for all that a cell prints
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - clock
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "execution": execution(started, seconds),
    }
    write_aside(path, nbformat.writes(notebook) + "\n")
    return seconds


def execution(started: str, seconds: float) -> dict[str, Any]:
    """What the status page says of a run: models of processor and accelerator and versions, as in a record."""
    import torch

    from companion.experiments.records import provenance  # here: on Colab the notebook itself installs the package

    seen = provenance("cuda" if torch.cuda.is_available() else "cpu", started, seconds)
    return {key: seen[key] for key in KEPT}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {run(Path(argument)):.0f} s", flush=True)
