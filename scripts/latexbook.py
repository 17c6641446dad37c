"""Sphinx extension for the PDF: what LaTeX cannot take from a web page as it stands.

Solutions and quiz answers move into an appendix, and each links to its exercise and back. Explorables become their
pictures. Tables in HTML become tables. Folded code stays out, and links to pages that stay out lead to the web.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx import addnodes
from sphinx.builders.latex.nodes import thebibliography
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.texescape import escape
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_latex_number_reference, solution_node
from sphinx_proof.nodes import NODE_TYPES, proof_node

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.latex import LaTeXTranslator

logger = logging.getLogger(__name__)

WIDE = 7  # columns; a table with more is set in smaller type
BROAD = 45  # characters; a column is planned no wider
LONG = 8  # rows; a table with more may go on over the page's end


class of_page(nodes.Element):  # noqa: N801 docutils names its nodes so
    """What was moved away from the page `docname`, whose labels it keeps."""


def raw(latex: str) -> nodes.raw:
    """A node that is this LaTeX."""
    return nodes.raw("", latex, format="latex")


def label(docname: str, name: str) -> str:
    """The label by which Sphinx's LaTeX knows the target `name` of a page."""
    return rf"\detokenize{{{docname}:{name}}}"


def section(title: str, *children: nodes.Node) -> nodes.section:
    """A section with a title."""
    return nodes.section("", nodes.title(title, title), *children)


class HtmlIntoLatex(SphinxTransform):
    """While a page is read: raw HTML becomes a figure, if an explorable, or a table; any other is reported."""

    default_priority = 210  # before images are collected

    def apply(self, **kwargs: Any) -> None:
        """Replace every raw HTML node of the page."""
        for node in list(self.document.findall(nodes.raw)):
            html = BeautifulSoup(node.astext(), "html.parser")
            if "html" not in node["format"] or not html.find():
                continue
            if figure := html.select_one("figure.explorable"):
                node.replace_self(self.explorable(figure))
            elif table := html.find("table"):
                node.replace_self(table_node(table))
            else:
                logger.warning("raw HTML that has no form in LaTeX: %.60s", node.astext(), location=node)

    def explorable(self, figure: Tag) -> nodes.figure:
        """The picture of an explorable's first state, its caption, and where the figure itself stands."""
        picture, caption = figure.find("img"), figure.find("figcaption")
        assert isinstance(picture, Tag) and caption, "an explorable has a picture and a caption"
        address = f"{self.config.html_baseurl}{self.env.docname}.html#{figure['id']}"
        where = nodes.reference("", address.removeprefix("https://"), refuri=address)
        text = [nodes.Text(" ".join(caption.get_text().split()) + " The figure that answers: "), where, nodes.Text(".")]
        image = nodes.image("", uri=str(picture["src"]), alt=str(picture["alt"]))
        return nodes.figure("", image, nodes.caption("", "", *text), classes=["explorable"])


def table_node(table: Tag) -> nodes.table:
    """An HTML table, such as pandas prints, as a table of the document; the first column holds the rows' names."""
    rows = [[cell.get_text(strip=True) for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    count = len(table.select("thead tr"))
    # pandas gives the name of the index a row of its own below the columns' names.
    head = ["".join(column) for column in zip(*rows[:count], strict=True)]
    width = len(head)
    group = nodes.tgroup("", *(nodes.colspec("", colwidth=1) for _ in range(width)), cols=width)

    def row(cells: list[str]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph(cell, cell)) for cell in cells))

    group += nodes.thead("", row(head))
    group += nodes.tbody("", *(row(cells) for cells in rows[count:]))
    return nodes.table("", group)


class Arrange(SphinxPostTransform):
    """The assembled book, before it is written: parts, chapters, and solutions at the end."""

    default_priority = 30  # references are resolved, exercises and solutions have their titles
    formats = ("latex",)

    def run(self, **kwargs: Any) -> None:
        """Arrange the one document that holds all pages."""
        book = cast(nodes.section, self.document[0])
        parts = [node for node in book.findall(nodes.compound) if "toctree-wrapper" in node["classes"]]
        pages = [page for part in parts for page in part if isinstance(page, addnodes.start_of_file)]
        for page in pages:
            self.leave_out_folded_code(page)
            self.open_proofs(page)
        solutions = [found for page in pages if (found := self.solutions(page))]
        for part in parts:
            part.parent.remove(part)

        introduction = section("Introduction", *book[1:])
        book.children = [book[0]]
        book += [raw(r"\numberedchaptersfalse"), introduction]
        root = self.env.get_doctree(self.document["docname"])
        captions = {toc["includefiles"][0]: toc for toc in root.findall(addnodes.toctree)}
        for part in parts:
            toc = captions[part[0]["docname"]]
            numbered = "true" if toc.get("numbered") else "false"
            caption = escape(toc["caption"], self.config.latex_engine)
            book += raw(rf"\bookpart{{{caption}}}\numberedchapters{numbered}")
            book += [page for page in part if page["docname"] not in self.config.latexbook_left_out]
        if solutions:
            book += raw(r"\bookpart{Solutions}\numberedchaptersfalse")
            book += section("Solutions to quizzes and exercises", *solutions)
        self.fit_tables()

    def leave_out_folded_code(self, page: nodes.Element) -> None:
        """A figure is shown without the code that draws it: on the web page this code is folded."""
        for cell in list(page.findall(nodes.container)):
            if "tag_hide-input" in cell["classes"]:
                for child in [child for child in cell if "cell_input" in child["classes"]]:
                    cell.remove(child)

    def open_proofs(self, page: nodes.Element) -> None:
        """A proof comes as an admonition without a title, in which LaTeX would take the first letter for one."""
        for proof in page.findall(proof_node):
            proof.children = proof[0].children
            first = next(proof.findall(nodes.Text))
            rest = first.astext().removeprefix("Proof. ")
            first.parent.replace(first, [nodes.emphasis("", "Proof."), nodes.Text(f" {rest}")])

    def solutions(self, page: addnodes.start_of_file) -> nodes.section | None:
        """Take a page's solutions and quiz answers out of it, and leave a link to each; None if it has none."""
        docname = page["docname"]
        title = next(page.findall(nodes.title)).astext()
        number = ".".join(map(str, self.env.toc_secnumbers.get(docname, {}).get("", ())))
        moved = of_page(docname=docname)
        answers = [box for box in page.findall(nodes.container) if box.get("design_component") == "dropdown"]
        for count, answer in enumerate(answers, start=1):
            name, back = f"answer-{count}", f"quiz-{count}"
            answer.replace_self(link_to_solution("Answer", docname, name, back))
            moved += raw(rf"\solution{{Answer to quiz {count}}}{{{label(docname, back)}}}{{{label(docname, name)}}}")
            moved += answer[1:]
        exercises = {node["label"]: node for node in page.findall(exercise_enumerable_node)}
        for solution in list(page.findall(solution_node)):
            solution.parent.remove(solution)
            exercise, name = exercises[solution["target_label"]], solution["label"]
            exercise += link_to_solution("Solution", docname, name)
            moved += raw(r"\solution{")
            moved += exercise[0].deepcopy().children  # its number and title
            moved += raw(rf"}}{{{label(docname, exercise['label'])}}}{{{label(docname, name)}}}")
            moved += [child for part in solution[1:] for child in (part if isinstance(part, nodes.section) else [part])]
        return section(f"{number} {title}".strip(), moved) if moved.children else None

    def fit_tables(self) -> None:
        """Long tables go on over the page's end, columns as wide as their texts ask; wide tables are set smaller."""
        for table in list(self.document.findall(nodes.table)):
            columns, body = list(table.findall(nodes.colspec)), next(table.findall(nodes.tbody))
            if len(body) > LONG:
                table["classes"].append("longtable")
                if "colwidths-given" not in table["classes"]:  # LaTeX would not break their lines
                    table["classes"].append("colwidths-given")
                    for count, column in enumerate(columns):
                        cells = [row[count].astext() for row in table.findall(nodes.row)]
                        column["colwidth"] = max(min(len(cell), BROAD) for cell in cells) + 2
            if len(columns) > WIDE:
                place = table.parent.index(table)
                table.parent[place : place + 1] = [raw(r"\begingroup\widetable"), table, raw(r"\endgroup")]


def link_to_solution(word: str, docname: str, name: str, back: str = "") -> nodes.raw:
    """The line that stands where a solution stood; `back` is a name for the place itself."""
    here = rf"\phantomsection\label{{{label(docname, back)}}}" if back else ""
    return raw(rf"{here}\tosolution{{{word}}}{{{label(docname, name)}}}")


class LeadToTheWeb(SphinxPostTransform):
    """Links to pages that the PDF leaves out lead to the pages on the web."""

    default_priority = 300  # behind every extension that links
    formats = ("latex",)

    def run(self, **kwargs: Any) -> None:
        """Replace the addresses."""
        for reference in self.document.findall(nodes.reference):
            docname, _, name = reference.get("refuri", "").removeprefix("%").partition("#")
            if docname in self.config.latexbook_left_out:
                reference["refuri"] = f"{self.config.html_baseurl}{docname}.html" + (f"#{name}" if name else "")
                reference["internal"] = False


class Bibliography(SphinxPostTransform):
    """The list of works stands in the chapter that asks for it; Sphinx has put it behind everything."""

    default_priority = 800
    formats = ("latex",)

    def run(self, **kwargs: Any) -> None:
        """Move the list back to its page."""
        for works in list(self.document.findall(thebibliography)):
            works.parent.remove(works)
            home = works[0]["docname"]
            page = next(page for page in self.document.findall(addnodes.start_of_file) if page["docname"] == home)
            cast(nodes.section, page[0]).append(works)


def visit_box(self: LaTeXTranslator, node: nodes.Element) -> None:
    """A definition, a theorem, an exercise: a box with kind, number and title, which is the node's first child."""
    docname, name, kind = self.curfilestack[-1], node["ids"][0], node.get("countertype", "")
    number = ".".join(map(str, self.builder.env.toc_fignumbers.get(docname, {}).get(kind, {}).get(name, ())))
    heading = f"{node['realtype'].title()} {number}".strip() if kind else ""  # an exercise's title has both already
    self.body.append(f"\n\\begin{{bookbox}}{{{heading}}}{{{self.hypertarget(name)}}}")
    self.no_latex_floats += 1


def depart_box(self: LaTeXTranslator, node: nodes.Element) -> None:
    """Close the box."""
    self.body.append("\\end{bookbox}\n")
    self.no_latex_floats -= 1


def visit_reference_to_exercise(self: LaTeXTranslator, node: nodes.Element) -> None:
    """A link to an exercise in words of its own; the extension would name a target that no page has."""
    docname = self.builder.env.sphinx_exercise_registry[node["refid"]]["docname"]  # type: ignore[attr-defined]
    self.body.append(
        rf"\hyperref[{label(docname, node['refid'])}]{{{escape(node.astext(), self.config.latex_engine)}}}"
    )
    raise nodes.SkipNode


def visit_of_page(self: LaTeXTranslator, node: nodes.Element) -> None:
    """Labels are those of the page again."""
    self.curfilestack.append(node["docname"])


def depart_of_page(self: LaTeXTranslator, node: nodes.Element) -> None:
    """Back to where it stands now."""
    self.curfilestack.pop()


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls. `latexbook_left_out` names the pages that the PDF does without."""
    app.add_config_value("latexbook_left_out", [], "env", [list])
    app.setup_extension("sphinx_exercise")
    app.setup_extension("sphinx_proof")
    for boxed in (*NODE_TYPES.values(), exercise_enumerable_node):
        app.add_node(boxed, override=True, latex=(visit_box, depart_box))
    app.add_node(exercise_latex_number_reference, override=True, latex=(visit_reference_to_exercise, None))
    app.add_node(of_page, latex=(visit_of_page, depart_of_page))
    app.add_transform(HtmlIntoLatex)
    app.add_post_transform(Arrange)
    app.add_post_transform(LeadToTheWeb)
    app.add_post_transform(Bibliography)
    return {"parallel_read_safe": True}
