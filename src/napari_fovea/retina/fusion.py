"""From the pmfs of many overlapping subareas to one map of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from napari_fovea.retina.grid import lay
from napari_fovea.retina.running import running_mean

if TYPE_CHECKING:
    from napari_fovea.retina.grid import RetinaGrid


@dataclass(frozen=True)
class Fusion:
    """How the pmfs of overlapping cells become one map.

    Attributes
    ----------
    power : float
        Each cell's vote counts ``area ** -power``, up to a constant. 0 averages
        the pmfs of all cells over a pixel, as the paper does; larger values let
        small cells outvote large ones.
    linear : bool
        Interpolate linearly between the smallest cells instead of showing them
        as blocks.
    """

    power: float = 0.0
    linear: bool = False

    def weights(self, grid: RetinaGrid) -> torch.Tensor:
        """Weight of each cell, shape (N,), in (0, 1]; the smallest cells have 1."""
        areas = torch.from_numpy(grid.areas).to(torch.float32)
        return (grid.finest**2 / areas) ** self.power

    def read_out(
        self, votes: torch.Tensor, grid: RetinaGrid, *, shrunk: int = 1
    ) -> torch.Tensor:
        """Turn votes into class probabilities.

        Parameters
        ----------
        votes : Tensor, shape (K, H, W)
            Weighted votes; they are left as they are.
        grid : RetinaGrid
            The cells that voted.
        shrunk : int
            Pixels of the scanned image per pixel of the votes along each axis.

        Returns
        -------
        Tensor, shape (K, H, W)
            Sums to 1 over K; uniform where nothing was seen.
        """
        side = grid.finest // shrunk
        if not self.linear or side <= 1:
            return probabilities(votes)
        # Two moving averages of width f make a tent, and blocks of side f under a
        # tent are straight lines between their centres, rounded off at the bends.
        soft = torch.empty_like(votes)
        for plane, out in zip(votes, soft, strict=True):  # one at a time: less memory
            x = functional.pad(plane[None], (side - 1,) * 4, mode="replicate")[0]
            out.copy_(running_mean(running_mean(x, side), side))
        return _normalise_(soft)


FUSIONS = {"mean": Fusion(), "precision": Fusion(power=1.0, linear=True)}
"""Fusions by name: ``mean`` is the paper's, ``precision`` weighs by 1/area."""


class VoteMap:
    """Running, weighted class votes of every pixel of a canvas.

    A batch of subareas is laid out as tiles, which are added to votes, overlap and
    acuity together: in one scatter on an accelerator; on a CPU, whose scatters take a
    pixel at a time, tile by tile.

    Parameters
    ----------
    shape : tuple of int
        Height and width of the canvas in pixels.
    grid : RetinaGrid
        Cells of a subarea.
    classes : int
        Number of classes K.
    fusion : Fusion
        Weights of the cells.
    device : torch.device
        Where the map lives.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        grid: RetinaGrid,
        classes: int,
        fusion: Fusion,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self._grid = grid
        # Votes, overlap and acuity lie in one array, and are painted together.
        self._canvas = torch.zeros(classes + 2, *shape, device=device)
        self._weights = fusion.weights(grid).to(device)
        sharpness = Fusion(power=2.0).weights(grid)
        seen = torch.stack([torch.ones(grid.n_cells), sharpness])
        self._seen = lay(seen, grid).to(device)

    def paint(self, corners: torch.Tensor, pmfs: torch.Tensor) -> None:
        """Add a batch of subareas.

        Parameters
        ----------
        corners : Tensor of int64, shape (B, 2)
            Top-left corners on the canvas; every subarea lies inside it.
        pmfs : Tensor, shape (B, N, K)
            Class pmfs of the cells.
        """
        d, planes = self._grid.d, len(self._canvas)
        tiles = self._canvas.new_empty(len(corners), planes, d, d)
        tiles[:, -2:] = self._seen
        weighted = (pmfs * self._weights[:, None]).transpose(1, 2)  # (B, K, N)
        lay(weighted, self._grid, out=tiles[:, :-2])
        on_cpu = self._canvas.device.type == "cpu"
        (add_tiles if on_cpu else scatter_tiles)(self._canvas, corners, tiles)

    @property
    def votes(self) -> torch.Tensor:
        """Weighted votes, shape (K, H, W); a live view."""
        return self._canvas[:-2]

    @property
    def overlap(self) -> torch.Tensor:
        """How many subareas covered each pixel, shape (H, W); a live view."""
        return self._canvas[-2]

    @property
    def acuity(self) -> torch.Tensor:
        """How sharply each pixel was seen, shape (H, W); a live view.

        Sum over looks of (finest area / cell area)²: 1 is one look by a cell
        of the finest side.
        """
        return self._canvas[-1]


def add_tiles(canvas: torch.Tensor, corners: torch.Tensor, tiles: torch.Tensor) -> None:
    """Add tiles (B, P, d, d) to a canvas (P, H, W), one by one."""
    d = tiles.shape[-1]
    for (y, x), tile in zip(corners.tolist(), tiles.unbind(), strict=True):
        canvas[:, y : y + d, x : x + d] += tile


def scatter_tiles(
    canvas: torch.Tensor, corners: torch.Tensor, tiles: torch.Tensor
) -> None:
    """Add tiles (B, P, d, d) to a canvas (P, H, W) in one scatter."""
    planes, width = len(canvas), canvas.shape[2]
    rows = torch.arange(tiles.shape[-1], device=canvas.device)
    within = (rows[:, None] * width + rows).flatten()
    pixels = (corners[:, 0] * width + corners[:, 1])[:, None] + within
    values = tiles.transpose(0, 1).reshape(planes, -1)
    canvas.view(planes, -1).index_add_(1, pixels.flatten(), values)


def probabilities(votes: torch.Tensor) -> torch.Tensor:
    """Normalise votes (K, …) to class probabilities; uniform where none fell."""
    return _normalise_(votes.clone())


def _normalise_(votes: torch.Tensor) -> torch.Tensor:
    total = votes.sum(0)
    return votes.div_(total.clamp(min=1e-30)).masked_fill_(
        total <= 0, 1 / votes.shape[0]
    )


def entropy(probability: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the first axis of class probabilities (K, …)."""
    surprise: torch.Tensor = torch.special.xlogy(probability, probability)
    return -surprise.sum(0)
