"""Make the data and the first frame of the explorable of chapter 03 from the records of `information_grid`.

python scripts/information_grid.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from companion import plots
from companion.experiments import load_or_run
from companion.experiments.distributions import correlated
from companion.experiments.records import Record

FOLDER = Path(__file__).resolve().parent.parent / "book" / "_static" / "explorables"
NAMES = {
    "gaussian": "Gaussian formula",
    "ksg": "KSG, 3 neighbours",
    "binning": "10 bins a feature",
    "infonce": "InfoNCE, batch 128",
    "nwj": "NWJ, batch 128",
}
FIRST = (2, 5)  # the first frame: which number of pairs, which correlation


def grid_data(records: Iterable[Record]) -> dict[str, Any]:
    """What the explorable draws: the truth and every estimator's answer, pairs × correlations, in nats."""
    by_method = {record.run.method: record for record in records}
    settings = next(iter(by_method.values())).run.settings
    pairs, correlations = settings["dimensions"], settings["correlations"]
    cells = [[correlated(d, rho) for rho in correlations] for d in pairs]
    shown = []
    for method, name in NAMES.items():
        if method in by_method:
            values = {answer["task"]: answer["value"] for answer in by_method[method].measures["answers"]}
            shown.append({"name": name, "values": [[values[task.name] for task in row] for row in cells]})
    truth = [[round(task.truth + 0.0, 4) for task in row] for row in cells]
    examples = settings["sizes"][0][0]
    return {
        **{"pairs": pairs, "correlations": correlations, "examples": examples, "first": FIRST},
        **{"truth": truth, "estimators": shown},
    }


def grid_script(records: Iterable[Record]) -> str:
    """`grid_data` as a script: a page opened from disk may load a script, but no JSON."""
    return (
        f"window.informationGridData = {json.dumps(grid_data(records), separators=(',', ':'), ensure_ascii=False)};\n"
    )


def frame(data: dict[str, Any], i: int, j: int) -> Figure:
    """One state of the explorable: every estimator's answer beside the truth."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6))
    truth = data["truth"][i][j]
    for row, (estimator, color) in enumerate(zip(data["estimators"], plots.STYLE["axes.prop_cycle"], strict=False)):
        value = estimator["values"][i][j]
        axis.plot([truth, value], [row, row], color=plots.GREY, linewidth=1)
        axis.plot(value, row, "o", **color)
    axis.axvline(truth, color=plots.INK, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(data["estimators"])), [estimator["name"] for estimator in data["estimators"]])
    axis.invert_yaxis()
    axis.set(xlabel=f"mutual information in nats; the dashed line is the truth, {truth:.2f}")
    axis.set_title(
        f"{data['pairs'][i]} pairs of correlation {data['correlations'][j]:g}, {data['examples']:,} examples"
    )
    return figure


def main(folder: Path = FOLDER) -> None:
    """Write `information_grid.data.js` and `information_grid.png` into `folder`."""
    records = load_or_run("information_grid")
    folder.joinpath("information_grid.data.js").write_text(grid_script(records))
    with plt.rc_context({**plots.STYLE, "savefig.bbox": "tight", "savefig.dpi": 150}):
        frame(grid_data(records), *FIRST).savefig(folder / "information_grid.png")


if __name__ == "__main__":
    main()
