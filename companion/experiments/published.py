"""Published numbers, each with its source: what the chapters put beside what this code measured.

None of them was measured here, and none states seeds or a spread. Numbers of the papers' main texts that are not
available to us are not here.

Chapter *Identity layers* puts them beside ours.
"""

from __future__ import annotations

import pandas as pd

__all__ = [
    "BETA_BASELINE",
    "dense_training",
    "drawn_strengths",
    "filter_pruning",
    "random_masks_beta",
    "random_masks_cifar100",
    "token_sparsification",
]

APPENDIX = "Ni et al. 2023, arXiv 2307.07389, appendix"
BENCHMARK = "the benchmark table of torch-pruning (Fang et al. 2023)"


def random_masks_cifar100() -> pd.DataFrame:
    """Test accuracy in % of ResNet-20 on CIFAR-100 under fixed random masks: method × sparsity. Source: `APPENDIX`.

    >>> float(random_masks_cifar100().loc["random", 0.95])
    47.27
    """
    sparsities = [0.7, 0.85, 0.9, 0.95, 0.98, 0.998]
    rows = {
        "random": [65.42, 60.37, 56.96, 47.27, 33.74, 2.95],
        "random+cka_sr": [65.60, 60.86, 57.25, 48.26, 34.44, 3.32],
        "random+aug_cka_sr": [65.85, 60.89, 57.02, 48.39, 34.60, 3.04],
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(sparsities, name="sparsity"))
    return table.rename_axis("method")


BETA_BASELINE = 84.16


def random_masks_beta() -> pd.DataFrame:
    """Test accuracy in % of ResNet-20 on CIFAR-10 under random masks at sparsity .95: examples and batches of CKA-SR ×
    strength β. Without CKA-SR it is `BETA_BASELINE`. Source: `APPENDIX`.

    >>> random_masks_beta().shape  # examples and batches × strengths
    (5, 12)
    """
    betas = [1e-5, 2e-5, 5e-5, 8e-5, 1e-4, 2e-4, 5e-4, 8e-4, 1e-3, 2e-3, 5e-3, 1e-2]
    rows = {
        "all, every batch": [84.69, 84.38, 84.42, 84.45, 84.11, 84.40, 84.39, 85.03, 84.82, 84.08, 83.86, 84.03],
        "16, every 5th": [84.06, 84.52, 84.44, 84.90, 84.59, 84.59, 84.42, 84.61, 84.40, 84.61, 84.71, 84.17],
        "8, every 5th": [84.19, 84.51, 84.44, 84.45, 84.97, 83.88, 84.68, 84.41, 84.56, 84.52, 84.00, 84.41],
        "4, every 5th": [84.71, 84.35, 84.62, 84.20, 83.85, 84.30, 84.87, 84.92, 84.62, 84.67, 84.27, 76.08],
        "8, every 10th": [84.28, 84.27, 84.62, 84.14, 84.27, 84.06, 84.25, 84.17, 84.19, 84.59, 84.43, 84.08],
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(betas, name="β"))
    return table.rename_axis("examples, batches")


def drawn_strengths() -> dict[str, list[float]]:
    """The strengths β of CKA-SR above 0 for which the paper draws CKA maps and histograms of weights, by network, under
    random masks at sparsity .95. Source: `APPENDIX`.

    >>> drawn_strengths()["ResNet-20"]
    [0.01, 0.05, 0.08]
    """
    return {"ResNet-56": [5e-4, 2e-3, 5e-3], "ResNet-20": [0.01, 0.05, 0.08]}


def dense_training() -> pd.DataFrame:
    """Test accuracy in % of dense nets without and with CKA-SR. Source: `APPENDIX`.

    >>> list(dense_training()["images"].unique())
    ['CIFAR-100', 'ImageNet']
    """
    rows = [
        ("ResNet-18", "CIFAR-100", 75.61, 76.32),
        ("ResNet-18", "ImageNet", 69.62, 69.90),
        ("ResNet-50", "CIFAR-100", 77.39, 78.94),
        ("ResNet-50", "ImageNet", 76.15, 76.39),
    ]
    return pd.DataFrame(rows, columns=["model", "images", "none", "cka_sr"])


def token_sparsification() -> pd.DataFrame:
    """Test accuracy in % on ImageNet of DeiT-Tiny that keeps a share of its tokens, without and with CKA-SR. Source:
    `APPENDIX`.

    >>> float(token_sparsification().loc[0.9, "cka_sr"])
    72.52
    """
    rows = [(0.7, 71.11, 71.35), (0.9, 72.31, 72.52)]
    return pd.DataFrame(rows, columns=["tokens kept", "none", "cka_sr"]).set_index("tokens kept")


def filter_pruning() -> pd.DataFrame:
    """ResNet-56 on CIFAR-10 pruned to about half its multiply-adds by nine methods of a table: test accuracy in %
    before and after, and how many times fewer FLOPs. Source: `BENCHMARK`; of HRank (Lin et al. 2020) its repository.

    >>> float(filter_pruning().loc["HRank", "fewer FLOPs"])
    2.0
    """
    rows = [
        ("FPGM", 93.59, 93.26, 1.70),
        ("Polar", 93.80, 93.83, 1.88),
        ("CP", 92.80, 91.80, 2.00),
        ("AMC", 92.80, 91.90, 2.00),
        ("HRank", 93.26, 93.17, 2.00),  # the table has 92.17 with a change of −0.09; 93.17 is its authors' number
        ("SFP", 93.59, 93.36, 2.11),
        ("ResRep", 93.71, 93.71, 2.12),
        ("Group-L1", 93.53, 92.93, 2.12),
        ("Group-BN", 93.53, 93.29, 2.12),
    ]
    return pd.DataFrame(rows, columns=["method", "base, %", "pruned, %", "fewer FLOPs"]).set_index("method")
