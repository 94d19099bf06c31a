"""A place or an object that a user points at, in pixels of a resized image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.errors import AttentionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Region:
    """Pixels of a resized image; the mask spans their bounding box alone.

    Attributes
    ----------
    top, left : int
        Where the bounding box begins.
    mask : ndarray of bool, shape (h, w)
        Which pixels of the box belong.
    """

    top: int
    left: int
    mask: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right; the last two are exclusive."""
        height, width = self.mask.shape
        return self.top, self.left, self.top + height, self.left + width

    @property
    def pixels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of all pixels."""
        rows, columns = self.mask.nonzero()
        return rows + self.top, columns + self.left


def locate(
    region: ArrayLike, *, shape: tuple[int, int], resized: tuple[int, int]
) -> Region:
    """Find the pixels of a resized image that a region of the user's image covers.

    Parameters
    ----------
    region : array_like
        A mask (H, W) of bool, or a point (y, x), which means the pixel it lies in;
        centres of pixels have integer coordinates.
    shape : tuple of int
        Height and width of the user's image.
    resized : tuple of int
        Height and width of the resized image; the edges of both coincide.

    Returns
    -------
    Region
        Pixels covered at least half as much as the one that is covered most, so a
        region thinner than a pixel is not lost.

    Raises
    ------
    AttentionError
        If the region is neither, holds no pixel, or lies outside the image.
    """
    area = _read(np.asarray(region), shape)
    covered = area.mask.astype(np.float32)
    starts = []
    for axis, start in enumerate((area.top, area.left)):
        factor = shape[axis] / resized[axis]
        first, covered = _binned(covered, start, factor, resized[axis])
        starts.append(first)
        covered = covered.T  # the other axis comes first next; then as it was
    return _trimmed(covered >= covered.max() / 2, *starts)


def _read(region: NDArray[Any], shape: tuple[int, int]) -> Region:
    """Check a region, in pixels of the user's image."""
    height, width = shape
    if region.ndim == 1 and len(region) == 2 and region.dtype.kind in "iuf":
        if not np.isfinite(region).all():
            raise AttentionError(
                f"The point {tuple(region.tolist())} is nowhere; expected finite "
                "numbers (y, x): click a place on the image."
            )
        y, x = (int(v) for v in np.floor(region + 0.5))
        if not (0 <= y < height and 0 <= x < width):
            raise AttentionError(
                f"The point {tuple(region.tolist())} lies outside the image of "
                f"{height}×{width} pixels; expected a place (y, x) on it: click there."
            )
        return Region(y, x, np.ones((1, 1), dtype=bool))
    if region.dtype != bool or region.shape != shape:
        raise AttentionError(
            f"The region is an array of shape {region.shape} and type {region.dtype}; "
            f"expected a mask of type bool and shape {shape}, as the image has, or a "
            "point (y, x): give one of these."
        )
    if not region.any():
        raise AttentionError(
            "The region is empty; expected at least one pixel in it: choose an object "
            "or a place on the image."
        )
    return _trimmed(region, 0, 0)


def _trimmed(mask: NDArray[np.bool_], top: int, left: int) -> Region:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(top + int(rows[0]), left + int(columns[0]), inner)


def _binned(
    values: NDArray[np.float32], start: int, factor: float, length: int
) -> tuple[int, NDArray[np.float32]]:
    """Average pixels along the first axis in bins ``factor`` wide; tell the first."""
    stop = start + len(values)
    first = int(start / factor)
    last = min(length, max(first + 1, int(np.ceil(stop / factor))))
    edges = (np.arange(first, last + 1) * factor - start).clip(0, len(values))
    sums = np.zeros((len(values) + 1, values.shape[1]), dtype=np.float32)
    np.cumsum(values, axis=0, out=sums[1:])
    whole = np.minimum(edges.astype(np.int64), len(values) - 1)
    rest = (edges - whole).astype(np.float32)
    upto = sums[whole] + rest[:, None] * values[whole]
    means = np.diff(upto, axis=0) / factor
    return first, means.astype(np.float32)
