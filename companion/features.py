"""Features: the one place that taps a model.

A *tap* puts a forward hook on chosen layers and keeps what a measure needs **when the hook fires**: the reduced
features are computed (and copied where they would alias the layer's output) inside the hook, so an in-place ReLU right
after the layer cannot change them. Chapter *Feature similarity* explains what the reducers mean.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 10))
>>> with FeatureTap(model, layers=(nn.Conv2d, nn.Linear), reduce="average_pool") as features:
...     logits = model(torch.randn(5, 3, 4, 4))
>>> {name: tuple(x.shape) for name, x in features.items()}
{'0': (5, 8), '3': (5, 10)}
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

__all__ = [
    "REDUCERS",
    "FeatureTap",
    "Layers",
    "Reducer",
    "average_pool",
    "batches",
    "device_of",
    "evaluating",
    "extract",
    "find_blocks",
    "find_layers",
    "flatten",
    "per_position",
    "resolve_reducer",
    "unwrap",
]

Layers: TypeAlias = (
    "str | Iterable[str] | type[nn.Module] | Iterable[type[nn.Module]] | Callable[[str, nn.Module], bool]"
)
Reducer: TypeAlias = "str | Callable[[Tensor], Tensor] | None"


def _resolution(dtype: torch.dtype) -> float:
    """How far features may differ, relative to their size, and be the same: what is less is rounding of the network's
    own arithmetic. It decides everywhere what is *dead*, constant over examples. Integers count as float64.
    """
    # If every entry of n equal rows c is off by u of its size, the energy of the centred rows is u² of the raw n‖c‖²;
    # where they truly vary by d of their size, it is d². Through eight layers of sums of up to 4,096 products float32
    # was off by u < ε; layers of 16 bits, which sum in float32 and round once, by less. So u = 16 ε and 4 ε are ample.
    if not dtype.is_floating_point:
        dtype = torch.float64
    return (4 if dtype.itemsize < 4 else 16) * torch.finfo(dtype).eps


# ------------------------------------------------------------------------------------------------------------- reducers
def flatten(x: Float[Tensor, "examples *feature"]) -> Float[Tensor, "examples features"]:
    """One feature per channel *and position*: (N, C, H, W) → (N, C·H·W). Shifting the image changes the features; both
    papers compare conv maps this way. The width is large, so use the unbiased estimator.

    >>> flatten(torch.ones(5, 8, 4, 4)).shape
    torch.Size([5, 128])
    """
    return x.flatten(1)


def average_pool(x: Float[Tensor, "examples *feature"]) -> Float[Tensor, "examples channels"]:
    """One feature per channel, averaged over positions: maps (N, C, H, W) → (N, C), tokens (N, T, C) → (N, C). Ignores
    *where* a feature occurs; narrow, hence cheap, and the exact streaming estimator fits.

    >>> average_pool(torch.ones(5, 8, 4, 4)).shape, average_pool(torch.ones(5, 16, 8)).shape
    (torch.Size([5, 8]), torch.Size([5, 8]))
    """
    if x.ndim <= 2:
        return x
    return x.mean(dim=1) if x.ndim == 3 else x.flatten(2).mean(dim=2)


def per_position(x: Float[Tensor, "examples *feature"]) -> Float[Tensor, "examples_positions channels"]:
    """Every position becomes an example: maps (N, C, H, W) → (N·H·W, C), tokens (N, T, C) → (N·T, C). Compares what the
    channels say at a place. Both layers need the same positions, and the N·H·W rows are not independent: an interval
    that counts them as such is too narrow.

    >>> per_position(torch.ones(5, 8, 4, 4)).shape
    torch.Size([80, 8])
    """
    if x.ndim <= 2:
        return x
    return x.flatten(0, 1) if x.ndim == 3 else x.flatten(2).transpose(1, 2).flatten(0, 1)


REDUCERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "flatten": flatten,
    "average_pool": average_pool,
    "per_position": per_position,
}


def resolve_reducer(reduce: Reducer) -> Callable[[Tensor], Tensor]:
    """The function that a name in `REDUCERS`, a function, or None (the raw output) stands for; else `ValueError`.

    >>> resolve_reducer("average_pool") is average_pool
    True
    """
    if reduce is None:
        return lambda x: x
    if callable(reduce):
        return reduce
    if reduce not in REDUCERS:
        raise ValueError(
            f"reduce={reduce!r} is unknown; use one of {sorted(REDUCERS)}, a function of a tensor, or None"
        )
    return REDUCERS[reduce]


# --------------------------------------------------------------------------------------------------------------- layers
def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and `torch.compile` wrappers (any nesting).

    >>> model = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(model)) is model
    True
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def find_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The chosen modules of `model` by qualified name, in the order of `named_modules`.

    Args:
        layers: one or several names, which may hold wildcards (`"layer?.*"`; `*` also matches dots); one or several
            module types; or a predicate `(name, module) -> bool`.

    Raises:
        ValueError: a name or pattern that matches nothing (with the closest names), a choice of another kind, or an
            empty choice.

    >>> from companion.models import digits_net
    >>> list(find_layers(digits_net(), "layer1.?")), list(find_layers(digits_net(), nn.Linear))
    (['layer1.0', 'layer1.1', 'layer1.2', 'layer1.3'], ['linear'])
    """
    # Names are those of the bare model; a compiled child is the module that it wraps.
    modules = {
        name.replace("_orig_mod.", ""): getattr(module, "_orig_mod", module)
        for name, module in unwrap(model).named_modules()
        if name and not name.endswith("_orig_mod")
    }
    kind = type(unwrap(model)).__name__
    if callable(layers) and not isinstance(layers, type | nn.Module):
        chosen = {name for name, module in modules.items() if layers(name, module)}
    else:
        chosen = set()
        for choice in [layers] if isinstance(layers, str | type | nn.Module) else list(layers):
            if isinstance(choice, type):
                chosen |= {name for name, module in modules.items() if isinstance(module, choice)}
            elif isinstance(choice, str):
                found = {choice} & set(modules) or set(fnmatch.filter(modules, choice))
                if not found:
                    close = difflib.get_close_matches(choice, modules, n=3, cutoff=0.3) or list(modules)[:5]
                    raise ValueError(
                        f"no layer of {kind} matches {choice!r}; close names: {close}. "
                        "`dict(model.named_modules())` lists them all"
                    )
                chosen |= found
            else:
                raise ValueError(
                    f"layers holds a {type(choice).__name__}; choose by name, by type, or by a predicate (name, module)"
                )
    if not chosen:
        kinds = sorted({type(module).__name__ for module in modules.values()})
        raise ValueError(f"layers={layers!r} chooses no layer of {kind}; it is made of {kinds}")
    return {name: module for name, module in modules.items() if name in chosen}


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid)


def find_blocks(model: nn.Module) -> list[str]:
    """The blocks whose outputs the papers compare, found by the model's structure.

    They are the composite children (modules with layers of their own) of the outermost `nn.Sequential` and
    `nn.ModuleList` that have any: residual blocks of ours and torchvision's ResNets, encoder blocks of a ViT. A plain
    net, such as VGG or a sequence of layers, has none; its blocks are its activations, those on maps where it has
    convolutions.

    Raises:
        ValueError: neither kind is there; name the layers.

    >>> from companion.models import digits_net, mlp
    >>> find_blocks(digits_net()), find_blocks(mlp([64, 32, 32, 10]))
    (['layer1.0', 'layer1.1', 'layer1.2', 'layer1.3'], ['relu1', 'relu2'])
    """
    net = unwrap(model)
    blocks: list[str] = []

    def collect(module: nn.Module, prefix: str) -> None:
        holds_blocks = isinstance(module, nn.Sequential | nn.ModuleList)
        for name, child in module.named_children():
            child = unwrap(child)
            if (
                holds_blocks
                and not isinstance(child, nn.Sequential | nn.ModuleList)
                and any(True for _ in child.children())
            ):
                blocks.append(f"{prefix}{name}")
            else:
                collect(child, f"{prefix}{name}.")

    collect(net, "")
    if not blocks:
        modules = find_layers(model, lambda name, module: True)
        blocks = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
        maps = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        if maps:  # the activations of a classifier's linear layers come after the last convolution's own
            order = list(modules)
            after = [name for name in blocks if order.index(name) > order.index(maps[-1])][:1]
            blocks = [name for name in blocks if order.index(name) < order.index(maps[-1])] + after
    if not blocks:
        raise ValueError(f"{type(net).__name__} has no blocks and no activation modules to find; choose layers by name")
    return blocks


# ----------------------------------------------------------------------------------------------------------------- taps
def _one_tensor(output: Any, name: str) -> Tensor:
    """The single tensor in a layer's output; a clear refusal when there are several or none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        parts = {f"output[{key!r}]": part for key, part in output.items()}
    elif isinstance(output, tuple | list):
        parts = {f"output[{i}]": part for i, part in enumerate(output)}
    else:
        parts = {f"output.{key}": part for key, part in getattr(output, "__dict__", {}).items()}
    tensors = {key: part for key, part in parts.items() if isinstance(part, Tensor)}
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise ValueError(
        f"layer {name!r} returns a {type(output).__name__} with {len(tensors)} tensors {list(tensors)}; "
        f"say which to use with select=lambda output: {next(iter(tensors), '...')}"
    )


class FeatureTap(Mapping[str, Tensor]):
    """Features of chosen layers in the last forward pass: layer name → reduced features, in order of execution.

    Use it as a context manager; on exit, also by an exception, every hook is gone. The tap never changes the model's
    mode, device or outputs. A module called more than once in one forward pass gives one entry for each call: `"relu"`,
    `"relu#2"`, … A layer that the forward pass does not run has none. A new forward pass of the model starts a new set
    of features. A deep copy of a tapped model, such as an average of its weights, is not tapped.

    Args:
        model: any module. Wrapped in DistributedDataParallel it is tapped inside the wrapper. While the tap is open,
            `torch.compile`d models run eagerly, because a compiled graph does not see hooks added later;
            `compiled=True` leaves them compiled, for a tap that is attached before the first compiled call.
            DataParallel over several devices is refused: its replicas share one set of hooks.
        layers: see `find_layers`.
        reduce: a name in `REDUCERS`, a function of the layer's output tensor, or None for the raw output.
        select: picks the tensor from a layer's output when that is a dict or tuple with several tensors.
        inputs: tap what goes into the layers in place of what comes out, such as a block's sum before its ReLU.
        detach: cut the features from the autograd graph (default). Penalties keep the graph.
        when: asked at every layer whether to store its features; None: always.

    Attributes:
        shapes: layer name → shape of its output for one example, of the last forward pass.

    Raises:
        ValueError: unknown layers or reducer; an output with no or several tensors and no `select`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with FeatureTap(model, layers=nn.Linear) as features:
    ...     logits = model(torch.randn(5, 4))
    >>> list(features), torch.equal(features["2"], logits)
    (['0', '2'], True)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        *,
        reduce: Reducer = "flatten",
        select: Callable[[Any], Tensor] | None = None,
        inputs: bool = False,
        detach: bool = True,
        compiled: bool = False,
        when: Callable[[], bool] | None = None,
    ) -> None:
        for module in model.modules():
            if isinstance(module, DataParallel) and len(module.device_ids) > 1:
                raise ValueError(
                    f"DataParallel on devices {module.device_ids} runs replicas that share one set of hooks; "
                    "tap its .module on one device, or use DistributedDataParallel"
                )
        self.model = model
        self.layers = find_layers(model, layers)
        self.inputs = inputs
        self.detach = detach
        self._reduce = resolve_reducer(reduce)
        self._select = select
        self._compiled = compiled
        self._when = when
        self.shapes: dict[str, torch.Size] = {}
        self._features: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        self._stack = ExitStack()

    # -- the hooks
    def _start(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._features.clear()
        self._calls.clear()
        self.shapes.clear()

    def _store(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._when is not None and not self._when():
            return
        tensor = self._select(output) if self._select is not None else _one_tensor(output, name)
        features = self._reduce(tensor.detach() if self.detach else tensor)
        # A view of the output would follow what later layers do to it in place (nn.ReLU(inplace=True)).
        if (
            torch.compiler.is_compiling()
            or features.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        ):
            features = features.clone()
        call = self._calls[name] = self._calls.get(name, 0) + 1
        name = name if call == 1 else f"{name}#{call}"
        self._features[name], self.shapes[name] = features, tensor.shape[1:]

    def _store_input(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._store(name, module, args, args)

    # -- life
    def attach(self) -> Self:
        """Put the hooks on; `with` does this for you."""
        if self._handles:
            raise RuntimeError("this tap is attached already")
        self._handles.append(unwrap(self.model).register_forward_pre_hook(self._start))
        for name, module in self.layers.items():
            if self.inputs:  # before the layer runs: it may overwrite its input
                self._handles.append(module.register_forward_pre_hook(functools.partial(self._store_input, name)))
            else:
                self._handles.append(module.register_forward_hook(functools.partial(self._store, name)))
        if not self._compiled and _is_compiled(self.model):
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def remove(self) -> None:
        """Take the hooks off; the features stay readable."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTap:
        """What the hooks of a copied model belong to: a tap that stores nothing and holds nothing of this one's."""
        return FeatureTap(nn.Sequential(nn.Identity()), "0", when=lambda: False)

    # -- the mapping
    def __getitem__(self, name: str) -> Tensor:
        if name not in self._features:
            raise KeyError(
                f"{name!r}: no features; "
                + (f"there are {list(self._features)}" if self._features else "run model(x) first")
            )
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def __repr__(self) -> str:
        shapes = {name: tuple(x.shape) for name, x in self._features.items()}
        return f"FeatureTap({type(unwrap(self.model)).__name__}, layers={list(self.layers)}, features={shapes})"


def _is_compiled(model: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; each module's own train/eval flag is restored on exit, exception included.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     print(model(torch.ones(3)), model.training)
    tensor([1., 1., 1.]) False
    >>> model.training
    True
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, training in flags:
            module.training = training


def batches(data: Tensor | Iterable[Any], batch_size: int = 256, minimum: int = 1) -> Iterator[Tensor]:
    """The inputs of `data`, batch by batch: a tensor of examples is cut up; of an iterable's `(x, y)` batches only x is
    kept.

    A batch with fewer than `minimum` examples is joined to the one before it (to the one after it, if it is the first).

    Raises:
        ValueError: batch_size below `minimum`, or a batch that neither is nor begins with a tensor.

    >>> [len(x) for x in batches(torch.ones(10, 3), batch_size=4, minimum=3)]
    [4, 6]
    """
    if batch_size < minimum or batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least {max(minimum, 1)}")
    stream: Iterable[Any] = data.split(batch_size) if isinstance(data, Tensor) else data
    held: Tensor | None = None
    for batch in stream:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor):
            raise ValueError(f"a batch must be a tensor or a tuple that starts with one, not {type(x).__name__}")
        if held is None:
            held = x
        elif len(held) < minimum or len(x) < minimum:
            held = torch.cat([held, x])
        else:
            yield held
            held = x
    if held is not None:
        yield held


def device_of(model: nn.Module, x: Tensor) -> torch.device:
    """The device of the model's parameters; that of x for a model without any.

    >>> device_of(nn.Linear(2, 2), torch.ones(1, 2))
    device(type='cpu')
    """
    return next(iter(model.parameters()), x).device


def extract(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    layers: Layers,
    *,
    reduce: Reducer = "flatten",
    select: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
) -> dict[str, Float[Tensor, "examples ..."]]:
    """Features of all examples at the chosen layers, in evaluation mode; the model is left as it was.

    Args:
        data: inputs (examples, …), or an iterable of `x` or `(x, y)` batches; each goes to the model's device.

    Returns:
        layer name → features of all examples, rows in the order of `data`.

    Raises:
        ValueError: see `FeatureTap` and `batches`; no batch, or none of the layers ran.

    >>> from companion.models import digits_net
    >>> features = extract(digits_net(), torch.randn(100, 1, 8, 8), "layer1.*.relu2", reduce="average_pool")
    >>> {name: tuple(x.shape) for name, x in features.items()}
    {'layer1.0.relu2': (100, 16), 'layer1.1.relu2': (100, 16), 'layer1.2.relu2': (100, 16), 'layer1.3.relu2': (100, 16)}
    """
    parts: dict[str, list[Tensor]] = {}
    model = unwrap(model)  # a wrapper's forward may talk to other ranks, which may have fewer batches
    with evaluating(model), FeatureTap(model, layers, reduce=reduce, select=select) as tap:
        for x in batches(data, batch_size):
            model(x.to(device_of(model, x)))
            for name, features in tap.items():
                parts.setdefault(name, []).append(features)
    if not parts:
        raise ValueError("data holds no batch, or none of the chosen layers ran in the forward pass")
    return {name: torch.cat(chunks) for name, chunks in parts.items()}
