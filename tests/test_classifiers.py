"""Forty classifiers and a few language models: each shrinks exactly, or says which layers are held and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from test_filters import randomize
from torch import Tensor, nn

from companion.pruning import prune_filters, zero_filters
from companion.pruning._inputs import call, tensors_of

RETURNED = {"the network returns it"}
MODELS = torchvision.models


def perceptrons(**_: Any) -> dict[str, Callable[[], nn.Module]]:
    """Transformers and their like, small: where all else passes through layer norms, only hidden units can go."""
    block = MODELS.convnext.CNBlockConfig
    swin = MODELS.swin_transformer
    return {
        "vit": lambda: MODELS.VisionTransformer(32, 16, 2, 4, 32, 256, num_classes=10),
        "swin": lambda: MODELS.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10),
        "swin_v2": lambda: MODELS.SwinTransformer(
            [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10,
            block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2,
        ),
        "convnext": lambda: MODELS.ConvNeXt([block(16, 32, 2), block(32, None, 2)], num_classes=10),
        "maxvit": lambda: MODELS.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=10),
    }  # fmt: skip


SMALL = perceptrons()
# name → the largest share of the parameters that may be left where every layer loses nearly half of its filters
HALVED = dict.fromkeys(
    (
        *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_x_400mf", "regnet_y_400mf"),
        *("regnet_y_800mf", "densenet121", "densenet169", "alexnet", "vgg11_bn", "mobilenet_v2"),
        *("mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "mnasnet1_3", "squeezenet1_0", "squeezenet1_1"),
        *("efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s"),
    ),
    0.36,
)
HELD = {"shufflenet_v2_x0_5": 0.6, "shufflenet_v2_x1_0": 0.6, "googlenet": 0.7, "inception_v3": 0.45}
HELD |= {"vit": 0.8, "swin": 0.8, "swin_v2": 0.75, "convnext": 0.7, "maxvit": 0.7}
TIMM = {"resnet26d": 0.36, "seresnet50": 0.36, "ghostnet_100": 0.36, "tf_efficientnet_lite0": 0.36, "lcnet_050": 0.36}
TIMM |= {"resnest14d": 0.5, "hrnet_w18_small": 0.36, "dla34": 0.36, "tinynet_e": 0.36, "mobilevit_xxs": 0.6}
QUICK = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5",
         "regnet_y_400mf", "convnext", "vit", "swin")  # fmt: skip
SIZES = {"alexnet": 64, "inception_v3": 75, "maxvit": 64}
OPTIONS: dict[str, dict[str, Any]] = {name: {"init_weights": False} for name in ("googlenet", "inception_v3")}


def alive(model: nn.Module) -> nn.Module:
    """No weight is as good as zero, as at first a ViT's head is and a ConvNeXt's branches are."""
    for parameter in randomize(model).eval().parameters():
        if parameter.numel() and parameter.abs().max() < 1e-4:
            nn.init.normal_(parameter, std=0.1)
    return model


def shrunk(model: nn.Module, example: Any, most: float) -> Any:
    """Take nearly half of the filters of every layer; what is left must be what zeros would have left."""
    smaller, report = prune_filters(model, example, norm="l2", relative="rank", threshold=0.45, repeats=0)
    assert report.error < 1e-10 and report.parameters < most
    assert all(why and "\n" not in why for why in report.held.values())
    zeroed = zero_filters(model, report.zeroed).double().eval()
    double = smaller.double().eval()
    x = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, example)
    with torch.no_grad():
        for y, z in zip(tensors_of(call(zeroed, x)), tensors_of(call(double, x)), strict=True):
            assert (y - z).abs().max() <= 1e-5 * y.abs().max()  # the merged constants were rounded to float32
    return smaller, report


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in (*HALVED, *HELD)]
)
def test_classifiers_shrink_exactly_or_say_what_is_held(name: str) -> None:
    torch.manual_seed(0)
    make = SMALL.get(name, lambda: MODELS.get_model(name, num_classes=10, **OPTIONS.get(name, {})))
    smaller, report = shrunk(alive(make()), torch.randn(2, 3, *[SIZES.get(name, 32)] * 2), (HALVED | HELD)[name])
    assert (set(report.held.values()) == RETURNED) == (name in HALVED)
    if name == "googlenet":  # its auxiliary heads still fit
        smaller.float().train()
        assert smaller(torch.randn(2, 3, 64, 64)).aux_logits1.shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_classifiers_of_timm_do_too(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = alive(timm.create_model(name, pretrained=False, num_classes=10))
    shrunk(model, torch.randn(2, 3, 64, 64), TIMM[name])


def language_model(name: str) -> tuple[nn.Module, dict[str, Any]]:
    library = pytest.importorskip("transformers")
    tokens = torch.arange(18).view(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    if name == "bert":
        config = library.BertConfig(vocab_size=50, max_position_embeddings=32, num_labels=3, **sizes)
        return library.BertForSequenceClassification(config), {"input_ids": tokens, "attention_mask": mask}
    if name == "gpt2":
        config = library.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0,
                                    eos_token_id=0)  # fmt: skip
        return library.GPT2LMHeadModel(config), {"input_ids": tokens, "attention_mask": mask}
    config = library.ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)
    return library.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_transformers_lose_hidden_units(name: str) -> None:
    torch.manual_seed(0)
    model, example = language_model(name)
    _, report = shrunk(model.eval(), example, 0.9)
    hidden = [layer for layer in report.filters if layer.endswith(("intermediate.dense", "mlp.fc1"))]
    assert len(hidden) == 2 and all(report.filters[layer] == (64, 35) for layer in hidden)
    assert not set(hidden) & report.held.keys()


def test_a_transformer_of_other_layers_says_that_nothing_can_go() -> None:
    model, example = language_model("gpt2")
    with pytest.raises(ValueError, match=r"none of the filters may go.*c_fc': 'a Conv1D is no convolution or linear"):
        prune_filters(model.eval(), example, norm="l2", macs=0.5)
