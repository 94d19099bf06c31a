"""From a map of probabilities to single objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import find_boundaries, relabel_sequential, watershed

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Chosen on the validation nuclei by AP; see benchmarks/separation.py.
_PROMINENCE = 0.2
_SMOOTHING = 0.08
_LEAST_AREA = 0.09
_STEPS = 1000
_OF_SHAPE = 0.12
"""Prominence of what is known from the shape of a region alone."""


def separate(
    labels: NDArray[np.integer],
    *,
    depth: NDArray[np.floating] | None = None,
    diameter: float | None = None,
) -> NDArray[np.int32]:
    """Tell touching objects apart by a watershed.

    The landscape is the depth inside objects; every hill that rises far enough above
    the saddle to a higher one is an object. Where the network does not tell depths,
    the distance to the edge of the region is taken for it.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W)
        Class of each pixel; 0 is background.
    depth : ndarray, shape (H, W), optional
        How deep inside an object each pixel lies, from 0 to 1.
    diameter : float, optional
        Typical diameter of the objects in pixels. It tells how much to smooth and
        which objects are too small to be one; without it nothing is dropped.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Objects numbered from 1; each holds pixels of one class only.
    """
    objects = np.zeros(labels.shape, dtype=np.int32)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        if depth is not None:
            found = _hills(mask, depth, _PROMINENCE, diameter)
        elif diameter is not None:
            found = _hills(mask, _distance(mask) / (diameter / 2), _OF_SHAPE, diameter)
        else:
            found = label(mask, connectivity=1)
        objects += np.where(found, found + objects.max(), 0).astype(np.int32)
    if diameter is not None:
        areas = np.bincount(objects.ravel())
        small = areas < _LEAST_AREA * np.pi * (diameter / 2) ** 2
        small[0] = False
        objects[small[objects]] = 0
    return np.asarray(relabel_sequential(objects)[0], dtype=np.int32)


def depth_inside(instances: NDArray[np.integer]) -> NDArray[np.floating]:
    r"""Tell how deep inside its object every pixel lies.

    .. math:: t(x) = \delta(x) / \max_{y \in O(x)} \delta(y)

    with the distance δ from the edge of the object O, where background or another
    object begins; the image's edge is none.

    Parameters
    ----------
    instances : ndarray of int, shape (H, W)
        0 is background, every other value one object.

    Returns
    -------
    ndarray of float64, shape (H, W)
        Above 0, and up to 1 at the core of each object; 0 in the background.
    """
    known = relabel_sequential(instances)[0]
    delta = distance_inside(known)
    deepest = ndimage.maximum(delta, known, np.arange(known.max() + 1))
    t: NDArray[np.floating] = delta / np.asarray(deepest)[known]
    return np.where(known > 0, t, 0.0)


def distance_inside(instances: NDArray[np.integer]) -> NDArray[np.floating]:
    """Distance δ of every pixel from the edge of its object; see `depth_inside`.

    Pixels at the edge have half a pixel; so has the background.
    """
    edge = find_boundaries(instances, connectivity=1, mode="inner")
    within = (instances > 0) & ~edge
    delta: NDArray[np.floating] = np.full(instances.shape, 0.5)
    if not within.all():  # else there is no edge, and all is core
        delta += ndimage.distance_transform_edt(within)
    return delta


def _hills(
    mask: NDArray[np.bool_],
    landscape: NDArray[np.floating],
    prominence: float,
    diameter: float | None,
) -> NDArray[np.integer]:
    """Divide a mask among the hills of a landscape that rise above their saddles."""
    heights = landscape
    if diameter is not None:
        heights = ndimage.gaussian_filter(heights, _SMOOTHING * diameter)
    # Whole numbers, so that hills of one height are told alike everywhere.
    # One step above what is outside, so that what is flat is a hill too.
    steps = np.where(mask, np.rint(heights * _STEPS) + 1, 0).astype(np.int32)
    hills = watershed(-steps, mask=mask)
    return _joined(hills, steps, least=round(prominence * _STEPS))


def _joined(
    hills: NDArray[np.integer], heights: NDArray[np.integer], *, least: int
) -> NDArray[np.integer]:
    """Join hills that do not rise so far above the saddle to a higher one.

    As many are left as maxima of the landscape after `reconstruction` from what it is
    lowered by, which would take several times as long.
    """
    count = int(hills.max(initial=0))
    tops = np.zeros(count + 1, dtype=np.int64)
    np.maximum.at(tops, hills.ravel(), heights.ravel())
    top = tops.tolist()
    owner = list(range(count + 1))

    def root(hill: int) -> int:
        while owner[hill] != hill:
            owner[hill] = hill = owner[owner[hill]]
        return hill

    for saddle, one, other in _saddles(hills, heights):
        one, other = root(one), root(other)
        if one == other:
            continue
        if top[one] < top[other]:
            one, other = other, one
        if top[other] - saddle < least:
            owner[other] = one
    joined: NDArray[np.integer] = np.array([root(hill) for hill in owner])[hills]
    return joined


def _saddles(
    hills: NDArray[np.integer], heights: NDArray[np.integer]
) -> list[tuple[int, int, int]]:
    """Height of the pass between every two neighbours, the highest first."""
    found = []
    for axis in (0, 1):
        first, second = _beside(hills, axis)
        meet = (first != second) & (first > 0) & (second > 0)
        low = np.minimum(*_beside(heights, axis))
        found.append(np.stack([low[meet], first[meet], second[meet]]))
    low, one, other = np.concatenate(found, axis=1).astype(np.int64)
    one, other = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((other, one, -low))
    low, one, other = low[order], one[order], other[order]
    # Of each pair the first is its highest.
    first = np.sort(np.unique(np.stack([one, other]), axis=1, return_index=True)[1])
    low, one, other = low[first], one[first], other[first]
    return list(zip(low.tolist(), one.tolist(), other.tolist(), strict=True))


def _beside(
    plane: NDArray[np.integer], axis: int
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Give pixels and their neighbours along an axis."""
    if axis:
        return plane[:, :-1], plane[:, 1:]
    return plane[:-1], plane[1:]


def _distance(mask: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Distance to the edge of a mask; the image's own edge is no edge of an object."""
    padded = np.pad(mask, 1, mode="edge")
    distance: NDArray[np.floating] = ndimage.distance_transform_edt(padded)
    return distance[1:-1, 1:-1]
