"""Blocks, stages and labels: one notion of each, in live models and by names alone."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel

from companion import models
from companion.blocks import compared_layers, find_blocks, label, same_stage, spans, stage_of, stages
from companion.features import FeatureTap, bare_name, find_layers, unwrap


class Holder(nn.Module):
    """A model that keeps another one under a name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_by_name_a_stage_is_the_numbered_container_of_numbered_blocks() -> None:
    assert same_stage("layer10.0", "layer10.11") and not same_stage("layer1.0", "layer10.0")
    assert same_stage("layer1.0", "layer1.0.conv2") and not same_stage("model.layer1.0", "model.layer2.0")
    assert [
        stage_of(name) for name in ("layer1.0", "model.layer10.3.conv1", "features.5.2", "stages.3.blocks.1.mlp")
    ] == [
        "layer1",
        "model.layer10",
        "features.5",
        "stages.3",
    ]
    unnumbered = ["relu", "fc", "layer1", "features.relu1_1", "features.12", "encoder.layers.encoder_layer_3"]
    assert [stage_of(name) for name in unnumbered] == [None] * 6
    assert not same_stage("fc", "fc")  # no stage is not a stage


@pytest.mark.parametrize(
    "name",
    ["module.layer1.0", "_orig_mod.layer1.0", "module._orig_mod.layer1._checkpoint_wrapped_module.0", "layer1.0"],
)
def test_wrappers_leave_no_trace_in_names(name: str) -> None:
    assert bare_name(name) == label(name) == "layer1.0" and stage_of(name) == "layer1"
    assert spans([name, "layer1.1"]) == [("stage 1", 0, 2)]


def test_spans_of_names() -> None:
    names = ["relu", "layer1.0", "layer1.1", "layer10.0", "layer10.1", "fc"]
    assert spans(names) == [("stem", 0, 1), ("stage 1", 1, 2), ("stage 10", 3, 2), ("logits", 5, 1)]
    assert spans(["conv1", "conv2"]) == [("conv1", 0, 1), ("conv2", 1, 1)]
    assert spans(["features.1.0", "features.1.1"]) == [("features.1", 0, 2)]


@pytest.mark.parametrize(
    ("make", "size", "count", "lengths"),
    [
        (lambda: models.resnet20(width=4), 16, 9, [3, 3, 3]),
        (lambda: models.vgg16_bn(width=4), 32, 13, [2, 2, 3, 3, 3]),
        (lambda: torchvision.models.resnet18(num_classes=4), 32, 8, [2, 2, 2, 2]),
        (lambda: torchvision.models.convnext_tiny(num_classes=4), 64, 18, [3, 3, 9, 3]),
        (
            lambda: torchvision.models.VisionTransformer(
                image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16
            ),
            32,
            3,
            [3],
        ),
    ],
    ids=["ResNet-20", "VGG-16", "torchvision's ResNet-18", "ConvNeXt", "ViT"],
)
def test_blocks_and_stages_of_a_model(make, size: int, count: int, lengths: list[int]) -> None:
    model = make().eval()
    blocks = find_blocks(model)
    assert len(blocks) == count
    with FeatureTap(model, blocks, reduce=lambda x: x.flatten(1)[:, :1]) as tap, torch.no_grad():
        model(torch.randn(2, 3, size, size))
    found = stages(tap.shapes)
    assert [name for stage in found for name in stage] == blocks and [len(stage) for stage in found] == lengths
    named = [name for name in blocks if stage_of(name)]
    if named:  # where names tell, they say the same as the shapes
        assert [[name for name in named if stage_of(name) == s] for s in dict.fromkeys(map(stage_of, named))] == found


@pytest.mark.slow
def test_wrapped_models_have_the_same_blocks() -> None:
    plain = find_blocks(models.digits_net())
    checkpointed = models.digits_net()
    for k, block in enumerate(checkpointed.layer1):
        checkpointed.layer1[k] = checkpoint_wrapper(block)
    inner = models.digits_net()
    inner.layer1[0] = torch.compile(inner.layer1[0])  # type: ignore[assignment]
    for model in (DataParallel(models.digits_net()), torch.compile(models.digits_net()), checkpointed, inner):
        assert find_blocks(model) == plain
        assert list(find_layers(model, plain)) == plain
    assert find_blocks(Holder(models.digits_net())) == [f"model.{name}" for name in plain]
    block = models.digits_net().layer1[0]
    assert unwrap(checkpoint_wrapper(block)) is block


def test_compared_layers_have_the_stem_and_the_logits() -> None:
    assert compared_layers(torchvision.models.resnet18()) == [
        *("relu", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1", "fc")
    ]
    vgg = compared_layers(models.vgg16_bn(width=4))
    assert len(vgg) == 14 and vgg[0] == "features.relu1_1" and vgg[-1] == "linear"
    with pytest.raises(ValueError, match="no blocks and no activation"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))
