"""Baselines: penalties on weights, read when they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from companion._weights import memory, multiplies, outputs_first, refuse_lazy, warn_of_the_rest
from companion.features import Layers, find_layers, unwrap
from companion.regularizers.base import PENALTIES, BasePenalty, Strength, check_strengths, strength_at


def _keys(module: nn.Module) -> Iterable[str]:
    """What a layer calls its weights."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    if isinstance(module, nn.RNNBase):
        return [key for key in module._flat_weights_names if key.startswith("weight")]
    return ("weight",)


def weight_of(name: str, module: nn.Module, key: str = "weight") -> Tensor | None:
    """The weight that the module's next forward pass multiplies by, with its gradient; None where it has none.

    A parameter itself, else computed from those that it is made of: `torch.nn.utils.parametrize` (weight norm, spectral
    norm, orthogonal), `torch.nn.utils.prune`, and the older `weight_norm`.

    Raises:
        ValueError: a weight that something else computes in each forward pass.
    """
    weight = getattr(module, key, None)
    if isinstance(weight, nn.Parameter) or weight is None or nn.utils.parametrize.is_parametrized(module, key):
        return weight
    # The attribute is what the last forward pass left: as old as that, and its graph is used up.
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == key:
            return hook.apply_mask(module)
        if isinstance(hook, WeightNorm) and hook.name == key:
            return hook.compute_weight(module)
    raise ValueError(
        f"the {key} of layer {name!r} ({type(module).__name__}) is no parameter, and what computes it is unknown; use "
        "torch.nn.utils.parametrizations, or leave the layer out by layers="
    )


class _OnWeights(BasePenalty):
    """A penalty on the weights of convolutions and linear layers, attention's projections included (or of `layers`), as
    the next forward pass uses them: pruned by a mask, normalised, or parametrised otherwise. A weight that several
    layers share counts once. The value is computed in float32 (float64 for float64 weights) whatever autocast says. A
    warning names layers with weights that the default leaves out.

    Raises:
        ValueError: a negative strength; no layer with a weight, a lazy layer (the model has not run yet), or a weight
            of unknown origin, which is named.
    """

    kinds: Layers = multiplies
    shown = ("strength", "layers")

    def __init__(self, model: nn.Module, strength: Strength, layers: Layers | None = None) -> None:
        super().__init__()
        check_strengths(strength=strength)
        self.strength = strength
        if layers is None:  # a lazy batch norm is not of the kinds yet
            refuse_lazy(unwrap(model).named_modules())
        self._modules = find_layers(model, type(self).kinds if layers is None else layers)
        refuse_lazy(self._modules.items())
        if layers is None and type(self).kinds is multiplies:
            warn_of_the_rest(model, self._modules.values(), type(self).__name__)
        if not self.weights:
            raise ValueError(f"none of the layers {list(self._modules)} has a weight")

    @property
    def layers(self) -> list[str]:
        """The penalised layers."""
        return list(self.weights)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Layer → its weight now, a row for each of its outputs ("layer.in_proj_weight" for attention's)."""
        found, seen = {}, dict[Any, Tensor]()  # held: what is computed and let go gives its memory to the next
        for name, module in self._modules.items():
            for key in _keys(module):
                weight = weight_of(name, module, key)
                if weight is not None and memory(weight) not in seen:
                    seen[memory(weight)] = weight
                    found[name if key == "weight" else f"{name}.{key}"] = outputs_first(module, weight)
        return found

    def term(self, weight: Tensor) -> Float[Tensor, ""]:
        """What one layer's weight adds, before the strength."""
        raise NotImplementedError

    def __call__(self) -> Float[Tensor, ""]:
        weights = list(self.weights.values())
        with torch.autocast(weights[0].device.type, enabled=False):
            terms = [self.term(weight.to(torch.promote_types(weight.dtype, torch.float32))) for weight in weights]
            return self._computed(strength_at(self.strength, self.calls) * torch.stack(terms).sum())


@PENALTIES.register("l1", title="L1", reads="weights", signed=False)
class L1(_OnWeights):
    """strength · Σ `abs(w)` (Tibshirani 1996).

    >>> L1(nn.Sequential(nn.Linear(2, 2)), strength=0.1)
    L1(strength=0.1, layers=['0'])
    """

    name = "l1"

    def term(self, weight: Tensor) -> Float[Tensor, ""]:
        return weight.abs().sum()


@PENALTIES.register("group_lasso", title="group lasso", reads="weights", signed=False)
class GroupLasso(_OnWeights):
    """strength · Σ_filters √(weights of a filter) · ‖filter‖₂ (Yuan & Lin 2006): whole filters go to zero together.

    The gradient of a filter that is exactly zero is zero.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> model[0].weight.data = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    >>> GroupLasso(model, strength=1.0)().item()  # √4 · 5
    10.0
    """

    name = "group_lasso"

    def term(self, weight: Tensor) -> Float[Tensor, ""]:
        rows = weight.flatten(1)
        squares = (rows.abs() if rows.is_complex() else rows).square().sum(1)
        norms = torch.where(squares == 0, 1, squares).sqrt() * (squares != 0)
        return rows.shape[1] ** 0.5 * norms.sum()


@PENALTIES.register("slimming", title="slimming", reads="weights", signed=False)
class NetworkSlimming(_OnWeights):
    """strength · Σ `abs(γ)` over the scales of all batch norms (Liu et al. 2017, arXiv 1708.06519).

    A channel whose scale is 0 is the constant that its batch norm shifts it by; the filter behind it can go. The paper
    trains CIFAR networks with 1e-4.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> NetworkSlimming(model, strength=0.5)().item()  # eight scales of 1
    4.0
    """

    name = "slimming"
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

    def term(self, weight: Tensor) -> Float[Tensor, ""]:
        return weight.abs().sum()
