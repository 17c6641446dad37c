r"""Feature similarity: HSIC and CKA, biased and unbiased, of two feature matrices or all pairs of layers in one pass.

Rows are examples. With a kernel matrix K of one layer and L of the other, n × n,

- biased (Gretton et al. 2005):  HSIC₀ = ⟨HKH, HLH⟩ / (n−1)²,  H = I − 11ᵀ/n;
- unbiased (Song et al. 2012):   HSIC₁ = ⟨K̃, L̃⟩ / (n(n−3)),  K̃ the *U-centred* matrix of Székely & Rizzo (2014);
- CKA = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))  (Kornblith et al. 2019).

With few examples of features that vary in many directions the biased value is near 1, whatever the layers share;
`unbiased=True` is the default everywhere. A *dead* layer, one that gives every example the same features (to the
unbiased value: every example but one), has no CKA; it is **defined as 0**, with gradient 0. The same means: but for
rounding in the dtype of the features; what a network makes of rounding later, such as a batch norm that divides it by
√ε, is not seen. Chapters *Feature similarity* and *Estimating CKA well* derive everything here.

All functions compute in float32 (float64 for float64 features), whatever autocast says, and sum in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from companion.similarity._cka import alignment, cka, cka_matrix, hsic
from companion.similarity._intervals import Interval, cka_interval
from companion.similarity._kernels import MINIMUM, Kernel, gram, h_center, linear_kernel, rbf_kernel, u_center
from companion.similarity._maps import cka_map
from companion.similarity._null import Null, cka_null, cka_null_map

if TYPE_CHECKING:
    from companion.similarity._streaming import ExactCKA, MinibatchCKA

__all__ = [
    "MINIMUM",
    "ExactCKA",
    "Interval",
    "Kernel",
    "MinibatchCKA",
    "Null",
    "alignment",
    "cka",
    "cka_interval",
    "cka_map",
    "cka_matrix",
    "cka_null",
    "cka_null_map",
    "gram",
    "h_center",
    "hsic",
    "linear_kernel",
    "rbf_kernel",
    "u_center",
]

# torchmetrics takes longer to import than all else here.
__getattr__ = lazy_loader.attach(__name__, submod_attrs={"_streaming": ["ExactCKA", "MinibatchCKA"]})[0]
