"""The hypotheses came before the runs, and the chapter that judges them links the commit that says so."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from companion.experiments import TITLES, hypotheses, quantities, replay
from companion.experiments.recipes import Part
from companion.experiments.records import Record, Records, Run
from companion.experiments.statistics import QUANTITIES, VERDICTS, Mean, stratified
from companion.experiments.studies.penalties import PENALISED
from companion.experiments.titles import title
from companion.regularizers import PENALTIES
from scripts.repository import repository

ROUNDS = {"dense_penalties": hypotheses.HYPOTHESES, "dense_penalties_again": hypotheses.AGAIN}
PAGES = {"dense_penalties": "book/hypotheses.md", "dense_penalties_again": "book/hypotheses_again.md"}
CHAPTER = ROOT / "notebooks" / "14_identity_meets_flow.ipynb"


def git(*arguments: str) -> str:
    """What git prints; skips where there is no history to ask."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as reason:
        pytest.skip(f"no git history: {reason}")
    return done.stdout.strip()


def introduced(experiment: str) -> str:
    """The commit that brought the experiment's page; a shallow clone does not know it."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone does not know when the page came")
    return git("log", "--diff-filter=A", "--format=%H", "--", PAGES[experiment]) or pytest.skip("not committed yet")


every_round = pytest.mark.parametrize("experiment", ROUNDS)


@every_round
def test_the_chapter_links_the_commit_that_introduced_the_page(experiment: str) -> None:
    url, _ = repository(ROOT)
    text = "\n".join(cell.source for cell in nbformat.read(CHAPTER, as_version=4).cells)
    assert f"{url}/commit/{introduced(experiment)}" in text


@every_round
def test_every_run_came_after_the_hypotheses(experiment: str) -> None:
    records, introducing = replay(experiment), introduced(experiment)
    if not len(records):
        pytest.skip(f"{experiment} is not recorded")
    for commit in {record.provenance["commit"] for record in records}:
        git("cat-file", "-e", commit)  # skips where this history lacks it
        ancestors = subprocess.run(["git", "-C", str(ROOT), "merge-base", "--is-ancestor", introducing, commit])
        assert ancestors.returncode == 0, f"a run of commit {commit} came before the hypotheses"


@every_round
def test_the_page_has_not_changed_since(experiment: str) -> None:
    assert git("diff", "--stat", introduced(experiment), "--", PAGES[experiment]) == ""


# --------------------------------------------------------------------------------------------------------- the verdicts
def toy(method: str, seed: int, weights: float = 50, filters: float = 50) -> Record:
    """A record of a net with these accuracies (%) once weights, or filters, are gone."""

    def scores(percent: float) -> dict:
        return {"test": {"correct": round(100 * percent), "examples": 10_000}}

    result = {
        "weights": [{"sparsity": s, "pruned": scores(weights)} for s in (0.8, 0.9)],
        "filters": [{"fine_tuned": scores(filters)} for _ in range(2)],
    }
    return Record(Run("toy", "smoke", method, seed, settings={"prune": {"macs": [0.5, 0.25]}}), result, [], {}, {})


def verdict_on(name: str, records: Records) -> str:
    hypothesis = hypotheses.HYPOTHESES[name]
    return hypothesis.rule([finding(records).says() for finding in hypothesis.findings])


@pytest.mark.parametrize(("gain", "verdict"), [(5, "refuted"), (0, "not refuted"), (-5, "supported")])
def test_a_gain_after_pruning_refutes_that_there_is_none(gain: float, verdict: str) -> None:
    noise = (0, 1, -1)
    records = Records(
        [toy("none", seed, 50 + noise[seed]) for seed in range(3)]
        + [toy("cka_sr", seed, 50 + gain) for seed in range(3)]
    )
    assert verdict_on("H1", records) == verdict


@pytest.mark.parametrize(
    ("feature", "classic", "verdict"), [(60, 50, "refuted"), (50, 60, "supported"), (50, 50, "not refuted")]
)
def test_a_feature_penalty_on_top_refutes_the_ranking(feature: float, classic: float, verdict: str) -> None:
    records = Records(
        [toy(m, seed, filters=feature + seed) for m in hypotheses.FEATURES for seed in range(3)]
        + [toy(m, seed, filters=classic + (2, 0, 1)[seed] + 0.2) for m in hypotheses.CLASSICS for seed in range(3)]
    )
    assert verdict_on("H6", records) == verdict


def test_holm_takes_back_what_a_large_family_does_not_bear() -> None:
    weak = hypotheses.Difference("weak", Mean(1.0, half=0.9, count=5), -1)
    assert weak.says() == "refutes" and 0.05 / 15 < weak.p < 0.05
    assert weak.says(15 * weak.p) == "undecided"
    for families, after in ((("a", "b"), "refuted"), (("a", "a"), "not refuted")):  # each family by itself
        two = {f"H{i}": hypotheses.Hypothesis("", [lambda _: weak], family=of) for i, of in enumerate(families)}
        assert [one.after_holm for one in hypotheses.judge(Records([]), two).values()] == [after] * 2


BY_MEAN = "refutes by its mean only"


@pytest.mark.parametrize(
    ("said", "of_any", "of_all"),
    [
        (["supports", "supports"], "supported", "supported"),
        (["supports", "undecided"], "not refuted", "not refuted"),
        (["refutes", "supports"], "refuted", "not refuted"),
        (["refutes", "refutes"], "refuted", "refuted"),
        (["refutes", "not tested yet"], "refuted", "not tested yet"),
        ([BY_MEAN, "not tested yet"], "not tested yet", "not tested yet"),
        (["supports", "not tested yet"], "not tested yet", "not tested yet"),
        ([BY_MEAN, "supports"], "refuted by a mean, undecided by its interval", "not refuted"),
        ([BY_MEAN, "refutes"], "refuted", "refuted by the means, undecided by an interval"),
    ],
)
def test_what_findings_that_differ_say_together(said: list[str], of_any: str, of_all: str) -> None:
    for order in (said, said[::-1]):
        assert (hypotheses.each_can_refute(order), hypotheses.all_must_refute(order)) == (of_any, of_all)


def test_every_method_has_a_title_of_its_penalties() -> None:
    """Classics first, then FFR, then CKA; and whatever penalty is registered has its own without a line here."""
    assert list(TITLES) == [
        *("none", "group_lasso", "slimming", "ffr_length", "ffr_curvature", "ffr_length_curvature"),
        *("cka_sr", "aug_cka_sr", "cka_sr+ffr_length"),
    ]
    assert set(TITLES) == set(PENALISED) and TITLES["cka_sr+ffr_length"] == "CKA-SR + length"
    for name, kind in PENALTIES.items():
        assert title([Part(kind.__name__)]) == PENALTIES.facts[name]["title"]


@every_round
def test_the_page_and_the_program_speak_of_the_same(experiment: str) -> None:
    rows = re.findall(r"^\| ([A-Z]\d) \|", (ROOT / PAGES[experiment]).read_text(), re.MULTILINE)
    assert rows == list(ROUNDS[experiment])


@every_round
def test_verdicts_follow_from_the_findings(experiment: str) -> None:
    """Whatever the records say: a refuted hypothesis has a refuting finding, a supported one nothing but support."""
    for name, found in hypotheses.judge(replay(experiment), ROUNDS[experiment]).items():
        said = [finding.says() for finding in found.findings]
        enough = any if ROUNDS[experiment][name].rule is hypotheses.each_can_refute else all
        assert found.verdict.startswith("refuted") == enough(word.startswith("refutes") for word in said)
        assert (found.verdict == "supported") == (set(said) == {"supports"})


# -------------------------------------------------------------------------------------------------- one rule for all
@every_round
def test_the_rule_for_claims_gets_the_same_findings(experiment: str) -> None:
    """A hypothesis holds only if nothing decided speaks against it. What refutes after the correction is decided
    against, what supports is decided for."""
    for found in hypotheses.judge(replay(experiment), ROUNDS[experiment]).values():
        assert len(found.said) == len(found.findings) and found.by_rule in VERDICTS
        decided = {word for word in found.said if word in ("for", "against")}
        assert (found.by_rule == "holds") == (decided == {"for"})
        assert (found.by_rule == "mixed") == (len(decided) == 2)
        if found.after_holm == "refuted":
            assert "against" in decided
        if found.after_holm == "supported":
            assert set(found.said) == {"for"}


@pytest.mark.parametrize(
    ("mean", "p", "page", "rule"),
    [
        (Mean(1.0, half=0.5, count=5), 0.01, "supports", "for"),
        (Mean(-1.0, half=0.5, count=5), 0.01, "refutes", "against"),
        (Mean(-1.0, half=0.5, count=5), 0.2, "refutes by its mean only", "undecided"),
        (Mean(0.0, half=0.3, count=5), 1.0, "refutes by its mean only", "equivalent"),
        (Mean(0.1, half=3.0, count=5), 1.0, "undecided", "undecided"),
        (Mean(1.0, half=float("inf"), count=1), 1.0, "not tested yet", "one seed"),
        (None, 1.0, "not tested yet", "not run"),
    ],
)
def test_words_of_the_pages_follow_from_those_of_the_rule(mean: Mean | None, p: float, page: str, rule: str) -> None:
    finding = hypotheses.Difference("any", mean, +1, by_mean=True, delta=0.5)
    assert (finding.says(p), finding.outcome(p).says()) == (page, rule)


@pytest.mark.parametrize(
    ("name", "value", "half", "page", "rule"),
    [  # A1: "an interval that lies below −.02"
        ("A1", -0.03, 0.005, "refutes", "against"),
        ("A1", -0.03, 0.02, "undecided", "undecided"),
        ("A1", 0.03, 0.005, "undecided", "undecided"),
        ("A1", -0.01, 0.005, "supports", "equivalent"),
        # A2: "an interval above −0.5 points"
        ("A2", -0.2, 0.1, "refutes", "against"),
        ("A2", 0.2, 0.6, "refutes", "against"),
        ("A2", -0.3, 0.5, "undecided", "undecided"),
        ("A2", -8.0, 1.0, "supports", "for"),
        ("A2", -0.6, 1.0, "undecided", "undecided"),
    ],
)
def test_a_page_may_name_another_bound_than_0(name: str, value: float, half: float, page: str, rule: str) -> None:
    one = hypotheses.THIRD["masks_dose"][name].findings[0]
    mean, delta = Mean(value, half=half, count=3), {"A1": 0.02}.get(name)
    finding = hypotheses.Difference(name, mean, one.expected, delta=delta, refuted_beyond=one.refuted_beyond)
    judged = hypotheses.judge(Records([]), {name: hypotheses.Hypothesis("", [lambda records: finding])})[name]
    assert finding.says() == page and judged.said == (rule,)
    assert finding.says(p=0.2) != "refutes"


def logarithm_of(experiment: str, method: str, value: Callable[[dict], np.ndarray]) -> np.ndarray:
    """From the files alone: ln of the mean over all inner filters, less no penalty, seed by seed."""
    found: dict[tuple[str, int], float] = {}
    for path in (ROOT / "book" / "results" / experiment / "laptop").glob("*.json"):
        net = json.loads(path.read_text())
        inner = [
            {key: abs(np.array(layer[key])) for key in ("filter_norms", "bn_scale", "bn_deviation")}
            for layer in net["measures"]["weights"]["layers"]
            if layer["name"].startswith("layer") and layer["name"].endswith("conv1")
        ]
        found[net["run"]["method"], net["run"]["seed"]] = float(
            np.log(np.concatenate([value(i) for i in inner]).mean())
        )
    return np.array([v - found["none", seed] for (name, seed), v in sorted(found.items()) if name == method])


@pytest.mark.slow
def test_what_was_misjudged_by_the_folded_norm() -> None:
    """FFR shrinks what a block reads, so the folded norm rises; |γ| falls, if at all. H7 and R4 turn; H3 does not."""
    first, second = replay("dense_penalties"), replay("dense_penalties_again")
    for experiment in ("dense_penalties", "dense_penalties_again"):
        both = (experiment, "ffr_length_curvature")
        folded = logarithm_of(*both, lambda i: i["filter_norms"] * i["bn_scale"] / i["bn_deviation"])
        scale = logarithm_of(*both, lambda i: i["bn_scale"])
        assert (folded > 0.1).all() and abs(scale).max() < 0.015 and scale.mean() < 0
        assert (logarithm_of(*both, lambda i: i["bn_deviation"]) < -0.15).all()
    (inner,) = [f for f in hypotheses.judge(second, hypotheses.AGAIN)["R4"].findings if "inner" in f.text]
    assert inner.mean.value == pytest.approx(scale.mean())
    before = {
        **hypotheses.judge(first, hypotheses.HYPOTHESES | {n: hypotheses.MISJUDGED[n] for n in ("H3", "H7")}),
        **hypotheses.judge(second, hypotheses.AGAIN | {"R4": hypotheses.MISJUDGED["R4"]}),
    }
    now = hypotheses.judge(first) | hypotheses.judge(second, hypotheses.AGAIN)
    verdicts = {name: (before[name].verdict, now[name].verdict) for name in hypotheses.MISJUDGED}
    assert verdicts == {
        "H3": ("supported", "supported"),
        "H7": ("refuted", "not refuted"),
        "R4": ("supported", "refuted"),
    }
    others = set(now) - set(hypotheses.MISJUDGED)
    assert all(before[name].verdict == now[name].verdict for name in others)


def test_a_pair_has_the_larger_p_of_its_two_differences() -> None:
    sure, weak = Mean(1.0, half=0.3, count=5), Mean(1.0, half=0.9, count=5)
    assert sure.p_value < 0.01 < weak.p_value < 0.05
    for pair in ((sure, weak), (weak, sure)):
        assert hypotheses.Between("any", *pair).p == weak.p_value
    assert hypotheses.Between("any", sure, Mean(-1.0, half=0.3, count=5)).p == 1
    for absent in (None, Mean(-1.0, half=float("inf"), count=1)):
        for pair in ((sure, absent), (absent, sure)):
            assert hypotheses.Between("any", *pair).where() == "not tested yet"


def test_earlier_rounds_are_pooled_with_the_study_and_are_nothing_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(gains: list[float]) -> list[Record]:
        return [toy("aug_cka_sr", seed, 50 + gain) for seed, gain in enumerate(gains)] + [
            toy("none", seed) for seed in range(len(gains))
        ]

    monkeypatch.setattr(hypotheses, "replay", lambda name: Records(made({"one": [1, 3], "two": [5, 6]}[name])))
    read, step = quantities.after_pruning(0.9), "relative step"  # whose δ is 5 % of the mean without a penalty
    found = hypotheses.Expected("gain", "aug_cka_sr", read, +1, step, earlier=("one", "two"))
    gain = found(Records(made([8, 10])))
    assert gain.mean == stratified([[1, 3], [5, 6], [8, 10]]) and gain.delta == pytest.approx(0.05 * 50)
    for nothing in ([], [toy("none", 0)]):
        assert found(Records(nothing)).mean is None


def test_a_size_of_nothing_has_no_logarithm() -> None:
    with pytest.raises(ValueError, match=r"the logarithm of -1\.0; only sizes above 0 have one"):
        quantities.logarithm(lambda record: -1.0)(toy("none", 0))


# ------------------------------------------------------------------------------------------------------ the third round
def known() -> Record:
    """A net of which every number that the third round reads is another one."""

    def scores(percent: float) -> dict:
        return {"test": {"correct": round(100 * percent), "examples": 10_000}}

    orders = {"magnitude": {0.8: 60, 0.9: 50, 0.95: 40}, "scale_free": {0.8: 58, 0.9: 48, 0.95: 38}}
    names = ["layer1.0", "layer1.1", "layer2.0"]
    result = {
        **scores(90),
        "weights": [
            {"criterion": criterion, "sparsity": s, "pruned": scores(percent)}
            for criterion, levels in orders.items()
            for s, percent in levels.items()
        ],
        "filters": [{"pruned": scores(30), "fine_tuned": scores(70)}],
        "blocks": {
            "single": [{"block": name, "refreshed": scores(78)["test"]} for name in names],
            "greedy": [
                {"gone": ["any"] * k, "pruned": scores(30 - k), "fine_tuned": scores(80 - k)} for k in range(1, 6)
            ],
        },
    }
    measures = {
        "cka": {"layers": names, "values": [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]},
        "trajectory": {"relative_length": [0.5], "angle": [1.5], "straightness": [0.1]},
    }
    return Record(Run("toy", "smoke", "none", 0, settings={"prune": {"macs": [0.5]}}), result, [], measures, {})


OUT, STEP = (50, 1.0), (0.5, 0.05)  # of `known`: with 90 % of the weights out by raw magnitude; the relative step
IN_STAGES, OF_BLOCKS, DENSE = (0.75, 0.02), (0.5, 0.02), (90, 0.5)
THIRD = {  # as the page of the third round has it: what less what, its number in `known` and its δ, the side of 0
    "A1": [("random+cka_sr_0.01", "random", s, *IN_STAGES, 0) for s in (0.9, 0.95)],
    "A2": [
        (f"random+{penalty}", "random", s, 90, None, -1)
        for penalty in ("cka_sr_0.1", "aug_cka_sr_1")
        for s in (0.9, 0.95)
    ],
    "C1": [("aug_cka_sr", "placebo_aug_cka_sr", None, *OUT, 0)],
    "C2": [("aug_cka_sr_negated", "none", None, *OF_BLOCKS, +1), ("aug_cka_sr_negated", "none", None, *OUT, +1)],
    "C3": [
        ("aug_cka_sr", "none", None, *DENSE, -1),
        ("aug_cka_sr", "none", None, 60, 1.0, -1),
        ("aug_cka_sr", "none", None, *OUT, +1),
    ],
    "C4": [("aug_cka_sr", "none", None, 48 - 50, None, -1)],
    "C5": [("cka_sr", "placebo_cka_sr", None, *OUT, 0)],
    "C6": [("ffr_strong", "ffr", None, *IN_STAGES, +1), ("ffr_strong", "ffr", None, *STEP, -1)],
    "C7": [("cka_sr", "none", None, *STEP, +1)],
    "D1": [("ffr_length_0.1", "none", None, 27, 1.0, +1)],
    "D2": [("ffr_length_0.1", "none", None, 76, 1.0, 0)],
    "D3": [
        ("ffr_length_0.01", "none", None, *STEP, -1),
        ("ffr_length_0.03", "ffr_length_0.01", None, *STEP, -1),
        ("ffr_length_0.1", "ffr_length_0.03", None, *STEP, -1),
    ],
    "D4": [("ffr_length_0.1", "none", None, 90 - 78, 1.0, -1)],
    "D5": [(f"ffr_length_{k}", "none", None, 70, 1.0, 0) for k in (0.01, 0.03, 0.1)],
    "B1": [("random+cka_sr", "random", 0.9, *DENSE, 0)],
    "F1": [("random+cka_sr", "random", 0.95, *IN_STAGES, 0)],
}


def test_the_third_round_is_judged_by_what_its_page_says() -> None:
    """Three of its studies are not whole: no verdict that stands in the book would tell of a sign turned round."""
    found, rows = {}, {name: one for study in hypotheses.THIRD.values() for name, one in study.items()}
    for name, hypothesis in rows.items():
        found[name] = [
            (f.method, f.baseline, f.sparsity, pytest.approx(f.reading(known())), margin, f.expected)
            for f in hypothesis.findings
            for of in [QUANTITIES[f.quantity] if f.quantity else None]
            for margin in [(of.delta or of.share) if of else None]
        ]
    assert found == THIRD
    assert {name for name, one in rows.items() if one.family == hypotheses.PRIMARY} == {"C1", "D1", "B1", "F1"}
    assert [f.small_refutes for f in rows["D1"].findings] == [True]  # "or equivalence within 1.0 points"
    pooled = {name for name, one in rows.items() for f in one.findings if f.earlier}
    assert pooled == {"C3"} and {f.earlier for f in rows["C3"].findings} == {tuple(ROUNDS)}
