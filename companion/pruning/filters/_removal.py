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
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.features import evaluating, float64, float64_device
from companion.pruning._inputs import as_input, call
from companion.pruning._plain import refuse_computed
from companion.pruning.filters._coupling import Coupling
from companion.pruning.filters._trace import IMAGE, Blank, Constant, channel_dim, first_tensor


@torch.no_grad()
def zero_filters(model: nn.Module, filters: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of `model` in which the weights of these filters (layer → indices) are 0; biases and norms stay.

    Raises:
        ValueError: a layer whose weight is computed from other parameters.

    >>> layer = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> zero_filters(layer, {"0": [1, 3]})[0].weight.flatten(1).any(dim=1).tolist()
    [True, False, True, False]
    """
    refuse_computed(model, filters)
    zeroed = copy.deepcopy(model)
    for name, indices in filters.items():
        zeroed.get_submodule(name).get_parameter("weight")[list(indices)] = 0
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


@torch.no_grad()
def constants(model: nn.Module, coupling: Coupling, example: Any) -> Constants:
    """Measure both in two forward passes of `example` in which *all* filters that may go are zero: what a channel then
    emits depends on no other."""
    probe = double(model)
    zero(probe, coupling, coupling.free)
    example = as_input(probe, example)
    emitted = _read(probe, coupling, example)
    emit_one(probe, coupling, coupling.free)
    return Constants(emitted, _read(probe, coupling, example))


@torch.no_grad()
def remove(
    model: nn.Module,
    coupling: Coupling,
    constants: Constants,
    gone: Bool[Tensor, " channels"],
    branches: Sequence[str] = (),
) -> tuple[nn.Module, Bool[Tensor, " channels"]]:
    """A physically smaller copy of `model` that computes, in eval mode, what `model` computes with the filters of these
    channels zeroed. Also returns which of them stay, as constant channels.

    Args:
        branches: last layers of residual branches whose filters are zeroed too, all of them; nothing of such a branch
            stays but the constant that it emits, so that its block is the identity up to a shift.

    Raises:
        ValueError: a channel that a layer does not read as a constant.
    """
    small = copy.deepcopy(model)
    ends = [(_silence(small, coupling, last), coupling.filters[last]) for last in branches]
    coupling = _without(coupling, {name for last in branches for name in coupling.branches[last]})
    layers: dict[str, Any] = dict(small.named_modules())
    zero(small, coupling, gone)
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
        response = _response(layer, emitted)
        if _pads_zeros(layer) and response.count_nonzero():
            at_borders[name] = response
        else:
            norm = layers[coupling.norm_of[name]] if name in coupling.norm_of else None
            _add_bias(layer, norm, response.reshape(len(response), -1).sum(1))

    kept = _carriers(coupling, constants, gone, at_borders)
    emit_one(small, coupling, kept)
    for end, written in ends:
        end.value[kept[written]] = 1
        end.value = _kept(end.value, (~gone | kept)[written])
    for name, channels in coupling.inputs.items():
        layer = layers[name]
        columns = _columns(layer)
        columns[_at(gone, channels).view(columns.shape[:2])] = 0
        if name in at_borders:
            _carry(layer, _at(kept, channels), at_borders[name], constants.carried[name])
    _slice(small, coupling, ~gone | kept)
    return small, kept


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


def _without(coupling: Coupling, names: Container[str]) -> Coupling:
    def rest(slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: channels for name, channels in slots.items() if name not in names}

    sides = rest(coupling.filters), rest(coupling.inputs), rest(coupling.norms)
    return dataclasses.replace(coupling, filters=sides[0], inputs=sides[1], norms=sides[2])


def zero(model: nn.Module, coupling: Coupling, channels: Bool[Tensor, " channels"]) -> None:
    """Zero the weights of all filters that write these channels, in place."""
    for name, written in coupling.filters.items():
        model.get_submodule(name).get_parameter("weight")[channels[written]] = 0


def emit_one(model: nn.Module, coupling: Coupling, channels: Bool[Tensor, " channels"]) -> None:
    """Let every batch norm (γ = 0, β = 1) and every bias of these channels emit 1: sums of them and their images under
    a ReLU stay positive. In training they stay constants, with β learned: x̂ = 0 gives γ no gradient."""
    for name, written in coupling.filters.items():
        layer: Any = model.get_submodule(name)
        if layer.bias is not None:
            layer.bias[channels[written]] = 1
    for name, through in coupling.norms.items():
        norm: Any = model.get_submodule(name)
        chosen = _at(channels, through)
        if norm.affine:
            norm.weight[chosen], norm.bias[chosen] = 0, 1
        elif norm.running_mean is not None:
            norm.running_mean[chosen], norm.running_var[chosen] = -1, 1


# ------------------------------------------------------------------------------------------------------ what is read
def double(model: nn.Module) -> nn.Module:
    """A copy in float64; on the CPU where the device has none."""
    return copy.deepcopy(model).to(float64_device(next(model.parameters()).device)).double()


@contextmanager
def reading(model: nn.Module, coupling: Coupling) -> Iterator[dict[str, Float[Tensor, "inputs readings"]]]:
    """layer → all that each of its inputs was in the last forward pass: over examples and positions."""
    read: dict[str, Tensor] = {}

    def hook(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = first_tensor(args, kwargs)
            read[name] = x.movedim(channel_dim(module, x), 0).flatten(1)

        return layer.register_forward_pre_hook(keep, with_kwargs=True)

    handles = [hook(name, model.get_submodule(name)) for name in coupling.inputs]
    try:
        with evaluating(model):
            yield read
    finally:
        for handle in handles:
            handle.remove()


def _read(model: nn.Module, coupling: Coupling, example: Any) -> dict[str, Float[Tensor, " inputs"]]:
    with reading(model, coupling) as read:
        call(model, example)
    values = {}
    for name, x in read.items():
        low, high = x.aminmax(dim=1)
        value = high.where(high - low <= 1e-9 * high.abs().clamp(min=1), torch.nan).cpu()
        values[name] = value.where(~(value.abs() <= 1e-12), 0)  # what an instance norm leaves of a bias is rounding
    return values


# ------------------------------------------------------------------------------------------------- folding and merging
def _response(layer: Any, emitted: Float[Tensor, " inputs"]) -> Float[Tensor, "outputs *kernel"]:
    """Σ_k c_k w_k: for each output and place in the kernel what the constants add, away from borders; in float64."""
    weight = float64(layer.weight.detach())  # outputs inputs/groups *kernel
    groups = getattr(layer, "groups", 1)
    each = emitted.to(weight).view(groups, 1, -1).expand(-1, len(weight) // groups, -1).flatten(0, 1)
    return torch.einsum("oi...,oi->o...", weight, each)


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
        layer.bias.copy_(float64(layer.bias) + bias)
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.copy_(float64(norm.running_mean) - bias)
    else:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)


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
    columns[first] = (share / carried.view(first.shape)[first].to(share).view(-1, *[1] * (share.ndim - 1))).to(columns)


def _slice(model: nn.Module, coupling: Coupling, alive: Bool[Tensor, " channels"]) -> None:
    """Cut every layer down to the channels that are alive, in place."""
    for name in coupling.filters:
        layer: Any = model.get_submodule(name)
        rows, inputs = alive[coupling.filters[name]], coupling.inputs[name]
        columns = ~_at(~alive, inputs)
        depthwise = getattr(layer, "groups", 1) == len(inputs) > 1
        if isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = int(columns.sum()), int(rows.sum())
        else:
            layer.in_channels, layer.out_channels = int(columns.sum()), int(rows.sum())
        if depthwise:  # each group is a channel
            layer.groups = layer.in_channels
            layer.weight = _kept(layer.weight, rows)
        else:  # all groups lose the same places
            layer.weight = _kept(layer.weight, rows, columns[: layer.weight.shape[1]])
        if layer.bias is not None:
            layer.bias = _kept(layer.bias, rows)
    for name, channels in coupling.norms.items():
        norm: Any = model.get_submodule(name)
        places = ~_at(~alive, channels)
        norm.num_features = int(places.sum())
        if norm.affine:
            norm.weight, norm.bias = _kept(norm.weight, places), _kept(norm.bias, places)
        if norm.running_mean is not None:
            norm.running_mean, norm.running_var = norm.running_mean[places], norm.running_var[places]
    for name, channels in coupling.constants.items():
        constant: Any = model.get_submodule(name)
        constant.value = _kept(constant.value, ~_at(~alive, channels))
    for name, channels in coupling.shortcuts.items():
        shortcut: Any = model.get_submodule(name)
        places = ~_at(~alive, channels)
        before, after = places[: shortcut.before], places[len(places) - shortcut.after :]
        shortcut.before, shortcut.after = int(before.sum()), int(after.sum())


def _at(channels: Bool[Tensor, " channels"], places: Tensor) -> Tensor:
    """The mark of the channel at each place; none where there is no channel."""
    return channels[places] & (places != IMAGE)


def _kept(
    parameter: nn.Parameter, rows: Bool[Tensor, " rows"], columns: Bool[Tensor, " columns"] | None = None
) -> nn.Parameter:
    values = parameter.detach()[rows]
    return nn.Parameter(values if columns is None else values[:, columns], requires_grad=parameter.requires_grad)
