"""Every public name has an example that runs and prints what its docstring says, or a reason here to have none."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import matplotlib
import pytest
import torch
from conftest import ROOT
from test_api import offered

import companion

MODULES = ["companion", *(info.name for info in pkgutil.walk_packages(companion.__path__, "companion."))]
MODULES.remove("companion.experiments.__main__")

WITHOUT = {
    "needs images that the reader has to download": {
        *("data.cifar10", "data.cifar100", "data.tiny_imagenet", "data.imagenet", "data.ImageNetLoader"),
    },
    "comes out of a function, whose example shows it": {
        *("flow.Trajectory", "similarity.Interval", "pruning.Cost", "pruning.Coupling"),
        *("pruning.FilterReport", "pruning.FineTuning", "training.Place", "experiments.Outcome"),
        *("experiments.ImageTask", "experiments.distributions.Task", "widgets.Parts"),
    },
    "needs Lightning, a recipe shows it": {"training.lightning_log"},
    "works in Google Colab alone": {"experiments.notebook.keep_on_drive"},
    "arguments that every method takes: a signature refers to it": {"pruning.Options"},
    "its other half's example shows it": {"training.load_checkpoint"},
    "a step of `prune_filters`, whose example shows it": {
        f"pruning.filters.{name}" for name in ("Constants", "constants", "remove")
    },
    "fields by name, which `Recipe`'s example and every study fill": {
        f"experiments.recipes.{name}" for name in ("Depth", "PhotographRecipe", "Prune")
    },
    "an error that a sweep reports and goes on": {"experiments.OtherBlockError"},
    "a protocol, which `fit`'s example meets": {"training.Penalty", "training.Sparsity"},
    "performs runs of an experiment, for minutes or hours": {
        *("experiments.Workplace", "experiments.perform", "experiments.problems", "experiments.train"),
        *("experiments.train_and_prune", "experiments.lottery"),
    },
    "one number of a record: test_quantities.py has each by hand": {
        f"experiments.quantities.{name}"
        for name in (
            *("percent", "after_pruning", "after_removal", "without_blocks", "block_damage", "pruned_on_average"),
            *("sparsity_kept", "cka_of_blocks", "cka_of_neighbours", "path_length", "path_angle"),
            *("straightness", "small_weights", "folded_norms", "raw_norms", "inner_scale", "inner_deviation"),
            *(
                "branch_scale",
                "cka_between_stages",
                "about_image",
                "about_label",
                "shared_information",
                "mean_cosine",
                "logarithm",
            ),
        )
    },
    "finishes what a killed runner left, and names what `verify` finds": {
        *("experiments.records.mend",),
    },
    "a part of `claims.Claim`": {
        f"experiments.claims.{name}" for name in ("Comparison", "Judgement", "Missing", "Tested")
    },
    "a figure that answers to the reader: a chapter shows it": {
        f"experiments.explorables.{name}_data"
        for name in ("cka_epochs", "cka_map", "flow_path", "information_grid", "mask_life", "penalty_strengths")
    },
    "changes nothing but the look, or the text of a page: every chapter shows it": {"plots.glue", "plots.scale"},
}


def docstring(name: str) -> str:
    """The docstring of a public function or class."""
    module, _, attribute = name.rpartition(".")
    return inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""


def test_every_public_name_has_an_example_or_a_reason() -> None:
    excused = {f"companion.{name}" for names in WITHOUT.values() for name in names}
    lacking = {name for name in offered() if ">>>" not in docstring(name)}
    without_reason, not_lacking = sorted(lacking - excused), sorted(excused - lacking)
    assert not without_reason, "give these an example, or a reason in WITHOUT"
    assert not not_lacking, "these have an example, or are gone: strike them from WITHOUT"


def test_names_that_people_type_first_have_examples() -> None:
    lacking = [name for name in companion.__all__ if ">>>" not in (inspect.getdoc(getattr(companion, name)) or "")]
    assert not lacking


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    with matplotlib.rc_context():
        matplotlib.use("agg")
        for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
            torch.manual_seed(0)
            runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def test_the_first_page_shows_what_its_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = re.findall(r"^```(?:python|text)\n(.+?)^```", (ROOT / "book" / "intro.md").read_text(), re.M | re.S)
    exec(code, {})
    assert capsys.readouterr().out == output
