"""Pruning on two ranks (gloo, two processes) against one process on the same global batches, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import nn
from two_ranks import two_ranks

from companion.data import DeviceLoader, Images
from companion.pruning import DST, SET, GraNet, MagnitudePruning, Masks, RandomPruning, RigL
from companion.training import fit, sgd

pytestmark = pytest.mark.slow

METHODS: dict[str, Callable[[nn.Module, Any], Masks]] = {
    "random": lambda model, optimizer: RandomPruning(model, optimizer, 0.8),
    "magnitude": lambda model, optimizer: MagnitudePruning(model, optimizer, 0.8),
    "SET": lambda model, optimizer: SET(model, optimizer, 0.8, every=4),
    "RigL": lambda model, optimizer: RigL(model, optimizer, 0.8, steps=24, every=4),
    "GraNet": lambda model, optimizer: GraNet(model, optimizer, 0.8, steps=24, every=4),
    "DST": lambda model, optimizer: DST(model, optimizer, alpha=1e-2),
}


Outcome: TypeAlias = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def loader(rank: int = 0, world_size: int = 1) -> DeviceLoader:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (96, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(3, (96,), generator=random)
    images = Images(pixels, labels, ("a", "b", "c"), (0.5,), (0.3,), "noise")
    return DeviceLoader(images, 16, shuffle=True, dtype=torch.float64, rank=rank, world_size=world_size)


def train(method: str, seed: int, rank: int = 0, world_size: int = 1) -> Outcome:
    """The model's state and the masks after 24 steps; on several ranks only rank 0 starts from the seed that counts."""
    torch.manual_seed(seed + rank)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)).double()
    optimizer = sgd(model, 0.05)
    sparsity = METHODS[method](model, optimizer)
    fit(model, loader(rank, world_size), optimizer, epochs=4, sparsity=sparsity, progress=False)
    weights, masks = model.state_dict(), sparsity.masks
    return {k: value.numpy() for k, value in weights.items()}, {k: mask.numpy() for k, mask in masks.items()}


def all_trained(rank: int) -> dict[str, Outcome]:
    return {method: train(method, 0, rank, 2) for method in METHODS}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Outcome]]:
    """What every method leaves on each of two ranks that start from different weights."""
    outcomes = two_ranks(all_trained)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_are_one_process(method: str, ranks: list[dict[str, Outcome]]) -> None:
    one_weights, one_masks = train(method, 0)
    for rank in ranks:
        weights, masks = rank[method]
        assert all(np.array_equal(masks[name], mask) for name, mask in one_masks.items())
        assert all(np.allclose(weights[name], value, rtol=0, atol=1e-6) for name, value in one_weights.items())
    assert all(np.array_equal(ranks[0][method][0][name], value) for name, value in ranks[1][method][0].items())
