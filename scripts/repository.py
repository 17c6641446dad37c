"""The repository's public address: set in `_config.yml`, written from there into every place that repeats it.

python scripts/repository.py                                  write the present address and the setup cells anew
python scripts/repository.py https://github.com/OWNER/NAME    move to another address
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import yaml

from companion._files import write_aside

PLACES = (
    "_config.yml",
    "pyproject.toml",
    "*.md",
    "CITATION.cff",
    "book/**/*.md",
    "notebooks/*.ipynb",
    ".github/**/*.yml",
)

# A notebook's first code cell. On Colab pip installs what is missing and, by its default, upgrades nothing that fits.
SETUP_CELL = """\
# On Colab this installs the book's package and leaves what is there as it is. Anywhere else it does nothing.
import sys

KEEP_ON_DRIVE = False  # True: images, checkpoints and records stay in your Google Drive, for the next session

if "google.colab" in sys.modules:
    %pip install --quiet "identity-and-flow[experiments] @ git+{url}@{branch}"
    if KEEP_ON_DRIVE:
        from companion.experiments.notebook import keep_on_drive

        keep_on_drive()"""


def repository(root: Path) -> tuple[str, str]:
    """The address and the branch that `_config.yml` under `root` states."""
    settings = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    return settings["url"], settings["branch"]


def setup_cell(url: str, branch: str) -> str:
    """The source of every notebook's first code cell."""
    return SETUP_CELL.format(url=url, branch=branch)


def colab_link(url: str, branch: str, notebook: str) -> str:
    """Where Colab opens `notebook`, a path relative to the repository's root."""
    return f"https://colab.research.google.com/github/{slug(url)}/blob/{branch}/{notebook}"


def slug(url: str) -> str:
    """`OWNER/NAME` of a GitHub address; `ValueError` for any other."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)/?", url)
    if not match:
        raise ValueError(
            f"got {url!r}; allowed: https://github.com/OWNER/NAME, because Colab opens notebooks from there"
        )
    return match[1]


def places(root: Path) -> list[Path]:
    """The files that may repeat the address."""
    return sorted({path for pattern in PLACES for path in root.glob(pattern)})


def write(root: Path, url: str) -> None:
    """Move every place under `root` to `url` and write the setup cell into every notebook that has one."""
    old, branch = repository(root)
    (old_owner, old_name), (owner, name) = slug(old).split("/"), slug(url).split("/")
    for path in places(root):
        before = path.read_text()
        after = re.sub(rf"(?<=\bgithub\.com/){re.escape(slug(old))}(?![\w-])", slug(url), before)
        after = re.sub(rf"(?<=google\.com/github/){re.escape(slug(old))}(?![\w-])", slug(url), after)
        after = re.sub(
            rf"\b{re.escape(old_owner)}\.github\.io/{re.escape(old_name)}(?![\w-])", f"{owner}.github.io/{name}", after
        )
        if after != before:
            write_aside(path, after)
    for path in sorted(root.glob("notebooks/*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        cell = first_code_cell(notebook)
        if cell and "google.colab" in cell.source and cell.source != setup_cell(url, branch):
            cell.source = setup_cell(url, branch)
            write_aside(path, nbformat.writes(notebook) + "\n")


def first_code_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The first code cell of a notebook, or None."""
    return next((cell for cell in notebook.cells if cell.cell_type == "code"), None)


def problems(root: Path) -> list[str]:
    """What does not follow the address in `_config.yml`, one line each."""
    url, branch = repository(root)
    found = []
    for place in ("README.md", "CITATION.cff", "pyproject.toml"):
        if url not in (root / place).read_text():
            found.append(f"{place} does not name {url}")
    for path in sorted(root.glob("notebooks/*.ipynb")):
        name = path.relative_to(root).as_posix()
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        cell = first_code_cell(notebook)
        if cell is None or cell.source != setup_cell(url, branch):
            found.append(f"{name}: the first code cell is not the setup cell")
        if colab_link(url, branch, name) not in notebook.cells[0].source:
            found.append(f"{name}: the first cell does not link to {colab_link(url, branch, name)}")
    return found


def main(arguments: list[str]) -> int:
    """Write the address (given, or the present one) everywhere; 1 if a place still disagrees."""
    root = Path(__file__).resolve().parent.parent
    try:
        write(root, arguments[0].removesuffix("/").removesuffix(".git") if arguments else repository(root)[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = problems(root)
    print("\n".join(found) or f"every place names {repository(root)[0]}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
