"""What penalties share: strengths that may follow a schedule, and the life of those that read features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.features import FeatureTap, unwrap

Strength: TypeAlias = "float | Callable[[int], float]"


# ------------------------------------------------------------------------------------------------------------ strengths
def ramp(strength: float, steps: int, start: int = 0) -> Callable[[int], float]:
    """A strength that is 0 for `start` optimizer steps, then rises in a straight line, and holds after `steps` more.

    >>> rising = ramp(0.1, steps=100, start=50)
    >>> rising(50), rising(100), rising(1000)
    (0.0, 0.05, 0.1)
    """
    if strength < 0 or steps < 1 or start < 0:
        raise ValueError(f"ramp({strength}, steps={steps}, start={start}): a strength and a start from 0 on, a step")

    def rising(step: int) -> float:
        return strength * min(max((step - start) / steps, 0.0), 1.0)

    rising.__name__ = f"ramp({strength}, steps={steps}, start={start})"
    return rising


def check_strengths(**strengths: Strength) -> None:
    """Refuse a negative number; a function is asked when its turn comes."""
    for name, strength in strengths.items():
        if not callable(strength) and not strength >= 0:
            raise ValueError(f"{name}={strength} must not be negative; give a number from 0 on, or a function of steps")


def strength_at(strength: Strength, step: int) -> float:
    """The strength after so many optimizer steps."""
    value = strength(step) if callable(strength) else strength
    if not value >= 0:
        raise ValueError(f"the strength {shown(strength)} is {value} at step {step}; it must not be negative")
    return value


def shown(strength: Strength) -> str:
    """A strength in a `__repr__`."""
    return getattr(strength, "__name__", "function") if callable(strength) else f"{strength}"


# --------------------------------------------------------------------------------------------------------- on features
class FeaturePenalty:
    """A penalty on the features that the last training forward pass left in the network.

    A subclass gives the constructor a tap and writes `value`. The rest is done here: the hooks keep features only in
    training mode and only where the coming call is due; the value is computed in float32 (float64 for float64
    features) whatever autocast says. Each rank of a process group computes it on its own examples. Where batches are
    accumulated, one call an optimizer step reads the last of them.

    Args:
        model: any module; wrapped or compiled too, if the penalty is built before the first compiled call.
        tap: makes the tap from the options that it is given here.
        every: compute the penalty at every n-th call, return 0 at the others. One call is one optimizer step.

    Attributes:
        last: the last value that was computed, detached; None before the first.
        calls: how often the penalty was called.

    Raises:
        ValueError: `every` below 1.
        RuntimeError: no training forward pass since the model was tapped.

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

    def __init__(self, model: nn.Module, tap: Callable[..., FeatureTap], every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        self.every = every
        self.last: Tensor | None = None
        self.calls = 0
        self._next = (
            True  # whether the coming call is due; a bool, because a compiled graph would be remade for each count
        )
        self._model = unwrap(model)
        self._tap = tap(model, detach=False, compiled=True, when=self._due).attach()

    def value(self, features: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The penalty of the tapped features, by layer in order of execution, with its strength."""
        raise NotImplementedError

    def _due(self) -> bool:
        return self._model.training and self._next

    def __call__(self) -> Float[Tensor, ""]:
        """The value for the last training forward pass; 0 where none is due."""
        due, step = self._next, self.calls
        if not due:
            self._count(step + 1)
            return next(self._model.parameters()).new_zeros(())
        if not self._tap:
            raise RuntimeError(
                "no features: run model(x) in training mode before the penalty, which was tapped when built"
            )
        first = next(iter(self._tap.values()))
        with torch.autocast(first.device.type, enabled=False):
            total = self.value(self._tap)
        self._count(step + 1)
        self.last = total.detach()
        return total

    def _count(self, calls: int) -> None:
        self.calls = calls
        self._next = calls % self.every == 0

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._tap.remove()

    def state_dict(self) -> dict[str, int]:
        """The number of calls, on which `every` and schedules count."""
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count(int(state["calls"]))
