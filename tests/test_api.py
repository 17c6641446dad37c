"""The API page names everything that the package offers, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

from conftest import ROOT

import companion


def offered() -> set[str]:
    """Public functions and classes: what a package lists in `__all__`, what a module defines without an underscore."""
    names = set()
    for info in pkgutil.iter_modules(companion.__path__, "companion."):
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            own = info.ispkg or getattr(thing, "__module__", "") == info.name
            if own and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
                names.add(f"{info.name}.{name}")
    return names


def test_api_page_names_all_that_the_package_offers() -> None:
    named = set()
    module = ""
    for directive, name in re.findall(r"^\.\. (currentmodule|autofunction|autoclass):: (\S+)", text(), re.MULTILINE):
        if directive == "currentmodule":
            module = name
        else:
            named.add(f"{module}.{name}")
    missing, gone = sorted(offered() - named), sorted(named - offered())
    assert not missing and not gone, f"book/api.md lacks {missing}, and still has {gone}"


def test_every_module_says_where_it_is_explained() -> None:
    for section in text().split("\n## ")[1:]:
        assert re.search(r"\]\(\S+\.(md|ipynb)\)|[Cc]hapter", section.split("```")[0]), section[:80]


def text() -> str:
    return (ROOT / "book" / "api.md").read_text()
