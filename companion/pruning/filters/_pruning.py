"""Choosing filters, and the network without them."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from companion._checks import between, one_of, require_number
from companion._progress import progress
from companion.features import Layers, bare_name, evaluating, find_layers, unwrap
from companion.pruning._cost import Cost, Latency, MacCounter, cost, counting, latencies
from companion.pruning._inputs import as_input, call, first, require_tensor, tensors_of
from companion.pruning._plain import plain
from companion.pruning.filters._coupling import Coupling, coupled
from companion.pruning.filters._norms import Norm, channel_norms, filter_norms, widest_gap
from companion.pruning.filters._removal import constants, in_double, remove, rounded, zero


@dataclass(frozen=True, repr=False)
class FilterReport:
    """What went, from where, and what it saves.

    Attributes:
        zeroed: layer → the filters that were taken for zero, as `zero_filters` does it.
        constant: layer → those of them that stay, as constant channels.
        kept: layer → filters that were to go, and stay because their layer would have been left with too few.
        held: layer → why none, or not all, of its filters could have gone.
        branches: last layers of the residual branches that went as a whole.
        threshold: the norm up to which filters were to go; −∞ where none was.
        filters: layer → its filters before and after.
        before, after: `companion.pruning.Cost` of one example.
        latency_before, latency_after: of the given example batch, measured in turns; None where not asked for.
        error: largest deviation of the outputs from those of the network with zeroed filters, both in float64, as a
            share of the largest output: on all inputs on which it was checked.
    """

    zeroed: dict[str, list[int]]
    constant: dict[str, list[int]]
    kept: dict[str, list[int]]
    held: dict[str, str]
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
        """One row a layer: `filters` before, `left`, `removed`, how many of those left are `constant`, and why some are
        `held`."""
        rows = [
            (name, before, left, before - left, len(self.constant.get(name, [])), self.held.get(name, ""))
            for name, (before, left) in self.filters.items()
        ]
        columns = ["layer", "filters", "left", "removed", "constant", "held"]
        return pd.DataFrame(rows, columns=columns).set_index("layer")

    def __repr__(self) -> str:
        gone = sum(before - after for before, after in self.filters.values())
        faster = "" if self.speedup is None else f", {self.speedup:.2f}× as fast"
        return (
            f"FilterReport({gone} of {sum(before for before, _ in self.filters.values())} filters removed; "
            f"{self.after.parameters_dense:,} of {self.before.parameters_dense:,} parameters, "
            f"{self.after.macs_dense:,} of {self.before.macs_dense:,} MACs{faster})"
        )


def prune_filters(
    model: nn.Module,
    example: Any,
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
    floor: float | None = None,
    repeats: int = 10,
) -> tuple[nn.Module, FilterReport]:
    """Take small filters out of a network, with everything that is coupled to them: a smaller module, and a report.

    The smaller network computes in eval mode exactly what `model` computes with these filters zeroed; that is checked,
    in float64, before it is returned: on inputs of the example's size and, where `model` takes them, on two others, one
    less and one more than half of it in every dimension of space or time (than all of it, where half is refused or
    small), for odd sizes alone may be padded. No other is tried.
    What cannot be taken out exactly is held, and the report says why (`held`).

    `model` is left as it was; weights that it computes from others are plain ones in the smaller network. In train mode
    batch norms use other statistics, and the constants that were merged follow the smaller network's own.

    Give exactly one of `threshold`, `parameters`, `macs`, `accuracy`. The last three take channels in the order of
    their norms, smallest first: as few as reach the target (as many as keep the accuracy), found by bisection.

    Args:
        example: a batch of inputs, as the network gets them: a tensor, a tuple of arguments, or a mapping of named
            ones. Latency is measured on it.
        norm: see `filter_norms` and `channel_norms`. A channel that several filters write has the largest norm of them.
        relative: None compares the norms as they are, across layers; "mean" divides them by the mean of the layer's
            (of the channels that the same layers write); "rank" takes their rank in it, from 0 to 1: every layer loses
            the same share.
        threshold: channels go whose norm is at most this, from 0 on (any number where `norm` is a function); "gap" for
            the one of `widest_gap`.
        parameters, macs: what may be left: a share (0.5) or a whole number, as `companion.pruning.cost` counts.
        accuracy, evaluate: what `evaluate(smaller)` must still reach. Bisection takes it for falling as more goes.
        layers: only filters of these may go (see `companion.features.find_layers`); a channel needs all its writers.
        empty: what becomes of a layer that would lose all its filters: "keep" its largest; "refuse"; or "identity": the
            residual branch that it lies in goes as a whole, and the block is the identity up to the constant that the
            branch emitted. So does a branch whose last layer's filters are all below the threshold. A layer outside of
            a branch, or in one that cannot go exactly, keeps its largest.
        floor: share of its filters that every layer keeps, at least one. None: a tenth; where `threshold` says which
            go, one filter.
        repeats: passes by which each latency is measured; 0 for none.

    Raises:
        ValueError: none or several targets; one that makes no sense, or cannot be reached; an `evaluate` that returns
            no number; a layer left with nothing where empty="refuse"; a norm that is no number a filter; an example of
            no inputs; a network that does not run on the example, of which nothing can go, or whose outputs hold no
            floating-point or complex numbers (class indices).

    >>> from companion.models import digits_net
    >>> model, x = digits_net(width=8, blocks=2), torch.randn(2, 1, 8, 8)
    >>> smaller, report = prune_filters(model, x, parameters=0.5, repeats=0)
    >>> report.parameters <= 0.5, report.error < 1e-8, smaller(x).shape
    (True, True, torch.Size([2, 10]))
    >>> report.held
    {'linear': 'the network returns it'}
    """
    targets = {"threshold": threshold, "parameters": parameters, "macs": macs, "accuracy": accuracy}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1 or (accuracy is None) != (evaluate is None):
        raise ValueError(
            f"given: {given or 'no target'}; give exactly one of threshold=, parameters=, macs=, accuracy= (with "
            "evaluate=, a function of a model)"
        )
    one_of(empty=(empty, ("keep", "identity", "refuse")), relative=(relative, (None, "mean", "rank")))
    floor = (0.0 if threshold is not None else 0.1) if floor is None else floor
    between(0, 1, floor=floor)
    _check_threshold(threshold, norm)
    inputs = require_tensor(example)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"example has the shape {tuple(inputs.shape)}: give a batch of one input or more")
    ((target, value),) = given.items()
    if target != "threshold":
        require_number(**given)
    with torch.inference_mode(False):
        model = plain(unwrap(model))
        task = _Task(model, as_input(model, example), norm, relative, layers, empty, floor)
        while True:
            try:
                return task.pruned(target, value, evaluate, repeats)
            except _Misfit as misfit:
                if unfit := task.unfit():
                    branches = {last: names for last, names in task.coupling.branches.items() if last not in unfit}
                    task.choose(dataclasses.replace(task.coupling, branches=branches))
                    continue
                held = task.misfits()
                if not held.any():
                    raise ValueError(f"{type(model).__name__} cannot be pruned exactly: {misfit}") from misfit
                task.choose(task.coupling.hold(held, f"the network without it is another one: {misfit}"))


def _check_threshold(threshold: Any, norm: Norm) -> None:
    if isinstance(threshold, bool | str):
        if threshold != "gap":
            raise ValueError(f"threshold={threshold!r} must be a number, or 'gap' for the one in the widest gap")
    elif threshold is not None:
        between(-math.inf if callable(norm) else 0, math.inf, threshold=threshold)


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


# ------------------------------------------------------------------------------------------------- what may go, and how
SMALL = 8  # rows: half of so few are a size that few networks take
EXACT = 1e-10  # in float64; what is wrong in structure is wrong by far more, behind a layer scale of 1e-6 too


class _Misfit(Exception):  # noqa: N818  # not an error: another choice of what is held
    """A smaller network does not run, or computes something else."""


@contextmanager
def _fitting() -> Iterator[None]:
    """What a network raises once filters are gone is no error of the caller's."""
    try:
        yield
    except Exception as error:
        raise _Misfit(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


@dataclass
class _Task:
    """One network, what of it may go, and in which order."""

    model: nn.Module
    example: Any
    norm: Norm
    relative: str | None
    layers: Layers | None
    empty: str
    floor: float

    def __post_init__(self) -> None:
        self.one = first(self.example, 1)
        counter = MacCounter(self.model)
        coupling = coupled(self.model, self.one, counting(self.model, counter))
        self.before = counter.cost(self.model)
        self.constants = constants(self.model, coupling, self.one)
        self.resized: list[Any] = []
        for others in _resized(self.model, self.one):
            for other in others:
                with suppress(Exception):  # of this size the network takes nothing
                    self.constants = self.constants.agreed(constants(self.model, coupling, other))
                    self.resized.append(other)
                    break
        for name, emitted in self.constants.emitted.items():  # what would not be constant if its filters were zero
            channels = coupling.inputs[name][emitted.isnan() & (coupling.inputs[name] >= 0)]
            varying = torch.zeros_like(coupling.free).index_fill_(0, channels, True)
            coupling = coupling.hold(varying, f"{name} would not read a constant from it if it were zero")
        self.choose(coupling)

    def choose(self, coupling: Coupling) -> None:
        """Which channels may go, smallest first."""
        self.coupling = coupling
        self.norms = _relative(channel_norms(self.model, coupling, self.norm, self.example), coupling, self.relative)
        chosen = {*map(bare_name, coupling.filters)} if self.layers is None else {*find_layers(self.model, self.layers)}
        self.candidates = coupling.free & self.norms.isfinite()
        for name, channels in coupling.filters.items():
            if bare_name(name) not in chosen:
                self.candidates[channels] = False
        if coupling.free.any() and not (coupling.free & self.norms.isfinite()).any():
            raise ValueError(
                f"norm={self.norm!r} is a finite number for none of the filters that may go; held are {coupling.held}"
            )
        if not self.candidates.any():
            raise ValueError(f"layers={self.layers!r}: none of the filters may go; held are {coupling.held}")
        self.order = self.norms.where(self.candidates, math.inf).argsort(stable=True)[: int(self.candidates.sum())]
        # Of single filters, to know a branch that is weak as a whole; relative norms are of channels.
        plain = self.empty == "identity" and self.relative is None and self.norm != "activation"
        single = filter_norms(self.model, self.norm, coupling) if plain else {}
        self.filter_norms = {n: single[n] for n in single if self.candidates[coupling.filters.get(n, [])].any()}

    def pruned(
        self, target: str, value: Any, evaluate: Callable[[nn.Module], float] | None, repeats: int
    ) -> tuple[nn.Module, FilterReport]:
        if target == "threshold":
            level = widest_gap(self.norms[self.candidates]) if value == "gap" else float(value)
            wished = self.candidates & (self.norms <= level)
        elif evaluate is not None:
            wished, level = self.lowest(self._still_accurate(value, evaluate))
        else:
            wished, level = self.lowest(self._small_enough(target, value))
        gone, branches = self.spare(wished, level)
        smaller, constant, error, after = self.checked(gone, branches)
        timed = latencies({"before": self.model, "after": smaller}, self.example, repeats=repeats) if repeats else {}
        inside = {name for last in branches for name in self.coupling.branches[last]}
        whole = {last: list(range(len(self.coupling.filters[last]))) for last in branches}
        return smaller, FilterReport(
            zeroed=_by_layer(self.coupling, gone) | whole,
            constant=_by_layer(self.coupling, constant),
            kept=_by_layer(self.coupling, wished & ~gone),
            held=self.coupling.held,
            branches=branches,
            threshold=level,
            filters={
                name: (len(channels), 0 if name in inside else int((~gone | constant)[channels].sum()))
                for name, channels in self.coupling.filters.items()
            },
            before=self.before,
            after=after,
            latency_before=timed.get("before"),
            latency_after=timed.get("after"),
            error=error,
        )

    def lowest(self, number: int) -> tuple[Bool[Tensor, " channels"], float]:
        """So many of the smallest channels, and the largest norm among them."""
        chosen = self.order[:number]
        level = float(self.norms[chosen[-1]]) if number else -math.inf
        return torch.zeros_like(self.candidates).index_fill_(0, chosen, True), level

    def spare(self, wished: Bool[Tensor, " channels"], level: float) -> tuple[Bool[Tensor, " channels"], list[str]]:
        """No layer loses too many: its largest filters stay, or the branch goes, or the pruning is refused."""
        gone, branches, inside = wished.clone(), list[str](), set[str]()
        for last, names in self.coupling.branches.items() if self.empty == "identity" else ():
            layers = [name for name in names if name in self.coupling.filters]
            weak = bool((self.filter_norms.get(last, torch.tensor(math.inf)) <= level).all())
            if weak or any(gone[self.coupling.filters[name]].all() for name in layers if name != last):
                branches.append(last)
                inside |= set(layers)
        for name, channels in self.coupling.filters.items():
            if name in inside:
                continue
            if self.empty == "refuse" and gone[channels].all():
                raise ValueError(
                    f"{name} would lose all its {len(channels)} filters; take a lower threshold, or "
                    'empty="keep", which keeps the largest, or "identity", which takes out residual branches'
                )
            lacking = max(1, math.ceil(self.floor * len(channels) - 1e-9)) - int((~gone[channels]).sum())
            if lacking > 0:
                largest = self.norms[channels].where(gone[channels], -math.inf).argsort(descending=True, stable=True)
                gone[channels[largest[:lacking]]] = False
        return gone, branches

    def smaller(self, number: int) -> nn.Module:
        """The network without so many of its smallest channels."""
        return remove(self.model, self.coupling, self.constants, *self.spare(*self.lowest(number)))[0]

    def _small_enough(self, what: str, value: float | int) -> int:
        """As few channels as bring parameters or MACs down to the target."""
        share = not isinstance(value, numbers.Integral)
        if share and not 0 < value <= 1:
            raise ValueError(
                f"{what}={value!r}: a share to be left is above 0 and at most 1, such as {what}=0.5; a whole number of "
                f"{what} is an int"
            )
        if not share and value <= 100:
            raise ValueError(f"{what}={value!r}: so few {what}? for a share of them give {what}={value / 100:g}")

        def size(number: int) -> int:
            with _fitting():
                return getattr(cost(self.smaller(number), self.one), f"{what}_dense")

        most = len(self.order)
        whole, least = size(0), size(most)
        allowed = value * whole if share else value
        if not least <= allowed:
            raise ValueError(
                f"{what}={value!r}: with floor={self.floor:g} {least:,} of {whole:,} {what} stay "
                f"({least / whole:.3g}); ask for no less{', or for a lower floor' if self.floor else ''}"
            )
        return _first(lambda number: size(number) <= allowed, most)

    def _still_accurate(self, value: float, evaluate: Callable[[nn.Module], float]) -> int:
        """As many channels as leave the accuracy at the target or above."""

        def reached(model: nn.Module) -> float:
            found: dict[str, Any] = {"evaluate(model)": evaluate(model)}
            between(-math.inf, math.inf, **found)
            return found["evaluate(model)"]

        whole = reached(self.model)
        if not whole >= value:
            raise ValueError(f"accuracy={value!r}: the whole network has {whole:.4g}; ask for less")

        def fails(number: int) -> bool:
            if number > len(self.order):
                return True
            with _fitting():
                smaller = self.smaller(number)
                cost(smaller, self.one)  # it runs
            return not reached(smaller) >= value

        return _first(fails, len(self.order) + 1) - 1

    @torch.no_grad()
    def checked(
        self, gone: Bool[Tensor, " channels"], branches: list[str]
    ) -> tuple[nn.Module, Bool[Tensor, " channels"], float, Cost]:
        """The network without these channels, those that stay as constants, and what one example costs. And the largest
        deviation of the outputs from those with zeroed filters, in float64, as a share of the largest."""
        zeroed = in_double(self.model)
        zero(zeroed, self.coupling, gone)
        for last in branches:
            zeroed[f"{last}.weight"].zero_()
        error, compared = 0.0, False
        with _fitting():
            small, constant = remove(self.model, self.coupling, self.constants, gone, branches, exact=True)
            example, *others = _trials(as_input(small, self.one))
            others += [as_input(small, other) for other in self.resized]
            with evaluating(small, self.model):
                with counting(small) as counter:
                    outputs = [call(small, example)]
                outputs += [call(small, other) for other in others]
                for x, output in zip((example, *others), outputs, strict=True):
                    whole = tensors_of(call(self.model, x, zeroed))
                    for y, z in zip(whole, tensors_of(output), strict=True):
                        if y.is_complex():
                            y, z = torch.view_as_real(y.resolve_conj()), torch.view_as_real(z.resolve_conj())
                        if y.is_floating_point() and y.numel():  # what is NaN in both is the same
                            y, z = y.nan_to_num(0, 0, 0), z.nan_to_num(0, 0, 0)
                            error = max(error, float((y - z).abs().max() / y.abs().max().clamp(min=1e-30)))
                            compared = True
        if not compared:
            raise ValueError(
                f"{type(self.model).__name__} returns {sorted({str(y.dtype) for y in whole}) or 'no tensor'}, by which "
                "it cannot be checked: prune the network that returns its logits"
            )
        if not error <= EXACT:
            raise _Misfit(f"its outputs differ by {error:.2g} of the largest from those with zeros")
        smaller = rounded(small, self.model)
        return smaller, constant, error, counter.cost(smaller)

    def unfit(self) -> set[str]:
        """The residual branches that cannot go as a whole, each by itself."""
        found = set[str]()
        for last in self.coupling.branches if self.empty == "identity" else ():
            try:
                self.checked(torch.zeros_like(self.candidates), [last])
            except _Misfit:
                found.add(last)
        return found

    def misfits(self) -> Bool[Tensor, " channels"]:
        """The families of channels of which not even every second one can go exactly, the first or the others."""
        found = torch.zeros_like(self.candidates)
        for family, start in product(_families(self.coupling), (1, 0)):
            second = family.nonzero().flatten()[start::2]
            gone, _ = self.spare(torch.zeros_like(found).index_fill_(0, second, True), -math.inf)
            try:
                if gone.any():
                    self.checked(gone, [])
            except _Misfit:
                found |= family
        return found


def _trials(example: Any) -> list[Any]:
    """The example with a little noise, so that nothing in it is zero or alike by chance; and, where that is cheap, a
    few examples of noise alone."""
    generator = torch.Generator().manual_seed(0)

    def disturbed(x: Tensor) -> Tensor:
        scale = float(x.std(correction=0)) / 10 if x.is_floating_point() and x.numel() else 0.0
        return x + (scale or 1.0) * _noise(x, generator) if x.is_floating_point() else x

    elements = max(1, sum(x.numel() for x in tensors_of(example)))
    repeated = min(8, 2**11 // elements)
    trials = [tree_map_only(Tensor, disturbed, example)]
    if repeated:
        rows = len(tensors_of(example)[0])
        more = tree_map_only(
            Tensor, lambda x: x.repeat(repeated, *[1] * (x.ndim - 1)) if x.ndim and len(x) == rows else x, example
        )
        trials.append(tree_map_only(Tensor, lambda x: _noise(x, generator) if x.is_floating_point() else x, more))
    return trials


def _resized(model: nn.Module, example: Any) -> Iterator[list[Any]]:
    """The example in two other sizes, each in two ways, the first that the network takes is meant: one less and one
    more than half of it, which is cheap, or than all of it, in all dimensions that may be space or time. None longer
    than the example where a table of positions may end: on a GPU no error says so."""
    bounded = any(isinstance(module, nn.Embedding) for module in model.modules())

    def resized(x: Tensor, share: int, more: int) -> Tensor:
        for dim in range(2 if x.is_floating_point() else 1, x.ndim):
            whole = x.shape[dim]
            size = whole if whole <= SMALL else whole // share
            size += (whole - size) % 2  # odd after one step where the example is even, and the other way round
            rows = torch.arange(max(1, size + more), device=x.device)
            x = x.index_select(dim, rows.clamp(max=whole - 1))  # longer by its last row
        return x

    def sizes(of: Any) -> list[int]:
        return [size for x in tensors_of(of) for size in x.shape]

    for more in (-1, 1):
        others = [tree_map_only(Tensor, partial(resized, share=share, more=more), example) for share in (2, 1)]
        longer = [max(map(operator.sub, sizes(other), sizes(example)), default=0) > 0 for other in others]
        yield [
            other
            for other, too_long in zip(others, longer, strict=True)
            if sizes(other) != sizes(example) and not (bounded and too_long)
        ]


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number from 0 to `most` for which it holds, if it goes on to hold; `most` is taken for granted."""
    low, high = -1, most
    for _ in progress(range(most.bit_length()), "removal"):
        if high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _relative(
    norms: Float[Tensor, " channels"], coupling: Coupling, relative: str | None
) -> Float[Tensor, " channels"]:
    """Norms made comparable inside each family of channels that the same layers write."""
    norms = norms.clone()
    for family in _families(coupling) if relative is not None else ():
        own = norms[family]
        if relative == "mean":
            norms[family] = own / own.mean().clamp(min=torch.finfo(own.dtype).tiny)
        else:
            norms[family] = own.argsort(stable=True).argsort().to(own) / len(own)
    return norms


def _families(coupling: Coupling) -> list[Bool[Tensor, " channels"]]:
    families = coupling.families()
    return [(families == number) & coupling.free for number in families[coupling.free].unique()]


def _by_layer(coupling: Coupling, channels: Bool[Tensor, " channels"]) -> dict[str, list[int]]:
    """layer → those of its filters that write these channels."""
    found = {name: channels[written].nonzero().flatten().tolist() for name, written in coupling.filters.items()}
    return {name: filters for name, filters in found.items() if filters}
