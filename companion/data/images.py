"""A labelled set of images as tensors, and the normalisation of pixels."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from companion._checks import between, given, whole_number

# Mean and standard deviation of each channel, of pixels from 0 to 1: torchvision's constants for ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set of images of one size.

    Attributes:
        images: pixels from 0 (black) to 255.
        labels: the class of each image, from 0 to `len(classes) - 1`.
        classes: names of the classes.
        mean, std: mean and standard deviation of each channel, of pixels from 0 to 1; a loader normalises with them.
            To normalise otherwise: `dataclasses.replace(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)`.
        name: what the set is, such as "cifar10 train".

    Raises:
        ValueError: tensors whose types, lengths, labels or channels do not fit together.

    >>> from companion.data import digits
    >>> rest, held_out = digits().split(validation=137)
    >>> len(rest), held_out
    (1300, Images('digits train, held out', 137 of 1×8×8, 10 classes, cpu))
    """

    images: UInt8[Tensor, "examples channels height width"]
    labels: Int64[Tensor, " examples"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"{self.name}: images of shape {tuple(self.images.shape)} and {self.images.dtype}; "
                "they must be (examples, channels, height, width) and torch.uint8"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"{self.name}: labels of shape {tuple(self.labels.shape)} and {self.labels.dtype}; "
                f"{len(self.images)} images need ({len(self.images)},) and torch.int64"
            )
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= len(self.classes)):
            raise ValueError(
                f"{self.name}: labels from {self.labels.min()} to {self.labels.max()}; "
                f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )
        if not len(self.mean) == len(self.std) == self.images.shape[1]:
            raise ValueError(
                f"{self.name}: {len(self.mean)} means and {len(self.std)} standard deviations "
                f"for {self.images.shape[1]} channels"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "×".join(str(n) for n in self.images.shape[1:])
        return f"Images({self.name!r}, {len(self)} of {shape}, {len(self.classes)} classes, {self.images.device})"

    def to(self, device: torch.device | str) -> Images:
        """The same set with its tensors on `device`; nothing is copied if they are there already."""
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Int64[Tensor, " chosen"] | Sequence[int]) -> Images:
        """The images of these indices, in this order; the classes keep their labels.

        Raises:
            ValueError: a mask, one number, numbers that are not whole, or of no image.
        """
        chosen = torch.as_tensor(indices, device=self.images.device)
        if chosen.ndim != 1:
            raise ValueError(f"indices={given(indices)} must be a list of whole numbers: of one image give [index]")
        if len(chosen) and (chosen.dtype == torch.bool or chosen.is_floating_point()):
            raise ValueError(
                f"indices are {chosen.dtype}, and images have whole numbers from 0 to {len(self) - 1}: of a mask give "
                "mask.nonzero()[:, 0]"
            )
        chosen = chosen.long()
        for index in chosen.aminmax() if len(chosen) else ():
            between(-len(self), len(self) - 1, index=int(index))
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def split(self, validation: int, seed: int = 0) -> tuple[Images, Images]:
        """Hold out `validation` images, for choices that must not see the test set.

        Every class gives its share, to within one image. The same seed gives the same split on every machine and under
        every version of NumPy.

        Returns:
            The remaining images and the held-out ones, each in the order of the set.

        Raises:
            ValueError: `validation` is no whole number from 1 to the number of images less 1; `seed` is none from 0 to
                2³² − 1.
        """
        between(1, len(self) - 1, validation=whole_number(validation=validation))
        between(0, 2**32 - 1, seed=whole_number(seed=seed))
        labels = self.labels.cpu().numpy()
        shares = validation * np.bincount(labels, minlength=len(self.classes)) / len(self)
        quotas = shares.astype(int)
        # What rounding down left over goes to the classes that lost most, the first of equals first.
        lost_most = np.argsort(quotas - shares, kind="stable")[: validation - quotas.sum()]
        quotas[lost_most] += 1
        random = frozen_random(seed)
        held_out = np.zeros(len(self), dtype=bool)
        for label, quota in enumerate(quotas):
            held_out[random.permutation(np.flatnonzero(labels == label))[:quota]] = True
        rest, chosen = (self.subset(torch.from_numpy(np.flatnonzero(mask))) for mask in (~held_out, held_out))
        return rest, dataclasses.replace(chosen, name=f"{self.name}, held out")


class Normalize:
    """Pixels of 0…255 to (pixel/255 − mean) / std, as torchvision's `ToDtype(scale=True)` and `Normalize`.

    The constants are moved to the device once. Computed in at least float32, and rounded to `dtype` once.

    Args:
        mean, std: one value for each channel, of pixels from 0 to 1.
        device: where the images will be.
        dtype, channels_last: floating type and memory format of the result.

    Raises:
        ValueError: pixels that are not uint8.

    >>> Normalize(mean=(0.5,), std=(0.25,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-2.,  2.]]]])
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        working = torch.promote_types(dtype, torch.float32)
        self.mean, self.std = (
            255 * torch.tensor(values, dtype=working, device=device)[:, None, None] for values in (mean, std)
        )
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(
        self, images: UInt8[Tensor, "examples channels height width"]
    ) -> Float[Tensor, "examples channels height width"]:
        if images.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8, 0…255; got {images.dtype}")
        x = images.to(self.mean.dtype).sub_(self.mean).div_(self.std)
        return x.to(self.dtype, memory_format=self.memory_format)


def frozen_random(*key: int) -> np.random.RandomState:
    """Random numbers that depend on the key (integers from 0 to 2³² − 1) alone.

    NumPy's legacy generator, because its stream is frozen (NEP 19): a split or an epoch stays what a record says it is.
    """
    return np.random.RandomState(key)


def decode(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """Decode an image file to red, green and blue, whatever its colours are.

    Raises:
        ValueError: the file is not an image, is damaged, or has more pixels than Pillow's limit; it is named.
        FileNotFoundError: there is no such file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return pil_to_tensor(image.convert("RGB"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; unpack the data set anew") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path} has too many pixels ({error}); if you trust it, set PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # every format fails in ways of its own
        raise ValueError(f"{path} is not an image or is damaged ({error}); unpack the data set anew") from error


def files_below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files below a folder, itself a link or not, whose names end so in any case, in the order of their paths.

    Warns:
        UserWarning: a folder in it is a link, which is not followed: it may lead back, or to images of another class.
    """
    found = []
    for parent, folders, files in sorted(os.walk(folder)):
        for name in folders:
            if (link := Path(parent, name)).is_symlink():
                warnings.warn(f"{link} is a link to a folder and was not followed", stacklevel=2)
        found += [Path(parent, name) for name in sorted(files) if name.lower().endswith(endings)]
    return found
