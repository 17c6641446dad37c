"""The hypotheses came before the runs, and the chapter that judges them links the commit that says so."""

from __future__ import annotations

import re
import subprocess

import nbformat
import pytest
from conftest import ROOT

from companion import hypotheses
from companion.experiments import TITLES, registry, replay
from companion.experiments.statistics import Mean
from companion.records import Record, Records, Run
from scripts.repository import repository

ROUNDS = {"dense_penalties": hypotheses.HYPOTHESES, "dense_penalties_again": hypotheses.AGAIN}
PAGES = {"dense_penalties": "book/hypotheses.md", "dense_penalties_again": "book/hypotheses_again.md"}
CHAPTER = ROOT / "notebooks" / "13_identity_meets_flow.ipynb"


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
    return hypothesis.rule([finding.says() for finding in hypothesis.findings(records)])


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


def test_every_method_has_a_title() -> None:
    assert set(TITLES) == set(registry.PENALISED)


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
