"""Information: entropies and mutual information, in closed form and estimated, and the information bottleneck.

>>> import torch
>>> covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
>>> f"{gaussian_mutual_information(covariance, split=1):.2f} nats"
'0.83 nats'

Functions are pure; every estimate is an `Estimate`: value, standard error where theory gives one, what it assumes, and
whether it is a bound. Chapters *Measuring information* and *The information bottleneck* derive everything here.
"""

from __future__ import annotations

from companion.information.estimates import Estimate
from companion.information.gaussian import (
    GaussianBottleneck,
    canonical_correlations,
    covariance,
    gaussian,
    gaussian_entropy,
    gaussian_mutual_information,
)

__all__ = [
    "Estimate",
    "GaussianBottleneck",
    "canonical_correlations",
    "covariance",
    "gaussian",
    "gaussian_entropy",
    "gaussian_mutual_information",
]
