"""Explorables: figures that answer to the reader. They draw records, they never train.

`explorable_data` makes the data of the static page's explorable (`book/_static/explorables/`), which needs no kernel;
`CKAExplorer` is its twin for live notebooks. Both show a CKA map and, for the two layers of the chosen cell, how each
of them arranges the same test images. Chapter *Feature similarity* uses them. `mask_life_data` and `MaskExplorer` are
such a pair too: masks of a layer, epoch by epoch. Chapter *Random, magnitude, lottery, dynamic* uses them. `Explorer`
makes one of any figure.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from companion.experiments.records import Record
from companion.plots import BLUE, INK, ORANGE, VERMILION, layer_name, stages

__all__ = [
    "WORDS",
    "CKAExplorer",
    "Explorer",
    "MaskExplorer",
    "cka_explorer",
    "explorable_data",
    "explorable_script",
    "mask_life_data",
    "mask_life_script",
    "network_name",
    "turned",
    "words",
]

# Petroff's ten colours (2021, arXiv 2107.02270), made to be told apart with deficient colour vision. Vehicles are
# squares, so that not everything hangs on colour.
PALETTE = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
VEHICLES = frozenset({"airplane", "automobile", "ship", "truck"})

# What a value of CKA says, for the sentence beside the map: the first line whose number the value reaches.
WORDS = (
    (0.9, "almost the same arrangement"),
    (0.6, "similar arrangements"),
    (0.3, "some common structure"),
    (-np.inf, "little in common"),
)


def words(value: float) -> str:
    """A value of CKA in words.

    >>> len({words(0.05), words(0.5), words(0.99)})
    3
    """
    return next(text for least, text in WORDS if value >= least)


def network_name(method: str) -> str:
    """`"resnet20-untrained"` as a reader says it: `"ResNet-20, untrained"`.

    >>> network_name("resnet20"), network_name("resnet56-untrained")
    ('ResNet-20, trained', 'ResNet-56, untrained')
    """
    net, _, state = method.partition("-")
    return f"{re.sub(r'^resnet', 'ResNet-', net)}, {state or 'trained'}"


def turned(
    points: Float[np.ndarray, "examples 2"], target: Float[np.ndarray, "examples 2"]
) -> Float[np.ndarray, "examples 2"]:
    """The points, rotated and perhaps mirrored to lie as near as they can to `target` (orthogonal Procrustes).

    CKA does not see such a turn, so the eye should not either.

    >>> corner = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> bool(np.allclose(turned(corner[:, ::-1], target=corner), corner))
    True
    """
    u, _, v = np.linalg.svd(points.T @ target)
    return points @ (u @ v)


# ------------------------------------------------------------------------------------------------------ the static page
def explorable_data(records: Iterable[Record]) -> dict[str, Any]:
    """What the static explorable draws, from records of `published_cka` with the same images.

    Args:
        records: each with the measures `cka` and `geometry`; the order is that of the menu.

    Returns:
        plain JSON: `networks`, each with its layers, stages, CKA map, points (two decimals) and the share of
        the variance that they hold; the images' numbers, labels and classes; palette, shapes, colour map and words.

    Raises:
        ValueError: no records, a record without geometry, or records of different images.
    """
    chosen = list(records)
    geometries = _geometries(chosen)
    first = geometries[0]
    return {
        "networks": [_network(record, geometry) for record, geometry in zip(chosen, geometries, strict=True)],
        "images": first["images"],
        "labels": first["labels"],
        "classes": first["classes"],
        "palette": list(PALETTE[: len(first["classes"])]),
        "shapes": ["square" if name in VEHICLES else "circle" for name in first["classes"]],
        "colours": _stops(),
        "words": [[max(least, -9.0), text] for least, text in WORDS],
    }


def explorable_script(records: Iterable[Record]) -> str:
    """`explorable_data` as the script `cka_map.data.js`: a page opened from disk may load a script, but no JSON."""
    text = json.dumps(explorable_data(records), separators=(",", ":"), sort_keys=True)
    return f"window.ckaMapData = {text};\n"


def _geometries(records: list[Record]) -> list[Mapping[str, Any]]:
    if not records:
        raise ValueError("no records to explore; load_or_run('published_cka', tier='paper') has some")
    for record in records:
        if not {"cka", "geometry"} <= set(record.measures):
            raise ValueError(
                f"record {record.run} has the measures {sorted(record.measures)}; an explorer needs cka and geometry"
            )
    geometries = [record.measures["geometry"] for record in records]
    for record, geometry in zip(records, geometries, strict=True):
        if (geometry["images"], geometry["labels"]) != (geometries[0]["images"], geometries[0]["labels"]):
            raise ValueError(
                f"record {record.run} shows other images than {records[0].run}; an explorer needs the same in all"
            )
    return geometries


def _network(record: Record, geometry: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of the menu."""
    layers = geometry["layers"]
    cka = record.frame("cka").loc[layers, layers]
    return {
        "name": network_name(record.run.method),
        "layers": [layer_name(layer) for layer in layers],
        "stages": [list(stage) for stage in stages(layers)],
        "cka": cka.to_numpy().tolist(),
        "points": [np.round(_unit(points), 2).tolist() for points in geometry["points"]],
        "explained": list(geometry["explained"]),
        "first": _first(layers),
    }


def _first(layers: list[str]) -> list[int]:
    """The pair to begin with: the first block against the last one, where depth has changed most."""
    blocks = [index for index, layer in enumerate(layers) if layer.startswith("layer")] or [0, len(layers) - 1]
    return [blocks[0], blocks[-1]]


def _unit(points: Any) -> Float[np.ndarray, "examples 2"]:
    """The points with a mean square radius of 1: a picture shows shape, not scale."""
    points = np.asarray(points, dtype=float)
    radius = np.sqrt(np.square(points).sum(1).mean())
    return points / radius if radius > 0 else points


def _stops(count: int = 33) -> list[list[int]]:
    """The colour map from 0 to 1 as red, green, blue from 0 to 255."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, count))
    return (255 * colours[:, :3]).round().astype(int).tolist()


# ---------------------------------------------------------------------------------------------------- the live notebook
class Explorer(ipywidgets.VBox):
    """Controls, a sentence and a figure that is drawn anew when a control changes, for a live notebook.

    Without a kernel it is a picture of what was chosen last. Choose by hand or by assignment:
    `explorer.controls["pairs"].value = 5`.

    Args:
        draw: from the controls' values, as keyword arguments, to a sentence (HTML) and a figure.
        controls: widgets with a `value`, by name.

    Attributes:
        controls: the widgets, by name.
        sentence: what the figure says, in HTML.
        picture: the figure, a PNG.

    >>> def draw(count):
    ...     return f"<b>{count}</b> bars", Figure()
    >>> explorer = Explorer(draw, count=ipywidgets.IntSlider(value=3))
    >>> explorer.controls["count"].value = 5
    >>> explorer.sentence.value
    '<b>5</b> bars'
    """

    def __init__(self, draw: Callable[..., tuple[str, Figure]], **controls: ipywidgets.Widget) -> None:
        self.controls, self._figure_of = controls, draw
        self.sentence = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", object_fit="contain"))
        super().__init__([*controls.values(), self.sentence, self.picture])
        for control in controls.values():
            control.observe(self._draw, "value")
        self._draw()

    def _draw(self, change: Any = None) -> None:
        self.sentence.value, figure = self._figure_of(**{name: c.value for name, c in self.controls.items()})
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        plt.close(figure)  # else pyplot would show it a second time
        self.picture.value = file.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Beside the live view a picture, for readers without a kernel."""
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        return {**bundle, "image/png": base64.b64encode(self.picture.value).decode()}


class CKAExplorer(Explorer):
    """The CKA map with its two layers' arrangements of the images: choose a network, and two of its layers.

    `explorer.controls["row"].value = "layer2.0"` does the same; the controls are `network`, `row` and `column`.

    Args:
        records: as for `explorable_data`.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._data = explorable_data(records)
        self._networks = {network["name"]: network for network in self._data["networks"]}
        first = next(iter(self._networks.values()))
        sliders = {
            name: ipywidgets.SelectionSlider(options=first["layers"], index=index, description=name.capitalize())
            for name, index in zip(("row", "column"), first["first"], strict=True)
        }
        network = ipywidgets.Dropdown(options=list(self._networks), description="Network")
        network.observe(self._load, "value")  # before the figure: a network brings its layers
        super().__init__(self._show, network=network, **sliders)

    def _load(self, change: Any) -> None:
        """Offer the chosen network's layers and its first pair; nothing is drawn until both sliders have them."""
        network = self._networks[change["new"]]
        sliders = [self.controls["row"], self.controls["column"]]
        for slider in sliders:
            slider.unobserve(self._draw, "value")
        for slider, index in zip(sliders, network["first"], strict=True):
            slider.options = network["layers"]
            slider.index = index
            slider.observe(self._draw, "value")

    def _show(self, network: str, row: str, column: str) -> tuple[str, Figure]:
        shown = self._networks[network]
        i, j = shown["layers"].index(row), shown["layers"].index(column)
        value = shown["cka"][i][j]
        return f"<b>{row} and {column}: CKA {value:.2f}</b>, {words(value)}.", _figure(self._data, shown, i, j)


def cka_explorer(records: Iterable[Record]) -> CKAExplorer:
    """The explorer of CKA maps in a live notebook: `cka_explorer(load_or_run("published_cka", tier="paper"))`.

    Records without the two measures that it draws (CKA between two networks) are left out.

    Raises:
        ValueError: see `explorable_data`.
    """
    return CKAExplorer(record for record in records if {"cka", "geometry"} <= set(record.measures))


def _figure(data: Mapping[str, Any], network: Mapping[str, Any], i: int, j: int) -> Figure:
    """The map with cell (i, j) marked, and the pictures of layers i and j."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    layers, points = network["layers"], [np.asarray(p) for p in network["points"]]
    drawn = axes[0].imshow(network["cka"], vmin=0, vmax=1, cmap="viridis")
    axes[0].grid(False)
    figure.colorbar(drawn, ax=axes[0], label="CKA", shrink=0.8)
    middles = [(label, first + (length - 1) / 2) for label, first, length in network["stages"] if length > 1]
    axes[0].set_xticks([m for _, m in middles], [label for label, _ in middles])
    axes[0].set_yticks([m for _, m in middles], [label for label, _ in middles], rotation=90, va="center")
    axes[0].plot([j], [i], marker="s", markersize=9, fillstyle="none", color="white", markeredgewidth=2.5)
    axes[0].set_title(network["name"])
    labels = np.asarray(data["labels"])
    looks = list(zip(data["classes"], data["palette"], data["shapes"], strict=True))
    for axis, layer, p in ((axes[1], i, points[i]), (axes[2], j, turned(points[j], points[i]))):
        for label, (name, colour, shape) in enumerate(looks):
            x, y = p[labels == label].T
            marker = "s" if shape == "square" else "o"
            axis.scatter(x, y, s=18, color=colour, marker=marker, edgecolor="#222222", linewidth=0.4, label=name)
        reach = 1.05 * np.abs(p).max()
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        share = int(100 * network["explained"][layer] + 0.5)  # as in the static page: halves upwards
        axis.set_title(f"{layers[layer]} ({share} % of its variance)")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


# --------------------------------------------------------------------------------------------- masks, epoch by epoch
def mask_life_data(
    lives: Mapping[str, Sequence[Bool[Tensor, "units pixels"]]], ink: Float[Tensor, " pixels"]
) -> dict[str, Any]:
    """What the explorable of masks draws: a first layer's masks over the epochs, for several methods.

    Args:
        lives: method → masks of a layer that sees a square image, at the start and after every epoch; of the same
            shape and number in all. The order is that of the menu; the last but one is shown first.
        ink: the images' mean at every pixel.

    Returns:
        plain JSON: `side` of the image, `units`, `ink`, and `methods`, each with its `name` and `frames`: masks as bits
        in base64, unit by unit, the first pixel in the highest bit.

    Raises:
        ValueError: no methods, masks of several shapes or numbers, pixels that make no square.
    """
    numbers = {len(life) for life in lives.values()}
    shapes = {tuple(mask.shape) for life in lives.values() for mask in life}
    pixels, side = len(ink), round(len(ink) ** 0.5)
    units = next((shape[0] for shape in shapes), 0)
    if len(numbers) != 1 or shapes != {(units, pixels)} or side**2 != pixels:
        raise ValueError(
            f"methods with {sorted(numbers)} masks of the shapes {sorted(shapes)}, and {pixels} pixels: give the same "
            "number of masks for every method, all of the shape (units, pixels) with a square number of pixels"
        )
    methods = [
        {
            "name": name,
            "frames": [base64.b64encode(np.packbits(mask.cpu().numpy()).tobytes()).decode() for mask in life],
        }
        for name, life in lives.items()
    ]
    return {
        "side": side,
        "units": units,
        "ink": np.round(np.asarray(ink.cpu(), dtype=float), 3).tolist(),
        "methods": methods,
        "first": max(0, len(methods) - 2),
    }


def mask_life_script(lives: Mapping[str, Sequence[Bool[Tensor, "units pixels"]]], ink: Float[Tensor, " pixels"]) -> str:
    """`mask_life_data` as the script `mask_life.data.js`."""
    return f"window.maskLifeData = {json.dumps(mask_life_data(lives, ink), separators=(',', ':'), sort_keys=True)};\n"


class MaskExplorer(Explorer):
    """Masks of a layer, epoch by epoch: choose a method and an epoch, 0 is the start.

    The controls are `method` and `epoch`; the sentence counts what is alive, what died and what grew.

    Args:
        lives, ink: as for `mask_life_data`; so are the errors.
    """

    def __init__(
        self, lives: Mapping[str, Sequence[Bool[Tensor, "units pixels"]]], ink: Float[Tensor, " pixels"]
    ) -> None:
        data = mask_life_data(lives, ink)
        self._side, self._ink = data["side"], np.asarray(data["ink"])
        self._lives = {name: [np.asarray(mask.cpu(), dtype=bool) for mask in life] for name, life in lives.items()}
        names = list(self._lives)
        last = len(self._lives[names[0]]) - 1
        super().__init__(
            self._show,
            method=ipywidgets.Dropdown(options=names, value=names[data["first"]], description="Method"),
            epoch=ipywidgets.IntSlider(min=0, max=last, value=last, description="Epoch"),
        )

    def _show(self, method: str, epoch: int) -> tuple[str, Figure]:
        life = self._lives[method]
        now, before = life[epoch], life[max(epoch - 1, 0)]
        sentence = (
            f"<b>{method}, epoch {epoch}: {now.sum():,} of {now.size:,} weights alive.</b> Since the epoch "
            f"before {(before & ~now).sum():,} died and {(now & ~before).sum():,} grew."
        )
        figure = Figure(figsize=(8.2, 5.4), layout="constrained")
        grid = figure.subplot_mosaic([["masks", "ink"], ["masks", "start"], ["masks", "now"]], width_ratios=[3.4, 1])
        _tiles(grid["masks"], now, before, self._side)
        grid["masks"].set_title(f"{method}, epoch {epoch}")
        for name, title, counts in (
            ("ink", "ink of the digits", self._ink),
            ("start", "connections, start", life[0].sum(0)),
            ("now", "connections, now", now.sum(0)),
        ):
            share = counts / max(counts.mean(), 1e-12)
            grid[name].imshow(share.reshape(self._side, self._side), vmin=0, vmax=2.5, cmap="viridis")
            grid[name].set(xticks=[], yticks=[])
            grid[name].set_title(title, fontsize=9)
            grid[name].grid(False)
        return sentence, figure


def _tiles(axis: Axes, now: np.ndarray, before: np.ndarray, side: int) -> None:
    """Each unit's mask as a small image: alive, just grown, just died."""
    columns = int(np.ceil(len(now) ** 0.5))
    unit, pixel = np.meshgrid(*map(np.arange, now.shape), indexing="ij")
    x = unit % columns * (side + 1.5) + pixel % side
    y = unit // columns * (side + 1.5) + pixel // side
    axis.scatter(x[now & before], y[now & before], s=7, marker="s", color=BLUE, linewidth=0, label="alive")
    axis.scatter(x[now & ~before], y[now & ~before], s=7, marker="s", color=ORANGE, linewidth=0, label="just grown")
    axis.scatter(
        x[before & ~now],
        y[before & ~now],
        s=7,
        marker="s",
        facecolor="none",
        color=VERMILION,
        linewidth=0.5,
        label="just died",
    )
    for first in range(len(now)):
        corner = first % columns * (side + 1.5) - 0.5, first // columns * (side + 1.5) - 0.5
        axis.add_patch(matplotlib.patches.Rectangle(corner, side, side, fill=False, edgecolor="#CCCCCC", linewidth=0.5))
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.invert_yaxis()
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False, labelcolor=INK)
