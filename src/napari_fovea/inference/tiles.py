"""Planes larger than one look, seen in overlapping tiles that fade into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_fovea.device import ran_out
from napari_fovea.errors import ImageError
from napari_fovea.inference.reading import Seen, Step
from napari_fovea.inference.transfer import through

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from napari_fovea.inference.retreat import Retreat
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
    even : bool
        Whether a plane is cut into tiles alike, no larger than they need be, rather
        than into tiles of ``size`` of which the last shares more with the one before.
    """

    size: int = 1024
    halo: int = 64
    blend: int = 16
    even: bool = False

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
    if length <= size:
        return length
    if not tiling.even:
        return size
    shared = -(-tiling.overlap // multiple) * multiple
    count = -(-(length - shared) // (size - shared))
    stride = -(-(length - shared) // (count * multiple)) * multiple
    return stride + shared


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
    device: torch.device | None = None,
    attention: Stitcher | None = None,
    retreat: Retreat | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Step, None, Seen]:
    """Run a network over a plane by tiles.

    Parameters
    ----------
    forward : callable
        Images (B, C, h, w) → probabilities (B, outputs, h, w).
    image : Tensor, shape (C, H, W)
        The plane. What is seen of it is joined where it lies.
    outputs : int
        Channels that come out.
    tiling : Tiling
        How to cut.
    multiple : int
        What the network's sides divide by.
    batch_size : int
        Tiles seen together.
    device : torch.device, optional
        Where ``forward`` runs; by default where the plane lies.
    attention : Stitcher, optional
        Joins the attention that ``forward`` left with it.
    retreat : Retreat, optional
        Makes batches smaller where memory runs out.
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
    tops = plan_tiles(tall, tiling, multiple=multiple)
    lefts = plan_tiles(wide, tiling, multiple=multiple)
    corners = [(top, left) for top in tops for left in lefts]
    down = {y: ramp(y, h, tall, tiling).to(image.device)[:, None] for y in tops}
    across = {x: ramp(x, w, wide, tiling).to(image.device) for x in lefts}
    total = image.new_zeros(outputs, tall, wide)
    weights = image.new_zeros(tall, wide)

    def read_out() -> tuple[torch.Tensor, torch.Tensor]:
        mean = total[:, :height, :width] / weights[:height, :width].clamp(min=1e-6)
        return mean, weights[:height, :width]

    def cut(
        done: int, count: int
    ) -> Iterator[tuple[torch.Tensor, Sequence[tuple[int, int]]]]:
        for i in range(done, len(corners), count):
            part = corners[i : i + count]
            yield torch.stack([image[:, y : y + h, x : x + w] for y, x in part]), part

    def seeing(batch: torch.Tensor, part: Sequence[tuple[int, int]]) -> torch.Tensor:
        seen = forward(batch)
        if attention is not None:
            attention.add(part, (h, w), (tall, wide), tiling)
        return seen

    done, stopped = 0, False
    while done < len(corners) and not stopped:
        failed = False
        try:
            batches = cut(done, batch_size)
            for found, part in through(seeing, batches, device or image.device):
                for (y, x), seen in zip(part, found, strict=True):
                    weight = down[y] * across[x]
                    total[:, y : y + h, x : x + w].addcmul_(seen, weight)
                    weights[y : y + h, x : x + w] += weight
                done += len(part)
                yield Step(done / len(corners), read_out)
                stopped = cancelled()
                if stopped:
                    break
        except Exception as error:
            if retreat is None or batch_size == 1 or not ran_out(error):
                raise
            failed = True
        if failed and retreat is not None:
            retreat.batch(batch_size)
            batch_size = retreat.most or 1
    maps = attention.maps((height, width)) if attention is not None else {}
    total /= weights.clamp(min=1e-6)  # in place: nobody adds to it any more
    return Seen(total[:, :height, :width], weights[:height, :width], attention=maps)
