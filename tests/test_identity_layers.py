"""What the prose of chapter 6 says in words of its records and of the claims that are judged from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from companion.experiments import replay
from companion.experiments.claims import CLAIMS, DENSE, Comparison, Judgement, effect
from companion.experiments.quantities import cka_in_stages, percent, small_weights
from companion.experiments.statistics import QUANTITIES, acted, corrected, verdict

PENALTIES = ("cka_sr", "aug_cka_sr")
HOSTS = {"random": "random_masks", "granet": "granet", "lottery": "lottery"}
MARGIN = QUANTITIES["CKA in stages"].delta


def under_hosts(penalty: str) -> Iterator[Comparison]:
    for host, name in HOSTS.items():
        records = replay(name)
        for sparsity in sorted({record.run.sparsity for record in records}):
            yield Comparison(f"{host} {sparsity:g}", (name,), f"{host}+{penalty}", host, sparsity=sparsity)


def state(compared: Comparison) -> str:
    check = compared.manipulation()
    return acted(effect(check), check.delta())


@pytest.fixture(scope="module")
def judged() -> dict[int, Judgement]:
    return {n: claim.judged() for n, claim in enumerate(CLAIMS, 1) if claim.chapter == "06_identity_layers"}


def test_ten_comparisons_of_accuracy_are_undecided_and_five_are_no_test() -> None:
    compared = {penalty: list(under_hosts(penalty)) for penalty in PENALTIES}
    assert [verdict(effect(one)) for one in itertools.chain(*compared.values())] == ["undecided"] * 10
    assert [state(one) for one in compared["cka_sr"]] == ["did not act"] * 5
    assert [state(one) for one in compared["aug_cka_sr"]] == ["acted", "acted", "unclear", "unclear", "unclear"]
    assert all(effect(one.manipulation()).high < 0 for one in compared["aug_cka_sr"][:2])


def test_of_the_four_strengths_one_acts_and_it_harms() -> None:
    records = replay("random_masks_beta")
    strengths = (1e-4, 1e-3, 1e-2, 1e-1)
    points, moved = (
        [records.difference(f"random+cka_sr_{beta:g}", "random", reading) for beta in strengths]
        for reading in (percent, cka_in_stages)
    )
    assert [acted(change, MARGIN) == "acted" for change in moved] == [False, False, False, True]
    assert all(abs(change.value) < MARGIN for change in moved[:3]) and moved[3].value < -0.5
    assert [verdict(difference) for difference in points] == ["undecided"] * 3 + ["worse"]
    assert min(corrected(points)) > 0.05


def test_in_dense_networks_one_penalty_acts_and_no_more_weights_are_small(judged: dict[int, Judgement]) -> None:
    fell = {p: effect(Comparison("dense", DENSE, p, "none", cka_in_stages, "CKA in stages")) for p in PENALTIES}
    more = {p: effect(Comparison("dense", DENSE, p, "none", small_weights, "small weights")) for p in PENALTIES}
    assert all(change.high < 0 for change in fell.values()) and fell["cka_sr"].low > -MARGIN
    assert all(abs(change.high) < QUANTITIES["small weights"].delta for change in more.values())
    assert list(judged) == [6, 7, 8, 9, 11, 12] and CLAIMS[9].label == "it helps at any strength β"
    assert judged[7].small and all(test.equivalent for test in judged[7].tests)
    assert [test.test.method for test in judged[7].decided] == ["aug_cka_sr"]
    assert [test.penalty for test in judged[7].tests].count("acted") == 1
    assert judged[6].verdict == judged[11].verdict == "holds" and judged[12].verdict == "does not hold"


def test_augmented_cka_sr_gains_neither_for_weights_nor_for_filters(judged: dict[int, Judgement]) -> None:
    weights = {(test.test.method, test.test.title[-2:]): test.says() for test in judged[8].tests}
    assert weights["aug_cka_sr", ".9"] == "equivalent" and weights["aug_cka_sr", ".8"] == "against"
    filters = [test.says() for test in judged[9].tests if test.test.method == "aug_cka_sr"]
    assert filters == ["against", "against"]
    assert {test.test.method for n in (8, 9) for test in judged[n].decided} == {"aug_cka_sr"}
    (duel,) = (test for test in judged[8].beside if test.test.baseline == "ffr_length_curvature")
    assert duel.says() == "equivalent" and judged[8].verdict == judged[9].verdict == "does not hold"
