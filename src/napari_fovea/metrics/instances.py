"""How well objects agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from skimage.segmentation import relabel_sequential

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DSB_THRESHOLDS = tuple(np.arange(10, 20) * 0.05)
"""IoU thresholds 0.50, 0.55, …, 0.95."""


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Which found object is which true one.

    Parameters
    ----------
    pairs : ndarray of int, shape (n, 2)
        Labels of a found object and the true one it was matched with.
    ious : ndarray of float, shape (n,)
        Their intersection over union.
    found, true : int
        How many objects there are of each.
    """

    pairs: NDArray[np.int64]
    ious: NDArray[np.float64]
    found: int
    true: int

    @property
    def tp(self) -> int:
        """Objects matched."""
        return len(self.pairs)

    @property
    def fp(self) -> int:
        """Objects found that are not true."""
        return self.found - self.tp

    @property
    def fn(self) -> int:
        """True objects that were not found."""
        return self.true - self.tp

    @property
    def precision(self) -> float:
        """TP / (TP + FP), in [0, 1]; if nothing was found, 1 if nothing is true."""
        return self.tp / self.found if self.found else float(not self.true)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), in [0, 1]; if nothing is true, 1 if nothing was found."""
        return self.tp / self.true if self.true else float(not self.found)

    @property
    def f1(self) -> float:
        """2·TP / (2·TP + FP + FN), in [0, 1]; 1 if there are no objects at all."""
        objects = self.found + self.true
        return 2 * self.tp / objects if objects else 1.0


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

    Raises
    ------
    ImageError
        If shapes differ.
    """
    return _overlaps(prediction, truth)[0]


def match(
    prediction: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5
) -> Matching:
    """Match found objects with true ones, each at most once.

    A pair may match where its IoU exceeds the threshold. From 0.5 on there is but
    one way to do that. Below, as many pairs as possible are made, and of the ways to
    make so many, the one with the largest sum of IoUs is taken.

    Parameters
    ----------
    prediction, truth : array_like of int, same shape
        0 is background, every other value one object.
    threshold : float, in [0, 1)
        IoU to exceed.

    Raises
    ------
    ImageError
        If shapes differ.
    """
    return _match(*_overlaps(prediction, truth), threshold)


def average_precision(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    thresholds: tuple[float, ...] = DSB_THRESHOLDS,
) -> float:
    r"""Mean over IoU thresholds of TP / (TP + FP + FN); 1 if both are empty.

    .. math:: AP = \frac{1}{|T|} \sum_{t \in T} \frac{TP(t)}{TP(t) + FP(t) + FN(t)}

    Equation (5) of the fifth paper, for one image; the paper averages over images.

    Parameters
    ----------
    prediction, truth : array_like of int, same shape
        0 is background, every other value one object.
    thresholds : tuple of float, in [0, 1)
        T; objects are matched as `match` does it.

    Raises
    ------
    ImageError
        If shapes differ.
    """
    return float(np.mean(_precisions(iou_matrix(prediction, truth), thresholds)))


def instance_scores(prediction: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """All measures of objects in one go, each in [0, 1].

    Parameters
    ----------
    prediction, truth : array_like of int, same shape
        0 is background, every other value one object.

    Returns
    -------
    dict
        `ap`, the average precision over `DSB_THRESHOLDS`; `ap50` and `ap75`, that of
        a single threshold; `precision50`, `recall50` and `f1_50` at IoU 0.5.

    Raises
    ------
    ImageError
        If shapes differ.
    """
    overlaps = _overlaps(prediction, truth)
    iou = overlaps[0]
    half = _match(*overlaps, 0.5)
    return {
        "ap": float(np.mean(_precisions(iou, DSB_THRESHOLDS))),
        "ap50": _precisions(iou, (0.5,))[0],
        "ap75": _precisions(iou, (0.75,))[0],
        "precision50": half.precision,
        "recall50": half.recall,
        "f1_50": half.f1,
    }


def _overlaps(
    prediction: ArrayLike, truth: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """IoU (found, true), and the labels of its rows and columns."""
    shapes = np.shape(prediction), np.shape(truth)
    if shapes[0] != shapes[1]:
        raise ImageError(
            f"The prediction has shape {shapes[0]}, but the truth has {shapes[1]}."
        )
    found, found_ids = _sequential(prediction)
    true, true_ids = _sequential(truth)
    n, m = len(found_ids) + 1, len(true_ids) + 1
    overlap = np.bincount(found * m + true, minlength=n * m).reshape(n, m)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0) - overlap
    iou = np.asarray((overlap / np.maximum(union, 1))[1:, 1:], dtype=np.float64)
    return iou, found_ids, true_ids


def _sequential(labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Objects as 1 … n, flat, and the labels that they had."""
    image, _, old = relabel_sequential(np.asarray(labels).astype(np.int64))
    count = int(image.max(initial=0))
    return image.ravel(), np.asarray(old[np.arange(1, count + 1)], dtype=np.int64)


def _match(
    iou: NDArray[np.float64],
    found_ids: NDArray[np.int64],
    true_ids: NDArray[np.int64],
    threshold: float,
) -> Matching:
    rows, columns = _pairs(iou, threshold)
    return Matching(
        pairs=np.stack([found_ids[rows], true_ids[columns]], axis=1),
        ious=iou[rows, columns],
        found=len(found_ids),
        true=len(true_ids),
    )


def _pairs(
    iou: NDArray[np.float64], threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the objects matched."""
    close = iou > threshold
    if threshold >= 0.5:
        rows, columns = np.nonzero(close)
        return rows, columns
    from scipy.optimize import linear_sum_assignment  # slow to import, rarely used

    # One pair more outweighs any sum of IoUs.
    rows, columns = linear_sum_assignment(
        close * (min(iou.shape) + 1 + iou), maximize=True
    )
    kept = close[rows, columns]
    return rows[kept], columns[kept]


def _precisions(iou: NDArray[np.float64], thresholds: tuple[float, ...]) -> list[float]:
    """TP / (TP + FP + FN) at each threshold."""
    objects = sum(iou.shape)
    if not objects:
        return [1.0] * len(thresholds)
    hits = [len(_pairs(iou, threshold)[0]) for threshold in thresholds]
    return [n / (objects - n) for n in hits]
