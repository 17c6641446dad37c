"""Pictures of a page are fetched when the reader comes near; their size is known before, so that no text jumps.

A figure's file is finer than the page shows it: an inch of it is as wide as the book's style says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx

from companion.plots import STYLE


def lazily(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}

    def with_size(found: re.Match[str]) -> str:
        size = ""
        if " width=" not in found[0] and found[1].endswith(".png"):
            with Image.open(sources[found[1]]) as picture:
                finer = picture.info.get("dpi", (0,))[0] / STYLE["figure.dpi"] or 1
                width, height = (round(pixels / finer) for pixels in picture.size)
            size = f' width="{width}" height="{height}"'
        return f'{found[0]} loading="lazy"{size}'

    context["body"] = re.sub(r'<img\b[^>]*?\bsrc="[^"]*\b_images/([^"]+)"', with_size, context.get("body", ""))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", lazily)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
