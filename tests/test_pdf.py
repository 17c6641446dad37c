"""The PDF: what its Sphinx extension does to a small book, what its log is searched for, and what is missing."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from scripts import pdf

INDEX = """\
# A small book

Its first words.

```{toctree}
:caption: I · One & all
:numbered: 1

chapter
```

```{toctree}
:caption: Reference

lists
works
```
"""

CHAPTER = """\
# A chapter

{cite:p}`one`, and [a page that stays out](lists.md).

```{prf:theorem} Small
:label: thm-small

One is one.
```

```{prf:proof}
By looking. □
```

<figure class="explorable" id="explorable-dots">
<div><noscript><img src="_static/dots.png" alt="A dot."></noscript></div>
<figcaption><p>Move the dot.</p></figcaption>
</figure>

<table><thead><tr><th></th><th>share</th></tr><tr><th>name</th><th></th></tr></thead>
<tbody><tr><th>first</th><td>0.5</td></tr></tbody></table>

**1.** Is it?

:::{dropdown} Answer
It is.
:::

```{exercise} Two
:label: ex-two

Is {prf:ref}`thm-small` true of two?
```

```{solution-start} ex-two
:class: dropdown
```

Two is two.

```{solution-end}
```

## What follows

{ref}`Two & no more <ex-two>` is behind us.

Last words of the chapter.
"""

PAGES = {
    "index.md": INDEX,
    "chapter.md": CHAPTER,
    "lists.md": "# Lists\n\nLong lists.\n",
    "works.md": "# Works\n\n```{bibliography}\n```\n",
    "works.bib": "@book{one, author = {First, Ann}, title = {On One}, publisher = {Two}, year = {2001}}\n",
}


def written(folder: Path, chapter: str = CHAPTER) -> tuple[str, str]:
    """The small book as LaTeX, and what Sphinx warned of."""
    for name, text in (PAGES | {"chapter.md": chapter}).items():
        (folder / name).write_text(text)
    (folder / "_static").mkdir()
    shutil.copy(ROOT / "book" / "explorables" / "flow_path" / "picture.png", folder / "_static" / "dots.png")
    warnings = io.StringIO()
    config = {
        "extensions": [
            "myst_nb",
            "sphinx_design",
            "sphinx_exercise",
            "sphinx_proof",
            "sphinxcontrib.bibtex",
            "latexbook",
        ],
        "myst_enable_extensions": ["colon_fence"],
        "bibtex_bibfiles": ["works.bib"],
        "html_static_path": ["_static"],
        "html_baseurl": "https://book.example/",
        "latexbook_left_out": ["lists"],
        "latex_documents": [("index", "book.tex", "A small book", "Nobody", "manual")],
        "latex_engine": "xelatex",
        "numfig_secnum_depth": 1,
        "root_doc": "index",
    }
    with patch_docutils(), docutils_namespace():
        app = Sphinx(folder, None, folder / "out", folder / "trees", "latex", config, status=None, warning=warnings)
        app.build()
    return (folder / "out" / "book.tex").read_text(), warnings.getvalue()


@pytest.fixture(scope="module")
def latex(tmp_path_factory: pytest.TempPathFactory) -> str:
    source, warnings = written(tmp_path_factory.mktemp("small"))
    assert not warnings
    return source


def after(text: str, *marks: str) -> str:
    """The text behind these marks, which must come in this order."""
    for mark in marks:
        assert mark in text, mark
        text = text.partition(mark)[2]
    return text


def test_parts_and_chapters_stand_in_the_order_of_the_contents(latex: str) -> None:
    rest = after(latex, r"\chapter{Introduction}", "Its first words", r"\bookpart{I · One \& all}\numberedchapterstrue")
    rest = after(
        rest, r"\chapter{A chapter}", r"\bookpart{Reference}\numberedchaptersfalse", r"\chapter{Works}", "On One"
    )
    after(rest, r"\bookpart{Solutions}", r"\chapter{Solutions", r"\section{1 A chapter}")


def test_solutions_and_answers_stand_at_the_end_and_are_linked_both_ways(latex: str) -> None:
    chapter, _, end = latex.partition(r"\bookpart{Solutions}")
    assert "Two is two" not in chapter and "It is." not in chapter
    assert "It is." in after(end, r"\solution{Answer to quiz 1}")
    assert "Two is two" in after(end, r"\solution{", "Exercise 1.1 (Two)")
    forth = re.findall(r"\\tosolution\{\w+\}\{(.+?\})\}", chapter)
    solved = re.findall(r"\\solution\{[^}]*\}\{(.+?\})\}\{(.+?\})\}", end)
    assert len(forth) == 2 and forth == [here for _, here in solved]
    assert all(rf"\label{{{back}}}" in chapter for back, _ in solved)
    assert r"\section{What follows}" in chapter  # not one level deeper, as part of the solution


def test_theorem_and_exercise_stand_in_boxes_with_number_and_title(latex: str) -> None:
    assert re.search(r"\\begin\{bookbox\}\{Theorem 1\.1\}.*\n?.*\(Small\)", latex)
    assert re.search(r"\\begin\{bookbox\}\{\}.*\n?.*Exercise 1\.1 \(Two\)", latex)
    assert re.search(r"\\sphinxstyleemphasis\{Proof\.\} By looking", latex)
    assert "Theorem 1.1" in after(latex, "Exercise 1.1 (Two)").partition("true of two")[0]
    assert r"\hyperref[\detokenize{chapter:ex-two}]{Two \& no more}" in latex
    assert r"\label{\detokenize{chapter:ex-two}}" in latex


def test_an_explorable_is_its_picture_with_its_address(latex: str) -> None:
    figure = after(latex, r"\begin{figure}").partition(r"\end{figure}")[0]
    assert "{{dots}.png}" in figure and "Move the dot." in figure
    assert "https://book.example/chapter.html\\#explorable" in figure.replace(r"\sphinxhyphen{}", "-")


def test_a_table_in_html_is_a_table(latex: str) -> None:
    table = after(latex, r"\sphinxtoprule").partition(r"\sphinxbottomrule")[0]
    assert re.findall(r"name|share|first|0\.5", table) == ["name", "share", "first", "0.5"]


def test_a_page_that_stays_out_is_linked_on_the_web(latex: str) -> None:
    assert "Long lists" not in latex
    assert r"\sphinxhref{https://book.example/lists.html}" in latex


def test_other_raw_html_is_no_silent_loss(tmp_path: Path) -> None:
    _, warnings = written(tmp_path, CHAPTER + "\n<video src='film.mp4'></video>\n")
    assert "raw HTML that has no form in LaTeX" in warnings


def test_chapters_of_notebooks_are_numbered() -> None:
    for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]:
        notebooks = [chapter["file"].startswith("notebooks/") for chapter in part["chapters"]]
        assert ("numbered" in part) == any(notebooks) == all(notebooks), part["caption"]


def test_log_is_searched_for_what_a_reader_would_miss() -> None:
    log = (
        "Missing character: There is no ☃ in font TeX Gyre\n"
        "Overfull \\hbox (12.0pt too wide) in paragraph at lines 1--2\n"
        "Overfull \\hbox (99.5pt too wide) in paragraph at lines 3--4\n"
        "Overfull \\vbox (150.0pt too high) has occurred while \\output is active []\n"
        "LaTeX Warning: Hyper reference `book/glossary:x' on page 3 undefined on input line 7.\n"
    )
    assert pdf.faults(log) == [
        "150.0 points too high",
        "99.5 points too wide",
        "no glyph: ☃",
        "no target: book/glossary:x",
    ]
    assert not pdf.faults("Output written on book.pdf\n")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"Missing: latexmk, xelatex.*sudo apt install texlive-xetex"):
        pdf.main()


def test_workflows_and_contributing_install_the_same_packages() -> None:
    for name in (".github/workflows/weekly.yml", ".github/workflows/release.yml", "CONTRIBUTING.md"):
        assert pdf.PACKAGES in " ".join((ROOT / name).read_text().split()), name
