"""The studies of the third round: what rounds one and two left open. See the page *Hypotheses, third round*.

Each runs from one commit to its end, and all runs of a seed on one model of processor. Every argument of a training is
written out here.
"""

from __future__ import annotations

from companion.experiments.studies import blocks, identity

EXPERIMENTS = (*identity.EXPERIMENTS, *blocks.EXPERIMENTS)

__all__ = ["EXPERIMENTS"]
