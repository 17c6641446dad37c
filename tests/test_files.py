"""Files are written whole or not at all, everywhere: by one writer, which survives a kill at any moment."""

from __future__ import annotations

import ast
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from companion._files import filled_aside, write_aside
from companion.experiments.records import enlist, index, sha256
from companion.training import load_checkpoint, save_checkpoint

FORK = multiprocessing.get_context("fork")
MADE_ANEW = {  # builds and drawings: what the next call makes anew
    f"scripts/{name}.py"
    for name in (
        "colab",
        "explorables",
        "flow_path",
        "information_grid",
        "mask_life",
        "pdf",
        "penalty_strengths",
        "pictures",
    )
}
IN_PLACE = ("write_text", "write_bytes", "savefig", "imsave", "savez", "to_csv")


def dies(place: str, visit: int, act: Callable[[], object]) -> int:
    """How a process ends that dies where it calls `os.PLACE` for the `visit`-th time."""

    def child() -> None:
        real, left = getattr(os, place), [visit]

        def last(*args: object) -> object:
            left[0] -= 1
            return real(*args) if left[0] else os._exit(9)

        setattr(os, place, last)
        act()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    return process.exitcode or 0


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_kill_leaves_the_old_file(tmp_path: Path, place: str) -> None:
    path = tmp_path / "state.pt"
    write_aside(path, "old")
    assert dies(place, 1, lambda: write_aside(path, "new")) == 9
    assert path.read_text() == "old" and len(list(tmp_path.glob(".*.part"))) == 1
    write_aside(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"


@pytest.mark.parametrize("visit", [1, 2])
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_kill_inside_a_save_leaves_a_good_checkpoint(tmp_path: Path, place: str, visit: int) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    dies(place, visit, lambda: save_checkpoint(path, {"step": 3}))
    assert load_checkpoint(path)["step"] in (2, 3)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    def half(file: object) -> None:
        file.write(b"ha")  # type: ignore[attr-defined]
        raise error

    write_aside(tmp_path / "page.md", "old")
    with pytest.raises(error):
        write_aside(tmp_path / "page.md", half)
    with pytest.raises(error), filled_aside(tmp_path / "folder") as aside:
        (aside / "half").touch()
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"] and (tmp_path / "page.md").read_text() == "old"


def test_of_two_that_fill_a_folder_the_faster_one_stays(tmp_path: Path) -> None:
    with filled_aside(tmp_path / "folder") as slow:
        (slow / "by").write_text("slow")
        with filled_aside(tmp_path / "folder") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "folder" / "by").read_text() == "fast" and len(list(tmp_path.iterdir())) == 1


def test_several_runners_on_one_index_lose_nothing(tmp_path: Path) -> None:
    """Each enters its records, and changes one that another enters too."""
    shared = tmp_path / "shared.json"
    shared.write_text("0")

    def runner(number: int) -> None:
        for step in range(40):
            own = tmp_path / f"{number}-{step}.json"
            own.write_text(f"{number} {step}")
            write_aside(shared, own.read_text())
            enlist(tmp_path, [own, shared], anew=True)

    processes = [FORK.Process(target=runner, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert index(tmp_path) == {path.name: sha256(path) for path in tmp_path.glob("*.json")}
    assert len(index(tmp_path)) == 161


# -------------------------------------------------------------------------------------------------------- one writer
def in_place(path: Path) -> Iterator[str]:
    """Calls that write a file under its own name, or rename one by hand; writing into an open file is none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        called = ast.unparse(node.func)
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        into_file = bool({ast.unparse(arg) for arg in node.args} & {"file", "buffer"})
        modes = any(len(text) <= 3 and set("wax+") & set(text) for text in texts)
        moved = called in ("os.replace", "os.rename", "shutil.move", "shutil.copy", "shutil.copytree")
        written = name in IN_PLACE or called in ("torch.save", "np.save", "nbformat.write", "json.dump")
        if moved or (written and not into_file) or (name == "open" and modes):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {called}"


def test_nothing_but_the_one_writer_writes_in_place() -> None:
    files = [path for folder in ("companion", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [call for path in files if path.relative_to(ROOT).as_posix() not in MADE_ANEW for call in in_place(path)]
    found = [call for call in found if not call.startswith("companion/_files.py:")]
    assert not found, "use companion._files.write_aside"
    assert len(list(in_place(ROOT / "companion" / "_files.py"))) == 3  # the test sees what it looks for
