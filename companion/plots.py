"""Figures: one style for the whole book, the heat map of CKA, and the bars of a pruning report. They draw tables and
records, they never train.

A figure stands on white, in dark mode too: its colours carry meaning and must not change with the page. Lines have
colours that can be told apart with deficient colour vision, and by their lightness in a grey print; the map of CKA has
viridis.

Chapter *Feature similarity* draws with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "SKY",
    "STYLE",
    "VERMILION",
    "WINE",
    "cka_heatmap",
    "cka_heatmaps",
    "glue",
    "layer_name",
    "mask_report",
    "scale",
    "stages",
    "style",
]

# Okabe & Ito (2008), with a wine for their pink; the last two are too light for thin lines.
BLUE, VERMILION, GREEN, WINE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#882255", "#E69F00", "#56B4E9"
GREY, INK = "#767676", "#222222"

LOWEST, HIGHEST = 0.0, 1.0  # the colours of every CKA map; a negative (unbiased) value is drawn as 0
DEAD = "#D0D0D0"

STYLE: Any = {  # matplotlib's types know rcParams by name; a plain mapping does not fit them
    "figure.figsize": (6.4, 3.6),  # inches; the column of a page is about this wide at 110 dots an inch
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # matplotlib brings it: the same letters on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, WINE, ORANGE, SKY]),
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
}


def style() -> None:
    """Draw in the book's style from here on; every chapter calls it once.

    It replaces matplotlib's settings of the session; inside `with matplotlib.rc_context():` it ends with the block.

    >>> with matplotlib.rc_context():
    ...     style()
    ...     print(plt.rcParams["image.cmap"])
    viridis
    """
    plt.rcdefaults()
    plt.rcParams.update(STYLE)


def glue(**numbers: SupportsFloat | str) -> None:
    """Carry numbers from a cell into the text: `glue(bias=0.9712)` writes 0.97 where the text says {glue:text}`bias`.

    Two decimals, and a proper minus sign; a string is taken as it is. It shows nothing. The bundle is the one that
    `myst_nb.glue` makes; a chapter that does not import that also runs where no book is built.
    """
    from IPython.display import display  # here: only a notebook needs it

    for name, number in numbers.items():
        text = number if isinstance(number, str) else f"{round(float(number), 2) + 0.0:.2f}"
        bundle = {"application/papermill.record/text/plain": repr(text.replace("-", "−"))}
        metadata = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        display(bundle, raw=True, metadata=metadata)


def layer_name(layer: str) -> str:
    """The stem and the classifier by their role, a block by its name.

    >>> [layer_name(layer) for layer in ("relu", "layer1.0", "linear")]
    ['stem', 'layer1.0', 'logits']
    """
    return {"relu": "stem", "linear": "logits", "fc": "logits"}.get(layer, layer)


def stages(layers: Iterable[str]) -> list[tuple[str, int, int]]:
    """Runs of layers that belong together, as `(label, first, length)`: blocks by stage, other layers by themselves.

    >>> stages(["relu", "layer1.0", "layer1.1", "linear"])
    [('stem', 0, 1), ('stage 1', 1, 2), ('logits', 3, 1)]
    """
    found: list[tuple[str, int, int]] = []
    for index, layer in enumerate(layers):
        block = re.match(r"layer(\d+)\.", layer)
        label = f"stage {block[1]}" if block else layer_name(layer)
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1], found[-1][2] + 1)
        else:
            found.append((label, index, 1))
    return found


def cka_heatmap(
    table: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    stages: bool = True,
    labels: int = 12,
    colorbar: bool = True,
) -> AxesImage:
    """Map of CKA between layers: depth runs rightwards and downwards, colours mean the same in every map.

    The scale is fixed at 0 … 1. A small negative value, which an unbiased estimate can have, is drawn as 0. A dead
    layer (its CKA is defined as 0 with everything, itself included) is grey, which no living layer can be.

    Args:
        table: layers × layers, or layers of one net × layers of another, such as `similarity.cka_map` returns. Names of
            its two axes, `table.rename_axis(index="ResNet-20", columns="ResNet-56")`, are written beside them; a map
            with a figure of its own says "depth" there.
        ax: where to draw; None: a new figure.
        stages: thin white lines where a stage of a ResNet begins (`layer2.0`), for layers named like that.
        labels: at most so many layer names on an axis; the others are left out evenly.
        colorbar: draw the scale beside the map.

    Returns:
        the image, for a colour bar of several maps.

    Raises:
        ValueError: an empty table, or one that holds NaN or infinite values.

    >>> image = cka_heatmap(pd.DataFrame([[1.0, 0.4], [0.4, 1.0]], index=["a", "b"], columns=["a", "b"]))
    >>> image.axes.get_xlabel()
    'depth →'
    >>> plt.close()
    """
    values = table.to_numpy(dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        given = f"{np.count_nonzero(~np.isfinite(values))} values that are not" if values.size else "an empty table"
        raise ValueError(f"a CKA map needs finite values; got {given}")
    axis = plt.subplots(figsize=(4.6, 4.0))[1] if ax is None else ax
    image = axis.imshow(values, vmin=LOWEST, vmax=HIGHEST, cmap="viridis")
    dead_rows, dead_columns = (values == 0).all(axis=1), (values == 0).all(axis=0)
    if dead_rows.any() or dead_columns.any():
        grey = np.ma.masked_where(~(dead_rows[:, None] | dead_columns[None, :]), np.ones_like(values))
        axis.imshow(grey, cmap=matplotlib.colors.ListedColormap([DEAD]))
    rows, columns = (list(map(str, names)) for names in (table.index, table.columns))
    for side, names in ((axis.yaxis, rows), (axis.xaxis, columns)):
        shown = _thinned(len(names), labels)
        side.set_ticks(shown, [layer_name(names[i]) for i in shown])
    axis.tick_params(axis="x", rotation=90)
    axis.tick_params(length=2)
    if stages:
        for first in _starts(rows):
            axis.axhline(first - 0.5, color="white", linewidth=1)
        for first in _starts(columns):
            axis.axvline(first - 0.5, color="white", linewidth=1)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    # The arrows follow the depth: the label of the vertical axis is turned by a quarter, so ← points down.
    if ax is None or table.columns.name is not None:
        axis.set_xlabel(f"{table.columns.name or 'depth'} →")
    if ax is None or table.index.name is not None:
        axis.set_ylabel(f"← {table.index.name or 'depth'}")
    if title is not None:
        axis.set_title(title)
    if colorbar:
        scale(image, axis)
    return image


def cka_heatmaps(tables: Mapping[str, pd.DataFrame], *, columns: int = 2, **options: Any) -> Figure:
    """Several maps in a grid, by title, under one scale; `options` as for `cka_heatmap`.

    Raises:
        ValueError: no tables; see `cka_heatmap`.

    >>> table = pd.DataFrame([[1.0, 0.4], [0.4, 1.0]])
    >>> figure = cka_heatmaps({"before": table, "after": table})
    >>> len(figure.axes)  # two maps and their scale
    3
    >>> plt.close()
    """
    if not tables:
        raise ValueError("no tables to draw: give a mapping from titles to CKA tables")
    columns = min(columns, len(tables))
    rows = math.ceil(len(tables) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.0 * columns, 3.0 * rows + 0.5), squeeze=False)
    for axis, (title, table) in zip(grid.flat, tables.items(), strict=False):
        image = cka_heatmap(table, ax=axis, title=title, colorbar=False, **options)
    for axis in list(grid.flat)[len(tables) :]:
        axis.set_axis_off()
    scale(image, grid.ravel().tolist(), location="bottom", aspect=40)
    return figure


def scale(image: AxesImage, ax: Axes | Sequence[Axes], **options: Any) -> None:
    """The colour bar of one or several CKA maps."""
    axes = [ax] if isinstance(ax, Axes) else list(ax)
    bar = axes[0].figure.colorbar(image, ax=ax, label="CKA", **({"shrink": 0.8} | options))
    bar.outline.set_visible(False)
    bar.ax.grid(False)


def _thinned(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, evenly spaced from the first; the last one too where there is room."""
    step = math.ceil(count / most)
    shown = list(range(0, count, step))
    if shown[-1] != count - 1:
        # The last layer matters more than the one that stands in its way.
        shown = [i for i in shown if count - 1 - i >= step] + [count - 1]
    return shown


def _starts(names: Sequence[str]) -> list[int]:
    """Where a stage begins, the first layer excepted; nothing for names without stages."""
    found = stages(names)
    staged = any(label.startswith("stage") for label, _, _ in found)
    return [first for _, first, _ in found if first > 0 and staged]


def mask_report(report: pd.DataFrame, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Where the weights are: one bar a layer, the figure of a pruning's `report()`.

    Dark: the layer's density now. Pale: the share of its weights that have been alive at any time, where masks have
    moved. Dashed: the density of all layers together. At the right end stand the counts. The first layer is on top.

    Args:
        report: such as `companion.pruning.Masks.report` returns: one row a layer, with the columns `weights`, `alive`,
            `density`, `explored`.
        ax: where to draw; None: a new figure, as high as the layers need.

    Raises:
        ValueError: no rows, or a column that is missing.

    >>> row = {"weights": 100, "alive": 10, "density": 0.1, "explored": 0.3}
    >>> axis = mask_report(pd.DataFrame([row], index=["conv1"]))
    >>> [label.get_text() for label in axis.get_yticklabels()]
    ['conv1']
    >>> plt.close()
    """
    lacking = [column for column in ("weights", "alive", "density", "explored") if column not in report]
    if lacking or report.empty:
        raise ValueError(f"a report has rows and columns; this one has {len(report)} rows and lacks {lacking}")
    axis = plt.subplots(figsize=(6.4, 0.26 * len(report) + 1.1))[1] if ax is None else ax
    rows = np.arange(len(report))
    if (report["explored"] > report["density"] + 1e-6).any():  # beyond rounding
        axis.barh(rows, report["explored"], color=SKY, alpha=0.5, height=0.7, label="alive at some time")
    axis.barh(rows, report["density"], color=BLUE, height=0.7, label="alive now")
    whole = report["alive"].sum() / report["weights"].sum()
    axis.axvline(whole, color=VERMILION, linestyle="--", linewidth=1.4, label=f"all layers: {whole:.3g}")
    for row, (alive, weights) in enumerate(zip(report["alive"], report["weights"], strict=True)):
        axis.annotate(f"{alive:,} of {weights:,}", (1.02, row), va="center", fontsize=8, annotation_clip=False)
    axis.set(yticks=rows, yticklabels=list(map(str, report.index)), xlim=(0, 1), xlabel="density of the layer")
    axis.set_ylim(len(report) - 0.4, -0.6)
    axis.grid(False, axis="y")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    if title is not None:
        axis.set_title(title, pad=24)
    return axis
