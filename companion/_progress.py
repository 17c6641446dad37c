"""Bars for work that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
        return iter(parts)
    if "ipykernel" in sys.modules:  # elsewhere `tqdm.auto` would load IPython to ask where it is
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return iter(tqdm(parts, what, total, leave=False, delay=PATIENCE))
