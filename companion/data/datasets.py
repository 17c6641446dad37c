"""Data sets of small images, each read into one `Images`."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from companion._checks import extra, one_of
from companion._files import data_root, write_aside
from companion.data.images import Images, decode, files_below

# Mean and standard deviation of each channel, of pixels from 0 to 1.
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3759,)  # of all 1,797 images
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the training images
TINY_IMAGENET_MEAN, TINY_IMAGENET_STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)  # in common use

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}

# Of the images with their classes, in whatever order: copies of CIFAR-100 differ in that. See `_content`.
_CIFAR100_SHA256 = {
    "train": "6d2a03c47c105e4c34d3a2ff16c2803e8df0e5d6fa0c631e46663a327aeac573",
    "test": "381b7d98ce1e9b98232a8df0db0a22992654c39ff2433270656ab8ace5a45e65",
}


def load(name: str, split: Literal["train", "test"] = "train", root: str | Path | None = None) -> Images:
    """A data set by its name: "digits", "cifar10", "cifar100" or "tiny_imagenet" (whose labelled test set is "val";
    "tiny_imagenet_200" and "tiny_imagenet_20" name one of its folders). Errors are those of the functions below.

    >>> load("digits", "test")
    Images('digits test', 360 of 1×8×8, 10 classes, cpu)
    """
    sizes = {"tiny_imagenet": None, "tiny_imagenet_200": 200, "tiny_imagenet_20": 20}
    one_of(split=(split, ("train", "test")), name=(name, ("digits", "cifar10", "cifar100", *sizes)))
    if name == "digits":
        return digits(split)
    if name == "cifar10":
        return cifar10(split, root)
    if name == "cifar100":
        return cifar100(split, root)
    return tiny_imagenet("train" if split == "train" else "val", root, size=sizes[name])


def digits(split: Literal["train", "test"] = "train", seed: int = 0) -> Images:
    """scikit-learn's handwritten digits: 1,437 training and 360 test images of 1×8×8, with no download.

    The set comes without a split of its own; `seed` makes one, with equal shares of each class.

    Raises:
        ValueError: an unknown split; `seed` is no whole number from 0 to 2³² − 1.
        ModuleNotFoundError: scikit-learn is not installed; the extra `experiments` brings it.

    >>> digits()
    Images('digits train', 1437 of 1×8×8, 10 classes, cpu)
    """
    one_of(split=(split, ("train", "test")))
    with extra("experiments"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    # The 17 levels 0…16 are spread over 0…255; no two of them meet.
    pixels = torch.from_numpy(np.rint(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    everything = Images(pixels, labels, tuple("0123456789"), DIGITS_MEAN, DIGITS_STD, "digits")
    train, test = everything.split(360, seed)
    return dataclasses.replace(train if split == "train" else test, name=f"digits {split}")


def cifar10(split: Literal["train", "test"] = "train", root: str | Path | None = None, download: bool = True) -> Images:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3×32×32 in 10 classes.

    The binary version is read if its folder is there, each file checked by SHA-256; else torchvision's version, checked
    by MD5 and downloaded when missing.

    Args:
        root: the data root, see `data_root`.
        download: whether missing files may be downloaded.

    Raises:
        ValueError: an unknown split, or a damaged file, which is named.
        FileNotFoundError: a file is missing and cannot be downloaded.
    """
    one_of(split=(split, ("train", "test")))
    folder = data_root(root) / "cifar-10-batches-bin"
    if not folder.is_dir():
        return _cifar_python(CIFAR10, data_root(root), split, download, CIFAR10_MEAN, CIFAR10_STD)
    records = b""
    for name, sha256 in _CIFAR10_SHA256.items():
        if name.startswith("test") == (split == "test"):
            content = _read(folder / name)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"{folder / name} is damaged: its SHA-256 is not that of the published file")
            records += content
    return _cifar_binary(records, 1, _CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, f"cifar10 {split}")


def cifar100(
    split: Literal["train", "test"] = "train", root: str | Path | None = None, download: bool = True
) -> Images:
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3×32×32 in 100 (fine) classes.

    As `cifar10`; images and labels of the binary version are checked by SHA-256 in whatever order they stand.
    """
    one_of(split=(split, ("train", "test")))
    folder = data_root(root) / "cifar-100-binary"
    if not folder.is_dir():
        return _cifar_python(CIFAR100, data_root(root), split, download, CIFAR100_MEAN, CIFAR100_STD)
    path, per_class = folder / f"{split}.bin", 500 if split == "train" else 100
    content = _read(path)
    if len(content) != 100 * per_class * 3074:
        raise ValueError(f"{path} is damaged: {len(content):,} bytes, {100 * per_class * 3074:,} expected")
    coarse, fine = np.frombuffer(content, np.uint8).reshape(-1, 3074)[:, :2].T
    if coarse.max() >= 20 or set(np.bincount(fine, minlength=100)) != {per_class}:
        raise ValueError(f"{path} is damaged: its labels are not {per_class} of each of 100 classes in 20 groups")
    if _content(content, 3074) != _CIFAR100_SHA256[split]:
        raise ValueError(f"{path} is damaged: its images or labels are not the published ones")
    names = folder / "fine_label_names.txt"
    classes = tuple(_read(names).decode(errors="replace").split())
    if len(set(classes)) != 100:
        raise ValueError(f"{names} is damaged: {len(set(classes))} different names, 100 expected")
    return _cifar_binary(content, 2, classes, CIFAR100_MEAN, CIFAR100_STD, f"cifar100 {split}")


def _content(records: bytes, size: int) -> str:
    """SHA-256 of the sorted SHA-256 of all records, each without its first byte: what there is, in whatever order."""
    parts = (records[begin + 1 : begin + size] for begin in range(0, len(records), size))
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(part).digest() for part in parts))).hexdigest()


def _cifar_binary(
    content: bytes,
    label_bytes: int,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    name: str,
) -> Images:
    """Records of label bytes, of which the last is the class, and the red, green and blue planes of 32×32 pixels."""
    records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + 3072)
    pixels = torch.from_numpy(records[:, label_bytes:].reshape(-1, 3, 32, 32).copy())
    labels = torch.from_numpy(records[:, label_bytes - 1].astype(np.int64))
    return Images(pixels, labels, classes, mean, std, name)


def _cifar_python(
    source: type[CIFAR10], root: Path, split: str, download: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> Images:
    """CIFAR by torchvision's class, which unpickles only files whose MD5 is right."""
    name, folder = source.__name__.lower(), root / source.base_folder
    try:
        dataset = source(root, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        for file, md5 in [*source.train_list, *source.test_list]:
            if (folder / file).exists() and not check_integrity(folder / file, md5):
                raise ValueError(f"{folder / file} is damaged: its MD5 is not that of the published file") from error
        raise FileNotFoundError(
            f"{name} is not under {root}, and it was not downloaded ({error}). Unpack {source.url} there, so that "
            f"{folder} exists, or name another folder with root= or COMPANION_DATA"
        ) from error
    pixels = torch.from_numpy(dataset.data.transpose(0, 3, 1, 2).copy())
    return Images(pixels, torch.tensor(dataset.targets), tuple(dataset.classes), mean, std, f"{name} {split}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing; complete its folder, remove the folder to have the data downloaded, "
            "or name another with root= or COMPANION_DATA"
        ) from error


def tiny_imagenet(
    split: Literal["train", "val"] = "train",
    root: str | Path | None = None,
    size: int | None = None,
) -> Images:
    """Tiny ImageNet (Stanford CS231n): images of 3×64×64, for each class 500 to train and 50 to validate.

    `tiny-imagenet-200`, else `tiny-imagenet-20`, is read from the data root, in the published layout (`val/images/` and
    the table `val/val_annotations.txt`) or as `{train,val}/WNID/`. Grey images get three equal channels. The decoded
    images are kept in `cache/` under the data root until the name, size or date of a file changes.

    Args:
        split: "train" or "val"; the published test images have no labels.
        root: the data root, see `data_root`.
        size: read `tiny-imagenet-{size}` and no other folder; a recorded run names its images exactly.

    Raises:
        ValueError: an unknown split or size, a broken image or one of another size, or a class with too few or too many
            images; the file or folder is named.
        FileNotFoundError: the data set or one of its files is missing.

    Warns:
        UserWarning: the cache cannot be written, as on a full disk; the images are returned all the same.
    """
    one_of(split=(split, ("train", "val")), size=(size, (None, 200, 20)))
    root = data_root(root)
    names = [f"tiny-imagenet-{n}" for n in (200, 20) if size in (None, n)]
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"Tiny ImageNet ({' or '.join(names)}) is not under {root}: "
            "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there, "
            "or name another folder with root= or COMPANION_DATA"
        )
    files = _tiny_imagenet_files(folder, split)
    paths = [path for found in files.values() for path in found]
    labels = torch.tensor([label for label, found in enumerate(files.values()) for _ in found])
    pixels = _cached(root / "cache" / f"{folder.name}-{split}.npz", paths)
    name = f"{folder.name.replace('-', '_')} {split}"
    return Images(torch.from_numpy(pixels), labels, tuple(files), TINY_IMAGENET_MEAN, TINY_IMAGENET_STD, name)


def _tiny_imagenet_files(folder: Path, split: str) -> dict[str, list[Path]]:
    """The JPEGs of each class; the classes are the folders of `train/` in alphabetical order."""
    train, annotations = folder / "train", folder / "val" / "val_annotations.txt"
    wnids = sorted(entry.name for entry in train.iterdir() if entry.is_dir()) if train.is_dir() else []
    if not wnids:
        raise FileNotFoundError(f"{train} is empty or missing; unpack the data set anew")
    files: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    if split == "val" and annotations.exists():  # the published layout: one folder, and a table of file, class, box
        for line in annotations.read_text().splitlines():
            name, wnid = line.split("\t")[:2]
            files.setdefault(wnid, []).append(folder / "val" / "images" / name)
    else:
        for entry in sorted((folder / split).glob("*/")):
            files[entry.name] = files_below(entry, (".jpeg",))
    expected = 500 if split == "train" else 50
    for wnid, found in files.items():
        if len(found) != expected or wnid not in wnids:
            raise ValueError(
                f"{folder / split}: {len(found)} images of class {wnid}; {expected} of each of the "
                f"{len(wnids)} classes in {train} expected; unpack the data set anew"
            )
    return files


def _cached(cache: Path, paths: list[Path]) -> UInt8[np.ndarray, "examples 3 64 64"]:
    """The decoded images, kept in `cache` for as long as no name, size or date of a file changes.

    What bears its name is whole; the checksums of the archive guard it afterwards.
    """
    listing = hashlib.sha256()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; unpack the data set anew")
        listing.update(f"{path.parent.name}/{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    fingerprint = f"{len(paths)} files, {listing.hexdigest()}"
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if kept["fingerprint"] == fingerprint:
                return kept["pixels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, damaged or foreign: made anew
    pixels = np.empty((len(paths), 3, 64, 64), np.uint8)
    for i, path in enumerate(paths):
        image = decode(path).numpy()
        if image.shape != (3, 64, 64):
            raise ValueError(f"{path} has {image.shape[2]}×{image.shape[1]} pixels, 64×64 expected")
        pixels[i] = image
    try:
        write_aside(cache, lambda file: np.savez(file, fingerprint=fingerprint, pixels=pixels))
    except OSError as error:
        warnings.warn(f"{cache} cannot be written ({error}); the images will be decoded again next time", stacklevel=3)
    return pixels
