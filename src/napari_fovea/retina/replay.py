"""A scan replayed: its map as it stood after any fixation, without the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.errors import FoveaError
from napari_fovea.retina.fusion import entropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.retina.path import FocusPath

_BATCH = 2048  # fixations painted at once, which bounds the memory
_STEEPEST = 12  # power × (r − 1) beyond which sums of votes lose their last bits
_QUANTUM = 2.0**12  # pmfs are rounded to multiples of its inverse, so sums are exact


@dataclass(frozen=True)
class Moment:
    """The map as it stood after a fixation.

    Attributes
    ----------
    step : int
        Fixation after which it stood, counted from 0; -1 before the first.
    probabilities : ndarray of float32, shape (K, h, w)
        Class probabilities; uniform where nothing was seen yet.
    overlap : ndarray of float32, shape (h, w)
        How many subareas have covered each pixel.
    """

    step: int
    probabilities: NDArray[np.float32]
    overlap: NDArray[np.float32]

    @cached_property
    def uncertainty(self) -> NDArray[np.float32]:
        """Entropy of the probabilities in nats, shape (h, w)."""
        return entropy(torch.from_numpy(self.probabilities)).numpy()


class Replay:
    """Makes the map of one plane again as it stood after any fixation.

    A cell's vote is the same over a rectangle, so its four corners say all: they
    are painted, and summed along both axes where the map is to be seen. Votes are
    rounded to binary fractions and sums of these are exact, so fixations can be
    taken back as well as added, and a map does not depend on how it was reached.
    A few states are kept on the way (keyframes), and the nearest is started from.

    Parameters
    ----------
    path : FocusPath
        With pmfs and the shape of its image.
    plane : int
        Plane of a stack.
    most : int
        Pixels of the map at most; the map of a larger image is shrunk, each of
        its pixels being the mean of those it stands for.
    memory : int
        Bytes that keyframes may take together.

    Raises
    ------
    FoveaError
        If the path does not tell what was seen.
    """

    def __init__(
        self,
        path: FocusPath,
        *,
        plane: int = 0,
        most: int = 2**20,
        memory: int = 2**27,
    ) -> None:
        if path.pmfs is None or path.shape is None:
            raise FoveaError(
                "This focus path tells where the retina looked, but not what it saw; "
                "expected the pmfs of its cells: segment the image again."
            )
        if most < 1:
            raise FoveaError(f"A map of {most} pixels shows nothing; give 1 or more.")
        if path.fusion.power * (path.grid.r - 1) > _STEEPEST:
            raise FoveaError(
                f"Cells of this path are weighed by 1/area to the power "
                f"{path.fusion.power:g}, too steeply to be summed exactly with r = "
                f"{path.grid.r}; expected at most "
                f"{_STEEPEST / (path.grid.r - 1):g}: scan with another fusion."
            )
        self.path = path.of_plane(plane)
        self.shrunk = 1
        while math.prod(-(-n // self.shrunk) for n in path.shape) > most:
            self.shrunk *= 2
        height, width = (-(-n // self.shrunk) for n in path.shape)
        self.shape = (height, width)
        # A pixel at the far edges may stand for fewer: its share of a whole one.
        down, right = (
            np.minimum(np.arange(n, 0, -self.shrunk) / self.shrunk, 1)
            for n in path.shape
        )
        self._shares = down[:, None] * right
        self.classes = path.pmfs.shape[-1]
        self._weights = path.fusion.weights(path.grid).double().numpy()
        # One row and column more: the far corners of what reaches the edge.
        self._corners = np.zeros((self.classes + 1, (height + 1) * (width + 1)))
        self._done = 0
        kept = min(32, max(1, memory // self._corners.nbytes))
        self._apart = max(_BATCH, -(-len(self.path) // kept))
        self._kept: dict[int, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        return len(self.path)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the user's image per pixel of the map (y, x)."""
        down, right = self.path.scale
        return down * self.shrunk, right * self.shrunk

    def at(self, step: int) -> Moment:
        """Make the map after a fixation.

        Parameters
        ----------
        step : int
            Fixation counted from 0; -1 for the empty map.

        Raises
        ------
        FoveaError
            If there is no such fixation.
        """
        if not -1 <= step < len(self):
            raise FoveaError(
                f"There is no fixation {step}; expected -1 to {len(self) - 1}."
            )
        self._go_to(step + 1)
        height, width = self.shape
        sums = self._corners.reshape(-1, height + 1, width + 1)
        sums = sums.cumsum(1).cumsum(2)[:, :height, :width]
        if self.shrunk > 1:
            sums /= self._shares
        planes = sums.astype(np.float32)
        votes = torch.from_numpy(planes[:-1])
        read = self.path.fusion.read_out(votes, self.path.grid, shrunk=self.shrunk)
        return Moment(step, read.numpy(), planes[-1])

    def _go_to(self, count: int) -> None:
        """Have the first ``count`` fixations painted, and no others."""
        start = max((k for k in self._kept if k <= count), default=0)
        later = min((k for k in self._kept if k >= count), default=None)
        if abs(self._done - count) > count - start:
            self._restore(start)
        if later is not None and abs(self._done - count) > later - count:
            self._restore(later)
        while self._done != count:
            if self._done < count:
                after = (self._done // self._apart + 1) * self._apart
                end = min(count, self._done + _BATCH, after)
                self._paint(self._done, end, 1.0)
                if end == after and end not in self._kept:
                    self._kept[end] = self._corners.copy()
            else:
                end = max(count, self._done - _BATCH)
                self._paint(end, self._done, -1.0)
            self._done = end

    def _restore(self, count: int) -> None:
        if count in self._kept:
            np.copyto(self._corners, self._kept[count])
        else:
            self._corners[:] = 0
        self._done = count

    def _paint(self, start: int, stop: int, sign: float) -> None:
        """Add fixations to the corners, or take them away."""
        path = self.path
        assert path.pmfs is not None
        corners = path.corners[start:stop]
        if not len(corners):
            return
        origin = np.concatenate([corners, corners], axis=1)[:, None]  # (n, 1, 4)
        pmfs = np.rint(path.pmfs[start:stop].astype(np.float64) * _QUANTUM) / _QUANTUM
        votes = pmfs * (sign * self._weights)[:, None]  # (n, N, K)
        boxes = (origin + path.grid.cells).reshape(-1, 4)
        for plane, values in zip(
            self._corners, votes.reshape(-1, self.classes).T, strict=False
        ):
            self._add(plane, boxes, values)
        whole = origin[:, 0] + np.array([0, 0, path.grid.d, path.grid.d])
        self._add(self._corners[-1], whole, np.full(len(whole), sign))

    def _add(
        self,
        plane: NDArray[np.float64],
        boxes: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        """Add values to rectangles (n, 4), by their four corners each."""
        assert self.path.shape is not None
        limits = np.array(self.path.shape * 2)
        top, left, bottom, right = boxes.clip(0, limits).T
        for y, sy in ((top, 1), (bottom, -1)):
            for x, sx in ((left, 1), (right, -1)):
                self._add_at(plane, y, x, values * (sy * sx))

    def _add_at(
        self,
        plane: NDArray[np.float64],
        y: NDArray[np.int64],
        x: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        across = self.shape[1] + 1
        if self.shrunk == 1:
            np.add.at(plane, y * across + x, values)
            return
        # Between two places of a shrunk map a corner belongs to both, by nearness;
        # summed, every pixel gets the share of it that the rectangle covers.
        (row, down), (column, right) = (np.divmod(v, self.shrunk) for v in (y, x))
        down, right = down / self.shrunk, right / self.shrunk
        for r, share in ((row, 1 - down), (row + 1, down)):
            for c, part in ((column, 1 - right), (column + 1, right)):
                inside = (r <= self.shape[0]) & (c <= self.shape[1])
                amount = values * share * part
                np.add.at(plane, (r * across + c)[inside], amount[inside])


def finest_levels(path: FocusPath, *, plane: int = 0) -> NDArray[np.uint8]:
    """Finest level of resolution at which each pixel was ever seen.

    Parameters
    ----------
    path : FocusPath
        With the shape of its image.
    plane : int
        Plane of a stack.

    Returns
    -------
    ndarray of uint8, shape (h, w)
        From 1, the outermost cells, to r, the fovea's; 0 where nothing was seen.
        At the resolution of the scanned image.

    Raises
    ------
    FoveaError
        If the path does not know the size of its image.
    """
    if path.shape is None:
        raise FoveaError(
            "This focus path does not say how large its image was; expected its "
            "height and width: segment the image again."
        )
    height, width = path.shape
    levels = np.zeros(path.shape, dtype=np.uint8)
    corners = path.corners[path.planes == plane]
    for level in range(1, path.grid.r + 1):
        side = 4 * (path.grid.d >> (level + 1))  # that this level and finer ones fill
        start = corners + (path.grid.d - side) // 2
        (top, left), (bottom, right) = (
            (c.clip(0, path.shape)).T for c in (start, start + side)
        )
        edges = np.zeros((height + 1, width + 1), dtype=np.int32)
        for y, sy in ((top, 1), (bottom, -1)):
            for x, sx in ((left, 1), (right, -1)):
                np.add.at(edges, (y, x), sy * sx)
        covered = edges.cumsum(0).cumsum(1)[:height, :width] > 0
        levels[covered] = level
    return levels
