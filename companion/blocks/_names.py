"""What a block, a stage and a label of a layer are, in live models and by names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby

import torch
from torch import nn

from companion.features import bare_name, find_layers, unwrap

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid)
ROLES = {"relu": "stem", "linear": "logits", "fc": "logits"}
# A numbered container, and a number in it: "layer1.0", "features.1.0" (ConvNeXt), "stages.2.blocks.0".
STAGED = re.compile(r"((?:.*?\.)?[^.]*\d)\.(?:blocks\.)?\d+(?:\.|$)")


# ------------------------------------------------------------------------------------------------------ in a live model
def find_blocks(model: nn.Module) -> list[str]:
    """The blocks whose outputs the papers compare, found by the model's structure.

    They are the composite children (modules with layers of their own) of the outermost `nn.Sequential` and
    `nn.ModuleList` that have any: residual blocks of ours and torchvision's ResNets, encoder blocks of a ViT. A plain
    net, such as VGG or a sequence of layers, has none; its blocks are its activations, those on maps where it has
    convolutions.

    Raises:
        ValueError: neither kind is there; name the layers.

    >>> from companion.models import digits_net, mlp
    >>> find_blocks(digits_net()), find_blocks(mlp([64, 32, 32, 10]))
    (['layer1.0', 'layer1.1', 'layer1.2', 'layer1.3'], ['relu1', 'relu2'])
    """
    net = unwrap(model)
    blocks: list[str] = []

    def collect(module: nn.Module, prefix: str) -> None:
        holds_blocks = isinstance(module, nn.Sequential | nn.ModuleList)
        for name, child in module.named_children():
            child = unwrap(child)
            if (
                holds_blocks
                and not isinstance(child, nn.Sequential | nn.ModuleList)
                and any(True for _ in child.children())
            ):
                blocks.append(f"{prefix}{name}")
            else:
                collect(child, f"{prefix}{name}.")

    collect(net, "")
    if not blocks:
        modules = find_layers(model, lambda name, module: True)
        blocks = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
        maps = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        if maps:  # the activations of a classifier's linear layers come after the last convolution's own
            order = list(modules)
            after = [name for name in blocks if order.index(name) > order.index(maps[-1])][:1]
            blocks = [name for name in blocks if order.index(name) < order.index(maps[-1])] + after
    if not blocks:
        raise ValueError(f"{type(net).__name__} has no blocks and no activation modules to find; choose layers by name")
    return blocks


def compared_layers(model: nn.Module) -> list[str]:
    """The blocks, with the stem before and the logits after them where the model names them as ResNets do.

    Raises:
        ValueError: see `find_blocks`.

    >>> from companion.models import digits_net
    >>> compared_layers(digits_net(blocks=2))
    ['relu', 'layer1.0', 'layer1.1', 'linear']
    """
    chosen = {*find_blocks(model), *ROLES}
    return list(find_layers(model, lambda name, module: name in chosen))


def stages(shapes: Mapping[str, torch.Size]) -> list[list[str]]:
    """The layers in runs of equal shape, in order.

    Args:
        shapes: of one example's features, such as `FeatureTap.shapes`.

    >>> stages({"a": torch.Size([8]), "b": torch.Size([8]), "c": torch.Size([4])})
    [['a', 'b'], ['c']]
    """
    return [[name for name, _ in run] for _, run in groupby(shapes.items(), key=lambda item: item[1])]


# ------------------------------------------------------------------------------------------------------- by their names
def _plain(name: str) -> str:
    """A name without what wrappers write into it; what DistributedDataParallel writes stands in front."""
    return bare_name(name).removeprefix("module.")


def stage_of(name: str) -> str | None:
    """The stage that a block, or a layer in it, belongs to by its name; None where names do not tell.

    >>> [stage_of(name) for name in ("layer10.3", "layer2.0.conv1", "module.features.1.0", "features.relu1_1", "fc")]
    ['layer10', 'layer2', 'features.1', None, None]
    """
    found = STAGED.match(_plain(name))
    return found[1] if found else None


def same_stage(a: str, b: str) -> bool:
    """Whether two layers belong to the same stage by their names; False where those do not tell.

    >>> same_stage("layer10.0", "layer10.1"), same_stage("layer1.0", "layer10.0"), same_stage("fc", "fc")
    (True, False, False)
    """
    return stage_of(a) is not None and stage_of(a) == stage_of(b)


def label(name: str) -> str:
    """What a figure calls a layer: the stem and the classifier by their role, any other by its name.

    >>> [label(name) for name in ("relu", "layer1.0", "linear")]
    ['stem', 'layer1.0', 'logits']
    """
    name = _plain(name)
    return ROLES.get(name, name)


def spans(names: Iterable[str]) -> list[tuple[str, int, int]]:
    """Runs of layers that belong together, as `(label, first, length)`: blocks by stage, other layers by themselves.

    >>> spans(["relu", "layer1.0", "layer1.1", "linear"])
    [('stem', 0, 1), ('stage 1', 1, 2), ('logits', 3, 1)]
    """
    found: list[tuple[str, int, int]] = []
    for index, name in enumerate(names):
        stage = stage_of(name)
        title = label(name) if stage is None else re.sub(r"^layer(?=\d+$)", "stage ", stage)
        if found and found[-1][0] == title:
            found[-1] = (title, found[-1][1], found[-1][2] + 1)
        else:
            found.append((title, index, 1))
    return found
