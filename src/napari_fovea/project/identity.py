"""Which image was painted on, known again when it is opened again."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

VALUES = 2**20
"""Values of an image that are looked at, at most."""

_PLANES = 16  # of a stack: a lazy one reads each of them whole


@dataclass(frozen=True)
class ImageId:
    """What tells one image from another.

    Attributes
    ----------
    name : str
        Of its layer or file.
    shape : tuple of int
        Of the array.
    dtype : str
        Of its values, such as ``"uint8"``.
    digest : str
        Hash of shape, type and a sample of the values.
    path : str or None
        Where it was read from.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    digest: str
    path: str | None = None


def identify(
    data: Any, name: str, path: str | os.PathLike[str] | None = None
) -> ImageId:
    """Tell an image by its values.

    Parameters
    ----------
    data : array
        The image, numpy or lazy; of large ones a regular sample is read.
    name : str
        Of its layer or file.
    path : path-like, optional
        Where it was read from.
    """
    shape = tuple(int(n) for n in data.shape)
    dtype = np.dtype(data.dtype)
    sample = np.asarray(data[tuple(slice(None, None, s) for s in _steps(shape))])
    # Readers differ in the order of bytes; the image is the same.
    sample = np.ascontiguousarray(sample, dtype.newbyteorder("<"))
    digest = sha256(repr((shape, dtype.name)).encode())
    digest.update(sample.reshape(-1).view(np.uint8).data)
    where = None if path is None else plain(os.fsdecode(path))
    return ImageId(plain(name), shape, dtype.name, digest.hexdigest(), where)


def same(a: ImageId, b: ImageId) -> bool:
    """Tell whether two are one image, whatever it is called and wherever it lies."""
    return (a.digest, a.shape, a.dtype) == (b.digest, b.shape, b.dtype)


def plain(text: str) -> str:
    """Replace what names of files may hold and JSON may not."""
    return text.encode("utf-8", "replace").decode()


def _steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a sample: few planes of a stack, and these evenly."""
    steps = [1] * len(shape)
    if math.prod(shape) <= VALUES:
        return tuple(steps)
    plane = 3 if len(shape) > 2 and shape[-1] in (3, 4) else 2
    _thin(shape, steps, range(max(0, len(shape) - plane)), _PLANES)
    _thin(shape, steps, range(len(shape)), VALUES)
    return tuple(steps)


def _thin(shape: tuple[int, ...], steps: list[int], axes: range, most: int) -> None:
    def taken(axis: int) -> int:
        return -(-shape[axis] // steps[axis])

    while math.prod(map(taken, axes)) > most:
        steps[max(axes, key=taken)] *= 2
