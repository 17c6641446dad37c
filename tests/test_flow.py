"""Trajectories against closed forms, brute force, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18, resnet50, vit_b_16

from companion import flow, models
from companion.features import FeatureTap, extract
from companion.regularizers import FeatureFlow, KineticEnergy


# --------------------------------------------------------------------------------------------------------- closed forms
def test_straight_line_has_no_turning_and_a_finite_gradient(device):
    direction = torch.randn(5, 7, dtype=torch.float64, device=device)
    points = [(k * direction).requires_grad_() for k in range(4)]
    path = flow.steps(points)
    angles = flow.turning_angles(path)
    torch.testing.assert_close(angles, torch.zeros(2, 5, dtype=torch.float64, device=device), atol=1e-7, rtol=0)
    angles.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in points)
    expected = direction.norm(dim=1).expand(3, 5)
    torch.testing.assert_close(flow.lengths(path), expected)
    torch.testing.assert_close(flow.lengths(path, norm=1), direction.abs().sum(1).expand(3, 5))
    torch.testing.assert_close(flow.second_differences(path), torch.zeros_like(angles), atol=1e-12, rtol=0)
    torch.testing.assert_close(flow.straightness(points), torch.ones_like(angles[0]))


@pytest.mark.parametrize("sides", [3, 4, 7, 100])
def test_opened_regular_polygon_turns_by_all_but_one_of_its_angles(sides, device):
    turn = torch.arange(sides + 1, dtype=torch.float64, device=device) * (2 * math.pi / sides)
    points = [torch.stack([t.cos(), t.sin()]).expand(3, 2) for t in turn]
    path = flow.steps(points)
    total = flow.turning_angles(path).sum(0)
    torch.testing.assert_close(total, torch.full_like(total, 2 * math.pi * (sides - 1) / sides))
    side = 2 * math.sin(math.pi / sides)
    length = flow.lengths(path).sum(0)
    torch.testing.assert_close(length, torch.full_like(length, sides * side))
    bend = flow.second_differences(path)  # of the sides' directions: a regular polygon of their own
    torch.testing.assert_close(bend, torch.full_like(bend, 2 * math.sin(math.pi / sides) * side))
    torch.testing.assert_close(flow.straightness(points), torch.zeros_like(total), atol=1e-12, rtol=0)


def helix(n: int, device: torch.device) -> list[torch.Tensor]:
    """Two windings of radius 1 that rise by 1/2 a radian: curvature 1/(1 + 1/4), speed √(1 + 1/4)."""
    t = torch.linspace(0, 4 * math.pi, n + 1, dtype=torch.float64, device=device)
    return list(torch.stack([t.cos(), t.sin(), t / 2], dim=1)[:, None])


def test_angles_of_a_refined_curve_converge_to_its_total_curvature_and_second_differences_to_nothing(device):
    speed = math.sqrt(1.25)
    total, errors, bends = 4 * math.pi * speed / 1.25, [], []
    for n in (25, 50, 100, 200):
        path = flow.steps(helix(n, device))
        errors.append(abs(float(flow.turning_angles(path).sum()) - total))
        bends.append(float(flow.second_differences(path).sum()))
    for coarse, fine in pairwise(errors[1:]):
        assert fine == pytest.approx(coarse / 2, rel=0.1)  # the ends lack half an angle each: first order
    for coarse, fine in pairwise(bends[1:]):
        assert fine == pytest.approx(coarse / 2, rel=0.1)
    assert errors[-1] < 0.01 * total and bends[-1] < 0.2 * bends[0]
    length = float(flow.lengths(flow.steps(helix(400, device))).sum())
    assert length == pytest.approx(4 * math.pi * speed, rel=1e-3)


def test_turning_back_is_half_a_turn_and_has_a_finite_gradient():
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    angles = flow.turning_angles([x, -2 * x])
    torch.testing.assert_close(angles, torch.tensor([[math.pi]]))
    angles.sum().backward()
    assert torch.isfinite(x.grad).all()


# ----------------------------------------------------------------------------------------------------------- pauses
def test_a_pause_is_skipped_the_turn_between_its_neighbours_counts(device):
    east, north, rest = torch.eye(3, device=device)
    rest = 0 * rest
    rows = [[east, rest, rest, north], [east, north, rest, east], [rest, east, rest, east], [rest, rest, rest, north]]
    path = list(torch.stack([torch.stack(row) for row in rows], dim=1))
    quarter = math.pi / 2
    expected = torch.tensor([[0, quarter, 0, 0], [0, 0, 0, 0], [quarter, quarter, 0, 0]], device=device)
    torch.testing.assert_close(flow.turning_angles(path), expected)


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(st.booleans(), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_total_turning_is_that_of_the_path_without_its_pauses(moves, seed):
    random = torch.Generator().manual_seed(seed)
    steps = [torch.randn(1, 4, dtype=torch.float64, generator=random) * move for move in moves]
    steps = [d.requires_grad_() for d in steps]
    total = flow.turning_angles(steps).sum()
    moving = [d for d, move in zip(steps, moves, strict=True) if move]
    expected = flow.turning_angles(moving).sum() if moving else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(total, expected)
    if total.requires_grad:
        total.backward()
        assert all(d.grad is None or torch.isfinite(d.grad).all() for d in steps)


def test_a_path_at_rest_is_straight_and_has_no_length():
    points = [torch.ones(2, 3, requires_grad=True)] * 4
    assert torch.equal(flow.straightness(points), torch.ones(2))
    length, turning = flow.lengths(flow.steps(points)).sum(), flow.turning_angles(flow.steps(points)).sum()
    assert length == turning == 0
    (length + turning + flow.straightness(points).sum()).backward()
    assert torch.isfinite(points[0].grad).all()


# ----------------------------------------------------------------------------------------------- brute force, gradients
SHAPES = [(2, 4, 4), (2, 4, 4), (4, 2, 2), (4, 2, 2)]


def random_features(device: torch.device, requires_grad: bool = False) -> list[torch.Tensor]:
    return [torch.randn(3, *s, dtype=torch.float64, device=device, requires_grad=requires_grad) for s in SHAPES]


def pooled(x: torch.Tensor) -> torch.Tensor:
    """A map of one example at half the resolution, with a channel of zeros on either side: by hand."""
    channels, height, width = x.shape
    out = torch.zeros(channels + 2, height // 2, width // 2, dtype=x.dtype, device=x.device)
    for i in range(height // 2):
        for j in range(width // 2):
            out[1:-1, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum((1, 2)) / 4
    return out


@pytest.mark.parametrize("norm", [1, 2])
def test_brute_force_across_stages(norm, device):
    features = random_features(device)
    found = flow.measure(dict(zip("abcd", features, strict=True)), across_stages=True, norm=norm)
    for example in range(3):
        a, b, c, d = (x[example] for x in features)
        steps = [b - a, c - pooled(b), d - c]
        befores = [steps[0], pooled(steps[0]), steps[1], steps[2]]  # a step, and what it is carried to
        for k, step in enumerate(steps):
            assert float(found.length[k, example]) == pytest.approx(float(step.flatten().norm(norm)))
        for k, (u, v) in enumerate(((befores[1], steps[1]), (steps[1], steps[2]))):
            assert float(found.curvature[k, example]) == pytest.approx(float((v - u).flatten().norm(norm)))
            cosine = F.cosine_similarity(u.flatten(), v.flatten(), dim=0)
            assert float(found.angle[k, example]) == pytest.approx(math.acos(float(cosine)))
        chord = float((d - pooled(a)).flatten().norm(norm))
        assert float(found.straightness[0, example]) == pytest.approx(chord / float(found.length[:, example].sum()))
        assert float(found.size[1, example]) == pytest.approx(float(b.flatten().norm(norm)))
    assert (found.stages, found.steps, found.turns) == ([["a", "b", "c", "d"]], ["b", "c", "d"], ["b", "c"])


def test_inside_stages_nothing_crosses_a_change_of_shape(device):
    features = dict(zip("abcd", random_features(device), strict=True))
    found = flow.measure(features)
    assert (found.stages, found.steps, found.turns) == ([["a", "b"], ["c", "d"]], ["b", "d"], [])
    assert found.curvature.shape == found.angle.shape == (0, 3)
    torch.testing.assert_close(found.length[1], (features["d"] - features["c"]).flatten(1).norm(dim=1))
    torch.testing.assert_close(found.straightness, torch.ones_like(found.straightness))


def test_gradients_match_finite_differences(device):
    features = random_features(device, requires_grad=True)
    for measure in (flow.lengths, flow.second_differences, flow.turning_angles):
        assert torch.autograd.gradcheck(lambda *xs, measure=measure: measure(flow.steps(xs)), features)
    assert torch.autograd.gradcheck(lambda *xs: flow.straightness(xs), features)
    for measure in (flow.lengths, flow.second_differences):
        assert torch.autograd.gradgradcheck(lambda *xs, measure=measure: measure(flow.steps(xs)), features)


def test_a_second_derivative_of_angles_is_refused_and_not_wrong():
    path = flow.steps(random_features("cpu", requires_grad=True))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(flow.turning_angles(path).sum(), path[0], create_graph=True)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_angles_and_straightness_ignore_scale_shift_and_rotation_lengths_scale(scale, seed):
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(5, 3, 4, dtype=torch.float64, generator=random)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=random)).Q
    moved = scale * (points @ turn + torch.randn(4, dtype=torch.float64, generator=random))
    ours, theirs = flow.steps(list(points)), flow.steps(list(moved))
    torch.testing.assert_close(flow.turning_angles(ours), flow.turning_angles(theirs), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(flow.straightness(list(points)), flow.straightness(list(moved)))
    torch.testing.assert_close(scale * flow.lengths(ours), flow.lengths(theirs))
    torch.testing.assert_close(scale * flow.second_differences(ours), flow.second_differences(theirs))


# ---------------------------------------------------------------------------------------------- shapes and their change
@pytest.mark.parametrize("old", [(7, 7), (5, 9), (8, 2)])
@pytest.mark.parametrize("new", [(1, 1), (3, 2), (5, 1)])
def test_carrying_averages_as_adaptive_pooling_does(old, new, device):
    x = torch.randn(2, 3, *old, dtype=torch.float64, device=device)
    torch.testing.assert_close(flow.carry(x, (5, *new))[:, 1:4], F.adaptive_avg_pool2d(x, new))
    with torch.autocast(x.device.type, torch.bfloat16):
        torch.testing.assert_close(flow.carry(x.float(), (3, *new)), F.adaptive_avg_pool2d(x.float(), new))


@pytest.mark.parametrize(("old", "new"), [(7, 3), (5, 2), (9, 4)])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_carrying_is_exact_in_the_dtype_of_the_features(old, new, default):
    """The weights were those of the default dtype: float64 features were carried with an error of 4e-8."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, old, old, dtype=torch.float64)
    torch.set_default_dtype(default)
    try:
        wide, narrow = flow.carry(x, (3, new, new)), flow.carry(x.float(), (3, new, new))
        weights = flow._averages(old, new, x.half())
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(wide, F.adaptive_avg_pool2d(x, new), rtol=0, atol=1e-15)
    bins = [range(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
    rows = torch.tensor([[k in at for k in range(old)] for at in bins])
    mean = rows / rows.sum(1, keepdim=True)  # in float32, as it always was
    assert torch.equal(narrow, mean @ x.float() @ mean.T) and torch.equal(weights, mean.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_that_rests_across_a_change_of_shape_has_no_length_and_no_turn(dtype):
    """A step of 6e-8 in float64 was a direction: the path turned back."""
    points = [torch.ones(1, 1, 7, 7, dtype=dtype), torch.ones(1, 1, 3, 3, dtype=dtype)]
    path = flow.steps([*points, 2 * points[1]])
    assert flow.lengths(path)[0] == 0 and flow.turning_angles(path) == 0


def test_carried_features_are_never_longer_and_carrying_twice_is_carrying_once(device):
    x = torch.randn(4, 2, 8, 8, device=device)
    half, quarter = flow.carry(x, (4, 4, 4)), flow.carry(x, (8, 2, 2))
    torch.testing.assert_close(flow.carry(half, (8, 2, 2)), quarter)
    assert (half.flatten(1).norm(dim=1) <= x.flatten(1).norm(dim=1)).all()
    assert torch.equal(half[:, 0], torch.zeros_like(half[:, 0])) and half[:, 1].abs().sum() > 0
    assert flow.carry(x, x.shape[1:]) is x
    assert torch.equal(flow.carry(torch.ones(2, 3), (6,)), torch.tensor([[0, 1, 1, 1, 0, 0]] * 2).float())


@pytest.mark.parametrize("shapes", [[(1, 7, 7), (1, 5, 5), (1, 3, 3)], [(4,), (5,), (8,)]])
def test_the_chord_is_no_longer_than_the_path_though_shapes_do_not_divide_each_other(shapes):
    """A path that all but rests in carried features: its chord, carried past the middle layer, was 1,000 lengths."""
    torch.manual_seed(0)
    points = [torch.randn(3, *shapes[0])]
    for shape in shapes[1:]:
        points.append(flow.carry(points[-1], shape))
    points[-1] = points[-1] + 1e-3 * torch.randn_like(points[-1])
    torch.testing.assert_close(flow.straightness(points), torch.ones(3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    """1/‖d‖ of a short step is infinite in float16, and a small angle is rounding in bfloat16."""
    torch.manual_seed(0)
    points = {"a": torch.zeros(3, 8, dtype=dtype)}
    for name in "bcd":
        points[name] = (list(points.values())[-1].double() + 1e-5 + 1e-6 * torch.randn(3, 8)).to(dtype)
    found, truth = flow.measure(points), flow.measure({name: x.double() for name, x in points.items()})
    for name in ("size", "length", "curvature", "angle", "straightness"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(truth, name), rtol=1e-4, atol=1e-7)


def test_stages_are_cut_where_the_shape_changes():
    shapes = {"a": (2, 4, 8, 8), "b": (2, 4, 8, 8), "c": (2, 8, 4, 4), "d": (2, 8, 4, 4), "e": (2, 10)}
    features = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert [list(polygon) for polygon in flow.polygons(features)] == [["a", "b"], ["c", "d"]]


# The examples are maps, which a draw hardly ever gives: one dimension at a time does not fit.
@given(old=st.lists(st.integers(1, 6), max_size=4), new=st.lists(st.integers(1, 6), max_size=4))
@hypothesis.example([2, 4, 4], [2, 4, 5])
@hypothesis.example([2, 4, 4], [2, 5, 4])
@hypothesis.example([2, 4, 4], [1, 4, 4])
@settings(max_examples=60, deadline=None)
def test_what_cannot_be_carried_is_refused_in_words(old, new):
    x = torch.ones(2, *old)
    fits = old == new or (
        len(old) == len(new)
        and len(old) in (1, 3)
        and new[0] >= old[0]
        and all(n <= o for n, o in zip(new[1:], old[1:], strict=True))
    )
    if fits:
        assert flow.carry(x, new).shape == (2, *new)
    else:
        with pytest.raises(ValueError, match=r"cannot be carried.*polygons"):
            flow.carry(x, new)


def test_refusals():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="two layers; got 1"):
        flow.steps([x])
    with pytest.raises(ValueError, match="norm=3 is unknown"):
        flow.lengths([x], 3)
    for measure in (flow.lengths, flow.second_differences, flow.turning_angles):
        with pytest.raises(ValueError, match="at least one step"):
            measure([])
        with pytest.raises(ValueError, match="the same examples"):
            measure([x, torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="use across_stages=True"):
        flow.measure({"a": x, "b": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="choose more layers"):
        flow.measure({"a": x}, across_stages=True)
    with pytest.raises(ValueError, match="no batch"):
        flow.trajectory(models.digits_net(), [])
    with pytest.raises(ValueError, match=r"holds no nn\.ReLU"):
        flow.tap(models.mlp([4, 3, 2]), "linear1", before_relu=True)


# ------------------------------------------------------------------------------------------------------------ networks
def test_a_residual_step_before_the_relu_is_the_branch(device):
    """Inside a stage x_{l+1} = relu(x_l + branch): the sum before the ReLU, less x_l, is the branch's output."""
    net = models.digits_net(width=4, blocks=3).double().to(device).eval()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, device=device)
    after = list(extract(net, x, models.BasicBlock, reduce=None).values())
    branches = list(extract(net, x, ["layer1.*.bn2"], reduce=None).values())
    with torch.no_grad(), flow.tap(net, before_relu=True) as tap:
        net(x)
    before = list(flow.vertices(tap, before_relu=True).values())
    for k in (1, 2):
        torch.testing.assert_close(before[k] - after[k - 1], branches[k])
        torch.testing.assert_close(before[k].relu(), after[k])


def test_relative_steps_of_features_of_any_size():
    a, b = torch.rand(2, 4, 6)
    plain = (b - a).norm(dim=1) / a.norm(dim=1)
    for scale in (1, 1e-13, 1e-15, 1e13):
        torch.testing.assert_close(flow.measure({"a": a * scale, "b": b * scale}).relative_length[0], plain)
    a[0] = a[1] = b[1] = 0  # one example starts at 0, one stays there
    found = flow.measure({"a": a, "b": b}).relative_length[0]
    torch.testing.assert_close(found, torch.cat([torch.tensor([math.inf, 0]), plain[2:]]))


@pytest.mark.parametrize("inplace", [True, False])
def test_before_the_relu_of_torchvision_nets_that_reuse_one_relu_in_place(inplace):
    net = resnet18(num_classes=3).eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    x = torch.randn(2, 3, 32, 32)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    after = extract(net, x, blocks, reduce=None)
    with torch.no_grad(), flow.tap(net, before_relu=True) as tap:
        net(x)
    before = flow.vertices(tap, before_relu=True)
    assert list(before) == [f"{name}.relu" for name in blocks]
    for one, two in zip(before.values(), after.values(), strict=True):
        assert (one < 0).any()
        torch.testing.assert_close(one.relu(), two)


class Preceded(nn.Module):
    """A residual block whose last ReLU is defined before the one of its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))

    def forward(self, x):
        return self.relu(x + self.branch(x))


def test_the_last_relu_is_the_one_that_runs_last():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Preceded(), Preceded(), Preceded())), torch.randn(5, 3)
    z, sums = net[0](x), []
    for block in net[1]:
        sums.append(z + block.branch(z))
        z = sums[-1].relu()
    expected = torch.stack([(b - a).norm(dim=1) for a, b in pairwise(sums)])
    found = flow.trajectory(net, x, before_relu=True)
    assert found.steps == ["1.1.relu", "1.2.relu"]
    torch.testing.assert_close(found.length, expected.detach())
    with (
        flow.tap(net, before_relu=True) as tap,
        pytest.raises(ValueError, match="features is a dict; before_relu=True"),
    ):
        flow.vertices(dict(tap), before_relu=True)
    for penalty, value in (
        (FeatureFlow(net, 1.0, 0.0, before_relu=True), expected.mean(1).sum() / 2),
        (KineticEnergy(net, 1.0, before_relu=True), expected.square().mean() / 4),
    ):
        for _ in range(3):  # later passes keep what nothing overwrites without a copy
            net(x)
            torch.testing.assert_close(penalty(), value)


class Summed(nn.Module):
    """A block that does not end with the ReLU in it; by `end` there is a sum, a functional ReLU or nothing behind."""

    def __init__(self, end):
        super().__init__()
        self.a, self.relu, self.b, self.end = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), end

    def forward(self, x):
        inner = self.relu(self.a(x))
        if self.end == "sum in place":
            return inner.add_(x.detach())
        if self.end == "view":
            return {"hidden": self.relu(self.b(inner)).view(-1, 2, 2)}
        return {"sum": lambda y: x + y, "relu": lambda y: F.relu(x + y)}[self.end](self.b(inner))


@pytest.mark.parametrize("end", ["sum", "relu", "sum in place"])
def test_a_block_that_does_not_end_with_its_relu_has_no_sum_before_it(end):
    """As mobilenet's, blocks of pre-activation, and F.relu behind a branch: an inner activation was taken."""
    net, x = nn.Sequential(nn.Linear(3, 4), Summed(end), Summed(end)), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"block '1' \(Summed\) does not end with the last nn\.ReLU"):
        flow.trajectory(net, x, ["1", "2"], before_relu=True)
    flow.trajectory(net, x, ["1.relu", "2.relu"], before_relu=True)  # as the message says
    penalty = FeatureFlow(net, layers=["1", "2"], before_relu=True)
    with pytest.raises(ValueError, match="block '1'"):
        net(x)
    net.eval()(x)
    assert not penalty._tap and not penalty._tap._gave


def test_a_block_may_give_its_last_relus_output_in_another_shape():
    net, x = nn.Sequential(nn.Linear(3, 4), Summed("view")), torch.randn(5, 3)
    with flow.tap(net, "1", before_relu=True) as tap, torch.inference_mode():
        net(x)
        assert list(flow.vertices(tap, before_relu=True)) == ["1.relu"] and not tap._gave
        torch.testing.assert_close(tap["1.relu#2"].relu(), net(x)["hidden"].flatten(1))


def test_inputs_are_tapped_before_a_layer_overwrites_them():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(5, 3)
    with FeatureTap(net, "1", inputs=True) as features:
        net(x)
    torch.testing.assert_close(features["1"], net[0](x).detach())
    assert not any(module._forward_pre_hooks for module in net.modules())


NETS = {
    "resnet20": (lambda: models.resnet20(width=4), [3, 3, 3]),
    "vgg16_bn": (lambda: models.vgg16_bn(width=4), [2, 2, 3, 3, 3]),
    "resnet18": (lambda: resnet18(num_classes=3), [2, 2, 2, 2]),
    "resnet50": (lambda: resnet50(num_classes=3), [3, 4, 6, 3]),
    "mlp": (lambda: models.mlp([3 * 32 * 32, 8, 8, 8, 3]), [3]),
}


@pytest.mark.parametrize("before_relu", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_trajectories_of_networks(name, before_relu):
    build, counts = NETS[name]
    net, x = build(), torch.randn(6, 3, 32, 32)
    inside = flow.trajectory(net, x, before_relu=before_relu)
    assert [len(stage) for stage in inside.stages] == counts
    assert len(inside.steps) == sum(counts) - len(counts) and inside.length.shape == (len(inside.steps), 6)
    assert inside.angle.shape == inside.curvature.shape == (len(inside.turns), 6)
    across = flow.trajectory(net, [(x[:4], 0), (x[4:], 0)], before_relu=before_relu, across_stages=True)
    assert len(across.steps) == sum(counts) - 1 and len(across.turns) == sum(counts) - 2
    rows = [across.steps.index(step) for step in inside.steps]
    torch.testing.assert_close(across.length[rows], inside.length)  # batched as you like
    assert ((across.straightness > 0) & (across.straightness <= 1)).all()
    assert ((across.angle >= 0) & (across.angle <= math.pi + 1e-6)).all()
    assert net.training and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("across_stages", [False, True])
def test_trajectories_in_either_norm_are_the_measures_of_the_features(across_stages):
    net, x = models.digits_net(width=4), torch.randn(6, 1, 8, 8)
    with flow.tap(net.eval()) as tap, torch.no_grad():
        net(x)
    for norm in (1, 2):
        found = flow.trajectory(net, x, across_stages=across_stages, norm=norm)
        expected = flow.measure(dict(tap), across_stages=across_stages, norm=norm)
        for name in ("size", "length", "curvature", "angle", "straightness"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_vision_transformer_has_one_trajectory():
    path = flow.trajectory(vit_b_16(num_classes=10, image_size=32), torch.randn(2, 3, 32, 32))
    assert len(path.stages) == 1 and path.length.shape == (11, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_path_without_numbers_is_neither_straight_nor_at_rest(value):
    net = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(4, 4), nn.Identity())])
    layers, x = ["1", "3", "5", "7"], torch.randn(5, 4)
    x[2] = value
    path = flow.trajectory(net, x, layers)
    for found in (path.angle, path.straightness):
        assert found[:, 2].isnan().all() and found[:, [0, 1, 3, 4]].isfinite().all()
    penalty = FeatureFlow(net.train(), length=0.0, curvature=1.0, variant="journal", layers=layers)
    net(x)
    assert penalty().isnan()


def test_padding_does_not_count():
    class Sentences(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.blocks = nn.Embedding(9, 8), nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

        def forward(self, input_ids, attention_mask=None):
            x = self.embedding(input_ids)
            for block in self.blocks:
                x = x + block(x).tanh()
            return x

    model, words, lengths = Sentences(), torch.randint(9, (6, 5)), torch.arange(6)[:, None] % 4 + 2
    paths = []
    for tokens in (5, 9):
        batch = {"input_ids": F.pad(words, (0, tokens - 5)), "attention_mask": (torch.arange(tokens) < lengths).long()}
        paths.append(flow.trajectory(model, [batch], "blocks.*"))
    for name in ("size", "length", "curvature", "angle", "straightness"):
        torch.testing.assert_close(getattr(paths[0], name), getattr(paths[1], name))
    kept = flow.trajectory(model, words[:1, :2], "blocks.*")  # the first sentence has two words
    torch.testing.assert_close(paths[0].length[:, :1], kept.length)
