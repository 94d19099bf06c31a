"""The record of a scan: where it looked, in which order, how sure it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.errors import FoveaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.retina.grid import RetinaGrid

_NO_PLANES = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class FocusPath:
    """Fixations of a scan in the order they were made.

    Attributes
    ----------
    corners : ndarray of int64, shape (n, 2)
        Top-left corners (y, x) of the subareas in pixels of the scanned image.
        Negative where the scan reflected the image at its border.
    entropies : ndarray of float32, shape (n,)
        Mean entropy H(S) of each subarea, equation (2), in nats.
    steps : ndarray of int64, shape (n,)
        Step f(H) in pixels that equation (3) gives after each fixation.
    grid : RetinaGrid
        The cells that every fixation saw.
    scale : tuple of float
        Pixels of the user's image per pixel of the scanned image (y, x), where
        the image was resized to the model's object size.
    planes : ndarray of int64, shape (n,)
        Plane of a stack that each fixation belongs to; 0 for a single image.
    """

    corners: NDArray[np.int64]
    entropies: NDArray[np.float32]
    steps: NDArray[np.int64]
    grid: RetinaGrid
    scale: tuple[float, float] = (1.0, 1.0)
    planes: NDArray[np.int64] = field(default_factory=lambda: _NO_PLANES)

    def __post_init__(self) -> None:
        n = len(self.corners)
        if self.planes is _NO_PLANES:
            object.__setattr__(self, "planes", np.zeros(n, dtype=np.int64))
        fields = (self.corners, self.entropies, self.steps, self.planes)
        if self.corners.shape != (n, 2) or any(len(f) != n for f in fields):
            raise FoveaError(
                "A focus path needs as many entropies, steps and planes as corners, "
                f"and corners of shape (n, 2); corners have {self.corners.shape}."
            )
        for array in fields:
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres (y, x) in pixels of the user's image, shape (n, 2).

        Pixel centres have integer coordinates, as in napari.
        """
        middle = self.corners + self.grid.d / 2
        return np.asarray(middle * np.asarray(self.scale) - 0.5)

    def cells(self, step: int) -> NDArray[np.float64]:
        """Cells of one fixation as (N, 4) top, left, bottom, right in image pixels."""
        top, left = self.corners[step]
        boxes = self.grid.cells + np.array([top, left, top, left])
        return np.asarray(boxes * np.asarray(self.scale * 2) - 0.5)
