"""Penalties that squeeze information: the HSIC bottleneck, and the gates of the variational information bottleneck."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from companion.blocks import find_blocks
from companion.features import FeatureTap, Layers, hooked, unwrap
from companion.information import InformationGate, normalized_hsic
from companion.regularizers.base import (
    PENALTIES,
    BasePenalty,
    FeaturePenalty,
    Strength,
    check_strengths,
    checked,
    strength_at,
)
from companion.similarity import MINIMUM, Kernel


class _Inputs:
    """Keeps what a model is given for its penalty; a copy, as a saved or a copied model has it, keeps nothing."""

    def __init__(self, penalty: HSICBottleneck | None = None) -> None:
        self._penalty = penalty

    def __call__(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        penalty = self._penalty
        if penalty is not None and module is penalty._model and penalty._due():
            x, mask = args[0].detach(), penalty._tap._mask
            tokens = mask is not None and x.ndim == 3 and mask.shape == x.shape[:2]
            penalty._input = penalty._first(x, mask if tokens else None).clone()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Inputs, ()


@PENALTIES.register("hsic_bottleneck", title="HSIC bottleneck", reads="features", signed=False)
class HSICBottleneck(FeaturePenalty):
    """β · Σ_layers nHSIC(X, T): layers that depend less on the input.

    Ma, Lewis & Kleijn (2020, arXiv 1908.01580) minimise nHSIC(X, T) − λ nHSIC(Y, T) instead of back-propagating a loss;
    here, as in Wang et al. (2021, arXiv 2106.02734), the loss itself keeps what is relevant for Y, and the penalty
    squeezes the rest. It takes O(examples³) per layer.

    Args:
        model: any module that is called with its input as the first argument.
        beta: strength β ≥ 0, or a function of the optimizer steps so far.
        examples: how many of the batch's first examples are compared; None: all. A batch with fewer than 4 gives 0.
        layers: the layers T, see `features.find_layers`; None: the blocks, see `blocks.find_blocks`.
        kernel, ridge: see `information.normalized_hsic`.
        every, select: see `FeaturePenalty` and `features.FeatureTap`.

    Raises:
        ValueError: an argument out of range, unknown layers.
        RuntimeError: no training forward pass since the model was tapped, or layers that ran outside one.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> penalty = HSICBottleneck(model, beta=0.1, layers="1")
    >>> _ = model(torch.randn(32, 4))
    >>> bool(penalty() > 0)
    True
    """

    name = "hsic_bottleneck"
    shown = ("beta", "examples", "every", "layers")

    def __init__(
        self,
        model: nn.Module,
        beta: Strength = 1e-2,
        *,
        examples: int | None = 64,
        every: int = 1,
        layers: Layers | None = None,
        kernel: Kernel = "rbf",
        ridge: float = 1e-3,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        check_strengths(beta=beta)
        self.beta, self.examples, self.kernel, self.ridge = beta, checked(examples, MINIMUM), kernel, ridge
        self._input: Tensor | None = None
        chosen = find_blocks(model) if layers is None else layers
        super().__init__(model, functools.partial(FeatureTap, layers=chosen, reduce=self._first, select=select), every)

    def _attach(self, model: nn.Module) -> None:
        super()._attach(model)
        self._hooks.enter_context(hooked({"input": self._model}, _Inputs(self), before=True))

    def _first(
        self, x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
    ) -> Float[Tensor, "few features"]:
        return super()._first(x, mask).flatten(1).to(torch.promote_types(x.dtype, torch.float32))

    def value(self, features: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """β Σ nHSIC(X, T) of the last training batch."""
        x = self._input
        if self._tap._loose or x is None:
            raise RuntimeError(
                "HSICBottleneck compares the layers with the model's input, but they ran outside a forward pass of it: "
                "call model(x) in place of a part of it, such as model.forward_features(x)"
            )
        if len(x) < MINIMUM:
            return x.new_zeros(())
        terms = [normalized_hsic(x, t, kernel=self.kernel, ridge=self.ridge) for t in features.values()]
        return (strength_at(self.beta, self.calls) * torch.stack(terms).sum()).to(next(iter(features.values())))


class VIBNet(BasePenalty):
    """Penalty and sparsity in one: β · Σ_gates ½ ln(1 + μ²/σ²), and the units whose gates closed (Dai et al. 2018).

    Put an `information.InformationGate` after each layer that may lose units, then give this to a training loop as its
    sparsity, or add `penalty()` to the loss of your own. Gates open and close by training; `step()` has nothing to do.

    Args:
        model: a module with at least one `InformationGate`.
        beta: strength β ≥ 0 in nats⁻¹, or a function of the calls so far.

    Raises:
        ValueError: a negative strength, no gate in the model.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), InformationGate(8), nn.Linear(8, 2))
    >>> sparsity = VIBNet(model, beta=0.1)
    >>> bool(sparsity.penalty() > 0), sparsity
    (True, VIBNet(beta=0.1, open={'2': '8/8'}))
    """

    name = "vibnet"
    shown = ("beta", "open")

    def __init__(self, model: nn.Module, beta: Strength = 1e-4) -> None:
        super().__init__()
        check_strengths(beta=beta)
        modules = unwrap(model).named_modules()
        self.gates = {name: module for name, module in modules if isinstance(module, InformationGate)}
        if not self.gates:
            raise ValueError(
                f"{type(model).__name__} has no InformationGate; put one after each layer that may lose units, "
                "nn.Sequential(nn.Linear(64, 32), nn.ReLU(), InformationGate(32)) for instance"
            )
        self.beta = beta

    def penalty(self) -> Float[Tensor, ""]:
        """β Σ ½ ln(1 + μ²/σ²) over all gates, in nats times β."""
        terms = torch.stack([gate.information() for gate in self.gates.values()])
        return self._computed(strength_at(self.beta, self.calls) * terms.sum())

    def step(self) -> None:
        """Nothing: the optimizer moves the gates."""

    def density(self) -> float:
        """Share of units whose gate is open."""
        opened = torch.cat([gate.open() for gate in self.gates.values()])
        return int(opened.sum()) / len(opened)

    @property
    def open(self) -> dict[str, str]:
        """How many of each gate's units are open."""
        return {name: f"{int(gate.open().sum())}/{len(gate.mean)}" for name, gate in self.gates.items()}
