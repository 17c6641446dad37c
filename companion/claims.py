"""Claims of the two papers, each with its test: what the page *Results* is built from.

A claim is tested by comparisons of recorded runs, paired by seed. Its verdict follows from their intervals by one rule,
`Claim.judged`; nobody writes it by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from companion import information, published, readings
from companion.experiments import TITLES, registry, runner
from companion.experiments.statistics import Mean, holm, mean
from companion.readings import Reading

VERDICTS = ("holds", "does not hold", "mixed", "undecided", "not run")


@dataclass(frozen=True)
class Comparison:
    """A method less its baseline in one cell of an experiment, seed by seed.

    Attributes:
        title: what is compared, in words.
        reading: the number compared, see `companion.readings`.
        unit: of the difference.
        other: the experiment that holds the baseline; None: the same.
    """

    title: str
    experiment: str
    method: str
    baseline: str
    reading: Reading = readings.percent
    unit: str = "points"
    sparsity: float | None = None
    tier: str = "laptop"
    other: str | None = None

    def by_seed(self, root: Path | None = None) -> dict[int, float]:
        """The difference for every seed that both sides have."""

        def values(experiment: str, method: str) -> dict[int, float]:
            chosen = runner.replay(experiment, self.tier, root=root).where(method=method, sparsity=self.sparsity)
            return {record.run.seed: self.reading(record) for record in chosen}

        here = values(self.experiment, self.method)
        there = values(self.other or self.experiment, self.baseline)
        return {seed: here[seed] - there[seed] for seed in sorted(set(here) & set(there))}


@dataclass(frozen=True)
class Contrast:
    """One comparison less another, seed by seed: is an effect larger here than there?"""

    title: str
    first: Comparison
    second: Comparison

    @property
    def unit(self) -> str:
        return self.first.unit

    @property
    def experiment(self) -> str:
        return self.first.experiment

    def by_seed(self, root: Path | None = None) -> dict[int, float]:
        """The difference of the differences for every seed that both comparisons have."""
        here, there = self.first.by_seed(root), self.second.by_seed(root)
        return {seed: here[seed] - there[seed] for seed in sorted(set(here) & set(there))}


Test = Comparison | Contrast


class Tested(NamedTuple):
    """A test, its mean difference over seeds (None: not run), and its p after Holm's correction (1: no interval)."""

    test: Test
    difference: Mean | None
    p: float

    @property
    def ran(self) -> bool:
        """Does it have an interval, from two seeds or more?"""
        return self.difference is not None and self.difference.count > 1


class Judgement(NamedTuple):
    """What became of a claim: one of `VERDICTS`, its tests, which of them are decided, and what a proof found."""

    verdict: str
    tests: list[Tested]
    decided: list[Tested]
    text: str = ""


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is tested here.

    Attributes:
        paper: `"CKA-SR"` or `"FFR"`.
        text: the claim, in our words.
        source: where it stands.
        direction: +1 if the tests' differences should be positive, −1 if negative.
        published: what the paper measured, where that is available.
        chapter: name of the notebook that goes into it.
        proof: for a claim of theory, a function that decides it by numbers: `(holds, what was found)`.
        missing: what the claim needs and was not run, and why.

    >>> Claim("FFR", "paths get straighter", "abstract", "08_feature_flow_regularization").judged().verdict
    'not run'
    >>> Claim("CKA-SR", "both are 0 together", "", "07_identity_layers", proof=zeros_are_shared).judged().verdict
    'holds'
    """

    paper: str
    text: str
    source: str
    chapter: str
    tests: tuple[Test, ...] = ()
    direction: int = 1
    published: str = "not available to us"
    proof: Callable[[], tuple[bool, str]] | None = None
    missing: str = ""

    def judged(self, root: Path | None = None, level: float = 0.05) -> Judgement:
        """Its tests and its verdict, from the tests that are decided at this level after Holm's correction.

        All of them in the claim's direction: "holds". All against it: "does not hold". Both kinds: "mixed". None
        decided: "undecided". No test with two seeds: "not run", and such tests do not count in the family.
        """
        by_seed = [test.by_seed(root) for test in self.tests]
        found = [mean(values.values()) if values else None for values in by_seed]
        corrected = iter(holm([f.p_value for f in found if f is not None and f.count > 1]))
        tested = [
            Tested(test, difference, next(corrected) if difference is not None and difference.count > 1 else 1.0)
            for test, difference in zip(self.tests, found, strict=True)
        ]
        if self.proof is not None:
            holds, text = self.proof()
            return Judgement("holds" if holds else "does not hold", tested, [], text)
        if not any(t.ran for t in tested):
            return Judgement("not run", tested, [])
        decided = [t for t in tested if t.difference is not None and t.p < level]
        sides = {(t.difference.value > 0) == (self.direction > 0) for t in decided if t.difference is not None}
        words = {(): "undecided", (True,): "holds", (False,): "does not hold"}
        return Judgement(words.get(tuple(sorted(sides)), "mixed"), tested, decided)


# --------------------------------------------------------------------------------------------------------------- theory
def _gaussian_pair(scales: tuple[float, float], correlations: tuple[float, float]) -> tuple[float, float]:
    """Linear CKA and mutual information (nats) of two jointly Gaussian layers of two features, in closed form.

    Feature k has deviation `scales[k]` in both layers and correlation `correlations[k]` with its counterpart only.
    """
    s, r = torch.tensor(scales, dtype=torch.double), torch.tensor(correlations, dtype=torch.double)
    own, cross = torch.diag(s**2), torch.diag(r * s**2)
    cka = float((cross**2).sum() / (own**2).sum())
    joint = torch.cat([torch.cat([own, cross], 1), torch.cat([cross, own], 1)])
    return cka, float(information.gaussian_mutual_information(joint, 2))


def zeros_are_shared() -> tuple[bool, str]:
    """CKA is 0 exactly where the mutual information of jointly Gaussian layers is 0: at a hundred random pairs.

    >>> zeros_are_shared()[0]
    True
    """
    chance = torch.Generator().manual_seed(0)
    both = True
    for _ in range(100):
        scales, correlations = torch.rand(2, 2, generator=chance).tolist()
        positive = _gaussian_pair((scales[0] + 0.1, scales[1] + 0.1), (correlations[0] + 1e-3, correlations[1]))
        zero = _gaussian_pair((scales[0] + 0.1, scales[1] + 0.1), (0.0, 0.0))
        both &= min(positive) > 0 and max(zero) == 0
    return (
        both,
        "proved in the chapter, and checked: both are 0 together and positive together at 100 random Gaussian pairs",
    )


def one_falls_with_the_other() -> tuple[bool, str]:
    """Whether a lower CKA means less mutual information; two pairs of Gaussian layers decide.

    >>> one_falls_with_the_other()[0]
    False
    """
    (cka_a, information_a), (cka_b, information_b) = (
        _gaussian_pair((1.0, 0.1), correlations) for correlations in ((0.5, 0.0), (0.0, 0.95))
    )
    text = (
        f"from one pair of Gaussian layers to another CKA falls from {cka_a:.2f} to {cka_b:.2g} while the information "
        f"rises from {information_a:.2f} to {information_b:.2f} nats: a small feature weighs little in CKA, and fully "
        "in information"
    )
    return not (cka_b < cka_a and information_b > information_a), text


# --------------------------------------------------------------------------------------------------------------- claims
HOSTS: Mapping[str, tuple[str, tuple[float, ...], str]] = {
    "random": ("random_masks", (0.9, 0.98), "random masks"),
    "granet": ("granet", (0.9, 0.98), "GraNet"),
    "lottery": ("lottery", (0.9,), "lottery ticket"),
}
IDENTITY = ("cka_sr", "aug_cka_sr")
FLOW = ("ffr_length", "ffr_curvature", "ffr_length_curvature")


def _hosted(host: str, penalty: str, **options: object) -> tuple[Comparison, ...]:
    """A penalty against its host alone, at every recorded sparsity."""
    experiment, sparsities, title = HOSTS[host]
    return tuple(
        Comparison(f"{TITLES[penalty]}, {title} {s:g}", experiment, f"{host}+{penalty}", host, sparsity=s, **options)  # type: ignore[arg-type]
        for s in sparsities
    )


def _cifar100(penalty: str) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(
            f"{TITLES[penalty]}, random masks {s:g}, CIFAR-100",
            "random_masks_cifar100",
            f"random+{penalty}",
            "random",
            sparsity=s,
        )
        for s in (0.9, 0.98)
    )


def _dense(
    title: str, method: str, reading: Reading, unit: str = "points", experiment: str = "dense_penalties"
) -> Comparison:
    return Comparison(title, experiment, method, "none", reading, unit)


def _weights(methods: Iterable[str]) -> tuple[Comparison, ...]:
    """Penalties of dense nets, once most of the weights are gone."""
    return tuple(
        _dense(
            f"{TITLES[method]}, weights pruned to {s:g}{seeds}",
            method,
            readings.after_pruning(s),
            experiment=experiment,
        )
        for experiment, seeds in (("dense_penalties", ""), ("dense_penalties_again", ", new seeds"))
        for method in methods
        for s in (0.8, 0.9)
        if experiment == "dense_penalties" or method in registry.AGAIN
    )


def _filters(method: str) -> tuple[Comparison, ...]:
    places = {"dense_penalties": "ResNet-20"}
    if method in registry.AGAIN:
        places["dense_penalties_again"] = "ResNet-20, new seeds"
    if method in registry.VGG_PENALISED:
        places["dense_penalties_vgg"] = "slim VGG"
    if method in registry.TINY_PENALISED:
        places["dense_penalties_tiny"] = "20 classes of Tiny ImageNet"
    return tuple(
        _dense(
            f"{TITLES[method]}, {place}, {share} of the MACs",
            method,
            readings.after_removal(macs),
            experiment=experiment,
        )
        for experiment, place in places.items()
        for share, macs in (("½", 0.5), ("¼", 0.25))
    )


def _published_gain(method: str) -> str:
    table = published.random_masks_cifar100()
    gain = table.loc[method] - table.loc["random"]
    return f"{gain.min():+.2f} … {gain.max():+.2f} points on CIFAR-100, one number a cell, no spread"


def _published_dense() -> str:
    table = published.dense_training()
    gains = table.assign(gain=table["cka_sr"] - table["none"]).groupby("images", sort=False)["gain"]
    return (
        "; ".join(f"{images}: {' and '.join(f'{gain:+.2f}' for gain in values)} points" for images, values in gains)
        + " (ResNet-18 and ResNet-50)"
    )


def _published_extremes() -> str:
    table = published.random_masks_cifar100()
    gain = table.loc["random+cka_sr"] - table.loc["random"]
    return (
        f"on CIFAR-100 largest at {gain.idxmax():g} ({gain.max():+.2f}), and {gain.iloc[-1]:+.2f} at {gain.index[-1]:g}"
    )


def _short(*experiments: str) -> str:
    """How short our trainings are, from the registry."""
    tiers = {
        tier: sorted({registry.find(name).runs(tier)[0].settings["epochs"] for name in experiments})
        for tier in ("laptop", "paper")
    }
    ours, full = (" to ".join(str(epochs) for epochs in sorted({of[0], of[-1]})) for of in tiers.values())
    return (
        f"Our trainings have {ours} epochs in place of {full}, most at half the resolution. Full training is "
        "registered at tier `paper`: not run, no GPU."
    )


def _published_tokens() -> str:
    table = published.token_sparsification()
    gains = table["cka_sr"] - table["none"]
    return f"DeiT-Tiny with sparse tokens {' and '.join(f'{gain:+.2f}' for gain in gains)} points"


_RANDOM = {penalty: _hosted("random", penalty) for penalty in IDENTITY}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "CKA-SR",
        "It makes training under fixed random masks more accurate.",
        "appendix, tables",
        "10_cifar_identity",
        (*_RANDOM["cka_sr"], *_cifar100("cka_sr")),
        published=_published_gain("random+cka_sr"),
        missing=_short("random_masks", "random_masks_cifar100"),
    ),
    Claim(
        "CKA-SR",
        "So does AugCKA-SR, which compares all layers.",
        "appendix, tables",
        "10_cifar_identity",
        (*_RANDOM["aug_cka_sr"], *_cifar100("aug_cka_sr")),
        published=_published_gain("random+aug_cka_sr"),
        missing=_short("random_masks", "random_masks_cifar100"),
    ),
    Claim(
        "CKA-SR",
        "The gain is largest at extreme sparsity.",
        "abstract",
        "10_cifar_identity",
        tuple(
            Contrast(f"{TITLES[penalty]}, random masks, gain at .98 less gain at .9", high, low)
            for penalty, (low, high) in _RANDOM.items()
        ),
        published=_published_extremes(),
        missing="Sparsities beyond .98: not run.",
    ),
    Claim(
        "CKA-SR",
        "It plugs into dynamic sparse training and lottery tickets and makes them more accurate.",
        "abstract",
        "10_cifar_identity",
        tuple(test for host in ("granet", "lottery") for penalty in IDENTITY for test in _hosted(host, penalty)),
        missing="The paper's tables for these hosts are not available to us.",
    ),
    Claim(
        "CKA-SR",
        "It makes dense training more accurate.",
        "appendix, text",
        "10_cifar_identity",
        (
            *(_dense(f"{TITLES[penalty]}, CIFAR-10", penalty, readings.percent) for penalty in IDENTITY),
            *(
                Comparison(f"{TITLES[penalty]}, CIFAR-100", "dense_cifar100", f"none+{penalty}", "none")
                for penalty in IDENTITY
            ),
        ),
        published=_published_dense(),
        missing=f"Our net is a ResNet-20. {_short('dense_penalties', 'dense_cifar100')} ImageNet: not registered.",
    ),
    Claim(
        "CKA-SR",
        "It lowers the similarity of layers.",
        "abstract, figures",
        "07_identity_layers",
        (
            *_hosted("random", "cka_sr", reading=readings.cka_in_stages, unit="CKA in stages"),
            _dense("CKA-SR, dense", "cka_sr", readings.cka_in_stages, "CKA in stages"),
            _dense("AugCKA-SR, dense", "aug_cka_sr", readings.cka_of_blocks, "CKA of all blocks"),
        ),
        direction=-1,
        published="CKA maps become darker off the diagonal as β rises to .08",
    ),
    Claim(
        "CKA-SR",
        "It makes weights small: their histogram sharpens at 0.",
        "appendix, figures",
        "07_identity_layers",
        (
            *_hosted("random", "cka_sr", reading=readings.small_weights, unit="% of the weights"),
            *(
                _dense(f"{TITLES[penalty]}, dense", penalty, readings.small_weights, "% of the weights")
                for penalty in IDENTITY
            ),
        ),
        published="histograms, no number",
    ),
    Claim(
        "CKA-SR",
        "Lower similarity gives higher sparsity: a dense net can lose more of its weights.",
        "abstract",
        "07_identity_layers",
        _weights(IDENTITY),
    ),
    Claim(
        "CKA-SR",
        "CKA and the mutual information of jointly Gaussian layers share their zeros.",
        "appendix, lemmas 1 and 2",
        "07_identity_layers",
        proof=zeros_are_shared,
    ),
    Claim(
        "CKA-SR",
        "So any lower CKA means less mutual information.",
        "appendix, as theorem 3 is used short of the minimum",
        "07_identity_layers",
        proof=one_falls_with_the_other,
    ),
    Claim(
        "CKA-SR",
        "It helps sparse training on ImageNet, and vision transformers with fewer tokens.",
        "appendix",
        "12_imagenet",
        published=_published_tokens(),
        missing="ResNet-18 with random masks: registered, not run, it needs a GPU. Transformers: not built.",
    ),
    Claim(
        "FFR",
        "It controls the length and the curvature of the path of features.",
        "both abstracts",
        "11_cifar_flow",
        (
            _dense("FFR length", "ffr_length", readings.path_length, "relative step"),
            _dense("FFR curvature", "ffr_curvature", readings.path_angle, "radians"),
            _dense("FFR both", "ffr_length_curvature", readings.path_length, "relative step"),
        ),
        direction=-1,
    ),
    Claim(
        "FFR",
        "That makes the parameters sparser: more weights are small.",
        "abstract of the arXiv version",
        "11_cifar_flow",
        tuple(_dense(TITLES[method], method, readings.small_weights, "% of the weights") for method in FLOW),
    ),
    Claim(
        "FFR",
        "Unstructured sparsity improves: a net can lose more of its weights.",
        "abstract of the arXiv version",
        "11_cifar_flow",
        _weights(FLOW),
    ),
    Claim(
        "FFR",
        "Structured sparsity improves: a net can lose more of its filters.",
        "both abstracts",
        "11_cifar_flow",
        tuple(test for method in FLOW for test in _filters(method)),
        missing="Accuracies are those after fine-tuning. "
        + _short("dense_penalties", "dense_penalties_vgg", "dense_penalties_tiny"),
    ),
    Claim(
        "FFR",
        "It does so on ImageNet, too.",
        "abstract of the journal version",
        "12_imagenet",
        missing="ResNet-50: registered, not run, it needs a GPU.",
    ),
)
