"""Controls: penalties that disturb a training as much as the one under test, and do not do what it does."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from companion.regularizers import PENALTIES, AugmentedCKASparsity, CKASparsity


def random_rotation(size: int, seed: int) -> Float[Tensor, "size size"]:
    """An orthogonal matrix drawn uniformly (by Haar's measure; Mezzadri 2007), in float32.

    >>> q = random_rotation(3, seed=0)
    >>> torch.allclose(q @ q.T, torch.eye(3), atol=1e-6)
    True
    """
    chance = torch.Generator().manual_seed(1_000_003 * seed + size)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=chance, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()


class _Turned(torch.autograd.Function):
    """x, whose gradient g comes back as g·Q along the channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        (q,) = ctx.saved_tensors
        return (g.movedim(1, -1).to(q.dtype) @ q).movedim(-1, 1).to(g.dtype), None


class _Placebo:
    """A penalty whose gradient with respect to each layer's features is multiplied by a random orthogonal matrix of its
    channels: as large as the penalty's, in as persistent a direction, and of no effect on the penalty to first order,
    in the mean over draws, since E[Q] = 0.

    The matrix is drawn once a run, one for each number of channels, which the layers of a stage share. The value that
    is reported is the penalty's own.
    """

    def __init__(self, model: nn.Module, *args: Any, seed: int = 0, **options: Any) -> None:
        self.seed = seed
        self._rotations: dict[int, Tensor] = {}
        super().__init__(model, *args, **options)  # type: ignore[call-arg]

    def _gram(
        self, x: Float[Tensor, "examples channels *positions"], mask: Shaped[Tensor, "examples tokens"] | None = None
    ) -> Float[Tensor, "n n"]:
        channels = x.shape[1]
        if channels not in self._rotations:
            self._rotations[channels] = random_rotation(channels, self.seed).to(x.device)
        return super()._gram(_Turned.apply(x, self._rotations[channels]), mask)  # type: ignore[misc]


@PENALTIES.register("placebo_cka_sr", title="CKA-SR, placebo", reads="features", signed=True)
class PlaceboCKASparsity(_Placebo, CKASparsity):
    """The control of `CKASparsity`; see `_Placebo`. Arguments as there, and the run's `seed`.

    >>> from companion.models import digits_net
    >>> model = digits_net(width=8)
    >>> penalty = PlaceboCKASparsity(model, beta=0.1, seed=1)
    >>> (model(torch.randn(32, 1, 8, 8)).square().mean() + penalty()).backward()
    """

    name = "placebo_cka"


@PENALTIES.register("placebo_aug_cka_sr", title="AugCKA-SR, placebo", reads="features", signed=False)
class PlaceboAugmentedCKASparsity(_Placebo, AugmentedCKASparsity):
    """The control of `AugmentedCKASparsity`; see `_Placebo`. Arguments as there, and the run's `seed`."""

    name = "placebo_augmented_cka"
