"""Claims of the two papers, each with its tests: what the page *The claims, one by one* is built from.

A claim is tested by comparisons of recorded runs, paired by seed. Its verdict follows from them by the rule of
`experiments.statistics.conclude`; nobody writes it by hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from companion import information
from companion.experiments import archive, published, quantities, records, registry
from companion.experiments.quantities import Reading
from companion.experiments.records import Records, Run
from companion.experiments.statistics import (
    QUANTITIES,
    Mean,
    Outcome,
    Quantity,
    acted,
    conclude,
    corrected,
    mean,
    pooled,
)
from companion.experiments.studies import penalties
from companion.experiments.titles import TITLES

__all__ = [
    "ACROSS_HOSTS",
    "ACTING",
    "CLAIMS",
    "DENSE",
    "FLOW",
    "HOSTS",
    "LATER",
    "MOVED",
    "ONCE_MORE",
    "RELEASED",
    "STRONGER",
    "TARGETS",
    "Claim",
    "Comparison",
    "Judgement",
    "Missing",
    "Pairs",
    "Tested",
    "effect",
    "one_falls_with_the_other",
    "penalty_of",
    "rounds_of",
    "strength_of",
    "zeros_are_shared",
]

Pairs = Mapping[tuple[str, int], float]  # (experiment, seed) → a difference of two runs of that seed


# ------------------------------------------------------------------------------------------------------------ penalties
# What each penalty penalises: by this it is seen to act.
TARGETS: Mapping[str, tuple[Reading, str]] = {
    "cka_sr": (quantities.cka_in_stages, "CKA in stages"),
    "aug_cka_sr": (quantities.cka_of_blocks, "CKA of all blocks"),
    "ffr_length": (quantities.path_length, "relative step"),
    "ffr_curvature": (quantities.path_angle, "turning angle"),
    "ffr_length_curvature": (quantities.path_length, "relative step"),
}
SYMBOLS = {"beta": "β", "length": "k₁", "curvature": "k₂", "strength": "strength"}


def penalty_of(run: Run) -> str | None:
    """The key of a run's only penalty in `TARGETS`; None for another, for several, and for none.

    >>> [penalty_of(run) for run in registry.find("random_masks").runs("laptop", [0])[:3]]
    [None, 'cka_sr', 'aug_cka_sr']
    """
    terms = run.settings.get("penalties", [])
    if len(terms) != 1:
        return None
    (term,) = terms
    if term["kind"] == "FeatureFlow":
        parts = [part for part in ("length", "curvature") if term.get(part)]
        return "_".join(["ffr", *parts])
    return {"CKASparsity": "cka_sr", "AugmentedCKASparsity": "aug_cka_sr"}.get(term["kind"])


def strength_of(run: Run) -> str:
    """The strengths of a run's penalties as the registry states them.

    >>> [strength_of(run) for run in registry.find("random_masks").runs("laptop", [0])[:3]]
    ['', 'β = 0.001', 'β = 0.03']
    """
    return ", ".join(
        f"{symbol} = {term[key]:g}"
        for term in run.settings.get("penalties", [])
        for key, symbol in SYMBOLS.items()
        if term.get(key)
    )


# Rounds 1 and 2: run before any margin of equivalence was named.
POST_HOC = frozenset(
    [
        *("random_masks", "random_masks_cifar100", "random_masks_beta", "granet", "lottery", "dense_cifar100"),
        *("dense_penalties", "dense_penalties_again", "dense_penalties_vgg", "dense_penalties_tiny"),
    ]
)


# Rounds of one comparison are pooled. The third round made some of them once more, on seeds of its own, in studies that
# have their own names for them: study → our name of a method → the study's.
LATER: Mapping[str, Mapping[str, str]] = {
    "depth": {"none": "none", "ffr_length": "ffr_length_0.01"},
    "specificity": {"none": "none", "aug_cka_sr": "aug_cka_sr", "ffr_length_curvature": "ffr"},
}


# ---------------------------------------------------------------------------------------------------------------- tests
@dataclass(frozen=True)
class Comparison:
    """A method less its baseline in one cell of an experiment, seed by seed.

    Attributes:
        title: what is compared, in words.
        experiments: where it was run; several are rounds of the same comparison, on seeds of their own.
        reading: the number compared, see `companion.experiments.quantities`.
        quantity: what that number is, a key of `experiments.statistics.QUANTITIES`.
        less: another comparison that is taken off, seed by seed: is an effect larger here than there?
    """

    title: str
    experiments: tuple[str, ...]
    method: str
    baseline: str
    reading: Reading = quantities.percent
    quantity: str = "accuracy"
    sparsity: float | None = None
    tier: str = "laptop"
    less: Comparison | None = None

    @property
    def measured(self) -> Quantity:
        return QUANTITIES[self.quantity]

    def run(self) -> Run:
        """A run of the method, as the registry plans it in every round.

        Raises:
            ValueError: no such run in the registry; rounds that differ in the settings of either side.
        """
        here, there = (
            [_planned(name, self.tier, side, self.sparsity) for name in self.experiments]
            for side in (self.method, self.baseline)
        )
        if any(_trained(run) != _trained(side[0]) for side in (here, there) for run in side):
            raise ValueError(f"{self.title}: {self.experiments} are no rounds of one comparison: their settings differ")
        return here[0]

    def sides(self, root: Path | None = None) -> Mapping[str, tuple[Records, Records]]:
        """The method's records and the baseline's, by experiment.

        Raises:
            ValueError: no such runs in the registry.
        """
        return {
            name: (
                _cell(name, self.tier, self.method, self.sparsity, root),
                _cell(name, self.tier, self.baseline, self.sparsity, root),
            )
            for name in self.experiments
        }

    def values(self, root: Path | None = None) -> Mapping[tuple[str, int], tuple[float, float]]:
        """The method's value and the baseline's for every seed that has both, by experiment and seed.

        Raises:
            ValueError: no such runs in the registry; a record without what is compared.
        """
        found: dict[tuple[str, int], tuple[float, float]] = {}
        for name, sides in self.sides(root).items():
            here, there = (side.by_seed(self.reading) for side in sides)
            found |= {(name, seed): (here[seed], there[seed]) for seed in sorted(here.keys() & there.keys())}
        return found

    def differences(self, root: Path | None = None) -> Pairs:
        """The difference for every seed that both sides have, and what is taken off."""
        found = {place: here - there for place, (here, there) in self.values(root).items()}
        off = dict.fromkeys(found, 0.0) if self.less is None else self.less.differences(root)
        return {place: found[place] - off[place] for place in found if place in off}

    def rounds(self, root: Path | None = None) -> list[list[float]]:
        """The differences, a list for each of the experiments."""
        found = self.differences(root)
        return [[d for (name, _), d in found.items() if name == one] for one in self.experiments]

    def apart(self, root: Path | None = None) -> float | None:
        """p of its rounds having one mean (F test); None where fewer than two rounds have two seeds."""
        several = [values for values in self.rounds(root) if len(values) > 1]
        return float(stats.f_oneway(*several).pvalue) if len(several) > 1 else None

    def delta(self, root: Path | None = None) -> float | None:
        """The margin of equivalence; None where it is a share of a baseline that was not run."""
        if self.measured.share is None:
            return self.measured.delta
        there = [baseline for _, baseline in self.values(root).values()]
        return self.measured.margin(float(np.mean(there))) if there else None

    @property
    def cells(self) -> frozenset[tuple[str, str, float | None]]:
        """What a further seed of it has to run: methods at a sparsity, in the experiment that was first."""
        own = frozenset((self.experiments[0], method, self.sparsity) for method in (self.method, self.baseline))
        return own | self.less.cells if self.less else own

    def manipulation(self) -> Comparison | None:
        """The same comparison of what the penalty penalises; None where that is compared already, or the baseline has a
        penalty too."""
        target = TARGETS.get(penalty_of(self.run()) or "")
        baseline = _planned(self.experiments[0], self.tier, self.baseline, self.sparsity)
        if self.less or target is None or target[1] == self.quantity or baseline.settings.get("penalties"):
            return None
        return replace(self, reading=target[0], quantity=target[1])


def effect(test: Comparison, root: Path | None = None) -> Mean | None:
    """A test's mean difference, stratified by round; None where no seed has both sides.

    >>> test = Comparison("CKA-SR", ("random_masks",), "random+cka_sr", "random", sparsity=0.9)
    >>> effect(test).signed(), test.measured.unit, strength_of(test.run())
    ('−0.08 ± 0.77', 'points', 'β = 0.001')
    """
    return pooled(test.rounds(root))


def _trained(run: Run) -> dict[str, Any]:
    """The settings that decide what is trained: not what is taken from the net afterwards; the width, which older plans
    leave to the model's default, as a number."""
    s = run.settings
    options = {"width": 16, **s["model_options"]} if "model_options" in s else None
    return {**s, "prune": None, "penalties": list(s.get("penalties", [])), "model_options": options}


def _planned(experiment: str, tier: str, method: str, sparsity: float | None) -> Run:
    """The first run of that cell in the registry."""
    runs, method = registry.find(experiment).runs(tier), LATER.get(experiment, {}).get(method, method)
    for run in runs:
        if (run.method, run.sparsity) == (method, sparsity):
            return run
    cells = sorted({f"{run.method} at {run.sparsity}" for run in runs})
    raise ValueError(f"{experiment}, tier {tier}, has no {method} at sparsity {sparsity}; it has {cells}")


def _cell(experiment: str, tier: str, method: str, sparsity: float | None, root: Path | None) -> Records:
    planned = _planned(experiment, tier, method, sparsity)
    folder = records.results_root(root)
    index = folder / records.INDEX
    written = index.stat().st_mtime_ns if index.exists() else 0
    return _replayed(experiment, tier, folder, written).where(method=planned.method, sparsity=sparsity)


@functools.lru_cache(maxsize=32)
def _replayed(experiment: str, tier: str, folder: Path, written: int) -> Records:
    """Records are read once, until the folder's index is `written` anew."""
    return archive.replay(experiment, tier, results=folder)


# ------------------------------------------------------------------------------------------------------------- verdicts
@dataclass(frozen=True, kw_only=True)
class Tested(Outcome):
    """A test and its outcome, with the manipulation check: the mean change of what the penalty penalises (None where
    there is no check), and the `band` ± within which a change counts as none."""

    test: Comparison
    change: Mean | None = None
    band: float | None = None

    @property
    def penalty(self) -> str:
        """`"acted"`, `"did not act"`, `"unclear"` or `"not measured"`; empty where there is no check."""
        return acted(self.change, self.band) if self.band else ""

    @property
    def post_hoc(self) -> bool:
        """Were its runs made before δ was named?"""
        return not POST_HOC.isdisjoint(self.test.experiments)


class Missing(NamedTuple):
    """What would decide what is undecided: the total number of seeds, and the core-hours of the runs it lacks."""

    seeds: int
    hours: float


class Judgement(NamedTuple):
    """What became of a claim: one of `experiments.statistics.VERDICTS`, its tests, those that are shown beside it, and
    what a proof found."""

    verdict: str
    tests: list[Tested]
    beside: list[Tested]
    text: str = ""

    @property
    def decided(self) -> list[Tested]:
        """The tests whose direction is decided."""
        return [t for t in self.tests if t.says() in ("for", "against")]

    @property
    def small(self) -> bool:
        """Are there decided tests, and all of them within ±δ? Then the effect is there, and too small to count."""
        return bool(self.decided) and all(t.equivalent for t in self.decided)

    def missing(self, root: Path | None = None) -> Missing | None:
        """What every undecided test would take, at the spread that its runs had (see `Mean.deciding`; no correction for
        several tests), on the processor of the records, where tests share cells; None where no test is undecided."""
        wanted: dict[tuple[str, str, float | None, str], tuple[int, int]] = {}
        for t in self.tests:
            if t.says() == "undecided" and t.difference is not None and t.difference.df and t.delta:
                seeds = math.ceil(t.difference.deciding(t.delta))
                for cell in t.test.cells:
                    before = wanted.get((*cell, t.test.tier), (0, t.difference.count))
                    wanted[(*cell, t.test.tier)] = (max(seeds, before[0]), max(t.difference.count, before[1]))
        if not wanted:
            return None
        hours = 0.0
        for (name, method, sparsity, tier), (seeds, count) in wanted.items():
            made = [record.provenance for record in _cell(name, tier, method, sparsity, root)]
            core_seconds = [one["wall_seconds"] * one["threads"] for one in made]
            hours += max(seeds - count, 0) * float(np.mean(core_seconds)) / 3600
        return Missing(max(seeds for seeds, _ in wanted.values()), hours)


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is tested here.

    Attributes:
        paper: `"CKA-SR"` or `"FFR"`.
        text: the claim, in our words.
        label: the same in a few words, for a figure.
        source: where it stands.
        direction: +1 if the tests' differences should be positive, −1 if negative.
        beside: tests that are shown with the claim and do not count, neither in the verdict nor in the family.
        published: what the paper measured, where that is available.
        chapter: name of the notebook that goes into it.
        proof: for a claim of theory, a function that decides it by numbers: `(holds, what was found)`.
        missing: what the claim needs and was not run, and why.
        remark: what else the records say of it, in sentences, from its judgement.

    >>> Claim("CKA-SR", "both are 0 together", "0", "", "06_identity_layers", proof=zeros_are_shared).judged().verdict
    'holds'
    """

    paper: str
    text: str
    label: str
    source: str
    chapter: str
    tests: tuple[Comparison, ...] = ()
    direction: int = 1
    beside: tuple[Comparison, ...] = ()
    published: str = "not available to us"
    proof: Callable[[], tuple[bool, str]] | None = None
    missing: str = ""
    remark: Callable[[Judgement], str] | None = None

    def judged(self, root: Path | None = None) -> Judgement:
        """Its tests, corrected by Holm as one family, and its verdict by `experiments.statistics.conclude`."""
        tests = self._tested(self.tests, root)
        beside = [t for test in self.beside for t in self._tested((test,), root)]
        if self.proof is not None:
            holds, text = self.proof()
            return Judgement("holds" if holds else "does not hold", tests, beside, text)
        return Judgement(conclude(t.says() for t in tests), tests, beside)

    def _tested(self, tests: tuple[Comparison, ...], root: Path | None) -> list[Tested]:
        effects, found = [effect(test, root) for test in tests], []
        for test, difference, p in zip(tests, effects, corrected(effects), strict=True):
            manipulation = test.manipulation()
            change, band = (effect(manipulation, root), manipulation.delta(root)) if manipulation else (None, None)
            found.append(Tested(difference, self.direction, p, test.delta(root), test=test, change=change, band=band))
        return found


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
    text = "proved in the chapter, and checked: both are 0 together and positive together at 100 random Gaussian pairs"
    return both, text


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
HOSTS: Mapping[str, tuple[str, tuple[float, ...], str, str]] = {  # experiment → method, sparsities, titles
    "random_masks": ("random", (0.9, 0.98), "random masks", ""),
    "random_masks_cifar100": ("random", (0.9, 0.98), "random masks", ", CIFAR-100"),
    "granet": ("granet", (0.9, 0.98), "GraNet", ""),
    "lottery": ("lottery", (0.9,), "lottery ticket", ""),
}
IDENTITY = ("cka_sr", "aug_cka_sr")
FLOW = ("ffr_length", "ffr_curvature", "ffr_length_curvature")
PRUNING = "accuracy after pruning"  # the quantity
DENSE = ("dense_penalties", "dense_penalties_again")  # two rounds of one experiment
ROUNDS = (*DENSE, *LATER)
# What the third round trained at larger strengths: study, method there, penalty.
STRONGER = (
    ("specificity", "cka_sr", "cka_sr"),
    ("depth", "ffr_length_0.03", "ffr_length"),
    ("depth", "ffr_length_0.1", "ffr_length"),
    ("specificity", "ffr_strong", "ffr_length_curvature"),
)


def _hosted(
    experiment: str, penalty: str, reading: Reading = quantities.percent, quantity: str = "accuracy"
) -> list[Comparison]:
    """A penalty against its host alone, at every recorded sparsity."""
    host, sparsities, title, images = HOSTS[experiment]
    of = Comparison("", (experiment,), f"{host}+{penalty}", host, reading, quantity)
    return [replace(of, title=f"{TITLES[penalty]}, {title} {_short(s)}{images}", sparsity=s) for s in sparsities]


def rounds_of(method: str, baseline: str = "none", among: tuple[str, ...] = ROUNDS) -> tuple[str, ...]:
    """The studies that trained a dense net under both: rounds of one comparison.

    >>> rounds_of("ffr_length"), rounds_of("ffr_curvature")
    (('dense_penalties', 'depth'), ('dense_penalties',))
    """
    methods = {name: LATER.get(name) or registry.find(name).tiers["laptop"].methods for name in among}
    return tuple(name for name in among if {method, baseline} <= methods[name].keys())


def _dense(
    method: str,
    where: str,
    reading: Reading = quantities.percent,
    quantity: str = "accuracy",
    experiments: tuple[str, ...] = ROUNDS,
    baseline: str = "none",
) -> Comparison:
    """A penalty on a dense net against none, or another; in those of the `experiments` that have both."""
    had = rounds_of(method, baseline, experiments)
    less = "" if baseline == "none" else f" less {TITLES[baseline]}"
    return Comparison(f"{TITLES[method]}{less}, {where}", had, method, baseline, reading, quantity)


def _swept(reading: Reading = quantities.percent, quantity: str = "accuracy") -> list[Comparison]:
    """CKA-SR at every strength of the sweep against none; the third round has two of them once more."""
    plan, later = (registry.find(name).tiers["laptop"] for name in ("random_masks_beta", "masks_dose"))
    return [
        Comparison(
            f"CKA-SR, random masks {_short(s)}",
            ("random_masks_beta", *["masks_dose"] * (method in later.methods and s in later.sparsities)),
            *(method, "random", reading, quantity, s),
        )
        for s in plan.sparsities
        for method in plan.methods
        if method != "random" and s is not None
    ]


def _pruned(methods: Iterable[str], baseline: str = "none", levels: Iterable[float] = (0.8, 0.9)) -> list[Comparison]:
    """Penalties of dense nets, once most of the weights are gone."""
    return [
        _dense(m, f"weights pruned to {_short(s)}", quantities.after_pruning(s), PRUNING, baseline=baseline)
        for m in methods
        for s in levels
    ]


def _stronger(
    methods: Iterable[str], where: str, reading: Reading = quantities.percent, quantity: str = "accuracy"
) -> list[Comparison]:
    """Dense nets under more of a penalty than the claims' tests have; to be shown beside them."""
    return [
        Comparison(f"{TITLES[penalty]}, {where}", (study,), method, "none", reading, quantity)
        for study, method, penalty in STRONGER
        if penalty in methods
    ]


def _pruned_harder(methods: Iterable[str]) -> list[Comparison]:
    """The same of `_pruned`, under more of the penalty."""
    return [
        test
        for s in (0.8, 0.9)
        for test in _stronger(methods, f"weights pruned to {_short(s)}", quantities.after_pruning(s), PRUNING)
    ]


def _removed(method: str) -> list[Comparison]:
    """A penalty of dense nets, once whole filters are gone and the rest is fine-tuned."""
    places: dict[str, tuple[str, ...]] = {"ResNet-20": DENSE}
    if method in penalties.VGG_PENALISED:
        places["slim VGG"] = ("dense_penalties_vgg",)
    if method in penalties.TINY_PENALISED:
        places["20 classes of Tiny ImageNet"] = ("dense_penalties_tiny",)
    later = {("ResNet-20", 0.5): ("depth",)}  # the third round's only nets without filters
    return [
        _dense(
            method,
            f"{place}, {share} of the MACs",
            quantities.after_removal(macs),
            PRUNING,
            experiments + later.get((place, macs), ()),
        )
        for place, experiments in places.items()
        for share, macs in (("½", 0.5), ("¼", 0.25))
    ]


def _short(share: float) -> str:
    """.9 for 0.9."""
    return f"{share:g}".removeprefix("0")


def _published_gain(method: str) -> str:
    table = published.random_masks_cifar100()
    gain = table.loc[method] - table.loc["random"]
    return f"{gain.min():+.2f} … {gain.max():+.2f} points on CIFAR-100, one number a cell, no spread"


def _published_sweep() -> str:
    table = published.random_masks_beta()
    gains = (table - published.BETA_BASELINE).stack()
    low, high = (f"{beta:g}".replace("-", "−") for beta in (table.columns[0], table.columns[-1]))
    return (
        f"{(gains > 0).sum()} of {len(gains)} accuracies at β = {low} … {high} above that without, in the median "
        f"{gains.median():+.2f} points; CIFAR-10, one number a cell"
    )


def _published_dense() -> str:
    table = published.dense_training()
    gains = (table["cka_sr"] - table["none"]).groupby(table["images"], sort=False)
    told = (f"{images}: {' and '.join(f'{gain:+.2f}' for gain in values)} points" for images, values in gains)
    return f"{'; '.join(told)} (ResNet-18 and ResNet-50)"


def _published_extremes() -> str:
    table = published.random_masks_cifar100()
    gain = table.loc["random+cka_sr"] - table.loc["random"]
    return (
        f"on CIFAR-100 largest at {gain.idxmax():g} ({gain.max():+.2f}), and {gain.iloc[-1]:+.2f} at {gain.index[-1]:g}"
    )


def _published_histograms() -> str:
    spans = [f"{min(betas):g} … {max(betas):g} ({network})" for network, betas in published.drawn_strengths().items()]
    return f"histograms, no number, at β = {' and '.join(spans)}"


def _short_training(*experiments: str) -> str:
    """How short our trainings are, from the registry."""
    epochs = (
        [registry.find(name).runs(tier)[0].settings["epochs"] for name in experiments] for tier in ("laptop", "paper")
    )
    ours, full = (" to ".join(map(str, sorted({min(of), max(of)}))) for of in epochs)
    return (
        f"Our trainings have {ours} epochs in place of {full}, most at half the resolution. Full training is "
        "registered at tier `paper`: not run, no GPU."
    )


def _published_tokens() -> str:
    table = published.token_sparsification()
    gains = table["cka_sr"] - table["none"]
    return f"DeiT-Tiny with sparse tokens {' and '.join(f'{gain:+.2f}' for gain in gains)} points"


def _gain_once_more(judged: Judgement) -> str:
    """The gain of AugCKA-SR with nine weights in ten gone: as two rounds saw it, and on the seeds of the third."""
    before, after = map(effect, ONCE_MORE)
    (less,) = (t for t in judged.beside if t.test.baseline == "ffr_length_curvature")
    if before is None or after is None or less.difference is None or not (before.df and after.df):
        return ""
    pairs = [np.array([*test.values().values()]) for test in ONCE_MORE]
    apart = stats.ttest_ind(*(values[:, 0] - values[:, 1] for values in pairs), equal_var=False).pvalue
    alone = [values[:, 1].mean() for values in pairs]
    share = 100 * (alone[1] - alone[0]) / (before.value - after.value)
    return (
        f"After two rounds this claim was *mixed*: with nine weights in ten gone AugCKA-SR stood at {before.signed()} "
        f"points, on {before.count} seeds, the last five of which were run because the first looked promising. On "
        f"{after.count} new seeds it stands at {after.signed()}. By the same settings these two are further apart than "
        f"chance explains well (p = {apart:.1g}, Welch's t): what went before was no plan for one test, and the "
        f"{before.count} nets without a penalty, with which every penalty was compared, were poor there "
        f"({alone[0]:.1f} % against {alone[1]:.1f} %), which is {share:.0f} % of it. AugCKA-SR less FFR both, which "
        f"*raises* CKA in stages, is {less.difference.signed()} points: {less.says()}."
    )


def _strongest(judged: Judgement) -> str:
    """What the largest strength of the sweep does, and which smaller ones act."""
    *weaker, last = judged.tests
    plan = last.test.run()
    nets = [net for here, _ in last.test.sides().values() for net in here]
    seen = [
        quantities.cka_in_stages(net)
        for net in (*nets, *archive.replay("random_masks_strengths").where(method=plan.method))
    ]
    if last.difference is None or not seen:
        return ""
    acting = [strength_of(t.test.run()) for t in weaker if t.penalty == "acted"]
    return (
        f"At {strength_of(plan)} CKA in stages falls to {min(seen):.2f} … {max(seen):.2f} ({len(seen)} nets), and "
        f"accuracy changes by {mean(last.test.differences().values()).signed()} points (without strata). Within "
        f"rounds this test has p = {last.difference.p_value:.2g} before the correction, {last.p:.2g} after it. Of the "
        f"smaller strengths of this sweep {', '.join(acting) or 'none'} acted; "
        "[chapter 11](../notebooks/11_cifar_identity.ipynb) has doses between."
    )


def _chosen_for_pruning(judged: Judgement) -> str:
    """Whose test decides, where it is that of AugCKA-SR alone."""
    if {t.test.method.removeprefix("none+") for t in judged.tests if t.says() in ("for", "against")} != {"aug_cka_sr"}:
        return ""
    return "Only AugCKA-SR's test decides, and its strength was chosen by the accuracy *after pruning*."


_SMALL: Any = (quantities.small_weights, "small weights")
_RANDOM = {penalty: _hosted("random_masks", penalty) for penalty in IDENTITY}
_HUNDRED = {penalty: _hosted("random_masks_cifar100", penalty) for penalty in IDENTITY}
_OTHERS = [method for method in penalties.PENALISED if method not in ("none", *IDENTITY)]

# One penalty in every host, for estimates that pool them; and what every penalty moves in a dense net.
ACROSS_HOSTS: Mapping[str, tuple[Comparison, ...]] = {
    penalty: tuple(test for experiment in HOSTS for test in _hosted(experiment, penalty)) for penalty in IDENTITY
}
MOVED: Mapping[str, tuple[Comparison, ...]] = {
    method: tuple(
        _dense(method, quantity, reading, quantity)
        for reading, quantity in (TARGETS["ffr_length"], TARGETS["cka_sr"], TARGETS["aug_cka_sr"])
    )
    for method in penalties.PENALISED
    if method != "none"
}
# CKA-SR as its authors released it.
RELEASED = Comparison(
    "CKA-SR, random masks .95, released recipe",
    ("published_recipe",),
    "random+cka_sr",
    "random",
    sparsity=0.95,
)
# Either form under random masks, at the smallest strength that acts on what it penalises.
ACTING: Mapping[str, Comparison] = {
    penalty: replace(
        low, title=f"{TITLES[penalty]}, random masks .9, a strength that acts", experiments=("hosts_again",)
    )
    for penalty, (low, _) in _RANDOM.items()
}
# AugCKA-SR with nine weights in ten gone: its gain in the first two rounds, and on the seeds of the third.
ONCE_MORE: tuple[Comparison, ...] = tuple(
    _dense("aug_cka_sr", "weights pruned to .9", quantities.after_pruning(0.9), PRUNING, names)
    for names in (DENSE, ("specificity",))
)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "CKA-SR",
        "CKA-SR makes training under fixed random masks more accurate.",
        "CKA-SR helps under random masks",
        "appendix, tables",
        "11_cifar_identity",
        (*_RANDOM["cka_sr"], *_HUNDRED["cka_sr"]),
        beside=(ACTING["cka_sr"], RELEASED),
        published=_published_gain("random+cka_sr"),
        missing=_short_training("random_masks", "random_masks_cifar100")
        + " Beside it stand a strength that acts, and the released recipe, at full size with a quarter of its epochs.",
    ),
    Claim(
        "CKA-SR",
        "AugCKA-SR, the form that compares all blocks with each other, does so too.",
        "AugCKA-SR helps under random masks",
        "appendix, tables",
        "11_cifar_identity",
        (*_RANDOM["aug_cka_sr"], *_HUNDRED["aug_cka_sr"]),
        beside=(ACTING["aug_cka_sr"],),
        published=_published_gain("random+aug_cka_sr"),
        missing=_short_training("random_masks", "random_masks_cifar100") + " Beside it stands a strength that acts.",
    ),
    Claim(
        "CKA-SR",
        "The gain of either is largest at extreme sparsity.",
        "most at extreme sparsity",
        "abstract",
        "11_cifar_identity",
        tuple(
            replace(high, title=f"{TITLES[penalty]}, random masks, gain at .98 less gain at .9", less=low)
            for penalty, (low, high) in _RANDOM.items()
        ),
        published=_published_extremes(),
        missing="Sparsities beyond .98: not run.",
    ),
    Claim(
        "CKA-SR",
        "CKA-SR plugs into dynamic sparse training and lottery tickets and makes them more accurate.",
        "it helps GraNet and lottery tickets",
        "abstract",
        "11_cifar_identity",
        tuple(test for host in ("granet", "lottery") for penalty in IDENTITY for test in _hosted(host, penalty)),
        missing="The paper's tables for these hosts are not available to us.",
    ),
    Claim(
        "CKA-SR",
        "CKA-SR makes dense training more accurate.",
        "it helps dense training",
        "appendix, text",
        "11_cifar_identity",
        (
            *(_dense(penalty, "CIFAR-10") for penalty in IDENTITY),
            *(
                Comparison(f"{TITLES[penalty]}, CIFAR-100", ("dense_cifar100",), f"none+{penalty}", "none")
                for penalty in IDENTITY
            ),
        ),
        beside=tuple(_stronger(IDENTITY, "CIFAR-10")),
        published=_published_dense(),
        missing="Our net is a ResNet-20. "
        + _short_training("dense_penalties", "dense_cifar100")
        + " ImageNet: not registered.",
        remark=_chosen_for_pruning,
    ),
    Claim(
        "CKA-SR",
        "CKA-SR lowers the similarity of layers.",
        "it lowers the similarity of layers",
        "abstract, figures",
        "06_identity_layers",
        (
            *_hosted("random_masks", "cka_sr", quantities.cka_in_stages, "CKA in stages"),
            _dense("cka_sr", "dense", quantities.cka_in_stages, "CKA in stages"),
            _dense("aug_cka_sr", "dense", quantities.cka_of_blocks, "CKA of all blocks"),
            *_swept(quantities.cka_in_stages, "CKA in stages"),
        ),
        direction=-1,
        beside=(
            *_stronger(IDENTITY, "dense", quantities.cka_in_stages, "CKA in stages"),
            *(replace(ACTING[p], reading=TARGETS[p][0], quantity=TARGETS[p][1]) for p in IDENTITY),
            replace(RELEASED, reading=quantities.cka_in_stages, quantity="CKA in stages"),
        ),
        published="CKA maps become darker off the diagonal as β rises to .08",
    ),
    Claim(
        "CKA-SR",
        "CKA-SR makes weights small: their histogram sharpens at 0.",
        "it makes weights small",
        "appendix, figures",
        "06_identity_layers",
        (*_hosted("random_masks", "cka_sr", *_SMALL), *(_dense(penalty, "dense", *_SMALL) for penalty in IDENTITY)),
        beside=(
            *_swept(*_SMALL),
            *_stronger(IDENTITY, "dense", *_SMALL),
            *(replace(ACTING[p], reading=_SMALL[0], quantity=_SMALL[1]) for p in IDENTITY),
        ),
        published=_published_histograms(),
        missing="The verdict is about the strengths of these tests, of which most lie below those of the published "
        "figures. Beside it stand larger ones; those of the sweep have two to five seeds.",
    ),
    Claim(
        "CKA-SR",
        "The lower similarity gives higher sparsity: a dense net can lose more of its weights.",
        "a net can lose more weights",
        "abstract",
        "06_identity_layers",
        tuple(_pruned(IDENTITY)),
        beside=(
            *_pruned_harder(IDENTITY),
            *_pruned(_OTHERS, levels=(0.9,)),
            *_pruned(["aug_cka_sr"], baseline="ffr_length_curvature", levels=(0.9,)),
        ),
        remark=_gain_once_more,
    ),
    Claim(
        "CKA-SR",
        "The same for filters: a dense net can lose more of them.",
        "a net can lose more filters",
        "abstract, as we read it; the tables on structured pruning are not available to us",
        "06_identity_layers",
        tuple(test for penalty in IDENTITY for test in _removed(penalty)),
        missing="Accuracies are those after fine-tuning. " + _short_training("dense_penalties"),
    ),
    Claim(
        "CKA-SR",
        "The gain of CKA-SR under random masks does not hang on its strength β.",
        "it helps at any strength β",
        "appendix, table of strengths",
        "11_cifar_identity",
        tuple(_swept()),
        published=_published_sweep(),
        missing="Two seeds of the two smallest strengths: their intervals reach 12.7 standard errors to either side.",
        remark=_strongest,
    ),
    Claim(
        "CKA-SR",
        "CKA and the mutual information of jointly Gaussian layers share their zeros.",
        "CKA and information share zeros",
        "appendix, lemmas 1 and 2",
        "06_identity_layers",
        proof=zeros_are_shared,
    ),
    Claim(
        "CKA-SR",
        "So any lower CKA means less mutual information.",
        "lower CKA means less information",
        "appendix, as theorem 3 is used short of the minimum",
        "06_identity_layers",
        proof=one_falls_with_the_other,
    ),
    Claim(
        "CKA-SR",
        "CKA-SR helps sparse training on ImageNet, and vision transformers with fewer tokens.",
        "ImageNet and transformers",
        "appendix",
        "16_at_scale",
        published=_published_tokens(),
        missing="ResNet-18 with random masks: registered, not run, it needs a GPU. Transformers: not built.",
    ),
    Claim(
        "FFR",
        "FFR controls the length and the curvature of the path of features.",
        "FFR controls length and curvature",
        "both abstracts",
        "12_cifar_flow",
        (
            _dense("ffr_length", "length of a step", quantities.path_length, "relative step"),
            _dense("ffr_curvature", "turning angle", quantities.path_angle, "turning angle"),
            _dense("ffr_length_curvature", "length of a step", quantities.path_length, "relative step"),
        ),
        direction=-1,
        beside=tuple(_stronger(FLOW, "length of a step", quantities.path_length, "relative step")),
    ),
    Claim(
        "FFR",
        "FFR makes the parameters sparser: more weights are small.",
        "FFR makes weights small",
        "abstract of the arXiv version",
        "12_cifar_flow",
        tuple(_dense(method, "dense", *_SMALL) for method in FLOW),
        beside=tuple(_stronger(FLOW, "dense", *_SMALL)),
    ),
    Claim(
        "FFR",
        "With FFR a net can lose more of its weights.",
        "FFR: a net can lose more weights",
        "abstract of the arXiv version",
        "12_cifar_flow",
        tuple(_pruned(FLOW)),
        beside=tuple(_pruned_harder(["ffr_length_curvature"])),
    ),
    Claim(
        "FFR",
        "With FFR a net can lose more of its filters.",
        "FFR: a net can lose more filters",
        "both abstracts",
        "12_cifar_flow",
        tuple(test for method in FLOW for test in _removed(method)),
        beside=tuple(_stronger(["ffr_length"], "ResNet-20, ½ of the MACs", quantities.after_removal(0.5), PRUNING)),
        missing="Accuracies are those after fine-tuning. "
        + _short_training("dense_penalties", "dense_penalties_vgg", "dense_penalties_tiny"),
    ),
    Claim(
        "FFR",
        "FFR does so on ImageNet, too.",
        "FFR on ImageNet",
        "abstract of the journal version",
        "16_at_scale",
        missing="ResNet-50: registered, not run, it needs a GPU.",
    ),
)
