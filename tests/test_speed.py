"""The page *Speed*: what the records of the benchmark say, its numbers recomputed from JSON by NumPy alone."""

from __future__ import annotations

import json
import platform
import re
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from scripts import speed

FOLDERS = sorted(path for path in (ROOT / "tests/benchmarks/records").iterdir() if path.is_dir())
RECORDS = {(path.name, file.stem): json.loads(file.read_text()) for path in FOLDERS for file in path.glob("*.json")}
LINES = [(where, line) for (where, _), made in RECORDS.items() for line in made.get("lines", [])]
COLUMNS = [
    [cell.strip() for cell in row.strip("|").split("|")]
    for row in speed.PAGE.read_text().splitlines()
    if row.startswith(("| `", "| a ", "| filters"))
]


def test_the_page_and_its_figure_are_current() -> None:
    assert speed.page() == speed.PAGE.read_text(), "python scripts/speed.py writes the page anew"
    with Image.open(speed.PICTURE) as picture:
        assert picture.info["Description"] == speed.digest(), "python scripts/speed.py draws it anew"


def test_the_figure_draws_medians_between_the_lowest_and_the_highest() -> None:
    """The picture in the book is compared by the numbers that it was made from; this is how they are drawn."""
    figure = speed.picture()
    for axis, (what, title) in zip(figure.axes, speed.CURVES.items(), strict=True):
        assert axis.get_xlabel() == title and axis.get_ylim()[0] == 0
        for drawn, folder in zip(axis.containers, FOLDERS, strict=True):
            points = RECORDS[folder.name, "growth"]["curves"][what]
            low, middle, high = np.quantile([point["ratios"] for point in points], [0, 0.5, 1], axis=1)
            line, _, (bars,) = drawn.lines
            np.testing.assert_allclose(line.get_xydata(), np.stack([[point["at"] for point in points], middle], 1))
            np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], np.stack([low, high], 1))


def test_every_record_says_where_and_has_five_rounds() -> None:
    assert {part for _, part in RECORDS} == set(speed.PARTS)
    assert len(RECORDS) == len(FOLDERS) * len(speed.PARTS) and len(FOLDERS) >= 2  # the aims are for two processors
    for (folder, _), made in RECORDS.items():
        points = [point for curve in made.get("curves", {}).values() for point in curve] + made.get("lines", [])
        assert made["rounds"] == 5 and {len(one["ratios"]) for one in points} == {5}
        where = made["provenance"]
        assert where["processor"] and where["threads"] == 1 and where["torch"] and where["commit"] and where["clean"]
        assert folder.split("_")[0] == re.split(r"\W", where["processor"].lower())[0]
        assert platform.node() not in json.dumps(made)


@pytest.mark.parametrize(("where", "line"), LINES, ids=lambda one: one if isinstance(one, str) else one["what"])
def test_a_line_of_the_page_is_what_its_record_says(where: str, line: dict[str, Any]) -> None:
    (row,) = [row for row in COLUMNS if row[:2] == [line["what"], line["against"]]]
    assert row[2] == f"{line['aim']:.2f}"
    cell = row[3 + [folder.name for folder in FOLDERS].index(where)]
    middle, low, high = (float(number) for number in re.findall(r"\d+\.\d+", cell))
    assert np.allclose([middle, low, high], np.quantile(line["ratios"], [0.5, 0, 1]), atol=0.005 + 1e-9)
    assert cell.startswith("**") == (middle > line["aim"])


def test_a_missed_aim_is_counted_as_missed() -> None:
    for folder, name in zip(FOLDERS, speed.records(), strict=True):
        here = [line for where, line in LINES if where == folder.name]
        reached = sum(round(float(np.median(line["ratios"])), 2) <= line["aim"] for line in here)
        assert f"Of {len(here)} aims {reached} are reached on the {name}." in speed.PAGE.read_text()
    assert speed.missed({"ratios": [1.2] * 5, "aim": 1.1}) and not speed.missed({"ratios": [1.0] * 5, "aim": 1.1})
