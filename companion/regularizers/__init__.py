"""Penalties: terms of the loss that read what the last training forward pass left in the network, or its weights.

All share one interface. A penalty is built from a model, called once for each optimizer step after the forward pass,
and returns a scalar that is added to the loss::

    penalty = CKASparsity(model, beta=1e-4)
    for x, y in loader:
        loss = F.cross_entropy(model(x), y) + penalty()
        optimizer.zero_grad(); loss.backward(); optimizer.step()

Evaluation passes leave nothing behind. `penalty.last` is the last value that was computed, detached: log it, not
`penalty()`, which is 0 at the calls that `every` leaves out. `remove()` takes off the hooks of those that read
features. A strength is a number, or a function of the optimizer steps so far, such as `ramp`.

`PENALTIES` holds them all by name. `base` is what they share, `identity` CKA-SR and its relatives, `flow` feature-flow
regularisation, `information` what squeezes information, `weights` the baselines that read weights.

Chapter *Identity layers* derives CKA-SR, chapter *Feature-flow regularisation* FFR, chapter *The information
bottleneck* the penalties on information.
"""

from __future__ import annotations

from companion.regularizers.base import PENALTIES, FeaturePenalty, ramp
from companion.regularizers.flow import FeatureFlow, KineticEnergy
from companion.regularizers.identity import AugmentedCKASparsity, CKASparsity
from companion.regularizers.information import HSICBottleneck, VIBNet
from companion.regularizers.weights import L1, GroupLasso, NetworkSlimming

__all__ = [
    "L1",
    "PENALTIES",
    "AugmentedCKASparsity",
    "CKASparsity",
    "FeatureFlow",
    "FeaturePenalty",
    "GroupLasso",
    "HSICBottleneck",
    "KineticEnergy",
    "NetworkSlimming",
    "VIBNet",
    "ramp",
]
