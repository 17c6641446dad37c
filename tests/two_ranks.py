"""Work done by two ranks: two processes that speak over gloo."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.distributed import TCPStore

from companion.training import distributed

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "torch._dynamo", "torch.distributed", "companion.training"])


def on_rank(rank: int, port: int, work: Callable[..., Any], args: tuple[Any, ...], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    try:
        with distributed() as place:
            assert (place.rank, place.world_size, place.device.type) == (rank, 2, "cpu")
            outcome = work(rank, *args)
    except Exception as error:
        outcome = error
    results.put((rank, outcome))


def two_ranks(work: Callable[..., Any], *args: Any) -> list[Any]:
    """What work(rank, *args) returns, or raises, on each of two ranks."""
    # As under torchrun, the ranks meet at a store that is there before them: its port cannot be taken meanwhile.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=on_rank, args=(rank, store.port, work, args, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    outcomes: dict[int, Any] = {}
    while len(outcomes) < len(processes):  # however busy the machine is, as long as both live
        with suppress(queue.Empty):
            rank, outcome = results.get(timeout=1)
            outcomes[rank] = outcome
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [outcomes[0], outcomes[1]]
