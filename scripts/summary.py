"""Write the page *In brief* from the records: a report of what was reproduced, for those who read nothing else.

python scripts/summary.py
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from results import (
    CLAIMS,
    ROOT,
    anchor,
    answer,
    deciding,
    effect_of,
    judgements,
    known,
    late,
    listed,
    manipulated,
    number,
    power,
    runs,
    scale,
    table,
    titled,
    verdicts,
)

from companion._files import write_aside
from companion.experiments import EXPERIMENTS, quantities, replay
from companion.experiments.claims import ACTING, ONCE_MORE, STRONGER, Judgement, effect
from companion.experiments.records import Record

PAGE = ROOT / "book" / "summary.md"

TEXT = """\
# In brief

A report of what we tried to reproduce and what came out, for those who read nothing else. Its numbers are computed
from the [records](running.md); the tests write the page anew and compare.

## Scope

Two papers make a network sparse through its features. *CKA-SR* {{cite:p}}`ni2023identity` adds the similarity of
layers to the loss, so that each layer gets an identity of its own. *FFR* {{cite:p}}`wu2021flow,wu2023flow` penalises
the length and the curvature of the path that an image's features draw from layer to layer. We had the appendix and the
released code of CKA-SR, and of FFR the abstracts; what we train as FFR is our reading of them. We tested what the
papers say, and asked what neither does: do the two oppose each other?

## Result

{answer}
```{{figure}} _static/claims.png
:alt: The forest plot of page “The claims, one by one”, described there.
:width: 480px

Of {total} claims {tally}.
Every test, in units of δ, the smallest effect that we count as one; to the right lies what the claim says. Triangles
are decided, squares are too small to count, open circles are undecided.
```

## The claims

± is half of a 95 % interval, n the number of seeds (5 + 15: of two rounds), and "… to …" the lowest and the highest of
a claim's tests. A test is decided when its interval excludes 0 after a correction for the number of tests of its claim
({{term}}`Holm's method`); so a claim can be undecided although one of its intervals by itself excludes 0. "No effect":
every effect lies within a margin δ that counts as none, see {{term}}`equivalence`. Beside a verdict stands whether the
penalty *acted* on what it penalises, in the cells of the claim's tests.

{claims}

Each is explained, with all its tests, on [a page of its own](results.md).

## How it was done

{how}

A comparison is paired: two losses, the same seed. Its direction is judged after Holm's correction within a claim, its
size by two one-sided tests against a margin δ. What was expected stands on [pages](hypotheses.md) that were committed
before the runs. The code of both penalties is in the package `companion`, a few lines each, and tested against closed
forms.

## What was easy

- Both penalties are one more term of any loss. CKA-SR's released code and appendix give β, the number of examples and
  the layers.
- The quantities that they penalise can be measured exactly, so one can ask of every run whether its penalty acted.

## What was hard

- At the strengths that were chosen first CKA-SR hardly acted, so no claim about it was put to the test by those runs;
  AugCKA-SR was. A third round began with the strengths that do act.
- FFR's equations were not available to us. Three readings, length, curvature and both, were trained.
- Gains as small as the published ones need many seeds: the table says how many.
- What a penalty seems to gain once weights are out depends on how weights are ranked, and on the nets it is compared
  with: a gain that ten seeds showed with p = {first_p} was gone on the next {once_more}.
- To push as hard without moving CKA is not easy: the placebo of AugCKA-SR changes the CKA of all blocks, too, by
  {placebo}.

## Limits

Small networks, short trainings, mostly at half the resolution; CIFAR and a part of Tiny ImageNet. What the published
recipes give at full size is not known to us: {gaps} registered experiments at tier `paper` lack records. Intervals
cover what another seed changes, and neither other test images nor another recipe. We have not asked the authors.
"""


def verdict(judged: Judgement) -> str:
    """The verdict, whether δ was named after the runs, and whether the penalties acted."""
    none = f"no effect (equivalent within δ{', post hoc' * late(judged)})"
    said = none if judged.verdict == "equivalent within δ" else judged.verdict + ", by less than δ" * judged.small
    acted = manipulated(judged)
    return f"**{said}**" + (f"; {acted}" if acted else "")


def told(judged: Judgement) -> str:
    """The numbers behind a verdict: the clearest test that is decided, or the range of all that ran."""
    ran = [t for t in judged.tests if t.ran and t.difference is not None]
    if judged.decided:
        clearest = min(judged.decided, key=lambda t: t.p)
        return f"{titled(clearest.test)}: {effect_of(clearest, strata=False)}{harder(judged)}"
    if not ran:
        return judged.text or "–"
    measured = ran[0].test.measured
    ordered = sorted((t.difference for t in ran if t.difference), key=lambda one: one.value)
    low, high = (number(one, measured.digits) for one in (ordered[0], ordered[-1]))
    several = f"{low} to {high} {measured.unit}, {len(ordered)} tests" if len(ordered) > 1 else f"{low} {measured.unit}"
    return several + harder(judged)


def harder(judged: Judgement) -> str:
    """The clearest effect beside a claim of a penalty at more than its tests' strength."""
    more = {(study, method) for study, method, _ in STRONGER} | {(*t.experiments, t.method) for t in ACTING.values()}
    seen = [t for t in judged.beside if (t.test.experiments[0], t.test.method) in more and t.ran]
    if not seen:
        return ""
    clearest = min(seen, key=lambda t: t.p)
    return f"; beside it {titled(clearest.test)}: {effect_of(clearest)}"


def core_hours(made: Iterable[Record]) -> float:
    return sum(one.provenance["wall_seconds"] * one.provenance["threads"] for one in made) / 3600


def page() -> str:
    """The page's text."""
    rows = [
        [
            f"{{ref}}`{place} <{anchor(place)}>`",
            claim.text,
            verdict(one),
            told(one),
            deciding(one) or "–",
        ]
        for place, (claim, one) in enumerate(zip(CLAIMS, judgements(), strict=True), 1)
    ]
    everything = [record for name, e in EXPERIMENTS.items() for tier in e.tiers for record in replay(name, tier)]
    gaps = sum("paper" in e.tiers and bool(replay(name, "paper").missing) for name, e in EXPERIMENTS.items())
    placebo = known(replay("specificity").difference("placebo_aug_cka_sr", "none", quantities.cka_of_blocks))
    first, once_more = (known(effect(one)) for one in ONCE_MORE)
    devices = {record.provenance["accelerator"] or "processors alone" for record in everything}
    how = (
        f"{scale('It is small: the claims rest on {count} of these trainings')} The others have "
        "hypotheses of their own, those of [the third round](hypotheses_third.md). Those behind the claims took "
        f"{core_hours(runs()):,.0f} core-hours; all {len(everything)} recorded runs took "
        f"{core_hours(everything):,.0f}, on {listed(sorted(devices))}. {power()}"
    )
    return TEXT.format(
        answer=answer(),
        total=len(CLAIMS),
        tally=verdicts(),
        claims=table(["", "claim", "verdict", "numbers", "what would decide it"], [4, 26, 22, 30, 18], rows),
        how=textwrap.fill(how, 118, break_on_hyphens=False),
        gaps=gaps,
        placebo=placebo.signed(2),
        first_p=f"{first.p_value:.1g}",
        once_more=once_more.count,
    )


if __name__ == "__main__":
    write_aside(PAGE, page())
