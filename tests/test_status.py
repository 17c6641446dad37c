"""The page *Status*: as the stored notebooks and records are, and nothing on it that did not run."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from scripts import notebooks, status


def test_page_is_current() -> None:
    assert status.PAGE.read_text() == status.page(), "run: make status"


def test_the_page_on_running_lists_the_registry() -> None:
    (found,) = status.REGISTERED.findall(status.RUNNING.read_text())
    assert found == status.registered(), "run: make status"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of two notebooks, of which one has run, and no record."""
    (tmp_path / "_toc.yml").write_text(
        "parts:\n- chapters:\n  - file: book/intro\n  - file: notebooks/a\n  - file: notebooks/b\n"
    )
    (tmp_path / "notebooks").mkdir()
    for name, title in (("a", "It ran"), ("b", "It did not")):
        cells = [new_markdown_cell(f"# {title}\n\nWords."), new_code_cell("print(1 + 1)"), new_code_cell("")]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    notebooks.run(tmp_path / "notebooks" / "a.ipynb")
    return tmp_path


def test_an_execution_is_kept_and_shown_without_host_or_path(book: Path) -> None:
    notebook = nbformat.read(book / "notebooks" / "a.ipynb", as_version=4)
    seen = notebook.metadata["execution"]
    assert set(seen) == set(notebooks.KEPT) and 0 < seen["wall_seconds"] < 300
    text = (book / "notebooks" / "a.ipynb").read_text()
    assert str(book) not in text and str(ROOT) not in text
    assert platform.node() not in map(str, seen.values())

    (row,) = status.notebooks(book)
    assert row[0] == "[It ran](../notebooks/a.ipynb)" and row[1] == seen["started"][:10]
    assert str(seen["torch"]) in row[-1]
    page = status.page(book)
    assert "It did not" not in page and "`random_masks`" not in page and " 0 have records" in page


def test_what_was_not_kept_is_called_so(book: Path) -> None:
    path = book / "notebooks" / "a.ipynb"
    notebook = nbformat.read(path, as_version=4)
    del notebook.metadata["execution"]
    nbformat.write(notebook, path)
    (row,) = status.notebooks(book)
    assert row[1] == "not recorded"


def test_what_ran_out_of_order_or_in_part_did_not_run() -> None:
    """From top to bottom or not at all; a cell that the runner skips does not count."""
    for counts, tags, ran in (
        ([1, 2, 3], [], True),
        ([1, 3, 2], [], False),
        ([1, None, 2], [], False),
        ([1, None, 2], ["skip-execution"], True),
        ([None, None, None], [], False),
    ):
        cells = [new_code_cell("1 + 1", execution_count=count) for count in counts]
        cells[1].metadata["tags"] = tags
        assert status.executed(new_notebook(cells=cells)) == ran, counts


def test_a_run_takes_minutes_below_an_hour_and_its_last_day_counts() -> None:
    made = {"processor": "any", "accelerator": None, "torch": "2"}
    days = ("2026-01-02T00:00:00", "2026-01-03T00:00:00", "2026-01-01T00:00:00")

    def told(*seconds: float) -> list[str]:
        seen = [{**made, "started": day, "wall_seconds": one} for day, one in zip(days, seconds, strict=True)]
        return status.where([SimpleNamespace(provenance=one) for one in seen])

    assert told(600, 1200, 1770) == ["2026-01-03", "59.5 min", "any, torch 2"]
    assert told(600, 1200, 1800) == ["2026-01-03", "1.0 h", "any, torch 2"]


def test_seeds_are_counted_of_those_planned() -> None:
    rows = {name: counts for name, *counts in status.experiments()}
    assert rows["`published_cka`, paper"][:2] == ["7 of 7", "1 of 1"]
    for runs, seeds, *_ in rows.values():
        for done, planned in (map(int, counted.split(" of ")) for counted in (runs, seeds)):
            assert 0 < done <= planned
