"""Penalties against brute force, their sockets, and what they refuse."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import itertools
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18, vit_b_16

from companion import flow, models, training
from companion.blocks import find_blocks
from companion.data import DeviceLoader, digits
from companion.experiments import controls  # their placebos are penalties, too
from companion.features import FeatureTap
from companion.regularizers import (
    L1,
    PENALTIES,
    AugmentedCKASparsity,
    CKASparsity,
    FeatureFlow,
    FeaturePenalty,
    GroupLasso,
    HSICBottleneck,
    KineticEnergy,
    NetworkSlimming,
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


def number(x: Tensor) -> float:
    return x.detach().item()


def features(net, x):
    with FeatureTap(net, find_blocks(net)) as tap, torch.no_grad():
        net(x)
    return dict(tap)


def ordered_pairs_in_stages():
    return [pair for stage in STAGES for pair in itertools.permutations(stage, 2)]


# ---------------------------------------------------------------------------------------- what every penalty promises
def small() -> models.ResNet:
    return models.digits_net(width=4, blocks=3)


def built(name: str, model: nn.Module, strength: float = 1.0, **options):
    """A registered penalty with all its strengths set, due at every call unless `options` say otherwise."""
    kind = PENALTIES[name]
    known = {parameter for cls in kind.__mro__ for parameter in inspect.signature(cls.__init__).parameters}
    strengths = {key: strength for key in ("beta", "length", "curvature", "strength") if key in known}
    return kind(model, **strengths, **({"every": 1, "examples": 32} if "every" in known else {}), **options)


each_penalty = pytest.mark.parametrize("name", PENALTIES)
each_on_features = pytest.mark.parametrize("name", [n for n, f in PENALTIES.facts.items() if f["reads"] == "features"])


def step(model, penalty, x):
    """Forward pass, penalty, backward pass: the value, and which parameters got a gradient."""
    model.zero_grad()
    model(x)
    value = penalty()
    value.backward()
    return value, {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@each_penalty
def test_contract_value_gradient_and_last(name, device):
    model, x = small().to(device), torch.randn(16, 1, 8, 8, device=device)
    penalty = built(name, model)
    assert penalty.last is None and penalty.calls == 0
    value, reached = step(model, penalty, x)
    assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)
    assert PENALTIES.facts[name]["signed"] or value >= 0
    assert not penalty.last.requires_grad and torch.equal(penalty.last, value.detach())
    last_block = {n for n, _ in model.named_parameters() if n.startswith("layer1.2.bn2")}
    if PENALTIES.facts[name]["reads"] == "features":  # all that comes before the last block's output, nothing after
        assert reached >= last_block | {"conv1.weight"} and not any(n.startswith("linear") for n in reached)
    else:
        kind = nn.BatchNorm2d if name == "slimming" else nn.Conv2d | nn.Linear
        assert reached == {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, kind)}
    with pytest.raises(ValueError, match=r"(beta|length|strength)=-1 must lie in \[0, inf\)"):
        built(name, model, -1)
    for wrong in (float("nan"), float("inf"), "much", None):
        with pytest.raises(ValueError, match=f"(beta|length|strength)={wrong!r} must"):
            built(name, model, wrong)


@each_penalty
def test_contract_twice_the_strength_is_twice_the_value(name):
    model, x = small(), torch.randn(16, 1, 8, 8)
    one, two, none = built(name, model), built(name, model, 2.0), built(name, model, 0.0)
    model(x)
    values = [float(penalty().detach()) for penalty in (two, one, none)]
    assert values == [pytest.approx(2 * values[1], rel=1e-5), values[1], 0]


@each_penalty
def test_contract_state_travels(name):
    model, x = small(), torch.randn(16, 1, 8, 8)
    penalty = built(name, model, lambda calls: calls + 1.0)
    for _ in range(3):
        step(model, penalty, x)
    other = built(name, model, lambda calls: calls + 1.0)
    other.load_state_dict(penalty.state_dict())
    assert other.calls == penalty.calls == 3
    model(x)
    torch.testing.assert_close(penalty(), other())
    assert penalty.calls == 4


@each_penalty
def test_contract_a_copy_of_both_works_on_the_copy(name):
    """As `copy.deepcopy` of a LightningModule does, in the middle of a training."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()
            self.penalty = built(name, self.net)

    holder, x = Holder(), torch.randn(16, 1, 8, 8)
    before, _ = step(holder.net, holder.penalty, x)
    twin = copy.deepcopy(holder)
    assert twin.penalty.calls == 1 and torch.equal(twin.penalty.last, before)
    with torch.no_grad():
        for parameter in twin.net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    value, reached = step(twin.net, twin.penalty, x)
    fresh = built(name, twin.net)
    assert value.item() == pytest.approx(step(twin.net, fresh, x)[0].item(), rel=1e-5)
    assert reached and holder.penalty.calls == 1
    original, _ = step(holder.net, holder.penalty, x)
    assert original.item() == pytest.approx(before.item(), rel=1e-5) and value.item() != pytest.approx(before.item())


@each_penalty
def test_contract_float32_under_autocast(name, device):
    model, x = small().to(device), torch.randn(16, 1, 8, 8, device=device)
    penalty = built(name, model)
    with torch.autocast(device.type, torch.bfloat16):
        model(x)
        value = penalty()
    assert value.dtype == torch.float32
    model(x)
    assert value.item() == pytest.approx(penalty().item(), rel=0.05, abs=0.05)


@each_penalty
def test_contract_accumulated_batches(name):
    """One call a step, after the last of its batches: its value and gradient are those of that batch alone."""
    model, (first, last) = small(), torch.randn(2, 16, 1, 8, 8)
    penalty = built(name, model)
    model(first).sum().backward()
    value, _ = step(model, penalty, last)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    alone, _ = step(model, built(name, model), last)
    torch.testing.assert_close(value, alone)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


COMPILED = ("feature_flow", "cka_sr", "l1")  # of each kind one; the others are like it


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in COMPILED else pytest.param(n, marks=pytest.mark.long) for n in PENALTIES])
def test_contract_compiled(name):
    torch.compiler.reset()
    model, x = small(), torch.randn(16, 1, 8, 8)
    penalty = built(name, model)
    expected, _ = step(model, penalty, x)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        value, reached = step(compiled, penalty, x)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        assert reached


@each_penalty
def test_a_penalty_is_known_by_its_class_in_the_runs(name):
    assert PENALTIES.facts[name]["title"] and PENALTIES[name].__module__ in (
        *(f"companion.regularizers.{file.stem}" for file in (ROOT / "companion" / "regularizers").glob("*.py")),
        controls.__name__,
    )


# ------------------------------------------------------------------------------------------- activation checkpointing
class Checkpointed(nn.Module):
    """Blocks whose activations are computed anew in the backward pass, or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


LAYERS = [f"blocks.{i}" for i in range(3)]


@each_on_features
def test_checkpointed_blocks_have_the_right_gradient(name):
    """At every call, also where `every` leaves some out, and where batches are accumulated."""
    gradients, values = [], []
    for reentrant in (None, False):
        torch.manual_seed(0)
        model = Checkpointed(reentrant).double()
        penalty = built(name, model, layers=LAYERS)
        penalty.every = 2
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x = torch.randn(4, 2, 12, 6, dtype=torch.float64)
        values.append([])
        for first, last in x:
            model(first).square().mean().backward()
            loss = model(last).square().mean() + penalty()
            loss.backward()
            values[-1].append(float(loss.detach()))
            optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    torch.testing.assert_close(*gradients)


@each_on_features
def test_reentrant_checkpoints_are_refused_before_the_first_step(name):
    model = Checkpointed(reentrant=True)
    penalty = built(name, model, layers=LAYERS)
    x = torch.randn(12, 6)
    with pytest.raises(ValueError, match=r"runs without gradients.*use_reentrant=False"):
        model(x)
    assert penalty.calls == 0
    model.reentrant = None
    with torch.no_grad():  # whoever wants the value alone
        model(x)
        assert torch.isfinite(penalty())
        model(x)  # as batch norm's statistics are refreshed
    model(x)
    assert penalty().requires_grad


# ------------------------------------------------------------------------------------------------------------- select
def test_a_layer_without_gradients_is_noticed_though_the_next_one_has_some():
    """Run one by one, outside a pass of the model, as a frozen part and a trained one are."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(12, 6)
    penalty = CKASparsity(model, 1.0, layers=["0", "1"], pairs="all", every=1)
    with torch.no_grad():
        x = model[0](x)
    model[1](x)
    with pytest.raises(RuntimeError, match="has no gradient"):
        penalty()


class Pairs(nn.Module):
    """Layers that return two tensors each: features, and something beside them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return torch.tanh(self.linear(x)), x.sum()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return x


def test_select_picks_the_tensor_that_is_penalised():
    torch.manual_seed(0)
    model, x = Pairs().double(), torch.randn(12, 6, dtype=torch.float64)
    first = CKASparsity(model, 1.0, every=1, select=lambda output: output[0])
    flows = FeatureFlow(model, 1.0, 0.0, select=lambda output: output[0])
    squeezed = HSICBottleneck(model, 1.0, select=lambda output: output[0])
    model(x)
    h = [x]
    for block in model.blocks:
        h.append(torch.tanh(block.linear(h[-1])))
    pairs = itertools.permutations(h[1:], 2)
    assert number(first()) == pytest.approx(sum(number(cka(a[:8], b[:8])) for a, b in pairs))
    steps = sum((b - a).square().mean(1).sqrt().mean() for a, b in itertools.pairwise(h[1:]))
    assert number(flows()) == pytest.approx(number(steps))
    assert number(squeezed()) > 0
    penalty = CKASparsity(model, 1.0, every=1)
    with pytest.raises(ValueError, match=r"2 tensors .*select=lambda output: output\[0\]"):
        model(x)
    penalty.remove()


# ---------------------------------------------------------------------------------- weights made of other parameters
def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


MADE = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", 0.25), "weight", 0.5
    ),
    "weight norm": parametrizations.weight_norm,
    "older weight norm": lambda layer: torch.nn.utils.weight_norm(layer),
    "doubled": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_weights_that_are_made_of_others_are_penalised_as_they_are_used(make):
    model = two_layers()
    make(model[0])
    penalties = {"l1": L1(model, 1.0), "lasso": GroupLasso(model, 1.0)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the second time after a step, which leaves the attribute `weight` as old as the last pass
        (sum(penalty() for penalty in penalties.values()) + model(torch.randn(8, 3).double()).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.eye(3, dtype=torch.float64)
    used = (model[0](x) - model[0].bias).T.detach()  # what the layer multiplies by, measured
    weights = [used, model[2].weight.detach()]
    assert number(penalties["l1"]()) == pytest.approx(sum(number(w.abs().sum()) for w in weights))
    lasso = sum(w.shape[1] ** 0.5 * float(w.norm(dim=1).sum()) for w in weights)
    assert number(penalties["lasso"]()) == pytest.approx(lasso)
    penalties["l1"]().backward()
    assert sum(p.grad is not None for p in model[0].parameters()) >= 1


def test_a_pruned_weight_feels_no_penalty_and_scales_are_read_alike():
    model = two_layers()
    prune.custom_from_mask(model[0], "weight", torch.eye(4, 3))
    prune.custom_from_mask(model[1], "weight", torch.tensor([1.0, 0.0, 1.0, 1.0]))
    (L1(model, 0.5)() + NetworkSlimming(model, 2.0)()).backward()
    original = model[0].weight_orig
    torch.testing.assert_close(original.grad, 0.5 * original.detach().sign() * torch.eye(4, 3))
    assert model[1].weight_orig.grad.tolist() == [2, 0, 2, 2]


def test_weights_of_unknown_origin_are_refused_by_name_and_shared_ones_count_once():
    model = two_layers()
    torch.nn.utils.spectral_norm(model[2])
    with pytest.raises(ValueError, match=r"layer '2' \(Linear\) is no parameter"):
        L1(model, 1.0)
    assert L1(model, 1.0, layers="0").layers == ["0"]
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert number(L1(tied, 1.0)()) == pytest.approx(number(tied[0].weight.abs().sum()))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_each_of_many_computed_weights_counts_though_memory_is_used_again(make):
    """Rows of a grouped transposed convolution are a copy, so the computed weight itself is let go."""
    model = nn.Sequential(*[nn.ConvTranspose2d(8, 8, 3, groups=4) for _ in range(30)])
    for layer in model:
        make(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no parametrization is a layer that the default leaves out
        penalty = L1(model, 1.0)
    model(torch.randn(1, 8, 4, 4))
    whole = sum(number(layer.weight.abs().sum()) for layer in model)
    for _ in range(10):
        assert len(penalty.weights) == 30 and number(penalty()) == pytest.approx(whole)


# ------------------------------------------------------------------------------------------------------------- copies
def test_a_penalised_model_can_be_saved_whole_and_the_penalty_says_how():
    model, x = small(), torch.randn(16, 1, 8, 8)
    penalties = CKASparsity(model, 1.0, every=1), FeatureFlow(model), HSICBottleneck(model)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(copied(x), model(x))
    model(x)
    assert all(penalty() > 0 for penalty in penalties)
    with pytest.raises(TypeError, match=r"FeatureFlow holds hooks .*save its state_dict\(\)"):
        pickle.dumps(penalties[1])


def test_a_penalty_on_the_module_that_holds_it_says_what_to_do():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()
            self.penalty = CKASparsity(self, layers="net.layer1.?")

    with pytest.raises(RuntimeError, match="built on the very module that holds it"):
        copy.deepcopy(Holder())


# ------------------------------------------------------------------------------------------------------------- CKA-SR
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
    assert number(found) == pytest.approx(0.3 * sum(terms), rel=1e-9, abs=1e-12)
    assert number(penalty.last) == pytest.approx(number(found))
    assert penalty.table().loc["layer1.0", "layer1.1"] == pytest.approx(
        float(cka(x["layer1.0"][:8], x["layer1.1"][:8], unbiased=unbiased))
    )


def test_aug_cka_sr_is_the_biased_mean_over_all_distinct_pairs(net, images):
    penalty = AugmentedCKASparsity(net, beta=0.1)
    net(images)
    found = penalty()
    x = features(net, images)
    pairs = list(itertools.combinations(itertools.chain(*STAGES), 2))
    mean = sum(float(cka(x[a], x[b], unbiased=False)) for a, b in pairs) / len(pairs)
    assert number(found) == pytest.approx(0.1 * mean, rel=1e-9)


def test_pairs_and_their_weights(net, images):
    x = features(net, images)

    def value(pairs):
        penalty = CKASparsity(net, beta=1.0, examples=None, pairs=pairs)
        net(images)
        found = penalty().item()
        penalty.remove()
        return found

    one = float(cka(x["layer1.0"], x["layer2.1"]))
    two = float(cka(x["layer1.0"], x["layer1.1"]))
    assert value([("layer1.0", "layer2.1")]) == pytest.approx(2 * one)
    assert value({("layer1.0", "layer2.1"): 3.0, ("layer1.1", "layer1.0"): 0.5}) == pytest.approx(6 * one + two)
    assert value("adjacent") == pytest.approx(value("stage"))  # two blocks a stage: the same pairs


class Chosen(nn.Module):
    """Blocks run in the order of `turns`, as layer drop and shared layers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]).double()
        self.turns = [0, 1, 2, 3]

    def forward(self, x):
        for turn in self.turns:
            x = x + self.blocks[turn](x)
        return x


def test_pairs_are_those_of_the_layers_that_ran():
    """The weights of the first pass, of four blocks, were spread over what a later pass left: 12 for one block."""
    model, x = Chosen(), torch.randn(16, 6, dtype=torch.float64)
    names = [f"blocks.{number}.1" for number in range(4)]
    penalty = CKASparsity(model, 1.0, every=1, examples=None, layers=names)
    pair = CKASparsity(model, 1.0, every=1, examples=None, layers=names, pairs=[(names[1], names[2])])
    for turns in ([0, 1, 2, 3], [1, 2], [0, 2, 1], [3, 2, 1, 0], [1, 1, 2]):
        model.turns = turns
        model(x)
        with FeatureTap(model, names) as tap:
            model(x)
        assert number(penalty()) == pytest.approx(
            sum(number(cka(tap[a], tap[b])) for a, b in itertools.permutations(tap, 2))
        )
        assert number(pair()) == pytest.approx(2 * number(cka(tap[names[1]], tap[names[2]])))
    model.turns = [1]
    model(x)
    with pytest.raises(ValueError, match="no pair to compare"):
        penalty()


def test_gradient_matches_finite_differences(device):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()).double().to(device)
    x = torch.randn(8, 3, dtype=torch.float64, device=device)
    penalty = CKASparsity(net, beta=1.0, every=1)

    def value(weight):
        torch.func.functional_call(net, {"2.weight": weight}, (x,))
        return penalty()

    assert torch.autograd.gradcheck(value, (net[2].weight.detach().clone().requires_grad_(),))


KINDS = {
    "cka": lambda net, **options: CKASparsity(net, 1.0, **{"every": 1, **options}),
    "augmented_cka": lambda net, **options: AugmentedCKASparsity(net, 1.0, **options),
    "arxiv": lambda net, **options: FeatureFlow(net, 1.0, 1.0, **options),
    "journal": lambda net, **options: FeatureFlow(net, 1.0, 1.0, variant="journal", **options),
    "kinetic_energy": lambda net, **options: KineticEnergy(net, 1.0, **options),
    "hsic_bottleneck": lambda net, **options: HSICBottleneck(net, 1.0, **options),
}
on_features = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)


@on_features
def test_layers_run_alone_leave_their_last_call_and_nothing_of_those_before(build):
    """As by `model.forward_features(x)`, which calls no hook of the model's own."""
    net = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
    penalty = build(net)
    with torch.no_grad():
        for layer in net:  # a first look at shapes, say
            layer(torch.randn(8, 6))
    outputs = []
    for _ in range(4):
        x = torch.randn(8, 6)
        for layer in net:
            x = layer(x)
        outputs.append(weakref.ref(x))
        if not isinstance(penalty, HSICBottleneck):  # which refuses layers without the model's input
            penalty().backward()
    del x
    gc.collect()
    assert [output() is None for output in outputs[:-1]] == [True] * 3


def test_a_penalty_on_a_model_without_parameters_is_0_where_none_is_due():
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    penalty = KineticEnergy(model, 1.0, layers=["0", "1"], every=2)
    model(torch.randn(4, 3))
    assert penalty() > 0 and penalty() == 0


@on_features
def test_every_counts_calls_and_travels_in_the_state(net, images, build):
    penalty = build(net, every=3)
    seen = []
    for _ in range(7):
        net(images)
        seen.append(penalty().item() != 0)
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
def test_evaluation_passes_take_nothing_away(net, images, build):
    penalty = build(net)
    net(images)
    value = penalty()
    net.eval()(images + 1)
    assert torch.equal(penalty(), value)
    with pytest.raises(RuntimeError):
        net(images[0, 0])  # one that fails neither
    assert torch.equal(penalty(), value)
    net.train()(images + 1)
    assert not torch.equal(penalty(), value)


@on_features
def test_a_pass_that_fails_leaves_nothing(net, images, build):
    """Its first layers alone have another value, and nobody would know."""
    penalty = build(net)
    net(images)
    penalty()
    with net.linear.register_forward_pre_hook(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        net(images)
    with pytest.raises(RuntimeError, match="no features"):
        penalty()


class Sentences(nn.Module):
    def __init__(self):
        super().__init__()
        layer = functools.partial(nn.TransformerEncoderLayer, 16, 2, 32, batch_first=True, dropout=0.0)
        self.embedding, self.layers = nn.Embedding(20, 16), nn.ModuleList([layer() for _ in range(4)])

    def forward(self, input_ids, attention_mask=None):
        h = self.embedding(input_ids)
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=None if attention_mask is None else attention_mask == 0)
        return h


@pytest.mark.parametrize(
    "build",
    [
        FeatureFlow,
        functools.partial(FeatureFlow, variant="journal", norm=1),
        functools.partial(FeatureFlow, reduction="sum", examples=5),
        KineticEnergy,
        functools.partial(CKASparsity, every=1, examples=None),
    ],
    ids=["FFR", "angles", "sum", "kinetic energy", "CKA-SR"],
)
def test_padding_does_not_count(build):
    torch.manual_seed(0)
    model, words, lengths = Sentences(), torch.randint(20, (12, 8)), torch.randint(3, 9, (12, 1))
    penalty, found = build(model), []
    for tokens in (8, 20):
        ids = F.pad(words, (0, tokens - 8))
        model(input_ids=ids, attention_mask=(torch.arange(tokens) < lengths).long())
        found.append(penalty())
    torch.testing.assert_close(*found)
    model(words)
    whole = penalty()
    model(input_ids=words, attention_mask=torch.ones_like(words))
    torch.testing.assert_close(penalty(), whole)
    with pytest.raises(ValueError, match="which tokens count is not known"):
        model(input_ids=words, attention_mask=2 * torch.ones_like(words))


def test_padding_of_the_input_does_not_count_for_the_hsic_bottleneck():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

        def forward(self, x, attention_mask=None):
            for layer in self.layers:
                x = layer(x).tanh()
            return x

    model, x, mask = Embedded(), torch.randn(12, 5, 4), (torch.arange(5) < torch.randint(2, 5, (12, 1))).long()
    penalty, found = HSICBottleneck(model, 1.0, layers="layers.?"), []
    for noise in (0.0, 3.0):
        model(x + noise * torch.randn_like(x) * (1 - mask[..., None]), attention_mask=mask)
        found.append(penalty())
    torch.testing.assert_close(*found)


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
        copy.deepcopy(penalty)()  # on a copy of the model that nobody runs
    again = build(other)
    other(images)
    assert torch.isfinite(again())


@on_features
def test_hooks_go_with_remove(net, images, build):
    penalty = build(net)
    assert isinstance(penalty, FeaturePenalty)
    net(images)
    penalty.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(RuntimeError, match="no features"):  # and not those of the last pass before, for ever
        penalty()


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
    assert penalty().item() == 0
    net(images[:6])  # fewer than `examples`: those there are
    found = penalty()
    x = features(net, images[:6])
    expected = sum(float(cka(x[a], x[b])) for a, b in ordered_pairs_in_stages())
    assert number(found) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["cka", "arxiv"])
def test_the_loop_calls_a_penalty_once_for_accumulated_batches(kind):
    net = models.digits_net(width=4, blocks=3)
    penalty = KINDS[kind](net)
    loader = DeviceLoader(digits("train").subset(range(96)), 16)
    history = training.fit(
        net, loader, training.sgd(net, 0.01), epochs=1, accumulate=3, penalty=penalty, progress=False
    )
    assert penalty.calls == 2 and history[0][f"penalty_{penalty.name}"] > 0


@pytest.mark.slow
def test_compiled_models_are_compiled_twice_at_most_with_the_features_and_without():
    """In a process of its own: the tests' check of shapes would be compiled with the model."""
    script = """
import torch
from torch import nn
from companion import CKASparsity, cka
from companion.features import extract

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
penalty, compilations, values, x = CKASparsity(net, beta=1.0, every=3), [], [], torch.randn(16, 3)

def backend(graph, inputs):
    compilations.append(graph)
    return graph.forward

compiled = torch.compile(net, backend=backend)
for _ in range(12):
    compiled(x)
    values.append(float(penalty().detach()))
first, second = extract(net, x, ["1", "3"]).values()
expected = 2 * float(cka(first[:8], second[:8]))
assert all(abs(value - expected) <= 1e-4 * abs(expected) for value in values[::3]), (values, expected)
assert not any(values[1::3]) and not any(values[2::3]), values
print(len(compilations))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2


NETS = {
    "resnet18": lambda: resnet18(num_classes=10),
    "vit": lambda: vit_b_16(num_classes=10, image_size=32),
    "vgg": lambda: models.vgg16_bn(width=4),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "net"), [("cka", "resnet18"), ("cka", "vit"), ("arxiv", "resnet18"), ("journal", "vgg")]
)
def test_plug_and_play_in_a_plain_loop(kind, net):
    """The ten lines of the package's docstring, on nets that know nothing of penalties."""
    model = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    penalty = KINDS[kind](model)
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
    assert number(L1(net, 0.5)()) == pytest.approx(0.5 * number(conv.abs().sum() + linear.abs().sum()))
    lasso = 18**0.5 * sum(f.norm() for f in conv) + 3**0.5 * sum(f.norm() for f in linear)
    assert number(GroupLasso(net, 2.0)()) == pytest.approx(2 * number(lasso))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["l1", "group_lasso", "slimming"])
def test_weight_penalties_of_half_precision_weights_and_under_autocast_are_computed_in_float32(name, dtype):
    """Squares of small weights are 0 in float16, and the sum of a million is infinite."""
    model = nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512)).requires_grad_(True)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[1].weight.fill_(200.0)
    model.to(dtype)
    wide = copy.deepcopy(model).double()
    truth, value = built(name, wide)(), built(name, model)()
    assert value.dtype == torch.float32 and number(value) == pytest.approx(number(truth), rel=1e-5)
    value.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    single = wide.float()
    with torch.autocast("cpu", dtype):
        assert number(built(name, single)()) == pytest.approx(number(truth), rel=1e-5)


def test_group_lasso_of_an_empty_filter_has_gradient_zero():
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight[0].zero_()
    model = nn.Sequential(net)
    GroupLasso(model, 1.0)().backward()
    assert torch.equal(net.weight.grad[0], torch.zeros(4)) and torch.isfinite(net.weight.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, "beta=-1"),
        ({"every": 0}, "every=0"),
        ({"examples": 3}, "examples=3 must be at least 4"),
        ({"examples": 8.5}, r"examples=8\.5 must be a whole number"),
        ({"every": 1.5}, r"every=1\.5 must be a whole number"),
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
        ({"length": -1}, r"length=-1 must lie in \[0, inf\)"),
        ({"length": True}, "length=True must be a number"),
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


@pytest.mark.parametrize("build", [FeatureFlow, KineticEnergy])
def test_complex_features_are_refused_and_as_pairs_of_real_ones_penalised(build):
    """0.0076+0j was no loss that backward takes."""
    net, x = nn.Sequential(*(nn.Linear(4, 4, dtype=torch.complex64) for _ in range(3))), torch.randn(5, 4) + 0j
    penalty = build(net, layers=nn.Linear)
    with pytest.raises(ValueError, match=r"layer '0' are complex; .*select=\{'0': torch\.view_as_real\}"):
        penalty.value({"0": x, "1": x})  # what `penalty()` does where no check of types, as in tests, comes first
    penalty.remove()
    penalty = build(net, layers=nn.Linear, select=dict.fromkeys("012", torch.view_as_real))
    net(x)
    penalty().backward()
    assert all(p.grad.abs().sum() > 0 for p in net[2].parameters())


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


def test_feature_flow_across_stages_takes_each_turn_by_the_features_that_it_has(deep, images):
    """Where the shape changes a turn has as many features as the later of its two steps."""
    penalty = FeatureFlow(deep, 0.0, 0.7, across_stages=True, examples=5)
    deep(images)
    found = float(penalty().detach())
    penalty.remove()
    d = flow.steps(features_of(deep, images, 5))
    turns = [z - flow.carry(y, z.shape[1:]) for y, z in itertools.pairwise(d)]
    assert len({turn[0].numel() for turn in turns}) > 1
    assert found == pytest.approx(0.7 * sum(float(t.flatten(1).square().mean(1).sqrt().mean()) for t in turns))


def features_of(net, x, examples):
    """Block outputs of the first examples in the batch of training mode, whose statistics batch norm takes."""
    with FeatureTap(net, find_blocks(net), reduce=None) as tap, torch.no_grad():
        net(x)
    return [features[:examples] for features in tap.values()]


@pytest.mark.parametrize("across_stages", [False, True])
@pytest.mark.parametrize("before_relu", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kinetic_energy_is_the_mean_square_of_all_steps(deep, images, across_stages, before_relu, reduction):
    options = {"across_stages": across_stages, "before_relu": before_relu, "reduction": reduction}
    penalty = KineticEnergy(deep, 0.3, examples=5, **options)
    deep(images)
    value = penalty()
    with flow.tap(deep, before_relu=before_relu, reduce=lambda x: x[:5], detach=False) as tap:
        deep(images)
    vertices = list(flow.vertices(tap, before_relu).values())
    paths = [flow.steps(vertices)] if across_stages else [flow.steps(vertices[:3]), flow.steps(vertices[3:])]
    squares = [d.flatten(1).square() for path in paths for d in path]
    squares = [(s.mean(1) if reduction == "mean" else s.sum(1)).mean() for s in squares]
    expected = 0.3 * sum(squares) / len(squares)
    assert len(squares) == (5 if across_stages else 4)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, deep.conv1.weight)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs)


def test_kinetic_energy_counts_every_step_once_whatever_the_stages():
    """Steps from 1 to 2 to 4 to 8, and from (2, 2) to (3, 3): a mean of four squares, not of two stages."""
    net = nn.Sequential(nn.Identity(), *(nn.Linear(1, 1, bias=False) for _ in range(3)), nn.Linear(1, 2, bias=False))
    net.append(nn.Linear(2, 2, bias=False))
    for layer, weight in zip(net[1:], [[[2.0]]] * 3 + [[[0.25], [0.25]], [[1.5, 0.0], [0.0, 1.5]]], strict=True):
        layer.weight.data = torch.tensor(weight)
    penalty = KineticEnergy(net, 1.0, layers=[str(i) for i in range(6)])
    net(torch.ones(3, 1))
    assert float(penalty()) == pytest.approx((1 + 4 + 16 + 1) / 4)


def test_kinetic_energy_of_linear_blocks_in_closed_form(device):
    """x_l = a^l x₀: steps (a − 1) a^l x₀, so that the mean of L squares is a geometric sum."""
    a, blocks, x = 0.7, 4, torch.randn(9, 5, dtype=torch.float64, device=device)
    net = nn.Sequential(nn.Identity(), *(nn.Linear(5, 5, bias=False) for _ in range(blocks))).double().to(device)
    for block in net[1:]:
        block.weight.data = a * torch.eye(5, dtype=torch.float64, device=device)
    penalty = KineticEnergy(net, 2.0, reduction="sum", layers=list(map(str, range(blocks + 1))))
    net(x)
    squares = (a - 1) ** 2 * (1 - a ** (2 * blocks)) / (1 - a**2) * x.square().sum(1).mean()
    torch.testing.assert_close(penalty(), 2.0 * squares / blocks)


def test_kinetic_energy_of_one_length_is_least_for_equal_steps():
    equal, unequal = ({name: torch.tensor([[at]]) for name, at in zip("abc", path, strict=True)} for path in EVEN)
    kinetic, length = KineticEnergy(models.digits_net(), 1.0), FeatureFlow(models.digits_net(), 1.0, 0.0)
    assert float(length.value(equal)) == float(length.value(unequal)) == 2
    assert float(kinetic.value(equal)) == 1  # length² / L², where Cauchy–Schwarz is an equality
    assert float(kinetic.value(unequal)) == 1.25


EVEN = ([0.0, 1.0, 2.0], [0.0, 1.5, 2.0])


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


@pytest.mark.parametrize("kind", [FeatureFlow, KineticEnergy])
def test_an_empty_batch_gives_zero(deep, kind):
    assert float(kind(deep).value({"a": torch.zeros(0, 3), "b": torch.zeros(0, 3)})) == 0


@pytest.mark.slow
def test_shortens_and_straightens_what_it_penalises():
    for options in ({"curvature": 0}, {"length": 0, "curvature": 1.0, "variant": "journal"}):
        training.seed_everything(0)
        net = models.digits_net(width=8, blocks=4)
        x = torch.randn(32, 1, 8, 8)
        penalty = FeatureFlow(net, **{"length": 1.0, **options})
        values = descended(net, x, penalty)
        assert values[-1] < 0.5 * values[0], options


class Overwriting(nn.Module):
    """Two layers, the output of the first overwritten in place, if `overwrites`, before the second reads it."""

    def __init__(self, overwrites: bool) -> None:
        super().__init__()
        self.first, self.second, self.overwrites = nn.Linear(4, 4), nn.Linear(4, 4), overwrites

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.given = x
        return self.second(x.mul_(2.0) if self.overwrites else x * 2.0)


def test_outputs_are_copied_where_something_overwrites_them_and_only_there():
    x = torch.randn(8, 4)
    values = {}
    for overwrites in (False, True):
        torch.manual_seed(0)
        net = Overwriting(overwrites)
        penalty = KineticEnergy(net, 1.0, layers=nn.Linear)
        for step in range(3):
            net(x)
            copied = penalty._tap["first"].data_ptr() != net.given.data_ptr()
            assert copied == (overwrites or step == 0)
            value = penalty()
            (gradient,) = torch.autograd.grad(value, net.first.weight)
            values[overwrites, step] = value.detach(), gradient
    value, gradient = values[False, 0]
    for other, slope in values.values():
        assert torch.equal(other, value) and torch.allclose(slope, gradient, atol=1e-7)


def test_an_output_that_is_overwritten_for_the_first_time_is_refused_once():
    x, net = torch.randn(8, 4), Overwriting(False)
    penalty = KineticEnergy(net, 1.0, layers=nn.Linear)
    for _ in range(2):
        net(x)
        value = float(penalty().detach())
    net.overwrites = True
    net(x)
    with pytest.raises(RuntimeError, match=r"'first' was overwritten in place"):
        penalty()
    for overwrites in (True, False, True):
        net.overwrites = overwrites
        net(x)
        assert float(penalty().detach()) == pytest.approx(value)


@pytest.mark.slow
def test_what_is_refused_of_a_model_is_refused_of_the_compiled_one():
    """In a process of its own: the tests' check of shapes would be compiled with the model."""
    script = """
import torch
from torch import nn
from companion import FeatureFlow

class Block(nn.Module):
    def __init__(self, relu_last):
        super().__init__()
        self.linear, self.relu, self.relu_last = nn.Linear(4, 4), nn.ReLU(), relu_last

    def forward(self, x):
        x = x + self.linear(self.relu(x))
        return self.relu(x) if self.relu_last else x

class Chunked(nn.Sequential):
    def forward(self, x):
        return torch.cat([self(piece) for piece in x.split(8)]) if len(x) > 8 else super().forward(x)

x = torch.randn(16, 4)
for net, batch, before_relu, message in (
    (nn.Sequential(Block(True), Block(True)), x, True, ""),
    (nn.Sequential(Block(False), Block(False)), x, True, "block '0' (Block) does not end"),
    (Chunked(nn.Linear(4, 4), nn.Linear(4, 4)), x[:8], False, ""),
    (Chunked(nn.Linear(4, 4), nn.Linear(4, 4)), x, False, "Chunked calls itself"),
):
    torch.compiler.reset()
    penalty = FeatureFlow(net, layers=["0", "1"], before_relu=before_relu)
    compiled = torch.compile(net, backend="eager")
    for _ in range(2):
        try:
            compiled(batch)
        except ValueError as error:
            assert message and str(error).startswith(message), error
        else:
            value = penalty().detach()
            net(batch)
            torch.testing.assert_close(value, penalty().detach())
            assert not message, message
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


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
        lambda strength: KineticEnergy(deep, strength),
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


@pytest.mark.parametrize("kind", [CKASparsity, KineticEnergy, HSICBottleneck])
def test_a_schedule_counts_the_steps_at_which_nothing_is_due(deep, images, kind):
    """Of `every=2` the third value is that of the fifth step, with the strength after four."""
    asked = []
    penalty = kind(deep, lambda step: asked.append(step) or 1.0, every=2)
    for _ in range(5):
        deep(images)
        penalty()
    assert asked == [0, 2, 4]


def test_schedules_that_make_no_sense():
    for arguments, message in (((-1.0, 4), r"strength=-1\.0"), ((1.0, 0), "steps=0"), ((1.0, 4, -1), "start=-1")):
        with pytest.raises(ValueError, match=message):
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


def test_a_filter_without_a_number_is_no_filter_of_zeros():
    model = two_layers()
    model[0].weight.data[0, 0] = torch.nan
    assert GroupLasso(model, 1.0)().isnan()
