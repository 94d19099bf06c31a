"""Looking at features that the whole image shares, made once and by tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from napari_fovea.networks.shared_retina import places_of
from napari_fovea.retina import Frame

if TYPE_CHECKING:
    from napari_fovea.networks import SharedRetina

TILE = 2048
"""Side, in pixels, of what has its features made together, at most."""


class TrunkLook:
    """Looks at an image by reading the features of a shared trunk; see `retina.Look`.

    Features of the whole image are made at once and kept while it is looked at.

    Parameters
    ----------
    network : SharedRetina
        On the image's device.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    margin : int
        Pixels by which corners may lie outside the image; it is reflected there.
    tile : int
        Side in pixels of what has its features made together, at most; the trunk sees
        as much around it as they depend on.
    """

    def __init__(
        self,
        network: SharedRetina,
        image: torch.Tensor,
        *,
        margin: int,
        tile: int = TILE,
    ) -> None:
        self._network = network
        shape = (image.shape[-2], image.shape[-1])
        frame = Frame.around(shape, grid=network.grid, margin=margin)
        self._origin = torch.tensor(frame.origin, device=image.device)
        with torch.inference_mode():
            self._features = _features(network, frame.lay(image), tile)

    def __call__(self, corners: torch.Tensor) -> torch.Tensor:
        """Pmfs (B, N, K) of the subareas at ``corners`` (B, 2)."""
        with torch.inference_mode():
            logits = self._network.read(self._features, corners + self._origin)
            return logits.float().softmax(-1)


def _features(
    network: SharedRetina, canvas: torch.Tensor, tile: int
) -> tuple[torch.Tensor, ...]:
    """Features of a canvas (C, H, W), the same whether by tiles or at once."""
    multiple, reach = network.multiple, network.reach
    height, width = canvas.shape[1:]
    below, right = -height % multiple, -width % multiple
    canvas = functional.pad(canvas[None], (0, right, 0, below), mode="replicate")
    height, width = canvas.shape[2:]
    whole: list[torch.Tensor] = []
    high, wide = (_even(n, tile, multiple) for n in (height, width))
    for top in range(0, height, high):
        for left in range(0, width, wide):
            y, x = max(0, top - reach), max(0, left - reach)
            part = canvas[..., y : top + high + reach, x : left + wide + reach]
            part = part.contiguous(memory_format=torch.channels_last)
            for i, seen in enumerate(network.features(part)):
                stride, over = places_of(network.config, i)
                if len(whole) <= i:
                    size = (height // stride - over + 1, width // stride - over + 1)
                    made = seen.new_empty(1, seen.shape[1], *size)
                    made = made.contiguous(memory_format=torch.channels_last)
                    whole.append(made)
                h, w = high // stride, wide // stride
                a, b = top // stride, left // stride
                # Means over several features end with those that begin in the tile.
                inner = seen[..., (top - y) // stride :, (left - x) // stride :]
                inner = inner[..., :h, :w]
                whole[i][..., a : a + inner.shape[2], b : b + inner.shape[3]] = inner
    return tuple(whole)


def _even(length: int, most: int, multiple: int) -> int:
    """Side of tiles about as large as each other: a narrow last one is mostly halo."""
    each = -(-length // -(-length // most))
    return each + -each % multiple
