"""Make the PDF of the book, `_build/identity-and-flow.pdf`, by Sphinx and LaTeX.

python scripts/pdf.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from jupyter_book.config import get_final_config
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

import companion

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build" / "pdf"
PDF = ROOT / "_build" / "identity-and-flow.pdf"
STYLE = ROOT / "scripts" / "latexbook.sty"

COVER = "two_wishes.png"  # a picture of the intro, which stands beside the LaTeX

# Lists that serve a search or a click, and hardly a reader of paper.
LEFT_OUT = ["book/status", "book/api", *(f"book/api/{page.stem}" for page in (ROOT / "book" / "api").glob("*.md"))]

# Everything that the style asks of a TeX installation, by what a person has to type.
PACKAGES = (
    "texlive-xetex texlive-latex-extra texlive-fonts-recommended latexmk fonts-texgyre fonts-texgyre-math fonts-dejavu"
)
PROGRAMS = ("latexmk", "xelatex")
FONTS = ("TeX Gyre Pagella", "TeX Gyre Pagella Math", "DejaVu Sans", "DejaVu Sans Mono")

OVERFULL = 20  # points that something may stand out into the margin before the log is quoted


def missing() -> list[str]:
    """The programs and fonts that are not there."""
    programs = [name for name in PROGRAMS if not shutil.which(name)]
    if programs or not shutil.which("fc-list"):
        return programs
    families = subprocess.run(["fc-list", ":", "family"], capture_output=True, text=True, check=True).stdout
    known = {name.strip() for line in families.splitlines() for name in line.split(",")}
    return [f"the font {name}" for name in FONTS if name not in known]


def commit() -> tuple[str, str]:
    """Short name and date of the commit that the book is made from."""
    shown = subprocess.run(
        ["git", "log", "-1", "--format=%h %cd", "--date=format:%-d %B %Y"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    name, date = shown.stdout.strip().split(" ", 1)
    return name, date


def settings() -> dict[str, Any]:
    """Sphinx's settings: those of `_config.yml`, and what LaTeX needs."""
    config, _ = get_final_config(
        user_yaml=ROOT / "_config.yml", cli_config={"latex_individualpages": False}, sourcedir=ROOT
    )
    title, author = (config[key].replace("&", r"\&") for key in ("html_title", "author"))
    subtitle = re.findall(r"^\*(.+)\*$", (ROOT / "book" / "intro.md").read_text(), re.MULTILINE)[0]
    name, date = commit()
    return config | {
        "extensions": [name for name in config["extensions"] if name != "sphinx_jupyterbook_latex"] + ["latexbook"],
        "external_toc_path": str(ROOT / "_toc.yml"),
        "latexbook_left_out": LEFT_OUT,
        "release": companion.__version__,
        "today": date,
        # A table of pandas comes as HTML, too; `latexbook` makes it a table again.
        "nb_mime_priority_overrides": [("latex", "text/html", 25)],
        "latex_engine": "xelatex",
        "latex_documents": [("book/intro", "book.tex", title, author, "manual")],
        "latex_toplevel_sectioning": "chapter",
        "latex_additional_files": [str(STYLE)],
        "latex_domain_indices": False,
        "latex_table_style": ["booktabs"],
        "latex_elements": {
            "papersize": "a4paper",
            "pointsize": "10pt",
            "extraclassoptions": "openany,oneside",
            "geometry": r"\usepackage[a4paper,textwidth=160mm,textheight=235mm,centering]{geometry}",
            "releasename": "Version",
            "babel": r"\usepackage[english]{babel}",
            "fontpkg": "",
            "fncychap": "",
            "figure_align": "H",  # where the text has them; floats and framed code do not go together
            "makeindex": "",
            "printindex": "",
            "preamble": rf"\usepackage{{latexbook}}\newcommand\booksubtitle{{{subtitle}}}",
            "maketitle": rf"\booktitle{{{COVER}}}\aboutpdf{{{config['html_baseurl']}}}{{{name}}}",
            # Sphinx would call it after the first part.
            "tableofcontents": r"\renewcommand\contentsname{Contents}\sphinxtableofcontents",
        },
    }


def write_latex() -> Path:
    """Write the book as LaTeX; warnings are errors. Returns the file."""
    shutil.rmtree(BUILD / "latex", ignore_errors=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=ROOT,
            confdir=None,
            outdir=BUILD / "latex",
            doctreedir=BUILD / "doctrees",
            buildername="latex",
            confoverrides=settings(),
            warningiserror=True,
            keep_going=True,
        )
        app.build()
    if app.statuscode:
        raise SystemExit("The book has warnings, see above: no PDF.")
    return BUILD / "latex" / "book.tex"


def typeset(source: Path) -> str:
    """Run LaTeX until references stand still; returns its log."""
    command = ["latexmk", "-xelatex", "-interaction=nonstopmode", "-halt-on-error", "-silent", source.name]
    whole_lines = os.environ | {"max_print_line": "10000"}  # TeX breaks those of its log after 79 characters otherwise
    done = subprocess.run(command, cwd=source.parent, env=whole_lines, capture_output=True)
    log = source.with_suffix(".log").read_text(errors="replace")
    if done.returncode:
        raise SystemExit(f"LaTeX stopped. The end of {source.with_suffix('.log')}:\n{log[-3000:]}")
    return log


def faults(log: str) -> list[str]:
    """What a reader would miss or see cut off: characters without a glyph, broken links, what leaves the page."""
    found = [f"no glyph: {character}" for character in re.findall(r"Missing character: There is no (\S+)", log)]
    found += [f"no target: {name}" for name in re.findall(r"(?i)reference `(.+?)' on page", log)]
    over = re.findall(r"Overfull \\[hv]box \(([\d.]+)pt too (wide|high)\)", log)
    found += [f"{points} points too {way}" for points, way in over if float(points) > OVERFULL]
    return sorted(set(found))


def main() -> None:
    """Make the PDF, or say what is missing."""
    if lacking := missing():
        sys.exit(f"Missing: {', '.join(lacking)}. On Debian and Ubuntu: sudo apt install {PACKAGES}")
    log = typeset(write_latex())
    shutil.copy(BUILD / "latex" / "book.pdf", PDF)
    print(f"{PDF.relative_to(ROOT)}, {PDF.stat().st_size / 1e6:.1f} MB")
    if wrong := faults(log):
        sys.exit("The PDF is made, but has faults:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
