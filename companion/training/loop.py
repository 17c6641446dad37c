"""The loop: `fit` and its two sockets."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from companion._checks import at_least, between, given, one_of
from companion._ranks import buffers_of_rank_zero, from_ranks, on_rank_zero, rank, world_size
from companion.training.checkpoints import (
    claim,
    generators,
    random_state,
    save_checkpoint,
    seed_everything,
    set_random_state,
    without_numpy,
)
from companion.training.measuring import (
    PRECISIONS,
    Accuracy,
    Batch,
    History,
    Loss,
    Meter,
    autocast,
    batch_sums,
    checked,
    evaluate,
    full_precision,
    loss_of,
    move,
)
from companion.training.optimizers import LRSchedule
from companion.training.precision import fastest_precision, of_checkpoint

STEPS_BETWEEN_CHECKS = 25  # so often the device is asked for its losses: progress and NaN cost no wait in every step
IN_THE_BAR = {"loss": "loss", "accuracy": "accuracy", "sparsity": "sparsity", "images/s": "images_per_second"}


# -------------------------------------------------------------------------------------------------------- the sockets
class Penalty(Protocol):
    """A term of the loss: a callable that returns a scalar with a gradient.

    The loop calls it once an optimizer step, after the forward pass of the step's last batch, outside autocast: one on
    features reads what that pass left in its hooks, never what an evaluation did. Across ranks each computes it on its
    own examples and the gradients are averaged: the mean of the ranks' penalties, not that of the global batch.

    Optional: `name`, for the history; `last`, the last value that was computed, for the bar; `state_dict()` and
    `load_state_dict()`, which then travel in the checkpoints.
    """

    def __call__(self) -> Float[Tensor, ""]: ...


class Sparsity(Protocol):
    """What keeps a model sparse. `step()` follows each optimizer step, as a schedule's does, and still sees the step's
    gradients (averaged over the ranks, unscaled, clipped). Every rank must decide alike: random choices come from a
    generator of the sparsity's own, seeded alike on all ranks.

    Optional: `penalty()`, a term of the loss (trainable thresholds); `density()`, the share of weights alive now, shown
    while training and kept in the history as sparsity = 1 − density.
    """

    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


# ----------------------------------------------------------------------------------------------------------- the loop
def fit(
    model: nn.Module,
    data: Any,
    optimizer: Optimizer,
    *,
    epochs: int,
    schedule: LRSchedule | None = None,
    validation: Iterable[Batch] | None = None,
    penalty: Penalty | Iterable[Penalty] | None = None,
    sparsity: Sparsity | None = None,
    loss: Loss = nn.functional.cross_entropy,
    accuracy: Accuracy | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    compile: bool = False,
    clip: float | None = None,
    accumulate: int = 1,
    unused_parameters: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train `model` in place, on the device where it is, and return one record an epoch. Leaves it in train mode.

    Args:
        data: Batches (x, y): `companion.data.DeviceLoader`, or any loader with a length, such as torch's `DataLoader`.
        epochs, schedule: Passes over the data, and the learning rate: `multistep`, `cosine`, `one_cycle`, or any
            function of (optimizer, steps an epoch, epochs) to a torch scheduler, which is stepped after every optimizer
            step. Each wants a new optimizer.
        validation: Batches to evaluate after every epoch.
        penalty, sparsity: The two sockets: see `Penalty` (one, or several) and `Sparsity`.
        loss: Mean loss of (outputs, y), the outputs as the model returns them, a tuple or a dict too.
        accuracy: Which answers are right: a function of (outputs, y) to a bool tensor of any shape. Without it, the
            class of the largest output, where y are whole numbers in the shape of the outputs without their dimension
            of classes; anything else has no accuracy, and the history has none.
        precision, channels_last, compile: "bfloat16" and "float16" run the forward pass under autocast, "float16" with
            loss scaling and on CUDA only; a GPU that merely emulates bfloat16 (before Ampere, as Colab's T4) computes
            in float32 instead. "auto" measures a few steps of a copy in float32 and in bfloat16 (float16 on such a
            GPU), once for each model of device and class of model, says which was faster and takes that; the history
            notes it as `precision`, and a run that is resumed keeps it. `compile` uses `torch.compile` where it finds a
            compiler.
        clip, accumulate: Largest norm of the gradient; number of batches that make one step.
        unused_parameters: Under several ranks: whether some parameters have no part in some losses. Every rank needs as
            many batches.
        checkpoint, checkpoint_every: File that is written after every epoch, and every so many steps inside one. Where
            it exists, training resumes from it: on the CPU to the same final weights, bit for bit, as if never
            interrupted (with loader workers, unless they are persistent). One run at a time may use it. Of a process
            group, rank 0 alone reads and writes it. Another run's is refused: other arguments here, another size or
            name of the data, or a penalty, sparsity or loss that was made with other numbers. The one before it is
            kept as FILE.previous; where that alone is left, training resumes from it, with a warning.
        seed: Seeds dropout and the like before the first step, each rank its own: seed + rank.
        progress: A bar with loss, accuracy, sparsity, the last value of every penalty, images/s and the time left, on
            rank 0.
        on_epoch: Sees every epoch's record before it is kept, and may add plain numbers, lists, strings to it.

    Raises:
        ValueError: For arguments that make no sense, and for a checkpoint that is truncated, foreign, or another run's.
        FloatingPointError: When a loss, penalty or weight is NaN or infinite. The last good checkpoint stays.
        RuntimeError: When another run is using the checkpoint.

    >>> from companion.data import DeviceLoader, digits
    >>> from companion.models import mlp
    >>> from companion.training import multistep, sgd
    >>> model, batches = mlp([64, 32, 10]), DeviceLoader(digits(), batch_size=64, shuffle=True)
    >>> history = fit(model, batches, sgd(model), epochs=2, schedule=multistep(1), progress=False)
    >>> len(history), history[-1]["accuracy"] > 0.8, round(history[-1]["lr"], 3)
    (2, True, 0.01)
    """
    _refuse_nonsense(model, data, optimizer, schedule, clip, precision)
    _refuse_misfits(model, optimizer, sparsity, loaders={"data": data, "validation": validation})
    _refuse_no_function(schedule=schedule, loss=loss, accuracy=accuracy, on_epoch=on_epoch)
    at_least(1, epochs=epochs, accumulate=accumulate)
    if checkpoint_every is not None:
        at_least(1, checkpoint_every=checkpoint_every)
    if seed is not None:
        seed_everything(seed + rank())
    if channels_last:
        model.to(memory_format=torch.channels_last)
    auto = precision == "auto"
    if auto:
        before = on_rank_zero(lambda: of_checkpoint(checkpoint))
        precision = before or fastest_precision(model, data, loss, channels_last)
        if progress and rank() == 0:
            tqdm.write(f"precision: {precision}, the faster one here for {type(model).__name__}", file=sys.stderr)
    batches, penalties = len(data), named(penalty, sparsity)
    configuration = {  # what must agree for a checkpoint to be this run's
        "model": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters())} parameters",
        "optimizer": f"{type(optimizer).__name__} "
        + ", ".join(
            str({k: without_numpy(value) for k, value in g.items() if k != "params"}) for g in optimizer.param_groups
        ),
        **{"schedule": _described(schedule), "loss": _described(loss, tensors=True), "sparsity": _described(sparsity)},
        **{"penalty": [_described(term) for term in penalties.values()]},
        **{"data": _loader(data), "validation": None if validation is None else _loader(validation)},
        **{"epochs": epochs, "batches": batches, "data seed": getattr(data, "seed", None), "accumulate": accumulate},
        **{"precision": precision, "channels_last": channels_last, "clip": clip, "seed": seed, "ranks": world_size()},
    }
    scheduler = None if schedule is None else _by_step(schedule(optimizer, math.ceil(batches / accumulate), epochs))
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=precision == "float16")
    parts = {"model": model, "optimizer": optimizer, "schedule": scheduler, "scaler": scaler, "sparsity": sparsity}
    parts |= {f"penalty {name}": term for name, term in penalties.items()}
    run = _State(parts, data, checkpoint, configuration, penalties)
    with ExitStack() as held:
        run.resume(held)
        step = _Step(
            *(model, optimizer, scheduler, scaler, penalties, sparsity, loss, accuracy),
            *(precision, channels_last, compile, clip, unused_parameters),
        )
        done, hidden = run.epoch * batches + run.batch, not progress or rank() > 0
        bar = held.enter_context(tqdm(total=epochs * batches, initial=done, unit="batch", disable=hidden))
        while run.epoch < epochs:
            model.train()
            bar.set_description(f"epoch {run.epoch + 1}/{epochs}", refresh=False)
            for group in run.groups(accumulate):
                run.meter.pending.append(step(group))
                bar.update(len(group))
                steps = math.ceil(run.batch / accumulate)
                due = checkpoint_every is not None and run.batch < batches and steps % checkpoint_every == 0
                if due or len(run.meter.pending) == STEPS_BETWEEN_CHECKS:
                    run.check(bar)
                if due:
                    run.save()
            run.check(bar)
            buffers_of_rank_zero(model)  # as DDP has it in training
            record: dict[str, Any] = {"epoch": run.epoch + 1, "lr": step.lr, **run.meter.means()}
            record |= _sparsity(sparsity) | ({"precision": precision} if auto else {})
            if validation is not None:
                how: dict[str, Any] = {"precision": precision, "channels_last": channels_last}
                seen = evaluate(model, validation, loss=loss, accuracy=accuracy, **how)
                record |= {f"validation_{name}": seen[name] for name in ("loss", "accuracy") if name in seen}
            if on_epoch is not None:
                on_epoch(record)
            run.end_epoch(record)
            run.save()
    return run.history


class _State:
    """Where a run stands: what a checkpoint holds, and what goes on from one."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        data: Any,
        checkpoint: str | Path | None,
        configuration: dict[str, Any],
        penalties: Mapping[str, Penalty],
    ) -> None:
        self.model, self.optimizer, self.sparsity = parts["model"], parts["optimizer"], parts["sparsity"]
        self.parts = {name: part for name, part in parts.items() if hasattr(part, "load_state_dict")}
        self.data, self.checkpoint, self.configuration, self.penalties = data, checkpoint, configuration, penalties
        self.device = next(self.model.parameters()).device
        self.history, self.epoch, self.batch, self.meter = History(), 0, 0, Meter(penalties)
        self.resumed: tuple[dict[str, Any], dict[str, Any]] | None = None  # random states: the epoch's first, the last

    def resume(self, held: ExitStack) -> None:
        """Take the checkpoint for this run, as long as `held` is open, and go on from it if there is one."""
        if (path := self.checkpoint) is None:
            return
        saved = on_rank_zero(lambda: claim(path, self.configuration, held))
        if saved is None:
            return
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            self.history, self.epoch, self.batch = History(saved["history"]), saved["epoch"], saved["batch"]
            self.meter, self.resumed = Meter(self.penalties, saved["meter"]), saved["random"][rank()]
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}: delete it to train anew") from error

    def groups(self, accumulate: int) -> Iterator[list[Batch]]:
        """The batches of this epoch that are still to come, as many at a time as make a step, with the random state
        that they came with."""
        if self.resumed is not None:
            set_random_state(self.resumed[0], self.data, self.device)  # a plain DataLoader draws its order from it
        self.begun = random_state(self.data, self.device)
        # A DeviceLoader's order follows from its seed and the epoch: skipping is free.
        if hasattr(self.data, "start"):
            self.data.epoch, self.data.start = self.epoch, self.batch
        elif hasattr(getattr(self.data, "sampler", None), "set_epoch"):
            self.data.sampler.set_epoch(self.epoch)
        stream = iter(self.data)
        for _ in range(0 if hasattr(self.data, "start") else self.batch):
            next(stream)
        if self.resumed is not None and self.batch > 0:
            set_random_state(self.resumed[1], self.data, self.device)
        self.resumed = None
        try:
            while group := [checked(batch) for batch in islice(stream, accumulate)]:
                self.batch += len(group)
                yield group
        finally:  # whoever iterates it next, such as `validation` or `on_epoch`, sees all of it
            if hasattr(self.data, "start"):
                self.data.start = 0
        if self.batch == 0:
            raise ValueError(
                f"data={type(self.data).__name__} gave no batch in epoch {self.epoch + 1}: can it be iterated again?"
            )

    def check(self, bar: tqdm) -> None:
        """Fetch the losses of the last steps; refuse a NaN among them, and show the rest."""
        if (wrong := self.meter.fetch()) is not None:
            raise _diverged(f"loss or penalty of epoch {self.epoch + 1}, step {wrong}", self.checkpoint)
        if not bar.disable:
            means = self.meter.means() | _sparsity(self.sparsity)
            shown: dict[str, Any] = {label: means.get(name) for label, name in IN_THE_BAR.items()}
            # A mean would mix in the zeros of those that are not due at every step.
            shown |= {name: getattr(penalty, "last", None) for name, penalty in self.penalties.items()}
            bar.set_postfix({k: f"{float(v):.4g}" for k, v in shown.items() if v is not None}, refresh=False)

    def end_epoch(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        self.epoch, self.batch, self.meter = self.epoch + 1, 0, Meter(self.penalties)

    def save(self) -> None:
        """Refuse weights that are not finite, and write the checkpoint, if there is to be one."""
        path = self.checkpoint
        if not all(from_ranks(_finite(self.optimizer, () if path is None else self.model.buffers()))):
            raise _diverged(f"weights after epoch {self.epoch}, batch {self.batch}", path)
        if path is None:
            return
        now = random_state(self.data, self.device)
        state = {
            **{name: part.state_dict() for name, part in self.parts.items()},
            **{"configuration": self.configuration, "epoch": self.epoch, "batch": self.batch},
            **{"meter": self.meter.state_dict(), "history": list(self.history)},
            "random": from_ranks((self.begun if self.batch else now, now)),
        }
        on_rank_zero(lambda: save_checkpoint(path, state))


# ----------------------------------------------------------------------------------------------------------- one step
@dataclass
class _Step:
    """One optimizer step on a group of batches: forward, loss, penalties, backward, clip, update, prune, schedule."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    scaler: torch.amp.GradScaler
    penalties: dict[str, Penalty]
    sparsity: Sparsity | None
    loss: Loss
    accuracy: Accuracy | None
    precision: str
    channels_last: bool
    compile: bool
    clip: float | None
    unused_parameters: bool

    def __post_init__(self) -> None:
        self.device, self.largest_batch, self.ddp = next(self.model.parameters()).device, 0, None
        if world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.ddp = DistributedDataParallel(self.model, devices, find_unused_parameters=self.unused_parameters)
        self.eager: Callable[[Tensor], Any] = self.ddp or self.model
        self.compiled: Callable[[Tensor], Any] = self.eager
        if self.compile and compiler_works(self.device.type):
            torch.compiler.reset()  # graphs of an earlier fit on a like model would be reused, without this one's hooks
            self.compiled = torch.compile(self.eager, dynamic=False)

    def __call__(self, group: list[Batch]) -> tuple[Float[Tensor, " columns"], int]:
        """Take the step. The gradient is that of the mean over all examples of the group and of all ranks, however
        unevenly batches and ranks share them. Returns the row for `Meter` and the number of examples."""
        examples = sum(len(y) for _, y in group)
        everyone = self._of_all_ranks(examples)
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        sums, penalties = [], []
        for number, (x, y) in enumerate(group, start=1):
            last = number == len(group)
            x, y = move(x, self.device, self.channels_last), y.to(self.device, non_blocking=True)
            # A smaller last batch of an epoch runs eagerly: compiling for its shape costs more than it saves.
            self.largest_batch = max(self.largest_batch, len(y))
            forward = self.compiled if len(y) == self.largest_batch else self.eager
            with nullcontext() if last or self.ddp is None else self.ddp.no_sync():  # one exchange of gradients a step
                with autocast(self.device, self.precision), self._unused():
                    outputs = forward(x)
                outputs = full_precision(outputs)
                loss = loss_of(self.loss, outputs, y)
                if last:
                    penalties = [_scalar(name, penalty()) for name, penalty in self.penalties.items()]
                # DDP averages the ranks' gradients, hence the world size.
                objective = loss * (world_size() * len(y) / everyone) + sum(penalties)
                self.scaler.scale(objective).backward()
            sums.append(batch_sums(loss, outputs, y, self.loss, self.accuracy))
        self._update()
        totals = functools.reduce(torch.add, sums)
        return torch.cat([totals, *(penalty.detach().to(totals)[None] for penalty in penalties)]), examples

    @contextmanager
    def _unused(self) -> Iterator[None]:
        """Where DDP misses gradients of the step before, say what to do about it."""
        try:
            yield
        except RuntimeError as error:
            if self.ddp is not None and "find_unused_parameters" in str(error):
                raise ValueError(
                    "some parameters had no part in the loss of a step: fit(…, unused_parameters=True), or freeze them"
                ) from error
            raise

    def _of_all_ranks(self, examples: int) -> int | Float[Tensor, ""]:
        if world_size() == 1:
            return examples
        everyone = torch.full((), examples, dtype=torch.float64, device=self.device)  # there, so that no step waits
        dist.all_reduce(everyone)
        return everyone

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(_trained(self.optimizer), self.clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:  # float16 overflowed and the optimizer took no step: nothing else does
            return
        if self.sparsity is not None:
            self.sparsity.step()
        if self.scheduler is not None:
            self.scheduler.step()


def _scalar(name: str, value: Any) -> Float[Tensor, ""]:
    if not isinstance(value, Tensor) or value.ndim > 0:
        raise ValueError(f"penalty {name} returned {value!r}: a scalar tensor, such as (…).sum() or torch.zeros(())")
    return value


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Whether torch.compile finds its compiler; warns, once, where it does not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4, device=device_type))
    except Exception as error:  # its kind depends on the platform; whatever it is, eager mode trains
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, so training runs without it: {reason}", stacklevel=2)
        return False
    return True


# ------------------------------------------------------------------------------------------------------------ the rest
def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@torch.no_grad()
def _finite(optimizer: Optimizer, buffers: Iterable[Tensor]) -> bool:
    """No weight is NaN or infinite and no buffer is NaN (a buffer may hold −∞ on purpose, as attention masks do)."""
    sound = [p.isfinite().all() for p in _trained(optimizer)] + [~buffer.isnan().any() for buffer in buffers]
    return bool(torch.stack(sound).all())


def _diverged(what: str, checkpoint: str | Path | None) -> FloatingPointError:
    kept = "no checkpoint was kept"
    if checkpoint is not None and Path(checkpoint).exists():
        kept = f"the last good checkpoint is {checkpoint}"
    return FloatingPointError(
        f"{what}: NaN or infinite; {kept}. Try a lower learning rate, a warm-up, clip=1.0, "
        'or precision="bfloat16" where it is "float16"'
    )


def named(penalty: Penalty | Iterable[Penalty] | None, sparsity: Sparsity | None) -> dict[str, Penalty]:
    """The penalties by name, the sparsity's own among them; the second of one name is NAME_2."""
    terms: list[Any] = [] if penalty is None else [penalty] if callable(penalty) else list(penalty)
    found: dict[str, Penalty] = {}
    for term in terms:
        if not callable(term):
            raise ValueError(f"penalty={term!r}: a callable that returns a scalar, or a list of them")
        alike = sum(_name(term) == _name(other) for other in found.values())
        found[f"{_name(term)}_{alike + 1}" if alike else str(_name(term))] = term
    own: Penalty | None = getattr(sparsity, "penalty", None)
    if own is not None:
        found[str(_name(sparsity))] = own
    return found


def _name(thing: Any) -> str | None:
    """What to call a penalty, sparsity, schedule or loss: the same in every process."""
    if thing is None:
        return None
    return str(getattr(thing, "name", None) or getattr(thing, "__name__", None) or type(thing).__name__)


def _described(thing: Any, tensors: bool = False) -> str | None:
    """What `_name` says, and what the thing was made with: the arguments that it keeps under their names, where these
    are numbers, text, or functions with a name, and not in its `state_dict`: that travels in the checkpoint. A loss's
    does not: of that `tensors`, too, such as the weights of classes."""
    if thing is None:
        return None
    if isinstance(thing, functools.partial):
        made: dict[Any, Any] = {**dict(enumerate(thing.args)), **thing.keywords}
        thing = thing.func
    else:
        makers = [vars(kind).get("__init__") for kind in type(thing).__mro__]
        asked = {name for maker in makers if inspect.isfunction(maker) for name in inspect.signature(maker).parameters}
        held = set(thing.state_dict() if hasattr(thing, "state_dict") else ())
        made = {k: v for k, v in getattr(thing, "__dict__", {}).items() if k in asked - held}
        if tensors:
            made |= {k: v for k, v in getattr(thing, "_buffers", {}).items() if k in asked}
    return f"{_name(thing)}{_plain_ones({k: _digest(v) if tensors else v for k, v in made.items()})}"


def _digest(value: Any) -> Any:
    """Of a tensor its numbers in a word, alike on every device; not of one that is trained, for it will be another."""
    if not isinstance(value, Tensor) or value.requires_grad or value.layout != torch.strided:
        return value
    numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"tensor {hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:8]}"


def _loader(data: Any) -> str:
    """What a loader yields, not how it is read: a run may go on with other workers."""
    of: Any = next((getattr(data, name) for name in ("images", "folder", "dataset") if hasattr(data, name)), None)
    names = ("batch_size", "shuffle", "augment", "padding", "flip", "drop_last", "size")
    made = {
        **{name: getattr(data, name, None) for name in names},
        **{name: type(getattr(data, name, None)).__name__ for name in ("sampler", "batch_sampler")},
        **{"of": getattr(of, "name", type(of).__name__), "examples": len(of) if hasattr(of, "__len__") else None},
        "generators": len(generators(data)),
    }
    return f"{type(data).__name__}{_plain_ones(made)}"


def _plain_ones(values: Mapping[Any, Any]) -> str:
    """Those of the values that read the same in every process."""
    shown = {name: getattr(value, "__name__", without_numpy(value)) for name, value in values.items()}
    return str({name: value for name, value in shown.items() if isinstance(value, bool | int | float | str)})


def _sparsity(sparsity: Any) -> dict[str, float]:
    return {"sparsity": 1 - float(sparsity.density())} if hasattr(sparsity, "density") else {}


def _by_step(scheduler: Any) -> LRScheduler:
    """The scheduler, if it is one and can be stepped after every step without a measurement."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "schedule: ReduceLROnPlateau waits for a measurement, and this loop steps a schedule after every optimizer "
            "step; use multistep(…), cosine(…) or one_cycle(…)"
        )
    if not isinstance(scheduler, LRScheduler):
        raise ValueError(f"schedule returned {given(scheduler)}: return the scheduler, one of torch's")
    return scheduler


def _refuse_nonsense(
    model: nn.Module, data: Any, optimizer: Optimizer, schedule: Any, clip: float | None, precision: str
) -> None:
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise ValueError(f"fit takes a module and an optimizer, not {given(model)} and {given(optimizer)}")
    if not any(True for _ in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters to train")
    one_of(precision=(precision, [*PRECISIONS, "auto"]))
    if precision != "auto":
        autocast(next(model.parameters()).device, precision)  # refuses one that is not for this device
    lengths = from_ranks(len(data) if hasattr(data, "__len__") else 0)  # first, so that no rank waits for another
    if not min(lengths):
        raise ValueError(f"data={type(data).__name__} has no batch, or no length: give a DeviceLoader or a DataLoader")
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the ranks have {lengths} batches an epoch: every rank needs as many, such as by a DistributedSampler"
        )
    if clip is not None:
        between(0, math.inf, open_low=True, clip=clip)
    if isinstance(schedule, LRScheduler):
        raise ValueError(
            f"schedule={type(schedule).__name__}(…): give multistep(…), cosine(…), one_cycle(…) or a function of "
            "(optimizer, steps an epoch, epochs) to such a scheduler; it is stepped after every step"
        )
    if schedule is not None and any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError(
            "the optimizer has followed a schedule before, and another would not begin from its learning rate: build a "
            "new one, such as sgd(…), for every fit with a schedule"
        )
    if schedule is None and all(group["lr"] == 0 for group in optimizer.param_groups):
        raise ValueError("the optimizer's learning rates are 0, as after a schedule: build a new one, such as sgd(…)")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} evaluates the loss several times a step, which this loop does not: "
            "use sgd(…) or adamw(…)"
        )
    if not {id(p) for p in model.parameters()} & {id(p) for p in _trained(optimizer)}:
        raise ValueError("the optimizer holds none of the model's parameters: build it after copying or pruning")
    if world_size() == 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("torchrun started several ranks, yet no process group is open: fit `with distributed():`")


def _refuse_misfits(
    model: nn.Module, optimizer: Optimizer, sparsity: Any, loaders: Mapping[str, Iterable[Batch] | None]
) -> None:
    """What would show after an epoch, or never."""
    for name, loader in loaders.items():  # not iter(loader): that draws random numbers, and may start processes
        if loader is not None and not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
            raise ValueError(f"{name}={type(loader).__name__} cannot be iterated: give a DeviceLoader({name}, …)")
    if sparsity is None:
        return
    if isinstance(sparsity, type) or not callable(getattr(sparsity, "step", None)):
        raise ValueError(
            f"sparsity={given(sparsity)} has no step(): give an object, such as RandomPruning(model, optimizer, 0.9)"
        )
    its = {name: getattr(sparsity, name, None) for name in ("model", "optimizer")}
    if isinstance(its["model"], nn.Module):
        mine, theirs = ({id(p) for p in one.parameters()} for one in (model, its["model"]))
        if not (mine <= theirs or theirs <= mine):  # it may be of a part, or of more than is trained
            raise ValueError("sparsity was built on another model than fit is given: build it after copying")
    if isinstance(its["optimizer"], Optimizer) and its["optimizer"] is not optimizer:
        raise ValueError("sparsity was built on another optimizer than fit is given: build it on this one")


_SUCH_AS = {
    "schedule": ("(optimizer, steps an epoch, epochs)", "cosine()"),
    "loss": ("(outputs, y)", "nn.CrossEntropyLoss()"),
    "accuracy": ("(outputs, y)", "lambda outputs, y: outputs.argmax(1) == y"),
    "on_epoch": ("an epoch's record", "print"),
}


def _refuse_no_function(**functions: Any) -> None:
    """What cannot be called, and a class, of which an instance was meant."""
    for name, function in functions.items():
        if isinstance(function, type) or not (callable(function) or (function is None and name != "loss")):
            of, example = _SUCH_AS[name]
            raise ValueError(f"{name}={given(function)} must be a function of {of}, such as {example}")
