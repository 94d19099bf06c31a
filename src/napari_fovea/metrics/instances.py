"""How well objects agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from skimage.segmentation import relabel_sequential

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DSB_THRESHOLDS = tuple(np.arange(10, 20) * 0.05)
"""IoU thresholds 0.50, 0.55, …, 0.95."""


def iou_matrix(prediction: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every found object with every true one.

    Parameters
    ----------
    prediction, truth : array_like of int, same shape
        0 is background, every other value one object.

    Returns
    -------
    ndarray, shape (found objects, true objects)
        In order of increasing label.
    """
    found = relabel_sequential(np.asarray(prediction).astype(np.int64))[0].ravel()
    true = relabel_sequential(np.asarray(truth).astype(np.int64))[0].ravel()
    n, m = int(found.max(initial=0)) + 1, int(true.max(initial=0)) + 1
    overlap = np.bincount(found * m + true, minlength=n * m).reshape(n, m)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0) - overlap
    return np.asarray((overlap / np.maximum(union, 1))[1:, 1:], dtype=np.float64)


def average_precision(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    thresholds: tuple[float, ...] = DSB_THRESHOLDS,
) -> float:
    """Mean over IoU thresholds of TP / (TP + FP + FN); 1 if both are empty.

    An object is found where its IoU exceeds the threshold. From 0.5 on, no
    object can then be matched twice.
    """
    iou = iou_matrix(prediction, truth)
    found, true = iou.shape
    if not found and not true:
        return 1.0
    hits = np.array([(iou > t).sum() for t in thresholds])
    return float((hits / (found + true - hits)).mean())
