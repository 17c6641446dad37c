"""Fixtures that every test may use: a device, a fixed seed, the image data, the built book in a browser."""

from __future__ import annotations

import functools
import gc
import http.server
import os
import random
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
import torch
import yaml
from jaxtyping import install_import_hook

# Before anything of the package is imported.
MEASURES = ("features", "flow", "information", "regularizers", "similarity")
install_import_hook([f"companion.{name}" for name in MEASURES], "shapes.checked")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
# Old addresses: pages that only lead on.
MOVED = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]["redirects"]
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts and path.relative_to(HTML).with_suffix("").as_posix() not in MOVED
)

# Small tensors gain nothing from threads, and where processes share the cores threads that wait for each other make
# them many times slower; `make test-kernels` takes two.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))

# How many seconds a test waits for another process before it takes it for hung: a busy machine is not a fault.
PATIENCE = 900

# The same examples everywhere: a test that passes here does not fail elsewhere by another draw.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test whose name holds an address in memory: processes that share the tests know it by other names."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"give these tests names by `ids=`: {unstable}")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no need to look through it for garbage again, as Python does now and then
    and statsmodels at each of its corrections."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that a numerical test runs on: the CPU always, CUDA where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the image data, named by COMPANION_DATA."""
    root = os.environ.get("COMPANION_DATA")
    if not root:
        pytest.skip("image data: set COMPANION_DATA to the folder that holds them")
    if not Path(root).is_dir():
        pytest.skip(f"image data: COMPANION_DATA={root} is no folder")
    return Path(root)


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address, ending in a slash, at which this machine serves the built book."""
    if not (HTML / "index.html").exists():
        _missing("the book is not built: run `make test-pages`, or `make book` first")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the tests report what matters."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium: $CHROMIUM, the system's, or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with sync_api.sync_playwright() as playwright:
        executable = next(filter(None, map(shutil.which, filter(None, names))), playwright.chromium.executable_path)
        if not Path(executable).exists():
            _missing(
                "no browser for the page tests. Get one by `sudo apt install chromium` or by `.venv/bin/playwright "
                "install chromium`, or name yours: CHROMIUM=/path/to/chrome"
            )
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        new_context = browser.new_context

        def patient(**options: Any) -> BrowserContext:
            context = new_context(**options)
            context.set_default_timeout(120_000)  # what never comes should not hold a page for longer
            return context

        browser.new_context = patient
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page, 1280 pixels wide, that shares nothing with another test's."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def of_each(pages: list[str]) -> pytest.MarkDecorator:
    """A test of each of these pages; what its fixtures make for a page serves all tests of that page."""
    return pytest.mark.parametrize("name", pages, scope="module")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist=loadgroup` a page's tests stay in one process; xdist 3.8's own marks do nothing in pytest 9.2."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByPage(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            page = re.search(r"[\w/]+\.html", nodeid)
            return page[0] if page else nodeid

    return ByPage(config, log)


def leave_math(context: BrowserContext) -> None:
    """Spare what typesets the math of a page, two thirds of its work, where a test looks at something else."""
    context.route("**/mathjax/*.js", lambda route: route.fulfill(body="", content_type="text/javascript"))


@functools.cache
def tags(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The tags of a built page with their attributes, in order."""
    found: list[tuple[str, dict[str, str]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, {name: value or "" for name, value in attrs}))

    Reader().feed(path.read_text())
    return found


def _missing(reason: str) -> None:
    """What the page tests need is not there: a failure in CI, a skip that says so elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
