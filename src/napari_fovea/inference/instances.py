"""From a map of probabilities to single objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.segmentation import relabel_sequential, watershed

if TYPE_CHECKING:
    from numpy.typing import NDArray


def separate(
    labels: NDArray[np.integer],
    *,
    border: NDArray[np.floating] | None = None,
    diameter: float | None = None,
    least_area: float = 0.08,
    least_distance: float = 0.3,
    smoothing: float = 0.06,
) -> NDArray[np.int32]:
    """Tell touching objects apart by a watershed from their centres.

    The depth of a pixel is its distance from the edge of its class, where
    likely borders between objects count as edges too.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W)
        Class of each pixel; 0 is background.
    border : ndarray, shape (H, W), optional
        Probability that a pixel is border between touching objects.
    diameter : float, optional
        Typical diameter of the objects in pixels; without it every connected
        region is one object.
    least_area : float
        Objects smaller than this share of a disc of the diameter are dropped.
    least_distance : float
        Least distance of two centres, in diameters.
    smoothing : float
        Width of the Gaussian that smooths depths, in diameters.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Objects numbered from 1; each holds pixels of one class only.
    """
    objects = np.zeros(labels.shape, dtype=np.int32)
    for value in np.unique(labels[labels > 0]):
        found = _split(
            labels == value,
            border=border,
            diameter=diameter,
            least_distance=least_distance,
            smoothing=smoothing,
        )
        objects += np.where(found, found + objects.max(), 0).astype(np.int32)
    if diameter is not None:
        areas = np.bincount(objects.ravel())
        small = areas < least_area * np.pi * (diameter / 2) ** 2
        small[0] = False
        objects[small[objects]] = 0
    return np.asarray(relabel_sequential(objects)[0], dtype=np.int32)


def _split(
    mask: NDArray[np.bool_],
    *,
    border: NDArray[np.floating] | None,
    diameter: float | None,
    least_distance: float,
    smoothing: float,
) -> NDArray[np.int32]:
    parts: NDArray[np.int32] = label(mask, connectivity=1).astype(np.int32)
    if diameter is None:
        return parts
    core = mask if border is None else mask & (border < 0.5)
    # The image's own edge is no edge of an object.
    depth = ndimage.distance_transform_edt(np.pad(core, 1, mode="edge"))[1:-1, 1:-1]
    depth = ndimage.gaussian_filter(depth, smoothing * diameter) * mask
    if border is not None:
        depth = depth * (1 - np.clip(border, 0, 1))
    centres = peak_local_max(
        depth,
        min_distance=max(1, round(least_distance * diameter / 2)),
        labels=parts,
        exclude_border=False,
    )
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    return np.asarray(watershed(-depth, markers, mask=mask), dtype=np.int32)
