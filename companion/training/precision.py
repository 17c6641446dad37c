"""Which precision trains fastest here: measured, not looked up."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion._ranks import on_rank_zero, world_size
from companion.training.checkpoints import load_checkpoint, previous, random_state, set_random_state
from companion.training.measuring import Loss, autocast, checked, emulates_bfloat16, full_precision, loss_of, move

STEPS = 3  # timed for each precision, in turns, after one that warms up; the fastest counts
_CHOSEN: dict[tuple[str, type], str] = {}  # model of device, class of model → what was fastest


def candidates(device: torch.device) -> list[str]:
    """What to compare: bfloat16, or float16 on a GPU that merely emulates it; float32 where neither is known to be
    good."""
    if device.type == "cuda":
        return ["float32", "float16" if emulates_bfloat16(device) else "bfloat16"]
    return ["float32", "bfloat16"] if device.type == "cpu" else ["float32"]


def fastest_precision(model: nn.Module, data: Any, loss: Loss, channels_last: bool) -> str:
    """The precision in which a copy of the model does the first batch fastest, forward and backward; measured once for
    each model of device and class of model in a process. Random states stay as they are."""
    device = next(model.parameters()).device
    there = (torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, type(model))
    state = random_state(data, device)
    try:  # every rank asks: their devices may be of several models
        chosen = on_rank_zero(lambda: _CHOSEN.get(there) or _measured(model, data, loss, channels_last))
    finally:
        set_random_state(state, data, device)
    return _CHOSEN.setdefault(there, chosen) if world_size() == 1 else chosen


def _measured(model: nn.Module, data: Any, loss: Loss, channels_last: bool) -> str:
    device = next(model.parameters()).device
    names = candidates(device)
    if len(names) == 1:
        return names[0]
    twin = copy.deepcopy(model).train()
    x, y = checked(next(iter(data)))
    x, y = move(x, device, channels_last), y.to(device)
    taken = dict.fromkeys(names, math.inf)
    for turn in range(1 + STEPS):
        for name in names:

            def step(precision: str = name) -> None:
                twin.zero_grad()
                with autocast(device, precision):
                    outputs = twin(x)
                loss_of(loss, full_precision(outputs), y).backward()

            elapsed = seconds(step, device)
            if turn:
                taken[name] = min(taken[name], elapsed)
    return min(taken, key=lambda name: taken[name])


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """How long a step takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def of_checkpoint(path: str | Path | None) -> str | None:
    """The precision of the run that a checkpoint is of; None where there is none to go on from."""
    for candidate in () if path is None else (Path(path), previous(path)):
        if candidate.exists():
            try:
                return str(load_checkpoint(candidate)["configuration"]["precision"])
            except (ValueError, KeyError):  # it is refused by name when it is claimed
                return None
    return None
