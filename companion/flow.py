"""Flow: the trajectory of an example through a network, as a polygon in feature space.

Each layer's features are one vertex, x₀, x₁, …, x_L; the steps are d_l = x_{l+1} − x_l. Pure functions of tensors. A
difference needs two features of one shape, so a trajectory here lies inside one stage: `stages` cuts a network's
features where the shape changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def stages(features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The layers in runs of equal shape, in order: the residual stages of a ResNet."""
    return [dict(run) for _, run in groupby(features.items(), key=lambda item: item[1].shape)]


def steps(features: Sequence[Float[Tensor, "examples *feature"]]) -> list[Float[Tensor, "examples features"]]:
    """The steps d_l = x_{l+1} − x_l of every example, flattened.

    Raises:
        ValueError: features of different shape.
    """
    shapes = {tuple(x.shape) for x in features}
    if len(shapes) > 1:
        raise ValueError(
            f"a step needs two features of one shape; got {sorted(shapes)}: cut the trajectory with `stages`"
        )
    return [(y - x).flatten(1) for x, y in pairwise(features)]


def lengths(path: Sequence[Float[Tensor, "examples features"]], norm: float = 2) -> Float[Tensor, "steps examples"]:
    """‖d_l‖ of every step, in units of the features; `norm` is 1 or 2."""
    return torch.stack([torch.linalg.vector_norm(d, norm, dim=1) for d in path])


def turning_angles(path: Sequence[Float[Tensor, "examples features"]]) -> Float[Tensor, "turns examples"]:
    """Angle between successive steps, in radians: 0 is straight on, π straight back.

    2·atan2(‖u − v‖, ‖u + v‖) of the unit steps u, v, because arccos⟨u, v⟩ has an infinite gradient at 0, the straight
    path. A step of length 0 has no direction; its angles are 0.
    """
    angles = []
    for d, e in pairwise(path):
        u, v = F.normalize(d, dim=1), F.normalize(e, dim=1)
        moving = (d != 0).any(1) & (e != 0).any(1)
        angle = 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))
        angles.append(torch.where(moving, angle, 0))
    return torch.stack(angles) if angles else path[0].new_zeros(0, path[0].shape[0])
