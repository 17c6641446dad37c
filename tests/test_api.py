"""The API pages are written from what the package offers."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from pathlib import Path

import pytest
from code_links import source_address
from conftest import ROOT

import companion
from companion import flow
from scripts import api


def offered() -> set[str]:
    """Public functions and classes: what the public modules list in `__all__`."""
    return {f"{module}.{name}" for module in api.modules() for name in api.entries(module)}


@pytest.mark.slow
@pytest.mark.parametrize("path", [*sorted((ROOT / "book").glob("api*/*.md")), api.CONTENTS], ids=lambda path: path.stem)
def test_the_pages_are_those_that_the_package_writes(path: Path, pages: dict[Path, str]) -> None:
    assert path.read_text() == pages[path], "run `make api`"


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return api.written()


@pytest.mark.slow
def test_every_entry_leads_to_its_lines() -> None:
    """The lines of the address begin where the name is defined, or with its decorator."""
    address = functools.partial(source_address, "https://github.com/owner/name", "branch")
    methods = [("companion.features", "FeatureTap.remove"), ("companion.pruning", "Masks.report")]
    methods += [("companion.experiments.records", "Run.path"), ("companion.training", "History.frame")]
    for module, name in [*(full.rsplit(".", 1) for full in sorted(offered())), *methods]:
        found = re.fullmatch(
            r"https://github.com/owner/name/blob/branch/(.+)#L(\d+)-L(\d+)", address(module, name) or ""
        )
        assert found, f"{module}.{name}"
        lines = (ROOT / found[1]).read_text().splitlines()[int(found[2]) - 1 : int(found[3])]
        (defined,) = ast.parse(textwrap.dedent("\n".join(lines))).body
        assert getattr(defined, "name", "") == name.rpartition(".")[2]
    assert address("companion.experiments.records", "Run.seed") is None and address("", "seed") is None


@pytest.mark.slow
def test_a_new_name_reaches_its_page_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(x: int) -> int:
        """Two of it."""
        return 2 * x

    monkeypatch.setattr(flow, "doubled", doubled, raising=False)
    monkeypatch.setattr(flow, "__all__", [*flow.__all__, "doubled"])
    monkeypatch.setattr(doubled, "__module__", "companion.flow")
    assert ".. autofunction:: doubled\n" in api.written()[ROOT / "book" / "api" / "looking.md"]


@pytest.mark.parametrize("missing", ["__all__", "page", "chapter"])
def test_a_module_that_cannot_be_documented_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "__all__":
        monkeypatch.delattr(flow, "__all__")
    elif missing == "page":
        monkeypatch.setitem(api.PAGES, "looking", ("Looking", ("similarity", "information")))
    else:
        monkeypatch.setattr(flow, "__doc__", "Flow: a path.\n\nIt is *smooth*.")
    with pytest.raises(ValueError, match="flow"):
        api.written()


def test_names_that_people_type_first_come_from_the_package_itself() -> None:
    for name in companion.__all__:
        thing = getattr(companion, name)
        assert thing.__module__.startswith("companion.") and name in dir(companion)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = companion.nonsense


@pytest.mark.parametrize(
    "text", [(ROOT / name).read_text() for name in ("README.md", "book/recipes.md")], ids=("readme", "recipes")
)
def test_each_name_has_one_import_path(text: str) -> None:
    """What the package offers itself is not imported from its module."""
    found = re.findall(r"^from companion\.([\w.]+) import (.+)$", text, re.MULTILINE)
    assert not [name for _, names in found for name in names.split(", ") if name in companion.__all__]
