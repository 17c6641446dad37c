"""What CONTRIBUTING.md says of how something is added: its programs run, and do what the text says."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import test_chapters
import test_exercises
import torch
from conftest import ROOT
from torch import nn

from companion.experiments import EXPERIMENTS, find
from companion.information import mutual_information
from companion.information.estimates import ESTIMATORS
from companion.pruning import METHODS
from companion.regularizers import PENALTIES
from scripts import chapter

IMPORTS = """
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from companion.experiments import Tier, replay, train_and_prune
from companion.experiments.quantities import percent
from companion.experiments.recipes import DIGITS, PRUNE, SPARSE_LAPTOP, UNTUNED, Part, feature_flow, penalised
from companion.experiments.registry import experiment
from companion.experiments.statistics import verdict
from companion.features import FeatureTap
from companion.information.estimates import ESTIMATORS, Estimate, continuous, estimate, same_rows
from companion.pruning import METHODS, Masks
from companion.regularizers import PENALTIES, FeaturePenalty
"""
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _registries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (PENALTIES, METHODS, ESTIMATORS, EXPERIMENTS):
        for books in ("_things", "facts"):
            monkeypatch.setattr(registry, books, dict(getattr(registry, books)))


def names(program: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(IMPORTS + PROGRAMS[program], found)
    return found


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_there_is_one_program_for_each_and_it_is_short() -> None:
    assert len(PROGRAMS) == 5 and max(len(program.splitlines()) for program in PROGRAMS) <= 15


def test_a_penalty() -> None:
    model, x = network(), torch.randn(5, 4)
    names(0)
    penalty = PENALTIES["energy"](model, strength=0.5)
    model(x)
    assert penalty().item() == pytest.approx(0.5 * model[:2](x).square().mean().item())


def test_a_pruning_method() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names(1)
    method = METHODS["smallest-ever"](model, optimizer, sparsity=0.75, every=2)
    for expected in (1.0, 0.25):
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        method.step()
        assert method.density() == expected


def test_an_estimator() -> None:
    x, noise = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    names(2)
    found = mutual_information(x, 0.8 * x + 0.6 * noise, "correlation")
    assert float(found) == pytest.approx(-0.5 * torch.tensor(1 - 0.8**2).log().item(), abs=0.02)


def test_an_experiment() -> None:
    names(3)
    runs = find("stronger_penalties").runs("laptop")
    assert len(runs) == 9 and {run.method for run in runs} == {"none", "l1", "ffr"}
    assert runs[1].settings["penalties"] == [{"kind": "L1", "strength": 1e-4, "layers": None}]
    with pytest.raises(ValueError, match="registered already"):
        names(3)


def test_a_chapters_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("agg")
    names(4)
    assert re.fullmatch(r"[+−]\d\.\d\d ± \d\.\d\d undecided\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_skeleton_of_a_chapter_passes_the_tests_of_a_chapter(tmp_path: Path) -> None:
    for folder in ("notebooks", "tests/exercises"):
        (tmp_path / folder).mkdir(parents=True)
    path = chapter.write(tmp_path, "99_a_new_one")
    of_a_chapter = [
        check for check in vars(test_chapters).values() if getattr(check, "__name__", "").startswith("test_")
    ]
    run = [check for check in of_a_chapter if list(inspect.signature(check).parameters) == ["path"]]
    assert len(run) >= 12
    for check in run:
        check(path)
    table = runpy.run_path(str(tmp_path / "tests" / "exercises" / "99_a_new_one.py"))["WRONG"]
    assert sorted(table) == sorted(test_exercises.labels(path))
    for label, answers in table.items():
        exercise = test_exercises.exercise(path, label)
        exercise.take()
        for answer in answers.values():
            with pytest.raises(AssertionError):
                exercise.take(answer)
    with pytest.raises(ValueError, match="it is there"):
        chapter.write(tmp_path, "99_a_new_one")
    with pytest.raises(ValueError, match="such as 17_name"):
        chapter.write(tmp_path, "anew")
