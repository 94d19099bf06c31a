"""Any plane as a picture: its contrast as networks see it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.images import Normalisation

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BANDS = 512  # rows brought to colours at once, which bounds the memory
_SAMPLE = 1_000_000  # pixels that settle percentiles


def to_rgb(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Bring a plane to red, green and blue, by its percentiles 1 and 99.8.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, 3)
        Of any numeric type. NaN becomes black.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    low, high = _limits(image)
    pixels = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(image), _BANDS):
        band = image[top : top + _BANDS].astype(np.float64)
        scaled = np.nan_to_num((band - low) / (high - low), nan=0.0).clip(0, 1)
        levels = (scaled * 255 + 0.5).astype(np.uint8)
        pixels[top : top + _BANDS] = levels if image.ndim == 3 else levels[..., None]
    return pixels


def _limits(image: NDArray[np.generic]) -> tuple[float, float]:
    """Intensities that become black and white: percentiles, as networks see it."""
    stride = max(1, math.isqrt(image.shape[0] * image.shape[1] // _SAMPLE))
    sample = image[::stride, ::stride].astype(np.float64)
    known = sample[np.isfinite(sample)]
    if not known.size:
        return 0.0, 1.0
    percentiles = Normalisation()
    low, high = np.percentile(known, [percentiles.low, percentiles.high]).tolist()
    if high <= low:  # nearly everything is background
        low, high = float(known.min()), float(known.max())
    return low, high if high > low else low + 1
