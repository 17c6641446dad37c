"""`make test` and `make test-kernels`: every part runs and is reported, whatever becomes of the others."""

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
PARTS = {"test-package": "not pages", "test-notebooks": "--nbval-lax", "test-pages": "--all"}


def made(target: str, folder: Path, failing: str, *options: str) -> tuple[int, list[str], str]:
    """Exit status, the lines at the end, and what was called, of a target whose tools do nothing but fail or not."""
    log = folder / "log"
    for tool in ("python", "jupyter-book"):
        (folder / tool).write_text(STUB.format(log=log, failing=failing))
        (folder / tool).chmod(0o755)
    (folder / "installed").touch()
    variables = [f"BIN={folder}", f"INSTALLED={folder}/installed", f"BUILT={folder}/built"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
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
    assert [line.split()[:2] for line in said[-3:]] == [
        [part, "FAILED" if part == failing else "passed"] for part in PARTS
    ]


@pytest.mark.parametrize("failing", ["none", "COMPATIBLE"])
def test_kernels_run_and_are_reported(tmp_path: Path, failing: str) -> None:
    status, said, called = made("test-kernels", tmp_path, failing)
    ends = {line.split()[0]: line.split()[1] for line in said if line.split()[1:2] in (["passed"], ["FAILED"])}
    assert len(ends) == len(called.splitlines()) == 5
    assert ends["MKL_CBWR=COMPATIBLE"] == ("passed" if failing == "none" else "FAILED")
    assert [*ends.values()].count("FAILED") == (failing != "none") == bool(status)
