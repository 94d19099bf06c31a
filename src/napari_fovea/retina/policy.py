"""Where to look next: the paper's raster, and a search for what is uncertain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

from napari_fovea.retina.fusion import VoteMap, entropy, probabilities
from napari_fovea.retina.running import running_max, running_mean

if TYPE_CHECKING:
    from napari_fovea.retina.grid import RetinaGrid


@dataclass(frozen=True, slots=True)
class Round:
    """Fixations that a policy proposes together.

    Attributes
    ----------
    corners : Tensor of int64, shape (B, 2)
        Top-left corners on the canvas.
    remaining : int
        Estimate of the fixations still to come, these included.
    """

    corners: torch.Tensor
    remaining: int


Fixations = Generator[Round, torch.Tensor, None]
"""Yields rounds; is sent the entropies H(S) of each, shape (B,)."""


def step_size(entropies: torch.Tensor, d: int, *, sigma: float = 0.4) -> torch.Tensor:
    r"""Horizontal step after a fixation, equation (3).

    .. math:: f(H(S)) = d \, \exp(-H(S)^2 / 2\sigma^2)

    Parameters
    ----------
    entropies : Tensor, shape (B,)
        H(S) in nats.
    d : int
        Side of the subarea in pixels.
    sigma : float
        Width of the Gaussian in nats.

    Returns
    -------
    Tensor of int64, shape (B,)
        Rounded to whole pixels, from 1 to ``d``.
    """
    step = d * torch.exp(-(entropies**2) / (2 * sigma**2))
    return step.round().long().clamp(min=1)


class Policy(Protocol):
    """Proposes fixations, round by round, until there is nothing left to see."""

    def margin(self, grid: RetinaGrid) -> int:
        """Pixels by which the image is reflected outwards before scanning."""

    def fixations(
        self, canvas: VoteMap, *, grid: RetinaGrid, inner: tuple[slice, slice]
    ) -> Fixations:
        """Yield rounds of corners; ``inner`` is the image's place on the canvas."""


@dataclass(frozen=True)
class Raster:
    """The paper's scan: row by row, slower where the subarea is uncertain.

    Rows do not depend on each other, so all of them advance together and a
    round holds one fixation of each row that is not yet finished.

    Attributes
    ----------
    rows : int
        Distance between rows in pixels.
    sigma : float
        Width of the Gaussian in equation (3).
    """

    rows: int = 10
    sigma: float = 0.4

    def margin(self, grid: RetinaGrid) -> int:
        """No margin: subareas stay inside the image."""
        return 0

    def fixations(
        self, canvas: VoteMap, *, grid: RetinaGrid, inner: tuple[slice, slice]
    ) -> Fixations:
        """Yield the next fixation of every unfinished row."""
        device = canvas.votes.device
        bottom, right = (size - grid.d for size in canvas.shape)
        y = torch.tensor([*range(0, bottom, self.rows), bottom], device=device)
        x = torch.zeros_like(y)
        stride = grid.d / 2  # a first guess of the mean step
        while len(y):
            ahead = float((right - x).sum()) / stride
            entropies = yield Round(torch.stack([y, x], dim=1), len(y) + round(ahead))
            unfinished = x < right
            step = step_size(entropies, grid.d, sigma=self.sigma)
            stride = float(step.float().mean())
            x = (x + step).clamp(max=right)[unfinished]
            y = y[unfinished]


@dataclass(frozen=True)
class Seek:
    """Look where the map is still both uncertain and coarsely seen.

    First a coarse tiling of the whole image, then rounds of foveas that do not
    overlap each other, each put where it gains most. What has been seen sharply
    gains less from another look, but it gains: rounds differ by a pixel or more,
    so that second looks resolve what lies within a cell. The map only gets
    sharper, so the scan can end after any round.

    Attributes
    ----------
    threshold : float
        Gain in nats below which a fovea is not worth a look.
    rounds : int
        Rounds into which looking everywhere once would be divided; more rounds
        choose better, fewer make larger batches.
    """

    threshold: float = 0.02
    rounds: int = 24

    def margin(self, grid: RetinaGrid) -> int:
        """Half a subarea, so that the fovea reaches every pixel."""
        return grid.d // 2

    def fixations(
        self, canvas: VoteMap, *, grid: RetinaGrid, inner: tuple[slice, slice]
    ) -> Fixations:
        """Yield the coarse tiling, then rounds of non-overlapping foveas."""
        device = canvas.votes.device
        tiles = _tiling(grid, inner).to(device)
        area = math.prod(s.stop - s.start for s in inner)
        foveas = math.ceil(area / grid.fovea**2)
        yield Round(tiles, len(tiles) + foveas)
        # Where a fovea's corner lies, relative to its subarea's.
        inset = (grid.d - grid.fovea) // 2
        origin = torch.tensor([s.start - inset for s in inner], device=device)
        per_round = max(16, math.ceil(foveas / self.rounds))
        last = torch.tensor(canvas.shape, device=device) - grid.d
        for turn in itertools.count():
            gain = self.gain(canvas, grid=grid, inner=inner)
            picks = _separate_maxima(gain, apart=4, threshold=self.threshold)
            if not len(picks):
                return
            best = gain[picks[:, 0], picks[:, 1]].argsort(descending=True)
            chosen = picks[best[:per_round]]
            # Neighbours in space stay neighbours in time: the path is legible.
            chosen = chosen[_tour(chosen)]
            worthy = int((gain > self.threshold).sum()) // 16
            down, right = turn % grid.finest, turn // grid.finest % grid.finest
            phase = torch.tensor([down, right], device=device)
            corners = (origin + chosen * grid.finest + phase).clamp_(min=0)
            corners = corners.minimum(last)
            yield Round(corners, max(worthy, len(corners)))

    def gain(
        self, canvas: VoteMap, *, grid: RetinaGrid, inner: tuple[slice, slice]
    ) -> torch.Tensor:
        """Tell what a look at each place is worth.

        Returns
        -------
        Tensor
            Mean over the fovea of entropy / (1 + acuity) in nats, for foveas whose
            top left corners are ``grid.finest`` pixels apart, starting at the
            image's corner.
        """
        # One sample per finest cell says all: no cell is smaller.
        rows, columns = (
            torch.arange(0, s.stop - s.start, grid.finest)
            .add(grid.finest // 2)
            .clamp(max=s.stop - s.start - 1)
            .to(canvas.votes.device)
            for s in inner
        )
        votes = canvas.votes[:, *inner][:, rows][:, :, columns]
        acuity = canvas.acuity[inner][rows][:, columns]
        need = entropy(probabilities(votes)) / (1 + acuity)
        # Beyond the border there is nothing to gain.
        height, width = need.shape
        need = functional.pad(need, (0, max(4 - width, 0), 0, max(4 - height, 0)))
        return running_mean(need, 4)


POLICIES: dict[str, Policy] = {"raster": Raster(), "seek": Seek()}
"""Policies by name: ``raster`` is the paper's."""


def _tiling(grid: RetinaGrid, inner: tuple[slice, slice]) -> torch.Tensor:
    """Corners of subareas side by side that cover the image, centred on it."""
    starts = []
    for span in inner:
        size = span.stop - span.start
        tiles = math.ceil(size / grid.d)
        first = span.start + (size - tiles * grid.d) // 2
        starts.append(torch.arange(tiles) * grid.d + first)
    return torch.cartesian_prod(*starts).reshape(-1, 2)


def _separate_maxima(
    score: torch.Tensor, *, apart: int, threshold: float
) -> torch.Tensor:
    """Local maxima at least ``apart`` places from each other along an axis, (n, 2)."""
    reach = apart - 1
    rows = torch.arange(score.shape[0], device=score.device)[:, None]
    columns = torch.arange(score.shape[1], device=score.device)
    # On a plateau, prefer places that tile it without gaps.
    aligned = (rows % apart == 0) & (columns % apart == 0)
    score = score * (1 + 1e-3 * aligned)

    def highest(values: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(values, (reach,) * 4, value=-math.inf)
        return values == running_max(padded, 2 * reach + 1)

    peak = highest(score) & (score > threshold)
    # Equal neighbours: of all peaks in a window exactly one has the highest key.
    period = 2 * apart
    key = ((rows % period) * period + columns % period + 1).to(score.dtype)
    return (highest(peak * key) & peak).nonzero()


def _tour(places: torch.Tensor) -> torch.Tensor:
    """Order along a Hilbert curve, in which neighbours in time are near in space."""
    rest = places.clone()
    side = 1 << max(1, int(places.max()).bit_length())
    distance = torch.zeros_like(rest[:, 0])
    y, x = rest.unbind(1)
    half = side // 2
    while half:
        below, beside = (y & half) > 0, (x & half) > 0
        distance += half * half * (3 * beside.long() ^ below.long())
        # Turn the quadrant so that the curve inside it runs from its entry on.
        flip = beside & ~below
        y, x = torch.where(flip, side - 1 - y, y), torch.where(flip, side - 1 - x, x)
        y, x = torch.where(below, y, x), torch.where(below, x, y)
        half //= 2
    return distance.argsort()
