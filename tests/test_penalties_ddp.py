"""Penalties on two ranks (gloo) against one process that does the same arithmetic, and inside Lightning's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import two_ranks

from companion.data import DeviceLoader, Images
from companion.regularizers import AugmentedCKASparsity, CKASparsity, FeatureFlow, KineticEnergy
from companion.training import fit, sgd

PENALTIES: dict[str, Callable[[nn.Module], Any]] = {
    "CKA-SR": lambda model: CKASparsity(model, 0.3, examples=6, every=2),
    "AugCKA-SR": lambda model: AugmentedCKASparsity(model, 0.3),
    "feature flow, arXiv": lambda model: FeatureFlow(model, 0.3, 0.2, every=2),
    "feature flow, journal": lambda model: FeatureFlow(model, 0.3, 0.2, variant="journal", before_relu=True),
    "kinetic energy": lambda model: KineticEnergy(model, 0.3, every=2),
}


def net() -> nn.Sequential:
    """Three maps of one shape; no batch norm, whose statistics differ between ranks."""
    torch.manual_seed(0)
    layers = [layer for inputs in (1, 4, 4) for layer in (nn.Conv2d(inputs, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 3)).double()


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=random)
    return x, torch.randint(3, (8,), generator=random)


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def trained_by_hand(kind: str, rank: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Four steps of a plain loop on the model inside DistributedDataParallel; two batches a step are accumulated."""
    model = DistributedDataParallel(net())
    penalty = PENALTIES[kind](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for step in range(4):
        with model.no_sync():
            x, y = batch(rank, 2 * step)
            (F.cross_entropy(model(x), y) / 2).backward()
        x, y = batch(rank, 2 * step + 1)
        (F.cross_entropy(model(x), y) / 2 + penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(penalty.last))
    return state(model.module), values


def alone(kind: str) -> tuple[dict[str, np.ndarray], list[list[float]]]:
    """The same steps in one process: the mean of both ranks' losses and penalties."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalties = [PENALTIES[kind](model) for _ in (0, 1)]
    values: list[list[float]] = [[], []]
    for step in range(4):
        for rank in (0, 1):
            x, y = batch(rank, 2 * step)
            (F.cross_entropy(model(x), y) / 4).backward()
            x, y = batch(rank, 2 * step + 1)
            ((F.cross_entropy(model(x), y) / 2 + penalties[rank]()) / 2).backward()
            values[rank].append(float(penalties[rank].last))
        optimizer.step()
        optimizer.zero_grad()
    return state(model), values


def loader(rank: int = 0, world_size: int = 1) -> DeviceLoader:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (52, 1, 8, 8), dtype=torch.uint8, generator=random)
    images = Images(pixels, torch.randint(3, (52,), generator=random), ("a", "b", "c"), (0.5,), (0.3,), "noise")
    return DeviceLoader(images, 12, shuffle=True, dtype=torch.float64, rank=rank, world_size=world_size)


def trained_by_the_loop(kind: str, rank: int) -> tuple[dict[str, np.ndarray], float]:
    """Two epochs of `fit`, batches accumulated in twos; the last batch of an epoch is smaller."""
    model = net()
    penalty = PENALTIES[kind](model)
    history = fit(model, loader(rank, 2), sgd(model, 0.05), epochs=2, accumulate=2, penalty=penalty, progress=False)
    return state(model), history[-1][f"penalty_{penalty.name}"]


def all_trained(rank: int) -> dict[str, Any]:
    return {kind: (trained_by_hand(kind, rank), trained_by_the_loop(kind, rank)) for kind in PENALTIES}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    outcomes = two_ranks(all_trained)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", PENALTIES)
def test_gradients_of_the_ranks_penalties_are_averaged(kind: str, ranks: list[dict[str, Any]]) -> None:
    weights, values = alone(kind)
    for rank, outcome in enumerate(ranks):
        ours, seen = outcome[kind][0]
        assert seen == pytest.approx(values[rank], rel=1e-9)
        for name, value in weights.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-9, atol=1e-12)
    assert values[0] != values[1]  # each rank looks at its own examples


@pytest.mark.slow
@pytest.mark.parametrize("kind", PENALTIES)
def test_ranks_of_the_loop_stay_together_under_a_penalty(kind: str, ranks: list[dict[str, Any]]) -> None:
    (one, value), (two, other) = (outcome[kind][1] for outcome in ranks)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert value == other and value > 0


# ----------------------------------------------------------------------------------------------------------- Lightning
@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_plug_and_play_in_lightning(kind: str, accumulate: int) -> None:
    """Ten lines of a LightningModule train as the plain loop does."""
    lightning = pytest.importorskip("lightning", reason="pip install lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.penalty = PENALTIES[kind](self.net)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            last = (index + 1) % accumulate == 0  # of the batches of one optimizer step
            return loss + accumulate * self.penalty() if last else loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = [batch(0, step) for step in range(8)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", accumulate_grad_batches=accumulate, enable_model_summary=False, **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))

    plain = net()
    penalty, optimizer = PENALTIES[kind](plain), torch.optim.SGD(plain.parameters(), lr=0.1)
    for index, (x, y) in enumerate(batches):
        loss, last = F.cross_entropy(plain(x), y) / accumulate, (index + 1) % accumulate == 0
        (loss + penalty() if last else loss).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    assert module.penalty.calls == penalty.calls == 8 // accumulate
    for ours, theirs in zip(module.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
