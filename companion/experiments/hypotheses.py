"""The hypotheses of the pages *Hypotheses*, of three rounds, and the rule that judges each.

Each page was written before the first run of its experiments: `dense_penalties` (`HYPOTHESES`), `dense_penalties_again`
(`AGAIN`), and the studies of the third round (`THIRD`, one mapping for each). A hypothesis is a few findings, each a
mean difference over seeds and the side of 0, or the margin, where it is expected. There are two verdicts: by what the
page says refutes it, raw and after Holm's correction, and by `experiments.statistics.conclude`.

Page *The claims, one by one* shows all verdicts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from companion.experiments import quantities
from companion.experiments.archive import replay
from companion.experiments.quantities import Reading
from companion.experiments.records import Records
from companion.experiments.statistics import ALPHA, QUANTITIES, Mean, Outcome, conclude, holm, pooled, tally, verdict
from companion.experiments.titles import TITLES

__all__ = [
    "AGAIN",
    "CLASSICS",
    "FEATURES",
    "HYPOTHESES",
    "LENGTHS",
    "MEASURES",
    "MISJUDGED",
    "THIRD",
    "Between",
    "Difference",
    "Expected",
    "Hypothesis",
    "Judged",
    "all_must_refute",
    "each_can_refute",
    "judge",
]

# What a test says, in the words of the pages.
WORDS = {"for": "supports", "against": "refutes", "one seed": "not tested yet", "not run": "not tested yet"}
FEATURES = ("cka_sr", "aug_cka_sr", "ffr_length", "ffr_curvature")
CLASSICS = ("group_lasso", "slimming")

MEASURES: Mapping[str, Mapping[str, Reading]] = {
    "accuracy after pruning": {
        "accuracy, dense (%)": quantities.percent,
        "… 80 % of the weights out": quantities.after_pruning(0.8),
        "… 90 % of the weights out": quantities.after_pruning(0.9),
        "sparsity kept for 5 points": quantities.sparsity_kept(5),
        "… filters to ½, fine-tuned": quantities.after_removal(0.5),
        "… filters to ¼, fine-tuned": quantities.after_removal(0.25),
    },
    "similarity and flow": {
        "CKA of neighbours": quantities.cka_of_neighbours,
        "CKA inside stages": quantities.cka_in_stages,
        "CKA of all blocks": quantities.cka_of_blocks,
        "relative step": quantities.path_length,
        "turning angle (rad)": quantities.path_angle,
        "straightness": quantities.straightness,
    },
    "weights": {
        "inner |γ|": quantities.inner_scale,
        "last |γ|": quantities.branch_scale,
        "inner filters, ‖w‖": quantities.raw_norms,
        "weights under RMS/10 (%)": quantities.small_weights,
    },
    "information (nats)": {
        "information on the image": quantities.about_image,
        "information on the label": quantities.about_label,
        "information of neighbours": quantities.shared_information,
    },
}


@dataclass(frozen=True)
class Difference:
    """A mean over seeds, and the side of 0 where it is expected, or that it is expected within ±δ.

    Attributes:
        expected: +1 for above 0, −1 for below; 0 for within ±δ, which a decided one whose mean lies beyond refutes.
        by_mean: does its mean on the other side refute, where the page names no interval?
        delta: the margin within which it counts as none, where one is named.
        small_refutes: does an effect within δ refute, because the page expects one that counts?
        refuted_beyond: where the page names a bound other than 0, +1 or −1 and the bound: nothing refutes but an
            interval that lies above it, or below.

    >>> gain = Difference("accuracy", Mean(1.0, half=0.5, count=5), expected=-1)
    >>> gain.says(), gain.says(p=0.2), Difference("accuracy", Mean(0.1, half=0.5, count=5), 0, delta=1.0).says()
    ('refutes', 'undecided', 'supports')
    """

    text: str
    mean: Mean | None
    expected: int
    by_mean: bool = False
    delta: float | None = None
    small_refutes: bool = False
    refuted_beyond: tuple[int, float] | None = None

    @property
    def p(self) -> float:
        """The p-value with which it counts in a family, from the bound on for a mean beyond it; 1 for what was not
        run."""
        return 1.0 if self.mean is None else (self._beyond() or self.mean).p_value

    def _beyond(self) -> Mean | None:
        """What a mean beyond the bound differs from it; None for any other."""
        if self.mean is None or self.refuted_beyond is None:
            return None
        side, bound = self.refuted_beyond
        past = replace(self.mean, value=self.mean.value - bound)
        return past if side * past.value > 0 else None

    def outcome(self, p: float | None = None) -> Outcome:
        """As a test, with this p in place of its own; where no side is expected, any decided effect speaks against."""
        against = -1 if self.mean is not None and self.mean.value > 0 else 1
        return Outcome(self.mean, self.expected or against, self.p if p is None else p, self.delta)

    def says(self, p: float | None = None) -> str:
        """`"supports"`, `"refutes"`, `"refutes by its mean only"`, `"undecided"` or `"not tested yet"`: what its
        outcome says in the words of the page; `p` is the corrected one, by default its own."""
        outcome = self.outcome(p)
        if outcome.ran and self._beyond():
            return "refutes" if outcome.p < ALPHA else "undecided"
        if outcome.equivalent and (self.small_refutes or not self.expected):
            return "refutes" if self.small_refutes else "supports"
        said = WORDS.get(outcome.says(), "undecided")
        if self.refuted_beyond and said == "refutes":
            return "undecided"
        if self.mean is not None and not self.expected and self.delta and abs(self.mean.value) <= self.delta:
            return "undecided" if outcome.ran else "not tested yet"
        against = self.mean is not None and self.expected * self.mean.value <= 0
        return "refutes by its mean only" if said == "undecided" and self.by_mean and against else said


@dataclass(frozen=True)
class Between:
    """What two penalties together differ from each alone; expected are differences on both sides of 0.

    Both differences on one side, each with its interval, refute. Requiring both keeps the error of one measure at its
    level: the p of the pair is the larger of the two.

    >>> up, down = (Mean(value, half=0.5, count=5) for value in (1.0, -1.0))
    >>> Between("steps", up, down).says(), Between("steps", up, up).says(), Between("steps", down, down).where()
    ('supports', 'refutes', 'below both')
    """

    text: str
    first: Mean | None
    second: Mean | None

    @property
    def p(self) -> float:
        """The larger of the two p-values; 1 for differences on both sides of 0, and for what was not run."""
        if self.first is None or self.second is None or self.first.value * self.second.value <= 0:
            return 1.0
        return max(self.first.p_value, self.second.p_value)

    def where(self) -> str:
        """`"between"`, `"above both"`, `"below both"`, `"undecided"` or `"not tested yet"`, by the raw intervals."""
        pair = [self.first, self.second]
        if any(d is None or d.count == 1 for d in pair):
            return "not tested yet"
        sides = {verdict(d, "above", "below") for d in pair}
        if "undecided" in sides:
            return "undecided"
        return "between" if len(sides) == 2 else f"{sides.pop()} both"

    def says(self, p: float = 0.0) -> str:
        """As of a `Difference`; the corrected p decides whether the pair can refute."""
        words = {"between": "supports", "not tested yet": "not tested yet"}
        if p < ALPHA:
            words |= {"above both": "refutes", "below both": "refutes"}
        return words.get(self.where(), "undecided")


Finding = Difference | Between


def each_can_refute(said: list[str]) -> str:
    """The verdict on a hypothesis that any one of its findings refutes.

    >>> each_can_refute(["supports", "refutes"]), each_can_refute(["supports", "undecided"])
    ('refuted', 'not refuted')
    """
    if "refutes" in said:
        return "refuted"
    if "not tested yet" in said:
        return "not tested yet"
    if "refutes by its mean only" in said:
        return "refuted by a mean, undecided by its interval"
    return "supported" if set(said) == {"supports"} else "not refuted"


def all_must_refute(said: list[str]) -> str:
    """The verdict on a hypothesis that only all of its findings together refute.

    >>> all_must_refute(["supports", "refutes"]), all_must_refute(["refutes", "refutes"])
    ('not refuted', 'refuted')
    """
    if "not tested yet" in said:
        return "not tested yet"
    if all(word.startswith("refutes") for word in said):
        return "refuted" if set(said) == {"refutes"} else "refuted by the means, undecided by an interval"
    return "supported" if set(said) == {"supports"} else "not refuted"


@dataclass(frozen=True)
class Expected:
    """A finding before there are records: a method less its baseline in one cell, see `Difference`.

    Attributes:
        quantity: whose δ is the margin, a key of `experiments.statistics.QUANTITIES`; a share is one of the mean
            without a penalty.
        earlier: rounds of the same comparison that are pooled with the records, if these have the method.

    >>> step = Expected("relative step", "ffr_length", quantities.path_length, -1, "relative step")
    >>> step(Records([])).says()
    'not tested yet'
    """

    text: str
    method: str
    reading: Reading
    expected: int
    quantity: str | None = None
    baseline: str = "none"
    sparsity: float | None = None
    by_mean: bool = False
    small_refutes: bool = False
    refuted_beyond: tuple[int, float] | None = None
    earlier: tuple[str, ...] = ()

    def __call__(self, records: Records) -> Difference:
        """The finding, from the records."""
        rounds = [made.where(sparsity=self.sparsity) for made in (*map(replay, self.earlier), records)]
        sides = [[made.where(method=method) for method in (self.method, self.baseline)] for made in rounds]
        found = (
            pooled(here.differences(there, self.reading).values() for here, there in sides) if sides[-1][0] else None
        )
        measured, base = QUANTITIES[self.quantity] if self.quantity else None, records.where(method="none")
        delta = measured.delta if measured else None
        if measured and measured.share and base:
            delta = measured.margin(base.mean(self.reading).value)
        refuted = self.small_refutes, self.refuted_beyond
        return Difference(self.text, found, self.expected, self.by_mean, delta, *refuted)


Found = Callable[[Records], Finding]


@dataclass(frozen=True)
class Hypothesis:
    """What was expected of an experiment, and by what it is refuted.

    Attributes:
        text: what was expected, in short.
        findings: the numbers that decide, each from the records.
        rule: from what the findings say to the verdict.
        family: hypotheses of the same family share Holm's correction.

    >>> expected = Hypothesis("no gain", (lambda records: Difference("accuracy", Mean(1.0, half=0.5, count=5), -1),))
    >>> judge(Records([]), {"H": expected})["H"].verdict
    'refuted'
    """

    text: str
    findings: Sequence[Found]
    rule: Callable[[list[str]], str] = each_can_refute
    family: str = "a finding each"


class Judged(NamedTuple):
    """What became of a hypothesis: by its page, raw and after Holm's correction over its family; by which findings; and
    what each of these says, after the correction, in the words of an `Outcome`.

    >>> judge(Records([]))["H4"].numbers()
    'straightness: not run; accuracy, filters to 0.5: not run; accuracy, filters to 0.25: not run'
    """

    verdict: str
    after_holm: str
    findings: Sequence[Finding]
    said: tuple[str, ...]

    @property
    def by_rule(self) -> str:
        """The verdict by the rule for claims, one of `experiments.statistics.VERDICTS`."""
        return conclude(self.said)

    def numbers(self) -> str:
        """The numbers behind the verdict, in a line."""
        pairs = [f for f in self.findings if isinstance(f, Between)]
        told = [
            f"{f.text}: {'not run' if f.mean is None else f.mean.signed(digits=None)}"
            for f in self.findings
            if isinstance(f, Difference)
        ]
        if pairs:
            told.append(f"of {len(pairs)} measures " + tally(f.where() for f in pairs))
            told += [f"{f.text}: {f.where()}" for f in pairs if f.says() == "refutes"]
        return "; ".join(told)


def judge(records: Records, hypotheses: Mapping[str, Hypothesis] | None = None) -> dict[str, Judged]:
    """All hypotheses (default: `HYPOTHESES`), judged from the records of their experiment; the findings of a family
    share Holm's correction, what a rule says of a mean alone it leaves.

    >>> judge(Records([]))["H1"].verdict
    'not tested yet'
    """
    hypotheses = HYPOTHESES if hypotheses is None else hypotheses
    found = {name: [finding(records) for finding in one.findings] for name, one in hypotheses.items()}
    corrected: dict[str, Iterator[float]] = {
        family: iter(holm([f.p for name, of in found.items() if hypotheses[name].family == family for f in of]))
        for family in {hypothesis.family for hypothesis in hypotheses.values()}
    }
    judged = {}
    for name, hypothesis in hypotheses.items():
        with_p = [(finding, next(corrected[hypothesis.family])) for finding in found[name]]
        raw = hypothesis.rule([finding.says() for finding in found[name]])
        after = hypothesis.rule([finding.says(p) for finding, p in with_p])
        judged[name] = Judged(raw, after, found[name], tuple(_said(finding, p) for finding, p in with_p))
    return judged


def _said(finding: Finding, p: float) -> str:
    """What a finding says in the words of the rule for claims."""
    if isinstance(finding, Difference):
        if finding.expected and not finding.refuted_beyond:
            return finding.outcome(p).says()
        if not finding.expected and finding.outcome().equivalent:
            return "equivalent"
    words = {"supports": "for", "refutes": "against", "not tested yet": "not run"}
    return words.get(finding.says(p), "undecided")


# ------------------------------------------------------------------------------------------------------ the first round
PRUNING = "accuracy after pruning"  # the quantity
PRUNED = {f"accuracy, {100 * s:.0f} % of weights out": quantities.after_pruning(s) for s in (0.8, 0.9)}
REMOVED = {f"accuracy, filters to {s:g}": quantities.after_removal(s) for s in (0.5, 0.25)}
SCALE = quantities.logarithm(quantities.branch_scale)  # of the last γ
INNER: Mapping[str, Reading] = {"γ": quantities.inner_scale, "folded norm": quantities.folded_norms}


def _no_gain(method: str, levels: Mapping[str, Reading]) -> list[Found]:
    """A gain after pruning, with its interval, refutes."""
    return [Expected(text, method, reading, -1, PRUNING) for text, reading in levels.items()]


def _shorter(method: str, **options: Any) -> Expected:
    return Expected("relative step", method, quantities.path_length, -1, "relative step", **options)


def _smaller_branches(method: str) -> list[Found]:
    """Shorter steps, and a smaller last γ."""
    return [_shorter(method), Expected("ln of the last γ", method, SCALE, -1, by_mean=True)]


def _short_branches(inner: str = "γ") -> list[Found]:
    """FFR's length: shorter steps, a smaller last γ, and an inner size that falls less than it."""
    inside, text = quantities.logarithm(INNER[inner]), f"ln of the inner {inner} − ln of the last γ"
    gap = Expected(text, "ffr_length", lambda record: inside(record) - SCALE(record), +1, by_mean=True)
    return [*_smaller_branches("ffr_length"), gap]


def _larger_filters(inner: str = "γ") -> list[Found]:
    """FFR both: shorter steps, a smaller last γ, and a larger inner size."""
    both, size = "ffr_length_curvature", quantities.logarithm(INNER[inner])
    return [*_smaller_branches(both), Expected(f"ln of the inner {inner}", both, size, +1, by_mean=True)]


def _opposed(records: Records) -> Difference:
    both = records.where(method="cka_sr+ffr_length")
    cosine = both.mean(quantities.mean_cosine("cosine_cka_feature_flow")) if both else None
    return Difference("cosine of CKA-SR and length", cosine, -1, by_mean=True)


def _best(records: Records, methods: tuple[str, ...], reading: Reading) -> str | None:
    """The method with the highest mean; None where one of them has no two records."""
    if any(len(records.where(method=m)) < 2 for m in methods):
        return None
    return max(methods, key=lambda m: records.where(method=m).mean(reading).value)


def _on_top(text: str, reading: Reading, records: Records) -> Difference:
    """At a level of removal, the best feature penalty less the best classic."""
    feature, classic = (_best(records, methods, reading) for methods in (FEATURES, CLASSICS))
    pair, difference = "best of the features − best of the classics", None
    if feature and classic:
        pair, difference = f"{TITLES[feature]} − {TITLES[classic]}", records.difference(feature, classic, reading)
    return Difference(f"{text}: {pair}", difference, -1, True, QUANTITIES[PRUNING].delta)


def _between(text: str, reading: Reading, records: Records) -> Between:
    alone = (records.difference("cka_sr+ffr_length", method, reading) for method in ("cka_sr", "ffr_length"))
    return Between(text, *alone)


def _in_between(measures: Mapping[str, Reading]) -> list[Found]:
    return [functools.partial(_between, text, reading) for text, reading in measures.items()]


ALL = {text: reading for group in MEASURES.values() for text, reading in group.items()}
FALLEN = Expected("CKA of all blocks", "aug_cka_sr", quantities.cka_of_blocks, -1, "CKA of all blocks", by_mean=True)

HYPOTHESES: Mapping[str, Hypothesis] = {
    "H1": Hypothesis("CKA-SR makes no weights small: no gain after one-shot pruning", _no_gain("cka_sr", PRUNED)),
    "H2": Hypothesis(
        "AugCKA-SR lowers the CKA between blocks, and removability does not follow",
        [FALLEN, *_no_gain("aug_cka_sr", PRUNED)],
    ),
    "H3": Hypothesis(
        "FFR's length shortens the steps and shrinks the last γ of each branch, not the filters inside",
        _short_branches(),
    ),
    "H4": Hypothesis(
        "FFR's curvature straightens the path and leaves removability alone",
        [Expected("straightness", "ffr_curvature", quantities.straightness, +1), *_no_gain("ffr_curvature", REMOVED)],
    ),
    "H5": Hypothesis(
        "CKA-SR and FFR oppose each other: a negative cosine, and a higher CKA of neighbours under FFR",
        [
            _opposed,
            Expected("CKA of neighbours, FFR's length", "ffr_length", quantities.cka_of_neighbours, +1, by_mean=True),
        ],
    ),
    "H6": Hypothesis(
        "for removing filters, slimming or the group lasso beat all four feature penalties",
        [functools.partial(_on_top, text, reading) for text, reading in REMOVED.items()],
        all_must_refute,
    ),
    "H7": Hypothesis(
        "both together lie between the two alone, on every measure", _in_between(ALL), family="a finding a measure"
    ),
}
AGAIN: Mapping[str, Hypothesis] = {
    "R1": Hypothesis("AugCKA-SR is no better once weights are out", _no_gain("aug_cka_sr", PRUNED)),
    "R2": Hypothesis(
        "AugCKA-SR lowers the CKA between blocks, and costs accuracy of the dense net",
        [FALLEN, Expected("accuracy, dense", "aug_cka_sr", quantities.percent, -1, "accuracy", by_mean=True)],
    ),
    "R3": Hypothesis("CKA-SR is no better once weights are out", _no_gain("cka_sr", PRUNED)),
    "R4": Hypothesis(
        "FFR shortens the steps and shrinks the last γ of every branch, while the inner filters grow", _larger_filters()
    ),
    "R5": Hypothesis(
        "FFR is no better once filters are out and the rest is fine-tuned", _no_gain("ffr_length_curvature", REMOVED)
    ),
}

# H3, H7 and R4 as they were judged at first: by the folded norm ‖w‖·|γ|/σ. It doubles when the input of a convolution
# is halved and its output stays as it was. FFR shortens the steps, so that every block gets a smaller input, σ falls,
# and the folded norm rises while no filter grows. |γ| has no such scale. (R5 has no more than its reason from there,
# "what grows is not removable".)
FOLDED: Mapping[str, Reading] = {
    "inner filters, ‖w‖·|γ|/σ": quantities.folded_norms,
    "last filters, ‖w‖·|γ|/σ": functools.partial(quantities.folded_norms, ending="conv2"),
    **{text: reading for text, reading in ALL.items() if text != "inner |γ|"},
}
MISJUDGED: Mapping[str, Hypothesis] = {
    "H3": replace(HYPOTHESES["H3"], findings=_short_branches("folded norm")),
    "H7": replace(HYPOTHESES["H7"], findings=_in_between(FOLDED)),
    "R4": replace(AGAIN["R4"], findings=_larger_filters("folded norm")),
}


# ------------------------------------------------------------------------------------------------------ the third round
STAGES, OUT = quantities.cka_in_stages, quantities.after_pruning(0.9)
FREE = quantities.after_pruning(0.9, "scale_free")
EARLIER = ("dense_penalties", "dense_penalties_again")  # they gave the idea: without the third they test nothing
NEGATED, LONGEST = "aug_cka_sr_negated", "ffr_length_0.1"
LENGTHS = ("none", "ffr_length_0.01", "ffr_length_0.03", LONGEST)


def _masked(
    text: str, penalty: str, reading: Reading, expected: int, sparsity: float, quantity: str | None, **options: Any
) -> Expected:
    """A penalty less none, under random masks."""
    return Expected(text, f"random+{penalty}", reading, expected, quantity, "random", sparsity, **options)


def _specific(penalty: str) -> list[Found]:
    """A penalty less its placebo, with nine weights in ten out."""
    return [Expected("less its placebo, 90 % out", penalty, OUT, 0, PRUNING, baseline=f"placebo_{penalty}")]


def _twice(text: str, reading: Reading, expected: int, quantity: str) -> Expected:
    return Expected(f"{text}, all rounds", "aug_cka_sr", reading, expected, quantity, earlier=EARLIER)


def _long(text: str, reading: Reading, expected: int, method: str = LONGEST, **options: Any) -> Expected:
    """FFR's length less none."""
    return Expected(text, method, reading, expected, PRUNING, **options)


# Primary hypotheses are tested alone; all others of a study are one family.
PRIMARY = "primary"
THIRD: Mapping[str, Mapping[str, Hypothesis]] = {
    "masks_dose": {
        "A1": Hypothesis(
            "CKA-SR at β = .01 does not change CKA inside stages",
            [
                _masked(
                    f"CKA inside stages, masks {s:g}",
                    *("cka_sr_0.01", STAGES, 0, s, "CKA in stages"),
                    refuted_beyond=(-1, -0.02),
                )
                for s in (0.9, 0.95)
            ],
        ),
        "A2": Hypothesis(
            "at the largest strength of each penalty accuracy falls",
            [
                _masked(
                    f"accuracy, {title}, masks {s:g}",
                    *(penalty, quantities.percent, -1, s, None),
                    refuted_beyond=(+1, -0.5),
                )
                for penalty, title in (("cka_sr_0.1", "CKA-SR .1"), ("aug_cka_sr_1", "AugCKA-SR 1"))
                for s in (0.9, 0.95)
            ],
        ),
    },
    "specificity": {
        "C1": Hypothesis(
            "with 90 % of the weights out, AugCKA-SR does as its placebo", _specific("aug_cka_sr"), family=PRIMARY
        ),
        "C2": Hypothesis(
            "AugCKA-SR turned round raises CKA, and gains there, too",
            [
                Expected("CKA of all blocks", NEGATED, quantities.cka_of_blocks, +1, "CKA of all blocks"),
                Expected("accuracy, 90 % out", NEGATED, OUT, +1, PRUNING),
            ],
        ),
        "C3": Hypothesis(
            "AugCKA-SR gains at .9, and loses at .8 and dense",
            [
                _twice("accuracy, dense", quantities.percent, -1, "accuracy"),
                _twice("accuracy, 80 % out", quantities.after_pruning(0.8), -1, PRUNING),
                _twice("accuracy, 90 % out", OUT, +1, PRUNING),
            ],
        ),
        "C4": Hypothesis(
            "in the scale-free order its gain at .9 is smaller",
            [Expected("gain by the scale-free order less the raw gain", "aug_cka_sr", lambda r: FREE(r) - OUT(r), -1)],
        ),
        "C5": Hypothesis("with 90 % of the weights out, CKA-SR does as its placebo", _specific("cka_sr")),
        "C6": Hypothesis(
            "stronger FFR raises CKA inside stages and shortens the steps more",
            [
                Expected("CKA inside stages, .05 less .01", "ffr_strong", STAGES, +1, "CKA in stages", baseline="ffr"),
                replace(_shorter("ffr_strong", baseline="ffr"), text="relative step, .05 less .01"),
            ],
        ),
        "C7": Hypothesis(
            "CKA-SR at a strength that acts lengthens the steps", [replace(_shorter("cka_sr"), expected=+1)]
        ),
    },
    "depth": {
        "D1": Hypothesis(
            "with three blocks out, FFR's length at .1 leaves more accuracy",
            [_long("accuracy, 3 of 9 blocks out", quantities.without_blocks(3), +1, small_refutes=True)],
            family=PRIMARY,
        ),
        "D2": Hypothesis(
            "with four out and fine-tuned, it is as none",
            [_long("accuracy, 4 of 9 blocks out, fine-tuned", quantities.without_blocks(4, "fine_tuned"), 0)],
        ),
        "D3": Hypothesis(
            "the relative step falls with each strength",
            [
                replace(_shorter(more, baseline=less), text=f"relative step, {more} less {less}")
                for less, more in itertools.pairwise(LENGTHS)
            ],
        ),
        "D4": Hypothesis(
            "taking one block costs less under length .1",
            [_long("accuracy lost with one block, mean of nine", quantities.block_damage, -1)],
        ),
        "D5": Hypothesis(
            "filters to ½, fine-tuned: every length is as none",
            [_long(f"filters to ½, {m}", quantities.after_removal(0.5), 0, method=m) for m in LENGTHS[1:]],
        ),
    },
    "hosts_again": {
        "B1": Hypothesis(
            "CKA-SR at a strength that acts leaves the accuracy as it was",
            [_masked("accuracy, masks 0.9", "cka_sr", quantities.percent, 0, 0.9, "accuracy")],
            family=PRIMARY,
        )
    },
    "published_recipe": {
        "F1": Hypothesis(
            "CKA-SR at 1e-4 does not change CKA inside stages",
            [_masked("CKA inside stages", "cka_sr", STAGES, 0, 0.95, "CKA in stages")],
            family=PRIMARY,
        )
    },
}
