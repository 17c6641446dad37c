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
from companion.experiments.claims import Comparison, rounds_of
from companion.experiments.explorables import network_name
from companion.experiments.notebook import colour_of
from companion.experiments.quantities import Reading, cka_in_stages, path_length, small_weights
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


SHOWN = {
    "aug_cka_sr": "AugCKA-SR",
    "cka_sr": "CKA-SR",
    "ffr_length_curvature": "FFR, both",
    "ffr_length": "FFR, length",
    "group_lasso": "group lasso",
}
# As first chosen CKA-SR did not act; this study has it at a strength that does.
ACTING = {"cka_sr": ("specificity",)}


def changes(method: str, reading: Reading) -> list[float]:
    """What the penalty changes, seed by seed, against the same seed without a penalty; in every round that has both."""
    studies = ACTING.get(method) or rounds_of(method)
    return list(Comparison(method, studies, method, "none", reading).differences().values())


def answer() -> Figure:
    """The book's question and what was measured, in two panels: do they oppose each other, are weights small?"""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3), layout="constrained", width_ratios=[1, 1.1])
    places = {"aug_cka_sr": (-0.17, -0.25), "cka_sr": (0.055, -0.03), "ffr_length_curvature": (-0.16, 0.06)}
    for method, place in places.items():
        name, colour = SHOWN[method], colour_of(method)
        x, y = (changes(method, reading) for reading in (path_length, cka_in_stages))
        left.plot(x, y, "D" if method == "cka_sr" else "o", color=colour, alpha=0.7, markersize=5)
        left.text(*place, name, color=colour, fontsize=10, ha="left")
    left.axhline(0, color=plots.INK, linewidth=1)
    left.axvline(0, color=plots.INK, linewidth=1)
    left.set(xlim=(-0.2, 0.2), ylim=(-0.45, 0.12))
    left.set(xlabel="change of a relative step", ylabel="change of CKA inside stages")
    left.set_title("They pull opposite ways, a little", fontsize=10.5)
    rows = {name: changes(method, small_weights) for method, name in SHOWN.items()}
    plots.strip(rows, ax=right, colours={name: colour_of(method) for method, name in SHOWN.items()})
    right.set(xlabel="small weights, change in % of all")
    right.set_title("Neither makes weights small", fontsize=10.5)
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
        drawn = {"two_wishes": two_wishes(records.one(method="resnet56")), "answer": answer()}
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png", metadata=plots.text_size(figure))
        depths(records).savefig(folder / "readme.png", dpi=120)


if __name__ == "__main__":
    main()
