"""Figures: one style for the whole book, and a thin face over seaborn for what the book draws often. They draw tables
and records, they never train.

A figure stands on white, in dark mode too, in colours that can be told apart with deficient colour vision, and by their
lightness in a grey print. Chapter *Feature similarity* draws with them.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo
from scipy import stats

from companion._checks import at_least, extra

with extra("experiments"):
    import seaborn as sns

from companion.blocks import label, spans, stage_of

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
    "interval",
    "mask_report",
    "scale",
    "strip",
    "style",
    "text_size",
]

# Okabe & Ito (2008), with a wine for their pink; the last two are too light for thin lines.
BLUE, VERMILION, GREEN, WINE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#882255", "#E69F00", "#56B4E9"
GREY, INK = "#767676", "#222222"

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
    """Draw in the book's style from here on, or, inside `with plt.rc_context():`, to the end of that block.

    A notebook shows its figures at twice the resolution from here on, and their files say how small their text is.

    >>> with plt.rc_context():
    ...     style()
    ...     print(plt.rcParams["image.cmap"])
    viridis
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        plt.switch_backend(plt.get_backend())  # loaded late otherwise, it would undo the next line
        shell.display_formatter.formatters["image/png"].for_type(Figure, _shown)
    plt.rcdefaults()
    plt.rcParams.update(STYLE)


def _shown(figure: Figure) -> tuple[bytes, dict[str, int]] | None:
    """A figure as a notebook's output: at twice the resolution, in 256 colours where nobody sees the difference."""
    from IPython.core.pylabtools import retina_figure

    found = retina_figure(figure)
    if found is None:  # an empty figure
        return None
    picture = Image.open(io.BytesIO(found[0]))
    whole = picture.convert("RGB")
    few = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    off = np.asarray(ImageChops.difference(whole, few.convert("RGB"))).max()
    said = PngInfo()
    for key, value in text_size(figure).items():
        said.add_text(key, value)
    file = io.BytesIO()
    (few if off <= 4 else whole).save(file, "PNG", dpi=picture.info["dpi"], pnginfo=said, optimize=True)
    return file.getvalue(), found[1]


def text_size(figure: Figure) -> dict[str, str]:
    """How small the text of a figure is, in points at the figure's own width, for `savefig(metadata=...)`.

    >>> figure, axis = plt.subplots()
    >>> written = axis.text(0.5, 0.5, "small", fontsize=7)
    >>> text_size(figure)
    {'Smallest text': '7 pt'}
    >>> plt.close()
    """
    figure.draw_without_rendering()  # ticks have no labels before
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return {"Smallest text": f"{min(sizes):g} pt"} if sizes else {}


def glue(**numbers: SupportsFloat | str) -> None:
    """Carry numbers from a cell into the text: `glue(bias=0.9712)` writes 0.97 where the text says {glue:text}`bias`.

    Two decimals, and a proper minus sign; a string is taken as it is. It shows nothing.
    """
    from IPython.display import display  # here: only a notebook needs it

    # The bundle that `myst_nb.glue` makes, which is missing where no book is built.
    for name, number in numbers.items():
        text = number if isinstance(number, str) else f"{round(float(number), 2) + 0.0:.2f}"
        bundle = {"application/papermill.record/text/plain": repr(text.replace("-", "−"))}
        metadata = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        display(bundle, raw=True, metadata=metadata)


def cka_heatmap(
    table: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    labels: int = 12,
    colorbar: bool = True,
    **options: Any,
) -> QuadMesh:
    """Map of CKA between layers: depth runs rightwards and downwards, layer i is centred at i + ½ on both axes.

    The scale is fixed at 0 … 1; a negative (unbiased) value is drawn as 0. A dead layer, whose CKA is defined as 0, is
    grey. A thin white line stands where a stage begins.

    Args:
        table: layers × layers, or layers of one net × layers of another, such as `similarity.cka_map` returns. Names of
            its two axes are written beside them.
        ax: where to draw; None: a new figure, wide enough for the names.
        labels: at most so many layer names on an axis; the others are left out evenly.
        colorbar: draw the scale beside the map.
        options: of `seaborn.heatmap`, such as `annot=True`.

    Returns:
        the cells, for a colour bar of several maps; `.axes` and `.figure` are where they stand.

    Raises:
        ValueError: an empty table, or one that holds NaN or infinite values.

    >>> cells = cka_heatmap(pd.DataFrame([[1.0, 0.4], [0.4, 1.0]], index=["a", "b"], columns=["a", "b"]))
    >>> cells.axes.get_xlabel()
    'depth →'
    >>> plt.close()
    """
    values = table.to_numpy(dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        given = f"{np.count_nonzero(~np.isfinite(values))} values that are not" if values.size else "an empty table"
        raise ValueError(f"a CKA map needs finite values; got {given}")
    rows, columns = map(_labels, (table.index, table.columns))
    if ax is None:
        longest = [0.07 * max(0, max(map(len, names)) - 12) for names in (rows, columns)]  # inches
        ax = plt.subplots(figsize=(4.6 + longest[0], 4.0 + longest[1]), layout="compressed")[1]
        table = table.rename_axis(index=str(table.index.name or "depth"), columns=str(table.columns.name or "depth"))
    dead = (values == 0).all(axis=1)[:, None] | (values == 0).all(axis=0)[None, :]
    look = {"cmap": "viridis", "vmin": 0, "vmax": 1, "square": True, "cbar": False}
    sns.heatmap(table, ax=ax, mask=dead, xticklabels=False, yticklabels=False, **(look | options))
    cells = cast(QuadMesh, ax.collections[-1])
    ax.set_facecolor("#D0D0D0")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(length=2, left=True, bottom=True)
    for side, names, line in ((ax.yaxis, rows, ax.axhline), (ax.xaxis, columns, ax.axvline)):
        shown = _thinned(len(names), labels)
        side.set_ticks([i + 0.5 for i in shown], [names[i] for i in shown])
        for first in _starts(table.index if side is ax.yaxis else table.columns):
            line(first, color="white", linewidth=1)
    # The arrows follow the depth: the label of the vertical axis is turned by a quarter, so ← points down.
    ax.set_xlabel(f"{table.columns.name} →" if table.columns.name is not None else "")
    ax.set_ylabel(f"← {table.index.name}" if table.index.name is not None else "")
    ax.grid(False)
    if title is not None:
        ax.set_title(title)
    if colorbar:
        scale(cells, ax)
    return cells


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
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.0 * columns, 3.0 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis, (title, table) in zip(grid.flat, tables.items(), strict=False):
        cells = cka_heatmap(table, ax=axis, title=title, colorbar=False, **options)
    for axis in list(grid.flat)[len(tables) :]:
        axis.set_axis_off()
    scale(cells, grid.ravel().tolist(), location="bottom", aspect=40)
    return figure


def scale(cells: QuadMesh, ax: Axes | Sequence[Axes], **options: Any) -> None:
    """The colour bar of one or several CKA maps."""
    axes = [ax] if isinstance(ax, Axes) else list(ax)
    bar = axes[0].figure.colorbar(cells, ax=ax, label="CKA", **({"shrink": 0.8} | options))
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


def _labels(names: Iterable[Any]) -> list[str]:
    """What layers are called, by their role where stages say that these are a ResNet's: in another net "relu" is no
    stem, and "linear" may come first."""
    found = [str(name) for name in names]
    return [label(name) for name in found] if any(map(stage_of, found)) else found


def _starts(names: Iterable[Any]) -> list[int]:
    """Where a stage begins, the first layer excepted; nothing for names without stages."""
    found = [str(name) for name in names]
    return [first for _, first, _ in spans(found) if first > 0] if any(map(stage_of, found)) else []


# --------------------------------------------------------------------------------------------------- seeds, with spread
def interval(values: Iterable[float]) -> tuple[float, float]:
    """The ends of the mean's 95 % interval by Student's t, for `errorbar=` of seaborn's functions; NaN for one value.

    >>> f"{interval([1.0, 2.0, 3.0])[0]:.3f}"
    '-0.484'
    """
    known = np.asarray(list(values), dtype=float)
    if len(known) < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return float(known.mean() - half), float(known.mean() + half)


def strip(
    rows: Mapping[str, Iterable[float]], *, ax: Axes | None = None, colours: str | Mapping[str, str] = BLUE
) -> Axes:
    """A dot for each difference (of a seed, say) in a row; below them a diamond, their mean, with its 95 % interval.

    Args:
        rows: name → values, from the top; a row without values says "not run".
        colours: one, or one for each row.

    Raises:
        ValueError: no rows.

    >>> axis = strip({"first": [1.0, 2.0, 4.0], "second": []})
    >>> [label.get_text() for label in axis.get_yticklabels()]
    ['first', 'second']
    >>> plt.close()
    """
    at_least(1, rows=len(rows))
    if ax is None:
        ax = plt.subplots(figsize=(6.4, 0.34 * len(rows) + 0.9), layout="constrained")[1]
    table = pd.DataFrame([(row, v) for row, found in enumerate(rows.values()) for v in found], columns=["row", "value"])
    palette = {row: colours if isinstance(colours, str) else colours[name] for row, name in enumerate(rows)}
    look: Any = {"x": "value", "hue": "row", "orient": "h", "palette": palette, "native_scale": True, "legend": False}
    ax.axvline(0, color=INK, linewidth=1, zorder=1)
    if len(table):
        sns.stripplot(table.assign(at=table["row"] - 0.14), y="at", ax=ax, size=4, alpha=0.5, jitter=False, **look)
        several = table.assign(at=table["row"] + 0.14)[table.groupby("row")["value"].transform("size") > 1]
        if len(several):
            bars = {"errorbar": interval, "capsize": 0.14, "err_kws": {"linewidth": 1.4}}
            sns.pointplot(several, y="at", ax=ax, marker="D", markersize=4, linestyle="none", **bars, **look)
    else:
        ax.set(xlim=(-1, 1), xticks=[0])
    for row in set(range(len(rows))) - set(table["row"]):
        at: Any = {"transform": ax.get_yaxis_transform(), "backgroundcolor": "white"}
        ax.text(0.5, row, "not run", ha="center", va="center", color=GREY, fontsize=8, **at)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="", ylabel="", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(False, axis="y")
    return ax


def mask_report(report: pd.DataFrame, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Where the weights are: one bar a layer, the first on top. Dark: its density now. Pale: the share of its weights
    that have been alive at any time. Dashed: the density of all layers together.

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
    axis = plt.subplots(figsize=(6.4, 0.26 * len(report) + 1.1), layout="constrained")[1] if ax is None else ax
    rows = np.arange(len(report))
    if (report["explored"] > report["density"] + 1e-6).any():  # beyond rounding
        axis.barh(rows, report["explored"], color=SKY, alpha=0.5, height=0.7, label="alive at some time")
    axis.barh(rows, report["density"], color=BLUE, height=0.7, label="alive now")
    whole = report["alive"].sum() / report["weights"].sum()
    axis.axvline(whole, color=VERMILION, linestyle="--", linewidth=1.4, label=f"all layers: {whole:.3g}")
    for row, (alive, weights) in enumerate(zip(report["alive"], report["weights"], strict=True)):
        axis.annotate(f"{alive:,} of {weights:,}", (1.02, row), va="center", fontsize=9, annotation_clip=False)
    axis.set(yticks=rows, yticklabels=list(map(str, report.index)), xlim=(0, 1), xlabel="density of the layer")
    axis.set_ylim(len(report) - 0.4, -0.6)
    axis.grid(False, axis="y")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    if title is not None:
        axis.set_title(title, pad=24)
    return axis
