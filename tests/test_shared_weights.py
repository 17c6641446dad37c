"""Weights that several modules share are masked, counted, penalised and pruned once; and no layer is passed over in
silence."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import RigL, cost, prune_filters
from companion.pruning import METHODS, LotteryTicket, Masks, RandomPruning, plan, rebuild
from companion.regularizers import L1, GroupLasso

WORDS, WIDTH, HIDDEN = 20, 8, 16


class Language(nn.Module):
    """Words → the next word; the head's weight is that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.embed(words)).relu()))


TIED, LAYER = WORDS * WIDTH, WIDTH * HIDDEN


def words(rows: int = 4) -> Tensor:
    return torch.randint(WORDS, (rows, 5))


def gpt2() -> tuple[Any, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.randint(50, (4, 6))}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, sparsity: Any, steps: int = 6) -> None:
    for _ in range(steps):
        x = words()
        loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())
        if hasattr(sparsity, "penalty"):
            loss = loss + sparsity.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsity.step()


# -------------------------------------------------------------------------------------------------------------- masks
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("lottery",)])
def test_every_method_masks_a_shared_weight_once(name: str) -> None:
    model, arguments = Language(), {"alpha": 1e-3} if name == "dst" else {"sparsity": 0.8}
    if name in ("rigl", "set", "granet", "rigl-itop", "gradual", "magnitude"):
        arguments |= {"steps": 100, "every": 2}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match=r"share their weights.*\{'head': \['embed'\]\}"):
        sparsity = METHODS[name](model, optimizer, **arguments)
    train(model, optimizer, sparsity)
    assert model.head.weight is model.embed.weight
    report = sparsity.report()
    assert report.shared.to_dict() == {"head": "embed", "up": "", "down": ""}
    assert report.weights.sum() == TIED + 2 * LAYER
    assert sparsity.density() == pytest.approx(report.alive.sum() / (TIED + 2 * LAYER))
    assert not model.embed.weight[~sparsity.masks["head"]].any()
    if name != "dst":  # whose masked weights live on, out of sight
        assert not optimizer.state[model.head.weight]["exp_avg"][~sparsity.masks["head"]].any()


def test_a_shared_weight_is_spared_by_any_of_its_names() -> None:
    for options in ({"dense": "embed"}, {"dense": "head"}, {"layers": ["up", "down"]}, {"layers": ["embed", "head"]}):
        model = Language()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sparsity = RandomPruning(model, None, 0.5, **options)
        whole = "layers" not in options or "up" in options["layers"]
        assert bool(model.embed.weight.all()) == whole
        assert sparsity.density() == pytest.approx(0.5, abs=0.01)


def test_tickets_of_shared_weights_stay_shared() -> None:
    def training(model: nn.Module, masked: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, masked(optimizer), 2)

    model = Language()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        LotteryTicket(model, training, 0.75, levels=2).run()
    weights = [model.head.weight, model.up.weight, model.down.weight]
    assert model.head.weight is model.embed.weight
    assert sum(int(w.count_nonzero()) for w in weights) == pytest.approx((TIED + 2 * LAYER) / 4, abs=1)


def test_several_parameters_in_one_memory_are_refused_and_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data.T)
    with pytest.raises(ValueError, match="0 and 1 are different parameters in one memory"):
        Masks(model, None)
    assert cost(model, torch.randn(1, 3)).parameters_dense == 12
    assert float(L1(model, 1.0)().detach()) == pytest.approx(float(model[0].weight.detach().abs().sum()))


def test_copies_of_model_and_masks_share_among_themselves() -> None:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="share"):
        sparsity = RigL(model, optimizer, sparsity=0.8, steps=100, every=2)
    twin, its_optimizer, its_sparsity = copy.deepcopy((model, optimizer, sparsity))
    train(twin, its_optimizer, its_sparsity)
    assert twin.head.weight is twin.embed.weight is its_sparsity.weights["head"] is not model.head.weight
    assert not twin.embed.weight[~its_sparsity.masks["head"]].any()


def test_gpt2_is_masked_as_a_whole() -> None:
    """Its linear layers are `Conv1D`s of transformers, with weights (inputs, outputs); its head is its embedding."""
    model, batch = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match=r"\{'lm_head': \['transformer.wte'\]\}"):
        sparsity = RigL(model, optimizer, sparsity=0.75, steps=100, every=2)
    layers = [w for n, w in model.named_parameters() if w.ndim == 2 and "wpe" not in n]
    assert len(sparsity.weights) == len(layers) == 9
    for _ in range(4):
        optimizer.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        sparsity.step()
    size = sum(w.numel() for w in layers)
    assert sparsity.density() == pytest.approx(0.25, abs=1e-3)
    assert sum(int(w.count_nonzero()) for w in layers) <= sparsity.density() * size + 0.5
    found = cost(model, batch)
    assert found.parameters_dense == sum(p.numel() for p in model.parameters())
    assert found.parameters_sparse == sum(
        int(w.count_nonzero()) if w.ndim > 1 else w.numel() for w in model.parameters()
    )
    table, tokens = found.table(), batch["input_ids"].numel()
    assert table.loc["transformer.wte", "macs_dense"] == 50 * 16 * tokens and "lm_head" not in table.index


# ---------------------------------------------------------------------------------------------------------- penalties
def test_penalties_see_every_layer_once() -> None:
    model = Language()
    rows = {name: getattr(model, name).weight.detach() for name in ("head", "up", "down")}
    l1, lasso = L1(model, 1.0), GroupLasso(model, 1.0)
    assert set(l1.layers) == set(rows)
    assert float(l1().detach()) == pytest.approx(sum(float(w.abs().sum()) for w in rows.values()))
    expected = sum(w.shape[1] ** 0.5 * float(w.norm(dim=1).sum()) for w in rows.values())
    assert float(lasso().detach()) == pytest.approx(expected)
    lasso().backward()
    once = torch.autograd.grad(WIDTH**0.5 * model.embed.weight.norm(dim=1).sum(), model.embed.weight)[0]
    torch.testing.assert_close(model.embed.weight.grad, once)


def test_penalties_read_attention_and_go_by_outputs() -> None:
    block = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN)
    matrices = [p for p in block.parameters() if p.ndim > 1]
    assert L1(block, 1.0).layers == ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"]
    assert float(L1(block, 1.0)().detach()) == pytest.approx(float(sum(p.detach().abs().sum() for p in matrices)))
    across = nn.MultiheadAttention(WIDTH, 2, kdim=6, vdim=10)  # keys and values of other widths: a matrix each
    matrices = [p for p in across.parameters() if p.ndim > 1]
    assert len(matrices) == 4
    found = float(L1(nn.Sequential(across), 1.0)().detach())
    assert found == pytest.approx(float(sum(p.detach().abs().sum() for p in matrices)))
    up = nn.ConvTranspose2d(6, 6, 3, groups=2)  # inputs, outputs/groups, kernel
    filters = [up.weight.detach()[3 * g : 3 * g + 3, o] for g in (0, 1) for o in range(3)]
    lasso = GroupLasso(nn.Sequential(up), 1.0)
    assert float(lasso().detach()) == pytest.approx(27**0.5 * sum(float(w.norm()) for w in filters))
    model, _ = gpt2()
    linear = model.transformer.h[0].mlp.c_fc  # 16 inputs, 64 outputs
    found = GroupLasso(model, 1.0, layers="transformer.h.0.mlp.c_fc")()
    assert float(found.detach()) == pytest.approx(4 * float(linear.weight.detach().norm(dim=0).sum()))
    assert len(L1(model, 1.0).layers) == 9


@pytest.mark.parametrize("build", [L1, GroupLasso, RandomPruning], ids=lambda kind: kind.__name__)
def test_layers_that_the_default_passes_over_are_named(build: Any) -> None:
    def make(**to: Any) -> Any:
        model = nn.ModuleDict({"reader": nn.LSTM(3, 4), "pair": nn.Bilinear(4, 4, 4), "head": nn.Linear(4, 2)})
        return build(model, *((None, 0.5) if build is RandomPruning else (1.0,)), **to)

    with pytest.warns(UserWarning, match=r"leaves out \{'reader': 'LSTM', 'pair': 'Bilinear'\}"):
        found = make()
    assert list(found.weights) == ["head"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = make(layers=[nn.LSTM, nn.Bilinear])
        assert make(layers="head").weights
    assert list(chosen.weights) == ["reader.weight_ih_l0", "reader.weight_hh_l0", "pair"]


def test_large_parameters_of_other_names_are_named_and_small_ones_are_not() -> None:
    class Experts(nn.Module):
        def __init__(self, experts: int) -> None:
            super().__init__()
            self.up, self.router = nn.Parameter(torch.randn(experts, 8, 8)), nn.Linear(8, 8)

    with pytest.warns(UserWarning, match=r"leaves out \{'experts': 'Experts'\}"):
        RandomPruning(nn.ModuleDict({"experts": Experts(4), "head": nn.Linear(8, 8)}), None, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RandomPruning(nn.ModuleDict({"positions": Experts(1), "head": nn.Linear(8, 99)}), None, 0.5)


# ------------------------------------------------------------------------------------------------------------ filters
def test_a_smaller_network_shares_what_the_large_one_shares() -> None:
    torch.manual_seed(0)
    model, x = Language(), words()
    before = copy.deepcopy(model.state_dict())
    smaller, report = prune_filters(model, x, parameters=0.8, repeats=0)
    assert smaller.head.weight is smaller.embed.weight and smaller.head.weight.shape == (WORDS, WIDTH)
    assert report.held == {"down": "embed and head share a parameter", "head": "the network returns it"}
    assert report.filters["up"][1] < HIDDEN and report.error < 1e-10
    assert report.after.parameters_dense == sum(p.numel() for p in smaller.parameters()) <= 0.8 * (TIED + 2 * LAYER)
    again = rebuild(Language(), plan(smaller))
    again.load_state_dict(smaller.state_dict())
    assert again.head.weight is again.embed.weight and torch.equal(again(x), smaller(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shared", ["weight", "bias", "module", "norm"])
def test_shared_layers_are_held_and_stay_shared(shared: str) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4), [nn.ReLU(), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)]
    second, norms = first if shared == "module" else nn.Linear(4, 4), [nn.BatchNorm1d(4), nn.BatchNorm1d(4)]
    if shared in ("weight", "bias"):
        setattr(second, shared, getattr(first, shared))
    if shared == "norm":
        norms[1].weight = norms[0].weight
    model = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], *last)
    before = copy.deepcopy(model.state_dict())
    smaller, report = prune_filters(model, torch.randn(6, 4), parameters=0.8, repeats=0)
    assert {**model.state_dict()}.keys() == before.keys()
    for name, value in model.state_dict().items():  # types, too
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    assert set(report.held) >= ({"0"} if shared == "module" else {"0", "3"}) and report.error < 1e-10
    assert report.filters["6"][1] < 12
    same = {
        "module": smaller[0] is smaller[3],
        "norm": smaller[1].weight is smaller[4].weight,
        "weight": smaller[0].weight is smaller[3].weight,
        "bias": smaller[0].bias is smaller[3].bias,
    }
    assert same[shared]
    assert report.after.parameters_dense == sum(p.numel() for p in smaller.parameters())


def test_wrapped_layers_are_not_passed_over() -> None:
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    model = Language()
    model.up = wrapper.checkpoint_wrapper(model.up)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = RandomPruning(torch.compile(model), None, 0.5, dense="head")
        assert set(masks.weights) == {"head", "up", "down"} == set(L1(torch.compile(model), 1.0).layers)
    assert masks.report().shared["head"] == "embed"


def test_the_row_for_padding_does_not_count_as_pruned() -> None:
    model = Language()
    model.embed = nn.Embedding(WORDS, WIDTH, padding_idx=0)  # 1 of 20 rows is zero
    model.head.weight = model.embed.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert RandomPruning(model, None, 0.5).density() == pytest.approx(0.5, abs=0.01)
        with pytest.raises(ValueError, match="were sparse already"):
            RandomPruning(model, None, 0.9)
