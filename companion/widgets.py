"""Explorables: figures that answer to the reader. They draw records, they never train.

Each is a folder of `book/explorables`: an ES module with `render({ model, el })`, its style, its data and a picture of
its first frame. Chapter *Feature similarity* has one, and six others.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from companion import _checks

__all__ = ["Parts", "explorable", "parts"]

_PACKAGE = Path(__file__).resolve().parent
_FOLDER = next(filter(Path.is_dir, (_PACKAGE.parent / "book" / "explorables", _PACKAGE / "explorables")), _PACKAGE)


class Parts(NamedTuple):
    """What an explorable consists of; module and style need nothing else."""

    module: str
    style: str
    data: dict[str, Any]
    picture: bytes


def parts(name: str) -> Parts:
    """The explorable of that name, with the book's data: the module's one import is replaced by what it imports.

    Raises:
        ValueError: there is none of that name.

    >>> parts("information_grid").data["state"]
    {'correlation': 5, 'pairs': 2}
    """
    _checks.one_of(name=(name, sorted(path.parent.name for path in _FOLDER.glob("*/module.js"))))
    module, style = ((_FOLDER / name / file).read_text(encoding="utf-8") for file in ("module.js", "style.css"))
    helpers, common = ((_FOLDER / f"explorable.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    helpers = re.sub("^export ", "", helpers, flags=re.MULTILINE)
    return Parts(
        re.sub(r'^import .+ from "\.\./explorable\.js";$', lambda _: helpers, module, flags=re.MULTILINE),
        f"{common}\n{style}",
        json.loads((_FOLDER / name / "data.json").read_text(encoding="utf-8")),
        (_FOLDER / name / "picture.png").read_bytes(),
    )


def explorable(name: str, **data: Any) -> Any:
    """The explorable in a live notebook; its picture where anywidget is missing or no kernel runs.

    `widget.state` is what it shows; another one may be assigned.

    Args:
        name: a folder of `book/explorables`, such as `"cka_map"`.
        data: what to show in place of the book's data, as the functions of `companion.experiments.explorables` make it.

    Raises:
        ValueError: there is none of that name, or it has no such data.

    >>> shown = explorable("information_grid", state={"pairs": 0, "correlation": 7})
    """
    module, style, own, picture = parts(name)
    for key in data:
        _checks.one_of(data=(key, own))
    try:
        import anywidget
        import traitlets
    except ImportError:
        from IPython.display import Image

        return Image(picture, retina=True)

    if "google.colab" in sys.modules:  # Colab shows no others' widgets before this
        from google.colab import output

        output.enable_custom_widget_manager()

    class Explorable(anywidget.AnyWidget):
        _esm, _css = module, style

        def __repr__(self) -> str:
            return f"explorable({name!r})"

        def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            """Beside the live view the picture, for readers without a kernel."""
            bundle, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
            return bundle | {"image/png": base64.b64encode(picture).decode()}, metadata

    # A class of its own name: anywidget keeps one style for each.
    synced = {key: traitlets.Any(data.get(key, value)).tag(sync=True) for key, value in own.items()}
    return type(name, (Explorable,), synced)()
