"""The forest plot of the page *The claims, one by one*: every test in units of δ; `results.py` draws it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from companion import plots


class Line(NamedTuple):
    """A test: its effect and the ends of its interval, in units of δ and towards the claim, and what it says."""

    value: float
    low: float
    high: float
    says: str


class Drawn(NamedTuple):
    """A claim with its tests."""

    place: int
    label: str
    verdict: str
    lines: Sequence[Line]
    small: bool = False  # holds or not, but by less than δ


LOOKS: dict[str, tuple[str, str, bool]] = {  # what a test says → colour, marker, filled?
    "for": (plots.BLUE, ">", True),
    "against": (plots.VERMILION, "<", True),
    "equivalent": (plots.GREEN, "s", True),
    "undecided": (plots.GREY, "o", False),
}
COLOURS = {  # of a verdict's letters: where the markers' colours are too light to read, darker ones
    "holds": plots.BLUE,
    "does not hold": "#B24F00",
    "mixed": plots.WINE,
    "equivalent within δ": "#00735A",
    "undecided": plots.GREY,
}
WIDTH, TOP, BOTTOM = 3.55, 0.6, 0.5  # inches: a phone's column, so that letters of 9 points stay as large there
HEAD, LINE, GAP = 0.21, 0.085, 0.06  # a claim's words, a test, the space below
TICKS = (-32, -8, -2, -1, 0, 1, 2, 8, 32)


def forest(claims: Sequence[Drawn]) -> Figure:
    """A line for each test, below the words and the verdict of its claim."""
    height = sum(HEAD + LINE * len(claim.lines) + GAP for claim in claims)
    total = height + TOP + BOTTOM
    figure = plt.figure(figsize=(WIDTH, total), layout="none")
    axis = figure.add_axes((0.02, BOTTOM / total, 0.96, height / total))
    axis.set_xscale("symlog", linthresh=2, linscale=1.6, base=2)
    axis.axvspan(-1, 1, color="#E6E6E6", linewidth=0, zorder=0)
    axis.axvline(0, color=plots.INK, linewidth=0.8, zorder=1)
    words: Any = {"fontsize": 9, "transform": axis.get_yaxis_transform(), "zorder": 4}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    y, ends = 0.0, []
    for place, label, verdict, lines, small in claims:
        if y:
            axis.axhline(y, color="#D0D0D0", linewidth=0.6, zorder=0)
        axis.text(0, y + 0.12, f"{place}  {label}", va="center", bbox=box, **words)
        look: Any = {"color": COLOURS[verdict], "weight": "bold", "ha": "right", "va": "center"}
        axis.text(1, y + 0.12, verdict.replace("equivalent ", "") + ", < δ" * small, bbox=box, **look, **words)
        y += HEAD
        for *numbers, says in lines:  # the ends of the interval, and between them the effect
            ends += [{"y": y + LINE / 2, "effect": number, "says": says} for number in numbers]
            y += LINE
        y += GAP
    table = pd.DataFrame(ends, columns=["y", "effect", "says"])
    bars: Any = {
        "estimator": "median",
        "errorbar": ("pi", 100),
        "linestyle": "none",
        "err_kws": {"linewidth": 1.1, "zorder": 2},
    }
    for says, (colour, marker, filled) in LOOKS.items():
        face: Any = {"color": colour, "marker": marker, "markersize": 4.2, "markeredgewidth": 1, "zorder": 3}
        face |= {"markerfacecolor": colour if filled else "white"}
        where: Any = {"x": "effect", "y": "y", "orient": "h", "native_scale": True, "ax": axis}
        sns.pointplot(table[table["says"] == says], **where, **bars, **face)
    axis.set(ylim=(height, 0), xlim=(-70, 70), ylabel="")
    axis.grid(False, axis="y")
    axis.set_yticks([])
    axis.set_xticks(TICKS, [f"{tick}".replace("-", "−") for tick in TICKS], fontsize=9)
    axis.minorticks_off()
    axis.set_xlabel("effect in units of δ", fontsize=9)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    axis.text(0, -0.07, "← against the claim", va="bottom", **words)
    axis.text(1, -0.07, "for the claim →", va="bottom", ha="right", **words)
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, markerfacecolor=colour if filled else "white", linewidth=1.1)
        for colour, marker, filled in LOOKS.values()
    ]
    names = ["for", "against", "within δ", "undecided"]
    figure.legend(handles, names, loc="upper center", ncols=4, fontsize=9, handlelength=1.4, columnspacing=0.9)
    return figure


def in_words(claims: Sequence[Drawn]) -> str:
    """What the figure shows, for those who do not see it."""
    said = Counter(line.says for claim in claims for line in claim.lines)
    verdicts = "; ".join(
        f"{claim.place}, {claim.label}: {claim.verdict}{', by less than δ' * claim.small}" for claim in claims
    )
    return (
        f"Forest plot of {said.total()} tests under {len(claims)} claims: {said['for']} decided for the claim, "
        f"{said['against']} against it, {said['equivalent']} within δ, {said['undecided']} undecided. {verdicts}."
    )


def digest(claims: Sequence[Drawn]) -> str:
    """A hash of what the figure shows, to six digits: by it a test sees whether the picture is current."""
    shown = [
        (c.place, c.label, c.verdict, c.small, [(*(f"{v:.6g}" for v in line[:3]), line.says) for line in c.lines])
        for c in claims
    ]
    return hashlib.sha256(repr(shown).encode()).hexdigest()
