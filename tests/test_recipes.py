"""The recipes of `book/recipes.md` are whole programs: each runs offline as it stands and prints what the page says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT

PAGE = (ROOT / "book" / "recipes.md").read_text()
RECIPES = {
    section.partition("\n")[0]: {
        language: re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        for language in ("python", "bash", "text")
    }
    for section in PAGE.split("\n## ")[1:]
}

OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}


def statements(program: str) -> int:
    """Lines of a program, without imports, comments and what is empty."""
    imported = {
        line
        for node in ast.parse(program).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(program.splitlines(), 1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" for number, line in lines if number not in imported)


def test_every_recipe_is_one_program_with_its_output() -> None:
    assert len(RECIPES) >= 10
    for name, blocks in RECIPES.items():
        assert len(blocks["python"]) == len(blocks["text"]) == 1, name
        assert statements(blocks["python"][0]) <= 25, f"{name}: too long to be read at a glance"
        assert max(map(len, blocks["python"][0].splitlines())) <= 88, f"{name}: wider than the column of a page"
    assert [name for name, blocks in RECIPES.items() if blocks["bash"]] == ["My DDP job"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_prints_what_the_page_says(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    for used, needed in (("lightning", "lightning"), ("torch.onnx", "onnxscript"), ("onnxruntime", "onnxruntime")):
        if used in recipe["python"][0]:
            pytest.importorskip(needed, reason=f"pip install {needed}")
    (tmp_path / "train.py").write_text(recipe["python"][0])
    command = [sys.executable, "-W", "ignore", "train.py"]
    for line in recipe["bash"]:
        program, *arguments = line.split()
        assert program == "torchrun"
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    environment = os.environ | OFFLINE | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "COMPANION_DATA": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == recipe["text"][0]
