"""Work that takes long shows how long; work that does not shows nothing. And penalties in other loops than `fit`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from companion import CKASparsity, _progress, cka_map, evaluate, mutual_information, prune_filters
from companion.blocks import block_effects, remove_blocks
from companion.models import digits_net
from companion.regularizers import L1, FeatureFlow
from companion.similarity import cka_interval, cka_null
from companion.training import PenaltyLog, lightning_log

X, Y = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16)
FEATURES = torch.randn(2, 64, 2)


def digits() -> nn.Module:
    return digits_net(width=4, blocks=2)


WORK: dict[str, Callable[[], Any]] = {
    "batches": lambda: cka_map(digits(), LOADER),
    "batches of effects": lambda: block_effects(digits(), LOADER),
    "evaluation": lambda: evaluate(digits(), LOADER),
    "removal": lambda: prune_filters(digits(), X[:2], parameters=0.7, repeats=0),
    "removal of blocks": lambda: remove_blocks(digits(), 1, score=lambda model: 0.5, data=X, greedy=True),
    "permutations": lambda: cka_null(*FEATURES, permutations=9),
    "subsamples": lambda: cka_interval(*FEATURES, method="subsample", subsamples=4),
    "neighbours": lambda: mutual_information(*FEATURES, "mixed", block=16),
    "training a critic": lambda: mutual_information(*FEATURES, "infonce", steps=3, batch=8),
}


@pytest.mark.parametrize("what", WORK)
def test_what_takes_long_has_a_bar(what: str, monkeypatch: Any, capsys: Any) -> None:
    WORK[what]()
    assert not capsys.readouterr().err  # it took less than five seconds
    monkeypatch.setattr(_progress, "PATIENCE", 0)
    WORK[what]()
    bar = capsys.readouterr().err
    assert re.search(rf"{what.partition(' of ')[0]}: .*\| \d+/\d+ \[", bar)  # a total, and so an estimate


def test_ranks_but_the_first_have_no_bar(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(_progress, "PATIENCE", 0)
    monkeypatch.setattr(_progress, "rank", lambda: 1)
    assert list(_progress.progress(range(3), "batches")) == [0, 1, 2]
    assert not capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- logs
def test_a_plain_loop_keeps_each_last_value() -> None:
    model = digits()
    penalties = [FeatureFlow(model, length=0.1, every=2), L1(model, strength=1e-3)]
    log, expected = PenaltyLog(*penalties), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in LOADER:
        loss = F.cross_entropy(model(x), y) + sum(penalty() for penalty in penalties)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log()
        expected.append([penalty.last.item() for penalty in penalties])
    frame = log.frame()
    assert list(frame.columns) == ["penalty_feature_flow", "penalty_l1"]
    assert frame.to_numpy().tolist() == expected and frame.penalty_feature_flow[0] == frame.penalty_feature_flow[1] > 0
    assert PenaltyLog(L1(model, 1.0)).frame().empty
    with pytest.raises(ValueError, match=r"have no `last`"):
        PenaltyLog(lambda: torch.zeros(()))


def test_lightning_logs_last_values_and_keeps_the_calls(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = digits()
            self.penalty = CKASparsity(self.net, beta=1e-2, every=3)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1]) + self.penalty()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trained(epochs: int, checkpoint: Path | None = None) -> tuple[Any, Any]:
        module = Classifier()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[lightning_log(module.penalty)],
            default_root_dir=tmp_path, enable_checkpointing=False, **quiet,
        )  # fmt: skip
        trainer.fit(module, LOADER, ckpt_path=checkpoint)
        return module, trainer

    module, trainer = trained(1)
    assert module.penalty.calls == 4
    assert trainer.callback_metrics["penalty_cka"] == module.penalty.last != 0  # no mean with zeros
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again, _ = trained(2, tmp_path / "one.ckpt")
    assert again.penalty.calls == 8
