"""Features: the one place that taps a model.

A *tap* reduces and keeps the features of chosen layers inside their forward hooks, so that an in-place ReLU right after
a layer cannot change them. Chapter *Estimating CKA well* explains what the reducers mean.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Self, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, IterableDataset
from torch.utils.module_tracker import ModuleTracker

from companion._checks import at_least, given, one_of
from companion._progress import progress

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
    "find_layers",
    "flatten",
    "per_position",
    "unwrap",
]

Layers: TypeAlias = (
    "str | Iterable[str] | type[nn.Module] | Iterable[type[nn.Module]] | Callable[[str, nn.Module], bool]"
)
Reducer: TypeAlias = "str | Callable[[Tensor], Tensor] | None"
Select: TypeAlias = "Callable[[Any], Tensor] | Mapping[str, Callable[[Any], Tensor]] | None"
Forward: TypeAlias = "Callable[[nn.Module, Any], Any] | None"
Ran: TypeAlias = "tuple[nn.Module, Sequence[int]]"  # the layer with weights that ran last, and what shape it gave


# ------------------------------------------------------------------------------------------------------------- reducers
def flatten(
    x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
) -> Float[Tensor, "examples features"]:
    """One feature per channel *and position*, as both papers compare maps: (N, C, H, W) → (N, C·H·W). Masked tokens
    are 0.

    >>> flatten(torch.ones(5, 8, 4, 4)).shape
    torch.Size([5, 128])
    """
    return masked(x, mask).flatten(1)


def masked(
    x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
) -> Float[Tensor, "examples *feature"]:
    """The output itself, in which masked tokens are 0: what they hold adds to no norm, no product and no step."""
    return x if mask is None else torch.where(mask.bool()[..., None], x, 0)


def average_pool(
    x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
) -> Float[Tensor, "examples channels"]:
    """One feature per channel, averaged over positions: maps (N, C, H, W) → (N, C), tokens (N, T, C) → (N, C), of which
    a `mask` says which count (0 is padding); of an example without any the average is 0.

    >>> average_pool(torch.ones(5, 8, 4, 4)).shape, average_pool(torch.ones(5, 16, 8)).shape
    (torch.Size([5, 8]), torch.Size([5, 8]))
    >>> average_pool(torch.tensor([[[1.0], [5.0]]]), mask=torch.tensor([[1, 0]]))
    tensor([[1.]])
    """
    if x.ndim <= 2:
        return x
    if mask is not None:
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision holds neither the sums nor the counts
        weights = mask.to(x.device, wide)[..., None]
        mean = torch.where(weights > 0, x, 0).sum(1, dtype=wide) / weights.sum(1).clamp(min=1)
        return mean.to(x.dtype) if x.is_floating_point() else mean
    return x.mean(dim=1) if x.ndim == 3 else x.flatten(2).mean(dim=2)


def per_position(
    x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
) -> Float[Tensor, "examples_positions channels"]:
    """Every position becomes an example: maps (N, C, H, W) → (N·H·W, C), tokens (N, T, C) → (N·T, C), of which a `mask`
    keeps those that count. Rows are not independent: an interval that counts them as such is too narrow.

    >>> per_position(torch.ones(5, 8, 4, 4)).shape
    torch.Size([80, 8])
    """
    if x.ndim <= 2:
        return x
    if mask is not None:
        return x[mask.bool()]
    return x.flatten(0, 1) if x.ndim == 3 else x.flatten(2).transpose(1, 2).flatten(0, 1)


REDUCERS: Mapping[str, Callable[..., Tensor]] = {
    "flatten": flatten,
    "average_pool": average_pool,
    "per_position": per_position,
}


# --------------------------------------------------------------------------------------------------------------- layout
# Their channels are dimension 1: any convolution, batch or instance norm, and group norm.
FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
NORMS = {
    1: (nn.BatchNorm1d, nn.InstanceNorm1d),
    2: (nn.BatchNorm2d, nn.InstanceNorm2d),
    3: (nn.BatchNorm3d, nn.InstanceNorm3d),
}
LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)  # theirs are the last one
WIDTHS = ("out_channels", "num_features", "num_channels", "out_features", "embedding_dim", "hidden_size", "embed_dim")
INPUTS = ("in_channels", "in_features", "input_size", *WIDTHS)


def _sequence_first(module: Any) -> bool:
    """Whether a layer's output is (tokens, examples, features), as `batch_first=False` says."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention | nn.Transformer) and not module.batch_first


def _sequences(model: nn.Module) -> frozenset[nn.Module]:
    """The layers of which it is known that they give (tokens, examples, features), what they are made of included."""
    return frozenset(part for module in model.modules() if _sequence_first(module) for part in module.modules())


def _weighted(module: nn.Module) -> list[nn.Module]:
    # What is normalised over several dimensions at once has its channels where the layer before it has them.
    found = (part for part in module.modules() if isinstance(part, FIRST + LAST))
    return [part for part in found if len(getattr(part, "normalized_shape", "1")) == 1]


def _width(module: nn.Module, inputs: bool = False) -> int:
    """How many channels a layer with weights gives, or takes (`inputs`)."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.RNNBase) and not inputs:
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    return next(getattr(module, key) for key in (INPUTS if inputs else WIDTHS) if hasattr(module, key))


def _side(module: nn.Module, ndim: int) -> int | None:
    """The dimension, 1 or −1, that holds the channels of layers of a kind; None where outputs of that kind have another
    number of dimensions than `ndim`, so that something was reshaped behind it."""
    # torchvision's LayerNorm2d is a LayerNorm that permutes inside.
    if any(kind.__name__ == "LayerNorm2d" for kind in type(module).__mro__):
        return 1 if ndim == 4 else None
    if not isinstance(module, FIRST):
        return -1
    space = spatial(module)
    return 1 if space is None or space + 2 == ndim else None


def spatial(module: Any) -> int | None:
    """How many dimensions of space or time a convolution or norm works on, whatever its class is called; None: any."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return len(module.kernel_size)
    return next((space for space, kinds in NORMS.items() if isinstance(module, kinds)), None)


def _channels(name: str, module: nn.Module, before: Ran | None, shape: torch.Size, inputs: bool = False) -> int:
    """The dimension that holds a layer's channels, 1 or −1: of one of torch's own kinds what the kind says, else what
    its weights' kind and the width of the last of them say together. A layer without weights is judged by those that
    ran before it; what goes into a layer (`inputs`), by the width that its first weights take.

    Raises:
        ValueError: features of which neither tells, or of which width and kind tell different things.
    """
    own = _weighted(module)
    last, gave = before or (None, ())
    parts = own or ([] if last is None else [last])
    kind, sides = None, []
    if parts:
        kinds = {_side(part, len(shape)) for part in parts}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind and module in own and type(module).forward.__module__.startswith("torch.nn."):
            return kind
        width = _width(own[0], inputs=True) if own and inputs else _width(parts[-1])
        sides = [axis for axis in (1, -1) if shape[axis] == width]
        if kind in sides or (kind and own and not sides):
            return kind
        # Dimensions were exchanged, or tokens became a map, and nothing else.
        alike = math.prod(shape) == math.prod(gave) if kind == -1 else sorted(shape) == sorted(gave)
        if len(sides) == 1 and not own and len(shape) > 3 and alike:
            return sides[0]
        # An image may be as large as the weights are wide, where layers were joined. Most images are square.
        square = [axis for axis in (1, -1) if len({*(shape[2:] if axis == 1 else shape[1:-1])}) == 1]
        if kind is None and len(sides) == 1 and square != [-sides[0]]:
            return sides[0]
        if kind and len(square) == 1 and (sides or kind == -1):
            return square[0]
    if len(shape) > 3 and len(sides) != 1 and kind != -1:
        return 1
    raise ValueError(
        f"layer {name!r} ({type(module).__name__}) gives {tuple(shape)}: are the channels dimension 1 or the last? "
        "Neither its weights nor those before it tell; say it with reduce=lambda x: x.mean(1) for tokens (examples, "
        "tokens, channels), x.mean(2) for (examples, channels, length), x.mean((1, 2)) or x.mean((2, 3)) for maps"
    )


# --------------------------------------------------------------------------------------------------------------- layers
# What wrappers write into the names of the modules that they wrap, wherever they are.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of DistributedDataParallel, DataParallel, AveragedModel, `torch.compile` and
    activation checkpointing (any nesting).

    Raises:
        ValueError: it is no module.

    >>> unwrap(nn.DataParallel(nn.Linear(2, 3)))
    Linear(in_features=2, out_features=3, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is {given(model)}; give a torch.nn.Module")
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
            continue
        inner = next((model._modules[name] for name in WRAPPERS if name in model._modules), None)
        if inner is None:
            return model
        model = inner


def bare_name(name: str) -> str:
    """The name of a layer of an unwrapped model, without what compiling and checkpointing its parts put into it.

    >>> bare_name("layer1.0._checkpoint_wrapped_module.conv1")
    'layer1.0.conv1'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _wildcard(pattern: str) -> re.Pattern[str]:
    """A name with `?`, `*` and `[…]`, none of which crosses a dot, and `**`, which does."""
    parts = re.findall(r"\*\*|\*|\?|\[[^]]+\]|.", pattern)
    special = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(special.get(p, p.replace("[!", "[^") if len(p) > 1 else re.escape(p)) for p in parts))


def find_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The chosen modules of `model` by qualified name, in the order of `named_modules`.

    Args:
        layers: one or several names, which may hold wildcards (`"layer?.*"`; `*` stops at a dot, `**` does not); one or
            several module types; or a predicate `(name, module) -> bool`.

    Raises:
        ValueError: a name or pattern that matches nothing (with the closest names), a choice of another kind, or an
            empty choice; two modules of one name; a model that is one layer itself.

    >>> from companion.models import digits_net
    >>> list(find_layers(digits_net(), "layer1.?")), list(find_layers(digits_net(), nn.Linear))
    (['layer1.0', 'layer1.1', 'layer1.2', 'layer1.3'], ['linear'])
    """
    # Names are those of the bare model; a wrapped child is the module that is wrapped.
    kind = type(unwrap(model)).__name__
    modules: dict[str, nn.Module] = {}
    for name, module in unwrap(model).named_modules():
        if modules.setdefault(bare_name(name), unwrap(module)) is not unwrap(module):
            raise ValueError(
                f"two modules of {kind} are called {bare_name(name)!r} but for what wrappers write into names "
                f"({', '.join(WRAPPERS)}); call one of them otherwise"
            )
    modules.pop("", None)
    if not modules:
        raise ValueError(
            f"the model is itself a {kind}, with no layers inside to choose from; wrap it: nn.Sequential(model)"
        )
    single = isinstance(layers, str | type | nn.Module) or not isinstance(layers, Iterable)
    choices: list[Any] = [layers] if single else list(layers)  # type: ignore[arg-type]
    chosen: set[str] = set()
    for choice in choices:
        if isinstance(choice, type):
            chosen |= {name for name, module in modules.items() if isinstance(module, choice)}
        elif isinstance(choice, str):
            found = {choice} & set(modules) or set(filter(_wildcard(choice).fullmatch, modules))
            if not found:
                close = difflib.get_close_matches(choice, modules, n=3, cutoff=0.3) or list(modules)[:5]
                raise ValueError(
                    f"no layer of {kind} matches {choice!r}; close names: {close}. "
                    "`dict(model.named_modules())` lists them all"
                )
            chosen |= found
        elif single and callable(choice) and not isinstance(choice, nn.Module):
            chosen = {name for name, module in modules.items() if choice(name, module)}
        else:
            raise ValueError(f"layers={given(choice)}: choose by name, by type, or by a predicate (name, module)")
    if not chosen:
        kinds = sorted({type(module).__name__ for module in modules.values()})
        shown = ", ".join(str(getattr(choice, "__name__", choice)) for choice in choices)
        raise ValueError(f"layers={shown or given(layers)} chooses no layer of {kind}; it is made of {kinds}")
    return {name: module for name, module in modules.items() if name in chosen}


# ----------------------------------------------------------------------------------------------------------------- taps
@contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    seen: Callable[[str, nn.Module, tuple[Any, ...], Any], None],
    *,
    before: bool = False,
) -> Iterator[None]:
    """Call `seen(name, module, inputs, output)` after each run of one of the modules, those inputs given by name last;
    or, with `before`, before it runs, with the inputs in place of the output. On exit the hooks are gone."""
    with ExitStack() as hooks:
        for name, module in modules.items():
            put: Callable[..., Any] = module.register_forward_pre_hook if before else module.register_forward_hook
            # A partial and no closure: what `seen` belongs to says what a deep copy of the module calls.
            hooks.callback(put(functools.partial(_heard, seen, name), with_kwargs=True).remove)
        yield


def _heard(seen: Any, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any, *output: Any) -> None:
    inputs = (*args, *kwargs.values())
    seen(name, module, inputs, *(output or (args or inputs,)))


_TRACKER = ModuleTracker()  # knows whether a backward pass is running: checkpointing runs layers again there
# The batch that this thread runs, by an object of its own, so that a tap tells how many passes are for one batch.
_BATCH: ContextVar[object | None] = ContextVar("batch", default=None)


def _parts(output: Any) -> dict[str, Any]:
    """What a layer's output is made of, by the expression that picks it."""
    if isinstance(output, Mapping):
        return {f"[{key!r}]": part for key, part in output.items()}
    if isinstance(output, tuple | list):
        return {f"[{i}]": part for i, part in enumerate(output)}
    return {f".{key}": part for key, part in getattr(output, "__dict__", {}).items()}


def _one_tensor(output: Any, name: str) -> Tensor:
    """The single tensor in a layer's output; a clear refusal when there are several or none, or when something else
    that holds tensors, such as a packed sequence, comes before it."""
    if isinstance(output, Tensor):
        return output
    parts = {f"output{key}": part for key, part in _parts(output).items()}
    tensors = {key: part for key, part in parts.items() if isinstance(part, Tensor)}
    first = next((key for key, part in parts.items() if _first_tensor(part) is not None), None)
    if len(tensors) == 1 and first in tensors:
        return tensors[first]
    raise ValueError(
        f"layer {name!r} returns a {type(output).__name__} with {len(tensors)} tensors {list(tensors)}; "
        f"say which to use with select=lambda output: {next(iter(tensors), '...')}"
    )


def _first_tensor(*parts: Any) -> Tensor | None:
    """The first tensor in arguments, however they are nested."""
    for part in parts:
        found = part if isinstance(part, Tensor) else _first_tensor(*_parts(part).values())
        if found is not None:
            return found
    return None


def _of_tokens(mask: Shaped[Tensor, "rows tokens"]) -> bool:
    """Whether it says which tokens count: no mask that is added to scores, none of who may look at whom (causal)."""
    causal = len(mask) > 1 and mask.shape[0] == mask.shape[1] and torch.equal(mask, torch.ones_like(mask).tril())
    return bool(((mask == 0) | (mask == 1)).all()) and not causal


def _takes_mask(reduce: Callable[..., Tensor] | None) -> bool:
    try:
        return reduce is not None and "mask" in inspect.signature(reduce).parameters
    except ValueError:  # a built-in function, such as torch.relu
        return False


def _same(x: Tensor) -> Tensor:
    return x


def _inside_itself(module: nn.Module) -> bool:
    """Whether the pass of `module` that begins is part of another one. Only the stack knows: hooks are not told when
    Ctrl-C ends a pass, and another thread may run one at the same time."""
    frame: FrameType | None = sys._getframe()
    passes = 0
    while frame is not None:
        passes += frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is module
        frame = frame.f_back
    return passes > 1


class FeatureTap(Mapping[str, Tensor]):
    """Features of chosen layers in the last forward pass: layer name → reduced features, in order of execution.

    Use it as a context manager; on exit every hook is gone. The tap never changes the model's mode, device or outputs.
    A module called more than once in one forward pass has one entry for each call: `"relu"`, `"relu#2"`, …; one that is
    not called has none. Layers run outside a forward pass of the model, as by `model.forward_features(x)`, have the
    features of their own last call. A deep copy of a tapped model is not tapped.

    Rows are examples. Layers that say `batch_first=False`, and what they are made of, have their first two dimensions
    exchanged, and `"average_pool"` and `"per_position"` find the channels by a layer's weights; what then has other
    rows than the model's input is refused. An `attention_mask` that the model is given by name reaches the named
    reducers, and functions that take it as `mask`.

    Args:
        model: any module; wrapped in DistributedDataParallel it is tapped inside the wrapper.
        layers: see `find_layers`.
        reduce: a name in `REDUCERS`, a function of the layer's output tensor, or None for the raw output.
        select: picks the tensor from the outputs that are no tensors, dicts or tuples with several; or by layer, a
            mapping from names to functions of the whole output, whatever it is, to a tensor with the examples first.
        inputs: tap what goes into the layers in place of what comes out, such as a block's sum before its ReLU.
        detach: cut the features from the autograd graph (default). Penalties keep the graph.
        compiled: leave a model compiled by `torch.compile` so, for a tap attached before its first call; else it
            runs eagerly while the tap is open, because a compiled graph does not see hooks added later.
        when: asked at every layer whether to store its features; None: always.
        keep: what to keep of the reduced features; None: all.

    Attributes:
        shapes: layer name → shape of its output for one example, of the last forward pass.

    Raises:
        ValueError: unknown layers or reducer; DataParallel over several devices; an output with no or several tensors
            and no `select`; a transform of `torch.func`; rows that are not the input's, or may not be where as many
            tokens as examples go through a model with layers of `batch_first=False`; with `detach=False`, a layer that
            runs without gradients inside a pass with them (`checkpoint(..., use_reentrant=True)`), from which no
            gradient would come back; a model that calls itself.

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
        select: Select = None,
        inputs: bool = False,
        detach: bool = True,
        compiled: bool = False,
        when: Callable[[], bool] | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for module in model.modules():
            if isinstance(module, DataParallel) and len(module.device_ids) > 1:
                raise ValueError(
                    f"DataParallel on devices {module.device_ids} runs replicas that share one set of hooks; "
                    "tap its .module on one device, or use DistributedDataParallel"
                )
        self.model = model
        self.layers = find_layers(model, layers)
        sequences = _sequences(model)
        self._turned = frozenset(name for name, module in self.layers.items() if module in sequences)
        self._mixed = bool(sequences)
        self.inputs = inputs
        self.detach = detach
        if not callable(reduce):
            one_of(reduce=(reduce, [*REDUCERS, None]))
        self._reduce: Callable[..., Tensor] | None = REDUCERS[reduce] if isinstance(reduce, str) else reduce
        self._select = select
        if isinstance(select, Mapping):
            for name in select:
                one_of(select=(name, self.layers))
        self._compiled = compiled
        self._when = when
        self._keep = keep
        self.shapes: dict[str, torch.Size] = {}
        self._features: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._attached = False
        self._thread: int | None = None  # whose passes are tapped; None: any thread's
        self._running = False  # inside a forward pass of the model
        self._batch: object | None = None  # whose features are kept, and how many passes it took
        self._passes = 0
        self._loose = False  # layers ran outside one since
        self._examples: int | None = None
        self._mask: Tensor | None = None  # of the pass whose features are kept
        self._of_tokens = True  # it says which of them count
        self._graph = False  # whether the pass began with gradients
        self._selected = False
        self._ran: set[str] | None = None  # in the pass before, for `require`
        self._trusting = False  # copies only outputs that something overwrites, if whoever reads them calls `_read`
        self._views: list[tuple[str, Tensor, int, bool]] = []  # layers, outputs, their versions, and whether copied
        self._blind: set[str] = set()  # layers whose features were taken without gradients
        self._lasts: dict[str, bool] = {}  # whether a layer's output was as it had been when it was read
        self._finds_channels = self._reduce in (average_pool, per_position)
        self._masks = _takes_mask(self._reduce)
        self._latest: Ran | None = None
        self._stack = ExitStack()

    # -- the hooks
    def _elsewhere(self) -> bool:
        """Another thread's pass, or a layer that activation checkpointing runs again in the backward pass."""
        if torch.compiler.is_compiling():
            return False
        return _TRACKER.is_bw or self._thread not in (None, threading.get_ident())

    def _ignores(self) -> bool:
        """Whether what a layer gives now is not to be stored."""
        return (self._when is not None and not self._when()) or self._elsewhere()

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._elsewhere():
            return
        wanted = self._when is None or self._when()
        if not wanted and not module.training:
            return  # a look in between, in evaluation mode: what the last training pass left is still to be read
        # What is refused while a graph is made is run anew eagerly, where the stack is read and not compiled.
        if (
            wanted
            and self._running
            and (torch.compiler.is_compiling() or torch.compiler.disable(_inside_itself)(module))
        ):
            kind = type(module).__name__
            raise ValueError(
                f"{kind} calls itself in its forward pass, and features would be those of its last call alone: give it "
                "batches with which it does not, or tap a module inside it that is called once"
            )
        self._clear()
        first = _first_tensor(args, kwargs)
        listed = _single((*args, *kwargs.values())[:1])
        self._examples = None if first is None or not first.ndim or listed else len(first)
        mask = kwargs.get("attention_mask")
        if wanted and isinstance(mask, Tensor) and mask.ndim == 2:
            self._mask = mask
            # Asked once: elsewhere than on the CPU the answer is waited for.
            self._of_tokens = not self._masks or torch.compiler.is_compiling() or _of_tokens(mask)
        self._running, self._loose = True, False
        self._graph, self._selected, self._latest = torch.is_grad_enabled(), False, None

    def _clear(self) -> None:
        self._features.clear()
        self._views.clear()
        self._blind.clear()
        self._calls.clear()
        self.shapes.clear()
        self._mask = None

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._elsewhere():
            return
        self._running, self._examples = False, None
        if not torch.compiler.is_compiling():  # a compiled graph would be remade for each count
            batch = _BATCH.get()
            self._passes = self._passes + 1 if batch is not None and batch is self._batch else 1
            self._batch = batch
        if callable(self._select) and self._features and not self._selected and output is not None:
            raise ValueError(
                f"select had nothing to select: the outputs of {list(self._features)} are tensors already; to take a "
                "part of them use reduce=..., or select={'layer': function} by layer"
            )

    def _fail(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After every pass, one that raised too, in which `_end` was not called: its first layers are no features."""
        if self._running and not self._elsewhere():
            self._running, self._examples = False, None
            self._clear()

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._elsewhere():
            self._latest = module, getattr(output, "shape", ())

    def _store(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._ignores():
            return
        if not self._running:
            if not self._loose:
                self._clear()
                self._loose = True
            self._views = [view for view in self._views if view[0] != name]
        if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
            raise ValueError(
                f"layer {name!r} runs inside a transform of torch.func, such as vmap or grad, whose tensors end with "
                "it: no features can be kept; differentiate by torch.autograd, and run copies of a model one by one"
            )
        tensor = self._tensor(name, output)
        if not self.detach and self._running and self._graph and not torch.is_grad_enabled():
            raise ValueError(
                f"layer {name!r} runs without gradients inside a forward pass with them, so none would come back to "
                "it; with activation checkpointing use checkpoint(..., use_reentrant=False)"
            )
        if self._running and self._examples is not None:
            self._require_examples(name, module, tensor)
        if self.detach:
            features = self._reduced(name, module, tensor.detach(), tensor)
        elif torch.compiler.is_compiling():
            features = self._reduced(name, module, tensor, tensor)
        else:
            # What the reduction saves for its gradient is none of a checkpoint's, which would not find it again.
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):
                features = self._reduced(name, module, tensor, tensor)
        call = self._calls.get(name, 0) + 1 if self._running else 1
        self._calls[name] = call
        name = name if call == 1 else f"{name}#{call}"
        self._features.pop(name, None)  # the order is that of execution
        self._features[name], self.shapes[name] = features, tensor.shape[1:]
        if not torch.compiler.is_compiling():
            (self._blind.discard if torch.is_grad_enabled() else self._blind.add)(name)

    def _require_examples(self, name: str, module: nn.Module, tensor: Tensor) -> None:
        what = f"layer {name!r} ({type(module).__name__}) gives {tuple(tensor.shape)} for {self._examples} examples"
        turn = f"select={{{name!r}: lambda output: output.transpose(0, 1)}}"
        if not tensor.ndim or len(tensor) != self._examples:
            if name in self._turned and tensor.ndim == 3 and tensor.shape[1] == self._examples:
                raise ValueError(
                    f"{what}, for it takes (tokens, examples, features), as it seems the model does, too: the input's "
                    "dimension 0 must hold the examples; tap a module that takes them first and transposes"
                )
            raise ValueError(
                f"{what}: dimension 0 must hold the examples. If they are elsewhere, say how to get them there, for "
                f"instance {turn}"
            )
        known = name in self._turned or (isinstance(self._select, Mapping) and name in self._select)
        if self._mixed and not known and tensor.ndim == 3 and tensor.shape[1] == self._examples:
            raise ValueError(
                f"{what}, in a model with layers that take tokens first: which dimension holds the examples? Give "
                f"batches of another number of examples, or say it by {turn}, or by select={{{name!r}: lambda output: "
                "output} where dimension 0 does"
            )

    def _tensor(self, name: str, output: Any) -> Tensor:
        """The tensor of a layer's output, examples first."""
        if isinstance(self._select, Mapping) and name in self._select:
            return self._select[name](output)
        if callable(self._select) and not isinstance(output, Tensor):
            self._selected = True
            tensor = self._select(output)
            if not any(tensor is part for part in list(_parts(output).values())[:1]):
                return tensor  # attention's weights, a recurrent state: theirs is another layout
        else:
            tensor = _one_tensor(output, name)
        if tensor.is_nested:
            raise ValueError(
                f"layer {name!r} gives nested tensors, sequences without their padding; build "
                "nn.TransformerEncoder with enable_nested_tensor=False"
            )
        return tensor.transpose(0, 1) if tensor.ndim == 3 and name in self._turned else tensor

    def _reduced(self, name: str, module: nn.Module, tensor: Tensor, output: Tensor, inputs: bool = False) -> Tensor:
        features = tensor
        if self._reduce in (average_pool, per_position) and tensor.ndim > 2:
            axis = _channels(name, module, self._latest, tensor.shape, inputs or self.inputs)
            features = tensor.movedim(axis, -1 if tensor.ndim == 3 else 1)
        mask = self._mask
        if mask is not None and self._reduce is not None and self._masks and tensor.ndim == 3:
            if mask.shape != features.shape[:2] or not self._of_tokens:
                raise ValueError(
                    f"layer {name!r} gives {tuple(tensor.shape)}, the attention mask is {tuple(mask.shape)}: which "
                    "tokens count is not known, unless it has a row of 0 (padding) and 1 for each example; reduce with "
                    "a function of your own"
                )
            features = self._reduce(features, mask.to(features.device))
        elif self._reduce is not None:
            features = self._reduce(features)
        if self._keep is not None:
            features = self._keep(features)
        # A view of the output would follow what later layers do to it in place (nn.ReLU(inplace=True)).
        if torch.compiler.is_compiling():
            return features.clone()
        if features.untyped_storage().data_ptr() == output.untyped_storage().data_ptr():
            if not self._trusting or output.is_inference():
                return features.clone()
            copied = not self._lasts.get(name, False)
            self._views.append((name, output, output._version, copied))
            # A view, as a copy is one more node: autograd sums gradients in the same order in either pass.
            return features.clone() if copied else features.view_as(features)
        return features

    def _read(self) -> None:
        """Learn, when a pass has been read, whose outputs nothing overwrote until then: from the next one on they are
        kept without a copy. Does what was kept so hold what the layer gave?"""
        for name, output, version, copied in self._views:
            same = output._version == version
            self._lasts[name] = same and self._lasts.get(name, True)
            if not (same or copied):
                raise RuntimeError(
                    f"the output of layer {name!r} was overwritten in place before it was read, as in no pass before, "
                    "so that its features are lost; from the next pass on they are copied"
                )

    # -- life
    def attach(self) -> Self:
        """Put the hooks on; `with` does this for you, and taps the passes of its own thread alone."""
        if self._attached:
            raise RuntimeError("this tap is attached already")
        self._attached = True
        root = unwrap(self.model)
        self._stack.callback(root.register_forward_pre_hook(self._start, with_kwargs=True).remove)
        if self._finds_channels and not all(map(_weighted, self.layers.values())):
            weighted = {str(number): module for number, module in enumerate(_weighted(root))}
            self._stack.enter_context(hooked(weighted, self._note))
        # An input is tapped before the layer runs: it may overwrite it.
        self._stack.enter_context(hooked(self.layers, self._store, before=self.inputs))
        self._stack.callback(root.register_forward_hook(self._end).remove)
        self._stack.callback(root.register_forward_hook(self._fail, always_call=True).remove)
        compiled = (hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in self.model.modules())
        if not self._compiled and any(compiled):
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def remove(self) -> None:
        """Take the hooks off; the features stay readable."""
        self._stack.close()
        self._attached = False

    def __enter__(self) -> Self:
        self._thread = None if self._compiled else threading.get_ident()
        return self.attach()

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTap:
        """What the hooks of a copied model belong to: a tap that stores nothing and holds nothing of this one's."""
        return _silent()

    def __reduce__(self) -> tuple[Any, ...]:
        """What those of a saved model belong to, likewise."""
        return _silent, ()

    def require(self) -> None:
        """Refuse a forward pass that ran none of the tapped layers, or others than the pass before; and a batch that
        took several."""
        if not self:
            raise ValueError(
                f"none of the chosen layers ran in the forward pass: {list(self.layers)}. A layer that is not used, or "
                "whose weights another one uses without calling it (out_proj of nn.MultiheadAttention), has no features"
            )
        if self._passes > 1:
            raise ValueError(
                f"forward runs {type(unwrap(self.model)).__name__} {self._passes} times on one batch, and features "
                "would be those of the last time alone: let it run once, on smaller batches if need be; a module whose "
                "own forward runs it several times has features of each"
            )
        ran, self._ran = self._ran or set(self), set(self)
        if ran != self._ran:
            raise ValueError(
                f"layers {sorted(ran ^ self._ran)} run in some batches and not in others, so there are no features of "
                "all examples: choose layers that always run"
            )

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
        chosen = f"{len(self.layers)} layers: {list(self.layers)}"
        return f"FeatureTap({type(unwrap(self.model)).__name__}, {chosen}, features={shapes})"


def _silent() -> FeatureTap:
    return FeatureTap(nn.Sequential(nn.Identity()), "0", when=lambda: False)


_OWNERS: dict[nn.Module, int] = {}  # module → the thread that evaluates it
_FREED = threading.Condition()


@contextmanager
def evaluating(model: nn.Module, *others: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; each module's own train/eval flag is restored on exit, exception included.

    One thread at a time evaluates a module: another waits for it.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     print(model(torch.ones(3)), model.training)
    tensor([1., 1., 1.]) False
    >>> model.training
    True
    """
    modules = list(dict.fromkeys(module for net in (model, *others) for module in net.modules()))
    me = threading.get_ident()
    with _FREED:
        _FREED.wait_for(lambda: all(_OWNERS.get(module, me) == me for module in modules))
        mine = [module for module in modules if module not in _OWNERS]
        _OWNERS.update(dict.fromkeys(mine, me))
    flags = [(module, module.training) for module in modules]
    try:
        for net in (model, *others) if any(training for _, training in flags) else ():
            net.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, training in flags:
            if module.training != training:  # a module's attributes are slow to set
                module.training = training
        with _FREED:
            for module in mine:
                del _OWNERS[module]
            _FREED.notify_all()


def batches(
    data: Tensor | Iterable[Any], batch_size: int = 256, minimum: int = 1, *, whole: bool = False
) -> Iterator[Any]:
    """The inputs of `data`, batch by batch: a tensor of examples is cut up; of an iterable's `(x, y)` batches only x is
    kept, unless `whole`. x is a tensor, or a mapping of tensors.

    Batches with fewer than `minimum` examples are joined with each other until they have as many; what is left, with
    the batch before it (with the one after it, if it is the first). Lists of tensors that are all alike, which may be
    single examples, are left as they come.

    Raises:
        ValueError: batch_size below `minimum`; data or a batch of another kind, or no batch; batches to join that have
            different shapes.

    >>> [len(x) for x in batches(torch.ones(10, 3), batch_size=4, minimum=3)]
    [4, 6]
    """
    at_least(max(minimum, 1), batch_size=batch_size)
    one_by_one = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    array = hasattr(data, "__array__") and not isinstance(data, Tensor)
    if one_by_one or array or isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        raise ValueError(
            f"data is a {type(data).__name__}; give a tensor of examples or an iterable of batches, such as "
            "torch.as_tensor(array).float(), DataLoader(dataset, batch_size=64), or [batch] for one"
        )
    stream: Iterable[Any] = data.split(batch_size) if isinstance(data, Tensor) else data
    held: Any = None  # large enough, waits for what may be left at the end
    small: Any = None
    for batch in progress(stream, "batches"):
        x = batch[0] if isinstance(batch, tuple | list) and batch and not whole else batch
        if not whole and not isinstance(x, Tensor | Mapping):
            raise ValueError(
                f"a batch must be a tensor, a mapping, or a tuple that starts with one, not {type(x).__name__}; "
                "say with forward=lambda model, batch: ... how the model takes it"
            )
        few = not _single(x) and _size(x) < minimum
        if small is not None and (held is None or few):
            x, small = _joined(small, x), None
            few = _size(x) < minimum
        if few:
            small = x
            continue
        if held is not None:
            yield held if small is None else _joined(held, small)
        held, small = x, None
    if small is not None:
        held = small if held is None else _joined(held, small)
    if held is None:
        raise ValueError("data holds no batch; a generator is empty once it has been read")
    yield held


def _single(batch: Any) -> bool:
    """Whether a batch holds a list of tensors of one type and number of dimensions: as sequences or images have it that
    nothing has collated, so that neither their rows nor their number need be the batch's."""
    if isinstance(batch, Mapping):
        return any(map(_single, batch.values()))
    if not isinstance(batch, tuple | list):
        return False
    kinds = [(x.dtype, x.ndim) if isinstance(x, Tensor) else None for x in batch]
    return (len(kinds) > 1 and len({*kinds}) == 1 and None not in kinds) or any(map(_single, batch))


def _size(batch: Any) -> int:
    first = _first_tensor(batch)
    if first is None or not first.ndim:
        raise ValueError(f"a batch holds no tensor of examples: {type(batch).__name__}")
    return len(first)


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"batches of shapes {tuple(a.shape)} and {tuple(b.shape)} are too small alone and cannot be joined; "
                "use larger batches, or pad to one length"
            )
        return torch.cat([a, b])
    if isinstance(a, Mapping):
        return {key: _joined(part, b[key]) for key, part in a.items()}
    if isinstance(a, tuple | list):
        if len(a) != len(b):
            raise ValueError(
                f"batches of {len(a)} and {len(b)} tensors cannot be joined; if they are lists of single examples, "
                "collate each to one tensor, or to a mapping of tensors"
            )
        return [_joined(*pair) for pair in zip(a, b, strict=True)]
    return a  # a setting, not one value for each example


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(part, device) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [_moved(part, device) for part in batch]
    return batch


def run(model: nn.Module, batch: Any, forward: Forward = None) -> Any:
    """The model's output for a batch, which goes to the model's device: `model(x)`, or `model(**x)` of a mapping, or
    what `forward(model, batch)` does."""
    first = _first_tensor(batch)
    moved = batch if first is None else _moved(batch, device_of(model, first))
    if forward is not None:
        token = _BATCH.set(object())
        try:
            return forward(model, moved)
        finally:
            _BATCH.reset(token)
    return model(**moved) if isinstance(moved, Mapping) else model(moved)


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
    select: Select = None,
    forward: Forward = None,
    batch_size: int = 256,
) -> dict[str, Float[Tensor, "examples ..."]]:
    """Features of all examples at the chosen layers, in evaluation mode; the model is left as it was.

    Args:
        data: inputs (examples, …), or an iterable of `x` or `(x, y)` batches, where x is a tensor or a mapping that the
            model takes by name; each goes to the model's device.
        reduce, select: see `FeatureTap`.
        forward: `forward(model, batch)` runs the model once on a batch as it comes, for models with several inputs.

    Returns:
        layer name → features of all examples, rows in the order of `data`.

    Raises:
        ValueError: see `FeatureTap` and `batches`; none of the layers ran, or other layers, or features of other
            widths, in other batches; `forward` ran the model several times on one.

    >>> from companion.models import digits_net
    >>> features = extract(digits_net(), torch.randn(100, 1, 8, 8), "layer1.*.relu2", reduce="average_pool")
    >>> {name: tuple(x.shape) for name, x in features.items()}
    {'layer1.0.relu2': (100, 16), 'layer1.1.relu2': (100, 16), 'layer1.2.relu2': (100, 16), 'layer1.3.relu2': (100, 16)}
    """
    parts: dict[str, list[Tensor]] = {}
    model = unwrap(model)  # a wrapper's forward may talk to other ranks, which may have fewer batches
    with evaluating(model), FeatureTap(model, layers, reduce=reduce, select=select) as tap:
        for x in batches(data, batch_size, whole=forward is not None):
            run(model, x, forward)
            tap.require()
            for name, features in tap.items():
                parts.setdefault(name, []).append(features)
    for name, chunks in parts.items():
        if len({x.shape[1:] for x in chunks}) > 1:
            raise ValueError(
                f"layer {name!r} gives {sorted({tuple(x.shape[1:]) for x in chunks})} features in different batches, "
                "as inputs of different lengths do; use reduce='average_pool', or pad all to one length"
            )
    return {name: torch.cat(chunks) for name, chunks in parts.items()}
