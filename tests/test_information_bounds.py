"""Bounds, kernels and gates: on the right side of the truth, against their definitions, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from companion.information import (
    Critic,
    Estimate,
    InformationGate,
    donsker_varadhan,
    gate_information,
    infonce,
    kolchinsky_tracey,
    mutual_information,
    noisy_label_information,
    normalized_hsic,
    nwj,
    renyi,
    renyi_entropy,
    variational_bound,
)


def correlated(n: int, rho: float, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Normal pairs and the truth."""
    x, e = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    return x, rho * x + math.sqrt(1 - rho**2) * e, -0.5 * math.log(1 - rho**2)


def optimal_scores(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """ln p(x, y)/(p(x)p(y)) of all pairs, for normal pairs of correlation ρ."""
    s = 1 - rho**2
    return -0.5 * math.log(s) - (rho**2 * (x**2 + y.T**2) - 2 * rho * x * y.T) / (2 * s)


# --------------------------------------------------------------------------------------------------- variational bounds
@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_bounds_at_the_optimal_critic(rho: float, device: torch.device) -> None:
    """DV and NWJ meet the truth; InfoNCE stays below it, and below ln n."""
    values: dict[str, list[float]] = {"dv": [], "nwj": [], "infonce": []}
    for seed in range(60):
        x, y, truth = correlated(128, rho, seed)
        f = optimal_scores(x, y, rho).to(device)
        values["dv"].append(donsker_varadhan(f).item())
        values["nwj"].append(nwj(f + 1).item())
        values["infonce"].append(infonce(f).item())
    for name, found in values.items():
        mean, error = torch.tensor(found).mean().item(), torch.tensor(found).std().item() / math.sqrt(60)
        assert mean < truth + 4 * error, name
        assert mean > truth - 4 * error - 0.03, name


def test_any_other_critic_is_lower() -> None:
    x, y, truth = correlated(1000, 0.8)
    f = optimal_scores(x, y, 0.8)
    for worse in (0.5 * f, 2 * f.clamp(-2, 2), torch.zeros_like(f)):
        assert nwj(worse + 1) < nwj(f + 1) + 0.05
        assert donsker_varadhan(worse) < donsker_varadhan(f) + 0.05
        assert infonce(worse) < infonce(f) + 0.05
    assert truth > 0.5


def test_bounds_by_hand() -> None:
    f = torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=torch.float64)
    e = math.e
    assert donsker_varadhan(f).item() == pytest.approx(2 - math.log((1 + e**2) / 2))
    assert nwj(f).item() == pytest.approx(2 - (1 + e**2) / 2 / e)
    expected = 0.5 * (1 - math.log((e + 1) / 2) + 3 - math.log((e**2 + e**3) / 2))
    assert infonce(f).item() == pytest.approx(expected)
    for bound in (donsker_varadhan, nwj, infonce):
        torch.testing.assert_close(bound(torch.stack([f, f.T])), torch.stack([bound(f), bound(f.T)]))


def test_infonce_has_a_ceiling() -> None:
    perfect = 1e3 * torch.eye(32, dtype=torch.float64)
    assert infonce(perfect).item() == pytest.approx(math.log(32))


def test_gradients() -> None:
    f = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    for bound in (donsker_varadhan, nwj, infonce):
        assert torch.autograd.gradcheck(bound, f)
    h = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for side in ("upper", "lower"):
        assert torch.autograd.gradcheck(lambda h, side=side: kolchinsky_tracey(h, noise=0.7, bound=side).value, h)
    assert torch.autograd.gradcheck(lambda h: noisy_label_information(h, labels, noise=0.7).value, h)
    x = torch.randn(6, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: renyi(h, x, alpha=2, kernel="linear").value, h)
    assert torch.autograd.gradcheck(
        lambda h: renyi(h, x, alpha=1.5, kernel=lambda z: (-torch.cdist(z, z)).exp()).value, h
    )
    assert torch.autograd.gradcheck(lambda h: normalized_hsic(h, x, kernel="linear"), h)
    mean, variance = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(gate_information, (mean.requires_grad_(), variance.requires_grad_()))


@pytest.mark.parametrize("bound", ["infonce", "nwj", "dv"])
def test_a_trained_critic_finds_most_of_it_and_not_more(bound: str) -> None:
    x, y, truth = correlated(3000, 0.9)
    found = mutual_information(x, y, estimator=bound, steps=300, batch=64)
    assert truth - 0.35 < float(found) < truth + 0.15
    assert found.bound == ("neither" if bound == "dv" else "lower") and found.error is not None


def test_intervals_of_a_few_batches_cover_what_they_say() -> None:
    """An error that is the spread of a few numbers is uncertain itself; Student's interval knows it."""
    x, y, _ = correlated(600, 0.7)
    found = mutual_information(x, y, "infonce", steps=1, batch=30, unit="bits")
    assert found.df == 2 and found.examples == 600  # 90 held-out examples
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for few in (2, 5):
        z = Estimate(zero, one, "nats", "any", "", df=few - 1).interval()[1]
        draws = torch.randn(10_000, few, dtype=torch.float64)
        covered = draws.mean(1).abs() < z * draws.std(1) / math.sqrt(few)
        assert float(covered.double().mean()) == pytest.approx(0.95, abs=0.01)
    assert Estimate(zero, one, "nats", "any", "").interval() == (-1.96, 1.96)


def test_a_critic_that_diverges_is_not_judged_as_if_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    y = 4 * x + 0.1 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"diverged at lr=1000\.0: lower it"):
        variational_bound(x, y, bound="nwj", lr=1e3, batch=32, steps=150)
    step, steps = torch.optim.Adam.step, list[None]()

    def diverging(self: torch.optim.Adam) -> None:
        step(self)
        if len(steps) == 100:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        steps.append(None)

    monkeypatch.setattr(torch.optim.Adam, "step", diverging)
    with pytest.warns(UserWarning, match="that of an early look"):  # of step 100
        found = variational_bound(x, y, batch=32, steps=150)
    monkeypatch.undo()
    assert 0 < float(found) == float(variational_bound(x, y, batch=32, steps=100))


def test_held_out_examples_tell_memory_from_information() -> None:
    """Independent data that a critic could remember: the held-out value does not reward it."""
    x, y = torch.randn(2, 300, 20).unbind()
    assert float(variational_bound(x, y, steps=300, batch=32, seed=1)) < 0.1


def test_training_is_reproducible_and_leaves_the_random_state_alone() -> None:
    x, y, _ = correlated(600, 0.7)
    state = torch.get_rng_state()
    one, two = (float(variational_bound(x, y, steps=60, batch=64, seed=seed)) for seed in (3, np.int64(3)))
    assert one == two and torch.equal(state, torch.get_rng_state())


def test_the_value_is_the_best_critics_on_examples_that_decided_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, looks = set[float](), list[tuple[set[float], float, Tensor]]()

    class Watched(Critic):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            scores = super().forward(x, y)
            if torch.is_grad_enabled():
                trained.update(x.flatten().tolist())
            else:
                value = float(infonce(scores.double()).mean())
                looks.append((set(x.flatten().tolist()), value, self.x[0].weight.clone()))
            return scores

    monkeypatch.setattr("companion.information.variational.Critic", Watched)
    found = variational_bound(*torch.randn(2, 300, 1).unbind(), steps=600, batch=32, lr=1e-2)
    *before, (judged, value, weight) = looks
    best = max(before, key=lambda look: look[1])
    assert float(found) == pytest.approx(value)
    assert torch.equal(weight, best[2]) and not torch.equal(weight, before[-1][2])
    assert not judged & trained.union(*(look[0] for look in before))


def test_critic_scores_all_pairs() -> None:
    critic = Critic(2, 3)
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    scores = critic(x, y)
    assert scores.shape == (5, 5)
    torch.testing.assert_close(scores[1, 4], critic(x[1:2], y[4:5])[0, 0])


# ------------------------------------------------------------------------------------------------------ noisy layers
def test_pairwise_bounds_enclose_the_truth(device: torch.device) -> None:
    """Two inputs, one unit: I(X;T) of two bumps by quadrature."""
    from companion.experiments.distributions import _mixture_entropy

    for distance in (0.5, 2.0, 5.0, 20.0):
        h = torch.tensor([[0.0], [distance]], dtype=torch.float64, device=device)
        truth = _mixture_entropy([0.0, distance], 1.0) - 0.5 * math.log(2 * math.pi * math.e)
        low, high = (float(kolchinsky_tracey(h, noise=1.0, bound=side)) for side in ("lower", "upper"))
        assert low <= truth + 1e-9 and truth <= high + 1e-9
        assert low >= 0 and high <= math.log(2) + 1e-9
    assert low == pytest.approx(math.log(2), abs=1e-6)


def test_pairwise_bounds_equal_their_definition_in_blocks() -> None:
    h = torch.randn(50, 3, dtype=torch.float64)
    squared = torch.cdist(h, h).square()
    for side, width in (("upper", 2), ("lower", 8)):
        expected = -(-squared / (width * 0.3**2)).exp().mean(1).log().mean()
        for block in (None, 7):
            found = kolchinsky_tracey(h, noise=0.3, bound=side, block=block)
            assert float(found) == pytest.approx(expected.item(), abs=1e-9) and found.bound == side
        labels = torch.arange(50) % 3
        within = [(-squared[labels == c][:, labels == c] / (width * 0.3**2)).exp().mean(1).log() for c in range(3)]
        about_label = expected.item() + float(torch.cat(within).mean())
        assert float(noisy_label_information(h, labels, noise=0.3, bound=side)) == pytest.approx(about_label, abs=1e-9)


def test_pairwise_bounds_do_not_depend_on_an_offset_nor_on_the_units() -> None:
    """‖a‖² + ‖b‖² − 2ab has no digits left of distances far smaller than the features: .74 for 2.34 at 10⁸."""
    h = torch.randn(60, 4, dtype=torch.float64).repeat(2, 1)  # every input twice
    labels = torch.arange(120) % 3
    truth, about_label = float(kolchinsky_tracey(h, noise=1.0)), float(noisy_label_information(h, labels, noise=1.0))
    for scale, offset in ((1.0, 1e8), (1e-6, 1.0), (1e8, 0.0)):
        moved = scale * h + offset
        assert float(kolchinsky_tracey(moved, noise=scale)) == pytest.approx(truth, rel=1e-6)
        assert float(noisy_label_information(moved, labels, noise=scale)) == pytest.approx(about_label, rel=1e-6)
    assert float(kolchinsky_tracey(h, noise=1e-9)) == pytest.approx(math.log(60), abs=1e-9)


def test_more_noise_less_information_and_labels_no_more_than_inputs() -> None:
    y = torch.randint(0, 3, (200,))
    h = torch.randn(200, 2, dtype=torch.float64) + 4 * torch.nn.functional.one_hot(y, 3)[:, :2]
    values = [float(kolchinsky_tracey(h, noise=s)) for s in (0.01, 0.1, 1.0, 10.0)]
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(math.log(200), abs=0.05)
    about_y = [float(noisy_label_information(h, y, noise=s)) for s in (0.1, 1.0)]
    assert all(0 < v < float(kolchinsky_tracey(h, noise=s)) + 1e-9 for v, s in zip(about_y, (0.1, 1.0), strict=True))
    assert about_y[0] == pytest.approx(math.log(3), abs=0.25)


# ------------------------------------------------------------------------------------------------------------- kernels
def test_renyi_entropy_counts_clusters(device: torch.device) -> None:
    centres = 100 * torch.eye(4, dtype=torch.float64, device=device)
    x = centres.repeat(10, 1) + 1e-3 * torch.randn(40, 4, dtype=torch.float64, device=device)
    kernel: Callable[[Tensor], Tensor] = lambda z: (-torch.cdist(z, z).square()).exp()  # noqa: E731
    for alpha in (1.01, 2):
        assert float(renyi_entropy(x, alpha=alpha, kernel=kernel)) == pytest.approx(math.log(4), abs=1e-3)
        same = renyi(x, x, alpha=alpha, kernel=kernel)
        assert float(same) == pytest.approx(math.log(4), abs=1e-3)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.01])
def test_renyi_counts_no_eigenvalue_that_is_rounding(alpha: float) -> None:
    """A linear kernel has as many eigenvalues above 0 as x has features, those of its second moments."""
    x = torch.randn(100, 2, dtype=torch.float64)
    directions = torch.nn.functional.normalize(x - x.mean(0))
    spectrum = torch.linalg.eigvalsh(directions.T @ directions / 100)
    exact = float(spectrum.pow(alpha).sum().log()) / (1 - alpha)
    assert float(renyi_entropy(x, alpha=alpha, kernel="linear")) == pytest.approx(exact, abs=1e-9)
    symbol = torch.arange(4).repeat(25)[:, None].double()
    same = renyi(symbol, symbol, alpha=alpha, kernel=lambda z: (torch.cdist(z, z) < 0.5).double())
    assert float(same) == pytest.approx(math.log(4), abs=1e-9)


def test_renyi_of_independent_is_less_than_of_dependent() -> None:
    x, y, _ = correlated(150, 0.9)
    dependent, independent = float(renyi(x, y)), float(renyi(x, y[torch.randperm(150)]))
    assert 0 <= independent < 0.6 * dependent


def test_rounding_is_no_information_for_a_kernel() -> None:
    """A layer that is constant but for its last bits says nothing; an example at the mean has no direction."""
    still = 0.3 * (1 + 2.0**-22 * torch.randn(40, 5))
    for kernel in ("linear", "rbf"):
        assert normalized_hsic(still, torch.randn(40, 3), kernel=kernel) == 0
    x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    for off in (0.0, 1e-17, -1e-16):
        x[2] = off
        assert float(renyi_entropy(x, alpha=2, kernel="linear")) == pytest.approx(-math.log((4 / 5) ** 2), abs=1e-3)


def test_normalised_hsic_is_a_sum_of_squared_regularised_correlations() -> None:
    """With a linear kernel and a small ridge: the number of canonical correlations, weighted by their squares."""
    x = torch.randn(500, 3, dtype=torch.float64)
    y = x[:, :2] + 0.5 * torch.randn(500, 2, dtype=torch.float64)
    from companion.information import canonical_correlations

    rho = canonical_correlations(torch.cov(torch.cat([x, y], 1).T), 3)
    assert float(normalized_hsic(x, y, kernel="linear", ridge=1e-7)) == pytest.approx(
        rho.square().sum().item(), rel=1e-4
    )
    assert float(normalized_hsic(x, y)) > float(normalized_hsic(x, y[torch.randperm(500)]))


# --------------------------------------------------------------------------------------------------------------- gates
def test_a_gate_is_a_gaussian_channel() -> None:
    """½ ln(1 + μ²/σ²): the information of a channel with standard normal input."""
    from companion.information import gaussian_mutual_information

    mu, variance = 0.7, 0.3
    covariance = torch.tensor([[1, mu], [mu, mu**2 + variance]], dtype=torch.float64)
    expected = gaussian_mutual_information(covariance, 1)
    found = gate_information(torch.tensor([mu], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64))
    torch.testing.assert_close(found[0], expected)


def test_gate_in_training_and_evaluation(device: torch.device) -> None:
    gate = InformationGate(3, variance=0.25).to(device)
    x = torch.ones(4000, 3, 2, device=device)
    out = gate(x)
    assert torch.equal(out[..., 0], out[..., 1])  # all positions of a channel share their draw
    assert out[..., 0].mean().item() == pytest.approx(1, abs=0.05)
    assert out[..., 0].std().item() == pytest.approx(0.5, abs=0.03)
    with torch.no_grad():
        gate.mean[1] = 0.4  # σ² = .25 > μ² = .16: pruned
    assert gate.open().tolist() == [True, False, True] and "open=2" in repr(gate)
    torch.testing.assert_close(gate.eval()(x)[0, :, 0].cpu(), torch.tensor([1.0, 0.0, 1.0]))
    assert gate.information().item() == pytest.approx(0.5 * (2 * math.log(5) + math.log(1.64)), abs=1e-5)
    for threshold, opened in ((0.5, [True] * 3), (-1.5, [False] * 3)):  # ln σ²/μ² is −1.39, .45 and −1.39
        gate.threshold = threshold
        assert gate.open().tolist() == opened


def test_gates_close_on_what_is_not_needed() -> None:
    """Two units, one carries the answer: the other's gate closes, and the gate that is needed stays open."""
    x = torch.randn(512, 2)
    y = x[:, :1]
    gate, read = InformationGate(2, variance=0.1), nn.Linear(2, 1)
    optimizer = torch.optim.Adam([*gate.parameters(), *read.parameters()], lr=0.03)
    for _ in range(400):
        loss = (read(gate(x)) - y).square().mean() + 0.02 * gate.information()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gate.open().tolist() == [True, False]


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: infonce(torch.zeros(3, 4)), "true pairs on the diagonal"),
        (lambda: nwj(torch.zeros(1, 1)), "n ≥ 2"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(100, 1)), "smaller batch"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(100, 1), bound="magic"), "'magic'"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(100, 1), batch=32, steps=0), "steps=0 must be at"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(99, 1)), "100 rows and y 99"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(100, 1), seed=0.5), "seed=0.5 must be a whole"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(100, 1), batch=32.0), "batch=32.0 must be a whole"),
        (lambda: variational_bound(torch.randn(100, 1), torch.randn(100, 1), hidden=0), "hidden=0 must be at least 1"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise=0.0), "infinite information"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise=1e-200), r"noise=1e-200 must lie in \[1e-150"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise=math.inf), "noise=inf must lie"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise="1"), "noise='1' must be a number"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise=torch.ones(2)), "must be a number"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise=1.0, block=-1), "block=-1 must be at least 1"),
        (lambda: kolchinsky_tracey(torch.randn(9, 2), noise=1.0, bound="middle"), "bound='middle' is unknown"),
        (lambda: noisy_label_information(torch.randn(9, 2), torch.arange(8), noise=1.0), "9 rows and y 8"),
        (lambda: renyi(torch.randn(9, 2), torch.randn(8, 2)), "9 rows and y 8"),
        (lambda: renyi_entropy(torch.randn(9, 2), alpha=1), "not 1"),
        (lambda: renyi_entropy(torch.randn(9, 2), alpha=math.inf), r"alpha=inf must lie in \(0, inf\)"),
        (lambda: renyi(torch.randn(9, 2), torch.randn(9, 2), alpha="2"), "alpha='2' must be a number"),
        (lambda: normalized_hsic(torch.randn(9, 2), torch.randn(9, 2), ridge=0), "ridge=0"),
        (lambda: normalized_hsic(torch.randn(9, 2), torch.randn(9, 2), ridge=math.inf), "ridge=inf must lie"),
        (lambda: gate_information(torch.ones(2), torch.tensor([1.0, -0.5])), r"variance=tensor\(.*must be positive"),
        (lambda: gate_information(torch.ones(1), torch.zeros(1)), "must be positive"),
        (lambda: InformationGate(0), "units=0"),
        (lambda: InformationGate(3)(torch.randn(2, 4)), "dimension 1 must match"),
    ],
)
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_estimate_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` would seed them all, and only the CPU's state is given back."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    one, two = (float(variational_bound(x, x + 1, steps=3, batch=16, seed=3)) for _ in range(2))
    assert one == two and not seeded and torch.equal(before, torch.get_rng_state())
