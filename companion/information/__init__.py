"""Information: entropies and mutual information, in closed form and estimated, and the information bottleneck.

Functions are pure; every estimate is an `Estimate`: value, standard error where theory gives one, what it assumes, and
whether it is a bound. Chapters *Measuring information* and *The information bottleneck* derive most of it.
"""

from __future__ import annotations

from companion.information.discrete import (
    bin_edges,
    bin_index,
    binned,
    discrete_entropy,
    discrete_mutual_information,
    entropy_of,
    fixed_edges,
    mutual_information_of,
)
from companion.information.estimates import Estimate
from companion.information.gates import InformationGate, gate_information
from companion.information.gaussian import (
    GaussianBottleneck,
    canonical_correlations,
    covariance,
    gaussian_entropy,
    gaussian_estimate,
    gaussian_mutual_information,
)
from companion.information.kernels import normalized_hsic, renyi, renyi_entropy
from companion.information.measure import estimators, mutual_information
from companion.information.mixtures import kolchinsky_tracey, noisy_label_information
from companion.information.neighbors import entropy, ksg, mixed_ksg, ross
from companion.information.plane import InformationPlane
from companion.information.variational import Critic, donsker_varadhan, infonce, nwj, variational_bound

__all__ = [
    "Critic",
    "Estimate",
    "GaussianBottleneck",
    "InformationGate",
    "InformationPlane",
    "bin_edges",
    "bin_index",
    "binned",
    "canonical_correlations",
    "covariance",
    "discrete_entropy",
    "discrete_mutual_information",
    "donsker_varadhan",
    "entropy",
    "entropy_of",
    "estimators",
    "fixed_edges",
    "gate_information",
    "gaussian_entropy",
    "gaussian_estimate",
    "gaussian_mutual_information",
    "infonce",
    "kolchinsky_tracey",
    "ksg",
    "mixed_ksg",
    "mutual_information",
    "mutual_information_of",
    "noisy_label_information",
    "normalized_hsic",
    "nwj",
    "renyi",
    "renyi_entropy",
    "ross",
    "variational_bound",
]
