"""Where image data lie, and how a file is written: whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the image data: the argument, else the variable `COMPANION_DATA`, else `~/.cache/companion`.

    >>> str(data_root("pictures"))
    'pictures'
    """
    return Path(root or os.environ.get("COMPANION_DATA") or "~/.cache/companion").expanduser()


def write_aside(path: Path, content: str | bytes | Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all: the bytes go to a file aside, reach the disk, and only then take the name.

    Args:
        content: text (as UTF-8), bytes, or what writes them into an open file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_aside(Path(folder, "sub", "page.md"), "# A page")
    ...     print(Path(folder, "sub", "page.md").read_text(), len(list(Path(folder).rglob("*"))))
    # A page 2
    """
    if isinstance(content, str):
        content = content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = beside(path)
    try:
        with open(aside, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def filled_aside(folder: Path) -> Iterator[Path]:
    """A new folder aside that becomes `folder` when all is in it, unless another process was faster."""
    aside = beside(folder)
    aside.mkdir(parents=True)
    try:
        yield aside
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def beside(path: Path) -> Path:
    """A passing name, its own for each of several processes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def sweep(path: Path) -> None:
    """Remove what killed writers of this file left beside it: of `run` nothing that is of `run.pt`."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.part"):
        half.unlink()
