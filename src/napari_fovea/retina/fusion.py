"""From the pmfs of many overlapping subareas to one map of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

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
            x = functional.pad(plane[None, None], (side - 1,) * 4, mode="replicate")
            for _ in range(2):
                x = functional.avg_pool2d(x, side, stride=1)
            out.copy_(x[0, 0])
        return _normalise_(soft)


FUSIONS = {"mean": Fusion(), "precision": Fusion(power=1.0, linear=True)}
"""Fusions by name: ``mean`` is the paper's, ``precision`` weighs by 1/area."""


class VoteMap:
    """Running, weighted class votes of every pixel of a canvas.

    Painting is one scatter per plane for a whole batch of subareas, whatever
    the number of cells, on any device.

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
        height, width = shape
        # Flat planes: a one-dimensional index_add_ is the fast one.
        self._votes = torch.zeros(classes, height * width, device=device)
        self._overlap = torch.zeros(height * width, device=device)
        self._acuity = torch.zeros(height * width, device=device)
        self._weights = fusion.weights(grid).to(device)
        self._cell_index = torch.from_numpy(grid.cell_index).flatten().to(device)
        sharpness = Fusion(power=2.0).weights(grid).to(device)
        self._sharpness = sharpness[self._cell_index]
        rows = torch.arange(grid.d, device=device)
        self._offsets = (rows[:, None] * width + rows).flatten()

    def paint(self, corners: torch.Tensor, pmfs: torch.Tensor) -> None:
        """Add a batch of subareas.

        Parameters
        ----------
        corners : Tensor of int64, shape (B, 2)
            Top-left corners on the canvas; every subarea lies inside it.
        pmfs : Tensor, shape (B, N, K)
            Class pmfs of the cells.
        """
        starts = corners[:, 0] * self.shape[1] + corners[:, 1]
        pixels = (starts[:, None] + self._offsets).flatten()
        weighted = (pmfs * self._weights[:, None]).permute(2, 0, 1)  # (K, B, N)
        for plane, votes in zip(self._votes, weighted, strict=True):
            plane.index_add_(0, pixels, votes[:, self._cell_index].flatten())
        one = torch.ones((), device=pixels.device).expand(len(pixels))
        self._overlap.index_add_(0, pixels, one)
        self._acuity.index_add_(0, pixels, self._sharpness.repeat(len(corners)))

    @property
    def votes(self) -> torch.Tensor:
        """Weighted votes, shape (K, H, W); a live view."""
        return self._votes.view(-1, *self.shape)

    @property
    def overlap(self) -> torch.Tensor:
        """How many subareas covered each pixel, shape (H, W); a live view."""
        return self._overlap.view(self.shape)

    @property
    def acuity(self) -> torch.Tensor:
        """How sharply each pixel was seen, shape (H, W); a live view.

        Sum over looks of (finest area / cell area)²: 1 is one look by a cell
        of the finest side.
        """
        return self._acuity.view(self.shape)


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
