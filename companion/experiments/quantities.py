"""Quantities: every number that a record keeps of a trained network, so that no figure needs the network again.

How it is measured (a network → plain JSON, rounded to the digits that a figure can show) and how it is read back (a
record → one number, a `Reading`, by whose name runs are compared over seeds) stand side by side.

Chapter *Identity layers* compares by them; page *Running experiments* lists them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import flow
from companion._numbers import float64
from companion.blocks import compared_layers, same_stage, stage_of
from companion.experiments.records import Record
from companion.features import Layers, batches, device_of, evaluating, extract, find_layers, hooked, run
from companion.information import gaussian_estimate, kolchinsky_tracey, noisy_label_information
from companion.regularizers import FeaturePenalty
from companion.similarity import cka_map

__all__ = [
    "WEIGHT_EDGES",
    "Reading",
    "about_image",
    "about_label",
    "after_pruning",
    "after_removal",
    "block_damage",
    "branch_scale",
    "cka_between_stages",
    "cka_in_stages",
    "cka_of_blocks",
    "cka_of_neighbours",
    "convolutions",
    "deviations",
    "flow_by_example",
    "folded_norms",
    "geometry",
    "gradient_cosines",
    "information",
    "inner_deviation",
    "inner_scale",
    "logarithm",
    "matrix",
    "mean_cosine",
    "of_network",
    "path_angle",
    "path_length",
    "percent",
    "pruned_on_average",
    "raw_norms",
    "rounded",
    "shared_information",
    "small_weights",
    "sparsity_kept",
    "straightness",
    "trajectory",
    "weights",
    "without_blocks",
]

Reading = Callable[[Record], float]


def convolutions(name: str, module: nn.Module) -> bool:
    """Every convolution and linear layer of a network.

    >>> from companion.models import mlp
    >>> [name for name, module in mlp([64, 32, 10]).named_modules() if convolutions(name, module)]
    ['linear1', 'linear2']
    """
    return isinstance(module, nn.Conv2d | nn.Linear)


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers with `digits` significant digits; tensors become lists.

    >>> rounded({"values": torch.tensor([0.123456, 1234.56])}, digits=3)
    {'values': [0.123, 1230.0]}
    """
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(item, digits) for item in value]
    return value


def matrix(table: pd.DataFrame) -> dict[str, Any]:
    """A table layers × layers as `{"layers", "columns", "values"}`, four decimals.

    >>> matrix(pd.DataFrame([[1.0, 0.5]], index=["a"], columns=["a", "b"]))
    {'layers': ['a'], 'columns': ['a', 'b'], 'values': [[1.0, 0.5]]}
    """
    return {"layers": list(table.index), "columns": list(table.columns), "values": table.round(4).to_numpy().tolist()}


def logarithm(reading: Reading) -> Reading:
    """The natural logarithm of a reading: its differences are relative changes.

    Raises:
        ValueError: when read, a record whose number is not above 0.
    """

    def value(record: Record) -> float:
        if not (size := reading(record)) > 0:
            raise ValueError(f"record {record.run}: the logarithm of {size}; only sizes above 0 have one")
        return math.log(size)

    return value


# ------------------------------------------------------------------------------------------------------------- accuracy
def percent(record: Record) -> float:
    """Test images classified correctly, in %, by the net of the last epoch."""
    return 100 * record.accuracy()


def after_pruning(sparsity: float, criterion: str = "magnitude") -> Reading:
    """Test accuracy in % once the smallest weights are gone, in one shot, by `"magnitude"` or `"scale_free"`.

    Raises:
        ValueError: when read, a record without that level.
    """

    def value(record: Record) -> float:
        levels = {level["sparsity"]: level["pruned"] for level in _weights_out(record, criterion)}
        return _at(sparsity, levels, record, "weights")

    return value


def after_removal(macs: float, stage: str = "fine_tuned") -> Reading:
    """Test accuracy in % once whole filters are gone, at this share of the multiply-adds, `"pruned"` or `"fine_tuned"`.

    Raises:
        ValueError: when read, a record without that level.
    """

    def value(record: Record) -> float:
        shares = record.run.settings.get("prune", {}).get("macs", [])
        levels = dict(zip(shares, (level[stage] for level in record.result.get("filters", [])), strict=True))
        return _at(macs, levels, record, "filters, in shares of the multiply-adds,")

    return value


def without_blocks(number: int, stage: str = "pruned") -> Reading:
    """Test accuracy in % once so many residual branches are gone, in greedy order, `"pruned"` or `"fine_tuned"`.

    Raises:
        ValueError: when read, a record that did not go so far, or was not fine-tuned there.
    """

    def value(record: Record) -> float:
        greedy = record.result.get("blocks", {}).get("greedy", [])
        levels: dict[float, Any] = {len(entry["gone"]): entry[stage] for entry in greedy if stage in entry}
        return _at(number, levels, record, f"blocks out, {stage},")

    return value


def _at(wanted: float, levels: Mapping[float, Mapping[str, Any]], record: Record, what: str) -> float:
    if wanted not in levels:
        raise ValueError(f"record {record.run} has {what} at {[*levels]}, not at {wanted}")
    return _percent(levels[wanted]["test"])


def block_damage(record: Record) -> float:
    """Points of test accuracy lost with one residual branch, batch norm refreshed, mean over all."""
    left = [_percent(entry["refreshed"]) for entry in record.result["blocks"]["single"]]
    return percent(record) - float(np.mean(left))


def pruned_on_average(record: Record) -> float:
    """Validation accuracy in %, mean over all levels of pruning, not fine-tuned: by this, strengths are chosen."""
    levels = [*record.result["weights"], *record.result["filters"]]
    return float(np.mean([_percent(level["pruned"]["validation"]) for level in levels]))


def sparsity_kept(points: float = 5.0) -> Reading:
    """The largest share of weights that one-shot pruning can take for at most so many points of test accuracy, linear
    between the recorded levels; 0 where not even the first level is that cheap, and never beyond the last."""

    def value(record: Record) -> float:
        out, least = _weights_out(record, "magnitude"), percent(record) - points
        levels = [(0.0, percent(record)), *((level["sparsity"], _percent(level["pruned"]["test"])) for level in out)]
        for (s, a), (after, b) in itertools.pairwise(levels):
            if b < least:
                return s + (after - s) * (a - least) / (a - b)
        return levels[-1][0]

    return value


def _weights_out(record: Record, criterion: str) -> list[dict]:
    """The levels of one-shot pruning by a criterion; records of the first two rounds have raw magnitude alone."""
    levels = record.result.get("weights", [])
    return [level for level in levels if level.get("criterion", "magnitude") == criterion]


def _percent(part: Mapping[str, Any]) -> float:
    return 100 * part["correct"] / part["examples"]


# ----------------------------------------------------------------------------------------------------------- similarity
def cka_in_stages(record: Record) -> float:
    """Mean CKA between different blocks of the same stage.

    >>> from companion.experiments.records import Run
    >>> names = ["layer1.0", "layer1.1", "layer2.0"]
    >>> cka = {"layers": names, "values": [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]}
    >>> record = Record(Run("any", "smoke", "none", 0), {}, [], {"cka": cka}, {})
    >>> cka_in_stages(record)
    0.75
    """
    return _mean_cka(record, same_stage)


def cka_of_neighbours(record: Record) -> float:
    """Mean CKA between each block and the next, across stages too."""
    follows = _neighbours(record)
    return _mean_cka(record, lambda a, b: (a, b) in follows)


def cka_between_stages(record: Record) -> float:
    """Mean CKA between the last block of each stage and the first of the next, where FFR penalises no step."""
    follows = _neighbours(record)
    return _mean_cka(record, lambda a, b: (a, b) in follows and not same_stage(a, b))


def cka_of_blocks(record: Record) -> float:
    """Mean CKA between all different blocks."""
    return _mean_cka(record, lambda a, b: True)


def _neighbours(record: Record) -> set[tuple[str, str]]:
    return set(itertools.pairwise(filter(stage_of, record.frame("cka").index)))


def _mean_cka(record: Record, chosen: Callable[[str, str], bool]) -> float:
    table = record.frame("cka")
    blocks = [name for name in table.index if stage_of(name)]
    return float(np.mean([table.loc[a, b] for a, b in itertools.combinations(blocks, 2) if chosen(a, b)]))


# ----------------------------------------------------------------------------------------------------------------- flow
def trajectory(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The path through the blocks, stage by stage: means of ‖d_l‖, ‖d_l‖/‖x_l‖, turning angles (radians), and of every
    piece's straightness.

    >>> from companion.models import digits_net
    >>> found = trajectory(digits_net(), torch.randn(20, 1, 8, 8))
    >>> found["steps"], found["turns"], len(found["angle"])
    (['layer1.1', 'layer1.2', 'layer1.3'], ['layer1.1', 'layer1.2'], 2)
    """
    path = flow.trajectory(model, images)
    return rounded(
        {
            "steps": path.steps,
            "length": path.length.mean(1),
            "relative_length": path.relative_length.mean(1),
            "turns": path.turns,
            "angle": path.angle.mean(1),
            "straightness": path.straightness.mean(1),
        }
    )


def path_length(record: Record) -> float:
    """Mean over steps inside the stages of ‖d_l‖/‖x_l‖, a step relative to where it starts."""
    return float(np.mean(record.measures["trajectory"]["relative_length"]))


def path_angle(record: Record) -> float:
    """Mean turning angle inside the stages, in radians."""
    return float(np.mean(record.measures["trajectory"]["angle"]))


def straightness(record: Record) -> float:
    """Chord through length, mean over stages; 1 is straight."""
    return float(np.mean(record.measures["trajectory"]["straightness"]))


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def flow_by_example(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The path of every image through all blocks, across stages: by depth, by class, and by how hard the image is.

    Returns:
        `layers`: `steps` and `turns` by name, and of `relative_length` ‖d_l‖/‖x_l‖ and `angle` (radians) at each the
        `QUANTILES` over images; `classes`: means of both, class × layer; `margins`: the same for four groups of
        equal size, those of smallest margin (the logit of the class less the largest other one) first; `examples`:
        `label`, `margin`, sum of the relative lengths, sum of the angles, straightness.

    >>> from companion.models import digits_net
    >>> found = flow_by_example(digits_net(), torch.randn(40, 1, 8, 8), torch.arange(40) % 10)
    >>> found["layers"]["steps"], len(found["examples"]["angle"])
    (['layer1.1', 'layer1.2', 'layer1.3'], 40)
    """
    path = flow.trajectory(model, images, across_stages=True)
    with evaluating(model):
        logits = torch.cat([model(x.to(device_of(model, x))) for x in batches(images)]).float()
    labels = labels.to(logits.device)
    own = logits.gather(1, labels[:, None])[:, 0]
    margin = own - logits.scatter(1, labels[:, None], -torch.inf).max(1).values
    levels = torch.tensor(QUANTILES, device=path.length.device)
    groups = {
        "classes": [labels == label for label in range(int(labels.max()) + 1)],
        "margins": list(margin.argsort().chunk(4)),
    }
    values = {"relative_length": path.relative_length, "angle": path.angle}
    quantiles = {name: value.quantile(levels, dim=1).T for name, value in values.items()}
    totals = {name: value.sum(0) for name, value in values.items()}
    means = {
        kind: {name: [value[:, group].mean(1) for group in of] for name, value in values.items()}
        for kind, of in groups.items()
    }
    single = {"label": labels, "margin": margin, **totals, "straightness": path.straightness[0]}
    return rounded({"layers": {"steps": path.steps, "turns": path.turns, **quantiles}, **means, "examples": single}, 3)


# -------------------------------------------------------------------------------------------------------------- weights
# Edges of the histogram of abs(w) / RMS(layer): 1 is a typical weight, whatever the layer's scale.
WEIGHT_EDGES = [0.0, *(round(10 ** (k / 4), 6) for k in range(-16, 5))]


@torch.no_grad()
def deviations(
    model: nn.Module, images: Tensor
) -> dict[str, tuple[Float[Tensor, " inputs"], Float[Tensor, " outputs"]]]:
    """Standard deviations, over examples and positions, of every channel that goes into a convolution or linear layer,
    and of every channel that comes out, on `images` in eval mode.

    >>> double = nn.Sequential(nn.Linear(1, 1))
    >>> _ = nn.init.constant_(double[0].weight, 2.0)
    >>> deviations(double, torch.tensor([[1.0], [-1.0]]))
    {'0': (tensor([1.]), tensor([2.]))}
    """
    sums: dict[str, dict[str, Tensor]] = {}

    def seen(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept = sums.setdefault(name, {})
        for side, x in (("in", inputs[0]), ("out", output)):
            channels = 1 if isinstance(module, nn.Conv2d) else -1  # tokens have them last
            x = float64(x.detach().movedim(channels, -1).flatten(0, -2))
            new = torch.stack([torch.full_like(x[0], len(x)), x.sum(0), x.square().sum(0)])
            kept[side] = kept[side] + new if side in kept else new

    with evaluating(model), hooked(find_layers(model, convolutions), seen):
        for x in batches(images):
            run(model, x)

    def deviation(total: Tensor) -> Tensor:
        n, first, second = total
        return (second / n - (first / n).square()).clamp(min=0).sqrt().float()

    return {name: (deviation(of["in"]), deviation(of["out"])) for name, of in sums.items()}


def weights(model: nn.Module, images: Tensor | None = None) -> dict[str, Any]:
    """Of every convolution and linear layer: scale, zeros, histogram of its weights, filter norms, batch norm's scales;
    with `images` also the deviation of what goes in.

    Returns:
        `edges` of the histograms of abs(w) / RMS(layer), the last bin open, and `layers`, one entry a layer: `name`,
        `shape`, `rms`, `zeros` (exact ones), `histogram` (counts), `filter_norms` (L2, one a filter) and, where a batch
        norm comes right after, `bn_scale` (its γ) and `bn_deviation` (its running σ, before it normalises).
        `input_deviation` is the root mean square of the deviations of its input channels.

    >>> found = weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))["layers"][0]
    >>> found["shape"], sum(found["histogram"]), len(found["filter_norms"]), found["bn_scale"]
    ([4, 1, 3, 3], 36, 4, [1.0, 1.0, 1.0, 1.0])
    """
    modules = list(model.named_modules())
    entering = {} if images is None else {name: sigma for name, (sigma, _) in deviations(model, images).items()}
    layers = []
    for index, (name, module) in enumerate(modules):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        w = module.weight.detach().float().cpu()
        rms = float(w.square().mean().sqrt())
        edges = torch.tensor([*WEIGHT_EDGES, torch.inf])
        layer = {
            "name": name,
            "shape": list(w.shape),
            "rms": rms,
            "zeros": int((w == 0).sum()),
            "histogram": torch.histogram(w.abs().flatten() / (rms or 1.0), bins=edges).hist.int(),
            "filter_norms": w.flatten(1).norm(dim=1),
        }
        if name in entering:
            layer["input_deviation"] = float(entering[name].square().mean().sqrt())
        follower = modules[index + 1][1] if index + 1 < len(modules) else None
        if isinstance(module, nn.Conv2d) and isinstance(follower, nn.BatchNorm2d) and follower.weight is not None:
            layer["bn_scale"] = follower.weight.detach().float().cpu()
            variance = follower.running_var
            layer["bn_deviation"] = [] if variance is None else (variance + follower.eps).sqrt().float().cpu()
        layers.append(rounded(layer, 3))
    return {"edges": WEIGHT_EDGES, "layers": layers}


def small_weights(record: Record, epsilon: float = 0.1) -> float:
    """Percentage of the weights alive with abs(w) ≤ ε·RMS of those alive, layer by layer: ε-sparsity without scale."""
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
    """Mean of ‖w‖·abs(γ)/σ over the filters of the convolutions inside blocks that end so: `"conv1"`, the inner ones,
    which can be removed; `"conv2"`, the last ones of each branch.

    It compares filters of one layer. Between networks whose features differ in size take `inner_scale`: this doubles
    when a layer's input is halved, σ being halved too.
    """
    layers = _of_filters(record, ending)
    return float((layers["filter_norms"] * layers["bn_scale"] / layers["bn_deviation"]).mean())


def raw_norms(record: Record, opening: bool | None = None) -> float:
    """Mean of ‖w‖ over the inner filters: it changes with every rescaling of a filter, which the batch norm undoes.

    `opening`: of the first block of every stage alone (True), where FFR penalises no step; of the others (False).
    """
    return float(_of_filters(record, "conv1", opening)["filter_norms"].mean())


def inner_scale(record: Record, opening: bool | None = None) -> float:
    """Mean abs(γ) of the batch norms behind the first convolution of every block: the deviation of what the inner
    filters put out, whatever the size of a filter or of the layer's input. So it compares networks.

    `opening`: as of `raw_norms`.
    """
    return float(_of_filters(record, "conv1", opening)["bn_scale"].mean())


def inner_deviation(record: Record) -> float:
    """Mean σ of the same batch norms: the deviation of what the inner filters put out *before* it is normalised."""
    return float(_of_filters(record, "conv1")["bn_deviation"].mean())


def branch_scale(record: Record, opening: bool | None = None) -> float:
    """Mean abs(γ) of the last batch norm of every branch: the scale of the residual step.

    `opening`: as of `raw_norms`.
    """
    return float(_of_filters(record, "conv2", opening)["bn_scale"].mean())


def _of_filters(record: Record, ending: str, opening: bool | None = None) -> dict[str, np.ndarray]:
    """Sizes of all filters of the convolutions inside blocks that end so; in the first block of every stage alone, in
    the others, or (None) in all."""
    layers = record.measures["weights"]["layers"]
    inside = [layer for layer in layers if stage_of(layer["name"]) and layer["name"].endswith(ending)]
    stages = [stage_of(layer["name"]) for layer in inside]
    first = [stage != before for before, stage in itertools.pairwise([None, *stages])]
    chosen = [layer for layer, opens in zip(inside, first, strict=True) if opening in (None, opens)]
    keys = ("filter_norms", "bn_scale", "bn_deviation")
    return {key: np.abs(np.concatenate([layer[key] for layer in chosen])) for key in keys}


# ---------------------------------------------------------------------------------------------------------- information
def information(model: nn.Module, images: Tensor, labels: Tensor, noise: float = 0.25) -> dict[str, Any]:
    """What the blocks know of each other, of the image and of the label, in nats; blocks averaged over positions.

    Every block T gets Gaussian noise on each feature, of deviation `noise` times the root mean square norm of the
    centred block.

    Returns:
        `gaussian`: I(T_i; T_j) as if both were jointly Gaussian, layers × layers, its diagonal left 0; `layers`;
        `noise`; by layer `about_image`, the upper bound of I(X; T), at most ln of the number of images, and
        `about_label`, a difference of such bounds, see `information.noisy_label_information`.

    >>> from companion.models import digits_net
    >>> found = information(digits_net(blocks=2), torch.randn(100, 1, 8, 8), torch.arange(100) % 10)
    >>> found["layers"], len(found["about_label"])
    (['relu', 'layer1.0', 'layer1.1', 'linear'], 4)
    """
    features = extract(model, images, compared_layers(model), reduce="average_pool")
    features = {name: float64(x) - float64(x).mean(0) for name, x in features.items()}
    features = {name: x / x.square().sum(1).mean().sqrt().clamp(min=1e-12) for name, x in features.items()}
    chance = torch.Generator().manual_seed(0)
    noisy = {
        name: x + noise * torch.randn(x.shape, generator=chance, dtype=x.dtype).to(x.device)
        for name, x in features.items()
    }
    names = list(features)
    gaussian = torch.zeros(len(names), len(names), dtype=torch.double)
    for i, j in itertools.combinations(range(len(names)), 2):
        gaussian[i, j] = gaussian[j, i] = gaussian_estimate(noisy[names[i]], noisy[names[j]]).value
    about = {
        "about_image": [kolchinsky_tracey(x, noise=noise).value for x in features.values()],
        "about_label": [noisy_label_information(x, labels, noise=noise).value for x in features.values()],
    }
    found = {name: rounded([float(value) for value in values]) for name, values in about.items()}
    table = pd.DataFrame(gaussian.numpy(), index=names, columns=names)
    return {"gaussian": matrix(table), "layers": names, "noise": noise, **found}


def about_image(record: Record) -> float:
    """Upper bound of I(X;T) in nats, mean over the blocks, see `information`."""
    return float(np.mean(_blocks(record, "about_image")))


def about_label(record: Record) -> float:
    """I(T;Y) in nats between bounds, mean over the blocks, see `information`."""
    return float(np.mean(_blocks(record, "about_label")))


def shared_information(record: Record) -> float:
    """Gaussian I(T_l; T_{l+1}) in nats, mean over neighbouring blocks, see `information`."""
    table = record.measures["information"]["gaussian"]
    values = np.array(table["values"])
    at = [i for i, name in enumerate(table["layers"]) if stage_of(name)]
    return float(np.mean([values[i, j] for i, j in itertools.pairwise(at)]))


def _blocks(record: Record, name: str) -> list[float]:
    found = record.measures["information"]
    return [value for layer, value in zip(found["layers"], found[name], strict=True) if stage_of(layer)]


# ------------------------------------------------------------------------------------------------------------- geometry
def geometry(model: nn.Module, images: Tensor, layers: Layers | None = None) -> dict[str, Any]:
    """Two principal components of the examples at every layer, unit variance in all, each layer turned onto the one
    before (orthogonal Procrustes), for components are defined up to sign and nearly up to rotation.

    Returns:
        `layers`, `points` (layers × examples × 2) and `explained`, the share of the layer's variance that the two
        components hold.

    >>> from companion.models import digits_net
    >>> found = geometry(digits_net(blocks=2), torch.randn(20, 1, 8, 8))
    >>> found["layers"], torch.tensor(found["points"]).shape
    (['relu', 'layer1.0', 'layer1.1', 'linear'], torch.Size([4, 20, 2]))
    """
    points: list[Tensor] = []
    explained: list[float] = []
    features = extract(model, images, compared_layers(model) if layers is None else layers)
    for x in features.values():
        x = float64(x - x.mean(0))
        u, s, _ = torch.linalg.svd(x, full_matrices=False)
        total = s.square().sum()
        plane = u[:, :2] * s[:2] / total.sqrt().clamp(min=1e-300) * len(x) ** 0.5
        if points:
            a, _, b = torch.linalg.svd(plane.T @ points[-1])
            plane = plane @ (a @ b)
        points.append(plane)
        explained.append(float(s[:2].square().sum() / total.clamp(min=1e-300)))
    return {"layers": list(features), "points": rounded(points, 3), "explained": rounded(explained, 3)}


# ------------------------------------------------------------------------------------------------------------ gradients
def gradient_cosines(
    model: nn.Module, x: Tensor, y: Tensor, penalties: Mapping[str, Callable[[], Tensor]]
) -> dict[str, float]:
    """Cosine of the angle between the gradients of the loss and of every penalty, for one batch in training mode.

    Weights that are exactly 0 are left out: under a mask they do not move. Random states, batch norm's statistics and
    the penalties' own states are left as they were; one that is due every few steps is asked as when it last was.

    Returns:
        `cosine_A_B` for every two of the terms, `loss` and the penalties by their names; 0 where a gradient is 0.

    >>> model = nn.Linear(4, 2)
    >>> shrink = {"l2": lambda: model.weight.square().sum()}
    >>> list(gradient_cosines(model, torch.randn(8, 4), torch.arange(8) % 2, shrink))
    ['cosine_loss_l2']
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    stateful: list[Any] = [p for p in penalties.values() if hasattr(p, "load_state_dict")]
    states = [(p, p.state_dict()) for p in stateful]
    weights = [p for p in model.parameters() if p.requires_grad]
    devices = [x.device] if x.device.type == "cuda" else []
    training = model.training
    try:
        for penalty in penalties.values():
            if isinstance(penalty, FeaturePenalty):  # the last call that was due
                penalty.load_state_dict({"calls": penalty.calls - penalty.calls % penalty.every})
        with torch.random.fork_rng(devices):
            model.train()
            terms = {"loss": nn.functional.cross_entropy(model(x), y)}
            terms |= {name: penalty() for name, penalty in penalties.items()}
            gradients = {}
            for name, term in terms.items():
                found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
                alive = [(g * (w != 0)).flatten() for g, w in zip(found, weights, strict=True)]
                whole = float64(torch.cat(alive))
                gradients[name] = nn.functional.normalize(whole, dim=0)
    finally:
        model.train(training)
        for penalty, state in states:
            penalty.load_state_dict(state)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return {
        f"cosine_{a}_{b}": rounded(float(gradients[a] @ gradients[b])) for a, b in itertools.combinations(gradients, 2)
    }


def mean_cosine(key: str) -> Reading:
    """Mean over epochs of a cosine between gradients, such as `"cosine_cka_feature_flow"`.

    Raises:
        ValueError: when read, a record without it.
    """

    def value(record: Record) -> float:
        found = [epoch[key] for epoch in record.curve if key in epoch]
        if not found:
            have = sorted(k for k in (record.curve[-1] if record.curve else {}) if k.startswith("cosine"))
            raise ValueError(f"record {record.run} has no {key!r}; it has {have}")
        return float(np.mean(found))

    return value


# ------------------------------------------------------------------------------------------------------ a whole network
def of_network(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The measures that every training run records, on held-out `images` on the model's device.

    >>> from companion.models import digits_net
    >>> list(of_network(digits_net(blocks=2), torch.randn(20, 1, 8, 8)))
    ['cka', 'weights', 'trajectory']
    """
    return {
        "cka": matrix(cka_map(model, images, compared_layers(model))),
        "weights": weights(model, images[:256]),
        "trajectory": trajectory(model, images[:256]),
    }
