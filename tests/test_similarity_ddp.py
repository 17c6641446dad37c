"""Two gloo processes with uneven shares of the data get the value of one process that has all of it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from companion.similarity import ExactCKA, MinibatchCKA, cka_map

SIZES = ([10, 30, 2], [17])  # batches of either rank; the two join the thirty
METRICS = list(itertools.product((MinibatchCKA, ExactCKA), (True, False)))


def feature_batches(rank: int) -> list[dict[str, Tensor]]:
    """Batches of layers "a" and "b"; the ranks' data lie 30 standard deviations apart, and far from 0."""
    generator = torch.Generator().manual_seed(rank)
    return [
        {
            name: torch.randn(n, p, generator=generator, dtype=torch.float64) + 1e3 + 30 * rank
            for name, p in (("a", 4), ("b", 50))
        }
        for n in SIZES[rank]
    ]


def image_batches(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 + rank)
    return [torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float64) for n in SIZES[rank]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5)
    ).double()


def fed(metric: Any, batches: list[dict[str, Tensor]]) -> Any:
    for batch in batches:
        metric.update(batch)
    return metric


def table(model: nn.Module, data: Any, estimator: str) -> Tensor:
    return torch.tensor(cka_map(model, data, (nn.Conv2d, nn.Linear), estimator=estimator).to_numpy())


def one_rank(rank: int, folder: str) -> None:
    """What either process does; saves what it got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    got: dict[str, Any] = {}
    batches = feature_batches(rank)
    for kind, unbiased in METRICS:
        metric = fed(kind("ab", unbiased=unbiased), batches)
        got[f"{kind.__name__} {unbiased}"] = metric.compute()
        got[f"{kind.__name__} {unbiased} examples"] = metric.total
        fed(metric, batches[:1])  # computing has left each rank its own sums
        got[f"{kind.__name__} {unbiased} more"] = metric.compute()
    # The wrapper's forward pass talks to the other rank, which has fewer batches: it must not be called.
    wrapped = DistributedDataParallel(network())
    images = image_batches(rank)
    for estimator in ("minibatch", "exact"):
        got[estimator] = table(wrapped, images, estimator)
        got[f"{estimator} nothing on rank 0"] = table(wrapped, torch.cat(images)[: 0 if rank == 0 else None], estimator)
        try:
            table(wrapped, [image * math.nan if rank == 1 else image for image in images], estimator)
        except ValueError as error:
            got[f"{estimator} NaN on rank 1"] = str(error)
    torch.save(got, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def assert_both(ranks: list[dict[str, Any]], key: str, expected: Tensor) -> None:
    for got in ranks:
        torch.testing.assert_close(got[key], expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "unbiased"), METRICS)
def test_metrics(ranks: list[dict[str, Any]], kind: Any, unbiased: bool) -> None:
    batches = [feature_batches(rank) for rank in range(2)]
    alone = fed(kind("ab", unbiased=unbiased), batches[0] + batches[1])
    key = f"{kind.__name__} {unbiased}"
    assert_both(ranks, key, alone.compute())
    assert [got[f"{key} examples"] for got in ranks] == [59, 59]
    assert_both(ranks, f"{key} more", fed(alone, batches[0][:1] + batches[1][:1]).compute())
    assert alone.compute()[0, 1] < 0.999  # not all the same


@pytest.mark.parametrize("estimator", ["minibatch", "exact"])
def test_cka_map(ranks: list[dict[str, Any]], estimator: str) -> None:
    images = [image_batches(rank) for rank in range(2)]
    assert_both(ranks, estimator, table(network(), images[0] + images[1], estimator))
    assert_both(ranks, f"{estimator} nothing on rank 0", table(network(), torch.cat(images[1]), estimator))


@pytest.mark.parametrize("estimator", ["minibatch", "exact"])
def test_both_ranks_refuse_what_one_has(ranks: list[dict[str, Any]], estimator: str) -> None:
    """An error on one rank only would leave the other one waiting."""
    assert all("NaN or infinite" in got[f"{estimator} NaN on rank 1"] for got in ranks)
