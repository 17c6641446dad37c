"""Write the page *Results* from the records: every claim of both papers, how it was tested, and what came out.

python scripts/results.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from repository import repository

from companion.claims import CLAIMS, VERDICTS, Claim, Contrast, Judgement, Test
from companion.experiments import EXPERIMENTS, replay
from companion.experiments.statistics import Mean
from companion.hypotheses import AGAIN, HYPOTHESES, Hypothesis, judge

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "results.md"
DIGITS = {"points": 2, "CKA in stages": 4, "CKA of all blocks": 4, "radians": 3, "relative step": 3}

HEAD = """\
# The table that is true

What do the two papers claim, and what do we find? One row for each claim. Every number and every verdict on this page
is computed from the [records](running.md) by `companion.claims`; the tests write the page anew and compare.

Of {total} claims: {tally}. "Holds" means here, in our hands, at this size: {sizes}. Nothing on this page was trained as
long as in the papers. What full training needs is registered and waits for a GPU.
"""

RULE = """\
## How a verdict is made

A test compares runs with the same seed, with and without a penalty: the same initial weights, the same batches, the
same images. Shown is the mean difference over seeds with its 95 % interval. A test is *decided* if its p-value stays
below .05 after Holm's correction for all tests of the same claim that ran. A claim

- **holds** if all decided tests speak for it, and at least one does;
- **does not hold** if all decided tests speak against it (a claim of theory: if a counterexample exists);
- is **mixed** if some speak for it and some against it;
- is **undecided** if no test is decided. That is no evidence of absence: *would be found* says how large a true effect
  must be to be found about four times out of five by a single test, before the correction;
- was **not run** if no test has two seeds.

*1 of 4 tests* says how many of those that ran are decided. A claim that holds by one test of several holds there, and
nothing is known of the others.
"""

EXPECTED = """\
## What we had expected

Seven hypotheses were [written down](hypotheses.md) before the first run of the main experiment, `dense_penalties`. They
are judged by `companion.hypotheses`, as that page says; [the last chapter](../notebooks/13_identity_meets_flow.ipynb)
goes through them. *Supported*: intervals show every number in the rule of refutation. *Not refuted* is not *true*.
*After Holm*: intervals count only where they survive the correction for all findings. (H6 compares two penalties that
were picked by their means; such an interval is too optimistic.)
"""
SECOND_ROUND = """\
Then [more were written down](hypotheses_again.md), and the same was trained on five new seeds, `dense_penalties_again`:
"""


# A verdict on one claim, and on several.
COUNTED = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "mixed": ("is mixed", "are mixed"),
    "undecided": ("is undecided", "are undecided"),
    "not run": ("was not run", "were not run"),
}


def counted(verdicts: list[str]) -> str:
    """How many claims have which verdict.

    >>> counted(["holds", "not run", "holds"])
    '2 hold, 1 was not run'
    """
    numbers = {word: verdicts.count(word) for word in VERDICTS}
    return ", ".join(f"{number} {COUNTED[word][number > 1]}" for word, number in numbers.items() if number)


def number(difference: Mean | None, unit: str) -> str:
    return "not run" if difference is None else difference.signed(DIGITS.get(unit, 2))


def smallest(difference: Mean | None, unit: str) -> str:
    if difference is None or math.isinf(difference.half):
        return "–"
    return f"{difference.detectable():.{DIGITS.get(unit, 2)}f}"


def range_of(judged: Judgement) -> str:
    """The detectable effects of a claim's tests, from smallest to largest, of those that share the first one's unit."""
    unit = judged.tests[0].test.unit if judged.tests else ""
    reached = [
        found.detectable()
        for test, found, _ in judged.tests
        if found is not None and found.count > 1 and test.unit == unit
    ]
    if not reached:
        return "–"
    low, high = (f"{value:.{DIGITS.get(unit, 2)}f}" for value in (min(reached), max(reached)))
    return f"{low} {unit}" if low == high else f"{low} … {high} {unit}"


def decided(judged: Judgement) -> str:
    """How many of the tests that ran are decided."""
    ran = sum(tested.ran for tested in judged.tests)
    return f"{len(judged.decided)} of {ran} test{'s' * (ran != 1)}" if ran else ""


def table(header: list[str], widths: list[int], rows: list[list[str]]) -> str:
    lines = ["```{list-table}", ":header-rows: 1", ":widths: " + " ".join(map(str, widths)), ""]
    for row in [header, *rows]:
        lines += [f"{'* -' if at == 0 else '  -'} {cell}" for at, cell in enumerate(row)]
    return "\n".join([*lines, "```"])


def anchor(place: int) -> str:
    return f"claim-{place}"


def link(test: Test, url: str, branch: str) -> str:
    tier = test.first.tier if isinstance(test, Contrast) else test.tier
    return f"[{test.experiment}]({url}/tree/{branch}/book/results/{test.experiment}/{tier})"


def section(place: int, claim: Claim, judged: Judgement, url: str, branch: str) -> str:
    word = f"**{judged.verdict.capitalize()}**"
    parts = [
        f"({anchor(place)})=\n### {place}. {claim.text}",
        f"{claim.paper}, {claim.source}. Published: {claim.published}. "
        f"More in [its chapter](../notebooks/{claim.chapter}.ipynb)."
        if claim.proof is None
        else f"{claim.paper}, {claim.source}. More in [its chapter](../notebooks/{claim.chapter}.ipynb).",
    ]
    if claim.proof is not None:
        parts.append(f"{word}: {judged.text}.")
    elif claim.tests:
        rows = [
            [
                test.title,
                str(found.count) if found else "0",
                f"{number(found, test.unit)}" + (f" {test.unit}" if found else ""),
                f"{p:.2g}" if found and found.count > 1 else "–",
                smallest(found, test.unit),
                link(test, url, branch) if found else test.experiment,
            ]
            for test, found, p in judged.tests
        ]
        wanted = "above" if claim.direction > 0 else "below"
        count = f", {of_all} decided" if (of_all := decided(judged)) else ""
        parts.append(f"{word}{count}. For the claim speaks a difference {wanted} 0.")
        parts.append(
            table(
                ["test", "seeds", "difference", "p (Holm)", "would be found", "records"], [30, 8, 24, 10, 12, 16], rows
            )
        )
    else:
        parts.append(f"{word}.")
    if claim.missing:
        parts.append(claim.missing)
    return "\n\n".join(parts)


def expected(hypotheses: Mapping[str, Hypothesis], experiment: str) -> str:
    """Every hypothesis on an experiment with its verdict."""
    header = ["", "we expected", "verdict", "after Holm", "findings (mean ± 95 % interval)"]
    rows = [
        [name, hypotheses[name].text, f"**{found.verdict}**", found.after_holm, found.numbers()]
        for name, found in judge(replay(experiment), hypotheses).items()
    ]
    return table(header, [6, 30, 14, 14, 36], rows)


def page() -> str:
    """The page's text."""
    url, branch = repository(ROOT)
    used = {test.experiment for claim in CLAIMS for test in claim.tests}
    runs = [record for name in sorted(used) for record in replay(name)]
    machines = sorted({record.provenance["accelerator"] or record.provenance["processor"] for record in runs})
    models = sorted({record.run.settings["model"] for record in runs})
    epochs = sorted({record.run.settings["epochs"] for record in runs})
    span = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
    sizes = (
        f"tier `laptop`, {len(runs)} runs of {', '.join(models)}, {span} epochs a training, on {', '.join(machines)}"
    )
    judged = [claim.judged() for claim in CLAIMS]
    claims = list(enumerate(zip(CLAIMS, judged, strict=True), 1))
    rows = [
        [
            f"[{place}. {claim.text}](#{anchor(place)})",
            claim.paper,
            ", ".join(filter(None, [f"**{found.verdict}**", decided(found)])),
            range_of(found),
        ]
        for place, (claim, found) in claims
    ]
    parts = [
        HEAD.format(sizes=sizes, total=len(CLAIMS), tally=counted([found.verdict for found in judged])),
        table(["claim", "paper", "here", "would be found"], [52, 12, 16, 20], rows),
        RULE,
    ]
    for paper, title in (("CKA-SR", "Identity: CKA-SR"), ("FFR", "Flow: FFR")):
        parts.append(f"## {title}")
        parts += [section(place, claim, found, url, branch) for place, (claim, found) in claims if claim.paper == paper]
    parts += [EXPECTED, expected(HYPOTHESES, "dense_penalties"), SECOND_ROUND, expected(AGAIN, "dense_penalties_again")]
    parts.append(
        "## What is not here\n\n"
        "FFR's own tables, its constants and its equations are not available to us, nor are the tables of CKA-SR's\n"
        "main text. Registered and without a record:\n\n"
        + "\n".join(
            f"- `{name}`, tier `{tier}`: {len(made.missing)} of {len(made) + len(made.missing)} runs"
            for name, experiment in EXPERIMENTS.items()
            for tier in experiment.tiers
            if tier != "smoke" and (made := replay(name, tier)).missing
        )
        + "\n\n`python -m companion.experiments run NAME --tier TIER` makes them, one after the other, and may be\n"
        "killed at any time."
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
