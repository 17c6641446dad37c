"""A registry: things registered where they are defined, under the name that people type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from companion._checks import one_of

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name → thing, in the order of registration. `facts[name]` holds what its registration says beside the name.

    >>> ESTIMATORS = Registry("estimator")
    >>> @ESTIMATORS.register("ksg", title="KSG")
    ... def ksg(x, y): ...
    >>> ESTIMATORS["ksg"] is ksg, ESTIMATORS.facts["ksg"]["title"]
    (True, 'KSG')
    >>> ESTIMATORS["kgs"]
    Traceback (most recent call last):
    ValueError: estimator='kgs' is unknown; use one of ['ksg']; did you mean 'ksg'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.facts: dict[str, Mapping[str, Any]] = {}
        self._things: dict[str, T] = {}

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """A decorator that adds what it decorates. A name that is taken is refused."""

        def add(thing: T) -> T:
            if name in self._things:
                raise ValueError(f"{self.kind} {name!r} is registered already, as {self._things[name]!r}")
            self._things[name] = thing
            self.facts[name] = facts
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        one_of(**{self.kind: (name, self._things)})
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
