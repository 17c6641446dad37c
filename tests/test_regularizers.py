"""Penalties against brute force, their sockets, and what they refuse."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, vit_b_16

from companion import models, training
from companion.data import DeviceLoader, digits
from companion.features import FeatureTap, find_blocks
from companion.regularizers import L1, AugmentedCKASparsity, CKASparsity, GroupLasso, Orthogonality, cca_kernel
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


def test_every_counts_calls_and_travels_in_the_state(net, images):
    penalty = CKASparsity(net, beta=1.0, every=3)
    seen = []
    for _ in range(7):
        net(images)
        seen.append(float(penalty()) != 0)
    assert seen == [True, False, False] * 2 + [True]
    other = CKASparsity(net, beta=1.0, every=3)
    other.load_state_dict(penalty.state_dict())
    net(images)
    assert float(other()) == 0  # the eighth call


def test_evaluation_passes_leave_nothing(net, images):
    penalty = CKASparsity(net, beta=1.0, every=1)
    net.eval()
    net(images)
    net.train()
    with pytest.raises(RuntimeError, match="training mode"):
        penalty()


def test_hooks_go_with_remove(net, images):
    penalty = CKASparsity(net)
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


def test_computed_in_float32_under_autocast(device):
    net = models.digits_net(width=4, blocks=3).to(device)
    x = torch.randn(16, 1, 8, 8, device=device)
    penalty = CKASparsity(net, beta=1.0, every=1)
    with torch.autocast(device.type, torch.bfloat16):
        net(x)
        found = penalty()
    assert found.dtype == torch.float32
    net(x)
    assert float(found) == pytest.approx(float(penalty()), abs=0.05)


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


@pytest.mark.parametrize("build", [lambda: resnet18(num_classes=10), lambda: vit_b_16(num_classes=10, image_size=32)])
def test_plug_and_play_in_a_plain_loop(build):
    """The ten lines of the module's docstring, on nets that know nothing of penalties."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    penalty = CKASparsity(model, beta=1.0, every=1)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    before = None
    for _ in range(2):
        loss = F.cross_entropy(model(x), y) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert before is None or float(penalty.last) != before
        before = float(penalty.last)


def test_lowers_the_similarity_it_penalises():
    training.seed_everything(0)
    net = models.digits_net(width=8, blocks=3)
    x = torch.randn(64, 1, 8, 8)
    penalty = CKASparsity(net, beta=1.0, examples=None, every=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        net(x)
        loss = penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
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


def test_few_examples_and_the_biased_estimator_warn(net):
    with pytest.warns(UserWarning, match=r"0\.97 for 8"):
        CKASparsity(net, estimator="biased")
