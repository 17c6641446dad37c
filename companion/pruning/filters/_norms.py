"""How large a filter is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion._checks import given, one_of
from companion._numbers import float64
from companion._weights import refuse_lazy
from companion.pruning._inputs import as_input, call
from companion.pruning.filters._coupling import Coupling
from companion.pruning.filters._removal import reading
from companion.pruning.filters._trace import Layer

Norm: TypeAlias = "Literal['l1', 'l2', 'bn', 'folded', 'activation'] | Callable[[Tensor], Tensor]"


@torch.no_grad()
def filter_norms(model: nn.Module, norm: Norm = "l2", coupling: Coupling | None = None) -> dict[str, Tensor]:
    """layer → the norm of each of its filters w_k: Float[Tensor, "filters"].

    Before a batch norm a filter's own norm has no meaning: w_k and 10·w_k give the same network. "folded" is the norm
    of the filter that does the work of both, w_k·γ_k/√(σ_k² + ε). What each norm changes with, where a batch norm
    follows and its statistics are measured anew:

    - the filter times a: "l1" and "l2" times a; "bn" and "folded" stay;
    - the layer's input times c, which leaves the output as it was: "folded" times 1/c; the others stay;
    - γ and β times b, which the weights of the next layer can undo: "bn" and "folded" times b; the others stay.

    The filters of a layer share its input, so c does not change their order, nor a norm relative to the layer's mean.
    Between layers or networks with inputs of different size the folded norm compares the inputs: there take "bn", or
    the folded norm times the deviation of the input.

    Args:
        norm: "l1" `Σ|w|`, "l2" √Σw², "bn" `|γ|` of the batch norm that follows (network slimming, Liu et al. 2017),
            "folded" `‖w‖₂·|γ|/√(σ² + ε)` (‖w‖₂ where no batch norm follows, `|γ|` where it keeps no statistics), or a
            function of a weight (filters, …) to one number a filter.
        coupling: of the model, which tells the batch norm that follows a layer; needed for "bn" and "folded".

    Raises:
        ValueError: an unknown norm, a function that gives anything but one number a filter, "bn" where no batch norm
            follows any layer, no coupling where it is needed, a lazy layer (the model has not run yet).

    >>> layer = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> layer[0].weight.data = torch.tensor([3.0, -4.0]).view(2, 1, 1, 1)
    >>> filter_norms(layer, "l1")
    {'0': tensor([3., 4.])}
    """
    if not callable(norm):
        one_of(norm=(norm, ("l1", "l2", "bn", "folded")))
    if norm in ("bn", "folded") and coupling is None:
        raise ValueError(f"norm={norm!r} needs coupling=couple(model, example): which batch norm follows which layer")
    refuse_lazy(model.named_modules())
    measure = norm if callable(norm) else functools.partial(_lengths, order=1 if norm == "l1" else 2)
    norms = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, Layer):
            continue
        size = measure(layer.weight.detach())
        if callable(norm):
            _require_one_a_filter(size, name, len(layer.weight))
        follower = coupling.norm_of.get(name) if coupling is not None else None
        if norm in ("bn", "folded") and follower is not None:
            batch_norm: Any = model.get_submodule(follower)
            scale = batch_norm.weight.abs() if batch_norm.affine else torch.ones_like(size)
            if norm == "bn" or batch_norm.running_var is None:
                size = scale
            else:
                size = size * scale / (batch_norm.running_var + batch_norm.eps).sqrt()
        elif norm == "bn":
            continue
        norms[name] = size
    if not norms:
        raise ValueError('norm="bn": no layer is followed by a batch norm alone; use "l1" or "l2"')
    return norms


def _require_one_a_filter(norms: Any, name: str, filters: int) -> None:
    if not isinstance(norms, Tensor) or norms.shape != (filters,):
        got = f"the shape {tuple(norms.shape)}" if isinstance(norms, Tensor) else given(norms)
        raise ValueError(
            f"norm gives {got} for the weight of {name!r}: it must give one number for each of the {filters} filters"
        )
    if norms.isnan().any():
        raise ValueError(f"norm gives NaN for {int(norms.isnan().sum())} of the {filters} filters of {name!r}")


def _lengths(weight: Tensor, order: int) -> Tensor:
    return weight.flatten(1).norm(order, dim=1)


@torch.no_grad()
def channel_norms(
    model: nn.Module, coupling: Coupling, norm: Norm = "l2", example: Any = None
) -> Float[Tensor, " channels"]:
    """One number a channel, in float64: the largest norm of the filters that write it, so that below a threshold means
    that *all* of them are. Infinite where it has none.

    "activation" is the standard deviation, over the examples and positions of `example`, of what is read from the
    channel (the largest, over its readers). It is 0 for a constant, which costs nothing; the mean activation is not.
    Like "bn" it sees neither the scale of the filter before a batch norm nor that of its input.

    Raises:
        ValueError: see `filter_norms`; "activation" without an example.

    >>> from companion.models import digits_net
    >>> from companion.pruning import couple
    >>> model = digits_net(width=8)
    >>> coupling = couple(model, torch.randn(2, 1, 8, 8))
    >>> norms = channel_norms(model, coupling, "folded")
    >>> len(norms) == len(coupling.free), bool((norms >= 0).all())
    (True, True)
    """
    if norm == "activation":
        if example is None:
            raise ValueError('norm="activation" needs example=: a batch of inputs')
        with reading(model, coupling, lambda x: float64(x).std(dim=1)) as sizes:
            call(model, as_input(model, example))
        places = coupling.inputs
    else:
        if not callable(norm):
            one_of(norm=(norm, ("l1", "l2", "bn", "folded", "activation")))
        sizes, places = filter_norms(model, norm, coupling), coupling.filters
    largest = torch.full(coupling.free.shape, -math.inf, dtype=torch.float64)
    for name in sizes.keys() & places.keys():
        known = places[name] >= 0
        largest.scatter_reduce_(0, places[name][known], sizes[name].cpu().double()[known], "amax")
    return largest.where(largest.isfinite(), math.inf)


def widest_gap(norms: Float[Tensor, " channels"]) -> float:
    """The threshold in the widest gap, on a logarithmic scale, between neighbours in the sorted norms: their geometric
    mean. Norms of 0 are farthest from all others: with some of them the threshold is 0.

    >>> round(widest_gap(torch.tensor([1.0, 0.01, 1.2, 0.02])), 3)  # √(0.02 · 1.0)
    0.141

    Raises:
        ValueError: fewer than two different norms.
    """
    ordered = float64(norms.unique())
    if len(ordered) < 2:
        raise ValueError(f"{len(ordered)} different norms: there is no gap; use another threshold")
    if ordered[0] == 0:
        return 0.0
    widest = ordered.log().diff().argmax()
    return float((ordered[widest] * ordered[widest + 1]).sqrt())
