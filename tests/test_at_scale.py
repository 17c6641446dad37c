"""ImageNet's experiments on drawn photographs: alone, on two ranks, under torchrun, killed and resumed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT
from held import kill_after_a_save
from torch import nn
from two_ranks import two_ranks

from companion import experiments, training
from companion.experiments import EXPERIMENTS, Workplace, records
from companion.experiments.photographs import Photographs, drawn_photographs, pace
from companion.experiments.records import Run

EXAMPLES, TESTED = 8 * 16, 8 * 5


def smoke(name: str, method: str, **settings: Any) -> Run:
    run = next(run for run in EXPERIMENTS[name].runs("smoke") if run.method == method)
    return dataclasses.replace(run, settings={**run.settings, **settings})


def place(folder: Path) -> Workplace:
    return Workplace(device=torch.device("cpu"), work=folder)


# ----------------------------------------------------------------------------------------------------- one process
@pytest.mark.slow
def test_alone_the_masks_are_those_of_the_recipe_and_the_record_is_in_order(tmp_path: Path) -> None:
    run = smoke("imagenet_random_masks", "random")
    record = experiments.perform(run, place(tmp_path / "work"), tmp_path / "results")
    assert record is not None and experiments.problems(tmp_path / "results") == []
    layers = {layer["name"]: layer for layer in record.measures["weights"]["layers"]}
    held = sum(torch.Size(layer["shape"]).numel() for layer in layers.values())
    assert record.result["zeros"] == held - round(0.05 * held)
    assert layers["fc"]["zeros"] == 0 and layers["layer4.1.conv2"]["zeros"] > 0.9 * 512 * 512 * 9
    assert record.result["ranks"] == 1 and record.result["test"]["examples"] == TESTED
    assert list(record.frame("cka").index)[-2:] == ["layer4.1", "fc"]
    assert not list((tmp_path / "work").rglob("*.pt*"))


def test_a_step_has_the_same_photographs_whatever_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank takes two parts a step, two ranks take one each; batch norm sees 16 at a time either way."""
    run = smoke("imagenet_random_masks", "random")

    def steps(ranks: int) -> list[list[int]]:
        monkeypatch.setattr(training, "world_size", lambda: ranks)
        found: dict[int, list[int]] = {}
        for rank in range(ranks):
            monkeypatch.setattr(training, "rank", lambda rank=rank: rank)
            task = Photographs.of(run, place(tmp_path))
            assert task.accumulate * ranks == 2 and task.examples == TESTED
            order = task.loader._order()
            assert len(task.loader) == len(order) // 16
            for step in range(len(order) // (16 * task.accumulate)):
                part = order[16 * task.accumulate * step : 16 * task.accumulate * (step + 1)]
                found[step] = sorted(found.get(step, []) + part)
        return [found[step] for step in sorted(found)]

    alone, together = steps(1), steps(2)
    assert alone == together and sum(map(len, alone)) == EXAMPLES
    with pytest.raises(ValueError, match="dataset='moon' is unknown"):
        Photographs.of(smoke("imagenet_pace", "resnet18", dataset="moon"), place(tmp_path))
    monkeypatch.setattr(training, "world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"3 ranks with 16 examples each do not make up steps of 32: start \[1, 2\]"):
        Photographs.of(run, place(tmp_path))


def test_the_paper_tier_is_the_known_recipe() -> None:
    for run in EXPERIMENTS["imagenet_random_masks"].runs("paper"):
        known = {"batch_size": 768, "device_batch": 192, "lr": 0.4, "epochs": 100, "label_smoothing": 0.1}
        known |= {"weight_decay": 1e-4, "model": "resnet18", "schedule_options": {"warmup": 5, "floor": 0}}
        assert {key: run.settings[key] for key in known} == known and run.sparsity == 0.95
        pruning = {"kind": "RandomPruning", "density": "erk", "dense": "fc", "grain": "weight"}
        assert run.settings["pruning"] == pruning
    (penalty,) = run.settings["penalties"]
    known = {"kind": "CKASparsity", "beta": 1e-5, "examples": None, "every": 1}
    assert {key: penalty[key] for key in known} == known


def test_drawn_photographs_are_the_same_whenever_they_are_drawn(tmp_path: Path) -> None:
    one, two = (drawn_photographs(tmp_path / name, classes=2, train=2, val=1) for name in "ab")
    files = sorted(path.relative_to(one) for path in one.rglob("*.JPEG"))
    assert len(files) == 2 * 3 and all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert drawn_photographs(tmp_path / "a", classes=2, train=2, val=1) == one
    assert len({(one / file).stat().st_size for file in files}) > 1


@pytest.mark.slow
def test_pace_on_real_photographs_says_nothing_of_accuracy(data_root: Path, tmp_path: Path) -> None:
    if not (data_root / "imagenet-sample-160").is_dir():
        pytest.skip(f"no imagenet-sample-160 under {data_root}")
    run = EXPERIMENTS["imagenet_pace"].runs("laptop")[1]
    small = {"size": 32, "photographs": 64, "batch_size": 32, "device_batch": 16}
    run = dataclasses.replace(run, settings={**run.settings, **small})
    outcome = pace(run, dataclasses.replace(place(tmp_path), data=data_root, how={"workers": 1}))
    assert outcome.result["photographs"] == 64 and min(outcome.result["images_per_second"].values()) > 0
    assert all("accuracy" not in key for epoch in outcome.curve for key in epoch)
    assert outcome.curve[-1]["penalty_cka"] > 0


# -------------------------------------------------------------------------------------------------------- two ranks
def on_both(rank: int, folder: Path) -> dict[str, Any]:
    """What two ranks have after sparse training, and what they say of a network that is pruned after training."""
    network, outcome, kept = Photographs.network, Photographs.outcome, {}

    def differing(task: Photographs) -> nn.Module:
        model = network(task)
        with torch.no_grad():
            model.conv1.weight.add_(rank)  # ranks that do not agree at first
        return model

    def keeping(task: Photographs, model: nn.Module, history: Any) -> Any:
        kept.update({name: weight.detach().numpy() for name, weight in model.named_parameters()})
        kept["seen"] = sorted(task.loader._order())  # type: ignore[union-attr]
        return outcome(task, model, history)

    refused = ""
    try:
        experiments.perform(EXPERIMENTS["dense_cifar10"].runs("smoke")[0], place(folder), folder)
    except ValueError as error:
        refused = str(error)
    Photographs.network, Photographs.outcome = differing, keeping  # type: ignore[method-assign]
    record = experiments.perform(
        smoke("imagenet_random_masks", "random+cka_sr"), place(folder / "work"), folder / "results"
    )
    Photographs.network, Photographs.outcome = network, outcome  # type: ignore[method-assign]
    assert record is not None
    pruned = EXPERIMENTS["imagenet_flow"].perform(smoke("imagenet_flow", "ffr_length_curvature"), place(folder))
    return {
        "seen": kept.pop("seen"),
        "weights": kept,
        "refused": refused,
        "record": (record.result, list(record.curve), record.measures["cka"]),
        "pruned": pruned.result,
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("both")
    outcomes = two_ranks(on_both, folder)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    assert [path.name for path in (folder / "results").rglob("*.json")] == ["random+cka_sr-0.95-seed0.json"]
    return outcomes


@pytest.mark.slow
def test_two_ranks_have_the_same_masks_and_weights_from_different_photographs(both: list[dict[str, Any]]) -> None:
    left, right = both
    assert all(np.array_equal(weight, right["weights"][name]) for name, weight in left["weights"].items())
    held = [weight for weight in left["weights"].values() if weight.ndim > 1]
    alive = sum(np.count_nonzero(weight) for weight in held)
    assert alive == round(0.05 * sum(weight.size for weight in held))
    assert not set(left["seen"]) & set(right["seen"]) and len(left["seen"] + right["seen"]) == EXAMPLES


@pytest.mark.slow
def test_two_ranks_count_every_photograph_once_and_share_one_record(both: list[dict[str, Any]]) -> None:
    left, right = both
    assert left["record"] == right["record"]
    result, curve, _ = left["record"]
    assert result["ranks"] == 2 and result["test"]["examples"] == TESTED
    assert curve[-1]["penalty_cka"] != 0 and -1 <= curve[-1]["cosine_loss_cka"] <= 1
    assert "dense_cifar10 is for one process, not for 2 ranks" in left["refused"]


@pytest.mark.slow
def test_two_ranks_prune_the_same_filters(both: list[dict[str, Any]]) -> None:
    left, right = (outcome["pruned"] for outcome in both)
    assert left == right
    (level,) = left["filters"]
    assert level["macs"] <= 0.5 and level["fine_tuned"]["test"]["examples"] == TESTED
    assert [level["sparsity"] for level in left["weights"]] == [0.5, 0.8]


# --------------------------------------------------------------------------------------------------------- torchrun
@pytest.mark.long
def test_torchrun_killed_and_started_again_ends_as_if_never_interrupted(
    both: list[dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL to the launcher and both ranks once a checkpoint of the first epoch is there."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["run", "imagenet_random_masks", "--tier", "smoke", "--quiet"]
    arguments += ["--methods", "random+cka_sr", "--results", str(tmp_path)]
    environment = os.environ | {"COMPANION_WORK": str(tmp_path / "work"), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    kill_after_a_save(launch, arguments, tmp_path, environment)
    path = smoke("imagenet_random_masks", "random+cka_sr").path
    assert not (tmp_path / path).exists()
    assert training.load_checkpoint((tmp_path / "work" / path).with_suffix(".pt"))["epoch"] < 2
    command = [*launch, "-m", "companion.experiments", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("imagenet_random_masks/smoke/random+cka_sr-0.95-seed0: done in") == 1  # rank 0 alone
    record = records.load(tmp_path / path)
    result, curve, cka = both[0]["record"]
    assert (record.result, record.measures["cka"]) == (result, cka)
    timings = ("seconds", "images_per_second")
    assert [{k: v for k, v in epoch.items() if k not in timings} for epoch in record.curve] == [
        {k: v for k, v in epoch.items() if k not in timings} for epoch in curve
    ]
