"""First contact: what an installation brings, what an import costs, and what a type checker sees."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = (
    *("jaxtyping", "lazy-loader", "matplotlib", "numpy", "pandas", "scipy", "torch", "torchmetrics"),
    *("torchvision", "tqdm"),
)
BLOCKED = ("IPython", "anywidget", "ipywidgets", "joblib", "patsy", "seaborn", "sklearn", "statsmodels", "traitlets")


def run(code: str, *arguments: str) -> list[str]:
    """The lines that a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# --------------------------------------------------------------------------------------------------------- a light base
def test_the_base_is_light() -> None:
    """What the package asks for by itself, and what that asks for in turn."""
    assert [Requirement(text).name for text in PROJECT["dependencies"]] == list(BASE)
    brought, wanted = set[str](), [Requirement(text) for text in PROJECT["dependencies"]]
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in brought and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            brought.add(name)
            wanted += map(Requirement, metadata.requires(name) or [])
    extra = {Requirement(text).name for text in PROJECT["optional-dependencies"]["experiments"]}
    assert not brought & (extra | {"ipython", "joblib", "patsy", "traitlets"})
    assert "filelock" in brought  # torch's own, and ours by that


@pytest.mark.slow
def test_without_the_extras_the_library_works_and_the_rest_says_which_is_missing() -> None:
    said = run(
        """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import companion
from companion import *
for found in pkgutil.walk_packages(companion.__path__, "companion."):
    if not found.name.startswith(("companion.experiments", "companion.plots", "companion.widgets")):
        importlib.import_module(found.name)

import torch
x = torch.randn(40, 3)
assert abs(cka(x, x) - 1) < 1e-6
assert mutual_information(x, x + torch.randn(40, 3), estimator="ksg").value > 0
net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
assert cka_map(net, x, torch.nn.Linear).shape == (2, 2)

parts = ("companion.experiments.statistics", "companion.plots")
for use in (companion.data.digits, *(lambda part=part: importlib.import_module(part) for part in parts)):
    try:
        use()
    except ModuleNotFoundError as error:
        print(error)
""",
        *BLOCKED,
    )
    assert len(said) == 3 and all('pip install "identity-and-flow[experiments]"' in line for line in said), said


# ---------------------------------------------------------------------------------------------------- what imports cost
@pytest.mark.slow
def test_importing_the_package_takes_no_time() -> None:
    code = """
import sys, time
begun = time.process_time()
import companion
print(time.process_time() - begun, *{"matplotlib", "numpy", "pandas", "torch"} & set(sys.modules))
"""
    assert min(float(line) for _ in range(3) for line in run(code)) < 0.2  # a loaded module would be no number


@pytest.mark.slow
def test_importing_cka_loads_no_more_than_it_needs() -> None:
    code = """
import sys
from companion import cka
print(*{"IPython", "matplotlib", "scipy", "torchmetrics", "torchvision"} & set(sys.modules))
"""
    assert run(code) == [""]


@pytest.mark.slow
def test_importing_cka_takes_little_more_than_importing_torch() -> None:
    code = """
import time
begun = time.process_time()
import torch
torch_alone = time.process_time() - begun
from companion import cka
print((time.process_time() - begun) / torch_alone)
"""
    assert min(float(line) for _ in range(3) for line in run(code)) <= 1.3


# ----------------------------------------------------------------------------------------------- what type checkers see
USER = """\
import torch

from companion import cka
from companion import ckaa

x = torch.randn(100, 8)
reveal_type(cka)
reveal_type(cka(x, x))
cka(x, x, unbiased="no")
"""


@pytest.mark.slow
def test_mypy_knows_the_names_of_an_editable_install(tmp_path: Path) -> None:
    """An editable install has to be a plain path: type checkers do not follow an import hook."""
    project = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "companion", project / "companion", ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, project)
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=project, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "user"], check=True)
    (site,), (wheel,) = (tmp_path / "user").glob("lib/*/site-packages"), tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "preinstalled.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "own.py").write_text(USER)
    mypy = [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={ROOT}/.mypy_cache/user"]
    mypy += [f"--python-executable={tmp_path}/user/bin/python", "own.py"]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True)
    said = [line.removeprefix("own.py:") for line in done.stdout.splitlines()]
    assert said[0].startswith('4: error: Module "companion" has no attribute "ckaa"'), said
    assert 'Revealed type is "def (x: torch._tensor.Tensor, y: torch._tensor.Tensor, *' in said[1], said
    assert said[2] == '8: note: Revealed type is "torch._tensor.Tensor"'
    assert said[3].startswith('9: error: Argument "unbiased" to "cka" has incompatible type "str"'), said
