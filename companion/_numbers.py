"""Numbers: arrays as tensors, float64 on every device, and how far rounding reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(x: Any, name: str) -> Tensor:
    """x as a tensor; arrays, lists and data frames of numbers are taken too.

    Raises:
        ValueError: not numbers; complex ones, of which some function would drop the imaginary part.

    >>> as_tensor([[1.0, 2.0]], "x")
    tensor([[1., 2.]], dtype=torch.float64)
    """
    if not isinstance(x, Tensor):
        try:
            x = torch.from_numpy(np.array(x, order="C"))
        except (TypeError, ValueError):
            raise ValueError(f"{name} is a {type(x).__name__} without numbers; give a tensor or an array") from None
    if x.is_complex():
        raise ValueError(f"{name} is complex; give real and imaginary parts as two features")
    return x


WITHOUT_FLOAT64 = frozenset({"mps"})  # kinds of devices


def float64_device(device: torch.device) -> torch.device:
    """The device, or the CPU for one that has no float64 (Apple's MPS)."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def float64(x: Tensor) -> Tensor:
    """x in float64, on the CPU where its device has none: sums, ties and thresholds are as exact on every device."""
    return x.to(float64_device(x.device)).double()  # moved first: a device without float64 cannot convert


def _resolution(dtype: torch.dtype) -> float:
    """How far features may differ, relative to their size, and be the same: what is less is rounding of the network's
    own arithmetic. It decides everywhere what is *dead*, constant over examples. Integers count as float64.
    """
    # If every entry of n equal rows c is off by u of its size, the energy of the centred rows is u² of the raw n‖c‖²;
    # where they truly vary by d of their size, it is d². Through eight layers of sums of up to 4,096 products float32
    # was off by u < ε; layers of 16 bits, which sum in float32 and round once, by less. So u = 16 ε and 4 ε are ample.
    if not dtype.is_floating_point:
        dtype = torch.float64
    return (4 if dtype.itemsize < 4 else 16) * torch.finfo(dtype).eps
