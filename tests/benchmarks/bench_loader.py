"""Images a second of data alone: `DeviceLoader` against torch's DataLoader with torchvision's transforms.

    COMPANION_DATA=… python tests/benchmarks/bench_loader.py [--pairs 7] [--device cpu]

Both make the same thing from CIFAR-10 images in memory: shuffled float32 batches of 128 with random crop, flip and
normalisation, on the device. The DataLoader keeps its two workers from pass to pass, and its first pass, in which they
start, is not counted; ours has one thread. Passes alternate; a ratio is that of neighbours. Aim: a median ratio of
at least 20.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from datetime import UTC, datetime

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from companion.data import DeviceLoader, Images, cifar10
from companion.experiments.records import provenance

EXAMPLES, BATCH = 20_000, 128


class Usual(Dataset[tuple[Tensor, int]]):
    """Images in memory, each handed to the transforms as a PIL image, as torchvision's CIFAR10 does."""

    def __init__(self, images: Images) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(images.mean, images.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def images_per_second(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """One pass over the loader."""
    start = time.perf_counter()
    examples = sum(len(x.to(device)) for x, _ in loader)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return examples / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    device, started, begin = arguments.device, datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()

    torch.set_num_threads(1)
    images = cifar10("train").subset(range(EXAMPLES))
    usual = DataLoader(
        Usual(images),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    ours = DeviceLoader(images, BATCH, shuffle=True, augment=True, drop_last=True, device=device)
    loaders: dict[str, Iterable[tuple[Tensor, Tensor]]] = {"DataLoader, 2 workers": usual, "DeviceLoader": ours}
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for pair in range(arguments.pairs + 1):
        for name, loader in loaders.items():
            rate = images_per_second(loader, device)
            if pair:  # the first pair warms up
                rates[name].append(rate)
    ratios = [fast / slow for slow, fast in zip(*rates.values(), strict=True)]

    for name, values in {**rates, "ratio": ratios}.items():
        low, median, high = min(values), statistics.median(values), max(values)
        print(f"{name:22} median {median:10,.1f}   from {low:10,.1f} to {high:10,.1f}")
    print(
        json.dumps(
            {
                **provenance(device, started, time.perf_counter() - begin),
                "images_per_second": {name: [round(value) for value in values] for name, values in rates.items()},
                "ratio": {"median": round(statistics.median(ratios), 1), "all": [round(r, 1) for r in ratios]},
            }
        )
    )


if __name__ == "__main__":
    main()
