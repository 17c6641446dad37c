"""Where image data lie, and how a file is written: whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the image data: the argument, else the variable `COMPANION_DATA`, else `~/.cache/companion`.

    >>> str(data_root("pictures"))
    'pictures'
    """
    return Path(root or os.environ.get("COMPANION_DATA") or "~/.cache/companion").expanduser()


def write_aside(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a passing name beside `path`, then rename it; a failure leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # its own for each of several processes
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
