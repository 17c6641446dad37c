"""HSIC and CKA against closed forms, definitions written out in float64, and what must not change them."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from companion._numbers import _resolution
from companion.features import FeatureTap, batches, extract
from companion.models import digits_net
from companion.regularizers import CKASparsity
from companion.similarity import (
    MINIMUM,
    ExactCKA,
    MinibatchCKA,
    alignment,
    cka,
    cka_interval,
    cka_map,
    cka_matrix,
    cka_null,
    cka_null_map,
    gram,
    h_center,
    hsic,
    linear_kernel,
    rbf_kernel,
    u_center,
)
from companion.similarity._cka import _ratio
from companion.similarity._fast import CenteredGram

both_estimators = pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "biased"])


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def correlated(n: int, p: int, rho: float, seed: int = 0, decay: float = 0.0) -> tuple[Tensor, Tensor]:
    """y = ρx + √(1−ρ²)e; feature j has the standard deviation (j+1)^−decay. The population's linear CKA is ρ²."""
    x, e = gaussian(2, n, p, seed=seed)
    scale = torch.arange(1, p + 1, dtype=torch.float64) ** -decay
    return x * scale, (rho * x + math.sqrt(1 - rho**2) * e) * scale


def rotation(p: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(p, p, seed=seed)).Q


# ----------------------------------------------------------------------------------------- the definitions, written out
def hsic_biased(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """HSIC₀ = tr(KHLH) / (n−1)² (Gretton et al. 2005)."""
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - torch.ones(n, n, dtype=k.dtype) / n
    return torch.trace(k @ h @ l @ h) / (n - 1) ** 2


def hsic_unbiased(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """HSIC₁ by its three terms (Song et al. 2012, eq. 5)."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    three = (
        torch.trace(k @ l) + one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return three / (n * (n - 3))


def reference(x: Tensor, y: Tensor, unbiased: bool, kernel: Callable[[Tensor], Tensor] = lambda x: x @ x.T) -> float:
    """CKA of uncentred kernel matrices: the form in the code that the CKA-SR authors released."""
    h = hsic_unbiased if unbiased else hsic_biased
    k, l = kernel(x.double().flatten(1)), kernel(y.double().flatten(1))  # noqa: E741
    return float(h(k, l) / (h(k, k) * h(l, l)).sqrt())


def reference_rbf(bandwidth: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.exp(-((x[:, None] - x[None]) ** 2).sum(2) / (2 * bandwidth**2))


@both_estimators
def test_hsic_is_its_definition(unbiased: bool, device: torch.device) -> None:
    x, y = gaussian(9, 5), gaussian(9, 4, seed=1)
    define = hsic_unbiased if unbiased else hsic_biased
    got = hsic(x.to(device), y.to(device), unbiased=unbiased)
    assert got.item() == pytest.approx(define(x @ x.T, y @ y.T).item(), rel=1e-12)
    rbf = reference_rbf(1.5)
    got = hsic(x.to(device), y.to(device), unbiased=unbiased, kernel=lambda z: rbf_kernel(z, bandwidth=1.5))
    assert got.item() == pytest.approx(define(rbf(x), rbf(y)).item(), rel=1e-11)


def test_unbiased_hsic_is_the_u_statistic() -> None:
    """The mean over all ordered quadruples of different examples of k_ij l_ij + k_ij l_qr − 2 k_ij l_iq."""
    x, y = gaussian(6, 3), gaussian(6, 2, seed=1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    terms = [
        k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q]
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    assert hsic(x, y).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-12)


@both_estimators
def test_cka_is_its_definition(unbiased: bool, device: torch.device) -> None:
    for n, p, q in ((4, 3, 7), (9, 20, 5), (150, 40, 600)):
        x, y = gaussian(n, p), gaussian(n, q, seed=1) + gaussian(n, p)[:, :1]
        got = cka(x.to(device), y.to(device), unbiased=unbiased)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(reference(x, y, unbiased), abs=1e-12)


def test_biased_linear_cka_in_feature_space() -> None:
    """‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) of centred features (Kornblith et al. 2019)."""
    x, y = gaussian(30, 6), gaussian(30, 4, seed=1).exp()
    a, b = x - x.mean(0), y - y.mean(0)
    norm = torch.linalg.matrix_norm
    expected = norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
    assert cka(x, y, unbiased=False).item() == pytest.approx(expected.item(), rel=1e-12)


def test_centred_matrices() -> None:
    k = gaussian(7, 7)
    k = k @ k.T
    u, h = u_center(k), h_center(k)
    n, zero = 7, torch.zeros(7, dtype=torch.float64)
    assert torch.equal(u.diagonal(), zero)
    torch.testing.assert_close(u.sum(0), zero)
    torch.testing.assert_close(u.sum(1), zero)
    torch.testing.assert_close(h.sum(0), zero)
    off, i, j = k - k.diag().diag(), 2, 5
    rows, total = off.sum(1) / (n - 2), off.sum() / ((n - 1) * (n - 2))
    torch.testing.assert_close(u[i, j], k[i, j] - rows[i] - rows[j] + total)  # Székely & Rizzo (2014), eq. 2.2
    other = gaussian(7, 7, seed=1)
    other = other @ other.T
    torch.testing.assert_close((u * u_center(other)).sum() / (n * (n - 3)), hsic_unbiased(k, other), rtol=1e-11, atol=0)
    torch.testing.assert_close((h * h_center(other)).sum() / (n - 1) ** 2, hsic_biased(k, other), rtol=1e-11, atol=0)


# --------------------------------------------------------------------------------------------------------- closed forms
def test_by_hand(device: torch.device) -> None:
    """Two groupings of four examples that cross each other.

    Centred x = (−½, −½, ½, ½): K is ¼ inside a group and −¼ across; off the diagonal a row sums to −¼, all rows to −1,
    so K̃ is ¼ + 2·(¼/2) − 1/6 = ⅓ inside and −1/6 across. ⟨K̃, K̃⟩ = 4/9 + 8/36 = ⅔; with y's ⟨K̃, L̃⟩ = −8/18 + 4/36 = −⅓.
    """
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]], device=device)
    y = torch.tensor([[0.0], [1.0], [0.0], [1.0]], device=device)
    third, sixth = 1 / 3, 1 / 6
    expected = torch.tensor([[0, third], [third, 0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    expected = torch.tensor(
        [
            [0, third, -sixth, -sixth],
            [third, 0, -sixth, -sixth],
            [-sixth, -sixth, 0, third],
            [-sixth, -sixth, third, 0],
        ],
        device=device,
    )
    torch.testing.assert_close(u_center(gram(x)), expected)
    assert hsic(x, x).item() == pytest.approx(1 / 6, abs=1e-7)  # ⅔ / n(n−3)
    assert hsic(x, y).item() == pytest.approx(-1 / 12, abs=1e-7)
    assert cka(x, y).item() == pytest.approx(-1 / 2, abs=1e-7)
    assert hsic(x, x, unbiased=False).item() == pytest.approx(1 / 9, abs=1e-7)  # (‖x‖²/(n−1))², ‖x‖² = 1
    assert cka(x, y, unbiased=False).item() == pytest.approx(0, abs=1e-7)


@both_estimators
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_copies_have_cka_one(unbiased: bool, kernel: str, device: torch.device) -> None:
    """Rotated, reflected, scaled and shifted copies, also embedded in more dimensions."""
    x = gaussian(20, 6)
    wider = torch.cat([x, torch.zeros(20, 3, dtype=x.dtype)], dim=1) @ rotation(9)
    for copied in (x, x @ rotation(6), x * -3, x + gaussian(6), wider * 0.01 + 7):
        value = cka(x.to(device), copied.to(device), unbiased=unbiased, kernel=kernel)
        assert value.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
def test_independent_gaussians() -> None:
    """The numbers of the book: unbiased ≈ 0 on average, biased .97 at 8 examples and .67 at 128 with 256 features."""
    for n, draws, biased, spread in ((8, 200, 0.97, 0.22), (128, 10, 0.67, 0.011)):
        pairs = [gaussian(2, n, 256, seed=i) for i in range(draws)]
        values = torch.stack([cka(x, y) for x, y in pairs])
        assert abs(values.mean()) < 4 * spread / math.sqrt(draws)
        assert values.std().item() == pytest.approx(spread, rel=0.5)  # at 8 examples a single draw says nothing
        values = torch.stack([cka(x, y, unbiased=False) for x, y in pairs])
        assert values.mean().item() == pytest.approx(biased, abs=0.005)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_population_value(rho: float) -> None:
    """E xyᵀ = ρI, so CKA of the population is ‖ρI‖²/‖I‖² = ρ²; the unbiased estimate is centred on it."""
    values = torch.stack([cka(*correlated(200, 50, rho, seed=i)) for i in range(40)])
    assert values.mean().item() == pytest.approx(rho**2, abs=4 * values.std().item() / math.sqrt(40) + 0.003)
    biased = cka(*correlated(200, 50, rho), unbiased=False)
    assert biased > rho**2 + 0.02  # (n·p + ρ²n²)/(n·p + n²) is the biased one's centre, roughly


# --------------------------------------------------------------------------------------------------- what never changes
shapes = st.tuples(st.integers(4, 12), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.slow
@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    shapes,
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from(["linear", "rbf"]),
    st.floats(1e-6, 1e6),
    st.floats(-100, 100),
)
def test_invariances(
    shape: tuple[int, int, int], seed: int, unbiased: bool, kernel: str, scale: float, shift: float
) -> None:
    n, p, q = shape
    x, y = gaussian(n, p, seed=seed), gaussian(n, q, seed=seed + 1)
    value = cka(x, y, unbiased=unbiased, kernel=kernel)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    same = {
        "symmetry": cka(y, x, unbiased=unbiased, kernel=kernel),
        "order of examples": cka(x[order], y[order], unbiased=unbiased, kernel=kernel),
        "rotation": cka(x @ rotation(p, seed), y, unbiased=unbiased, kernel=kernel),
        "scale": cka(x * scale, y * -scale, unbiased=unbiased, kernel=kernel),
        "shift": cka(x + shift, y - shift, unbiased=unbiased, kernel=kernel),
        "order of features": cka(x.flip(1), y, unbiased=unbiased, kernel=kernel),
    }
    for name, other in same.items():
        assert other.item() == pytest.approx(value.item(), abs=1e-7), name


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.data(), shapes, st.booleans(), st.sampled_from(["linear", "rbf"]))
def test_bounds(data: st.DataObject, shape: tuple[int, int, int], unbiased: bool, kernel: str) -> None:
    """|CKA| ≤ 1, ≥ 0 when biased, never NaN: whatever the features, duplicated and constant examples included."""
    n, p, q = shape
    x, y = (torch.from_numpy(data.draw(arrays("float64", (n, m), elements=st.integers(-3, 3)))) for m in (p, q))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        value = cka_matrix([x, y], unbiased=unbiased, kernel=kernel)
    assert (value.abs() <= 1 + 1e-9).all()
    torch.testing.assert_close(value, value.T, rtol=0, atol=1e-12)
    if not unbiased:
        assert (value >= -1e-12).all()
    # Alike in all examples; in all but one, too, where U-centring takes away what one example has of its own.
    alike = [max(torch.unique(z, dim=0, return_counts=True)[1].tolist()) for z in (x, y)]
    dead = torch.tensor([count >= n - unbiased for count in alike])
    assert torch.equal(value[dead], torch.zeros_like(value[dead]))
    if not unbiased:
        torch.testing.assert_close(value.diagonal(), (~dead).double())


@settings(deadline=None, max_examples=25, derandomize=True)
@given(shapes, st.integers(0, 2**31), st.booleans())
def test_any_features_match_the_definition(shape: tuple[int, int, int], seed: int, unbiased: bool) -> None:
    n, p, q = shape
    x, y = gaussian(n, p, seed=seed).exp(), gaussian(n, q, seed=seed + 1).relu() + gaussian(n, 1, seed=seed) ** 2
    assert cka(x, y, unbiased=unbiased).item() == pytest.approx(reference(x, y, unbiased), abs=1e-8)


# -------------------------------------------------------------------------------------------------------- float formats
@both_estimators
def test_float32(unbiased: bool, device: torch.device) -> None:
    """Float32 features: the Gram matrix is rounded (1e-7 an entry, at random), sums are float64."""
    for p in (10, 1000, 20_000):
        x = gaussian(64, p, dtype=torch.float32)
        y = 0.5 * x + gaussian(64, p, seed=1, dtype=torch.float32)
        got = cka(x.to(device), y.to(device), unbiased=unbiased).item()
        assert got == pytest.approx(reference(x, y, unbiased), abs=5e-7)


@both_estimators
def test_bfloat16(unbiased: bool, device: torch.device) -> None:
    """bf16 keeps 8 bits: exact to float32 for the rounded features, within their rounding (2⁻⁹) of the original."""
    x = gaussian(64, 200)
    y = 0.7 * x + gaussian(64, 200, seed=1)
    a, b = x.bfloat16(), y.bfloat16()
    got = cka(a.to(device), b.to(device), unbiased=unbiased).item()
    assert got == pytest.approx(reference(a, b, unbiased), abs=5e-7)
    assert got == pytest.approx(reference(x, y, unbiased), abs=2**-9)


def test_autocast_changes_nothing(device: torch.device) -> None:
    x, y = (gaussian(32, 300, seed=i, dtype=torch.float32).to(device) for i in range(2))
    plain = cka(x, y), cka(x, y, kernel="rbf"), gram(x)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16  # autocast is on
        cast = cka(x, y), cka(x, y, kernel="rbf"), gram(x)
    assert cast[2].dtype == torch.float32
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)


@both_estimators
@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [(torch.float32, 100, 1e-5), (torch.float64, 100, 1e-12), (torch.float64, 1e4, 1e-10)],
)
def test_common_offset(
    unbiased: bool, dtype: torch.dtype, offset: float, tolerance: float, device: torch.device
) -> None:
    """An offset in standard deviations. What remains is the rounding of the shifted features themselves (offset·ε, at
    random): against the definition of *those* features the float32 value is as good as without an offset."""
    x, y = correlated(64, 500, 0.5)
    x, y = x.to(dtype), y.to(dtype)
    a, b = x + offset, y - offset
    plain, shifted = (cka(u.to(device), v.to(device), unbiased=unbiased).item() for u, v in ((x, y), (a, b)))
    assert shifted == pytest.approx(plain, abs=tolerance)
    exact = reference(a.double() - offset, b.double() + offset, unbiased)
    assert shifted == pytest.approx(exact, abs=1e-6 if dtype == torch.float32 else tolerance)


def test_cpu_and_cuda_agree() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    layers = [gaussian(128, p, seed=p, dtype=torch.float32) for p in (16, 1000, 16_384)]
    for kernel in ("linear", "rbf"):
        for unbiased in (True, False):
            cpu = cka_matrix(layers, unbiased=unbiased, kernel=kernel)
            cuda = cka_matrix([x.cuda() for x in layers], unbiased=unbiased, kernel=kernel)
            torch.testing.assert_close(cuda.cpu(), cpu, rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- kernels
@pytest.mark.parametrize("n", [5, 64, 65, 200])
@pytest.mark.parametrize("p", [1, 511, 1300])
def test_gram_in_blocks_is_the_gram_matrix(n: int, p: int) -> None:
    """On the CPU, for many examples, it is built block by block, a few features at a time."""
    x = gaussian(n, p) + 3
    centred = x - x.mean(0)
    torch.testing.assert_close(gram(x), centred @ centred.T, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gram(x.clone().requires_grad_()), gram(x), rtol=1e-11, atol=1e-11)
    assert torch.equal(gram(x), gram(x).T)
    torch.testing.assert_close(linear_kernel(x), x @ x.T)


@pytest.mark.parametrize("n, p", [(6, 3), (130, 3), (33, 1100)])
def test_gradient_of_a_gram_matrix(n: int, p: int, device: torch.device) -> None:
    x = (gaussian(n, p) + 3).to(device).requires_grad_()
    assert p > 3 or torch.autograd.gradcheck(gram, (x,), fast_mode=n > 10)
    weights = gaussian(n, n).to(device)  # not symmetric
    (found,) = torch.autograd.grad((gram(x) * weights).sum(), x)
    centred = x - x.mean(0)
    (expected,) = torch.autograd.grad((centred @ centred.T * weights).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_memory_format_of_images_does_not_change_their_gram_matrix(kernel: str, device: torch.device) -> None:
    x = gaussian(8, 3, 4, 5).to(device)
    torch.testing.assert_close(gram(x.to(memory_format=torch.channels_last), kernel), gram(x, kernel))


def test_rbf_kernel(device: torch.device) -> None:
    x = gaussian(12, 5).to(device)
    distances = torch.cdist(x, x)
    torch.testing.assert_close(rbf_kernel(x, bandwidth=0.8), torch.exp(-(distances**2) / (2 * 0.8**2)))
    median = torch.pdist(x).sort().values[(12 * 11 // 2 - 1) // 2]
    torch.testing.assert_close(rbf_kernel(x), torch.exp(-(distances**2) / (2 * median**2)))
    torch.testing.assert_close(rbf_kernel(x, scale=0.4), torch.exp(-(distances**2) / (2 * (0.4 * median) ** 2)))
    for bad in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bandwidth must be a positive length"):
            rbf_kernel(x, bandwidth=bad)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_alone_are_computed_in_float32(dtype: torch.dtype, offset: float, device: torch.device) -> None:
    """Whatever autocast says and however far from the origin the features are."""
    x = (3 * gaussian(20, 3) + offset).to(dtype).to(device)
    exact = torch.cdist(x.double(), x.double())
    median = torch.pdist(x.double()).sort().values
    median = median[median > 0]
    for enabled in (False, True):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            found = rbf_kernel(x), rbf_kernel(x, bandwidth=2.0), linear_kernel(x)
        for bandwidth, k in zip((median[(len(median) - 1) // 2], 2.0), found[:2], strict=True):
            assert k.dtype == torch.float32
            expected = torch.exp(-(exact**2) / (2 * bandwidth**2))
            torch.testing.assert_close(k.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[2].double(), x.double() @ x.double().T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_median_distance_is_of_examples_that_differ(dtype: torch.dtype, device: torch.device) -> None:
    """Neither the diagonal nor copies of an example count, though rounding leaves their distance a little above 0."""
    few = gaussian(5, 20_000, dtype=dtype)
    x = few[[0, 0, 0, 0, 1, 2, 3, 4]].to(device)
    pairs = torch.pdist(x.double()).sort().values
    pairs = pairs[pairs > 0]
    median = pairs[(len(pairs) - 1) // 2]
    assert len(pairs) == 22
    expected = torch.exp(-(torch.cdist(x.double(), x.double()) ** 2) / (2 * median**2))
    torch.testing.assert_close(rbf_kernel(x).double(), expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(rbf_kernel(torch.ones(5, 3, device=device)), torch.ones(5, 5, device=device))


def test_what_rounding_spares_counts_for_the_bandwidth() -> None:
    """Most examples lie close together, far from 0: float32 tells them apart, so the median is one of their distances,
    however many they are."""
    x = (torch.cat([0.02 * gaussian(190, 2), gaussian(10, 2, seed=1)]) + 1000).float()
    torch.testing.assert_close(gram(x, "rbf").double(), gram(x.double(), "rbf"), rtol=0, atol=0.02)


def test_kernels_by_function_and_precomputed(device: torch.device) -> None:
    x, y = gaussian(10, 4).to(device), gaussian(10, 6, seed=1).to(device)
    plain = cka(x, y)
    assert cka(x, y, kernel=lambda z: z @ z.T).item() == pytest.approx(plain.item(), rel=1e-12)
    assert cka(x @ x.T, y @ y.T, kernel="precomputed").item() == pytest.approx(plain.item(), rel=1e-12)


def polynomial(z: Tensor) -> Tensor:
    return (z @ z.T + 1) ** 3


def cosine(z: Tensor) -> Tensor:
    return F.normalize(z) @ F.normalize(z).T


@pytest.mark.parametrize("kernel", [polynomial, cosine, lambda z: z @ z.T], ids=["polynomial", "cosine", "linear"])
def test_a_function_is_given_the_features_as_they_are(kernel: Any, device: torch.device) -> None:
    """Their mean matters to it; what it makes of them is what "precomputed" would be given."""
    x = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    y = x + gaussian(20, 3).abs() / 2
    exact = reference(x, y, True, kernel)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        a, b = x.to(device, dtype), y.to(device, dtype)
        assert cka(a, b, kernel=kernel).item() == pytest.approx(exact, abs=tolerance)
        assert cka(kernel(a), kernel(b), kernel="precomputed").item() == pytest.approx(exact, abs=tolerance)
    assert cka_interval(a, b, kernel=kernel).value == pytest.approx(exact, abs=tolerance)
    # Far from the origin the linear kernel holds a hundredth of a per cent of what varies: still far from rounding.
    far = cka((x + 100).to(device, torch.float32), y.to(device), kernel=lambda z: z @ z.T)
    assert far.item() == pytest.approx(reference(x - x.mean(0), y, True), abs=0.02)


# ------------------------------------------------------------------------------------------------------------ gradients
@both_estimators
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("measure", [cka, hsic])
def test_gradcheck(measure: Any, kernel: str, unbiased: bool, device: torch.device) -> None:
    k: Any = "linear" if kernel == "linear" else lambda z: rbf_kernel(z, bandwidth=1.3)
    x, y = (gaussian(6, p, seed=p).to(device).requires_grad_() for p in (3, 2))
    assert torch.autograd.gradcheck(lambda a, b: measure(a, b, unbiased=unbiased, kernel=k), (x, y))


@both_estimators
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_second_derivatives(kernel: str, unbiased: bool, device: torch.device) -> None:
    k: Any = "linear" if kernel == "linear" else lambda z: rbf_kernel(z, bandwidth=1.3)
    x, y = (gaussian(6, p, seed=p).to(device).requires_grad_() for p in (3, 2))
    assert torch.autograd.gradgradcheck(lambda a, b: cka(a, b, unbiased=unbiased, kernel=k), (x, y))


def test_gradcheck_of_all_pairs() -> None:
    xs = [gaussian(5, p, seed=p).requires_grad_() for p in (2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *layers: cka_matrix(layers), xs)


def test_bandwidth_is_detached() -> None:
    """The median heuristic is a constant for the gradient: the same as that number given as the bandwidth."""
    x, y = gaussian(8, 3).requires_grad_(), gaussian(8, 3, seed=1)
    median = torch.pdist(x.detach()).sort().values[(28 - 1) // 2].item()
    (free,) = torch.autograd.grad(hsic(x, y, kernel=rbf_kernel), x)
    kernels = {id(x): lambda z: rbf_kernel(z, bandwidth=median)}
    k = u_center(gram(x, kernels[id(x)]))
    fixed = (k * u_center(gram(y, rbf_kernel))).sum() / (8 * 5)
    torch.testing.assert_close(free, torch.autograd.grad(fixed, x)[0])
    assert free.abs().sum() > 0


@both_estimators
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_gradient_of_a_dead_layer_is_zero(unbiased: bool, kernel: str, device: torch.device) -> None:
    for value in (0.0, 0.1):
        dead = torch.full((9, 5), value, device=device, requires_grad=True)
        live = gaussian(9, 4, dtype=torch.float32).to(device).requires_grad_()
        other = gaussian(9, 4, seed=1, dtype=torch.float32).to(device).requires_grad_()
        with pytest.warns(UserWarning, match="dead"):
            values = cka_matrix([dead, live, other], unbiased=unbiased, kernel=kernel)
        values.sum().backward()
        assert torch.equal(dead.grad, torch.zeros_like(dead))
        grad, live.grad = live.grad, None
        cka_matrix([live, other], unbiased=unbiased, kernel=kernel).sum().backward()
        torch.testing.assert_close(grad, live.grad)  # as if the dead layer were not there
        assert grad.isfinite().all() and grad.abs().sum() > 0


# -------------------------------------------------------------------------------------------- dead layers, bad features
def constant(n: int, p: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every example the same, and the float mean of the column misses the constant."""
    x = torch.full((n, p), 0.1, dtype=dtype) * torch.arange(1, p + 1, dtype=dtype)
    assert (x.mean(0) != x[0]).any()
    return x


@contextmanager
def one_warning(*names: str) -> Iterator[None]:
    """Exactly one warning, which names exactly these dead layers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(w.message) for w in caught] == [
        f"dead layers, the same features for all examples, or all but one, or orthogonal ones: {list(names)}; "
        "their CKA is defined as 0"
    ]


def assert_dead(values: Tensor, index: int, without: Tensor) -> None:
    """0 in the row and the column `index`; elsewhere the values as if that layer were not there."""
    keep = [i for i in range(len(values)) if i != index]
    assert torch.equal(values[index], torch.zeros_like(values[index]))
    assert torch.equal(values[:, index], torch.zeros_like(values[index]))
    torch.testing.assert_close(values[keep][:, keep], without, rtol=0, atol=1e-12)
    assert without.diagonal().min() > 0.99


@pytest.mark.parametrize("n", [4, 7, 50, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1, 3e3])
def test_one_example_against_all_others_is_dead_without_bias(n: int, dtype: torch.dtype, scale: float) -> None:
    """U-centring leaves nothing of it, and no estimator may take what rounding leaves for features."""
    lone, other = torch.full((n, 5), 0.3), gaussian(n, 4)
    lone[n // 2] = scale * gaussian(1, 5, seed=1)
    lone, other = lone.to(dtype), other.to(dtype)
    with pytest.warns(UserWarning, match="all but one"):
        assert cka(lone, lone) == 0 and cka(lone, other) == 0
    assert cka(lone, lone, unbiased=False) == pytest.approx(1)
    for streaming in (MinibatchCKA(["lone", "other"]), ExactCKA(["lone", "other"])):
        streaming.update({"lone": lone, "other": other})
        with one_warning("lone"):
            assert_dead(streaming.compute(), 0, torch.ones(1, 1, dtype=torch.float64))


@both_estimators
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dead_layer(unbiased: bool, kernel: str, dtype: torch.dtype, device: torch.device) -> None:
    live = {"a": gaussian(37, 5), "c": gaussian(37, 6, seed=1)}
    layers = {"a": live["a"], "b": constant(37, 700).to(dtype), "c": live["c"]}
    layers = {name: x.to(device) for name, x in layers.items()}
    expected = cka_matrix([x.to(device) for x in live.values()], unbiased=unbiased, kernel=kernel)
    with one_warning("xs['b']"):
        assert_dead(cka_matrix(layers, unbiased=unbiased, kernel=kernel), 1, expected)
    with one_warning("y"):
        assert cka(layers["a"], layers["b"], unbiased=unbiased, kernel=kernel) == 0
    assert hsic(layers["a"], layers["b"], unbiased=unbiased, kernel=kernel) == 0
    metrics: list[Any] = [MinibatchCKA(layers, unbiased=unbiased, kernel=kernel).to(device)]
    if kernel == "linear":
        metrics.append(ExactCKA(layers, unbiased=unbiased).to(device))
    for metric in metrics:
        metric.update(layers)
        with one_warning("b"):
            assert_dead(metric.compute(), 1, expected)
    if dtype == torch.float64:
        with one_warning("y"):
            assert cka_interval(layers["a"], layers["b"], kernel=kernel).value == 0


@pytest.mark.parametrize(("n", "size", "scale"), [(37, 37, 1 / 3), (37, 37, 1e3 / 7), (1000, 256, 0.1)])
def test_dead_layer_of_exact_cka(n: int, size: int, scale: float) -> None:
    """Constants for which rounding leaves sums a little above 0."""
    dead = scale * torch.arange(1, 701, dtype=torch.float64).expand(n, 700)
    metric = ExactCKA("ab")
    for a, b in zip(dead.split(size), gaussian(n, 3).split(size), strict=True):
        metric.update({"a": a, "b": b})
    with one_warning("a"):
        torch.testing.assert_close(metric.compute(), torch.tensor([[0, 0], [0, 1]]).double())


def test_dead_layer_of_a_model() -> None:
    """Layer "2" has zero weights and the bias .1."""
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 700), nn.ReLU(inplace=True), nn.Linear(700, 3)
    )
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, 0.1)
    for estimator in ("minibatch", "exact"):
        with one_warning("2", "4"):  # what follows a dead layer is dead
            table = cka_map(model, gaussian(50, 6, dtype=torch.float32), nn.Linear, estimator=estimator, batch_size=16)
        assert table.loc["0", "0"] == pytest.approx(1) and table.loc["2"].eq(0).all() and table["2"].eq(0).all()


# -- what another processor's arithmetic does in the last bits
ROUNDING = {torch.float64: 2.0**-51, torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def rounded(x: Tensor, dtype: torch.dtype, between: bool) -> Tensor:
    """x as a network may compute it: each entry off by two units in the last place (16 bits: by one), at random; each
    example's by its own, or one error in each of three batches."""
    errors = gaussian(*x.shape, seed=7)
    if between:
        errors = torch.cat([e[:1].expand_as(e) for e in errors.chunk(3)])
    return (x.double() * (1 + ROUNDING[dtype] * errors)).to(dtype)


def by_every_estimator(x: Tensor, y: Tensor, unbiased: bool) -> dict[str, Tensor]:
    """Linear CKA of x and y, x first, by all that compute it: at once, or in the batches of `rounded`."""
    found = {
        "all examples": cka_matrix({"x": x, "y": y}, unbiased=unbiased),
        "for a penalty": alignment([gram(x), gram(y)], unbiased=unbiased),
    }
    for kind in (MinibatchCKA, ExactCKA):
        metric = kind("xy", unbiased=unbiased)
        for a, b in zip(x.chunk(3), y.chunk(3), strict=True):
            metric.update({"x": a, "y": b})
        found[kind.__name__] = metric.compute()
    return found


OFFSETS, WIDTHS = [0.0, 1.0, 1e3], [1, 3, 64, 512]


def constants(n: int, p: int, offset: float) -> list[Tensor]:
    """A row for all examples: the offset alone, and columns around it that the network itself has centred."""
    flat = torch.full((p,), offset, dtype=torch.float64)
    return [row.expand(n, p) for row in (flat, flat + gaussian(p, seed=3))]


@both_estimators
@pytest.mark.parametrize("between", [False, True], ids=["within", "between"])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.filterwarnings("ignore:dead layers")
def test_what_rounding_makes_of_a_constant_is_dead(
    dtype: torch.dtype, offset: float, between: bool, unbiased: bool
) -> None:
    """For every estimator alike, and without bias also of a layer that tells one example from all others."""
    for p in WIDTHS:
        for dead in constants(48, p, offset):
            lone = dead.clone()
            lone[20] += gaussian(p, seed=4)
            for x in [dead, lone] if unbiased else [dead]:
                x, y = rounded(x, dtype, between), gaussian(48, 7)
                found = by_every_estimator(x, y, unbiased)
                found["rbf"] = cka_matrix({"x": x, "y": y}, unbiased=unbiased, kernel="rbf")
                for name, values in found.items():
                    assert torch.equal(values[0], torch.zeros_like(values[0])), (name, p)
                    assert values[1, 1] == pytest.approx(1), name


@both_estimators
@pytest.mark.parametrize("offset", OFFSETS)
def test_what_float32_resolves_is_not_dead(offset: float, unbiased: bool) -> None:
    """A deviation of 1e-4 of the offset, 420 times the rounding above: alive, and the value that of float64."""
    for p in WIDTHS:
        small = 1e-4 * (offset or 1) * gaussian(48, p, seed=2)
        lone = small.clone()
        lone[20] += (offset or 1) * gaussian(p, seed=4)
        y = small @ gaussian(p, 7, seed=5) / small.std() + gaussian(48, 7)
        for x, tolerance in ((small, 1e-6), (lone, 3e-4)):  # of the lone one's kernel matrix little is left
            x = (offset + x).float()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = by_every_estimator(x, y, unbiased)
                assert tolerance > 1e-6 or cka(x, x, unbiased=unbiased, kernel="rbf").item() == pytest.approx(1)
            exact = reference(x.double() - x.double().mean(0), y, unbiased)
            for name in ("all examples", "for a penalty", "ExactCKA"):
                assert found[name][0, 1].item() == pytest.approx(exact, abs=tolerance), (name, p)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_the_rule_lies_far_from_both_sides(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In energy, that is deviations squared, rounding is ten times below it, and what is a hundred times more alive."""

    def alive(deviation: float) -> set[bool]:
        x = (1 + deviation * gaussian(48, 64, seed=2)).double()  # exact, so that the rule alone decides
        for module in ("_kernels", "_cka", "_streaming"):
            monkeypatch.setattr(f"companion.similarity.{module}._resolution", lambda _: _resolution(dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return {bool(values[0, 0] > 0.5) for values in by_every_estimator(x, gaussian(48, 7), True).values()}

    error = ROUNDING[dtype]
    assert alive(error) == {False} and alive(math.sqrt(10) * error) == {False}
    assert alive(10 * error) == {True}
    if dtype == torch.float32:
        assert alive(1e-5) == alive(1e-4) == {True}


@both_estimators
@pytest.mark.parametrize("large", [100.0, 900.0, 3e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_large_constant_channel_hides_no_other(dtype: torch.dtype, large: float, unbiased: bool) -> None:
    """As transformers have them; and what is dead beside it stays so, its rounding included."""
    x = gaussian(64, 768)
    y = x @ gaussian(768, 30, seed=1) / 28
    dead = rounded(gaussian(1, 768).expand(64, 768), dtype, False)
    for z in (x, dead):
        z[:, 0] = large
    dead = rounded(dead, dtype, False)
    x = x.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in by_every_estimator(x, y, unbiased).values():
            assert found[0, 0] == pytest.approx(1)
        for kernel in ("linear", "rbf"):
            exact = cka(x.double(), y, unbiased=unbiased, kernel=kernel)
            torch.testing.assert_close(cka(x, y, unbiased=unbiased, kernel=kernel), exact, rtol=0, atol=1e-3)
    with pytest.warns(UserWarning, match="dead layers"):
        for found in by_every_estimator(dead, y, unbiased).values():
            assert not found[0].any()


class Rounding(nn.Module):
    """Stands for every processor: each pass is off in the last bits by errors of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 2.0**-22 * torch.randn_like(x))


def test_layers_after_a_dead_one_are_dead_on_every_processor(device: torch.device) -> None:
    """In batches of 16, 19 and 5; for both streaming estimators, and for the penalty, whose gradient is 0 there."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), Rounding(), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    ).to(device)
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, 0.3)
    layers, x = ["0", "3", "6"], gaussian(40, 3, 6, 6, dtype=torch.float32).to(device)
    for estimator in ("minibatch", "exact"):
        for unbiased in (True, False):
            with one_warning("3", "6"):
                parts = x.split([16, 19, 5])
                table = cka_map(model, parts, layers, estimator=estimator, unbiased=unbiased)
            assert table.loc["0", "0"] == pytest.approx(1)
            assert table.loc[["3", "6"]].eq(0).all(axis=None) and table[["3", "6"]].eq(0).all(axis=None)
    penalty = CKASparsity(model, 1.0, layers=layers, pairs="all")
    model(x)
    penalty().backward()
    assert penalty.last == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_layer_dead_in_one_batch_is_not_dead() -> None:
    metric = MinibatchCKA("ab")
    metric.update({"a": gaussian(8, 3), "b": torch.ones(8, 3, dtype=torch.float64)})
    metric.update({"a": gaussian(8, 3, seed=1), "b": gaussian(8, 3, seed=1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < metric.compute()[0, 1] < 1


def test_small_variation_is_not_dead() -> None:
    """Alive as long as float32 resolves it: a deviation of 1e-5 of the offset."""
    x = 1 + 1e-5 * gaussian(32, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for z in (x, x.float()):
            assert cka(z, gaussian(32, 50)).item() == pytest.approx(1, abs=1e-3)
            metric = ExactCKA("z")
            metric.update({"z": z})
            assert metric.compute() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@both_estimators
def test_nan_and_infinity_name_the_layer(bad: float, unbiased: bool, device: torch.device) -> None:
    good = gaussian(8, 3, dtype=torch.float32).to(device)
    broken = good.clone()
    broken[2, 1] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite.*\['y'\]"):
        cka(good, broken, unbiased=unbiased)
    with pytest.raises(ValueError, match=r"\"xs\['b'\]\"\]$"):
        cka_matrix({"a": good, "b": broken, "c": good}, unbiased=unbiased)
    with pytest.raises(ValueError, match=r"\['ys\[1\]'\]$"):
        cka_matrix([good], [good, broken], unbiased=unbiased, kernel="rbf")
    with pytest.raises(ValueError, match="x holds NaN or infinite"):
        hsic(broken, good, unbiased=unbiased)
    with pytest.raises(ValueError, match=r"\['x'\]"):
        cka_interval(broken, good)
    for kind in (MinibatchCKA, ExactCKA):
        metric = kind("abc", unbiased=unbiased).to(device)
        for batch in (good, broken, good):
            metric.update({"a": good, "b": batch, "c": good})
        with pytest.raises(ValueError, match=r"at layers \['b'\]$"):
            metric.compute()


def test_overflow_is_no_dead_layer() -> None:
    """The square of 1e25 does not fit into float32."""
    x = gaussian(8, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"overflow when squared, at layers \['x'\]"):
        cka(1e25 * x, x)
    assert cka((1e25 * x).double(), x).item() == pytest.approx(1)


def test_bad_features() -> None:
    x = gaussian(8, 3)
    for measure in (cka, hsic, cka_interval):
        with pytest.raises(ValueError, match=r"same examples \(rows\) in the same order; got {'x': 8, 'y': 7}"):
            measure(x, x[:7])
        with pytest.raises(ValueError, match="x has 3 examples; HSIC needs at least 4"):
            measure(x[:3], x[:3])
        with pytest.raises(ValueError, match=r"y must be \(examples, features\); got shape \(8,\)"):
            measure(x, x[:, 0])
        with pytest.raises(ValueError, match=r"x must be floating point, not torch\.int64"):
            measure(x.long(), x)
        with pytest.raises(
            ValueError, match=r"kernel='poly' is unknown; use one of \['linear', 'rbf', 'precomputed'\]"
        ):
            measure(x, x, kernel="poly")
    with pytest.raises(ValueError, match=r"got \{\"xs\['a'\]\": 8, \"ys\['a'\]\": 5\}"):
        cka_matrix({"a": x}, {"a": x[:5]})
    with pytest.raises(ValueError, match="at least one feature matrix"):
        cka_matrix([])
    square = torch.randn(8, 8)  # features, as many as examples
    for call in (hsic, cka, cka_interval, cka_null):
        with pytest.raises(ValueError, match="x is not symmetric, so it is no kernel matrix"):
            call(square, square @ square.T, kernel="precomputed")
    with pytest.raises(ValueError, match=r"precomputed kernel matrix is \(examples, examples\); got shape \(8, 3\)"):
        cka(x, x, kernel="precomputed")
    with pytest.raises(ValueError, match=r"features are \(examples, features\); got shape \(8,\)"):
        gram(x[:, 0])


# ---------------------------------------------------------------------------------------------------- matrices of pairs
@both_estimators
def test_all_pairs(unbiased: bool, device: torch.device) -> None:
    """Conv maps are flattened; one side or two; a mapping or a sequence."""
    maps = gaussian(12, 3, 4, 5)
    xs = {"maps": maps.to(device), "rows": gaussian(12, 6, seed=1).to(device)}
    ys = [maps.flatten(1).to(device), gaussian(12, 2, seed=2).to(device), gaussian(12, 2, seed=3).to(device)]
    table = cka_matrix(xs, ys, unbiased=unbiased)
    assert table.shape == (2, 3)
    for i, x in enumerate(xs.values()):
        for j, y in enumerate(ys):
            assert table[i, j].item() == pytest.approx(reference(x.cpu(), y.cpu(), unbiased), abs=1e-12)
    own = cka_matrix(ys, unbiased=unbiased)
    torch.testing.assert_close(own, own.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(own, cka_matrix(ys, ys, unbiased=unbiased), rtol=0, atol=1e-14)
    torch.testing.assert_close(own.diagonal().cpu(), torch.ones(3, dtype=torch.float64))


@both_estimators
def test_alignment_is_cka_without_questions(
    unbiased: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For penalties: the values and gradients of `cka_matrix`, without a check, a warning or a wait for the device."""
    xs = [gaussian(8, p, seed=p).to(device).requires_grad_() for p in (3, 5)] + [torch.ones(8, 2, device=device)]
    with no_waiting(device, monkeypatch), warnings.catch_warnings():
        warnings.simplefilter("error")
        values = alignment([gram(x) for x in xs], unbiased=unbiased)
        grads = torch.autograd.grad(values.sum(), xs[:2])
    with one_warning("xs[2]"):
        expected = cka_matrix(xs, unbiased=unbiased)
    torch.testing.assert_close(values, expected)
    for got, want in zip(grads, torch.autograd.grad(expected.sum(), xs[:2]), strict=True):
        torch.testing.assert_close(got, want)


# ------------------------------------------------------------------------------------------------------------ intervals
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_jackknife_is_leave_one_out(kernel: str, device: torch.device) -> None:
    """The rbf bandwidth is that of all examples: the left-out example does not change the kernel."""
    x, y = correlated(17, 40, 0.6)
    k, l = (gram(z, kernel) for z in (x, y))  # noqa: E741
    keep = [[j for j in range(17) if j != i] for i in range(17)]
    left = torch.tensor([reference_of_kernels(k[i][:, i], l[i][:, i]) for i in keep], dtype=torch.float64)
    error = math.sqrt(16 / 17 * float((left - left.mean()).square().sum()))
    got = cka_interval(x.to(device), y.to(device), kernel=kernel, level=0.9)
    assert got.error == pytest.approx(error, rel=1e-12)
    assert got.value == pytest.approx(reference_of_kernels(k, l), abs=1e-12)
    assert (got.low, got.high) == pytest.approx(
        (got.value - 1.6448536 * error, got.value + 1.6448536 * error), rel=1e-7
    )
    assert got.level == 0.9


def reference_of_kernels(k: Tensor, l: Tensor) -> float:  # noqa: E741
    return float(hsic_unbiased(k, l) / (hsic_unbiased(k, k) * hsic_unbiased(l, l)).sqrt())


def test_subsample_is_the_delete_d_jackknife(device: torch.device) -> None:
    x, y = correlated(20, 30, 0.5)
    got = cka_interval(x.to(device), y.to(device), method="subsample", subsamples=15, size=12, seed=3)
    generator = torch.Generator().manual_seed(3)
    subsets = [torch.randperm(20, generator=generator)[:12] for _ in range(15)]
    draws = torch.tensor([reference(x[s], y[s], unbiased=True) for s in subsets], dtype=torch.float64)
    error = (draws - got.value).square().mean().sqrt() * math.sqrt(12 / 8)
    assert got.error == pytest.approx(error.item(), rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "p", "rho", "decay"),
    [(64, 512, 0.0, 0), (64, 512, 0.5, 0), (64, 512, 0.9, 0), (32, 512, 0.5, 0.5), (64, 512, 0.3, 1)],
)
def test_coverage(n: int, p: int, rho: float, decay: float) -> None:
    """Nominal 95 % intervals around ρ² when features by far outnumber examples, flat and decaying spectra.

    They cover it about that often and are as wide as the estimate's true spread, or up to √2 (jackknife) and 2 (halves)
    times as wide where the spread falls as 1/n.
    """
    pairs = [correlated(n, p, rho, 1000 + i, decay) for i in range(80)]
    widest = {"jackknife": math.sqrt(2), "subsample": 2}
    for method, factor in widest.items():
        drawn = [cka_interval(x, y, method=method, subsamples=25) for x, y in pairs]
        covered = sum(i.low <= rho**2 <= i.high for i in drawn) / len(drawn)
        spread = torch.tensor([i.value for i in drawn]).std().item()
        width = sum(i.error for i in drawn) / len(drawn)
        assert covered >= 0.82, f"{method} covers {covered:.3f}"
        assert 0.8 < width / spread < 1.2 * factor, f"{method}: error {width:.4f}, true {spread:.4f}"


def test_the_naive_bootstrap_is_a_trap() -> None:
    """Unrelated features, 128 examples: resampled with replacement, unbiased CKA moves to .6–.7 and never meets 0.

    Duplicated examples put copies of the removed diagonal back into the kernel matrix.
    """
    x, y = correlated(128, 256, 0.0)
    assert abs(cka(x, y)) < 0.05
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(128, (128,), generator=generator) for _ in range(100)]
    values = torch.stack([cka(x[d], y[d]) for d in draws])
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert 0.55 < low < 0.65 and 0.67 < high < 0.77
    for method in ("jackknife", "subsample"):
        honest = cka_interval(x, y, method=method)
        assert honest.low < 0 < honest.high and honest.high - honest.low < 0.1


def test_subsets_that_are_dead_have_cka_0(device: torch.device) -> None:
    """Three examples stand out: many halves hold one of them or none, and rounding must not give these a value."""
    x, y = torch.zeros(20, 5, dtype=torch.float64), gaussian(20, 6, seed=1)
    x[[3, 7, 12]] = gaussian(3, 5)
    keep = [[j for j in range(20) if j != i] for i in range(20)]
    left = [reference(x[i], y[i], unbiased=True) for i in keep]
    generator = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(20, generator=generator)[:10] for _ in range(50)]
    draws = [reference(x[s], y[s], unbiased=True) if (x[s].abs().sum(1) > 0).sum() > 1 else 0.0 for s in subsets]
    assert 10 < draws.count(0.0) < 40
    value = reference(x, y, unbiased=True)
    errors = {
        "jackknife": math.sqrt(19 / 20 * sum((v - sum(left) / 20) ** 2 for v in left)),
        "subsample": math.sqrt(sum((v - value) ** 2 for v in draws) / 50),
    }
    for method, error in errors.items():
        options: dict[str, Any] = {} if method == "jackknife" else {"subsamples": 50}
        for offset, dtype in ((0.0, torch.float64), (1.0, torch.float64), (1e3, torch.float64), (1.0, torch.float32)):
            a = rounded(x + offset, dtype, between=False).to(device)
            got = cka_interval(a, y.to(device, dtype), method=method, **options)
            assert got.error == pytest.approx(error, rel=1e-3), (method, offset, dtype)


def test_without_the_one_example_that_matters_one_side_is_dead() -> None:
    """Two examples stand out in x alone: without either of them CKA is 0, though y is as alive as before."""
    x, y = torch.zeros(12, 5, dtype=torch.float64), gaussian(12, 6, seed=1)
    x[[3, 7]] = gaussian(2, 5)
    keep = [[j for j in range(12) if j != i] for i in range(12)]
    left = [0.0 if i in (3, 7) else reference(x[keep[i]], y[keep[i]], unbiased=True) for i in range(12)]
    error = math.sqrt(11 / 12 * sum((v - sum(left) / 12) ** 2 for v in left))
    for pair in ((x, y), (y, x)):
        assert cka_interval(*(1 + z for z in pair)).error == pytest.approx(error, rel=1e-6)


def test_bad_intervals() -> None:
    x = gaussian(10, 3)
    for kwargs, message in (
        ({"level": 1.0}, "level=1.0 must lie in"),
        ({"method": "bootstrap"}, "method='bootstrap' is unknown"),
        ({"method": "subsample", "size": 10}, "size=10 must lie in"),
        ({"method": "subsample", "size": 3}, "size=3 must lie in"),
        ({"method": "subsample", "subsamples": 1}, "subsamples=1 must be at least 2"),
        ({"method": "subsample", "seed": 1.5}, "seed=1.5 must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            cka_interval(x, x, **kwargs)
    with pytest.raises(ValueError, match="at least 8 examples; got 7"):
        cka_interval(x[:7], x[:7])


# ---------------------------------------------------------------------------------------------------------- by chance
def test_numpys_seeds_are_seeds() -> None:
    x, y = gaussian(2, 12, 3)
    by_subsamples = functools.partial(cka_interval, method="subsample", subsamples=5)
    for of in (functools.partial(by_subsamples, x, y), functools.partial(cka_null, x, y)):
        assert repr(of(seed=np.int64(3))) == repr(of(seed=3)) != repr(of(seed=4))


def permuted(x: Tensor, y: Tensor, orders: list[Any], unbiased: bool) -> Tensor:
    return torch.stack([cka(x, y[list(order)], unbiased=unbiased) for order in orders])


@both_estimators
def test_the_null_is_cka_of_permuted_examples(unbiased: bool, device: torch.device) -> None:
    x, y = (z.to(device) for z in correlated(12, 3, 0.5, seed=1))
    generator = torch.Generator().manual_seed(7)
    draws = permuted(x, y, [torch.randperm(12, generator=generator).tolist() for _ in range(59)], unbiased)
    found = cka_null(x, y, permutations=59, unbiased=unbiased, seed=7, level=0.9)
    value = cka(x, y, unbiased=unbiased)
    assert found.value == pytest.approx(float(value), abs=1e-12)
    assert found.p == pytest.approx((1 + int((draws >= value).sum())) / 60)
    assert found.mean == pytest.approx(float(draws.mean()), abs=1e-12)
    assert found.high == pytest.approx(float(draws.sort().values[math.ceil(0.9 * 58)]), abs=1e-12)


@both_estimators
def test_p_is_that_of_all_permutations(unbiased: bool) -> None:
    """5! = 120 permutations, among them those that change nothing."""
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0], [2.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [1.5], [2.0], [9.0], [0.0]], dtype=torch.float64)
    value = cka(x, y, unbiased=unbiased)
    exact = float((permuted(x, y, [*itertools.permutations(range(5))], unbiased) >= value - 1e-12).double().mean())
    found = cka_null(x, y, permutations=4000, unbiased=unbiased)
    assert 0 < exact < 0.5 and abs(found.p - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000)
    ties = cka_null(x, x, permutations=4000, unbiased=unbiased)  # only the identity reaches 1
    assert ties.value == pytest.approx(1) and abs(ties.p - 1 / 120) < 4 * math.sqrt(1 / 120 / 4000)


@pytest.mark.parametrize("level", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("permutations", [9, 10, 19, 30, 100])
def test_above_high_p_is_small(permutations: int, level: float) -> None:
    """For any number of permutations: of 10 the largest may still be chance at 5 %."""
    x = gaussian(12, 3)
    for seed in range(8):
        y = x + 3 * gaussian(12, 3, seed=seed + 1)
        found = cka_null(x, y, permutations=permutations, level=level)
        assert (found.value > found.high) == (found.p <= 1 - level + 1e-9)
        (best,) = cka_null_map({"x": x, "y": y}, permutations=permutations, level=level).p_best
        assert best == found.p
    table = cka_null_map({"x": x, "y": x, "z": gaussian(12, 3, seed=9)}, permutations=permutations, level=level)
    assert ((table.value > table.attrs["high_best"]) == (table.p_best <= 1 - level + 1e-9)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ties_count_whatever_rounding_makes_of_them(dtype: torch.dtype) -> None:
    """Two halves of the examples against two others: how many they share decides, and has a hypergeometric law."""
    n, generator = 100, torch.Generator().manual_seed(3)
    a, b = (torch.randn(2, p, generator=generator).to(dtype) for p in (600, 613))
    one = torch.arange(n) % 2
    other = one[torch.randperm(n, generator=generator)]
    x, y = a[one], b[other]
    law = scipy.stats.hypergeom(n, n // 2, n // 2)
    off = abs(int((one * other).sum()) - n / 4)
    exact = sum(law.pmf(k) for k in range(n + 1) if abs(k - n / 4) >= off)
    found = cka_null_map({"x": x, "y": y}, permutations=999, unbiased=False)
    for p in (cka_null(x, y).p, *found.p, *found.p_best):
        assert abs(p - exact) < 4 * math.sqrt(exact * (1 - exact) / 999)


@pytest.mark.parametrize(("unbiased", "p"), [(True, 2), (True, 100), (False, 100)])
def test_p_is_uniform_under_independence(unbiased: bool, p: int) -> None:
    ps = []
    for seed in range(120):
        x, y = gaussian(2, 16, p, seed=seed)
        ps.append(cka_null(x, y.exp(), permutations=99, unbiased=unbiased, seed=seed).p)
    assert scipy.stats.kstest(ps, "uniform").pvalue > 0.01


def test_power_of_two_gaussians() -> None:
    """Biased CKA of two single features is their squared correlation: the test is the two-sided one of a correlation,
    whose power follows from Fisher's z."""
    n, rho = 40, 0.4
    z = math.atanh(rho) * math.sqrt(n - 3)
    power = scipy.stats.norm.cdf(z - 1.96) + scipy.stats.norm.cdf(-z - 1.96)
    ps = [cka_null(*correlated(n, 1, rho, seed=s), permutations=99, unbiased=False).p for s in range(120)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(power, abs=3 * math.sqrt(power * (1 - power) / 120))


def test_biased_cka_of_wide_features_is_near_1_by_chance() -> None:
    x, y = gaussian(2, 128, 4096, seed=1)
    biased, unbiased = cka_null(x, y, unbiased=False, permutations=99), cka_null(x, y, permutations=99)
    assert 0.965 < biased.mean < biased.value + 0.001 < 0.975 and biased.p > 0.05
    assert abs(unbiased.value) < 0.05 and abs(unbiased.mean) < 0.005 and unbiased.p > 0.05
    related = cka_null(x, x + 3 * y, unbiased=False, permutations=99)
    assert related.value < 0.985 and related.p == 0.01


def test_the_best_pair_is_judged_by_the_best_of_chance() -> None:
    layers = {name: gaussian(20, p, seed=p) for name, p in (("a", 1), ("b", 2), ("c", 3), ("d", 4))}
    others = {"e": gaussian(20, 5, seed=5), "a": gaussian(20, 2, seed=6)}
    table = cka_null_map(layers, others, permutations=99, seed=3)
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(20, generator=generator) for _ in range(99)]
    draws = torch.stack([cka_matrix(layers, {n: y[order] for n, y in others.items()}) for order in orders])
    values = cka_matrix(layers, others)
    for i, a in enumerate(layers):
        for j, b in enumerate(others):
            row = table.loc[(a, b)]
            assert row["value"] == pytest.approx(float(values[i, j]), abs=1e-12)
            assert row["p"] == pytest.approx((1 + int((draws[:, i, j] >= values[i, j]).sum())) / 100)
            assert row["p_best"] == pytest.approx((1 + int((draws.amax((1, 2)) >= values[i, j]).sum())) / 100)
            assert cka_null(layers[a], others[b], permutations=99, seed=3).p == pytest.approx(row["p"])
    alone = cka_null_map(layers, permutations=99, seed=3)
    assert [*alone.index] == [*itertools.combinations(layers, 2)]
    for a, b in alone.index:
        assert alone.value[a, b] == pytest.approx(float(cka(layers[a], layers[b])), abs=1e-12)


def test_layers_of_two_sides_may_be_called_alike() -> None:
    """Whatever a layer is called, it is compared, and not another that has its name."""
    x, y = gaussian(2, 20, 3)
    table = cka_null_map({"other a": x, "b": y}, {"a": y}, permutations=9)
    assert table.value["other a", "a"] == pytest.approx(float(cka(x, y))) and table.value["b", "a"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"same examples \(rows\)"):
        MinibatchCKA(["other a"], ["a"]).update({"other a": x}, {"a": y[:10]})


def test_the_best_of_unrelated_pairs_is_rarely_more_than_chance() -> None:
    """The smallest `p_best` of six pairs is uniform, too; the smallest `p` is not."""
    best, single = [], []
    for seed in range(80):
        table = cka_null_map({str(i): gaussian(16, 3, seed=10 * seed + i) for i in range(4)}, permutations=99)
        best.append(table.p_best.min())
        single.append(table.p.min())
    assert scipy.stats.kstest(best, "uniform").pvalue > 0.01 > scipy.stats.kstest(single, "uniform").pvalue


def test_bad_nulls() -> None:
    x = gaussian(10, 3)
    for options, message in (
        ({"permutations": 0}, "permutations=0 must be at least 1"),
        ({"level": 1}, "level=1 must lie in"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            cka_null(x, x, **options)
    with pytest.raises(ValueError, match="pairs need two layers"):
        cka_null_map({"a": x})
    with pytest.raises(ValueError, match="same examples"):
        cka_null(x, x[:9])
    with one_warning("y"):
        assert cka_null(x, torch.ones(10, 2), permutations=9).p == 1


# ----------------------------------------------------------------------------------------------- minibatch by minibatch
def layer_batches(sizes: list[int], widths: tuple[int, ...] = (3, 5, 200), seed: int = 0) -> list[dict[str, Tensor]]:
    """Batches of features of the layers "0", "1", …, correlated with each other."""
    common = gaussian(sum(sizes), 3, seed=seed)
    layers = {str(i): gaussian(sum(sizes), p, seed=seed + i + 1) + common[:, :1] for i, p in enumerate(widths)}
    parts = {name: x.split(sizes) for name, x in layers.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


def joined(*parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def minibatch_reference(
    data: list[dict[str, Tensor]], unbiased: bool, rows: str = "012", columns: str = "012"
) -> Tensor:
    """Σ_batches n·HSIC, then the ratio."""
    h = hsic_unbiased if unbiased else hsic_biased
    grams = [({name: x @ x.T for name, x in part.items()}, len(part["0"])) for part in data]
    mean = {(a, b): sum(n * h(k[a], k[b]) for k, n in grams) for a in "012" for b in "012"}
    return torch.tensor([[mean[a, b] / (mean[a, a] * mean[b, b]).sqrt() for b in columns] for a in rows])


@both_estimators
def test_minibatches_count_by_their_examples(unbiased: bool, device: torch.device) -> None:
    data = layer_batches([10, 30, 4, 17])
    metric = MinibatchCKA("012", unbiased=unbiased).to(device)
    for part in data:
        metric.update({name: x.to(device) for name, x in part.items()})
    torch.testing.assert_close(
        metric.compute().cpu(),
        minibatch_reference(data, unbiased).double(),
        rtol=0,
        atol=1e-6 if device.type == "cuda" else 1e-7,
    )
    assert metric.total == 61


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([8, 8, 3], [[0], [1, 2]]),
        ([3, 8, 8], [[0, 1], [2]]),
        ([8, 2, 8], [[0, 1], [2]]),
        ([8, 1, 2, 8], [[0, 1, 2], [3]]),
        ([1, 1, 1, 8], [[0, 1, 2, 3]]),
        ([2, 2], [[0, 1]]),
        ([8, 0, 8], [[0, 1], [2]]),
    ],
    ids=["tail", "head", "middle", "two in the middle", "many at the head", "only small ones", "an empty one"],
)
@both_estimators
def test_small_batches_join_the_one_before(sizes: list[int], groups: list[list[int]], unbiased: bool) -> None:
    data = layer_batches(sizes)
    metric, expected = (MinibatchCKA("012", unbiased=unbiased) for _ in range(2))
    for part in data:
        metric.update(part)
    for group in groups:
        expected.update(joined(*(data[i] for i in group)))
    torch.testing.assert_close(metric.compute(), expected.compute(), rtol=0, atol=1e-12)
    assert metric.total == sum(sizes)


def test_one_batch_is_cka_matrix(device: torch.device) -> None:
    (part,) = layer_batches([20])
    part = {name: x.to(device) for name, x in part.items()}
    for kernel in ("linear", "rbf"):
        metric = MinibatchCKA(part, kernel=kernel).to(device)
        metric.update(part)
        torch.testing.assert_close(metric.compute(), cka_matrix(part, kernel=kernel), rtol=0, atol=1e-14)
    metric = MinibatchCKA(part, kernel="precomputed").to(device)
    metric.update({name: gram(x) for name, x in part.items()})
    torch.testing.assert_close(metric.compute(), cka_matrix(part), rtol=0, atol=1e-14)


METRICS = [MinibatchCKA, ExactCKA]


@pytest.mark.parametrize("kind", METRICS)
@both_estimators
def test_two_models(kind: Any, unbiased: bool) -> None:
    data = layer_batches([9, 12])
    own = kind("012", unbiased=unbiased)
    pair = kind("20", "1", unbiased=unbiased)
    for part in data:
        own.update(part)
        pair.update({name: part[name] for name in "201"}, {"1": part["1"]})
    torch.testing.assert_close(pair.compute(), own.compute()[[2, 0]][:, [1]], rtol=0, atol=1e-12)


def feed(metric: Any, data: list[dict[str, Tensor]]) -> Any:
    for part in data:
        metric.update(part)
    return metric


@pytest.mark.parametrize("kind", METRICS)
def test_reset_starts_anew(kind: Any) -> None:
    """Also in an origin far away, with other widths, and without the old last batch."""
    old, new = layer_batches([8, 9]), layer_batches([3, 10, 7], widths=(4, 2, 6), seed=5)
    new = [{name: x + 1e4 for name, x in part.items()} for part in new]
    metric = feed(kind("012"), old)
    metric.compute()
    metric.reset()
    feed(metric, new)
    torch.testing.assert_close(metric.compute(), feed(kind("012"), new).compute(), rtol=0, atol=1e-14)
    assert metric.total == 20


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_their_own_way(kind: Any, duplicate: Any) -> None:
    data = layer_batches([8, 9, 2, 7])
    metric = feed(kind("012"), data[:2])
    twin = duplicate(metric)
    alone = metric.compute().clone()
    feed(twin, data[2:])
    torch.testing.assert_close(twin.compute(), feed(kind("012"), data).compute(), rtol=0, atol=1e-13)
    metric._computed = None  # torchmetrics keeps the last value
    assert torch.equal(metric.compute(), alone)


@pytest.mark.parametrize("kind", METRICS)
def test_merged_states(kind: Any) -> None:
    """Sums of two metrics, then a small batch: it joins the last batch, and nothing merged is lost."""
    data = layer_batches([8, 9, 10, 3])
    metric, other = feed(kind("012"), data[:1]), feed(kind("012"), data[1:2])
    feed(metric, data[2:3]).merge_state(other)
    feed(metric, data[3:])
    torch.testing.assert_close(metric.compute(), feed(kind("012"), data).compute(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize(
    ("one", "two"),
    [([18], [2]), ([2], [18]), ([2], [3]), ([18, 2], [20, 3]), ([], [18, 2]), ([18], []), ([0], [9])],
    ids=str,
)
def test_a_merged_metric_has_seen_the_examples_of_both(kind: Any, one: list[int], two: list[int]) -> None:
    """Also the few that have no sums of their own, and what comes after."""
    *data, more = layer_batches([*one, *two, 9])
    metric, other, whole = (feed(kind("012"), part) for part in (data[: len(one)], data[len(one) :], data))
    if sum(one) >= 4:
        metric.compute()  # torchmetrics keeps the value
    metric.merge_state(other)
    for part in ([], [more]):
        torch.testing.assert_close(feed(metric, part).compute(), feed(whole, part).compute(), rtol=0, atol=1e-11)
        assert metric.total == whole.total


def test_few_examples_of_two_models_are_merged() -> None:
    pairs = [MinibatchCKA("02", "1") for _ in range(3)]
    for pair, sizes in zip(pairs, ([0], [0, 1], [1]), strict=True):
        for part in (layer_batches([18, 3])[i] for i in sizes):
            pair.update(part, {"1": part["1"]})
    pairs[0].merge_state(pairs[2])
    torch.testing.assert_close(pairs[0].compute(), pairs[1].compute(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", METRICS)
def test_sums_of_others_are_refused(kind: Any) -> None:
    """Of two layers each: without their names they look alike."""
    (part,) = layer_batches([9], widths=(3, 3, 3))
    metric, other = feed(kind("01"), [part]), feed(kind("02"), [part])
    before = metric.compute()
    with pytest.raises(ValueError, match=r"other layers.*do not go with \['0', '1'\]: name the same"):
        metric.merge_state(other)
    for each in (metric, other):
        each.persistent(True)
    with pytest.raises(ValueError, match="sums of other layers"):
        metric.load_state_dict(other.state_dict())
    for stranger in (other.metric_state, feed(next(k for k in METRICS if k is not kind)("01"), [part])):
        with pytest.raises(ValueError, match=f"needs a {kind.__name__}, not a"):
            metric.merge_state(stranger)
    for wrong in (part["0"], [part["0"]]):
        with pytest.raises(ValueError, match="give a mapping, layer name"):
            metric.update(wrong)
    assert torch.equal(metric.compute(), before)
    with pytest.raises(ValueError, match=r"widths \[3, 4\] do not go with \[3, 3\]"):
        feed(ExactCKA("01"), [part]).merge_state(feed(ExactCKA("01"), layer_batches([9], widths=(3, 4))))


@pytest.mark.parametrize("coarse_first", [True, False])
def test_merged_sums_have_the_rounding_of_the_coarser(coarse_first: bool) -> None:
    alive, still = gaussian(40, 3, dtype=torch.float32), 1 + 1e-3 * gaussian(40, 3, seed=1)
    dtypes = (torch.bfloat16, torch.float32) if coarse_first else (torch.float32, torch.bfloat16)
    one, two = (feed(ExactCKA("ab"), [{"a": alive, "b": still.to(dtype)}]) for dtype in dtypes)
    one.merge_state(two)
    with pytest.warns(UserWarning, match="dead layers"):
        assert one.compute()[0, 1] == 0


@pytest.mark.parametrize("first", [1, 20, 100])  # examples; 20 are one group of 16, and one is none
def test_a_collection_lets_only_like_metrics_share_their_sums(first: int) -> None:
    kinds = {
        "plain": lambda: MinibatchCKA("012"),
        "turned": lambda: MinibatchCKA("210"),
        "groups": lambda: MinibatchCKA("012", group=16),
        "biased": lambda: MinibatchCKA("012", unbiased=False),
        "rbf": lambda: MinibatchCKA("012", kernel=rbf_kernel),
        "exact": lambda: ExactCKA("012"),
        "exact, biased": lambda: ExactCKA("012", unbiased=False),
    }
    data = layer_batches([first, 64, 70])
    together = MetricCollection({name: kind() for name, kind in kinds.items()})
    for part in data:
        together.update(part)
    for name, found in together.compute().items():
        torch.testing.assert_close(found, feed(kinds[name](), data).compute(), rtol=0, atol=1e-12)
    assert {"exact", "exact, biased"} in map(set, together.compute_groups.values())  # whose sums are the same


@pytest.mark.parametrize("kind", METRICS)
def test_state_dict(kind: Any) -> None:
    data = layer_batches([8, 9])
    metric = feed(kind("012"), data)
    metric.persistent(True)
    assert metric.state_dict()["examples"] == 17
    assert all(
        value.dtype == torch.float64
        for name, value in metric.state_dict().items()
        if name not in ("examples", "pending")
    )


@pytest.mark.parametrize("kind", METRICS)
def test_forward_is_update(kind: Any) -> None:
    data = layer_batches([8, 9])
    metric = kind("012")
    assert all(metric(part) is None for part in data)
    assert torch.equal(metric.compute(), feed(kind("012"), data).compute())


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_whole_numbers_are_features_too(kind: Any, dtype: torch.dtype) -> None:
    x, y = gaussian(30, 6).mul(1.5).abs().long().to(dtype), gaussian(30, 2)
    metric = kind("xy")
    metric.update({"x": x, "y": y})
    torch.testing.assert_close(metric.compute(), cka_matrix([x.double(), y]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", METRICS)
def test_bad_updates(kind: Any) -> None:
    (part,) = layer_batches([8])
    with pytest.raises(ValueError, match="name at least one layer"):
        kind([])
    with pytest.raises(ValueError, match="name at least one layer"):
        kind("0", [])
    with pytest.raises(ValueError, match=r"no features for layers \['3'\]; got \['0', '1', '2'\]"):
        kind("03").update(part)
    with pytest.raises(ValueError, match=r"same examples \(rows\); got shapes {'0': \(8, 3\), '1': \(7, 5\)}"):
        kind("01").update({**part, "1": part["1"][:7]})
    with pytest.raises(ValueError, match=r"must be \(examples, features\); got shapes .*'other 1': \(8,\)"):
        kind("0", "1").update(part, {"1": part["1"][:, 0]})
    with pytest.raises(ValueError, match="second model go with other_layers"):
        kind("0", "1").update(part)
    with pytest.raises(ValueError, match="second model go with other_layers"):
        kind("0").update(part, part)
    for n in (1, 2, 3):
        metric = feed(kind("012"), layer_batches([n]))
        with pytest.raises(ValueError, match=f"{n} examples in all; HSIC needs at least 4"):
            metric.compute()
    with pytest.raises(ValueError, match="0 examples in all"), pytest.warns(UserWarning, match="before the ``update``"):
        kind("012").compute()


@both_estimators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_kernel_matrix_is_dead(unbiased: bool, dtype: torch.dtype) -> None:
    """Centring leaves the rounding of the sums."""
    x = gaussian(9, 3, dtype=dtype)
    for n in (0.1, 1 / 3, 7e5):
        with one_warning("xs[0]"):
            values = cka_matrix([torch.full((9, 9), n, dtype=dtype), x @ x.T], unbiased=unbiased, kernel="precomputed")
        assert_dead(values, 0, torch.ones(1, 1, dtype=torch.float64))


def test_features_are_no_kernel_matrices_in_a_stream() -> None:
    """As many features as examples in a batch, but not symmetric."""
    x, y = gaussian(2, 10, 10)
    with pytest.raises(ValueError, match="b is not symmetric, so it is no kernel matrix"):
        MinibatchCKA("ab", kernel="precomputed").update({"a": x @ x.T, "b": y})
    with pytest.raises(ValueError, match="other b is not symmetric"):
        MinibatchCKA("a", "b", kernel="precomputed").update({"a": x @ x.T}, {"b": y})
    net, z = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)), gaussian(32, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match="0 is not symmetric"):
        cka_map(net, z, nn.Linear, kernel="precomputed", batch_size=8)
    made = cka_map(net, z, nn.Linear, kernel="precomputed", batch_size=8, reduce=lambda x: x @ x.T)
    pd.testing.assert_frame_equal(made, cka_map(net, z, nn.Linear, batch_size=8), atol=1e-4)


def test_precomputed_batches_cannot_be_joined() -> None:
    metric = MinibatchCKA("0", kernel="precomputed")
    metric.update({"0": torch.eye(5)})
    with pytest.raises(ValueError, match="precomputed kernel matrices need at least 4 examples in every batch"):
        metric.update({"0": torch.eye(3)})


# ------------------------------------------------------------------------------------------------------ exact streaming
@both_estimators
@pytest.mark.parametrize("sizes", [[60], [20, 40], [1, 2, 3, 54], [59, 1], [10] * 6, [0, 30, 0, 30]], ids=str)
def test_exact_cka_of_any_split(sizes: list[int], unbiased: bool, device: torch.device) -> None:
    """All data at once and batch by batch: the same to 1e-12, more features than examples included."""
    data = [{name: x.to(device) for name, x in part.items()} for part in layer_batches(sizes)]
    metric = feed(ExactCKA("012", unbiased=unbiased).to(device), data)
    torch.testing.assert_close(metric.compute(), cka_matrix(joined(*data), unbiased=unbiased), rtol=0, atol=1e-12)
    assert metric.total == 60


@both_estimators
@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 100.0), (torch.float64, 1e4)])
def test_exact_cka_with_an_offset(unbiased: bool, dtype: torch.dtype, offset: float, device: torch.device) -> None:
    """float32 features are summed in float64: equal to the value of the shifted, rounded features in float64."""
    data = [{name: (x + offset).to(dtype) for name, x in part.items()} for part in layer_batches([5, 40, 20])]
    metric = feed(
        ExactCKA("012", unbiased=unbiased).to(device), [{k: v.to(device) for k, v in p.items()} for p in data]
    )
    whole = {name: x.double() - offset for name, x in joined(*data).items()}
    torch.testing.assert_close(metric.compute().cpu(), cka_matrix(whole, unbiased=unbiased), rtol=0, atol=1e-10)


def test_exact_cka_of_a_first_batch_without_examples() -> None:
    """The origin is near the first example that there is: far from it, the sums would lose their digits."""
    data = [{name: x + 1e5 for name, x in part.items()} for part in layer_batches([0, 20, 40])]
    metric = feed(ExactCKA("012"), data)
    whole = {name: x - 1e5 for name, x in joined(*data).items()}
    torch.testing.assert_close(metric.compute(), cka_matrix(whole), rtol=0, atol=1e-9)
    late, resumed = feed(ExactCKA("012"), data[:1]), ExactCKA("012")
    late.persistent(True)
    resumed.load_state_dict(late.state_dict())
    torch.testing.assert_close(feed(resumed, data[1:]).compute(), metric.compute())


def test_exact_cka_of_drifting_data() -> None:
    """The first batch is a bad guess of the mean: classes in order."""
    data = [{name: x + 30 * i for name, x in part.items()} for i, part in enumerate(layer_batches([20, 20, 20]))]
    metric = feed(ExactCKA("012"), data)
    torch.testing.assert_close(metric.compute(), cka_matrix(joined(*data)), rtol=0, atol=1e-11)


def test_exact_cka_of_a_rank_without_examples_keeps_its_digits() -> None:
    """The first rank's origin, with no example to take it from, is 0: far from all others."""
    empty, full = ({name: x + 1e4 for name, x in part.items()} for part in layer_batches([0, 60]))
    metrics = [feed(ExactCKA("012"), [part]) for part in (empty, full)]
    metrics[0].moments = metrics[0]._merge(torch.stack([metric.moments for metric in metrics]))
    metrics[0].examples = sum(metric.examples for metric in metrics)
    whole = {name: x - 1e4 for name, x in full.items()}
    torch.testing.assert_close(metrics[0].compute(), cka_matrix(whole), rtol=0, atol=1e-10)


@pytest.mark.parametrize("coarse_first", [True, False])
def test_exact_cka_of_batches_in_two_precisions_has_the_rounding_of_the_coarser(coarse_first: bool) -> None:
    """A constant layer, of which one batch was computed in bfloat16, is dead in either order."""
    alive, still = gaussian(40, 3, dtype=torch.float32), 1 + 1e-3 * gaussian(40, 3, seed=1)
    parts = [{"0": alive[:20], "1": still[:20].bfloat16()}, {"0": alive[20:], "1": torch.ones(20, 3)}]
    with one_warning("1"):
        found = feed(ExactCKA("01"), parts if coarse_first else parts[::-1]).compute()
    assert found[0, 1] == 0


def test_exact_cka_of_wide_features() -> None:
    with pytest.raises(ValueError, match=r"16384 features in 1 layers need 2\.0 GiB; reduce them"):
        ExactCKA("0").update({"0": torch.zeros(4, 16_384)})
    metric = feed(ExactCKA("0"), [{"0": gaussian(5, 3)}])
    with pytest.raises(ValueError, match=r"widths changed from \[3\] to \[4\]"):
        metric.update({"0": gaussian(5, 4)})


# --------------------------------------------------------------------------------------------------------- whole models
def small_net(seed: int = 0, inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


@both_estimators
def test_cka_map_is_cka_of_the_features(unbiased: bool, device: torch.device) -> None:
    """In-place ReLUs after the layers, a training-mode batch norm, and a last batch of two."""
    model, plain = small_net().to(device).train(), small_net(inplace=False).to(device).eval()
    x = gaussian(34, 3, 4, 4, dtype=torch.float32).to(device)
    expected = MinibatchCKA(["0", "2", "6"], unbiased=unbiased).to(device)
    for part in (x[:16], x[16:]):
        expected.update(extract(plain, part, (nn.Conv2d, nn.Linear)))
    table = cka_map(model, x, (nn.Conv2d, nn.Linear), unbiased=unbiased, batch_size=16)
    assert list(table.index) == list(table.columns) == ["0", "2", "6"]
    torch.testing.assert_close(torch.tensor(table.to_numpy()), expected.compute().cpu(), rtol=0, atol=1e-6)
    assert table.attrs == {"examples": 34, "estimator": "minibatch", "unbiased": unbiased, "kernel": "linear"}
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    features = extract(plain, x, (nn.Conv2d, nn.Linear))
    exact = cka_map(model, x, (nn.Conv2d, nn.Linear), unbiased=unbiased, batch_size=16, estimator="exact")
    whole = cka_matrix({name: v.double() for name, v in features.items()}, unbiased=unbiased).cpu()
    torch.testing.assert_close(torch.tensor(exact.to_numpy()), whole, rtol=0, atol=1e-6)


def test_cka_map_of_two_models(device: torch.device) -> None:
    one, two = small_net(0).eval().to(device), small_net(1).eval().to(device)
    x = gaussian(20, 3, 4, 4, dtype=torch.float32)
    table = cka_map(one, [(x[:12], None), (x[12:], None)], nn.Conv2d, other=two, other_layers=["6", "0"], kernel="rbf")
    assert list(table.index) == ["0", "2"] and list(table.columns) == ["0", "6"]
    metric = MinibatchCKA(["0", "2"], ["0", "6"], kernel="rbf").to(device)
    for part in (x[:12], x[12:]):
        metric.update(extract(one, part, nn.Conv2d), extract(two, part, ["0", "6"]))
    torch.testing.assert_close(torch.tensor(table.to_numpy()), metric.compute().cpu(), rtol=0, atol=1e-6)
    same = cka_map(one, x, nn.Conv2d, other=one)
    assert abs(same - cka_map(one, x, nn.Conv2d)).to_numpy().max() < 1e-12
    judged = cka_map(one, x, nn.Conv2d, other=two, other_layers="4")
    training = cka_map(one, x, nn.Conv2d, other=two.train(), other_layers="4")
    assert abs(training - judged).to_numpy().max() < 1e-6 and all(module.training for module in two.modules())


def test_groups_are_smaller_batches(device: torch.device) -> None:
    """Groups of 8 in batches of 32 are batches of 8; 20 examples are two groups of 10, those of two models too."""
    one, two = small_net(0).eval().to(device), small_net(1).eval().to(device)
    x = gaussian(96, 3, 4, 4, dtype=torch.float32)
    for options in ({}, {"kernel": "rbf"}, {"other": two}):
        grouped = cka_map(one, x, nn.Conv2d, batch_size=32, group=8, **options)
        small = cka_map(one, x, nn.Conv2d, batch_size=8, **options)
        torch.testing.assert_close(torch.tensor(grouped.to_numpy()), torch.tensor(small.to_numpy()), rtol=0, atol=1e-6)
        assert grouped.attrs == small.attrs | {"group": 8}
    features = {"x": gaussian(20, 5), "y": gaussian(20, 5, seed=1)}
    grouped, halves = MinibatchCKA("xy", group=8), MinibatchCKA("xy")
    grouped.update(features)
    for part in (slice(10), slice(10, 20)):
        halves.update({name: v[part] for name, v in features.items()})
    torch.testing.assert_close(grouped.compute(), halves.compute(), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_groups_estimate_the_same_and_vary_as_they_should() -> None:
    """Where layers are independent Var HSIC₁ = C/(n(n − 3)), so m groups of g raise it n(n − 3)/(m·g(g − 3)) times;
    where they are strongly dependent the term that groups leave alone rules."""
    n, g, draws = 64, 16, 400
    for rho, low, high in ((0.0, 3.3, 6.6), (0.9, 0.9, 1.3)):  # 4.69 for independent ones, ± 4 standard errors
        pairs = [list(correlated(n, 6, rho, seed=draw)) for draw in range(draws)]
        metrics = [MinibatchCKA("xy", group=group) for group in (None, g)]
        found = torch.tensor(
            [[float(metric._sums(pair, [])["cross"][0, 1]) / n for metric in metrics] for pair in pairs]
        )
        ratio = found[:, 1].var() / found[:, 0].var()
        assert low < ratio < high, (rho, ratio)
        shift = found[:, 1] - found[:, 0]
        assert abs(shift.mean()) < 4 * shift.std() / math.sqrt(draws)


class Rotated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, dims=1) ** 3


@pytest.mark.parametrize("estimator", ["minibatch", "exact"])
def test_cka_map_of_two_models_that_share_layers(estimator: str) -> None:
    """The second model's pass runs the first one's layers, too, on other inputs: 1 for .6, without a word."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(40, 6)
    other = nn.Sequential(Rotated(), model)
    alone = {name: extract(net, x, name)[name] for net, name in ((model, "0"), (model, "2"), (other, "1.2"))}
    found = cka_map(model, x, ["0", "2"], other=other, other_layers=["1.2"], estimator=estimator)
    for name in ("0", "2"):
        assert found.loc[name, "1.2"] == pytest.approx(float(cka(alone[name], alone["1.2"])), abs=1e-5)


def test_cka_map_reducers_and_repeated_calls() -> None:
    net = small_net().eval()
    model = nn.Sequential(net[0], net[2], net[3], nn.ReLU(inplace=True), net[5], net[6])
    twice = nn.Sequential(model[:4], model[3], model[4:])  # the ReLU runs a second time
    x = gaussian(12, 3, 4, 4, dtype=torch.float32)
    table = cka_map(twice, x, nn.ReLU, reduce="average_pool", estimator="exact")
    assert list(table.index) == ["0.3", "0.3#2"]
    assert table.loc["0.3", "0.3#2"] == pytest.approx(1)
    positions = cka_map(model, x, nn.Conv2d, reduce="per_position")
    assert positions.attrs["examples"] == 12 * 16
    with pytest.raises(ValueError, match="same examples"):
        cka_map(model, x, (nn.Conv2d, nn.Linear), reduce="per_position")


def test_cka_map_under_autocast() -> None:
    """The model computes in bf16; the measure does not."""
    model, x = small_net().eval(), gaussian(40, 3, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extract(model, x, nn.Conv2d)
        table = cka_map(model, x, nn.Conv2d)
    assert features["0"].dtype == torch.bfloat16
    expected = cka_matrix({name: v.double() for name, v in features.items()})
    torch.testing.assert_close(torch.tensor(table.to_numpy()), expected, rtol=0, atol=1e-6)


def test_bad_maps() -> None:
    model, x = small_net(), torch.randn(12, 3, 4, 4)
    for kwargs, message in (
        ({"estimator": "full"}, "estimator='full' is unknown"),
        ({"estimator": "exact", "kernel": "rbf"}, "estimator='exact' needs kernel='linear', not 'rbf'"),
        ({"kernel": "poly"}, "kernel='poly' is unknown"),
        ({"reduce": "mean"}, "reduce='mean' is unknown"),
        ({"layers": "9"}, "no layer of Sequential matches '9'"),
        ({"batch_size": 3}, "batch_size=3 must be at least 4"),
        ({"group": 3}, "group=3 must be at least 4"),
        ({"group": 8.0}, "group=8.0 must be a whole number"),
        ({"group": 8, "unbiased": False}, "group=8 needs unbiased=True"),
        ({"group": 8, "estimator": "exact"}, "compares all examples with each other; group=8"),
        ({"data": x[:3]}, "3 examples in all; HSIC needs at least 4"),
        ({"data": x[:0]}, "0 examples in all"),
        ({"data": []}, "data holds no batch"),
        ({"data": x * math.nan}, r"at layers \['0', '2'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            cka_map(**{"model": model, "data": x, "layers": nn.Conv2d, **kwargs})
        assert model.training and not any(m._forward_hooks for m in model.modules())


# -------------------------------------------------------------------------------------------------- no waiting per step
class NoWaiting(TorchDispatchMode):
    """Refuses what makes the CPU wait for a device: reading a value, and shapes that depend on values."""

    waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.waits or masks:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("waits for the device")

    with monkeypatch.context() as patch, NoWaiting():
        for method in ("tolist", "numpy", "cpu", "__array__"):  # they reach no dispatcher on the CPU
            patch.setattr(Tensor, method, refuse)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: bool((x > 0).all()), lambda x: x[x > 0], lambda x: x.tolist(), int]
)
def test_the_detector_of_waiting_detects(wait: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1)
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting(torch.device("cpu"), monkeypatch):
        wait(x)


def test_no_step_waits_for_the_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tap, kernels, centring and the updates of both metrics; small batches and dead layers included."""
    model = small_net().eval().to(device)
    x = gaussian(40, 3, 4, 4, dtype=torch.float32).to(device)
    nn.init.zeros_(model[2].weight)
    for kind, kwargs in ((MinibatchCKA, {}), (MinibatchCKA, {"kernel": "rbf", "unbiased": False}), (ExactCKA, {})):
        metric = kind(["0", "2", "6"], **kwargs).to(device)
        with FeatureTap(model, (nn.Conv2d, nn.Linear)) as features:
            model(x[:4])
            metric.update(features)  # warm up: libraries may synchronise when they start
            with no_waiting(device, monkeypatch):
                for part in x.split([16, 16, 3, 5]):
                    model(part)
                    metric.update(features)
        with one_warning("2", "6"):  # what follows a dead layer is dead
            metric.compute()


# ----------------------------------------------------------------------------------------------- fast paths, odd inputs
@pytest.mark.parametrize("n", [5, 129, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_kernel_matrix_is_the_equation(n: int, dtype: torch.dtype, device: torch.device) -> None:
    x = (gaussian(n, 1500, dtype=dtype) + 3).to(device).requires_grad_()
    k, spread, offset = CenteredGram.apply(x)
    centred = x - x.mean(0)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-9 if dtype == torch.float64 else 1e-3)
    close(k, linear_kernel(centred))
    close(spread, centred.square().sum())
    close(offset, x.mean(0).square().sum())
    weights = torch.randn(n, n, dtype=dtype, device=device)
    got = torch.autograd.grad((k * weights).sum(), x)
    close(got, torch.autograd.grad((linear_kernel(centred) * weights).sum(), x))


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 4))
def test_small_updates_are_joined_up_to_the_minimum(sizes: list[int]) -> None:
    """The value is that of the batches that `features.batches` makes, and the memory is bounded whatever comes."""
    x, y = gaussian(sum(sizes), 3), gaussian(sum(sizes), 2, seed=1)
    metric, expected = MinibatchCKA(["x", "y"]), MinibatchCKA(["x", "y"])
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        metric.update({"x": a, "y": b})
        assert metric._last is None or len(metric._last[0][0]) < 2 * MINIMUM + max(sizes)
    for batch in batches(iter(torch.cat([x, y], 1).split(sizes)), minimum=MINIMUM):
        expected.update({"x": batch[:, :3], "y": batch[:, 3:]})
    torch.testing.assert_close(metric.compute(), expected.compute())
    assert metric.total == sum(sizes)


def test_batches_of_one_example_never_make_one_large_one() -> None:
    model, x, seen = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), gaussian(50, 4).float(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    loader = DataLoader(TensorDataset(x))
    found = cka_map(model, loader, nn.Linear)
    assert max(seen) < 2 * MINIMUM and sum(seen) == 50
    pd.testing.assert_frame_equal(found, cka_map(model, [*x[:44].split(4), x[44:]], nn.Linear))
    seen.clear()
    exact = cka_map(model, loader, nn.Linear, estimator="exact")
    assert set(seen) == {1}
    pd.testing.assert_frame_equal(exact, cka_map(model, x, nn.Linear, estimator="exact"))


def test_one_layer_of_each_model_is_a_table() -> None:
    model, other, x = small_net(), small_net(), torch.randn(12, 3, 4, 4)
    features = [extract(net, x, "2")["2"] for net in (model, other)]
    for estimator in ("minibatch", "exact"):
        table = cka_map(model, x, "2", other=other, estimator=estimator)
        assert table.shape == (1, 1) and table.iloc[0, 0] == pytest.approx(float(cka(*features)), abs=1e-6)
        assert cka_map(model, x, "2", estimator=estimator).loc["2", "2"] == pytest.approx(1)
    metric = MinibatchCKA(["x"])
    metric.update({"x": torch.randn(8, 3)})
    copied = pickle.loads(pickle.dumps(metric))
    assert metric.compute().shape == copied.compute().shape == (1, 1)


def test_blocks_are_compared_unless_layers_are_named() -> None:
    nets, x = [digits_net(blocks=2), digits_net(blocks=3)], torch.randn(12, 1, 8, 8)
    table = cka_map(nets[0], x, other=nets[1])
    assert list(table.index) == ["layer1.0", "layer1.1"] and list(table.columns) == [f"layer1.{k}" for k in range(3)]
    assert cka_map(nets[0], x).equals(cka_map(nets[0], x, "layer1.?"))


def test_orthogonal_examples_leave_nothing() -> None:
    with pytest.warns(UserWarning, match=r"or orthogonal ones: \['x', 'y'\]"):
        assert cka(torch.eye(8), torch.eye(8)) == 0
    assert cka(torch.eye(8), torch.eye(8), unbiased=False) == pytest.approx(1)


def test_arrays_are_taken_and_text_is_refused() -> None:
    x, y = gaussian(20, 3), gaussian(20, 2, seed=1) + gaussian(20, 1)
    for a, b in ((x.numpy(), y.numpy()), (pd.DataFrame(x.numpy()), y.tolist())):
        assert cka(a, b) == cka(x, y) and hsic(a, b) == hsic(x, y)
        assert cka_interval(a, b) == cka_interval(x, y) and torch.equal(cka_matrix([a, b]), cka_matrix([x, y]))
    with pytest.raises(ValueError, match="y is a list without numbers"):
        cka(x, ["cat"] * 20)
    with pytest.raises(ValueError, match=r"xs\['a'\] must be floating point"):
        cka_matrix({"a": np.arange(8).reshape(4, 2)})


def test_a_function_that_selects_leaves_tensors_whole() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])

    model, x = Attends().eval(), torch.randn(30, 5, 8)
    with torch.no_grad():
        attended = model.attention(x, x, x)[0]
        expected = cka(attended.flatten(1), model.head(attended).flatten(1))
    table = cka_map(model, x, ["attention", "head"], select=lambda output: output[0])
    assert table.loc["attention", "head"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.slow
def test_cka_needs_neither_torchmetrics_nor_pandas() -> None:
    code = (
        "import sys, torch; from companion.similarity import cka, hsic, cka_interval, cka_map; "
        "cka(torch.randn(8, 2), torch.randn(8, 3)); print({'torchmetrics', 'pandas', 'sklearn'} & set(sys.modules)); "
        "from companion.similarity import ExactCKA; print('torchmetrics' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "True"]


def test_nan_stays_nan_in_a_ratio_and_a_dead_layer_is_zero() -> None:
    own = torch.tensor([1.0, 0.0, torch.nan], dtype=torch.double)
    cross = torch.outer(own, own)
    found = _ratio(cross, own, own)
    assert found[0, 0] == 1 and found[1, :2].eq(0).all() and found[0, 1] == 0
    assert found[0, 2].isnan() and found[2, 2].isnan()
    x = torch.randn(8, 5)
    x[3, 2] = torch.nan
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    penalty = CKASparsity(model, 1.0, layers=nn.Linear, pairs="all", examples=None, every=1)
    model(x)
    assert penalty().isnan(), "not 0: training would go on with it"


@pytest.mark.parametrize("later", [(30, 2), (2, 30)], ids=str)
@pytest.mark.parametrize("kind", [ExactCKA, MinibatchCKA])
def test_a_streaming_estimate_goes_on_from_its_state_dict(kind: type, later: tuple[int, ...]) -> None:
    """torchmetrics' own checkpointing; a small batch is waiting when it is written."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"a": (a := torch.randn(n, 5, generator=generator)), "b": a[:, :3] + torch.randn(n, 3, generator=generator)}
        for n in (10, 7, 3, *later)
    ]
    whole, first, second = (kind(["a", "b"]) for _ in range(3))
    for batch in batches:
        whole.update(batch)
    for metric in (first, second):
        metric.persistent(True)
    for batch in batches[:3]:
        first.update(batch)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.compute(), first.compute())
    for batch in batches[3:]:
        second.update(batch)
    torch.testing.assert_close(second.compute(), whole.compute())
    assert not kind(["a", "b"]).state_dict(), "not persistent: nothing in a model's state"


def test_complex_features_are_refused_wherever_they_enter() -> None:
    x = torch.randn(10, 4, dtype=torch.cfloat)
    for call in (
        lambda: gram(x),
        lambda: gram(x, "rbf"),
        lambda: cka(x, x),
        lambda: ExactCKA(["a"]).update({"a": x}),
        lambda: MinibatchCKA(["a"]).update({"a": x}),
    ):
        with pytest.raises(ValueError, match="complex; give real and imaginary parts"):
            call()


def test_each_of_two_models_has_its_own_part_of_select() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    one, two = Recurrent(), nn.Sequential(nn.Linear(4, 8))
    x = torch.randn(30, 5, 4)
    select = {"rnn": lambda output: output[0]}
    table = cka_map(one, x, "rnn", other=two, other_layers="0", select=select)
    assert table.shape == (1, 1) and 0 < abs(float(table.iloc[0, 0])) <= 1
    with pytest.raises(ValueError, match=r"select='lstm' is unknown; use one of \['rnn', '0'\]"):
        cka_map(one, x, "rnn", other=two, other_layers="0", select={"lstm": lambda output: output[0]})
