"""Images, data sets and loaders: exact pixels, known counts, the same batches everywhere, and faults that are named."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import itertools
import os
import pickle
import shutil
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from companion import data
from companion.data import DeviceLoader, ImageNetLoader, Images, Normalize, crop_and_flip, datasets
from companion.data.imagenet import _Crop

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def random_images(examples: int = 50, channels: int = 3, size: int = 8, classes: int = 5) -> Images:
    pixels = torch.randint(0, 256, (examples, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(examples) % classes
    return Images(pixels, labels, tuple("abcdefghij"[:classes]), MEAN[:channels], STD[:channels], "random")


# -------------------------------------------------------------------------------------------------------------- images


def test_data_root_is_argument_then_variable_then_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPANION_DATA", "/from/variable")
    assert data.data_root(tmp_path) == tmp_path
    assert data.data_root() == Path("/from/variable")
    monkeypatch.delenv("COMPANION_DATA")
    assert data.data_root() == Path.home() / ".cache" / "companion"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(50, 3, 8, 8)}, "torch.uint8"),
        ({"labels": torch.zeros(49, dtype=torch.int64)}, "50 images need"),
        ({"labels": torch.full((50,), 5)}, "allow 0 to 4"),
        ({"mean": (0.5,)}, "1 means and 3 standard deviations for 3 channels"),
    ],
)
def test_images_that_do_not_fit_together_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(random_images(), **change)


def test_split_is_stratified_disjoint_and_frozen() -> None:
    images = random_images(100, classes=10)
    images = images.subset(torch.cat([torch.arange(100), torch.arange(0, 100, 10)]))  # class 0 twice as often
    rest, held_out = images.split(33, seed=3)
    assert len(rest) == 77 and len(held_out) == 33
    counts = held_out.labels.bincount(minlength=10)
    assert counts[0] == 6 and set(counts[1:].tolist()) == {3}
    together = torch.cat([rest.images, held_out.images]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, images.images.flatten(1).tolist()))
    again = images.split(33, seed=3)[1]
    assert torch.equal(again.images, held_out.images)
    assert not torch.equal(images.split(33, seed=4)[1].images, held_out.images)


def test_what_rounding_leaves_goes_to_the_classes_that_lost_most() -> None:
    """Of 5, 3 and 2 images 3 are 1.5, 0.9 and 0.6: one of each, and not two of the first."""
    images = random_images(10, classes=3)
    images = dataclasses.replace(images, labels=torch.tensor([0] * 5 + [1] * 3 + [2] * 2))
    assert images.split(3)[1].labels.tolist() == [0, 1, 2]


def test_split_and_order_never_change() -> None:
    """The very indices are part of what a record means."""
    pixels, labels = torch.arange(110, dtype=torch.uint8)[:, None, None, None], torch.arange(110) % 10
    images = Images(pixels, labels, tuple("abcdefghij"), (0.5,), (0.2,), "numbered")
    assert images.split(10, seed=0)[1].images.flatten().tolist() == [3, 39, 61, 90, 95, 98, 102, 104, 106, 107]
    loader = DeviceLoader(dataclasses.replace(images, mean=(0.0,), std=(1 / 255,)), 8, shuffle=True, seed=5)
    loader.epoch = 2
    assert next(iter(loader))[0].flatten().round().tolist() == [50, 39, 54, 95, 94, 63, 79, 17]


@pytest.mark.parametrize("indices", [torch.arange(9) > 4, [True, False], [0.5, 1.5], np.arange(9) < 2])
def test_a_mask_is_not_taken_for_indices(indices: Any) -> None:
    """It would give the first and second image, over and over."""
    with pytest.raises(ValueError, match="of a mask give"):
        data.digits().subset(indices)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (3, r"indices=3 must be a list"),
        ([1000], r"index=1000 must lie in \[-50, 49\]"),
        ([0, -51], "index=-51 must lie"),
    ],
)
def test_indices_of_no_image_are_refused(indices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_images().subset(indices)
    assert len(random_images().subset([])) == 0 and len(random_images().subset([49, -50])) == 2


@pytest.mark.parametrize("validation", [0, 50, -1])
def test_split_needs_something_on_both_sides(validation: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 49\]"):
        random_images().split(validation)


@pytest.mark.parametrize("validation", [10.5, 10.0, "10", True])
def test_a_part_of_an_image_is_not_held_out(validation):
    with pytest.raises(ValueError, match=rf"validation={validation!r} must be a whole number"):
        random_images().split(validation)


@pytest.mark.parametrize("seed, message", [(-1, "must lie in"), (2**32, "must lie in"), (1.5, "whole number")])
def test_a_split_takes_the_seeds_that_loaders_take(seed, message):
    for split in (lambda: random_images().split(10, seed), lambda: data.digits(seed=seed)):
        with pytest.raises(ValueError, match=f"seed={seed}.*{message}"):
            split()
    assert len(random_images().split(10, np.uint32(2**32 - 1))[1]) == 10


def test_pixels_are_whole_numbers_and_stay_what_they_are() -> None:
    """Those from 0 to 1 would be nearly black, and were overwritten."""
    pixels = torch.rand(2, 3, 4, 4)
    kept = pixels.clone()
    with pytest.raises(ValueError, match=r"pixels must be uint8, 0…255; got torch.float32"):
        Normalize(MEAN, STD)(pixels)
    assert torch.equal(pixels, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize_is_torchvisions(dtype: torch.dtype, channels_last: bool, device: torch.device) -> None:
    images = random_images().images.to(device)
    x = Normalize(MEAN, STD, device, dtype, channels_last)(images)
    expected = v2.Compose([v2.ToDtype(torch.float64, scale=True), v2.Normalize(MEAN, STD)])(images)
    assert x.dtype == dtype
    assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(x, expected.to(dtype))


# ----------------------------------------------------------------------------------------------------------- data sets


def test_digits_are_whole_balanced_and_offline() -> None:
    train, test = data.digits("train"), data.digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (1, 8, 8)
    assert not {x.numpy().tobytes() for x in train.images} & {x.numpy().tobytes() for x in test.images}
    shares = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (shares - 0.2).abs().max() < 0.01
    pixels = torch.cat([train.images, test.images])
    assert sorted(pixels.unique().tolist()) == [round(255 * level / 16) for level in range(17)]
    x = Normalize(train.mean, train.std)(pixels)
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3
    assert not torch.equal(data.digits("test", seed=1).images, test.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_whole_and_normalised_by_its_own_constants(name: str, data_root: Path) -> None:
    train, test = data.load(name, "train", data_root), data.load(name, "test", data_root)
    classes = len(train.classes)
    assert classes == int(name[5:]) and train.classes == test.classes
    assert set(train.labels.bincount().tolist()) == {50_000 // classes}
    assert set(test.labels.bincount().tolist()) == {10_000 // classes}
    values = np.arange(256) / 255
    for channel, mean, std in zip(train.images.unbind(1), train.mean, train.std, strict=True):
        shares = np.bincount(channel.numpy().ravel(), minlength=256) / channel.numel()
        assert abs(shares @ values - mean) < 5.1e-5  # published to four decimals
        assert abs(np.sqrt(shares @ (values - mean) ** 2) - std) < 5.1e-5


def linked(source: Path, target: Path) -> Path:
    """A folder of links to the files of another one, so that single files can be replaced."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    return target


def damage(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    """Replace a link by a changed copy of its file."""
    content = bytearray(path.read_bytes())
    path.unlink()
    path.write_bytes(change(content))


def flipped_byte(content: bytearray) -> bytearray:
    content[1000] ^= 1
    return content


@pytest.mark.parametrize("change", [flipped_byte, lambda content: content[:-1]], ids=["corrupted", "truncated"])
def test_damaged_cifar10_is_named(change: Callable, data_root: Path, tmp_path: Path) -> None:
    folder = linked(data_root / "cifar-10-batches-bin", tmp_path / "cifar-10-batches-bin")
    damage(folder / "test_batch.bin", change)
    with pytest.raises(ValueError, match=r"test_batch\.bin is damaged"):
        data.cifar10("test", tmp_path)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is missing"):
        data.cifar10("train", tmp_path)


def swapped_labels(content: bytearray) -> bytearray:
    """The classes of the first image and of the first of another class exchanged: every count stays."""
    records = np.frombuffer(bytes(content), np.uint8).reshape(-1, 3074).copy()
    other = int(np.flatnonzero(records[:, 1] != records[0, 1])[0])
    records[[0, other], 1] = records[[other, 0], 1]
    return bytearray(records.tobytes())


def test_cifar100_is_known_by_its_images_in_whatever_order(data_root: Path, tmp_path: Path) -> None:
    folder = linked(data_root / "cifar-100-binary", tmp_path / "cifar-100-binary")
    damage(folder / "test.bin", lambda content: np.frombuffer(content, np.uint8).reshape(-1, 3074)[::-1].tobytes())
    turned, images = data.cifar100("test", tmp_path), data.cifar100("test", data_root)
    assert torch.equal(turned.images.flip(0), images.images) and torch.equal(turned.labels.flip(0), images.labels)


def test_a_digest_of_content_sees_every_bit_but_the_first_byte_and_the_order() -> None:
    one, two = b"\x07\x01abc", b"\x08\x02def"
    parts = sorted(hashlib.sha256(part).digest() for part in (b"\x01abc", b"\x02def"))
    assert datasets._content(one + two, 5) == hashlib.sha256(parts[0] + parts[1]).hexdigest()
    assert datasets._content(two + b"\x00" + one[1:], 5) == datasets._content(one + two, 5)
    assert datasets._content(one + b"\x08\x02dec", 5) != datasets._content(one + two, 5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("test.bin", lambda content: content[:-1], "30,739,999 bytes, 30,740,000 expected"),
        ("test.bin", lambda content: b"\x14" + content[1:], "not 100 of each of 100 classes in 20 groups"),
        ("test.bin", lambda content: content[:1] + bytes([(content[1] + 1) % 100]) + content[2:], "not 100 of each"),
        ("test.bin", lambda content: content[:2] + bytes([content[2] ^ 1]) + content[3:], "not the published ones"),
        ("test.bin", lambda content: swapped_labels(content), "not the published ones"),
        ("fine_label_names.txt", lambda content: content[:100], "different names, 100 expected"),
    ],
    ids=["truncated", "group out of range", "counts", "one bit of a pixel", "two labels exchanged", "names"],
)
def test_damaged_cifar100_is_named(file: str, change: Callable, message: str, data_root: Path, tmp_path: Path) -> None:
    folder = linked(data_root / "cifar-100-binary", tmp_path / "cifar-100-binary")
    damage(folder / file, change)
    with pytest.raises(ValueError, match=f"{file} is damaged: .*{message}"):
        data.cifar100("test", tmp_path)


@pytest.mark.parametrize(("source", "read"), [(CIFAR10, data.cifar10), (CIFAR100, data.cifar100)])
def test_torchvisions_cifar_is_read_and_its_damage_named(
    source: type[CIFAR10], read: Callable[..., Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small set in torchvision's layout, whose MD5s stand in for the published ones."""
    folder = tmp_path / source.base_folder
    folder.mkdir()
    key = "labels" if source is CIFAR10 else "fine_labels"
    pixels = np.random.randint(0, 256, (4, 3072), dtype=np.uint8)
    for name, _ in [*source.train_list, *source.test_list]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: [0, 1, 2, 1]}))
    meta = {source.meta["key"]: ["a", "b", "c"]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))
    md5 = datasets.check_integrity.__globals__["calculate_md5"]
    monkeypatch.setattr(source, "train_list", [[name, md5(folder / name)] for name, _ in source.train_list])
    monkeypatch.setattr(source, "test_list", [[name, md5(folder / name)] for name, _ in source.test_list])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(folder / source.meta["filename"])})

    test = read("test", tmp_path, download=False)
    assert torch.equal(test.images, torch.from_numpy(pixels.reshape(-1, 3, 32, 32)))
    assert test.labels.tolist() == [0, 1, 2, 1] and test.classes == ("a", "b", "c")

    damaged = folder / source.test_list[0][0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{damaged} is damaged"):
        read("test", tmp_path, download=False)


def test_nothing_there_and_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    for download in (True, False):
        with pytest.raises(FileNotFoundError, match=r"cifar10 is not under .*Unpack https.*COMPANION_DATA"):
            data.cifar10("train", tmp_path, download=download)
    with pytest.raises(FileNotFoundError, match=r"Tiny ImageNet .*is not under .*COMPANION_DATA"):
        data.tiny_imagenet("train", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no train/ of ImageNet under .*COMPANION_DATA"):
        data.imagenet("train", tmp_path)


def test_unknown_names_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name='mnist' is unknown; use one of \['digits', 'cifar10'"):
        data.load("mnist")
    with pytest.raises(ValueError, match=r"split='val' is unknown; use one of \['train', 'test'\]"):
        data.cifar10("val", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"split='test' is unknown; use one of \['train', 'val'\]"):
        data.tiny_imagenet("test", tmp_path)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- Tiny ImageNet


def jpeg(color: tuple[int, ...] | int, size: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB" if isinstance(color, tuple) else "L", (size, size), color).save(file, "JPEG")
    return file.getvalue()


WNIDS = ("n01", "n02")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two classes in the plain layout: red and grey images."""
    for wnid, content in zip(WNIDS, (jpeg((254, 0, 0)), jpeg(100)), strict=True):
        for split, number in (("train", 500), ("val", 50)):
            folder = tmp_path / "tiny-imagenet-200" / split / wnid
            folder.mkdir(parents=True)
            for i in range(number):
                (folder / f"{wnid}_{i}.JPEG").write_bytes(content)
    return tmp_path


def test_plain_layout_with_grey_images(tiny: Path) -> None:
    images = data.tiny_imagenet("train", tiny)
    assert images.images.shape == (1000, 3, 64, 64) and images.classes == WNIDS
    assert images.labels.tolist() == [0] * 500 + [1] * 500
    assert images.images[0, :, 0, 0].tolist() == [254, 0, 0]
    assert images.images[999, :, 0, 0].tolist() == [100, 100, 100]
    assert len(images.images.unique(dim=0)) == 2


def test_published_layout_is_read_by_its_annotations(tiny: Path) -> None:
    """Validation images lie in one folder, mixed; their classes stand in a table."""
    plain = data.tiny_imagenet("val", tiny)
    folder = tiny / "tiny-imagenet-200" / "val"
    (folder / "images").mkdir()
    table = []
    for i, path in enumerate(sorted(folder.glob("n*/*.JPEG"), key=lambda path: path.name[::-1])):
        path.rename(folder / "images" / f"val_{i}.JPEG")
        table.append(f"val_{i}.JPEG\t{path.parent.name}\t0\t0\t62\t62\n")
    (folder / "val_annotations.txt").write_text("".join(table))
    shutil.rmtree(folder / "n01")
    shutil.rmtree(folder / "n02")
    for wnid in WNIDS:  # training images lie one folder deeper, beside a table of boxes
        train = tiny / "tiny-imagenet-200" / "train" / wnid
        (train / "images").mkdir()
        for path in train.glob("*.JPEG"):
            path.rename(train / "images" / path.name)
        (train / f"{wnid}_boxes.txt").write_text("")
    published = data.tiny_imagenet("val", tiny)
    assert torch.equal(published.images, plain.images) and torch.equal(published.labels, plain.labels)
    assert len(data.tiny_imagenet("train", tiny)) == 1000


def test_a_run_names_the_part_that_it_wants(tiny: Path) -> None:
    (tiny / "tiny-imagenet-20").symlink_to(tiny / "tiny-imagenet-200")
    assert data.load("tiny_imagenet", "test", tiny).name == "tiny_imagenet_200 val"
    assert data.load("tiny_imagenet_20", "test", tiny).name == "tiny_imagenet_20 val"
    (tiny / "tiny-imagenet-20").unlink()
    with pytest.raises(FileNotFoundError, match=r"Tiny ImageNet \(tiny-imagenet-20\) is not under"):
        data.load("tiny_imagenet_20", "test", tiny)
    with pytest.raises(ValueError, match=r"size=30 is unknown; use one of \[None, 200, 20\]"):
        data.tiny_imagenet("val", tiny, size=30)


def test_the_cache_is_used_and_made_anew_when_a_file_changes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    decode = datasets.decode
    monkeypatch.setattr(datasets, "decode", lambda path: decoded.append(path) or decode(path))
    first = data.tiny_imagenet("val", tiny)
    assert len(decoded) == 100
    assert torch.equal(data.tiny_imagenet("val", tiny).images, first.images) and len(decoded) == 100
    (tiny / "tiny-imagenet-200" / "val" / "n01" / "n01_0.JPEG").write_bytes(jpeg((0, 0, 254)))
    assert data.tiny_imagenet("val", tiny).images[0, :, 0, 0].tolist() == [0, 0, 254] and len(decoded) == 200


@pytest.mark.parametrize("change", [lambda c: c[: len(c) // 2], lambda c: c[:-9000] + b"!" + c[-8999:], lambda _: b""])
def test_a_damaged_cache_is_never_used(change: Callable, tiny: Path) -> None:
    first = data.tiny_imagenet("val", tiny)
    (cache,) = (tiny / "cache").iterdir()
    damage(cache, change)
    assert torch.equal(data.tiny_imagenet("val", tiny).images, first.images)
    with np.load(cache) as kept:
        assert np.array_equal(kept["pixels"], first.images.numpy())


def test_a_full_disk_is_named_and_leaves_no_cache(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_midway(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(arrays["pixels"].tobytes()[:5000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(np, "savez", fails_midway)
        with pytest.warns(UserWarning, match=r"tiny-imagenet-200-val\.npz cannot be written .*No space left"):
            images = data.tiny_imagenet("val", tiny)
    assert len(images) == 100
    assert list((tiny / "cache").iterdir()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data.tiny_imagenet("val", tiny).images, images.images)


def test_broken_images_wrong_counts_and_missing_classes_are_named(tiny: Path) -> None:
    folder = tiny / "tiny-imagenet-200"
    victim = folder / "val" / "n02" / "n02_7.JPEG"
    whole = victim.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "damaged"),
        (b"no JPEG", "is not an image"),
        (b"", "is not an image"),
        (jpeg(3, 32), "32×32 pixels, 64×64 expected"),
    ):
        victim.write_bytes(content)
        with pytest.raises(ValueError, match=rf"n02_7\.JPEG.*{message}"):
            data.tiny_imagenet("val", tiny)
        assert not (tiny / "cache").exists()
    victim.unlink()
    with pytest.raises(ValueError, match="val: 49 images of class n02; 50"):
        data.tiny_imagenet("val", tiny)
    shutil.rmtree(folder / "val" / "n01")
    with pytest.raises(ValueError, match="val: 0 images of class n01"):
        data.tiny_imagenet("val", tiny)
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="train is empty"):
        data.tiny_imagenet("train", tiny)


def test_an_annotated_image_that_is_missing_is_named(tiny: Path) -> None:
    folder = tiny / "tiny-imagenet-200" / "val"
    table = [f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t62\t62\n" for i in range(100)]
    (folder / "val_annotations.txt").write_text("".join(table))
    with pytest.raises(FileNotFoundError, match=r"val_0\.JPEG is missing"):
        data.tiny_imagenet("val", tiny)


def test_the_real_tiny_imagenet(data_root: Path, tmp_path: Path) -> None:
    source = next((f for f in (data_root / "tiny-imagenet-200", data_root / "tiny-imagenet-20") if f.is_dir()), None)
    if source is None:
        pytest.skip("image data: no Tiny ImageNet there")
    (tmp_path / source.name).symlink_to(source)
    images = data.tiny_imagenet("val", tmp_path)
    assert set(images.labels.bincount().tolist()) == {50}
    assert 0.3 < images.images.double().mean() / 255 < 0.6
    assert torch.equal(data.load("tiny_imagenet", "test", tmp_path).images, images.images)


# -------------------------------------------------------------------------------------------------------- DeviceLoader


def coordinates(examples: int) -> Images:
    """Images whose pixels tell where they were: row + 1, column + 1; 0 is border."""
    rows, columns = torch.meshgrid(torch.arange(1, 33), torch.arange(1, 33), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    return Images(
        image.expand(examples, 3, 32, 32), torch.zeros(examples).long(), ("a",), (0, 0, 0), (1, 1, 1), "where"
    )


def where(x: torch.Tensor) -> torch.Tensor:
    """(top, left, flip) of crops of `coordinates`, read off the window's centre."""
    y = (x * 255).round().long()
    row, column, right = y[:, 0, 16, 16], y[:, 1, 16, 16], y[:, 1, 16, 17]
    flip = (right < column).long()
    left = torch.where(flip == 1, column - 16, column - 17)
    return torch.stack([row - 17 + 4, left + 4, flip], dim=1)


def test_crop_and_flip_equals_torchvision_pixel_by_pixel(device: torch.device) -> None:
    images = random_images(81 * 2).images
    top, left, flip = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, (9, 9, 2)), indexing="ij"))
    ours = crop_and_flip(*(t.to(device) for t in (images, top, left, flip.bool())), padding=4)
    for i, x in enumerate(ours.cpu()):
        window = tvf.crop(tvf.pad(images[i], [4]), int(top[i]), int(left[i]), 8, 8)
        assert torch.equal(x, tvf.horizontal_flip(window) if flip[i] else window)


@pytest.mark.slow
def test_augmentation_has_torchvisions_distribution() -> None:
    """Chi-square of the 9 × 9 offsets × 2 flips: ours against uniform, and torchvision's against it too."""
    examples = 81 * 2 * 60
    loader = DeviceLoader(coordinates(examples), 1000, augment=True, seed=1)
    ours = torch.cat([where(x) for x, _ in loader])
    theirs_transform = v2.Compose(
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    )
    image = coordinates(1).images[0]
    theirs = where(torch.stack([theirs_transform(image) for _ in range(examples // 4)]))
    counts = []
    for found in (ours, theirs):
        assert found.min() >= 0 and found[:, :2].max() <= 8
        counts.append(((found[:, 0] * 9 + found[:, 1]) * 2 + found[:, 2]).bincount(minlength=162).numpy())
    assert chisquare(counts[0]).pvalue > 1e-3
    assert chisquare(counts[1]).pvalue > 1e-3
    # Neighbours in a batch, and the same position in the next epoch, are independent: all pairs of flips occur alike.
    loader.epoch = 1
    following = torch.cat([where(x) for x, _ in loader])
    for one, two in ((ours[:-1:2], ours[1::2]), (ours, following)):
        assert chisquare((one[:, 2] * 2 + two[:, 2]).bincount(minlength=4).numpy()).pvalue > 1e-3
        assert chisquare((one[:, 0] * 9 + two[:, 1]).bincount(minlength=81).numpy()).pvalue > 1e-3


def test_the_border_is_black_before_normalisation() -> None:
    images = random_images(64, size=32)
    images.images.fill_(255)
    loader = DeviceLoader(images, 64, augment=True, seed=2)
    ((x, _),) = loader
    values = torch.tensor([[(v - m) / s for v in (0.0, 1.0)] for m, s in zip(MEAN, STD, strict=True)])
    for channel in range(3):
        torch.testing.assert_close(x[:, channel].unique(), values[channel])


def batches(loader: DeviceLoader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.cpu(), y.cpu()) for x, y in loader]


def same(one: list, two: list) -> bool:
    return len(one) == len(two) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(one, two, strict=True)
    )


def test_batches_follow_from_seed_and_epoch_on_every_device(device: torch.device) -> None:
    images = random_images(50)

    def loader(seed: int, epoch: int, where: torch.device | str = device) -> list:
        made = DeviceLoader(images, 16, shuffle=True, augment=True, padding=2, seed=seed, device=where)
        made.epoch = epoch
        return batches(made)

    assert same(loader(1, 3), loader(1, 3))
    assert all(torch.equal(y, v) for (_, y), (_, v) in zip(loader(1, 3), loader(1, 3, "cpu"), strict=True))
    for (x, _), (u, _) in zip(loader(1, 3), loader(1, 3, "cpu"), strict=True):
        torch.testing.assert_close(x, u)
    assert not same(loader(1, 3), loader(1, 4))
    assert not same(loader(1, 3), loader(2, 3))
    torch.manual_seed(123)
    assert same(loader(1, 3), loader(1, 3)) and torch.initial_seed() == 123


def test_an_epoch_sees_every_image_once() -> None:
    images = dataclasses.replace(random_images(50), labels=torch.arange(50), classes=tuple(map(str, range(50))))
    loader = DeviceLoader(images, 16, shuffle=True, seed=5)
    labels = torch.cat([y for _, y in loader])
    assert sorted(labels.tolist()) == list(range(50)) and labels.tolist() != list(range(50))
    plain = DeviceLoader(images, 16)
    assert [len(y) for _, y in plain] == [16, 16, 16, 2] and len(plain) == 4
    assert torch.cat([y for _, y in plain]).tolist() == list(range(50))
    torch.testing.assert_close(torch.cat([x for x, _ in plain]), Normalize(MEAN, STD)(images.images))
    assert [len(y) for _, y in DeviceLoader(images, 16, drop_last=True)] == [16, 16, 16]


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_a_resumed_epoch_sees_the_batches_that_are_left(start: int) -> None:
    loader = DeviceLoader(random_images(50), 16, shuffle=True, augment=True, seed=1)
    loader.epoch = 2
    whole = batches(loader)
    loader.start = start
    assert same(batches(loader), whole[start:]) and len(loader) == 4


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_batches_of_one_process(world_size: int) -> None:
    images, options = random_images(50), {"shuffle": True, "augment": True, "seed": 4}
    whole = batches(DeviceLoader(images, 16, **options))
    ranks = [
        batches(DeviceLoader(images, 16, rank=rank, world_size=world_size, **options)) for rank in range(world_size)
    ]
    union = [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])) for parts in zip(*ranks, strict=True)]
    assert same(union, whole)
    for parts in zip(*ranks, strict=True):
        sizes = [len(y) for _, y in parts]
        assert max(sizes) - min(sizes) <= 1


def test_channels_last_and_bfloat16_change_no_value_but_rounding(device: torch.device) -> None:
    images = random_images(32)
    plain = DeviceLoader(images, 32, shuffle=True, augment=True, device=device)
    other = DeviceLoader(
        images, 32, shuffle=True, augment=True, device=device, dtype=torch.bfloat16, channels_last=True
    )
    ((x, _),), ((u, _),) = plain, other
    assert u.is_contiguous(memory_format=torch.channels_last) and u.dtype == torch.bfloat16
    assert torch.equal(x.to(torch.bfloat16), u)


@pytest.mark.parametrize("flip", [True, False])
def test_no_flip_and_no_crop_when_switched_off(flip: bool) -> None:
    images = random_images(64)
    ((x, _),) = DeviceLoader(images, 64, augment=True, padding=0, flip=flip)
    plain = Normalize(MEAN, STD)(images.images)
    mirrored = (x == plain.flip(3)).flatten(1).all(1)
    assert torch.equal(x[~mirrored], plain[~mirrored])
    assert mirrored.any() == flip


def test_iterating_waits_for_no_device(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA can tell whether the host waits")
    loader = DeviceLoader(random_images(64), 16, shuffle=True, augment=True, device=device, channels_last=True)
    batches(loader)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in loader:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, r"rank=2 must lie in \[0, 1\]"),
        ({"batch_size": 3, "world_size": 4}, "at least 4"),
        ({"padding": -1}, "padding=-1"),
        ({"batch_size": 51, "drop_last": True}, "no batch of batch_size=51"),
        ({"seed": -1}, r"seed=-1 must lie in \[0, 4294967295\]"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
    ],
)
def test_wrong_arguments_of_the_loader_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeviceLoader(random_images(50), **{"batch_size": 16, **arguments})


# ------------------------------------------------------------------------------------------------------------ ImageNet


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three classes of training and validation images of different sizes, one of them grey."""
    for split, number in (("train", 7), ("val", 3)):
        for c in range(3):
            folder = tmp_path / "imagenet" / split / f"n{c}"
            folder.mkdir(parents=True)
            for i in range(number):
                noise = np.random.randint(0, 256, (40 + 3 * i, 60 - 2 * i, 3), dtype=np.uint8)
                image = Image.fromarray(noise) if i else Image.fromarray(noise).convert("L")
                image.save(folder / f"{i}.JPEG")
    return tmp_path


def test_imagenet_batches_are_normalised_crops(photographs: Path, device: torch.device) -> None:
    folder = data.imagenet("val", photographs)
    loader = ImageNetLoader(folder, 4, size=28, workers=0, device=device)
    x, y = (torch.cat(parts).cpu() for parts in zip(*loader, strict=True))
    assert len(loader) == 3 and y.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    transform = v2.Compose(
        [
            v2.Resize(32),
            v2.CenterCrop(28),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD),
        ]
    )
    expected = torch.stack([transform(tvf.pil_to_tensor(folder[i][0])) for i in range(9)])
    torch.testing.assert_close(x, expected)


def test_imagenet_is_looked_for_in_its_own_folder_first(photographs: Path) -> None:
    inner, sample = photographs / "imagenet", photographs / "imagenet-sample-160"
    for other in (photographs, sample):
        shutil.copytree(inner, other, dirs_exist_ok=True)
        assert data.imagenet("val", photographs).root == inner / "val"
    shutil.rmtree(inner)
    assert data.imagenet("val", photographs).root == sample / "val"


def test_imagenet_batches_depend_on_seed_and_epoch_not_on_workers_or_start(photographs: Path) -> None:
    folder = data.imagenet("train", photographs)

    def loader(epoch: int = 1, start: int = 0, **options: int) -> list:
        made = ImageNetLoader(folder, 4, train=True, size=16, **{"workers": 0, "seed": 7, **options})
        made.epoch, made.start = epoch, start
        return batches(made)

    state = torch.random.get_rng_state()
    whole = loader()
    assert len(whole) == 5 and all(x.shape == (4, 3, 16, 16) for x, _ in whole)
    assert same(loader(workers=2), whole)
    assert same(loader(start=2), whole[2:])
    assert not same(loader(epoch=2), whole) and not same(loader(seed=8), whole)
    assert same(loader(seed=np.int64(8)), loader(seed=8))
    assert torch.equal(torch.random.get_rng_state(), state)  # the global stream is left alone
    ranks = [loader(rank=rank, world_size=2) for rank in (0, 1)]
    assert same(loader(rank=1, world_size=2, start=2), ranks[1][2:])
    for (x, y), *parts in zip(whole, *ranks, strict=True):
        assert sorted(y.tolist()) == sorted(torch.cat([v for _, v in parts]).tolist())
        seen = torch.cat([u for u, _ in parts])
        assert all((seen == image).flatten(1).all(1).any() for image in x)


def test_the_crop_of_an_image_is_another_in_each_epoch_and_for_each_image() -> None:
    image = random_images(1, size=40).images[0]
    crops = [
        _Crop(16, True, seed, epoch)(image, index).numpy().tobytes()
        for seed, epoch, index in itertools.product((7, 8), (1, 2), (3, 4))
    ]
    assert len(set(crops)) == 8 and crops[0] == _Crop(16, True, 7, 1)(image, 3).numpy().tobytes()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_trains_on_whole_batches_alone(photographs: Path, rank: int) -> None:
    """Of 21 images each of two ranks sees ten: none twice, and as many batches as the loader says."""
    options = {"train": True, "size": 16, "workers": 0, "rank": rank, "world_size": 2}
    loader = ImageNetLoader(data.imagenet("train", photographs), 2, **options)
    assert len(list(loader)) == len(loader) == 10


def test_imagenet_evaluation_counts_every_image_once_whatever_the_ranks(photographs: Path) -> None:
    folder = data.imagenet("val", photographs)
    ranks = [ImageNetLoader(folder, 4, size=16, workers=0, rank=rank, world_size=2) for rank in (0, 1)]
    labels = [torch.cat([y for _, y in loader]) for loader in ranks]
    assert [len(y) for y in labels] == [5, 4] and [len(loader) for loader in ranks] == [3, 2]
    assert sorted(torch.cat(labels).tolist()) == [0] * 3 + [1] * 3 + [2] * 3


def test_broken_photographs_and_missing_classes_are_named(photographs: Path) -> None:
    folder = photographs / "imagenet"
    broken = folder / "val" / "n1" / "1.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"n1/1\.JPEG is not an image or is damaged"):
        list(ImageNetLoader(data.imagenet("val", photographs), 9, size=16, workers=0))
    shutil.rmtree(folder / "val" / "n2")
    with pytest.raises(ValueError, match="only one has n2"):
        data.imagenet("train", photographs)
    (folder / "val" / "n2").mkdir()
    with pytest.raises(FileNotFoundError, match="n2"):
        data.imagenet("val", photographs)


def test_links_to_folders_inside_a_class_are_not_followed_and_said(photographs: Path, tiny: Path) -> None:
    """They may lead back, without end, or count images twice; a class folder itself may be a link."""
    train = photographs / "imagenet" / "train"
    names = [path for path, _ in data.imagenet("train", photographs).samples]
    (train / "n0" / "again").symlink_to(train / "n0", target_is_directory=True)
    (train / "n1" / "up").symlink_to(train, target_is_directory=True)
    (train / "n2").rename(photographs / "elsewhere")
    (train / "n2").symlink_to(photographs / "elsewhere", target_is_directory=True)
    with pytest.warns(UserWarning, match="is a link to a folder and was not followed") as said:
        folder = data.imagenet("train", photographs)
    assert [path for path, _ in folder.samples] == names and folder.targets == [0] * 7 + [1] * 7 + [2] * 7
    assert sorted(str(w.message).split()[0] for w in said) == [str(train / "n0" / "again"), str(train / "n1" / "up")]
    val = tiny / "tiny-imagenet-200" / "val" / "n01"
    (val / "loop").symlink_to(val, target_is_directory=True)
    with pytest.warns(UserWarning, match="loop is a link"):
        assert len(data.tiny_imagenet("val", tiny)) == 100


BROKEN = {  # file → what is said of it
    "empty": (b"", "is not an image or is damaged"),
    "PPM without an end": (b"P6\n40 40", "is not an image or is damaged"),
    "PPM of impossible depth": (b"P6\n40 40\n70000\n" + bytes(4800), "is not an image or is damaged"),
    "TIFF that points nowhere": (b"II*\x00\xff\xff\xff\x7f", "is not an image or is damaged"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_files_that_break_decoders_are_named(content: bytes, message: str, photographs: Path) -> None:
    (photographs / "imagenet" / "val" / "n1" / "1.JPEG").write_bytes(content)
    with pytest.raises(ValueError, match=rf"n1/1\.JPEG {message}"):
        list(ImageNetLoader(data.imagenet("val", photographs), 9, size=16, workers=0))


@pytest.mark.parametrize("limit", [1000, 2500])  # of 2,400 to 2,576 pixels: all beyond twice it, or one beyond it
def test_images_beyond_pillows_limit_are_refused(
    limit: int, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data.imagenet("val", photographs)
    loader = ImageNetLoader(folder, 9, size=16, workers=0)
    (x, _), *_ = loader
    assert len(x) == 9
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"\.JPEG has too many pixels .* PIL\.Image\.MAX_IMAGE_PIXELS"):
        list(loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5, "world_size": 2}, "multiple of world_size=2"),
        ({"batch_size": 22, "train": True}, "not one batch"),
        ({"seed": -1}, r"seed=-1 must lie in \[0, 4294967295\]"),
    ],
)
def test_wrong_arguments_of_the_imagenet_loader_are_refused(arguments: dict, message: str, photographs: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ImageNetLoader(data.imagenet("train", photographs), **{"batch_size": 4, **arguments})


def test_the_real_imagenet_sample(data_root: Path, device: torch.device) -> None:
    if not (data_root / "imagenet-sample-160").is_dir():
        pytest.skip("image data: no imagenet-sample-160 there")
    folder = data.imagenet("val", data_root / "imagenet-sample-160")
    assert len(folder) == 1000 and len(folder.classes) == 1000
    loader = ImageNetLoader(folder, 100, size=128, workers=2, device=device)
    loader.start = 8
    x, y = (torch.cat(parts).cpu() for parts in zip(*loader, strict=True))
    assert x.shape == (200, 3, 128, 128) and y.tolist() == list(range(800, 1000))
    assert x.mean().abs() < 0.3 and 0.8 < x.std() < 1.3
