"""Planes larger than one look, seen in overlapping tiles that fade into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_fovea.errors import ImageError
from napari_fovea.inference.reading import Seen, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari_fovea.inference.stitching import Stitcher


@dataclass(frozen=True)
class Tiling:
    """How planes are cut.

    Attributes
    ----------
    size : int
        Side of a tile in pixels. Planes up to this size are seen whole.
    halo : int
        Pixels along a tile's inner edges that are thrown away: there the network
        misses what lies beyond. If it is at least the reach of the network's
        receptive field, tiles give what the whole plane would.
    blend : int
        Pixels over which neighbouring tiles fade into each other.
    """

    size: int = 1024
    halo: int = 64
    blend: int = 64

    def __post_init__(self) -> None:
        if min(self.halo, self.blend) < 0 or self.size <= self.overlap:
            raise ImageError(
                f"Tiles of {self.size} pixels cannot overlap by {self.overlap} (twice "
                f"the halo {self.halo}, and the blend {self.blend}); expected larger "
                "tiles or a smaller overlap."
            )

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring tiles share."""
        return 2 * self.halo + self.blend


def plan_tiles(length: int, tiling: Tiling, *, multiple: int = 1) -> tuple[int, ...]:
    """Where tiles begin along one axis.

    Parameters
    ----------
    length : int
        Pixels of the plane along this axis, a multiple of ``multiple``.
    tiling : Tiling
        Size and overlap.
    multiple : int
        Tiles begin at multiples of this, so that pooling falls as on the whole.

    Returns
    -------
    tuple of int
        Beginnings of tiles of `tile_length` pixels; together they cover the
        plane, and neighbours overlap by at least ``tiling.overlap``.
    """
    size = tile_length(length, tiling, multiple=multiple)
    if length <= size:
        return (0,)
    stride = max(multiple, (size - tiling.overlap) // multiple * multiple)
    return (*range(0, length - size, stride), length - size)


def tile_length(length: int, tiling: Tiling, *, multiple: int = 1) -> int:
    """Pixels of a tile along an axis of ``length`` pixels."""
    # At least one stride beyond the overlap, or tiles would never advance.
    size = max(tiling.size // multiple, tiling.overlap // multiple + 2) * multiple
    return min(length, size)


def ramp(start: int, size: int, length: int, tiling: Tiling) -> torch.Tensor:
    """Weights of a tile's pixels along one axis, in [0, 1]; 1 at the plane's edges."""
    place = torch.arange(size, dtype=torch.float32)
    width = max(1, tiling.blend)
    weights = torch.ones(size)
    if start > 0:
        rising = (place - tiling.halo + 0.5) / width
        weights = torch.minimum(weights, rising.clamp(0, 1))
    if start + size < length:
        falling = (size - tiling.halo - place - 0.5) / width
        weights = torch.minimum(weights, falling.clamp(0, 1))
    return weights


def tiled(
    forward: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    *,
    outputs: int,
    tiling: Tiling,
    multiple: int = 1,
    batch_size: int = 1,
    attention: Stitcher | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Step, None, Seen]:
    """Run a network over a plane by tiles.

    Parameters
    ----------
    forward : callable
        Images (B, C, h, w) → probabilities (B, outputs, h, w).
    image : Tensor, shape (C, H, W)
        The plane.
    outputs : int
        Channels that come out.
    tiling : Tiling
        How to cut.
    multiple : int
        What the network's sides divide by.
    batch_size : int
        Tiles seen together.
    attention : Stitcher, optional
        Joins the attention that ``forward`` left with it.
    cancelled : callable
        Asked after every batch.

    Yields
    ------
    Step

    Returns
    -------
    Seen
    """
    height, width = image.shape[1:]
    below, right = -height % multiple, -width % multiple
    if below or right:
        image = torch.nn.functional.pad(
            image[None], (0, right, 0, below), mode="replicate"
        )[0]
    tall, wide = height + below, width + right
    h = tile_length(tall, tiling, multiple=multiple)
    w = tile_length(wide, tiling, multiple=multiple)
    corners = [
        (top, left)
        for top in plan_tiles(tall, tiling, multiple=multiple)
        for left in plan_tiles(wide, tiling, multiple=multiple)
    ]
    total = image.new_zeros(outputs, tall, wide)
    weights = image.new_zeros(tall, wide)

    def read_out() -> tuple[torch.Tensor, torch.Tensor]:
        mean = total[:, :height, :width] / weights[:height, :width].clamp(min=1e-6)
        return mean, weights[:height, :width]

    for start in range(0, len(corners), batch_size):
        part = corners[start : start + batch_size]
        batch = torch.stack([image[:, y : y + h, x : x + w] for y, x in part])
        for (y, x), seen in zip(part, forward(batch).float(), strict=True):
            weight = ramp(y, h, tall, tiling)[:, None] * ramp(x, w, wide, tiling)
            weight = weight.to(image.device)
            total[:, y : y + h, x : x + w] += seen * weight
            weights[y : y + h, x : x + w] += weight
        if attention is not None:
            attention.add(part, (h, w), (tall, wide), tiling)
        yield Step((start + len(part)) / len(corners), read_out)
        if cancelled():
            break
    maps = attention.maps((height, width)) if attention is not None else {}
    return Seen(*read_out(), attention=maps)
