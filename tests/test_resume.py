"""Checkpoints: a run that is killed and resumed ends bit for bit where a run that was never interrupted ends."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from companion import _files
from companion.data import DeviceLoader, Images, digits
from companion.models import digits_net
from companion.pruning import DST, GraNet
from companion.regularizers import L1, FeatureFlow, ramp
from companion.training import (
    History,
    adamw,
    checkpoints,
    evaluate,
    fit,
    load_checkpoint,
    loop,
    one_cycle,
    save_checkpoint,
    seed_everything,
    sgd,
)

# Children start from a process that has imported torch already: a real process each, in a tenth of a second.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "torch._dynamo", "companion.training"])
STEPS = 30  # of a run: three epochs of ten batches


# ------------------------------------------------------------------------------------------------------------ the run
class Noise:
    """A penalty with a state and a random draw of NumPy's and Python's."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls = model, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        strength = 1e-3 * self.calls * np.random.rand() * random.random()
        return strength * sum(p.square().sum() for p in self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class Drop:
    """A sparsity that sets one more random weight to zero at every step."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.generator = weight, torch.Generator().manual_seed(5)
        self.mask = torch.ones_like(weight)

    def step(self) -> None:
        self.mask.view(-1)[torch.randint(self.mask.numel(), (1,), generator=self.generator)] = 0
        self.weight.data.mul_(self.mask)

    def density(self) -> float:
        return self.mask.mean().item()

    def state_dict(self) -> dict[str, Any]:
        return {"mask": self.mask, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mask.copy_(state["mask"])
        self.generator.set_state(state["generator"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(
    path: Path | None, loader: str = "device", before_step: Callable[[], None] = lambda: None, **options: Any
) -> Any:
    """Train a small net with dropout, batch norm and every kind of state; (weights, history)."""
    torch.set_num_threads(1)
    seed_everything(0)
    pixels = torch.randint(256, (150, 1, 8, 8), dtype=torch.uint8)
    images = Images(pixels, (pixels.float().mean((1, 2, 3)) > 127).long(), ("dark", "bright"), (0.5,), (0.3,), "noise")
    dataset = TensorDataset(pixels / 255, images.labels)
    loaders: dict[str, Callable[[], Any]] = {
        "device": lambda: DeviceLoader(images, 16, shuffle=True, augment=True, padding=1, seed=2),
        "global random state": lambda: DataLoader(dataset, batch_size=16, shuffle=True),
        "own generator": lambda: DataLoader(dataset, 16, shuffle=True, generator=seeded(7)),
        "sampler's generator": lambda: DataLoader(dataset, 16, sampler=RandomSampler(dataset, generator=seeded(7))),
        "batch sampler": lambda: DataLoader(
            dataset,
            batch_sampler=BatchSampler(WeightedRandomSampler([1.0, 2.0] * 75, 150, generator=seeded(7)), 16, False),
        ),
    }
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 36, 2)
    )
    data, noise = loaders[loader](), Noise(model)
    options = {
        "epochs": 3,
        "schedule": one_cycle(),
        "checkpoint_every": 3,
        "validation": DeviceLoader(images, 50),
    } | options
    optimizer = options.pop("optimizer", adamw)(model, 1e-2)
    sparsities: dict[str, Callable[[], Any]] = {
        "drop": lambda: Drop(model[5].weight),
        "GraNet": lambda: GraNet(model, optimizer, sparsity=0.8, steps=30, every=4),
        "DST": lambda: DST(model, optimizer, alpha=1e-3),
    }
    sparsity = sparsities[options.pop("sparsity", "drop")]()
    history = fit(
        model, data, optimizer, penalty=[noise, interrupted(before_step)], sparsity=sparsity, seed=1, progress=False,
        checkpoint=path, **options,
    )  # fmt: skip
    return {name: value.clone() for name, value in model.state_dict().items()}, history


def timeless(history: History) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in history]


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours[0].keys() == theirs[0].keys()
    for name, value in theirs[0].items():
        assert torch.equal(ours[0][name], value), name
    assert timeless(ours[1]) == timeless(theirs[1])


class Stop(Exception):  # noqa: N818
    """An interruption inside a process."""


def stop_at(step: int) -> Callable[[], None]:
    steps = count(1)

    def before_step() -> None:
        if next(steps) == step:
            raise Stop

    return before_step


def interrupted(before_step: Callable[[], None]) -> Callable[[], Tensor]:
    """A penalty of nothing that calls `before_step` first."""

    def penalty() -> Tensor:
        before_step()
        return torch.zeros(())

    return penalty


# ------------------------------------------------------------------------------------------------- stop and resume
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loader": "global random state"},
        {"loader": "own generator"},
        {"loader": "sampler's generator"},
        {"loader": "batch sampler"},
        {"accumulate": 3, "checkpoint_every": 1, "clip": 0.5},
        {"optimizer": sgd, "schedule": None, "precision": "bfloat16", "channels_last": True},
        {"checkpoint_every": None},
        {"sparsity": "GraNet"},
        {"sparsity": "DST"},
    ],
    ids=lambda options: ", ".join(getattr(value, "__name__", str(value)) for value in options.values()) or "default",
)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, options: dict[str, Any]) -> None:
    """Interrupted in the middle of the first and of a later epoch, each time resumed from the last checkpoint."""
    whole = run(None, **options)
    steps = 30 if "accumulate" not in options else 12
    for interruption in (steps // 5, steps // 2):
        with pytest.raises(Stop):
            run(tmp_path / "run.pt", before_step=stop_at(interruption), **options)
    assert_equal(run(tmp_path / "run.pt", **options), whole)
    assert not list(tmp_path.glob(".*.part"))


def test_a_resumed_epoch_is_validated_on_all_of_its_loader(tmp_path: Path) -> None:
    """Also where that is the loader of the training, and after an interruption it is whole again."""
    seen: list[Any] = []

    def train(stop: int = 0) -> History:
        seed_everything(0)
        model, batches = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), DeviceLoader(digits(), 64, shuffle=True)

        def on_epoch(record: dict[str, Any]) -> None:
            seen.append(evaluate(model, batches)["examples"])

        options = {"penalty": interrupted(stop_at(stop)), "validation": batches, "on_epoch": on_epoch}
        options |= {"checkpoint": tmp_path / "run.pt" if stop or seen else None, "checkpoint_every": 10}
        try:
            return fit(model, batches, sgd(model), epochs=1, progress=False, **options)
        finally:
            assert batches.start == 0

    whole = train()
    for step in (15, 5):  # the second time inside what is left of the epoch
        with pytest.raises(Stop):
            train(step)
    assert timeless(train()) == timeless(whole) and seen == [len(digits())] * 2


def test_numpys_numbers_are_saved_as_numbers(tmp_path: Path) -> None:
    """In the optimizer, the loader, the settings and the history."""

    def train(number: Any, whole: Any, stop: int | None = None) -> Any:
        seed_everything(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def on_epoch(record: dict[str, Any]) -> None:
            record["kept"] = [number(0.25), {"of": (number(0.5),)}]
            if record["epoch"] == stop:
                raise Stop

        batches = DeviceLoader(digits(), 256, seed=whole(3))
        optimizer = sgd(model, lr=number(0.03), weight_decay=number(1e-3))
        history = fit(
            model, batches, optimizer, epochs=3, clip=number(1), seed=whole(3), checkpoint=tmp_path / "run.pt",
            schedule=one_cycle(), on_epoch=on_epoch, progress=False,
        )  # fmt: skip
        return model.state_dict(), history

    with pytest.raises(Stop):
        train(np.float64, np.int64, stop=2)
    mixed = train(np.float64, np.int64)
    (tmp_path / "run.pt").unlink()
    (tmp_path / "run.pt.previous").unlink()
    assert_equal(mixed, train(float, int))


def test_what_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", {"epoch": 1})
    with pytest.raises(ValueError, match=r"holds tensors, numbers, text.*numpy\.ndarray"):
        save_checkpoint(tmp_path / "run.pt", {"epoch": 2, "history": [{"norms": np.ones(2)}]})
    assert load_checkpoint(tmp_path / "run.pt")["epoch"] == 1
    with pytest.raises(ValueError, match=r"seed=2\.5 must be a whole number"):
        seed_everything(2.5)  # type: ignore[arg-type]


def test_a_finished_run_returns_its_result_without_training(tmp_path: Path) -> None:
    whole = run(tmp_path / "run.pt")
    assert_equal(run(tmp_path / "run.pt", before_step=stop_at(1)), whole)


def test_feature_flow_resumes_bit_for_bit(tmp_path: Path) -> None:
    """A new tap copies outputs in its first pass: gradients are to be summed in the same order as later on."""
    data = TensorDataset(torch.randn(96, 1, 8, 8), torch.arange(96) % 10)

    def train(path: Path | None = None, stop: int | None = None) -> dict[str, Tensor]:
        seed_everything(0)
        model = digits_net(width=4)

        def on_epoch(record: Any) -> None:
            if record["epoch"] == stop:
                raise Stop

        loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(1))
        fit(
            model, loader, sgd(model, 0.05), epochs=3, penalty=FeatureFlow(model, 0.1, 0.1), checkpoint=path,
            on_epoch=on_epoch, progress=False,
        )  # fmt: skip
        return model.state_dict()

    with pytest.raises(Stop):
        train(tmp_path / "run.pt", stop=2)
    resumed, whole = train(tmp_path / "run.pt"), train()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


# ------------------------------------------------------------------------------------------------------------ kill −9
def child(path: Path, result: Path, begun: Any, steps: Any, moment: tuple[str, int] | None) -> None:
    """A run in a process of its own, of as many steps as it is let; at `moment` = (place, visit) it kills itself, as
    kill −9 does."""
    if moment is not None:
        place, visit = moment
        visits = count(1)
        real = getattr(os, place)

        def fatal(*args: Any) -> Any:
            if next(visits) == visit:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        setattr(os, place, fatal)

    def before_step() -> None:
        begun.set()
        steps.acquire()

    weights, history = run(path, before_step=before_step)
    save_checkpoint(result, {"weights": weights, "history": list(history)})


def start(folder: Path, name: str, steps: int = STEPS, moment: tuple[str, int] | None = None) -> Any:
    begun, let = PROCESSES.Event(), PROCESSES.Semaphore(steps)
    path, result = folder / f"{name}.pt", folder / f"{name}.result"
    process = PROCESSES.Process(target=child, args=(path, result, begun, let, moment))
    process.start()
    process.begun, process.let = begun, let  # set when the first step begins; releases one step more
    return process


def written(checkpoint: Path) -> int:
    """When, in nanoseconds; 0 where there is none."""
    try:
        return checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def result(folder: Path, name: str) -> Any:
    state = load_checkpoint(folder / f"{name}.result")
    return state["weights"], state["history"]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    moments, positions = random.Random(0), set()
    checkpoint = tmp_path / "run.pt"
    for life in range(6):
        before = written(checkpoint)
        process = start(tmp_path, "run", steps=4)  # of 30: it does not end before it is killed, however busy all is
        process.begun.wait()
        while life % 2 and written(checkpoint) <= before:  # every second life saves at least once
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()  # SIGKILL
        process.join()
        assert process.exitcode == -signal.SIGKILL
        there = [path for path in (checkpoint, checkpoints.previous(checkpoint)) if path.exists()]
        for state in map(load_checkpoint, there[:1]):
            positions.add((state["epoch"], state["batch"]))
    assert len(positions) >= 2 and any(batch > 0 for _, batch in positions)
    process = start(tmp_path, "run")
    process.join()
    assert process.exitcode == 0
    assert_equal(result(tmp_path, "run"), run(None))


@pytest.mark.slow
@pytest.mark.parametrize("visit", [1, 2, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_killed_inside_a_save_it_ends_bit_for_bit_the_same(tmp_path: Path, place: str, visit: int) -> None:
    """Before the bytes are on the disk, and before either of the two renames: what has a name is whole."""
    process = start(tmp_path, "run", moment=(place, visit))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if visit > 2:  # no moment without a checkpoint, once there is one
        load_checkpoint(tmp_path / "run.pt")
    assert list(tmp_path.glob(".*.part"))  # the half-finished file; the next run sweeps it away
    process = start(tmp_path, "run")
    process.join()
    assert process.exitcode == 0 and not list(tmp_path.glob(".*.part"))
    assert_equal(result(tmp_path, "run"), run(None))


@pytest.mark.slow
def test_two_runs_at_once_do_not_touch_each_other(tmp_path: Path) -> None:
    process = start(tmp_path, "run", steps=5)
    while not written(tmp_path / "run.pt"):
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=r"run\.pt is in use by another run"):
        run(tmp_path / "run.pt")
    for _ in range(STEPS):
        process.let.release()
    process.join()
    assert process.exitcode == 0
    whole = run(None)
    assert_equal(result(tmp_path, "run"), whole)
    assert_equal(run(tmp_path / "run.pt"), whole)  # and the lock is free again


def test_a_run_sweeps_away_its_own_leftovers_alone(tmp_path: Path) -> None:
    """Of two runs in one folder, one's checkpoint may be named like the beginning of the other's."""
    own, other = (tmp_path / f".{name}.{8 * 'a'}.part" for name in ("run[1]", "run[1].pt"))
    for half in (own, other):
        half.touch()
    run(tmp_path / "run[1]", epochs=1)
    assert other.exists() and not own.exists()


# ----------------------------------------------------------------------------------------- damaged and foreign files
def test_a_truncated_checkpoint_is_refused_and_the_one_before_resumes(tmp_path: Path) -> None:
    path, before = tmp_path / "run.pt", tmp_path / "run.pt.previous"
    with pytest.raises(Stop):
        run(path, before_step=stop_at(20))
    for size in (0, 100, path.stat().st_size // 2, path.stat().st_size - 1):
        os.truncate(path, size)
        kept = before.read_bytes()
        with pytest.raises(ValueError, match=r"run\.pt is truncated or foreign .*delete it.*run\.pt\.previous"):
            run(path)
        assert before.read_bytes() == kept and path.stat().st_size == size
    path.unlink()
    with pytest.warns(UserWarning, match=r"run\.pt is not there: going on from .*run\.pt\.previous; to train"):
        resumed = run(path)
    assert_equal(resumed, run(None))


def test_no_flipped_bit_is_believed(tmp_path: Path) -> None:
    """Wherever a bit flips, the state is refused or is what was written."""
    path, chance = tmp_path / "run.pt", random.Random(0)
    state = {"configuration": {}, "model": {"weight": torch.randn(500)}, "epoch": 3, "history": [{"loss": 0.25}]}
    save_checkpoint(path, state)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        at = chance.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            assert "run.pt is truncated or foreign" in str(error)
            refused += 1
            continue
        assert torch.equal(found["model"]["weight"], state["model"]["weight"])
        assert {key: found[key] for key in ("epoch", "history")} == {"epoch": 3, "history": [{"loss": 0.25}]}
    assert refused > 100


def test_a_checkpoint_without_a_part_names_it(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    run(path, epochs=1)
    for part in ("optimizer", "meter", "configuration"):
        save_checkpoint(tmp_path / "less.pt", {k: v for k, v in load_checkpoint(path).items() if k != part})
        with pytest.raises(ValueError, match=rf"less\.pt.*{'another run' if part == 'configuration' else part}"):
            run(tmp_path / "less.pt", epochs=1)


def test_a_disk_without_links_keeps_the_previous_checkpoint_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*names: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    for epoch in (1, 2):
        save_checkpoint(tmp_path / "run.pt", {"epoch": epoch})
    found = [load_checkpoint(path)["epoch"] for path in (tmp_path / "run.pt", tmp_path / "run.pt.previous")]
    assert found == [2, 1] and len(list(tmp_path.iterdir())) == 2


def test_a_hostile_checkpoint_is_not_executed_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": checkpoints.FORMAT, "ticket": Hostile()}, tmp_path / "run.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match="truncated or foreign"):
        load_checkpoint(tmp_path / "run.pt")
    assert not (tmp_path / "executed").exists()


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    foreign: list[Callable[[], Any]] = [
        lambda: path.write_text("something dear to someone"),
        lambda: torch.save({"weights": torch.zeros(3)}, path),
        lambda: torch.save([1, 2], path),
        lambda: torch.save(nn.Linear(2, 2), path),  # a pickled module runs code when it is loaded
    ]
    for write in foreign:
        write()
        content = path.read_bytes()
        with pytest.raises(ValueError, match="truncated or foreign"):
            run(path)
        assert path.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path / "run.pt", epochs=1)
    with pytest.raises(ValueError, match="epochs: 1 there, 2 here"):
        run(tmp_path / "run.pt", epochs=2)
    with pytest.raises(ValueError, match=r"clip: None there, 1\.0 here"):
        run(tmp_path / "run.pt", epochs=1, clip=1.0)


def test_positions_of_a_partial_and_generators_of_a_loader_are_part_of_a_run(tmp_path: Path) -> None:
    def smooth(amount: float, outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, y, label_smoothing=amount)

    def train(amount: float, own: bool) -> History:
        model, batches = nn.Linear(4, 3), TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
        loader = DataLoader(batches, 4, shuffle=True, generator=torch.Generator() if own else None)
        options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "progress": False}
        return fit(model, loader, sgd(model), epochs=1, loss=partial(smooth, amount), **options)

    train(0.1, own=True)
    with pytest.raises(ValueError, match=r"loss: .*0: 0\.1.* there, .*0: 0\.2"):
        train(0.2, own=True)
    with pytest.raises(ValueError, match=r"data: .*'generators'"):
        train(0.1, own=False)


class Weighted:
    """A loss of one's own that keeps its weights."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, y, self.weight)


@pytest.mark.parametrize(
    "weighted",
    [
        lambda weight: nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1),
        lambda weight: partial(nn.functional.cross_entropy, weight=weight),
        Weighted,
    ],
    ids=["module", "partial", "object"],
)
def test_weights_of_classes_are_part_of_a_run(tmp_path: Path, weighted: Callable[[Any], Any]) -> None:
    def train(weight: Any) -> History:
        batches = [(torch.ones(6, 4), torch.arange(6) % 3)]
        model, options = nn.Linear(4, 3), {"checkpoint": tmp_path / "run.pt", "progress": False}
        return fit(model, batches, sgd(model), epochs=1, loss=weighted(weight), **options)

    assert train(torch.tensor([1.0, 2.0, 3.0])) == train(torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"loss: .*'weight': 'tensor \w{8}'.* there, .*'weight': 'tensor"):
        train(torch.tensor([1.0, 2.0, 4.0]))


def test_a_loss_without_tensors_is_described_as_it_always_was() -> None:
    """Or no checkpoint of an earlier version would go on."""
    plain = "{'reduction': 'mean', 'ignore_index': -100, 'label_smoothing': 0.1}"
    for loss, said in (
        (nn.functional.cross_entropy, "cross_entropy{}"),
        (partial(nn.functional.cross_entropy, label_smoothing=0.1), "cross_entropy{'label_smoothing': 0.1}"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), f"CrossEntropyLoss{plain}"),
    ):
        assert loop._described(loss, tensors=True) == loop._described(loss) == said


def test_a_run_of_other_numbers_is_refused_by_name(tmp_path: Path) -> None:
    """The same names, shapes, seeds and counts, in each of the places where a number can differ."""
    images = digits()

    def train(path: Path | None = tmp_path / "run.pt", **changed: Any) -> History:
        made = {"l1": 1e-4, "ffr": 0.1, "smooth": 0.0, "weight": 2, "batch": 64, "augment": False, "sparsity": 0.5}
        made |= {"beta": 0.1, "images": images, "held_out": 360} | changed
        seed_everything(0)
        model = digits_net(width=4, blocks=2)
        optimizer = sgd(model)
        batches = DeviceLoader(made["images"], made["batch"], shuffle=True, augment=made["augment"], padding=1)
        masks = GraNet(model, optimizer, sparsity=made["sparsity"], steps=23, every=5)
        penalties = [L1(model, made["l1"]), FeatureFlow(model, ramp(made["ffr"], 10), 0.1)]
        loss: Any = nn.CrossEntropyLoss(label_smoothing=made["smooth"])
        if made["beta"] != 0.1:
            loss = partial(nn.functional.cross_entropy, label_smoothing=made["beta"])
        validation = DeviceLoader(digits("test"), made["held_out"])
        return fit(
            model, batches, optimizer, epochs=1, penalty=penalties, sparsity=masks, loss=loss, checkpoint=path,
            validation=validation, progress=False,
        )  # fmt: skip

    first = train()
    assert timeless(train()) == timeless(first)
    less = replace(images, images=images.images[:-1], labels=images.labels[:-1])
    for change, said in (
        ({"l1": 1e-2}, r"penalty: .*0\.0001.* there, .*0\.01"),
        ({"ffr": 0.2}, r"penalty: .*ramp\(0\.1, .* there, .*ramp\(0\.2"),
        ({"smooth": 0.3}, r"loss: .*'label_smoothing': 0\.0.* there, .*0\.3"),
        ({"beta": 0.2}, r"loss: .CrossEntropyLoss.* there, .*cross_entropy.*0\.2"),
        ({"batch": 65}, "data: .*'batch_size': 64.* there, .*65"),
        ({"augment": True}, "data: .*'augment': False.* there, .*True"),
        ({"images": less}, "data: .*1437.* there, .*1436"),
        ({"images": replace(images, name="others")}, "data: .*'digits train'.* there, .*'others'"),
        ({"sparsity": 0.9}, r"sparsity: .*0\.5.* there, .*0\.9"),
        ({"held_out": 100}, "validation: .*360.* there, .*100"),
    ):
        with pytest.raises(ValueError, match=rf"run\.pt is of another run \({said}"):
            train(**change)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer fails half-way through its third file, as on a full disk."""
    path, files = tmp_path / "run.pt", count(1)

    class Full:
        def __init__(self, file: Any, number: int) -> None:
            self.file, self.number = file, number

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: memoryview) -> int:
            if self.number < 3:
                return self.file.write(content)
            self.file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files, "open", lambda *name: Full(open(*name), next(files)), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as error:
        run(path)
    assert "the one before it is untouched" in error.value.__notes__[0]
    monkeypatch.undo()
    assert load_checkpoint(path)["batch"] == 6 and not list(tmp_path.glob(".*.part"))
    assert_equal(run(path), run(None))


def test_a_checkpoint_holds_tensors_and_plain_types_only(tmp_path: Path) -> None:
    run(tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert {
        "model",
        "optimizer",
        "schedule",
        "sparsity",
        "penalty Noise",
        "random",
        "history",
        "configuration",
    } <= state.keys()
    assert (state["epoch"], state["batch"]) == (3, 0)
