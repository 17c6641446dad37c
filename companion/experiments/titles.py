"""What a method is called in tables and figures: by its penalties, whose titles their registry holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from companion.experiments import controls
from companion.experiments.recipes import Part
from companion.experiments.studies.penalties import PENALISED

_NAMES = {kind.__name__: name for name, kind in controls.PENALTIES.items()}  # the placebos' too
_PARTS = {("length",): "length", ("curvature",): "curvature", ("length", "curvature"): "both"}


def title(penalties: Sequence[Part]) -> str:
    """The title of a training under these penalties.

    >>> title([]), title([Part("FeatureFlow", {"length": 0.1, "curvature": 0.1})])
    ('no penalty', 'FFR both')
    """
    first, *others = [_title(part) for part in penalties] or ["no penalty"]
    return " + ".join([first, *(other.removeprefix("FFR ") for other in others)])


def _title(part: Part) -> str:
    own = str(controls.PENALTIES.facts[_NAMES[part.kind]]["title"])
    terms = tuple(term for term in ("length", "curvature") if part.arguments.get(term))
    return f"{own} {_PARTS[terms]}" if terms else own


def _place(method: str) -> tuple[int, bool, int]:
    """By the number of penalties; those that read weights first; then as they are registered."""
    parts = PENALISED[method]["penalties"] if method != "none" else ()
    names = [_NAMES[part.kind] for part in parts]
    order = [*controls.PENALTIES]
    reads = [controls.PENALTIES.facts[name]["reads"] for name in names]
    return len(parts), "features" in reads, min(map(order.index, names), default=0)


TITLES: Mapping[str, str] = MappingProxyType(
    {method: title(PENALISED[method].get("penalties", ())) for method in sorted(PENALISED, key=_place)}
)
