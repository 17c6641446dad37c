"""Write the API pages from the package: a section for each public module, an entry for each name in its `__all__`.

python scripts/api.py

A section begins with the first paragraph of the module's docstring, and whatever else there names a chapter or page.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import yaml

import companion
from companion._files import write_aside

ROOT = Path(__file__).resolve().parent.parent
CONTENTS = ROOT / "book" / "api.md"

# In the order in which data flow through the package: each page's title, and the parts of the package on it.
PAGES = {
    "data": ("Data, models, features", ("data", "models", "features", "blocks")),
    "looking": ("Similarity, information, flow", ("similarity", "information", "flow")),
    "sparsity": ("Pruning and regularizers", ("pruning", "regularizers")),
    "training": ("Training and measuring", ("training",)),
    "evidence": ("Experiments, records, claims", ("experiments",)),
    "pictures": ("Plots and widgets", ("plots", "widgets")),
}


# ------------------------------------------------------------------------------------------------- what there is to say
def modules() -> list[str]:
    """The public modules, in the order of the pages: parts of the package, and modules of a part that have `__all__`.

    Raises:
        ValueError: a part of the package that has no `__all__`, or is on no page.
    """
    parts = [info.name for info in pkgutil.iter_modules(companion.__path__) if not info.name.startswith("_")]
    order = [part for _, parts_of_page in PAGES.values() for part in parts_of_page]
    if lost := sorted(set(parts) - set(order)):
        raise ValueError(f"{lost} stand on no page: add them to PAGES in scripts/api.py")
    found = []
    for part in sorted(parts, key=order.index):
        module = importlib.import_module(f"companion.{part}")
        if not hasattr(module, "__all__"):
            raise ValueError(f"{module.__name__} needs `__all__`, or a name that begins with an underscore")
        found.append(module.__name__)
        inner = pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}.")
        names = [info.name for info in inner if not info.name.rpartition(".")[2].startswith("_")]
        found += [name for name in names if hasattr(importlib.import_module(name), "__all__")]
    return [name for name in found if entries(name)]


def entries(name: str) -> list[str]:
    """Functions and classes in the `__all__` of a module that the module above does not offer, file by file in order
    of definition."""
    module = importlib.import_module(name)
    things = {one: getattr(module, one) for one in module.__all__}
    if name.count(".") > 1:
        above = sys.modules[name.rpartition(".")[0]]
        offered = [getattr(above, one) for one in getattr(above, "__all__", ())]
        things = {one: thing for one, thing in things.items() if not any(thing is other for other in offered)}
    things = {one: thing for one, thing in things.items() if inspect.isfunction(thing) or inspect.isclass(thing)}
    lazy = "__getattr__" in vars(module)  # its contents come in the order in which they were asked for
    seen = sorted(things.values(), key=lambda thing: thing.__module__) if lazy else vars(module).values()
    files = list(dict.fromkeys(thing.__module__ for thing in seen if hasattr(thing, "__module__")))

    def place(one: str) -> tuple[int, int]:
        thing = things[one]
        return files.index(thing.__module__), inspect.getsourcelines(inspect.unwrap(thing))[1]

    return sorted(things, key=place)


def titles() -> dict[str, str]:
    """Chapters and pages of the book: title → path, relative to the API pages."""
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    found = {}
    for name in (chapter["file"] for part in parts for chapter in part["chapters"]):
        if (path := ROOT / f"{name}.ipynb").exists():
            text = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells[0].source
        else:
            text = (path := ROOT / f"{name}.md").read_text()
        if name.count("/") == 1:  # not the API pages
            found[text.partition("\n")[0].removeprefix("# ").strip()] = f"../../{path.relative_to(ROOT)}"
    return {title: path.replace("../../book/", "../") for title, path in found.items()}


def explained(module: ModuleType, pages: dict[str, str]) -> str:
    """The first paragraph of a module's docstring and its sentences that name a chapter or page, linked.

    Raises:
        ValueError: none does.
    """

    def link(title: re.Match[str]) -> str:
        name = " ".join(title[1].split())
        found = [path for full, path in pages.items() if full.lower().startswith(name.lower())]
        return f"[{name}]({found[0]})" if len(found) == 1 else title[0]

    first, *others = re.sub(r"(?<!\*)\*([^*`]+)\*(?!\*)", link, inspect.getdoc(module) or "").split("\n\n")
    sentences = [one for text in others for one in re.split(r"(?<=\.)\s+", text) if re.search(r"\]\(\.\./", one)]
    if not re.search(r"\]\(\.\./", text := " ".join([first, *sentences])):
        raise ValueError(f"the docstring of {module.__name__} names no chapter or page, as *Feature similarity*")
    return text


# ------------------------------------------------------------------------------------------------------------ the pages
def section(name: str, pages: dict[str, str]) -> str:
    """A module's section."""
    module = importlib.import_module(name)
    text = f"`{name}`. {' '.join(explained(module, pages).split())}"
    lines = [f"## {name.rpartition('.')[2].capitalize()}", "", *textwrap.wrap(text, 120, break_long_words=False), ""]
    lines += ["```{eval-rst}", f".. module:: {name}"]
    for one in entries(name):
        lines += ["", *directive(one, getattr(module, one))]
    return "\n".join([*lines, "```", ""])


def directive(name: str, thing: Any) -> Iterator[str]:
    """What documents one name; of a class whose fields have values, which have docstrings of their own, its methods."""
    if inspect.isfunction(thing):
        yield f".. autofunction:: {name}"
    elif issubclass(thing, BaseException):
        yield f".. autoexception:: {name}"
    else:
        yield f".. autoclass:: {name}"
        fields = {*getattr(thing, "_fields", ()), *getattr(thing, "__dataclass_fields__", ())}
        members = {one: value for one, value in vars(thing).items() if not one.startswith("_") and one not in fields}
        documented = [one for one, value in members.items() if value.__doc__ not in (None, type(value).__doc__)]
        if documented:
            yield f"   :members: {', '.join(documented)}" if fields & set(vars(thing)) else "   :members:"


def written() -> dict[Path, str]:
    """Every page: path → text."""
    found, pages = modules(), titles()
    texts, rows = {}, ["| page | modules |", "|---|---|"]
    for page, (title, parts) in PAGES.items():
        here = [name for name in found if name.split(".")[1] in parts]
        sections = [section(name, pages) for name in here]
        texts[CONTENTS.with_suffix("") / f"{page}.md"] = "\n".join([f"# {title}", "", *sections])
        rows.append(f"| [{title}](api/{page}.md) | {', '.join(f'`{name}`' for name in here)} |")
    first = ", ".join(f"`{name}`" for name in companion.__all__)
    first = textwrap.fill(f"These names come from the package itself, as in `from companion import cka`: {first}.", 120)
    head, _, _ = CONTENTS.read_text().partition("| page | modules |")
    head, _, _ = head.partition("These names come from")
    return {CONTENTS: "\n".join([head.rstrip(), "", first, "", *rows, ""]), **texts}


if __name__ == "__main__":
    for path, text in written().items():
        write_aside(path, text)
        print(path.relative_to(ROOT))
