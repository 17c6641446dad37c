"""The page *Speed*: what the records of the benchmark say, its numbers recomputed from JSON by NumPy alone."""

from __future__ import annotations

import json
import platform
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from scripts import speed

RECORDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tests/benchmarks/records").glob("*.json")}
LINES = [line for made in RECORDS.values() for line in made.get("lines", [])]


def test_the_page_and_its_figure_are_current() -> None:
    assert speed.page() == speed.PAGE.read_text(), "python scripts/speed.py writes the page anew"
    with Image.open(speed.PICTURE) as picture:
        assert picture.info["Description"] == speed.digest(), "python scripts/speed.py draws it anew"


def test_every_record_says_where_and_has_five_rounds() -> None:
    assert set(RECORDS) == set(speed.PARTS)
    for made in RECORDS.values():
        points = [point for curve in made.get("curves", {}).values() for point in curve] + made.get("lines", [])
        assert made["rounds"] == 5 and {len(one["ratios"]) for one in points} == {5}
        where = made["provenance"]
        assert where["processor"] and where["threads"] == 1 and where["torch"] and where["commit"] and where["clean"]
        assert platform.node() not in json.dumps(made)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line['what']} / {line['against']}")
def test_a_line_of_the_page_is_what_its_record_says(line: dict[str, Any]) -> None:
    (row,) = [
        [cell.strip() for cell in shown.strip("|").split("|")]
        for shown in speed.PAGE.read_text().splitlines()
        if shown.startswith(f"| {line['what']} | {line['against']} |")
    ]
    middle = float(row[2])
    low, high = (float(end) for end in row[3].split(" … "))
    assert np.allclose([middle, low, high], np.quantile(line["ratios"], [0.5, 0, 1]), atol=0.005 + 1e-9)
    assert row[4] == f"aim {line['aim']:.2f}, {'reached' if middle <= line['aim'] else '**missed**'}"


def test_a_missed_aim_is_counted_as_missed() -> None:
    missed = sum(round(float(np.median(line["ratios"])), 2) > line["aim"] for line in LINES)
    assert f"Of {len(LINES)} aims {len(LINES) - missed} are reached and {missed} are missed." in speed.PAGE.read_text()
    assert speed.missed({"ratios": [1.2] * 5, "aim": 1.1}) and not speed.missed({"ratios": [1.0] * 5, "aim": 1.1})
