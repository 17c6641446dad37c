"""The notebooks that readers open on Colab: the chapters, without what only MyST knows, and with nothing lost."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import HTML, PAGES, ROOT
from plain_notebooks import Chapter, details, without_bars

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
MYST = re.compile(r"\{[\w:-]+\}`|^[ ]*(?:`{3,}|:{3,})\{|^\([\w-]+\)=|^:[a-z]+: ", re.MULTILINE)

# What the page has beside its prose: formulas, code and what it shows, the theme's own words, and what stands where an
# explorable will be.
BESIDES = (
    "span.section-number, script, .math, .headerlink, .cell, .admonition-title, details > summary, .explorable > div"
)
PROSE = "p, td, th, h1, h2, h3, h4, li:not(:has(p))"


@pytest.fixture(scope="module")
def book() -> SimpleNamespace:
    """A book of one page, with a theorem, an exercise, an equation and a figure."""
    kinds = {"thm-one": ("theorem", "7.1"), "ex-one": ("exercise", "7.2"), "fig-one": ("figure", "7.3")}

    def number(label: str) -> str:
        kind, number = kinds[label]
        return f"{kind.capitalize()} {number}"

    return SimpleNamespace(
        numbers=kinds,
        number=number,
        equation=lambda label: "9",
        target=lambda label, here: f"#{label}",
        address=lambda page, anchor="": f"https://book/{page}.html" + (f"#{anchor}" if anchor else ""),
        cited=lambda key, form: f"[{key} ({form})](https://doi.org/{key})",
        env=SimpleNamespace(
            domaindata={
                "math": {"objects": {"eq-one": ("notebooks/01_one", 9)}},
                "std": {"terms": {"record": ("book/glossary", "term-record")}},
            }
        ),
    )


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("a {glue:text}`share` of it", "a 0.97 of it"),
        (
            "{cite:t}`ni2023` and {cite:p}`li2020, wu2021`",
            "[ni2023 (t)](https://doi.org/ni2023) and ([li2020 (p)](https://doi.org/li2020); [wu2021 (p)](https://doi.org/wu2021))",
        ),
        ("see {prf:ref}`thm-one`, {numref}`fig-one`", "see [Theorem 7.1](#thm-one), [Figure 7.3](#fig-one)"),
        ("by {eq}`eq-one`", "by [(9)](#equation-eq-one)"),
        ("{ref}`claim 9 <thm-one>`", "[claim 9](#thm-one)"),
        ("{term}`Records <record>`", "[Records](https://book/book/glossary.html#term-record)"),
        ("[there](../book/notation.md#sums)", "[there](https://book/book/notation.html#sums)"),
        ("[elsewhere](https://a.b/c.md)", "[elsewhere](https://a.b/c.md)"),
        ("$$\nx\n$$ (eq-one)", '<a name="equation-eq-one" id="equation-eq-one"></a>\n\n$$\nx\n\\tag{9}\n$$'),
        (":::{dropdown} Answer\nIt is $x$.\n:::", details("Answer", "It is $x$.")),
        (
            "```{prf:theorem} Small\n:label: thm-one\n\nBody.\n```\n\n```{prf:proof}\nClear. □\n```\n\nThen.",
            '---\n\n<a name="thm-one" id="thm-one"></a>**Theorem 7.1** (Small)\n\nBody.\n\n*Proof.*\n\nClear. □\n\n'
            "---\n\nThen.",
        ),
        ("```python\nf'{x}`{glue:text}`'\n```", "```python\nf'{x}`{glue:text}`'\n```"),
        (
            "```{list-table}\n:header-rows: 1\n\n* - a\n  - b\n* - $|x|$ is\n    long\n  - {glue:text}`share`\n```",
            "| a | b |\n| --- | --- |\n| $\\vert x\\vert $ is long | 0.97 |",
        ),
    ],
    ids=[
        "number",
        "citation",
        "reference",
        "equation's number",
        "link",
        "term",
        "page",
        "elsewhere",
        "equation",
        "answer",
        "theorem",
        "code",
        "table",
    ],
)
def test_plain_words(book: SimpleNamespace, source: str, written: str) -> None:
    assert Chapter(book, "notebooks/01_one", {"share": "0.97"}).markdown(source) == written


def test_a_solution_is_folded_over_all_its_cells(book: SimpleNamespace) -> None:
    chapter = Chapter(book, "notebooks/01_one", {})
    begun = chapter.with_solutions("```{solution-start} ex-one\n:class: dropdown\n```\n\nDrop them.")
    on = chapter.with_solutions("And so on.")
    over = chapter.with_solutions("Last.\n\n```{solution-end}\n```\n\nAfter.")
    assert begun == details("Solution to Exercise 7.2", "Drop them.")
    assert on == details("Solution to Exercise 7.2, continued", "And so on.")
    assert over == details("Solution to Exercise 7.2, continued", "Last.") + "\n\nAfter."


@pytest.mark.parametrize("source", ["{unknown}`x`", "```{unknown} x\n```", ":::{dropdown} Answer\nnever closed"])
def test_what_has_no_plain_form_stops_the_build(book: SimpleNamespace, source: str) -> None:
    with pytest.raises(ValueError, match=r"plain|closed"):
        Chapter(book, "notebooks/01_one", {}).markdown(source)


def test_a_formula_in_a_table_keeps_its_bars() -> None:
    assert without_bars(re.match(".*", r"$\|x\| + |y|$")) == r"$\Vert x\Vert  + \vert y\vert $"


def copy_of(name: str) -> Path:
    return HTML / "_sources" / Path(name).with_suffix(".ipynb")


@pytest.mark.pages
@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_is_the_chapters(name: str) -> None:
    """Cell by cell, byte for byte, with its outputs: what nbval says of the chapter holds of the copy."""
    chapter = nbformat.read(ROOT / Path(name).with_suffix(".ipynb"), as_version=4)
    copy = nbformat.read(copy_of(name), as_version=4)
    nbformat.validate(copy)
    ours = [(cell.source, cell.outputs) for cell in chapter.cells if cell.cell_type == "code"]
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    own = {cell.id for cell in chapter.cells}
    theirs = [(cell.source, cell.outputs) for cell in code if cell.id in own]
    assert theirs == ours
    figures = len(re.findall('<figure class="explorable"', "".join(cell.source for cell in chapter.cells)))
    assert len(code) - len(theirs) == figures
    assert all(cell.metadata["cellView"] == "form" for cell in code[:2])  # setup and imports are folded


@pytest.mark.pages
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_copy_reads_without_myst(name: str, browser: Browser, tmp_path: Path) -> None:
    """Rendered by Jupyter's own exporter: no role, no directive, no raw formula, and every paragraph of the page."""
    from nbconvert import HTMLExporter

    cells = nbformat.read(copy_of(name), as_version=4).cells
    left = [MYST.findall(cell.source) for cell in cells if cell.cell_type == "markdown"]
    assert not list(itertools.chain(*left))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your element with mimetype")  # numbers carried into the text show nothing
        body, _ = HTMLExporter(template_name="basic").from_filename(str(copy_of(name)))
    delimiters = "<script>MathJax = {tex: {inlineMath: [['$', '$']], processEscapes: true}}</script>"
    mathjax = f'<script src="{(HTML / "_static" / "mathjax" / "tex-chtml.js").as_uri()}"></script>'
    shown = tmp_path / "copy.html"
    shown.write_text(f'<!doctype html><meta charset="utf-8">{delimiters}{mathjax}{body}', encoding="utf-8")

    page = browser.new_page()
    page.goto(shown.as_uri(), timeout=120_000)
    page.evaluate("MathJax.startup.promise")
    formulas, wrong = page.locator("mjx-container").count(), page.locator("mjx-merror, [data-mjx-error]").count()
    page.evaluate(
        "document.querySelectorAll('pre, code').forEach(part => part.innerText.includes('$') && part.remove())"
    )
    page.evaluate("document.querySelectorAll('mjx-container').forEach(part => part.remove())")
    copied = page.locator("body").text_content() or ""
    page.close()
    assert not wrong and "$" not in copied

    article = BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser").select_one("article.bd-article")
    assert article and formulas >= len(article.select(".math")) > 0
    for part in article.select(BESIDES):
        part.extract()
    everything = words(copied)
    said = [part.text for part in article.select(PROSE)]
    assert [text for text in said if words(text) not in everything and "Open in Colab" not in text] == []
    assert len(said) > 50


def words(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"[\W_]+", "", text).lower()
