"""The record of a scan: where it looked, in which order, what it saw there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.errors import FoveaError
from napari_fovea.retina.fusion import Fusion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.retina.grid import RetinaGrid

_NO_PLANES = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class FocusPath:
    """Fixations of a scan in the order they were made.

    With ``pmfs`` and ``shape`` it is enough to make the map again as it stood
    after any fixation, without the network: see `Replay`.

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
    pmfs : ndarray of float16, shape (n, N, K), or None
        Class pmf of every cell of every fixation, in [0, 1].
    shape : tuple of int or None
        Height and width of the scanned image.
    lead : tuple of int
        Shape of the stack's axes; empty for a single image.
    fusion : Fusion
        How the pmfs became the map.
    classes : tuple of str
        Names of the classes.
    """

    corners: NDArray[np.int64]
    entropies: NDArray[np.float32]
    steps: NDArray[np.int64]
    grid: RetinaGrid
    scale: tuple[float, float] = (1.0, 1.0)
    planes: NDArray[np.int64] = field(default_factory=lambda: _NO_PLANES)
    pmfs: NDArray[np.float16] | None = None
    shape: tuple[int, int] | None = None
    lead: tuple[int, ...] = ()
    fusion: Fusion = field(default_factory=Fusion)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(np.atleast_1d(self.corners))
        if self.planes is _NO_PLANES:
            object.__setattr__(self, "planes", np.zeros(n, dtype=np.int64))
        fields = (self.corners, self.entropies, self.steps, self.planes)
        if self.corners.shape != (n, 2) or any(f.shape != (n,) for f in fields[1:]):
            raise FoveaError(
                "A focus path needs as many entropies, steps and planes as corners, "
                f"and corners of shape (n, 2); corners have {self.corners.shape}."
            )
        if self.pmfs is not None and (
            self.pmfs.ndim != 3 or self.pmfs.shape[:2] != (n, self.grid.n_cells)
        ):
            raise FoveaError(
                f"The pmfs of a focus path have shape {self.pmfs.shape}; expected "
                f"({n}, {self.grid.n_cells}, classes), a pmf for each cell of each "
                "fixation."
            )
        for array in fields if self.pmfs is None else (*fields, self.pmfs):
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

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the user's image, where the path knows it."""
        if self.shape is None:
            return None
        height, width = (
            round(n * s) for n, s in zip(self.shape, self.scale, strict=True)
        )
        return height, width

    def cells(self, step: int) -> NDArray[np.float64]:
        """Cells of one fixation as (N, 4) top, left, bottom, right in image pixels."""
        top, left = self.corners[step]
        boxes = self.grid.cells + np.array([top, left, top, left])
        return np.asarray(boxes * np.asarray(self.scale * 2) - 0.5)

    def fovea(self, step: int) -> NDArray[np.float32]:
        """Mean class pmf (K,) of the smallest cells of one fixation.

        Raises
        ------
        FoveaError
            If the path does not tell what was seen.
        """
        if self.pmfs is None:
            raise FoveaError(
                "This focus path does not tell what the retina saw; expected the pmfs "
                "of its cells: segment the image again."
            )
        # The sixteen smallest cells come last.
        return np.asarray(self.pmfs[step, -16:].astype(np.float32).mean(0))

    def of_plane(self, plane: int) -> FocusPath:
        """Return the fixations of one plane of a stack, as the path of an image."""
        mine = self.planes == plane
        return replace(
            self,
            corners=self.corners[mine],
            entropies=self.entropies[mine],
            steps=self.steps[mine],
            planes=np.zeros(int(mine.sum()), dtype=np.int64),
            pmfs=None if self.pmfs is None else self.pmfs[mine],
            lead=(),
        )

    def laid_on(self, shape: tuple[int, int]) -> FocusPath:
        """Return the same path stretched over an image of another size.

        Parameters
        ----------
        shape : tuple of int
            Height and width of the other image in pixels.

        Raises
        ------
        FoveaError
            If the path does not know the size of its own image.
        """
        if self.shape is None:
            raise FoveaError(
                "This focus path does not say how large its image was; expected its "
                "height and width, to stretch it over another: record it again."
            )
        height, width = (n / m for n, m in zip(shape, self.shape, strict=True))
        return replace(self, scale=(height, width))

    def best_look(self, point: tuple[float, float], *, plane: int = 0) -> int | None:
        """Find the fixation that saw a place best.

        Parameters
        ----------
        point : tuple of float
            Place (y, x) in pixels of the user's image.
        plane : int
            Plane of the stack.

        Returns
        -------
        int or None
            Of the fixations whose smallest cells cover the place, the one whose
            centre is nearest; None where none saw it.
        """
        place = (np.asarray(point) + 0.5) / np.asarray(self.scale)
        inside = np.floor(place - self.corners).astype(np.int64)
        saw = (inside >= 0).all(1) & (inside < self.grid.d).all(1)
        steps = np.flatnonzero(saw & (self.planes == plane))
        if not len(steps):
            return None
        y, x = inside[steps].T
        areas = self.grid.areas[self.grid.cell_index[y, x]]
        away = (place - self.corners[steps] - self.grid.d / 2) * self.scale
        far = (away**2).sum(1).round(9)  # of those equally far the first
        return int(steps[np.lexsort((far, areas))[0]])
