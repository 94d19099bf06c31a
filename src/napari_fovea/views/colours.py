"""Colours of classes and of doubt, the same in the viewer and in animations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOUBT = (1.0, 0.85, 0.1)
"""Colour of what is uncertain, red, green and blue in [0, 1]."""

_BACKGROUND = (0.25, 0.45, 0.85)
_CLASSES = (
    (0.95, 0.25, 0.55),
    (0.10, 0.75, 0.60),
    (0.60, 0.35, 0.90),
    (0.95, 0.55, 0.15),
    (0.35, 0.80, 0.95),
    (0.60, 0.80, 0.20),
    (0.90, 0.30, 0.25),
    (0.70, 0.60, 0.45),
)
_SURE_EDGE = (0.45, 0.6, 0.9)  # to be seen on dark ground as well as on bright
_SURE, _UNSURE = 0.5, 0.35  # opacity of a class, and of doubt, in the map
_LEVELS = 256


def class_colours(classes: int) -> NDArray[np.float64]:
    """Colours (K, 3) in [0, 1] of classes, the first being background."""
    rest = [_CLASSES[i % len(_CLASSES)] for i in range(classes - 1)]
    return np.array([_BACKGROUND, *rest])


def doubt(pmfs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy of pmfs (..., K) as a share of the most there can be, in [0, 1]."""
    p = np.asarray(pmfs, dtype=np.float64)
    surprise = p * np.log(np.where(p > 0, p, 1.0))
    return np.asarray((-surprise.sum(-1) / math.log(p.shape[-1])).clip(0, 1))


def cell_colours(
    pmfs: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Colours of the cells of a fixation.

    A cell is filled with the colour of its most probable class, the more so the
    surer it is, and has an outline in the colour of doubt, the more so the less
    sure it is.

    Parameters
    ----------
    pmfs : ndarray, shape (N, K)
        Class pmfs of the cells.

    Returns
    -------
    faces, edges : ndarray, shape (N, 4)
        Red, green, blue and opacity in [0, 1].
    """
    unsure = doubt(pmfs)[:, None]
    best = pmfs.argmax(-1)
    # Background is what most of an image is: a mere tint.
    sure = np.where(best == 0, 0.25, 0.65)[:, None]
    colours = class_colours(pmfs.shape[-1])[best]
    faces = np.concatenate([colours, sure * (1 - unsure)], axis=1)
    edges = np.array(_SURE_EDGE) * (1 - unsure) + np.array(DOUBT) * unsure
    return faces, np.concatenate([edges, 0.6 + 0.4 * unsure], axis=1)


def map_colours(probabilities: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Paint a map: classes where it is sure, a veil of doubt where it is not.

    Parameters
    ----------
    probabilities : ndarray, shape (K, h, w)
        Class probabilities; the first class is background and stays clear.

    Returns
    -------
    ndarray of uint8, shape (h, w, 4)
        Red, green, blue and opacity.
    """
    classes = len(probabilities)
    if classes == 2:  # one number says all: a table is fast
        levels = np.linspace(0, 1, _LEVELS)
        table = _blend(np.stack([1 - levels, levels], axis=-1))
        # Rounded to the nearer level, without a copy of the map for it.
        index = (probabilities[1] * (_LEVELS - 1) + 0.5).astype(np.uint8)
        return np.asarray(table[index])
    return _blend(np.moveaxis(np.asarray(probabilities), 0, -1))


def _blend(pmfs: NDArray[np.floating]) -> NDArray[np.uint8]:
    unsure = doubt(pmfs)[..., None]
    best = pmfs.argmax(-1)
    sure = np.where(best == 0, 0.0, _SURE)[..., None] * (1 - unsure)
    veil = _UNSURE * unsure
    opacity = sure + veil
    colours = class_colours(pmfs.shape[-1])[best]
    mixed = (sure * colours + veil * np.array(DOUBT)) / np.maximum(opacity, 1e-9)
    painted = np.concatenate([mixed, opacity], axis=-1)
    return np.asarray((painted * 255 + 0.5).astype(np.uint8))
