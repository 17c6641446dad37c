"""The notebooks' first cell: on Colab it adds the package and touches nothing else; elsewhere it does nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from scripts.colab import STAND_IN, Runtime
from scripts.repository import setup_cell

PREINSTALLED = ("torch", "torchvision", "numpy", "pandas", "matplotlib")

# Runs a cell as a notebook would: argument 1 is the cell.
RUN_CELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell(sys.argv[1]).raise_error()
sys.exit(shell.user_ns.get("_exit_code", 0))
"""
ON_COLAB = STAND_IN + RUN_CELL

# A Drive that appears in the folder of argument 2.
DRIVE = """
def mount(place):
    from pathlib import Path
    import companion.experiments.notebook
    companion.experiments.notebook.DRIVE = Path(sys.argv[2])
sys.modules["google.colab"].drive = types.SimpleNamespace(mount=mount)
"""
PLACES = """
from companion.data import data_root
from companion.experiments import Workplace
print(data_root(), Workplace().work)
"""

# What is installed: version, place and time of last change of each distribution's record.
INSTALLED = f"""
import importlib.metadata, json
found = map(importlib.metadata.distribution, {PREINSTALLED!r})
print(json.dumps([[d.version, str(d.locate_file("")), d._path.joinpath("RECORD").stat().st_mtime_ns] for d in found]))
"""


class Colab(Runtime):
    """The runtime in which the cell runs: away from the checkout and without an index."""

    def run(self, code: str, *arguments: str | Path) -> str:
        """What a fresh process prints."""
        hidden = ("PYTHONPATH", "PIP_FIND_LINKS")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}
        done = subprocess.run(
            [self.python, "-c", code, *arguments],
            cwd=self.python.parent,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Colab:
    return Colab(tmp_path_factory.mktemp("colab"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A git address of this repository's last commit, on a branch `main`."""
    bare = tmp_path_factory.mktemp("git") / "repository.git"
    subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)
    subprocess.run(["git", "-C", ROOT, "push", "--quiet", bare, "HEAD:refs/heads/main"], check=True)
    return bare.as_uri()


@pytest.mark.slow
def test_elsewhere_the_cell_does_nothing(colab: Colab, address: str) -> None:
    assert colab.run(RUN_CELL, setup_cell(address, "main")) == ""
    assert colab.added() == set()


@pytest.mark.slow
def test_on_colab_the_cell_adds_the_package_and_touches_nothing_else(colab: Colab, address: str) -> None:
    before = json.loads(colab.run(INSTALLED))
    assert {Path(place) for _, place, _ in before} == {colab.preinstalled}
    colab.run(ON_COLAB, setup_cell(address, "main"))
    assert json.loads(colab.run(INSTALLED)) == before
    assert {name.partition("-")[0] for name in colab.added()} == {"companion", "identity_and_flow"}
    records = [path.relative_to(ROOT / "book" / "results") for path in ROOT.glob("book/results/**/*.json")]
    assert all((colab.site / "companion" / "results" / record).exists() for record in records)
    assert Path(colab.run("import companion; print(companion.__file__)").strip()).is_relative_to(colab.site)


@pytest.mark.slow
def test_on_colab_one_option_keeps_everything_on_the_drive(colab: Colab, address: str, tmp_path: Path) -> None:
    cell = setup_cell(address, "main").replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True")
    printed = colab.run(STAND_IN + DRIVE + RUN_CELL, f"{cell}\n{PLACES}", tmp_path)
    home = tmp_path / "identity-and-flow"
    assert printed.split()[-2:] == [str(home / "data"), str(home / "work")]
