"""What goes into a model and comes out of it: a tensor, several, or several by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from companion._checks import given


def call(model: nn.Module, example: Any, values: dict[str, Tensor] | None = None) -> Any:
    """model(x), model(x, y) for a tuple, model(name=x) for a mapping; with other `values` of parameters and buffers."""
    named = dict(example) if isinstance(example, Mapping) else {}
    places = () if named else example if isinstance(example, tuple) else (example,)
    return (
        model(*places, **named) if values is None else functional_call(model, values, places, named, tie_weights=False)
    )


@contextmanager
def whole_kernels() -> Iterator[None]:
    """Keep attention out of the fused kernels that hide their parts."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def tensors_of(value: Any, inside: tuple[Any, ...] = ()) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings, dataclasses, and what else has attributes, but for modules."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        parts = value
    elif isinstance(value, Mapping):
        parts = list(value.values())
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        parts = list(vars(value).values())
    else:
        return []
    if any(value is outer for outer in inside):  # an object may refer to what it is a part of
        return []
    return [tensor for part in parts for tensor in tensors_of(part, (*inside, value))]


def require_tensor(example: Any) -> Tensor:
    """The first tensor in an example; a refusal where there is none."""
    if found := tensors_of(example):
        return found[0]
    raise ValueError(
        f"example={given(example)} holds no tensor; give a batch of inputs, such as torch.randn(1, 3, 32, 32)"
    )


def as_input(model: nn.Module | Tensor, example: Any) -> Any:
    """The example as plain tensors on the device of the model (or of a tensor), those of numbers with its type.

    Raises:
        ValueError: there is no tensor in it.
    """
    require_tensor(example)
    like = model if isinstance(model, Tensor) else next(iter(model.parameters()), torch.empty(0))

    def fitted(tensor: Tensor) -> Tensor:
        plain = tensor.detach().as_subclass(Tensor).to(like.device)
        return (plain.to(like.dtype) if plain.is_floating_point() else plain).clone()

    with torch.inference_mode(False):
        mapping = dict(example) if isinstance(example, Mapping) else example
        return tree_map_only(Tensor, fitted, mapping)


def first(example: Any, number: int) -> Any:
    """Of every tensor that has as many rows as the first one, the first `number`."""
    rows = len(tensors_of(example)[0])
    return tree_map_only(Tensor, lambda x: x[:number] if x.ndim and len(x) == rows else x, example)
