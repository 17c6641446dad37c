"""The API pages name everything that the package offers, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest
from conftest import ROOT

import companion


def offered() -> set[str]:
    """Public functions and classes: what a package lists in `__all__`, what a module defines without an underscore."""
    names = set()
    there = {info.name: info.ispkg for info in pkgutil.iter_modules(companion.__path__, "companion.")}
    there = {path: is_package for path, is_package in there.items() if not path.startswith("companion._")}
    evidence = ("claims", "hypotheses", "notebook", "published", "quantities", "records", "statistics")
    there |= {f"companion.experiments.{name}": False for name in evidence}
    for path, is_package in there.items():
        module = importlib.import_module(path)
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            own = is_package or getattr(thing, "__module__", "") == path
            if own and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
                names.add(f"{path}.{name}")
    return names


def test_api_pages_name_all_that_the_package_offers() -> None:
    named = set()
    module = ""
    entries = r"^\.\. (module|autofunction|autoclass|autoexception):: (\S+)"
    for directive, name in re.findall(entries, text(), re.MULTILINE):
        if directive == "module":
            module = name
        elif not name.startswith("companion."):  # a full path: what signatures refer to, not a name to import
            named.add(f"{module}.{name}")
    missing, gone = sorted(offered() - named), sorted(named - offered())
    assert not missing and not gone, f"the API pages lack {missing}, and still have {gone}"


def test_every_module_says_where_it_is_explained() -> None:
    for section in text().split("\n## ")[1:]:
        assert re.search(r"\]\(\S+\.(md|ipynb)\)|[Cc]hapter", section.split("```")[0]), section[:80]


def text() -> str:
    return "\n".join(page.read_text() for page in sorted((ROOT / "book" / "api").glob("*.md")))


def test_names_that_people_type_first_come_from_the_package_itself() -> None:
    for name in companion.__all__:
        thing = getattr(companion, name)
        assert thing.__module__.startswith("companion.") and name in dir(companion)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = companion.nonsense


def test_the_first_page_leads_to_every_module() -> None:
    """In the table there each module stands beside the page that documents it."""
    rows = re.findall(r"^\| \[.+?\]\((api/\w+\.md)\) \| (.+) \|$", (ROOT / "book" / "api.md").read_text(), re.MULTILINE)
    table = {module: page for page, modules in rows for module in re.findall(r"`([\w.]+)`", modules)}
    pages = sorted((ROOT / "book" / "api").glob("*.md"))
    there = {
        m: f"api/{p.name}" for p in pages for m in re.findall(r"^\.\. module:: (\S+)", p.read_text(), re.MULTILINE)
    }
    assert table == there
