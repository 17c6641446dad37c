"""The notebooks' first cell: on Colab it adds the package and touches nothing else; elsewhere it does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

from scripts.repository import setup_cell

PREINSTALLED = ("torch", "torchvision", "numpy", "pandas", "matplotlib")

# Runs a cell as a notebook would: argument 1 is the cell, argument 2 says whether Colab's module is loaded.
RUN_CELL = """
import sys, types
from IPython.core.interactiveshell import InteractiveShell
if sys.argv[2] == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
shell = InteractiveShell.instance()
shell.run_cell(sys.argv[1]).raise_error()
sys.exit(shell.user_ns.get("_exit_code", 0))
"""

# What is installed: version, place and time of last change of each distribution's record.
INSTALLED = f"""
import importlib.metadata, json
found = map(importlib.metadata.distribution, {PREINSTALLED!r})
print(json.dumps([[d.version, str(d.locate_file("")), d._path.joinpath("RECORD").stat().st_mtime_ns] for d in found]))
"""


class Colab:
    """A fresh environment that sees this one's packages, torch among them, but not `companion`."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        # Behind a .pth file, because pip changes nothing there: a cell that replaces torch is caught, not obeyed.
        self.preinstalled = folder / "preinstalled"
        self.preinstalled.mkdir()
        for item in Path(sysconfig.get_path("purelib")).iterdir():
            if not item.name.startswith(("identity_and_flow", "__editable__", "companion")) and item.suffix != ".pth":
                (self.preinstalled / item.name).symlink_to(item)
        self.site = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (self.site / "preinstalled.pth").write_text(f"{self.preinstalled}\n")
        self.folder = folder

    def run(self, code: str, *arguments: str) -> str:
        """What a fresh process of the environment prints, started away from the checkout and without an index."""
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

    def added(self) -> set[str]:
        """What stands in the environment's own folder of packages."""
        return {path.name for path in self.site.iterdir()} - {"preinstalled.pth"}


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


def test_elsewhere_the_cell_does_nothing(colab: Colab, address: str) -> None:
    assert colab.run(RUN_CELL, setup_cell(address, "main"), "elsewhere") == ""
    assert colab.added() == set()


def test_on_colab_the_cell_adds_the_package_and_touches_nothing_else(colab: Colab, address: str) -> None:
    before = json.loads(colab.run(INSTALLED))
    assert {Path(place) for _, place, _ in before} == {colab.preinstalled}
    colab.run(RUN_CELL, setup_cell(address, "main"), "colab")
    assert json.loads(colab.run(INSTALLED)) == before
    assert {name.partition("-")[0] for name in colab.added()} == {"companion", "identity_and_flow"}
    records = [path.relative_to(ROOT / "book" / "results") for path in ROOT.glob("book/results/**/*.json")]
    assert all((colab.site / "companion" / "results" / record).exists() for record in records)
    assert Path(colab.run("import companion; print(companion.__file__)").strip()).is_relative_to(colab.site)
