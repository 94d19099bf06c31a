"""Smaller copies of what a block holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def nearest(labels: NDArray[np.integer], factor: int) -> NDArray[np.integer]:
    """Shrink labels (..., h, w): of every factor × factor pixels, the middle one.

    Where the last are fewer, the nearest of these.
    """
    rows, columns = (
        np.minimum(np.arange(factor // 2, n + factor // 2, factor), n - 1)
        for n in labels.shape[-2:]
    )
    shrunk: NDArray[np.integer] = labels[..., rows, :][..., columns]
    return shrunk


def mean(values: NDArray[np.floating], factor: int) -> NDArray[np.float32]:
    """Shrink values (..., h, w) to the means of factor × factor pixels.

    Where the last are fewer, the mean of these.
    """
    shrunk = np.asarray(values, np.float32)
    for axis in (-2, -1):
        length = shrunk.shape[axis]
        starts = np.arange(0, length, factor)
        counts = np.minimum(factor, length - starts).astype(np.float32)
        sums = np.add.reduceat(shrunk, starts, axis=axis)
        shrunk = sums / (counts[:, None] if axis == -2 else counts)
    return shrunk
