"""ImageNet: photographs of many sizes that do not fit in memory, read and decoded as they are needed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.datasets import ImageFolder, ImageNet
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from companion._checks import one_of
from companion._files import data_root
from companion.data.images import IMAGENET_MEAN, IMAGENET_STD, Normalize, decode, files_below, frozen_random
from companion.data.loaders import Epochs, check_ranks


def imagenet(split: Literal["train", "val"] = "train", root: str | Path | None = None) -> ImageFolder:
    """ImageNet (ILSVRC 2012) as torchvision's data set of files, one folder for each class.

    Looked for in `imagenet/` and `imagenet-sample-160/` under the data root, then in the data root itself, which may be
    any folder that holds `{train,val}/CLASS/*.JPEG`. Where the published archives lie instead, torchvision checks and
    unpacks them.

    Args:
        split: "train" or "val"; the published test images have no labels.
        root: the data root, see `companion.data.data_root`.

    Raises:
        ValueError: an unknown split, or training and validation folders whose classes differ.
        FileNotFoundError: the split is not there, or a class has no images; it is named.

    Warns:
        UserWarning: a folder inside a class folder is a link, which is not followed.
    """
    one_of(split=(split, ("train", "val")))
    root = data_root(root)
    for folder in (root / "imagenet", root / "imagenet-sample-160", root):
        if any((folder / name).exists() for name in ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")):
            return ImageNet(folder, split)
        if (folder / split).is_dir():
            dataset = _Folder(folder / split)
            _check_classes(folder, set(dataset.classes))
            return dataset
    raise FileNotFoundError(
        f"no {split}/ of ImageNet under {root}: put {{train,val}}/WNID/*.JPEG or the published archives "
        f"(https://image-net.org) in {root / 'imagenet'}, or name another folder with root= or COMPANION_DATA"
    )


class _Folder(ImageFolder):
    """torchvision's, which would follow links inside a class folder, also those that lead back, without end."""

    @staticmethod
    def make_dataset(directory: str | Path, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, int]]:
        samples = {name: files_below(Path(directory, name), IMG_EXTENSIONS) for name in sorted(class_to_idx)}
        empty = [name for name, files in samples.items() if not files]
        if empty:
            raise FileNotFoundError(f"{directory} holds no image of the classes {', '.join(empty)}")
        return [(os.fspath(file), class_to_idx[name]) for name, files in samples.items() for file in files]


def _check_classes(folder: Path, classes: set[str]) -> None:
    """A class that only one split has would shift the labels of all that follow it."""
    for split in ("train", "val"):
        if (folder / split).is_dir():
            differ = sorted(classes ^ {entry.name for entry in (folder / split).iterdir() if entry.is_dir()})
            if differ:
                raise ValueError(f"{folder}: train/ and val/ must have the same classes; only one has {differ[0]}")


@dataclass(eq=False)
class ImageNetLoader(Epochs):
    """Batches of photographs, read and decoded by worker processes, and normalised on the device.

    Training images are cropped at random to `size` (Szegedy et al. 2015, area 8 to 100 %) and mirrored with probability
    ½, in the order of torch's `DistributedSampler`; evaluation images are resized to size·256/224 and cropped in the
    middle (He et al. 2016). An image's crop depends on `seed`, the epoch and the image alone, not on workers or ranks.
    `epoch`, `start` and the batches (x, y) are as for `DeviceLoader`.

    Args:
        folder: see `imagenet`; any `ImageFolder` will do.
        batch_size: examples of a batch, all ranks together; a multiple of `world_size`.
        train: random order and crops, and no smaller last batch; else the order of the folder, each image once.
        size: height and width of the batch's images.
        workers: worker processes that read and decode; 0: this process does it.
        mean, std: see `Normalize`; ImageNet's, which torchvision's networks expect, unless others are given.
        seed, device, dtype, channels_last, rank, world_size: as for `DeviceLoader`.

    Raises:
        ValueError: an argument that is not allowed; while iterating, a broken image, which is named.
    """

    folder: ImageFolder
    batch_size: int
    _: KW_ONLY
    train: bool = False
    size: int = 224
    workers: int = 4
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranks(self.batch_size, self.rank, self.world_size)
        if self.batch_size % self.world_size:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of world_size={self.world_size}")
        if self.train and not len(self):
            raise ValueError(
                f"batch_size={self.batch_size}; {self.folder.root} has {len(self.folder)} images, not one batch"
            )
        self.device = torch.device(self.device)
        self.normalize = Normalize(self.mean, self.std, self.device, self.dtype, self.channels_last)

    def __len__(self) -> int:
        """Number of this rank's batches of a whole epoch, whatever `start` is."""
        if self.train:
            return len(self.folder) // self.batch_size
        mine = len(range(self.rank, len(self.folder), self.world_size))
        return math.ceil(mine / (self.batch_size // self.world_size))

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "examples 3 size size"], Int64[Tensor, " examples"]]]:
        part, device = self.batch_size // self.world_size, torch.device(self.device)
        batches = DataLoader(
            _Photographs(self.folder.samples, _Crop(self.size, self.train, self.seed, self.epoch)),
            batch_size=part,
            sampler=self._order()[self.start * part :],
            drop_last=self.train,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, so that the state of the global one does not depend on workers
        )
        for images, labels in batches:
            yield self.normalize(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)

    def _order(self) -> list[int]:
        """Indices of this rank's images in the order of the epoch."""
        if not self.train:  # DistributedSampler would repeat images to make the ranks equal, and count them twice
            return list(range(len(self.folder)))[self.rank :: self.world_size]
        sampler: DistributedSampler[int] = DistributedSampler(
            self.folder, self.world_size, self.rank, shuffle=True, seed=self.seed, drop_last=True
        )
        sampler.set_epoch(self.epoch)
        return list(sampler)


class _Crop:
    """Resize and crop one image; at random for training, with random numbers of its own."""

    def __init__(self, size: int, train: bool, seed: int, epoch: int) -> None:
        self.transform = (
            v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
            if train
            else v2.Compose([v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)])
        )
        self.key = (seed, epoch)

    def __call__(self, image: UInt8[Tensor, "3 height width"], index: int) -> UInt8[Tensor, "3 size size"]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(frozen_random(*self.key, index).randint(2**31)))
            return self.transform(image)


class _Photographs(Dataset[tuple[Tensor, int]]):
    """Cropped image and label."""

    def __init__(self, samples: list[tuple[str, int]], crop: _Crop) -> None:
        self.samples = samples
        self.crop = crop

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.crop(decode(path), index), label
