"""Make the data and the first frame of the explorable of chapter 13 from the records of `dense_penalties_strengths`.

python scripts/penalty_strengths.py

The chapter's cells with the tag `penalty-strengths` are run as they stand, so there is no second version of them here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cells import tagged

from companion.blocks import label, spans, stage_of
from companion.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "notebooks" / "13_identity_meets_flow.ipynb"
FIRST = "aug_cka_sr_0.3"  # the net that is shown first


def chapter() -> dict[str, Any]:
    """The names that the chapter's tagged cells define."""
    return tagged(CHAPTER, "penalty-strengths")


def strengths_data(names: dict[str, Any]) -> dict[str, Any]:
    """What the explorable draws: for every penalty its strengths, weakest first, each with what `side` says of the net.

    Raises:
        ValueError: a net of the experiment that has no record.
    """
    nets = names["explored"]
    runs = EXPERIMENTS["dense_penalties_strengths"].runs("laptop")
    missing = [run.method for run in runs if run.method not in nets]
    if missing:
        raise ValueError(f"not run: {missing}; python -m companion.experiments run dense_penalties_strengths")
    penalties: dict[str, dict[str, Any]] = {}
    for method in (run.method for run in runs if run.method != "none"):
        penalty, strength = method.rpartition("_")[::2]
        entry = penalties.setdefault(penalty, {"method": penalty, "name": names["NAMES"][penalty], "strengths": []})
        entry["strengths"].append({"label": strength, "net": nets[method]})
    first, strength = FIRST.rpartition("_")[::2]
    labels = [entry["label"] for entry in penalties[first]["strengths"]]
    layers = names["candidates"][0].frame("cka").index
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, 33))[:, :3]
    return {
        "none": nets["none"],
        "penalties": list(penalties.values()),
        "first": [list(penalties).index(first), labels.index(strength)],
        "layers": list(map(label, layers)),
        "stages": [list(stage) for stage in spans(layers)],
        "blocks": [layer.removeprefix("layer") for layer in layers if stage_of(layer)],
        "pruned": list(names["PRUNED"]),
        "colours": (255 * colours).round().astype(int).tolist(),
    }


def strengths_script(names: dict[str, Any]) -> str:
    """`strengths_data` as a script: a page opened from disk may load a script, but no JSON."""
    text = json.dumps(strengths_data(names), separators=(",", ":"), ensure_ascii=False)
    return f"window.penaltyStrengthsData = {text};\n"


def main(folder: Path = ROOT / "book" / "_static" / "explorables") -> None:
    """Write `penalty_strengths.data.js` and `penalty_strengths.png` into `folder`."""
    matplotlib.use("Agg")
    names = chapter()
    folder.joinpath("penalty_strengths.data.js").write_text(strengths_script(names), encoding="utf-8")
    names["side_by_side"](FIRST).savefig(folder / "penalty_strengths.png", dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
