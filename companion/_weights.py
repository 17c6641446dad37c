"""The matrices that layers multiply by: which a layer has, how they lie, who else holds them."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Their weights are looked up, or scale, or make those of the layer that they are in.
PASSED_OVER = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, parametrize.ParametrizationList)


def transposed_linear(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 in `transformers`, whose weight is (inputs, outputs)."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__) and hasattr(module, "nf")


def multiplies(name: str, module: nn.Module) -> bool:
    """Whether it is a convolution, a linear layer, or an attention with its projections."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)) or transposed_linear(module)


def matrices(name: str, module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """A layer's own weights with two dimensions or more: what to call each, its key in the layer, and itself."""
    for key, parameter in module.named_parameters(recurse=False):
        if "weight" in key and parameter.ndim > 1:
            yield name if key == "weight" else f"{name}.{key}", key, parameter


def refuse_lazy(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse a layer (name, module) that learns its shape in its first forward pass, before which it has no weight."""
    for name, module in modules:
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise ValueError(f"layer {name or type(module).__name__!r} is lazy: run the model once first")


def outputs_first(module: Any, weight: Tensor) -> Tensor:
    """The layer's weight with a row for each output unit or filter.

    >>> outputs_first(layer := nn.ConvTranspose2d(4, 6, 3, groups=2), layer.weight).shape
    torch.Size([6, 2, 3, 3])
    """
    if transposed_linear(module):
        return weight.T
    if isinstance(module, CONVOLUTIONS[3:]):
        return weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight


def memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common that are one and the same numbers in memory."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()


def warn_of_the_rest(model: nn.Module, chosen: Container[nn.Module], what: str) -> None:
    """Name the layers with weights that a choice of layers by their kind passes over; what is not called a weight
    counts from a tenth of all parameters on, as experts do and positions do not. A lazy layer has no size to count."""
    refuse_lazy(model.named_modules())
    large = sum(parameter.numel() for parameter in model.parameters()) / 10

    def has_weights(name: str, module: nn.Module) -> bool:
        others = (p.numel() for p in module.parameters(recurse=False) if p.ndim > 1)
        return any(True for _ in matrices(name, module)) or any(size >= large for size in others)

    rest = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if module not in chosen and not isinstance(module, PASSED_OVER) and has_weights(name, module)
    }
    if rest:
        warnings.warn(
            f"{what} leaves out {rest}, which are no convolution, linear or attention layers: if they matter, choose "
            "by layers=",
            stacklevel=3,
        )
