"""The training loop: against a hand-written loop, its two sockets, its recipes, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from companion.data import DeviceLoader, Images
from companion.features import FeatureTap
from companion.pruning import Masks, RandomPruning
from companion.training import (
    History,
    adamw,
    cosine,
    distributed,
    evaluate,
    fit,
    load_checkpoint,
    multistep,
    one_cycle,
    seed_everything,
    sgd,
)
from companion.training import loop as training_loop
from companion.training import precision as fastest
from companion.training.measuring import Meter, autocast


def net(device: torch.device | str = "cpu", norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.1 if norm else 0.0), nn.Linear(8 * 36, 2)).to(device)


def data(batch_size: int = 32, examples: int = 200) -> DataLoader:
    """8×8 images, labelled by the sign of their mean."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, 1, 8, 8, generator=generator) + 0.3 * torch.randn(examples, 1, 1, 1, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=batch_size)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().cpu() for value in model.state_dict().values()])


def train(model: nn.Module, loader: Any, **options: Any) -> History:
    options = {"epochs": 2, "progress": False, "seed": 3, **options}
    return fit(model, loader, options.pop("optimizer", None) or sgd(model, 0.05), **options)


# --------------------------------------------------------------------------------------- against a hand-written loop
def test_is_the_hand_written_loop_bit_for_bit(device: torch.device) -> None:
    ours, loader = net(device), data()
    theirs = copy.deepcopy(ours)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    history = train(ours, loader, epochs=3, schedule=multistep(2), loss=smooth)

    optimizer = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], gamma=0.1)
    seed_everything(3)
    for _ in range(3):
        total = correct = 0.0
        for x, y in loader:
            logits = theirs(x.to(device))
            loss = F.cross_entropy(logits, y.to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
            correct += (logits.argmax(1).cpu() == y).sum().item()
        scheduler.step()
    if device.type == "cpu":
        assert torch.equal(weights(ours), weights(theirs))
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert history[-1]["loss"] == pytest.approx(total / 200, rel=1e-5)
    assert history[-1]["accuracy"] == correct / 200
    assert [record["lr"] for record in history] == pytest.approx([0.05, 0.05, 0.005])


def test_accumulated_batches_are_one_large_batch(device: torch.device) -> None:
    """Also at the end of an epoch, where the last group is shorter and its last batch smaller."""
    large = net(device, norm=False).double()
    small = copy.deepcopy(large)

    def double(batch_size: int) -> list[tuple[Tensor, Tensor]]:
        return [(x.double(), y) for x, y in data(batch_size)]

    counts = {"large": 0, "small": 0}

    def penalty(model: nn.Module, name: str) -> Any:
        def l2() -> Tensor:
            counts[name] += 1
            return 1e-2 * sum(p.square().sum() for p in model.parameters())

        return l2

    one = train(large, double(36), penalty=penalty(large, "large"), clip=1.0)
    four = train(small, double(9), penalty=penalty(small, "small"), clip=1.0, accumulate=4)
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-12, atol=1e-12)
    assert counts["small"] == counts["large"] == 2 * math.ceil(200 / 36)  # once a step, not once a batch
    for key in ("loss", "accuracy", "penalty_l2"):
        assert four[-1][key] == pytest.approx(one[-1][key], rel=1e-12)


def test_bfloat16_and_channels_last_train_like_float32(device: torch.device) -> None:
    plain = net(device)
    fast = copy.deepcopy(plain)
    loader = data()
    exact = train(plain, loader, epochs=4, validation=loader)
    mixed = train(fast, loader, epochs=4, validation=loader, precision="bfloat16", channels_last=True)
    assert fast[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.dtype == torch.float32 for p in fast.parameters())
    assert mixed[-1]["validation_loss"] == pytest.approx(exact[-1]["validation_loss"], rel=0.1)
    assert not torch.equal(weights(plain), weights(fast))  # it did compute in another precision


def test_a_gpu_that_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(capability: tuple[int, int]) -> torch.dtype:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a GPU, torch says that autocast has nothing to do
            return autocast(torch.device("cuda"), "bfloat16").fast_dtype

    assert compute((7, 5)) == torch.float32  # T4
    assert compute((8, 0)) == compute((9, 0)) == torch.bfloat16  # A100, H200
    assert autocast(torch.device("cpu"), "bfloat16").fast_dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------- the fastest precision
@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Steps take as long as is said; returns the precisions that were tried, one for each step."""

    def say(**takes: float) -> list[str]:
        tried: list[str] = []

        def seconds(step: Any, device: torch.device) -> float:
            step()
            tried.append(step.__defaults__[0])
            return takes[tried[-1]]

        monkeypatch.setattr(fastest, "seconds", seconds)
        monkeypatch.setattr(fastest, "_CHOSEN", {})
        return tried

    return say


@pytest.mark.parametrize(("slow", "fast"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_auto_takes_what_was_faster_once_and_says_so(
    slow: str, fast: str, timed: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    tried = timed(**{slow: 2.0, fast: 1.0})
    one, other = net(), net()
    other.load_state_dict(one.state_dict())
    torch.manual_seed(5)
    history = train(one, data(), precision="auto", progress=True, seed=None)
    assert f"precision: {fast}, the faster one here for Sequential" in capfd.readouterr().err
    assert tried.count(slow) == tried.count(fast) == 1 + fastest.STEPS
    torch.manual_seed(5)
    plain = train(other, data(), precision=fast, seed=None)
    assert torch.equal(weights(one), weights(other))  # the measuring left no trace: weights, statistics, random state
    assert [epoch["precision"] for epoch in history] == [fast] * 2 and "precision" not in plain[0]
    train(net(), data(), precision="auto")
    assert len(tried) == 2 * (1 + fastest.STEPS)
    linear = nn.Linear(4, 2)  # of another class, another measurement
    train(linear, [(torch.randn(5, 4), torch.zeros(5).long())], precision="auto")
    assert len(tried) == 4 * (1 + fastest.STEPS)


def test_auto_goes_on_in_the_precision_that_it_began_with(timed: Any, tmp_path: Any) -> None:
    timed(float32=2.0, bfloat16=1.0)

    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    whole = net()
    start = copy.deepcopy(whole.state_dict())
    train(whole, data(), precision="auto")
    broken = net()
    broken.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        train(broken, data(), precision="auto", checkpoint=tmp_path / "run.pt", on_epoch=stop)
    timed(float32=1.0, bfloat16=2.0)  # another process, on a busy machine
    again = net()
    history = train(again, data(), precision="auto", checkpoint=tmp_path / "run.pt")
    assert torch.equal(weights(again), weights(whole))
    assert [epoch["precision"] for epoch in history] == ["bfloat16"] * 2


def test_what_auto_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16, which needs its loss scaled, only where CUDA has no bfloat16 of its own."""
    cuda = torch.device("cuda")
    for capability, second in (((7, 5), "float16"), ((8, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, answer=capability: answer)
        assert fastest.candidates(cuda) == ["float32", second]
    assert fastest.candidates(torch.device("cpu")) == ["float32", "bfloat16"]
    assert fastest.candidates(torch.device("mps")) == ["float32"]
    with pytest.raises(ValueError, match="precision='fast' is unknown"):
        train(net(), data(), precision="fast")
    with pytest.raises(ValueError, match="precision='auto' is unknown"):
        evaluate(net(), data(), precision="auto")


def test_float16_scales_the_loss_and_skips_a_step_that_overflows(device: torch.device) -> None:
    if device.type != "cuda":
        with pytest.raises(ValueError, match="bfloat16"):
            train(net(), data(), precision="float16")
        return
    steps = Steps()
    history = train(net(device), data(), precision="float16", sparsity=steps)
    assert history[-1]["loss"] < history[0]["loss"]
    assert 0 < steps.taken <= 14  # the first scale may be too large


def test_clip_bounds_the_gradient() -> None:
    model = net(norm=False)
    before = weights(model)
    train(model, list(data())[:1], epochs=1, optimizer=torch.optim.SGD(model.parameters(), 1.0), clip=1e-3)
    assert torch.linalg.vector_norm(weights(model) - before).item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.slow
def test_compiled_training_sees_the_hooks_of_its_penalty_and_equals_eager() -> None:
    """Twice: the graph of a first model must not be reused for a second one whose hooks differ."""
    loader, losses = data(), []
    for strength in (0.0, 1e-2):
        eager, values = net(), []
        eager[4].p = 0.0  # compiled, dropout draws other random numbers
        compiled = copy.deepcopy(eager)
        for model, options in ((eager, {}), (compiled, {"compile": True})):
            tap = FeatureTap(model, ["0"], detach=False, compiled=True)
            penalty = (lambda tap=tap, strength=strength: strength * tap["0"].square().mean()) if strength else None
            if penalty is not None:
                tap.attach()
            values.append(train(model, loader, penalty=penalty, **options)[-1])
        torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-3, atol=1e-4)
        assert values[1]["loss"] == pytest.approx(values[0]["loss"], rel=1e-3)
        losses.append(values[0]["loss"])
    assert values[1]["penalty_<lambda>"] == pytest.approx(values[0]["penalty_<lambda>"], rel=1e-3)
    assert losses[0] != losses[1]


def test_without_a_compiler_training_runs_eagerly_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **options: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    training_loop.compiler_works.cache_clear()
    model = net()
    other = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="runs without it.*No working C") as caught:
        train(model, data(), compile=True)
        train(net(), data(), compile=True)
    assert len(caught) == 1
    train(other, data())
    assert torch.equal(weights(model), weights(other))
    training_loop.compiler_works.cache_clear()


class Synchronizations(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        self.count += function.__name__.startswith(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"))
        return function(*args, **(options or {}))


def test_no_step_waits_for_the_device(device: torch.device) -> None:
    model, batches = net(device), list(data(4))
    with Synchronizations() as waits:
        train(model, batches, clip=1.0)
    assert waits.count == 2  # whether the weights are finite, once in each of two epochs


# -------------------------------------------------------------------------------------------------------- the sockets
def test_penalties_are_terms_of_the_loss_and_recorded_by_name() -> None:
    ours, batch = net(norm=False), [next(iter(data(50)))]
    theirs = copy.deepcopy(ours)

    def lasso() -> Tensor:
        return 0.01 * sum(p.abs().sum() for p in ours.parameters())

    class Named:
        name = "ridge"

        def __call__(self) -> Tensor:
            return 0.02 * sum(p.square().sum() for p in ours.parameters())

    history = train(
        ours, batch, epochs=1, penalty=[lasso, Named(), lasso], optimizer=torch.optim.SGD(ours.parameters(), 0.1)
    )
    x, y = batch[0]
    l1 = 0.01 * sum(p.abs().sum() for p in theirs.parameters())
    l2 = 0.02 * sum(p.square().sum() for p in theirs.parameters())
    (F.cross_entropy(theirs(x), y) + l1 + l2 + l1).backward()
    torch.optim.SGD(theirs.parameters(), 0.1).step()
    torch.testing.assert_close(weights(ours), weights(theirs))
    names = ["penalty_lasso", "penalty_ridge", "penalty_lasso_2"]
    assert [history[0][name] for name in names] == pytest.approx([l1.item(), l2.item(), l1.item()])


def test_no_feature_of_an_evaluation_pass_reaches_a_penalty() -> None:
    model, seen = net(), []
    model[0].register_forward_hook(lambda module, args, output: seen.append((module.training, len(output))))
    calls = []

    def penalty() -> Tensor:
        calls.append(seen[-1])
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        return torch.zeros(())

    train(model, data(25), validation=data(100), penalty=penalty, precision="bfloat16")
    assert (False, 100) in seen  # the evaluation passes did run, through the same hook
    assert calls == [(True, 25)] * 16


class Steps:
    """A sparsity that keeps the first half of a weight at zero and counts its steps."""

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight, self.taken, self.gradients = weight, 0, 0

    def step(self) -> None:
        self.taken += 1
        if self.weight is not None:
            self.gradients += bool(self.weight.grad is not None and self.weight.grad.abs().sum() > 0)
            self.weight.data[: len(self.weight) // 2] = 0

    def density(self) -> float:
        return 1.0 if self.weight is None else (self.weight != 0).float().mean().item()

    def penalty(self) -> Tensor:
        return torch.ones(()) * 0.25

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


def test_a_sparsity_steps_after_each_optimizer_step_and_brings_its_penalty() -> None:
    model = net()
    sparsity = Steps(model[0].weight)
    history = train(model, data(50), sparsity=sparsity, accumulate=2)
    assert sparsity.taken == sparsity.gradients == 4
    assert torch.all(model[0].weight[:4] == 0) and torch.all(model[0].weight[4:] != 0)
    assert history[-1]["sparsity"] == 0.5
    assert history[-1]["penalty_Steps"] == 0.25


def test_an_observer_may_add_measures_to_the_record() -> None:
    history = train(net(), data(), on_epoch=lambda record: record.update(measure=[record["epoch"], 1.5]))
    assert [record["measure"] for record in history] == [[1, 1.5], [2, 1.5]]


def test_history_is_json_and_a_table() -> None:
    history = train(net(), data(), validation=data(), sparsity=Steps())
    assert json.loads(json.dumps(history)) == list(history)
    table = history.frame()
    assert list(table["epoch"]) == [1, 2]
    expected = {
        "lr",
        "loss",
        "accuracy",
        "validation_loss",
        "validation_accuracy",
        "sparsity",
        "images_per_second",
        "seconds",
    }
    assert expected <= set(table.columns)
    for record in history:
        assert record["images_per_second"] * record["seconds"] == pytest.approx(200)


def test_seconds_of_an_epoch_add_up_over_its_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    meter = Meter([])
    for clock[0] in (12.0, 15.0, 19.0):
        meter.fetch()
    assert meter.seconds == 9


def test_progress_shows_what_matters_or_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    train(net(), data(), sparsity=Steps())
    assert capfd.readouterr() == ("", "")
    train(net(), data(), sparsity=Steps(), progress=True)
    shown = capfd.readouterr().err
    for word in ("epoch 2/2", "14/14", "loss=", "accuracy=", "sparsity=0", "images/s="):
        assert word in shown


def test_tells_the_loader_the_epoch() -> None:
    """A DeviceLoader, and through its sampler a DataLoader."""
    pixels = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    images = Images(pixels, torch.randint(2, (60,)), ("a", "b"), (0.5,), (0.3,), "noise")
    loader, epochs = DeviceLoader(images, 16, shuffle=True), []
    train(net(), loader, epochs=3, penalty=lambda: epochs.append(loader.epoch) or torch.zeros(()))
    assert epochs == [0] * 4 + [1] * 4 + [2] * 4

    class Sampler(torch.utils.data.SequentialSampler):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    dataset = data().dataset
    train(net(), DataLoader(dataset, batch_size=50, sampler=Sampler(dataset)))
    assert Sampler.epochs == [0, 1]


# --------------------------------------------------------------------------------------------------------- evaluation
def test_evaluate_is_the_mean_over_examples_and_leaves_the_model_as_it_was(device: torch.device) -> None:
    model = net(device)
    model[1].eval()  # a frozen batch norm inside a network in training
    measured = evaluate(model, data(30))
    assert [module.training for module in model] == [True, False, True, True, True, True]
    x, y = data().dataset.tensors
    logits = copy.deepcopy(model).eval()(x.to(device)).cpu()
    assert measured["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert measured["examples"] == 200
    assert all(p.grad is None for p in model.parameters())


PIXELS, HALVES = torch.randn(40, 3), torch.arange(40) % 2


def of(outputs: int | tuple[int, ...], y: Tensor) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network with outputs of this shape, and one batch."""
    shape = (outputs,) if isinstance(outputs, int) else outputs
    return nn.Sequential(nn.Linear(3, math.prod(shape)), nn.Unflatten(1, shape)), [(PIXELS, y)]


@pytest.mark.parametrize(
    ("outputs", "y", "loss"),
    [
        (1, HALVES[:, None].float(), nn.BCEWithLogitsLoss()),
        (2, F.one_hot(HALVES, 2).float(), nn.CrossEntropyLoss()),
        (1, torch.randn(40, 1), nn.MSELoss()),
        (1, HALVES, lambda outputs, y: F.binary_cross_entropy_with_logits(outputs[:, 0], y.float())),
    ],
    ids=["binary", "soft labels", "regression", "one output"],
)
def test_targets_that_are_no_classes_have_no_accuracy(outputs: int, y: Tensor, loss: Any) -> None:
    model, batches = of(outputs, y)
    history = train(model, batches, loss=loss, validation=batches)
    assert not [key for key in history[-1] if "accuracy" in key] and math.isfinite(history[-1]["validation_loss"])
    seen = evaluate(model, batches, loss=loss)
    assert set(seen) == {"loss", "examples"} and seen["loss"] == pytest.approx(loss(model(PIXELS), y).item(), rel=1e-5)
    with pytest.raises(ValueError, match="these targets are no classes"):
        evaluate(model, batches, loss=loss, right=[])


def test_accuracy_is_ones_own_where_one_gives_it() -> None:
    model, batches = of(1, HALVES[:, None].float())

    def right(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs > 0) == (y > 0.5)

    options: dict[str, Any] = {"loss": nn.BCEWithLogitsLoss(), "accuracy": right}
    history = train(model, batches, validation=batches, **options)
    expected = right(model(PIXELS), HALVES[:, None]).float().mean().item()
    assert evaluate(model, batches, **options)["accuracy"] == pytest.approx(expected)
    assert history[-1]["validation_accuracy"] == pytest.approx(expected) and 0 <= history[-1]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("accuracy", "got"),
    [
        (lambda outputs, y: (outputs.argmax(1) == y).sum(), r"torch.int64, shape \(\)"),
        (lambda outputs, y: (outputs.argmax(1) == y).float().mean(), r"torch.float32, shape \(\)"),
        (lambda outputs, y: 2 * (outputs.argmax(1) == y).long(), r"torch.int64, shape \(40,\)"),
        (lambda outputs, y: (outputs.argmax(1) == y).all(), r"torch.bool, shape \(\)"),
        (lambda outputs, y: float((outputs.argmax(1) == y).sum()), "float"),
    ],
    ids=["count", "share", "twos", "all", "number"],
)
def test_a_count_of_right_answers_is_none_of_them(accuracy: Any, got: str) -> None:
    """Of a count its parity was taken, which is a share that looks fine."""
    model, batches = of(2, HALVES)
    with pytest.raises(ValueError, match=f"accuracy must return a bool tensor, one value an answer.*; got {got}"):
        evaluate(model, [(PIXELS, HALVES)], accuracy=accuracy)
    with pytest.raises(ValueError, match="accuracy must return a bool tensor"):
        train(model, batches, accuracy=accuracy)


def test_no_class_of_small_labels_is_taken_for_the_one_that_is_ignored() -> None:
    y = torch.tensor([155, 156, 156, 157], dtype=torch.uint8)
    outputs = F.one_hot(torch.tensor([155, 1, 1, 157]), 200).float()
    same = nn.Linear(200, 200, bias=False)
    nn.init.eye_(same.weight)
    assert [evaluate(same, [(outputs, labels)])["accuracy"] for labels in (y, y.long())] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"shape \(40,\)"),
        (lambda outputs, y: F.cross_entropy(outputs, y)[None], r"shape \(1,\)"),
        (lambda outputs, y: 0.5, "float"),
    ],
    ids=["each", "one in a row", "number"],
)
def test_a_loss_is_one_number(loss: Any, got: str) -> None:
    model, batches = of(2, HALVES)
    with pytest.raises(ValueError, match=f"the loss must be one number, the mean over the batch.*got {got}"):
        evaluate(model, [(PIXELS, HALVES)], loss=loss)
    with pytest.raises(ValueError, match="the loss must be one number"):
        train(model, batches, loss=loss)


@pytest.mark.parametrize("ignored", [-100, 7, 3])  # 3 is a class, such as that of the background
def test_accuracy_of_maps_is_that_of_their_pixels(ignored: int) -> None:
    """A class for every pixel; those that the loss ignores do not count."""
    y = torch.randint(4, (40, 5, 6), generator=torch.Generator().manual_seed(0))
    y[:, 0] = ignored
    for loss in (nn.CrossEntropyLoss(ignore_index=ignored), partial(F.cross_entropy, ignore_index=ignored)):
        model, batches = of((4, 5, 6), y)
        history = train(model, batches, loss=loss, validation=batches)
        expected = (model(PIXELS).argmax(1) == y)[y != ignored].float().mean().item()
        assert history[-1]["validation_accuracy"] == pytest.approx(expected) and 0 <= history[-1]["accuracy"] <= 1
        assert evaluate(model, batches, loss=loss)["accuracy"] == pytest.approx(expected)


class Several(nn.Module):
    """A network that returns more than its logits."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 2), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.linear(x)
        return {"logits": logits, "hidden": x} if self.kind is dict else (logits, x)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_outputs_may_be_several_and_the_loss_picks(kind: type) -> None:
    model, batches = Several(kind), [(PIXELS, HALVES)]
    key: Any = "logits" if kind is dict else 0
    options: dict[str, Any] = {
        "loss": lambda outputs, y: F.cross_entropy(outputs[key], y),
        "accuracy": lambda outputs, y: outputs[key].argmax(1) == y,
    }
    plain = copy.deepcopy(model.linear)
    history = train(model, batches, validation=batches, precision="bfloat16", **options)
    train(plain, batches, precision="bfloat16")
    torch.testing.assert_close(weights(model), weights(plain))
    assert history[-1]["validation_accuracy"] == evaluate(model, batches, **options)["accuracy"]
    for use in (train, evaluate):
        with pytest.raises(ValueError, match=f"the model returns a {kind.__name__}.*give loss="):
            use(model, batches)


def test_the_bar_shows_a_penaltys_last_value_and_the_history_its_mean(capfd: pytest.CaptureFixture[str]) -> None:
    """A penalty that is due at every fifth step: 0.5 then, 0 in between."""

    class Rare:
        name, last, calls = "rare", torch.tensor(0.5), 0

        def __call__(self) -> Tensor:
            self.calls += 1
            return self.last if self.calls % 5 == 1 else torch.zeros(())

    history = train(net(), data(20), penalty=Rare(), progress=True)  # ten steps an epoch
    assert history[-1]["penalty_rare"] == pytest.approx(0.1)
    assert "rare=0.5" in capfd.readouterr().err


def test_evaluate_restores_the_mode_after_an_error() -> None:
    model = net()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(3, 5, 8, 8), torch.zeros(3, dtype=torch.long))])
    assert all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="no example"):
        evaluate(model, [])


# ------------------------------------------------------------------------------------------------------------ recipes
def rates(schedule: Any, epochs: int = 10, steps: int = 4, lr: float = 0.5) -> tuple[list[float], list[float]]:
    """Learning rate and momentum of every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr, momentum=0.9)
    scheduler = schedule(optimizer, steps, epochs)
    group, lrs, momenta = optimizer.param_groups[0], [], []
    for _ in range(steps * epochs):
        lrs.append(group["lr"])
        momenta.append(group["momentum"])
        optimizer.step()
        scheduler.step()
    return lrs, momenta


def test_multistep_falls_at_its_milestones() -> None:
    lrs, _ = rates(multistep(5, 8, gamma=0.1, warmup=1))
    assert lrs == pytest.approx([0.125, 0.25, 0.375, 0.5] + [0.5] * 16 + [0.05] * 12 + [0.005] * 8)


def test_a_warm_up_that_ends_within_a_step_rises_no_further_than_to_the_learning_rate() -> None:
    lrs, _ = rates(multistep(warmup=0.1), epochs=2, steps=23, lr=0.1)
    assert lrs == pytest.approx([0.1 / 2.3, 0.2 / 2.3] + [0.1] * 44)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: multistep(warmup=-1), r"warmup=-1 must lie in \[0, inf\)"),
        (lambda: cosine(warmup=math.inf), "warmup=inf must lie in"),
        (lambda: multistep([60, 120]), r"milestone=\[60, 120\] must be a number"),
        (lambda: one_cycle(start=0), r"start=0 must lie in \(0, 1\]"),
        (lambda: one_cycle(end=0), "end=0 must lie in"),
        (lambda: one_cycle(rise=2), "rise=2 must lie in"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_cosine_rises_and_falls() -> None:
    lrs, _ = rates(cosine(warmup=2, floor=0.1))
    assert lrs[:8] == pytest.approx([0.5 * (i + 1) / 8 for i in range(8)])
    assert lrs[8] == pytest.approx(0.5)
    assert lrs[8 + 16] == pytest.approx(0.5 * 0.55)  # half-way down to a tenth
    assert lrs[-1] == pytest.approx(0.05, rel=0.05)
    assert all(a > b for a, b in pairwise(lrs[8:]))


def test_one_cycle_peaks_at_the_learning_rate_with_least_momentum() -> None:
    lrs, momenta = rates(one_cycle(rise=0.25))
    peak = max(range(40), key=lrs.__getitem__)
    assert lrs[0] == pytest.approx(0.5 / 25) and lrs[peak] == pytest.approx(0.5)
    assert lrs[-1] == pytest.approx(0.5 / 25 * 1e-4)
    assert 8 <= peak <= 10 and momenta[peak] == min(momenta)


def test_an_optimizer_that_has_followed_a_schedule_is_refused() -> None:
    """Its learning rate is no longer the one that it was given: 0 after a cosine, a 25th of it in torch's books after
    one cycle."""
    for first in (one_cycle(), cosine(), multistep(1)):
        model = net()
        optimizer = sgd(model, 0.05)
        train(model, data(), optimizer=optimizer)
        train(model, data(), optimizer=optimizer, schedule=first)
        for second in (one_cycle(), cosine(), multistep(1)):
            with pytest.raises(ValueError, match=r"has followed a schedule before.*build a new one"):
                train(model, data(), optimizer=optimizer, schedule=second)
        train(model, data(), optimizer=sgd(model, 0.05), schedule=first)
    with pytest.raises(ValueError, match="learning rates are 0, as after a schedule"):
        train(model, data(), optimizer=sgd(model, 0.0))


def test_buffers_may_hold_nan_where_no_checkpoint_is_written(tmp_path: Path) -> None:
    model = net()
    model.register_buffer("unknown", torch.full((2,), torch.nan))
    assert len(train(model, data())) == 2
    with pytest.raises(FloatingPointError, match="weights after epoch 1"):
        train(model, data(), checkpoint=tmp_path / "run.pt")


def test_weight_decay_may_spare_norms_and_biases() -> None:
    model = net()
    assert [group["weight_decay"] for group in sgd(model).param_groups] == [5e-4]
    decayed, spared = adamw(model).param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert adamw(model, betas=(0.8, 0.9)).param_groups[1]["betas"] == (0.8, 0.9)
    model[0].requires_grad_(False)
    assert len(sgd(model).param_groups[0]["params"]) == 4


# ------------------------------------------------------------------------------------------------------------ failure
def test_what_this_loop_cannot_step_is_refused_at_the_start() -> None:
    model, batches = net(), data()
    before = weights(model)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(ValueError, match="ReduceLROnPlateau waits for a measurement"):
        train(model, batches, schedule=lambda optimizer, steps, epochs: plateau(optimizer))
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times a step"):
        train(model, batches, optimizer=torch.optim.LBFGS(model.parameters()))
    for name in ("epochs", "accumulate", "checkpoint_every"):
        for count in (0, 2.5, True):
            with pytest.raises(ValueError, match=f"{name}="):
                train(model, batches, **{name: count})
    assert torch.equal(weights(model), before)


def test_one_rank_by_name_alone_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed() as place:
        assert place.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=4, but RANK, MASTER_ADDR.*torchrun"), distributed():
        pass


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Any) -> None:
    batches = list(data(4))
    batches[37] = (torch.full_like(batches[37][0], math.nan), batches[37][1])
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 38.*last good checkpoint is .*run\.pt.*learning rate"):
        train(net(), batches, checkpoint=path, checkpoint_every=30)
    assert load_checkpoint(path)["batch"] == 30
    with pytest.raises(FloatingPointError, match="no checkpoint was kept"):
        train(net(), batches)


@pytest.mark.parametrize("kept", [True, False], ids=["checkpoint", "no checkpoint"])
def test_weights_that_overflow_in_the_last_step_are_not_kept(tmp_path: Any, kept: bool) -> None:
    model, path = net(norm=False), tmp_path / "run.pt"

    def blow_up() -> Tensor:  # finite itself, with a gradient that is not
        return (model[5].bias * 0).sum().sqrt()

    with pytest.raises(FloatingPointError, match="weights after epoch 1"):
        train(model, data(200), epochs=1, penalty=blow_up, checkpoint=path if kept else None)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"accumulate": 1.5}, "accumulate=1.5"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"precision": "half"}, "'float32', 'bfloat16', 'float16', 'auto'"),
        ({"penalty": [3]}, "penalty=3"),
        ({"penalty": lambda: 0.5}, "returned 0.5: a scalar tensor"),
        ({"penalty": lambda: torch.zeros(2)}, "a scalar tensor"),
        ({"schedule": cosine(warmup=5)}, "warmup=5 of 2 epochs"),
        ({"optimizer": sgd(net())}, "none of the model's parameters"),
        ({"schedule": lambda optimizer, steps, epochs: None}, "schedule returned None: return the scheduler"),
        (
            {"schedule": torch.optim.lr_scheduler.CosineAnnealingLR},
            r"schedule=.*be a function.*such as cosine\(\)",
        ),
        ({"schedule": "cosine"}, r"schedule='cosine' must be a function of \(optimizer, steps an epoch, epochs\)"),
        (
            {"loss": nn.CrossEntropyLoss},
            r"loss=<class.*must be a function of \(outputs, y\), such as nn\.Cross",
        ),
        ({"loss": "mse"}, "loss='mse' must be a function"),
        ({"loss": None}, "loss=None must be a function"),
        ({"accuracy": 0.9}, "accuracy=0.9 must be a function"),
        ({"on_epoch": [print]}, r"on_epoch=\[<built-in function print>\] must be a function"),
        ({"sparsity": 0.9}, r"sparsity=0\.9 has no step\(\): give an object, such as"),
        ({"sparsity": RandomPruning}, r"sparsity=.*RandomPruning'> has no step\(\)"),
        ({"validation": data().dataset.tensors[0].numpy}, r"validation=builtin.* cannot be iterated"),
    ],
)
def test_refuses_nonsense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(net(), data(), **options)


def test_refuses_images_in_place_of_batches() -> None:
    pixels = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    images = Images(pixels, torch.arange(60) % 2, ("a", "b"), (0.5,), (0.3,), "noise")
    for name, batches, validation in (("data", images, None), ("validation", data(), images)):
        with pytest.raises(ValueError, match=rf"{name}=Images cannot be iterated: give a DeviceLoader\({name}, …\)"):
            train(net(), batches, validation=validation)


def test_refuses_a_sparsity_of_another_model_or_optimizer() -> None:
    """It would keep that one sparse, and the history would say so of this one."""
    model = net()
    twin, optimizer = copy.deepcopy(model), sgd(model)
    for made, message in (
        (RandomPruning(twin, None, 0.5), "on another model than fit is given"),
        (RandomPruning(model, sgd(model), 0.5), "on another optimizer than fit is given"),
    ):
        with pytest.raises(ValueError, match=f"sparsity was built {message}"):
            train(model, data(), optimizer=optimizer, sparsity=made)


@pytest.mark.parametrize("of", [lambda m: m, lambda m: m[:4], nn.DataParallel, nn.Sequential])
def test_a_sparsity_may_be_of_a_part_or_of_a_wrapper(of: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    optimizer = sgd(model, 0.05)
    for its in (optimizer, None):
        history = train(model, data(100), epochs=1, optimizer=optimizer, sparsity=Masks(of(model), its))
    assert history[0]["sparsity"] == 0


X = torch.zeros(5, 1, 8, 8)


@pytest.mark.parametrize(
    ("batches", "shown"),
    [
        (TensorDataset(X, torch.zeros(5)), r"shape \(1, 8, 8\), shape \(\)"),
        ([(X.numpy(), np.zeros(5))], "ndarray, ndarray"),
        ([{"x": X, "y": torch.zeros(5)}], "dict"),
        ([X], r"shape \(5, 1, 8, 8\)"),
        ([(X, X, X)], "shape"),
    ],
    ids=["a dataset", "arrays", "a dict", "no target", "three parts"],
)
def test_what_is_no_batch_is_refused_in_one_sentence(batches: Any, shown: str) -> None:
    for run in (lambda: train(net(), batches), lambda: evaluate(net(), batches)):
        with pytest.raises(ValueError, match=rf"^a batch must be \(x, y\), two tensors.*not \({shown}"):
            run()


def test_what_is_no_model_or_optimizer_is_refused() -> None:
    for model, optimizer, message in (
        (None, sgd(net()), "fit takes a module and an optimizer, not None"),
        (net(), "adam", "not a Sequential and 'adam'"),
        (nn.ReLU(), sgd(net()), "ReLU has no parameters to train"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, data(), optimizer, epochs=1, progress=False)


def test_as_many_tokens_as_classes_have_no_accuracy_but_under_cross_entropy() -> None:
    """(examples, classes, tokens) and (examples, tokens, classes) are then of one shape."""

    class Words(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.out = nn.Linear(4, classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x)  # tokens first

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten())

    batch = torch.randn(5, 6, 4), torch.randint(6, (5, 6))
    assert "accuracy" not in evaluate(Words(6), [batch], loss=loss)
    assert "accuracy" not in evaluate(Words(7), [batch], loss=loss)
    assert "accuracy" in evaluate(Words(6), [batch])
    for of_classes in (F.nll_loss, partial(F.cross_entropy, label_smoothing=0.1)):
        assert "accuracy" in evaluate(Words(6), [batch], loss=of_classes)


def test_refuses_a_loader_without_batches_and_a_scheduler_without_a_clock() -> None:
    model = net()
    with pytest.raises(ValueError, match="no batch in epoch 2"):
        train(model, iter(data()))  # a stream that is used up
    for nothing in ([], (batch for batch in data())):
        with pytest.raises(ValueError, match="no batch, or no length"):
            train(model, nothing)
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"StepLR.*multistep"):
        train(model, data(), optimizer=optimizer, schedule=torch.optim.lr_scheduler.StepLR(optimizer, 1))


def test_refuses_torchrun_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="with distributed"):
        train(net(), data())


def test_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net(), data(), schedule=one_cycle(), validation=data(), precision="bfloat16", accumulate=2, clip=1.0)
