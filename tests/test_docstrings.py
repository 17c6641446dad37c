"""Docstrings have one style: a summary that ends with a period, and Google's sections, of few kinds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
from conftest import ROOT

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Warns")  # in this order
FILES = sorted(path for folder in ("companion", "scripts", "book/_ext") for path in (ROOT / folder).rglob("*.py"))


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Where each docstring of a file stands, and what it says."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', 'module')}", text


def faults(text: str) -> Iterator[str]:
    """What a docstring does otherwise."""
    summary = re.split(r"\n\n|\n(?=\w+:\n)", text)[0]
    if summary[-1] not in ".?:…`":  # a program or a name may follow the colon
        yield f"a summary without a period: {summary[-40:]!r}"
    headed = re.findall(r"^(\w[\w ]*):\n(?= {4}\S)", text, re.MULTILINE)
    headed += re.findall(
        r"^(Args|Arguments|Parameters|Returns?|Raises?|Attributes|Examples?|Notes?):\s", text, re.MULTILINE
    )
    if unknown := [one for one in headed if one not in SECTIONS]:
        yield f"sections {unknown}"
    known = [one for one in dict.fromkeys(headed) if one in SECTIONS]
    if known != sorted(known, key=SECTIONS.index):
        yield f"sections in the order {known}"
    if re.search(r"^[A-Z]\w+\n-{3,}$|^:(param|returns?|raises?|type)\b", text, re.MULTILINE):
        yield "another style's section"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_have_one_style(path: Path) -> None:
    assert not [f"{place}: {fault}" for place, text in docstrings(path) for fault in faults(text)]


def test_names_of_the_package_lead_somewhere() -> None:
    for path in FILES:
        for _, text in docstrings(path):
            for name in re.findall(r"`(companion(?:\.\w+)+)`", text):
                resolve_name(name)


def test_the_style_is_seen() -> None:
    """Each fault is found, and what is allowed is not one."""
    assert not list(faults("A sum.\n\nArgs:\n    x: one.\n\nReturns:\n    it.\n\nRaises:\n    ValueError: never."))
    for wrong in ("A sum", "A sum.\n\nArgs:\n    x: one.\n\nExample:\n    one", "A sum.\n\nParameters\n----------\nx"):
        assert list(faults(wrong)), wrong
    assert list(faults("A sum.\n\nRaises:\n    ValueError: never.\n\nArgs:\n    x: one.")), "order"
