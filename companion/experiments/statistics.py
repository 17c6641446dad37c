"""Statistics: what is compared, over seeds, and how a verdict follows. The mathematics is scipy's and statsmodels'.

A comparison is a number for each seed, mostly the difference of two runs that share it. An effect is judged twice. Its
*direction*: does the interval exclude 0, after Holm's correction within the family? Its *size*: does the effect lie
within ±δ, by two one-sided tests (TOST, Schuirmann 1987)? `conclude` makes one verdict of a family of such tests.

Intervals cover what another seed changes: initial weights, order of the batches, crops. They do not cover other test
images.

Page *The claims, one by one* states the rule.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from companion._checks import between, extra

with extra("experiments"):
    from statsmodels.regression.linear_model import OLS
    from statsmodels.regression.mixed_linear_model import MixedLM
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import TTestPower

__all__ = [
    "ALPHA",
    "QUANTITIES",
    "VERDICTS",
    "Common",
    "Mean",
    "Outcome",
    "Quantity",
    "acted",
    "clustered",
    "common_effect",
    "conclude",
    "corrected",
    "holm",
    "mean",
    "pooled",
    "sign_flip",
    "stratified",
    "tally",
    "verdict",
]

ALPHA = 0.05  # the error of a family's directions, and of each test of equivalence
VERDICTS = ("holds", "does not hold", "mixed", "equivalent within δ", "undecided", "not run")


# -------------------------------------------------------------------------------------------------------------- margins
@dataclass(frozen=True)
class Quantity:
    """What is compared: its unit, the effect δ below which we call it none, and how many digits are shown.

    Attributes:
        delta: the margin of equivalence, in the unit; None where none was named.
        share: δ as a share of the baseline's mean, where the quantity has no scale of its own.
        why: why δ is what it is.

    >>> QUANTITIES["accuracy"].margin(), QUANTITIES["relative step"].margin(0.5)
    (0.5, 0.025)
    """

    unit: str
    delta: float | None = None
    share: float | None = None
    digits: int = 2
    why: str = ""

    def margin(self, baseline: float | None = None) -> float | None:
        """δ in the quantity's unit; where it is a share, of this mean of the baseline.

        Raises:
            ValueError: δ is a share, and the baseline is missing or not above 0.
        """
        if self.share is None:
            return self.delta
        if baseline is None or not (math.isfinite(baseline) and baseline > 0):
            raise ValueError(f"δ is {self.share:.0%} of the baseline's mean; give one above 0, not {baseline}")
        return self.share * baseline


# Named before the third round. For rounds 1 and 2, which were run before, every equivalence is post hoc.
QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {
        "accuracy": Quantity("points", 0.5, why="the mean gain under random masks in the appendix of CKA-SR"),
        "accuracy after pruning": Quantity("points", 1.0, why="twice that: pruned nets scatter and differ more"),
        "small weights": Quantity("% of the weights", 0.5, why="a sixteenth of the 8 % that are small anyway"),
        "CKA in stages": Quantity("CKA in stages", 0.02, digits=3, why="a fiftieth of the scale, which no map shows"),
        "CKA of all blocks": Quantity("CKA of all blocks", 0.02, digits=3, why="as CKA in stages"),
        "relative step": Quantity("relative step", share=0.05, digits=3, why="about the range of nets without penalty"),
        "turning angle": Quantity("radians", share=0.05, digits=3, why="as the relative step: both of FFR's halves"),
    }
)


# ---------------------------------------------------------------------------------------------------------------- means
@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its interval, from Student's t; the interval is infinite for a single value.

    Attributes:
        half: half the width of the interval.
        count: the number of values.
        level: what the interval is meant to cover.
        strata: the number of means that were fitted: degrees of freedom are `count − strata`.

    >>> gain = mean([0.5, 0.2, 0.9, 0.4, 0.5])
    >>> gain.signed(), gain.df, round(gain.p_value, 3), round(gain.detectable(), 2)
    ('+0.50 ± 0.32', 4, 0.012, 0.43)
    """

    value: float
    half: float
    count: int
    level: float = 0.95
    strata: int = 1

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def df(self) -> int:
        """Degrees of freedom; 0 where there is no interval."""
        return self.count - self.strata

    @property
    def error(self) -> float:
        """The standard error of the mean; infinite without degrees of freedom."""
        return self.half / float(stats.t.ppf((1 + self.level) / 2, self.df)) if self.df else math.inf

    @property
    def deviation(self) -> float:
        """The standard deviation of the values about the mean of their stratum; NaN where there is no interval."""
        return self.error * math.sqrt(self.count) if self.df else math.nan

    def __str__(self) -> str:
        half = f" ± {self.half:.2g}" if self.df else ""
        return f"{self.value:.4g}{half} (n = {self.count})"

    def signed(self, digits: int | None = 2) -> str:
        """A difference, with its sign and interval; `digits=None`: as many as the interval bears, up to three.

        >>> Mean(0.1234, half=2.5, count=5).signed(digits=None), Mean(0.1234, half=0.025, count=5).signed(digits=None)
        ('+0.1 ± 2.5', '+0.123 ± 0.025')
        """
        if digits is None:
            digits = min(max(1 - math.floor(math.log10(self.half)), 0), 3) if 0 < self.half < math.inf else 2
        half = f" ± {self.half:.{digits}f}" if self.df else ""
        return f"{self.value:+.{digits}f}{half}".replace("-", "−")

    @property
    def p_value(self) -> float:
        """Two-sided p of "the true mean is 0", by Student's t; 1 where there is no interval."""
        return 2 * self._tail(abs(self.value)) if self.df else 1.0

    def equivalent(self, within: float) -> float:
        """p of "the true mean lies outside of ± `within`": the larger of two one-sided t-tests (TOST). Below .05, the
        90 % interval lies inside of ± `within`; 1 where there is no interval."""
        between(0, math.inf, open_low=True, open_high=True, within=within)
        return max(self._tail(within + self.value), self._tail(within - self.value)) if self.df else 1.0

    def _tail(self, distance: float) -> float:
        """P(T ≥ `distance` in standard errors)."""
        if self.error == 0:  # all values alike
            return 0.5 if distance == 0 else float(distance < 0)
        return float(stats.t.sf(distance / self.error, self.df))

    def detectable(self, power: float = 0.8) -> float:
        """The smallest detectable effect: the true difference that a single test, without correction, finds with this
        probability (0.5 … 1), in its direction. By the noncentral t, if the true deviation is `deviation`; infinite
        where there is no interval."""
        between(0.5, 1, open_high=True, power=power)
        if not self.df:
            return math.inf
        tail = (1 - self.level) / 2

        def short(effect: float) -> float:
            found = TTestPower().power(effect, self.count, tail, df=self.df, alternative="larger")
            return (1.0 if math.isnan(found) else found) - power  # scipy's noncentral t is NaN where the power is 1

        farthest = 1.0
        while short(farthest) < 0:
            farthest *= 2
        return self.deviation * float(optimize.brentq(short, 0, farthest))

    def deciding(self, within: float, power: float = 0.8, *, effect: bool = True) -> float:
        """How many seeds would decide: the smallest number at which a single test finds, with this probability, a true
        effect of ± `within` (not asked for with `effect=False`), and two one-sided tests (TOST at .05) find equivalence
        if there is no effect. The true deviation is taken to be `deviation`; infinite where there is no interval."""
        between(0, math.inf, open_low=True, open_high=True, within=within)
        between(0.5, 1, open_high=True, power=power)
        if not self.df:
            return math.inf
        if self.deviation == 0:
            return 2

        def found(count: int) -> float:
            """The smaller of the two probabilities, by noncentral t."""
            df, shift = count - 1, within * math.sqrt(count) / self.deviation
            some = stats.nct.sf(stats.t.ppf((1 + self.level) / 2, df), df, shift) if effect else 1.0
            margin = stats.t.ppf(0.95, df)
            none = stats.nct.sf(margin, df, shift) - stats.nct.sf(-margin, df, -shift)
            return float(min(some, none))

        high = 2
        while found(high) < power:
            high *= 2
        return bisect.bisect_left(range(high + 1), power, lo=max(high // 2, 2), key=found)


def mean(values: Iterable[float], level: float = 0.95) -> Mean:
    """Mean and `level` confidence interval of independent values, one a seed; of differences for a paired comparison.

    Raises:
        ValueError: no values, or one that is not finite.

    >>> str(mean([91.0, 92.0, 93.0])), str(mean([91.0]))
    ('92 ± 2.5 (n = 3)', '91 (n = 1)')
    """
    return stratified([values], level)


def stratified(strata: Iterable[Iterable[float]], level: float = 0.95) -> Mean:
    """The mean of values that came in several rounds, with the spread within the rounds as error: a linear model with a
    mean for each round and one deviation for all. N values in K rounds leave N − K degrees of freedom.

    Raises:
        ValueError: no rounds, an empty one, or a value that is not finite.

    >>> str(stratified([[0.1, 0.3], [1.1, 1.3]])), str(mean([0.1, 0.3, 1.1, 1.3]))
    ('0.7 ± 0.3 (n = 4)', '0.7 ± 0.94 (n = 4)')
    """
    between(0, 1, open_low=True, open_high=True, level=level)
    rounds = [_sample(values) for values in strata]
    if not rounds:
        raise ValueError("the mean of no values")
    sizes = np.array([len(values) for values in rounds])
    everything = np.concatenate(rounds)
    n, k = len(everything), len(rounds)
    if n == k:
        return Mean(float(everything.mean()), math.inf, n, level, k)
    if all(np.ptp(values) <= 1e-12 * abs(values).max() for values in rounds):  # no spread but that of rounding
        return Mean(float(everything.mean()), 0.0, n, level, k)
    if k == 1:
        low, high = stats.ttest_1samp(everything, 0).confidence_interval(level)
    else:
        membership = np.repeat(np.eye(k), sizes, axis=0)
        ((low, high),) = OLS(everything, membership).fit().t_test(sizes / n).conf_int(1 - level)
    return Mean(float(everything.mean()), float(high - low) / 2, n, level, k)


def pooled(strata: Iterable[Iterable[float]]) -> Mean | None:
    """`stratified` over the rounds that have values; None where none has.

    >>> str(pooled([[0.1, 0.3], []])), pooled([])
    ('0.2 ± 1.3 (n = 2)', None)
    """
    rounds = [values for values in map(list, strata) if values]
    return stratified(rounds) if rounds else None


def clustered(values: Iterable[float], clusters: Sequence[Hashable], level: float = 0.95) -> Mean:
    """The mean over clusters of the means within: for cells that share an experiment and a seed, so that no run counts
    as several. Every cluster has the same weight.

    Raises:
        ValueError: lists of different lengths, a value without a cluster (None or NaN), or one that is not finite.

    >>> str(clustered([0.1, 0.3, 1.0, 0.7], ["a", "a", "b", "c"]))
    '0.6333 ± 1 (n = 3)'
    """
    numbers = _sample(values)
    if len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values and {len(clusters)} clusters; give each value its cluster")
    _named(clusters=clusters)
    return mean(pd.Series(numbers).groupby(pd.Series(list(clusters))).mean(), level)


def sign_flip(values: Iterable[float]) -> float | None:
    """Two-sided p of "the values are as likely to have the other sign", by flipping signs; exact up to 13 values, by
    9,999 draws beyond. None below six values, of which no pattern can be rare enough.

    >>> sign_flip([1.0, 2.0, 1.5, 0.5, 1.0, 2.5])  # 2 of 64 patterns
    0.03125
    """
    numbers = _sample(values)
    if len(numbers) < 6:
        return None
    found = stats.permutation_test((numbers,), np.mean, permutation_type="samples", vectorized=True, batch=1000, rng=0)
    return float(found.pvalue)


class Common(NamedTuple):
    """The common effect of a penalty over experiments and half its interval; standard deviations of the effect between
    experiments, between the seeds of one, and of what is left. Without `converged` nothing of it means anything.

    >>> values, experiments = [0.1, 0.4, 0.2, 5.9, 5.7, 5.8], ["a", "a", "a", "b", "b", "b"]
    >>> common_effect(values, experiments, seeds=[0, 1, 2, 0, 1, 2]).experiments > 3
    True
    """

    value: float
    half: float
    experiments: float
    seeds: float
    residual: float
    converged: bool


def common_effect(
    values: Iterable[float], experiments: Sequence[Hashable], seeds: Sequence[Hashable], level: float = 0.95
) -> Common:
    """A hierarchical estimate: one effect, around which experiments differ, and within them seeds.

    A linear mixed model by restricted maximum likelihood. The interval is Wald's, from the normal distribution: with a
    handful of experiments too narrow. It stands beside the tests and decides nothing.

    Raises:
        ValueError: as many experiments as values, fewer than two, lists of different lengths, or None or NaN in one.

    >>> found = common_effect([0.1, 0.4, 0.2, 0.9, 0.7, 0.8], ["a", "a", "a", "b", "b", "b"], [0, 1, 1, 0, 1, 1])
    >>> found.converged, f"{found.value:.2f} ± {found.half:.2f}"
    (True, '0.52 ± 0.57')
    """
    between(0, 1, open_low=True, open_high=True, level=level)
    numbers = _sample(values)
    if not len(numbers) == len(experiments) == len(seeds):
        raise ValueError(
            f"{len(numbers)} values, {len(experiments)} experiments and {len(seeds)} seeds; give each value its own"
        )
    _named(experiments=experiments, seeds=seeds)
    table = pd.DataFrame({"value": numbers, "experiment": list(experiments), "seed": list(seeds)})
    if not 1 < (groups := table["experiment"].nunique()) < len(table):
        raise ValueError(f"{len(table)} values of {groups} experiments; give at least two of them, one with two values")
    model = MixedLM.from_formula(
        "value ~ 1", groups="experiment", re_formula="1", vc_formula={"seed": "0 + C(seed)"}, data=table
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # a variance of 0 lies on the boundary and warns: that is an answer
        # Powell's search needs no gradient: those that follow one stop short of such a boundary.
        fitted = model.fit(reml=True, method="powell", ftol=1e-10, maxiter=2000)
    error = float(fitted.bse_fe.iloc[0])
    failed = any("converge" in str(warning.message) for warning in said)
    return Common(
        float(fitted.fe_params.iloc[0]),
        error * float(stats.norm.ppf((1 + level) / 2)),
        math.sqrt(max(0.0, float(fitted.cov_re.iloc[0, 0]))),
        math.sqrt(max(0.0, float(fitted.vcomp[0]))),
        math.sqrt(float(fitted.scale)),
        bool(fitted.converged) and not failed and math.isfinite(error),
    )


def _named(**groups: Sequence[Hashable]) -> None:
    """Refuse a group that has no name: pandas leaves its values out without a word."""
    for name, given in groups.items():
        if missing := int(pd.Series(list(given), dtype=object).isna().sum()):
            raise ValueError(f"{missing} of {len(given)} {name} are None or NaN; give each value its own")


def _sample(values: Iterable[float]) -> np.ndarray:
    """The values as numbers: at least one, all finite."""
    numbers = np.array(list(values), dtype=float)
    if numbers.ndim != 1:
        raise ValueError(f"values of shape {numbers.shape}; give a list of numbers")
    if not len(numbers):
        raise ValueError("the mean of no values")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are not finite: {numbers}")
    return numbers


# ------------------------------------------------------------------------------------------------------------- verdicts
def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of comparisons after Holm's correction, in their order: of even one false discovery in
    the family the chance is at most the level, however the tests depend on each other (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"p-values lie between 0 and 1, not {wrong}")
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]] if len(p_values) else []


def verdict(difference: Mean | None, above: str = "better", below: str = "worse") -> str:
    """What the interval of a mean difference says: `above` or `below` 0, or "undecided" where it holds 0; "one seed"
    where there is no interval, "not run" where there is nothing.

    >>> verdict(mean([0.4, 0.5, 0.6])), verdict(mean([-1.0, 0.0, 1.0])), verdict(None)
    ('better', 'undecided', 'not run')
    """
    if difference is None:
        return "not run"
    if not difference.df:
        return "one seed"
    return above if difference.low > 0 else below if difference.high < 0 else "undecided"


def tally(verdicts: Iterable[str]) -> str:
    """How often each verdict was given, the most frequent first.

    >>> tally(["undecided", "better", "undecided"])
    '2 undecided, 1 better'
    """
    return ", ".join(f"{count} {word}" for word, count in Counter(verdicts).most_common())


@dataclass(frozen=True)
class Outcome:
    """What a test found: the direction of an effect, and its size.

    Attributes:
        difference: the effect; None where it was not run.
        expected: the side of 0 for which the claim or the hypothesis speaks, +1 or −1.
        p: two-sided, of direction, corrected for the family.
        delta: the margin of equivalence; None where none was named.

    >>> gain = mean([0.1, -0.2, 0.0, 0.2, -0.1])
    >>> Outcome(gain, +1, gain.p_value, delta=0.5).says(), Outcome(gain, +1, gain.p_value).says()
    ('equivalent', 'undecided')
    """

    difference: Mean | None
    expected: int
    p: float = 1.0
    delta: float | None = None

    @property
    def ran(self) -> bool:
        """Does it have an interval, from two seeds or more?"""
        return self.difference is not None and self.difference.df > 0

    @property
    def size_p(self) -> float:
        """p of "the effect lies outside of ±δ", not corrected; 1 where there is no δ or no interval."""
        return self.difference.equivalent(self.delta) if self.difference is not None and self.delta else 1.0

    @property
    def equivalent(self) -> bool:
        """Does the effect lie within ±δ? A decided one may as well: then it is there, and small."""
        return self.size_p < ALPHA

    def says(self) -> str:
        """`"for"` or `"against"` where its direction is decided, else `"equivalent"` or `"undecided"`; `"one seed"` or
        `"not run"` where there is no interval."""
        if self.difference is None or not self.ran:
            return "not run" if self.difference is None else "one seed"
        if self.p < ALPHA:
            return "for" if self.difference.value * self.expected > 0 else "against"
        return "equivalent" if self.equivalent else "undecided"


def corrected(differences: Sequence[Mean | None]) -> list[float]:
    """The p-values of a family of effects after Holm's correction. Those without an interval do not count in it: 1.

    >>> [round(p, 2) for p in corrected([mean([0.4, 0.5, 0.6]), None, mean([-1.0, 0.0, 1.0])])]
    [0.03, 1.0, 1.0]
    """
    family = iter(holm([d.p_value for d in differences if d is not None and d.df]))
    return [next(family) if d is not None and d.df else 1.0 for d in differences]


def conclude(said: Iterable[str]) -> str:
    """The verdict on a family of tests, one of `VERDICTS`, from what each says.

    All decided tests for it: "holds". All against it: "does not hold". Some for and some against: "mixed". None
    decided, and every test that ran equivalent: "equivalent within δ" (all must be, so that no correction is needed;
    Berger 1982). None decided otherwise: "undecided". No test with two seeds: "not run".

    Raises:
        ValueError: a word that no `Outcome` says.

    >>> conclude(["for", "undecided"]), conclude(["equivalent", "not run"]), conclude(["equivalent", "undecided"])
    ('holds', 'equivalent within δ', 'undecided')
    """
    words = set(said) - {"one seed", "not run"}
    if unknown := words - {"for", "against", "equivalent", "undecided"}:
        raise ValueError(f"no test says {sorted(unknown)}")
    if not words:
        return "not run"
    if sides := {"for", "against"} & words:
        return "mixed" if len(sides) == 2 else "holds" if "for" in sides else "does not hold"
    return "equivalent within δ" if words == {"equivalent"} else "undecided"


def acted(change: Mean | None, delta: float) -> str:
    """Did a penalty move what it penalises? `"did not act"`: the 90 % interval of the change lies within ±δ. `"acted"`:
    it does not, and the 95 % interval excludes 0. Else `"unclear"`; `"not measured"` where there is no interval.

    >>> acted(mean([0.01, -0.01, 0.0]), 0.1), acted(mean([0.21, 0.19, 0.2]), 0.1), acted(mean([-1, 1, 3]), 0.1)
    ('did not act', 'acted', 'unclear')
    """
    if change is None or not change.df:
        return "not measured"
    if change.equivalent(delta) < ALPHA:
        return "did not act"
    return "acted" if change.p_value < ALPHA else "unclear"
