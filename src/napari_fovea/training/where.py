"""Where a stroke would teach most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

REACH = 24
"""Pixels around what is painted in which a stroke would teach little more."""

_BRUSH = 3.0  # standard deviation in pixels of what a stroke covers


def most_uncertain(
    uncertainty: NDArray[np.floating],
    painted: NDArray[np.bool_],
    *,
    visited: Sequence[ArrayLike] = (),
    reach: float = REACH,
) -> tuple[int, int] | None:
    """Find the place where a model is least sure, away from what is painted.

    Parameters
    ----------
    uncertainty : ndarray, shape (H, W)
        Entropy of the class probabilities.
    painted : ndarray of bool, shape (H, W)
        Where something is painted.
    visited : sequence of (row, column)
        Places that were proposed before and are not to be proposed again.
    reach : float
        Least distance in pixels to what is painted or was visited.

    Returns
    -------
    tuple of int or None
        Row and column; None if there is no place left that is uncertain at all.
    """
    shown = ndimage.gaussian_filter(
        # Half of a stroke at the edge would fall outside.
        uncertainty.astype(np.float32),
        _BRUSH,
        mode="constant",
    )
    taken = painted.copy()
    for row, column in (np.asarray(place, dtype=int) for place in visited):
        if 0 <= row < taken.shape[0] and 0 <= column < taken.shape[1]:
            taken[row, column] = True
    if taken.any():
        shown[ndimage.distance_transform_edt(~taken) <= reach] = 0
    best = np.unravel_index(int(shown.argmax()), shown.shape)
    return (int(best[0]), int(best[1])) if shown[best] > 0 else None
