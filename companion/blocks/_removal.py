"""A network without some of its blocks."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pandas as pd
from torch import Tensor, nn

from companion._checks import between, one_of, whole_number
from companion._progress import progress
from companion.blocks._effects import block_effects
from companion.blocks._names import find_blocks
from companion.features import (
    Forward,
    Layers,
    _first_tensor,
    bare_name,
    batches,
    evaluating,
    find_layers,
    hooked,
    run,
    unwrap,
)

# A column of `block_effects`: 1 where the smallest goes first, −1 where the largest does.
SCORES = {"cka": -1, "step": 1, "cosine": -1, "influence": 1, "angle": 1}
Linear = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.modules.batchnorm._BatchNorm


class PassThrough(nn.Identity):
    """What stands for a block that is gone: its first input, whatever else the network passes to it.

    Args:
        outputs: None: the input itself; a number: a tuple of so many, the input and then None.

    >>> import torch
    >>> PassThrough()(torch.ones(2), attention_mask=None), PassThrough(outputs=2)(torch.ones(2))
    (tensor([1., 1.]), (tensor([1., 1.]), None))
    """

    def __init__(self, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(iter((*args, *kwargs.values())))
        return x if self.outputs is None else (x, *[None] * (self.outputs - 1))

    def extra_repr(self) -> str:
        return "" if self.outputs is None else f"outputs={self.outputs}"


def without_blocks(
    model: nn.Module,
    names: Layers,
    example: Any = None,
    *,
    recalibrate: Tensor | Iterable[Any] | None = None,
    forward: Forward = None,
) -> nn.Module:
    """A deep copy of a network in which the named blocks pass their input on.

    The copy computes what the same network computes that is written without these blocks, and can be trained, saved
    (`pruning.filters.plan`), compiled and exported. A block that returns a tuple passes its input on as the first
    element, None for the others. Where blocks number their place in a cache (`layer_idx`, as decoders of Hugging Face
    do), those that stay are numbered anew.

    Args:
        names: see `features.find_layers`.
        example: a batch as `data` of `features.extract` holds them: it shows what a block takes and gives. None: the
            first batch of `recalibrate`; without one, too, a block must take one argument, and its weights and strides
            are looked at alone.
        recalibrate: data on which the running statistics of all batch norms are estimated anew, as plain means over
            batches, all else in evaluation mode; nothing where the network has none.
        forward: see `features.extract`.

    Raises:
        ValueError: a block whose output is not of its input's shape and dtype, or a tuple that holds more tensors than
            the first; the message says which blocks can go. Unknown names. A block with several arguments and no
            example.

    >>> import torch
    >>> from companion.models import digits_net
    >>> shorter = without_blocks(digits_net(), ["layer1.1", "layer1.2"])
    >>> shorter.layer1[1], shorter(torch.randn(5, 1, 8, 8)).shape
    (PassThrough(), torch.Size([5, 10]))
    """
    model = unwrap(model)
    chosen = find_layers(model, names)
    if example is None and recalibrate is not None:
        example = _first(recalibrate, forward)
    stand_ins = {}
    for name, found in _stand_ins(model, chosen, example, forward).items():
        if isinstance(found, str):
            others = chosen
            with suppress(ValueError):  # it has no blocks to find
                others = find_layers(model, find_blocks(model))
            reasons = _stand_ins(model, others, example, forward)
            removable = [other for other, why in reasons.items() if not isinstance(why, str)]
            raise ValueError(
                f"block {name!r} ({type(chosen[name]).__name__}) cannot pass its input on: {found}. "
                f"Blocks that can go: {removable}"
            )
        stand_ins[name] = found
    shorter = put_in(copy.deepcopy(model), stand_ins)
    if recalibrate is not None:
        _recalibrate(shorter, recalibrate, forward)
    return shorter


def remove_blocks(
    model: nn.Module,
    count: int,
    *,
    score: str | Mapping[str, float] | Callable[[nn.Module], float],
    data: Tensor | Iterable[Any] | None = None,
    blocks: Layers | None = None,
    greedy: bool = False,
    recalibrate: Tensor | Iterable[Any] | None = None,
    forward: Forward = None,
) -> tuple[nn.Module, pd.Series]:
    """A copy of a network without the `count` blocks that a score finds easiest to miss; and these, with their scores.

    Args:
        score: a column of `block_effects`, smallest first, of "cka" and "cosine" largest first, the mean over the calls
            of a block; a number for each block, smallest first; or a function of the network without the block (its
            accuracy), largest first.
        data: for `block_effects`, and to see what a block takes and gives, see `without_blocks`.
        blocks: those that may go; None: all of `find_blocks` that can.
        greedy: score those that are left again after each removal; else the scores in the whole network decide at once.
        recalibrate, forward: see `without_blocks`. A function scores networks that are recalibrated already.

    Returns:
        the network, and block → score in order of removal.

    Raises:
        ValueError: see `without_blocks` and `block_effects`; fewer than `count` blocks that can go; an unknown column;
            given numbers with `greedy`, or for other blocks.

    >>> import torch
    >>> from companion.models import digits_net
    >>> shorter, gone = remove_blocks(digits_net(), 2, score="influence", data=torch.randn(50, 1, 8, 8))
    >>> len(gone), [type(block).__name__ for block in shorter.layer1].count("PassThrough")
    (2, 2)
    """
    model, count = unwrap(model), whole_number(count=count)
    if isinstance(score, str):
        one_of(score=(score, SCORES))
        if data is None:
            raise ValueError(f"score={score!r} is measured: give data")
    elif not callable(score) and greedy:
        raise ValueError("greedy=True scores anew after each removal, which given numbers do not; use greedy=False")
    source = data if data is not None else recalibrate
    example = None if source is None else _first(source, forward)
    chosen = find_layers(model, find_blocks(model) if blocks is None else blocks)
    agree = _stand_ins(model, chosen, example, forward)
    left = [name for name in chosen if blocks is not None or not isinstance(agree[name], str)]
    between(1, len(left), count=count)

    def without(names: list[str]) -> nn.Module:
        return without_blocks(model, names, example, recalibrate=recalibrate, forward=forward)

    def scores(gone: list[str]) -> pd.Series:
        """Smallest goes first."""
        if callable(score):
            return pd.Series({name: -score(without([*gone, name])) for name in progress(left, "blocks")})
        if isinstance(score, str):
            network = without(gone) if gone else model
            effects = block_effects(network, data, left, forward=forward)[score]  # type: ignore[arg-type]
            block = [name if name in left else name.rpartition("#")[0] for name in effects.index]  # of a later call
            return SCORES[score] * effects.groupby(block, sort=False).mean()
        one_of(**{f"score of {name}": (name, score.keys()) for name in left})
        return pd.Series({name: score[name] for name in left}, dtype=float)

    order: dict[str, float] = {}
    for _ in progress(range(count if greedy else 1), "removal"):
        ranked = scores([*order]).sort_values(kind="stable")
        for name in ranked.index[: 1 if greedy else count]:
            order[name] = ranked[name]
            left.remove(name)
    sign = SCORES[score] if isinstance(score, str) else -1 if callable(score) else 1
    return without([*order]), sign * pd.Series(order, name=score if isinstance(score, str) else "score")


def put_in(model: nn.Module, stand_ins: Mapping[str, PassThrough]) -> nn.Module:
    """The network itself with these in place of its blocks."""
    raw: dict[str, str] = {}
    for name, _ in model.named_modules(remove_duplicate=False):
        raw.setdefault(bare_name(name), name)  # the outermost of a wrapped block
    for name, stand_in in stand_ins.items():
        block = unwrap(model.get_submodule(raw[name]))
        # What the network asks of a block before it runs it, such as its kind of attention.
        known = {key: value for key, value in vars(block).items() if isinstance(value, str | int | float)}
        vars(stand_in).update({key: value for key, value in known.items() if not hasattr(stand_in, key)})
        containers: dict[nn.Module, None] = {}
        for path, module in [*model.named_modules(remove_duplicate=False)]:
            if unwrap(module) is block and path in raw.values():  # a block may lie in several places
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, stand_in)
                containers[model.get_submodule(parent)] = None
        for container in containers:
            _renumber(container, block, _kinds_of_attention(model))
    return model


def _stand_ins(
    model: nn.Module, blocks: Mapping[str, nn.Module], example: Any, forward: Forward
) -> dict[str, PassThrough | str]:
    """What can stand for each block, or why nothing can."""
    if example is None:
        return {name: _by_structure(block) for name, block in blocks.items()}
    found: dict[str, PassThrough | str] = {}

    def seen(name: str, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(found.get(name), str):
            found[name] = _by_values(inputs, output)

    with hooked(blocks, seen), evaluating(model):
        run(model, next(batches(example)) if isinstance(example, Tensor) else example, forward)
    return {name: found.get(name, "it does not run") for name in blocks}


def _first(data: Tensor | Iterable[Any], forward: Forward) -> Any:
    if isinstance(data, Iterator):
        raise ValueError(f"data is read more than once: give a list, a loader or a tensor, not a {type(data).__name__}")
    return next(batches(data, whole=forward is not None))


def _by_values(inputs: tuple[Any, ...], output: Any) -> PassThrough | str:
    x, y, number = inputs[0] if inputs else None, output, None
    if isinstance(output, tuple | list) and output:
        y, number = output[0], len(output)
        if _first_tensor(*output[1:]) is not None:
            return f"it returns a {type(output).__name__} with further tensors after the first"
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return f"it takes a {type(x).__name__} and gives a {type(y).__name__}"
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"it takes {tuple(x.shape)} of {x.dtype} and gives {tuple(y.shape)} of {y.dtype}"
    return PassThrough(number)


def _by_structure(block: nn.Module) -> PassThrough | str:
    arguments = [*inspect.signature(block.forward).parameters]
    layers: list[Any] = [module for module in block.modules() if isinstance(module, Linear)]
    if len(arguments) != 1 or not layers:
        return f"it takes {arguments}, and what it makes of them no weights tell; give an example"
    given = getattr(layers[0], "in_channels", getattr(layers[0], "in_features", None))
    made = getattr(layers[-1], "out_channels", getattr(layers[-1], "out_features", None))
    if given != made:
        return f"its weights take {given} channels and give {made}"
    strides: list[Any] = [getattr(module, "stride", 1) for module in block.modules()]
    if any(set(stride if isinstance(stride, tuple) else (stride,)) != {1} for stride in strides):
        return "it has a stride; give an example if its input and output agree all the same"
    return PassThrough()


def _recalibrate(model: nn.Module, data: Tensor | Iterable[Any], forward: Forward) -> None:
    norms = [module for module in model.modules() if isinstance(module, Norm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
            norm.train()
        for x in batches(data, minimum=2, whole=forward is not None):
            run(model, x, forward)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _renumber(container: nn.Module, gone: nn.Module, kinds: dict[int, str]) -> None:
    """Let the blocks that stay take the first places in a cache, of those with their kind of attention: a cache reads
    its length off its first place of a kind."""
    place = _place(gone)
    kind = kinds.get(place)
    stay = {block: _place(block) for block in container.children()}
    alike = sorted(
        ((at, block) for block, at in stay.items() if at >= 0 and kinds.get(at) == kind), key=operator.itemgetter(0)
    )
    if place < 0 or set(stay.values()) == {-1}:
        return
    if not alike:
        raise ValueError(f"the last block of {kind} cannot go: the network reads the length of its cache off it")
    for new, (_, block) in zip(sorted([place, *(at for at, _ in alike)]), alike, strict=False):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new  # type: ignore[assignment]


def _place(block: nn.Module) -> int:
    """A block's place in a cache; −1 where it has none."""
    found = (getattr(module, "layer_idx", None) for module in block.modules())
    return next((at for at in found if isinstance(at, int)), -1)


def _kinds_of_attention(model: nn.Module) -> dict[int, str]:
    configs: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    return dict(enumerate(next((kinds for c in configs if (kinds := getattr(c, "layer_types", None))), [])))
