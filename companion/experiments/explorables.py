"""What the book's explorables show, from records and from what chapters train; `companion.widgets` shows it.

Chapters *Feature similarity* and *Identity meets flow* have the first and the last of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.blocks import label, same_stage, spans, stage_of
from companion.experiments.distributions import correlated
from companion.experiments.records import Record, packed
from companion.experiments.titles import TITLES

__all__ = [
    "block_sets_data",
    "cka_epochs_data",
    "cka_map_data",
    "flow_path_data",
    "information_grid_data",
    "mask_life_data",
    "network_name",
    "penalty_strengths_data",
]

# Petroff's ten colours (2021, arXiv 2107.02270), made to be told apart with deficient colour vision. Vehicles are
# squares, so that not everything hangs on colour.
_PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_VEHICLES = frozenset({"airplane", "automobile", "ship", "truck"})

# What a value of CKA says: the first line whose number the value reaches.
_WORDS = (
    (0.9, "almost the same arrangement"),
    (0.6, "similar arrangements"),
    (0.3, "some common structure"),
    (-9.0, "little in common"),
)

_ESTIMATORS = {
    "gaussian": "Gaussian formula",
    "ksg": "KSG, 3 neighbours",
    "binning": "10 bins a feature",
    "infonce": "InfoNCE, batch 128",
    "nwj": "NWJ, batch 128",
}


def network_name(method: str) -> str:
    """A method of `published_cka` as a reader says it.

    >>> network_name("resnet20"), network_name("resnet56-untrained")
    ('ResNet-20, trained', 'ResNet-56, untrained')
    """
    net, _, state = method.partition("-")
    return f"{re.sub(r'^resnet', 'ResNet-', net)}, {state or 'trained'}"


# ------------------------------------------------------------------------------------------------------------ CKA maps
def cka_map_data(records: Iterable[Record]) -> dict[str, Any]:
    """Maps of CKA, and how each layer arranges the same test images, from records of `published_cka` in the order of
    the menu.

    Returns:
        plain JSON: `networks`, each with its layers, stages, CKA map, points (two decimals) and the share of
        the variance that they hold; the images' numbers, labels and classes; words.

    Raises:
        ValueError: no records, a record without geometry, or records of different images.
    """
    chosen = list(records)
    if not chosen:
        raise ValueError("no records to explore; load_or_run('published_cka', tier='paper') has some")
    for record in chosen:
        if not {"cka", "geometry"} <= set(record.measures):
            has = sorted(record.measures)
            raise ValueError(f"record {record.run} has the measures {has}; an explorable needs cka and geometry")
    shown = {key: chosen[0].measures["geometry"][key] for key in ("images", "labels", "classes")}
    for record in chosen:
        if any(record.measures["geometry"][key] != shown[key] for key in ("images", "labels")):
            both = f"{record.run} shows other images than {chosen[0].run}"
            raise ValueError(f"record {both}; an explorable needs the same in all")
    networks = list(map(_network, chosen))
    classes = [
        {"name": name, "colour": colour, "shape": "square" if name in _VEHICLES else "circle"}
        for name, colour in zip(shown["classes"], _PALETTE, strict=False)
    ]
    return {
        "networks": networks,
        "images": shown["images"],
        "labels": shown["labels"],
        "classes": classes,
        "words": [list(line) for line in _WORDS],
        "state": {"network": 0} | dict(zip(("row", "column"), networks[0]["first"], strict=True)),
    }


def _network(record: Record) -> dict[str, Any]:
    """One entry of the menu; its first pair is the first block and the last, where depth has changed most."""
    geometry = record.measures["geometry"]
    layers = geometry["layers"]
    blocks = [index for index, layer in enumerate(layers) if stage_of(layer)] or [0, len(layers) - 1]
    return {
        "name": network_name(record.run.method),
        "layers": [label(layer) for layer in layers],
        "stages": [list(stage) for stage in spans(layers)],
        "cka": record.frame("cka").loc[layers, layers].to_numpy().tolist(),
        "points": [np.round(_unit(points), 2).tolist() for points in geometry["points"]],
        "explained": list(geometry["explained"]),
        "first": [blocks[0], blocks[-1]],
    }


def _unit(points: Any) -> Float[np.ndarray, "examples 2"]:
    """The points with a mean square radius of 1: a picture shows shape, not scale."""
    points = np.asarray(points, dtype=float)
    radius = np.sqrt(np.square(points).sum(1).mean())
    return points / radius if radius > 0 else points


# ----------------------------------------------------------------------------------------------------- sets of blocks
def block_sets_data(record: Record) -> dict[str, Any]:
    """Every set of blocks that may be gone, from a record of `block_subsets`; first the two of least loss together.

    >>> from companion.experiments import replay
    >>> len(block_sets_data(replay("block_subsets")[0])["refreshed"])  # sets of nine blocks
    512
    """
    if "subsets" not in record.measures:
        raise ValueError(f"record {record.run} has the measures {sorted(record.measures)}; an explorable needs subsets")
    found = record.measures["subsets"]
    pairs = [at for at in range(len(found["chosen_loss"])) if at.bit_count() == 2]
    return {
        **{name: found[name] for name in ("blocks", "raw", "refreshed", "cka", "steps")},
        "examples": record.run.settings["examples"],
        "state": {"gone": min(pairs, key=found["chosen_loss"].__getitem__)},
    }


# --------------------------------------------------------------------------------------------------- paths of features
def flow_path_data(
    images: Float[Tensor, "images 1 side side"],
    labels: Int[Tensor, " images"],
    nets: Mapping[str, Mapping[str, Tensor]],
    first: int = 0,
) -> dict[str, Any]:
    """Paths of images through networks, in two dimensions; the `first` image is shown first.

    Args:
        nets: name → `points` (images × blocks × 2), and what the picture cannot show: the true `length` of each step
            (images × blocks − 1), the true `angle` between two steps in degrees (images × blocks − 2), and `guesses`,
            the net's answer after every block (images × blocks).

    Returns:
        plain JSON: `images` as grey values from 0 to 255, `labels`, and `nets`, rounded to two decimals.

    Raises:
        ValueError: nets of other shapes than the images', or no such first image.
    """
    shapes = {name: {key: tuple(value.shape) for key, value in net.items()} for name, net in nets.items()}
    blocks = next((shape["points"][1] for shape in shapes.values()), 0)
    n = len(images)
    expected = {"points": (n, blocks, 2), "length": (n, blocks - 1), "angle": (n, blocks - 2), "guesses": (n, blocks)}
    if not shapes or any(shape != expected for shape in shapes.values()) or first not in range(n):
        raise ValueError(
            f"{n} images, nets of the shapes {shapes}, first={first}: give at least one net, each of the shapes "
            f"{expected}, and the number of an image"
        )
    pixels = images.flatten(1)
    ink = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    return {
        "images": (255 * ink).round().int().tolist(),
        "labels": labels.tolist(),
        "nets": [
            {"name": f"{name} net", "guesses": net["guesses"].tolist()}
            | {key: np.round(net[key].double().numpy(), 2).tolist() for key in ("points", "length", "angle")}
            for name, net in nets.items()
        ],
        "state": {"net": 0, "image": first, "block": blocks},
    }


# ------------------------------------------------------------------------------------------- estimators of information
def information_grid_data(records: Iterable[Record]) -> dict[str, Any]:
    """The truth and every estimator's answer, pairs × correlations, in nats, from the records of `information_grid`.

    Raises:
        ValueError: no records of an estimator that is shown.
    """
    shown = {record.run.method: record for record in records if record.run.method in _ESTIMATORS}
    if not shown:
        raise ValueError(f"no records to explore: those of information_grid by one of {sorted(_ESTIMATORS)} are shown")
    settings = next(iter(shown.values())).run.settings
    cells = [[correlated(d, rho) for rho in settings["correlations"]] for d in settings["dimensions"]]
    values = {name: {a["task"]: a["value"] for a in shown[name].measures["answers"]} for name in shown}
    return {
        "pairs": settings["dimensions"],
        "correlations": settings["correlations"],
        "examples": settings["sizes"][0][0],
        "truth": [[round(task.truth + 0.0, 4) for task in row] for row in cells],
        "estimators": [
            {"name": name, "values": [[values[method][task.name] for task in row] for row in cells]}
            for method, name in _ESTIMATORS.items()
            if method in shown
        ],
        "state": {"pairs": len(cells) // 2, "correlation": 2 * len(cells[0]) // 3},
    }


# --------------------------------------------------------------------------------------- maps of CKA, epoch by epoch
def cka_epochs_data(lives: Mapping[str, Sequence[tuple[pd.DataFrame, float]]]) -> dict[str, Any]:
    """Maps of CKA between the blocks of nets while they learn.

    Args:
        lives: net → the map and the accuracy (0 to 1) at the start and after every epoch; the same blocks and as many
            epochs in all. The last epoch is shown first.

    Returns:
        plain JSON: `layers`, `stages`, and `nets`, each with its `name` and, epoch by epoch, its maps `cka`, their mean
        over different blocks of a stage `inside`, and its `accuracy` in %.

    Raises:
        ValueError: no nets, other numbers of epochs or other blocks, no stage of two blocks.
    """
    counts = {len(life) for life in lives.values()}
    blocks = {tuple(table.index) for life in lives.values() for table, _ in life}
    if len(counts) != 1 or len(blocks) != 1:
        raise ValueError(f"nets with {sorted(counts)} maps, of {len(blocks)} sets of blocks: give the same of all")
    (layers,) = blocks
    pairs = [
        (a, b) for a, one in enumerate(layers) for b, other in enumerate(layers) if a < b and same_stage(one, other)
    ]
    if not pairs:
        raise ValueError(f"of the layers {list(layers)} no two are of one stage; give maps of blocks")
    return {
        "layers": list(map(label, layers)),
        "stages": [list(stage) for stage in spans(layers)],
        "nets": [
            {
                "name": name,
                "cka": [(table.round(2) + 0.0).to_numpy().tolist() for table, _ in life],
                "inside": [round(float(np.mean([table.iat[pair] for pair in pairs])), 2) for table, _ in life],
                "accuracy": [round(100 * accuracy, 1) for _, accuracy in life],
            }
            for name, life in lives.items()
        ],
        "state": {"epoch": max(counts) - 1},
    }


# ------------------------------------------------------------------------------------------------ masks, epoch by epoch
def mask_life_data(
    lives: Mapping[str, Sequence[Bool[Tensor, "units pixels"]]], ink: Float[Tensor, " pixels"]
) -> dict[str, Any]:
    """A first layer's masks over the epochs, for several methods.

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
    return {
        "side": side,
        "units": units,
        "ink": np.round(np.asarray(ink.cpu(), dtype=float), 3).tolist(),
        "methods": [
            {"name": name, "frames": [packed(mask.cpu().numpy()) for mask in life]} for name, life in lives.items()
        ],
        "state": {"method": max(0, len(lives) - 2), "epoch": max(numbers) - 1},
    }


# ---------------------------------------------------------------------------------------------- strengths of penalties
def penalty_strengths_data(records: Iterable[Record]) -> dict[str, Any]:
    """Every penalty at its strengths, weakest first, beside the net without one: `dense_penalties_strengths`.

    Raises:
        ValueError: no record without a penalty, or none with one, or not as many strengths of each penalty.
    """
    by_method = {record.run.method: record for record in records}
    none = by_method.pop("none", None)
    if none is None or not by_method:
        raise ValueError(
            f"records of {['none'] * bool(none) + sorted(by_method)}: an explorable needs one without a penalty and "
            "one with; python -m companion.experiments run dense_penalties_strengths"
        )
    penalties: dict[str, dict[str, Any]] = {}
    for method, record in by_method.items():
        penalty, strength = method.rpartition("_")[::2]
        entry = penalties.setdefault(penalty, {"method": penalty, "name": TITLES[penalty], "strengths": []})
        entry["strengths"].append({"label": strength, "net": _net(record)})
    counts = {penalty: len(entry["strengths"]) for penalty, entry in penalties.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"strengths of each penalty: {counts}; an explorable needs as many of one as of another")
    for entry in penalties.values():
        entry["strengths"].sort(key=lambda one: float(one["label"]))
    first = next((k for k, penalty in enumerate(penalties) if penalty == "aug_cka_sr"), 0)
    layers = none.frame("cka").index
    return {
        "none": _net(none),
        "penalties": list(penalties.values()),
        "layers": list(map(label, layers)),
        "stages": [list(stage) for stage in spans(layers)],
        "blocks": [layer.removeprefix("layer") for layer in layers if stage_of(layer)],
        "pruned": ["dense", "50 %", "70 %", "80 %", "90 %", "½", "¼"],  # weights gone, then multiply-adds left
        "state": {"penalty": first, "strength": max(counts.values()) - 1},
    }


def _net(record: Record) -> dict[str, Any]:
    """What is shown of a net."""
    path = record.measures["trajectory"]
    layers = {layer["name"]: layer for layer in record.measures["weights"]["layers"]}
    table = record.frame("cka")
    blocks = [name for name in table.index if stage_of(name)]
    levels = [entry["pruned"] for entry in (*record.result["weights"], *record.result["filters"])]

    def scales(convolution: str) -> list[float]:
        found = [layers[f"{block}.{convolution}"]["bn_scale"] for block in blocks]
        return [round(float(np.abs(scale).mean()), 3) for scale in found]

    return {
        "cka": table.round(2).to_numpy().tolist(),
        "steps": path["relative_length"],
        "angles": [round(math.degrees(angle)) for angle in path["angle"]],
        "inner": scales("conv1"),
        "last": scales("conv2"),
        "accuracy": [round(100 * s["test"]["correct"] / s["test"]["examples"], 1) for s in (record.result, *levels)],
    }
