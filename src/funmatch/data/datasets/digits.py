"""Scikit-learn's handwritten digits: 1797 real images of 8x8 pixels, shipped with the library.

Source: Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits, test set.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from funmatch.data.sources import ArraySource, Source, Splits

# Seed of the split, not of a run: every run uses the same images.
_SPLIT_SEED = 0
_VAL = _TEST = 360


def digits(*, images_per_class: int | None = None) -> Splits:
    """Splits of the digits, fixed and stratified by class: 1077 train, 360 val, 360 test.

    Args:
        images_per_class: number of training images per class; None for all.

    Returns:
        Grey uint8 images [1, 8, 8] with labels 0 to 9.

    Raises:
        ValueError: a class has fewer training images.
    """
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = data.target.astype(np.int64)

    def split(indices: NDArray[np.int64], held_out: int) -> list[NDArray[np.int64]]:
        return train_test_split(
            indices, test_size=held_out, stratify=labels[indices], random_state=_SPLIT_SEED
        )

    rest, test = split(np.arange(len(labels)), _TEST)
    train, val = split(rest, _VAL)
    if images_per_class is not None:
        fewest = int(np.bincount(labels[train]).min())
        if not 1 <= images_per_class <= fewest:
            raise ValueError(
                f"data.images_per_class must lie between 1 and {fewest}, got {images_per_class}"
            )
        train = np.concatenate(
            [train[labels[train] == label][:images_per_class] for label in range(10)]
        )

    def source(indices: NDArray[np.int64]) -> ArraySource:
        return ArraySource(
            torch.from_numpy(images[indices]),
            torch.from_numpy(labels[indices]),
            [str(digit) for digit in range(10)],
        )

    return Splits(source(train), source(val), source(test))


def ink(*, images_per_class: int | None = None) -> Splits:
    """The digits for regression: the label is the amount of ink of an image, not its class.

    Args:
        images_per_class: keep only so many training images of each class; None for all.

    Returns:
        The images and splits of `digits`. A label is the mean grey level of an image, float32, in
        standard deviations from the mean over all 1077 training images.

    Raises:
        ValueError: there are not so many images of a class.
    """
    everything = _ink(digits().train)
    mean, deviation = everything.mean(), everything.std()

    def measured(source: Source) -> ArraySource:
        rows = np.arange(len(source))
        return ArraySource(
            torch.stack(list(source.images(rows))), (_ink(source) - mean) / deviation, ()
        )

    splits = digits(images_per_class=images_per_class)
    return Splits(measured(splits.train), measured(splits.val), measured(splits.test))


def _ink(source: Source) -> Tensor:
    images = torch.stack(list(source.images(np.arange(len(source)))))
    return images.float().mean(dim=(1, 2, 3))
