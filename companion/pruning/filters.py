"""Filters: which are small, how many may go, and the network without them.

>>> import torch
>>> from companion.models import digits_net
>>> model, x = digits_net(width=8, blocks=2), torch.randn(2, 1, 8, 8)
>>> smaller, report = prune_filters(model, x, norm="l2", macs=0.5)
>>> smaller(x).shape, report.macs <= 0.5
(torch.Size([2, 10]), True)

`filters_coupling` says which channels hang together, `filters_removal` takes them out without changing anything else.
Chapter *From small norms to a smaller network* explains all three.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from companion.features import Layers, evaluating, find_layers, unwrap
from companion.pruning.cost import Cost, Latency, cost, latencies
from companion.pruning.filters_coupling import Coupling, Layer, couple
from companion.pruning.filters_removal import as_input, constants, double, reading, remove, zero_filters

Norm: TypeAlias = "Literal['l1', 'l2', 'bn', 'folded', 'activation'] | Callable[[Tensor], Tensor]"


# --------------------------------------------------------------------------------------------------------------- norms
@torch.no_grad()
def filter_norms(model: nn.Module, norm: Norm = "l2", coupling: Coupling | None = None) -> dict[str, Tensor]:
    """layer → the norm of each of its filters w_k: Float[Tensor, "filters"].

    Before a batch norm a filter's own norm has no meaning: w_k and 10·w_k give the same network. "folded" is the norm
    of the filter that does the work of both, w_k·γ_k/√(σ_k² + ε). What each norm changes with, where a batch norm
    follows and its statistics are measured anew:

    - the filter times a: "l1" and "l2" times a; "bn" and "folded" stay;
    - the layer's input times c, which leaves the output as it was: "folded" times 1/c; the others stay;
    - γ and β times b, which the weights of the next layer can undo: "bn" and "folded" times b; the others stay.

    The filters of a layer share its input, so c does not change their order, nor a norm relative to the layer's mean.
    Between layers or networks with inputs of different size the folded norm compares the inputs: there take "bn", or
    the folded norm times the deviation of the input.

    Args:
        norm: "l1" `Σ|w|`, "l2" √Σw², "bn" `|γ|` of the batch norm that follows (network slimming, Liu et al. 2017),
            "folded" `‖w‖₂·|γ|/√(σ² + ε)` (‖w‖₂ where no batch norm follows), or a function of a weight (filters, …) to
            one number a filter.
        coupling: of the model, which tells the batch norm that follows a layer; needed for "bn" and "folded".

    Raises:
        ValueError: an unknown norm, "bn" where no batch norm follows any layer, no coupling where it is needed.

    >>> layer = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> layer[0].weight.data = torch.tensor([3.0, -4.0]).view(2, 1, 1, 1)
    >>> filter_norms(layer, "l1")
    {'0': tensor([3., 4.])}
    """
    if callable(norm):
        measure = norm
    elif norm in ("l1", "l2", "bn", "folded"):
        measure = functools.partial(_lengths, order=1 if norm == "l1" else 2)
    else:
        raise ValueError(f"norm={norm!r}; allowed: 'l1', 'l2', 'bn', 'folded', 'activation' (of channels), a function")
    if norm in ("bn", "folded") and coupling is None:
        raise ValueError(f"norm={norm!r} needs coupling=couple(model, example): which batch norm follows which layer")
    norms = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, Layer):
            continue
        size = measure(layer.weight.detach())
        follower = coupling.norm_of.get(name) if coupling is not None else None
        if norm in ("bn", "folded") and follower is not None:
            batch_norm: Any = model.get_submodule(follower)
            scale = batch_norm.weight.abs() if batch_norm.affine else torch.ones_like(size)
            size = scale if norm == "bn" else size * scale / (batch_norm.running_var + batch_norm.eps).sqrt()
        elif norm == "bn":
            continue
        norms[name] = size
    if not norms:
        raise ValueError('norm="bn": no layer is followed by a batch norm alone; use "l1" or "l2"')
    return norms


def _lengths(weight: Tensor, order: int) -> Tensor:
    return weight.flatten(1).norm(order, dim=1)


@torch.no_grad()
def channel_norms(
    model: nn.Module, coupling: Coupling, norm: Norm = "l2", example: Tensor | None = None
) -> Float[Tensor, " channels"]:
    """One number a channel, in float64: the largest norm of the filters that write it, so that below a threshold means
    that *all* of them are. Infinite where it has none.

    "activation" is the standard deviation, over the examples and positions of `example`, of what is read from the
    channel (the largest, over its readers). It is 0 for a constant, which costs nothing; the mean activation is not.
    Like "bn" it sees neither the scale of the filter before a batch norm nor that of its input.

    Raises:
        ValueError: see `filter_norms`; "activation" without an example.

    >>> from companion.models import digits_net
    >>> model = digits_net(width=8)
    >>> coupling = couple(model, torch.randn(2, 1, 8, 8))
    >>> norms = channel_norms(model, coupling, "folded")
    >>> len(norms) == len(coupling.free), bool((norms >= 0).all())
    (True, True)
    """
    if norm == "activation":
        if example is None:
            raise ValueError('norm="activation" needs example=: a batch of inputs')
        with reading(model, coupling) as read:
            model(as_input(model, example))
        sizes, places = {name: x.double().std(dim=1) for name, x in read.items()}, coupling.inputs
    else:
        sizes, places = filter_norms(model, norm, coupling), coupling.filters
    largest = torch.full(coupling.free.shape, -math.inf, dtype=torch.float64)
    for name, size in sizes.items():
        known = places[name] >= 0
        largest.scatter_reduce_(0, places[name][known], size.double().cpu()[known], "amax")
    return largest.where(largest.isfinite(), math.inf)


def widest_gap(norms: Float[Tensor, " channels"]) -> float:
    """The threshold in the widest gap, on a logarithmic scale, between neighbours in the sorted norms: their geometric
    mean. Norms of 0 are farthest from all others: with some of them the threshold is 0.

    >>> round(widest_gap(torch.tensor([1.0, 0.01, 1.2, 0.02])), 3)  # √(0.02 · 1.0)
    0.141

    Raises:
        ValueError: fewer than two different norms.
    """
    ordered = norms.unique().double()
    if len(ordered) < 2:
        raise ValueError(f"{len(ordered)} different norms: there is no gap; use another threshold")
    if ordered[0] == 0:
        return 0.0
    widest = ordered.log().diff().argmax()
    return float((ordered[widest] * ordered[widest + 1]).sqrt())


# -------------------------------------------------------------------------------------------------------------- report
@dataclass(frozen=True)
class FilterReport:
    """What went, from where, and what it saves.

    Attributes:
        zeroed: layer → the filters that were taken for zero. The smaller network computes what the given one does with
            these filters zeroed (`zero_filters`).
        constant: layer → those of them that stay, as constant channels.
        kept: layer → filters that were to go and stay because their layer would have been left with none.
        branches: last layers of the residual branches that went as a whole.
        threshold: the norm up to which filters were to go; −∞ where none was.
        filters: layer → its filters before and after.
        before, after: `companion.pruning.Cost` of one example.
        latency_before, latency_after: of the given example batch, measured in turns; None where not asked for.
        error: largest deviation of the outputs from those of the network with zeroed filters, both in float64, as a
            share of the largest output.
    """

    zeroed: dict[str, list[int]]
    constant: dict[str, list[int]]
    kept: dict[str, list[int]]
    branches: list[str]
    threshold: float
    filters: dict[str, tuple[int, int]]
    before: Cost
    after: Cost
    latency_before: Latency | None
    latency_after: Latency | None
    error: float

    @property
    def parameters(self) -> float:
        """Parameters after, as a share of those before."""
        return self.after.parameters_dense / self.before.parameters_dense

    @property
    def macs(self) -> float:
        """Multiply-adds after, as a share of those before."""
        return self.after.macs_dense / self.before.macs_dense

    @property
    def speedup(self) -> float | None:
        """Median latency before over that after; None where not measured."""
        if self.latency_before is None or self.latency_after is None:
            return None
        return self.latency_before.median / self.latency_after.median

    def table(self) -> pd.DataFrame:
        """One row a layer: `filters` before, `left`, `removed`, and how many of those left are `constant`."""
        rows = [
            {
                "layer": name,
                "filters": before,
                "left": after,
                "removed": before - after,
                "constant": len(self.constant.get(name, [])),
            }
            for name, (before, after) in self.filters.items()
        ]
        return pd.DataFrame(rows).set_index("layer")

    def __repr__(self) -> str:
        gone = sum(before - after for before, after in self.filters.values())
        faster = "" if self.speedup is None else f", {self.speedup:.2f}× as fast"
        return (
            f"FilterReport({gone} of {sum(before for before, _ in self.filters.values())} filters removed; "
            f"{self.after.parameters_dense:,} of {self.before.parameters_dense:,} parameters, "
            f"{self.after.macs_dense:,} of {self.before.macs_dense:,} MACs{faster})"
        )


# ------------------------------------------------------------------------------------------------------------- pruning
def prune_filters(
    model: nn.Module,
    example: Tensor,
    *,
    norm: Norm = "folded",
    relative: Literal["mean", "rank"] | None = None,
    threshold: float | Literal["gap"] | None = None,
    parameters: float | int | None = None,
    macs: float | int | None = None,
    accuracy: float | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    layers: Layers | None = None,
    empty: Literal["keep", "identity", "refuse"] = "keep",
    repeats: int = 10,
) -> tuple[nn.Module, FilterReport]:
    """Take small filters out of a network, with everything that is coupled to them: a smaller module, and a report.

    The smaller network computes in eval mode exactly what `model` computes with these filters zeroed; that is checked,
    in float64, before it is returned. `model` is left as it was. In train mode batch norms use other statistics, and
    the constants that were merged follow the smaller network's own.

    Give exactly one of `threshold`, `parameters`, `macs`, `accuracy`. The last three take channels in the order of
    their norms, smallest first: as few as reach the target (as many as keep the accuracy), found by bisection.

    Args:
        example: a batch of inputs, as the network gets them; latency is measured on it.
        norm: see `filter_norms` and `channel_norms`. A channel that several filters write has the largest norm of them.
        relative: None compares the norms as they are, across layers: of "folded" ones that compares the sizes of the
            layers' inputs, too, see `filter_norms`; "mean" divides them by the mean of the layer's (more exactly: of
            the channels that the same layers write); "rank" takes their rank in it, from 0 to 1: every layer loses the
            same share.
        threshold: channels go whose norm is at most this; "gap" for the one of `widest_gap`.
        parameters, macs: what may be left: a share (float) or a number (int), as `companion.pruning.cost` counts.
        accuracy, evaluate: what `evaluate(smaller)` must still reach. Bisection takes it for falling as more goes.
        layers: only filters of these may go (see `companion.features.find_layers`); a channel needs all its writers.
        empty: what becomes of a layer that would lose all its filters: "keep" its largest; "refuse"; or "identity": if
            it lies in a residual branch the whole branch goes, and the block is the identity up to the constant that
            the branch emitted. So does a branch whose last layer's filters are all below the threshold, although its
            channels live on in the sum. A layer outside of such a branch keeps its largest.
        repeats: passes by which each latency is measured; 0 for none.

    Raises:
        ValueError: none or several targets; one that cannot be reached; a layer left with nothing where
            empty="refuse"; a network that cannot be traced (see `couple`), or not exactly pruned.

    >>> from companion.models import digits_net
    >>> model, x = digits_net(width=8, blocks=2), torch.randn(2, 1, 8, 8)
    >>> smaller, report = prune_filters(model, x, parameters=0.5, repeats=0)
    >>> report.parameters <= 0.5, report.error < 1e-8, smaller(x).shape
    (True, True, torch.Size([2, 10]))
    """
    targets = {"threshold": threshold, "parameters": parameters, "macs": macs, "accuracy": accuracy}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1 or (accuracy is None) != (evaluate is None):
        raise ValueError(
            f"given: {given or 'no target'}; give exactly one of threshold=, parameters=, macs=, accuracy= (with "
            "evaluate=, a function of a model)"
        )
    if empty not in ("keep", "identity", "refuse"):
        raise ValueError(f'empty={empty!r}; allowed: "keep", "identity", "refuse"')
    model = unwrap(model)
    example = as_input(model, example)
    coupling = couple(model, example)
    norms = _relative(channel_norms(model, coupling, norm, example), coupling, relative)
    candidates = _candidates(model, coupling, norms, layers)
    single = {} if relative or norm == "activation" else filter_norms(model, norm, coupling)
    removal = _Removal(model, example, coupling, norms, candidates, single, empty)
    with _refusing(model):
        wished, level = removal.wished(given, evaluate)
        gone, branches = removal.spare(wished, level)
        smaller, kept = removal(gone, branches)
        error = removal.error(gone, branches)
        after = cost(smaller, example[:1])
    timed = latencies({"before": model, "after": smaller}, example, repeats=repeats) if repeats else {}
    return smaller, FilterReport(
        zeroed=removal.zeroed(gone, branches),
        constant=_by_layer(coupling, kept),
        kept=_by_layer(coupling, wished & ~gone),
        branches=branches,
        threshold=level,
        filters=removal.numbers(~gone | kept, branches),
        before=cost(model, example[:1]),
        after=after,
        latency_before=timed.get("before"),
        latency_after=timed.get("after"),
        error=error,
    )


class FineTuning(NamedTuple):
    """Accuracy of a pruned network before and after it is trained on, and what the training returned."""

    before: float
    after: float
    history: Any


def finetune(model: nn.Module, train: Callable[[nn.Module], Any], evaluate: Callable[[nn.Module], float]) -> FineTuning:
    """Train a pruned network on, in place. The training is given, for example::

        def train(model):
            return fit(model, data, sgd(model, lr=0.01), epochs=5, schedule=cosine())

    It must build its optimizer from the model that it gets: the old one holds weights that are gone.

    >>> accuracy = iter([0.6, 0.8])
    >>> finetune(nn.Linear(2, 2), train=lambda model: "history", evaluate=lambda model: next(accuracy))
    FineTuning(before=0.6, after=0.8, history='history')
    """
    before = evaluate(model)
    history = train(model)
    return FineTuning(before, evaluate(model), history)


class _Removal:
    """Choosing channels of one network, and the network without them."""

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        coupling: Coupling,
        norms: Float[Tensor, " channels"],
        candidates: Bool[Tensor, " channels"],
        filter_norms: Mapping[str, Float[Tensor, " filters"]],
        empty: str,
    ) -> None:
        self.model, self.example, self.coupling, self.empty = model, example, coupling, empty
        self.norms, self.candidates = norms, candidates
        self.order = norms.where(candidates, math.inf).argsort(stable=True)[: int(candidates.sum())]
        self.constants = constants(model, coupling, example)
        # Of single filters, to know a branch that is weak as a whole; relative norms are of channels.
        self.filter_norms = {n: norms for n, norms in filter_norms.items() if candidates[coupling.filters[n]].any()}

    def __call__(
        self, gone: Bool[Tensor, " channels"], branches: Sequence[str]
    ) -> tuple[nn.Module, Bool[Tensor, " channels"]]:
        return remove(self.model, self.coupling, self.constants, gone, branches)

    def wished(
        self, given: dict[str, Any], evaluate: Callable[[nn.Module], float] | None
    ) -> tuple[Bool[Tensor, " channels"], float]:
        """The channels that the target asks for, before layers that would be empty are looked at, and the threshold."""
        [(target, value)] = given.items()
        if target == "threshold":
            level = widest_gap(self.norms[self.candidates]) if value == "gap" else float(value)
            return self.candidates & (self.norms <= level), level
        if target == "accuracy":
            return self.lowest(self._still_accurate(value, evaluate))
        return self.lowest(self._small_enough(target, value))

    def lowest(self, number: int) -> tuple[Bool[Tensor, " channels"], float]:
        """So many of the smallest channels, and the largest norm among them."""
        chosen = self.order[:number]
        level = float(self.norms[chosen[-1]]) if number else -math.inf
        return torch.zeros_like(self.candidates).index_fill_(0, chosen, True), level

    def spare(self, wished: Bool[Tensor, " channels"], level: float) -> tuple[Bool[Tensor, " channels"], list[str]]:
        """No layer loses all its filters: the largest stays, or the branch goes, or the pruning is refused."""
        gone, branches, inside = wished.clone(), list[str](), set[str]()
        for last, names in self.coupling.branches.items() if self.empty == "identity" else ():
            layers = [name for name in names if name in self.coupling.filters]
            weak = bool((self.filter_norms.get(last, torch.tensor(math.inf)) <= level).all())
            if weak or any(gone[self.coupling.filters[name]].all() for name in layers if name != last):
                branches.append(last)
                inside |= set(layers)
        for name, channels in self.coupling.filters.items():
            if name not in inside and gone[channels].all():
                if self.empty == "refuse":
                    raise ValueError(
                        f"{name} would lose all its {len(channels)} filters; take a lower threshold, or "
                        'empty="keep", which keeps the largest, or "identity", which takes out residual branches'
                    )
                gone[channels[self.norms[channels].argmax()]] = False
        return gone, branches

    def smaller(self, number: int) -> nn.Module:
        """The network without so many of its smallest channels."""
        return self(*self.spare(*self.lowest(number)))[0]

    def zeroed(self, gone: Bool[Tensor, " channels"], branches: Sequence[str]) -> dict[str, list[int]]:
        whole = {last: list(range(len(self.coupling.filters[last]))) for last in branches}
        return _by_layer(self.coupling, gone) | whole

    def numbers(self, left: Bool[Tensor, " channels"], branches: Sequence[str]) -> dict[str, tuple[int, int]]:
        """layer → its filters before and after."""
        inside = {name for last in branches for name in self.coupling.branches[last]}
        return {
            name: (len(channels), 0 if name in inside else int(left[channels].sum()))
            for name, channels in self.coupling.filters.items()
        }

    def _small_enough(self, what: str, value: float | int) -> int:
        """As few channels as bring parameters or MACs down to the target."""
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError(
                f"{what}={value!r}: a float is the share to be left, above 0 and at most 1; an int a number"
            )

        def size(number: int) -> int:
            return getattr(cost(self.smaller(number), self.example[:1]), f"{what}_dense")

        most = len(self.order)
        whole, least = size(0), size(most)
        allowed = value * whole if isinstance(value, float) else value
        if not least <= allowed:
            raise ValueError(
                f"{what}={value!r}: with one filter left in every layer {least:,} of {whole:,} {what} stay "
                f"({least / whole:.3g}); ask for no less"
            )
        return _first(lambda number: size(number) <= allowed, most)

    def _still_accurate(self, value: float, evaluate: Callable[[nn.Module], float] | None) -> int:
        """As many channels as leave the accuracy at the target or above."""
        assert evaluate is not None
        whole = evaluate(self.model)
        if not whole >= value:
            raise ValueError(f"accuracy={value!r}: the whole network has {whole:.4g}; ask for less")

        def fails(number: int) -> bool:
            if number > len(self.order):
                return True
            return not evaluate(self.smaller(number)) >= value

        return _first(fails, len(self.order) + 1) - 1

    @torch.no_grad()
    def error(self, gone: Bool[Tensor, " channels"], branches: Sequence[str]) -> float:
        """Largest deviation of the outputs from those with zeroed filters, in float64, as a share of the largest."""
        exact = double(self.model)
        zeroed = zero_filters(exact, self.zeroed(gone, branches))
        small, _ = remove(exact, self.coupling, self.constants, gone, branches)
        example = as_input(exact, self.example[:2])
        noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = torch.cat([example, noise.to(example)])
        with evaluating(zeroed), evaluating(small):
            pairs = list(zip(tree_leaves(zeroed(x)), tree_leaves(small(x)), strict=True))
        error = max(float((y - z).abs().max() / y.abs().max().clamp(min=1e-30)) for y, z in pairs)
        if not error <= EXACT:
            raise ValueError(
                f"{type(self.model).__name__} without these filters differs from the one with zeros by {error:.2g} of "
                "its largest output: something in it mixes channels in a way that the trace does not show"
            )
        return error


EXACT = 1e-8  # in float64; what is wrong in structure is wrong by far more


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number from 0 to `most` for which it holds, if it goes on to hold; `most` is taken for granted."""
    low, high = -1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _relative(
    norms: Float[Tensor, " channels"], coupling: Coupling, relative: str | None
) -> Float[Tensor, " channels"]:
    """Norms made comparable inside each family of channels that the same layers write."""
    if relative is None:
        return norms
    if relative not in ("mean", "rank"):
        raise ValueError(f'relative={relative!r}; allowed: None, "mean", "rank"')
    norms = norms.clone()
    for family in _families(coupling):
        own = norms[family]
        if relative == "mean":
            norms[family] = own / own.mean().clamp(min=torch.finfo(own.dtype).tiny)
        else:
            norms[family] = own.argsort(stable=True).argsort().to(own) / len(own)
    return norms


def _families(coupling: Coupling) -> list[Bool[Tensor, " channels"]]:
    families = coupling.families()
    return [(families == number) & coupling.free for number in families[coupling.free].unique()]


def _candidates(
    model: nn.Module, coupling: Coupling, norms: Float[Tensor, " channels"], layers: Layers | None
) -> Bool[Tensor, " channels"]:
    candidates = coupling.free & norms.isfinite()
    if layers is not None:
        chosen = find_layers(model, layers)
        for name, channels in coupling.filters.items():
            if name not in chosen:
                candidates[channels] = False
    if not candidates.any():
        raise ValueError(f"layers={layers!r}: none of the filters may go (those of the outputs never may)")
    return candidates


def _by_layer(coupling: Coupling, channels: Bool[Tensor, " channels"]) -> dict[str, list[int]]:
    """layer → those of its filters that write these channels."""
    found = {name: channels[written].nonzero().flatten().tolist() for name, written in coupling.filters.items()}
    return {name: filters for name, filters in found.items() if filters}


@contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} does not run without these filters: its forward pass counts on their number, or "
            f"rearranges channels ({error})"
        ) from error
