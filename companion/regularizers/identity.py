"""Penalties on the similarity of layers: CKA-SR and AugCKA-SR."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, pairwise
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from companion._checks import one_of
from companion._numbers import float64_device
from companion.blocks import find_blocks, stages
from companion.features import FeatureTap, Layers
from companion.regularizers.base import PENALTIES, FeaturePenalty, Strength, check_strengths, checked, strength_at
from companion.similarity import MINIMUM, Kernel, alignment, gram

Pair: TypeAlias = tuple[str, str]
Pairs: TypeAlias = "str | Iterable[Pair] | Mapping[Pair, float]"

FEW = 32  # examples below which the biased estimator says more about their number than about the layers


@PENALTIES.register("cka_sr", title="CKA-SR", reads="features", signed=True)
class CKASparsity(FeaturePenalty):
    r"""CKA-SR (Ni et al. 2023, arXiv 2307.07389, appendix eq. 11): β · Σ_stages Σ_i Σ_{j≠i} CKA(X_i, X_j).

    The sum runs over ordered pairs, so each distinct pair counts twice; the constant pairs i = j are left out. A
    *stage* is a run of blocks whose outputs have one shape. What it shares with other penalties: `FeaturePenalty`.

    Args:
        model: any module; wrapped or compiled too, if the penalty is built before the first compiled call.
        beta: strength β ≥ 0, a number or a function of the optimizer steps so far.
        examples: how many of the batch's first examples are compared; None: all. A batch with fewer than 4 gives 0.
        every: compute the penalty at every n-th call, return 0 at the others. One call is one optimizer step.
        layers: the layers to compare, see `features.find_layers`; None: the blocks, see `blocks.find_blocks`.
        pairs: `"stage"`, `"all"`, `"adjacent"` (neighbours inside a stage), a list of pairs of names, or a mapping from
            pair to weight w_ij.
        estimator: `"unbiased"` or `"biased"`. With few examples the biased value says more about their number than
            about the layers: a warning says so.
        form: what is summed: the value (`"signed"`; the unbiased one rewards negative values), its square, its
            positive part (`"clipped"`), or its negative (`"negated"`: a control that makes layers more alike).
        reduction: `"sum"` over ordered pairs, or `"mean"` over distinct ones.
        kernel: see `similarity.gram`.
        select: see `features.FeatureTap`.

    Raises:
        ValueError: an argument out of range, unknown layers or pairs, no pair at all among the layers that ran.
        RuntimeError: no training forward pass since the model was tapped.

    >>> from companion.models import digits_net
    >>> model = digits_net(width=8)
    >>> penalty = CKASparsity(model, beta=0.1)
    >>> loss = model(torch.randn(32, 1, 8, 8)).square().mean() + penalty()
    >>> loss.backward()
    >>> penalty.table().shape, penalty.calls
    ((4, 4), 1)
    """

    name = "cka"
    shown = ("beta", "examples", "every", "layers", "form")

    def __init__(
        self,
        model: nn.Module,
        beta: Strength = 1e-4,
        *,
        examples: int | None = 8,
        every: int = 5,
        layers: Layers | None = None,
        pairs: Pairs = "stage",
        estimator: str = "unbiased",
        form: str = "signed",
        reduction: str = "sum",
        kernel: Kernel = "linear",
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        check_strengths(beta=beta)
        one_of(estimator=(estimator, ("unbiased", "biased")), form=(form, FORMS))
        one_of(reduction=(reduction, ("sum", "mean")))
        if isinstance(pairs, str):
            one_of(pairs=(pairs, ("stage", "all", "adjacent")))
        self.beta, self.examples = beta, checked(examples, MINIMUM)
        if estimator == "biased" and examples is not None and examples < FEW:
            warnings.warn(
                f"biased CKA of {examples} examples is near 1 for wide layers whatever they share (0.97 for 8 examples "
                "of unrelated ones); use estimator='unbiased', or more examples",
                stacklevel=2,
            )
        self.pairs, self.reduction, self.form, self.kernel = pairs, reduction, form, kernel
        self.unbiased = estimator == "unbiased"
        self._weights: tuple[list[str], Tensor] | None = None  # of the layers that ran, in their order
        self._compared: tuple[list[str], Tensor] | None = None
        chosen = find_blocks(model) if layers is None else layers
        super().__init__(model, functools.partial(FeatureTap, layers=chosen, reduce=self._gram, select=select), every)

    def _gram(
        self, x: Float[Tensor, "examples *feature"], mask: Shaped[Tensor, "examples tokens"] | None = None
    ) -> Float[Tensor, "n n"]:
        return gram(self._first(x, mask), self.kernel)

    def value(self, features: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """β times the sum over pairs of the layers' Gram matrices."""
        layers, grams = list(features), list(features.values())
        if self._weights is None or self._weights[0] != layers:
            self._weights = layers, self._pair_weights(layers).to(float64_device(grams[0].device))
        if len(grams[0]) < MINIMUM:
            return grams[0].new_zeros(())
        values = alignment(grams, self.unbiased)
        self._compared = layers, values.detach()
        total = (
            strength_at(self.beta, self.calls) * (self._weights[1].to(values.device) * FORMS[self.form](values)).sum()
        )
        return total.to(grams[0])

    def _pair_weights(self, layers: list[str]) -> Float[Tensor, "layers layers"]:
        """w_ij of every pair i < j of the layers that ran; their first pass tells the shapes."""
        found = stages(self._tap.shapes)
        if isinstance(self.pairs, Mapping):
            chosen = dict(self.pairs)
        elif not isinstance(self.pairs, str):
            chosen = dict.fromkeys(self.pairs, 1.0)
        elif self.pairs == "all":
            chosen = dict.fromkeys(combinations(layers, 2), 1.0)
        else:
            neighbours = pairwise if self.pairs == "adjacent" else lambda stage: combinations(stage, 2)
            chosen = dict.fromkeys((pair for stage in found for pair in neighbours(stage)), 1.0)
        unknown = sorted({name for pair in chosen for name in pair} - set(layers))
        if unknown or any(a == b for a, b in chosen):
            raise ValueError(f"pairs must be of two different layers among {layers}; got {unknown or list(chosen)}")
        if not chosen:
            raise ValueError(
                f"no pair to compare: the stages {found} hold one layer each; use pairs='all', or choose layers"
            )
        weights = torch.zeros(len(layers), len(layers), dtype=torch.float64)
        for (a, b), weight in chosen.items():
            weights[layers.index(a), layers.index(b)] += weight
        return weights * (2 if self.reduction == "sum" else 1 / len(chosen))

    def table(self) -> pd.DataFrame:
        """CKA of all layers at the last value computed, for a look inside."""
        if self._compared is None:
            raise RuntimeError("the penalty has not been computed yet")
        layers, values = self._compared
        return pd.DataFrame(values.cpu().numpy(), index=layers, columns=layers)


FORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda values: values,
    "squared": torch.square,
    "clipped": torch.relu,
    "negated": torch.neg,
}


@PENALTIES.register("aug_cka_sr", title="AugCKA-SR", reads="features", signed=False)
class AugmentedCKASparsity(CKASparsity):
    """AugCKA-SR (appendix eq. 14): β · 2/(N(N−1)) · Σ_{i<j} CKA(X_i, X_j) over all N blocks, across stages.

    Biased, on every example of every batch. Arguments as for `CKASparsity`.

    >>> from companion.models import resnet20
    >>> model = resnet20(width=4)
    >>> penalty = AugmentedCKASparsity(model, beta=0.1)
    >>> _ = model(torch.randn(32, 3, 16, 16))
    >>> bool(0 < penalty() < 0.1), penalty.table().shape
    (True, (9, 9))
    """

    name = "augmented_cka"

    def __init__(
        self, model: nn.Module, beta: Strength = 0.1, *, examples: int | None = None, every: int = 1, **options: Any
    ) -> None:
        published = {"pairs": "all", "estimator": "biased", "reduction": "mean"}
        super().__init__(model, beta, examples=examples, every=every, **{**published, **options})
