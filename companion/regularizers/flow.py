"""Penalties on the trajectories of features: feature-flow regularisation, and kinetic energy."""

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


class _OnSteps(FeaturePenalty):
    """A penalty on the steps between blocks; a subclass writes `of`. Its options are explained in `FeatureFlow`."""

    def __init__(
        self,
        model: nn.Module,
        reduction: str = "mean",
        across_stages: bool = False,
        before_relu: bool = False,
        layers: Layers | None = None,
        examples: int | None = None,
        every: int = 1,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        one_of(reduction=(reduction, ("mean", "sum")))
        self.reduction, self.across_stages, self.before_relu = reduction, across_stages, before_relu
        self.examples = checked(examples, 1)
        tap = functools.partial(flow.tap, layers=layers, before_relu=before_relu, reduce=self._first, select=select)
        super().__init__(model, tap, every)

    def of(self, paths: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
        """The penalty of the steps, given for each trajectory."""
        raise NotImplementedError

    def value(self, features: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The penalty of the trajectories through the tapped layers."""
        vertices = {
            name: x.to(torch.promote_types(x.dtype, torch.float32))
            for name, x in flow.vertices(features, self.before_relu).items()
        }
        for name, x in vertices.items():
            if x.is_complex():  # whose norms have no sum that is differentiated
                name = name.partition("#")[0]
                raise ValueError(
                    f"the features of layer {name!r} are complex; give real and imaginary parts as two features: "
                    f"select={{{name!r}: torch.view_as_real}}"
                )
        first = next(iter(vertices.values()))
        if not len(first):  # a rank's part of a last batch may be empty
            return first.new_zeros(())
        return self.of([flow.steps(list(p.values())) for p in flow.polygons(vertices, self.across_stages)])

    def _scaled(
        self, norms: Float[Tensor, "parts examples"], like: Sequence[Tensor], power: float
    ) -> Float[Tensor, " parts"]:
        """Means over the batch; per feature, of which n have a norm that goes like n^`power`, unless `"sum"`. Masked
        tokens have none."""
        if self.reduction == "sum":
            return norms.mean(1)
        mask = self._tap._mask
        if mask is None:
            return norms.mean(1) / norms.new_tensor([d[0].numel() ** power for d in like])
        tokens = self._first(mask.to(norms)).sum(1).clamp(min=1)
        sizes = [tokens * d.shape[2] if d.ndim == 3 else torch.full_like(tokens, d[0].numel()) for d in like]
        return (norms / torch.stack(sizes) ** power).mean(1)


@PENALTIES.register("feature_flow", title="FFR", reads="features", signed=False)
class FeatureFlow(_OnSteps):
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
        before_relu: take each block's sum before the ReLU that ends it in place of its output.
        layers: the vertices, see `features.find_layers`; None: the blocks, see `blocks.find_blocks`.
        examples: how many of the batch's first examples; None: all.
        every, select: see `FeaturePenalty` and `features.FeatureTap`.

    Raises:
        ValueError: an argument out of range, unknown layers; at the first call, layers that make no trajectory, or
            complex features; in the forward pass, see `features.FeatureTap` and `flow.tap`.
        RuntimeError: no training forward pass since the model was tapped.

    >>> from companion.models import digits_net
    >>> model = digits_net(width=8)
    >>> penalty = FeatureFlow(model, length=0.1, curvature=0.01)
    >>> loss = model(torch.randn(32, 1, 8, 8)).square().mean() + penalty()
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
        one_of(variant=(variant, ("arxiv", "journal")), norm=(norm, (1, 2)))
        self.length, self.curvature, self.variant, self.norm = length, curvature, variant, norm
        super().__init__(model, reduction, across_stages, before_relu, layers, examples, every, select)

    def of(self, paths: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
        """k₁ · length + k₂ · curvature."""
        k1, k2 = (strength_at(strength, self.calls) for strength in (self.length, self.curvature))
        total = paths[0][0].new_zeros(())
        for path in paths:
            if k1:
                total = total + k1 * self._scaled(flow.lengths(path, self.norm), path, 1 / self.norm).sum()
            if k2 and self.variant == "journal":
                total = total + k2 * flow.turning_angles(path).mean(1).sum()
            elif k2:
                turns = flow.second_differences(path, self.norm)
                total = total + k2 * self._scaled(turns, path[1:], 1 / self.norm).sum()
        return total


@PENALTIES.register("kinetic_energy", title="kinetic energy", reads="features", signed=False)
class KineticEnergy(_OnSteps):
    r"""strength · (1/L) Σ_l ‖d_l‖², the mean square of the L steps d_l = x_{l+1} − x_l, averaged over the batch.

    The transport cost of a residual network (Karkar et al. 2020, arXiv 2009.08372), whose sum over blocks is L times
    this mean; in continuous time the kinetic energy ∫‖dx/dt‖² dt (Finlay et al. 2020, arXiv 2002.02798).

    Both it and the length of `FeatureFlow` are absolute: they fall when features shrink. The length is linear: it pulls
    at every step with the same force, and does not care how a path is cut into steps. The square pulls at a step in
    proportion to it: long steps first, hardly at short ones. By Cauchy–Schwarz (Σ‖d_l‖)² ≤ L² · (1/L) Σ‖d_l‖², with
    equality where all steps are equally long: of paths of one length it prefers those of equal steps.

    Args:
        model: any module; wrapped or compiled too, if the penalty is built before the first compiled call.
        strength: ≥ 0, a number or a function of the optimizer steps so far, such as `ramp`.
        reduction: `"mean"`: of the squares over a layer's n features; `"sum"`: ‖d‖² itself, n times as large.
        options: `across_stages`, `before_relu`, `layers`, `examples`, `every`, `select`, as for `FeatureFlow`.

    Raises:
        ValueError, RuntimeError: as for `FeatureFlow`.

    >>> halving = nn.Linear(1, 1, bias=False)
    >>> halving.weight.data.fill_(0.5)
    tensor([[0.5000]])
    >>> model = nn.Sequential(nn.Identity(), halving)
    >>> penalty = KineticEnergy(model, strength=1.0, layers=["0", "1"])
    >>> _ = model(torch.tensor([[4.0]]))
    >>> penalty().item()  # one step, from 4 to 2
    4.0
    """

    name = "kinetic_energy"
    shown = ("strength", "across_stages", "before_relu", "every", "layers")

    def __init__(self, model: nn.Module, strength: Strength = 1e-2, *, reduction: str = "mean", **options: Any) -> None:
        check_strengths(strength=strength)
        self.strength = strength
        super().__init__(model, reduction=reduction, **options)

    def of(self, paths: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
        """strength · mean over the steps of ‖d‖²."""
        squares = [self._scaled(flow.lengths(path).square(), path, 1.0) for path in paths]
        return strength_at(self.strength, self.calls) * torch.cat(squares).mean()
