"""The explorables of the book: their scripts for a page, and their data and first frames made anew.

python scripts/explorables.py [cka_map flow_path ...]

As an extension of Sphinx it puts each explorable into the page that has a figure of its name. A page opened from disk
may load a script, but neither a module nor JSON: so module and data become one script.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from companion.widgets import parts

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("book", "explorables")  # in the repository and in the built book
FIRST_PATH = 9  # the image that is shown first
FIGURE = re.compile(r'<figure class="explorable" id="explorable-([\w-]+)">')


def page_script(name: str) -> str:
    """The explorable as a script that draws into the page's figures of its name."""
    module, _, data, _ = parts(name)
    module = module.replace("export default ", "const explorable = ")
    page = (ROOT / FOLDER / "page.js").read_text(encoding="utf-8")
    shown = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f'"use strict";\n(() => {{\n{module}\n{page}\nshowOnPage(explorable, "{name}", {shown});\n}})();\n'


def write(name: str, site: Path) -> None:
    """Write script, style and picture of an explorable into the built book, where a page in its folder finds them."""
    folder = site / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("script.js").write_text(page_script(name), encoding="utf-8")
    folder.joinpath("style.css").write_text(parts(name).style, encoding="utf-8")
    folder.joinpath("picture.png").write_bytes(parts(name).picture)


def included(body: str, address: Callable[[str], str], site: Path) -> str:
    """A page's text with style and script before each explorable; they are written into `site`."""

    def with_files(figure: re.Match[str]) -> str:
        name = figure[1].replace("-", "_")
        write(name, site)
        style, script = (address((FOLDER / name / file).as_posix()) for file in ("style.css", "script.js"))
        return f'<link rel="stylesheet" href="{style}"><script src="{script}" defer></script>{figure[0]}'

    return FIGURE.sub(with_files, body)


def on_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    def address(path: str) -> str:
        return str(context["pathto"](path, 1))

    context["body"] = included(context.get("body", ""), address, Path(app.outdir))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", on_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ---------------------------------------------------------------------------------------------------- made anew
def data(name: str) -> dict[str, Any]:
    """The data of an explorable, from the records or from the cells of its chapter with the tag of its name.

    These cells are run as they stand, so there is no second version of them here.
    """
    from cells import tagged

    from companion.experiments import explorables, load_or_run, replay

    if name == "cka_map":
        records = load_or_run("published_cka", tier="paper")
        networks = ("resnet20", "resnet56", "resnet20-untrained", "resnet56-untrained")
        return explorables.cka_map_data([records.one(method=method) for method in networks])
    if name == "information_grid":
        return explorables.information_grid_data(load_or_run("information_grid"))
    if name == "penalty_strengths":
        return explorables.penalty_strengths_data(replay("dense_penalties_strengths"))
    if name == "block_sets":
        return explorables.block_sets_data(replay("block_subsets")[0])
    if name == "flow_path":
        names = tagged(ROOT / "notebooks" / "03_flow.ipynb", "flow-path")
        images, labels = (names[key][names["chosen"]] for key in ("images", "labels"))
        return explorables.flow_path_data(images, labels, names["shadows"], FIRST_PATH)
    if name == "cka_epochs":
        names = tagged(ROOT / "notebooks" / "06_identity_layers.ipynb", "cka-epochs")
        return explorables.cka_epochs_data(names["lives"])
    names = tagged(ROOT / "notebooks" / "05_sparse_training.ipynb", "mask-life")
    return explorables.mask_life_data(names["lives"], names["ink"])


def written(found: dict[str, Any]) -> str:
    """Data as their file holds them."""
    return json.dumps(found, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n"


def photograph(name: str, file: Path) -> None:
    """Draw the first frame in a browser, on white, and store it in 256 colours."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder, "page.html")
        figure = f'<figure class="explorable" id="explorable-{name.replace("_", "-")}"><div></div></figure>'
        body = included(figure, lambda path: path, Path(folder))
        page.write_text(f'<!doctype html><meta charset="utf-8"><body style="font-family: sans-serif">{body}')
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")  # None: playwright's own
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 800, "height": 900}, device_scale_factor=2, reduced_motion="reduce")
        tab.goto(page.as_uri())
        tab.locator(".explorable-view").screenshot(path=file)
        browser.close()
    Image.open(file).convert("RGB").quantize(256).save(file, optimize=True)


def main(names: list[str]) -> None:
    """Make data and first frame of these explorables, or of all."""
    for name in names or sorted(path.parent.name for path in (ROOT / FOLDER).glob("*/module.js")):
        folder = ROOT / FOLDER / name
        folder.joinpath("data.json").write_text(written(data(name)), encoding="utf-8")
        folder.joinpath("picture.png").touch()  # a new one has none to be read
        photograph(name, folder / "picture.png")


if __name__ == "__main__":
    main(sys.argv[1:])
