"""Checkpoints that survive `kill -9`: written whole or not at all, one run at a time, random state included."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout

from companion._checks import whole_number
from companion._files import beside, sweep, write_aside

FORMAT = "companion.training 3"


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain types) to `path`, whole or not at all; what stood there becomes `path.previous`.

    A process killed at any moment, or a full disk (`OSError`), leaves a good checkpoint at `path`. NumPy's scalars in
    dicts, lists and tuples are written as Python's; what `load_checkpoint` could not read raises `ValueError`, before
    anything is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder) / "run.pt", {"model": {"weight": torch.ones(2)}})
    ...     print(load_checkpoint(Path(folder) / "run.pt")["model"])
    {'weight': tensor([1., 1.])}
    """
    path, buffer = Path(path), io.BytesIO()
    # Not to the disk itself: that would hide why it cannot be written to.
    torch.save(without_numpy({"format": FORMAT, **state}), buffer)
    buffer.seek(0)
    if unknown := torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
        raise ValueError(
            f"a checkpoint holds tensors, numbers, text, and lists and dicts of them, and this one {sorted(unknown)}: "
            "it could not be read again"
        )

    def write(file: IO[bytes]) -> None:
        file.write(buffer.getbuffer())
        _keep(path)  # not before: a disk may be full

    try:
        write_aside(path, write)
    except OSError as error:
        error.add_note(f"The checkpoint {path} was not written; the one before it is untouched.")
        raise


def without_numpy(value: Any) -> Any:
    """The value with Python's numbers in the place of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:  # no other kind: a module's state has attributes, too
        return {key: without_numpy(item) for key, item in value.items()}
    return type(value)(map(without_numpy, value)) if type(value) in (list, tuple) else value


def _keep(path: Path) -> None:
    """Give a checkpoint the name of the previous one, too. Its own it loses only to the next."""
    if not path.exists():
        return
    aside = beside(path)
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        shutil.copyfile(path, aside)
    aside.replace(previous(path))
    aside.unlink(missing_ok=True)  # a file that has both names already is not renamed


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state that `fit` saved, on the CPU: `model.load_state_dict(load_checkpoint(path)["model"])`.

    Unpickles tensors and plain types only, and compares every part with its checksum. A truncated, damaged or foreign
    file raises `ValueError`, none `FileNotFoundError`.
    """
    try:
        with ZipFile(path) as file:
            if (damaged := file.testzip()) is not None:
                raise BadZipFile(f"{damaged} is not what was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise pickle.UnpicklingError(f"its format is not {FORMAT!r}")
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # what a reader of damaged bytes raises has no end
        before = previous(path)
        hint = f"delete it, and training resumes from {before}" if before.exists() else "delete it to train anew"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is truncated or foreign ({reason}): {hint}") from error
    return state


def previous(path: str | Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return Path(f"{path}.previous")


def claim(path: str | Path, configuration: dict[str, Any], held: ExitStack) -> dict[str, Any] | None:
    """Lock a checkpoint for one run, as long as `held` is open, and load it; None where there is none yet."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(FileLock(f"{path}.lock", timeout=0))  # the system lets go of it when the process dies
    except Timeout:
        raise RuntimeError(f"{path} is in use by another run: wait, or give this run another path") from None
    sweep(path)  # no live run can be writing this checkpoint: we hold the lock
    # The reader of a damaged checkpoint is told to delete it: then the one before goes on.
    found = next((candidate for candidate in (path, previous(path)) if candidate.exists()), None)
    if found is None:
        return None
    state = load_checkpoint(found)
    theirs = state.get("configuration", {})
    differing = [
        f"{key}: {theirs.get(key)!r} there, {value!r} here"
        for key, value in configuration.items()
        if theirs.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{found} is of another run ({'; '.join(differing)}): give this run another path. "
            "To train a finished model further, load its weights and call fit again"
        )
    if found != path:  # no crash leaves it so: somebody has deleted the file, perhaps to begin anew
        warnings.warn(f"{path} is not there: going on from {found}; to train anew delete that, too", stacklevel=2)
    return state


# ----------------------------------------------------------------------------------------------------- random numbers
def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's (CPU and GPU) random numbers.

    >>> seed_everything(0)
    >>> torch.randint(100, (3,))
    tensor([44, 39, 33])
    """
    seed = whole_number(seed=seed)  # NumPy's too, which neither Python nor torch takes
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(data: Any, device: torch.device) -> dict[str, Any]:
    """Every random state that a step can draw from, those of the loader and its samplers included, as tensors and plain
    types."""
    numpy = np.random.get_state(legacy=False)
    keys = torch.tensor(numpy["state"]["key"].astype(np.int64))
    state = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": keys}},
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state | {"data": [generator.get_state() for generator in generators(data)]}


def set_random_state(state: dict[str, Any], data: Any, device: torch.device) -> None:
    """Go back to a `random_state`."""
    random.setstate(state["python"])
    numpy = state["numpy"]
    keys = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": keys}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    for generator, of in zip(generators(data), state["data"], strict=True):
        generator.set_state(of)


def generators(data: Any) -> list[torch.Generator]:
    """The generators of a `DataLoader` and its samplers, each once: a sampler often shares its loader's."""
    batches = getattr(data, "batch_sampler", None)
    holders = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list(dict.fromkeys(one for one in found if isinstance(one, torch.Generator)))
