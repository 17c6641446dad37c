"""What holds the repository together: one address, one version, one environment."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

import companion
from companion.experiments import EXPERIMENTS
from scripts import repository

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of every file that may repeat the repository's address."""
    for path in repository.places(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def contents(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in repository.places(root)}


def test_every_place_follows_the_address() -> None:
    assert repository.problems(ROOT) == []


def test_a_new_address_reaches_every_place_and_an_old_one_comes_back(copy: Path) -> None:
    before, (old, _) = contents(copy), repository.repository(copy)
    new = "https://github.com/someone-else/an.other_place"
    repository.write(copy, new)
    assert repository.repository(copy)[0] == new
    assert repository.problems(copy) == []
    for name, text in contents(copy).items():
        assert repository.slug(old) not in text, name
        assert (repository.slug(new) in text) == (repository.slug(old) in before[name]), name
    repository.write(copy, old)
    assert contents(copy) == before


def test_a_place_that_does_not_follow_is_named(copy: Path) -> None:
    (copy / "CITATION.cff").write_text("cff-version: 1.2.0\n")
    assert repository.problems(copy) == [f"CITATION.cff does not name {repository.repository(copy)[0]}"]


def test_a_changed_setup_cell_is_found_and_written_anew(copy: Path) -> None:
    url, _ = repository.opened(copy)
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"[Open in Colab]({repository.colab_link(url, 'notebooks/99_new.ipynb')})"),
            nbformat.v4.new_code_cell("import sys\nif 'google.colab' in sys.modules: pass"),
        ]
    )
    (copy / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, copy / "notebooks" / "99_new.ipynb")
    assert repository.problems(copy) == ["notebooks/99_new.ipynb: the first code cell is not the setup cell"]
    repository.write(copy, url)
    assert repository.problems(copy) == []


def test_a_release_is_what_colab_opens_and_installs(copy: Path) -> None:
    (copy / "companion").mkdir()
    shutil.copy(ROOT / "companion" / "__init__.py", copy / "companion")
    url, before = repository.opened(copy)
    with pytest.raises(ValueError, match=r"'98.7.6'; CHANGELOG.md has no section"):
        repository.release(copy, "98.7.6")
    assert repository.opened(copy) == (url, before)
    for version in ("98.7.6", "98.7.7"):
        changes = copy / "CHANGELOG.md"
        changes.write_text(f"## [{version}] - Unreleased\n\n{changes.read_text()}")
        repository.release(copy, version)
        assert re.match(rf"## \[{version}\] - \d{{4}}-\d\d-\d\d\n", changes.read_text())
        assert repository.opened(copy) == (url, f"v{version}") and repository.problems(copy) == []
        assert repository.repository(copy) == repository.repository(ROOT)  # records and lines of code: as they are now
        assert f"{url}@v{version}" in (copy / "README.md").read_text()
        assert f"{url}@{before}" not in "".join(contents(copy).values())
        for path, said in {
            "companion/__init__.py": f'__version__ = "{version}"',
            "CITATION.cff": f"\nversion: {version}\n",
            "book/citing.md": f"version = {{{version}}}",
        }.items():
            assert said in (copy / path).read_text()


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b/c"]
)
def test_an_address_that_colab_cannot_open_is_refused(copy: Path, url: str) -> None:
    before = contents(copy)
    with pytest.raises(ValueError, match="allowed: https://github"):
        repository.write(copy, url)
    assert contents(copy) == before


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == companion.__version__
    assert f"## [{companion.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


def test_the_package_sets_lower_bounds_only() -> None:
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert [specifier.operator for specifier in requirement.specifier] == [">="], requirement


def test_the_environment_is_pinned_and_holds_what_the_project_asks_for() -> None:
    lines = (ROOT / "requirements.txt").read_text().replace("\\\n", "").splitlines()
    pins: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("#"):
            continue
        text, *hashes = re.split(r"\s+--hash=", line.strip())
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", file) for file in hashes), line
        (specifier,) = (requirement := Requirement(text)).specifier
        assert specifier.operator == "==", requirement
        pins.setdefault(canonical(requirement.name), []).append(specifier.version)
    extras = PROJECT["optional-dependencies"]
    for requirement in map(
        Requirement, [*PROJECT["dependencies"], *extras["experiments"], *extras["book"], *extras["test"]]
    ):
        if requirement.name == PROJECT["name"]:  # the extra of that name
            continue
        assert canonical(requirement.name) in pins, requirement
        assert all(version in requirement.specifier for version in pins[canonical(requirement.name)]), requirement
    assert pins["jupyter-book"] == ["1.0.4.post1"]


def test_the_code_in_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(re.sub(r"^%pip.*", "", code, flags=re.M), names)
    assert names["table"].shape == (8, 8)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda path: path.stem)
def test_workflows_make_targets_that_exist_by_actions_that_stay(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    called = {target for command in commands for target in re.findall(r"\bmake ([a-z-]+)", command)}
    assert called <= targets
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used), used  # a tag can be moved


def test_the_page_on_running_names_every_experiment() -> None:
    text = (ROOT / "book" / "running.md").read_text()
    assert [name for name in EXPERIMENTS if f"`{name}`" not in text] == []
