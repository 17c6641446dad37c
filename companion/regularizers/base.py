"""What penalties share: a registry, strengths that may follow a schedule, and the life of those that read features."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from companion._checks import at_least, between
from companion._registry import Registry
from companion.features import FeatureTap, masked, unwrap

Strength: TypeAlias = "float | Callable[[int], float]"


# ------------------------------------------------------------------------------------------------------------ strengths
def ramp(strength: float, steps: int, start: int = 0) -> Callable[[int], float]:
    """A strength that is 0 for `start` optimizer steps, then rises in a straight line, and holds after `steps` more.

    >>> rising = ramp(0.1, steps=100, start=50)
    >>> rising(50), rising(100), rising(1000)
    (0.0, 0.05, 0.1)
    """
    check_strengths(strength=strength)
    at_least(1, steps=steps)
    at_least(0, start=start)

    def rising(step: int) -> float:
        return strength * min(max((step - start) / steps, 0.0), 1.0)

    rising.__name__ = f"ramp({strength}, steps={steps}, start={start})"
    return rising


def check_strengths(**strengths: Strength) -> None:
    """Refuse what is neither a number from 0 on nor a function of the steps, which is asked when its turn comes."""
    for name, strength in strengths.items():
        if callable(strength):
            continue
        if not isinstance(strength, numbers.Real):
            raise ValueError(f"{name}={strength!r} must be a number from 0 on, or a function of the steps so far")
        between(0, float("inf"), open_high=True, **{name: strength})


def strength_at(strength: Strength, step: int) -> float:
    """The strength after so many optimizer steps."""
    value = strength(step) if callable(strength) else strength
    if not 0 <= value < float("inf"):
        raise ValueError(f"the strength {_written(strength)} is {value} at step {step}; it must lie in [0, inf)")
    return value


def checked(examples: int | None, low: int) -> int | None:
    """How many of the batch's first examples: None for all, or a whole number from `low` on."""
    if examples is None:
        return None
    at_least(low, examples=examples)
    return examples


def _written(value: Any) -> str:
    return getattr(value, "__name__", "function") if callable(value) else repr(value)


# ------------------------------------------------------------------------------------------------------- every penalty
class BasePenalty:
    """What every penalty has: the last value, the number of calls, and the state from which a run resumes.

    Attributes:
        last: the last value that was computed, detached; None before the first. A log of `penalty()` itself would hold
            the zeros of the calls between.
        calls: how often the penalty was called.
    """

    name: str  # in the history of `training.fit` and in records
    shown: tuple[str, ...] = ()  # what `repr` says

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.calls = 0

    def state_dict(self) -> dict[str, int]:
        """The number of calls, on which `every` and schedules count."""
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count(int(state["calls"]))

    def _count(self, calls: int) -> None:
        self.calls = calls

    def _computed(self, total: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The value of this call, which is kept and counted."""
        self.last = total.detach()
        self._count(self.calls + 1)
        return total

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_written(getattr(self, name))}' for name in self.shown)})"


PENALTIES: Registry[type[BasePenalty]] = Registry("penalty")
"""Every penalty that a training loop calls, by the name that people type.

Its facts: `title`, as tables write it; `reads`, `"features"` or `"weights"`; `signed`, whether a value may be below 0.
"""


# --------------------------------------------------------------------------------------------------------- on features
class FeaturePenalty(BasePenalty):
    """A penalty on the features that the last training forward pass left in the network.

    A subclass gives the constructor a tap and writes `value`. The rest is done here: the hooks keep features only in
    training mode and only where the coming call is due; the value is computed in float32 (float64 for float64
    features) whatever autocast says. Each rank of a process group computes it on its own examples. Where batches are
    accumulated, one call an optimizer step reads the last of them; a pass in evaluation mode in between takes nothing
    away. Tokens that an `attention_mask` passed by name rules out do not count. Blocks may run under
    `torch.utils.checkpoint` with `use_reentrant=False`. A deep copy of what holds both the model and the penalty, such
    as a LightningModule, has a penalty of its own; a copy of the model alone is not penalised.

    Args:
        model: any module; wrapped or compiled too, if the penalty is built before the first compiled call.
        tap: makes the tap from the model and the options that it is given here.
        every: compute the penalty at every n-th call, return 0 at the others. One call is one optimizer step.

    Raises:
        ValueError: `every` below 1.
        RuntimeError: no training forward pass since the model was tapped; or one without gradients, as in a reentrant
            checkpoint, though the call wants them.

    >>> class Energy(FeaturePenalty):
    ...     def value(self, features):
    ...         return torch.stack([x.square().mean() for x in features.values()]).sum()
    >>> from functools import partial
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> penalty = Energy(model, partial(FeatureTap, layers=nn.ReLU), every=2)
    >>> for _ in range(2):
    ...     _ = model(torch.randn(5, 4))
    ...     print(bool(penalty() > 0))
    True
    False
    """

    name = "features"
    shown: tuple[str, ...] = ("every", "layers")
    examples: int | None = None  # how many of the batch's first ones a penalty reads; None: all

    def __init__(self, model: nn.Module, tap: Callable[..., FeatureTap], every: int = 1) -> None:
        super().__init__()
        at_least(1, every=every)
        self.every = every
        self._next = True  # is the coming call due? A bool: a compiled graph would be remade for each count
        self._stored = False
        self._model = unwrap(model)
        self._make = tap
        self._attach(model)

    def _attach(self, model: nn.Module) -> None:
        self._hooks = ExitStack()
        self._tap = self._make(model, detach=False, compiled=True, when=self._due).attach()
        self._tap._trusting = True
        self._hooks.callback(self._tap.remove)

    @property
    def layers(self) -> list[str]:
        """The tapped layers."""
        return list(self._tap.layers)

    def value(self, features: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The penalty of the tapped features, by layer in order of execution, with its strength."""
        raise NotImplementedError

    def _first(
        self, x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
    ) -> Float[Tensor, "n *feature"]:
        # No slice where all are read: its backward pass would write the whole batch once more.
        if self.examples is not None:
            x, mask = x[: self.examples], mask if mask is None else mask[: self.examples]
        return masked(x, mask)

    def _due(self) -> bool:
        """Asked at each tapped layer: keep its features?"""
        due = self._model.training and self._next
        if torch.compiler.is_compiling():
            return due
        # A checkpointed block is computed anew in the backward pass, after the penalty was called: what was kept in the
        # forward pass must be computed again, or autograd misses what it needs.
        if torch._C._current_graph_task_id() != -1:
            return self._stored
        if self._model.training:
            self._stored = due
        return due

    def __call__(self) -> Float[Tensor, ""]:
        """The value for the last training forward pass; 0 where none is due."""
        if not self._next:
            self._count(self.calls + 1)
            return next(self._model.parameters(), torch.empty(0)).new_zeros(())
        if not self._tap:
            raise RuntimeError(
                "no features: run model(x) in training mode before the penalty, which was tapped when built"
            )
        if self._tap._blind and torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(self).__name__} has no gradient: layers ran under torch.no_grad(), as those in a reentrant "
                "checkpoint do; use checkpoint(..., use_reentrant=False)"
            )
        if not torch.compiler.is_compiling():
            self._tap._read()
        first = next(iter(self._tap.values()))
        with torch.autocast(first.device.type, enabled=False):
            return self._computed(self.value(self._tap))

    def _count(self, calls: int) -> None:
        super()._count(calls)
        self._next = calls % self.every == 0

    def remove(self) -> None:
        """Take the hooks off the model; no call afterwards finds features."""
        self._hooks.close()
        self._tap._clear()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"{type(self).__name__} holds hooks on a model, which cannot be pickled: save its state_dict() beside the "
            "model's, and build it anew"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FeaturePenalty:
        """The penalty of the model's copy, with hooks of its own."""
        new = memo[id(self)] = object.__new__(type(self))
        kept = {name: value for name, value in vars(self).items() if name not in ("_tap", "_hooks")}
        vars(new).update(copy.deepcopy(kept, memo))
        if "_modules" not in vars(new._model):
            raise RuntimeError(
                f"{type(self).__name__} was built on the very module that holds it, so that neither can be copied "
                "before the other: build it on the module's network, or keep it outside"
            )
        new._attach(new._model)
        return new
