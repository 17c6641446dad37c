r"""Gates of the variational information bottleneck (VIBNet; Dai, Zhu, Guo & Wipf 2018, arXiv 1802.10399).

Each unit of a layer is multiplied by its own random number, h = (μ + σ ε) f(x) with ε ~ N(0, 1). How much a unit tells
is at most ½ ln(1 + μ²/σ²) plus ½ (ln E f² − E ln f²), which no gate changes: the first part, summed over units, is
added to the loss, and units with ln(σ²/μ²) ≥ 0 are pruned.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion._checks import at_least, between, given


def gate_information(mean: Float[Tensor, "units"], variance: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """½ ln(1 + μ²/σ²) nats for each gate: the capacity of a Gaussian channel with signal μ² and noise σ².

    Raises:
        ValueError: a variance that is not positive.

    >>> gate_information(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))  # ½ ln 2, and nothing
    tensor([0.3466, 0.0000])
    """
    if not (torch.as_tensor(variance) > 0).all():
        raise ValueError(f"variance={given(variance)} must be positive: a gate without noise tells everything")
    return _capacity(mean, variance)


def _capacity(mean: Float[Tensor, "units"], variance: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    return 0.5 * torch.log1p(mean.square() / variance)


class InformationGate(nn.Module):
    """Multiplies each unit (dimension 1) by μ + σε in training, by μ in evaluation, by 0 where it is pruned.

    Put it after the activation of a layer with `units` units or channels.

    Args:
        units: number of units, the size of dimension 1 of the input.
        variance: σ² to begin with; μ begins at 1.
        threshold: a unit with ln(σ²/μ²) ≥ `threshold` is pruned in evaluation.

    Attributes:
        mean, log_variance: the parameters μ and ln σ².

    >>> gate = InformationGate(units=3)
    >>> with torch.no_grad():
    ...     gate.mean[0] = 0
    >>> gate.eval()(torch.ones(1, 3)), gate
    (tensor([[0., 1., 1.]], grad_fn=<MulBackward0>), InformationGate(3, open=2))
    """

    def __init__(self, units: int, *, variance: float = 0.01, threshold: float = 0.0) -> None:
        super().__init__()
        at_least(1, units=units)
        between(0, math.inf, open_low=True, open_high=True, variance=variance)
        self.mean = nn.Parameter(torch.ones(units))
        self.log_variance = nn.Parameter(torch.full((units,), float(variance)).log())
        self.threshold = threshold

    def forward(self, x: Float[Tensor, "examples units *positions"]) -> Float[Tensor, "examples units *positions"]:
        """The gated features; one draw of ε for each example and unit, shared by all positions."""
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"{len(self.mean)} gates for features of shape {tuple(x.shape)}; dimension 1 must match")
        if self.training:
            noise = torch.randn(x.shape[:2], dtype=x.dtype, device=x.device)
            gate = self.mean + noise * (0.5 * self.log_variance).exp()
        else:
            gate = (self.mean * self.open()).expand(x.shape[:2])
        return x * gate.view(*x.shape[:2], *[1] * (x.ndim - 2))

    def log_ratio(self) -> Float[Tensor, "units"]:
        """ln(σ²/μ²) of each unit, detached."""
        return (self.log_variance - self.mean.square().clamp(min=1e-30).log()).detach()

    def open(self) -> Bool[Tensor, "units"]:
        """Which units stay: ln(σ²/μ²) < `threshold`."""
        return self.log_ratio() < self.threshold

    def information(self) -> Float[Tensor, ""]:
        """Σ ½ ln(1 + μ²/σ²) in nats: the term of the loss."""
        # Nothing is checked: in a step of training it would wait for the device.
        return _capacity(self.mean, self.log_variance.exp()).sum()

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, open={int(self.open().sum())}"
