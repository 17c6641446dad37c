"""`make test` and its like: every part runs and is reported, whatever becomes of the others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

STUB = """#!/bin/sh
echo "$MKL_CBWR" "$@" >> {log}
case "$MKL_CBWR $*" in *"{failing}"*) exit 1;; esac
"""
PARTS = {
    "test-package": "-m not (pages or long)",
    "test-kernels": "-m not (slow or long)",
    "test-notebooks": "--nbval-lax",
    "test-pages": "--all",
}


def made(target: str, folder: Path, failing: str, *options: str) -> tuple[int, list[str], str]:
    """Exit status, the lines at the end, and what was called, of a target whose tools do nothing but fail or not."""
    log = folder / "log"
    for tool in ("python", "jupyter-book"):
        (folder / tool).write_text(STUB.format(log=log, failing=failing))
        (folder / tool).chmod(0o755)
    (folder / "installed").touch()
    variables = [f"BIN={folder}", f"INSTALLED={folder}/installed", f"BUILT={folder}/built"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "MKL"))}
    done = subprocess.run(
        ["make", target, *options, *variables], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout.splitlines(), log.read_text()


@pytest.mark.parametrize("failing", [None, *PARTS])
@pytest.mark.parametrize("jobs", ["-j1", "-j3"])
def test_every_part_runs_and_is_reported(tmp_path: Path, failing: str | None, jobs: str) -> None:
    status, said, called = made("test", tmp_path, PARTS.get(failing or "", "none"), jobs)
    assert all(sign in called for sign in PARTS.values())
    assert (status == 0) == (failing is None)
    assert [line.split()[:2] for line in said[-len(PARTS) :]] == [
        [part, "FAILED" if part == failing else "passed"] for part in PARTS
    ]


@pytest.mark.parametrize("failing", ["none", "COMPATIBLE"])
def test_kernels_run_together_and_are_reported(tmp_path: Path, failing: str) -> None:
    status, said, called = made("test-kernels", tmp_path, failing)
    assert called.startswith("COMPATIBLE -m pytest") and len(called.splitlines()) == 1
    assert said[-1].split()[1] == ("passed" if failing == "none" else "FAILED") and bool(status) == (failing != "none")


@pytest.mark.parametrize("failing", ["none", "COMPATIBLE"])
def test_all_leaves_nothing_out_and_takes_every_kernel_by_itself(tmp_path: Path, failing: str) -> None:
    status, said, called = made("test-all", tmp_path, failing)
    assert "-m not pages " in called and " long)" not in called.replace(PARTS["test-kernels"], "")
    assert called.count(PARTS["test-kernels"]) == 5
    ends = {line.split()[0]: line.split()[1] for line in said if line.split()[1:2] in (["passed"], ["FAILED"])}
    assert len(ends) == 5 + len(PARTS) and not any("+" in name for name in ends)
    failed = {"MKL_CBWR=COMPATIBLE", "test-kernels"} if failing != "none" else set()
    assert {name for name, end in ends.items() if end == "FAILED"} == failed and bool(status) == bool(failed)


def test_quick_is_the_unit_tests_that_are_neither_slow_nor_long(tmp_path: Path) -> None:
    status, _, called = made("test-quick", tmp_path, "none")
    assert status == 0 and len(called.splitlines()) == 1 and "-m not (pages or slow or long)" in called
