"""Statistics: each number against scipy, statsmodels or a simulation; each verdict reachable, and by one rule."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from companion.experiments import statistics
from companion.experiments.statistics import QUANTITIES, VERDICTS, Mean, Outcome, acted, conclude, corrected, mean


@pytest.fixture(scope="module", autouse=True)
def _no_rubbish_is_collected():
    """`multipletests` empties Python's rubbish at every call; thousands of calls would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda *_: 0)
        yield


GIVEN = ([0.4, 0.1, -0.3, 0.6, 0.2], [1.0, 1.2, 0.9], [-2.0, -1.0, -3.5], [0.0, 5.0])


# ---------------------------------------------------------------------------------------------------------------- means
@pytest.mark.parametrize("values", GIVEN)
def test_a_mean_is_students_t(values) -> None:
    found, by_scipy = mean(values), stats.ttest_1samp(values, 0)
    assert (found.value, found.count, found.df) == (pytest.approx(np.mean(values)), len(values), len(values) - 1)
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.95, found.df, np.mean(values), stats.sem(values))
    )
    assert found.error == pytest.approx(stats.sem(values)) and found.deviation == pytest.approx(np.std(values, ddof=1))
    assert found.p_value == pytest.approx(by_scipy.pvalue)
    narrow = mean(values, 0.9)
    assert (narrow.low, narrow.high) == pytest.approx(tuple(by_scipy.confidence_interval(0.9)))
    assert (narrow.value, narrow.p_value, narrow.count) == pytest.approx((found.value, found.p_value, found.count))


@pytest.mark.parametrize("values", GIVEN)
@pytest.mark.parametrize("within", [0.2, 1.0, 3.0])
def test_equivalence_is_two_one_sided_tests(values, within) -> None:
    """By statsmodels, paired as well; and below .05 exactly where the 90 % interval lies inside."""
    found = mean(values)
    assert found.equivalent(within) == pytest.approx(DescrStatsW(values).ttost_mean(-within, within)[0])
    before = np.linspace(70, 80, len(values))
    assert found.equivalent(within) == pytest.approx(ttost_paired(before + values, before, -within, within)[0])
    narrow = mean(values, 0.9)
    assert (found.equivalent(within) < 0.05) == (-within < narrow.low and narrow.high < within)


def test_one_value_has_no_interval_and_decides_nothing() -> None:
    one = mean([3.0])
    assert math.isinf(one.half) and math.isinf(one.error) and math.isinf(one.detectable()) and math.isnan(one.deviation)
    assert (one.p_value, one.equivalent(100), one.df) == (1, 1, 0)
    assert (str(one), one.signed(), statistics.verdict(one)) == ("3 (n = 1)", "+3.00", "one seed")
    assert Outcome(one, +1, 0.001, delta=9).says() == "one seed" and Outcome(None, +1).says() == "not run"


def test_values_without_spread() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same, none = mean([2.0, 2.0, 2.0 + 1e-15]), mean([0.0, 0.0])
        assert (same.half, same.p_value, same.equivalent(3), same.equivalent(1)) == (0, 0, 0, 1)
        assert (none.p_value, none.equivalent(0.1), none.detectable()) == (1, 0, 0)
    assert statistics.verdict(none) == "undecided" and same.signed(digits=None) == "+2.00 ± 0.00"
    assert mean([1e6, 1e6 + 1e-9]).half == 0 < mean([1e-14, 2e-14]).half  # rounding is a share of the values
    assert same.deciding(0.5) == 2 == mean([2.0, 2.0001, 1.9999]).deciding(0.5)  # one seed has no interval


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "the mean of no values"),
        ([1.0, math.nan], "1 of 2 values are not finite"),
        ([math.inf, math.nan], "2 of 2 values are not finite"),
        ([[1.0, 2.0]], r"shape \(1, 2\); give a list"),
    ],
)
def test_what_is_no_sample_is_refused(values, message) -> None:
    for average in (mean, statistics.sign_flip):
        with pytest.raises(ValueError, match=message):
            average(values)


def test_arrays_series_and_generators_are_samples() -> None:
    values = [1.0, 2.0, 4.0]
    forms = (np.array(values), pd.Series(values, index=[7, 8, 9]), (v for v in values), dict.fromkeys(values).keys())
    assert {mean(form) for form in forms} == {mean(values)}


def test_margins_and_levels_are_checked() -> None:
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"within={wrong}"):
            mean([1.0, 2.0]).equivalent(wrong)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match=rf"level={level}"):
            mean([1.0, 2.0], level)
    for power in (0.3, 1.0, 1.2):
        with pytest.raises(ValueError, match=rf"power={power}"):
            mean([1.0, 2.0]).detectable(power)
    for baseline in (None, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="5% of the baseline"):
            QUANTITIES["relative step"].margin(baseline)


def test_every_margin_is_in_one_table() -> None:
    deltas = {name: quantity.delta or quantity.share for name, quantity in QUANTITIES.items()}
    assert deltas == {
        "accuracy": 0.5,
        "accuracy after pruning": 1.0,
        "small weights": 0.5,
        "CKA in stages": 0.02,
        "CKA of all blocks": 0.02,
        "relative step": 0.05,
        "turning angle": 0.05,
    }
    assert all(quantity.why for quantity in QUANTITIES.values())


# ---------------------------------------------------------------------------------------------------------------- power
@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_detectable_effect_is_found_as_often_as_promised(n, power) -> None:
    """Of 40,000 draws with unit deviation and that true mean: within four standard errors of the promise."""
    drawn, rounds = np.random.default_rng(n), 40_000
    alike = Mean(0.0, float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n), n)  # deviation 1
    effect = alike.detectable(power)
    values = drawn.normal(effect, 1, (rounds, n))
    low = values.mean(1) - stats.t.ppf(0.975, n - 1) * values.std(1, ddof=1) / math.sqrt(n)
    assert abs((low > 0).mean() - power) < 4 * math.sqrt(power * (1 - power) / rounds)


def test_power_within_strata_counts_their_degrees_of_freedom() -> None:
    """Three rounds of two that lie far apart: six values, three degrees of freedom."""
    drawn, rounds, power = np.random.default_rng(0), 40_000, 0.8
    alike = statistics.stratified([[-1.0, 1.0], [9.0, 11.0], [0.0, 2.0]])
    effect = alike.detectable(power) / alike.deviation
    values = drawn.normal(effect, 1, (rounds, 3, 2)) + np.array([[5], [-5], [0]])
    error = np.sqrt(values.var(2, ddof=1).mean(1) / 6)
    found = values.mean((1, 2)) - stats.t.ppf(0.975, 3) * error > 0
    assert abs(found.mean() - power) < 4 * math.sqrt(power * (1 - power) / rounds)


def test_the_detectable_effect_solves_the_noncentral_t_at_every_power() -> None:
    for n, power, level in [
        *itertools.product((2, 3, 7, 20, 60), (0.5, 0.8, 0.95, 0.99), [0.95]),
        *itertools.product((3, 20), [0.8], (0.9, 0.99)),
    ]:
        margin = float(stats.t.ppf((1 + level) / 2, n - 1))
        unit = Mean(0.0, margin / math.sqrt(n), n, level)  # deviation 1
        reached = stats.nct.sf(margin, n - 1, unit.detectable(power) * math.sqrt(n))
        assert reached == pytest.approx(power, abs=1e-6), (n, power, level)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_seeds_that_an_effect_takes_at_every_level(level: float) -> None:
    """As many as the noncentral t asks for, counted from two on; at .9 equivalence at .05 takes more than direction."""
    unit, within = Mean(0.3, float(stats.t.ppf((1 + level) / 2, 9)) / math.sqrt(10), 10, level), 0.7  # deviation 1

    def found(n: int) -> bool:
        shift, margin = within * math.sqrt(n), stats.t.ppf(0.95, n - 1)
        some = stats.nct.sf(stats.t.ppf((1 + level) / 2, n - 1), n - 1, shift)
        none = stats.nct.sf(margin, n - 1, shift) - stats.nct.sf(-margin, n - 1, -shift)
        return min(some, none) >= 0.8

    assert unit.deciding(within) == next(n for n in itertools.count(2) if found(n))


# ------------------------------------------------------------------------------------------------- rounds, cells, signs
def test_strata_by_hand() -> None:
    """The spread within the rounds, over N − K; rounds that lie apart do not widen the interval."""
    rounds = [[1.0, 2.0, 4.0], [11.0, 12.5], [-3.0]]
    found = statistics.stratified(rounds)
    everything = np.concatenate(rounds)
    within = sum(((np.array(r) - np.mean(r)) ** 2).sum() for r in rounds) / 3
    assert (found.value, found.df, found.count) == (pytest.approx(everything.mean()), 3, 6)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 3) * math.sqrt(within / 6))
    assert found.deviation == pytest.approx(math.sqrt(within)) and found.half < mean(everything).half / 3
    assert statistics.stratified([everything]) == mean(everything)
    narrow = statistics.stratified(rounds, level=0.8)
    assert narrow.half == pytest.approx(stats.t.ppf(0.9, 3) * math.sqrt(within / 6)) and narrow.level == 0.8
    moved = statistics.stratified([[v + shift for v in r] for r, shift in zip(rounds, (5, -5, 3), strict=True)])
    assert moved.half == pytest.approx(found.half)


def test_strata_without_a_spread_have_no_interval() -> None:
    one_each = statistics.stratified([[1.0], [2.0]])
    assert math.isinf(one_each.half) and one_each.p_value == 1 and str(one_each) == "1.5 (n = 2)"
    alike = statistics.stratified([[1.0, 1.0], [2.0, 2.0]])
    assert (alike.half, alike.df) == (0, 2)
    for wrong in ([], [[1.0, 2.0], []]):
        with pytest.raises(ValueError, match="no values"):
            statistics.stratified(wrong)


def test_strata_keep_their_level() -> None:
    """No effect, rounds of unlike size: a wrong direction in 5 of 100."""
    drawn = np.random.default_rng(1)
    found = [statistics.stratified([drawn.normal(size=4), drawn.normal(size=7)]).p_value < 0.05 for _ in range(2000)]
    assert abs(np.mean(found) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_clusters_are_averaged_first() -> None:
    found = statistics.clustered([1.0, 3.0, 5.0, 7.0, 8.0], [("a", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 0)])
    assert found == mean([2.0, 5.0, 7.5])
    assert statistics.clustered([2.0, 5.0, 7.5], "abc", level=0.8) == mean([2.0, 5.0, 7.5], 0.8)
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        statistics.clustered([1.0, 2.0], ["a"])
    for unnamed in (None, float("nan")):
        with pytest.raises(ValueError, match="1 of 3 clusters are None or NaN"):
            statistics.clustered([10.0, 2.0, 3.0], [unnamed, "a", "b"])


def test_sign_flips_are_all_counted() -> None:
    values = np.array([0.3, -0.1, 0.8, 0.4, 0.2, 0.5, 0.6])
    patterns = np.array(list(itertools.product((1, -1), repeat=7)))
    exact = (abs(patterns @ values) >= abs(values.sum()) - 1e-12).mean()
    assert statistics.sign_flip(values) == pytest.approx(exact) == statistics.sign_flip(-values)
    assert statistics.sign_flip(values[:5]) is None
    many = np.random.default_rng(2).normal(0.3, 1, 20)
    assert statistics.sign_flip(many) == statistics.sign_flip(many)  # drawn alike every time
    assert abs(statistics.sign_flip(many) - mean(many).p_value) < 0.03


def restricted_likelihood(table: pd.DataFrame, experiment: float, seed: float, residual: float) -> tuple[float, ...]:
    """Minus the log of the restricted likelihood, the mean and its error, from the definition (Harville 1977)."""
    groups = [table["experiment"], table["experiment"] + table["seed"].astype(str)]
    alike = [np.equal.outer(g.to_numpy(), g.to_numpy()) for g in groups]
    covariance = experiment * alike[0] + seed * alike[1] + residual * np.eye(len(table))
    inverse, ones = np.linalg.inv(covariance), np.ones(len(table))
    information = ones @ inverse @ ones
    centre = ones @ inverse @ table["value"] / information
    rest = table["value"].to_numpy() - centre
    loss = 0.5 * (np.linalg.slogdet(covariance)[1] + math.log(information) + rest @ inverse @ rest)
    return loss, centre, 1 / math.sqrt(information)


@pytest.mark.parametrize("spread", [(0.0, 0.0), (0.8, 0.0), (0.0, 0.8), (1.0, 1.0)])
def test_the_common_effect_has_the_highest_restricted_likelihood(spread) -> None:
    """On the boundary too, where searches that follow a gradient stop short."""
    drawn, rows = np.random.default_rng(3), []
    for name, seeds in (("a", 5), ("b", 4), ("c", 3), ("d", 3)):
        place = spread[0] * drawn.normal()
        for seed in range(seeds):
            there = place + spread[1] * drawn.normal()
            rows += [(name, seed, 0.3 + there + 0.5 * drawn.normal()) for _ in range(2)]
    table = pd.DataFrame(rows, columns=["experiment", "seed", "value"])
    found = statistics.common_effect(table["value"], table["experiment"], table["seed"])
    best = min(
        (
            optimize.minimize(
                lambda logs: restricted_likelihood(table, *np.exp(logs))[0], start, method="Nelder-Mead",
                options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000, "maxfev": 4000},
            )
            for start in itertools.product((-6.0, 0.0), (-6.0, 0.0), (-1.0,))
        ),
        key=lambda result: result.fun,
    )  # fmt: skip
    _, centre, error = restricted_likelihood(table, *np.exp(best.x))
    own = restricted_likelihood(table, found.experiments**2, found.seeds**2, found.residual**2)
    assert found.converged and own[0] < best.fun + 1e-4
    assert found.value == pytest.approx(centre, abs=0.01) and found.half == pytest.approx(1.96 * error, rel=0.05)
    narrow = statistics.common_effect(table["value"], table["experiment"], table["seed"], level=0.9)
    assert narrow.half == pytest.approx(found.half * 1.644854 / 1.959964, rel=1e-6)


def test_a_common_effect_needs_several_experiments() -> None:
    for experiments in ("aaaa", "abcd"):
        with pytest.raises(ValueError, match="give at least two of them, one with two values"):
            statistics.common_effect([1, 2, 3, 5], experiments, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="3 experiments and 2 seeds"):
        statistics.common_effect([1, 2], "abc", [0, 1])
    for lists in ((["a", "a", None, "b"], [0, 1, 0, 1]), (["a", "a", "b", "b"], [0, 1, None, 1])):
        with pytest.raises(ValueError, match=r"1 of 4 (experiments|seeds) are None or NaN"):
            statistics.common_effect([1, 2, 3, 5], *lists)


# ------------------------------------------------------------------------------------------------------------- verdicts
def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.6]) == [1.0, 1.0] and statistics.holm([]) == []
    with pytest.raises(ValueError, match=r"between 0 and 1, not \[1\.2\]"):
        statistics.holm([0.1, 1.2])


def test_a_verdict_agrees_with_the_interval() -> None:
    for values in GIVEN:
        found = mean(values)
        assert (found.p_value < 0.05) == (statistics.verdict(found) != "undecided") == (found.low > 0 or found.high < 0)
    assert statistics.verdict(mean([1.0, 1.2, 0.9])) == "better"
    assert statistics.verdict(mean([-1.0, -1.2, -0.9]), below="shorter") == "shorter"
    assert statistics.verdict(mean([3.0])) == "one seed" and statistics.verdict(None) == "not run"
    assert mean([0.25, -0.75]).signed(1) == "−0.2 ± 6.4" and mean([0.5]).signed() == "+0.50"
    assert Mean(-12.3, half=250.0, count=2).signed(digits=None) == "−12 ± 250"


NOISE = (0.1, -0.2, 0.0, 0.2, -0.1)


def effect(shift: float, delta: float | None = 0.5, scale: float = 1.0) -> tuple[Mean, float | None]:
    return mean([shift + scale * noise for noise in NOISE]), delta


def judged(effects, expected: int = 1) -> str:
    """The verdict on these effects as one family."""
    p = corrected([difference for difference, _ in effects])
    return conclude(Outcome(d, expected, q, delta).says() for (d, delta), q in zip(effects, p, strict=True))


UP, DOWN, SMALL, WIDE, ABSENT = effect(1), effect(-1), effect(0), effect(0.1, scale=9), (None, 0.5)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([UP], "holds"),
        ([UP, SMALL, WIDE], "holds"),
        ([DOWN], "does not hold"),
        ([UP, DOWN], "mixed"),
        ([SMALL], "equivalent within δ"),
        ([SMALL, ABSENT, SMALL], "equivalent within δ"),
        ([SMALL, WIDE], "undecided"),
        ([effect(0, delta=None)], "undecided"),
        ([WIDE], "undecided"),
        ([ABSENT], "not run"),
        ([(mean([3.0]), 0.5)], "not run"),
        ([], "not run"),
    ],
)
def test_each_verdict_is_reached(effects, verdict) -> None:
    assert judged(effects) == verdict and verdict in VERDICTS


def test_all_verdicts_are_reached() -> None:
    said = {judged(e) for e in ([UP], [DOWN], [UP, DOWN], [SMALL], [WIDE], [])}
    assert said == set(VERDICTS)


def test_direction_and_size_are_two_questions() -> None:
    """A decided effect may lie within δ: it is there, and small. It never makes a claim equivalent."""
    there, delta = effect(0.25, scale=0.1)
    outcome = Outcome(there, +1, there.p_value, delta)
    assert outcome.says() == "for" and outcome.equivalent
    assert conclude([outcome.says(), Outcome(SMALL[0], +1, 1.0, 0.5).says()]) == "holds"


floats = st.floats(-3, 3).map(lambda v: round(v, 2))
effects = st.lists(
    st.one_of(
        st.just(ABSENT),
        st.tuples(st.lists(floats, min_size=1, max_size=6).map(mean), st.sampled_from([None, 0.5, 2.0])),
    ),
    max_size=6,
)
OPPOSITE = {"holds": "does not hold", "does not hold": "holds"}


def mirrored(difference: Mean | None) -> Mean | None:
    return None if difference is None else Mean(-difference.value, difference.half, difference.count)


@settings(max_examples=200, deadline=None)
@given(effects)
def test_the_engine_is_symmetric(given_effects) -> None:
    """Signs of all effects turned: the opposite verdict. Claim and effects turned: the same."""
    verdict = judged(given_effects)
    turned = [(mirrored(difference), delta) for difference, delta in given_effects]
    assert judged(turned) == OPPOSITE.get(verdict, verdict) == judged(given_effects, expected=-1)
    assert judged(turned, expected=-1) == verdict


@settings(max_examples=200, deadline=None)
@given(effects, st.randoms())
def test_order_and_absent_tests_change_nothing(given_effects, chance) -> None:
    verdict = judged(given_effects)
    shuffled = chance.sample(given_effects, len(given_effects))
    assert judged(shuffled) == verdict
    assert judged([*given_effects, ABSENT]) == judged([*given_effects, (mean([9.0]), 0.5)]) == verdict


@settings(max_examples=200, deadline=None)
@given(effects)
def test_equivalence_takes_every_test_and_decided_ones_exclude_it(given_effects) -> None:
    verdict = judged(given_effects)
    ran = [(d, delta) for d, delta in given_effects if d is not None and d.df]
    small = [delta is not None and d.equivalent(delta) < 0.05 for d, delta in ran]
    none_decided = all(p >= 0.05 for p in corrected([d for d, _ in ran]))
    assert (verdict == "equivalent within δ") == (bool(ran) and all(small) and none_decided)


@pytest.mark.slow
def test_a_family_without_effects_errs_in_five_of_a_hundred() -> None:
    """Seven tests that share their baseline, as ours do: Holm needs no independence."""
    drawn, errors = np.random.default_rng(4), 0
    for _ in range(600):
        base = drawn.normal(size=5)
        family = [(mean(drawn.normal(size=5) - base), None) for _ in range(7)]
        errors += judged(family) != "undecided"
    assert errors / 600 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([-0.001, 0.002, 0.0], "did not act"),
        ([-0.0150, -0.0155, -0.0145], "did not act"),  # decided, and smaller than δ
        ([-0.30, -0.28, -0.31], "acted"),
        ([-0.05, 0.04, 0.01], "unclear"),
        ([-0.30], "not measured"),
    ],
)
def test_whether_a_penalty_acted(values, state) -> None:
    assert acted(mean(values), 0.02) == state == acted(mean([-v for v in values]), 0.02)
    assert acted(None, 0.02) == "not measured"


def test_not_significant_is_not_the_same_as_nothing() -> None:
    few = mean([-0.05, 0.04, 0.01])
    assert few.p_value > 0.05 and acted(few, 0.02) == "unclear"


@pytest.mark.parametrize("margin", [1.0, 0.8, 0.66, 0.6])
def test_the_seeds_that_equivalence_alone_takes(margin: float) -> None:
    """So many pairs, and no fewer, find equivalence four times out of five if there is no difference."""
    unit = Mean(0.3, half=float(stats.t.ppf(0.975, 9)) / math.sqrt(10), count=10)  # deviation 1; the mean plays no part

    def share(count: int) -> float:
        drawn = np.random.default_rng(count).normal(size=(40_000, count))
        half = stats.t.ppf(0.95, count - 1) * drawn.std(1, ddof=1) / math.sqrt(count)
        return float((abs(drawn.mean(1)) + half < margin).mean())

    count = unit.deciding(margin, effect=False)
    assert share(count) > 0.79 and share(count - 1) < 0.81
    assert count <= unit.deciding(margin)
