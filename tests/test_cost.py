"""Cost against closed forms, torch's own counter, and by hand; latency against a layer that sleeps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from companion.models import digits_net, resnet20, vgg16_bn
from companion.pruning import Latency, _cost, cost, latencies, latency


def of_torch(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops()


def zero(weight: Tensor, share: float) -> None:
    """Make exactly that share of the weights 0."""
    with torch.no_grad():
        weight.view(-1)[torch.randperm(weight.numel(), device=weight.device)[: round(share * weight.numel())]] = 0


@pytest.mark.slow
def test_type_b_resnet20_is_the_published_one(device: torch.device) -> None:
    found = cost(resnet20(shortcut="B").to(device), torch.randn(1, 3, 32, 32))
    assert found.parameters_dense == found.parameters_sparse == 272_474
    assert found.macs_dense == found.macs_sparse == 40_813_184
    assert found.flops_dense == 2 * 40_813_184
    assert found.bytes_dense == 4 * 272_474


@pytest.mark.parametrize("model", [resnet20(), vgg16_bn(width=8), digits_net()], ids=["A", "vgg", "digits"])
def test_dense_flops_are_those_of_torch(model: nn.Module) -> None:
    x = torch.randn(2, model.conv1.in_channels if hasattr(model, "conv1") else 3, 32, 32)
    assert cost(model, x).flops_dense == of_torch(model, x) == 2 * cost(model, x[:1]).flops_dense


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (nn.Linear(8, 6), (3, 8), 3),
        (nn.Linear(8, 6, bias=False), (3, 5, 8), 15),
        (nn.Conv1d(8, 6, 3), (1, 8, 10), 8),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), (2, 8, 9, 9), 2 * 5 * 5),
        (nn.Conv2d(8, 8, 3, groups=8, dilation=2), (1, 8, 9, 9), 5 * 5),
        (nn.Conv3d(2, 4, 3), (1, 2, 5, 5, 5), 27),
        (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2), (1, 6, 5, 5), 5 * 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_weight_works_once_at_every_position(
    layer: nn.Module, shape: tuple[int, ...], positions: int, device: torch.device
) -> None:
    layer.to(device)
    zero(layer.weight, 0.5)
    found = cost(nn.Sequential(layer), torch.randn(shape))
    assert found.macs_dense == layer.weight.numel() * positions
    assert found.macs_sparse == int(layer.weight.count_nonzero()) * positions


def test_table_has_a_row_a_layer_and_the_total() -> None:
    model = digits_net(width=4, blocks=1)
    zero(model.layer1[0].conv1.weight, 0.75)
    found = cost(model, torch.randn(1, 1, 8, 8))
    table = found.table()
    assert table.loc["layer1.0.conv1", "parameters_sparse"] == 36
    assert table.loc["layer1.0.conv1", "macs_sparse"] == 36 * 64
    assert table.loc["layer1.0.conv1", "bytes_sparse"] == 36 * 8 + 5 * 4  # value and column, and offsets of 4 rows
    assert table.loc["bn1", "macs_dense"] == 0
    assert table.loc["bn1", "bytes_sparse"] == 4 * 2 * 4
    layers = table.drop(index="total")
    for column in table:
        assert layers[column].sum() == table.loc["total", column] == getattr(found, column)
    assert list(layers.index) == [name for name, m in model.named_modules() if list(m.parameters(recurse=False))]


class Conv1D(nn.Module):
    """As GPT-2's in `transformers`: its weight is (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.weight = outputs, nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    ("layer", "shape", "outputs"),
    [
        (nn.ConvTranspose2d(64, 3, 2, bias=False), (1, 64, 4, 4), 3),
        (nn.ConvTranspose1d(6, 8, 3, groups=2, bias=False), (1, 6, 5), 8),
        (Conv1D(4, 10), (1, 10), 4),
        (nn.Linear(10, 4, bias=False), (1, 10), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_row_is_what_feeds_one_output(layer: nn.Module, shape: tuple[int, ...], outputs: int) -> None:
    assert cost(layer, torch.randn(shape)).bytes_sparse == layer.weight.numel() * 8 + (outputs + 1) * 4


def test_functional_and_shared_weights_and_modules_called_twice() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(2, 2, 3, 3))
            self.tied = nn.Linear(4, 4)
            self.same = nn.Linear(4, 4)
            self.same.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel).flatten(1)
            return self.same(self.tied(self.tied(x)))

    found = cost(Odd(), torch.randn(1, 2, 3, 4)[..., :4])
    assert found.parameters_dense == 36 + 16 + 4 + 4
    macs = found.table()["macs_dense"]
    assert macs[""] == 36 * 2
    assert macs["tied"] == 3 * 16 * 1


class Product(nn.Module):
    """One product of the input with parameters."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


WEIGHT, VECTOR = torch.eye(8)[:, :3], torch.eye(8)[0]  # 3 of 24 and 1 of 8 are not zero


@pytest.mark.parametrize(
    ("model", "shape", "dense", "sparse"),
    [
        (Product(lambda m, x: x @ m.v, v=VECTOR), (1, 5, 8), 5 * 8, 5),
        (Product(lambda m, x: m.w.T @ x[0], w=WEIGHT), (1, 8), 3 * 8, 3),
        (Product(lambda m, x: torch.dot(x[0], m.v), v=VECTOR), (1, 8), 8, 1),
        (Product(lambda m, x: torch.addmv(m.b, m.w.T, x[0]), w=WEIGHT, b=torch.ones(3)), (1, 8), 3 * 8, 3),
        (Product(lambda m, x: torch.addmm(m.b, x, m.w), w=WEIGHT, b=torch.ones(2, 3)), (2, 8), 2 * 24, 2 * 3),
        (Product(lambda m, x: torch.baddbmm(m.b, x, m.w[None]), w=WEIGHT, b=torch.ones(1, 2, 3)), (1, 2, 8), 48, 6),
        (Product(lambda m, x: torch.addbmm(m.b, x, m.w[None]), w=WEIGHT, b=torch.ones(2, 3)), (1, 2, 8), 48, 6),
        (Product(lambda m, x: F.bilinear(x, x, m.w), w=torch.eye(8).expand(5, 8, 8)), (2, 8), 2 * 5 * 64, 2 * 5 * 8),
    ],
    ids=["mv", "mv of a matrix", "dot", "addmv", "addmm", "baddbmm", "addbmm", "bilinear"],
)
def test_products_with_vectors_and_with_something_added(
    model: nn.Module, shape: tuple[int, ...], dense: int, sparse: int
) -> None:
    found = cost(model, torch.randn(shape))
    assert (found.macs_dense, found.macs_sparse) == (dense, sparse)


@pytest.mark.parametrize("examples", [1, 2])
def test_queries_that_are_learned_are_what_a_layer_reads(examples: int) -> None:
    """Of two parameters in one product the weight is the layer's: 4 queries of 8 numbers for each example."""

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent, self.q = nn.Parameter(torch.randn(1, 4, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(self.latent.expand(len(x), -1, -1)) + x.mean(1, keepdim=True)

    model = Pool()
    zero(model.q.weight, 0.75)
    macs = cost(model, torch.randn(examples, 5, 8)).table()
    assert macs.loc["q", "macs_dense"] == examples * 4 * 64 == 4 * macs.loc["q", "macs_sparse"]
    assert macs.loc["", "macs_dense"] == 0


def test_parameters_in_one_buffer_have_their_own_products() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    x = torch.randn(1, 8)
    apart = cost(model, x)
    parts = torch.cat([p.detach().flatten() for p in model.parameters()]).split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.data = part.view_as(p)
    assert cost(model, x) == apart


def test_attention_products_are_counted_and_named(device: torch.device) -> None:
    tokens, width = 7, 8
    layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True).to(device)
    zero(layer.self_attn.in_proj_weight, 0.5)
    found = cost(layer, torch.randn(1, tokens, width))
    macs = found.table()
    assert macs.loc["(activations)", "macs_dense"] == macs.loc["(activations)", "macs_sparse"] == 2 * tokens**2 * width
    assert macs.loc["self_attn", "macs_dense"] == 3 * width**2 * tokens
    assert macs.loc["self_attn", "macs_sparse"] == 3 * width**2 * tokens // 2
    assert macs.loc["self_attn.out_proj", "macs_dense"] == width**2 * tokens
    assert found.macs_dense == (4 * width**2 + 2 * width * 16) * tokens + 2 * tokens**2 * width


def test_a_model_with_a_mask_and_two_outputs_counts_by_hand() -> None:
    """Padded places work too: dense kernels multiply them all."""
    tokens, width, hidden, heads = 6, 8, 16, 5 + 3

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
            self.tags, self.label = nn.Linear(width, 5), nn.Linear(width, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            x = self.block(x, src_key_padding_mask=attention_mask == 0)
            return self.tags(x), {"label": self.label(x)}

    model = Tagger()
    zero(model.tags.weight, 0.25)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    found = cost(model, {"x": torch.randn(1, tokens, width), "attention_mask": mask})
    attention = 2 * tokens**2 * width
    weights = 4 * width**2 + 2 * width * hidden + width * heads
    assert found.macs_dense == weights * tokens + attention
    assert found.macs_sparse == (weights - width * 5 // 4) * tokens + attention
    assert found.table().loc["tags", "macs_sparse"] == 3 * width * 5 // 4 * tokens


def test_leaves_the_model_as_it_was() -> None:
    model = digits_net(width=4, blocks=1)
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    cost(model, torch.randn(1, 1, 8, 8))
    latency(model, torch.randn(1, 1, 8, 8), repeats=2, warmup=1)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_wrapped_and_under_inference_mode_and_autocast() -> None:
    model, x = digits_net(width=4, blocks=1), torch.randn(1, 1, 8, 8)
    plain = cost(model, x)
    assert cost(torch.compile(model, backend="eager"), x) == plain
    with torch.inference_mode():
        assert cost(model, x) == plain
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cost(model, x) == plain


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.rnn = nn.Bilinear(3, 4, 5, bias=False), nn.LSTM(5, 6, num_layers=2, bidirectional=True)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.rnn(self.pair(one, other))[0]


def test_bilinear_and_recurrent_layers_count_once_for_each_example_and_step() -> None:
    """An LSTM's weights of two layers and two directions, at 7 steps of 2 examples."""
    model, steps, examples = Named(), 7, 2
    zero(model.pair.weight, 0.5)
    example = {"one": torch.randn(steps, examples, 3), "other": torch.randn(steps, examples, 4)}
    found = cost(model, example)
    macs = found.table()
    assert macs.loc["pair", "macs_dense"] == 3 * 4 * 5 * 14 == 2 * macs.loc["pair", "macs_sparse"]
    assert macs.loc["rnn", "macs_dense"] == 2 * (4 * 6 * (5 + 6) + 4 * 6 * (12 + 6)) * 14
    assert cost(model, tuple(example.values())) == found
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("how", ["torch's pruning", "weight norm", "old weight norm", "orthogonal"])
def test_weights_that_are_computed_count_as_what_they_are(how: str) -> None:
    def mask(layer: nn.Module) -> None:
        torch.nn.utils.prune.random_unstructured(layer, "weight", 0.75)

    model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(1, 8)
    before = cost(model, x)
    {
        "torch's pruning": mask,
        "weight norm": nn.utils.parametrizations.weight_norm,
        "old weight norm": nn.utils.weight_norm,
        "orthogonal": nn.utils.parametrizations.orthogonal,
    }[how](model[0])
    model(x)
    after = cost(model, x)
    if how == "torch's pruning":
        assert after.macs_sparse == before.macs_sparse - 36 and after.parameters_sparse == before.parameters_sparse - 36
        assert (after.macs_dense, after.parameters_dense) == (before.macs_dense, before.parameters_dense)
    else:
        assert after == before
    assert model(x).requires_grad  # the model still computes its weight


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        cost(nn.Sequential(nn.ReLU()), torch.randn(1, 2))


def test_an_example_without_tensors_is_refused_on_one_line() -> None:
    for given, shown in ((np.zeros((64, 9)), "a ndarray"), ([np.zeros(500)], "a list"), ((1, 3), r"\(1, 3\)")):
        for measure in (cost, latency):
            with pytest.raises(ValueError, match=rf"^example={shown} holds no tensor; give a batch"):
                measure(nn.Linear(2, 2), given)


# -------------------------------------------------------------------------------------------------------------- latency
class Sleep(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls, self.mode = seconds, 0, ""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mode = f"{self.training} {torch.is_grad_enabled()}"
        time.sleep(self.seconds)
        return x


def test_latency_is_the_time_of_one_pass() -> None:
    model = Sleep(0.01)
    found = latency(model, torch.ones(1), repeats=5, warmup=2)
    assert model.calls == 7
    assert model.mode == "False False"
    assert len(found.seconds) == 5
    assert 0.01 <= found.low <= found.median <= found.high < 1


def test_models_take_turns() -> None:
    order: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.name)
            return x

    found = latencies({name: Named(name) for name in "ab"}, torch.ones(1), repeats=4, warmup=0)
    assert order == list("baabbaab")
    assert {name: len(measured.seconds) for name, measured in found.items()} == {"a": 4, "b": 4}


def test_a_smaller_model_is_faster_and_a_masked_one_is_not(device: torch.device) -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2048, width), nn.Linear(width, 10)).to(device)

    models = {"dense": net(2048), "masked": net(2048), "small": net(16)}
    zero(models["masked"][0].weight, 0.99)
    x = torch.randn(64, 2048, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores several threads wait for each other longer than a pass takes
    try:
        found = latencies(models, x, repeats=21, warmup=2)
    finally:
        torch.set_num_threads(threads)
    least = {name: min(measured.seconds) for name, measured in found.items()}  # what else runs only adds to a pass
    if device.type == "cpu":
        assert least["small"] < 0.5 * least["dense"]
    assert least["masked"] > 0.5 * least["dense"]


def test_latency_waits_for_a_device_that_only_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the clock starts and before it stops, on Apple's and Intel's too."""
    told: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: told.append("wait"))
    monkeypatch.setattr(_cost.time, "perf_counter", lambda: told.append("clock") or float(len(told)))
    _cost._timed(nn.Identity(), torch.ones(1), torch.device("mps"))
    assert told == ["wait", "clock", "wait", "clock"]


def test_latency_on_cuda_is_in_seconds_though_events_tell_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at: list[Any] = []

        def record(self, stream: Any) -> None:
            self.at.append(stream)

        def synchronize(self) -> None:
            assert self.at == ["stream"]

        def elapsed_time(self, end: Event) -> float:
            return 2.5 if self.at == end.at == ["stream"] else math.nan

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    assert _cost._timed(nn.Identity(), torch.ones(1), torch.device("cuda")) == 0.0025


def test_latency_says_its_quartiles_and_refuses_nonsense() -> None:
    assert repr(Latency((0.001, 0.002, 0.003, 0.004, 0.005))) == "Latency(3 ms, quartiles 2 … 4 ms, 5 passes)"
    with pytest.raises(ValueError, match="repeats=1"):
        latency(Sleep(0), torch.ones(1), repeats=1)
    with pytest.raises(ValueError, match="warmup=-1"):
        latency(Sleep(0), torch.ones(1), warmup=-1)
