"""Colab: its packages are new enough and stay as they are, and one option keeps a reader's work on Google Drive."""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

from companion import experiments
from companion.data import data_root
from companion.experiments import Experiment, Tier, Workplace, load_or_run, notebook, registry
from companion.training import loop

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def preinstalled() -> dict[str, Version]:
    """Colab's version of each main package."""
    lines = [line for line in (ROOT / "tests" / "colab.txt").read_text().splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines if line)}


def test_pip_upgrades_nothing_that_colab_has_and_adds_little() -> None:
    there = preinstalled()
    added: set[str] = set()
    extra = PROJECT["optional-dependencies"]["experiments"]  # the setup cell asks for it too
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *extra]]
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if requirement.marker and not requirement.marker.evaluate({"extra": "", "python_version": python()}):
            continue
        if name in there:
            assert requirement.specifier.contains(there[name], prereleases=True), f"{requirement}: {there[name]} there"
        elif name not in added:
            added.add(name)
            wanted += [Requirement(text) for text in metadata.requires(name) or []]
    assert added == {"jaxtyping", "lightning-utilities", "torchmetrics", "wadler-lindig"}


def test_colab_s_python_is_new_enough() -> None:
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python())


def python() -> str:
    """Colab's Python, such as "3.13"."""
    (version,) = re.findall(r"^# Python (3\.\d+)$", (ROOT / "tests" / "colab.txt").read_text(), re.MULTILINE)
    return version


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for Colab's module: `mounted` lists where the Drive was asked for."""
    drive = SimpleNamespace(mounted=[])
    drive.mount = drive.mounted.append
    module: Any = ModuleType("google.colab")
    module.drive = drive
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(notebook, "DRIVE", tmp_path / "drive" / "MyDrive")
    for variable in ("COMPANION_DATA", "COMPANION_WORK"):
        monkeypatch.setenv(variable, str(tmp_path / "lost"))  # so that the test's end undoes what it sets
    return drive


def test_images_checkpoints_and_records_have_their_place_on_the_drive(drive: SimpleNamespace, tmp_path: Path) -> None:
    home = notebook.keep_on_drive()
    assert drive.mounted == [str(tmp_path / "drive")]
    assert home == tmp_path / "drive" / "MyDrive" / "identity-and-flow"
    assert data_root() == home / "data" and Workplace().work == home / "work"
    assert data_root().is_dir() and Workplace().work.is_dir()
    assert notebook.keep_on_drive("another").name == "another" and data_root().parent.name == "another"


@pytest.mark.slow
def test_a_session_goes_on_where_the_last_one_ended(drive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        **{"dataset": "digits", "validation": 100, "model": "digits_net", "batch_size": 128, "epochs": 2},
        **{"model_options": {"width": 4, "blocks": 2}, "schedule": "one_cycle", "lr": 0.1, "weight_decay": 5e-4},
    }
    toy = Experiment("toy", "Is it kept?", experiments.train, {"smoke": Tier(settings, {"dense": {}})})
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": toy}))
    written, save = [], loop.save_checkpoint

    def save_and(stop: bool, path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        written.append(path)
        if stop:
            raise KeyboardInterrupt  # the runtime ends

    home = notebook.keep_on_drive()
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: save_and(True, path, state))
    with pytest.raises(KeyboardInterrupt):
        load_or_run("toy", "smoke", mode="run")
    assert len(written) == 1 and written[0].is_relative_to(home / "work") and written[0].exists()
    assert not list(home.rglob("*.json"))

    monkeypatch.setenv("COMPANION_WORK", "forgotten")
    notebook.keep_on_drive()
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: save_and(False, path, state))
    (record,) = load_or_run("toy", "smoke", mode="run")
    assert len(record.curve) == 2 and len(written) == 2  # one epoch in each session
    assert [path.relative_to(home).as_posix() for path in home.rglob("*seed0.json")] == [
        "work/results/toy/smoke/dense-seed0.json"
    ]

    finished = dataclasses.replace(toy, perform=lambda run, place: pytest.fail("it ran again"))
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": finished}))
    (again,) = load_or_run("toy", "smoke", mode="run")
    assert again.result == record.result


def test_elsewhere_the_drive_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    with pytest.raises(RuntimeError, match=r"not Google Colab.*COMPANION_DATA.*COMPANION_WORK"):
        notebook.keep_on_drive()
