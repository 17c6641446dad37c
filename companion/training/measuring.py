"""What a run measures: `History`, `evaluate`, and the sums behind both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import pandas as pd
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from companion._checks import one_of
from companion._progress import progress
from companion._ranks import world_size
from companion.features import evaluating

Batch: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[Any, Tensor], Tensor]
Accuracy: TypeAlias = Callable[[Any, Tensor], Tensor]
_OF_CLASSES = (nn.functional.cross_entropy, nn.functional.nll_loss)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class History(list[dict[str, Any]]):
    """One record an epoch, of plain numbers: `epoch` (from 1), `lr` (of its last step), `loss` and `accuracy` (means
    over the training examples as they passed), `penalty_NAME`, `validation_loss`, `validation_accuracy`, `sparsity`,
    `images_per_second` and `seconds` (of the training passes), and `precision`, a word, where "auto" chose it.

    `penalty_NAME` is what the penalty added to the loss, a mean over all steps and ranks: of one that is computed every
    n-th step an n-th of its value, which `penalty.last` has. Targets that are no classes have no accuracy: see `fit`.

    >>> History([{"epoch": 1, "loss": 2.3}, {"epoch": 2, "loss": 1.9}]).frame().shape
    (2, 2)
    """

    def frame(self) -> pd.DataFrame:
        """As a table, one row an epoch."""
        return pd.DataFrame(list(self))


class Meter:
    """Sums over an epoch. A step leaves its numbers on the device; `fetch` gets those of many steps at once."""

    def __init__(self, penalties: Iterable[str], saved: dict[str, Any] | None = None) -> None:
        self.columns = ["loss", "correct", "answers", *(f"penalty_{name}" for name in penalties), "examples"]
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
        correct, answers = sums.pop("correct"), sums.pop("answers")
        means = {"loss": sums.pop("loss") / examples} | ({"accuracy": correct / answers} if answers else {})
        means |= {name: total / self.steps / world_size() for name, total in sums.items()}
        return means | {"images_per_second": examples / self.seconds, "seconds": self.seconds}


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    loss: Loss = nn.functional.cross_entropy,
    precision: str = "float32",
    channels_last: bool = False,
    accuracy: Accuracy | None = None,
    right: list[Tensor] | None = None,
) -> dict[str, float]:
    """Mean `loss`, share of right answers (`accuracy`) and number of `examples` of a loader's batches (x, y). A batch's
    loss counts by its examples, also where it weighs or ignores some.

    Runs in eval mode without gradients and leaves every module in the mode it had. In a process group every rank calls
    it with its own part of the examples, and gets the result over all of them. What is right, and what has no accuracy:
    see `fit`. A list given as `right` is filled with bool tensors, one a batch of this rank.

    Raises:
        ValueError: no example; `right` of answers that are neither right nor wrong.

    >>> from companion.data import DeviceLoader, digits
    >>> from companion.models import mlp
    >>> sorted(evaluate(mlp([64, 10]), DeviceLoader(digits("test"), batch_size=360)))
    ['accuracy', 'examples', 'loss']
    """
    device = next(model.parameters()).device
    sums, examples = [], 0
    with evaluating(model):
        for x, y in map(checked, progress(loader, "evaluation")):
            x, y = move(x, device, channels_last), y.to(device, non_blocking=True)
            with autocast(device, precision):
                outputs = full_precision(model(x))
            if right is not None:
                answers = right_answers(outputs, y, loss, accuracy)
                if answers is None:
                    raise ValueError("right: these targets are no classes; give accuracy, a function of (outputs, y)")
                right.append(answers[0])
            if len(y):
                sums.append(batch_sums(loss_of(loss, outputs, y), outputs, y, loss, accuracy))
            examples += len(y)
    totals = torch.stack(sums).cpu().double().sum(0) if sums else torch.zeros(3, dtype=torch.float64)
    totals = torch.cat([totals, totals.new_tensor([examples])])
    if world_size() > 1:
        totals = totals.to(device)
        dist.all_reduce(totals)
    total_loss, correct, answered, everyone = totals.tolist()
    if everyone == 0:
        raise ValueError("nothing to evaluate: the loader gave no example")
    found = {"loss": total_loss / everyone, "examples": int(everyone)}
    return found | {"accuracy": correct / answered} if answered else found


def checked(batch: Any) -> Batch:
    """The batch, if it is one."""
    pair = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) and part.ndim for part in pair):
        parts = [f"shape {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__ for p in pair or [batch]]
        raise ValueError(
            f"a batch must be (x, y), two tensors with a row for each example, not ({', '.join(parts)}); of a dataset "
            "make batches by DataLoader(dataset, batch_size=64)"
        )
    return pair


def move(x: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last and x.ndim == 4 else torch.preserve_format
    return x.to(device, non_blocking=True, memory_format=layout)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    one_of(precision=(precision, PRECISIONS))
    if precision == "float16" and device.type != "cuda":
        raise ValueError(f'precision="float16" on {device.type}: it needs a CUDA GPU; "bfloat16" works here')
    if precision == "bfloat16" and emulates_bfloat16(device):
        precision = "float32"
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


def emulates_bfloat16(device: torch.device) -> bool:
    """A GPU before Ampere, as Colab's T4: slower in bfloat16 than in float32, and cuDNN cannot convolve in it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def full_precision(outputs: Any) -> Any:
    """Outputs, a tuple or a dict of them too, in float32 at least; float64 stays float64."""

    def full(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(torch.promote_types(value.dtype, torch.float32)) if floating else value

    return tree_map(full, outputs)


def loss_of(loss: Loss, outputs: Any, y: Tensor) -> Float[Tensor, ""]:
    """The mean loss of a batch; of an empty one, as a rank's part of a last batch may be, 0 with a graph."""
    if not len(y):
        return torch.stack([value.sum() for value in tree_leaves(outputs) if isinstance(value, Tensor)]).sum()
    try:
        found = loss(outputs, y)
    except (TypeError, AttributeError) as error:
        if isinstance(outputs, Tensor):
            raise
        raise ValueError(
            f"the model returns a {type(outputs).__name__}, and the loss cannot take it ({error}): "
            "give loss=, a function of (outputs, y) that picks what it needs"
        ) from error
    if not isinstance(found, Tensor) or found.ndim:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"the loss must be one number, the mean over the batch, as a tensor without dimensions; got {got}"
        )
    return found


def right_answers(
    outputs: Any, y: Tensor, loss: Loss, accuracy: Accuracy | None
) -> tuple[Bool[Tensor, "..."], Bool[Tensor, "..."]] | None:
    """Which answers are right, and which of them count; None where there is no telling.

    By default those whose class has the largest output. That is known only of whole-number targets in the shape of the
    outputs without their second dimension, that of two classes or more, and where a loss of another kind than
    cross-entropy may have it otherwise, not at all. A target that the loss ignores does not count.
    """
    if accuracy is not None:
        right = accuracy(outputs, y)
        if not isinstance(right, Tensor) or right.dtype != torch.bool or not right.ndim:
            got = f"{right.dtype}, shape {tuple(right.shape)}" if isinstance(right, Tensor) else type(right).__name__
            raise ValueError(
                f"accuracy must return a bool tensor, one value an answer, as outputs.argmax(1) == y is; got {got}"
            )
        return right, torch.ones_like(right, dtype=torch.bool)
    if not isinstance(outputs, Tensor) or y.is_floating_point() or y.is_complex():
        return None
    if outputs.ndim < 2 or outputs.shape[1] < 2 or y.shape != outputs.shape[:1] + outputs.shape[2:]:
        return None
    kind, options = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    of_classes = kind in _OF_CLASSES or isinstance(kind, nn.CrossEntropyLoss | nn.NLLLoss)
    if outputs.ndim == 3 and outputs.shape[1] == outputs.shape[2] and not of_classes:
        return None  # (examples, tokens, classes) has this shape, too
    ignored = options.get("ignore_index", getattr(kind, "ignore_index", -100))
    return outputs.detach().argmax(1) == y, y.long() != ignored  # −100 as uint8 would be class 156


def batch_sums(
    loss: Float[Tensor, ""], outputs: Any, y: Tensor, of: Loss, accuracy: Accuracy | None
) -> Float[Tensor, "3"]:
    """A batch's summed loss, its right answers and its answers that count, still on the device."""
    summed = loss.detach() * len(y)
    answers = right_answers(outputs, y, of, accuracy)
    if answers is None:
        return torch.stack([summed, torch.zeros_like(summed), torch.zeros_like(summed)])
    right, counts = answers
    return torch.stack([summed, (right & counts).sum().to(summed.dtype), counts.sum().to(summed.dtype)])
