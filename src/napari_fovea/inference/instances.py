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

# Chosen on the validation nuclei by AP; see benchmarks/nuclei.py.
_CORE = 0.7
_LEAST_AREA = 0.08
_LEAST_DISTANCE = 0.35
_SMOOTHING = 0.12


def separate(
    labels: NDArray[np.integer],
    *,
    interior: NDArray[np.floating] | None = None,
    diameter: float | None = None,
) -> NDArray[np.int32]:
    """Tell touching objects apart by a watershed from their cores.

    Cores are where the interior is likely, if the network tells interior from
    border; else they are the places deepest inside a region.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W)
        Class of each pixel; 0 is background.
    interior : ndarray, shape (H, W), optional
        Probability that a pixel is inside an object and not its border.
    diameter : float, optional
        Typical diameter of the objects in pixels. It tells which depths are
        different centres and which objects are too small to be one; without it
        nothing is dropped.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Objects numbered from 1; each holds pixels of one class only.
    """
    objects = np.zeros(labels.shape, dtype=np.int32)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        if interior is not None:
            found = _split_by_cores(mask, interior)
        elif diameter is not None:
            found = _split_by_depth(mask, diameter)
        else:
            found = label(mask, connectivity=1)
        objects += np.where(found, found + objects.max(), 0).astype(np.int32)
    if diameter is not None:
        areas = np.bincount(objects.ravel())
        small = areas < _LEAST_AREA * np.pi * (diameter / 2) ** 2
        small[0] = False
        objects[small[objects]] = 0
    return np.asarray(relabel_sequential(objects)[0], dtype=np.int32)


def _split_by_cores(
    mask: NDArray[np.bool_], interior: NDArray[np.floating]
) -> NDArray[np.integer]:
    cores = label(mask & (interior > _CORE), connectivity=1)
    # Objects too small to have an interior are their own core.
    parts = label(mask, connectivity=1)
    with_core = np.zeros(parts.max() + 1, dtype=bool)
    with_core[np.unique(parts[cores > 0])] = True
    lone = mask & ~with_core[parts]
    markers = np.where(lone, parts + cores.max(), cores)
    return np.asarray(watershed(-interior, markers, mask=mask))


def _split_by_depth(mask: NDArray[np.bool_], diameter: float) -> NDArray[np.integer]:
    # The image's own edge is no edge of an object.
    padded = np.pad(mask, 1, mode="edge")
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    depth = ndimage.gaussian_filter(depth, _SMOOTHING * diameter) * mask
    centres = peak_local_max(
        depth,
        min_distance=max(1, round(_LEAST_DISTANCE * diameter)),
        labels=label(mask, connectivity=1),
        exclude_border=False,
    )
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    return np.asarray(watershed(-depth, markers, mask=mask))
