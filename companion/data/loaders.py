"""Batches of a data set that lives on the device, with random crops and flips made there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from companion._checks import at_least, between, whole_number
from companion.data.images import Images, Normalize, frozen_random


def crop_and_flip(
    images: UInt8[Tensor, "examples channels height width"],
    top: Int64[Tensor, " examples"],
    left: Int64[Tensor, " examples"],
    flip: Bool[Tensor, " examples"],
    padding: int,
) -> UInt8[Tensor, "examples channels height width"]:
    """Add a black border to every image, cut a window of the first size out of it, and mirror it where `flip` is true.

    Image by image this is torchvision's `pad`, `crop` at (top, left) and `horizontal_flip`, but all images are done at
    once and nobody waits for the device. `top` and `left` go from 0 to 2·padding; `padding` is the middle.

    >>> image, one = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8), torch.tensor([1])
    >>> crop_and_flip(image, one - 1, one, flip=one > 0, padding=1).tolist()  # a row up, and mirrored
    [[[[0, 0], [2, 1]]]]
    """
    examples, channels, height, width = images.shape
    index = partial(torch.arange, device=images.device)
    if padding and examples:  # a rank's part of a small last batch may be empty
        high, wide = height + 2 * padding, width + 2 * padding
        # Where each row of each window begins, if all padded images are one long line of pixels
        planes = index(examples * channels).view(examples, channels, 1)
        begin = (planes * high + top[:, None, None] + index(height)) * wide + left[:, None, None]
        # Any `width` neighbours on that line are a view, so that a row is copied as a whole and not pixel by pixel.
        line = F.pad(images, (padding,) * 4).flatten()
        images = line.unfold(0, width, 1).index_select(0, begin.flatten()).view_as(images)
    # Likewise, whole images are chosen out of the upright and the mirrored ones.
    return torch.cat([images, images.flip(3)]).index_select(0, index(examples) + examples * flip)


@dataclass(eq=False, repr=False)
class Epochs:
    """What loaders share: whose part of which batches of which epoch they yield, and how images come."""

    _: KW_ONLY
    seed: int = 0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.seed = whole_number(seed=self.seed)  # NumPy's too, which torch's samplers do not take
        between(0, 2**32 - 1, seed=self.seed)


@dataclass(eq=False, repr=False)
class DeviceLoader(Epochs):
    """Batches of a data set that lives on the device as one uint8 tensor.

    An iteration yields the batches of epoch `epoch`, from batch `start` on: pairs (x, y) of normalised images
    `(examples, channels, height, width)` and labels `(examples,)`. Order, crops and flips of a whole epoch are drawn on
    the CPU, from `seed` and `epoch` alone: they are the same on every device, for every number of ranks, and for a run
    that resumes in the middle of an epoch.

    Args:
        images: the data set; moved to `device`.
        batch_size: examples of a batch, all ranks together.
        shuffle: draw an order for each `epoch`; in a loop of your own set that before each pass, or take another
            `seed`: two passes over the same epoch are the same.
        augment: crop and mirror at random, as torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip()`.
        padding: pixels of black border on each side for the crop; 0: no crop.
        flip: whether augmentation mirrors every other image; no for digits, whose mirror images are none.
        drop_last: leave out a last batch that is smaller.
        seed: seed of order and augmentation.
        device: where the data set lives and the batches are made.
        dtype, channels_last: floating type and memory format of x.
        rank, world_size: yield part `rank` of each batch, cut into `world_size` consecutive parts that differ by at
            most one example; together the ranks see the batches of one process. A last batch of fewer than
            `world_size` examples leaves some ranks an empty part.

    Attributes:
        epoch, start: which epoch to iterate over, and from which of its batches on; set by the training loop, never
            changed here. 0 at first.

    Raises:
        ValueError: an argument that is not allowed, or no batch at all.

    >>> from companion.data import digits
    >>> batches = DeviceLoader(digits(), batch_size=64, shuffle=True)
    >>> x, y = next(iter(batches))
    >>> len(batches), x.shape, y.shape
    (23, torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """

    images: Images
    batch_size: int
    _: KW_ONLY
    shuffle: bool = False
    augment: bool = False
    padding: int = 4
    flip: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranks(self.batch_size, self.rank, self.world_size)
        at_least(0, padding=self.padding)
        if not len(self):
            size = self.batch_size
            raise ValueError(f"{self.images!r} gives no batch of batch_size={size}, drop_last={self.drop_last}")
        self.images = self.images.to(self.device)
        self.device = self.images.images.device
        mean, std = self.images.mean, self.images.std
        self.normalize = Normalize(mean, std, self.device, self.dtype, self.channels_last)

    def __len__(self) -> int:
        """Number of batches of a whole epoch, whatever `start` is."""
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __repr__(self) -> str:
        return f"DeviceLoader({self.images!r}, {len(self)} batches of {self.batch_size})"

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "examples channels height width"], Int64[Tensor, " examples"]]]:
        pixels, labels = self.images.images, self.images.labels
        order, top, left, flip = self._draw_epoch()
        for batch in range(self.start, len(self)):
            part = self._part(batch)
            if self.shuffle:
                x, y = pixels.index_select(0, order[part]), labels.index_select(0, order[part])
            else:
                x, y = pixels[part], labels[part]
            if self.augment:
                x = crop_and_flip(x, top[part], left[part], flip[part], self.padding)
            yield self.normalize(x), y

    def _part(self, batch: int) -> slice:
        """Positions, in the order of the epoch, of this rank's part of a batch."""
        first = batch * self.batch_size
        size = min(self.batch_size, len(self.images) - first)
        begin, end = (first + size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return slice(begin, end)

    def _draw_epoch(self) -> tuple[Tensor, ...]:
        """For every position of the epoch: the image, top and left of its window, and whether it is mirrored."""
        random, examples, offsets = frozen_random(self.seed, self.epoch), len(self.images), 2 * self.padding + 1
        order = random.permutation(examples)
        top, left = random.randint(0, offsets, (2, examples))
        flip = random.random_sample(examples) < (0.5 if self.flip else 0)
        drawn = [torch.from_numpy(values) for values in (order, top, left, flip)]
        if torch.device(self.device).type == "cuda":  # from pinned memory the device copies by itself
            drawn = [values.pin_memory() for values in drawn]
        return tuple(values.to(self.device, non_blocking=True) for values in drawn)


def check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    """Refuse a rank that does not exist, or a batch too small to give every rank an example."""
    at_least(1, world_size=world_size)
    between(0, world_size - 1, rank=whole_number(rank=rank))
    at_least(world_size, batch_size=batch_size)
