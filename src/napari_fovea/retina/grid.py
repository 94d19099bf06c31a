"""The retina-like grid: cells that shrink towards the centre of a subarea."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.errors import FoveaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORE = -1
"""Label value of pixels that count for nothing (ambiguous or unpainted)."""

# Cells of a level by their places in its 4×4 square; a ring has none in the middle.
_SQUARE = tuple(range(16))
_RING = (0, 1, 2, 3, 4, 0, 0, 5, 6, 0, 0, 7, 8, 9, 10, 11)


@dataclass(frozen=True)
class RetinaGrid:
    """Cells of a ``d`` × ``d`` subarea whose resolution falls off from its centre.

    Level 1 is a 4×4 grid of cells of side ``d/4``. Each further level replaces
    the central 2×2 cells by a 4×4 grid of half the side, which gives
    ``N = 16 + 12 (r - 1)`` cells, the finest of side ``d / 2**(r + 1)``.

    Parameters
    ----------
    d : int
        Side of the subarea in pixels, a multiple of ``2**(r + 1)``.
    r : int
        Resolution level, at least 1.

    Raises
    ------
    FoveaError
        If ``r`` is below 1 or ``d`` is not a positive multiple of ``2**(r + 1)``.
    """

    d: int
    r: int

    def __post_init__(self) -> None:
        if self.r < 1:
            raise FoveaError(
                f"The resolution level r is {self.r}; give an integer of 1 or more."
            )
        unit = 2 ** (self.r + 1)
        if self.d < unit or self.d % unit:
            below = self.d // unit * unit
            near = f"{below} or {below + unit}" if below else f"{unit}"
            raise FoveaError(
                f"A subarea of d={self.d} pixels cannot be divided into r={self.r} "
                f"levels; d must be a multiple of {unit}: try {near}."
            )

    @property
    def n_cells(self) -> int:
        """Number of cells N."""
        return 16 + 12 * (self.r - 1)

    @property
    def finest(self) -> int:
        """Side of the smallest cells in pixels, ``d / 2**(r + 1)``."""
        return self.d >> (self.r + 1)

    @property
    def fovea(self) -> int:
        """Side in pixels of the central square that the smallest cells cover."""
        return 4 * self.finest

    @cached_property
    def cells(self) -> NDArray[np.int64]:
        """Cells as (N, 4) rows of top, left, bottom, right in pixels.

        Rows go from the outermost level inwards and, within a level, from top
        left to bottom right. Bottom and right are exclusive.
        """
        boxes = []
        for level in range(1, self.r + 1):
            side = self.d // 2 ** (level + 1)
            start = (self.d - 4 * side) // 2
            innermost = level == self.r
            for row in range(4):
                for column in range(4):
                    central = row in (1, 2) and column in (1, 2)
                    if central and not innermost:
                        continue  # the next level takes these four
                    top, left = start + row * side, start + column * side
                    boxes.append((top, left, top + side, left + side))
        return np.array(boxes, dtype=np.int64)

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """Area of each cell in pixels, shape (N,)."""
        top, left, bottom, right = self.cells.T
        return np.asarray((bottom - top) * (right - left), dtype=np.int64)

    @cached_property
    def cell_index(self) -> NDArray[np.int64]:
        """Which cell covers each pixel, shape (d, d), values in [0, N)."""
        # Written at the resolution of the finest cells, then enlarged.
        units = self.d // self.finest
        index = np.empty((units, units), dtype=np.int64)
        for i, (top, left, bottom, right) in enumerate(self.cells // self.finest):
            index[top:bottom, left:right] = i
        return index.repeat(self.finest, axis=0).repeat(self.finest, axis=1)


def lay(
    values: torch.Tensor, grid: RetinaGrid, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Lay cells' values on the pixels they cover, (…, N) → (…, d, d).

    Parameters
    ----------
    values : Tensor, shape (…, N)
        One value per cell.
    grid : RetinaGrid
        The cells.
    out : Tensor, shape (…, d, d), optional
        Where to put them.
    """
    if out is None:
        out = values.new_empty(*values.shape[:-1], grid.d, grid.d)
    for level in range(grid.r):
        # Each level overwrites the four cells in the middle of the one around it.
        square = _SQUARE if level == grid.r - 1 else _RING
        cells = values[..., [12 * level + i for i in square]]
        side = grid.d >> (level + 2)
        inset = (grid.d - 4 * side) // 2
        part = out[..., inset : inset + 4 * side, inset : inset + 4 * side]
        # A view by cells: (…, 4, side, 4, side).
        part = torch.unflatten(torch.unflatten(part, -1, (4, side)), -3, (4, side))
        part.copy_(cells.reshape(*cells.shape[:-1], 4, 1, 4, 1))
    return out


def cell_pmfs(
    labels: torch.Tensor, grid: RetinaGrid, *, classes: int, ignore: int = IGNORE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class histogram of every cell, normalised: the targets ``p`` of equation (1).

    Parameters
    ----------
    labels : Tensor of int64, shape (B, d, d)
        Class of each pixel in [0, classes), or ``ignore``.
    grid : RetinaGrid
        The cells.
    classes : int
        Number of classes K.
    ignore : int
        Label that counts for nothing.

    Returns
    -------
    pmfs : Tensor of float32, shape (B, N, K)
        Rows sum to 1; a cell with no labelled pixel is all zero.
    seen : Tensor of bool, shape (B, N)
        Whether the cell has a labelled pixel. Cells without one are to be
        left out of the loss.

    Raises
    ------
    FoveaError
        If ``labels`` is not (B, d, d) or holds a class outside [0, classes).
    """
    if labels.ndim != 3 or labels.shape[1:] != (grid.d, grid.d):
        raise FoveaError(
            f"Labels have shape {tuple(labels.shape)}; expected (B, {grid.d}, {grid.d})"
            " to match the grid: crop them to the subarea."
        )
    valid = labels != ignore
    painted = labels[valid]
    if painted.numel() and (painted.min() < 0 or painted.max() >= classes):
        raise FoveaError(
            f"Labels hold classes {int(painted.min())} to {int(painted.max())}; "
            f"expected 0 to {classes - 1}, or {ignore} for pixels to ignore."
        )
    batch = labels.shape[0]
    cell_index = torch.from_numpy(grid.cell_index).to(labels.device)
    # One bin per (subarea, cell, class): all histograms in a single count.
    subarea = torch.arange(batch, device=labels.device)[:, None, None]
    bins = (subarea * grid.n_cells + cell_index) * classes + labels
    counts = torch.bincount(bins[valid], minlength=batch * grid.n_cells * classes)
    counts = counts.reshape(batch, grid.n_cells, classes).to(torch.float32)
    total = counts.sum(-1, keepdim=True)
    return counts / total.clamp(min=1), total[..., 0] > 0


def cell_entropies(pmfs: torch.Tensor) -> torch.Tensor:
    """Entropy of each cell's pmf in nats, shape (..., N) for pmfs (..., N, K)."""
    surprise: torch.Tensor = torch.special.xlogy(pmfs, pmfs)
    return -surprise.sum(-1)


def uncertainty(pmfs: torch.Tensor) -> torch.Tensor:
    r"""Mean entropy of the cells, equation (2).

    .. math:: H(S) = -\frac{1}{N} \sum_{i \in S} \sum_k p_k^{(i)} \log p_k^{(i)}

    Parameters
    ----------
    pmfs : Tensor, shape (B, N, K)
        Class pmfs of the cells.

    Returns
    -------
    Tensor, shape (B,)
        In nats, from 0 to log K.
    """
    return cell_entropies(pmfs).mean(-1)
