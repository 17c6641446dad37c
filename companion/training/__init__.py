"""One training loop with two sockets, for a laptop, one GPU, or many through `torchrun`.

>>> import torch
>>> from torch import nn
>>> from torch.utils.data import DataLoader, TensorDataset
>>> seed_everything(0)
>>> x = torch.randn(64, 4)
>>> data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)
>>> model = nn.Linear(4, 2)
>>> history = fit(model, data, sgd(model, lr=0.1), epochs=5, schedule=multistep(3), progress=False)
>>> history[-1]["epoch"], round(history[-1]["lr"], 3), history[-1]["accuracy"] > 0.8
(5, 0.01, True)

The sockets: a *penalty* is added to the loss (`CKASparsity`, `FeatureFlow`, any function that returns a scalar),
a *sparsity* prunes after each step (`GraNet`, `RigL`). The loop knows none of them by name. What must train again and
again (lottery tickets, fine-tuning) receives `fit` and calls it.

On many GPUs the same script runs under `torchrun`; each rank reads its slice of every global batch::

    with distributed() as (device, rank, world_size):
        model = resnet50().to(device)
        fit(model, loader, sgd(model, lr=0.4, weight_decay=1e-4), epochs=100, schedule=cosine(warmup=5),
            loss=nn.CrossEntropyLoss(label_smoothing=0.1), accumulate=2, precision="bfloat16", channels_last=True)

`loop` holds `fit` and the sockets, `measuring` what a run measures, `precision` which number format is fastest,
`optimizers` the optimizers and learning-rate schedules, `checkpoints` what survives a kill, `logs` what shows a penalty
in other loops.

Page *Running experiments* shows it at work.
"""

from __future__ import annotations

from companion._ranks import Place, distributed, rank, world_size
from companion.training.checkpoints import load_checkpoint, save_checkpoint, seed_everything
from companion.training.logs import PenaltyLog, lightning_log
from companion.training.loop import Penalty, Sparsity, fit
from companion.training.measuring import History, evaluate
from companion.training.optimizers import LRSchedule, adamw, cosine, multistep, one_cycle, sgd

__all__ = [
    "History",
    "LRSchedule",
    "Penalty",
    "PenaltyLog",
    "Place",
    "Sparsity",
    "adamw",
    "cosine",
    "distributed",
    "evaluate",
    "fit",
    "lightning_log",
    "load_checkpoint",
    "multistep",
    "one_cycle",
    "rank",
    "save_checkpoint",
    "seed_everything",
    "sgd",
    "world_size",
]
