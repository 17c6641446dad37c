r"""Distributions whose mutual information is known, to try estimators on.

Four ways to know it: Gaussian variables have a closed form; a bijection of x alone or of y alone changes nothing, so
any of them can be bent; the multivariate Student t adds a term that depends on its degrees of freedom only; and what
is left is an entropy in one dimension or a sum, done to 1e-9 by quadrature. The families follow Czyż, Grabowski, Vogt,
Beerenwinkel & Marx (2023, arXiv 2306.11078) and Gao et al. (2017).

>>> task = tasks()["normal 1×1, ρ = 0.75"]
>>> x, y = task.sample(1000, seed=0)
>>> tuple(x.shape), round(task.truth, 3)
((1000, 1), 0.413)

Chapter *Measuring information* tries them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from scipy.integrate import quad
from scipy.special import digamma, gammaln
from torch import Tensor

from companion.experiments.plan import Outcome, Workplace
from companion.experiments.quantities import rounded
from companion.experiments.records import Run
from companion.information import mutual_information
from companion.information.discrete import mutual_information_of
from companion.information.estimates import TooFewExamplesError
from companion.information.gaussian import gaussian_mutual_information

__all__ = ["Task", "correlated", "tasks"]

Sampler = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A joint distribution with known mutual information.

    Attributes:
        family: `"normal"`, `"bent"`, `"student"`, `"noise"`, `"mixture"`, `"class"` (y discrete) or `"discrete"`.
        truth: I(X;Y) in nats.
        p, q: features of x and y.
    """

    name: str
    family: str
    truth: float
    p: int
    q: int
    draw: Sampler

    def sample(self, n: int, seed: int) -> tuple[Num[Tensor, "n p"], Num[Tensor, "n q"]]:
        """n independent pairs, float64 (labels and symbols: int64), the same for the same seed."""
        x, y = self.draw(n, torch.Generator().manual_seed(seed))
        return x.view(n, -1), y.view(n, -1)


def tasks() -> dict[str, Task]:
    """All distributions by name, from easy to hard within each family.

    >>> sorted({task.family for task in tasks().values()})
    ['bent', 'class', 'discrete', 'mixture', 'noise', 'normal', 'student']
    """
    found = [*_normal(), *_bent(), *_student(), *_noise(), *_mixtures(), *_classes(), *_discrete()]
    return {task.name: task for task in found}


# ------------------------------------------------------------------------------------------------------------- Gaussian
def _covariance(p: int, q: int, pairs: dict[tuple[int, int], float]) -> Float[Tensor, "d d"]:
    sigma = torch.eye(p + q, dtype=torch.float64)
    for (i, j), rho in pairs.items():
        sigma[i, p + j] = sigma[p + j, i] = rho
    return sigma


def _dense(p: int, q: int, rho: float) -> Float[Tensor, "d d"]:
    """Every two variables have correlation ρ."""
    return torch.full((p + q, p + q), rho, dtype=torch.float64) + (1 - rho) * torch.eye(p + q, dtype=torch.float64)


def _gauss(sigma: Float[Tensor, "d d"], p: int) -> Sampler:
    factor = torch.linalg.cholesky(sigma)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, len(sigma), generator=generator, dtype=torch.float64) @ factor.T
        return z[:, :p], z[:, p:]

    return draw


def _gaussian_task(name: str, sigma: Float[Tensor, "d d"], p: int) -> Task:
    truth = float(gaussian_mutual_information(sigma, p))
    return Task(name, "normal", truth, p, len(sigma) - p, _gauss(sigma, p))


def correlated(d: int, rho: float) -> Task:
    """d ≥ 1 independent pairs of standard normal variables, each of correlation ρ in (−1, 1): I = −(d/2) ln(1 − ρ²).

    >>> x, y = (task := correlated(5, 0.8)).sample(100, seed=0)
    >>> x.shape, f"{task.truth:.2f} nats"
    (torch.Size([100, 5]), '2.55 nats')
    """
    if d < 1 or not -1 < rho < 1:
        raise ValueError(f"d={d} must be at least 1 and rho={rho} lie between −1 and 1")
    pairs = {(i, i): rho for i in range(d)}
    return _gaussian_task(f"normal {d}×{d}, {d} pairs of ρ = {rho:g}", _covariance(d, d, pairs), d)


def _normal() -> list[Task]:
    one = [
        _gaussian_task(f"normal 1×1, ρ = {rho:g}", _covariance(1, 1, {(0, 0): rho}), 1)
        for rho in (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)
    ]
    two = {(0, 0): 0.8, (1, 1): 0.8}
    sparse = [
        _gaussian_task(f"normal {d}×{d}, 2 pairs of ρ = 0.8", _covariance(d, d, two), d) for d in (2, 3, 5, 10, 25, 50)
    ]
    dense = [_gaussian_task(f"normal {d}×{d}, all ρ = 0.5", _dense(d, d, 0.5), d) for d in (2, 5, 25, 50)]
    each = [correlated(d, 0.5) for d in (2, 5, 10)]
    uneven = [_gaussian_task("normal 1×5, all ρ = 0.5", _dense(1, 5, 0.5), 1)]
    return [*one, *sparse, *dense, *each, *uneven]


# ----------------------------------------------------------------------------------------- bijections of one side each
BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.special.ndtr,
    "asinh": torch.asinh,
    "half-cube": lambda z: z.sign() * z.abs() ** 1.5,
    "exponential": torch.exp,
    "wiggly": lambda z: z + 0.4 * z.sin() + 0.2 * (1.7 * z + 1).sin() + 0.03 * (3.3 * z - 2.5).sin(),
    "bimodal": lambda z: z + 2 * torch.tanh(4 * z),  # two bumps with a gap between
}


def _spiral(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Turns the first two coordinates by an angle that grows with their radius."""
    a, b = z[:, :1], z[:, 1:2]
    angle = (a.square() + b.square()).sqrt()
    turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    return torch.cat([*turned, z[:, 2:]], 1)


def _bend(task: Task, name: str, f: Callable[[Tensor], Tensor]) -> Task:
    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = task.draw(n, generator)
        return f(x), f(y)

    return Task(f"{name} of {task.name}", "bent", task.truth, task.p, task.q, draw)


def _bent() -> list[Task]:
    normal = {task.name: task for task in _normal()}
    plain, three = normal["normal 1×1, ρ = 0.75"], normal["normal 3×3, 2 pairs of ρ = 0.8"]
    five, wide = normal["normal 5×5, 2 pairs of ρ = 0.8"], normal["normal 25×25, 2 pairs of ρ = 0.8"]
    return [
        *(_bend(plain, name, f) for name, f in BENT.items()),
        _bend(normal["normal 1×1, ρ = 0.9"], "uniform", BENT["uniform"]),
        *(_bend(three, name, BENT[name]) for name in ("uniform", "half-cube")),
        *(_bend(task, "spiral", _spiral) for task in (three, five)),
        _bend(wide, "half-cube", BENT["half-cube"]),
        _bend(wide, "spiral", _spiral),
    ]


# ------------------------------------------------------------------------------------------------------------ Student t
def _student_entropy(d: int, nu: float) -> float:
    """Differential entropy of the standard d-variate t, without ½ ln|Ω|."""
    half = (nu + d) / 2
    return float(
        gammaln(nu / 2) - gammaln(half) + d / 2 * math.log(nu * math.pi) + half * (digamma(half) - digamma(nu / 2))
    )


def _student_task(name: str, sigma: Float[Tensor, "d d"], p: int, nu: float) -> Task:
    q, gauss = len(sigma) - p, _gauss(sigma, p)
    extra = _student_entropy(p, nu) + _student_entropy(q, nu) - _student_entropy(p + q, nu)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = gauss(n, generator)
        # χ² with whole degrees of freedom is a sum of squares, so the generator's seed rules it too.
        chi = torch.randn(n, int(nu), generator=generator, dtype=torch.float64).square().sum(1, keepdim=True)
        return x / (chi / nu).sqrt(), y / (chi / nu).sqrt()

    truth = float(gaussian_mutual_information(sigma, p)) + extra
    return Task(f"student {p}×{q}, {nu:g} degrees, {name}", "student", truth, p, q, draw)


def _student() -> list[Task]:
    one, two = {(0, 0): 0.75}, {(0, 0): 0.8, (1, 1): 0.8}
    return [
        _student_task("independent scale matrix", torch.eye(2, dtype=torch.float64), 1, 1),
        *(_student_task("ρ = 0.75", _covariance(1, 1, one), 1, nu) for nu in (2, 5)),
        *(_student_task("2 pairs of ρ = 0.8", _covariance(d, d, two), d, d) for d in (2, 3)),
        _student_task("all ρ = 0.5", _dense(5, 5, 0.5), 5, 3),
        _student_task("all ρ = 0.5", _dense(25, 25, 0.5), 25, 5),
    ]


# -------------------------------------------------------------------------------------------------------- added noise
def _noise() -> list[Task]:
    """Y = X + N with X uniform on [0, 1] and N uniform on [−ε, ε]: I = h(Y) − ln 2ε, and Y is a trapezoid."""

    def task(width: float) -> Task:
        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            x, u = torch.rand(2, n, 1, generator=generator, dtype=torch.float64).unbind()
            return x, x + width * (2 * u - 1)

        truth = width - math.log(2 * width) if width <= 0.5 else 1 / (4 * width)
        return Task(f"uniform + uniform noise, ε = {width:g}", "noise", truth, 1, 1, draw)

    return [task(width) for width in (0.1, 0.5, 0.75, 1.5)]


# ------------------------------------------------------------------------------------------------------------ mixtures
def _mixture_entropy(centres: list[float], deviation: float) -> float:
    """Differential entropy of equally likely normals, by quadrature."""

    def minus_p_log_p(t: float) -> float:
        p = sum(math.exp(-((t - c) ** 2) / (2 * deviation**2)) for c in centres)
        p /= len(centres) * deviation * math.sqrt(2 * math.pi)
        return -p * math.log(p) if p > 0 else 0.0

    low, high = min(centres) - 12 * deviation, max(centres) + 12 * deviation
    return quad(minus_p_log_p, low, high, points=sorted(set(centres)), limit=400, epsabs=1e-11, epsrel=1e-11)[0]


def _choice(n: int, m: int, generator: torch.Generator) -> Tensor:
    return torch.randint(m, (n, 1), generator=generator)


def _mixtures() -> list[Task]:
    """X one of several bumps, Y = X + noise: I = h(Y) − h(noise), and X + noise is again a mixture of bumps."""

    def task(centres: list[float], own: float, noise: float) -> Task:
        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            c = torch.tensor(centres, dtype=torch.float64)[_choice(n, len(centres), generator)]
            e = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
            x = c + own * e[0]
            return x, x + noise * e[1]

        truth = _mixture_entropy(centres, math.hypot(own, noise)) - 0.5 * math.log(2 * math.pi * math.e * noise**2)
        name = f"{len(centres)} bumps of {own:g} + noise of {noise:g}"
        return Task(name, "mixture", truth, 1, 1, draw)

    few, more = [task([-2, 2], 0.5, noise) for noise in (0.5, 2.0)], task([-4, 0, 4], 0.3, 0.3)
    return [*few, more, task([-3, -1, 1, 3], 0.2, 1.0)]


# ------------------------------------------------------------------------------------------------ discrete on one side
def _classes() -> list[Task]:
    """Y a class, X normal around the class's centre: I = h(X) − h(X|Y)."""

    def task(classes: int, distance: float, p: int) -> Task:
        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            y = _choice(n, classes, generator)
            x = torch.randn(n, p, generator=generator, dtype=torch.float64)
            x[:, :1] += distance * y
            return x, y

        centres = [distance * c for c in range(classes)]
        truth = _mixture_entropy(centres, 1.0) - 0.5 * math.log(2 * math.pi * math.e)
        return Task(f"{classes} classes, {distance:g} apart, {p}-dim.", "class", truth, p, 1, draw)

    def uniform(classes: int) -> Task:
        """X uniform on [y, y + 2] (Gao et al. 2017): I = ln m − (m−1)/m · ln 2."""

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            y = _choice(n, classes, generator)
            return y + 2 * torch.rand(n, 1, generator=generator, dtype=torch.float64), y

        truth = math.log(classes) - (classes - 1) / classes * math.log(2)
        return Task(f"uniform on [y, y + 2], {classes} classes", "class", truth, 1, 1, draw)

    return [task(2, 1, 1), task(2, 3, 1), task(5, 2, 1), task(3, 2, 5), task(3, 2, 25), uniform(5), uniform(20)]


# ------------------------------------------------------------------------------------------------------------ discrete
def _discrete() -> list[Task]:
    def task(name: str, table: Tensor) -> Task:
        p = table.double() / table.double().sum()

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            cell = torch.multinomial(p.flatten(), n, replacement=True, generator=generator)
            return cell // p.shape[1], cell % p.shape[1]

        return Task(name, "discrete", float(mutual_information_of(p)), 1, 1, draw)

    def channel(m: int, error: float) -> Tensor:
        """A symbol of m arrives as itself, or with probability `error` as any of the others."""
        return torch.full((m, m), error / (m - 1)) + (1 - error - error / (m - 1)) * torch.eye(m, dtype=torch.float64)

    ranks = torch.arange(1, 31).double()
    return [
        task("binary channel, error 0.1", channel(2, 0.1)),
        task("channel of 10 symbols, error 0.5", channel(10, 0.5)),
        task("channel of 50 symbols, error 0.5", channel(50, 0.5)),
        task("independent, 20 × 20 symbols", torch.ones(20, 20)),
        task("rare symbols, 30 × 30", 1 / (ranks[:, None] * ranks) + torch.diag(1 / ranks)),
    ]


# ----------------------------------------------------------------------------------------------------- estimators tried
def known_information(run: Run, place: Workplace) -> Outcome:
    """One estimator on distributions with known information: every answer, its cost, and how far off it is.

    The settings name the distributions (`tasks`), or span a grid (`dimensions` × `correlations`). Each of `sizes` is a
    number of examples, how many samples of that size, and the most features of x and y together that this tier can
    afford. Too few examples for the estimator is an answer, too, without a value; any other error ends the run.
    """
    s = run.settings
    grid = itertools.product(s.get("dimensions", ()), s.get("correlations", ()))
    chosen = [tasks()[name] for name in s["tasks"]] if "tasks" in s else [correlated(d, rho) for d, rho in grid]
    answers: list[dict[str, Any]] = []
    for known, (n, samples, widest) in itertools.product(chosen, s["sizes"]):
        for seed in range(run.seed, run.seed + samples) if known.p + known.q <= widest else ():
            x, y = (z.to(place.device) for z in known.sample(n, seed))
            clock = time.process_time()
            value: float | None = None
            with contextlib.suppress(TooFewExamplesError):
                value = float(mutual_information(x, y, s["estimator"], **s["options"]))
            seconds = time.process_time() - clock
            answers.append({"task": known.name, "n": n, "sample": seed, "value": value, "seconds": seconds})
    facts = {d.name: {"family": d.family, "truth": d.truth, "p": d.p, "q": d.q} for d in chosen}
    errors = [abs(a["value"] - facts[a["task"]]["truth"]) for a in answers if a["value"] is not None]
    error = sum(errors) / len(errors) if errors else None
    result = {"answers": len(answers), "refused": len(answers) - len(errors), "mean_absolute_error": error}
    return Outcome(rounded(result), [], rounded({"tasks": facts, "answers": answers}))
