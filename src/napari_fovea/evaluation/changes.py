"""Images as other microscopes would have taken them, to see what a model withstands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from skimage.filters import gaussian
from skimage.transform import resize

from napari_fovea.inference.sizes import enlarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Plane = NDArray[np.floating]

_DIM = (100, 600)  # of 65,535: the offset of a camera, and a weak signal above it


@dataclass(frozen=True)
class Change:
    """A change of images.

    Attributes
    ----------
    note : str
        What it is, for people.
    light : callable or None
        Changes intensities (H, W) or (H, W, C) between 0 and 1, with a generator of
        random numbers.
    factor : float
        By which the image, and its labels, are resized.
    sixteen : bool
        Whether it ends as 16 bits of which little is used.
    """

    note: str
    light: Callable[[Plane, np.random.Generator], Plane] | None = None
    factor: float = 1.0
    sixteen: bool = False

    def apply(
        self, image: NDArray[np.generic], labels: NDArray[np.integer], *, seed: int
    ) -> tuple[NDArray[np.generic], NDArray[np.integer]]:
        """Change an image.

        Parameters
        ----------
        image : ndarray, shape (H, W) or (H, W, C)
            Of any numeric type.
        labels : ndarray of int, shape (H, W)
            Its labels.
        seed : int
            For what is random.

        Returns
        -------
        image : ndarray
            float32 from 0 to 1, or uint16.
        labels : ndarray of int
            Resized as the image is.
        """
        plane = image.astype(np.float32)
        low, high = float(plane.min()), float(plane.max())
        if high > low:
            plane = (plane - low) / (high - low)
        if self.light is not None:
            plane = self.light(plane, np.random.default_rng(seed)).astype(np.float32)
        if self.factor != 1:
            height, width = (max(1, round(n * self.factor)) for n in labels.shape)
            shape = (height, width, *plane.shape[2:])
            smooth = self.factor < 1
            plane = resize(plane, shape, order=1, anti_aliasing=smooth)
            labels = enlarge(labels, (height, width))
        if self.sixteen:
            offset, signal = _DIM
            return (offset + signal * plane).astype(np.uint16), labels
        return plane.astype(np.float32), labels


def _inverted(plane: Plane, _: np.random.Generator) -> Plane:
    return 1 - plane


def _gamma(plane: Plane, _: np.random.Generator, *, gamma: float) -> Plane:
    return plane**gamma


def _noisy(plane: Plane, rng: np.random.Generator, *, sigma: float) -> Plane:
    return plane + rng.normal(0, sigma, plane.shape)


def _blurred(plane: Plane, _: np.random.Generator, *, sigma: float) -> Plane:
    axis = -1 if plane.ndim == 3 else None
    blurred: Plane = gaussian(plane, sigma, channel_axis=axis)
    return blurred


CHANGES: dict[str, Change] = {
    "halved": Change("half as large", factor=0.5),
    "doubled": Change("twice as large", factor=2.0),
    "inverted": Change("contrast inverted", _inverted),
    "dim": Change(f"16 bits, of which {_DIM[0]} to {sum(_DIM)} are used", sixteen=True),
    "gamma-0.5": Change("gamma 0.5", partial(_gamma, gamma=0.5)),
    "gamma-2": Change("gamma 2", partial(_gamma, gamma=2.0)),
    "noise": Change(
        "Gaussian noise, σ = 0.05 of the range of intensities",
        partial(_noisy, sigma=0.05),
    ),
    "blur": Change("Gaussian blur, σ = 1 px", partial(_blurred, sigma=1.0)),
}
"""Changes by name."""
