"""The information plane: what each layer knows of the input and of the label, while the network trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from companion._checks import one_of
from companion._numbers import as_tensor
from companion.features import Layers, Reducer, extract
from companion.information.discrete import _information, bin_edges, bin_index, fixed_edges
from companion.information.estimates import Estimate, discrete, same_rows, scale
from companion.information.mixtures import kolchinsky_tracey, noisy_label_information

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class InformationPlane:
    """I(X;T) and I(T;Y) for each layer T of a network, recorded as often as one likes through training.

    A deterministic layer of continuous features has infinite information about its input, so there is nothing to
    estimate until it is said what T is. One of

    - `noise=σ`: T = layer + N(0, σ²I), between the bounds of Kolchinsky & Tracey; the curve shows `bound`;
    - `bins=m`: T = the layer cut into m bins a unit, with edges learned from the data of each recording (a mass at 0 is
      a bin of its own); with `fixed=(low, high)` bins of equal width whatever the data, for history only.

    Another σ or m gives another picture. With n examples nothing exceeds ln n.

    Args:
        x, y: the inputs and the labels that are recorded with; some hundred to some thousand.
        layers: see `features.find_layers`.
        noise, bins, fixed, bound: the model of T, see above; exactly one of `noise` and `bins`.
        reduce: see `features.REDUCERS`.
        unit: `"nats"` or `"bits"`.

    Raises:
        ValueError: neither or both of `noise` and `bins`; bins or ends that `fixed_edges` refuses; mismatched rows, no
            numbers; unknown layers, bound or unit.

    >>> from companion.models import mlp
    >>> plane = InformationPlane(torch.randn(100, 8), torch.arange(100) % 2, "relu?", noise=0.5)
    >>> for epoch in range(2):  # after each epoch of training
    ...     _ = plane.record(mlp([8, 4, 2]), epoch)
    >>> plane.table().shape, plane.model
    ((2, 4), 'T = layer + N(0, 0.5²), upper bound')
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        layers: Layers,
        *,
        noise: float | None = None,
        bins: int | None = None,
        fixed: tuple[float, float] | None = None,
        bound: str = "upper",
        reduce: Reducer = "flatten",
        unit: str = "bits",
    ) -> None:
        if (noise is None) == (bins is None):
            raise ValueError(
                "say what a layer T is: noise=σ (T = layer + Gaussian noise) or bins=m (T = the layer in m bins a "
                "unit), one of the two. Without either, I(X;T) of a deterministic continuous layer is infinite, and a "
                "number would measure the estimator"
            )
        if fixed is not None and bins is None:
            raise ValueError("fixed=(low, high) goes with bins=m")
        one_of(bound=(bound, ("upper", "lower")))
        if bins is not None:
            fixed_edges(1, bins, *(fixed or ()))  # refused now, and not after the first epoch
        x, y = as_tensor(x, "x"), as_tensor(y, "y")
        same_rows(x, y)
        scale(unit)
        self.x, self.y, self.layers, self.reduce, self.unit = x, y, layers, reduce, unit
        self.noise, self.bins, self.fixed, self.bound = noise, bins, fixed, bound
        self._rows: list[dict[str, Any]] = []

    # -- measuring
    def record(self, model: nn.Module, epoch: float) -> dict[str, tuple[Estimate, Estimate]]:
        """Measures every layer now and keeps it under `epoch`: layer → (I(X;T), I(T;Y)). The model is left as it was.

        Warns:
            UserWarning: a layer tells all examples apart, so that its I(X;T) is ln n whatever it does: coarser bins,
                more noise or more examples are needed to see anything.
        """
        found = {name: self.of(t) for name, t in extract(model, self.x, self.layers, reduce=self.reduce).items()}
        most = math.log(len(self.x))
        full = [name for name, (about_x, _) in found.items() if float(about_x.to("nats")) > 0.995 * most]
        if full:
            warnings.warn(
                f"layers {full} tell all {len(self.x)} examples apart: I(X;T) is ln n = {most:.2f} nats, the most it "
                "can be, and says nothing about the layer",
                stacklevel=2,
            )
        for name, (about_x, about_y) in found.items():
            self._rows.append({"epoch": epoch, "layer": name, "I(X;T)": float(about_x), "I(T;Y)": float(about_y)})
        return found

    def of(self, t: Tensor) -> tuple[Estimate, Estimate]:
        """(I(X;T), I(T;Y)) of one layer's features on `x`."""
        same_rows(self.x, t)
        if self.noise is not None:
            options: Mapping[str, Any] = {"noise": self.noise, "bound": self.bound, "unit": self.unit}
            return kolchinsky_tracey(t, **options), noisy_label_information(t, self.y.to(t.device), **options)
        assert self.bins is not None  # checked when built
        t = t.flatten(1)
        edges = fixed_edges(t.shape[1], self.bins, *self.fixed) if self.fixed else bin_edges(t, self.bins)
        symbols, _ = discrete(bin_index(t, edges))
        # Each example is its own symbol of X: a binned deterministic layer has I(X;T) = H(T).
        about_x, _ = _information(torch.arange(len(t), device=t.device), symbols, "plug-in", self.unit)
        return about_x, _information(symbols, self.y.to(t.device), "plug-in", self.unit)[0]

    # -- looking
    def table(self) -> pd.DataFrame:
        """One row a recording and layer: epoch, layer, I(X;T), I(T;Y) in `unit`."""
        return pd.DataFrame(self._rows, columns=["epoch", "layer", "I(X;T)", "I(T;Y)"])

    @property
    def model(self) -> str:
        """What T is, in a few words."""
        if self.noise is not None:
            return f"T = layer + N(0, {self.noise:g}²), {self.bound} bound"
        rule = f"fixed from {self.fixed[0]:g} to {self.fixed[1]:g}" if self.fixed else "learned from the data"
        return f"T = layer in {self.bins} bins a unit, {rule}"

    @property
    def caveat(self) -> str:
        """What the reader of a figure must know."""
        most = math.log(len(self.x)) / scale(self.unit)
        return f"Without this, I(X;T) is infinite.\nWith {len(self.x)} examples it is at most {most:.1f} {self.unit}."

    def draw(self, ax: Axes, title: str = "") -> Axes:
        """The plane, one line a layer from its first recording (small) to its last (large), with the model of T and the
        caveat written on it.

        Raises:
            ValueError: nothing recorded yet.
        """
        table = self.table()
        if table.empty:
            raise ValueError("nothing recorded yet: call record(model, epoch) while the network trains")
        for name, rows in table.groupby("layer", sort=False):
            (line,) = ax.plot(rows["I(X;T)"], rows["I(T;Y)"], linewidth=1, label=str(name))
            sizes = torch.linspace(6, 40, len(rows)).tolist()
            ax.scatter(rows["I(X;T)"], rows["I(T;Y)"], s=sizes, color=line.get_color(), zorder=3)
        ax.set(xlabel=f"I(X;T) in {self.unit}", ylabel=f"I(T;Y) in {self.unit}")
        ax.set_title(f"{title}\n{self.model}" if title else self.model, fontsize=8)
        ax.annotate(self.caveat, (0, 0), (0, -34), "axes fraction", textcoords="offset points", fontsize=6.5, va="top")
        return ax
