"""What a run is, the studies of the third round, and their controls."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from companion import experiments, flow, models, training
from companion.experiments import (
    EXPERIMENTS,
    Workplace,
    hypotheses,
    quantities,
    recipes,
    records,
    registry,
    removal,
    trainings,
)
from companion.experiments.controls import PlaceboAugmentedCKASparsity, PlaceboCKASparsity, random_rotation
from companion.experiments.plan import HOW, identity
from companion.experiments.recipes import DIGITS, LEFT_OUT, Depth, Prune, completed
from companion.experiments.records import Run
from companion.experiments.statistics import Mean, conclude, mean
from companion.models import digits_net
from companion.pruning import Masks, cost, prune_filters
from companion.regularizers import AugmentedCKASparsity, CKASparsity
from companion.regularizers.identity import FEW
from companion.similarity import cka

PAGE = "book/hypotheses_third.md"
STUDIES = [experiment for experiment in EXPERIMENTS.values() if experiment.blocks]


@pytest.fixture
def place(tmp_path):
    return Workplace(device=torch.device("cpu"), work=tmp_path / "work")


# ------------------------------------------------------------------------------------------------------- what a run is
def test_identity_ignores_how_and_sees_everything_else():
    run = EXPERIMENTS["random_masks"].runs("laptop")[1]
    assert not set(HOW) & set(run.settings)
    for how in ({"precision": "float32"}, {"compile": True, "channels_last": False}, {"workers": 7}):
        assert identity(dataclasses.replace(run, settings={**run.settings, **how})) == identity(run)
    changes = ({"lr": 0.3}, {"momentum": 0.8}, {"schedule_options": {"rise": 0.2}}, {"penalties": []})
    for change in changes:
        assert identity(dataclasses.replace(run, settings={**run.settings, **change})) != identity(run)
    assert identity(dataclasses.replace(run, seed=run.seed + 1)) != identity(run)


def test_a_record_of_other_settings_is_none_of_the_run(tmp_path):
    run = EXPERIMENTS["random_masks"].runs("smoke")[0]
    result, made = {"test": {"correct": 9, "examples": 10, "loss": 1.0}}, records.provenance("cpu", "now", 1.0)
    for change, there in (({"lr": 0.3}, False), ({"precision": "bfloat16"}, True), ({}, True)):
        kept = records.Record(dataclasses.replace(run, settings={**run.settings, **change}), result, [], {}, made)
        kept.save(tmp_path)
        assert (
            (experiments.recorded(run, tmp_path) == kept) == there == (experiments.recorded(run, tmp_path) is not None)
        )


def test_a_pace_is_what_it_is_measured_at():
    """Where nothing is trained to an end, precision is what is asked about."""
    run = EXPERIMENTS["throughput"].runs("laptop")[0]
    other = dataclasses.replace(run, settings={**run.settings, "precision": "bfloat16"})
    assert identity(run) != identity(other)


def test_records_made_before_arguments_were_written_out_are_still_the_registrys():
    path = ROOT / "book" / "results" / "granet" / "laptop" / "granet+cka_sr-0.98-seed0.json"
    old = records.load(path).run
    now = next(run for run in EXPERIMENTS["granet"].runs("laptop", [0]) if run.path == old.path)
    assert "pairs" not in old.settings["penalties"][0] and now.settings["penalties"][0]["pairs"] == "stage"
    assert identity(old) == identity(now)


# What the run itself supplies, and masks' choice of layers, which JSON cannot say.
SUPPLIED = {"self", "model", "optimizer", "sparsity", "steps", "seed"}


def arguments(kind: type) -> set[str]:
    """Every argument of a penalty or a mask, those that it hands on to a parent included."""
    found: set[str] = set()
    for owner in kind.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
        found |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    found -= {"select"}  # younger than the runs, and None in all of them: features as the layers give them
    return found - SUPPLIED - ({"layers", "masks"} if issubclass(kind, Masks) else set())


def test_the_registry_relies_on_no_default():
    """Every argument of every penalty, mask, schedule and optimizer stands in the runs themselves."""
    seen = set()
    for experiment in EXPERIMENTS.values():
        for tier in experiment.tiers:
            for run in experiment.runs(tier):
                s = run.settings
                if "schedule" not in s:
                    continue
                described = [*s.get("penalties", []), *([s["pruning"]] if s.get("pruning") else [])]
                for entry in described:
                    kind = {**trainings.PENALTIES, **trainings.MASKS}[entry["kind"]]
                    missing = arguments(kind) - set(entry)
                    assert not missing, f"{run} leaves {missing} of {entry['kind']} to a default"
                    seen.add(entry["kind"])
                options = set(inspect.signature(trainings.SCHEDULES[s["schedule"]]).parameters)
                assert options <= set(s["schedule_options"]) | ({"milestones"}), run
                assert {"lr", "momentum", "nesterov", "weight_decay", "decay_norm_and_bias"} <= set(s), run
    assert {"CKASparsity", "AugmentedCKASparsity", "FeatureFlow", "RandomPruning", "GraNet", "GroupLasso"} <= seen


def test_completing_is_complete_and_changes_nothing_that_is_there():
    given = {"schedule": "multistep", "milestones": [2], "penalties": [{"kind": "CKASparsity", "beta": 1, "every": 2}]}
    once = completed(given)
    assert once["penalties"][0]["every"] == 2 and once["penalties"][0]["examples"] == 8
    assert once["schedule_options"] == {"gamma": 0.1, "warmup": 0, "milestones": [2]}
    assert completed(once) == once and completed({"examples": 7}) == {"examples": 7}
    assert set(LEFT_OUT) >= {"one_cycle", "multistep", "cosine"}


@pytest.mark.slow
def test_the_precision_used_is_in_the_provenance_and_not_in_the_run(place, tmp_path):
    run = EXPERIMENTS["random_masks"].runs("smoke")[0]
    other = dataclasses.replace(place, how={"precision": "bfloat16"})
    record = experiments.perform(run, other, tmp_path)
    assert record.provenance["how"]["precision"] == "bfloat16" and record.run == run
    assert experiments.perform(run, place, tmp_path) == record  # the same run: not made again


@pytest.mark.slow
def test_a_seed_is_not_made_on_two_machines_or_in_two_precisions(place, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_processor", lambda: "this one")
    experiment = EXPERIMENTS["masks_dose"]
    first, second, *_ = experiment.runs("smoke")
    experiments.perform(first, place, tmp_path)
    with pytest.raises(experiments.OtherBlockError, match="'precision': 'float32'"):
        experiments.perform(second, dataclasses.replace(place, how={"precision": "bfloat16"}), tmp_path)
    monkeypatch.setattr(records, "_processor", lambda: "another one")
    with pytest.raises(experiments.OtherBlockError, match="another one"):
        experiments.perform(second, place, tmp_path)
    elsewhere = dataclasses.replace(second, seed=first.seed + 1)  # another seed is another block
    assert experiments.perform(elsewhere, place, tmp_path) is not None
    monkeypatch.setattr(records, "_processor", lambda: "this one")
    assert experiments.perform(second, place, tmp_path) is not None


def test_records_of_a_study_are_whole_blocks_of_one_commit():
    for study in STUDIES:
        made = experiments.replay(study.name)
        blocks = {
            seed: {json.dumps(records.block(r.provenance)) for r in made if r.run.seed == seed}
            for seed in {r.run.seed for r in made}
        }
        assert all(len(of) == 1 for of in blocks.values()), (study.name, blocks)
        assert len({r.provenance["commit"] for r in made}) <= 1 and all(r.provenance["clean"] for r in made)


# ---------------------------------------------------------------------------------------------------- one bit an image
@pytest.mark.slow
def test_a_record_says_which_images_are_right(place):
    run = EXPERIMENTS["random_masks"].runs("smoke")[0]
    outcome = experiments.train(run, place)
    record = records.Record(run, *outcome, provenance=records.provenance("cpu", "now", 1.0))
    task = trainings.ImageTask.of(run, place)
    assert record.right().shape == (360,) and int(record.right().sum()) == record.result["test"]["correct"]
    assert record.right().mean() == record.accuracy() and task.tested is not None
    model = task.network()
    expected = torch.cat([model.eval()(x).argmax(1) == y for x, y in task.tested])
    assert np.array_equal(records.unpacked(trainings.scored(model, task.tested)["right"], 360), expected.numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": 1}, "examples marked right"),
        ({"correct": 3}, "examples marked right"),
        ({"right": "AAAA"}, "24 bits for 360 examples"),
        ({"right": records.packed(np.arange(368) < 2)}, "368 bits for 360 examples"),
        ({"right": "?"}, "right"),
    ],
)
def test_bits_that_do_not_fit_are_found(change, message):
    run = Run("any", "smoke", "none", 0)
    test = {"correct": 2, "examples": 360, "loss": 1.0, "right": records.packed(np.arange(360) < 2)}
    sound = {"weights": [{"pruned": {"test": test}}]}
    made = records.provenance("cpu", "now", 1.0)
    assert records.problems(records.Record(run, sound, [], {}, made)) == []
    broken = {"weights": [{"pruned": {"test": {**test, **change}}}]}
    found = records.problems(records.Record(run, broken, [], {}, made))
    assert len(found) == 1 and message in found[0] and "weights[0].pruned.test" in found[0]


def test_an_older_record_says_that_it_does_not_know_which_images():
    with pytest.raises(ValueError, match="does not say which examples of test are right"):
        experiments.replay("random_masks")[0].right()


# ------------------------------------------------------------------------------------------------------------ controls
def gradients(kind: type, **options) -> tuple[dict[str, Tensor], float]:
    """The gradient of a penalty with respect to each block's output (through the later ones, too), and its value."""
    torch.manual_seed(3)
    model = models.resnet20(width=4).train()
    penalty = kind(model, beta=1.0, **options)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, models.BasicBlock):
            module.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output}))
    model(torch.randn(FEW, 3, 16, 16))
    value = penalty()
    found = torch.autograd.grad(value, list(outputs.values()))
    return dict(zip(outputs, found, strict=True)), value.item()


@pytest.mark.parametrize(
    ("kind", "placebo"), [(CKASparsity, PlaceboCKASparsity), (AugmentedCKASparsity, PlaceboAugmentedCKASparsity)]
)
def test_a_placebo_has_the_penaltys_value_and_the_norm_of_its_gradient(kind, placebo):
    own, value = gradients(kind, examples=FEW)
    turned, same = gradients(placebo, examples=FEW, seed=1)
    assert same == pytest.approx(value, rel=1e-6)
    last = list(own)[-1]  # nothing follows: its gradient is the penalty's own
    torch.testing.assert_close(turned[last].norm(), own[last].norm(), rtol=1e-4, atol=0)
    assert not torch.allclose(turned[last], own[last], rtol=0.1)
    per_place = (turned[last].norm(dim=1), own[last].norm(dim=1))  # at every example and position
    torch.testing.assert_close(*per_place, rtol=1e-3, atol=1e-9)


@pytest.mark.slow
def test_the_mean_effect_of_a_placebo_on_cka_over_draws_is_none():
    """Along g·Q, CKA changes by ⟨g, gQ⟩ to first order: 0 in the mean over Q, and far less than ‖g‖² in each draw."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 8, 4, 4, dtype=torch.double), torch.randn(32, 8, 4, 4, dtype=torch.double)
    y = y + x  # related layers: there is a CKA to lower
    x.requires_grad_()
    (g,) = torch.autograd.grad(cka(x, y), x)
    step = 1e-4 / float(g.norm())

    def change(direction: Tensor) -> float:
        return float(cka(x.detach() - step * direction, y) - cka(x.detach(), y)) / (step * float(g.norm()) ** 2)

    assert change(g) == pytest.approx(-1, abs=0.05)  # the penalty itself lowers CKA
    draws = np.array(
        [change((g.movedim(1, -1) @ random_rotation(8, seed).double()).movedim(-1, 1)) for seed in range(400)]
    )
    standard_error = draws.std(ddof=1) / 20
    assert abs(draws.mean()) < 3 * standard_error and standard_error < 0.05
    plain = np.array(
        [float((g.movedim(1, -1) @ random_rotation(8, seed).double()).norm() / g.norm()) for seed in (0, 1)]
    )
    assert np.allclose(plain, 1, atol=1e-5)


def test_rotations_are_uniform_enough_and_follow_from_their_seed():
    q = torch.stack([random_rotation(4, seed) for seed in range(2000)])
    assert torch.equal(random_rotation(4, 7), random_rotation(4, 7)) and not torch.equal(q[0], q[1])
    assert float(q.mean(0).abs().max()) < 4 / 2000**0.5 * 0.5  # each entry has mean 0 and variance 1/4
    torch.testing.assert_close(q.square().mean(0), torch.full((4, 4), 0.25), atol=0.02, rtol=0)


def test_the_negated_form_is_the_negative_with_the_opposite_gradient():
    own, value = gradients(AugmentedCKASparsity)
    negated, turned = gradients(AugmentedCKASparsity, form="negated")
    assert turned == pytest.approx(-value)
    for name, gradient in own.items():
        torch.testing.assert_close(negated[name], -gradient)


# ------------------------------------------------------------------------------------------------ pruning without scale
def _rescaled(model: models.ResNet) -> models.ResNet:
    """The same function: a filter before a batch norm times 3; a channel after it times 5, its readers by 1/5."""
    other = copy.deepcopy(model)
    block = other.layer1[0]
    with torch.no_grad():
        block.conv1.weight[0] *= 3
        block.bn1.running_mean[0] *= 3
        block.bn1.running_var[0] *= 9
        block.bn1.weight[1] *= 5
        block.bn1.bias[1] *= 5
        block.conv2.weight[:, 1] /= 5
    return other


def test_scale_free_order_survives_rescalings_that_leave_the_network_the_same():
    torch.manual_seed(0)
    model = models.digits_net(width=8, blocks=2).eval()
    images = torch.randn(200, 1, 8, 8)
    for module in model.modules():  # batch norms that differ from the first ones
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, 0.1, 1)
            module.eps = 0.0
    other = _rescaled(model).eval()
    torch.testing.assert_close(other(images), model(images), rtol=1e-4, atol=1e-4)

    def scores(network: nn.Module) -> dict[str, Tensor]:
        factors = removal.scale_free(network, images)
        return {name: network.get_submodule(name).weight.detach().abs() * factor for name, factor in factors.items()}

    here, there = scores(model), scores(other)
    for name, score in here.items():
        torch.testing.assert_close(there[name], score, rtol=1e-3, atol=1e-6)
    raw = {name: network.layer1[0].conv1.weight.detach().abs() for name, network in (("a", model), ("b", other))}
    assert not torch.allclose(raw["a"], raw["b"])


def test_deviations_are_those_of_what_goes_in_and_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))
    images = 7 + torch.randn(1500, 2, 2, 2) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    found = quantities.deviations(model, images)
    torch.testing.assert_close(found["0"][0], images.movedim(1, -1).flatten(0, -2).std(0, correction=0))
    torch.testing.assert_close(found["3"][1], model(images).std(0, correction=0).detach(), rtol=1e-4, atol=1e-5)
    tokens = torch.randn(40, 6, 3) * torch.tensor([1.0, 2.0, 3.0])  # channels last
    found = quantities.deviations(nn.Sequential(nn.Linear(3, 2)), tokens)
    torch.testing.assert_close(found["0"][0], tokens.flatten(0, 1).std(0, correction=0))


# ---------------------------------------------------------------------------------------------------- blocks taken out
def test_a_network_without_branches_is_the_one_whose_last_scales_and_shifts_are_zero():
    torch.manual_seed(0)
    model = models.resnet20(width=4, shortcut="B").eval()
    gone = ["layer1.1", "layer2.0", "layer3.2"]
    silent = copy.deepcopy(model)
    for name in gone:
        nn.init.zeros_(silent.get_submodule(name).bn2.weight)
        nn.init.zeros_(silent.get_submodule(name).bn2.bias)
    x = torch.randn(4, 3, 16, 16)
    shorter = removal.without_branches(model, gone)
    torch.testing.assert_close(shorter(x), silent(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(x), silent(x)) and len(list(model.parameters())) > len(list(shorter.parameters()))
    assert [type(m).__name__ for m in (model.layer1[1], shorter.layer1[1])] == ["BasicBlock", "Sequential"]
    with pytest.raises(ValueError, match="conv1 is a Conv2d; a residual block"):
        removal.without_branches(model, ["conv1"])


@pytest.mark.slow
def test_depth_takes_the_cheapest_block_first_and_tunes_without_bringing_one_back(place):
    run = EXPERIMENTS["depth"].runs("smoke")[0]
    outcome = experiments.train_and_prune(run, place)
    found = outcome.result["blocks"]
    assert [entry["block"] for entry in found["single"]] == [f"layer1.{k}" for k in range(4)]
    assert [len(entry["gone"]) for entry in found["greedy"]] == [1, 2]
    assert set(found["greedy"][0]["gone"]) < set(found["greedy"][1]["gone"])
    assert found["greedy"][0]["macs"] > found["greedy"][1]["macs"]
    assert "fine_tuned" in found["greedy"][0] and "fine_tuned" not in found["greedy"][1]
    assert found["greedy"][0]["fine_tuned"]["test"]["correct"] != 0


class Batches(list):
    """A loader whose epoch may be set."""

    epoch = start = 7


MASKED = dataclasses.replace(DIGITS, pruning=recipes.random_masks())
PENALISED = dataclasses.replace(
    DIGITS, penalties=(recipes.group_lasso(0.1),), prune=Prune(batches=3, epochs=2, lr=0.03)
)


def afterwards(prune: Prune, examples: int = 20) -> removal._Afterwards:
    """What follows a training, on noise; held out are three batches, tested are two."""
    held, tested, seen = (
        Batches((torch.randn(examples, 1, 8, 8), torch.arange(examples) % 10) for _ in range(n)) for n in (3, 2, 9)
    )
    recipe = dataclasses.replace(PENALISED, prune=prune)
    task = SimpleNamespace(
        recipe=recipe,
        followed=held,
        tested=tested,
        loader=seen,
        split="validation",
        place=Workplace(torch.device("cpu")),
    )
    return removal._Afterwards(task)


def test_what_is_pruned_is_tuned_without_its_penalty_at_a_rate_of_its_own():
    after, seen = afterwards(PENALISED.prune), []
    after.task.fit = lambda network, checkpoint, recipe: seen.append((checkpoint, recipe))
    after.tuned(digits_net(width=4, blocks=1), "macs0.5")
    plain = dataclasses.replace(after.task.recipe, epochs=2, lr=0.03, schedule=recipes.cosine(), penalties=None)
    assert seen == [(".macs0.5", plain)]
    scores = after.scores(digits_net(width=4, blocks=1))
    assert {part: found["examples"] for part, found in scores.items()} == {"test": 40, "validation": 60}


def test_filters_go_by_their_size_in_their_own_layer():
    """A layer a hundred times as large, its batch norm with it, loses the same filters."""
    after = afterwards(Prune(macs=(0.6,), norm="l2", batches=2, epochs=0))
    model = digits_net(width=8, blocks=3).eval()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.layer1[0].conv1.weight *= 100
        scaled.layer1[0].bn1.running_var *= 1e4
    (one,), (other,) = (removal.filters_removed(net, after) for net in (model, scaled))
    example = after.task.followed[0][0]
    _, report = prune_filters(model, example, norm="l2", relative="mean", macs=0.6, repeats=0, floor=0)
    assert one["left"] == other["left"] == {name: left for name, (_, left) in report.filters.items()}
    assert (one["macs"], one["parameters"]) == (report.macs, report.parameters) and one["macs"] <= 0.6


def test_blocks_go_by_their_loss_on_held_out_images_with_batch_norm_anew(monkeypatch):
    """Accuracy falls by what each block is worth; so does what is judged by it, and on what."""
    after = afterwards(Prune(batches=3, depth=Depth(greedy=2, examples=1500, batches=2, fine_tune=())))
    model, worth, asked = digits_net(width=4, blocks=3), (0.3, 0.1, 0.2), []
    model.bn1.num_batches_tracked.fill_(99)

    def evaluate(network, loader, right=None):
        gone = [k for k, block in enumerate(network.layer1) if isinstance(block, nn.Sequential)]
        where = {id(after.task.tested): "test", id(after.task.followed): "held out"}.get(id(loader), "some")
        assert where != "some" or (len(loader) == 2 and loader[0] is after.task.followed[0])
        asked.append((gone, where, int(network.bn1.num_batches_tracked)))
        if right is not None:
            right.append(torch.ones(40, dtype=torch.bool))
        return {"accuracy": 0.9 - sum(worth[k] for k in gone), "examples": 40, "loss": 1.0}

    monkeypatch.setattr(training, "evaluate", evaluate)
    found = removal.blocks_removed(model, after)
    assert asked[:6] == [([k], "test", batches) for k in range(3) for batches in (99, 3)]  # as it is, and anew
    assert after.task.loader.epoch == after.task.loader.start == 0  # the same batches every time
    judged = [([k], "some", 2) for k in range(3)]  # on the first two batches held out, with batch norm on two
    assert asked[6:] == [
        *(*judged, ([1], "test", 3), ([1], "held out", 3)),
        *(([0, 1], "some", 2), ([1, 2], "some", 2), ([1, 2], "test", 3), ([1, 2], "held out", 3)),
    ]
    assert [entry["gone"] for entry in found["greedy"]] == [["layer1.1"], ["layer1.1", "layer1.2"]]
    whole = cost(model, torch.ones(1, 1, 8, 8)).macs_dense
    assert found["greedy"][0]["macs"] == whole - 2 * 64 * 4 * 4 * 9  # two convolutions, 3 × 3, of four channels


def test_what_a_run_trains_on_follows_from_its_seed_and_what_it_holds_out_does_not(place):
    tasks = [
        trainings.ImageTask.of(Run("any", "smoke", "none", seed, 0.9, MASKED.settings()), place) for seed in (0, 1)
    ]
    assert torch.equal(*(task.followed.images.images for task in tasks)) and len(tasks[0].loader.images) == 1237
    assert [(task.loader.seed, task.loader.augment, task.loader.padding) for task in tasks] == [
        (0, False, 4),
        (1, False, 4),
    ]
    bare = dataclasses.replace(MASKED, padding=0)
    assert trainings.ImageTask.of(Run("any", "smoke", "none", 0, 0.5, bare.settings()), place).loader.padding == 0
    model = tasks[0].network()
    one, other = (task.masks(model)(training.sgd(model, 0.1)).masks["layer1.0.conv1"].clone() for task in tasks)
    assert one.float().mean() < 1 and not torch.equal(one, other)


# ------------------------------------------------------------------------------------------------------------- studies
@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_study_has_a_dry_run_of_the_same_losses(study, place):
    assert study.blocks
    dry = {run.method: run.settings.get("penalties") for run in study.runs("smoke")}
    assert dry == {run.method: run.settings.get("penalties") for run in study.runs("laptop")}
    last = study.runs("smoke")[-1]
    outcome = study.perform(last, place)
    assert "right" in outcome.result["test"] and outcome.measures["weights"]["layers"][1]["input_deviation"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_hypothesis_of_a_study_reads_its_records(study, place):
    """Judged from dry runs on two seeds: every finding has a number, and every verdict is one of the words."""
    made = []
    for run in study.runs("smoke"):
        outcome = study.perform(run, place)
        if run.sparsity is not None:
            cells = [dataclasses.replace(run, sparsity=s) for s in study.tiers["laptop"].sparsities]
        else:
            cells = [run]
        made += [
            records.Record(dataclasses.replace(cell, seed=seed), *_deeper(outcome), provenance={})
            for cell in cells
            for seed in (0, 1)
        ]
    judged = hypotheses.judge(records.Records(made), hypotheses.THIRD[study.name])
    for name, found in judged.items():
        assert found.findings and all(finding.mean is not None for finding in found.findings), name
        assert found.verdict in ("supported", "refuted", "not refuted") or "mean" in found.verdict
        stands = "Primary: the change of accuracy under CKA-SR" if study.name == "hosts_again" else f"| {name}"
        assert stands in (ROOT / PAGE).read_text()  # `hosts_again` has a sentence in place of a table
    assert "not run" not in {word for found in judged.values() for word in found.said}


def _deeper(outcome):
    """A dry run takes out fewer blocks than the study does: the last entry stands for the rest."""
    blocks = outcome.result.get("blocks")
    if blocks is None:
        return outcome
    last = blocks["greedy"][-1] | {"fine_tuned": blocks["greedy"][0]["fine_tuned"]}
    names = [entry["block"] for entry in blocks["single"]]
    greedy = [last | {"gone": names[:count]} for count in (3, 4)]
    return outcome._replace(result={**outcome.result, "blocks": blocks | {"greedy": greedy}})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0.1, -0.1, 0.0, 0.1], "supports"),
        ([2.1, 1.9, 2.0, 2.1], "refutes"),
        ([-2.1, -1.9, -2.0, -2.1], "refutes"),
        ([0.9, 0.6, 0.8, 0.7], "supports"),
        ([3.0, -3.0, 1.0, 2.0], "undecided"),
    ],
)
def test_what_is_expected_within_a_margin(values, says):
    found = hypotheses.Difference("accuracy", mean(values), 0, delta=1.0)
    assert found.says() == says
    assert (conclude([found.outcome().says()]) == "equivalent within δ") == (says == "supports" and found.p > 0.05)


def test_an_expected_effect_that_is_small_refutes_where_the_page_says_so():
    small = mean([0.3, 0.4, 0.3, 0.4])
    assert hypotheses.Difference("gain", small, +1, delta=1.0).says() == "supports"
    assert hypotheses.Difference("gain", small, +1, delta=1.0, small_refutes=True).says() == "refutes"


@pytest.mark.parametrize(
    ("penalty", "strengths", "target"),
    [
        ("cka_sr", (0.01, 0.02, 0.03, 0.05, 0.1), quantities.cka_in_stages),
        ("aug_cka_sr", (0.1, 0.3, 1.0), quantities.cka_of_blocks),
    ],
)
def test_strengths_of_later_studies_are_the_smallest_that_act(penalty, strengths, target):
    """By the rule on the page: a mean change of CKA of at most −.05 and an interval below −.02; under 2 points lost."""
    dose = experiments.replay("masks_dose")

    def change(strength: float, reading: quantities.Reading) -> Mean:
        found = dose.difference(f"random+{penalty}_{strength:g}", "random", reading, sparsity=0.9)
        if found is None or found.count < 3:
            pytest.skip(f"masks_dose, {penalty} {strength:g}: not recorded")
        return found

    def acts(strength: float) -> bool:
        moved = change(strength, target)
        return moved.value <= -0.05 and moved.high < -0.02

    chosen = next(strength for strength in strengths if acts(strength))
    assert change(chosen, lambda record: 100 * record.accuracy("validation")).value > -2
    methods = EXPERIMENTS["hosts_again"].tiers["laptop"].methods
    assert methods[f"random+{penalty}"]["penalties"][0].arguments["beta"] == chosen
    if penalty == "cka_sr":
        assert EXPERIMENTS["specificity"].tiers["laptop"].methods["cka_sr"]["penalties"][0].arguments["beta"] == chosen


def test_seeds_of_studies_are_nobody_elses():
    used: dict[int, str] = {}
    for experiment in EXPERIMENTS.values():
        if "laptop" in experiment.tiers and experiment.perform in (registry.train, registry.train_and_prune):
            for seed in experiment.tiers["laptop"].seeds:
                if experiment in STUDIES:
                    assert used.get(seed, experiment.name) == experiment.name, (seed, used[seed], experiment.name)
                    used[seed] = experiment.name
    others = {
        seed
        for experiment in EXPERIMENTS.values()
        if experiment not in STUDIES and "laptop" in experiment.tiers
        for seed in experiment.tiers["laptop"].seeds
    }
    assert not set(used) & others


def test_the_page_of_hypotheses_came_before_every_run_and_has_not_changed():
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no git history: {done.stderr.strip()}")
        return done.stdout.strip()

    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone does not know when the page came")
    introduced = git("log", "--diff-filter=A", "--format=%H", "--", PAGE)
    made = [record for study in STUDIES for record in experiments.replay(study.name)]
    for commit in {record.provenance["commit"] for record in made}:
        git("cat-file", "-e", commit)
        before = subprocess.run(["git", "-C", str(ROOT), "merge-base", "--is-ancestor", introduced, commit])
        assert before.returncode == 0, f"a run of commit {commit} came before the hypotheses"
    if made:
        assert git("show", f"{introduced}:{PAGE}") == (ROOT / PAGE).read_text().strip()
    text = (ROOT / PAGE).read_text()
    assert all(f"`{study.name}`" in text for study in STUDIES)


def test_flow_is_measured_as_before():
    """The trajectory's measures do not depend on the hooks of `deviations`."""
    model = models.digits_net(width=4, blocks=2).eval()
    images = torch.randn(20, 1, 8, 8)
    before = flow.trajectory(model, images).length
    quantities.deviations(model, images)
    assert torch.equal(flow.trajectory(model, images).length, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_studies_go_on_from_the_commit_that_the_folder_of_results_names():
    text = (ROOT / "book" / "results" / "README.md").read_text()
    for study in STUDIES:
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{study.name}`" in line)
        for record in experiments.replay(study.name):
            assert record.provenance["commit"] in row, study.name
