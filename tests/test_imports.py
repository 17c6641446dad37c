"""Imports go one way: the library knows nothing of the experiments, and each of its parts only of those before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "companion"
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if "experiments" not in path.parts]
ORDER = [  # a part imports only parts before it
    ("_checks",),
    ("_registry", "_files", "_ranks"),
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
