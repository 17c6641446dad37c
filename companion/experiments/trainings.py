"""Experiments that train: one network, or a lottery ticket's many levels."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from companion import data, models, training
from companion._files import write_aside
from companion._ranks import buffers_of_rank_zero
from companion.experiments import controls, quantities
from companion.experiments.plan import Outcome, Workplace, completed
from companion.experiments.records import Run, packed
from companion.features import batches
from companion.pruning import (
    SET,
    GraNet,
    LotteryTicket,
    MagnitudePruning,
    Masks,
    RandomPruning,
    RigL,
    RigLITOP,
    cost,
    prune_filters,
)
from companion.regularizers import FeaturePenalty


def _shrink(images: data.Images, settings: Mapping[str, Any]) -> data.Images:
    """The images at the tier's resolution: blocks of `pool` × `pool` pixels averaged."""
    pool = settings.get("pool", 1)
    if pool == 1:
        return images
    small = F.avg_pool2d(images.images.float(), pool).round().to(torch.uint8)
    return dataclasses.replace(images, images=small)


def score(accuracy: float, examples: float, loss: float) -> dict[str, Any]:
    """An evaluation as a record keeps it.

    >>> score(accuracy=0.9, examples=10, loss=0.5)
    {'correct': 9, 'examples': 10, 'loss': 0.5}
    """
    return {"correct": round(accuracy * examples), "examples": int(examples), "loss": quantities.rounded(loss, 6)}


def scored(model: nn.Module, loader: Loader) -> dict[str, Any]:
    """`score` of a model, with one bit an example: which are right. Under several ranks, without: each has its part."""
    right: list[Tensor] = []
    found = score(**training.evaluate(model, loader, right=right))
    return found if training.world_size() > 1 else found | {"right": packed(torch.cat(right))}


SCHEDULES: Mapping[str, Callable[..., training.Schedule]] = MappingProxyType(
    {"multistep": training.multistep, "cosine": training.cosine, "one_cycle": training.one_cycle}
)


PENALTIES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {kind.__name__: kind for kind in controls.PENALTIES.values()}
)
PRUNING: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {kind.__name__: kind for kind in (RandomPruning, MagnitudePruning, SET, RigL, RigLITOP, GraNet)}
)


Loader: TypeAlias = "data.DeviceLoader | data.ImageNetLoader"


class Task(NamedTuple):
    """The images of a run: to train on, to follow the training with (named `split`, so many `examples`), to test on.

    So many batches (`accumulate`) of the training images make one step.
    """

    loader: Loader
    followed: Loader
    split: str
    examples: int
    tested: Loader
    classes: int
    accumulate: int = 1

    @classmethod
    def of(cls, run: Run, place: Workplace) -> Task:
        """The images that the run's settings name.

        `validation` training images are held out. With 0 of them, as in the CKA-SR authors' script for CIFAR-100, every
        epoch is followed on the test set: for reporting only, the result is the last epoch's.
        """
        s = run.settings
        full, test = (_shrink(data.load(s["dataset"], part, place.data), s) for part in ("train", "test"))
        split, kept, held_out = "test", full, test
        if s["validation"]:
            # The split has a seed of its own: every run of an experiment holds out the same images.
            split, (kept, held_out) = "validation", full.split(s["validation"], seed=0)
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
        followed, tested = (data.DeviceLoader(part, 1000, device=place.device) for part in (held_out, test))
        return cls(loader, followed, split, len(held_out), tested, len(full.classes))

    def network(self, run: Run, place: Workplace) -> nn.Module:
        """The untrained network; its initial weights are part of the run's seed."""
        s = run.settings
        training.seed_everything(run.seed)
        return getattr(models, s["model"])(classes=self.classes, **s.get("model_options", {})).to(place.device)

    def pruning(self, run: Run, model: nn.Module) -> Callable[[Optimizer], Masks] | None:
        """The masks that the run's settings name, once there is an optimizer; None where they name none."""
        chosen, options = run.settings.get("pruning"), {"sparsity": run.sparsity, "seed": run.seed}
        if chosen is None:
            return None
        if "steps" in inspect.signature(PRUNING.get(chosen["kind"], dict)).parameters:
            options["steps"] = run.settings["epochs"] * math.ceil(len(self.loader) / self.accumulate)
        return lambda optimizer: _made(PRUNING, chosen, model, optimizer, **options)

    def fit(
        self,
        run: Run,
        place: Workplace,
        model: nn.Module,
        pruning: Callable[[Optimizer], Masks] | None = None,
        checkpoint: str = "",
    ) -> list[dict[str, Any]]:
        """Train `model` under the run's penalties, and masks made for its optimizer; the curve, an entry an epoch."""
        s = completed(run.settings)
        how = place.computing()
        optimizer = training.sgd(
            model, **{name: s[name] for name in ("lr", "momentum", "nesterov", "weight_decay", "decay_norm_and_bias")}
        )
        options = dict(s["schedule_options"])
        milestones = options.pop("milestones", [])
        penalties = [_made(PENALTIES, chosen, model, **_seed(chosen, run)) for chosen in s.get("penalties", [])]
        probe = next(iter(self.followed))

        def on_epoch(entry: dict[str, Any]) -> None:
            if penalties:
                named = {p.name: p for p in penalties}
                entry |= quantities.gradient_cosines(model, probe[0][:128], probe[1][:128], named)

        history = training.fit(
            model,
            self.loader,
            optimizer,
            epochs=s["epochs"],
            schedule=SCHEDULES[s["schedule"]](*milestones, **options),
            validation=self.followed,
            penalty=penalties,
            sparsity=None if pruning is None else pruning(optimizer),
            loss=nn.CrossEntropyLoss(label_smoothing=s["label_smoothing"]),
            accumulate=self.accumulate,
            on_epoch=on_epoch,
            **{name: how[name] for name in ("precision", "channels_last", "compile")},
            checkpoint=place.work / run.path.with_suffix(f".pt{checkpoint}"),
            checkpoint_every=s.get("checkpoint_every"),
            seed=run.seed,
            progress=place.progress,
        )
        for penalty in penalties:
            if isinstance(penalty, FeaturePenalty):
                penalty.remove()  # measuring is no training pass
        named = ({key.replace("validation", self.split): value for key, value in entry.items()} for entry in history)
        return quantities.rounded(list(named), 6)

    def outcome(self, model: nn.Module, history: Sequence[Mapping[str, Any]]) -> Outcome:
        """The net of the last epoch on `test` and on what was held out, and which epoch was best on the images that
        the training was followed with."""
        accuracy, loss = f"{self.split}_accuracy", f"{self.split}_loss"
        last, best = history[-1], max(history, key=lambda epoch: epoch[accuracy])
        result = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "zeros": sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1),
            "test": scored(model, self.tested),
            self.split: score(last[accuracy], self.examples, last[loss]),
            f"best_{self.split}": {"epoch": best["epoch"], "accuracy": best[accuracy]},
        }
        return Outcome(result, history, self.measured(model))

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """`quantities.of_network` of the first test images."""
        return quantities.of_network(model, torch.cat(list(itertools.islice(batches(self.tested), 2))))

    def knowledge(self, model: nn.Module) -> dict[str, Any]:
        """`quantities.information` of the images that `outcome` measures with."""
        images, labels = (torch.cat(parts) for parts in zip(*itertools.islice(self.tested, 2), strict=True))
        return {"information": quantities.information(model, images, labels)}


def train(run: Run, place: Workplace, kind: type[Task] = Task) -> Outcome:
    """Train one network by the run's settings, on images of this kind, and measure it; nothing is selected on the test
    set.

    `penalties` and `pruning` among the settings fill the loop's two sockets: each names its class as `kind`, the rest
    are its arguments; a pruning gets the run's sparsity, its seed, and the number of optimizer steps where it asks for
    one. With penalties, the curve also holds the cosines between the gradients of the loss and of each penalty.
    """
    task = kind.of(run, place)
    model = task.network(run, place)
    return task.outcome(model, task.fit(run, place, model, task.pruning(run, model)))


def train_and_prune(run: Run, place: Workplace, kind: type[Task] = Task) -> Outcome:
    """Train a dense network, then prune copies of it: what did the penalties make removable?

    By the run's `prune` setting:

    * for each of its `sparsities` the smallest weights go, at once, over all layers: by each of its `criteria`,
      `"magnitude"` (the default) or `"scale_free"`, see `scale_free`;
    * for each of its `macs` (shares of the dense net's) whole filters go, by the `norm` of `pruning.filter_norms`
      relative to the mean of their layer;
    * with `depth`, whole residual branches go, see `blocks_removed`.

    Batch norm's statistics are estimated anew on `batches` training batches. Networks with fewer filters are then
    fine-tuned, without penalties, for `epochs` (0: not at all) from the learning rate `lr` on.

    The result holds, besides that of `train`, `weights`, `filters` and `blocks`: one entry for each of those levels.
    Where weights are out to a sparsity among `images`, it also says which test images are right. The measures hold
    `Task.knowledge`, too.
    """
    task = kind.of(run, place)
    model = task.network(run, place)
    outcome = task.outcome(model, task.fit(run, place, model))
    after = _Afterwards(task, run, place)
    parts = {"weights": weights_removed, "filters": filters_removed, "blocks": blocks_removed}
    found = {name: quantities.rounded(remove(model, after), 6) for name, remove in parts.items()}
    found = {name: entries for name, entries in found.items() if entries or name != "blocks"}
    return outcome._replace(result={**outcome.result, **found}, measures={**outcome.measures, **task.knowledge(model)})


class _Afterwards(NamedTuple):
    """What is done with every pruned network of a run: batch norm refreshed, fine-tuned, scored."""

    task: Task
    run: Run
    place: Workplace

    @property
    def chosen(self) -> Mapping[str, Any]:
        return self.run.settings["prune"]

    def refreshed(self, network: nn.Module, number: int | None = None) -> nn.Module:
        """Batch norm's statistics anew, on so many training batches."""
        loader = self.task.loader
        loader.epoch = loader.start = 0  # the same batches, whether the training was interrupted or not
        update_bn(itertools.islice(loader, number or self.chosen["batches"]), network, self.place.device)
        buffers_of_rank_zero(network)
        return network

    def scores(self, network: nn.Module, images: bool = False) -> dict[str, Any]:
        """On the test images, with a bit for each where `images`, and on those held out."""
        test = scored(network, self.task.tested) if images else score(**training.evaluate(network, self.task.tested))
        return {"test": test, self.task.split: score(**training.evaluate(network, self.task.followed))}

    def tuned(self, network: nn.Module, name: str) -> nn.Module:
        """The network after a short training without penalties; `name` is that of its checkpoint."""
        recipe = {"epochs": self.chosen["epochs"], "lr": self.chosen["lr"], "penalties": []}
        recipe |= {"schedule": "cosine", "schedule_options": {"warmup": 0, "floor": 0}}  # what stays is trained already
        run = dataclasses.replace(self.run, settings={**completed(self.run.settings), **recipe})
        self.task.fit(run, self.place, network, checkpoint=f".{name}")
        return network


def weights_removed(model: nn.Module, after: _Afterwards) -> list[dict[str, Any]]:
    """Copies of `model` without their smallest weights, level by level: see `train_and_prune`."""
    chosen, entries = after.chosen, []
    for criterion in chosen.get("criteria", ["magnitude"]):
        factors = scale_free(model, next(iter(after.task.followed))[0]) if criterion == "scale_free" else {}
        for sparsity in chosen["sparsities"]:
            pruned = copy.deepcopy(model)
            masks = Masks(pruned, None)
            factor_of = {id(weight): factors.get(name, 1.0) for name, weight in masks.weights.items()}

            def size(weight: Tensor, factor_of: Mapping[int, Tensor | float] = factor_of) -> Tensor:
                return weight.abs() * factor_of[id(weight)]

            masks.prune(sparsity, "global", size)
            scores = after.scores(after.refreshed(pruned), sparsity in chosen.get("images", []))
            entries.append({"criterion": criterion, "sparsity": sparsity, "pruned": scores})
    return entries


def scale_free(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """layer → σ(x_j)/σ(y_i) for each of its weights w_ij; times abs(w_ij) it is the share of the output's deviation
    that the weight carries.

    It does not change when a filter before a batch norm is scaled, nor when a channel is scaled and the weights that
    read it are scaled back: two changes that leave the network the same and reorder raw magnitudes.

    >>> layer = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> share = layer[0].weight.abs() * scale_free(layer, torch.randn(100, 1))["0"]
    >>> bool((share - 1).abs() < 1e-6)
    True
    """
    factors = {}
    for name, (entering, leaving) in quantities.deviations(model, images).items():
        weight = model.get_submodule(name).weight
        rest = [1] * (weight.ndim - 2)  # type: ignore[operator]
        factors[name] = entering.view(1, -1, *rest) / leaving.clamp(min=1e-12).view(-1, 1, *rest)
    return factors


def filters_removed(model: nn.Module, after: _Afterwards) -> list[dict[str, Any]]:
    """Smaller networks without the filters of smallest norm, fine-tuned: see `train_and_prune`."""
    chosen, entries = after.chosen, []
    example = next(iter(after.task.followed))[0][:64]
    for share in chosen["macs"]:
        smaller, report = prune_filters(
            model, example, norm=chosen["norm"], relative="mean", macs=share, repeats=0, empty="keep", floor=0
        )
        entry = {
            "macs": report.macs,
            "parameters": report.parameters,
            "left": report.table()["left"].to_dict(),
            "pruned": after.scores(after.refreshed(smaller)),
        }
        if chosen["epochs"]:
            entry["fine_tuned"] = after.scores(after.tuned(smaller, f"macs{share:g}"))
        entries.append(entry)
    return entries


def without_branches(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of a network whose named residual blocks are their shortcuts alone, with the ReLU behind.

    It computes what the network computes with γ = β = 0 in the last batch norm of these blocks.

    >>> model = models.digits_net().eval()
    >>> images = torch.randn(5, 1, 8, 8)
    >>> shorter = without_branches(model, ["layer1.1"])
    >>> _ = nn.init.zeros_(model.layer1[1].bn2.weight)  # its shift is 0 from the start
    >>> torch.equal(shorter(images), model(images))
    True
    """
    shorter = copy.deepcopy(model)
    for name in names:
        block = shorter.get_submodule(name)
        if not isinstance(block, models.BasicBlock):
            raise ValueError(
                f"{name} is a {type(block).__name__}; a residual block (BasicBlock) has a branch to remove"
            )
        parent, _, last = name.rpartition(".")
        setattr(
            shorter.get_submodule(parent), last, nn.Sequential(OrderedDict(shortcut=block.shortcut, relu=block.relu2))
        )
    return shorter


def blocks_removed(model: nn.Module, after: _Afterwards) -> dict[str, Any]:
    """Copies of `model` without whole residual branches: each block singly, and in a greedy order.

    By `prune["depth"]`: `greedy`, how many blocks go one after the other, each time the one whose loss costs least on
    the first `examples` held-out images with batch norm refreshed on `batches` batches; `fine_tune`, after how many of
    them a copy is fine-tuned.

    Returns:
        `single`: for each block the scores without it, `raw` and with batch norm `refreshed`; `greedy`: for each number
        of blocks which are gone, the multiply-adds left, and the scores `pruned` and, where asked for, `fine_tuned`.
        Empty where the settings ask for nothing.
    """
    if "depth" not in after.chosen:
        return {}
    chosen = after.chosen["depth"]
    example = next(iter(after.task.followed))[0][:1]
    names = [name for name, module in model.named_modules() if isinstance(module, models.BasicBlock)]
    judged = list(itertools.islice(after.task.followed, -(-chosen["examples"] // 1000)))

    def cheap(gone: Sequence[str]) -> float:
        return training.evaluate(after.refreshed(without_branches(model, gone), chosen["batches"]), judged)["accuracy"]

    single = []
    for name in names:
        shorter = without_branches(model, [name])
        raw = score(**training.evaluate(shorter, after.task.tested))
        refreshed = score(**training.evaluate(after.refreshed(shorter), after.task.tested))
        single.append({"block": name, "raw": raw, "refreshed": refreshed})
    gone: list[str] = []
    greedy = []
    for number in range(1, chosen["greedy"] + 1):
        gone = max(([*gone, name] for name in names if name not in gone), key=cheap)
        shorter = after.refreshed(without_branches(model, gone))
        entry: dict[str, Any] = {"gone": gone, "macs": cost(shorter, example).macs_dense}
        entry["pruned"] = after.scores(shorter, images=True)
        if number in chosen["fine_tune"]:
            entry["fine_tuned"] = after.scores(after.tuned(shorter, f"blocks{number}"), images=True)
        greedy.append(entry)
    return {"single": single, "greedy": greedy}


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
        state = {"ticket": ticket.state_dict(), "levels": levels}
        write_aside(progress, lambda file: torch.save(state, file))
        history[:] = task.fit(run, place, model, masked, checkpoint=f".level{ticket.level}")
        kept = sum(int(mask.sum()) for mask in ticket.masks.values())
        held = sum(mask.numel() for mask in ticket.masks.values())
        levels.append({"sparsity": 1 - kept / held, "test": score(**training.evaluate(model, task.tested))})

    ticket = LotteryTicket(
        model,
        trained,
        cast(float, run.sparsity),
        levels=run.settings["levels"],
        rewind=run.settings["rewind"],
        seed=run.seed,
    )
    if progress.exists():
        saved = torch.load(progress, map_location=place.device, weights_only=True)
        ticket.load_state_dict(saved["ticket"])
        levels += saved["levels"]
    ticket.run()
    outcome = task.outcome(model, history)
    return outcome._replace(result={**outcome.result, "levels": quantities.rounded(levels, 6)})


def _seed(chosen: Mapping[str, Any], run: Run) -> dict[str, int]:
    """The run's seed, for what draws at random."""
    return {"seed": run.seed} if chosen["kind"].startswith("Placebo") else {}


def _made(kinds: Mapping[str, Callable[..., Any]], chosen: Mapping[str, Any], *args: Any, **options: Any) -> Any:
    """What the settings describe as `{"kind": NAME, argument: value, …}`."""
    arguments = {key: value for key, value in chosen.items() if key != "kind"}
    if chosen["kind"] not in kinds:
        raise ValueError(f"kind={chosen['kind']!r} is unknown; use one of {list(kinds)}")
    return kinds[chosen["kind"]](*args, **arguments, **options)
