"""Blocks: what a block, a stage and a label of a layer are, how much each block does, and the model without it.

A *block* is the unit whose outputs the papers compare (`find_blocks`). A *stage* is a run of blocks whose outputs have
one shape (`stages`). A record keeps names alone: there a stage is the numbered container that holds numbered blocks,
`layer3` of `layer3.2` (`stage_of`); in ResNets both are the same. Chapter *Feature similarity* compares blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    # The measures of blocks stand on similarity and flow, which know blocks by name alone.
    if name == "block_effects":
        from companion.blocks import _effects as module
    elif name in ("PassThrough", "remove_blocks", "without_blocks"):
        from companion.blocks import _removal as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
