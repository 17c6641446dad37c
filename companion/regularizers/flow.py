"""Feature-flow regularisation: short and straight trajectories of features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import flow
from companion._checks import one_of
from companion.features import Layers
from companion.regularizers.base import PENALTIES, FeaturePenalty, Strength, check_strengths, checked, strength_at


@PENALTIES.register("feature_flow", title="FFR", reads="features", signed=False)
class FeatureFlow(FeaturePenalty):
    r"""k₁ · length + k₂ · curvature of the trajectory of each example, averaged over the batch.

    A reading of two abstracts (Wu et al., arXiv 2106.02914 and Neural Networks 161, 2023), whose equations are not
    available to us. One trajectory per example, through the outputs x₀, x₁, …, x_L of the blocks, with steps
    d_l = x_{l+1} − x_l:

    * `variant="arxiv"`, "gradient and curvature of the feature flow": k₁ · Σ_l ‖d_l‖ + k₂ · Σ_l ‖d_{l+1} − d_l‖.
    * `variant="journal"`, "length and total absolute curvature": k₁ · Σ_l ‖d_l‖ + k₂ · Σ_l ∠(d_l, d_{l+1}), the turning
      angles in radians. They do not change when features are scaled; the gradient of an angle grows as 1/‖d‖.

    What it shares with other penalties: `FeaturePenalty`. Chapter *Feature-flow regularisation* tests every choice.

    Args:
        model: any module; wrapped or compiled too, if the penalty is built before the first compiled call.
        length: strength k₁ ≥ 0, a number or a function of the optimizer steps so far, such as `ramp`.
        curvature: strength k₂ ≥ 0, likewise.
        variant: `"arxiv"` or `"journal"`.
        norm: of the steps and second differences, 1 or 2.
        reduction: over a layer's n features. `"mean"`: the root of the mean square (norm 2) or the mean magnitude
            (norm 1) of a step, so that strengths keep their meaning for other widths and resolutions; `"sum"`: the
            norm itself, √n or n times as large.
        across_stages: one trajectory through all layers, carried over where the shape changes (`flow.carry`); else one
            in each run of layers of equal shape.
        before_relu: take each block's sum before its last ReLU in place of its output.
        layers: the vertices, see `features.find_layers`; None: the blocks, see `blocks.find_blocks`.
        examples: how many of the batch's first examples; None: all.
        every: compute the penalty at every n-th call, return 0 at the others.
        select: picks the tensor from a layer's output, see `features.FeatureTap`.

    Raises:
        ValueError: an argument out of range, unknown layers; at the first call, layers that make no trajectory.
        RuntimeError: no training forward pass since the model was tapped.

    >>> from companion.models import digits_net
    >>> model = digits_net(width=8)
    >>> penalty = FeatureFlow(model, length=0.1, curvature=0.01)
    >>> logits = model(torch.randn(32, 1, 8, 8))
    >>> loss = logits.square().mean() + penalty()
    >>> loss.backward()
    >>> bool(penalty.last > 0)
    True
    """

    name = "feature_flow"
    shown = ("length", "curvature", "variant", "norm", "across_stages", "before_relu", "every", "layers")

    def __init__(
        self,
        model: nn.Module,
        length: Strength = 1e-2,
        curvature: Strength = 1e-2,
        *,
        variant: str = "arxiv",
        norm: int = 2,
        reduction: str = "mean",
        across_stages: bool = False,
        before_relu: bool = False,
        layers: Layers | None = None,
        examples: int | None = None,
        every: int = 1,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        check_strengths(length=length, curvature=curvature)
        one_of(variant=(variant, ("arxiv", "journal")), norm=(norm, (1, 2)), reduction=(reduction, ("mean", "sum")))
        self.length, self.curvature = length, curvature
        self.variant, self.norm, self.reduction = variant, norm, reduction
        self.across_stages, self.before_relu, self.examples = across_stages, before_relu, checked(examples, 1)
        tap = functools.partial(flow.tap, layers=layers, before_relu=before_relu, reduce=self._first, select=select)
        super().__init__(model, tap, every)

    def _first(self, x: Float[Tensor, "examples *feature"]) -> Float[Tensor, "n *feature"]:
        return x[: self.examples]

    def value(self, features: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """k₁ · length + k₂ · curvature of the trajectories through the tapped layers."""
        k1, k2 = (strength_at(strength, self.calls) for strength in (self.length, self.curvature))
        vertices = {
            name: x.to(torch.promote_types(x.dtype, torch.float32))
            for name, x in flow.vertices(features, self.before_relu).items()
        }
        first = next(iter(vertices.values()))
        total = first.new_zeros(())
        if not len(first):  # a rank's part of a last batch may be empty
            return total
        for polygon in flow.polygons(vertices, self.across_stages):
            path = flow.steps(list(polygon.values()))
            if k1:
                total = total + k1 * self._scaled(flow.lengths(path, self.norm), path).sum()
            if k2 and self.variant == "journal":
                total = total + k2 * flow.turning_angles(path).mean(1).sum()
            elif k2:
                total = total + k2 * self._scaled(flow.second_differences(path, self.norm), path[1:]).sum()
        return total

    def _scaled(self, norms: Float[Tensor, "parts examples"], like: Sequence[Tensor]) -> Float[Tensor, " parts"]:
        """Means over the batch, of norms or of norms per feature."""
        means = norms.mean(1)
        if self.reduction == "sum":
            return means
        return means / means.new_tensor([d[0].numel() ** (1 / self.norm) for d in like])
