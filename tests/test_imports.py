"""Imports go one way: the library knows nothing of the experiments, and each of its parts only of those before it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import companion

PACKAGE = ROOT / "companion"
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if "experiments" not in path.parts]
ORDER = [  # a part imports only parts before it
    ("_checks",),
    ("_registry", "_files", "_numbers", "_ranks", "_weights"),
    ("_progress",),
    ("features",),
    ("blocks",),
    ("similarity", "flow"),
    ("blocks._effects",),
    ("blocks._removal",),
    ("information",),
    ("data",),
    ("models",),
    ("regularizers", "pruning", "training"),
    ("plots",),
    ("widgets",),
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere in it, also for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "companion":
            yield from (f"companion.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("companion."):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("companion."))


def part(module: str) -> str:
    """The file of a package where that has a place of its own, else the module right below the package."""
    below = module.split(".")[1:]
    return file if (file := ".".join(below[:2])) in RANK else below[0]


def name_of(path: Path) -> str:
    return ".".join(("companion", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_library_imports_one_way(path: Path) -> None:
    inside = part(name_of(path))
    for module in imported(path):
        assert part(module) != "experiments", f"{path.name} imports {module}"
        offered = path.name == "__init__.py" and module.startswith(f"companion.{inside}.")
        if inside != "__init__" and part(module) != inside and not offered:
            assert RANK[part(module)] < RANK[inside], f"{inside} imports {module}"


def test_every_part_of_the_library_has_its_place() -> None:
    assert {part(name_of(path)) for path in LIBRARY} - {"__init__"} == set(RANK)


MAGIC = re.compile(r"^( *)[%!](?=\w).*", re.MULTILINE)
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def programs() -> Iterator[tuple[str, str]]:
    """Everything that a reader may copy: where it stands, and its Python."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text())["cells"]):
            if cell["cell_type"] == "code":
                yield f"{path.name}, cell {number}", "".join(cell["source"])
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]:
        for number, program in enumerate(PROGRAM.findall(path.read_text())):
            yield f"{path.name}, program {number}", program


def test_a_name_has_one_import_path() -> None:
    """What the package itself offers is imported from it, in chapters, recipes and README."""
    seen, elsewhere = set(), []
    for place, source in programs():
        for node in ast.walk(ast.parse(MAGIC.sub(r"\1pass", source))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {alias.name for alias in node.names} & set(companion.__all__)
                if node.module == "companion":
                    seen |= names
                elif node.module.startswith("companion."):
                    elsewhere += [f"{place}: {name} of {node.module}" for name in sorted(names)]
    assert not elsewhere
    assert {"cka", "cka_map", "FeatureFlow", "prune_filters"} <= seen
