"""Write the page *The claims, one by one* from the records, its figure, and the answer on the book's first page.

python scripts/results.py
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from forest import Drawn, Line, digest, forest, in_words
from repository import repository

from companion import plots
from companion._files import write_aside
from companion.experiments import EXPERIMENTS, TITLES, published, quantities, replay
from companion.experiments.claims import (
    ACROSS_HOSTS,
    ACTING,
    CLAIMS,
    MOVED,
    ONCE_MORE,
    RELEASED,
    TARGETS,
    Claim,
    Comparison,
    Judgement,
    Tested,
    effect,
    penalty_of,
    strength_of,
)
from companion.experiments.hypotheses import (
    AGAIN,
    HYPOTHESES,
    MISJUDGED,
    THIRD,
    Difference,
    Expected,
    Hypothesis,
    Judged,
    judge,
)
from companion.experiments.quantities import Reading
from companion.experiments.records import Record, Records, Run
from companion.experiments.statistics import (
    ALPHA,
    QUANTITIES,
    VERDICTS,
    Mean,
    acted,
    clustered,
    common_effect,
    mean,
    pooled,
    sign_flip,
)
from companion.experiments.studies import penalties

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "results.md"
INTRO = ROOT / "book" / "intro.md"
PICTURE = ROOT / "book" / "_static" / "claims.png"
ANSWER = re.compile(
    r"(?<=% Written by scripts/results\.py:\n).*?(?=% To here\.\n)", re.DOTALL
)  # its place in the intro

HEAD = """\
# The claims, one by one

What do the two papers claim, and what do we find? Every number and every verdict on this page is computed from the
[records](running.md) by `companion.experiments.claims`; the tests write the page anew and compare.

```{{figure}} _static/claims.png
:name: fig-claims
:alt: {alt}
:width: 480px

Every test that was run, claim by claim: the effect and its 95 % interval, in units of δ. Effects inside the grey band
count as none. To the right lies what the claim says. Triangles: decided after Holm's correction, for the claim (blue)
or against it (vermilion). Squares: within δ, for the 90 % interval lies inside the band. Open circles: undecided.
Beyond ±2 the axis is logarithmic.
```

{scale} {power}

Of {total} claims {tally}.
"""

RULE = """\
## How a verdict is made

A test compares runs with the same seed, with and without a penalty: the same initial weights, the same batches, the
same images. It gives the mean difference over seeds and its 95 % interval, by Student's t. Rounds of one
comparison, on seeds of their own, are pooled: the mean over all seeds, with the spread *within* the rounds as error
(degrees of freedom: seeds less rounds). The interval without such strata stands beside it. Each test is asked two
questions.

- **Direction**: is the effect above or below 0? It is *decided* if its p-value stays below .05 after Holm's correction
  for all tests of the same claim. From six seeds on, the p-value by flipping signs stands beside it.
- **Size**: is the effect smaller than δ, either way? By two one-sided tests (TOST): their p is below .05 where the 90 %
  interval lies inside ±δ.

A claim

- **holds** if all decided tests speak for it, and at least one does;
- **does not hold** if all decided tests speak against it (a claim of theory: if a counterexample exists);
- is **mixed** if some speak for it and some against it;
- is **equivalent within δ** if none is decided and *every* test that ran shows an effect smaller than δ;
- is **undecided** otherwise. The *smallest detectable effect* says what it could have seen: the true effect that a
  single test finds four times out of five, before the correction, if the spread is what it seems (noncentral t). *What
  would decide it* is the other way round: the seeds with which each open test finds, four times out of five, an effect
  of δ if there is one, and equivalence if there is none; and the core-hours of the runs that this lacks;
- was **not run** if no test has two seeds.

*By less than δ* stands beside a verdict if all that is decided lies inside ±δ: it is there, and too small to count.
Beside it stands, too, whether **the penalty did act** on the very quantity that it penalises. It *did not act* where
the 90 % interval of the change lies inside ±δ, even if the change is certain and only small. It *acted* where the
95 % interval excludes 0 and the 90 % interval does not lie inside ±δ. Anything else is *unclear*: a missing
significance shows no absence. A verdict on a penalty that did not act is a verdict on that strength of it.

| quantity | δ | because it is |
|---|---|---|
{margins}

These δ were named after the first two rounds had been run. Every equivalence found in those is **post hoc**; the
studies of the third round are the first to be judged by a δ that was named before.

## What these numbers cannot say

- Intervals cover what another seed changes: initial weights, order of the batches, crops. They never cover other test
  images, nor another recipe.
- All comparisons of an experiment share the same nets without a penalty. If such a net is unlucky, every penalty looks
  good at once: any two differences correlate, at one half where nets scatter alike. Holm's correction is valid all the
  same; a count such as "eight of eight" says less than it seems.
- The correction is made within a claim, not over all {total}.
- Pruning in one shot ranks raw weights across layers, a ranking that
  [chapter 10](../notebooks/10_filter_pruning.ipynb) calls meaningless before a batch norm. What is gained or lost there
  is gained or lost under this ranking.
- {differing}
- {weakest}
- {classics}
- The second round was run because the first looked promising. That does not raise the error of a family that is judged
  once, on all seeds; a simulation among the tests shows it.
"""

EXPECTED = """\
## What we had expected

Seven hypotheses were [written down](hypotheses.md) before the first run of the main experiment, `dense_penalties`, and
[five more](hypotheses_again.md) before the second round, `dense_penalties_again`, which is judged here on its own five
seeds. *By its page* is the verdict by what that page says would refute it, before and after Holm's correction for all
findings. *Supported*: intervals show every number in the rule of refutation. *Not refuted* is not *true*. *By the rule
above* is the verdict that a claim would get from the same numbers; it takes one decided finding, so a hypothesis of
several parts may hold by one of them. Sizes of filters and scales γ are means over all blocks, as the pages have them,
those that open a stage among them: no step leads there that FFR penalises, and the last γ changes by
{opening} % under FFR's length (H3) and by {again} % under both terms
(R4). (H6 compares two penalties that were picked by their means; such an interval is
too optimistic. R1 is about five seeds; on thirty more nothing is left of its gain: [claim
{weights}](#claim-{weights}).)
"""
MISJUDGED_BECAUSE = """\
### Misjudged before, and why

H3, H7 and R4 speak of the size of inner filters, and this page used to judge them by the folded norm ‖w‖·|γ|/σ. That
norm is no size. Halve the input of a convolution before a batch norm: σ halves, the output stays the same, and the norm
doubles. FFR makes the steps shorter, so that every block gets a smaller input. For that reason the norm rose:
"""
MISJUDGED_NOW = """\
In the mean over blocks neither the weights nor |γ| grew; under both terms they did in the blocks that open a stage, by
{raw} and {inner} %. Judged by |γ|, which the scale of the input does not touch:
"""

HOSTS = """\
## All hosts together

One estimate for each penalty over random masks, GraNet and lottery tickets, at its chosen strength. The cells of an
experiment with the same seed are averaged first, and count once. Beside it stands a hierarchical estimate: a mixed
model of one effect, around which experiments differ, and within them seeds. Its interval is Wald's, with four
experiments too narrow, and decides nothing. The published mean is that of six gains under random masks on CIFAR-100,
after full training.
"""
DOSES = """\
## How strong is strong enough?

Random masks at sparsity .95: what each strength does to CKA (smallest and largest of its nets), and to accuracy where a
net without penalty has the same seed. Records: `random_masks_beta`, the selection `random_masks_strengths`, and
`masks_dose`, on seeds of its own.
"""
OPPOSED = """\
## Each undoes a little of the other's work

What each penalty moves in a dense net, less no penalty. CKA-SR and AugCKA-SR lower the similarity and make the steps
longer; FFR's length makes the steps shorter and raises the similarity inside stages. Between the last block of a stage
and the first of the next, where it penalises nothing, FFR both lowers it, by {between}; over all neighbours, which is
what H5 asks, the change is {neighbours}.
"""
NOT_HERE = """\
## What is not here

FFR's own tables, its constants and its equations are not available to us, nor are the tables of CKA-SR's main text.
Registered and without a record:

{gaps}

`python -m companion.experiments run NAME --tier TIER` makes them, one after the other, and may be killed at any time.
"""


# ------------------------------------------------------------------------------------------------------------ sentences
COUNTED = {  # a verdict on one claim, and on several
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "mixed": ("is mixed", "are mixed"),
    "equivalent within δ": ("is equivalent within δ", "are equivalent within δ"),
    "undecided": ("is undecided", "are undecided"),
    "not run": ("was not run", "were not run"),
}


def listed(parts: Iterable[str]) -> str:
    """The parts as `a, b and c`."""
    *rest, last = parts
    return f"{', '.join(rest)} and {last}" if rest else last


def counted(verdicts: list[str], small: int = 0) -> str:
    """How many claims have which verdict, and how many of those that hold do so by less than δ.

    >>> counted(["holds", "not run", "holds"]), counted(["holds", "holds"], small=1)
    ('2 hold and 1 was not run', '2 hold (1 by less than δ)')
    """
    numbers = {word: verdicts.count(word) for word in VERDICTS}
    words = {word: f"{number} {COUNTED[word][number > 1]}" for word, number in numbers.items() if number}
    return listed(
        text + f" ({small} by less than δ)" * (word == "holds" and bool(small)) for word, text in words.items()
    )


def small(p: float) -> str:
    """A p-value with two digits, and never 0."""
    return f"{p:.2g}" if p >= 1e-4 else "< .0001"


@functools.cache
def judgements() -> tuple[Judgement, ...]:
    return tuple(claim.judged() for claim in CLAIMS)


def verdicts() -> str:
    """How many of the claims have which verdict."""
    return counted([one.verdict for one in judgements()], sum(one.small for one in judgements()))


@functools.cache
def runs(*studies: str) -> tuple[Record, ...]:
    """The records behind the claims' tests, those that are shown beside them included, and all of further studies."""
    tests = [test for claim in CLAIMS for test in (*claim.tests, *claim.beside)]
    found = [side for test in tests for sides in test.sides().values() for side in sides] + [*map(replay, studies)]
    return tuple({str(record.run): record for side in found for record in side}.values())


def seeds_a_test(*further: int) -> str:
    counts = [t.difference.count for one in judgements() for t in one.tests if t.difference is not None]
    counts += further
    return f"{min(counts)} to {max(counts)} seeds"


def scale(opening: str = "All of it is small: the claims rest on {count} trainings") -> str:
    """At which scale the tests were run."""
    made = runs()
    machines = {record.provenance["accelerator"] or record.provenance["processor"] for record in made}
    epochs = [record.run.settings["epochs"] for record in made]
    halved = sum(record.run.settings.get("pool", 1) == 2 for record in made)
    names = sorted({record.run.experiment for record in made})
    paper = [
        EXPERIMENTS[name].runs("paper")[0].settings["epochs"] for name in names if "paper" in EXPERIMENTS[name].tiers
    ]
    return (
        f"{opening.format(count=len(made))} at tier `laptop` of a ResNet-20 and a slim VGG, "
        f"{halved} of them at half the resolution, with {min(epochs)} to {max(epochs)} epochs in place of {max(paper)} "
        f"and {seeds_a_test()} a test, on {listed(sorted(machines))}."
    )


def reached() -> list[float]:
    """The smallest detectable effects of all tests of accuracy without pruning, points."""
    tested = [t for one in judgements() for t in one.tests if t.test.measured is QUANTITIES["accuracy"]]
    return [t.difference.detectable() for t in tested if t.difference is not None and t.ran]


def published_gains(penalty: str | None = None) -> np.ndarray:
    """The gains that the appendix prints for fixed random masks, of one penalty or both, points."""
    table = published.random_masks_cifar100()
    chosen = table.drop("random") if penalty is None else table.loc[[f"random+{penalty}"]]
    return (chosen - table.loc["random"]).to_numpy().ravel()


def power() -> str:
    """What the tests could have seen."""
    effects, gains = reached(), published_gains()
    return (
        f"A single test of accuracy finds, four times out of five, a true effect of {np.median(effects):.1f} points "
        f"(median; {min(effects):.1f} to {max(effects):.1f}), while the gains under random masks that the appendix of "
        f"CKA-SR prints are {gains.min():.2f} to {gains.max():.2f} points."
    )


def weakest() -> str:
    """How FFR's strengths were chosen."""
    chosen = replay("dense_penalties_strengths")
    scores = []
    for method in ("ffr_length", "ffr_curvature", "ffr_length_curvature"):
        grid = [name for name in penalties.CANDIDATES if name.rpartition("_")[0] == method]
        if penalties.PENALISED[method] != penalties.CANDIDATES[grid[0]]:
            raise ValueError(f"{method} is no longer tested at the weakest strength of {grid}: the page has to say so")
        scores.append(quantities.pruned_on_average(chosen.one(method=grid[0])))
    none = quantities.pruned_on_average(chosen.one(method="none"))
    of_length = {run.method for run in EXPERIMENTS["depth"].runs("laptop") if run.method.startswith("ffr_length_")}
    strengths = sorted(float(method.rpartition("_")[2]) for method in of_length)
    return (
        "On ResNet-20, the claims about FFR were tested at the weakest strength of its grid, in all three readings. "
        "It was the best of three on held-out images, but with one seed and two epochs "
        f"({listed(f'{score:.1f} %' for score in scores)} "
        f"after pruning, {none:.1f} % without FFR). The study `depth`, below, trains its length once more at that "
        f"strength, which counts as a further round here, and at up to {strengths[-1] / strengths[0]:g} times as much, "
        "which decides none of these claims."
    )


def classics() -> str:
    """What was chosen for slimming and the group lasso, and what is reported."""
    methods = ("group_lasso", "slimming")
    lost, half = (
        listed(f"{-difference.value:.1f}" for m in methods if (difference := made.difference(m, "none", reading)))
        for made in (replay("dense_penalties"),)
        for reading in (quantities.percent, quantities.after_removal(0.5))
    )
    return (
        "Group lasso and slimming were chosen by accuracy *before* fine-tuning, and are reported *after* it. They cost "
        f"the dense net {lost} points, and at half of the multiply-adds, fine-tuned, {half} points."
    )


def answer() -> str:
    """The first page's answer: what came out, at which scale, and what it could not have seen."""
    hosts, hardly = across("cka_sr"), across("cka_sr", target=True)
    cost, (first, once_more) = named("aug_cka_sr", "AugCKA-SR, CIFAR-10"), (known(effect(one)) for one in ONCE_MORE)
    specific = replay("specificity")
    beyond = known(specific.difference("cka_sr", "placebo_cka_sr", quantities.percent))
    stronger = known(specific.difference("ffr_strong", "none", quantities.cka_in_stages))
    masked = replay("masks_dose").where(sparsity=0.95)
    apart, lost = (
        known(masked.difference("random+cka_sr_0.1", "random", reading))
        for reading in (quantities.cka_in_stages, quantities.percent)
    )
    (acts,) = (t for judged in judgements()[:1] for t in judged.beside if t.test == ACTING["cka_sr"])
    pushed, moderate = known(acts.difference), known(acts.change)
    if not (acts.equivalent and acts.delta):
        raise ValueError(
            f"CKA-SR that acts is not equivalent to none ({pushed.signed()}): the first page has to say so"
        )
    released = known(effect(RELEASED))
    if not released.low < 0 < released.high:
        raise ValueError(f"the released recipe is decided ({released.signed()}): the first page has to say so")
    rises = [
        known(masked.difference(f"random+{penalty}", "random", quantities.small_weights))
        for penalty in ("cka_sr_0.1", "aug_cka_sr_1")
    ]
    lasso = known(replay("dense_penalties").difference("group_lasso", "none", quantities.small_weights))
    shorter, alike = moved("ffr_length_curvature", "relative step"), moved("ffr_length_curvature", "CKA in stages")
    longer, margin = moved("aug_cka_sr", "relative step"), QUANTITIES["CKA in stages"].delta
    depth = replay("depth")
    fewer, whole, two, four = (
        known(depth.difference("ffr_length_0.1", "none", reading))
        for reading in (
            quantities.without_blocks(3),
            quantities.percent,
            quantities.without_blocks(2, "fine_tuned"),
            quantities.without_blocks(4, "fine_tuned"),
        )
    )
    made = runs("masks_dose", "depth", "specificity")
    usual = Counter(record.run.settings["epochs"] for record in made).most_common(1)[0][0]
    halved = sum(record.run.settings.get("pool", 1) == 2 for record in made)
    points = (
        "**What came out**, in short trainings of small networks, by our reading of FFR's abstracts (± is a 95 % "
        "interval over seeds; accuracy in points):",
        "- **The two wishes oppose each other, a little.** FFR shortens the blocks' steps by "
        f"{abs(shorter.value):.3f} of the features' size and raises the CKA of a stage's blocks by {alike.signed(3)}, "
        f"less than we count ({margin:g}); at five times its strength by {stronger.signed(3)}. AugCKA-SR (all pairs of "
        f"blocks) lowers CKA and lengthens the steps, by {longer.signed(3)}.",
        "- **Small weights: hardly more than without.** At the strengths chosen their share changes by under "
        f"{QUANTITIES['small weights'].delta} percentage points; under masks the largest CKA doses add up to "
        f"{max(rises, key=lambda one: one.value).signed(1)}; dense, a group lasso adds {lasso.value:.0f}.",
        "- **Accuracy of sparse training: no gain was seen.** As first chosen CKA-SR "
        f"changed neither CKA in stages ({hardly.signed(3)}) nor accuracy ({hosts.signed()}). At "
        f"β = .03 (CKA {moderate.signed()}) accuracy changed by {pushed.signed()} (within {acts.delta:g} of none), at "
        f".1 ({apart.signed()}) by {lost.signed(1)}. Undecided: the released recipe ({released.signed(1)}).",
        f"- **Pruning: what {first.count} seeds gained, {once_more.count} more did not.** AugCKA-SR changes accuracy "
        f"by {cost.signed()}, with 90 % out by {first.signed()} on the first and {once_more.signed()} on "
        f"the others. Dense, CKA-SR that acts changes it by {beyond.signed()} against an equal push that "
        f"leaves CKA alone. FFR's length at ten times its strength: {whole.signed(1)}, three of nine blocks out "
        f"{fewer.signed(1)}; fine-tuned, {two.signed(1)} without two, {four.signed(1)} without four.",
        f"**At which scale.** {len(made)} trainings, {halved} at half the resolution, nearly all "
        f"ResNet-20, most for {usual} epochs; {seeds_a_test(fewer.count)} a comparison.",
        "**What it could not have seen.** Changes of accuracy below "
        f"{np.median(reached()):.1f} points often go unnoticed; gains in CKA-SR's appendix are "
        "smaller. Full training and larger nets were not run.",
    )
    wrapped = [
        textwrap.fill(one, 118, subsequent_indent="  " if one.startswith("-") else "", break_on_hyphens=False)
        for one in points
    ]
    return "\n\n".join([wrapped[0], "\n".join(wrapped[1:5]), *wrapped[5:]]) + "\n"


# ------------------------------------------------------------------------------------------------------------ estimates
def asked(method: str, ending: str) -> Tested:
    """The claims' only test of a method whose title ends so."""
    (found,) = {
        t.test: t
        for judged in judgements()
        for t in judged.tests
        if t.test.method == method and t.test.title.endswith(ending)
    }.values()
    return found


def named(method: str, ending: str) -> Mean:
    """The effect of the claims' only test of a method whose title ends so."""
    return known(asked(method, ending).difference)


def moved(method: str, quantity: str) -> Mean:
    return known(effect(next(test for test in MOVED[method] if test.quantity == quantity)))


def read_of(method: str, reading: Reading) -> Mean:
    """Mean difference of a reading to no penalty in dense nets, over the rounds that have the method."""
    return known(effect(replace(MOVED[method][0], reading=reading)))


def known(found: Mean | None) -> Mean:
    if found is None:
        raise ValueError("a record behind a sentence of the page is missing")
    return found


def in_logarithms(method: str, reading: Reading) -> Mean:
    """Mean difference of the logarithm to no penalty, over the rounds that have the method."""
    return read_of(method, quantities.logarithm(reading))


def opening(method: str, reading: Callable[..., float], experiment: str | None = None) -> str:
    """A size in the blocks that open a stage, where FFR penalises no step: its change against no penalty in %."""
    test = replace(MOVED[method][0], reading=functools.partial(reading, opening=True))
    pairs = [
        [here / there for (name, _), (here, there) in test.values().items() if name == round_]
        for round_ in ([experiment] if experiment else test.experiments)
    ]
    return known(pooled([100 * (ratio - 1) for ratio in ratios] for ratios in pairs)).signed(1)


def over_hosts(penalty: str, target: bool = False) -> dict[tuple[str, int, float | None], float]:
    """Differences in all hosts, of accuracy or of what is penalised, by experiment, seed and sparsity."""
    tests = [(test.manipulation() if target else test) or test for test in ACROSS_HOSTS[penalty]]
    return {(*place, test.sparsity): value for test in tests for place, value in test.differences().items()}


def across(penalty: str, target: bool = False) -> Mean:
    """The mean of `over_hosts`; the cells of an experiment and a seed are one cluster."""
    found = over_hosts(penalty, target)
    return clustered(found.values(), [(name, seed) for name, seed, _ in found])


# ---------------------------------------------------------------------------------------------------------------- parts
def table(header: list[str], widths: list[int], rows: list[list[str]]) -> str:
    numbered = [] if header[0] else [":class: numbered"]  # rows by number, in a narrow column
    lines = ["```{list-table}", ":header-rows: 1", ":widths: " + " ".join(map(str, widths)), *numbered, ""]
    for row in [header, *rows]:
        lines += [f"{'* -' if at == 0 else '  -'} {cell}".rstrip() for at, cell in enumerate(row)]
    return "\n".join([*lines, "```"])


def anchor(place: int) -> str:
    return f"claim-{place}"


def number(difference: Mean | None, digits: int, unit: str = "") -> str:
    return f"{difference.signed(digits)} {unit}".rstrip() if difference is not None else "not run"


def seeds(test: Comparison) -> str:
    """5, or 5 + 15 in two rounds."""
    return " + ".join(str(n) for n in Counter(name for name, _ in test.differences()).values()) or "0"


def titled(test: Comparison) -> str:
    """What is compared, and at which strength."""
    return test.title + (f" ({strength})" if (strength := strength_of(test.run())) else "")


def differ(test: Comparison) -> float | None:
    """p of the rounds of a comparison, where they are further apart than their seeds explain."""
    p = test.apart()
    return p if p is not None and p < ALPHA else None


def effect_of(tested: Tested, strata: bool = True) -> str:
    """An effect with its interval, and for rounds the one without `strata`: if asked, or if the rounds differ."""
    measured, difference = tested.test.measured, tested.difference
    text = f"{number(difference, measured.digits, measured.unit)}, n = {seeds(tested.test)}"
    apart = differ(tested.test)
    if difference is not None and difference.strata > 1 and (strata or apart is not None):
        text += f"; without strata ± {mean(tested.test.differences().values()).half:.{measured.digits}f}"
        text += f" (rounds differ, p = {small(apart)})" if apart is not None else ""
    return text


def differing() -> str:
    """How many pooled comparisons have rounds that differ."""
    every = {t.test for judged in judgements() for t in (*judged.tests, *judged.beside)}
    found = [p < ALPHA for test in every if (p := test.apart()) is not None]
    return (
        f"Of {len(found)} comparisons behind the claims that pool rounds, {sum(found)} have rounds that differ by more "
        f"than their seeds explain (F test at 5 %; chance alone gives {ALPHA * len(found):.1f}). Their "
        "interval within rounds is too narrow: go by the one *without strata*."
    )


def direction(tested: Tested, family: bool = True) -> str:
    """p after Holm's correction and what it decides, then the raw one and that of flipped signs."""
    if not tested.ran or tested.difference is None:
        return "–"
    flips = sign_flip(tested.test.differences().values())
    raw = f"raw {small(tested.difference.p_value)}" + (f", signs {small(flips)}" if flips is not None else "")
    if not family:
        return raw
    decided = f", **{tested.says()}**" if tested.says() in ("for", "against") else ""
    return f"{small(tested.p)}{decided} ({raw})"


def size(tested: Tested) -> str:
    """p of "outside of ±δ"; bold where the effect is smaller."""
    if not tested.ran or not tested.delta:
        return "–"
    p = small(tested.size_p)
    return f"{f'**{p}**' if tested.equivalent else p} (δ {tested.delta:.3g})"


def detectable(tested: Tested) -> str:
    if not tested.ran or tested.difference is None:
        return "–"
    return f"{tested.difference.detectable():.{tested.test.measured.digits}f}"


def check(tested: Tested) -> str:
    """What the penalty did to what it penalises."""
    manipulation = tested.test.manipulation()
    if manipulation is None:
        return "–"
    return f"{manipulation.quantity} {number(tested.change, manipulation.measured.digits)}: {tested.penalty}"


def tests_of(tests: list[Tested], family: bool = True) -> str:
    """A table of tests."""
    header = ["test", "effect", f"direction: p{' (Holm)' * family}", "size: p (TOST)", "smallest detectable"]
    rows = [
        [
            titled(t.test),
            effect_of(t),
            direction(t, family),
            size(t),
            detectable(t),
            check(t),
        ]
        for t in tests
    ]
    return table([*header, "what it penalises"], [24, 22, 16, 12, 10, 16], rows)


def told(judged: Judgement) -> str:
    """How many of the tests that ran are decided, and for what."""
    said = Counter(t.says() for t in judged.decided)
    decided = [f"{said[word]} {word}" for word in ("for", "against") if said[word]]
    ran = sum(t.ran for t in judged.tests)
    return f"{listed(decided or ['none decided'])}, of {ran}" if ran else ""


def within(judged: Judgement) -> str:
    """How many of the tests that ran are equivalent within δ."""
    ran = [t for t in judged.tests if t.ran]
    count = sum(t.equivalent for t in ran)
    largest = f", p ≤ {small(max(t.size_p for t in ran))}" if ran and count == len(ran) else ""
    return f"{count} of {len(ran)}{largest}" if ran else ""


def manipulated(judged: Judgement) -> str:
    """Whether each penalty acted, in the cells at which the claim's tests look."""
    states: dict[str, dict[object, str]] = {}
    for t in judged.tests:
        if (manipulation := t.test.manipulation()) is not None:
            cell = (manipulation.experiments[0], manipulation.method, manipulation.sparsity)
            states.setdefault(TITLES[penalty_of(t.test.run()) or "none"], {})[cell] = t.penalty
    return "; ".join(f"{title}: {cells(Counter(seen.values()))}" for title, seen in states.items())


def deciding(judged: Judgement) -> str:
    """What would decide a claim that is undecided; empty for any other."""
    lacks = judged.missing() if judged.verdict == "undecided" else None
    if lacks is None:
        return ""
    hours = f"{lacks.hours:,.0f}"
    return f"up to {lacks.seeds} seeds a test, {hours} core-hour{'s' * (hours != '1')} more"


def cells(states: Counter[str]) -> str:
    """What the cells did: `acted`, or `did not act in 3 cells, unclear in 1`."""
    if len(states) == 1:
        return next(iter(states))
    (word, count), *rest = states.most_common()
    return ", ".join([f"{word} in {count} cell{'s' * (count > 1)}", *(f"{other} in {n}" for other, n in rest)])


def late(judged: Judgement) -> bool:
    """Does the verdict rest on a δ that was named after the runs?"""
    return judged.verdict == "equivalent within δ" and any(t.post_hoc for t in judged.tests)


def verdict(judged: Judgement) -> str:
    return f"**{judged.verdict}**{' (post hoc)' * late(judged)}{', by less than δ' * judged.small}"


def section(place: int, claim: Claim, judged: Judgement, url: str, branch: str) -> str:
    said = verdict(judged).replace(judged.verdict, judged.verdict.capitalize())
    source = f"{claim.paper}, {claim.source}." + ("" if claim.proof else f" Published: {claim.published}.")
    parts = [
        f"({anchor(place)})=\n### {place}. {claim.text}",
        f"{source} More in [its chapter](../notebooks/{claim.chapter}.ipynb).",
    ]
    if claim.proof is not None:
        parts.append(f"{said}: {judged.text}.")
    elif claim.tests:
        facts = {"Direction": told(judged), "Within δ": within(judged), "Did the penalty act?": manipulated(judged)}
        shown = [f"{name}{'' if name.endswith('?') else ':'} {fact}." for name, fact in facts.items() if fact]
        wanted = "above" if claim.direction > 0 else "below"
        parts += [" ".join([f"{said}.", *shown, f"For the claim speaks an effect {wanted} 0."]), tests_of(judged.tests)]
        if judged.beside:
            parts += [
                "Shown beside it, outside of the family and of the verdict:",
                tests_of(judged.beside, family=False),
            ]
        if more := deciding(judged):
            parts.append(f"What would decide it, at the spread of these runs: {more}.")
        every = [t.test for t in (*judged.tests, *judged.beside)]
        tiers = dict.fromkeys((name, test.tier) for test in every for name in test.experiments)
        parts.append(f"Records: {listed(f'[{n}]({url}/tree/{branch}/book/results/{n}/{tier})' for n, tier in tiers)}.")
    else:
        parts.append(f"{said}.")
    if claim.remark is not None:
        parts.append(claim.remark(judged))
    return "\n\n".join(filter(None, [*parts, claim.missing]))


def hosts() -> str:
    """Each penalty over all hosts."""
    rows, delta = [], QUANTITIES["accuracy"].margin() or math.nan
    for penalty in ACROSS_HOSTS:
        found, average = over_hosts(penalty), across(penalty)
        common = common_effect(found.values(), [name for name, *_ in found], [seed for _, seed, _ in found])
        target, quantity = across(penalty, target=True), TARGETS[penalty][1]
        gain, p = published_gains(penalty).mean(), small(average.equivalent(delta))
        rows.append(
            [
                TITLES[penalty],
                f"{average.signed()} points; {len(found)} differences in {average.count} clusters",
                f"{f'**{p}**' if average.equivalent(delta) < ALPHA else p} (δ {delta})",
                f"{common.value:+.2f} ± {common.half:.2f}".replace("-", "−")
                if common.converged
                else "did not converge",
                f"{quantity} {target.signed(QUANTITIES[quantity].digits)}: "
                + acted(target, QUANTITIES[quantity].margin() or math.nan),
                f"{gain:+.2f}, {'inside' if average.low <= gain <= average.high else 'outside'} the interval",
            ]
        )
    header = ["penalty", "effect", "size: p (TOST), post hoc", "hierarchical", "what it penalises", "published mean"]
    return HOSTS + "\n" + table(header, [12, 24, 14, 16, 20, 14], rows)


def doses() -> str:
    """CKA and accuracy at every recorded strength under random masks."""
    swept, chosen, later = map(replay, ("random_masks_beta", "random_masks_strengths", "masks_dose"))
    later = later.where(sparsity=0.95)

    def order(run: Run) -> tuple[bool, float]:
        (term,) = run.settings["penalties"]
        return term["kind"] != "CKASparsity", term["beta"]

    rows = []
    strengths = {r.run.method: r.run for r in (*swept, *chosen, *later) if r.run.settings.get("penalties")}
    for run in sorted(strengths.values(), key=order):
        nets = [net for made in (swept, chosen, later) for net in made.where(method=run.method)]
        rounds = (
            made.where(method=run.method).differences(made.where(method="random"), quantities.percent)
            for made in (swept, later)
        )
        gain = pooled(found.values() for found in rounds)
        rows.append(
            [
                TITLES[penalty_of(run) or "none"],
                strength_of(run),
                f"{len(nets)}",
                span([quantities.cka_in_stages(net) for net in nets]),
                span([quantities.cka_of_blocks(net) for net in nets]),
                f"{gain.signed()} points, n = {gain.count}" if gain is not None else "no such net",
            ]
        )
    header = ["penalty", "strength", "nets", "CKA in stages", "CKA of all blocks", "accuracy less none"]
    return DOSES + "\n" + table(header, [14, 12, 8, 18, 18, 22], rows)


def span(values: list[float]) -> str:
    return " … ".join(dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values))))


def opposed() -> str:
    """What every penalty moves: the steps, and the similarity."""
    rows = [
        [TITLES[method], *(number(effect(test), 3) for test in tests), seeds(tests[0])]
        for method, tests in MOVED.items()
    ]
    header = ["penalty", *(test.quantity for test in MOVED["cka_sr"]), "seeds"]
    between, neighbours = (
        read_of("ffr_length_curvature", reading).signed(3)
        for reading in (quantities.cka_between_stages, quantities.cka_of_neighbours)
    )
    said = OPPOSED.format(between=between.removeprefix("−"), neighbours=neighbours)
    return said + "\n" + table(header, [18, 20, 20, 20, 10], rows)


THIRD_ROUND = """\
### The third round

Its studies ask what two rounds left open: at which strength a penalty acts, whether a lower CKA is what matters,
whether blocks become removable, and what the published strength does at full size. Their margins δ were named before
the runs, on [a page of its own](hypotheses_third.md). The primary hypothesis of a study (C1, D1, F1) is tested alone;
the others share Holm's correction.
"""


def third(hypotheses: Mapping[str, Hypothesis], study: str) -> str:
    """A study of the third round: how far it is, and its hypotheses once something is recorded."""
    made = replay(study)
    runs = len(made) + len(made.missing)
    parts = [f"**`{study}`**. {EXPERIMENTS[study].question} {len(made)} of {runs} runs are recorded."]
    if made and made.missing:
        parts.append("The rule for the number of runs was fixed before: what they found is shown when all are in.")
    if study == "specificity":
        parts.append(raised(hypotheses["C1"], made))
    if made:
        parts.append(expected(hypotheses, study, whole=not made.missing))
    if made and not made.missing:
        parts.append(left_open(judge(made, hypotheses)))
    return "\n\n".join(filter(None, parts))


def left_open(judged: Mapping[str, Judged]) -> str:
    """The seeds that would decide what a study leaves open, where a margin was named and seeds are what it lacks."""
    wanted = []
    for name, one in judged.items():
        sized = [(f.mean, f.delta) for f in one.findings if isinstance(f, Difference) and f.mean and f.delta]
        seeds = max((math.ceil(found.deciding(delta)) for found, delta in sized), default=0)
        if one.by_rule == "undecided" and seeds > max((found.count for found, _ in sized), default=0):
            wanted.append(f"{name} {seeds}")
    return f"At this spread what is undecided takes this many seeds: {listed(wanted)}." if wanted else ""


def raised(
    primary: Hypothesis, made: Records, first: Sequence[int] = range(11, 21), planned: int = 20, most: int = 30
) -> str:
    """How many seeds the primary difference takes, by its deviation over the `first` ten that were whole (seed 10 was
    finished later, on the processor on which it had begun); its mean is not looked at. Nothing before there are ten."""
    (finding,) = primary.findings
    assert isinstance(finding, Expected) and finding.quantity is not None
    sides = (made.where(method=method) for method in (finding.method, finding.baseline))
    here, there = (side.by_seed(finding.reading) for side in sides)
    delta = QUANTITIES[finding.quantity].delta
    if not {*first} <= here.keys() & there.keys() or not delta:
        return ""
    spread = mean(here[seed] - there[seed] for seed in first)
    needed = spread.deciding(delta, effect=False)
    return (
        f"After {len(first)} seeds the deviation of the primary difference was estimated, {spread.deviation:.2f} "
        f"points; its mean was not looked at. At that spread equivalence takes {needed} seeds, and {planned} were "
        f"planned: {min(max(needed, planned), most)} are run."
    )


def expected(hypotheses: Mapping[str, Hypothesis], experiment: str, whole: bool = True) -> str:
    """Every hypothesis on an experiment with its verdicts; a study that is not whole yet has none, nor findings: who
    looks on the way may stop where it suits."""
    header = ["", "we expected", "by its page", "after Holm", "by the rule above", "findings (mean ± 95 % interval)"]
    rows = [
        [name, hypotheses[name].text]
        + (
            [f"**{one.verdict}**", one.after_holm, by_rule(one), one.numbers()]
            if whole
            else ["not tested yet", *[""] * 3]
        )
        for name, one in judge(replay(experiment), hypotheses).items()
    ]
    return table(header, [6, 26, 12, 14, 14, 32], rows)


def by_rule(one: Judged) -> str:
    """The verdict by the rule for claims, and how many findings are decided."""
    decided = sum(word in ("for", "against") for word in one.said)
    return f"{one.by_rule} ({decided} of {len(one.said)} decided)"


def misjudged() -> str:
    """Where the folded norm rose, and the verdicts by it and by |γ|."""
    sizes: dict[str, Reading] = {
        "ln ‖w‖": quantities.raw_norms,
        "ln |γ|": quantities.inner_scale,
        "ln σ": quantities.inner_deviation,
        "ln of the folded norm": quantities.folded_norms,
    }
    methods = ("ffr_length", "ffr_length_curvature")
    rows = [[TITLES[m], *(number(in_logarithms(m, reading), 3) for reading in sizes.values())] for m in methods]
    parts = [MISJUDGED_BECAUSE, table(["inner filters, less no penalty", *sizes], [24, 18, 18, 18, 18], rows)]
    rows = []
    for hypotheses, experiment in ((HYPOTHESES, "dense_penalties"), (AGAIN, "dense_penalties_again")):
        folded = {name: MISJUDGED[name] for name in hypotheses if name in MISJUDGED}
        before, now = (judge(replay(experiment), {**hypotheses, **changed}) for changed in (folded, {}))
        for name in folded:
            verdicts = [f"{one.verdict}; after Holm {one.after_holm}" for one in (before[name], now[name])]
            findings = " → ".join(one.numbers().rpartition("; ")[2] for one in (before[name], now[name]))
            rows.append([name, hypotheses[name].text, verdicts[0], f"**{verdicts[1]}**", findings])
    reason = ["its reason was that what grows is not removable", "in the mean nothing grows; its numbers stand", "–"]
    rows.append(["R5", AGAIN["R5"].text, *reason])
    both = "ffr_length_curvature"
    raw, inner = (
        opening(both, reading).removeprefix("+") for reading in (quantities.raw_norms, quantities.inner_scale)
    )
    now_said = MISJUDGED_NOW.format(raw=raw, inner=inner)
    header = ["", "we expected", "by the folded norm", "by the inner |γ|", "the finding in question"]
    return "\n\n".join(part.rstrip() for part in (*parts, now_said, table(header, [6, 28, 20, 20, 30], rows)))


def gaps() -> str:
    """What is registered and has no record."""
    made = {
        (name, tier): replay(name, tier)
        for name, experiment in EXPERIMENTS.items()
        for tier in experiment.tiers
        if tier != "smoke"
    }
    return "\n".join(
        f"- `{name}`, tier `{tier}`: {len(found.missing)} of {len(found) + len(found.missing)} runs"
        for (name, tier), found in made.items()
        if found.missing
    )


# ----------------------------------------------------------------------------------------------------------------- page
@functools.cache
def drawn() -> tuple[Drawn, ...]:
    """What the figure shows: every claim that was tested, in units of δ and towards the claim."""
    shown = []
    for place, (claim, judged) in enumerate(zip(CLAIMS, judgements(), strict=True), 1):
        lines = []
        for t in judged.tests:
            if t.ran and t.difference is not None and t.delta:
                low, high = sorted(claim.direction * end / t.delta for end in (t.difference.low, t.difference.high))
                lines.append(Line(claim.direction * t.difference.value / t.delta, low, high, t.says()))
        if lines:
            shown.append(Drawn(place, claim.label, judged.verdict, lines, judged.small))
    return tuple(shown)


def margins() -> str:
    rows = []
    for name, quantity in QUANTITIES.items():
        unit = "" if quantity.unit == name else f" {quantity.unit}"
        share = f"{100 * (quantity.share or 0):g} % of that without a penalty"
        rows.append(f"| {name} | {f'{quantity.delta:g}{unit}' if quantity.delta else share} | {quantity.why} |")
    return "\n".join(rows)


def page() -> str:
    """The page's text."""
    url, branch = repository(ROOT)
    claims = [(place, *pair) for place, pair in enumerate(zip(CLAIMS, judgements(), strict=True), 1)]
    rows = [
        [
            f"[{place}. {claim.text}](#{anchor(place)})",
            claim.paper,
            *(text(one) or "–" for text in (told, within, manipulated)),
            verdict(one),
        ]
        for place, claim, one in claims
    ]
    header = ["claim", "paper", "direction (Holm)", "size: within δ", "did the penalty act?", "verdict"]
    parts = [
        HEAD.format(
            alt=in_words(drawn()),
            scale=scale(),
            power=power(),
            total=len(CLAIMS),
            tally=verdicts(),
        ),
        table(header, [34, 9, 14, 12, 21, 14], rows),
        RULE.format(
            total=len(CLAIMS), margins=margins(), differing=differing(), weakest=weakest(), classics=classics()
        ),
    ]
    for paper, title in (("CKA-SR", "Identity: CKA-SR"), ("FFR", "Flow: FFR")):
        parts.append(f"## {title}")
        parts += [section(place, claim, one, url, branch) for place, claim, one in claims if claim.paper == paper]
    weights = next(place for place, claim, _ in claims if claim.label == "a net can lose more weights")
    scales = {
        "opening": opening("ffr_length", quantities.branch_scale, "dense_penalties"),
        "again": opening("ffr_length_curvature", quantities.branch_scale, "dense_penalties_again"),
    }
    parts += [hosts(), doses(), opposed(), EXPECTED.format(weights=weights, **scales)]
    parts += [expected(HYPOTHESES, "dense_penalties"), expected(AGAIN, "dense_penalties_again"), misjudged()]
    parts.append(THIRD_ROUND)
    parts += [third(hypotheses, study) for study, hypotheses in THIRD.items()]
    parts.append(NOT_HERE.format(gaps=gaps()))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def main() -> None:
    """Write the page, its figure, and the answer on the first page."""
    write_aside(PAGE, page())
    write_aside(INTRO, ANSWER.sub(lambda _: answer(), INTRO.read_text()))
    with plt.rc_context(plots.STYLE):
        figure = forest(drawn())
        said = {"Description": digest(drawn())} | plots.text_size(figure)
        write_aside(PICTURE, lambda file: figure.savefig(file, format="png", dpi=288, metadata=said))


if __name__ == "__main__":
    main()
