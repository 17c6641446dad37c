"""Every exercise's test takes the chapter's solution and refuses answers that are wrong.

`tests/exercises/NN_name.py` names the wrong answers of one chapter: `WRONG = {label: {mistake: answer}}`. An answer is
Python source that defines anew what the solution defines, run after it with the notebook's imports and with what the
exercise uses; or a pair `(old, new)`: the solution with that piece of its source replaced. `RIGHT`, of this form and
optional, holds other answers that must pass.
"""

from __future__ import annotations

import ast
import functools
import re
import runpy
import symtable
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from test_chapters import cells_of, every_chapter, prose

TABLES = sorted((ROOT / "tests" / "exercises").glob("*.py"))

Answer = str | tuple[str, str]


class Statement(NamedTuple):
    """A statement of a notebook's cell: its source, the names that it binds and those that it needs."""

    source: str
    binds: frozenset[str]
    needs: frozenset[str]


def statement(source: str) -> Statement:
    top = symtable.symtable(source, "cell", "exec")
    binds = {name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()}
    needs = {name.get_name() for name in top.get_symbols() if name.is_referenced()}
    inner = top.get_children()
    while inner:
        scope = inner.pop()
        inner += scope.get_children()
        needs |= {name.get_name() for name in scope.get_symbols() if name.is_global()}
    return Statement(source, frozenset(binds), frozenset(needs))


def statements(source: str) -> Iterator[Statement]:
    """The statements of a cell, without IPython's own commands."""
    source = re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        yield statement("\n".join(lines[first - 1 : node.end_lineno]))


def needed(statements: list[Statement], names: frozenset[str]) -> list[int]:
    """Which of these statements bind the names, and what those need in turn: the last one before it is used.

    What a function needs may be bound after it.
    """
    wanted, chosen = [(name, len(statements)) for name in names], set()
    while wanted:
        name, end = wanted.pop()
        binding = [number for number, one in enumerate(statements) if name in one.binds]
        before = [number for number in binding if number < end] or binding
        if before and before[-1] not in chosen:
            chosen.add(before[-1])
            wanted += [(name, before[-1]) for name in statements[before[-1]].needs]
    return sorted(chosen)


class Exercise(NamedTuple):
    """An exercise, cut out of its chapter: what its test needs, the solution, and the lines that test it."""

    names: dict[str, Any]
    solution: str
    call: str

    def take(self, answer: Answer = "") -> None:
        """Raise AssertionError if the test refuses the answer."""
        if isinstance(answer, tuple):
            assert answer[0] in self.solution, f"not in the solution: {answer[0]!r}"
            answer = self.solution.replace(*answer)
        for source in (self.solution, answer):
            exec(source, self.names)
        exec(self.call, self.names)


def labels(path: Path) -> list[str]:
    return re.findall(r"^```\{exercise\}.*\n:label: (\S+)$", prose(cells_of(path)), re.MULTILINE)


@functools.cache
def exercise(path: Path, label: str) -> Exercise:
    cells = cells_of(path)
    start = next(i for i, cell in enumerate(cells) if f":label: {label}\n" in cell.source)
    answer = next(i for i, cell in enumerate(cells) if f"```{{solution-start}} {label}\n" in cell.source)
    end = next(i for i, cell in enumerate(cells) if i > answer and "```{solution-end}" in cell.source)
    first = next(i for i, cell in enumerate(cells) if cell.source.startswith("```{exercise}"))
    earlier, asked, solved = (
        [one for cell in part if cell.cell_type == "code" for one in statements(cell.source)]
        for part in (cells[:first], cells[start:answer], cells[answer:end])
    )
    (test,) = {name for one in asked for name in one.binds if name.startswith("test_")}
    calls = [one for one in solved if one.source.startswith(f"{test}(")]
    given = [*earlier, *asked]
    everything = [*given, *solved[: solved.index(calls[-1])]]
    chosen = needed(everything, frozenset().union(*(one.needs for one in calls)))
    imports = {number for number, one in enumerate(given) if one.source.startswith(("import ", "from "))}
    names: dict[str, Any] = {"__name__": path.stem}
    for number in sorted(imports.union(chosen)):
        if number < len(given):
            exec(everything[number].source, names)
    solution = "\n\n".join(everything[number].source for number in chosen if number >= len(given))
    return Exercise(names, solution, "\n".join(one.source for one in calls))


def answers(table: Path, kind: str) -> dict[str, dict[str, Answer]]:
    return runpy.run_path(str(table)).get(kind, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "label"),
    [(t, name) for t in TABLES for name in answers(t, "WRONG")],
    ids=lambda x: x.stem if isinstance(x, Path) else x,
)
def test_an_exercise_takes_right_answers_and_refuses_wrong_ones(table: Path, label: str) -> None:
    one = exercise(ROOT / "notebooks" / f"{table.stem}.ipynb", label)
    one.take()
    for answer in answers(table, "RIGHT").get(label, {}).values():
        one.take(answer)
    wrong = answers(table, "WRONG")[label]
    assert len(wrong) >= 3
    for mistake, answer in wrong.items():
        with pytest.raises(AssertionError):
            one.take(answer)
            pytest.fail(f"accepted: {mistake}", pytrace=False)


@every_chapter
def test_every_exercise_of_a_chapter_has_wrong_answers(path: Path) -> None:
    table = ROOT / "tests" / "exercises" / f"{path.stem}.py"
    assert sorted(answers(table, "WRONG")) == sorted(labels(path))
