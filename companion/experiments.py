"""Experiments: a registry of named experiments, the runner that turns one into records, and the command line.

    python -m companion.experiments list
    python -m companion.experiments run dense_cifar10 --tier laptop
    python -m companion.experiments status
    python -m companion.experiments table dense_cifar10 --tier laptop
    python -m companion.experiments verify

An experiment is methods × sparsities × seeds in up to three tiers: `smoke` (seconds, no download), `laptop` (minutes a
run on two cores) and `paper` (the papers' recipe, one GPU). Each cell is a `Run`; a finished run is a `Record` in
`book/results`. A sweep continues where it stopped: recorded runs are not repeated, a killed run resumes from its
checkpoint, and several runners on one folder share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock, Timeout
from torch import nn
from torch.optim import Optimizer

from companion import data, measures, models, records, training
from companion.features import batches
from companion.pruning import SET, GraNet, LotteryTicket, MagnitudePruning, Masks, RandomPruning, RigL, RigLITOP
from companion.records import Record, Records, Run
from companion.regularizers import L1, AugmentedCKASparsity, CKASparsity, GroupLasso, Orthogonality
from companion.similarity import cka_map

TIERS = ("smoke", "laptop", "paper")


@dataclass(frozen=True)
class Tier:
    """The runs of an experiment at one scale: methods × sparsities × seeds.

    Attributes:
        settings: what all runs share; JSON values.
        methods: name → what is particular to it, over `settings`.
    """

    settings: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    sparsities: Sequence[float | None] = (None,)
    seeds: Sequence[int] = (0,)


@dataclass(frozen=True)
class Workplace:
    """Where runs are made; nothing here changes their result beyond rounding.

    Attributes:
        device: where models and data live.
        data: data root, see `data.data_root`.
        work: folder of checkpoints and locks of runs in progress; survives interruption.
        progress: show progress bars.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    data: Path | None = None
    work: Path = field(
        default_factory=lambda: Path(os.environ.get("COMPANION_WORK", Path.home() / ".cache/companion/work"))
    )
    progress: bool = False


class Outcome(NamedTuple):
    """What a run found: see `Record`."""

    result: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]]
    measures: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A named experiment: the question it answers, the function that performs a run, and its tiers."""

    name: str
    question: str
    perform: Callable[[Run, Workplace], Outcome]
    tiers: Mapping[str, Tier]

    def runs(self, tier: str, seeds: Iterable[int] | None = None) -> list[Run]:
        """Every run of a tier, seed by seed, so that an interrupted sweep has whole seeds.

        Raises:
            ValueError: an unknown tier.
        """
        if tier not in self.tiers:
            raise ValueError(f"experiment {self.name} has no tier {tier!r}; it has {list(self.tiers)}")
        plan = self.tiers[tier]
        cells = itertools.product(plan.seeds if seeds is None else seeds, plan.sparsities, plan.methods.items())
        return [
            Run(self.name, tier, method, seed, sparsity, {**plan.settings, **particular})
            for seed, sparsity, (method, particular) in cells
        ]


# ------------------------------------------------------------------------------------------------------------- training
def _shrink(images: data.Images, settings: Mapping[str, Any]) -> data.Images:
    """The images at the tier's resolution: blocks of `pool` × `pool` pixels averaged."""
    pool = settings.get("pool", 1)
    if pool == 1:
        return images
    small = F.avg_pool2d(images.images.float(), pool).round().to(torch.uint8)
    return dataclasses.replace(images, images=small)


def _score(accuracy: float, examples: float, loss: float) -> dict[str, Any]:
    """An evaluation as a record keeps it."""
    return {"correct": round(accuracy * examples), "examples": int(examples), "loss": measures.rounded(loss, 6)}


SCHEDULES: Mapping[str, Callable[..., training.Schedule]] = MappingProxyType(
    {"multistep": training.multistep, "cosine": training.cosine, "one_cycle": training.one_cycle}
)


PENALTIES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {kind.__name__: kind for kind in (CKASparsity, AugmentedCKASparsity, L1, GroupLasso, Orthogonality)}
)
PRUNING: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {kind.__name__: kind for kind in (RandomPruning, MagnitudePruning, SET, RigL, RigLITOP, GraNet)}
)


class Task(NamedTuple):
    """The images of a run: to train on, held out (so many), and to test on."""

    loader: data.DeviceLoader
    validation: data.DeviceLoader
    held_out: int
    tested: data.DeviceLoader
    classes: int

    @classmethod
    def of(cls, run: Run, place: Workplace) -> Task:
        """The images that the run's settings name."""
        s = run.settings
        full, test = (_shrink(data.load(s["dataset"], split, place.data), s) for split in ("train", "test"))
        # The split has a seed of its own: every run of an experiment holds out the same images.
        kept, held_out = full.split(s["validation"], seed=0)
        loader = data.DeviceLoader(
            kept,
            s["batch_size"],
            shuffle=True,
            augment=s["dataset"] != "digits",
            padding=s.get("padding", 4),
            drop_last=True,
            seed=run.seed,
            device=place.device,
        )
        validation, tested = (data.DeviceLoader(part, 1000, device=place.device) for part in (held_out, test))
        return cls(loader, validation, len(held_out), tested, len(full.classes))

    def network(self, run: Run, place: Workplace) -> nn.Module:
        """The untrained network; its initial weights are part of the run's seed."""
        s = run.settings
        training.seed_everything(run.seed)
        return getattr(models, s["model"])(classes=self.classes, **s.get("model_options", {})).to(place.device)

    def fit(
        self,
        run: Run,
        place: Workplace,
        model: nn.Module,
        pruning: Callable[[Optimizer], Masks] | None = None,
        checkpoint: str = "",
    ) -> list[dict[str, Any]]:
        """Train `model` under the run's penalties, and masks made for its optimizer; the curve, an entry an epoch."""
        s = run.settings
        optimizer = training.sgd(model, lr=s["lr"], weight_decay=s["weight_decay"])
        penalties = [_made(PENALTIES, chosen, model) for chosen in s.get("penalties", [])]
        probe = next(iter(self.validation))

        def on_epoch(entry: dict[str, Any]) -> None:
            if penalties:
                named = {p.name: p for p in penalties}
                entry |= measures.gradient_cosines(model, probe[0][:128], probe[1][:128], named)

        history = training.fit(
            model,
            self.loader,
            optimizer,
            epochs=s["epochs"],
            schedule=SCHEDULES[s["schedule"]](*s.get("milestones", [])),
            validation=self.validation,
            penalty=penalties,
            sparsity=None if pruning is None else pruning(optimizer),
            on_epoch=on_epoch,
            precision=s.get("precision", "float32"),
            channels_last=s.get("channels_last", False),
            compile=s.get("compile", False),
            checkpoint=place.work / run.path.with_suffix(f".pt{checkpoint}"),
            seed=run.seed,
            progress=place.progress,
        )
        for penalty in penalties:
            if isinstance(penalty, CKASparsity):
                penalty.remove()  # measuring is no training pass
        return measures.rounded(list(history), 6)

    def outcome(self, model: nn.Module, history: Sequence[Mapping[str, Any]]) -> Outcome:
        """The net of the last epoch on `test`, and the epoch that was best on the held-out `validation` images."""
        last, best = history[-1], max(history, key=lambda epoch: epoch["validation_accuracy"])
        result = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "zeros": sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1),
            "test": _score(**training.evaluate(model, self.tested)),
            "validation": _score(last["validation_accuracy"], self.held_out, last["validation_loss"]),
            "best_validation": {"epoch": best["epoch"], "accuracy": best["validation_accuracy"]},
        }
        inputs = torch.cat(list(itertools.islice(batches(self.tested), 2)))
        return Outcome(result, history, measures.of_network(model, inputs))


def train(run: Run, place: Workplace) -> Outcome:
    """Train one network by the run's settings and measure it; nothing is selected on the test set.

    `penalties` and `pruning` among the settings fill the loop's two sockets: each names its class as `kind`, the rest
    are its arguments; a pruning gets the run's sparsity, its seed, and the number of optimizer steps where it asks for
    one. With penalties, the curve also holds the cosines between the gradients of the loss and of each penalty.
    """
    task = Task.of(run, place)
    model = task.network(run, place)

    def pruning(optimizer: Optimizer) -> Masks:
        chosen, options = run.settings["pruning"], {"sparsity": run.sparsity, "seed": run.seed}
        if "steps" in inspect.signature(PRUNING.get(chosen["kind"], dict)).parameters:
            options["steps"] = run.settings["epochs"] * len(task.loader)
        return _made(PRUNING, chosen, model, optimizer, **options)

    return task.outcome(model, task.fit(run, place, model, pruning if "pruning" in run.settings else None))


def lottery(run: Run, place: Workplace) -> Outcome:
    """Find a lottery ticket in `levels` prunings, each a training by the run's settings.

    The result is the last level's; `levels` in it holds every level's sparsity and test score, level 0 the dense net's.
    """
    task = Task.of(run, place)
    model = task.network(run, place)
    progress = place.work / run.path.with_suffix(".pt.ticket")
    levels: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []

    def trained(model: nn.Module, masked: Callable[[Optimizer], Masks]) -> None:
        torch.save({"ticket": ticket.state_dict(), "levels": levels}, progress)
        history[:] = task.fit(run, place, model, masked, checkpoint=f".level{ticket.level}")
        kept = sum(int(mask.sum()) for mask in ticket.masks.values())
        held = sum(mask.numel() for mask in ticket.masks.values())
        levels.append({"sparsity": 1 - kept / held, "test": _score(**training.evaluate(model, task.tested))})

    ticket = LotteryTicket(
        model,
        trained,
        cast(float, run.sparsity),
        levels=run.settings["levels"],
        rewind=run.settings["rewind"],
        seed=run.seed,
    )
    if progress.exists():
        saved = torch.load(progress, map_location=place.device)
        ticket.load_state_dict(saved["ticket"])
        levels += saved["levels"]
    ticket.run()
    outcome = task.outcome(model, history)
    return outcome._replace(result={**outcome.result, "levels": measures.rounded(levels, 6)})


def _made(kinds: Mapping[str, Callable[..., Any]], chosen: Mapping[str, Any], *args: Any, **options: Any) -> Any:
    """What the settings describe as `{"kind": NAME, argument: value, …}`."""
    arguments = {key: value for key, value in chosen.items() if key != "kind"}
    if chosen["kind"] not in kinds:
        raise ValueError(f"kind={chosen['kind']!r} is unknown; use one of {list(kinds)}")
    return kinds[chosen["kind"]](*args, **arguments, **options)


# ----------------------------------------------------------------------------------------------- maps of published nets
def published_cka(run: Run, place: Workplace) -> Outcome:
    """CKA maps, geometry and accuracy of a network with published (or untrained) weights on test images.

    The images are normalised by ImageNet's mean and deviation, as they were when the weights were trained.
    """
    s = run.settings
    images = data.load(s["dataset"], "test", place.data)
    if s["dataset"] != "digits":
        images = dataclasses.replace(images, mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD)
    images = images.subset(range(min(s["examples"], len(images))))
    loader = data.DeviceLoader(images, 256, device=place.device)

    def network(name: str, weights: str | None) -> nn.Module:
        training.seed_everything(run.seed)
        options = {"weights": weights, "root": place.data} if weights else {}
        return getattr(models, name)(**options).to(place.device).eval()

    model = network(s["model"], s["weights"])
    result = {"test": _score(**training.evaluate(model, loader))}
    if "other" in s:
        table = cka_map(model, loader, measures.block_outputs, other=network(s["other"], s["weights"]))
        return Outcome(result, [], {"cka": measures.matrix(table)})
    maps = {
        "cka": cka_map(model, loader, measures.block_outputs),
        "cka_biased": cka_map(model, loader, measures.block_outputs, unbiased=False),
        "cka_pooled": cka_map(model, loader, measures.block_outputs, reduce="average_pool", estimator="exact"),
        "cka_convs": cka_map(model, loader, measures.convolutions),
    }
    # The same number of images of every class, the first ones of the test set.
    chosen = (
        torch.cat([(images.labels == label).nonzero()[: s["geometry"], 0] for label in range(len(images.classes))])
        .sort()
        .values
    )
    inputs = next(iter(data.DeviceLoader(images.subset(chosen), len(chosen), device=place.device)))[0]
    geometry = measures.geometry(model, inputs) | {
        "images": chosen.tolist(),
        "labels": images.labels[chosen].tolist(),
        "classes": list(images.classes),
    }
    return Outcome(result, [], {name: measures.matrix(table) for name, table in maps.items()} | {"geometry": geometry})


# ----------------------------------------------------------------------------------------------------------- throughput
def throughput(run: Run, place: Workplace) -> Outcome:
    """Images per second of a training step (`steps` of them, after two that warm up), or of reading ImageNet's files.

    The result holds quartiles: a machine that does other things besides has a spread.
    """
    s = run.settings
    training.seed_everything(run.seed)
    size, batch = s["size"], s["batch_size"]
    step: Callable[[], Any]
    if s["model"] is None:
        folder = data.imagenet("val", place.data)
        reader = data.ImageNetLoader(folder, batch, train=True, size=size, workers=s["workers"], device=place.device)
        step = iter(reader).__next__
    else:
        network = getattr(models, s["model"], None) or getattr(torchvision.models, s["model"])
        options = {"channels_last": s["channels_last"], "precision": s["precision"], "compile": s["compile"]}
        channels = 1 if s["model"] == "digits_net" else 3
        x, y = (
            torch.randn(batch, channels, size, size, device=place.device),
            torch.arange(batch, device=place.device) % 10,
        )
        model = network().to(place.device)
        optimizer = training.sgd(model)

        def step() -> Any:
            return training.fit(model, [(x, y)], optimizer, epochs=1, progress=False, **options)

    rates = []
    for index in range(s["steps"] + 2):
        clock = time.perf_counter()
        step()
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        if index >= 2:
            rates.append(batch / (time.perf_counter() - clock))
    low, median, high = torch.tensor(rates).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    found = {"low": low, "median": median, "high": high, "steps": s["steps"]}
    return Outcome({"images_per_second": measures.rounded(found)}, [], {})


# ------------------------------------------------------------------------------------------------------------- registry
# The papers' CIFAR recipe (CKA-SR's released code), with 5,000 of the training images held out.
CIFAR = {
    "dataset": "cifar10",
    "validation": 5000,
    "model": "resnet20",
    "model_options": {"shortcut": "B"},
    "batch_size": 128,
    "epochs": 160,
    "schedule": "multistep",
    "milestones": [80, 120],
    "lr": 0.1,
    "weight_decay": 5e-4,
    "precision": "bfloat16",
    "channels_last": True,
    "compile": True,
}
# The same at half the resolution and a twentieth of the epochs: minutes on two cores, far above chance.
CIFAR_LAPTOP = CIFAR | {
    "pool": 2,
    "padding": 2,
    "epochs": 8,
    "schedule": "one_cycle",
    "milestones": [],
    "lr": 0.2,
    "compile": False,
}
DIGITS = {
    "dataset": "digits",
    "validation": 200,
    "model": "digits_net",
    "batch_size": 64,
    "epochs": 3,
    "schedule": "one_cycle",
    "lr": 0.1,
    "weight_decay": 5e-4,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    f"resnet{depth}": {"model": f"resnet{depth}", "weights": "akamaster"} for depth in (20, 32, 44, 56)
}
UNTRAINED: dict[str, dict[str, Any]] = {
    f"resnet{depth}-untrained": {"model": f"resnet{depth}", "weights": None} for depth in (20, 56)
}
PAIRS = {"resnet20-vs-resnet56": {"model": "resnet20", "other": "resnet56", "weights": "akamaster"}}

STEP = {"precision": "bfloat16", "channels_last": True, "compile": False}
READ = {"model": None, "workers": 2}

# Sparse training at the laptop's tier: many runs, so fewer epochs still.
SPARSE_LAPTOP = CIFAR_LAPTOP | {"epochs": 5}
RANDOM = {"pruning": {"kind": "RandomPruning", "density": "erk"}}
# Updates as often in a run as in the paper's: 1,000 steps of 160 epochs.
GRANET = {"pruning": {"kind": "GraNet", "every": 1000}}
GRANET_LAPTOP = {"pruning": {"kind": "GraNet", "every": 50}}
GRANET_DIGITS = {"pruning": {"kind": "GraNet", "every": 10}}


def _cka_sr(beta: float) -> dict[str, Any]:
    return {"penalties": [{"kind": "CKASparsity", "beta": beta, "examples": 8, "every": 5}]}


def _aug_cka_sr(beta: float) -> dict[str, Any]:
    return {"penalties": [{"kind": "AugmentedCKASparsity", "beta": beta}]}


def _with_penalties(host: str, cka_sr: float = 1e-4, aug_cka_sr: float = 0.1) -> dict[str, dict[str, Any]]:
    """A host method alone and with both penalties; default strengths: the released code's, and the appendix's."""
    return {host: {}, f"{host}+cka_sr": _cka_sr(cka_sr), f"{host}+aug_cka_sr": _aug_cka_sr(aug_cka_sr)}


# The same number for each; every range holds the published strength.
STRENGTHS: dict[str, dict[str, Any]] = {
    **{f"random+cka_sr_{beta:g}": _cka_sr(beta) for beta in (1e-4, 1e-3, 1e-2, 1e-1)},
    **{f"random+aug_cka_sr_{beta:g}": _aug_cka_sr(beta) for beta in (0.03, 0.1, 0.3, 1.0)},
}
SWEEP: dict[str, dict[str, Any]] = {"random": {}} | {
    name: method for name, method in STRENGTHS.items() if "aug" not in name
}

_EXPERIMENTS = (
    Experiment(
        "published_cka",
        "How similar are the layers of really trained CIFAR-10 ResNets to each other?",
        published_cka,
        {
            "smoke": Tier(
                {"dataset": "digits", "examples": 200, "geometry": 10, "weights": None},
                {"digits_net-untrained": {"model": "digits_net"}},
            ),
            "paper": Tier({"dataset": "cifar10", "examples": 10_000, "geometry": 15}, PUBLISHED | UNTRAINED | PAIRS),
        },
    ),
    Experiment(
        "dense_cifar10",
        "How accurate is a dense ResNet-20, and what do its features and weights look like?",
        train,
        {
            "smoke": Tier(DIGITS, {"dense": {}}, seeds=(0, 1)),
            "laptop": Tier(CIFAR_LAPTOP, {"dense": {}}, seeds=(0, 1, 2)),
            "paper": Tier(CIFAR, {"dense": {}}, seeds=(0, 1, 2)),
        },
    ),
    Experiment(
        "dense_cifar10_full_width",
        "How far does the full-width, full-resolution net come in 16 epochs on two cores?",
        train,
        {
            "smoke": Tier(DIGITS, {"dense": {}}),
            "laptop": Tier(CIFAR_LAPTOP | {"pool": 1, "padding": 4, "epochs": 16, "compile": True}, {"dense": {}}),
        },
    ),
    Experiment(
        "random_masks_strengths",
        "Which strength of each penalty is best on held-out images, for a seed that is reported nowhere else?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, STRENGTHS, sparsities=(0.9,), seeds=(100,)),
            "laptop": Tier(SPARSE_LAPTOP | RANDOM, STRENGTHS, sparsities=(0.95,), seeds=(100,)),
        },
    ),
    Experiment(
        "random_masks",
        "Does CKA-SR make training under fixed random masks more accurate?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, _with_penalties("random"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | RANDOM, _with_penalties("random"), sparsities=(0.9, 0.98), seeds=(0, 1, 2, 3, 4)
            ),
            "paper": Tier(
                CIFAR | RANDOM | {"dataset": "cifar100"},
                _with_penalties("random"),
                sparsities=(0.95, 0.98, 0.7, 0.85, 0.9, 0.998),
                seeds=tuple(range(10)),
            ),
        },
    ),
    Experiment(
        "random_masks_beta",
        "How does the strength of CKA-SR move the accuracy under fixed random masks?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM, SWEEP, sparsities=(0.9,)),
            "laptop": Tier(SPARSE_LAPTOP | RANDOM, SWEEP, sparsities=(0.95,), seeds=(0, 1)),
            "paper": Tier(
                CIFAR | RANDOM,
                {"random": {}}
                | {
                    f"random+cka_sr_{beta:g}": _cka_sr(beta)
                    for beta in (1e-5, 2e-5, 5e-5, 8e-5, 1e-4, 2e-4, 5e-4, 8e-4, 1e-3, 2e-3, 5e-3, 1e-2)
                },
                sparsities=(0.95,),
                seeds=(0, 1, 2, 3, 4),
            ),
        },
    ),
    Experiment(
        "granet",
        "Does CKA-SR make gradual pruning with regrowth more accurate?",
        train,
        {
            "smoke": Tier(DIGITS | GRANET_DIGITS, _with_penalties("granet"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | GRANET_LAPTOP, _with_penalties("granet"), sparsities=(0.9, 0.98), seeds=(0, 1, 2)
            ),
            "paper": Tier(CIFAR | GRANET, _with_penalties("granet"), sparsities=(0.95,), seeds=(0, 1, 2, 3, 4)),
        },
    ),
    Experiment(
        "lottery",
        "Does CKA-SR find better lottery tickets?",
        lottery,
        {
            "smoke": Tier(DIGITS | {"levels": 2, "rewind": 0}, _with_penalties("lottery"), sparsities=(0.9,)),
            "laptop": Tier(
                SPARSE_LAPTOP | {"levels": 4, "rewind": 0, "epochs": 3},
                _with_penalties("lottery"),
                sparsities=(0.9,),
                seeds=(0, 1, 2),
            ),
            "paper": Tier(
                CIFAR | {"levels": 13, "rewind": 0}, _with_penalties("lottery"), sparsities=(0.95,), seeds=(0, 1, 2)
            ),
        },
    ),
    Experiment(
        "throughput",
        "How many images does a training step, or the reading of files, get through in a second?",
        throughput,
        {
            "smoke": Tier(STEP | {"size": 8, "batch_size": 16, "steps": 3}, {"digits_net": {"model": "digits_net"}}),
            "laptop": Tier(
                STEP | {"precision": "float32", "size": 224, "batch_size": 32, "steps": 8},
                {"resnet18": {"model": "resnet18"}, "read": READ},
            ),
            "paper": Tier(
                STEP | {"size": 224, "batch_size": 192, "steps": 50},
                {
                    "resnet18": {"model": "resnet18"},
                    "resnet50": {"model": "resnet50"},
                    "read": READ | {"workers": 12, "steps": 3},
                },
            ),
        },
    ),
)
EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType({e.name: e for e in _EXPERIMENTS})


def find(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment {name!r}; there are {list(EXPERIMENTS)}")
    return EXPERIMENTS[name]


# --------------------------------------------------------------------------------------------------------------- runner
def recorded(run: Run, root: Path) -> Record | None:
    """The record of exactly this run, settings included; None where it has not run, or ran with other settings."""
    path = root / run.path
    if not path.exists():
        return None
    record = records.load(path)
    return record if _same(record.run, run) else None


def _same(a: Run, b: Run) -> bool:
    return json.dumps(dataclasses.asdict(a), sort_keys=True) == json.dumps(dataclasses.asdict(b), sort_keys=True)


def perform(run: Run, place: Workplace, root: Path) -> Record | None:
    """The run's record: read where there is one, else made and written. None when another runner is at it."""
    if (there := recorded(run, root)) is not None:
        return there
    checkpoint = place.work / run.path.with_suffix(".pt")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(checkpoint.with_suffix(".run"), timeout=0):
            if (there := recorded(run, root)) is not None:  # written while we waited for the lock
                return there
            started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
            outcome = find(run.experiment).perform(run, place)
            seen = records.provenance(place.device, started, time.perf_counter() - clock)
            record = Record(run, *outcome, provenance=seen)
            record.save(root)
            for leftover in checkpoint.parent.glob(f"{checkpoint.name}*"):
                leftover.unlink(missing_ok=True)
            return record
    except Timeout:
        return None


def load_or_run(
    name: str,
    tier: str = "laptop",
    *,
    mode: str = "replay",
    seeds: Iterable[int] | None = None,
    place: Workplace | None = None,
    root: str | Path | None = None,
) -> Records:
    """The records of an experiment: replayed from the book's results, or made here.

    Args:
        mode: `"replay"` reads what is recorded; runs without a record are in `.missing`. `"run"` makes every run anew
            in the work folder, where it continues if interrupted, and leaves the book's records alone.
        root: folder of results to read, default `records.results_root()`.

    Raises:
        ValueError: unknown experiment, tier or mode; `"replay"` where nothing is recorded.
    """
    runs = find(name).runs(tier, seeds)
    if mode == "replay":
        folder = records.results_root(root)
        there = [(run, recorded(run, folder)) for run in runs]
        found = [record for _, record in there if record is not None]
        if not found:
            raise ValueError(
                f"nothing is recorded for {name} at tier {tier} under {folder}; "
                f"python -m companion.experiments run {name} --tier {tier} makes the records"
            )
        return Records(found, [run for run, record in there if record is None])
    if mode != "run":
        raise ValueError(f"mode={mode!r} is unknown; use 'replay' or 'run'")
    place = place or Workplace(progress=True)
    made = [perform(run, place, place.work / "results") for run in runs]
    return Records([record for record in made if record is not None])


def problems(root: Path) -> list[str]:
    """What is wrong with the records under `root`: against their schema, the registry, and themselves."""
    found = []
    for path in sorted(root.glob("*/*/*.json")):
        shown = path.relative_to(root)
        try:
            record = records.load(path)
        except ValueError as error:
            found.append(str(error))
            continue
        if record.run.path != shown:
            found.append(f"{shown}: holds the run {record.run}")
        if path.stat().st_size > records.LIMIT:
            found.append(f"{shown}: {path.stat().st_size} bytes; at most {records.LIMIT}")
        if record.run.experiment not in EXPERIMENTS or record.run.tier not in EXPERIMENTS[record.run.experiment].tiers:
            found.append(f"{shown}: the registry has no {record.run.experiment} at tier {record.run.tier}")
        elif not any(
            _same(record.run, run)
            for run in EXPERIMENTS[record.run.experiment].runs(record.run.tier, [record.run.seed])
        ):
            found.append(f"{shown}: its method, sparsity or settings are not the registry's")
        found += [f"{shown}: {problem}" for problem in records.problems(record)]
    return found


# --------------------------------------------------------------------------------------------------------- command line
def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write i/n with 1 ≤ i ≤ n, such as 2/8")
    return int(index), int(count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m companion.experiments", description="Run experiments and read their records."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments, their questions and tiers")
    run = commands.add_parser("run", help="make the records that are missing")
    run.add_argument("name", choices=EXPERIMENTS)
    run.add_argument("--tier", choices=TIERS, default="laptop")
    run.add_argument("--seeds", type=int, nargs="+", help="instead of the tier's")
    run.add_argument("--methods", nargs="+", help="only these of the tier's")
    run.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    run.add_argument("--jobs", type=int, default=1, help="processes that share the runs, on this device")
    run.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="i/n",
        help="only every n-th run, from the i-th: for a job array",
    )
    run.add_argument("--data", type=Path, default=None, help="data root (default: COMPANION_DATA)")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    commands.add_parser("status", help="what is recorded, of how many runs")
    table = commands.add_parser("table", help="means with 95 %% intervals over seeds")
    table.add_argument("name", choices=EXPERIMENTS)
    table.add_argument("--tier", choices=TIERS, default="laptop")
    commands.add_parser("verify", help="check every record against schema, registry and itself")
    for command in commands.choices.values():
        command.add_argument(
            "--results", type=Path, default=None, help="folder of results (default: the repository's book/results)"
        )
    return parser


def _run(arguments: argparse.Namespace, root: Path) -> int:
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: at least 1")
    if arguments.jobs > 1:
        # The same command n times: locks keep two workers off one run.
        threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
        flags = [argument for argument in sys.argv[1:] if not argument.startswith("--jobs")]
        if "--jobs" in sys.argv:
            at = sys.argv.index("--jobs")
            flags = [*sys.argv[1:at], *sys.argv[at + 2 :]]
        command = [sys.executable, "-m", "companion.experiments", *flags, "--quiet"]
        workers = [
            subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}) for _ in range(arguments.jobs)
        ]
        return max(worker.wait() for worker in workers)
    place = Workplace(data=arguments.data, progress=not arguments.quiet)
    if arguments.device:
        place = dataclasses.replace(place, device=torch.device(arguments.device))
    index, count = arguments.shard
    runs = find(arguments.name).runs(arguments.tier, arguments.seeds)
    if unknown := set(arguments.methods or []) - {run.method for run in runs}:
        raise ValueError(f"--methods {sorted(unknown)}: unknown; there are {sorted({run.method for run in runs})}")
    for run in [run for run in runs if not arguments.methods or run.method in arguments.methods][index - 1 :: count]:
        clock = time.perf_counter()
        known = recorded(run, root) is not None
        record = perform(run, place, root)
        outcome = (
            "another runner is at it"
            if record is None
            else "recorded"
            if known
            else f"done in {time.perf_counter() - clock:.0f} s"
        )
        accuracy = (
            f", test accuracy {100 * record.accuracy():.2f} %" if record is not None and "test" in record.result else ""
        )
        print(f"{run}: {outcome}{accuracy}", flush=True)
    return 0


def _each_tier() -> Iterator[tuple[Experiment, str]]:
    return ((experiment, tier) for experiment in EXPERIMENTS.values() for tier in experiment.tiers)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    root = records.results_root(arguments.results)
    try:
        if arguments.command == "list":
            for experiment in EXPERIMENTS.values():
                counts = ", ".join(f"{tier} {len(experiment.runs(tier))} runs" for tier in experiment.tiers)
                print(f"{experiment.name}: {experiment.question} ({counts})")
        elif arguments.command == "run":
            return _run(arguments, root)
        elif arguments.command == "status":
            for experiment, tier in _each_tier():
                runs = experiment.runs(tier)
                done = sum(recorded(run, root) is not None for run in runs)
                print(f"{experiment.name} {tier}: {done} of {len(runs)} recorded" + ("" if done else ", not run"))
        elif arguments.command == "table":
            made = load_or_run(arguments.name, arguments.tier, root=root)
            scored = Records([record for record in made if "test" in record.result], made.missing)
            print(
                scored.table().to_string(index=False)
                if len(scored)
                else "\n".join(f"{r.run}: {r.result}" for r in made)
            )
        elif arguments.command == "verify":
            found = problems(root)
            print("\n".join(found) if found else f"{len(list(root.glob('*/*/*.json')))} records, all in order")
            return 1 if found else 0
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
