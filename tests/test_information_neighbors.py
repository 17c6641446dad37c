"""Estimators that look at neighbours: against brute force, other packages, and distributions whose answer is known."""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import digamma
from sklearn.datasets import load_digits
from torch import Tensor

from companion.experiments.distributions import Task, tasks
from companion.information import entropy, ksg, mixed_ksg, mutual_information, ross

TASKS = tasks()
CONTINUOUS = [task for task in TASKS.values() if task.family not in ("class", "discrete")]
FLAT = [task for task in CONTINUOUS if task.p == task.q == 1]


def by_name(tasks: list[Task]) -> Any:
    return pytest.mark.parametrize("task", tasks, ids=lambda task: task.name)


# --------------------------------------------------------------------------------------------- brute force, in float64
def apart(x: np.ndarray) -> np.ndarray:
    """Max-norm distances of all pairs, ∞ from a point to itself."""
    d = np.abs(x[:, None] - x[None]).max(-1)
    np.fill_diagonal(d, np.inf)
    return d


def plain(x: Tensor) -> np.ndarray:
    """Columns in units of their spread, written out."""
    columns = [column - np.median(column) for column in x.numpy().astype(float).T]
    middle = [np.median(np.abs(column)) for column in columns]
    spread = [m if m > 0 else math.sqrt(np.mean(column**2)) for m, column in zip(middle, columns, strict=True)]
    return np.stack([column / s for column, s in zip(columns, spread, strict=True)], axis=1)


def brute_ksg1(x: np.ndarray, y: np.ndarray, k: int, log_n: float) -> float:
    """Kraskov et al. and Gao et al., one example after the other; of tied neighbours all count."""
    dx, dy, n = apart(x), apart(y), len(x)
    total = 0.0
    for i in range(n):
        joint = np.maximum(dx[i], dy[i])
        radius = np.sort(joint)[k - 1]
        if radius == 0:  # the point itself, at distance ∞ here, counts among its copies
            near, n_x, n_y = ((d == 0).sum() + 1 for d in (joint, dx[i], dy[i]))
        else:
            edge = 1e-9 * radius
            near = (joint <= radius + edge).sum()
            n_x, n_y = ((d < radius - edge).sum() + max(1, (abs(d - radius) <= edge).sum()) for d in (dx[i], dy[i]))
        total += digamma(near) + log_n - digamma(n_x) - digamma(n_y)
    return total / n


def brute_ksg(x: np.ndarray, y: np.ndarray, k: int, variant: int) -> float:
    if variant == 1:
        return brute_ksg1(x, y, k, digamma(len(x)))
    dx, dy, n = apart(x), apart(y), len(x)
    total = 0.0
    for i in range(n):
        joint = np.maximum(dx[i], dy[i])
        near = joint <= np.sort(joint)[k - 1] * (1 + 1e-9)
        n_x, n_y = ((d <= d[near].max() * (1 + 1e-9)).sum() for d in (dx[i], dy[i]))
        total += digamma(n_x) + digamma(n_y) - digamma(near.sum()) + 1 / near.sum()
    return digamma(n) - total / n


def brute_mixed(x: np.ndarray, y: np.ndarray, k: int) -> float:
    return brute_ksg1(x, y, k, math.log(len(x)))


def brute_ross(x: np.ndarray, y: np.ndarray, k: int) -> float:
    d, n = apart(x), len(x)
    total = 0.0
    for i in range(n):
        own = y == y[i]
        radius = np.sort(d[i][own])[k - 1] * (1 + 1e-9)
        total += digamma(own.sum()) + digamma((d[i] <= radius).sum()) - digamma((d[i][own] <= radius).sum())
    return digamma(n) - total / n


def samples(n: int, p: int, q: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, p + q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z[:, p] += z[:, 0]
    return z[:, :p], z[:, p:]


@pytest.mark.parametrize("block", [None, 37])
@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 3), (2, 2), (12, 9)])
def test_ksg_equals_brute_force(p: int, q: int, variant: int, block: int | None, device: torch.device) -> None:
    x, y = samples(150, p, q)
    for k in (1, 3, 10):
        found = ksg(x.to(device), y.to(device), k=k, variant=variant, block=block)
        assert float(found) == pytest.approx(brute_ksg(plain(x), plain(y), k, variant), abs=1e-9)


@pytest.mark.parametrize("block", [None, 41])
@pytest.mark.parametrize("variant", [1, 2])
def test_ksg_with_ties_equals_brute_force(variant: int, block: int | None) -> None:
    """Values on a grid: many equal distances, in x alone many equal values."""
    x, y = samples(200, 1, 2, seed=1)
    x, y = (x * 4).round() / 4, (y * 8).round() / 8
    x = x + 1e6  # a large offset: rounding must not move anyone across an edge
    y = y + 1e-3 * torch.arange(200, dtype=torch.float64)[:, None]
    for k in (1, 4):
        found = ksg(x, y, k=k, variant=variant, block=block)
        assert float(found) == pytest.approx(brute_ksg(plain(x), plain(y), k, variant), abs=1e-9)


@pytest.mark.parametrize("block", [None, 37])
def test_mixed_and_ross_equal_brute_force(block: int | None, device: torch.device) -> None:
    x, y = samples(180, 2, 1)
    x, y = x.relu(), y.relu()  # atoms at 0
    expected = brute_mixed(plain(x), plain(y), 3)
    assert float(mixed_ksg(x.to(device), y.to(device), block=block)) == pytest.approx(expected, abs=1e-9)
    x, labels = samples(180, 2, 1)[0], torch.randint(0, 4, (180,))
    expected = brute_ross(plain(x), labels.numpy(), 3)
    assert float(ross(x.to(device), labels.to(device), block=block)) == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------------------------------------------------ other packages
@pytest.fixture
def npeet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """NPEET with its noise switched off. It is not on the package index: clone gregversteeg/NPEET and install it."""
    module = pytest.importorskip("npeet.entropy_estimators", reason="NPEET is not installed (github.com/gregversteeg)")
    monkeypatch.setattr(module, "add_noise", lambda x, intens=0.0: x)
    return module


@by_name(CONTINUOUS)
def test_agrees_with_npeet(task: Task, npeet: Any) -> None:
    x, y = (torch.from_numpy(plain(z)) for z in task.sample(800, seed=1))
    # NPEET takes 1e-15 off each radius to leave out the edge, which does nothing to a radius above about 4. A power of
    # two changes no digit of the data, and brings every radius below 1.
    scale = 2.0 ** -math.ceil(math.log2(2 * float(max(x.abs().max(), y.abs().max()))))
    x, y = x * scale, y * scale
    assert float(ksg(x, y)) == pytest.approx(npeet.mi(x.numpy(), y.numpy(), base=math.e), abs=1e-6)
    assert float(entropy(x)) == pytest.approx(npeet.entropy(x.numpy(), base=math.e), abs=1e-6)


@by_name(FLAT)
def test_agrees_with_scikit_learn(task: Task) -> None:
    """Its public function adds noise; the estimator below it does not."""
    estimator = importlib.import_module("sklearn.feature_selection._mutual_info")._compute_mi_cc
    x, y = task.sample(800, seed=1)
    expected = estimator(plain(x)[:, 0], plain(y)[:, 0], 3)
    assert max(0, float(ksg(x, y))) == pytest.approx(expected, abs=1e-6)


@by_name([task for task in TASKS.values() if task.family == "class" and task.p == 1])
def test_ross_agrees_with_scikit_learn(task: Task) -> None:
    estimator = importlib.import_module("sklearn.feature_selection._mutual_info")._compute_mi_cd
    x, y = task.sample(800, seed=1)
    expected = estimator(x[:, 0].numpy(), y[:, 0].numpy(), 3)
    assert max(0, float(ross(x, y))) == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- known answers
def test_there_are_many_distributions_and_more_than_40_continuous_ones() -> None:
    assert len(CONTINUOUS) >= 40 and len(TASKS) >= 55
    assert {task.family for task in TASKS.values()} == {
        *("normal", "bent", "student", "noise", "mixture", "class", "discrete")
    }
    assert max(task.p for task in TASKS.values()) == 50


@by_name([task for task in CONTINUOUS if task.p + task.q <= 2])
def test_ksg_finds_what_is_known_in_one_dimension(task: Task) -> None:
    x, y = task.sample(4000, seed=2)
    assert float(ksg(x, y)) == pytest.approx(task.truth, abs=0.08)


@by_name([task for task in TASKS.values() if task.family == "class" and task.p <= 5])
def test_ross_finds_what_is_known(task: Task) -> None:
    x, y = task.sample(4000, seed=2)
    assert float(ross(x, y)) == pytest.approx(task.truth, abs=0.08)


def test_entropy_of_known_densities(device: torch.device) -> None:
    uniform = torch.rand(4000, 2, dtype=torch.float64, device=device)
    assert float(entropy(4 * uniform)) == pytest.approx(2 * math.log(4), abs=0.08)
    assert float(entropy(4 * uniform, unit="bits")) == pytest.approx(4, abs=0.12)
    gauss = torch.randn(4000, 1, dtype=torch.float64)
    assert float(entropy(gauss)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.05)


def test_mixed_finds_what_is_known_with_atoms() -> None:
    """A symbol and its copy; a density; two independent ReLU units, each with half of its mass at 0."""
    n = 2500
    symbol = torch.randint(0, 5, (n, 1)).double()
    assert float(mixed_ksg(symbol, symbol)) == pytest.approx(math.log(5), abs=0.02)
    x = torch.randn(n, 1, dtype=torch.float64)
    y = 0.75 * x + math.sqrt(1 - 0.75**2) * torch.randn(n, 1, dtype=torch.float64)
    assert float(mixed_ksg(x, y, k=5)) == pytest.approx(-0.5 * math.log(1 - 0.75**2), abs=0.08)
    relu = torch.randn(n, 1, dtype=torch.float64).relu()
    assert abs(float(mixed_ksg(relu, torch.randn(n, 1, dtype=torch.float64).relu()))) < 0.06


# ---------------------------------------------------------------------------------------------------------- invariance
def test_what_ksg_promises_to_ignore() -> None:
    x, y = samples(300, 2, 2)
    value = float(ksg(x, y))
    assert float(ksg(4 * x, y / 8)) == value  # the scale of each column
    assert float(ksg(x * torch.tensor([1e3, 1e-3]), y + 5)) == pytest.approx(value, abs=1e-9)
    assert float(ksg(x.flip(1), -y)) == value
    assert float(ksg(y, x)) == pytest.approx(value, abs=1e-12)
    order = torch.randperm(300)
    assert float(ksg(x[order], y[order])) == pytest.approx(value, abs=1e-12)
    # A bijection of one side leaves the truth, and the estimate up to its error.
    many = samples(4000, 1, 1)
    assert float(ksg(many[0].exp(), many[1] ** 3)) == pytest.approx(float(ksg(*many)), abs=0.08)


def test_units() -> None:
    x, y = samples(200, 1, 1)
    nats, bits = (mutual_information(x, y, unit=unit) for unit in ("nats", "bits"))
    assert float(bits) == pytest.approx(float(nats) / math.log(2))
    assert float(bits.to("nats")) == pytest.approx(float(nats))


@pytest.mark.parametrize("d", [1, 2])
def test_error_from_parts_is_the_spread(d: int) -> None:
    found = []
    for seed in range(40):
        x = torch.randn(400, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        noise = torch.randn(400, d, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
        found.append(ksg(x, x + noise, parts=5))
    spread = np.std([float(f) for f in found], ddof=1)
    stated = np.mean([float(f.error) for f in found if f.error is not None])
    assert 0.6 < stated / spread < 1.7
    assert ksg(x, x + noise).error is None


def test_memory_is_a_block(device: torch.device) -> None:
    """A block of one row at a time gives the same: nothing of size n × n is needed."""
    x, y = samples(120, 9, 9)
    assert float(ksg(x.to(device), y.to(device), block=1)) == pytest.approx(float(ksg(x, y)), abs=1e-12)


# ------------------------------------------------------------------------------------------------------------ bad input
X = torch.arange(20, dtype=torch.float64)[:, None].sin()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ksg(X, X[:-1]), "20 rows and y 19"),
        (lambda: ksg(X, X * math.nan), "NaN"),
        (lambda: ksg(X, torch.ones(20)), "y has 1 constant"),
        (lambda: ksg(X[:3], X[:3] ** 2), "3-th neighbour"),
        (lambda: ksg(X, X, k=0), "k=0"),
        (lambda: ksg(X, X, variant=3), r"variant=3 is unknown; use one of \[1, 2\]"),
        (lambda: ksg(X, X.cos(), parts=1), "at least 2 subsets"),
        (lambda: ksg(X, X.cos(), parts=5.0), r"parts=5\.0 must be a whole number"),
        (lambda: ksg(X, X.cos(), parts="5"), "parts='5' must be a whole number"),
        (lambda: ksg(X, X.cos(), block=2.5), r"block=2\.5 must be a whole number"),
        (lambda: ksg(X, X.cos(), block=-1), "block=-1 must be at least 1"),
        (lambda: ksg((X > 0).double().repeat(2, 1), torch.randn(40, 1)), "2 different values in 40 examples.*'ross'"),
        (lambda: ksg(torch.cat([X, X]), torch.cat([X, X]).cos(), k=1), "estimator='mixed'"),
        (lambda: ksg(X, torch.arange(20)), "y holds integers or classes.*'ross'"),
        (lambda: mutual_information(X > 0, X, "ksg"), "x holds integers or classes"),
        (lambda: ross(X, torch.arange(20) // 5, parts=9), "rarest class"),
        (lambda: ksg(X, X.cos(), k=2.5), "k=2.5 must be a whole number"),
        (lambda: ksg(X, [["text"]] * 20), "integers or classes"),
        (lambda: ross([["text"]] * 20, torch.arange(20) // 5), "x is a list without numbers"),
        (lambda: entropy((X > 0).double()), "exactly equal"),
        (lambda: entropy(torch.zeros(0, 2)), "at least one of each"),
        (lambda: ross(X, torch.arange(20) // 5, k=7), "rarest class"),
        (lambda: ross(X, torch.zeros(20)), "one class"),
        (lambda: mutual_information(X, X.cos(), "magic"), "'magic' is unknown"),
        (lambda: mutual_information(X, X.cos(), unit="dits"), "unit='dits'"),
    ],
)
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_warns_of_infinite_information() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(100, 2, dtype=dtype)
        for offset in (0, 1, 1e3):  # what rounding leaves of the difference grows with the offset
            with pytest.warns(UserWarning, match="true information is infinite"):
                mutual_information(x, x @ torch.randn(2, 3, dtype=dtype) + offset)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                mutual_information(x, x[:, :1] + 0.1 * torch.randn(100, 1, dtype=dtype) + offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_entropy_of_a_plane_in_space_is_no_number(dtype: torch.dtype) -> None:
    """ln|Σ| = −∞; with a little noise across the plane it is finite."""
    x = torch.randn(300, 2, dtype=dtype)
    for offset in (0, 1e3):
        plane = torch.cat([x, x @ torch.randn(2, 1, dtype=dtype) + offset], 1)
        with pytest.raises(ValueError, match="linear function of others"):
            entropy(1e-3 * plane)
        plane[:, 2] += 0.05 * torch.randn(300, dtype=dtype)
        assert math.isfinite(float(entropy(1e-3 * plane)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_column_is_constant_though_rounding_moved_it(dtype: torch.dtype) -> None:
    """As a dead unit is that a network computed in batches of different sizes."""
    eps = torch.finfo(dtype).eps
    x = torch.randn(60, 2, dtype=torch.float64)
    for value in (-3.0, 1.0, 1e3):
        still = (value * (1 + eps * torch.randint(-1, 2, (60, 1)).double())).to(dtype)
        with pytest.raises(ValueError, match="x has 1 constant columns, the first is 2") as refusal:
            ksg(torch.cat([x.to(dtype), still], 1), x.to(dtype))
        keep = str(refusal.value).split("x[:, ")[1].removesuffix("]")
        x_ = torch.cat([x.to(dtype), still], 1).double()
        assert eval(keep, {"x": x_}).tolist() == [True, True, False]
        moving = (value * (1 + 100 * eps * torch.randn(60, 1).double())).to(dtype)
        assert math.isfinite(float(mixed_ksg(torch.cat([x.to(dtype), moving], 1), x.to(dtype))))


@pytest.mark.parametrize("again", [0.02, 0.2, 1.0])
def test_examples_that_are_repeated_tell_nothing_new(again: float) -> None:
    """A repeated sample has the information of the sample: what would count copies as neighbours is refused or said."""
    x, y = samples(400, 1, 1)
    labels, extra = (y[:, 0] > 0).long(), slice(0, int(400 * again))
    twice = [torch.cat([z, z[extra]]) for z in (x, y, labels)]
    for estimate, sides in ((ksg, 2), (functools.partial(ksg, variant=2), 2), (entropy, 1)):
        message = f"{2 * len(x[extra])} of {len(twice[0])} examples are exactly equal to another.*Drop duplicates"
        if again > 0.1:
            with pytest.raises(ValueError, match=message):
                estimate(*twice[:sides])
        else:
            with pytest.warns(UserWarning, match=message):
                assert float(estimate(*twice[:sides])) == pytest.approx(float(estimate(*(x, y)[:sides])), abs=0.05)
    for estimate, other in ((mixed_ksg, twice[1]), (ross, twice[2])):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            estimate(twice[0], other)
        assert ["drop duplicates" in str(warning.message) for warning in said] == [True] * (again == 1)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 12),
    k=st.integers(-1, 14),
    bad=st.sampled_from([None, math.nan, math.inf]),
    constant=st.booleans(),
    short=st.booleans(),
)
def test_any_input_gives_a_number_or_a_reason(n: int, k: int, bad: float | None, constant: bool, short: bool) -> None:
    x = torch.randn(n, 2, dtype=torch.float64)
    y = torch.zeros(n, 1, dtype=torch.float64) if constant else torch.randn(n, 1, dtype=torch.float64)
    if bad is not None and n:
        x[0, 0] = bad
    y = y[:-1] if short else y
    fine = n > k >= 1 and bad is None and not constant and not short
    try:
        assert math.isfinite(float(ksg(x, y, k=k)))
        assert fine
    except ValueError as error:
        assert not fine and str(error)


# --------------------------------------------------------------------------------------------------- what truth ignores
@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x)
    return x[:, x.std(0) > 0], torch.from_numpy(y)


@settings(max_examples=25)
@given(
    exponents=st.lists(st.floats(-6, 6), min_size=4, max_size=4),
    seed=st.integers(0, 99),
    name=st.sampled_from(["ksg", "ksg2", "mixed", "ross"]),
    grid=st.sampled_from([None, 0.5]),
)
def test_the_scale_of_a_column_and_the_order_of_examples_change_nothing(
    exponents: list[float], seed: int, name: str, grid: float | None
) -> None:
    """Ties included: values on a grid lie at equal distances, whatever the unit."""
    x, y = samples(80, 2, 2, seed)
    if grid is not None and name in ("mixed", "ross"):
        x, y = (x / grid).round() * grid, (y / grid).round() * grid
    target = (y[:, 0] > 0).long() if name == "ross" else y
    factors = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    other = target if name == "ross" else target * factors[2:]
    value = float(mutual_information(x, target, name))
    assert float(mutual_information((x * factors[:2])[order], other[order], name)) == pytest.approx(value, abs=1e-9)


def test_an_irrelevant_column_in_another_unit_costs_what_it_costs_in_its_own() -> None:
    x, y = samples(1000, 1, 1)
    value, noise = float(ksg(x, y)), torch.randn(1000, 1, dtype=torch.float64)
    assert float(ksg(1000 * x, y)) == pytest.approx(value, abs=1e-9) and value > 0.2
    labels = (x[:, 0] > 0).long()
    both = torch.cat([x, noise], 1), torch.cat([x, 1000 * noise], 1)
    assert float(ross(both[1], labels)) == pytest.approx(float(ross(both[0], labels)), abs=1e-9)
    assert float(ross(both[1], labels)) > 0.5
    assert float(entropy(both[1])) == pytest.approx(float(entropy(both[0])) + math.log(1000), abs=1e-9)


@pytest.mark.parametrize("estimator", ["ross", "mixed"])
def test_ties_are_not_information(estimator: str) -> None:
    """Pixels are whole numbers: neighbours at equal distances are the rule. Labels have ln 10 nats; of shuffled ones
    the images say nothing."""
    x, y = digits()
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    target = (lambda z: z) if estimator == "ross" else (lambda z: z[:, None].double())
    for columns in (slice(None), slice(20, 22)):
        assert abs(float(mutual_information(x[:, columns], target(shuffled), estimator))) < 0.08
    found = float(mutual_information(x, target(y), estimator))
    assert 0.1 < found < math.log(10) and (estimator == "mixed" or found > 1.5)


def test_independent_grids_have_no_information() -> None:
    x, y = samples(1200, 1, 1)
    other = torch.randn(1200, 1, dtype=torch.float64)
    for step in (0.1, 0.3, 1.0):
        a, b, c = ((z / step).round() * step for z in (x, y, other))
        assert abs(float(mixed_ksg(a, c))) < 0.06, step
        assert float(mixed_ksg(a, b)) == pytest.approx(0.5 * math.log(2), abs=0.1)


@pytest.mark.parametrize("estimate", [ksg, mixed_ksg])
@pytest.mark.parametrize("block", [None, 300])
def test_ties_of_a_few_are_no_matter_of_the_others(estimate: Callable[..., Any], block: int | None) -> None:
    """Digits that are left out of all numbers; an example with two neighbours equally far on either side."""
    moved = []
    for seed in range(6):
        x, y = samples(300, 1, 1, seed)
        exact = float(estimate(x, y, block=block))
        moved.append(float(estimate(x.round(decimals=3), y.round(decimals=3), block=block)) - exact)
    assert abs(np.mean(moved)) < 0.01
    y = x + 0.02 * y
    x[:5] = y[:5] = torch.arange(6.0, 11.0)[:, None]
    tied = float(estimate(x, y, block=block))
    x[0] += 0.01
    assert tied == pytest.approx(float(estimate(x, y, block=block)), abs=0.03)  # five terms of 300, by about 1 each


def test_the_type_of_the_labels_chooses_the_estimator() -> None:
    x, y = digits()
    pooled = x[:800].unflatten(1, (-1, 1)).flatten(1)[:, 10:40:5]
    labels = y[:800]
    expected = float(ross(pooled, labels))
    assert expected > 0.9
    for given_labels in (labels, labels.int(), labels.numpy(), [f"class {label}" for label in labels.tolist()]):
        found = mutual_information(pooled, given_labels)
        assert found.estimator == "ross" and float(found) == pytest.approx(expected, abs=1e-12)
    assert float(mutual_information(labels, pooled)) == pytest.approx(expected, abs=1e-12)
    assert mutual_information(labels, labels > 4).estimator == "grassberger"
    assert mutual_information(pooled, pooled[:, :1] + torch.randn(800, 1)).estimator == "ksg1"
    with pytest.raises(ValueError, match="10 different values in 800 examples"):
        mutual_information(pooled, labels.double())


def test_intervals_from_subsamples() -> None:
    """A column that is constant in a subset is none of the whole's."""
    x, y = digits()
    found = ross(x, y, parts=5)
    low, high = found.interval()
    assert low < float(found) < high and float(found) == float(ross(x, y))
    with pytest.raises(ValueError, match="parts=5"):
        ross(x, y).interval()
    assert found.df == 4 and high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * float(found.error))
    a, b = samples(14, 1, 1)
    assert ksg(a, b, k=1, parts=6).df == 5  # 14 in chunks of three are five of them


def test_many_dimensions_and_graphs() -> None:
    x, y = samples(200, 16, 16)
    with pytest.warns(UserWarning, match="32 features together.*collapse"):
        ksg(x, y)
    with pytest.warns(UserWarning, match="32 features together.*too high"):
        assert float(entropy(torch.cat([x, y], 1))) > 32 / 2 * math.log(2 * math.pi * math.e)  # a correlated normal's
    assert float(entropy(x.clone().requires_grad_())) == float(entropy(x))
    assert ksg(x[:, :1].clone().requires_grad_(), y[:, :1]).value.requires_grad is False
    assert float(ksg(x[:, :1], y[:, :1], k=np.int64(3))) == float(ksg(x[:, :1], y[:, :1]))
