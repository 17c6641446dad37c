"""Penalties that squeeze information, in a loop of one's own and in the package's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from companion.information import InformationGate, normalized_hsic
from companion.regularizers import HSICBottleneck, VIBNet
from companion.training import fit


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def gated() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), InformationGate(16), nn.Linear(16, 3))


def batch(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 8)
    return x, (x[:, 0] > 0).long()


def test_penalty_is_the_sum_over_layers(device: torch.device) -> None:
    model = net().to(device)
    penalty = HSICBottleneck(model, beta=0.5, layers=nn.Linear, examples=20)
    x = batch()[0].to(device)
    h1 = model[0](x[:20])
    h2 = model[2](h1.relu())
    h3 = model[4](h2.relu())
    expected = 0.5 * sum(normalized_hsic(x[:20], h.detach()) for h in (h1, h2, h3))
    model(x)
    value = penalty()
    assert value.detach().item() == pytest.approx(float(expected), rel=1e-5) and value.dtype == torch.float32
    value.backward()
    assert model[0].weight.grad is not None and model[0].weight.grad.abs().sum() > 0


def test_life_of_the_penalty() -> None:
    model = net()
    penalty = HSICBottleneck(model, layers=nn.Linear, every=2)
    x, _ = batch()
    with pytest.raises(RuntimeError, match="no features"):
        penalty()
    model(x)
    first = float(penalty().detach())
    model(x)
    assert first > 0 and penalty().item() == 0
    model.eval()(x)  # evaluation leaves nothing
    model.train()(x[:2])
    assert penalty().item() == 0  # fewer than four examples
    penalty.remove()
    assert not model._forward_pre_hooks and not any(m._forward_hooks for m in model.modules())
    assert "beta=0.01" in repr(penalty)


def test_squeezing_lowers_dependence_on_the_input() -> None:
    values = []
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        model = net()
        penalty = HSICBottleneck(model, beta, layers=nn.ReLU)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            x, y = batch()
            loss = F.cross_entropy(model(x), y) + penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        penalty.remove()
        x, _ = batch(200)
        values.append(float(normalized_hsic(x, model[:4](x).detach())))
    assert values[1] < 0.7 * values[0]


def test_vibnet_is_penalty_and_sparsity_of_the_loop() -> None:
    torch.manual_seed(0)
    model = gated()
    vib = VIBNet(model, beta=0.02)
    assert vib.density() == 1 and "16/16" in repr(vib)
    data = [batch() for _ in range(10)]
    fit(model, data, torch.optim.Adam(model.parameters(), lr=0.03), epochs=15, sparsity=vib, progress=False)
    assert 0 < vib.density() < 0.7
    x, y = batch(500)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.85  # pruned in evaluation, and still right
    assert vib.last is not None and vib.last.item() == pytest.approx(float(vib.penalty().detach()), rel=0.1)
    other = VIBNet(gated())
    other.load_state_dict(vib.state_dict())
    assert other.calls == vib.calls


def test_refuses() -> None:
    with pytest.raises(ValueError, match="has no InformationGate"):
        VIBNet(net())
    with pytest.raises(ValueError, match="beta=-1 must lie in"):
        VIBNet(gated(), beta=-1)
    with pytest.raises(ValueError, match="at least 4"):
        HSICBottleneck(net(), examples=3, layers=nn.Linear)


def test_layers_that_ran_outside_a_pass_have_no_input_to_be_compared_with() -> None:
    model = net()
    penalty, (x, _) = HSICBottleneck(model, layers=nn.ReLU), batch()
    for first in (False, True):
        if first:
            model(x + 1)
            penalty()
        model[:4](x)
        with pytest.raises(RuntimeError, match="ran outside a forward pass of it"):
            penalty()
    model(x)
    assert penalty() > 0
