"""Distributions of which y, or both sides, are symbols, and whose information is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from companion.experiments.distributions import Task, _mixture_entropy
from companion.information import mutual_information_of


def classes_known() -> list[Task]:
    """Y a class, X normal around the class's centre: I = h(X) − h(X|Y)."""

    def task(classes: int, distance: float, p: int) -> Task:
        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            y = torch.randint(classes, (n, 1), generator=generator)
            x = torch.randn(n, p, generator=generator, dtype=torch.float64)
            x[:, :1] += distance * y
            return x, y

        centres = [distance * c for c in range(classes)]
        truth = _mixture_entropy(centres, 1.0) - 0.5 * math.log(2 * math.pi * math.e)
        return Task(f"{classes} classes, {distance:g} apart, {p}-dim.", "class", truth, p, 1, draw)

    def uniform(classes: int) -> Task:
        """X uniform on [y, y + 2] (Gao et al. 2017): I = ln m − (m−1)/m · ln 2."""

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            y = torch.randint(classes, (n, 1), generator=generator)
            return y + 2 * torch.rand(n, 1, generator=generator, dtype=torch.float64), y

        truth = math.log(classes) - (classes - 1) / classes * math.log(2)
        return Task(f"uniform on [y, y + 2], {classes} classes", "class", truth, 1, 1, draw)

    return [task(2, 1, 1), task(2, 3, 1), task(5, 2, 1), task(3, 2, 5), task(3, 2, 25), uniform(5), uniform(20)]


def discrete_known() -> list[Task]:
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


SYMBOLS = {task.name: task for task in (*classes_known(), *discrete_known())}
