"""Blocks: what a block, a stage and a label of a layer are, how much each block does, and the model without it.

A *block* is the unit whose outputs the papers compare (`find_blocks`). A *stage* is a run of blocks whose outputs have
one shape (`stages`). A record keeps names alone: there a stage is the numbered container that holds numbered blocks,
`layer3` of `layer3.2` (`stage_of`); in ResNets both are the same. Chapter *Feature similarity* compares blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from companion.blocks._names import compared_layers, find_blocks, label, same_stage, spans, stage_of, stages

if TYPE_CHECKING:
    from companion.blocks._effects import block_effects
    from companion.blocks._removal import PassThrough, remove_blocks, without_blocks

__all__ = [
    "PassThrough",
    "block_effects",
    "compared_layers",
    "find_blocks",
    "label",
    "remove_blocks",
    "same_stage",
    "spans",
    "stage_of",
    "stages",
    "without_blocks",
]

# The measures of blocks stand on similarity and flow, which know blocks by name alone.
_LATER = {"_effects": ["block_effects"], "_removal": ["PassThrough", "remove_blocks", "without_blocks"]}
__getattr__ = lazy_loader.attach(__name__, submod_attrs=_LATER)[0]
