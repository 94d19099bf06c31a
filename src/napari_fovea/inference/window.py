"""A window on a resized plane: what a network is shown of it, and where that lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_fovea.inference.region import Region
from napari_fovea.inference.result import AttentionMap
from napari_fovea.networks import MaskRCNNConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from napari_fovea.models import Model

_MARGIN = 64  # pixels around a region that is as large as the window
_DETECTOR_MULTIPLE = 32


@dataclass(frozen=True)
class Window:
    """Part of a plane, in pixels of the plane as a network is shown it.

    Attributes
    ----------
    top, left, height, width : int
        What it covers.
    multiple : int
        What the network pads its sides to.
    scale : tuple of float
        Pixels of the user's image per pixel of the plane (y, x).
    """

    top: int
    left: int
    height: int
    width: int
    multiple: int
    scale: tuple[float, float]

    @classmethod
    def around(
        cls,
        region: Region,
        resized: tuple[int, int],
        *,
        shape: tuple[int, int],
        model: Model,
        side: int,
    ) -> Window:
        """Choose a window that holds a region.

        Parameters
        ----------
        region : Region
            In pixels of the plane.
        resized, shape : tuple of int
            Height and width of the plane, and of the user's image.
        model : Model
            Tells what its network pads to, and how much it should see at once.
        side : int
            Least side, where the plane is as large.
        """
        detector = isinstance(model.config, MaskRCNNConfig)
        own = int(getattr(model.network, "multiple", 1))
        multiple = _DETECTOR_MULTIPLE if detector else own
        side = min(side, int(model.scan.get("tile", side)))
        tall, wide = region.mask.shape
        top, height = _span(region.top, tall, resized[0], side, multiple)
        left, width = _span(region.left, wide, resized[1], side, multiple)
        scale = (shape[0] / resized[0], shape[1] / resized[1])
        return cls(top, left, height, width, multiple, scale)

    def cut(self, plane: torch.Tensor) -> torch.Tensor:
        """Cut it from a plane (C, H, W), as a batch of one of which slopes are kept."""
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        part = plane[None, :, rows, columns].clone()
        return part.contiguous(memory_format=torch.channels_last).requires_grad_()

    def inside(self, region: Region) -> Region:
        """Tell the same region in pixels of the window."""
        return Region(region.top - self.top, region.left - self.left, region.mask)

    def stride(self, shape: Sequence[int]) -> tuple[float, float]:
        """Pixels per cell of a feature map of a shape (…, h, w)."""
        sides = (self.height, self.width)
        # Networks pad as `on_multiple` does, and feature maps span the padding too.
        padded = [max(2 * self.multiple, n + -n % self.multiple) for n in sides]
        return padded[0] / shape[-2], padded[1] / shape[-1]

    def lay(
        self,
        name: str,
        array: NDArray[np.float32],
        stride: tuple[float, float] = (1.0, 1.0),
    ) -> AttentionMap:
        """Lay a map of the window on the user's image."""
        (down, right), (sy, sx) = stride, self.scale
        # The centre of the first pixel is half of it from the window's edge.
        y, x = self.top + down / 2, self.left + right / 2
        offset = (y * sy - 0.5, x * sx - 0.5)
        return AttentionMap(name, array, (down * sy, right * sx), offset)

    def on_image(
        self, box: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float]:
        """Tell a box (top, left, bottom, right) in pixels of the user's image."""
        (top, left, bottom, right), (sy, sx) = box, self.scale
        return (
            (self.top + top) * sy - 0.5,
            (self.left + left) * sx - 0.5,
            (self.top + bottom) * sy - 0.5,
            (self.left + right) * sx - 0.5,
        )


def _span(
    start: int, extent: int, length: int, side: int, multiple: int
) -> tuple[int, int]:
    """Where a window begins along one axis, and how many pixels it has."""
    margin = min(_MARGIN, max(multiple, side // 4))
    size = max(side, extent + 2 * margin)
    size += -size % multiple
    if size >= length:
        return 0, length
    first = (start + extent // 2 - size // 2) // multiple * multiple
    # The last window ends where the plane does, so it is padded as the plane would be.
    last = length - size + -(length - size) % multiple
    first = min(max(0, first), last)
    return first, min(size, length - first)
