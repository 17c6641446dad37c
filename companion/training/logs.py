"""What penalties were, step by step, in a loop that is not `fit`."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor

from companion.training.loop import Penalty, named


class PenaltyLog:
    """The last values of penalties in a loop of one's own: call it after each optimizer step.

    They stay on their device until `frame` asks for them, so that no step waits. Penalties are named as in `fit`'s
    history; what has no `last` yet is missing.

    Raises:
        ValueError: a penalty without a `last`, the last value that was computed.

    >>> from torch import nn
    >>> from companion.regularizers import L1
    >>> log = PenaltyLog(penalty := L1(nn.Sequential(nn.Linear(2, 2)), strength=0.1))
    >>> _, _ = penalty(), log()
    >>> log.frame().shape, list(log.frame().columns)
    ((1, 1), ['penalty_l1'])
    """

    def __init__(self, *penalties: Penalty) -> None:
        self.penalties = logged(penalties)
        self._rows: list[dict[str, Tensor]] = []

    def __call__(self) -> None:
        self._rows.append(values(self.penalties))

    def frame(self) -> pd.DataFrame:
        """As a table, one row a step."""
        rows = [{name: float(value) for name, value in row.items()} for row in self._rows]
        return pd.DataFrame(rows, columns=[f"penalty_{name}" for name in self.penalties])


def logged(penalties: tuple[Penalty, ...]) -> dict[str, Any]:
    """The penalties by name."""
    found = named(list(penalties), None)
    if lacking := [name for name, penalty in found.items() if not hasattr(penalty, "last")]:
        raise ValueError(f"{lacking} have no `last`, the last value that was computed: nothing to log")
    return found


def values(penalties: dict[str, Any]) -> dict[str, Tensor]:
    """What was computed last, where anything was."""
    found = {f"penalty_{name}": penalty.last for name, penalty in penalties.items()}
    return {name: value.detach() for name, value in found.items() if value is not None}


def lightning_log(*penalties: Penalty) -> Any:
    """A Lightning callback: it logs the penalties' last values after each batch, shows them in the bar, and keeps their
    number of calls, on which `every` and schedules count, in the checkpoints.

    Give it to the trainer: `lightning.Trainer(callbacks=[lightning_log(penalty)])`.

    Raises:
        ValueError: see `PenaltyLog`.
        ModuleNotFoundError: Lightning is not installed.
    """
    try:
        import lightning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install lightning", name=error.name) from error

    terms = logged(penalties)

    class LightningLog(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            module.log_dict(values(terms), prog_bar=True)

        def state_dict(self) -> dict[str, Any]:
            return {name: term.state_dict() for name, term in terms.items() if hasattr(term, "state_dict")}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            for name, saved in state.items():
                terms[name].load_state_dict(saved)

    return LightningLog()
