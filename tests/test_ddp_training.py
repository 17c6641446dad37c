"""Training on two ranks (gloo, two processes) against one process that does the same arithmetic."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import PATIENCE
from torch import Tensor, nn
from torch.nn import functional as F
from two_ranks import two_ranks

from companion.data import DeviceLoader, ImageNetLoader, Images, imagenet, tiny_imagenet
from companion.training import cosine, evaluate, fit, load_checkpoint, sgd
from companion.training import loop as training_loop

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------------------------------------------------- the run
def net(norm: bool, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(6 * 36, 3)).double()


def slices(examples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> DeviceLoader:
    """A rank's part of every global batch; the last batch is smaller."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (examples, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (examples,), generator=generator)
    images = Images(pixels, labels, ("a", "b", "c"), (0.5,), (0.3,), "noise")
    return DeviceLoader(images, batch_size, shuffle=True, dtype=torch.float64, rank=rank, world_size=world_size)


def feature_penalty(model: nn.Sequential) -> Callable[[], Tensor]:
    """Not a mean over examples: what two halves give on average is not what the whole batch gives."""
    features: list[Tensor] = [torch.zeros(())]
    model[3].register_forward_hook(lambda module, args, output: features.__setitem__(0, output))

    def spread() -> Tensor:
        return 0.01 * features[0].sum(0).square().mean()

    return spread


def train(rank: int, world_size: int, options: dict[str, Any]) -> Any:
    """(weights, history, test result) of a run on 26 examples in global batches of 5: the last has one example."""
    options = {"norm": False, "dropout": 0.0, "examples": 26, "batch_size": 5, "penalty": False} | options
    model = net(options.pop("norm"), options.pop("dropout"))
    sizes = options.pop("examples"), options.pop("batch_size")
    terms = [feature_penalty(model)] if options.pop("penalty") else None
    test = slices(17, 4, rank, world_size)
    history = fit(
        model, slices(*sizes, rank, world_size), sgd(model, 0.1), epochs=3, validation=test, penalty=terms,
        progress=False, **options,
    )  # fmt: skip
    return {k: v.numpy() for k, v in model.state_dict().items()}, list(history), evaluate(model, test)


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-12) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(torch.as_tensor(ours[name]), torch.as_tensor(value), rtol=tolerance, atol=tolerance)


MEASURES = ("loss", "accuracy", "validation_loss", "validation_accuracy")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_are_one_process_on_the_same_global_batches(accumulate: int) -> None:
    """Far below 1e-6 in float64, although the last batch leaves one rank without an example."""
    options = {"accumulate": accumulate, "clip": 0.5}
    weights, history, test = train(0, 1, options)
    for ours in two_ranks(train, 2, options):
        assert_close(ours[0], weights)
        for record, reference in zip(ours[1], history, strict=True):
            assert [record[name] for name in MEASURES] == pytest.approx(
                [reference[name] for name in MEASURES], rel=1e-12
            )
        assert ours[2] == pytest.approx(test, rel=1e-12)
        assert ours[2]["examples"] == 17  # summed across ranks


def test_batch_norm_and_penalties_see_each_ranks_half() -> None:
    """Against one process that runs each half with statistics and a penalty of its own, keeps rank 0's running
    statistics, weighs the halves' losses by their examples and averages their penalties."""
    options = {"norm": True, "penalty": True, "examples": 27, "batch_size": 9}
    ours, other = two_ranks(train, 2, options)
    assert_close(ours[0], other[0], 0)

    model = net(norm=True)
    penalty, optimizer = feature_penalty(model), sgd(model, 0.1)
    left, right = slices(27, 9, 0, 2), slices(27, 9, 1, 2)
    for epoch in range(3):
        left.epoch = right.epoch = epoch
        penalties = []
        for halves in zip(left, right, strict=True):
            optimizer.zero_grad()
            statistics = None
            for x, y in halves:
                (len(y) / 9 * F.cross_entropy(model(x), y) + penalty() / 2).backward()
                penalties.append(penalty().item())
                statistics = statistics or copy.deepcopy(dict(model[1].named_buffers()))
            model[1].load_state_dict(statistics, strict=False)
            optimizer.step()
    assert_close(ours[0], model.state_dict())
    assert ours[1][-1]["penalty_spread"] == pytest.approx(sum(penalties) / len(penalties), rel=1e-12)


# --------------------------------------------------------------------------------------------------------- checkpoints
def train_and_write(rank: int, path: Path, stop: int | None, options: dict[str, Any]) -> Any:
    """Rank 0 writes; a rank that tries to write otherwise fails. Stops by an error on every rank after `stop` steps."""
    if rank == 1:
        training_loop.save_checkpoint = training_loop.claim = None  # type: ignore[assignment]
    steps = []

    def observe(module: nn.Module, args: Any) -> None:
        steps.append(module.training)
        if sum(steps) == stop:
            raise InterruptedError("power cut")

    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: observe(module, args) if isinstance(module, nn.Linear) else None
    )
    try:
        return train(rank, 2, {"norm": True, "examples": 36, "batch_size": 9, "dropout": 0.5, "seed": 1, **options})
    finally:
        handle.remove()


def test_rank_zero_writes_and_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """With a dropout of each rank's own, from the middle of an epoch."""
    path = tmp_path / "run.pt"
    options = {"checkpoint": path, "checkpoint_every": 2}
    whole = two_ranks(train_and_write, path, None, {})
    stopped = two_ranks(train_and_write, path, 8, options)
    assert [str(error) for error in stopped] == ["power cut", "power cut"]
    state = load_checkpoint(path)
    assert (state["epoch"], state["batch"], len(state["random"])) == (1, 2, 2)
    assert not torch.equal(state["random"][0][1]["torch"], state["random"][1][1]["torch"])
    for ours, theirs in zip(two_ranks(train_and_write, path, None, options), whole, strict=True):
        assert_close(ours[0], theirs[0], 0)
        assert [record["loss"] for record in ours[1]] == [record["loss"] for record in theirs[1]]


def test_an_error_on_rank_zero_reaches_every_rank(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    path.write_text("something else")
    for error in two_ranks(train_and_write, path, None, {"checkpoint": path}):
        assert isinstance(error, ValueError) and "truncated or foreign" in str(error)


def nan_on_rank_one(rank: int) -> Any:
    batches = [(x if rank == 0 else x * torch.nan, y) for x, y in slices(26, 5, rank, 2)]
    model = net(norm=False)
    return fit(model, batches, sgd(model), epochs=1, progress=False)


def test_nan_on_one_rank_stops_both() -> None:
    for error in two_ranks(nan_on_rank_one):
        assert isinstance(error, FloatingPointError) and "epoch 1, step 1" in str(error)


# --------------------------------------------------------------------------------------------------------- photographs
def train_unevenly(rank: int) -> Any:
    batches = [(torch.randn(4, 2), torch.arange(4) % 2)] * (3 + rank)
    model = nn.Linear(2, 2)
    return fit(model, batches, sgd(model), epochs=1, progress=False)


def test_loaders_of_unequal_length_are_refused_at_the_start() -> None:
    for outcome in two_ranks(train_unevenly):
        assert isinstance(outcome, ValueError) and "the ranks have [3, 4] batches an epoch" in str(outcome)


class Half(nn.Module):
    """A network with a layer that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def train_half(rank: int, unused: bool) -> Any:
    torch.manual_seed(0)
    model = Half()
    batches = [(torch.randn(4, 2), torch.arange(4) % 2)] * 3
    return fit(model, batches, sgd(model), epochs=1, progress=False, unused_parameters=unused)


def test_unused_parameters_are_an_option_and_a_hint() -> None:
    for outcome in two_ranks(train_half, False):
        assert isinstance(outcome, ValueError) and "unused_parameters=True" in str(outcome)
    first, second = two_ranks(train_half, True)
    assert first[0]["loss"] == second[0]["loss"] > 0


def train_on_photographs(rank: int, root: Path, name: str, path: Path) -> Any:
    """ImageNet's recipe in small, on 48 real JPEGs."""
    options: dict[str, Any] = {"channels_last": True, "rank": rank, "world_size": 2}
    if name == "imagenet":
        folder = imagenet("val", root)
        folder.samples = folder.samples[:: len(folder) // 48][:48]
        size = {"size": 32, "workers": 0}
        loader = ImageNetLoader(folder, 16, train=True, **size, **options)
        test: Any = ImageNetLoader(folder, 16, **size, **options)
        classes = len(folder.classes)
    else:
        images = tiny_imagenet("val", root)
        images = images.subset(range(0, len(images), len(images) // 48)[:48])
        loader = DeviceLoader(images, 16, shuffle=True, augment=True, **options)
        test = DeviceLoader(images, 20, **options)
        classes = len(images.classes)
    torch.manual_seed(rank)  # unequal initial weights: the process group makes them equal
    model = torchvision.models.resnet18(num_classes=classes)
    history = fit(
        model, loader, sgd(model, 0.02, weight_decay=1e-4), epochs=2, schedule=cosine(warmup=1), validation=test,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1), accumulate=2, precision="bfloat16", channels_last=True, seed=0,
        checkpoint=path, progress=False,
    )  # fmt: skip
    checksums = [value.double().sum().item() for value in model.state_dict().values()]
    return checksums, [record["loss"] for record in history], evaluate(model, test)


@pytest.mark.parametrize("name", ["imagenet", "tiny-imagenet"])
def test_two_ranks_train_on_photographs(data_root: Path, tmp_path: Path, name: str) -> None:
    ours, other = two_ranks(train_on_photographs, data_root, name, tmp_path / "run.pt")
    assert ours == other
    assert all(0 < loss < 10 for loss in ours[1]) and ours[2]["examples"] == 48
    assert load_checkpoint(tmp_path / "run.pt")["epoch"] == 2


# ------------------------------------------------------------------------------------------------------------ torchrun
SCRIPT = """
import sys, torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from companion.training import distributed, fit, sgd
with distributed() as (device, rank, world_size):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
    model = torch.nn.Linear(4, 2).to(device)
    sampler = DistributedSampler(data) if world_size > 1 else None
    loader = DataLoader(data, 32 // world_size, sampler=sampler)
    history = fit(model, loader, sgd(model, 0.1), epochs=2, checkpoint=sys.argv[1])
    print(f"rank {rank} of {world_size}: {history[-1]['epoch']} epochs, {sum(p.sum() for p in model.parameters()):.6f}")
"""


def test_the_same_script_runs_alone_and_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    repository = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command, ranks in ((["-m", *run, "script.py", "two.pt"], 2), (["script.py", "one.pt"], 1)):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        # Two processes write to one pipe: their lines may run into each other.
        said = re.findall(r"rank (\d) of (\d): 2 epochs, (-?\d+\.\d{6})", done.stdout)
        assert sorted((rank, size) for rank, size, _ in said) == [(str(rank), str(ranks)) for rank in range(ranks)]
        assert len({weights for *_, weights in said}) == 1  # equal weights
        assert done.stderr.count("| 0/4 [") == 1  # one bar, rank 0's
