"""What a network costs: parameters, multiply-adds, bytes, and seconds; dense, and with its zeros seen.

Chapter *What sparsity is and what it buys* reads these numbers.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import methodcaller
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from companion._checks import at_least
from companion._weights import memory, outputs_first, refuse_lazy
from companion.features import device_of, evaluating, hooked, unwrap
from companion.pruning._inputs import as_input, call, require_tensor, tensors_of, whole_kernels
from companion.pruning._plain import plain


# ------------------------------------------------------------------------------------------------------------- counting
@dataclass(frozen=True)
class Cost:
    """What one forward pass of one example input costs; of a network, or of one of its layers.

    One MAC (multiply-add) is two FLOPs. Counted are matrix products and convolutions, wherever they are called, as
    `torch.utils.flop_counter` does, products with vectors, and bilinear and recurrent layers, whose weights take part
    once for each example and step. **Not counted** are element-wise work and reductions (biases, norms, activations,
    pooling, softmax) and memory traffic. Multiplications by padded zeros count.

    Attributes:
        parameters_dense: all parameters; a shared one counts once, under the first of the layers that have it, as do
            all products with it.
        parameters_sparse: those to be kept: non-zero weights, and all one-dimensional parameters (biases, norms).
        macs_dense: multiply-adds, every weight taken as non-zero.
        macs_sparse: multiply-adds with non-zero weights. A masked network on dense kernels still does the dense ones. A
            product that reads a copy of a weight, as `torch.einsum` may make one, counts as dense.
        bytes_dense: of the parameters as they lie in memory.
        bytes_sparse: with every weight in CSR form: a value and a 4-byte column for each non-zero one, a 4-byte offset
            for each row (what feeds one output). Above a density of about a half (float32) this is *more* than dense.
        name: the layer, "" for the whole; `layers` are its parts.
    """

    parameters_dense: int
    parameters_sparse: int
    macs_dense: int
    macs_sparse: int
    bytes_dense: int
    bytes_sparse: int
    name: str = ""
    layers: tuple[Cost, ...] = ()

    @property
    def flops_dense(self) -> int:
        """2 × `macs_dense`."""
        return 2 * self.macs_dense

    @property
    def flops_sparse(self) -> int:
        """2 × `macs_sparse`."""
        return 2 * self.macs_sparse

    def table(self) -> pd.DataFrame:
        """One row a layer, in the model's order, and the total last; "(activations)" are products in which no parameter
        takes part, such as attention's."""
        columns = [f"{what}_{how}" for what in ("parameters", "macs", "flops", "bytes") for how in ("dense", "sparse")]
        rows = [{"layer": part.name} | {c: getattr(part, c) for c in columns} for part in self.layers]
        rows.append({"layer": "total"} | {c: getattr(self, c) for c in columns})
        return pd.DataFrame(rows).set_index("layer")


ACTIVATIONS = "(activations)"
_WHOLE = nn.RNNBase  # counted as one: every weight takes part once at every position
_ATEN = torch.ops.aten
# FLOPs of the products that `flop_registry` does not know.
_OTHERS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((_ATEN.mv, _ATEN.dot, _ATEN.vdot), lambda x, y, **_: 2 * x.numel()),
    _ATEN.addmv: lambda added, x, y, **_: 2 * x.numel(),
    _ATEN.addbmm: lambda added, x, y, **_: 2 * x.numel() * y.shape[-1],
    _ATEN._trilinear: lambda x, weight, *_, **__: 2 * len(x) * weight.numel(),  # of bilinear layers
}


def cost(model: nn.Module, example: Any) -> Cost:
    """Count parameters, multiply-adds and bytes of `model` in one forward pass of `example`, dense and sparse.

    A batch of n examples costs n times one: give `x[:1]`; a tuple of arguments or a mapping of named ones for several
    inputs. The model is left as it was, mode included.

    >>> layer = nn.Sequential(nn.Linear(8, 4))
    >>> with torch.no_grad():
    ...     _ = layer[0].weight[:, :6].zero_()
    >>> now = cost(layer, torch.ones(1, 8))
    >>> now.parameters_dense, now.parameters_sparse, now.macs_dense, now.macs_sparse
    (36, 12, 32, 8)

    Raises:
        ValueError: the model has no parameter, or a lazy one (it has not run yet), or the example no tensor.
    """
    model = plain(unwrap(model))
    with evaluating(model), counting(model) as counter:
        call(model, as_input(model, example))
    return counter.cost(model)


@contextmanager
def counting(model: nn.Module, counter: MacCounter | None = None) -> Iterator[MacCounter]:
    """Count the forward passes of `model` inside, which no fused kernel and no autocast hides from the counter."""
    counter = counter or MacCounter(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _WHOLE)}
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(next(model.parameters()).device.type, enabled=False),  # a cast copy is not known as the weight
        whole_kernels(),
        hooked(layers, counter.enter, before=True),
        hooked(layers, counter.leave),
        counter,
    ):
        yield counter


class MacCounter(TorchDispatchMode):
    """Sees every product that reaches the device. A parameter in it, or a view of one, is known by its storage."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        refuse_lazy(model.named_modules())
        self.owners: dict[int, list[tuple[int, int, str]]] = {}  # storage → where in it the weights of a layer lie
        for name, p in model.named_parameters():
            extent = sum((size - 1) * step for size, step in zip(p.shape, p.stride(), strict=True)) + 1
            place = (p.data_ptr(), p.data_ptr() + extent * p.element_size(), name.rpartition(".")[0])
            self.owners.setdefault(p.untyped_storage().data_ptr(), []).append(place)
        if not self.owners:
            raise ValueError(f"{type(model).__name__} has no parameter: there is nothing to count")
        self.dense: Counter[str] = Counter()
        self.sparse: Counter[str] = Counter()
        self.elementary: set[Any] = set()
        self.inside = False

    def enter(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.inside = True

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.inside = False
        x = tensors_of(inputs)[0]
        for weight in module.parameters():
            if weight.ndim > 1:
                positions = x.numel() // x.shape[-1]
                self.dense[name] += weight.numel() * positions
                self.sparse[name] += int(weight.count_nonzero()) * positions

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket) or _OTHERS.get(func.overloadpacket)
        if self.inside or func in self.elementary:
            return func(*args, **kwargs)
        if formula is None:
            with self:  # a composite operation is counted in its parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.elementary.add(func)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        macs = formula(*args, **kwargs, out_val=out) // 2
        # What is multiplied, without what is added; of two parameters, as of queries that are learned, the last.
        factors = args[1:3] if func.overloadpacket.__name__.startswith(("add", "badd")) else args[:2]
        owned = [(weight, owner) for weight in factors if (owner := self.owner(weight)) is not None]
        owner, alive = ACTIVATIONS, macs
        if owned and owned[-1][0].numel():
            # A weight takes part once at every position: macs = weights × positions.
            weight, owner = owned[-1]
            alive = macs * int(weight.count_nonzero()) // weight.numel()
        self.dense[owner] += macs
        self.sparse[owner] += alive
        return out

    def owner(self, weight: Tensor) -> str | None:
        """The layer of the parameter that a tensor is, or is a view of."""
        places = self.owners.get(weight.untyped_storage().data_ptr(), [])
        return next((name for start, end, name in places if start <= weight.data_ptr() < end), None)

    def cost(self, model: nn.Module) -> Cost:
        """Of a model with the layers whose passes were counted."""
        sizes: dict[str, list[tuple[int, int, int, int]]] = {}
        seen: set[Any] = set()
        for name, parameter in model.named_parameters():  # a shared one appears once, under its first owner
            if memory(parameter) not in seen:
                seen.add(memory(parameter))
                layer, _, key = name.rpartition(".")
                p = parameter.detach()
                if key == "weight" and p.ndim > 1:
                    p = outputs_first(model.get_submodule(layer), p)
                sizes.setdefault(layer, []).append(_sizes(p))
        layers = []
        for name in [*sizes, *(self.dense.keys() - sizes.keys())]:
            dense, sparse, bytes_dense, bytes_sparse = map(sum, zip((0, 0, 0, 0), *sizes.get(name, []), strict=True))
            layers.append(Cost(dense, sparse, self.dense[name], self.sparse[name], bytes_dense, bytes_sparse, name))
        numbers = [field.name for field in fields(Cost) if field.type == "int"]
        return Cost(**{what: sum(getattr(layer, what) for layer in layers) for what in numbers}, layers=tuple(layers))


def _sizes(p: Tensor) -> tuple[int, int, int, int]:
    """Numbers of a parameter, those to be kept, and the bytes of both."""
    dense = p.numel() * p.element_size()
    if p.ndim < 2:
        return p.numel(), p.numel(), dense, dense
    alive = int(p.count_nonzero())
    return p.numel(), alive, dense, alive * (p.element_size() + 4) + (len(p) + 1) * 4


# --------------------------------------------------------------------------------------------------------------- timing
@dataclass(frozen=True)
class Latency:
    """Seconds of single forward passes, in the order in which they were measured.

    >>> Latency((0.001, 0.002, 0.004))
    Latency(2 ms, quartiles 1.5 … 3 ms, 3 passes)
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the passes took no longer (seconds)."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """First quartile (seconds)."""
        return statistics.quantiles(self.seconds, n=4, method="inclusive")[0]

    @property
    def high(self) -> float:
        """Third quartile (seconds)."""
        return statistics.quantiles(self.seconds, n=4, method="inclusive")[2]

    def __repr__(self) -> str:
        low, median, high = (f"{1000 * value:.3g}" for value in (self.low, self.median, self.high))
        return f"Latency({median} ms, quartiles {low} … {high} ms, {len(self.seconds)} passes)"


def latency(model: nn.Module, example: Any, *, repeats: int = 30, warmup: int = 5) -> Latency:
    """Seconds of a forward pass of `example` on the model's device, in eval mode without gradients.

    `warmup` passes are not counted. On CUDA the time is the device's own, between two events.

    Raises:
        ValueError: fewer than 2 repeats, or a negative warmup.

    >>> measured = latency(nn.Linear(8, 8), torch.ones(1, 8), repeats=5)
    >>> len(measured.seconds), 0 < measured.low <= measured.median <= measured.high
    (5, True)
    """
    return latencies({"model": model}, example, repeats=repeats, warmup=warmup)["model"]


def latencies(
    models: Mapping[str, nn.Module], example: Any, *, repeats: int = 30, warmup: int = 5
) -> dict[str, Latency]:
    """`latency` of several models under equal conditions: they take turns, in alternating order.

    Raises:
        ValueError: see `latency`.

    >>> measured = latencies({"narrow": nn.Linear(8, 8), "wide": nn.Linear(8, 64)}, torch.ones(1, 8), repeats=5)
    >>> {name: len(one.seconds) for name, one in measured.items()}
    {'narrow': 5, 'wide': 5}
    """
    at_least(2, repeats=repeats)
    at_least(0, warmup=warmup)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-warmup, repeats):
        for name, model in list(models.items())[:: 1 if turn % 2 else -1]:
            device = device_of(model, require_tensor(example))
            x = tree_map_only(Tensor, methodcaller("to", device), example)
            with evaluating(model):
                elapsed = _timed(model, x, device)
            if turn >= 0:
                seconds[name].append(elapsed)
    return {name: Latency(tuple(measured)) for name, measured in seconds.items()}


def _timed(model: nn.Module, example: Any, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record(torch.cuda.current_stream(device))
        call(model, example)
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        return start.elapsed_time(end) / 1000
    wait = getattr(torch, device.type).synchronize if device.type != "cpu" else lambda: None  # a queue takes no time
    wait()
    began = time.perf_counter()
    call(model, example)
    wait()
    return time.perf_counter() - began
