"""Refusals, in one wording: what was given, what is allowed, a hint."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def one_of(**choices: tuple[Any, Iterable[Any]]) -> None:
    """Refuse a choice that is not among those allowed.

    >>> one_of(norm=(3, (1, 2)))
    Traceback (most recent call last):
    ValueError: norm=3 is unknown; use one of [1, 2]
    """
    for name, (given, allowed) in choices.items():
        allowed = list(allowed)
        if given not in allowed:
            near = difflib.get_close_matches(given, map(str, allowed), n=1) if isinstance(given, str) else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name}={given!r} is unknown; use one of {allowed}{hint}")


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False, **values: float) -> None:
    """Refuse a number outside [low, high]; `open_low` and `open_high` leave that end out. NaN is outside.

    >>> between(0, 1, open_high=True, sparsity=1.0)
    Traceback (most recent call last):
    ValueError: sparsity=1.0 must lie in [0, 1)
    """
    for name, value in values.items():
        require_number(**{name: value})
        inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
        if not inside:
            raise ValueError(
                f"{name}={value!r} must lie in {'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
            )


def at_least(low: int, **counts: Any) -> None:
    """Refuse what is no whole number of at least `low`.

    >>> at_least(1, every=0)
    Traceback (most recent call last):
    ValueError: every=0 must be at least 1
    """
    for name, count in counts.items():
        if whole_number(**{name: count}) < low:
            raise ValueError(f"{name}={count!r} must be at least {low}")


def whole_number(**values: Any) -> int:
    """The one value as an `int`: Python's and NumPy's integers pass, everything else, a bool too, is refused.

    >>> whole_number(k=2.5)
    Traceback (most recent call last):
    ValueError: k=2.5 must be a whole number
    """
    ((name, value),) = values.items()
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={given(value)} must be a whole number") from None


def require_number(**values: Any) -> None:
    """Refuse what is no number: text, lists, bools, tensors of several numbers.

    >>> require_number(sparsity="half")
    Traceback (most recent call last):
    ValueError: sparsity='half' must be a number
    """
    for name, value in values.items():
        try:
            if isinstance(value, bool):
                raise TypeError
            float(value - 0)  # text is refused, too
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}={given(value)} must be a number") from None


def given(value: Any) -> str:
    """What was given, on one line of a message.

    >>> given("0.5"), given([[0.5, 0.25]] * 100)
    ("'0.5'", 'a list')
    """
    shown = repr(value)
    return shown if len(shown) <= 60 and "\n" not in shown else f"a {type(value).__name__}"


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around an import: say which of the package's extras brings a module that is not installed.

    >>> with extra("experiments"):
    ...     import seaborn_of_tomorrow
    Traceback (most recent call last):
    ModuleNotFoundError: No module named 'seaborn_of_tomorrow': pip install "identity-and-flow[experiments]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error}: pip install "identity-and-flow[{name}]"', name=error.name) from error
