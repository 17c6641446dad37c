"""Bars of work that takes long."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from companion import _progress


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What bars were made of, and how far each came."""
    bars: list[dict[str, Any]] = []

    class Bar:
        def __init__(self, **given: Any) -> None:
            bars.append({**given, "at": given["initial"], "open": True})

        def update(self) -> None:
            bars[-1]["at"] += 1

        def close(self) -> None:
            bars[-1]["open"] = False

    monkeypatch.setattr(_progress, "tqdm", Bar)
    return bars


def test_what_is_quick_makes_no_bar(made: list[dict[str, Any]]) -> None:
    """Not even a hidden one: a thousand of these in a cell flooded a notebook's channel with widgets."""
    assert [list(_progress.progress(range(3), "parts")) for _ in range(1000)] == [[0, 1, 2]] * 1000
    assert made == []


def test_a_bar_begins_where_the_work_is(made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    assert list(_progress.progress(range(5), "parts")) == [0, 1, 2, 3, 4]
    assert made == [{"desc": "parts", "total": 5, "initial": 2, "leave": False, "at": 5, "open": False}]


def test_a_bar_is_closed_by_an_error(made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "PATIENCE", 0)
    parts = _progress.progress(iter("abc"), "parts")
    next(parts)
    parts.close()
    assert [(bar["total"], bar["open"]) for bar in made] == [(3, False)]


def test_a_loader_without_a_length(made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(range(4))

    monkeypatch.setattr(_progress, "PATIENCE", 0)
    assert len(list(_progress.progress(DataLoader(Stream(), batch_size=2), "batches"))) == 2
    assert made[0]["total"] is None
