"""CKA of the layers of a model, or of two."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from companion._checks import one_of
from companion.blocks import find_blocks
from companion.features import (
    FeatureTap,
    Forward,
    Layers,
    Reducer,
    Select,
    batches,
    evaluating,
    find_layers,
    run,
    unwrap,
)
from companion.similarity._kernels import MINIMUM, Kernel, gram

if TYPE_CHECKING:
    import pandas as pd


def cka_map(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    layers: Layers | None = None,
    *,
    other: nn.Module | None = None,
    other_layers: Layers | None = None,
    estimator: str = "minibatch",
    unbiased: bool = True,
    kernel: Kernel = "linear",
    reduce: Reducer = "flatten",
    select: Select = None,
    forward: Forward = None,
    batch_size: int = 256,
    group: int | None = None,
) -> pd.DataFrame:
    """CKA of all pairs of layers of one model, or of two on the same inputs, in one pass over the data.

    The models run in evaluation mode and are left as they were. Under torch.distributed every rank passes its own share
    of the data and gets the value for all of it. Shares may be uneven, even empty tensors; of one with fewer than 4
    examples the minibatch estimator sees nothing.

    Args:
        data, forward: see `features.extract`. Tensors are cut into batches of `batch_size`.
        layers: see `features.find_layers`; None: the blocks, see `blocks.find_blocks`. `other_layers` does the same for
            `other` (default: as `layers`; of its own blocks where that is None).
        estimator: `"minibatch"` (any width, any kernel), or `"exact"` (linear, all examples at once, narrow features).
        reduce, select: see `features.FeatureTap`.
        group: compare examples only inside groups of at least so many of a batch: faster, for the same estimand with a
            larger variance, see `similarity.MinibatchCKA`. None: inside whole batches.

    Returns:
        a table, layers × layers, rows and columns in order of execution; `.attrs` tells the number of examples and the
        estimator.

    Raises:
        ValueError: fewer than 4 examples, NaN or infinite features, unknown layers, kernel, estimator or reducer, rows
            that are not examples.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    >>> cka_map(model, torch.randn(100, 4), nn.Linear).round(2).loc["0", "0"]
    np.float64(1.0)
    """
    import pandas as pd

    from companion.similarity._streaming import ExactCKA, MinibatchCKA, check_group, groups

    one_of(estimator=(estimator, ("minibatch", "exact")))
    exact = estimator == "exact"
    if exact and kernel != "linear":
        raise ValueError(f"estimator='exact' needs kernel='linear', not {kernel!r}")
    if exact and group is not None:
        raise ValueError(f"estimator='exact' compares all examples with each other; group={group} is for 'minibatch'")
    check_group(group, unbiased)

    def grams(x: Tensor) -> Tensor:
        """The kernel matrix, of groups the blocks on its diagonal."""
        return torch.block_diag(*[gram(x[part], kernel) for part in groups(len(x), group)])

    # Bare models: a wrapper's forward may talk to other ranks, which may have fewer batches.
    nets = [unwrap(model)] if other is None else [unwrap(model), unwrap(other)]
    chosen = [layers, layers if other_layers is None else other_layers]
    metric: MinibatchCKA | ExactCKA | None = None
    with evaluating(*nets), ExitStack() as stack:
        keep = None if exact else functools.partial(gram, kernel=kernel) if group is None else grams
        tapped = [
            list(find_layers(net, find_blocks(net) if names is None else names))
            for net, names in zip(nets, chosen, strict=False)
        ]
        taps = [
            FeatureTap(net, names, reduce=reduce, select=own, keep=keep)
            for net, names, own in zip(nets, tapped, _selects(select, tapped), strict=True)
        ]
        for tap in taps:
            stack.enter_context(tap)
        for x in batches(data, batch_size, minimum=1 if exact else MINIMUM, whole=forward is not None):
            found: list[dict[str, Tensor]] = []
            for net, tap in zip(nets, taps, strict=True):
                run(net, x, forward)
                tap.require()
                found.append(dict(tap))  # the other net may run layers of this one, too
            if metric is None:
                metric = (
                    ExactCKA(*found, unbiased=unbiased)
                    if exact
                    else MinibatchCKA(*found, unbiased=unbiased, kernel="precomputed", group=group)
                )
                metric = metric.to(next(iter(found[0].values())).device)
                metric._trusting = kernel != "precomputed"  # then `reduce` makes them
            metric.update(*found)
    assert metric is not None  # `batches` has given one
    table = pd.DataFrame(metric.compute().cpu().numpy(), metric.layers, metric.other_layers or metric.layers)
    table.attrs = {"examples": metric.total, "estimator": estimator, "unbiased": unbiased, "kernel": str(kernel)}
    if group is not None:
        table.attrs["group"] = group
    return table


def _selects(select: Select, layers: Sequence[list[str]]) -> list[Select]:
    """For each net its own part of a mapping by layer; a function goes to all."""
    if not isinstance(select, Mapping):
        return [select] * len(layers)
    for name in select:
        one_of(select=(name, list(dict.fromkeys(itertools.chain(*layers)))))
    return [{name: select[name] for name in names if name in select} for names in layers]
