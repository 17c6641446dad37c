"""The prose checker: it finds the words of its list in text, not in code; the book has none of them."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from scripts import prose


def test_the_book_has_none_of_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert prose.main([]) == 0, capsys.readouterr().out
    read = {path for pattern in prose.PAGES for path in prose.ROOT.glob(pattern)}
    assert read >= {
        prose.ROOT / "README.md",
        *prose.ROOT.glob("book/explorables/*.md"),
        *prose.ROOT.glob("notebooks/*.ipynb"),
    }


def test_words_are_found_in_text_and_not_in_code() -> None:
    text = "\n".join(
        [
            "Obviously, this is fine: `novel = 1` and [a link](https://example.org/novel).",
            "```python",
            "novel = 'of course'",
            "```",
            ":::{prf:theorem} Powerful",
            "A *crucial* step, and $novel$ mathematics.",
            ":::",
            "```{note}",
            "We utilise it.",
            "```",
            "```{math}",
            "novel",
            "```",
            "````",
            "```",
            "novel",
            "````",
            "The last line is robust, very simple, and just so.",
        ]
    )
    assert [(line, words) for line, words, _ in prose.findings(text)] == [
        (1, "Obviously"),
        (6, "crucial"),
        (9, "utilise"),
    ]


def test_every_word_of_the_list_has_its_advice() -> None:
    for words in ("of course", "delves", "State of the art", "it is worth noting", "surprisingly", "in order to"):
        ((line, found, advice),) = prose.findings(f"One line.\n\nAnd {words} here.")
        assert (line, found) == (3, words) and advice


def test_notebooks_are_read_cell_by_cell(tmp_path: Path) -> None:
    cells = [new_markdown_cell("# Title"), new_code_cell("# of course"), new_markdown_cell("Fine.\n\nOf course.")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    (found,) = prose.problems([tmp_path / "a.ipynb"])
    assert found.endswith("a.ipynb: cell 2, line 3: “Of course”: leave it out")
    assert prose.main([str(tmp_path / "a.ipynb")]) == 1
