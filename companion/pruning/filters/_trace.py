"""Which filter wrote each channel of a tensor: one forward pass, followed operation by operation.

What an operation does to single channels is not guessed: where no rule says it, the channels are *held*.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from companion.features import evaluating, hooked, spatial
from companion.models import Subsample
from companion.pruning._inputs import call, tensors_of, whole_kernels

Slots: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = Convolution | nn.Linear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
IMAGE = -1  # what no layer writes channel by channel: the network's input, and all that mixes channels


class Blank(nn.Module):
    """The entry of a branch that is gone: one channel of zeros with the resolution that the branch had at its end."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[(slice(None), slice(1), *[slice(None, None, self.stride)] * (x.ndim - 2))])


class Constant(nn.Module):
    """The end of a branch that is gone: what it emits when the filters of its last layer are zero, for each channel one
    number at all positions. It trains as the batch norm's shift did."""

    def __init__(self, value: Tensor, requires_grad: bool = True) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) + self.value.view(-1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        return f"channels={len(self.value)}"


class _Label(NamedTuple):
    """Where the channels of a tensor are: along `dim`, the slot of each; None where they cannot be told apart. And the
    node of the graph that made the tensor."""

    dim: Any = None
    slots: Any = None
    node: int = -1


class _Call(NamedTuple):
    """An operation: the tensors `given` to it, those of them whose `channels` are known, and what comes out."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]
    channels: list[tuple[Tensor, _Label]]
    outs: list[Tensor]


class _Uncut(Exception):  # noqa: N818  # not an error: the answer "hold it"
    """Says why the channels of an operation cannot be cut one by one."""


class Trace(TorchDispatchMode):
    """Follows labels through a forward pass: which slots meet (`edges`), which are held, what feeds what (`sources`).

    Slots are the filters of all layers in the order of the modules, then places that shortcuts and constants add."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.slots = 0
        self.own = {n: self.fresh(len(module.weight)) for module, n in self.names.items() if isinstance(module, Layer)}
        self.inputs: dict[str, Slots] = {}
        self.norms: dict[str, Slots] = {}
        self.shortcuts: dict[str, Slots] = {}
        self.constants: dict[str, Slots] = {}
        self.edges: list[tuple[Slots, Slots]] = []
        self.held: dict[int, str] = {}
        self.labels: Any = WeakTensorKeyDictionary()
        self.nodes: list[str] = []  # what each did: a layer, or "" for an operation
        self.sources: list[set[int]] = []
        self._stack: list[nn.Module] = [model]

    def fresh(self, count: int) -> Slots:
        self.slots += count
        return np.arange(self.slots - count, self.slots)

    def node(self, name: str, inputs: Iterable[_Label]) -> int:
        self.nodes.append(name)
        self.sources.append({label.node for label in inputs})
        return len(self.nodes) - 1

    def hold(self, slots: Slots | None, why: str) -> None:
        for slot in [] if slots is None else slots[slots >= 0].tolist():
            self.held.setdefault(slot, why)

    def join(self, one: Slots, other: Slots, why: str) -> None:
        """Slots that go together; a channel that meets what is none stays."""
        both = (one >= 0) & (other >= 0)
        self.edges.append((one[both], other[both]))
        self.hold(one[~both], why)
        self.hold(other[~both], why)

    # -- modules that are cut
    def _enter(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.append(module)

    def _leave(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        self._stack.pop()
        if not isinstance(module, _Cut) or not isinstance(output, Tensor):
            return
        x = tensors_of(inputs)[0]
        label = self.labels.get(x)
        node = self.node(name, [label] if label else [])
        if isinstance(module, Blank):  # zeros, whatever it reads
            self.labels[output] = _Label(node=node)
            return
        dim = channel_dim(module, x)
        reads = np.full(x.shape[dim], IMAGE)
        if label is not None and label.dim == dim:
            reads = label.slots
        elif label is not None:
            self.hold(label.slots, f"{name} reads it along another axis than that of the channels")
        kind, writes = self.norms, reads
        if isinstance(module, Layer):
            kind, writes = self.inputs, self.own[name]
            self._groups(module, name, reads, writes)
        elif isinstance(module, Subsample):
            kind = self.shortcuts
            writes = np.concatenate([self.fresh(module.before), reads, self.fresh(module.after)])
        elif isinstance(module, Constant):
            kind, writes = self.constants, self.fresh(len(module.value))
        if name in kind:
            for slots in (reads, writes, kind[name]):
                self.hold(slots, f"{name} is called twice in one forward pass")
        kind[name] = reads if kind is self.inputs else writes
        self.labels[output] = _Label(dim, writes, node) if (writes >= 0).any() else _Label(node=node)

    def _groups(self, module: Any, name: str, reads: Slots, writes: Slots) -> None:
        if len(writes) == 1:
            self.hold(writes, f"it is the only filter of {name}")
        groups = getattr(module, "groups", 1)
        if groups == 1:
            return
        per_group = writes.reshape(groups, -1)
        if groups == len(reads):  # depthwise: a group is a channel
            for place in per_group.T:
                self.join(reads, place, f"each filter of {name} reads one channel of what cannot be cut")
            return
        for part in (per_group, reads.reshape(groups, -1)):  # groups of equal size must stay so
            for other in part[1:]:
                self.join(part[0], other, f"the groups of {name} must lose the same places")

    # -- all other operations
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(self._stack[-1], _Cut):
            return out
        name = func.overloadpacket.__name__.rstrip("_")
        given = tensors_of((args, kwargs))
        known = [(tensor, label) for tensor in given if (label := self.labels.get(tensor)) is not None]
        if not known or name.startswith("new_"):
            return out
        outs = tensors_of(out)
        channels = [(tensor, label) for tensor, label in known if label.dim is not None]
        node = self.node("", [label for _, label in known])
        found = [_Label()] * len(outs)
        if channels:
            try:
                found = self._rule(_Call(name, func, args, kwargs, given, channels, outs))
                self._written_through(given, outs, found)
            except _Uncut as reason:
                where = f"{self.names[self._stack[-1]] or 'the model'} ({type(self._stack[-1]).__name__})"
                for _, label in channels:
                    self.hold(label.slots, f"{name.removeprefix('native_').strip('_')} in {where} {reason}")
        for tensor, label in zip(outs, found, strict=True):
            self.labels[tensor] = label._replace(node=node)
        return out

    def _written_through(self, given: list[Tensor], outs: list[Tensor], found: list[_Label]) -> None:
        """A view that is written to changes what it is a view of, whose label says nothing of that."""
        for out, label in zip(outs, found, strict=True):
            if out._is_view() and any(out is tensor for tensor in given):
                before = self.labels.get(out)
                if before is None or before.slots is None or not np.array_equal(before.slots, label.slots):
                    self.labels[out._base] = _Label(node=self.node("", []))
                    raise _Uncut("writes into a part of another tensor")

    def _rule(self, call: _Call) -> list[_Label]:
        """Where the channels are in what comes out; what no rule knows is not cut."""
        if call.name in _MOVES:
            return self._moved(call)
        if call.name in _ELEMENTWISE or torch.Tag.pointwise in call.func.tags:
            return self._elementwise(call)
        if call.name == "glu":
            return self._glu(call)
        if call.name in _REDUCTIONS:
            return self._reduced(call)
        if call.name == "constant_pad_nd" or _POOLS.match(call.name):
            return self._pooled(call)
        raise _Uncut("cannot be cut channel by channel")

    def _elementwise(self, call: _Call) -> list[_Label]:
        n = call.outs[0].ndim
        dim, *others = {n - tensor.ndim + label.dim for tensor, label in call.channels}
        if others:
            raise _Uncut("combines channels along different axes")
        size, slots = call.outs[0].shape[dim], call.channels[0][1].slots
        for tensor in call.given:
            axis, label = dim - n + tensor.ndim, self.labels.get(tensor)
            length = tensor.shape[axis] if axis >= 0 else 1
            if label is None and length > 1:
                raise _Uncut("combines it with a parameter or buffer of fixed size")
            if label is not None and (label.dim is None or length != size):
                raise _Uncut("combines it with what depends on other channels or on the input")
            if label is not None and label.slots is not slots:
                self.join(slots, label.slots, f"{call.name} combines it with what cannot be cut")
        return [_Label(dim, slots)] * len(call.outs)

    def _moved(self, call: _Call) -> list[_Label]:
        """Let the labels go where the numbers go."""
        spread = {id(tensor): _spread(tensor, label) for tensor, label in call.channels}
        joins = call.name in ("cat", "stack")

        def labelled(tensor: Tensor) -> Tensor:
            if id(tensor) in spread:
                return spread[id(tensor)]
            if tensor in self.labels and not joins:
                raise _Uncut("rearranges it by what depends on the input")
            return torch.full(tensor.shape, IMAGE, device=tensor.device) if joins else tensor

        moved = call.func(*tree_map_only(Tensor, labelled, call.args), **tree_map_only(Tensor, labelled, call.kwargs))
        found = [_gathered(label) for label in tree_leaves(moved)]
        slots = call.channels[0][1].slots
        if _MOVES[call.name] and not all(np.array_equal(label.slots, slots) for label in found):
            raise _Uncut("picks or reorders channels")
        if "split" in call.name and not np.array_equal(found[0].slots, slots):
            for part in found[1:]:
                if len(part.slots) != len(found[0].slots):
                    raise _Uncut("splits it into unequal parts")
                self.join(found[0].slots, part.slots, f"{call.name} parts it")
        return found

    def _glu(self, call: _Call) -> list[_Label]:
        ((tensor, label),) = call.channels
        if label.dim != (call.args[1] if len(call.args) > 1 else -1) % tensor.ndim:
            return [_Label(label.dim, label.slots)]
        values, gates = np.split(label.slots, 2)
        self.join(values, gates, "its gate cannot be cut")
        return [_Label(label.dim, values)]

    def _reduced(self, call: _Call) -> list[_Label]:
        ((tensor, label),) = call.channels
        dims = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
        axes = {dim % tensor.ndim for dim in ([dims] if isinstance(dims, int) else dims or range(tensor.ndim))}
        if label.dim in axes:
            raise _Uncut("sums over the channels")
        gone = 0 if call.outs[0].ndim == tensor.ndim else sum(axis < label.dim for axis in axes)
        return [_Label(label.dim - gone, label.slots)]

    def _pooled(self, call: _Call) -> list[_Label]:
        ((tensor, label),) = call.channels
        if call.name == "constant_pad_nd":
            touched = {tensor.ndim - 1 - i // 2 for i, pad in enumerate(call.args[1]) if pad}
        else:
            touched = set(range(tensor.ndim - int((re.findall(r"(\d)d", call.name) or [1])[0]), tensor.ndim))
        if label.dim in touched:
            raise _Uncut("works along the channels")
        return [_Label(label.dim, label.slots)] * len(call.outs)

    # -- the whole pass
    def run(self, example: Any) -> None:
        for tensor in tensors_of(example):
            self.labels[tensor] = _Label(node=self.node("", []))
        named = {name: module for module, name in self.names.items()}
        try:
            with whole_kernels(), hooked(named, self._enter, before=True), hooked(named, self._leave), self:
                output = call(self.model, example)
        except Exception as error:
            raise ValueError(
                f"{type(self.model).__name__} does not run on this example: {type(error).__name__}: {error}"
            ) from error
        for tensor in tensors_of(output):
            label = self.labels.get(tensor)
            if label is not None:
                self.hold(label.slots, "the network returns it")
                self.node("", [label])

    def targets(self) -> list[set[int]]:
        """node → the nodes that it feeds."""
        found: list[set[int]] = [set() for _ in self.nodes]
        for node, sources in enumerate(self.sources):
            for source in sources:
                found[source].add(node)
        return found

    def uncut(self) -> dict[str, str]:
        idle = [name for name in self.own if name not in self.inputs]
        others = {
            name: f"a {type(module).__name__} is no convolution or linear layer"
            for module, name in self.names.items()
            if not isinstance(module, _Cut | nn.Embedding | nn.EmbeddingBag)
            and any(key.endswith("weight") and p is not None and p.ndim > 1 for key, p in module._parameters.items())
        }
        return dict.fromkeys(idle, "the forward pass does not call it") | others

    def norm_of(self) -> dict[str, str]:
        kinds = {name: module for module, name in self.names.items()}
        found = {}
        for node, after in zip(self.nodes, self.targets(), strict=True):
            if node in self.inputs and len(after) == 1:
                follower = self.nodes[next(iter(after))]
                if isinstance(kinds[follower], BatchNorm):
                    found[node] = follower
        return found


_Cut = Layer | BatchNorm | InstanceNorm | Subsample | Blank | Constant
# Operations that move numbers about: True where they may pick some or change the order, which no smaller tensor has.
_MOVES = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze"), False),
    **dict.fromkeys(("expand", "cat", "stack", "alias", "detach", "repeat"), False),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk"), False),
    **dict.fromkeys(("slice", "select", "index", "index_select", "roll", "flip", "unfold"), True),
}
_POOLS = re.compile(r"_?(mkldnn_)?(adaptive_)?(max|avg)_pool|_?upsample_|(reflection|replication)_pad")
_REDUCTIONS = ("mean", "sum", "amax", "amin", "var", "std")
_LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
_ELEMENTWISE = ("hardswish", "_prelu_kernel", "_to_copy", "native_dropout", "bernoulli", "fill", "zero", "copy", *_LIKE)


def _spread(tensor: Tensor, label: _Label) -> Tensor:
    """The slot at each place of a tensor."""
    shape = [-1 if dim == label.dim else 1 for dim in range(tensor.ndim)]
    return torch.from_numpy(label.slots).to(tensor.device).view(shape).expand(tensor.shape).contiguous()


def _gathered(slots: Tensor) -> _Label:
    """Back from the slot at each place to one axis of them."""
    varying = [dim for dim in range(slots.ndim) if bool((slots != slots.narrow(dim, 0, 1)).any())]
    if len(varying) != 1:
        raise _Uncut("spreads the channels over several axes" if varying else "leaves one channel alone")
    rest = tuple(slice(None) if dim == varying[0] else 0 for dim in range(slots.ndim))
    return _Label(varying[0], slots[rest].numpy(force=True).copy())


def channel_dim(module: nn.Module, x: Tensor) -> int:
    """The axis of the channels in what a layer reads and writes."""
    if isinstance(module, nn.Linear):
        return x.ndim - 1
    if isinstance(module, Convolution | InstanceNorm) and (space := spatial(module)):
        return x.ndim - 1 - space  # they also take a single example without its axis
    return 1


def traced(model: nn.Module, example: Any, counted: AbstractContextManager[Any]) -> Trace:
    """One pass in evaluation mode; and, where it leaves layers out, one in training mode: such as auxiliary heads."""
    with torch.inference_mode(False), evaluating(model):
        trace = Trace(model)
        with counted:
            trace.run(example)
        owners: dict[int, str] = {}
        for module, name in trace.names.items():
            for parameter in module._parameters.values():
                other = name if parameter is None else owners.setdefault(id(parameter), name)
                for slots in (trace.own, trace.inputs, trace.norms) if other != name else ():
                    for shared in (name, other):
                        trace.hold(slots.get(shared), f"{other} and {name} share a parameter")
        idle = trace.own.keys() - trace.inputs.keys()
        if idle:
            training = Trace(copy.deepcopy(model).train())
            with suppress(ValueError), torch.random.fork_rng():
                training.run(tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.ndim else x, example))
            for name in idle & training.inputs.keys():
                trace.hold(training.inputs[name], f"{name} reads it, in training only")
    return trace
