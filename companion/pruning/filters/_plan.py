"""The architecture of a smaller network as a few numbers, and the smaller network from them and the original code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from companion._checks import one_of
from companion.blocks import PassThrough
from companion.blocks._removal import put_in
from companion.features import bare_name, unwrap
from companion.models import Subsample
from companion.pruning._plain import computed_weights, plain
from companion.pruning.filters._trace import BatchNorm, Blank, Constant, Convolution, InstanceNorm

Plan = dict[str, dict[str, Any]]


def plan(model: nn.Module) -> Plan:
    """module → its type and sizes, for all that `prune_filters` and `without_blocks` cut or put in; good for JSON.

    With the state dict it is all that must be kept of a smaller network (`rebuild`), whether pruned once or often. It
    says which modules compute their weights from others; after `prune_filters` none does.

    >>> plan(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3)))
    {'0': {'type': 'Linear', 'in_features': 4, 'out_features': 3, 'bias': True}, '2': {'type': 'BatchNorm1d', \
'num_features': 3}}
    """
    model, found = unwrap(model), {}
    computed = {name for name, _, _ in computed_weights(model)}
    for name, module in model.named_modules():
        if sizes := _sizes(module, name in computed):
            found[bare_name(name)] = sizes
    return found


def rebuild(model: nn.Module, plan: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """A copy of the original network with the sizes of the smaller one, whose state dict it then loads. Weights that
    the original computes from others are plain ones if none of the smaller one's is computed.

    >>> from companion.models import mlp
    >>> from companion.pruning import prune_filters
    >>> smaller, _ = prune_filters(mlp([64, 32, 10]), torch.randn(2, 64), parameters=0.5, repeats=0)
    >>> again = rebuild(mlp([64, 32, 10]), plan(smaller))  # in another process, from JSON
    >>> again.load_state_dict(smaller.state_dict())
    <All keys matched successfully>

    Raises:
        ValueError: the plan is of another architecture: the first module that differs is named.
    """
    model = unwrap(model)
    model = copy.deepcopy(model if any("computed" in entry for entry in plan.values()) else plain(model))
    gone = {name: PassThrough(entry["outputs"]) for name, entry in plan.items() if entry["type"] == "PassThrough"}
    modules = {bare_name(name): module for name, module in model.named_modules()}
    for name, entry in plan.items():
        sizes = dict(entry)
        kind = sizes.pop("type")
        if name not in modules:
            raise ValueError(
                f"the plan has a {kind} {name!r}, {type(model).__name__} has none: it is of another network"
            )
        if name in gone:
            continue
        module: Any = modules[name]
        if kind in _PUT_IN:
            if type(module).__name__ != kind:
                parent, _, child = name.rpartition(".")
                setattr(modules[parent], child, _PUT_IN[kind](**sizes))
            continue
        one_of(type=(kind, [type(module).__name__]))
        if "computed" in sizes:  # of the size that it had
            continue
        bias = sizes.pop("bias", None)
        for key, value in sizes.items():
            setattr(module, key, value)
        _resize(module, bias)
    return put_in(model, gone)


def _sizes(module: Any, computed: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": type(module).__name__} | ({"computed": True} if computed else {})
    if isinstance(module, nn.Linear):
        return found | _of(module, "in_features", "out_features") | {"bias": module.bias is not None}
    if isinstance(module, Convolution):
        return found | _of(module, "in_channels", "out_channels", "groups") | {"bias": module.bias is not None}
    if isinstance(module, BatchNorm | InstanceNorm):
        return found | _of(module, "num_features")
    if isinstance(module, Subsample):
        return found | _of(module, "before", "after")
    if isinstance(module, Blank):
        return found | _of(module, "stride")
    if isinstance(module, PassThrough):
        return found | _of(module, "outputs")
    if isinstance(module, Constant):
        return found | {"channels": len(module.value)}
    return found if computed or type(module) is nn.Identity else {}


def _of(module: Any, *keys: str) -> dict[str, Any]:
    return {key: getattr(module, key) for key in keys}


_PUT_IN: dict[str, Any] = {
    "Blank": Blank,
    "Constant": lambda channels: Constant(torch.zeros(channels)),
    "Identity": nn.Identity,
}


def _resize(module: Any, bias: bool | None) -> None:
    """Parameters and buffers of the sizes that the module now says, fresh ones where they had another."""
    if bias is None:
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.ndim:
                _replace(module, key, tensor, (module.num_features,))
        return
    rows = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    columns = module.in_features if isinstance(module, nn.Linear) else module.in_channels // module.groups
    _replace(module, "weight", module.weight, (rows, columns, *module.weight.shape[2:]))
    if bias:
        _replace(module, "bias", module.weight if module.bias is None else module.bias, (rows,))
    else:
        module.register_parameter("bias", None)


def _replace(module: nn.Module, key: str, like: torch.Tensor, shape: tuple[int, ...]) -> None:
    if like.shape != shape:  # else it is left, for another module may share it
        fresh = like.new_zeros(shape)
        trained = isinstance(like, nn.Parameter)
        setattr(module, key, nn.Parameter(fresh, requires_grad=like.requires_grad) if trained else fresh)
