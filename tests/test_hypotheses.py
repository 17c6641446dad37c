"""The hypotheses came before the runs, and the chapter that judges them links the commit that says so."""

from __future__ import annotations

import subprocess

import nbformat
import pytest
from conftest import ROOT

from companion import hypotheses
from companion.experiments import TITLES, registry, replay
from companion.records import Mean, Record, Records, Run
from scripts.repository import repository

PAGE = "book/hypotheses.md"
CHAPTER = ROOT / "notebooks" / "13_identity_meets_flow.ipynb"


def git(*arguments: str) -> str:
    """What git prints; skips where there is no history to ask."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as reason:
        pytest.skip(f"no git history: {reason}")
    return done.stdout.strip()


@pytest.fixture
def introduced() -> str:
    """The commit that brought the page; a shallow clone does not know it."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone does not know when the page came")
    return git("log", "--diff-filter=A", "--format=%H", "--", PAGE)


def test_the_chapter_links_the_commit_that_introduced_the_page(introduced: str) -> None:
    url, _ = repository(ROOT)
    text = "\n".join(cell.source for cell in nbformat.read(CHAPTER, as_version=4).cells)
    assert f"{url}/commit/{introduced}" in text


def test_every_run_came_after_the_hypotheses(introduced: str) -> None:
    records = replay("dense_penalties")
    if not len(records):
        pytest.skip("dense_penalties is not recorded")
    for commit in {record.provenance["commit"] for record in records}:
        git("cat-file", "-e", commit)  # skips where this history lacks it
        ancestors = subprocess.run(["git", "-C", str(ROOT), "merge-base", "--is-ancestor", introduced, commit])
        assert ancestors.returncode == 0, f"a run of commit {commit} came before the hypotheses"


def test_the_page_has_not_changed_since(introduced: str) -> None:
    assert git("diff", "--stat", introduced, "--", PAGE) == ""


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


def test_the_page_and_the_program_speak_of_the_same() -> None:
    rows = [line for line in (ROOT / PAGE).read_text().splitlines() if line.startswith("| H")]
    assert [row.split("|")[1].strip() for row in rows] == list(hypotheses.HYPOTHESES)


def test_verdicts_follow_from_the_findings() -> None:
    """Whatever the records say: a refuted hypothesis has a refuting finding, a supported one nothing but support."""
    for name, found in hypotheses.judge(replay("dense_penalties")).items():
        said = [finding.says() for finding in found.findings]
        assert found.verdict.startswith("refuted") == (
            any(w.startswith("refutes") for w in said)
            if hypotheses.HYPOTHESES[name].rule is hypotheses.each_can_refute
            else all(w.startswith("refutes") for w in said)
        )
        assert (found.verdict == "supported") == (set(said) == {"supports"})
