"""The page of claims: rebuilt from the records, and its numbers recomputed from JSON by NumPy and SciPy alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.collections import PathCollection
from matplotlib.testing.compare import compare_images
from PIL import Image
from scipy import stats

from companion import plots
from companion.experiments import EXPERIMENTS, Experiment, Tier, claims, published, quantities, records, replay
from companion.experiments.claims import CLAIMS, Claim, Comparison, Judgement
from companion.experiments.hypotheses import THIRD, judge
from companion.experiments.notebook import colour_of
from companion.experiments.records import Record, Run
from companion.experiments.statistics import QUANTITIES, VERDICTS, Mean, mean
from scripts import forest, pictures, results, summary

RESULTS = ROOT / "book" / "results"
ROUNDS = ("dense_penalties", "dense_penalties_again")


@pytest.fixture(scope="module")
def written() -> str:
    return results.PAGE.read_text()


@pytest.mark.slow
def test_the_page_is_what_the_records_say(written):
    assert results.page() == written, "python scripts/results.py writes the page anew"


@pytest.mark.slow
def test_the_summary_is_what_the_records_say():
    assert summary.page() == summary.PAGE.read_text(), "python scripts/summary.py writes it anew"


@pytest.mark.parametrize("half, count, within", [(0.5, 5, 0.5), (2.0, 3, 1.0), (0.3, 8, 0.25)])
def test_the_seeds_that_decide_find_effect_and_equivalence_four_times_out_of_five(half, count, within):
    """By simulation: 40,000 samples of normal differences, with that many seeds and with one seed fewer."""
    seen = Mean(0.0, half, count)
    enough = seen.deciding(within)

    def share(n: int) -> float:
        values = np.random.default_rng(n).normal(0, seen.deviation, (40_000, n))
        error = values.std(axis=1, ddof=1) / n**0.5
        found = (values.mean(axis=1) + within) / error > stats.t.ppf(0.975, n - 1)
        none = abs(values.mean(axis=1)) + stats.t.ppf(0.95, n - 1) * error < within
        return min(found.mean(), none.mean())

    assert share(enough - 1) < 0.81 and share(enough) > 0.79


def test_what_would_decide_a_claim_counts_each_cell_once():
    """Claim 2 from the JSON alone: AugCKA-SR under random masks, two data sets, two sparsities."""
    claim = next(one for one in CLAIMS if one.text.startswith("AugCKA-SR, the form"))
    hours, most = 0.0, 0
    for name in ("random_masks", "random_masks_cifar100"):
        for sparsity in sorted({t.sparsity for t in claim.tests if t.experiments == (name,)}):
            made = {}
            for path in (RESULTS / name / "laptop").glob("*.json"):
                one = json.loads(path.read_text())
                if one["run"]["sparsity"] == sparsity:
                    made.setdefault(one["run"]["method"], {})[one["run"]["seed"]] = one
            there, here = made["random"], made["random+aug_cka_sr"]
            gains = [percent(here[s]["result"]["test"]) - percent(there[s]["result"]["test"]) for s in here]
            seeds = math.ceil(mean(gains).deciding(0.5))
            most = max(most, seeds)
            for arm in (here, there):
                seconds = [one["provenance"]["wall_seconds"] * one["provenance"]["threads"] for one in arm.values()]
                hours += (seeds - len(gains)) * np.mean(seconds) / 3600
    lacks = claim.judged().missing()
    assert lacks.seeds == most and lacks.hours == pytest.approx(hours)


def test_the_answer_on_the_first_page_is_what_the_records_say():
    (found,) = results.ANSWER.findall(results.INTRO.read_text())
    assert found == results.answer(), "python scripts/results.py writes it anew"
    assert len(re.findall(r"^- \*\*.+?\.\*\*\s", found, re.MULTILINE)) == 4  # points, each with what it says first
    assert len(found.split()) < 320


def test_the_number_that_is_explained_is_one_of_the_book(written):
    (example,) = re.findall(r"\*\*(\S+ ± \S+ points, n = [\d +]+)\*\*", (ROOT / "book" / "how_to_read.md").read_text())
    assert f"  - {example};" in written


def test_the_figure_shows_what_the_records_say():
    with Image.open(results.PICTURE) as picture:
        assert picture.info["Description"] == forest.digest(results.drawn()), "python scripts/results.py draws it anew"
        assert picture.width == round(288 * forest.WIDTH) and picture.height > 2 * picture.width


def test_the_figure_draws_every_test_at_its_numbers():
    """The picture in the book is compared by the numbers that it was made from; this is how they are drawn."""
    drawn = {  # says → effect, ends of its interval, colour and marker
        "for": (3.0, 2.5, 5.0, plots.BLUE, ">"),
        "against": (-1.5, -4.0, -0.5, plots.VERMILION, "<"),
        "equivalent": (0.25, -0.5, 0.75, plots.GREEN, "s"),
        "undecided": (0.5, -2.5, 3.0, plots.GREY, "o"),
    }
    lines = [forest.Line(*numbers, says) for says, (*numbers, _, _) in drawn.items()]
    figure = forest.forest([forest.Drawn(4, "a claim", "mixed", lines)])
    (axis,), (legend,) = figure.axes, figure.legends
    shown = [(line.get_color(), line.get_marker(), line.get_xdata().round(9).tolist()) for line in axis.lines[1:]]
    assert shown == [
        part
        for value, low, high, colour, marker in drawn.values()
        for part in ((colour, marker, [value]), (colour, "None", [low, high]))
    ]
    looks = zip(legend.get_texts(), legend.legend_handles, strict=True)
    assert [(text.get_text(), handle.get_color(), handle.get_marker()) for text, handle in looks] == [
        (says.replace("equivalent", "within δ"), colour, marker) for says, (*_, colour, marker) in drawn.items()
    ]
    (band,) = axis.patches
    assert (band.get_x(), band.get_width()) == (-1, 2)  # ±δ
    small = forest.Drawn(7, "another", "holds", lines[:1], small=True)
    assert "holds, < δ" in [text.get_text() for text in forest.forest([small]).axes[0].texts]
    assert forest.in_words([small]).endswith("7, another: holds, by less than δ.")
    sides = {text.get_text(): text.get_ha() for text in axis.texts}
    assert (sides["← against the claim"], sides["for the claim →"]) == ("left", "right") and not axis.xaxis_inverted()


# ------------------------------------------------------------------------------- once more, by NumPy and SciPy alone
@functools.cache
def nets(experiment: str) -> dict[tuple[str, float | None, int], dict]:
    """Every record of an experiment, by method, sparsity and seed."""
    found = [json.loads(path.read_text()) for path in (RESULTS / experiment / "laptop").glob("*.json")]
    return {(r["run"]["method"], r["run"]["sparsity"], r["run"]["seed"]): r for r in found}


def percent(part: dict) -> float:
    return 100 * part["correct"] / part["examples"]


def accuracy(net: dict) -> float:
    return percent(net["result"]["test"])


def pruned(sparsity: float):
    def read(net: dict) -> float:
        levels = [level for level in net["result"]["weights"] if level["sparsity"] == sparsity]
        (level,) = [level for level in levels if level.get("criterion", "magnitude") == "magnitude"]
        return percent(level["pruned"]["test"])

    return read


def removed(macs: float):
    def read(net: dict) -> float:
        level = net["run"]["settings"]["prune"]["macs"].index(macs)
        return percent(net["result"]["filters"][level]["fine_tuned"]["test"])

    return read


def similarity(same_stage: bool):
    def read(net: dict) -> float:
        table = net["measures"]["cka"]
        blocks = [(i, name) for i, name in enumerate(table["layers"]) if name.startswith("layer")]
        return float(
            np.mean(
                [
                    table["values"][i][j]
                    for (i, a), (j, b) in itertools.combinations(blocks, 2)
                    if not same_stage or a.split(".")[0] == b.split(".")[0]
                ]
            )
        )

    return read


def trajectory(key: str):
    return lambda net: float(np.mean(net["measures"]["trajectory"][key]))


def below_a_tenth(net: dict) -> float:
    """% of the weights alive within a tenth of their root mean square, from histograms in units of all weights' RMS."""
    small = alive = 0.0
    edges = net["measures"]["weights"]["edges"]
    for layer in net["measures"]["weights"]["layers"]:
        counts = np.array(layer["histogram"], dtype=float)
        counts[0] -= layer["zeros"]
        of_alive = 0.1 * math.sqrt(math.prod(layer["shape"]) / counts.sum())
        reached = np.concatenate([[0.0], np.cumsum(counts)[:-1]])
        small += np.interp(of_alive, edges, reached) if of_alive > edges[1] else counts[0]
        alive += counts.sum()
    return 100 * small / alive


READ = {
    "accuracy": lambda title: accuracy,
    "accuracy after pruning": lambda title: (
        removed(0.5)
        if "½" in title
        else removed(0.25)
        if "¼" in title
        else pruned(float("0." + re.search(r"\.(\d)$", title)[1]))
    ),
    "small weights": lambda title: below_a_tenth,
    "CKA in stages": lambda title: similarity(True),
    "CKA of all blocks": lambda title: similarity(False),
    "relative step": lambda title: trajectory("relative_length"),
    "turning angle": lambda title: trajectory("angle"),
}


CALLED = {  # how a later study calls what the first rounds trained
    ("depth", "ffr_length"): "ffr_length_0.01",
    ("specificity", "ffr_length_curvature"): "ffr",
}


def rounds(experiments, method, baseline, read, sparsity=None) -> list[np.ndarray]:
    """Paired differences, an array for each round that has both."""
    found = []
    for name in experiments:
        there, sides = nets(name), [CALLED.get((name, side), side) for side in (method, baseline)]
        seeds = sorted(set.intersection(*({s for m, p, s in there if (m, p) == (side, sparsity)} for side in sides)))
        one, other = sides
        gaps = [read(there[one, sparsity, s]) - read(there[other, sparsity, s]) for s in seeds]
        found += [np.array(gaps)] if gaps else []
    return found


def plain(values, level=0.95) -> tuple[float, float, float]:
    """Mean, half its interval, two-sided p; Student's t."""
    values = np.concatenate(values) if isinstance(values, list) else np.asarray(values)
    error, t = stats.sem(values), stats.t(len(values) - 1)
    return values.mean(), t.ppf((1 + level) / 2) * error, 2 * t.sf(abs(values.mean() / error))


def stratified(values: list[np.ndarray], level=0.95) -> tuple[float, float, float]:
    """The same with the spread within the rounds."""
    n, df = sum(map(len, values)), sum(map(len, values)) - len(values)
    error = math.sqrt(sum(((v - v.mean()) ** 2).sum() for v in values) / df / n)
    centre, t = np.concatenate(values).mean(), stats.t(df)
    return centre, t.ppf((1 + level) / 2) * error, 2 * t.sf(abs(centre / error))


def holm(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1, np.maximum.accumulate(factors * np.array(p_values)[order]))
    return adjusted[np.argsort(order)].tolist()


@pytest.mark.slow
def test_the_pictures_are_what_the_records_say(tmp_path):
    pictures.main(tmp_path)
    for drawn in sorted(tmp_path.glob("*.png")):
        unlike = compare_images(str(pictures.STATIC / drawn.name), str(drawn), tol=2)
        assert unlike is None, f"python scripts/pictures.py draws them anew: {unlike}"


def test_the_picture_of_the_answer_shows_every_round():
    """A dot for each pair of records, whichever study trained it."""
    left, right = pictures.answer().axes
    lines = {line.get_color(): line.get_xydata() for line in left.lines}
    dots = [found for found in right.collections if isinstance(found, PathCollection)]
    small = np.concatenate([found.get_offsets() for found in dots])
    pairs = {"aug_cka_sr": 40, "cka_sr": 30, "ffr_length_curvature": 40, "ffr_length": 20, "group_lasso": 5}
    for row, (method, n) in enumerate(pairs.items()):
        studies = ("specificity",) if method == "cka_sr" else (*ROUNDS, *claims.LATER)  # CKA-SR where it acts
        step, alike, weights = (
            np.concatenate(rounds(studies, method, "none", read))
            for read in (trajectory("relative_length"), similarity(True), below_a_tenth)
        )
        assert len(step) == n
        np.testing.assert_allclose(np.sort(small[np.round(small[:, 1]) == row, 0]), np.sort(weights))
        if method in ("aug_cka_sr", "cka_sr", "ffr_length_curvature"):
            np.testing.assert_allclose(lines[colour_of(method)], np.stack([step, alike], axis=1))


def test_every_effect_is_recomputed_from_the_files(written):
    """Every comparison: effect, interval, corrected p, p of size and what the penalty did, and the digits printed."""
    shown: dict[tuple[str, str], list[tuple[float, float]]] = {}  # a test's title and unit → what the page prints
    for title, centre, half, unit in re.findall(r"^\* - (.*)\n  - (\S+) ± (\S+) (.*?), n = ", written, re.MULTILINE):
        shown.setdefault((title, unit), []).append((float(centre.replace("−", "-")), float(half)))
    checked = 0
    for judged in results.judgements():
        found = []
        for t in (*judged.tests, *judged.beside):
            if t.test.less:
                continue
            test, read = t.test, READ[t.test.quantity](t.test.title)
            centre, half, p = stratified(rounds(test.experiments, test.method, test.baseline, read, test.sparsity))
            found.append(p)
            assert (t.difference.value, t.difference.half) == pytest.approx((centre, half), rel=1e-6, abs=1e-9), test
            apart = rounds(test.experiments, test.method, test.baseline, read, test.sparsity)
            p = stats.f_oneway(*apart).pvalue if len(apart) > 1 else None
            assert test.apart() == (p if p is None else pytest.approx(p, rel=1e-5))
            assert ("rounds differ" in results.effect_of(t, strata=False)) == (p is not None and p < 0.05)
            delta = QUANTITIES[test.quantity].delta
            if delta is None:
                there = [(key, net) for name in test.experiments for key, net in nets(name).items()]
                delta = 0.05 * np.mean([read(net) for (method, *_), net in there if method == test.baseline])
                assert t.delta == pytest.approx(delta)
            narrow = stratified(rounds(test.experiments, test.method, test.baseline, read, test.sparsity), 0.9)[1]
            assert t.equivalent == (abs(centre) + narrow < delta)
            title = f"{test.title} ({claims.strength_of(test.run())})"
            near = pytest.approx((centre, half), abs=0.501 * 10 ** -QUANTITIES[test.quantity].digits)
            assert any(numbers == near for numbers in shown[title, test.measured.unit]), test.title
            checked += 1
        if found and not any(t.test.less for t in judged.tests):
            family = len(judged.tests)
            assert [t.p for t in judged.tests] == pytest.approx(holm(found[:family]), rel=1e-5)
            assert [t.p for t in judged.beside] == pytest.approx(found[family:], rel=1e-5)
    assert checked >= 70


def test_the_two_rounds_together():
    """AugCKA-SR after pruning, with and without strata, and the filters that it costs."""
    gain, loss = (rounds(ROUNDS, "aug_cka_sr", "none", pruned(s)) for s in (0.9, 0.8))
    assert stratified(gain)[:2] == pytest.approx((1.75, 0.73), abs=0.005)
    assert plain(gain)[:2] == pytest.approx((1.75, 0.73), abs=0.005) and (np.concatenate(gain) > 0).all()
    assert stratified(loss)[:2] == pytest.approx((-1.39, 0.62), abs=0.005)
    assert plain(loss)[:2] == pytest.approx((-1.39, 0.72), abs=0.005)
    for macs, centre, half, p in ((0.5, -2.42, 1.19, 0.001), (0.25, -5.30, 2.15, 0.0004)):
        found = plain(rounds(ROUNDS, "aug_cka_sr", "none", removed(macs)))
        assert found[:2] == pytest.approx((centre, half), abs=0.005) and found[2] < 1.5 * p
    less = [
        a - b
        for a, b in zip(
            gain, rounds(ROUNDS, "ffr_length_curvature", "none", pruned(0.9)), strict=True
        )
    ]  # fmt: skip
    assert plain(less)[:2] == pytest.approx((0.22, 1.08), abs=0.005)


def clusters(penalty: str, read) -> np.ndarray:
    """One mean for each experiment and seed, over the sparsities that it has."""
    found: dict[tuple[str, int], list[float]] = {}
    for name, host in (
        ("random_masks", "random"),
        ("random_masks_cifar100", "random"),
        ("granet", "granet"),
        ("lottery", "lottery"),
    ):
        there = nets(name)
        for (method, sparsity, seed), net in there.items():
            if method == f"{host}+{penalty}":
                found.setdefault((name, seed), []).append(read(net) - read(there[host, sparsity, seed]))
    return np.array([np.mean(values) for values in found.values()])


def test_all_hosts_together():
    for penalty, centre, half in (("cka_sr", -0.17, 0.25), ("aug_cka_sr", 0.17, 0.34)):
        own = clusters(penalty, accuracy)
        assert len(own) == 14 and plain(own)[:2] == pytest.approx((centre, half), abs=0.006)
        found = results.across(penalty)
        assert (found.value, found.half, found.count) == pytest.approx((*plain(own)[:2], 14))
    table = published.random_masks_cifar100()
    assert (table.loc["random+cka_sr"] - table.loc["random"]).mean() > sum(plain(clusters("cka_sr", accuracy))[:2])


@pytest.mark.slow
def test_cka_sr_did_not_act_under_its_hosts():
    """No cell moved by more than .006 in the mean. In one of seven that is unclear, with three seeds; not in all."""
    seen = {}
    for test in claims.ACROSS_HOSTS["cka_sr"]:
        gaps = rounds(test.experiments, test.method, test.baseline, similarity(True), test.sparsity)
        centre, half, _ = plain(gaps, 0.9)
        assert abs(centre) <= 0.006
        check = test.manipulation()
        assert check.quantity == "CKA in stages" and claims.effect(check).value == pytest.approx(centre)
        (t,) = Claim("CKA-SR", "a", "b", "c", "d", (test,)).judged().tests
        assert (t.penalty == "did not act") == (abs(centre) + half < 0.02)
        seen[test.experiments[0], test.sparsity] = t.penalty
    assert [cell for cell, said in seen.items() if said != "did not act"] == [("random_masks_cifar100", 0.98)]
    centre, half, _ = plain(clusters("cka_sr", similarity(True)), 0.9)
    assert abs(centre) + half < 0.02


def judgement(label: str) -> Judgement:
    (found,) = [one for claim, one in zip(CLAIMS, results.judgements(), strict=True) if claim.label == label]
    return found


def test_the_verdicts():
    for label in ("a net can lose more weights", "a net can lose more filters", "it helps at any strength β"):
        assert judgement(label).verdict == "does not hold"
    assert {one.verdict for one in results.judgements()} == set(VERDICTS) - {"mixed"}
    for label, verdict in (("it makes weights small", "holds"), ("FFR makes weights small", "equivalent within δ")):
        assert judgement(label).verdict == verdict
        for t in judgement(label).tests:
            gaps = rounds(t.test.experiments, t.test.method, t.test.baseline, below_a_tenth, t.test.sparsity)
            centre, half, _ = stratified(gaps, 0.9)
            assert abs(centre) + half < 0.5 and t.size_p <= 0.042 and t.post_hoc
    assert [one.small for one in results.judgements()].count(True) == 1 and judgement("it makes weights small").small
    for page in (results.PAGE, summary.PAGE):  # sure, and an eighth of what would count
        assert re.search(r"olds(\*\*)?, by less than δ", page.read_text())


def test_the_gain_of_ten_seeds_is_gone_on_thirty():
    """Claim 8's remark, the first page and *In brief* tell it; from the JSON, and by Welch's t."""
    seen, new = (
        np.concatenate(rounds(names, "aug_cka_sr", "none", pruned(0.9))) for names in (ROUNDS, ["specificity"])
    )
    assert len(seen) == 10 and (seen > 0).all() and len(new) == 30
    centre, half, _ = plain(new)
    assert abs(centre) < half < 1 and stats.ttest_ind(seen, new, equal_var=False).pvalue < 0.01
    first, once_more = map(claims.effect, claims.ONCE_MORE)
    assert (once_more.value, once_more.half) == pytest.approx((centre, half))
    assert first.value == pytest.approx(seen.mean()) and first.low > 0
    poor, usual = (
        np.mean([pruned(0.9)(net) for name in names for (method, *_), net in nets(name).items() if method == "none"])
        for names in (ROUNDS, ["specificity"])
    )
    assert poor < usual
    said = judgement("a net can lose more weights")
    (remark,) = (claim.remark(said) for claim in CLAIMS if claim.label == "a net can lose more weights")
    assert f"({poor:.1f} % against {usual:.1f} %)" in remark and f"{centre:+.2f}".replace("-", "−") in remark


# ---------------------------------------------------------------------------------------------------------- sentences
def test_what_the_sentences_conclude_is_so():
    """Numbers in sentences come from code; this is for the words around them."""
    weights = judgement("a net can lose more weights")
    by_method = {t.test.method: t for t in (*weights.tests, *weights.beside) if t.test.title.endswith(".9")}
    raised = claims.effect(next(t for t in claims.MOVED["ffr_length_curvature"] if t.quantity == "CKA in stages"))
    (less,) = [t for t in weights.beside if t.test.baseline != "none"]
    assert raised.low > 0 and less.says() == "equivalent"
    assert by_method["aug_cka_sr"].says() == "equivalent"
    *smaller, largest = judgement("it helps at any strength β").tests
    assert all(abs(t.change.value) < 0.02 for t in smaller) and largest.penalty == "acted"  # "none acted"
    step, cka, blocks = ({m: claims.effect(tests[i]) for m, tests in claims.MOVED.items()} for i in range(3))
    assert cka["cka_sr"].high < 0 < step["cka_sr"].low and blocks["aug_cka_sr"].high < 0 < step["aug_cka_sr"].low
    assert step["ffr_length"].high < 0 < cka["ffr_length"].low
    assert step["ffr_length_curvature"].high < 0 < cka["ffr_length_curvature"].low
    (rival,) = {
        t.says()
        for one in results.judgements()
        for t in one.tests
        if t.test.method == "ffr_length_curvature" and t.test.title.endswith("weights pruned to .9")
    }
    assert rival == "undecided"  # the pages say so where they tell of it
    both = "ffr_length_curvature"
    assert results.read_of(both, quantities.cka_between_stages).high < 0  # "between stages … lowers it"
    for reading in (quantities.raw_norms, quantities.inner_scale):  # "they did in the blocks that open a stage"
        assert results.read_of(both, functools.partial(reading, opening=True)).low > 0
    for method, experiment in (("ffr_length", "dense_penalties"), (both, "dense_penalties_again")):
        here, there = (  # "the last γ changes by …": undecided there
            {r.run.seed: quantities.branch_scale(r, opening=True) for r in replay(experiment) if r.run.method == m}
            for m in (method, "none")
        )
        centre, half, _ = plain(np.array([100 * (here[seed] / there[seed] - 1) for seed in sorted(here)]))
        said = results.opening(method, quantities.branch_scale, experiment)
        assert abs(centre) < half and said == f"{centre:+.1f} ± {half:.1f}".replace("-", "−")
    masked, depth = replay("masks_dose"), replay("depth")
    page = judge(masked, THIRD["masks_dose"])["A2"]  # "it lowered accuracy": the test with 95 % out is decided
    assert (
        dict(zip([f.text for f in page.findings], page.said, strict=True))["accuracy, CKA-SR .1, masks 0.95"] == "for"
    )
    for penalty in ("cka_sr_0.1", "aug_cka_sr_1"):  # "the largest doses add …", and cost accuracy
        small, accuracy = (
            masked.where(sparsity=0.95).difference(f"random+{penalty}", "random", reading)
            for reading in (quantities.small_weights, quantities.percent)
        )
        assert small.low > 0 > accuracy.high
    specific, margin = replay("specificity"), QUANTITIES["CKA in stages"].delta
    placebo = "placebo_cka_sr"  # "an equal push that leaves CKA alone", "CKA-SR that acts"
    assert specific.difference(placebo, "none", quantities.cka_in_stages).equivalent(margin) < 0.05
    assert specific.difference("cka_sr", "none", quantities.cka_in_stages).high < -margin
    assert specific.difference("cka_sr", placebo, quantities.percent).high < 0
    assert raised.equivalent(margin) < 0.05  # "less than we count; at five times its strength by …"
    assert specific.difference("ffr_strong", "none", quantities.cka_in_stages).low > margin
    leak = specific.difference("placebo_aug_cka_sr", "none", quantities.cka_of_blocks)
    assert leak.high < -QUANTITIES["CKA of all blocks"].delta  # *In brief*: "changes the CKA of all blocks, too"
    whole, fewer, two, four = (
        depth.difference("ffr_length_0.1", "none", reading)
        for reading in (
            quantities.percent,
            quantities.without_blocks(3),
            quantities.without_blocks(2, "fine_tuned"),
            quantities.without_blocks(4, "fine_tuned"),
        )
    )
    assert whole.high < 0 < fewer.low and two.high < 0 and four.high < fewer.low  # "easier …, until one fine-tunes"
    for method in ("ffr_length", "ffr_length_curvature"):  # "neither the weights nor |γ| grew"
        grown = [
            results.in_logarithms(method, reading).low for reading in (quantities.raw_norms, quantities.inner_scale)
        ]
        assert max(grown) < 0 < results.in_logarithms(method, quantities.folded_norms).low
    dense, tokens = published.dense_training(), published.token_sparsification()
    gains = [
        *results.published_gains(),
        *(dense["cka_sr"] - dense["none"]),
        *(tokens["cka_sr"] - tokens["none"]),
        *(published.random_masks_beta() - published.BETA_BASELINE).to_numpy().ravel(),
    ]
    assert max(gains) < np.median(results.reached())  # "the gains that the appendix of CKA-SR prints are smaller"


@pytest.mark.slow
def test_asking_again_after_a_promising_start_costs_no_error():
    """Five seeds; if a difference at .9 looks good, five more; judged once on all, by Holm over four that share a
    baseline. Without any effect, of 1,500 such stories fewer than 5 in 100 decide something."""
    drawn, wrong = np.random.default_rng(0), 0
    for _ in range(1500):
        first, second = (drawn.normal(size=(2, 2, 5)) - drawn.normal(size=(2, 1, 5)) for _ in range(2))
        first, second = first.reshape(4, 5), second.reshape(4, 5)  # two levels × two penalties, one baseline a level
        promising = any(p[2] < 0.05 and p[0] > 0 for p in map(plain, first))
        family = [stratified([a, b])[2] for a, b in zip(first, second, strict=True)] if promising else [
            plain(a)[2] for a in first
        ]  # fmt: skip
        wrong += min(holm(family)) < 0.05
    assert wrong / 1500 < 0.05


# ----------------------------------------------------------------------------------------------------- toy experiments
@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Records of an experiment with methods against a baseline, at two sparsities; another with new seeds."""
    methods = {name: {} for name in ("none", "good", "bad", "same", "perhaps", "absent")}
    tier = Tier({}, methods, sparsities=(0.5, 0.9), seeds=tuple(range(8)))
    added = {name: Experiment(name, "?", lambda run, place: None, {"laptop": tier}) for name in ("toy", "again")}
    for name, experiment in added.items():
        monkeypatch.setitem(EXPERIMENTS._things, name, experiment)
    for seed, noise in enumerate((0, 3, -4, 2)):
        for sparsity in (0.5, 0.9):
            save(tmp_path, "none", seed, 500 + 10 * seed, sparsity)
            save(tmp_path, "good", seed, 540 + 10 * seed + noise + (60 if sparsity == 0.9 else 0), sparsity)
            save(tmp_path, "bad", seed, 460 + 10 * seed + noise, sparsity)
            save(tmp_path, "same", seed, 500 + 10 * seed + noise, sparsity)
    return tmp_path


def save(root, method, seed, correct, sparsity=None, experiment="toy"):
    run = Run(experiment, "laptop", method, seed, sparsity, {})
    result = {"test": {"correct": correct, "examples": 1000, "loss": 1.0}}
    return Record(run, result, [], {}, records.provenance("cpu", "2026-01-01T00:00:00+00:00", 1.0)).save(root)


def compared(method, sparsity=0.5, experiments=("toy",)):
    return Comparison(method, experiments, method, "none", sparsity=sparsity)


def judged(toy, *methods, direction=1, **options):
    return Claim("A", "b", "c", "d", "e", tuple(compared(m, **options) for m in methods), direction).judged(toy)


@pytest.mark.slow
def test_verdicts_of_known_differences(toy):
    def verdict(*methods, direction=1):
        return judged(toy, *methods, direction=direction).verdict

    assert verdict("good") == "holds" and verdict("good", direction=-1) == "does not hold"
    assert verdict("bad") == "does not hold" and verdict("same") == "equivalent within δ"
    assert verdict("good", "same") == "holds" and verdict("good", "bad") == "mixed"
    assert verdict("absent") == verdict() == "not run"
    assert verdict("good", "absent") == "holds"  # what did not run does not count in the family


def test_rounds_are_pooled_by_experiment_and_seed(toy):
    for seed, more in enumerate((30, 34)):
        save(toy, "none", seed, 500, 0.5, "again")
        save(toy, "good", seed, 500 + more, 0.5, "again")
    (t,) = judged(toy, "good", experiments=("toy", "again")).tests
    parts = [np.array([4.0, 4.3, 3.6, 4.2]), np.array([3.0, 3.4])]
    assert (t.difference.value, t.difference.half) == pytest.approx(stratified(parts)[:2])
    assert (t.difference.count, t.difference.df) == (6, 4)
    assert list(t.test.differences(toy)) == [*(("toy", seed) for seed in range(4)), ("again", 0), ("again", 1)]


def test_a_contrast_is_a_difference_of_differences(toy):
    contrast = dataclasses.replace(compared("good", 0.9), less=compared("good", 0.5))
    assert list(contrast.differences(toy).values()) == pytest.approx([6, 6, 6, 6])
    found = Claim("A", "b", "c", "d", "e", (contrast,)).judged(toy)
    assert found.verdict == "holds" and found.tests[0].difference.value == pytest.approx(6)


def test_whether_a_penalty_acted_is_read_where_its_records_lie(tmp_path, monkeypatch):
    """The manipulation check and every δ come from the folder that is asked for, not from the book's."""
    methods = {"none": {}, "cka": {"penalties": [{"kind": "CKASparsity", "beta": 0.1}]}}
    tier = Tier({}, methods, seeds=(0, 1, 2))
    experiment = Experiment("dense_penalties", "?", lambda run, place: None, {"laptop": tier})
    monkeypatch.setitem(EXPERIMENTS._things, "dense_penalties", experiment)
    for run in experiment.runs("laptop"):
        cka = 0.8 - (0.1 + 0.01 * run.seed) * (run.method == "cka")
        measures = {
            "cka": {"layers": ["layer1.0", "layer1.1"], "values": [[1.0, cka], [cka, 1.0]]},
            "trajectory": {"relative_length": [0.5 + 0.1 * run.seed]},
        }
        result = {"test": {"correct": 900 + run.seed, "examples": 1000, "loss": 1.0}}
        Record(run, result, [], measures, records.provenance("cpu", "2026-01-01T00:00:00+00:00", 1.0)).save(tmp_path)
    test = Comparison("t", ("dense_penalties",), "cka", "none")
    step = dataclasses.replace(test, reading=quantities.path_length, quantity="relative step")
    accuracy, longer = Claim("A", "b", "c", "d", "e", (test, step)).judged(tmp_path).tests
    for t in (accuracy, longer):
        assert t.change.value == pytest.approx(-0.11) and (t.band, t.penalty) == (0.02, "acted")
    assert accuracy.delta == 0.5 and longer.delta == pytest.approx(0.05 * 0.6)


def test_what_would_decide_counts_a_shared_cell_by_the_test_that_takes_most(toy):
    """And a test that is open by Holm's correction alone, with seeds enough, takes no hours off."""

    def open_test(method: str, value: float, deviation: float, count: int) -> claims.Tested:
        half = float(stats.t.ppf(0.975, count - 1)) * deviation / count**0.5
        found = claims.Tested(Mean(value, half, count), +1, 1.0, 0.5, test=compared(method))
        assert found.says() == "undecided"
        return found

    def missing(*tests: claims.Tested) -> claims.Missing:
        return Judgement("undecided", [*tests], []).missing(toy)

    core = torch.get_num_threads() / 3600  # hours of a record's one second
    enough, few, many = open_test("same", 0.45, 0.3, 20), open_test("good", 0.3, 0.5, 5), open_test("bad", 0.3, 1.0, 3)
    seeds = [math.ceil(t.difference.deciding(0.5)) for t in (enough, few, many)]
    assert seeds[0] < 20 and 5 < seeds[1] < seeds[2]
    assert missing(enough) == (seeds[0], 0)
    for tests in ((few, many), (many, few)):
        found = missing(*tests)
        assert found.seeds == seeds[2]
        assert found.hours == pytest.approx(core * (seeds[1] - 5 + seeds[2] - 3 + seeds[2] - 5))


@pytest.mark.slow
def test_a_family_of_many_tests_asks_for_more(toy):
    """One test at p = .02 is decided alone, not among seven; beside a claim it changes nothing."""
    for seed, more in enumerate((10, 6, 14, 5)):
        save(toy, "perhaps", seed, 500 + 10 * seed + more, 0.5)
    alone, among = judged(toy, "perhaps"), judged(toy, "perhaps", *["same"] * 6)
    assert alone.tests[0].p < 0.05 <= among.tests[0].p
    assert (alone.verdict, among.verdict) == ("holds", "undecided")
    shown = Claim("A", "b", "c", "d", "e", (compared("perhaps"),), beside=(compared("same"),) * 6).judged(toy)
    assert (shown.verdict, shown.tests[0].p) == (alone.verdict, alone.tests[0].p)
    assert [t.p for t in shown.beside] == [t.difference.p_value for t in shown.beside]


def test_damage_and_slips_are_errors_and_no_gaps(toy):
    def effect(**changes):
        return claims.effect(Comparison(**({"title": "t", "experiments": ("toy",), "method": "good"} | changes)), toy)

    fine = {"baseline": "none", "sparsity": 0.5}
    assert effect(**fine).value == pytest.approx(4, abs=0.1)
    for wrong, message in (
        ({"sparsity": 0.95}, r"toy, tier laptop, has no good at sparsity 0\.95; it has \['absent at 0\.5'"),
        ({"method": "goood"}, "has no goood"),
        ({"baseline": "nobody"}, "has no nobody"),
        ({"experiments": ("toys",)}, "experiment='toys' is unknown; .*did you mean 'toy'"),
        ({"tier": "desktop"}, "has no tier 'desktop'"),
        ({"reading": quantities.after_pruning(0.8)}, "has weights at"),
    ):
        with pytest.raises(ValueError, match=message):
            effect(**(fine | wrong))
    path = save(toy, "good", 0, 540, 0.5)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"good-0\.5-seed0\.json: not a record"):
        effect(**fine)


def test_rounds_must_be_alike():
    with pytest.raises(ValueError, match="no rounds of one comparison: their settings differ"):
        Comparison("t", ("dense_penalties", "dense_penalties_vgg"), "ffr_length", "none").run()
    with pytest.raises(ValueError, match="their settings differ"):  # β = .01 and .03
        Comparison("t", ("dense_penalties", "specificity"), "cka_sr", "none").run()
    with pytest.raises(ValueError, match="their settings differ"):  # the same, as what others are compared with
        Comparison("t", ("dense_penalties", "specificity"), "none", "cka_sr").run()
    for name, methods in claims.LATER.items():  # it trains what the first rounds did, whatever it takes away afterwards
        for method in methods:
            Comparison("t", ("dense_penalties", name), method, "none").run()


def test_the_proofs_of_theory():
    assert claims.zeros_are_shared()[0] and not claims.one_falls_with_the_other()[0]


@pytest.mark.parametrize(
    ("pairs", "shared", "falls"),  # CKA and information of each pair of layers that a proof asks for
    [
        ([(0.5, 0.2), (0.0, 0.0)], True, True),  # one of the two is 0 with the other; both fall together
        ([(0.5, 0.0), (0.0, 0.0)], False, True),
        ([(0.5, 0.2), (0.0, 0.1)], False, True),
        ([(0.5, 0.2), (0.1, 0.0)], False, True),
        ([(0.5, 0.2), (0.3, 0.9)], False, False),  # the one falls, and the other rises
    ],
)
def test_the_proofs_can_fail(monkeypatch, pairs, shared, falls):
    asked = itertools.cycle(pairs)
    monkeypatch.setattr(claims, "_gaussian_pair", lambda *_: next(asked))
    assert claims.zeros_are_shared()[0] == shared
    asked = itertools.cycle(pairs)
    assert claims.one_falls_with_the_other()[0] == falls


def test_every_claim_names_its_chapter_and_its_tests_are_registered():
    assert claims.POST_HOC.isdisjoint(THIRD)  # judged by a δ that was named before
    for claim in CLAIMS:
        assert re.fullmatch(r"\d\d_[a-z_]+", claim.chapter) and claim.paper in ("CKA-SR", "FFR")
        assert claim.tests or claim.proof or claim.missing
        assert len(claim.label) <= 36  # it has to fit the figure
        tests = (*claim.tests, *claim.beside)
        # Rounds 1 and 2; the third comes after, or stands beside.
        assert claims.POST_HOC.issuperset(test.experiments[0] for test in claim.tests)
        assert {name for test in tests for name in test.experiments} - claims.POST_HOC <= THIRD.keys()
        for c in (*tests, *(t.less for t in tests if t.less)):
            assert c.quantity in QUANTITIES and claims.strength_of(c.run())
            for name, method in itertools.product(c.experiments, (c.method, c.baseline)):
                own = CALLED.get((name, method), method)
                assert any(run.method == own and run.sparsity == c.sparsity for run in EXPERIMENTS[name].runs(c.tier))


def test_the_number_of_seeds_is_raised_by_the_spread_alone():
    """C1's rule: after ten seeds, by their deviation; shifting every difference changes nothing, and never lowered."""
    hypothesis = THIRD["specificity"]["C1"]
    (finding,) = hypothesis.findings

    def made(shift: float, spread: float, seeds: int) -> records.Records:
        def net(method: str, seed: int, correct: float) -> Record:
            level = {"sparsity": 0.9, "pruned": {"test": {"correct": correct, "examples": 100}}}
            return Record(Run("specificity", "laptop", method, seed), {"weights": [level]}, [], {}, {})

        drawn = np.random.default_rng(0).normal(size=seeds)
        drawn = shift + spread * (drawn - drawn[:10].mean()) / drawn[:10].std(ddof=1)
        sides = [net(finding.method, seed, 50 + d) for seed, d in enumerate(drawn, 11)]
        sides += [net(finding.baseline, seed, 50.0) for seed in range(11, 11 + seeds)]
        missing = [Run("specificity", "laptop", finding.method, seed) for seed in range(11 + seeds, 40)]
        return records.Records(sides, missing)

    assert results.raised(hypothesis, made(0.0, 1.0, 9)) == ""
    told = results.raised(hypothesis, made(0.0, 1.0, 10))
    assert "1.00 points" in told and told.endswith("20 are run.") and "takes 11 seeds" in told
    assert results.raised(hypothesis, made(7.0, 1.0, 14)) == told, "neither the mean nor later seeds play a part"
    assert results.raised(hypothesis, made(0.0, 1.7, 10)).endswith("27 are run.")
    assert results.raised(hypothesis, made(0.0, 3.0, 10)).endswith("30 are run.")
