"""The runtime check of jaxtyping's shapes: what the tests' import hook decorates every function of the package with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, get_args

import numpy as np
import pandas as pd
from beartype import BeartypeConf, beartype
from beartype.vale import Is
from jaxtyping import AbstractArray
from torch import Tensor

LIKE_MYPY = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is asked for


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check annotations that hold a shape, all others are mypy's; and arguments only together with what came back.

    jaxtyping gives two empty functions for each of the package's: one takes its arguments, before the call, the other,
    after it, also its result. A call that the function itself refuses never gets to the second.
    """
    hints = function.__annotations__
    held = {name: hint for name, hint in hints.items() if shaped(hint)}
    function.__annotations__ = {name: hint if name == "return" else hint | Other for name, hint in held.items()}
    after = any(name.startswith("ret") and name != "return" for name in hints)
    return LIKE_MYPY(function) if after else function


def other(value: Any) -> bool:
    """An array, a table, or a list or mapping without tensors, which functions that ask for tensors take, too."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    arrays = isinstance(value, np.ndarray | pd.DataFrame | pd.Series)
    return arrays or (len(parts) > 0 and not any(isinstance(part, Tensor) for part in parts))


Other = Annotated[object, Is[other]]


def shaped(hint: Any) -> bool:
    """Is this `Float[Tensor, "n d"]`, or made of such?"""
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(shaped, get_args(hint)))
