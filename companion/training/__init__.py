"""One training loop with two sockets, for a laptop, one GPU, or many through `torchrun`.

The sockets: a *penalty* is added to the loss (`CKASparsity`, `FeatureFlow`, any function that returns a scalar),
a *sparsity* prunes after each step (`GraNet`, `RigL`). The loop knows none of them by name. What must train again and
again (lottery tickets, fine-tuning) receives `fit` and calls it.

On many GPUs the same script runs under `torchrun`; each rank reads its slice of every global batch::

    with distributed() as (device, rank, world_size):
        model = resnet50().to(device)
        fit(model, loader, sgd(model, lr=0.4, weight_decay=1e-4), epochs=100, schedule=cosine(warmup=5),
            loss=nn.CrossEntropyLoss(label_smoothing=0.1), accumulate=2, precision="bfloat16", channels_last=True)

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
