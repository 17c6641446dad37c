"""Notebooks that read anywhere: each chapter with what only MyST knows written out in plain Markdown.

Colab, Jupyter, VS Code and GitHub know neither roles nor directives. After the pages are built, numbers, references,
citations, theorems, exercises, captions and answers are written into copies of the chapters, with the numbers that the
pages show. The code cells stay byte for byte the chapters'. The copies replace the notebooks that the pages offer for
download; the workflow publishes them on the branch `colab`, where the Colab buttons lead.
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from companion.widgets import parts

FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?:\{(?P<name>[\w:-]+)\}[ ]*(?P<title>.*))?.*$")
OPTION = re.compile(r"^:([\w-]+):[ ]*(.*)$")
ROLE = re.compile(r"\{(?P<role>[\w:]+)\}`(?P<content>[^`]+)`")
LINK = re.compile(r"(?<=\]\()(?P<file>[\w./-]+\.(?:ipynb|md))?(?P<anchor>#[\w-]+)?(?=\))")
EQUATION = re.compile(r"^\$\$\n(?P<formula>(?:(?!\$\$).*\n)+)\$\$ \((?P<label>[\w-]+)\)", re.MULTILINE)
SOLUTION = re.compile(r"^```\{solution-(?:start|end)\}(.*)\n(?::.*\n)*```$", re.MULTILINE)
BADGE = re.compile(r"\[Open in Colab\]\([^)]*\)")
EXPLORABLE = re.compile(
    r'<figure class="explorable" id="explorable-([\w-]+)">.*?<figcaption>(.*?)</figcaption>\s*</figure>', re.S
)
# Where the workflow publishes the copies.
BRANCH = "colab"
LIVE = 'from companion.widgets import explorable\n\nexplorable("{}")'


class Book:
    """What the pages say: the number and the address of everything that has a label."""

    def __init__(self, env: BuildEnvironment) -> None:
        self.env, self.config = env, env.config
        self.site = str(env.config.html_baseurl)
        self.entries = {citation.key: citation for citation in env.domaindata["cite"]["citations"]}
        self.labels = env.domaindata["std"]["anonlabels"] | {
            label: (proof["docname"], label) for label, proof in env.proof_list.items()
        }
        self.numbers = {
            label: (kind, ".".join(map(str, number)))
            for kinds in env.toc_fignumbers.values()
            for kind, numbered in kinds.items()
            for label, number in numbered.items()
        }

    def address(self, page: str, anchor: str = "") -> str:
        return f"{self.site}{page}.html" + (f"#{anchor}" if anchor else "")

    def target(self, label: str, here: str) -> str:
        """Where a link to a label leads: to a place in this notebook, or to the site."""
        page, anchor = self.labels[label]
        return f"#{anchor}" if page == here else self.address(page, anchor)

    def number(self, label: str) -> str:
        """The words by which the pages call a theorem, an exercise or a figure: `Theorem 23`, `Fig. 60`."""
        kind, number = self.numbers[label]
        called = self.config.numfig_format.get(kind, f"{kind} %s") % number
        return called[0].upper() + called[1:]

    def equation(self, label: str) -> str:
        if self.config.math_numfig and self.config.numfig:
            return self.numbers[f"equation-{label}"][1]
        return str(self.env.domaindata["math"]["objects"][label][1])

    def cited(self, key: str, form: str) -> str:
        """A work as a link: `[Ni et al. (2023)](…)` in a sentence, `[Ni et al., 2023](…)` in brackets."""
        entry = self.entries[key].entry
        people, fields = entry.persons["author"], entry.fields
        names = [" ".join(map(str, person.rich_prelast_names + person.rich_last_names)) for person in people]
        authors = " and ".join(names) if len(names) < 3 else f"{names[0]} *et al.*"
        doi = f"https://doi.org/{fields['doi']}" if "doi" in fields else ""
        where = doi or fields.get("url") or self.address("book/references")
        said = f"{authors} ({fields['year']})" if form == "t" else f"{authors}, {fields['year']}"
        return f"[{said}]({where})"


class Chapter:
    """One chapter on its way into plain Markdown."""

    def __init__(self, book: Book, page: str, glued: dict[str, str]) -> None:
        self.book, self.page, self.glued = book, page, glued
        self.solution = ""

    # ------------------------------------------------------------------------------------------------ within a line
    def role(self, match: re.Match[str]) -> str:
        role, content = match["role"], match["content"]
        if role == "glue:text":
            return self.glued[content.partition(":")[0]]
        if role.startswith("cite:"):
            works = sorted(self.book.cited(key.strip(), role[-1]) for key in content.split(","))  # as on the pages
            return ", ".join(works) if role == "cite:t" else f"({'; '.join(works)})"
        if role == "eq":
            page, _ = self.book.env.domaindata["math"]["objects"][content]
            place = f"equation-{content}"
            where = f"#{place}" if page == self.page else self.book.address(page, place)
            return f"[({self.book.equation(content)})]({where})"
        if role.startswith("py:"):
            name = content.lstrip("~!")
            entry = self.book.env.domaindata["py"]["objects"][name]
            shown = name.rpartition(".")[2] if content.startswith("~") else name
            return f"[`{shown}`]({self.book.address(entry.docname, entry.node_id)})"
        named = re.fullmatch(r"(?P<text>.+?)\s*<(?P<label>[\w -]+)>", content, re.DOTALL)
        label = named["label"] if named else content
        if role == "term":
            page, place = self.book.env.domaindata["std"]["terms"][label.lower()]
            return f"[{named['text'] if named else content}]({self.book.address(page, place)})"
        if role in ("prf:ref", "numref") or label in self.book.numbers:
            text = named["text"].replace("%s", self.book.numbers[label][1]) if named else self.book.number(label)
        elif role == "ref":
            text = named["text"] if named else self.book.env.domaindata["std"]["labels"][label][2]
        else:
            raise ValueError(f"{self.page}: no plain words for the role {match[0]}")
        return f"[{text}]({self.book.target(label, self.page)})"

    def link(self, match: re.Match[str]) -> str:
        """Files of the repository are pages of the site."""
        if match["file"] is None:
            return match[0]
        folder = Path(self.page).parent
        path = (Path("/") / folder / match["file"]).resolve().relative_to("/").with_suffix("")
        return self.book.address(str(path), (match["anchor"] or "").lstrip("#"))

    def inline(self, text: str) -> str:
        text = re.sub(r"^\(([\w-]+)\)=\s*\n", r'<a id="\1"></a>\n\n', text, flags=re.MULTILINE)
        text = EQUATION.sub(self.numbered, text)
        text = BADGE.sub(f"[This chapter on the web]({self.book.address(self.page)})", text)
        return LINK.sub(self.link, ROLE.sub(self.role, text))

    def numbered(self, match: re.Match[str]) -> str:
        label = match["label"]
        return f"{anchor(f'equation-{label}')}\n\n$$\n{match['formula']}\\tag{{{self.book.equation(label)}}}\n$$"

    # --------------------------------------------------------------------------------------------------- directives
    def markdown(self, source: str) -> str:
        """The Markdown of a cell, or of what a directive holds."""
        written: list[str] = []
        plain: list[str] = []
        lines = iter(source.splitlines())
        for line in lines:
            opened = FENCE.match(line)
            if not opened:
                plain.append(line)
                continue
            inner = list(until_closed(lines, opened["fence"]))
            if opened["name"] is None:  # a block of code
                written += [self.inline("\n".join(plain)), "\n".join([line, *inner, opened["fence"]])]
            else:
                written += [self.inline("\n".join(plain)), self.directive(opened["name"], opened["title"], inner)]
            plain = []
        written.append(self.inline("\n".join(plain)))
        text = "\n\n".join(part.strip("\n") for part in written if part.strip())
        text = text.replace("\n\n---\n\n---\n\n", "\n\n---\n\n")
        return re.sub(r"\n\n---\n\n(\*Proof)", r"\n\n\1", text)

    def directive(self, name: str, title: str, lines: list[str]) -> str:
        options = {}
        while lines and (option := OPTION.match(lines[0])):
            options[option[1]] = option[2]
            lines = lines[1:]
        title, label = self.inline(title.strip()), options.get("label", "")
        if name == "list-table":
            return self.table(lines)
        body = self.markdown("\n".join(lines))
        if name == "prf:proof":
            return f"*Proof.*\n\n{body}\n\n---"
        if name.startswith("prf:"):
            called = self.book.number(label) if label else name[4:].capitalize()
            return f"---\n\n{anchor(label)}**{called}**{title and f' ({title})'}\n\n{body}\n\n---"
        if name == "exercise":
            return f"---\n\n{anchor(label)}**{self.book.number(label)}** ({title})\n\n{body}"
        if name == "dropdown":
            return details(title, body)
        if name in ("admonition", "note", "tip", "warning", "important"):
            return f"---\n\n**{title or name.capitalize()}**\n\n{body}\n\n---"
        raise ValueError(f"{self.page}: no plain Markdown for the directive {{{name}}}")

    def table(self, lines: list[str]) -> str:
        """A list-table as rows between pipes."""
        rows: list[list[str]] = []
        for line in lines:
            row = line.startswith("* -")
            if row or line.startswith("  -"):
                if row:
                    rows.append([])
                rows[-1].append(line[3:].strip())
            elif line.strip():
                rows[-1][-1] += " " + line.strip()
        cells = [[re.sub(r"\$[^$]+\$", without_bars, self.inline(cell)) for cell in row] for row in rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], ["---"] * len(cells[0]), *cells[1:]])

    # -------------------------------------------------------------------------------------------------------- cells
    def cells(self, notebook: NotebookNode) -> Iterator[NotebookNode]:
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                yield from self.prose(cell)
                continue
            tags = cell.metadata.get("tags", [])
            metadata: dict[str, Any] = {"tags": tags} if tags else {}
            if index <= 2 or self.solution or "hide-input" in tags:  # the first two cells of code set up and import
                metadata |= folded()
            if self.solution and cell.outputs:
                metadata["jupyter"]["outputs_hidden"] = True
            yield nbformat.v4.new_code_cell(
                cell.source, id=cell.id, outputs=cell.outputs, execution_count=cell.execution_count, metadata=metadata
            )
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if "caption" in figure:
                label = figure.get("name", "")
                called = f"**{self.book.number(label)}** " if label in self.book.numbers else ""
                text = f"{anchor(label)}{called}{self.inline(figure['caption'])}"
                yield nbformat.v4.new_markdown_cell(text, id=f"{cell.id[:50]}-caption")

    def with_solutions(self, source: str) -> str:
        """Markdown in which solutions are folded; one begins in one cell and ends in another."""
        texts = []
        for index, piece in enumerate(SOLUTION.split(source)):
            if index % 2:  # the exercise that a solution begins for, or nothing where one ends
                self.solution = piece.strip() and f"Solution to {self.book.number(piece.strip())}"
                continue
            text = self.markdown(piece)
            if text and self.solution:
                text = details(self.solution, text)
                self.solution = self.solution.removesuffix(", continued") + ", continued"
            texts.append(text)
        return "\n\n".join(filter(None, texts))

    def prose(self, cell: NotebookNode) -> Iterator[NotebookNode]:
        """A cell of text; an explorable in it becomes a cell of code that shows it."""
        pieces = EXPLORABLE.split(cell.source)
        for index in range(0, len(pieces), 3):
            if text := self.with_solutions(pieces[index]):
                yield nbformat.v4.new_markdown_cell(text, id=f"{cell.id[:50]}-{index}" if index else cell.id)
            if index + 1 < len(pieces):
                name, caption = pieces[index + 1].replace("-", "_"), re.sub(r"</?p>", "", pieces[index + 2])
                picture = {"image/png": base64.b64encode(parts(name).picture).decode()}
                shown = nbformat.v4.new_output("display_data", data=picture)
                yield nbformat.v4.new_code_cell(
                    LIVE.format(name), id=f"{cell.id[:50]}-live", outputs=[shown], metadata=folded()
                )
                yield nbformat.v4.new_markdown_cell(self.inline(caption), id=f"{cell.id[:50]}-said")


def until_closed(lines: Iterator[str], fence: str) -> Iterator[str]:
    """The lines up to the one that closes a fence."""
    for line in lines:
        if line.rstrip() and set(line.rstrip()) == {fence[0]} and len(line.rstrip()) >= len(fence):
            return
        yield line
    raise ValueError(f"a fence {fence} is never closed")


def anchor(label: str) -> str:
    return f'<a name="{label}" id="{label}"></a>' if label else ""


def details(summary: str, body: str) -> str:
    """Folded text; the empty lines let Markdown and formulas through."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def folded() -> dict[str, Any]:
    """A cell's metadata that fold its code, on Colab and in Jupyter."""
    return {"cellView": "form", "jupyter": {"source_hidden": True}}


def without_bars(formula: re.Match[str]) -> str:
    """A formula that a table's pipes do not cut."""
    return re.sub(r"\\\|", r"\\Vert ", formula[0]).replace("|", r"\vert ")


def glued(notebook: NotebookNode) -> dict[str, str]:
    """The values that the cells of a chapter have given names to."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
            if name:
                found[name] = ast.literal_eval(output["data"]["application/papermill.record/text/plain"])
    return found


def plain(notebook: NotebookNode, book: Book, page: str) -> NotebookNode:
    """A chapter as a notebook of plain Markdown.

    Raises:
        ValueError: it holds a role or a directive that has no plain form here.
    """
    return nbformat.v4.new_notebook(
        cells=list(Chapter(book, page, glued(notebook)).cells(notebook)),
        metadata={
            "kernelspec": notebook.metadata.kernelspec,
            "language_info": notebook.metadata.language_info,
            "colab": {"provenance": [], "toc_visible": True},
        },
    )


def write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    book = Book(app.env)
    for page in sorted(app.env.found_docs):
        source = Path(app.env.doc2path(page))
        if source.suffix == ".ipynb":
            notebook = plain(nbformat.read(source, as_version=4), book, page)
            nbformat.write(notebook, Path(app.outdir, "_sources", f"{page}.ipynb"))


def lead_to_copies(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The theme's Colab button opens the copy, not the chapter's source."""
    branch = app.config.html_theme_options["repository_branch"]
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if "colab" in button.get("url", ""):
                button["url"] = button["url"].replace(f"/blob/{branch}/", f"/blob/{BRANCH}/")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", lead_to_copies, priority=900)  # after the theme has made its buttons
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
