"""Readings: one number of a record, by the name under which chapters and the results page compare it.

A reading takes a `Record` and returns a number, so that `Records.mean`, `Records.paired` and `Records.difference` can
average and compare it over seeds. A function in the plural sense, such as `after_pruning(0.8)`, returns a reading.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from companion.measures import WEIGHT_EDGES
from companion.records import Record

Reading = Callable[[Record], float]


# ------------------------------------------------------------------------------------------------------------- accuracy
def percent(record: Record) -> float:
    """Test images classified correctly, in %, by the net of the last epoch.

    >>> from companion.records import Run
    >>> record = Record(Run("any", "smoke", "none", 0), {"test": {"correct": 9, "examples": 10}}, [], {}, {})
    >>> percent(record)
    90.0
    """
    return 100 * record.accuracy()


def after_pruning(sparsity: float, criterion: str = "magnitude") -> Reading:
    """Test accuracy in % once the smallest weights are gone, in one shot; of runs that prune after training.

    `criterion`: by which they are the smallest, `"magnitude"` or `"scale_free"`, see `experiments.train_and_prune`.

    Raises:
        ValueError: when read, a record without that level.

    >>> from companion.records import Run
    >>> levels = [{"sparsity": 0.8, "pruned": {"test": {"correct": 6, "examples": 10}}}]
    >>> record = Record(Run("any", "smoke", "none", 0), {"weights": levels}, [], {}, {})
    >>> after_pruning(0.8)(record)
    60.0
    """

    def value(record: Record) -> float:
        return _score(_level(record, "weights", "sparsity", sparsity, criterion)["pruned"])

    return value


def after_removal(macs: float, stage: str = "fine_tuned") -> Reading:
    """Test accuracy in % once whole filters are gone, at this share of the multiply-adds; of runs that prune after
    training. `stage` is `"pruned"` or `"fine_tuned"`.

    Raises:
        ValueError: when read, a record without that level.

    >>> from companion.records import Run
    >>> levels = [{"fine_tuned": {"test": {"correct": 6, "examples": 10}}}]
    >>> run = Run("any", "smoke", "none", 0, settings={"prune": {"macs": [0.5]}})
    >>> record = Record(run, {"filters": levels}, [], {}, {})
    >>> after_removal(macs=0.5)(record)
    60.0
    """

    def value(record: Record) -> float:
        shares = record.run.settings.get("prune", {}).get("macs", [])
        if macs not in shares:
            raise ValueError(f"record {record.run} has filters pruned to {shares} of the multiply-adds, not to {macs}")
        return _score(record.result["filters"][shares.index(macs)][stage])

    return value


def without_blocks(number: int, stage: str = "pruned") -> Reading:
    """Test accuracy in % once so many residual branches are gone, in greedy order; of runs that take out blocks.
    `stage` is `"pruned"` or `"fine_tuned"`.

    Raises:
        ValueError: when read, a record that did not go so far, or was not fine-tuned there.

    >>> greedy = [{"gone": ["layer1.1"], "pruned": {"test": {"correct": 6, "examples": 10}}}]
    >>> from companion.records import Run
    >>> record = Record(Run("any", "smoke", "none", 0), {"blocks": {"single": [], "greedy": greedy}}, [], {}, {})
    >>> without_blocks(1)(record)
    60.0
    """

    def value(record: Record) -> float:
        there = {len(entry["gone"]): entry for entry in record.result.get("blocks", {}).get("greedy", [])}
        if stage not in there.get(number, {}):
            have = [count for count, entry in there.items() if stage in entry]
            raise ValueError(f"record {record.run} has blocks out, {stage}, at {have}, not at {number}")
        return _score(there[number][stage])

    return value


def block_damage(record: Record, stage: str = "refreshed") -> float:
    """Points of test accuracy lost by taking out one residual branch, mean over all; with batch norm `"refreshed"` or
    `"raw"`.

    >>> from companion.records import Run
    >>> single = [{"block": "layer1.1", "refreshed": {"correct": 6, "examples": 10}}]
    >>> scores = {"test": {"correct": 9, "examples": 10}, "blocks": {"single": single, "greedy": []}}
    >>> block_damage(Record(Run("any", "smoke", "none", 0), scores, [], {}, {}))
    30.0
    """
    left = [100 * entry[stage]["correct"] / entry[stage]["examples"] for entry in record.result["blocks"]["single"]]
    return percent(record) - float(np.mean(left))


def pruned_on_average(record: Record, split: str = "validation") -> float:
    """Accuracy in %, mean over all levels of pruning and before any fine-tuning: by this, strengths are chosen.

    >>> from companion.records import Run
    >>> weights, filters = ([{"pruned": {"validation": {"correct": n, "examples": 10}}}] for n in (8, 6))
    >>> record = Record(Run("any", "smoke", "none", 0), {"weights": weights, "filters": filters}, [], {}, {})
    >>> pruned_on_average(record)
    70.0
    """
    levels = [*record.result["weights"], *record.result["filters"]]
    return float(np.mean([_score(level["pruned"], split) for level in levels]))


def sparsity_kept(points: float = 5.0) -> Reading:
    """The largest share of weights that one-shot pruning can take for at most so many points of test accuracy, linear
    between the recorded levels; 0 where not even the first level is that cheap, and never beyond the last.

    >>> from companion.records import Run
    >>> pruned = [{"sparsity": 0.8, "pruned": {"test": {"correct": 5, "examples": 10}}}]
    >>> scores = {"test": {"correct": 9, "examples": 10}, "weights": pruned}
    >>> record = Record(Run("any", "smoke", "none", 0), scores, [], {}, {})
    >>> sparsity_kept(points=10)(record)
    0.2
    """

    def value(record: Record) -> float:
        dense = percent(record)
        raw = [w for w in record.result["weights"] if w.get("criterion", "magnitude") == "magnitude"]
        levels = [(0.0, dense)] + [(w["sparsity"], _score(w["pruned"])) for w in raw]
        for (s, a), (after, b) in itertools.pairwise(levels):
            if b < dense - points:
                return s + (after - s) * (a - (dense - points)) / (a - b)
        return levels[-1][0]

    return value


def _level(record: Record, part: str, key: str, wanted: float, criterion: str = "magnitude") -> dict:
    there = [level for level in record.result.get(part, []) if level.get("criterion", "magnitude") == criterion]
    for level in there:
        if level[key] == wanted:
            return level
    raise ValueError(f"record {record.run} has {part} at {[level[key] for level in there]}, not at {wanted}")


def _score(scores: dict, split: str = "test") -> float:
    return 100 * scores[split]["correct"] / scores[split]["examples"]


# ----------------------------------------------------------------------------------------------------------- similarity
def cka_in_stages(record: Record) -> float:
    """Mean CKA between different blocks of the same stage.

    >>> from companion.records import Run
    >>> names = ["layer1.0", "layer1.1", "layer2.0"]
    >>> cka = {"layers": names, "values": [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"cka": cka}, {})
    >>> cka_in_stages(record)
    0.75
    """
    return _mean_cka(record, lambda a, b: a[:6] == b[:6])


def cka_of_neighbours(record: Record) -> float:
    """Mean CKA between each block and the next, across stages too.

    >>> from companion.records import Run
    >>> names = ["layer1.0", "layer1.1", "layer2.0"]
    >>> cka = {"layers": names, "values": [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"cka": cka}, {})
    >>> cka_of_neighbours(record)
    0.625
    """
    blocks = [name for name in record.frame("cka").index if name.startswith("layer")]
    follows = set(itertools.pairwise(blocks))
    return _mean_cka(record, lambda a, b: (a, b) in follows)


def cka_of_blocks(record: Record) -> float:
    """Mean CKA between all different blocks.

    >>> from companion.records import Run
    >>> names = ["layer1.0", "layer1.1", "layer2.0"]
    >>> cka = {"layers": names, "values": [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"cka": cka}, {})
    >>> cka_of_blocks(record)
    0.5
    """
    return _mean_cka(record, lambda a, b: True)


def _mean_cka(record: Record, chosen: Callable[[str, str], bool]) -> float:
    table = record.frame("cka")
    blocks = [name for name in table.index if name.startswith("layer")]
    return float(np.mean([table.loc[a, b] for a, b in itertools.combinations(blocks, 2) if chosen(a, b)]))


# ----------------------------------------------------------------------------------------------------------------- flow
def path_length(record: Record) -> float:
    """Mean over steps inside the stages of ‖d_l‖/‖x_l‖, a step relative to where it starts.

    >>> from companion.records import Run
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"trajectory": {"relative_length": [0.25, 0.75]}}, {})
    >>> path_length(record)
    0.5
    """
    return float(np.mean(record.measures["trajectory"]["relative_length"]))


def path_angle(record: Record) -> float:
    """Mean turning angle inside the stages, in radians.

    >>> from companion.records import Run
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"trajectory": {"angle": [1.0, 2.0]}}, {})
    >>> path_angle(record)
    1.5
    """
    return float(np.mean(record.measures["trajectory"]["angle"]))


def straightness(record: Record) -> float:
    """Chord through length, mean over stages; 1 is straight.

    >>> from companion.records import Run
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"trajectory": {"straightness": [0.5, 0.75]}}, {})
    >>> straightness(record)
    0.625
    """
    return float(np.mean(record.measures["trajectory"]["straightness"]))


# ------------------------------------------------------------------------------------------------------------- weights
def small_weights(record: Record, epsilon: float = 0.1) -> float:
    """Percentage of the weights alive with abs(w) ≤ ε·RMS of those alive, layer by layer: ε-sparsity without scale.

    >>> from companion.records import Run
    >>> counts = [10] + [0] * (len(WEIGHT_EDGES) - 2) + [30]  # 10 of 40 weights are next to nothing
    >>> layer = {"shape": [4, 10], "zeros": 0, "histogram": counts}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"weights": {"layers": [layer]}}, {})
    >>> small_weights(record)
    25.0
    """
    below = alive = 0.0
    for layer in record.measures["weights"]["layers"]:
        counts = np.array(layer["histogram"], dtype=float)
        counts[0] -= layer["zeros"]
        left = counts.sum()
        threshold = epsilon * math.sqrt(math.prod(layer["shape"]) / left)  # histograms count in the RMS of all weights
        below += np.interp(threshold, [*WEIGHT_EDGES[1:]], np.cumsum(counts)[:-1])
        alive += left
    return float(100 * below / alive)


def folded_norms(record: Record, ending: str = "conv1") -> float:
    """Mean of ‖w‖·abs(γ)/σ over the filters of the convolutions inside blocks that end so: the filter as it acts.

    `"conv1"`: the inner filters, which can be removed; `"conv2"`: the last ones of each branch.

    >>> from companion.records import Run
    >>> layer = {"name": "layer1.0.conv1", "filter_norms": [1, 3], "bn_scale": [2, 2], "bn_deviation": [4, 4]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"weights": {"layers": [layer]}}, {})
    >>> folded_norms(record)
    1.0
    """
    return _of_filters(record, ending, lambda w, scale, deviation: w * scale / deviation)


def raw_norms(record: Record, ending: str = "conv1") -> float:
    """Mean of ‖w‖ over the same filters: before a batch norm it has no meaning by itself.

    >>> from companion.records import Run
    >>> layer = {"name": "layer1.0.conv1", "filter_norms": [1, 3], "bn_scale": [2, 2], "bn_deviation": [4, 4]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"weights": {"layers": [layer]}}, {})
    >>> raw_norms(record)
    2.0
    """
    return _of_filters(record, ending, lambda w, scale, deviation: w)


def inner_scale(record: Record) -> float:
    """Mean abs(γ) of the inner batch norms, those behind the first convolution of every block: the deviation of what
    the inner filters put out.

    It changes neither with the size of a filter before its batch norm nor with that of the layer's input, so it can be
    compared between networks. A factor on γ and β that the weights of the next convolution undo it does see.

    >>> from companion.records import Run
    >>> layer = {"name": "layer1.0.conv1", "filter_norms": [1, 3], "bn_scale": [2, -4], "bn_deviation": [4, 4]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"weights": {"layers": [layer]}}, {})
    >>> inner_scale(record)
    3.0
    """
    return _of_filters(record, "conv1", lambda w, scale, deviation: scale)


def inner_deviation(record: Record) -> float:
    """Mean σ of the same batch norms: the deviation of what the inner filters put out *before* it is normalised. With
    filters of unchanged `raw_norms` it follows the size of what they read.

    >>> from companion.records import Run
    >>> layer = {"name": "layer1.0.conv1", "filter_norms": [1, 3], "bn_scale": [2, -4], "bn_deviation": [4, 5]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"weights": {"layers": [layer]}}, {})
    >>> inner_deviation(record)
    4.5
    """
    return _of_filters(record, "conv1", lambda w, scale, deviation: deviation)


def branch_scale(record: Record) -> float:
    """Mean abs(γ) of the last batch norm of every branch: the scale of the residual step.

    >>> from companion.records import Run
    >>> layer = {"name": "layer1.0.conv2", "filter_norms": [1, 3], "bn_scale": [2, 2], "bn_deviation": [4, 4]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"weights": {"layers": [layer]}}, {})
    >>> branch_scale(record)
    2.0
    """
    return _of_filters(record, "conv2", lambda w, scale, deviation: scale)


def _of_filters(record: Record, ending: str, value: Callable[..., np.ndarray]) -> float:
    layers = [
        layer
        for layer in record.measures["weights"]["layers"]
        if layer["name"].startswith("layer") and layer["name"].endswith(ending)
    ]
    found = [
        value(*(np.abs(np.array(layer[key])) for key in ("filter_norms", "bn_scale", "bn_deviation")))
        for layer in layers
    ]
    return float(np.mean(np.concatenate(found)))


# --------------------------------------------------------------------------------------------------------- information
def about_image(record: Record) -> float:
    """Upper bound of I(X;T) in nats, mean over the blocks, see `measures.information`.

    >>> from companion.records import Run
    >>> found = {"layers": ["layer1.0", "layer1.1", "linear"], "about_image": [1.0, 2.0, 9.0]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"information": found}, {})
    >>> about_image(record)
    1.5
    """
    return float(np.mean(_blocks(record, "about_image")))


def about_label(record: Record) -> float:
    """I(T;Y) in nats between bounds, mean over the blocks, see `measures.information`.

    >>> from companion.records import Run
    >>> found = {"layers": ["layer1.0", "layer1.1", "linear"], "about_label": [1.0, 2.0, 9.0]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"information": found}, {})
    >>> about_label(record)
    1.5
    """
    return float(np.mean(_blocks(record, "about_label")))


def shared_information(record: Record) -> float:
    """Gaussian I(T_l; T_{l+1}) in nats, mean over neighbouring blocks, see `measures.information`.

    >>> from companion.records import Run
    >>> gaussian = {"layers": ["layer1.0", "layer1.1"], "values": [[0, 1.5], [1.5, 0]]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"information": {"gaussian": gaussian}}, {})
    >>> shared_information(record)
    1.5
    """
    table = record.measures["information"]["gaussian"]
    values = np.array(table["values"])
    at = [i for i, name in enumerate(table["layers"]) if name.startswith("layer")]
    return float(np.mean([values[i, j] for i, j in itertools.pairwise(at)]))


def _blocks(record: Record, name: str) -> list[float]:
    found = record.measures["information"]
    return [value for layer, value in zip(found["layers"], found[name], strict=True) if layer.startswith("layer")]


# ------------------------------------------------------------------------------------------------------------ gradients
def mean_cosine(key: str) -> Reading:
    """Mean over epochs of a cosine between gradients, such as `"cosine_cka_feature_flow"`.

    Raises:
        ValueError: when read, a record without it.

    >>> from companion.records import Run
    >>> curve = [{"cosine_loss_cka": 0.5}, {"cosine_loss_cka": 0.25}]
    >>> record = Record(Run("any", "smoke", "none", 0), {}, curve, {}, {})
    >>> mean_cosine("cosine_loss_cka")(record)
    0.375
    """

    def value(record: Record) -> float:
        found = [epoch[key] for epoch in record.curve if key in epoch]
        if not found:
            have = sorted(k for k in (record.curve[-1] if record.curve else {}) if k.startswith("cosine"))
            raise ValueError(f"record {record.run} has no {key!r}; it has {have}")
        return float(np.mean(found))

    return value
