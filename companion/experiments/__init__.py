"""Experiments: a registry of named experiments, the runner that turns one into records, and the command line.

    python -m companion.experiments list
    python -m companion.experiments run dense_cifar10 --tier laptop
    python -m companion.experiments status
    python -m companion.experiments table dense_cifar10 --tier laptop
    python -m companion.experiments verify

An experiment is methods × sparsities × seeds in up to three tiers: `smoke` (seconds, no download), `laptop` (minutes a
run on two cores) and `paper` (the papers' recipe, one GPU). Each cell is a `Run`; a finished run is a `Record` in
`book/results`. A sweep continues where it stopped, and several runners on one folder share the work.

See page *Running experiments*.
"""

import lazy_loader

from companion.experiments import studies as studies  # registers the experiments

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
