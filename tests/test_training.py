"""The training loop: against a hand-written loop, its two sockets, its recipes, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from companion.training import fit, multistep, seed_everything, sgd


def net(device: torch.device | str = "cpu", dropout: float = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * 36, 2)
    ).to(device)


def data(batch_size: int = 32, examples: int = 200, shuffle: bool = False) -> DataLoader:
    """8×8 images, labelled by the sign of their mean."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, 1, 8, 8, generator=generator) + 0.3 * torch.randn(examples, 1, 1, 1, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=batch_size, shuffle=shuffle)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in model.state_dict().values()])


# --------------------------------------------------------------------------------------- against a hand-written loop
def test_is_the_hand_written_loop_bit_for_bit(device: torch.device) -> None:
    ours, loader = net(device), data()
    theirs = copy.deepcopy(ours)
    history = fit(ours, loader, sgd(ours, 0.05), epochs=3, schedule=multistep(2), seed=3, progress=False)

    optimizer = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], gamma=0.1)
    seed_everything(3)
    for _ in range(3):
        total = correct = 0.0
        for x, y in loader:
            logits = theirs(x.to(device))
            loss = F.cross_entropy(logits, y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
            correct += (logits.argmax(1).cpu() == y).sum().item()
        scheduler.step()
    if device.type == "cpu":
        assert torch.equal(weights(ours), weights(theirs))
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert history[-1]["loss"] == pytest.approx(total / 200, rel=1e-5)
    assert history[-1]["accuracy"] == correct / 200
    assert [record["lr"] for record in history] == pytest.approx([0.05, 0.05, 0.005])
