"""Images as tensors, and loaders that live on the device.

A data set of small images is one `Images`: a uint8 tensor, its labels, and the constants that normalise it. A
`DeviceLoader` holds it on the device and makes batches there. ImageNet, which does not fit, is read file by file by an
`ImageNetLoader`. Both loaders give the same batches for the same seed, whatever the device and the number of ranks.

What is looked for under the data root (see `data_root`):

- digits: nothing, scikit-learn brings them;
- CIFAR-10 and CIFAR-100: `cifar-10-batches-bin/` and `cifar-100-binary/`, the published binary versions; else
  `cifar-10-batches-py/` and `cifar-100-python/`, torchvision's, which are downloaded when missing;
- Tiny ImageNet: `tiny-imagenet-200/` as published, or `tiny-imagenet-{200,20}/{train,val}/WNID/*.JPEG`;
- ImageNet: `imagenet/{train,val}/WNID/*.JPEG`, or the published archives in `imagenet/`.

Chapter *Feature similarity* uses digits and CIFAR-10.
"""

from __future__ import annotations

from companion._files import data_root
from companion.data.datasets import cifar10, cifar100, digits, load, tiny_imagenet
from companion.data.imagenet import ImageNetLoader, imagenet
from companion.data.images import IMAGENET_MEAN, IMAGENET_STD, Images, Normalize
from companion.data.loaders import DeviceLoader, crop_and_flip

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DeviceLoader",
    "ImageNetLoader",
    "Images",
    "Normalize",
    "cifar10",
    "cifar100",
    "crop_and_flip",
    "data_root",
    "digits",
    "imagenet",
    "load",
    "tiny_imagenet",
]
