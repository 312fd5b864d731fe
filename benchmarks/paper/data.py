"""Fashion-MNIST in memory: a reader of IDX files, and batches in a seeded order."""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

NAME = "fashion-mnist"
PLACE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]

_TRAIN = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
_TEST = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
_UNSIGNED_BYTES = 0x08  # the IDX format's code of this dtype
_SIDE, _CLASSES = 28, 10


@dataclass(frozen=True)
class Images:
    """Images as float32 of shape (count, 1, 28, 28), and their classes as int64 (count,)."""

    pixels: torch.Tensor
    classes: torch.Tensor

    def first(self, count: int) -> "Images":
        """The first of them."""
        return Images(self.pixels[:count], self.classes[:count])

    def batches(self, size: int, count: int, seed: int) -> Iterator[Batch]:
        """As many batches, epoch after epoch in an order that only the seed decides."""
        generator = torch.Generator().manual_seed(seed)
        each_epoch = len(self.classes) // size
        for number in range(count):
            if number % each_epoch == 0:
                order = torch.randperm(len(self.classes), generator=generator)
            chosen = order[number % each_epoch * size :][:size]
            yield self.pixels[chosen], self.classes[chosen]


@dataclass(frozen=True)
class Dataset:
    """What a model is trained on and what it is tested on."""

    train: Images
    test: Images


def load(place: Path = PLACE) -> Dataset:
    """Read the dataset, its pixels scaled to mean 0 and variance 1 over the training images.

    Args:
        place: The folder of the four `.gz` files.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is not what it should be.
    """
    for name in (*_TRAIN, *_TEST):
        if not (place / name).is_file():
            raise FileNotFoundError(
                f"{place / name} does not exist. Fashion-MNIST comes with Debian and Ubuntu: "
                "apt install dataset-fashion-mnist; or pass the folder of a copy with --data"
            )
    (train, train_classes), (test, test_classes) = (
        (_images(place / images), _classes(place / classes)) for images, classes in (_TRAIN, _TEST)
    )
    mean, deviation = train.mean(), train.std()
    for pixels in (train, test):
        pixels.sub_(mean).div_(deviation)
    for pixels, classes in ((train, train_classes), (test, test_classes)):
        if len(pixels) != len(classes):
            raise ValueError(
                f"{place} has {len(pixels)} images for {len(classes)} classes; copy it again"
            )
    return Dataset(Images(train, train_classes), Images(test, test_classes))


def read_idx(path: Path) -> np.ndarray:
    """Read a compressed IDX file of unsigned bytes.

    Args:
        path: The `.gz` file.

    Returns:
        A uint8 array of the shape that the file states.

    Raises:
        ValueError: It is no such file, or its size is not what it states.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); copy it again") from None
    start = 4 + 4 * content[3] if len(content) > 3 else 0
    if content[:3] != bytes((0, 0, _UNSIGNED_BYTES)) or not 0 < start <= len(content):
        raise ValueError(
            f"{path} starts with {content[:4].hex(' ')!r}, an IDX file of unsigned bytes with "
            "'00 00 08', its number of dimensions and their sizes; copy it again"
        )
    shape = tuple(map(int, np.frombuffer(content[4:start], ">u4")))
    if math.prod(shape) != len(content) - start:
        raise ValueError(
            f"{path} states the shape {shape}, which {len(content) - start} bytes do not have; "
            "copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _images(path: Path) -> torch.Tensor:
    pixels = read_idx(path)
    if pixels.ndim != 3 or pixels.shape[1:] != (_SIDE, _SIDE) or not len(pixels):
        raise ValueError(f"{path} has shape {pixels.shape}, not (count, {_SIDE}, {_SIDE})")
    return torch.tensor(pixels, dtype=torch.float32).unsqueeze(1).div_(255)


def _classes(path: Path) -> torch.Tensor:
    classes = read_idx(path)
    if classes.ndim != 1 or classes.max(initial=0) >= _CLASSES:
        raise ValueError(f"{path} has shape {classes.shape}, not (count,), or more than 10 classes")
    return torch.tensor(classes, dtype=torch.int64)
