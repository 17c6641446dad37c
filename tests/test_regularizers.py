"""Penalties against brute force, their sockets, and what they refuse."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, vit_b_16

from companion import flow, models, training
from companion.blocks import find_blocks
from companion.data import DeviceLoader, digits
from companion.features import FeatureTap
from companion.regularizers import (
    L1,
    AugmentedCKASparsity,
    CKASparsity,
    FeatureFlow,
    FeaturePenalty,
    GroupLasso,
    NetworkSlimming,
    Orthogonality,
    cca_kernel,
    ramp,
)
from companion.similarity import cka

STAGES = [[f"layer{stage}.{block}" for block in range(2)] for stage in (1, 2)]


@pytest.fixture
def net(device):
    return models.ResNet((2, 2), width=4).double().to(device)


@pytest.fixture
def images(device):
    return torch.randn(12, 3, 8, 8, dtype=torch.float64, device=device)


def features(net, x):
    with FeatureTap(net, find_blocks(net)) as tap, torch.no_grad():
        net(x)
    return dict(tap)


def ordered_pairs_in_stages():
    return [pair for stage in STAGES for pair in itertools.permutations(stage, 2)]


@pytest.mark.parametrize("form", ["signed", "squared", "clipped"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_sr_is_the_sum_over_ordered_pairs_of_a_stage(net, images, form, unbiased):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the biased estimator sees few examples
        penalty = CKASparsity(net, beta=0.3, form=form, estimator="unbiased" if unbiased else "biased")
    net(images)
    found = penalty()
    x = features(net, images)
    shape = {"signed": float, "squared": lambda v: v**2, "clipped": lambda v: max(v, 0.0)}[form]
    terms = [shape(float(cka(x[a][:8], x[b][:8], unbiased=unbiased))) for a, b in ordered_pairs_in_stages()]
    assert float(found) == pytest.approx(0.3 * sum(terms), rel=1e-9, abs=1e-12)
    assert float(penalty.last) == pytest.approx(float(found))
    assert penalty.table().loc["layer1.0", "layer1.1"] == pytest.approx(
        float(cka(x["layer1.0"][:8], x["layer1.1"][:8], unbiased=unbiased))
    )


def test_aug_cka_sr_is_the_biased_mean_over_all_distinct_pairs(net, images):
    penalty = AugmentedCKASparsity(net, beta=0.1)
    net(images)
    x = features(net, images)
    pairs = list(itertools.combinations(itertools.chain(*STAGES), 2))
    mean = sum(float(cka(x[a], x[b], unbiased=False)) for a, b in pairs) / len(pairs)
    assert float(penalty()) == pytest.approx(0.1 * mean, rel=1e-9)


def test_pairs_and_their_weights(net, images):
    x = features(net, images)

    def value(pairs):
        penalty = CKASparsity(net, beta=1.0, examples=None, pairs=pairs)
        net(images)
        found = float(penalty())
        penalty.remove()
        return found

    one = float(cka(x["layer1.0"], x["layer2.1"]))
    two = float(cka(x["layer1.0"], x["layer1.1"]))
    assert value([("layer1.0", "layer2.1")]) == pytest.approx(2 * one)
    assert value({("layer1.0", "layer2.1"): 3.0, ("layer1.1", "layer1.0"): 0.5}) == pytest.approx(6 * one + two)
    assert value("adjacent") == pytest.approx(value("stage"))  # two blocks a stage: the same pairs


def test_gradient_matches_finite_differences(device):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()).double().to(device)
    x = torch.randn(8, 3, dtype=torch.float64, device=device)
    penalty = CKASparsity(net, beta=1.0, every=1)

    def value(weight):
        torch.func.functional_call(net, {"2.weight": weight}, (x,))
        return penalty()

    assert torch.autograd.gradcheck(value, (net[2].weight.detach().clone().requires_grad_(),))


PENALTIES = {
    "cka": lambda net, **options: CKASparsity(net, 1.0, **{"every": 1, **options}),
    "augmented_cka": lambda net, **options: AugmentedCKASparsity(net, 1.0, **options),
    "arxiv": lambda net, **options: FeatureFlow(net, 1.0, 1.0, **options),
    "journal": lambda net, **options: FeatureFlow(net, 1.0, 1.0, variant="journal", **options),
}
on_features = pytest.mark.parametrize("build", PENALTIES.values(), ids=PENALTIES)


@on_features
def test_every_counts_calls_and_travels_in_the_state(net, images, build):
    penalty = build(net, every=3)
    seen = []
    for _ in range(7):
        net(images)
        seen.append(float(penalty()) != 0)
    assert seen == [True, False, False] * 2 + [True]
    other = build(net, every=3)
    other.load_state_dict(penalty.state_dict())
    net(images)
    assert float(other()) == 0  # the eighth call


@on_features
def test_evaluation_passes_leave_nothing(net, images, build):
    penalty = build(net)
    net.eval()
    net(images)
    net.train()
    with pytest.raises(RuntimeError, match="training mode"):
        penalty()


@on_features
def test_a_copy_of_the_model_is_not_penalised(net, images, build):
    """An average of weights and a pruned network begin with a deep copy, in the middle of a training too."""
    penalty = build(net)
    net(images)
    value = penalty()
    other = copy.deepcopy(net)
    assert torch.equal(other(images + 1), net.train()(images + 1))
    net(images)
    before = penalty()
    other(images + 2)
    assert torch.equal(penalty(), before) and torch.equal(value, before)
    with pytest.raises(RuntimeError, match="tapped when built"):
        copy.deepcopy(penalty)()
    again = build(other)
    other(images)
    assert torch.isfinite(again())


@on_features
def test_hooks_go_with_remove(net, images, build):
    penalty = build(net)
    assert isinstance(penalty, FeaturePenalty)
    penalty.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_dead_layer_adds_nothing_and_has_no_gradient(net, images):
    with torch.no_grad():
        for parameter in net.layer1[1].bn2.parameters():
            parameter.zero_()
        net.layer1[0].bn2.weight.zero_()
        net.layer1[0].bn2.bias.fill_(-100.0)  # the block's ReLU passes nothing
    penalty = CKASparsity(net, beta=1.0, every=1)
    net(images)
    value = penalty()
    value.backward()
    assert torch.isfinite(value)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    assert penalty.table().loc["layer1.0"].eq(0).all()


def test_a_batch_too_small_for_hsic_gives_zero(net, images):
    penalty = CKASparsity(net, beta=1.0, every=1)
    net(images[:3])
    assert float(penalty()) == 0
    net(images[:6])  # fewer than `examples`: those there are
    x = features(net, images[:6])
    expected = sum(float(cka(x[a], x[b])) for a, b in ordered_pairs_in_stages())
    assert float(penalty()) == pytest.approx(expected)


@on_features
def test_computed_in_float32_under_autocast(device, build):
    net = models.digits_net(width=4, blocks=3).to(device)
    x = torch.randn(16, 1, 8, 8, device=device)
    penalty = build(net)
    with torch.autocast(device.type, torch.bfloat16):
        net(x)
        found = penalty()
    assert found.dtype == torch.float32
    net(x)
    assert float(found) == pytest.approx(float(penalty()), abs=0.05, rel=0.01)


@on_features
def test_accumulated_batches_count_once_a_step_and_the_last_is_read(net, images, build):
    """The loop calls a penalty once a step, for the last of its batches: as in one step on that batch alone."""
    first, last = images[:6], images[6:]
    penalty = build(net)
    net(first)
    net(last)
    value = penalty()
    value.backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    penalty.remove()
    alone = build(net)
    net(last)
    alone().backward()
    torch.testing.assert_close(value.detach(), alone.last)
    torch.testing.assert_close(gradients, [p.grad for p in net.parameters() if p.grad is not None])
    assert alone.calls == penalty.calls == 1


@pytest.mark.parametrize("kind", ["cka", "arxiv"])
def test_the_loop_calls_a_penalty_once_for_accumulated_batches(kind):
    net = models.digits_net(width=4, blocks=3)
    penalty = PENALTIES[kind](net)
    loader = DeviceLoader(digits("train").subset(range(96)), 16)
    history = training.fit(
        net, loader, training.sgd(net, 0.01), epochs=1, accumulate=3, penalty=penalty, progress=False
    )
    assert penalty.calls == 2 and history[0][f"penalty_{penalty.name}"] > 0


@pytest.mark.slow
def test_compiled_models_are_compiled_twice_at_most_with_the_features_and_without():
    torch.compiler.reset()
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    penalty = CKASparsity(net, beta=1.0, every=3)
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend)
    x = torch.randn(16, 3)
    values = []
    for _ in range(12):
        compiled(x)
        values.append(float(penalty().detach()))
    expected = float(cka_of_two_layers(net, x))
    assert values == [pytest.approx(expected, rel=1e-4), 0, 0] * 4
    assert len(compilations) <= 2


def cka_of_two_layers(net, x):
    first, second = features(net, x).values()
    return 2 * cka(first[:8], second[:8])


NETS = {
    "resnet18": lambda: resnet18(num_classes=10),
    "vit": lambda: vit_b_16(num_classes=10, image_size=32),
    "vgg": lambda: models.vgg16_bn(width=4),
}


@pytest.mark.parametrize(
    ("kind", "net"), [("cka", "resnet18"), ("cka", "vit"), ("arxiv", "resnet18"), ("journal", "vgg")]
)
def test_plug_and_play_in_a_plain_loop(kind, net):
    """The ten lines of the package's docstring, on nets that know nothing of penalties."""
    model = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    penalty = PENALTIES[kind](model)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    before = None
    for _ in range(2):
        loss = F.cross_entropy(model(x), y) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert before is None or float(penalty.last) != before
        before = float(penalty.last)


def descended(net, x, penalty):
    """The penalty's values while 30 steps of Adam lower nothing else."""
    optimizer, values = torch.optim.Adam(net.parameters(), lr=1e-2), []
    for _ in range(30):
        net(x)
        loss = penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return values


def test_lowers_the_similarity_it_penalises():
    training.seed_everything(0)
    net = models.digits_net(width=8, blocks=3)
    x = torch.randn(64, 1, 8, 8)
    penalty = CKASparsity(net, beta=1.0, examples=None, every=1)
    values = descended(net, x, penalty)
    assert values[-1] < 0.5 * values[0]


def test_the_loop_keeps_each_penalty_in_its_history():
    training.seed_everything(0)
    net = models.digits_net(width=4, blocks=2)
    loader = DeviceLoader(digits("train").subset(range(256)), 64, shuffle=True)
    penalty = [CKASparsity(net, beta=0.1), L1(net, 1e-5)]
    history = training.fit(net, loader, training.sgd(net, lr=0.05), epochs=2, penalty=penalty, progress=False)
    assert all({"penalty_cka", "penalty_l1"} <= set(epoch) for epoch in history)
    weights = sum(float(w.detach().abs().sum()) for w in penalty[1].weights.values())
    assert history[-1]["penalty_l1"] == pytest.approx(1e-5 * weights, rel=0.1)


def test_weight_penalties_against_their_formulas(device):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 5)).double().to(device)
    conv, linear = net[0].weight, net[3].weight
    assert float(L1(net, 0.5)()) == pytest.approx(0.5 * float(conv.abs().sum() + linear.abs().sum()))
    lasso = 18**0.5 * sum(f.norm() for f in conv) + 3**0.5 * sum(f.norm() for f in linear)
    assert float(GroupLasso(net, 2.0)()) == pytest.approx(2 * float(lasso))
    rows = conv.flatten(1)
    gap = (rows @ rows.T - torch.eye(3, dtype=torch.float64, device=device)).square().sum()
    gap = gap + (linear.T @ linear - torch.eye(3, dtype=torch.float64, device=device)).square().sum()
    assert float(Orthogonality(net, 0.1)()) == pytest.approx(0.1 * float(gap))


def test_group_lasso_of_an_empty_filter_has_gradient_zero():
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight[0].zero_()
    model = nn.Sequential(net)
    GroupLasso(model, 1.0)().backward()
    assert torch.equal(net.weight.grad[0], torch.zeros(4)) and torch.isfinite(net.weight.grad).all()


def test_cca_kernel_is_invariant_to_linear_maps_without_ridge_and_cka_with_it_is_regularised_cca():
    x = torch.randn(40, 5, dtype=torch.float64)
    y = x @ torch.randn(5, 5, dtype=torch.float64)
    projection = cca_kernel(x - x.mean(0), ridge=1e-9)
    torch.testing.assert_close(projection, cca_kernel(y - y.mean(0), ridge=1e-9), atol=1e-5, rtol=0)
    assert float(cka(x, y, kernel=lambda z: cca_kernel(z, 1e-9))) == pytest.approx(1, abs=1e-4)
    assert float(cka(x, y)) < 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, "beta=-1"),
        ({"every": 0}, "every=0"),
        ({"examples": 3}, "examples=3"),
        ({"pairs": "some"}, "pairs='some'"),
        ({"form": "cubed"}, "form='cubed'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"estimator": "best"}, "estimator='best'"),
        ({"layers": "nowhere"}, "no layer of ResNet matches 'nowhere'"),
    ],
)
def test_refusals(net, options, message):
    with pytest.raises(ValueError, match=message):
        CKASparsity(net, **options)


def test_refusals_that_only_the_first_pass_can_show(images):
    net = models.ResNet((1, 1), width=4).double()
    penalty = FeatureFlow(net)
    net(images.cpu())
    with pytest.raises(ValueError, match="use across_stages=True"):
        penalty()
    penalty.remove()
    for pairs, message in (("stage", "no pair to compare"), ([("layer1.0", "no")], r"got \['no'\]")):
        penalty = CKASparsity(net, pairs=pairs)
        net(images.cpu())
        with pytest.raises(ValueError, match=message):
            penalty()
        penalty.remove()
    with pytest.raises(ValueError, match="strength=-1"):
        L1(net, -1)
    with pytest.raises(ValueError, match="has a weight"):
        L1(net, 1, layers=nn.ReLU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length=-1 must not be negative"),
        ({"curvature": float("nan")}, "curvature=nan"),
        ({"variant": "preprint"}, r"variant='preprint' is unknown; use one of \['arxiv', 'journal'\]"),
        ({"norm": 3}, "norm=3"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"examples": 0}, "examples=0"),
        ({"every": 0}, "every=0"),
        ({"layers": "nowhere"}, "no layer of ResNet matches 'nowhere'"),
        ({"layers": "linear", "before_relu": True}, "'linear' .* holds no nn.ReLU"),
    ],
)
def test_refusals_of_feature_flow(net, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureFlow(net, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_few_examples_and_the_biased_estimator_warn(net):
    with pytest.warns(UserWarning, match=r"0\.97 for 8"):
        CKASparsity(net, estimator="biased")


# -------------------------------------------------------------------------------------------------------- feature flow
THREE = [[f"layer{stage}.{block}" for block in range(3)] for stage in (1, 2)]


@pytest.fixture
def deep(device):
    return models.ResNet((3, 3), width=4).double().to(device)


@pytest.mark.parametrize("variant", ["arxiv", "journal"])
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("before_relu", [False, True])
def test_feature_flow_is_the_sum_over_steps_and_turns_of_each_stage(
    deep, images, variant, norm, reduction, before_relu
):
    options = {"variant": variant, "norm": norm, "reduction": reduction, "before_relu": before_relu}
    penalty = FeatureFlow(deep, 0.3, 0.7, **options)
    deep(images)
    found = float(penalty().detach())
    penalty.remove()
    with flow.tap(deep, before_relu=before_relu) as tap, torch.no_grad():
        deep(images)
    vertices = list(flow.vertices(tap, before_relu).values())
    expected = 0.0
    for stage in (vertices[:3], vertices[3:]):
        for x, y, z in zip(*(v.flatten(1) for v in stage), strict=True):
            size = len(x) ** (1 / norm) if reduction == "mean" else 1
            expected += 0.3 * float((y - x).norm(norm) + (z - y).norm(norm)) / size
            if variant == "journal":
                expected += 0.7 * float(torch.acos(F.cosine_similarity(y - x, z - y, dim=0)))
            else:
                expected += 0.7 * float((z - 2 * y + x).norm(norm)) / size
    assert found == pytest.approx(expected / len(images), rel=1e-9)


@pytest.mark.parametrize("variant", ["arxiv", "journal"])
def test_feature_flow_across_stages_adds_the_steps_between_them(deep, images, variant):
    penalty = FeatureFlow(deep, 0.3, 0.7, variant=variant, across_stages=True, reduction="sum", examples=5)
    deep(images)
    found = float(penalty().detach())
    penalty.remove()
    x = dict(zip(itertools.chain(*THREE), features_of(deep, images, 5), strict=True))
    path = flow.measure(x, across_stages=True)
    curvature = path.angle if variant == "journal" else path.curvature
    assert found == pytest.approx(float(0.3 * path.length.mean(1).sum() + 0.7 * curvature.mean(1).sum()))
    assert path.length.shape == (5, 5) and path.angle.shape == (4, 5)


def features_of(net, x, examples):
    """Block outputs of the first examples in the batch of training mode, whose statistics batch norm takes."""
    with FeatureTap(net, find_blocks(net), reduce=None) as tap, torch.no_grad():
        net(x)
    return [features[:examples] for features in tap.values()]


@pytest.mark.parametrize("variant", ["arxiv", "journal"])
@pytest.mark.parametrize("across_stages", [False, True])
def test_gradient_of_feature_flow_matches_finite_differences(device, variant, across_stages):
    torch.manual_seed(1)
    net = (
        nn.Sequential(*(layer for width in (3, 4, 4) for layer in (nn.Linear(width, 4), nn.Tanh()))).double().to(device)
    )
    x = torch.randn(5, 3, dtype=torch.float64, device=device)
    penalty = FeatureFlow(net, 1.0, 1.0, variant=variant, across_stages=across_stages)

    def value(weight):
        torch.func.functional_call(net, {"2.weight": weight}, (x,))
        return penalty()

    assert torch.autograd.gradcheck(value, (net[2].weight.detach().clone().requires_grad_(),))


@pytest.mark.parametrize("variant", ["arxiv", "journal"])
def test_blocks_that_do_nothing_and_dead_features_have_finite_gradients(deep, images, variant):
    with torch.no_grad():
        for block in deep.layer1:  # no step at all inside the first stage
            block.bn2.weight.zero_()
            block.bn2.bias.zero_()
        deep.layer2[0].bn2.bias.fill_(-100.0)  # features of the second stage that are 0, then one step
        deep.layer2[1].bn2.weight.zero_()
        deep.layer2[1].bn2.bias.zero_()
        deep.layer2[2].bn2.bias.fill_(1.0)
    penalty = FeatureFlow(deep, 1.0, 1.0, variant=variant)
    deep(images)
    value = penalty()
    value.backward()
    assert torch.isfinite(value) and value > 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in deep.parameters())


def test_strength_keeps_its_meaning_for_other_widths_and_resolutions(device):
    """Independent features of one distribution: the mean over features does not depend on how many there are."""
    values = []
    for width, size in ((8, 8), (64, 32)):
        stage = {name: torch.randn(4, width, size, size, device=device) for name in "abc"}
        penalty = FeatureFlow(models.digits_net(), 1.0, 1.0)
        values.append(float(penalty.value(stage)))
    assert values[0] == pytest.approx(values[1], rel=0.05)


def test_an_empty_batch_gives_zero(deep):
    penalty = FeatureFlow(deep)
    assert float(penalty.value({"a": torch.zeros(0, 3), "b": torch.zeros(0, 3)})) == 0


def test_shortens_and_straightens_what_it_penalises():
    for options in ({"curvature": 0}, {"length": 0, "curvature": 1.0, "variant": "journal"}):
        training.seed_everything(0)
        net = models.digits_net(width=8, blocks=4)
        x = torch.randn(32, 1, 8, 8)
        penalty = FeatureFlow(net, **{"length": 1.0, **options})
        values = descended(net, x, penalty)
        assert values[-1] < 0.5 * values[0], options


@pytest.mark.slow
def test_feature_flow_of_a_compiled_model():
    torch.compiler.reset()
    net = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.ReLU(inplace=True))))
    x = torch.randn(16, 4)
    for options in ({}, {"before_relu": True}):
        torch.compiler.reset()
        penalty = FeatureFlow(net, 1.0, 1.0, **options)
        net(x)
        expected = float(penalty().detach())
        compiled = torch.compile(net, backend="eager")
        for _ in range(3):
            compiled(x)
            assert float(penalty().detach()) == pytest.approx(expected)
        penalty.remove()


# ----------------------------------------------------------------------------------------------------------- schedules
def test_a_ramp_rises_in_a_straight_line_and_every_penalty_takes_one(deep, images):
    rising = ramp(2.0, steps=4, start=1)
    assert [rising(step) for step in range(7)] == [0, 0, 0.5, 1, 1.5, 2, 2]
    kinds = [
        lambda strength: CKASparsity(deep, strength, every=1),
        lambda strength: FeatureFlow(deep, strength, 0),
        lambda strength: FeatureFlow(deep, 0, strength),
        lambda strength: L1(deep, strength),
        lambda strength: NetworkSlimming(deep, strength),
    ]
    for build in kinds:
        full, scheduled = build(2.0), build(rising)
        for step in range(4):
            deep(images)
            assert float(scheduled().detach()) == pytest.approx(rising(step) / 2 * float(full().detach())), full
        resumed = build(rising)
        resumed.load_state_dict(scheduled.state_dict())
        deep(images)
        resumed()
        assert float(resumed.last) == pytest.approx(0.75 * float(full.last), rel=1e-2)
        assert "ramp(2.0, steps=4, start=1)" in repr(scheduled)


def test_schedules_that_make_no_sense():
    for arguments in ((-1.0, 4), (1.0, 0), (1.0, 4, -1)):
        with pytest.raises(ValueError, match="ramp"):
            ramp(*arguments)
    penalty = L1(nn.Sequential(nn.Linear(2, 2)), lambda step: -1.0)
    with pytest.raises(ValueError, match=r"is -1\.0 at step 0"):
        penalty()


# ------------------------------------------------------------------------------------------------------------ slimming
def test_network_slimming_sums_the_scales_of_batch_norms(net):
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_()
    scales = [m.weight.detach() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    penalty = NetworkSlimming(net, 0.1)
    value = penalty()
    assert float(value.detach()) == pytest.approx(0.1 * sum(float(w.abs().sum()) for w in scales))
    value.backward()
    assert all(p.grad is None for name, p in net.named_parameters() if "bn" not in name)
    torch.testing.assert_close(net.bn1.weight.grad, 0.1 * net.bn1.weight.detach().sign())
    with pytest.raises(ValueError, match="BatchNorm"):
        NetworkSlimming(models.mlp([4, 3, 2]), 0.1)
