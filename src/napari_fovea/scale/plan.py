"""Where a large image is cut: cores that are written, with halos that are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.errors import ImageError
from napari_fovea.inference.dense import default_tiling
from napari_fovea.inference.detect import TILING
from napari_fovea.inference.joint import member_scale
from napari_fovea.networks import MaskRCNNConfig, PatchCenterConfig, RetinaConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from napari_fovea.models import Model

CHUNK = 2048
"""Side of a core in pixels, at most, unless the user says otherwise."""

_STEP = 32  # networks pool by it, and results are shrunk by it, without a remainder
_LEAST_HALO = 64
_SMALLEST = 64  # side of a core at the coarsest level of the result
_GLANCE = 512  # a level that small shows the whole plane at once

Span = tuple[int, int]
"""Beginning and end along one axis."""


@dataclass(frozen=True)
class Block:
    """A part of a plane that is segmented at once.

    Attributes
    ----------
    index : int
        Number of the block, through the whole stack.
    plane : int
        Plane of the stack.
    rows, columns : Span
        Its core: what is written.
    seen_rows, seen_columns : Span
        Core and halo: what the network sees.
    """

    index: int
    plane: int
    rows: Span
    columns: Span
    seen_rows: Span
    seen_columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the core."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def inner(self) -> tuple[slice, slice]:
        """The core, within what is seen."""
        top, left = self.seen_rows[0], self.seen_columns[0]
        return (
            slice(self.rows[0] - top, self.rows[1] - top),
            slice(self.columns[0] - left, self.columns[1] - left),
        )

    def __str__(self) -> str:
        place = (
            f"rows {self.rows[0]} to {self.rows[1] - 1}, "
            f"columns {self.columns[0]} to {self.columns[1] - 1}"
        )
        return f"plane {self.plane}, {place}" if self.plane else place


@dataclass(frozen=True)
class Plan:
    """How a stack of planes is cut into blocks, plane by plane and row by row.

    Attributes
    ----------
    planes : int
        Number of planes.
    shape : tuple of int
        Height and width of each.
    core : tuple of int
        Height and width of a core; the last of a row or column may be smaller.
    halo : int
        Pixels around a core that are seen too.
    """

    planes: int
    shape: tuple[int, int]
    core: tuple[int, int]
    halo: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks in a plane."""
        rows, columns = (-(-n // c) for n, c in zip(self.shape, self.core, strict=True))
        return rows, columns

    @property
    def band(self) -> int:
        """Pixels on either side of a border on which neighbours compare objects.

        Half a halo: what is seen at its very edge is not to be relied on.
        """
        return max(1, min(self.halo, *self.core) // 2)

    @property
    def levels(self) -> int:
        """How many times the result is stored, each half as large as the last.

        Every block shrinks by itself, so there is no level at which it would not.
        """
        level = 0
        while (
            min(self.core) >> (level + 1) >= _SMALLEST
            and 2 << level <= _STEP
            and max(self.shape) >> level > _GLANCE
        ):
            level += 1
        return level + 1

    def __len__(self) -> int:
        return self.planes * math.prod(self.grid)

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        rows, columns = self.grid
        plane, rest = divmod(index, rows * columns)
        spans = []
        for place, length, core in zip(
            divmod(rest, columns), self.shape, self.core, strict=True
        ):
            low, high = place * core, min(length, (place + 1) * core)
            seen = max(0, low - self.halo), min(length, high + self.halo)
            spans.append(((low, high), seen))
        (y, seen_y), (x, seen_x) = spans
        return Block(index, plane, y, x, seen_y, seen_x)

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))

    def neighbours(self, index: int) -> list[tuple[int, int, int]]:
        """Tell the blocks beside and below a block: (index, down, right).

        ``down`` and ``right`` are steps of the grid, so each pair of neighbours,
        those that share a corner included, is told once.
        """
        rows, columns = self.grid
        y, x = divmod(index % (rows * columns), columns)
        return [
            (index + down * columns + right, down, right)
            for down, right in ((0, 1), (1, -1), (1, 0), (1, 1))
            if y + down < rows and 0 <= x + right < columns
        ]

    def nearest(self, among: Collection[int], near: tuple[float, ...] | None) -> int:
        """Choose the block that is next.

        Parameters
        ----------
        among : collection of int
            Indices of blocks, at least one.
        near : tuple of float or None
            Row and column, or plane, row and column; without it, the first block.
        """
        if near is None:
            return min(among)
        if len(near) not in (2, 3) or not all(map(math.isfinite, near)):
            raise ImageError(
                f"Blocks are to be near {near}; expected the row and column of a "
                "pixel, or its plane, row and column."
            )

        # Of a long stack there may be many, and this is asked before every block.
        index = np.sort(np.fromiter(among, np.int64, len(among)))
        rows, columns = self.grid
        plane, rest = np.divmod(index, rows * columns)
        centres = [
            (place * core + np.minimum((place + 1) * core, length)) / 2
            for place, core, length in zip(
                np.divmod(rest, columns), self.core, self.shape, strict=True
            )
        ]
        away = np.hypot(centres[0] - near[-2], centres[1] - near[-1])
        planes = np.abs(plane - near[0]) if len(near) == 3 else plane
        return int(index[np.lexsort((away, planes))[0]])


def cut(planes: int, shape: tuple[int, int], *, halo: int, chunk: int = CHUNK) -> Plan:
    """Cut planes into blocks.

    Parameters
    ----------
    planes : int
        Number of planes.
    shape : tuple of int
        Height and width of each.
    halo : int
        Pixels around a core that are seen too.
    chunk : int
        Side of a core, at most.

    Raises
    ------
    ImageError
        If the side is smaller than 32 pixels.
    """
    if chunk < _STEP:
        raise ImageError(
            f"The side of a block is {chunk}; expected {_STEP} pixels or more, such as "
            f"{CHUNK}."
        )
    most = chunk // _STEP * _STEP
    height, width = (min(most, -(-n // _STEP) * _STEP) for n in shape)
    return Plan(planes, shape, (height, width), halo)


def chunk_of(model: Model, factor: float, halo: int, *, side: int | None) -> int:
    """Tell the side of cores that suits a model.

    A model that reads tiles should not read one for a few pixels that are left over,
    so core and halos are as wide as whole tiles, or as one that fits into memory.

    Parameters
    ----------
    model : Model
        Its kind tells how it reads.
    factor : float
        By which the image is resized for it.
    halo : int
        Image pixels around a core.
    side : int or None
        Side of the largest tile that fits into memory, for models that read whole
        what they can.
    """
    config = model.config
    if model.members or isinstance(config, RetinaConfig | PatchCenterConfig):
        return CHUNK
    if side is not None:
        most = math.floor(side / factor) - 2 * halo
        return max(CHUNK // 4, min(CHUNK, most)) // _STEP * _STEP
    tiling = TILING if isinstance(config, MaskRCNNConfig) else default_tiling(model)
    stride = tiling.size - tiling.overlap
    more = math.floor(((CHUNK + 2 * halo) * factor - tiling.size) / stride)
    if more < 0:  # a tile sees it all
        return CHUNK
    fitting = math.floor((tiling.size + more * stride) / factor) - 2 * halo
    return fitting // _STEP * _STEP if fitting >= CHUNK // 4 else CHUNK


def halo_of(model: Model, factor: float) -> int:
    """Tell how far around a core a model must see, in image pixels.

    Parameters
    ----------
    model : Model
        Its kind tells how far it looks, its objects how much must be seen of one.
    factor : float
        By which the image is resized for it.
    """
    if model.members:
        return max(halo_of(m, factor * member_scale(model, m)) for m in model.members)
    config = model.config
    if isinstance(config, RetinaConfig | PatchCenterConfig):
        reach = int(getattr(model.network, "reach", config.d))
    elif isinstance(config, MaskRCNNConfig):
        reach = TILING.halo
    else:
        reach = max(_LEAST_HALO, default_tiling(model).halo)
    pixels = max(reach, model.object_diameter or 0) / factor
    return math.ceil(pixels / _STEP) * _STEP
