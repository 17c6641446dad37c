"""Flow: the trajectory of an example through a network, as a polygon in feature space.

Each layer's features are one vertex, x₀, x₁, …, x_L; the steps are d_l = x_{l+1} − x_l. A difference needs two features
of one shape: `polygons` cuts where the shape changes, a trajectory across such a place is carried over by `carry`.
Chapter *Networks as flows* derives what is measured here.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion._checks import one_of
from companion.blocks import find_blocks, stages
from companion.features import (
    FeatureTap,
    Forward,
    Layers,
    Select,
    _parts,
    batches,
    evaluating,
    find_layers,
    hooked,
    masked,
    run,
    unwrap,
)

__all__ = [
    "Trajectory",
    "carry",
    "lengths",
    "measure",
    "polygons",
    "second_differences",
    "stages",
    "steps",
    "straightness",
    "tap",
    "trajectory",
    "turning_angles",
    "vertices",
]


# ------------------------------------------------------------------------------------------------- from layers to steps
def carry(x: Float[Tensor, "examples *feature"], shape: Sequence[int]) -> Float[Tensor, "examples *shape"]:
    """x in the shape of a later layer, without parameters: average pooling to its resolution, zeros in new channels.

    The zeros are shared between both ends of the channel axis, as in the type-A shortcut of `models.ResNet`. Linear in
    x, and never longer than it; x itself where the shape is the same.

    Args:
        x: maps (examples, channels, height, width) or vectors (examples, features).
        shape: the later layer's, without the examples.

    Raises:
        ValueError: fewer channels, a finer resolution, or another number of dimensions.

    >>> carry(torch.tensor([[1.0, 2.0]]), shape=[4])
    tensor([[0., 1., 2., 0.]])
    """
    old, new = tuple(x.shape[1:]), tuple(shape)
    if old == new:
        return x
    maps = len(old) == len(new) == 3 and new[1] <= old[1] and new[2] <= old[2]
    if not (maps or len(old) == len(new) == 1) or new[0] < old[0]:
        raise ValueError(
            f"features of shape {old} cannot be carried to {new}: it takes maps (channels, height, width) or vectors, "
            "as many channels or more, and a resolution that is not finer; cut the trajectory with `polygons`"
        )
    if maps and old[1:] != new[1:]:
        with torch.autocast(x.device.type, enabled=False):
            x = _averages(old[1], new[1], x) @ x @ _averages(old[2], new[2], x).T
    before = (new[0] - old[0]) // 2
    return F.pad(x, (0, 0) * (len(old) - 1) + (before, new[0] - old[0] - before))


def _averages(size: int, new: int, like: Tensor) -> Float[Tensor, "new size"]:
    """Adaptive average pooling of one dimension as a product, which takes a third of the time: row i averages bin i."""
    at, i = torch.arange(size, device=like.device), torch.arange(new, device=like.device)[:, None]
    inside = (at >= i * size // new) & (at < -(-(i + 1) * size // new))
    wide = torch.promote_types(like.dtype, torch.float32)  # whatever torch.get_default_dtype() says
    return (inside.to(wide) / inside.sum(1, keepdim=True)).to(like.dtype)


def steps(features: Sequence[Float[Tensor, "examples ..."]]) -> list[Float[Tensor, "examples ..."]]:
    """The steps d_l = x_{l+1} − x_l of every example; x_l is carried over where the shape changes (`carry`).

    Raises:
        ValueError: fewer than two layers, or features that cannot be carried.

    >>> steps([torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])])
    [tensor([[3., 4.]])]
    """
    if len(features) < 2:
        raise ValueError(f"a step needs two layers; got {len(features)}")
    return [y - carry(x, y.shape[1:]) for x, y in pairwise(features)]


# ------------------------------------------------------------------------------------------------ measures of the steps
def lengths(path: Sequence[Float[Tensor, "examples ..."]], norm: float = 2) -> Float[Tensor, "steps examples"]:
    """‖d_l‖ of every step, in units of the features.

    Raises:
        ValueError: no step, or a `norm` that is neither 1 nor 2.

    >>> lengths([torch.tensor([[3.0, 4.0]])]), lengths([torch.tensor([[3.0, 4.0]])], norm=1)
    (tensor([[5.]]), tensor([[7.]]))
    """
    _check(path, norm)
    return torch.stack([_norm(d, norm) for d in path])


def second_differences(
    path: Sequence[Float[Tensor, "examples ..."]], norm: float = 2
) -> Float[Tensor, "turns examples"]:
    """‖d_{l+1} − d_l‖ = ‖x_{l+2} − 2x_{l+1} + x_l‖, in units of the features: how much the step changes.

    Errors as for `lengths`.

    >>> second_differences([torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]])])
    tensor([[2.]])
    """
    _check(path, norm)
    turns = [_norm(e - carry(d, e.shape[1:]), norm) for d, e in pairwise(path)]
    return torch.stack(turns) if turns else _no_turns(path)


def turning_angles(path: Sequence[Float[Tensor, "examples ..."]]) -> Float[Tensor, "turns examples"]:
    """Angle between successive steps, in radians: 0 is straight on, π straight back.

    2·atan2(‖u − v‖, ‖u + v‖) of the unit steps u, v, because arccos⟨u, v⟩ has an infinite gradient at 0, the straight
    path. A step of length 0 has no direction and is skipped: its own angle is 0, and the next step's is taken from the
    step before it. The sum over turns is the total absolute curvature of the polygon (Milnor 1950).

    Raises:
        ValueError: no step.
        RuntimeError: a second derivative is asked for.

    >>> turning_angles([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])]).rad2deg()
    tensor([[90.]])
    """
    _check(path)
    angles, heading, scale = [], path[0], _scale(path[0])  # the last step that moved
    for e in path[1:]:
        if heading.shape != e.shape:
            heading = carry(heading, e.shape[1:])
            scale = _scale(heading)
        own = _scale(e)
        angles.append(_Angle.apply(heading, e, scale, own))
        moves = own != 0
        resting = not moves.all() if e.device.type == "cpu" else True  # elsewhere the answer would be waited for
        heading = torch.where(_as(moves, e), e, heading) if resting else e
        scale = torch.where(moves, own, scale)
    return torch.stack(angles) if angles else _no_turns(path)


def straightness(features: Sequence[Float[Tensor, "examples ..."]], norm: float = 2) -> Float[Tensor, " examples"]:
    """Chord over length, ‖x_L − x₀‖ / Σ_l ‖d_l‖, from 0 (a closed path) to 1 (a straight one, or one that rests). x₀ is
    carried from layer to layer, as the steps are: past them (7 × 7 → 5 × 5 → 3 × 3) it would end elsewhere.

    Raises:
        ValueError: see `steps` and `lengths`.

    >>> there_and_back = [torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2)]
    >>> straightness(there_and_back), straightness(there_and_back[:2])
    (tensor([0.]), tensor([1.]))
    """
    length = lengths(steps(features), norm).sum(0)
    chord = _norm(features[-1] - functools.reduce(lambda x, y: carry(x, y.shape[1:]), features), norm)
    rests = length == 0
    return torch.where(rests, 1, chord / torch.where(rests, 1, length))


class _Norm(torch.autograd.Function):
    """‖d‖ of every example. Its gradient is one product (2.5 times as fast as autograd's); at 0 it is 0."""

    @staticmethod
    def forward(ctx: Any, d: Float[Tensor, "examples *feature"], norm: float) -> Float[Tensor, " examples"]:
        length = torch.linalg.vector_norm(d.flatten(1), norm, dim=1)
        ctx.save_for_backward(d, length)
        ctx.norm = norm
        return length

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        d, length = ctx.saved_tensors
        if ctx.norm == 1:
            return d.sign() * _as(g, d), None
        return d * _as(g * _inverse(length), d), None


class _Angle(torch.autograd.Function):
    """θ = 2·atan2(‖u − v‖, ‖u + v‖) of every example's d and e; 0, with gradient 0, where one of them is 0.

    ∂θ/∂d = (u cos θ − v)/(‖d‖ sin θ), a combination of d and e; at θ = 0 and π, where every direction is as good, 0.
    `a` and `b` are 1/‖d‖ and 1/‖e‖.
    """

    @staticmethod
    def forward(ctx: Any, d: Tensor, e: Tensor, a: Tensor, b: Tensor) -> Float[Tensor, " examples"]:
        u, v = (d * _as(a, d)).flatten(1), (e * _as(b, e)).flatten(1)
        minus = torch.linalg.vector_norm(u.sub_(v), dim=1)
        plus = torch.linalg.vector_norm(u.add_(v, alpha=2), dim=1)
        angle = torch.where((a == 0) | (b == 0), 0, 2 * torch.atan2(minus, plus))
        ctx.save_for_backward(d, e, a, b, angle)
        return angle

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("turning angles have a first derivative only: take it without create_graph=True")
        d, e, a, b, angle = ctx.saved_tensors
        g = g * _inverse(angle.sin() * (angle < math.pi))
        across, along = -g * a * b, g * angle.cos()
        return (
            (d * _as(along * a**2, d)).addcmul_(e, _as(across, e)),
            (e * _as(along * b**2, e)).addcmul_(d, _as(across, d)),
            None,
            None,
        )


def _scale(d: Float[Tensor, "examples *feature"]) -> Float[Tensor, " examples"]:
    """1/‖d‖, a constant; NaN where ‖d‖ is not finite, as such a step has no direction and does not rest either."""
    length = torch.linalg.vector_norm(d.detach().flatten(1), dim=1)
    return _inverse(length + 0 * length)


def _norm(d: Float[Tensor, "examples *feature"], norm: float = 2) -> Float[Tensor, " examples"]:
    return _Norm.apply(d, norm)


def _inverse(x: Tensor) -> Tensor:
    """1/x, and 0 where x is 0; NaN stays NaN."""
    return torch.where(x == 0, 0, 1 / x)


def _as(per_example: Tensor, x: Tensor) -> Tensor:
    return per_example.view(-1, *[1] * (x.ndim - 1))


def _no_turns(path: Sequence[Tensor]) -> Float[Tensor, "0 examples"]:
    return path[0].new_zeros(0, len(path[0]))


def _check(path: Sequence[Tensor], norm: float = 2) -> None:
    one_of(norm=(norm, (1, 2)))
    if not path:
        raise ValueError("a path needs at least one step; `steps` makes them from the features of two layers or more")
    if len({len(d) for d in path}) > 1 or any(d.ndim < 2 for d in path):
        raise ValueError(
            f"every step is (examples, …) with the same examples in each; got shapes {[tuple(d.shape) for d in path]}"
        )


# ------------------------------------------------------------------------------------------------ of a model, on images
@dataclass(frozen=True)
class Trajectory:
    """Measures of every example's path through a network, layer by layer; the model is not needed any more.

    Attributes:
        stages: the layers of each polygon.
        steps: the layer at which each step ends, polygon after polygon.
        turns: the layer at which each turn is taken.
        size: ‖x_l‖ where each step begins.
        length: ‖d_l‖, see `lengths`.
        curvature: ‖d_{l+1} − d_l‖, see `second_differences`.
        angle: radians, see `turning_angles`.
        straightness: chord over length of each polygon.
    """

    stages: list[list[str]]
    steps: list[str]
    turns: list[str]
    size: Float[Tensor, "steps examples"]
    length: Float[Tensor, "steps examples"]
    curvature: Float[Tensor, "turns examples"]
    angle: Float[Tensor, "turns examples"]
    straightness: Float[Tensor, "stages examples"]

    @property
    def relative_length(self) -> Float[Tensor, "steps examples"]:
        """‖d_l‖/‖x_l‖: each step relative to where it starts; infinite from 0 on, and 0 where nothing moves."""
        return torch.where(self.length == 0, 0, self.length / self.size)


def polygons(features: Mapping[str, Tensor], across_stages: bool = False) -> list[dict[str, Tensor]]:
    """The trajectories in a network's features: one for each stage of at least two layers, or one across all.

    Raises:
        ValueError: no stage has two layers, or there is one layer only.

    >>> wide, narrow = torch.ones(2, 8), torch.ones(2, 4)
    >>> [list(polygon) for polygon in polygons({"a": narrow, "b": narrow, "c": wide})]
    [['a', 'b']]
    """
    shapes = {name: x.shape[1:] for name, x in features.items()}
    runs = [{name: features[name] for name in run} for run in ([list(shapes)] if across_stages else stages(shapes))]
    found = [run for run in runs if len(run) > 1]
    if not found:
        hint = "choose more layers" if across_stages or len(features) < 2 else "use across_stages=True, or other layers"
        raise ValueError(f"no trajectory: of the stages {[list(run) for run in runs]} none has two layers; {hint}")
    return found


def measure(features: Mapping[str, Tensor], *, across_stages: bool = False, norm: float = 2) -> Trajectory:
    """The measures of the trajectories in features (examples, …) by layer, in order of execution; in float32 those of
    half precision.

    Args:
        across_stages: one polygon through all layers, carried over where the shape changes; else one in each stage.
        norm: 1 or 2, for all but the angles.

    Raises:
        ValueError: see `polygons`, `steps` and `lengths`.

    >>> path = measure({"a": torch.tensor([[0.0, 0.0]]), "b": torch.tensor([[3.0, 4.0]])})
    >>> path.steps, path.length
    (['b'], tensor([[5.]]))
    """
    found = polygons(features, across_stages)
    names = [list(polygon) for polygon in found]
    xs = [[x if x.element_size() >= 4 else x.float() for x in polygon.values()] for polygon in found]
    paths = [steps(x) for x in xs]
    return Trajectory(
        stages=names,
        steps=[name for stage in names for name in stage[1:]],
        turns=[name for stage in names for name in stage[1:-1]],
        size=torch.cat([lengths(x[:-1], norm) for x in xs]),
        length=torch.cat([lengths(path, norm) for path in paths]),
        curvature=torch.cat([second_differences(path, norm) for path in paths]),
        angle=torch.cat([turning_angles(path) for path in paths]),
        straightness=torch.stack([straightness(x, norm) for x in xs]),
    )


def trajectory(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    layers: Layers | None = None,
    *,
    across_stages: bool = False,
    before_relu: bool = False,
    norm: float = 2,
    select: Select = None,
    forward: Forward = None,
    batch_size: int = 256,
) -> Trajectory:
    """Measures of the trajectories of all examples, in evaluation mode; the model is left as it was. Tokens that an
    `attention_mask` passed by name rules out are 0 all along, and add nothing.

    Args:
        data, forward: see `features.extract`.
        layers: see `features.find_layers`; None: the blocks, see `blocks.find_blocks` (in VGG every activation).
        select: see `features.FeatureTap`.
        across_stages, norm: see `measure`.
        before_relu: take each block's sum before the ReLU that ends it in place of its output, see `tap`.

    Raises:
        ValueError: see `features.batches`, `tap` and `measure`.

    >>> from companion.models import digits_net
    >>> path = trajectory(digits_net(), torch.randn(50, 1, 8, 8))
    >>> path.steps, path.angle.shape
    (['layer1.1', 'layer1.2', 'layer1.3'], torch.Size([2, 50]))
    """
    model, parts = unwrap(model), []  # a wrapper's forward may talk to other ranks, which may have fewer batches
    with evaluating(model), tap(model, layers, before_relu=before_relu, select=select) as features:
        for x in batches(data, batch_size, whole=forward is not None):
            run(model, x, forward)
            features.require()
            parts.append(measure(vertices(features, before_relu), across_stages=across_stages, norm=norm))
    tensors = [f.name for f in fields(Trajectory) if isinstance(getattr(parts[0], f.name), Tensor)]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in tensors}
    return replace(parts[0], **joined)


def tap(model: nn.Module, layers: Layers | None = None, *, before_relu: bool = False, **options: Any) -> FeatureTap:
    """A tap on the vertices of a model's trajectories, unreduced but for masked tokens, which are 0; read them by
    `vertices`.

    Args:
        layers: see `features.find_layers`; None: the blocks, see `blocks.find_blocks`.
        before_relu: tap what goes into the ReLUs of each block, of which `vertices` takes the one that ran last (of a
            layer that is a ReLU: what goes into it). The block must give what that ReLU gives.
        options: further ones of `FeatureTap`.

    Raises:
        ValueError: unknown layers; with `before_relu`, a layer without a ReLU module, or in the forward pass one that
            does not end with it.

    >>> from companion.models import digits_net
    >>> list(tap(digits_net(blocks=2), before_relu=True).layers)
    ['layer1.0.relu1', 'layer1.0.relu2', 'layer1.1.relu1', 'layer1.1.relu2']
    """
    chosen: Layers = find_blocks(model) if layers is None else layers
    options = {"reduce": masked, "inputs": before_relu, **options}
    if not before_relu:
        return FeatureTap(model, chosen, **options)
    blocks = find_layers(model, chosen)
    relus = [_relus(name, block) for name, block in blocks.items()]
    tapped = _BeforeReLU(model, list(itertools.chain(*relus)), **options)
    tapped.blocks, tapped.relus = blocks, relus
    return tapped


class _BeforeReLU(FeatureTap):
    """A tap on all ReLUs of each block: which of them runs last only a pass tells, not the order of definition. A block
    that gives something else than its last ReLU does, as where a sum follows, is refused."""

    blocks: Mapping[str, nn.Module]
    relus: list[list[str]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Block that is running → output of the ReLU that ran last in it, and its version.
        self._gave: dict[str, tuple[Tensor, int]] = {}

    def attach(self) -> Self:
        super().attach()
        for (name, block), relus in zip(self.blocks.items(), self.relus, strict=True):
            if relus != [name]:
                inner = {relu: self.layers[relu] for relu in relus}
                self._stack.enter_context(hooked(inner, functools.partial(self._after_relu, name)))
                self._stack.enter_context(hooked({name: block}, self._after_block))
        return self

    def _after_relu(self, block: str, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self._ignores():
            self._gave[block] = output, _version(output)

    def _after_block(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._ignores() or name not in self._gave:
            return
        given, version = self._gave.pop(name)
        if torch.compiler.is_compiling():  # a graph knows no memory; what it refuses is run, and looked at, eagerly
            same = output is given
        else:
            parts = [output, *_parts(output).values()]
            memory = [part.untyped_storage().data_ptr() for part in parts if isinstance(part, Tensor)]
            same = given.untyped_storage().data_ptr() in memory and _version(given) == version
        if not same:
            raise ValueError(
                f"block {name!r} ({type(module).__name__}) does not end with the last nn.ReLU that runs in it, so that "
                "before_relu=True has no meaning there; leave it out, or name the ReLUs themselves in layers=[...]"
            )

    def _clear(self) -> None:
        super()._clear()
        self._gave.clear()


def _version(x: Tensor) -> int:
    return -1 if torch.compiler.is_compiling() or x.is_inference() else x._version


def vertices(features: Mapping[str, Tensor], before_relu: bool = False) -> dict[str, Tensor]:
    """The layers of a `tap` in order; of the ReLUs of a block only the one that ran last, in its last call.

    Raises:
        ValueError: `before_relu` with features of something else than such a tap.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    >>> with tap(model, before_relu=True) as features:
    ...     _ = model(torch.randn(3, 2))
    >>> {name: tuple(x.shape) for name, x in vertices(features, before_relu=True).items()}
    {'1': (3, 4), '3': (3, 4)}
    """
    if not before_relu:
        return dict(features)
    if not isinstance(features, _BeforeReLU):
        raise ValueError(
            f"features is a {type(features).__name__}; before_relu=True reads a tap(..., before_relu=True) "
            "itself, which knows what ran last, and no copy of its features"
        )
    last = {i: name for name in features for i, relus in enumerate(features.relus) if name.partition("#")[0] in relus}
    return {name.partition("#")[0]: x for name, x in features.items() if name in last.values()}


def _relus(name: str, block: nn.Module) -> list[str]:
    relus = [inner for inner, module in block.named_modules() if isinstance(module, nn.ReLU | nn.ReLU6)]
    if not relus:
        raise ValueError(f"layer {name!r} ({type(block).__name__}) holds no nn.ReLU: before_relu=True has no meaning")
    return [f"{name}.{inner}".rstrip(".") for inner in relus]
