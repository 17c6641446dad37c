"""Who makes the runs of a sweep: any executor of `concurrent.futures`, named on the command line.

`local` starts processes here. `dask:ADDRESS` hands the runs to a Dask cluster, `mpi` to the ranks of an MPI job. Locks
and checkpoints lie in the work folder, so workers on several machines need one that they share.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from companion._checks import given

NAMES = "local (the default), dask:ADDRESS (or dask: a cluster on this machine), mpi"


@contextmanager
def open_executor(name: str | None, jobs: int) -> Iterator[Executor]:
    """The executor of that name for the length of a `with` block; whatever ends the block ends its local processes, of
    which there are `jobs`, each with its share of the cores.

    Raises:
        ValueError: an unknown name, a package that is not installed, a function that returns no executor.
    """
    kind, _, address = (name or "local").partition(":")
    if kind == "local":
        with _processes(jobs) as executor:
            yield executor
    elif kind == "dask":
        own = {} if address else {"threads_per_worker": 1}
        client = _installed("dask.distributed").Client(address or None, **own)
        try:
            yield client.get_executor()
        finally:
            client.close()
    elif kind == "mpi":
        with _installed("mpi4py.futures").MPIPoolExecutor() as executor:
            yield executor
    elif address:
        with _own(kind, address) as executor:
            yield executor
    else:
        raise ValueError(f"--executor {name}: unknown; use {NAMES}, or module:function")


def _own(module: str, function: str) -> Executor:
    try:
        made = getattr(_installed(module), function)()
        if not isinstance(made, Executor):
            raise TypeError(f"it returns {given(made)}")
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"--executor {module}:{function}: {error}; use a function without arguments that returns a "
            "concurrent.futures.Executor"
        ) from error
    return made


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--executor needs the module {module}, which cannot be imported: {error}") from None


@contextmanager
def _processes(jobs: int) -> Iterator[Executor]:
    """Processes that end with this one, whatever ends it: an error, Ctrl-C, SIGTERM, or SIGKILL."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    executor = ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown()
        if main:
            signal.signal(signal.SIGTERM, before)


def _begin(threads: int) -> None:
    """A worker's first act: its share of the cores, and a watch on the process that started it."""
    import torch

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(1)  # nobody is left to tell

        threading.Thread(target=watch, daemon=True).start()
