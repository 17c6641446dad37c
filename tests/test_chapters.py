"""Every chapter was really run and follows the template of CONTRIBUTING.md, read from its notebook as it is stored."""

from __future__ import annotations

import ast
import functools
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat import NotebookNode

CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)

# What ends a chapter, in this order.
END = ("Summary", r"Which .+ when", "Quiz", "Exercises", "References and further reading")


@functools.cache
def cells_of(path: Path) -> list[NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def prose(cells: list[NotebookNode]) -> str:
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def sections(path: Path) -> dict[str, str]:
    """The prose under each heading of the second level."""
    parts = re.split(r"^## (.+)$", prose(cells_of(path)), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def printed(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def shows_a_picture(cell: NotebookNode) -> bool:
    stored = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    return stored or (cell.cell_type == "markdown" and '<figure class="explorable"' in cell.source)


@every_chapter
def test_the_first_cell_says_how_long_and_what_for(path: Path) -> None:
    first = cells_of(path)[0].source
    title, facts = [line for line in first.splitlines() if line][:2]
    assert title.startswith("# ")
    assert facts.startswith("[Open in Colab](") and re.search(r"· tier `(smoke|laptop|paper)`", facts)
    assert re.search(r"· about \d+ (s|min)\b.* on an? .*(AMD|Intel|Apple|ARM)", facts) or "CPU: not measured" in facts
    assert re.search(r"· GPU: (not measured|about \d+ (s|min)\b.* on an? NVIDIA)", facts)
    before = prose(cells_of(path)).partition("\n## ")[0] + "\n"
    (objectives,) = re.findall(r"^After this chapter you will be able to\n\n((?:- .+\n)+)", before, re.MULTILINE)
    goals = objectives.splitlines()
    assert 3 <= len(goals) <= 5 and all(goal.startswith("- **") for goal in goals), goals
    assert re.search(r"^\*\*You should know\*\* \S", before, re.MULTILINE)


@every_chapter
def test_a_chapter_opens_with_a_question_and_a_picture(path: Path) -> None:
    cells = cells_of(path)
    headings = [number for number, cell in enumerate(cells) if re.search(r"^## ", prose([cell]), re.MULTILINE)]
    assert "?" in cells[0].source + next(iter(sections(path))), "a question in the first lines or the first heading"
    assert any(map(shows_a_picture, cells[: headings[1]])), "a picture in the first section"


# ------------------------------------------------------------------------------------- as long as a reader has patience
WORDS_A_MINUTE = 100  # of a text with formulas, figures and code


def words(text: str) -> int:
    """Words of prose as they are read: a formula in the line, a number, a name in code, what a role shows: one each.

    Displayed formulas, code, addresses and options of directives are none.
    """
    text = re.sub(
        r"^```(?:bash|python)$.*?^```$", " ", text, flags=re.DOTALL | re.MULTILINE
    )  # a shell's $ is no formula
    text = re.sub(r"```\{math\}.*?```|\$\$.*?\$\$|^:\w+:[^\n]*$|\]\([^)]*\)", " ", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$[^$]*\$|\{[a-z:]+\}`[^`]*`|`[^`\n]+`|https?://\S+", " x ", text)
    return len(re.findall(r"[^\W_]+(?:[’'.,-][^\W_]+)*", text))


def test_words_counts_what_is_read() -> None:
    box = "```{prf:theorem} Short paths\n:label: thm-a\n\nLet $k_1 > 0$. The end's near.\n\n$$\na = b\n$$ (eq-a)\n```"
    assert words(f"## One\n\n{box}\n\nSee {{prf:ref}}`thm-a` [there](x.ipynb).") == 14
    assert words("One.\n\n```bash\nrun --shard $TASK\n```\n\nTwo, $x$, `x` and 1.5.") == 6


def text_without_exercises(path: Path) -> str:
    return re.split(r"^## Quiz$", prose(cells_of(path)), flags=re.MULTILINE)[0]


def is_folded(cell: NotebookNode) -> bool:
    return bool({"hide-input", "remove-input", "hide-cell", "remove-cell"} & set(cell.metadata.get("tags", [])))


@every_chapter
def test_a_chapter_is_no_longer_than_4000_words_and_says_how_long_it_takes(path: Path) -> None:
    assert words(prose(cells_of(path))) <= 4000
    facts = [line for line in cells_of(path)[0].source.splitlines() if line][1]
    minutes = int(re.search(r"· about (\d+) minutes to read ·", facts)[1])
    assert abs(minutes - words(text_without_exercises(path)) / WORDS_A_MINUTE) <= 4


# The one word of a chapter that shows records, in a visible cell; every reading of a record goes through it.
ONE_WORD = re.compile(r'^recorded = records_by\("replay"\)  # .*"run".*$', re.MULTILINE)


# The shortest way through the book: what `how_to_read.md` and README mark with ●.
CORE = {
    *("01_sparsity", "02_similarity", "03_flow", "04_which_blocks"),
    *("06_identity_layers", "09_feature_flow_regularization", "14_identity_meets_flow"),
}


@pytest.mark.parametrize("page", ["README.md", "book/how_to_read.md"])
def test_the_core_path_is_marked(page: str) -> None:
    linked = re.findall(r"(● )?(\d+) \[[^]]+\]\((?:\.\./)?notebooks/(\w+)\.ipynb\)", (ROOT / page).read_text())
    listed = re.findall(r"file: notebooks/(\w+)", (ROOT / "_toc.yml").read_text())
    assert {name: int(number) for _, number, name in linked} == {name: int(name[:2]) for name in listed}
    assert {name for mark, _, name in linked if mark} == CORE


def test_the_hours_of_the_core_path_are_those_of_its_chapters_and_core_exercises() -> None:
    path = [chapter for chapter in CHAPTERS if chapter.stem in CORE]
    texts = ["\n".join(cell.source for cell in cells_of(chapter)) for chapter in path]
    reading = sum(int(re.search(r"· about (\d+) minutes to read ·", text)[1]) for text in texts)
    core = sum(int(minutes) for text in texts for minutes in re.findall(r"^★{1,3} · (\d+) minutes · core$", text, re.M))
    numbers = {"two and a half": 2.5, "six": 6.0}
    for page in ("README.md", "book/how_to_read.md", "book/intro.md"):
        said = r"about (.+) hours of reading,\s+(\w+) with\s+the\s+exercises\s+marked\s+\*core\*"
        alone, both = re.search(said, (ROOT / page).read_text()).groups()
        assert abs(numbers[alone] - reading / 60) < 0.25, reading
        assert abs(numbers[both] - (reading + core) / 60) < 0.5, core


@every_chapter
def test_a_chapter_of_the_core_path_says_so(path: Path) -> None:
    facts = [line for line in cells_of(path)[0].source.splitlines() if line][1]
    assert ("minutes to read · core path ·" in facts) == (path.stem in CORE)


def test_the_book_is_no_longer_than_42000_words_and_its_core_path_than_20000() -> None:
    lengths = {path.stem: words(prose(cells_of(path))) for path in CHAPTERS}
    assert sum(lengths.values()) <= 42_000, lengths
    assert sum(lengths[name] for name in CORE) <= 20_000, lengths


@every_chapter
def test_one_visible_word_makes_the_records_of_a_chapter_anew(path: Path) -> None:
    code = [cell for cell in cells_of(path) if cell.cell_type == "code"]
    source = "\n".join(cell.source for cell in code)
    lines = ONE_WORD.findall(source)
    assert len(lines) == bool(re.search(r"\brecorded\b", ONE_WORD.sub("", source))), "the line, and what it reads"
    assert all(not is_folded(cell) for cell in code if ONE_WORD.search(cell.source)), "the line is seen"
    others = re.findall(
        r"\b(?:replay|load_or_run|records_by) *\(.*|\bmode *= *[\"'](?:replay|run)\b.*", ONE_WORD.sub("", source)
    )
    assert not others, f"records are read by `recorded(name)`: {others}"


@every_chapter
def test_the_first_screen_has_question_picture_and_finding(path: Path) -> None:
    """The picture comes within 250 words, and no code is seen before it, except the one word where it shows records."""
    cells = cells_of(path)
    picture = next(number for number, cell in enumerate(cells) if shows_a_picture(cell))
    before = cells[:picture]
    assert words(prose(before)) <= 250
    seen = [cell.source for cell in [*before, cells[picture]] if cell.cell_type == "code" and not is_folded(cell)]
    assert all(map(ONE_WORD.fullmatch, seen)), seen


@every_chapter
def test_no_visible_cell_is_longer_than_30_lines(path: Path) -> None:
    long = {
        number: len(cell.source.splitlines())
        for number, cell in enumerate(cells_of(path))
        if cell.cell_type == "code" and not is_folded(cell) and len(cell.source.splitlines()) > 30
    }
    assert not long, long


@every_chapter
def test_a_chapter_leads_into_the_readers_own_network(path: Path) -> None:
    """Few lines of code that do it there, and when not to."""
    own = sections(path)["In your own network"]
    code = re.findall(r"^```python\n(.+?)^```", own, re.MULTILINE | re.DOTALL)
    cells = cells_of(path)
    at = next(number for number, cell in enumerate(cells) if cell.source.startswith("## In your own network"))
    code += [cells[at + 1].source] * (cells[at + 1].cell_type == "code")
    assert code and all(len(one.strip().splitlines()) <= 8 for one in code)
    assert re.search(r"\b(not|no)\b", own), "when not to"


@every_chapter
def test_a_chapter_ends_with_what_is_known_and_which_method_when(path: Path) -> None:
    under = {title: text for title, text in sections(path).items() if not title.startswith("Appendix: ")}
    titles = list(under)[-len(END) :]
    assert all(map(re.fullmatch, END, titles)), titles
    summary, choice, _, _, references = list(under.values())[-len(END) :]
    assert len(re.findall(r"^- \S", summary, re.MULTILINE)) >= 3
    rows = re.findall(r"^(?:\||\* - ).+", choice, re.MULTILINE)
    assert len(rows) >= 4, "a table with a line for each case"
    assert "{cite" in references


@every_chapter
def test_a_quiz_has_three_questions_with_answers(path: Path) -> None:
    quiz = sections(path)["Quiz"]
    asked = re.findall(r"^\*\*(\d)\.\*\* (.+?)\n\n:::\{dropdown\} Answer\n(.+?)\n:::", quiz, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _, _ in asked] == list(range(1, len(asked) + 1)) and len(asked) >= 3
    assert quiz.count("{dropdown}") == len(asked)
    for _, question, answer in asked:
        assert "\n\n:::" not in question and len(answer.split()) >= 5


@every_chapter
def test_every_exercise_is_solved_and_the_solution_passes_its_test(path: Path) -> None:
    cells = cells_of(path)
    starts = [number for number, cell in enumerate(cells) if cell.source.startswith("```{exercise}")]
    assert 3 <= len(starts) <= 5
    for number, (start, end) in enumerate(pairwise([*starts, len(cells)]), start=1):
        exercise = cells[start].source
        (label,) = re.findall(r"^:label: (ex-\S+)$", exercise, re.MULTILINE)
        assert re.search(r"^★{1,3} · \d+ minutes(?: · core)?$", exercise, re.MULTILINE), label
        begins = next(i for i in range(start, end) if f"```{{solution-start}} {label}\n" in cells[i].source)
        ends = next(i for i in range(begins, end) if "```{solution-end}" in cells[i].source)
        assert ":class: dropdown" in cells[begins].source, label  # folded
        asked, solved = (
            [cell for cell in part if cell.cell_type == "code"] for part in (cells[start:begins], cells[begins:ends])
        )
        (test,) = {name for cell in asked for name in defined(cell) if name.startswith("test_")}
        assert any(f"{test}(" in cell.source for cell in solved), f"{label}: the solution does not call {test}"
        assert f"exercise {number}: passed" in "".join(map(printed, solved)), label


def defined(cell: NotebookNode) -> list[str]:
    """Functions that a cell defines."""
    return [node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]


def test_every_definition_and_theorem_can_be_referred_to() -> None:
    """Each has a number and a label that is nobody else's; each reference finds one."""
    named: list[str] = []
    for path in CHAPTERS:
        text = prose(cells_of(path))
        for kind, options in re.findall(r"^```\{prf:(\w+)\}.*\n((?::.*\n)*)", text, re.MULTILINE):
            labels = re.findall(r"^:label: (\S+)$", options, re.MULTILINE)
            assert ":nonumber:" not in options and (labels or kind == "proof"), (path.stem, kind, options)
            named += labels
    assert len(named) == len(set(named))
    everything = "".join(prose(cells_of(path)) for path in CHAPTERS)
    assert set(re.findall(r"\{prf:ref\}`(?:[^`<]*<)?([\w-]+)>?`", everything)) <= set(named)


@every_chapter
def test_a_figure_that_needs_a_kernel_has_a_picture_without_one(path: Path) -> None:
    """A widget's output stays out of the page, where an explorable or the picture of one setting stands before it."""
    cells = cells_of(path)
    for number, cell in enumerate(cells):
        if any(
            "application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell.get("outputs", [])
        ):
            assert "remove-output" in cell.metadata.get("tags", [])
            before = cells[number - 1]
            assert shows_a_picture(before), cell.source
            if before.cell_type == "markdown":
                (source,) = re.findall(r'<noscript><img src="(\S+)" alt="[^"]{40,}"', before.source)
                assert (path.parent / source).exists() and "<figcaption>" in before.source


def test_every_word_of_the_glossary_leads_to_where_it_is_explained() -> None:
    entries = re.split(r"\n\n(?=\S)", (ROOT / "book" / "glossary.md").read_text().partition("```{glossary}\n")[2])
    assert len(entries) > 50
    for entry in entries:
        (target,) = re.findall(r"^  → (?:\{prf:ref\}`\S+`, )?\[[^]]+\]\((\S+)\)$", entry, re.MULTILINE)
        path = (ROOT / "book" / target).resolve()
        text = prose(cells_of(path)) if path.suffix == ".ipynb" else path.read_text()
        assert re.search(re.escape(entry.splitlines()[0].split()[-1][:6]), text, re.IGNORECASE), entry


@every_chapter
def test_notebooks_are_stored_as_they_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    executed = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert executed == list(range(1, len(executed) + 1)), "run from top to bottom in a fresh kernel: `make notebooks`"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" or "raises-exception" in cell.metadata.get("tags", []), output
            assert output.get("name") != "stderr", output
            text = [output.get("text", ""), *(v for kind, v in output.get("data", {}).items() if "image" not in kind)]
            assert not re.search(r"/(home|root|tmp|Users)/", str(text)), output


@every_chapter
def test_figures_of_notebooks_say_what_they_show(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            settings = cell.metadata.get("mystnb", {})
            assert len(settings.get("image", {}).get("alt", "")) > 10, cell.source
            caption = settings.get("figure", {}).get("caption", "")
            assert len(caption.split()) > 3, cell.source
            if "explorable(" not in cell.source:
                assert caption.startswith("**"), f"a caption begins with what the figure shows, in bold: {caption}"
            assert "\\\\" not in caption, f"two backslashes break the line in the middle of a formula: {caption}"


def test_the_reading_map_names_every_chapter() -> None:
    contents = (ROOT / "_toc.yml").read_text()
    reading_map = (ROOT / "book" / "how_to_read.md").read_text()
    chapters = re.findall(r"file: (notebooks/\S+)", contents)
    assert chapters
    missing = [name for name in chapters if f"](../{name}.ipynb)" not in reading_map.replace("\n", " ")]
    assert not missing, "book/how_to_read.md, Three paths: link them"
