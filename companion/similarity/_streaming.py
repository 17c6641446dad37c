"""CKA of all pairs of layers, batch by batch and on any number of ranks."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from companion._checks import at_least
from companion._numbers import _resolution, as_tensor, float64, float64_device
from companion.similarity._cka import _conclude, _hsics, _require_symmetric, _rows
from companion.similarity._kernels import MINIMUM, Kernel, _by_feature, _rounding

Batch: TypeAlias = tuple[list[Tensor], list[Tensor]]  # features by layer, of one model and of another

NARROW = 16_384  # widest M that ExactCKA accumulates: 2 GiB of float64


def check_group(group: int | None, unbiased: bool) -> int | None:
    """Refuse groups too small for HSIC₁, and any for HSIC₀."""
    if group is not None:
        at_least(MINIMUM, group=group)
        if not unbiased:
            raise ValueError(f"group={group} needs unbiased=True: the bias of HSIC₀ grows as groups get smaller")
    return group


def groups(n: int, group: int | None) -> list[slice]:
    """⌊n/group⌋ parts of n examples, equal but for one; at least one part.

    >>> groups(10, 4)
    [slice(0, 5, None), slice(5, 10, None)]
    """
    parts = max(n // group, 1) if group else 1
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


class _LayerPairs(Metric):
    """What the two streaming estimators share: layer names, the checks at the end, one warning for dead layers."""

    full_state_update = False
    examples: Tensor
    settings: Tensor
    _pending: tuple[str, ...]  # what a batch leaves for the next one, beside the sums

    def __init__(
        self, layers: Iterable[str], other_layers: Iterable[str] | None, *settings: object, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.layers = list(layers)
        self.other_layers = None if other_layers is None else list(other_layers)
        if not self.layers or self.other_layers == []:
            raise ValueError("name at least one layer")
        self.add_state("examples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # A MetricCollection lets metrics whose states agree after one batch, which may be too small to differ in, share
        # all later ones.
        told = zlib.crc32(repr((self.layers, self.other_layers, *settings)).encode()).to_bytes(4)
        self.add_state("settings", torch.tensor([*told], dtype=torch.float64), dist_reduce_fx="max")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        """Move the sums, unless a device without float64 is asked for."""
        to = fn(torch.empty(0)).device
        return self if float64_device(to) != to else super()._apply(fn, *args, **kwargs)

    def _wrap_compute(self, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """torchmetrics makes a number of a 1 × 1 table; here it stays a table."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def table(*args: Any, **kwargs: Any) -> Tensor:
            return wrapped(*args, **kwargs).reshape(len(self.layers), -1)

        return table

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Same as `update`: the CKA of a single minibatch is not an estimate worth returning."""
        self.update(*args, **kwargs)

    def _given(
        self, features: Mapping[str, Tensor], other: Mapping[str, Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The features of this update in the order of the names; refuses what is missing or does not match."""
        if (other is None) != (self.other_layers is None):
            raise ValueError("features of a second model go with other_layers=..., and only with it")
        rows = []
        for names, given in ((self.layers, features), (self.other_layers or [], {} if other is None else other)):
            if not isinstance(given, Mapping):
                raise ValueError(f"features are a {type(given).__name__}; give a mapping, layer name → features")
            missing = [name for name in names if name not in given]
            if missing:
                raise ValueError(f"no features for layers {missing}; got {list(given)}")
            tensors = [as_tensor(given[name], name).detach() for name in names]
            rows.append([x if x.is_floating_point() else float64(x) for x in tensors])
        labels = [*self.layers, *self._other_labels]
        shapes = [tuple(x.shape) for x in rows[0] + rows[1]]
        named = dict(zip(labels, shapes, strict=True))  # fewer where a layer is called as another side's
        if any(len(shape) < 2 for shape in shapes):
            raise ValueError(f"features must be (examples, features); got shapes {named}")
        if len({shape[0] for shape in shapes}) > 1:
            raise ValueError(f"features must have the same examples (rows); got shapes {named}")
        return rows[0], rows[1]

    @property
    def _other_labels(self) -> list[str]:
        return [f"other {name}" for name in self.other_layers or []]

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the examples of another such metric, as if this one had seen them.

        Raises:
            ValueError: another class, layers, settings or widths; bare sums, without what belongs to them.
        """
        if not isinstance(incoming_state, type(self)):
            raise ValueError(f"merge_state needs a {type(self).__name__}, not a {type(incoming_state).__name__}")
        self._refuse_others(incoming_state.settings)
        self._computed = None  # torchmetrics would return the value from before
        self._absorb(incoming_state)

    def _absorb(self, other: Any) -> None:
        if not self.examples:
            for name in self._defaults:
                setattr(self, name, getattr(other, name).clone())
            for name in (*self._pending, "_update_count"):
                setattr(self, name, getattr(other, name))
        elif other.examples:
            super().merge_state(other)

    def _refuse_others(self, settings: Tensor) -> None:
        """Sums of other layers may have the same shapes, and mean nothing together with these."""
        if settings.tolist() != torch.as_tensor(self._defaults["settings"]).tolist():
            columns = f" × {self.other_layers}" if self.other_layers else ""
            raise ValueError(
                f"sums of other layers, or with other settings, do not go with {self.layers}{columns}: name the same "
                "layers in the same order"
            )

    def state_dict(  # type: ignore[override]
        self, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """torchmetrics' own, and where that holds the sums (`persistent(True)`) also what the next `update` needs."""
        found = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self._persistent["examples"]:
            found[f"{prefix}pending"] = {name: getattr(self, name) for name in self._pending}
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if (settings := state_dict.get(f"{prefix}settings")) is not None:
            self._refuse_others(settings)
        for name, value in state_dict.pop(f"{prefix}pending", {}).items():
            setattr(self, name, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _count(self) -> int:
        """Number of examples of all ranks: `compute` runs on the reduced sums."""
        self.total = int(self.examples)
        if self.total < MINIMUM:
            raise ValueError(f"{self.total} examples in all; HSIC needs at least {MINIMUM}")
        return self.total

    def _finish(self, cross: Tensor, own: Tensor, other: Tensor) -> Float[Tensor, "layers other_layers"]:
        if self.other_layers is None:
            return _conclude(cross, own, own, self.layers, self.layers)
        return _conclude(cross, own, other, self.layers, self._other_labels)


class MinibatchCKA(_LayerPairs):
    """Streaming CKA of all pairs of layers: HSIC averaged over minibatches, the ratio taken once (Nguyen, Raghu &
    Kornblith 2021).

    A torchmetrics metric: `update` with each batch's features, `compute` at the end; under torch.distributed the sums
    are added across ranks. Batches count by their number of examples; those with fewer than 4 are joined with each
    other until they have as many, what is left with the batch before (or after it, if it is the first), whose features
    are kept for that, uncopied: nothing may overwrite them. With `unbiased=False` each batch brings the small-sample
    bias of its own size, which no number of batches removes; it is there to show that.

    With `group=g` each batch of n examples is cut into ⌊n/g⌋ groups of equal size, give or take one, and the HSICs of
    the groups are averaged: g/n of the kernel matrices' work for the same estimand. HSIC₁ is a U-statistic of order 4
    (Hoeffding 1948; Song et al. 2012, section 3): its variance has a term that falls as 1/n and one that falls as 1/n².
    Groups leave the first and multiply the second by about n/g. Where layers are independent the first is 0, and the
    deviation grows by √((n − 3)/(g − 3)): by √(n/g) for large groups, by twice that for groups of 4.

    Args:
        layers, other_layers: names of the rows and, for two models, of the columns.
        group: None, the whole batch; or the fewest examples in a group, from 4 on.

    Raises:
        ValueError: missing layers, mismatched examples, precomputed matrices that are not symmetric (`update`); fewer
            than 4 examples in all, NaN or infinite features (`compute`); groups of the biased estimator, whose bias
            they would raise.

    >>> metric = MinibatchCKA(["first", "second"])
    >>> for _ in range(5):
    ...     x = torch.randn(32, 8)
    ...     metric.update({"first": x, "second": x @ torch.randn(8, 8)})
    >>> metric.compute().shape, metric.total
    (torch.Size([2, 2]), 160)
    """

    cross: Tensor
    own: Tensor
    other: Tensor
    _pending = ("_last", "_small", "_share")
    _trusting = False  # precomputed matrices are kernel matrices: nobody asks, which would wait for the device

    def __init__(
        self,
        layers: Iterable[str],
        other_layers: Iterable[str] | None = None,
        *,
        unbiased: bool = True,
        kernel: Kernel = "linear",
        group: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layers, other_layers, unbiased, kernel, group, **kwargs)
        self.unbiased, self.kernel, self.group = unbiased, kernel, check_group(group, unbiased)
        a, b = len(self.layers), len(self.other_layers or [])
        for name, shape in (("cross", (a, b or a)), ("own", (a,)), ("other", (b,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self._forget()

    def _forget(self) -> None:
        # The latest batch, what came after it and is too small alone, and the share of both together in the sums.
        self._last: Batch | None = None
        self._small: Batch | None = None
        self._share: dict[str, Tensor | int] = {}

    def reset(self) -> None:
        super().reset()
        self._forget()

    def update(self, features: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch: layer name → (examples, features)."""
        xs, ys = self._given(features, other)
        if self.kernel == "precomputed" and not self._trusting:
            for name, x in zip([*self.layers, *self._other_labels], xs + ys, strict=True):
                _require_symmetric(name, x)
        if self._small is not None and (self._last is None or len(xs[0]) < MINIMUM):
            xs, ys = self._joined(self._small, (xs, ys))
            self._add(self._share, -1)
            if self._last is not None:
                self._share = self._sums(*self._last)
                self._add(self._share, +1)
        if len(xs[0]) >= MINIMUM:
            self._last, self._small = (xs, ys), None
            self._share = self._sums(xs, ys)
        else:
            self._small = xs, ys
            if self._last is not None:
                self._add(self._share, -1)
                xs, ys = self._joined(self._last, self._small)
            self._share = self._sums(xs, ys)
        self._add(self._share, +1)

    def _absorb(self, other: MinibatchCKA) -> None:
        # Examples too few for sums of their own join the last batch of the other side, as they would in one metric.
        few = [metric._small for metric in (self, other) if metric.examples < MINIMUM and metric._small is not None]
        if self.examples < MINIMUM:
            self.reset()
        if other.examples >= MINIMUM:
            super()._absorb(other)
        for xs, ys in few:
            named = None if self.other_layers is None else dict(zip(self.other_layers, ys, strict=True))
            self.update(dict(zip(self.layers, xs, strict=True)), named)

    def _joined(self, a: Batch, b: Batch) -> Batch:
        if self.kernel == "precomputed":
            raise ValueError(f"precomputed kernel matrices need at least {MINIMUM} examples in every batch")
        xs, ys = ([torch.cat(pair) for pair in zip(*sides, strict=True)] for sides in zip(a, b, strict=True))
        return xs, ys

    def _sums(self, xs: list[Tensor], ys: list[Tensor]) -> dict[str, Tensor | int]:
        """The HSICs of one batch times its number of examples; of groups, their sum."""
        sums: dict[str, Tensor | int] = {"examples": len(xs[0])}
        if len(xs[0]) < MINIMUM:
            return sums
        for part in groups(len(xs[0]), self.group):
            n, place = part.stop - part.start, (part, part) if self.kernel == "precomputed" else part
            a, b = ([x[place] for x in side] for side in (xs, ys))
            rows = _rows(b, self.unbiased, self.kernel) if b else None
            cross, own, other = _hsics(_rows(a, self.unbiased, self.kernel), rows)
            for name, value in (("cross", cross), ("own", own), ("other", other[: len(ys)])):
                sums[name] = sums.get(name, 0) + n * value
        return sums

    def _add(self, sums: Mapping[str, Tensor | int], sign: int) -> None:
        for name, value in sums.items():
            setattr(self, name, getattr(self, name) + sign * value)

    def compute(self) -> Float[Tensor, "layers other_layers"]:
        """CKA of every pair of layers, float64."""
        self._count()
        return self._finish(self.cross, self.own, self.other)


class ExactCKA(_LayerPairs):
    r"""Exact linear CKA on all examples in one pass, for narrow features; memory does not depend on the number of
    examples.

    Accumulates M = ZᵀZ with Z = [features of all layers | squared row norms per layer | 1] in float64. Shifting the
    features is a linear map of Z, so M can be centred afterwards (M → TᵀMT) and M's of several ranks brought to one
    origin and added. With centred X, Y and squared norms a_i = ‖x_i‖², b_i = ‖y_i‖² the unbiased estimator needs no n ×
    n matrix:

        n(n−3)·HSIC₁ = ‖XᵀY‖²_F − n/(n−2)·Σ a_i b_i + Σ a_i Σ b_i / ((n−1)(n−2)),    (n−1)²·HSIC₀ = ‖XᵀY‖²_F.

    M takes 8·P² bytes for P features in all layers together, `compute` a few times that: use it after `average_pool`.
    Under torch.distributed every rank needs one update; its batch may be empty.

    Raises:
        ValueError: see `MinibatchCKA`; more than 16,384 features in all.

    >>> from companion.similarity import cka
    >>> x, y = torch.randn(100, 3), torch.randn(100, 4)
    >>> metric = ExactCKA(["x", "y"])
    >>> for batch in range(0, 100, 20):
    ...     metric.update({"x": x[batch : batch + 20], "y": y[batch : batch + 20]})
    >>> torch.allclose(metric.compute()[0, 1], cka(x, y))
    True
    """

    moments: Tensor
    _pending = ("widths", "_resolutions", "_empty")

    def __init__(
        self, layers: Iterable[str], other_layers: Iterable[str] | None = None, *, unbiased: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(layers, other_layers, **kwargs)
        self.unbiased = unbiased
        # First row: the origin that the features were shifted by; below it M. Its size is known after the first batch.
        self.add_state("moments", torch.zeros(1, 1, dtype=torch.float64), dist_reduce_fx=self._merge)
        self._forget()

    def _forget(self) -> None:
        self.widths: list[int] = []
        self._resolutions: list[float] = []  # of the features of each layer, see `_numbers._resolution`
        self._empty = False  # no example yet, in one update or more

    def reset(self) -> None:
        super().reset()
        self._forget()

    def update(self, features: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch of any size: layer name → (examples, features)."""
        xs, ys = self._given(features, other)
        rows = [float64(x.flatten(1)) for x in xs + ys]
        resolutions = [_resolution(x.dtype) for x in xs + ys]
        widths = [x.shape[1] for x in rows]
        p = sum(widths)
        if not self.widths:
            total = p + len(widths) + 1
            if total > NARROW:
                raise ValueError(
                    f"{p} features in {len(widths)} layers need {8 * total**2 / 2**30:.1f} GiB; "
                    "reduce them (reduce='average_pool') or use MinibatchCKA"
                )
            self.widths = widths
            self.moments = rows[0].new_zeros(total + 1, total)
            self._empty = True
        elif widths != self.widths:
            raise ValueError(f"layer widths changed from {self.widths} to {widths}")
        if self._empty and len(rows[0]):
            # Near the data, so that nothing cancels.
            self.moments[0, :p] = torch.cat([x.sum(0) / len(x) for x in rows])
            self._empty = False
        self._resolutions = [max(pair) for pair in zip(resolutions, self._resolutions or resolutions, strict=True)]
        shifted = [x - origin for x, origin in zip(rows, self.moments[0, :p].split(widths), strict=True)]
        norms = [x.square().sum(1, keepdim=True) for x in shifted]
        z = torch.cat([*shifted, *norms, torch.ones_like(norms[0])], dim=1)
        self.moments[1:].addmm_(z.T, z)
        self.examples = self.examples + len(z)

    def _absorb(self, other: ExactCKA) -> None:
        if self.examples and other.examples:
            if other.widths != self.widths:
                raise ValueError(f"layer widths {other.widths} do not go with {self.widths}")
            self._resolutions = [max(pair) for pair in zip(self._resolutions, other._resolutions, strict=True)]
        super()._absorb(other)

    def _translate(self, m: Float[Tensor, "z z"], shift: Float[Tensor, "features"]) -> Float[Tensor, "z z"]:
        """M of the features minus `shift`: a linear map of Z's columns, x → x − d, a → a − 2xᵀd + ‖d‖², 1 → 1."""
        p, parts = sum(self.widths), shift.split(self.widths)
        squares = torch.stack([d.square().sum() for d in parts])

        def columns(m: Tensor) -> Tensor:
            x, norms, one = m[:, :p], m[:, p:-1], m[:, -1:]
            inner = torch.stack([xs @ d for xs, d in zip(x.split(self.widths, dim=1), parts, strict=True)], dim=1)
            return torch.cat([x - one * shift, norms - 2 * inner + one * squares, one], dim=1)

        return columns(columns(m).T)  # M is symmetric

    def _merge(self, moments: Float[Tensor, "ranks z1 z"]) -> Float[Tensor, "z1 z"]:
        """Sum over ranks, each brought to the origin of the one with most examples."""
        p, origin = sum(self.widths), moments[moments[:, -1, -1].argmax(), 0]
        parts = [self._translate(m[1:], (origin - m[0])[:p]) for m in moments]
        return torch.cat([origin[None], torch.stack(parts).sum(0)])

    def compute(self) -> Float[Tensor, "layers other_layers"]:
        """CKA of every pair of layers, float64."""
        n, p = self._count(), sum(self.widths)
        shift = self.moments[-1, :p] / n
        m = self._translate(self.moments[1:], shift)
        products, norms, totals = m[:p, :p], m[p:-1, p:-1], m[-1, p:-1]
        blocks = [row.split(self.widths, dim=1) for row in products.split(self.widths)]
        hsic = biased = torch.stack([torch.stack([block.square().sum() for block in row]) for row in blocks])
        if self.unbiased:
            hsic = hsic - n / (n - 2) * norms + totals[:, None] * totals[None, :] / ((n - 1) * (n - 2))
        offsets = torch.stack([mean.square().sum() for mean in (self.moments[0, :p] + shift).split(self.widths)])
        resolutions, widths = (m.new_tensor(values) for values in (self._resolutions, self.widths))
        alike, noise = _rounding(resolutions, totals, n * offsets, widths)
        variances, means = (each.split(self.widths) for each in (products.diagonal() / n, self.moments[0, :p] + shift))
        parts = zip(self._resolutions, variances, means, totals, alike, noise, strict=True)
        totals, alike, noise = map(torch.stack, zip(*(_by_feature(u, n, *part) for u, *part in parts), strict=True))
        # The difference above has rounding of its own: 1e-12.
        live = (totals > alike) & (hsic.diagonal() > (noise + 1e-12) * biased.diagonal())
        hsic = hsic * live[:, None] * live[None, :]
        a, own = len(self.layers), hsic.diagonal()
        return self._finish(hsic[:a, :a] if self.other_layers is None else hsic[:a, a:], own[:a], own[a:])
