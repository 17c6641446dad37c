"""Experiments on estimators of mutual information: distributions whose information is known, and what is found."""

from __future__ import annotations

import time
from typing import Any

from companion.experiments.distributions import Task, correlated, tasks
from companion.experiments.plan import Outcome, Workplace
from companion.experiments.quantities import rounded
from companion.experiments.records import Run
from companion.information import mutual_information
from companion.information.estimates import TooFewExamplesError


def known_information(run: Run, place: Workplace) -> Outcome:
    """One estimator on distributions with known information: every answer, its cost, and how far off it is.

    The settings name the tasks (`tasks`), or span a grid (`dimensions` × `correlations`). Each of `sizes` is a number
    of examples, how many samples of that size, and the most features of x and y together that this tier can afford.
    Too few examples for the estimator is an answer, too, without a value; any other error ends the run.
    """
    s = run.settings
    answers: list[dict[str, Any]] = []
    for task in _tasks(s):
        for n, samples, widest in s["sizes"]:
            if task.p + task.q > widest:
                continue
            for sample in range(samples):
                seed = run.seed + sample
                value: float | None
                x, y = (z.to(place.device) for z in task.sample(n, seed))
                clock = time.process_time()
                try:
                    value = float(mutual_information(x, y, s["estimator"], **s["options"]))
                except TooFewExamplesError:
                    value = None
                seconds = time.process_time() - clock
                answers.append({"task": task.name, "n": n, "sample": seed, "value": value, "seconds": seconds})
    known = {task.name: {"family": task.family, "truth": task.truth, "p": task.p, "q": task.q} for task in _tasks(s)}
    errors = [abs(a["value"] - known[a["task"]]["truth"]) for a in answers if a["value"] is not None]
    result = {
        "answers": len(answers),
        "refused": len(answers) - len(errors),
        "mean_absolute_error": sum(errors) / len(errors) if errors else None,
    }
    return Outcome(rounded(result), [], rounded({"tasks": known, "answers": answers}))


def _tasks(s: Any) -> list[Task]:
    if "tasks" in s:
        known = tasks()
        return [known[name] for name in s["tasks"]]
    return [correlated(d, rho) for d in s["dimensions"] for rho in s["correlations"]]
