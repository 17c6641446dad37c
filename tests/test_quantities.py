"""Readings: one number of a record, from a record made by hand and from the ones in the book."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from companion import flow
from companion.experiments import quantities, records, replay
from companion.experiments.records import Record, Run
from companion.features import extract
from companion.models import digits_net


def scores(test: int, validation: int = 50) -> dict:
    return {
        "test": {"correct": test, "examples": 100, "loss": 1.0},
        "validation": {"correct": validation, "examples": 100, "loss": 1.0},
    }


@pytest.fixture
def record() -> Record:
    """Two stages of two blocks; every number is chosen so that its mean can be seen."""
    layers = ["relu", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "linear"]
    cka = np.eye(6)
    for (i, j), value in zip(itertools.combinations(range(1, 5), 2), (0.9, 0.5, 0.1, 0.7, 0.3, 0.8), strict=True):
        cka[i, j] = cka[j, i] = value
    histogram = [0] * len(quantities.WEIGHT_EDGES)
    histogram[0], histogram[-1] = 40, 60
    layer = {"shape": [100, 1, 1, 1], "rms": 1.0, "zeros": 0, "histogram": histogram}
    convolutions = [
        layer | {"name": "conv1", "filter_norms": [9.0], "bn_scale": [9.0], "bn_deviation": [1.0]},
        layer | {"name": "layer1.0.conv1", "filter_norms": [1.0, 3.0], "bn_scale": [-2.0, 1.0], "bn_deviation": [1, 2]},
        layer | {"name": "layer1.0.conv2", "filter_norms": [4.0], "bn_scale": [-0.5], "bn_deviation": [0.25]},
    ]
    return Record(
        Run("toy", "laptop", "none", 0, None, {"prune": {"macs": [0.5, 0.25]}}),
        {
            "test": scores(80)["test"],
            "weights": [{"sparsity": s, "pruned": scores(a, a)} for s, a in ((0.5, 79), (0.8, 69), (0.9, 40))],
            "filters": [
                {"pruned": scores(30, 30), "fine_tuned": scores(70)},
                {"pruned": scores(12, 12), "fine_tuned": scores(60)},
            ],
            "blocks": {
                "single": [{"block": f"layer{n}.1", "refreshed": scores(a)["test"]} for n, a in ((1, 70), (2, 60))],
                "greedy": [
                    {"gone": ["layer1.1"], "pruned": scores(66), "fine_tuned": scores(72)},
                    {"gone": ["layer1.1", "layer2.1"], "pruned": scores(44)},
                ],
            },
        },
        [{"epoch": 1, "cosine_loss_cka": 0.25}, {"epoch": 2, "cosine_loss_cka": -0.75}],
        {
            "cka": {"layers": layers, "columns": layers, "values": cka.tolist()},
            "weights": {"edges": quantities.WEIGHT_EDGES, "layers": convolutions},
            "trajectory": {"relative_length": [0.5, 0.7], "angle": [1.0, 2.0], "straightness": [0.25, 0.75]},
            "information": {
                "layers": layers,
                "gaussian": {"layers": layers, "values": (np.arange(36).reshape(6, 6) * 1.0).tolist()},
                "about_image": [9.0, 1.0, 2.0, 3.0, 4.0, 9.0],
                "about_label": [9.0, 0.1, 0.2, 0.3, 0.4, 9.0],
            },
        },
        records.provenance("cpu", "2026-01-01T00:00:00+00:00", 1.0),
    )


def test_accuracies(record):
    assert quantities.percent(record) == 80
    assert quantities.after_pruning(0.8)(record) == 69
    assert quantities.after_removal(0.25)(record) == 60 and quantities.after_removal(0.25, "pruned")(record) == 12
    assert quantities.pruned_on_average(record) == pytest.approx((79 + 69 + 40 + 30 + 12) / 5)
    with pytest.raises(ValueError, match=r"weights at \[0\.5, 0\.8, 0\.9\], not at 0\.7"):
        quantities.after_pruning(0.7)(record)
    with pytest.raises(ValueError, match=r"shares of the multiply-adds, at \[0\.5, 0\.25\], not at 0\.1"):
        quantities.after_removal(0.1)(record)


def test_accuracies_without_blocks(record):
    assert quantities.without_blocks(1)(record) == 66 and quantities.without_blocks(1, "fine_tuned")(record) == 72
    assert quantities.without_blocks(2)(record) == 44
    assert quantities.block_damage(record) == pytest.approx((10 + 20) / 2)
    with pytest.raises(ValueError, match=r"blocks out, fine_tuned, at \[1\], not at 2"):
        quantities.without_blocks(2, "fine_tuned")(record)


def test_only_levels_of_their_own_criterion_are_read(record):
    record.result["weights"].append({"criterion": "scale_free", "sparsity": 0.8, "pruned": scores(75)})
    assert quantities.after_pruning(0.8)(record) == 69 and quantities.after_pruning(0.8, "scale_free")(record) == 75
    assert quantities.sparsity_kept(50)(record) == 0.9


def test_stages_are_told_apart_beyond_the_ninth(record):
    names = ["layer1.0", "layer1.1", "layer10.0"]
    cka = {"layers": names, "values": [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]}
    found = Record(record.run, {}, [], {"cka": cka}, {})
    assert quantities.cka_in_stages(found) == 0.75 and quantities.cka_of_blocks(found) == 0.5


def test_sparsity_at_a_fixed_loss_of_accuracy(record):
    assert quantities.sparsity_kept(6)(record) == pytest.approx(0.5 + 0.3 * 5 / 10)  # 74 lies halfway from 79 to 69
    assert quantities.sparsity_kept(0.5)(record) == pytest.approx(0.25)  # halfway from 80 to 79
    assert quantities.sparsity_kept(50)(record) == 0.9  # never beyond the last level


def test_similarity_path_and_information(record):
    assert quantities.cka_in_stages(record) == pytest.approx((0.9 + 0.8) / 2)
    assert quantities.cka_of_neighbours(record) == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    assert quantities.cka_between_stages(record) == pytest.approx(0.7)
    assert quantities.cka_of_blocks(record) == pytest.approx((0.9 + 0.5 + 0.1 + 0.7 + 0.3 + 0.8) / 6)
    assert (quantities.path_length(record), quantities.path_angle(record)) == pytest.approx((0.6, 1.5))
    assert quantities.straightness(record) == 0.5
    assert (quantities.about_image(record), quantities.about_label(record)) == pytest.approx((2.5, 0.25))
    assert quantities.shared_information(record) == pytest.approx(np.mean([6 + 2, 12 + 3, 18 + 4]))


def test_filters_as_they_act(record):
    assert quantities.raw_norms(record) == 2 and quantities.folded_norms(record) == pytest.approx((2 + 1.5) / 2)
    assert quantities.inner_scale(record) == 1.5 and quantities.inner_deviation(record) == 1.5  # of −2, 1; of 1, 2
    assert quantities.branch_scale(record) == 0.5 and quantities.folded_norms(record, "conv2") == pytest.approx(8)
    assert quantities.small_weights(record) == pytest.approx(40)  # the first bin lies whole below a tenth of the RMS


def test_sizes_of_blocks_that_open_a_stage_and_of_the_others(record):
    """Each stage's first block by itself; the others, which FFR reaches, by themselves; None means all."""
    layers = record.measures["weights"]["layers"]
    (inner, last) = (layer for layer in layers if layer["name"].startswith("layer1.0"))
    more = {"layer1.1": 5.0, "layer10.0": 10.0, "layer10.1": 20.0}
    for block, size in more.items():
        layers += [
            inner | {"name": f"{block}.conv1", "filter_norms": [size], "bn_scale": [size], "bn_deviation": [1]},
            last | {"name": f"{block}.conv2", "bn_scale": [-size]},
        ]
    for reading, alone in (
        (quantities.branch_scale, [0.5]),
        (quantities.inner_scale, [2, 1]),
        (quantities.raw_norms, [1, 3]),
    ):
        assert reading(record, opening=True) == pytest.approx(np.mean([*alone, 10]))
        assert reading(record, opening=False) == pytest.approx(np.mean([5, 20]))
        assert reading(record) == pytest.approx(np.mean([*alone, 5, 10, 20]))


@torch.no_grad()
def test_which_size_sees_a_smaller_input():
    """Half the input, the same output: the folded norm doubles, and that is no growth of a filter."""
    model, images = digits_net(width=4, blocks=2).eval(), torch.randn(8, 1, 8, 8)
    halved = copy.deepcopy(model)
    scales = [halved.bn1, *(block.bn2 for block in halved.layer1)]  # they make the stream that every block reads
    for tensor in itertools.chain.from_iterable((norm.weight, norm.bias) for norm in scales):
        tensor *= 0.5
    for norm in (block.bn1 for block in halved.layer1):  # statistics of what reads it
        norm.running_mean *= 0.5
        norm.running_var.add_(norm.eps).mul_(0.25).sub_(norm.eps)
    halved.linear.weight *= 2
    assert torch.allclose(model(images), halved(images), atol=1e-4)
    found = {
        reading.__name__: [
            reading(Record(Run("toy", "smoke", "none", 0), {}, [], {"weights": quantities.weights(net)}, {}))
            for net in (model, halved)
        ]
        for reading in (
            quantities.raw_norms,
            quantities.folded_norms,
            quantities.inner_scale,
            quantities.inner_deviation,
            quantities.branch_scale,
        )
    }
    ratios = {name: after / before for name, (before, after) in found.items()}
    expected = {"raw_norms": 1, "folded_norms": 2, "inner_scale": 1, "inner_deviation": 0.5, "branch_scale": 0.5}
    assert ratios == pytest.approx(expected, rel=5e-3)  # records keep three digits


def test_a_path_is_recorded_as_means_over_images():
    """Of each number of `flow.trajectory` the mean, by its definition."""
    model, images = digits_net(width=4, blocks=3).eval(), torch.randn(7, 1, 8, 8)
    a, b, c = (x.flatten(1) for x in extract(model, images, ["layer1.0", "layer1.1", "layer1.2"], reduce=None).values())
    lengths = torch.stack([(b - a).norm(dim=1), (c - b).norm(dim=1)])
    expected = {
        "length": lengths.mean(1),
        "relative_length": (lengths / torch.stack([a.norm(dim=1), b.norm(dim=1)])).mean(1),
        "angle": torch.cosine_similarity(b - a, c - b).acos().mean()[None],
        "straightness": ((c - a).norm(dim=1) / lengths.sum(0)).mean()[None],
    }
    found = quantities.trajectory(model, images)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values.tolist(), rel=1e-3), name


def test_records_keep_four_digits():
    table = pd.DataFrame([[0.123456, 1.0]], index=["a"], columns=["a", "b"])
    assert quantities.matrix(table)["values"] == [[0.1235, 1.0]]
    assert quantities.rounded([0.00123456, 123456.0, 7]) == [0.001235, 123500.0, 7]


def test_paths_by_depth_by_class_and_by_margin():
    torch.manual_seed(0)
    model, images, labels = digits_net(width=4).eval(), torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    found = quantities.flow_by_example(model, images, labels)
    path = flow.trajectory(model, images, across_stages=True)
    with torch.no_grad():
        logits = model(images)
    others = torch.stack([torch.cat([row[:y], row[y + 1 :]]).max() for row, y in zip(logits, labels, strict=True)])
    margin = logits[torch.arange(40), labels] - others

    def near(value, expected):
        np.testing.assert_allclose(np.array(value), torch.as_tensor(expected).numpy(), rtol=6e-3, atol=1e-6)

    near(found["examples"]["margin"], margin)
    assert found["examples"]["label"] == labels.tolist()
    for name, values in (("angle", path.angle), ("relative_length", path.relative_length)):
        near(found["examples"][name], values.sum(0))
        near(found["layers"][name], np.quantile(values, quantities.QUANTILES, axis=1).T)
        near(found["classes"][name], torch.stack([values[:, labels == c].mean(1) for c in range(10)]))
        hardest_first = np.array_split(margin.argsort(), 4)
        near(found["margins"][name], torch.stack([values[:, group].mean(1) for group in hardest_first]))


def test_cosines(record):
    assert quantities.mean_cosine("cosine_loss_cka")(record) == pytest.approx(-0.25)
    with pytest.raises(ValueError, match=r"no 'cosine_a_b'; it has \['cosine_loss_cka'\]"):
        quantities.mean_cosine("cosine_a_b")(record)


def test_small_weights_do_not_depend_on_zeros_under_a_mask(record):
    """Exact zeros are not small weights, and the RMS is that of the weights alive."""
    for layer in record.measures["weights"]["layers"]:
        layer["zeros"], layer["histogram"][0] = 40, 40
    assert quantities.small_weights(record) == 0


def test_small_weights_lie_below_any_share_of_the_scale(record):
    """A quarter below a ten-thousandth of the RMS, a quarter between a tenth and the next edge, the rest beyond."""
    edge = quantities.WEIGHT_EDGES.index(0.1)
    for layer in record.measures["weights"]["layers"]:
        histogram = [0] * len(quantities.WEIGHT_EDGES)
        histogram[0], histogram[edge], histogram[-1] = 25, 25, 50
        layer["zeros"], layer["histogram"] = 0, histogram
    after = quantities.WEIGHT_EDGES[edge + 1]
    for epsilon, percent in ((0.01, 25), (0.1, 25), ((0.1 + after) / 2, 37.5), (after, 50)):
        assert quantities.small_weights(record, epsilon) == pytest.approx(percent)


def test_readings_of_the_books_records():
    made = replay("random_masks")
    for record in made:
        assert 10 < quantities.percent(record) < 100 and 0 < quantities.cka_in_stages(record) < 1
        assert 0 < quantities.small_weights(record) < 50 and quantities.path_length(record) > 0
        assert quantities.raw_norms(record) > 0
