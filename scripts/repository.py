"""The repository's public address, and the version that readers run: set in `_config.yml`, written from there into
every place that repeats them.

python scripts/repository.py                                  write the present address and the setup cells anew
python scripts/repository.py https://github.com/OWNER/NAME    move to another address
python scripts/repository.py 1.2.0                            make the files those of release 1.2.0
"""

from __future__ import annotations

import datetime
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
# On Colab this installs the book's package. Anywhere else it does nothing.
import sys

KEEP_ON_DRIVE = False  # True: images and records stay in your Google Drive

if "google.colab" in sys.modules:
    %pip install --quiet "identity-and-flow[experiments] @ git+{url}@{version}"
    if KEEP_ON_DRIVE:
        from companion.experiments.notebook import keep_on_drive

        keep_on_drive()"""


def repository(root: Path) -> tuple[str, str]:
    """The address and the branch that `_config.yml` under `root` states."""
    settings = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    return settings["url"], settings["branch"]


def opened(root: Path) -> tuple[str, str]:
    """The address, and the version that Colab opens and installs: the tag of the last release, a branch before any."""
    theme = yaml.safe_load((root / "_config.yml").read_text())["sphinx"]["config"]["html_theme_options"]
    return repository(root)[0], theme["repository_branch"]


def setup_cell(url: str, version: str) -> str:
    """The source of every notebook's first code cell."""
    return SETUP_CELL.format(url=url, version=version)


def colab_link(url: str, notebook: str) -> str:
    """Where Colab opens the copy of `notebook`, a path relative to the repository's root, that needs no MyST.

    The workflow publishes the copies on a branch of their own (`book/_ext/plain_notebooks.py`).
    """
    return f"https://colab.research.google.com/github/{slug(url)}/blob/colab/{notebook}"


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


def write(root: Path, url: str, version: str | None = None) -> None:
    """Move every place under `root` to `url`, and to `version` what Colab opens and installs; write the setup cell into
    every notebook that has one."""
    old, last = opened(root)
    version = version or last
    (old_owner, old_name), (owner, name) = slug(old).split("/"), slug(url).split("/")
    for path in places(root):
        before = path.read_text()
        after = re.sub(rf"(?<=github\.com/{re.escape(slug(old))}@){re.escape(last)}\b", version, before)
        after = re.sub(rf"(?<=\n      repository_branch: ){re.escape(last)}(?=\n)", version, after)
        after = re.sub(rf"(?<=\bgithub\.com/){re.escape(slug(old))}(?![\w-])", slug(url), after)
        after = re.sub(rf"(?<=google\.com/github/){re.escape(slug(old))}(?![\w-])", slug(url), after)
        after = re.sub(
            rf"\b{re.escape(old_owner)}\.github\.io/{re.escape(old_name)}(?![\w-])", f"{owner}.github.io/{name}", after
        )
        if after != before:
            write_aside(path, after)
    for path in sorted(root.glob("notebooks/*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        cell = first_code_cell(notebook)
        if cell and "google.colab" in cell.source:
            cell.source = setup_cell(url, version)
            cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "hide-input"})
            if (text := nbformat.writes(notebook) + "\n") != path.read_text():
                write_aside(path, text)


def release(root: Path, version: str) -> None:
    """Make the files under `root` those of release `version`: version, date, and what Colab opens and installs.

    Raises:
        ValueError: CHANGELOG.md does not say what is new in it.
    """
    changes = root / "CHANGELOG.md"
    heading = f"## [{version}] - Unreleased"
    if heading not in changes.read_text():
        raise ValueError(f"got {version!r}; CHANGELOG.md has no section {heading!r} that says what is new")
    today = datetime.date.today().isoformat()
    for path, pattern, new in (
        (changes, re.escape(heading), f"## [{version}] - {today}"),
        (root / "companion" / "__init__.py", r'(?<=^__version__ = ")[^"]+', version),
        (root / "CITATION.cff", r"(?<=^version: ).+", version),
        (root / "book" / "citing.md", r"(?<=^  version = \{)[^}]+", version),
    ):
        write_aside(path, re.sub(pattern, new, path.read_text(), flags=re.MULTILINE))
    write(root, repository(root)[0], f"v{version}")


def first_code_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The first code cell of a notebook, or None."""
    return next((cell for cell in notebook.cells if cell.cell_type == "code"), None)


def problems(root: Path) -> list[str]:
    """What does not follow the address in `_config.yml`, one line each."""
    url, version = opened(root)
    found = []
    for place in ("README.md", "CITATION.cff", "pyproject.toml"):
        if url not in (root / place).read_text():
            found.append(f"{place} does not name {url}")
    for path in sorted(root.glob("notebooks/*.ipynb")):
        name = path.relative_to(root).as_posix()
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        cell = first_code_cell(notebook)
        if cell is None or cell.source != setup_cell(url, version):
            found.append(f"{name}: the first code cell is not the setup cell")
        elif "hide-input" not in cell.metadata.get("tags", []):
            found.append(f"{name}: the setup cell is not folded (tag `hide-input`)")
        if colab_link(url, name) not in notebook.cells[0].source:
            found.append(f"{name}: the first cell does not link to {colab_link(url, name)}")
    return found


def main(arguments: list[str]) -> int:
    """Write the address (given, or the present one) or a release everywhere; 1 if a place still disagrees."""
    root = Path(__file__).resolve().parent.parent
    given = arguments[0] if arguments else repository(root)[0]
    try:
        if re.fullmatch(r"\d+\.\d+\.\d+", given):
            release(root, given)
            print(f"now: git commit -am 'Release {given}' && git tag -a v{given} -m {given} && git push --follow-tags")
        else:
            write(root, given.removesuffix("/").removesuffix(".git"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = problems(root)
    print("\n".join(found) or "every place names {} and {}".format(*opened(root)))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
