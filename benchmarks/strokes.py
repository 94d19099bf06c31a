"""Strokes as a user would paint them, drawn from the truth with a fixed seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from skimage.draw import line
from skimage.morphology import skeletonize

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRIES = 400


def simulated(
    objects: NDArray[np.integer],
    *,
    seed: int,
    each: int = 3,
    length: int = 24,
    background: int = 1,
    foreground: int = 2,
) -> NDArray[np.uint8]:
    """Paint skeletons of random objects and short random lines on the background.

    Parameters
    ----------
    objects : ndarray of int, shape (H, W)
        0 is background, every other value one object.
    seed : int
        Decides which objects and which lines.
    each : int
        Strokes of each class, as far as there are places for them.
    length : int
        Longest line on the background in pixels.
    background, foreground : int
        What is painted.

    Returns
    -------
    ndarray of uint8, shape (H, W)
        0 where nothing is painted.
    """
    rng = np.random.default_rng(seed)
    painted = np.zeros(objects.shape, np.uint8)
    ids = np.unique(objects[objects > 0])
    for i in rng.permutation(ids)[:each]:
        place = ndimage.find_objects((objects == i).astype(np.uint8))[0]
        inside = painted[place]
        inside[skeletonize(objects[place] == i)] = foreground
    ground = objects == 0
    drawn, reach = 0, float(length)
    for _ in range(_TRIES):
        if drawn == each:
            break
        start = rng.integers(objects.shape)
        angle = rng.uniform(0, 2 * np.pi)
        end = start + reach * np.array([np.sin(angle), np.cos(angle)])
        rows, columns = line(*start, *np.rint(end).astype(int))
        inside = (rows >= 0) & (rows < objects.shape[0])
        inside &= (columns >= 0) & (columns < objects.shape[1])
        fits = inside.all() and ground[rows, columns].all()
        if fits and not painted[rows, columns].any():
            painted[rows, columns] = background
            drawn += 1
        else:
            reach = max(3.0, reach * 0.98)  # where there is little room
    return painted
