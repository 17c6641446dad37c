"""Blocks, stages and labels: one notion of each, in live models and by names alone; what blocks do, and networks
without some of them."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel

from companion import models
from companion.blocks import (
    PassThrough,
    block_effects,
    compared_layers,
    find_blocks,
    label,
    remove_blocks,
    same_stage,
    spans,
    stage_of,
    stages,
    without_blocks,
)
from companion.experiments.removal import without_branches
from companion.features import FeatureTap, bare_name, extract, find_layers, unwrap
from companion.flow import trajectory
from companion.pruning.filters import plan, rebuild
from companion.similarity import cka, cka_interval, cka_map


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
    assert bare_name(name).removeprefix("module.") == label(name) == "layer1.0" and stage_of(name) == "layer1"
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
    classifier = [nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), *classifier)
    assert find_blocks(plain) == ["1", "3"] and find_blocks(nn.Sequential(*classifier)) == ["2", "4"]  # maps, if any
    with pytest.raises(ValueError, match="no blocks and no activation"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


# ------------------------------------------------------------------------------------------------ what each block does
class Map(nn.Module):
    """A block that is a function of its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.inner(x))


def chain(*functions: Any) -> nn.Sequential:
    return nn.Sequential(*map(Map, functions))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def photographs(n: int = 20, size: int = 16, seed: int = 0) -> torch.Tensor:
    return noise(n, 3, size, size, seed=seed, dtype=torch.float32)


def test_closed_forms() -> None:
    """The identity; scalings; rotations by 30°, whose polygon lies on a circle and turns by 30° at each vertex; a step
    at a right angle; a constant."""
    turn = math.pi / 6
    r = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    table = block_effects(
        chain(lambda x: 2 * x, lambda x: 1.5 * x, lambda x: x, lambda x: -x, *[lambda x: x @ r] * 3), noise(40, 2)
    )
    assert np.allclose(table.cka, 1)
    assert np.allclose(table.step, [1, 0.5, 0, 2, *[2 * math.sin(turn / 2)] * 3])
    assert np.allclose(table.cosine, [1, 1, 1, -1, *[math.cos(turn)] * 3]) and np.allclose(
        table.influence, 1 - table.cosine
    )
    # A block that rests turns by 0, and the next is seen from the step before it.
    assert np.allclose(table.angle[["0", "1", "2", "4", "5"]], [0, 0, math.pi, turn, turn], atol=1e-6)
    assert table.undefined.tolist() == [*[""] * 6, "no step of its shape follows"] and math.isnan(table.angle.iloc[-1])
    spread = table[["step_high", "cosine_high"]].to_numpy() - table[["step_low", "cosine_low"]].to_numpy()
    assert np.abs(spread).max() < 1e-6  # every example is the same


def test_an_orthogonal_step() -> None:
    """y = x + c·Jx with J a quarter turn: a step of length c at a right angle to x; then a step at one to that."""
    j = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    table = block_effects(chain(lambda x: x + 0.5 * x @ j, lambda x: x @ j), noise(40, 2))
    assert np.allclose(table.step, [0.5, math.sqrt(2)]) and np.allclose(table.cosine, [1 / math.sqrt(1.25), 0])
    assert np.allclose(table.cka, 1)


@pytest.mark.filterwarnings("ignore:dead layers")
def test_dead_blocks_have_numbers() -> None:
    table = block_effects(chain(torch.zeros_like, lambda x: x, lambda x: x + 1), noise(40, 3))
    assert table.cka.tolist() == [0, 0, 0]
    assert np.allclose(table.step[:2], [1, 0]) and table.step.iloc[2] == math.inf  # ‖y − x‖/0
    assert table.cosine.tolist() == [0, 1, 0]


def test_by_hand(device: torch.device) -> None:
    model = models.resnet20(width=4).to(device)
    images = photographs(50).to(device)
    found = block_effects(model, images, batch_size=20)
    features = extract(model, images, ["relu", *find_blocks(model)], reduce=None)
    names = [*features]
    maps = cka_map(model, images, names, batch_size=20)
    angles = trajectory(model, images, names)
    for before, name in itertools.pairwise(names):
        row, x, y = found.loc[name], features[before].flatten(1).double(), features[name].flatten(1).double()
        assert row["cka"] == pytest.approx(maps.loc[before, name], abs=1e-9)
        if x.shape != y.shape:
            assert row[["step", "cosine", "influence", "angle"]].isna().all()
            assert row["undefined"] == (
                f"the input is {tuple(features[before].shape[1:])}, the output {tuple(features[name].shape[1:])}"
            )
            continue
        step = (y - x).norm(dim=1) / x.norm(dim=1)
        cosine = torch.cosine_similarity(x, y)
        for column, values in {"step": step, "cosine": cosine, "influence": 1 - cosine}.items():
            half = 1.959964 * float(values.std()) / math.sqrt(50)
            assert row[column] == pytest.approx(float(values.mean()), rel=1e-4)
            assert row[f"{column}_low"] == pytest.approx(float(values.mean()) - half, rel=1e-4, abs=1e-5)
            assert row[f"{column}_high"] == pytest.approx(float(values.mean()) + half, rel=1e-4, abs=1e-5)
        if name in angles.turns:
            turn = angles.angle[angles.turns.index(name)].double()
            assert row["angle"] == pytest.approx(float(turn.mean()), rel=1e-4)
        else:
            assert math.isnan(row["angle"]) and row["undefined"] == "no step of its shape follows"
    assert found.attrs == {"examples": 50, "confidence": 0.95}


def test_the_interval_of_cka_leaves_out_each_example() -> None:
    x, w = noise(30, 6), noise(6, 6, seed=1)
    model = chain(lambda x: (x @ w).relu())
    whole, once = block_effects(model, x, confidence=0.9).iloc[0], cka_interval(x, (x @ w).relu(), level=0.9)
    assert [whole.cka, whole.cka_low, whole.cka_high] == pytest.approx([once.value, once.low, once.high], abs=1e-12)

    parts = block_effects(model, x, batch_size=12).iloc[0]  # 12 and 18 examples

    def left_out(i: int) -> float:
        batches = [part[part[:, 0] != x[i, 0]] for part in (x[:12], x[12:])]
        return cka_map(model, [(b,) for b in batches], "0", other=nn.Sequential(Map(lambda x: x)))["0"].iloc[0]

    values = np.array([left_out(i) for i in range(30)])
    half = 1.959964 * math.sqrt(29 / 30 * ((values - values.mean()) ** 2).sum())
    assert parts.cka_high - parts.cka == pytest.approx(half, rel=1e-6) == pytest.approx(parts.cka - parts.cka_low)


def test_blocks_that_overwrite_their_input() -> None:
    data = noise(40, 5)
    plain = block_effects(chain(lambda x: x + x.relu(), lambda x: 2 * x.relu()), data, batch_size=15)
    overwriting = chain(lambda x: x.add_(x.relu()), lambda x: x.relu_().mul_(2))
    pd.testing.assert_frame_equal(plain, block_effects(overwriting, data, batch_size=15))
    with torch.inference_mode():
        pd.testing.assert_frame_equal(plain, block_effects(overwriting, data, batch_size=15))
    assert torch.equal(data, noise(40, 5))


class Tokens(nn.Module):
    """Blocks of tokens, as a language model calls them: a mask by name; the first gives a tuple."""

    def __init__(self, outputs: int | None = 2, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        options = {"dropout": 0.0, "batch_first": batch_first}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, **options) for _ in range(3))  # type: ignore[arg-type]
        self.outputs, self.batch_first = outputs, batch_first
        if outputs:
            self.blocks[1].register_forward_hook(lambda module, args, y: (y, *[None] * (outputs - 1)))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embedding(input_ids)
        x = x if self.batch_first else x.transpose(0, 1)
        for block in self.blocks:
            pad = None if attention_mask is None else ~attention_mask.bool()
            x = block(x, src_key_padding_mask=pad)
            x = x[0] if isinstance(x, tuple) else x
        return x


def sentences(n: int = 12) -> dict[str, torch.Tensor]:
    ids = torch.randint(11, (n, 7), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(n) % 5 + 3
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < lengths[:, None]).long()}


@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_that_the_mask_counts(batch_first: bool) -> None:
    model, batch = Tokens(batch_first=batch_first).eval(), sentences()
    found = block_effects(model, [batch])
    xs: list[torch.Tensor] = []
    with torch.no_grad():
        hook = [b.register_forward_pre_hook(lambda module, args: xs.append(args[0])) for b in model.blocks]
        xs.append(model(**batch))
    assert len(hook) == 3
    vertices = [x if batch_first else x.transpose(0, 1) for x in xs]
    mask = batch["attention_mask"].bool()
    for (name, row), x, y in zip(found.iterrows(), vertices, vertices[1:], strict=False):
        cosine, step = torch.cosine_similarity(x, y, dim=2), (y - x).norm(dim=2) / x.norm(dim=2)
        for column, values in (("cosine", cosine), ("step", step)):
            mean = torch.stack([v[m].mean() for v, m in zip(values, mask, strict=True)]).mean()
            assert row[column] == pytest.approx(float(mean), abs=1e-5), name
        kept = (torch.where(mask[..., None], z, 0) for z in (x, y))
        assert row["cka"] == pytest.approx(float(cka(*kept)), abs=1e-6)
    whole = block_effects(model, [batch], per_token=False, reduce="average_pool")
    x, y = vertices[:2]
    assert whole.cosine.iloc[0] == pytest.approx(
        float(torch.cosine_similarity(x.flatten(1), y.flatten(1)).mean()), abs=1e-5
    )
    with pytest.raises(ValueError, match="without tokens"):
        block_effects(model, [batch | {"attention_mask": torch.zeros(12, 7)}])


def test_repeated_blocks_have_a_row_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = chain(lambda x: 2 * x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(self.blocks(x)) + 0

    table = block_effects(Twice(), noise(20, 3))
    assert [*table.index] == ["blocks.0", "blocks.0#2"] and np.allclose(table.step, 1) and table.angle.iloc[0] < 1e-6
    with FeatureTap(Twice(), "blocks.0") as tap:
        assert [*tap.layers] == ["blocks.0"]


def test_blocks_that_run_without_their_model() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = chain(lambda x: 2 * x, lambda x: -x)

    table = block_effects(Parts(), noise(30, 3), forward=lambda model, batch: model.blocks(batch), batch_size=10)
    assert np.allclose(table.step, [1, 2]) and np.allclose(table.angle, [math.pi, math.nan], equal_nan=True)
    assert table.attrs["examples"] == 30


def test_effects_leave_the_model_as_it_was() -> None:
    model = torch.compile(models.digits_net())
    model.train()
    before = copy.deepcopy(unwrap(model).state_dict())
    table = block_effects(model, [(noise(30, 1, 8, 8, dtype=torch.float32), torch.zeros(30))])
    assert len(table) == 4 and model.training
    assert all(torch.equal(value, before[name]) for name, value in unwrap(model).state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unwrap(model).modules())


def test_bad_effects() -> None:
    model = models.digits_net()
    for data, options, message in (
        (noise(7, 1, 8, 8, dtype=torch.float32), {}, "at least 8 examples; got 7"),
        (noise(20, 1, 8, 8, dtype=torch.float32), {"confidence": 1}, "confidence=1 must lie in"),
        ([], {}, "no batch"),
        (noise(20, 1, 8, 8, dtype=torch.float32), {"blocks": "layer7.*"}, "no layer of ResNet matches"),
    ):
        with pytest.raises(ValueError, match=message):
            block_effects(model, data, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- networks without blocks
def trained_norms(model: nn.Module, size: int = 16) -> nn.Module:
    """Batch norms that are not the identity."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(photographs(40, size))
    return model.eval()


def test_deletion_is_the_network_written_without_the_block() -> None:
    model, images = trained_norms(models.resnet20(width=4)), photographs()
    written = copy.deepcopy(model)
    written.layer2 = nn.Sequential(*(block for k, block in enumerate(written.layer2) if k != 1))
    written.layer3 = nn.Sequential(written.layer3[0])
    gone = ["layer2.1", "layer3.1", "layer3.2"]
    with torch.no_grad():
        shorter = without_blocks(model, gone)
        assert torch.equal(shorter(images), written(images)) and not torch.equal(shorter(images), model(images))
        assert torch.equal(shorter(images), without_branches(model, gone)(images))
    assert sum(p.numel() for p in shorter.parameters()) == sum(p.numel() for p in written.parameters())

    size: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    vit = torchvision.models.VisionTransformer(num_layers=3, **size).eval()
    nn.init.normal_(vit.heads[-1].weight)
    written = torchvision.models.VisionTransformer(num_layers=2, **size).eval()
    nn.init.normal_(vit.encoder.pos_embedding)
    state = {name: value for name, value in vit.state_dict().items() if "layer_1." not in name}
    written.load_state_dict(OrderedDict((name.replace("layer_2.", "layer_1."), v) for name, v in state.items()))
    with torch.no_grad():
        assert torch.equal(without_blocks(vit, "encoder.layers.encoder_layer_1")(images), written(images))


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.resnet20(width=4),
        lambda: torchvision.models.resnet50(num_classes=4),
        lambda: torchvision.models.convnext_tiny(num_classes=4),
        lambda: torchvision.models.efficientnet_b0(num_classes=4),
        lambda: torchvision.models.mobilenet_v2(num_classes=4),
        lambda: torchvision.models.swin_t(num_classes=4),
    ],
    ids=["ResNet-20", "ResNet-50", "ConvNeXt", "EfficientNet", "MobileNet v2", "Swin"],
)
def test_weights_and_a_pass_say_the_same_about_what_can_go(make: Any) -> None:
    model, images = make().eval(), photographs(2, 64)
    undefined = [block for block in find_blocks(model) if not same_shape(model, block, images)]
    removable = [block for block in find_blocks(model) if block not in undefined]
    with torch.no_grad():
        assert torch.equal(without_blocks(model, removable)(images), without_blocks(model, removable, images)(images))
    for name in undefined:
        for example in (None, images):
            with pytest.raises(ValueError, match=f"{name}'.*cannot pass its input on") as refusal:
                without_blocks(model, name, example)
            assert str(removable) in str(refusal.value)


def same_shape(model: nn.Module, name: str, images: torch.Tensor) -> bool:
    shapes: list[torch.Size] = []
    block = model.get_submodule(name)
    handle = block.register_forward_hook(lambda module, args, y: shapes.extend((args[0].shape, y.shape)))
    with torch.no_grad():
        model(images)
    handle.remove()
    return shapes[0] == shapes[1]


def test_the_shorter_network_is_exported_and_trained() -> None:
    model, images = trained_norms(models.resnet20(width=4)), photographs()
    shorter = without_blocks(model, ["layer1.1", "layer2.2"])
    program = torch.export.export(shorter, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        assert torch.allclose(program(images[:3]), shorter(images[:3]), atol=1e-6)
    shorter.train()(images).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert [*dict(shorter.named_modules())["layer1.1"].children()] == []


def test_batch_norm_is_estimated_anew() -> None:
    model, images = trained_norms(models.resnet20(width=4)), photographs(60)
    gone = ["layer1.1", "layer3.2"]
    shorter = without_blocks(model, gone, recalibrate=[(images[:30], None), (images[30:], None)])
    expected = without_blocks(model, gone)
    torch.optim.swa_utils.update_bn([images[:30], images[30:]], expected)
    assert all(torch.allclose(v, shorter.state_dict()[name]) for name, v in expected.state_dict().items())
    assert all(norm.momentum == 0.1 for norm in shorter.modules() if isinstance(norm, nn.BatchNorm2d))
    assert not shorter.training
    before = models.resnet20(width=4)
    dropped = torchvision.models.mobilenet_v2(num_classes=3, dropout=0.9)  # its dropout stays out of the statistics
    twice = [without_blocks(dropped, "features.3", recalibrate=photographs(8, 64)).state_dict() for _ in range(2)]
    assert all(torch.equal(value, twice[1][name]) for name, value in twice[0].items()) and before.training


def test_batches_of_one_example_are_joined_to_estimate_batch_norm() -> None:
    """One vector has no variance."""
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), noise(6, 3, dtype=torch.float32)
    (_, norm) = without_blocks(model, "0", recalibrate=[x[k : k + 1] for k in range(6)])
    assert torch.allclose(norm.running_mean, x.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, x.view(3, 2, 3).var(1).mean(0), atol=1e-6)


def test_recalibration_without_a_batch_is_refused():
    """Means of 0 and variances of 1 would stay, as from a generator that the first removal has read to its end."""
    model, images = models.digits_net(blocks=3), torch.randn(16, 1, 8, 8)
    once = (images for _ in range(2))
    with pytest.raises(ValueError, match="data holds no batch"):
        remove_blocks(model, 2, score=lambda net: 1.0, data=images, recalibrate=once, greedy=True)
    with pytest.raises(ValueError, match="data holds no batch"):
        without_blocks(model, "layer1.1", images, recalibrate=[])


def test_tuples_and_further_arguments() -> None:
    model, batch = Tokens(outputs=3).eval(), sentences()
    with torch.no_grad():
        shorter = without_blocks(model, ["blocks.1", "blocks.2"], batch)
        model.blocks = model.blocks[:1]
        assert torch.equal(shorter(**batch), model(**batch))
    assert shorter.blocks[1].outputs == 3 and shorter.blocks[2].outputs is None
    with pytest.raises(ValueError, match="give an example"):
        without_blocks(model, "blocks.0")

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(3, 3))])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, attention = self.layers[0](x)
            return y + attention

    pair = Pair()
    pair.layers[0].register_forward_hook(lambda module, args, y: (y, y))
    with pytest.raises(ValueError, match="further tensors after the first"):
        without_blocks(pair, "layers.0", noise(5, 3, dtype=torch.float32))


def test_wrapped_networks_lose_blocks_too() -> None:
    images = noise(5, 1, 8, 8, dtype=torch.float32)
    model = models.digits_net().eval()
    expected = without_blocks(model, "layer1.1")(images)
    wrapped = copy.deepcopy(model)
    wrapped.layer1[1] = checkpoint_wrapper(wrapped.layer1[1])
    for other in (DataParallel(copy.deepcopy(model)), wrapped, torch.compile(copy.deepcopy(model))):
        assert torch.equal(without_blocks(other, "layer1.1")(images), expected)


def test_a_block_in_several_places_is_gone_from_all_of_them() -> None:
    """As the same block that is called several times from one place."""

    class Shared(nn.Module):
        def __init__(self, blocks: nn.ModuleList, times: int) -> None:
            super().__init__()
            self.first, self.blocks, self.times = Map(lambda x: x + 1), blocks, times

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for block in [*self.blocks] * self.times:
                x = block(x)
            return x

    block, x = Map(lambda x: 2 * x), noise(20, 3)
    several, called = Shared(nn.ModuleList([block] * 4), 1), Shared(nn.ModuleList([block]), 4)
    assert torch.equal(several(x), called(x))
    for model in (several, called):
        shorter = without_blocks(model, "blocks.0", x)
        assert torch.equal(shorter(x), x + 1)
        again = rebuild(model, json.loads(json.dumps(plan(shorter))))
        assert torch.equal(again(x), x + 1)
    wrapped = Shared(nn.ModuleList([checkpoint_wrapper(copy.deepcopy(block))] * 2), 1)
    assert torch.equal(without_blocks(wrapped, "blocks.0", x)(x), x + 1)


def test_a_plan_keeps_which_blocks_are_gone() -> None:
    model, images = trained_norms(models.resnet20(width=4)), photographs()
    shorter = without_blocks(model, ["layer1.1", "layer3.2"])
    kept = json.loads(json.dumps(plan(shorter)))
    assert kept["layer1.1"] == {"type": "PassThrough", "outputs": None} and "layer1.1.conv1" not in kept
    again = rebuild(models.resnet20(width=4), kept).eval()
    again.load_state_dict(shorter.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images), shorter(images))


# --------------------------------------------------------------------------------------------------- by any score
def test_one_shot_removal_by_a_measure() -> None:
    model, images = trained_norms(models.resnet20(width=4)), photographs(40)
    effects = block_effects(model, images)
    can_go = effects[effects.step.notna()]
    for score, ascending in (("influence", True), ("step", True), ("cka", False), ("cosine", False), ("angle", True)):
        shorter, gone = remove_blocks(model, 3, score=score, data=images)
        expected = can_go[score].sort_values(ascending=ascending)[:3]
        pd.testing.assert_series_equal(gone, expected, check_names=False)
        assert [name for name, module in shorter.named_modules() if isinstance(module, PassThrough)] == sorted(
            gone.index
        )
    _, gone = remove_blocks(model, 2, score=dict(zip(can_go.index, [5, 1, 4, 2, 3, 6, 7], strict=True)))
    assert gone.to_dict() == {can_go.index[1]: 1, can_go.index[3]: 2}


def test_a_block_that_is_called_several_times_has_the_mean_of_its_calls() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = chain(lambda x: x + 9, lambda x: 1.5 * x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[1](self.blocks[0](self.blocks[0](x)))

    model, x = Recurrent(), noise(20, 3)
    shorter, gone = remove_blocks(model, 2, score="step", data=x)
    steps = block_effects(model, x).step
    assert steps["blocks.1"] < steps["blocks.0#2"] < steps["blocks.0"] and torch.equal(shorter(x), x)
    mean = steps[["blocks.0", "blocks.0#2"]].mean()
    assert [*gone.items()] == [("blocks.1", pytest.approx(0.5)), ("blocks.0", pytest.approx(mean))]
    assert [*remove_blocks(model, 1, score="step", data=x, greedy=True)[1].index] == ["blocks.1"]
    _, gone = remove_blocks(model, 1, score="angle", data=x, blocks="blocks.0")  # of its first call: no step follows
    assert gone["blocks.0"] == block_effects(model, x, "blocks.0").angle["blocks.0"]  # the last


def test_scores_are_of_the_pass_that_is_given() -> None:
    model, x = chain(lambda x: x + 9, lambda x: x + 1), noise(20, 3)
    data, forward = [{"rows": x}], lambda net, batch: net(batch["rows"])
    _, gone = remove_blocks(model, 1, score="step", data=data, forward=forward)
    assert [*gone.index] == ["1"]
    pd.testing.assert_series_equal(gone, remove_blocks(model, 1, score="step", data=x)[1])


def test_greedy_removal_by_a_function() -> None:
    """Against the loop written out."""
    model, images = trained_norms(models.resnet20(width=4)), photographs(40)
    with torch.no_grad():
        labels = model(images).argmax(1)

    @torch.no_grad()
    def agreement(network: nn.Module) -> float:
        logits = network.eval()(images)
        return float((logits.argmax(1) == labels).double().mean() + 1e-3 * logits.softmax(1)[:, 0].mean())

    names = [name for name in find_blocks(model) if name not in ("layer2.0", "layer3.0")]
    gone: list[str] = []
    for _ in range(3):
        gone.append(
            max((n for n in names if n not in gone), key=lambda n: agreement(without_blocks(model, [*gone, n])))
        )
    shorter, order = remove_blocks(model, 3, score=agreement, greedy=True)
    assert [*order.index] == gone and order.iloc[-1] == pytest.approx(agreement(shorter))
    _, once = remove_blocks(model, 1, score=agreement)
    assert [*once.index] == gone[:1]
    measured, order = remove_blocks(model, 2, score="influence", data=images, greedy=True)
    first = remove_blocks(model, 1, score="influence", data=images)[0]
    second = block_effects(first, images, [n for n in names if n != order.index[0]]).influence
    assert order.index[1] == second.idxmin() and order.iloc[1] == pytest.approx(second.min())
    assert measured(images).shape == (40, 10)


def test_bad_removals() -> None:
    model, images = models.digits_net(), noise(20, 1, 8, 8, dtype=torch.float32)
    for options, message in (
        ({"count": 5, "score": "step", "data": images}, r"count=5 must lie in \[1, 4\]"),
        ({"count": 1.5, "score": "step", "data": images}, "count=1.5 must be a whole number"),
        ({"count": 1, "score": "length", "data": images}, "score='length' is unknown"),
        ({"count": 1, "score": "step"}, "give data"),
        ({"count": 1, "score": {"layer1.0": 1.0}}, "score of layer1.1='layer1.1' is unknown|layer1.1"),
        ({"count": 1, "score": {"layer1.0": 1.0}, "greedy": True}, "greedy=True scores anew"),
        ({"count": 1, "score": "step", "data": iter([images])}, "read more than once"),
        ({"count": 1, "score": "step", "data": []}, "no batch"),
    ):
        with pytest.raises(ValueError, match=message):
            remove_blocks(model, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- encoders and decoders of others
def language_model(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 64}
    if kind == "GPT-2":
        config = transformers.GPT2Config(vocab_size=11, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
        return transformers.GPT2LMHeadModel(config).eval(), sentences()
    if kind == "BERT":
        return transformers.BertModel(transformers.BertConfig(**sizes)).eval(), sentences()
    if kind == "Llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval(), sentences()
    window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2, "num_key_value_heads": 1}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **window)).eval(), sentences()


@pytest.mark.parametrize("kind", ["BERT", "GPT-2", "Llama", "Qwen2"])
def test_language_models(kind: str) -> None:
    model, batch = language_model(kind)
    table = block_effects(model, [batch])
    assert len(table) == 4 and table[["cka", "step", "influence"]].notna().all(axis=None)
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        for k in range(3):  # the last one has the final norm behind it
            cosine = torch.cosine_similarity(states[k], states[k + 1], dim=2)
            by_hand = 1 - torch.stack([c[m].mean() for c, m in zip(cosine, mask, strict=True)]).mean()
            assert table.influence.iloc[k] == pytest.approx(float(by_hand), abs=1e-5)
        shorter = without_blocks(model, table.index[[1]], batch)
        after = shorter(**batch, output_hidden_states=True).hidden_states
        assert torch.equal(after[1], states[1]) and len(after) == 4


@pytest.mark.parametrize("kind", ["GPT-2", "Llama", "Qwen2"])
@pytest.mark.parametrize("gone", [[0], [1], [0, 2]], ids=str)
@torch.no_grad()
def test_a_shorter_decoder_reads_on_with_its_cache(kind: str, gone: list[int]) -> None:
    """The network reads the positions of new words off the first place of its cache."""
    model, batch = language_model(kind)
    shorter = without_blocks(model, [find_blocks(model)[k] for k in gone], batch)
    words = batch["input_ids"][:2]
    begun = shorter(words[:, :4], use_cache=True)
    end = shorter(words[:, 4:], past_key_values=begun.past_key_values, use_cache=True).logits
    assert torch.allclose(end, shorter(words, use_cache=False).logits[:, 4:], atol=1e-5)
