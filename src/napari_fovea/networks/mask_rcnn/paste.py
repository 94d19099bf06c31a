"""From detections to maps of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.networks.mask_rcnn.targets import Detections

_VISIBLE = 0.5  # an object of which less is seen is a duplicate's rim


def paste(
    detections: Detections, shape: tuple[int, int], threshold: float = 0.5
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Lay the masks of detections over the image.

    Parameters
    ----------
    detections : Detections
        What the network found.
    shape : tuple of int
        (H, W) of the image.
    threshold : float
        Mask probability from which a pixel belongs to an object.

    Returns
    -------
    instances : array of int32, shape (H, W)
        i + 1 where detection i is seen, 0 for background. Where two overlap, the
        one of higher score is seen; one of which less than half remains is left out.
    probabilities : array of float32, shape (K, H, W)
        Of each class the largest score × mask probability, of background what the
        surest class leaves; scaled to sum to 1.
    """
    height, width = shape
    instances = np.zeros(shape, dtype=np.int32)
    probabilities = np.zeros((detections.classes, height, width), dtype=np.float32)
    boxes = detections.boxes.float().cpu().numpy()
    scores = detections.scores.float().cpu().numpy()
    labels = detections.labels.cpu().numpy()
    masks = detections.masks.float().cpu().numpy()
    for i in np.argsort(-scores, kind="stable"):
        x0, y0, x1, y1 = boxes[i]
        rows, down = _weights(y0, y1, height, masks.shape[1])
        columns, across = _weights(x0, x1, width, masks.shape[2])
        probability = down @ masks[i] @ across.T  # (h, w)
        region = probabilities[labels[i], rows, columns]
        np.maximum(region, scores[i] * probability, out=region)
        inside = probability >= threshold
        seen = inside & (instances[rows, columns] == 0)
        if seen.any() and seen.sum() >= _VISIBLE * inside.sum():
            instances[rows, columns][seen] = i + 1
    probabilities[0] = 1 - probabilities[1:].max(axis=0)
    probabilities /= probabilities.sum(axis=0)
    return instances, probabilities


def _weights(
    start: float, stop: float, length: int, side: int
) -> tuple[slice, NDArray[np.float32]]:
    """Pixels whose centres lie in a box, and how they blend a mask's bins."""
    first = int(np.clip(np.ceil(start - 0.5), 0, length))
    last = int(np.clip(np.ceil(stop - 0.5), first, length))
    centres = np.arange(first, last, dtype=np.float32) + 0.5
    where = (centres - start) / max(stop - start, 1e-6) * side - 0.5
    where = where.clip(0, side - 1)
    floor = np.minimum(where.astype(np.int64), side - 2)
    weights = np.zeros((len(centres), side), dtype=np.float32)
    row = np.arange(len(centres))
    weights[row, floor] = floor + 1 - where
    weights[row, floor + 1] = where - floor
    return slice(first, last), weights
