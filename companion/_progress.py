"""Bars for work that takes long."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

from companion._ranks import rank

T = TypeVar("T")
PATIENCE = 5.0  # seconds; what ends sooner shows no bar


def progress(parts: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The parts, with a bar and an estimate of the time left, on rank 0, once they have taken five seconds. The
    environment variable TQDM_DISABLE=1 switches all bars off.

    >>> list(progress(range(3), "batches"))
    [0, 1, 2]
    """
    if rank() > 0:
        yield from parts
        return
    total = operator.length_hint(parts) or None if total is None else total
    started, bar = time.monotonic(), None
    try:
        for done, part in enumerate(parts):
            # No bar before it is due: in a notebook each is made of ten widgets, even one that is never shown.
            if bar is None and time.monotonic() - started >= PATIENCE:
                bar = tqdm(desc=what, total=total, initial=done, leave=False)
            yield part
            if bar is not None:
                bar.update()
    finally:
        if bar is not None:
            bar.close()
