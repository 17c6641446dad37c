"""Weights that are computed from other parameters: by parametrizations, weight norm, or torch's own pruning."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from companion.features import bare_name


def computed_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Each tensor that a module computes before its forward pass: module's name, module, the tensor's name."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            yield from ((name, module, key) for key in list(module.parametrizations))
        for key in list(module._parameters):
            for ending in ("_orig", "_v"):
                tensor = key.removesuffix(ending)
                if (
                    tensor != key
                    and isinstance(getattr(module, tensor, None), Tensor)
                    and tensor not in module._parameters
                ):
                    yield name, module, tensor


def refuse_computed(model: nn.Module, layers: Iterable[str]) -> None:
    """What holds or zeros weights cannot do so with those that the next forward pass computes anew."""
    computed = sorted({bare_name(name) for name, _, _ in computed_weights(model)} & {*map(bare_name, layers)})
    if computed:
        raise ValueError(
            f"{computed} compute their weights from other parameters: make them plain ones first, by "
            "torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm or "
            "torch.nn.utils.prune.remove, or leave them out by layers="
        )


def plain(model: nn.Module) -> nn.Module:
    """The model itself; or, where weights are computed, a copy that holds their present values as parameters."""
    computed = list(computed_weights(model))
    if not computed:
        return model
    for _, module, key in computed:  # a copy cannot be made of what has a history
        if key in module.__dict__:
            module.__dict__[key] = module.__dict__[key].detach()
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    for name, original, key in computed:
        layer: Any = modules[name]
        if not parametrize.is_parametrized(original):
            _settle(layer, key)
        if not parametrize.is_parametrized(layer):
            continue
        # Not `remove_parametrizations`: it changes a class that the copy shares with the original.
        values = {key: getattr(layer, key).detach().clone() for key in layer.parametrizations}
        trained = any(p.requires_grad for p in layer.parametrizations.parameters())
        del layer._modules["parametrizations"]
        layer.__class__ = parametrize.type_before_parametrizations(original)
        for key, value in values.items():
            layer.register_parameter(key, nn.Parameter(value, requires_grad=trained))
    return twin


def _settle(module: nn.Module, key: str) -> None:
    if hasattr(module, f"{key}_mask"):
        prune.remove(module, key)
    elif hasattr(module, f"{key}_g"):
        remove_weight_norm(module, key)
    else:
        remove_spectral_norm(module, key)
        for handle, wrapped in list(module._load_state_dict_pre_hooks.items()):  # torch leaves it, and no state loads
            hook: Any = getattr(wrapped, "hook", wrapped)
            if type(hook).__name__ == "SpectralNormLoadStateDictPreHook" and hook.fn.name == key:
                del module._load_state_dict_pre_hooks[handle]
