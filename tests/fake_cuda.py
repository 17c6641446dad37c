"""A device that takes itself for CUDA: tensors with values, on a machine without a card, that refuse a mix of devices.

Under `FakeCuda` a tensor made or moved there says `cuda:0`, holds its values in the CPU's memory, and meets torch's
rules: which functions take tensors of two devices, where a generator has to lie, what needs `.cpu()` first. Forward and
backward passes give the values that the CPU gives. What runs inside a backward pass is not looked at, and a function of
torch counts as one operation. It says nothing about CUDA's own arithmetic, types and speed: `tests/gpu.sh` does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


class OnCuda(Tensor):
    """A tensor that lies on the fake device."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OnCuda:
        memo[id(self)] = twin = self.detach().clone().requires_grad_(self.requires_grad)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)  # says whether it is a parameter
        return twin


MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as}
ANY_MIX = {Tensor.copy_, Tensor.data.__set__, Tensor.__getitem__, Tensor.__setitem__, Tensor.backward, *MOVES}
ONE_DEVICE = {torch.cat, torch.stack, torch.concat, Tensor.index_select, torch.index_select}  # numbers included
TO_NUMPY = {Tensor.numpy, Tensor.__array__}


class FakeCuda(TorchFunctionMode):
    """While it is entered, `device="cuda"` means the fake device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return place(args[0])
        if func == Tensor.is_cuda.__get__:
            return isinstance(args[0], OnCuda)
        if func == Tensor.grad.__get__ and isinstance(args[0], OnCuda):
            return mapped(func(*args), lambda grad: grad.as_subclass(OnCuda))
        if func is Tensor.__iter__:
            return iter(args[0].unbind())
        if func is torch._has_compatible_shallow_copy_type:
            return isinstance(args[0], OnCuda) == isinstance(args[1], OnCuda)
        if func in TO_NUMPY and isinstance(args[0], OnCuda):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        given = list(tensors((args, kwargs)))
        there = any(isinstance(x, OnCuda) for x in given)
        asked = [torch.device(x) for x in (*args[1:2], kwargs.get("device")) if names_a_device(x)]
        if func is Tensor.cpu:
            asked = [torch.device("cpu")]
        elif func is Tensor.cuda:
            asked, args, kwargs, func = [CUDA], args[:1], {"device": CUDA}, Tensor.to
        elif func in MOVES and len(args) > 1 and isinstance(args[1], Tensor):
            asked = [place(args[1])]
        self.refuse(func, args, kwargs, given, asked)
        target = asked[-1].type if asked else "cuda" if there else "cpu"
        if asked:
            args = tuple(torch.device("cpu") if names_a_device(x) else x for x in args)
            kwargs |= {"device": torch.device("cpu")} if "device" in kwargs else {}
        result = func(*args, **kwargs)
        if target == "cuda" and not given:  # a new tensor
            return mapped(result, lambda x: x.detach().clone().as_subclass(OnCuda).requires_grad_(x.requires_grad))
        if target == "cuda" and not there:
            return mapped(result, lambda x: x.clone().as_subclass(OnCuda))
        if target == "cpu" and there and asked:
            return mapped(result, lambda x: x.clone().as_subclass(Tensor))
        return result

    def refuse(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], asked: list[torch.device]) -> None:
        """What torch itself refuses."""
        name = getattr(func, "__name__", str(func))
        there = [isinstance(x, OnCuda) for x in given]
        if kwargs.get("generator") is not None and (any(there) or any(device.type == "cuda" for device in asked)):
            raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and not there[0] and any(there[1:]):
            raise RuntimeError(f"{name}: indices should be either on cpu or on the same device as the indexed tensor")
        if not any(there) or func in ANY_MIX:
            return
        free = 0 if func in ONE_DEVICE or name.endswith("_") or "out" in kwargs else 1
        for number, x in enumerate(given):  # a number may come from the CPU, but cannot be written to
            if not isinstance(x, OnCuda) and (x.ndim or (not free and (func in ONE_DEVICE or number == 0))):
                raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found cpu and cuda:0")


def names_a_device(x: Any) -> bool:
    return isinstance(x, torch.device) or (isinstance(x, str) and x.partition(":")[0] in ("cpu", "cuda"))


def place(x: Tensor) -> torch.device:
    return CUDA if isinstance(x, OnCuda) else torch.device("cpu")


def mapped(value: Any, change: Any) -> Any:
    """`change` of every tensor in a result."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in arguments."""
    yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
