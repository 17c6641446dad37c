"""The process group that `torchrun` starts: where a process stands in it, and what ranks tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Place(NamedTuple):
    """Where a process stands: its device, its rank, and the number of ranks."""

    device: torch.device
    rank: int
    world_size: int


@contextmanager
def distributed() -> Iterator[Place]:
    """Join `torchrun`'s process group for the length of a `with` block; a single process joins none.

    NCCL where every local rank has a GPU of its own, else gloo (the CPU, or several ranks on one GPU).

    Raises:
        ValueError: the environment speaks of several ranks, and does not say which is this one or where they meet.

    >>> with distributed() as place:  # under torchrun: this process's part of the work
    ...     print(place.rank, "of", place.world_size)
    0 of 1
    """
    gpus = torch.cuda.device_count()
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    ranks = os.environ.get("WORLD_SIZE", "1")
    if lacking and ranks != "1":
        raise ValueError(f"WORLD_SIZE={ranks}, but {', '.join(lacking)} not set: start the script by torchrun")
    if lacking or "WORLD_SIZE" not in os.environ or (dist.is_available() and dist.is_initialized()):
        yield Place(torch.device("cuda" if gpus else "cpu"), rank(), world_size())
        return
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus >= local_size else "gloo")
    try:
        yield Place(device, rank(), world_size())
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number in the process group; 0 where there is none.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the process group; 1 where there is none.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def on_rank_zero(task: Callable[[], T]) -> T:
    """Do `task` on rank 0 alone; its result, or its exception, reaches every rank."""
    if world_size() == 1:
        return task()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = task()
        except Exception as error:  # whatever it is, the other ranks must not wait for ever
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def from_ranks(mine: T) -> list[T]:
    """What each rank has, by rank."""
    everyone = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, mine)
    return everyone


def from_rank_zero(tensor: Tensor) -> Tensor:
    """In a process group: fill the tensor with that of rank 0."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def buffers_of_rank_zero(model: nn.Module) -> None:
    """Give every rank rank 0's buffers: batch-norm statistics, which each rank gathers from its own examples."""
    for buffer in model.buffers():
        from_rank_zero(buffer)
