"""What a run measures: `History`, `evaluate`, and the sums behind both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pandas as pd
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion._ranks import world_size

Batch: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class History(list[dict[str, Any]]):
    """One record an epoch, of plain numbers: `epoch` (from 1), `lr` (of its last step), `loss` and `accuracy` (means
    over the training examples as they passed), `penalty_NAME` (mean over steps and ranks), `validation_loss`,
    `validation_accuracy`, `sparsity`, `images_per_second` and `seconds` (of the training passes).

    >>> History([{"epoch": 1, "loss": 2.3}, {"epoch": 2, "loss": 1.9}]).frame().shape
    (2, 2)
    """

    def frame(self) -> pd.DataFrame:
        """As a table, one row an epoch."""
        return pd.DataFrame(list(self))


class Meter:
    """Sums over an epoch. A step leaves its numbers on the device; `fetch` gets those of many steps at once."""

    def __init__(self, penalties: Iterable[str], saved: dict[str, Any] | None = None) -> None:
        self.columns = ["loss", "correct", *(f"penalty_{name}" for name in penalties), "examples"]
        self.sums: list[float] = saved["sums"] if saved else [0.0] * len(self.columns)
        self.steps: int = saved["steps"] if saved else 0
        self.seconds: float = saved["seconds"] if saved else 0.0
        self.since = time.perf_counter()
        self.pending: list[tuple[Tensor, int]] = []  # a row on the device, and its number of examples

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "steps": self.steps, "seconds": self.seconds}

    def fetch(self) -> int | None:
        """Add up the pending steps of all ranks; returns the first whose loss or penalty is NaN or infinite, if any."""
        if self.pending:
            rows = torch.stack([row for row, _ in self.pending])
            rows = torch.cat([rows, rows.new_tensor([[examples] for _, examples in self.pending])], dim=1)
            if world_size() > 1:
                dist.all_reduce(rows)
            for row in rows.tolist():  # one by one: the sums do not depend on how often they are fetched
                self.sums = [total + value for total, value in zip(self.sums, row, strict=True)]
                self.steps += 1
                if not all(map(math.isfinite, row)):
                    return self.steps
        self.pending.clear()
        self.seconds, self.since = self.seconds + time.perf_counter() - self.since, time.perf_counter()
        return None

    def means(self) -> dict[str, float]:
        sums = dict(zip(self.columns, self.sums, strict=True))
        examples = sums.pop("examples")
        means = {"loss": sums.pop("loss") / examples, "accuracy": sums.pop("correct") / examples}
        means |= {name: total / self.steps / world_size() for name, total in sums.items()}
        return means | {"images_per_second": examples / self.seconds, "seconds": self.seconds}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    loss: Loss = nn.functional.cross_entropy,
    precision: str = "float32",
    channels_last: bool = False,
    right: list[Tensor] | None = None,
) -> dict[str, float]:
    """Mean `loss`, share of right answers (`accuracy`) and number of `examples` of a loader's batches (x, y).

    Runs in eval mode without gradients and leaves every module in the mode it had. In a process group every rank calls
    it with its own part of the examples, and gets the result over all of them. No example at all: `ValueError`. A list
    given as `right` is filled with bool tensors, one a batch of this rank: which of its examples are right.

    >>> from companion.data import DeviceLoader, digits
    >>> from companion.models import mlp
    >>> sorted(evaluate(mlp([64, 10]), DeviceLoader(digits("test"), batch_size=360)))
    ['accuracy', 'examples', 'loss']
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    sums, examples = [], 0
    try:
        model.eval()
        for x, y in loader:
            x, y = move(x, device, channels_last), y.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = full_precision(model(x))
            if len(y):
                sums.append(torch.stack(batch_sums(loss(logits, y), logits, y)))
            if right is not None:
                right.append(logits.argmax(1) == y)
            examples += len(y)
    finally:
        for module, mode in modes.items():
            module.training = mode
    totals = torch.stack(sums).cpu().double().sum(0) if sums else torch.zeros(2, dtype=torch.float64)
    totals = torch.cat([totals, totals.new_tensor([examples])])
    if world_size() > 1:
        totals = totals.to(device)
        dist.all_reduce(totals)
    total_loss, correct, everyone = totals.tolist()
    if everyone == 0:
        raise ValueError("nothing to evaluate: the loader gave no example")
    return {"loss": total_loss / everyone, "accuracy": correct / everyone, "examples": int(everyone)}


def move(x: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last and x.ndim == 4 else torch.preserve_format
    return x.to(device, non_blocking=True, memory_format=layout)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: one of {', '.join(PRECISIONS)}")
    if precision == "float16" and device.type != "cuda":
        raise ValueError(f'precision="float16" on {device.type}: it needs a CUDA GPU; "bfloat16" works here')
    # Before Ampere, as on Colab's T4, bfloat16 is emulated: slower than float32, and cuDNN cannot convolve in it.
    if precision == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        precision = "float32"
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


def full_precision(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays float64


def batch_sums(
    loss: Float[Tensor, ""], logits: Float[Tensor, "examples classes"], y: Int[Tensor, " examples"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """A batch's summed loss and its number of right answers, still on the device."""
    return loss.detach() * len(y), (logits.detach().argmax(1) == y).sum().to(loss.dtype)
