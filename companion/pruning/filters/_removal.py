"""Removal that changes nothing it should not: a zeroed filter is a constant, and constants can be merged.

A filter of zeros is silent only where no batch norm follows it: one with shift β and running statistics μ, σ² turns its
zeros into the constant β − γμ/σ. Whoever reads the channel multiplies that constant by its weights. Without padding
the product is the same everywhere: a bias. With zero padding it is smaller at the borders; then one channel stays
that emits the constant C, and carries for all of them the weights Σ_k c_k w_k / C. Both are exact. Chapter *From small
norms to a smaller network* shows what happens otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion._checks import whole_number
from companion._numbers import float64, float64_device
from companion._weights import refuse_lazy
from companion.features import bare_name, evaluating, find_layers, hooked, unwrap
from companion.pruning._inputs import as_input, call, tensors_of
from companion.pruning._plain import refuse_computed
from companion.pruning.filters._coupling import Coupling
from companion.pruning.filters._trace import IMAGE, Blank, Constant, channel_dim


@torch.no_grad()
def zero_filters(model: nn.Module, filters: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of `model` in which the weights of these filters (layer → indices) are 0; biases and norms stay. A wrapper
    such as DataParallel is looked through; the copy has none.

    Raises:
        ValueError: no such layer or filter; a layer without a weight, or with one that is lazy (the model has not run
            yet) or computed from other parameters.

    >>> layer = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> zero_filters(layer, {"0": [1, 3]})[0].weight.flatten(1).any(dim=1).tolist()
    [True, False, True, False]
    """
    model = unwrap(model)
    refuse_computed(model, filters)
    zeroed = copy.deepcopy(model)
    for name, indices in filters.items():
        layer = find_layers(zeroed, bare_name(name)).get(bare_name(name)) if name else zeroed
        weight = getattr(layer, "weight", None)
        if layer is None or not isinstance(weight, nn.Parameter):
            raise ValueError(f"{name!r} is no layer with a weight: name one whose filters are to be 0")
        refuse_lazy([(name, layer)])
        which = [whole_number(filter=index) for index in indices]
        if beyond := [index for index in which if not -len(weight) <= index < len(weight)]:
            raise ValueError(f"layer {name!r} has {len(weight)} filters, from 0 to {len(weight) - 1}; given: {beyond}")
        weight[which] = 0
    return zeroed


@dataclass(frozen=True)
class Constants:
    """What the layers read from channels whose filters are all zero: layer → one value an input, in float64.

    Attributes:
        emitted: as the network is. NaN where the value is not the same at all positions.
        carried: if every batch norm and bias of the channel emitted 1 (a *constant channel*).
    """

    emitted: Mapping[str, Float[Tensor, " inputs"]]
    carried: Mapping[str, Float[Tensor, " inputs"]]

    def agreed(self, other: Constants) -> Constants:
        """NaN too where an example of another size makes another value of it."""

        def both(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: _constant(torch.stack([value, theirs.get(name, value)], 1)) for name, value in mine.items()}

        return Constants(both(self.emitted, other.emitted), both(self.carried, other.carried))


@torch.no_grad()
def constants(model: nn.Module, coupling: Coupling, example: Any) -> Constants:
    """Measure both in two forward passes of `example` in which *all* filters that may go are zero: what a channel then
    emits depends on no other."""
    free = {f"{name}.weight" for name, channels in coupling.filters.items() if coupling.free[channels].all()}
    values = in_double(model, without=free)
    like = next(value for value in values.values() if value.is_floating_point())
    zero(values, coupling, coupling.free)
    for name in free:
        values[name] = like.new_zeros(()).expand(model.get_parameter(name).shape).as_subclass(_Zeros)
    with reading(model, coupling, _constant) as read:
        call(model, as_input(like, example), values)
        emitted = dict(read)
        emit_one(values, coupling, coupling.free)
        call(model, as_input(like, example), values)
    return Constants(emitted, read)


@torch.no_grad()
def remove(
    model: nn.Module,
    coupling: Coupling,
    constants: Constants,
    gone: Bool[Tensor, " channels"],
    branches: Sequence[str] = (),
    *,
    exact: bool = False,
) -> tuple[nn.Module, Bool[Tensor, " channels"]]:
    """A physically smaller copy of `model` that computes, in eval mode, what `model` computes with the filters of these
    channels zeroed. Also returns which of them stay, as constant channels.

    Args:
        branches: last layers of residual branches whose filters are zeroed too, all of them; nothing of such a branch
            stays but the constant that it emits, so that its block is the identity up to a shift.
        exact: leave it in float64, so that it can be checked; then it is to be `rounded`.

    Raises:
        ValueError: a channel that a layer does not read as a constant.
    """
    rest = _without(coupling, {name for last in branches for name in coupling.branches[last]})
    small = double(model, without=[model.get_parameter(f"{name}.weight") for name in rest.filters])
    ends = [(_silence(small, coupling, last), coupling.filters[last]) for last in branches]
    coupling, tensors = rest, _tensors(small)
    layers: dict[str, Any] = dict(small.named_modules())
    at_borders: dict[str, Tensor] = {}  # layer → Σ_k c_k w_k, for those that need a constant channel
    for name, channels in coupling.inputs.items():
        dead = _at(gone, channels)
        if not dead.any():
            continue
        emitted = constants.emitted[name].where(dead, 0)
        if emitted.isnan().any():
            raise ValueError(
                f"{name} would not read a constant from its inputs {emitted.isnan().nonzero().flatten().tolist()} if "
                "their filters were zero: they cannot be removed exactly"
            )
        layer = layers[name]
        if not emitted.any():
            continue
        response = _response(layer, emitted)
        response[gone[coupling.filters[name]]] = 0  # filters that are zero themselves
        if _pads_zeros(layer) and response.count_nonzero():
            at_borders[name] = response
        else:
            norm = layers[coupling.norm_of[name]] if name in coupling.norm_of else None
            _add_bias(layer, norm, response.reshape(len(response), -1).sum(1))

    kept = _carriers(coupling, constants, gone, at_borders)
    emit_one(tensors, coupling, kept)
    alive = ~gone | kept
    for end, written in ends:
        end.value[kept[written]] = 1
        end.value = _kept(end.value, alive[written])
    _slice(layers, coupling, alive)
    for name, channels in coupling.inputs.items() if kept.any() else ():
        written = coupling.filters[name]
        if kept[written].any():
            layers[name].weight.detach()[kept[written[alive[written]]]] = 0
        if _at(kept, channels).any():
            places = ~_at(~alive, channels)
            columns, carriers = _columns(layers[name]), _at(kept, channels[places])
            columns[carriers.view(columns.shape[:2])] = 0
            if name in at_borders:
                _carry(layers[name], carriers, at_borders[name][alive[written]], constants.carried[name][places])
    return (small if exact else rounded(small, model)), kept


def _silence(model: nn.Module, coupling: Coupling, last: str) -> Constant:
    """Put a constant in the place of a whole residual branch."""
    layers: list[Any] = [model.get_submodule(name) for name in coupling.branches[last]]
    layer: Any = model.get_submodule(last)
    zeros = torch.zeros_like(layer.weight[:, :1]).flatten(1)[:, 0]
    value = (zeros if layer.bias is None else layer.bias).view(1, -1, *[1] * (layer.weight.ndim - 2))
    if layers[-1] is not layer:  # the batch norm after it
        with evaluating(layers[-1]) as norm:
            value = norm(value)
    end = Constant(value.detach().flatten().clone(), layer.weight.requires_grad)
    stride = math.prod(getattr(one, "stride", (1,))[0] for one in layers)
    for name, new in zip(
        coupling.branches[last], [Blank(stride), *(nn.Identity() for _ in layers[2:]), end], strict=True
    ):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return end


def _without(coupling: Coupling, names: Collection[str]) -> Coupling:
    def rest(slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: channels for name, channels in slots.items() if name not in names}

    sides = rest(coupling.filters), rest(coupling.inputs), rest(coupling.norms)
    return dataclasses.replace(coupling, filters=sides[0], inputs=sides[1], norms=sides[2])


def zero(values: Mapping[str, Tensor], coupling: Coupling, channels: Bool[Tensor, " channels"]) -> None:
    """Zero the weights of all filters that write these channels, in place."""
    for name, written in coupling.filters.items():
        if f"{name}.weight" in values and (chosen := channels[written]).any():
            values[f"{name}.weight"][chosen] = 0


def emit_one(values: Mapping[str, Tensor], coupling: Coupling, channels: Bool[Tensor, " channels"]) -> None:
    """Let every batch norm (γ = 0, β = 1) and every bias of these channels emit 1: sums of them and their images under
    a ReLU stay positive. In training they stay constants, with β learned: x̂ = 0 gives γ no gradient."""
    for name, written in coupling.filters.items():
        if f"{name}.bias" in values:
            values[f"{name}.bias"][channels[written]] = 1
    for name, through in coupling.norms.items():
        chosen = _at(channels, through)
        for key, one in (("weight", 0), ("bias", 1)) if f"{name}.weight" in values else _WITHOUT_SCALE:
            if f"{name}.{key}" in values:
                values[f"{name}.{key}"][chosen] = one


_WITHOUT_SCALE = (("running_mean", -1), ("running_var", 1))


# -------------------------------------------------------------------------------------------------- numbers in float64
def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """name → parameter or buffer; one that modules share, under all its names, and a module that is used twice, once:
    `functional_call` would put it back only once."""
    return {
        f"{name}.{key}" if name else key: tensor
        for name, module in model.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _doubled(tensor: Tensor) -> Tensor:
    """A copy in float64; on the CPU where the device has none."""
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    return tensor.detach().to(float64_device(tensor.device), torch.float64, copy=True)


def in_double(model: nn.Module, without: Collection[str] = ()) -> dict[str, Tensor]:
    """name → parameter or buffer, for a forward pass in float64 (see `call`)."""
    own = {name: tensor for name, tensor in _tensors(model).items() if name not in without}
    doubled = {id(tensor): _doubled(tensor) for tensor in {id(tensor): tensor for tensor in own.values()}.values()}
    return {name: doubled[id(tensor)] for name, tensor in own.items()}


def double(model: nn.Module, without: Iterable[nn.Parameter]) -> nn.Module:
    """A copy in float64, but for some parameters, whose numbers are still those of `model`."""
    shared = [p for p in without if not p.is_inference()]  # no other parameter can have an inference tensor's numbers
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in shared}
    memo |= {id(p): nn.Parameter(_doubled(p), p.requires_grad) for p in model.parameters() if id(p) not in memo}
    memo |= {id(b): _doubled(b) for b in model.buffers()}
    # A module has a dozen dicts of hooks, and most are empty: half of what a deep copy would do.
    memo |= {id(d): type(d)() for m in model.modules() for d in vars(m).values() if isinstance(d, dict) and not d}
    return copy.deepcopy(model, memo)


def rounded(small: nn.Module, model: nn.Module) -> nn.Module:
    """Give the numbers the types and devices that they have in `model`; new ones, those of its first parameter."""
    own, first = _tensors(model), next(model.parameters())
    for name, tensor in (*small.named_parameters(), *small.named_buffers()):
        if tensor.is_floating_point():
            like = own.get(name, first)
            tensor.data = tensor.data.to(like.device, like.dtype)
    return small


# -------------------------------------------------------------------------------------------------------- what is read
class _Zeros(Tensor):
    """The weight of a layer whose filters are all zero, which gives its bias: no product is computed with it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if len(args) < 3 or not isinstance(args[1], _Zeros):
                return func(*args, **(kwargs or {}))
            x, weight, bias, *how = args
            spatial = weight.ndim - 2
            axis = x.ndim - 1 - spatial
            one = x.narrow(axis, 0, 1)
            if spatial:  # the output's size, from a convolution of one channel with its stride, padding and dilation
                one = func(one, weight[:1, :1], None, *how[:3])
            out = one.new_zeros((*one.shape[:axis], len(weight), *one.shape[axis + 1 :]))
            return out if bias is None else out.add_(bias.view(-1, *[1] * spatial))


@contextmanager
def reading(model: nn.Module, coupling: Coupling, measure: Callable[[Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """layer → what `measure` makes of all that its inputs were in the last forward pass, over examples and positions
    (inputs × readings): at once, for a later layer may overwrite it."""
    read: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        x = tensors_of(inputs)[0]
        read[name] = measure(x.movedim(channel_dim(layer, x), 0).flatten(1))

    layers = {name: model.get_submodule(name) for name in coupling.inputs}
    with evaluating(model), hooked(layers, keep, before=True):
        yield read


def _constant(x: Float[Tensor, "inputs readings"]) -> Float[Tensor, " inputs"]:
    low, high = x.aminmax(dim=1)
    value = high.where(high - low <= 1e-9 * high.abs().clamp(min=1), torch.nan)
    return value.where(~(value.abs() <= 1e-12), 0).cpu()  # what an instance norm leaves of a bias is rounding


# ------------------------------------------------------------------------------------------------- folding and merging
def _response(layer: Any, emitted: Float[Tensor, " inputs"]) -> Float[Tensor, "outputs *kernel"]:
    """Σ_k c_k w_k: for each output and place in the kernel what the constants add, away from borders."""
    groups = getattr(layer, "groups", 1)
    each = emitted.view(groups, 1, -1)
    used = each.any(0)[0]
    weight = float64(layer.weight.detach()[:, used])  # outputs inputs/groups *kernel
    each = each[..., used].expand(-1, len(weight) // groups, -1).flatten(0, 1)
    return torch.einsum("oi...,oi->o...", weight, each.to(weight))


def _pads_zeros(layer: Any) -> bool:
    if isinstance(layer, nn.Linear):
        return False
    padding = layer.padding
    padded = padding == "same" and max(layer.kernel_size) > 1 if isinstance(padding, str) else any(padding)
    return layer.padding_mode == "zeros" and padded


def _add_bias(layer: Any, norm: Any, bias: Float[Tensor, " outputs"]) -> None:
    """Add it where it costs nothing: the layer's bias, or the running mean of the batch norm after it."""
    if not bias.count_nonzero():
        return
    if layer.bias is not None:
        layer.bias += bias
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean -= bias
    else:
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)


def _carriers(
    coupling: Coupling,
    constants: Constants,
    gone: Bool[Tensor, " channels"],
    at_borders: Mapping[str, Tensor],
) -> Bool[Tensor, " channels"]:
    """The fewest channels, greedily, such that each of these layers reads one."""
    offers = {}
    for name in at_borders:
        channels = coupling.inputs[name]
        usable = _at(gone, channels) & (constants.carried[name].abs() > 1e-3)
        offers[name] = torch.zeros_like(gone).index_fill_(0, channels[usable], True)
        if not usable.any():
            raise ValueError(f"no constant channel can reach {name} with a value other than 0: see its activation")
    kept = torch.zeros_like(gone)
    while offers:
        best = torch.stack(list(offers.values())).sum(0).argmax()
        kept[best] = True
        offers = {name: offer for name, offer in offers.items() if not offer[best]}
    return kept


def _columns(layer: Any) -> Tensor:
    """The weights by input, as a view to write to: groups × inputs in a group × outputs in a group × kernel."""
    return layer.weight.detach().unflatten(0, (getattr(layer, "groups", 1), -1)).transpose(1, 2)


def _carry(
    layer: Any,
    kept: Bool[Tensor, " inputs"],
    response: Float[Tensor, "outputs *kernel"],
    carried: Float[Tensor, " inputs"],
) -> None:
    """Give the constant channel, in each group the first, the weights Σ_k c_k w_k / C."""
    columns = _columns(layer)
    kept = kept.view(columns.shape[:2])
    first = kept & (kept.cumsum(1) == 1)
    share = response.unflatten(0, (len(columns), -1))  # groups outputs/groups *kernel
    columns[first] = share / carried.view(first.shape)[first].to(share).view(-1, *[1] * (share.ndim - 1))


def _slice(layers: Mapping[str, Any], coupling: Coupling, alive: Bool[Tensor, " channels"]) -> None:
    """Cut every layer down to the channels that are alive, in place, and what is left of its weight is in float64."""
    dead = ~alive
    for name in coupling.filters:
        layer, rows, inputs = layers[name], alive[coupling.filters[name]], coupling.inputs[name]
        columns = ~_at(dead, inputs)
        sizes = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
        for size, left in zip(sizes, (columns, rows), strict=True):
            setattr(layer, size, int(left.sum()))
        if getattr(layer, "groups", 1) == len(inputs) > 1:  # depthwise: each group is a channel
            layer.groups = layer.in_channels
            layer.weight = _kept(layer.weight, rows)
        else:  # all groups lose the same places
            layer.weight = _kept(layer.weight, rows, columns[: layer.weight.shape[1]])
        layer.weight.data = _doubled(layer.weight)
        if layer.bias is not None:
            layer.bias = _kept(layer.bias, rows)
    for name, channels in coupling.norms.items():
        norm, places = layers[name], ~_at(dead, channels)
        if places.all():
            continue
        norm.num_features = int(places.sum())
        if norm.affine:
            norm.weight, norm.bias = _kept(norm.weight, places), _kept(norm.bias, places)
        if norm.running_mean is not None:
            norm.running_mean, norm.running_var = norm.running_mean[places], norm.running_var[places]
    for name, channels in coupling.constants.items():
        layers[name].value = _kept(layers[name].value, ~_at(dead, channels))
    for name, channels in coupling.shortcuts.items():
        shortcut, places = layers[name], ~_at(dead, channels)
        shortcut.before, shortcut.after = (
            int(part.sum()) for part in (places[: shortcut.before], places[len(places) - shortcut.after :])
        )


def _at(channels: Bool[Tensor, " channels"], places: Tensor) -> Tensor:
    """The mark of the channel at each place; none where there is no channel."""
    return channels[places] & (places != IMAGE)


def _kept(
    parameter: nn.Parameter, rows: Bool[Tensor, " rows"], columns: Bool[Tensor, " columns"] | None = None
) -> nn.Parameter:
    cut = [(axis, left) for axis, left in enumerate((rows, columns)) if left is not None and not left.all()]
    if not cut:
        return parameter  # itself, which another module may share
    values = parameter.detach()
    for axis, left in cut:
        values = values.index_select(axis, left.nonzero().flatten().to(values.device))
    return nn.Parameter(values, requires_grad=parameter.requires_grad)
