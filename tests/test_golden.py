"""What must not change when code is rewritten: the runs that are registered, to the last byte of their JSON.

A registered run that becomes another is no longer what its records measured. Experiments that the file does not list
are not held: a new one needs no line until it has records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from companion.experiments import EXPERIMENTS

GOLDEN = Path(__file__).parent / "golden" / "registered_runs.json"
KNOWN: dict[str, str] = json.loads(GOLDEN.read_text())


def registered(experiment: str, tier: str) -> str:
    """SHA-256 of all runs of a tier, written as a record writes its run."""
    runs = EXPERIMENTS[experiment].runs(tier)
    text = json.dumps([dataclasses.asdict(run) for run in runs], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", KNOWN)
def test_registered_runs_are_what_they_were(name: str) -> None:
    experiment, tier = name.split("/")
    assert registered(experiment, tier) == KNOWN[name]


def test_every_experiment_with_records_is_held() -> None:
    results = Path(__file__).resolve().parent.parent / "book" / "results"
    assert {f"{folder.parent.name}/{folder.name}" for folder in results.glob("*/*/") if folder.is_dir()} <= set(KNOWN)
