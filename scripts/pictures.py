"""Draw what stands outside the chapters from the book's records: pictures of intro and README.

python scripts/pictures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion import plots
from companion.blocks import spans
from companion.experiments import load_or_run
from companion.experiments.explorables import network_name
from companion.experiments.records import Record, Records

STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"
DEPTHS = ("resnet20", "resnet32", "resnet44", "resnet56")


def two_wishes(record: Record) -> Figure:
    """What training gives, between what the two papers' penalties ask for; for the intro.

    The outer maps are sketches: the measured one with every pair inside a stage moved most of the way to 0 (CKA-SR) or
    to 1 (FFR).
    """
    measured = record.frame("cka")
    inside = np.zeros(measured.shape, dtype=bool)
    for _, first, length in spans(measured.index):
        inside[first : first + length, first : first + length] = True
    different = measured.where(~inside | np.eye(len(measured), dtype=bool), 0.15 * measured)
    alike = measured.where(~inside, 0.15 * measured + 0.85)

    figure, axes = plt.subplots(1, 3, figsize=(5.8, 2.85))
    maps: tuple[tuple[str, pd.DataFrame], ...] = (
        ("“Be different”\nCKA-SR, a sketch", different),
        (f"What training gives\n{network_name(record.run.method).split(',')[0]}, measured", measured),
        ("“Follow on”\nFFR, a sketch", alike),
    )
    for axis, (title, table) in zip(axes, maps, strict=True):
        image = plots.cka_heatmap(table, ax=axis, labels=1, colorbar=False)
        axis.set_title(title, loc="center", fontsize=9.5, fontweight="bold" if table is measured else "normal")
        axis.set(xticks=[], yticks=[], xlabel="depth →", ylabel="")
    axes[0].set_ylabel("← depth")
    plots.scale(image, list(axes), location="bottom", shrink=0.5, aspect=30)
    return figure


def depths(records: Records) -> Figure:
    """CKA maps of four trained networks side by side; for the README."""
    figure, axes = plt.subplots(1, len(DEPTHS), figsize=(10, 2.95))
    for axis, method in zip(axes, DEPTHS, strict=True):
        record = records.one(method=method)
        image = plots.cka_heatmap(record.frame("cka"), ax=axis, labels=1, colorbar=False)
        axis.set_title(f"{network_name(method).split(',')[0]}, {record.accuracy():.1%} right", loc="center")
        axis.set(xticks=[], yticks=[], xlabel="depth →", ylabel="")
    axes[0].set_ylabel("← depth")
    plots.scale(image, list(axes), location="right", aspect=25)
    return figure


def main(folder: Path = STATIC) -> None:
    """Write every picture into `folder`."""
    records = load_or_run("published_cka", tier="paper")
    with plt.rc_context({**plots.STYLE, "savefig.bbox": "tight", "savefig.dpi": 200}):
        two_wishes(records.one(method="resnet56")).savefig(folder / "two_wishes.png")
        depths(records).savefig(folder / "readme.png", dpi=120)


if __name__ == "__main__":
    main()
