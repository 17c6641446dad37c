"""What each block does to its input, in one pass over the data."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion._checks import between
from companion._numbers import float64, float64_device
from companion.blocks._names import find_blocks
from companion.features import (
    FeatureTap,
    Forward,
    Layers,
    Reducer,
    _channels,
    _first_tensor,
    batches,
    evaluating,
    run,
    unwrap,
)
from companion.flow import turning_angles
from companion.similarity._cka import _centered, _conclude
from companion.similarity._intervals import _without_each
from companion.similarity._kernels import MINIMUM, gram

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 32  # rows whose steps are compared at a time
HSIC = ["cross", "own", "other"]
COLUMNS = ["step", "cosine", "angle", *HSIC, *(f"{name} without it" for name in HSIC)]


def block_effects(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    blocks: Layers | None = None,
    *,
    reduce: Reducer = "flatten",
    per_token: bool = True,
    forward: Forward = None,
    confidence: float = 0.95,
    batch_size: int = 256,
) -> pd.DataFrame:
    """How far each block takes its input x to its output y, one row a block, from one pass in evaluation mode.

    All but CKA are means of a number of each example. Where a block gives tokens (examples, tokens, channels) it is the
    mean over the example's tokens, those that an `attention_mask` passed by name counts; else x and y are one vector
    each. Under torch.distributed each rank measures its own share of the data.

    Args:
        data, forward: see `features.extract`.
        blocks: see `features.find_layers`; None: `find_blocks`. A block that returns a tuple is known by its first
            element; its input is its first tensor.
        reduce: for CKA alone, see `features.FeatureTap`.
        per_token: False takes an example's tokens as one vector, too.
        confidence: nominal coverage of the intervals over the drawing of examples: the normal one of the mean, for CKA
            the jackknife's, see `similarity.cka_interval`.

    Returns:
        block → `cka`, unbiased CKA(x, y), averaged over batches as in `similarity.MinibatchCKA`; `step`, ‖y − x‖/‖x‖;
        `cosine` of x and y; `influence`, 1 − cosine (Men et al. 2024, eq. 1); `angle` in radians between the block's
        step y − x and the next block's, see `flow.turning_angles`; each with its interval, `cka_low`, `cka_high`, ….
        `undefined` says why values are NaN: steps need an output in the input's shape, an angle two of them. `.attrs`
        holds the number of `examples` and the `confidence`.

    Raises:
        ValueError: see `features.FeatureTap` and `similarity.hsic`; fewer than 8 examples, no block among the layers
            that ran, a block whose output's first element is no tensor.

    >>> from companion.models import digits_net
    >>> table = block_effects(digits_net(), torch.randn(50, 1, 8, 8))
    >>> list(table.index), bool(table.influence.between(table.influence_low, table.influence_high).all())
    (['layer1.0', 'layer1.1', 'layer1.2', 'layer1.3'], True)
    """
    between(0, 1, open_low=True, open_high=True, confidence=confidence)
    model = unwrap(model)  # a wrapper's forward may talk to other ranks, which may have fewer batches
    parts: dict[str, list[Tensor]] = {}
    chosen = find_blocks(model) if blocks is None else blocks
    with evaluating(model), _Effects(model, chosen, reduce=reduce, per_token=per_token) as tap:
        for x in batches(data, batch_size, minimum=2 * MINIMUM, whole=forward is not None):
            tap.start()
            run(model, copy.deepcopy(x), forward)  # a model may overwrite its data
            if tap.rerun:  # and a block its input, which is kept from now on
                tap.start()
                run(model, copy.deepcopy(x), forward)
            tap.require()
            for name, numbers in tap.items():
                parts.setdefault(name, []).append(numbers)
    return _table(parts, tap.undefined, confidence)


class _Effects(FeatureTap):
    """A tap whose features are what a block does to each example: (examples, COLUMNS), float64."""

    def __init__(self, model: nn.Module, layers: Layers, *, reduce: Reducer, per_token: bool) -> None:
        super().__init__(model, layers, reduce=reduce, keep=_kernel)
        self.per_token = per_token
        self._finds_channels |= per_token
        self.undefined: dict[str, str] = {}
        self._overwritten: set[nn.Module] = set()
        self.start()

    def start(self) -> None:
        """Forget the pass before."""
        self.rerun = False
        self._inputs: list[tuple[Tensor, Tensor, int]] = []  # of the blocks that run, the innermost last
        self._last: tuple[Any, int, Tensor] | None = None  # the latest output, its version and kernel matrix
        self._heading: tuple[Tensor, Tensor] | None = None  # the latest step that moved, and where to note its turn

    def attach(self) -> Self:
        for module in self.layers.values():
            self._stack.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        return super().attach()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._elsewhere():
            return
        x = _first_tensor(args, kwargs)
        if x is None:
            raise ValueError(f"a block ({type(module).__name__}) gets no tensor")
        keep = module in self._overwritten or x.is_inference()
        self._inputs.append((x, x.clone() if keep else x, _version(x)))

    def _tensor(self, name: str, output: Any) -> Tensor:
        if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
            output = output[0]
        return super()._tensor(name, output)

    def _reduced(self, name: str, module: nn.Module, tensor: Tensor, output: Tensor, inputs: bool = False) -> Tensor:
        given, x, version = self._inputs.pop()
        numbers = torch.full((len(tensor), len(COLUMNS)), torch.nan, dtype=torch.float64)
        numbers = numbers.to(float64_device(tensor.device))
        if x is given and _version(x) != version:
            self._overwritten.add(module)
            self.rerun = True
            return numbers
        if len(tensor) < 2 * MINIMUM:
            raise ValueError(f"intervals need at least {2 * MINIMUM} examples; got {len(tensor)}")
        last = self._last if self._last is not None and self._last[0]() is given and self._last[1] == version else None
        if x.ndim == 3 and name in self._turned:
            x = x.transpose(0, 1)
        if len(x) != len(tensor):
            raise ValueError(
                f"block {name!r} ({type(module).__name__}) gets {tuple(x.shape)} and gives {tuple(tensor.shape)}: "
                "dimension 0 of both must hold the examples"
            )
        k = last[2] if last else super()._reduced(name, module, x, x, inputs=True)
        l = super()._reduced(name, module, tensor, output)  # noqa: E741
        self._last = weakref.ref(output), _version(output), l
        pairs = [_without_each(*pair) for pair in ((k, l), (k, k), (l, l))]
        numbers[:, 3:] = torch.stack([*(whole.expand(len(x)) for whole, _ in pairs), *(each for _, each in pairs)], 1)
        name = name if not self._calls.get(name) else f"{name}#{self._calls[name] + 1}"
        self.undefined[name] = ""
        if x.shape != tensor.shape:
            shapes = tuple(x.shape[1:]), tuple(tensor.shape[1:])
            self.undefined[name] = f"the input is {shapes[0]}, the output {shapes[1]}"
            self._heading = None
        else:
            self._steps(name, module, x, tensor, numbers)
        return numbers

    def _steps(self, name: str, module: nn.Module, x: Tensor, y: Tensor, numbers: Tensor) -> None:
        mask = None
        if self.per_token and y.ndim == 3 and _channels(name, module, self._latest, y.shape) == -1:
            mask = y.new_ones(y.shape[:2], dtype=torch.bool) if self._mask is None else self._mask.to(y.device).bool()
            if not mask.any(1).all():
                raise ValueError("an example without tokens that its attention_mask counts has no steps; leave it out")

        def rows(z: Tensor) -> Float[Tensor, "rows features"]:
            z = z.flatten(1) if mask is None else z.flatten(0, 1)
            return z if z.element_size() >= 4 else z.float()

        def mean(per_row: Float[Tensor, " rows"]) -> Float[Tensor, " examples"]:
            if mask is None:
                return float64(per_row)
            return float64(torch.where(mask, per_row.view(mask.shape), 0)).sum(1) / float64(mask.sum(1))

        x, y = rows(x), rows(y)
        d = y - x
        size, other, length = (torch.linalg.vector_norm(z, dim=1) for z in (x, y, d))
        rests, norms = length == 0, size * other
        numbers[:, 0] = mean(torch.where(rests, 0, length / size))
        cosine = torch.einsum("rf,rf->r", x, y) / torch.where(norms > 0, norms, 1)
        numbers[:, 1] = mean(torch.where(rests, 1, cosine.clamp(-1, 1)))
        if self._heading is not None and self._heading[0].shape == d.shape:
            heading, before = self._heading
            pairs = zip(heading.split(CHUNK), d.split(CHUNK), strict=True)
            before[:, 2] = mean(torch.cat([turning_angles(pair)[0] for pair in pairs]))
            d = torch.where(rests[:, None], heading, d) if rests.any() else d
        self._heading = d, numbers


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


def _kernel(x: Tensor) -> Float[Tensor, "n n"]:
    return _centered(gram(x), unbiased=True)


def _table(parts: dict[str, list[Tensor]], undefined: dict[str, str], confidence: float) -> pd.DataFrame:
    import pandas as pd

    wide = NormalDist().inv_cdf((1 + confidence) / 2)
    sums, means, errors = [], [], []
    for chunks in parts.values():
        numbers = torch.cat(chunks).cpu()
        n, sizes = len(numbers), torch.cat([torch.full((len(chunk), 1), len(chunk)) for chunk in chunks])
        whole, each = numbers[:, 3:6], numbers[:, 6:9]
        sums.append(whole.sum(0))  # n times the HSICs of each batch of n
        left = sums[-1] - sizes * whole + (sizes - 1) * each
        norm = (left[:, 1].clamp(min=0) * left[:, 2].clamp(min=0)).sqrt()
        left_out = torch.where(norm == 0, 0, left[:, 0] / norm)
        means.append(numbers[:, :3].mean(0))
        errors.append(torch.cat([left_out.var()[None] * (n - 1) ** 2 / n, numbers[:, :3].var(0) / n]).sqrt())
    cross, own, other = torch.stack(sums, 1)
    cka = _conclude(cross.diag(), own, other, [f"the input of {name}" for name in parts], [*parts]).diagonal()
    step, cosine, angle = torch.stack(means, 1)
    half = dict(zip(("cka", "step", "cosine", "angle"), wide * torch.stack(errors, 1), strict=True))
    half["influence"] = half["cosine"]
    columns: dict[str, Tensor] = {}
    for name, value in {"cka": cka, "step": step, "cosine": cosine, "influence": 1 - cosine, "angle": angle}.items():
        columns |= {name: value, f"{name}_low": value - half[name], f"{name}_high": value + half[name]}
    table = pd.DataFrame({name: value.numpy() for name, value in columns.items()}, pd.Index(parts, name="block"))
    last = "no step of its shape follows"
    table["undefined"] = [
        undefined[name] or (last if turn != turn else "") for name, turn in zip(parts, angle.tolist(), strict=True)
    ]
    table.attrs = {"examples": max(sum(map(len, chunks)) for chunks in parts.values()), "confidence": confidence}
    return table
