"""Run notebooks as Colab does: each in its versions of the main packages, set up by its own first cell.

.venv-colab/bin/python scripts/colab.py notebooks/02_similarity.ipynb ...

`make colab` makes that environment from `tests/colab.txt`. Notebooks and package are those of the last commit, and the
address in the first cell is answered by this repository. What ran is kept in `_build/colab` under the commit: the next
call runs the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent

# What tells a notebook that it is on Colab: there, the kernel itself has loaded this module.
STAND_IN = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
"""


class Runtime:
    """A fresh environment in `folder` that has this one's packages, but not `companion`, and shows what pip adds."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        # Behind a .pth file, because pip changes nothing there: a cell that replaces torch is caught, not obeyed.
        self.preinstalled = folder / "preinstalled"
        self.preinstalled.mkdir()
        for item in Path(sysconfig.get_path("purelib")).iterdir():
            if not item.name.startswith(("identity_and_flow", "__editable__", "companion")) and item.suffix != ".pth":
                (self.preinstalled / item.name).symlink_to(item)
        where = (str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        self.site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
        (self.site / "preinstalled.pth").write_text(f"{self.preinstalled}\n")

    def added(self) -> set[str]:
        """What pip has added: the names in the environment's own folder of packages."""
        return {path.name for path in self.site.iterdir()} - {"preinstalled.pth"}


def git(*arguments: str | Path) -> str:
    """What a git command in this repository prints."""
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout


def surroundings(folder: Path, python: Path) -> dict[str, str]:
    """Environment variables for a kernel of `python` that takes itself for Colab's, and this repository for the public
    one; Jupyter knows it as "colab"."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    version = config["sphinx"]["config"]["html_theme_options"]["repository_branch"]
    bare = folder / "repository.git"
    git("init", "--quiet", "--bare", bare)
    git("push", "--quiet", bare, f"HEAD:refs/heads/{version}")
    startup, kernel = folder / "ipython" / "profile_default" / "startup", folder / "jupyter" / "kernels" / "colab"
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text(STAND_IN)
    kernel.mkdir(parents=True)
    start = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "Colab", "language": "python"}))
    hidden = ("COMPANION_DATA", "COMPANION_WORK", "COMPANION_RESULTS", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger warns of Python's frozen modules
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{bare.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": config["repository"]["url"],
    }


def warnings(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells of an executed notebook wrote to stderr, a line each."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [line for output in outputs if output.get("name") == "stderr" for line in output.text.splitlines()]


def main(names: list[str]) -> int:
    """Run the notebooks that have not run at this commit; 1 if one failed, or if pip replaced what was there."""
    kept = ROOT / "_build" / "colab" / git("rev-parse", "--short", "HEAD").strip()
    kept.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runtime = Runtime(folder)
        environment = surroundings(folder, runtime.python)
        os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
        for name in names:
            if (kept / Path(name).name).exists():
                print(f"{name}: ran before", flush=True)
                continue
            notebook, clock = nbformat.reads(git("show", f"HEAD:{name}"), as_version=4), time.perf_counter()
            try:
                NotebookClient(
                    notebook, timeout=900, kernel_name="colab", resources={"metadata": {"path": temporary}}
                ).execute(env=environment)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                failed.append(name)
                print(f"{name}: failed\n{error}", flush=True)
            else:
                nbformat.write(notebook, kept / Path(name).name)
                print(f"{name}: {time.perf_counter() - clock:.0f} s", flush=True)
            print("".join(f"  stderr: {line}\n" for line in warnings(notebook)), end="", flush=True)
        added = {name.partition("-")[0] for name in runtime.added() if name.endswith(".dist-info")}
    replaced = sorted(added & {line.partition("==")[0].replace("-", "_") for line in pins()})
    print(f"pip added {', '.join(sorted(added)) or 'nothing'}")
    if replaced:
        print(f"pip replaced what Colab has: {', '.join(replaced)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed or replaced))


def pins() -> list[str]:
    """The lines of `tests/colab.txt`, such as numpy==2.1.3."""
    lines = (ROOT / "tests" / "colab.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
