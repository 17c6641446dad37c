"""What goes into a model and comes out of it: a tensor, several, or several by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def call(model: nn.Module, example: Any) -> Any:
    """model(x), model(x, y) for a tuple, model(name=x) for a mapping."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, tuple | list):
        parts = list(value)
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return []
    return [tensor for part in parts for tensor in tensors_of(part)]


def as_input(model: nn.Module, example: Any) -> Any:
    """The example as plain tensors on the model's device, those of numbers with its type.

    Raises:
        ValueError: there is no tensor in it.
    """
    if not tensors_of(example):
        raise ValueError(
            f"example={example!r} holds no tensor; give a batch of inputs, such as torch.randn(1, 3, 32, 32)"
        )
    like = next(iter(model.parameters()), torch.empty(0))

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
