"""Looking at features that the whole image shares, made once and by tiles."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from napari_fovea.device import ran_out
from napari_fovea.inference.loaded import computing_in
from napari_fovea.inference.retreat import LEAST_TILE, exhausted
from napari_fovea.networks.shared_retina import places_of
from napari_fovea.retina import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from napari_fovea.inference.runner import Runner
    from napari_fovea.networks import SharedRetina

    Features = tuple[torch.Tensor, ...]

TILE = 2048
"""Side, in pixels, of what has its features made together, at most."""

KEPT = 2**29
"""Bytes of features that are kept for a second look at the same image, on a CPU."""

_kept: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Features]] = (
    WeakKeyDictionary()
)


class Trunk:
    """Makes the features of images that fixations read.

    Those of the last image are kept for as long as its network is, up to `KEPT`: a
    second scan of the same image only reads them.

    Parameters
    ----------
    runner : Runner
        Runs a `SharedRetina`.
    tile : int
        Side in pixels of what has its features made together, at most; the trunk sees
        as much around it as they depend on.
    """

    def __init__(self, runner: Runner, *, tile: int = TILE) -> None:
        self.runner = runner
        self._tile = tile

    @property
    def network(self) -> SharedRetina:
        """The network, ready where it runs."""
        network: Any = self.runner.loaded.network
        return network  # type: ignore[no-any-return]

    def look(
        self,
        image: torch.Tensor,
        *,
        margin: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Make the features of an image, and tell how to look at them.

        Parameters
        ----------
        image : Tensor of float32, shape (C, H, W)
            Normalised.
        margin : int
            Pixels by which corners may lie outside the image; it is reflected there.
        cancelled : callable
            Asked after every tile; where it says yes, the rest is left empty.

        Returns
        -------
        Look

        Raises
        ------
        OutOfMemoryError
            If not even small tiles fit into memory.
        """
        shape = (image.shape[-2], image.shape[-1])
        frame = Frame.around(shape, grid=self.network.grid, margin=margin)
        origin = torch.tensor(frame.origin, device=image.device)
        features = self._features(image, frame, margin, cancelled)

        def see(corners: torch.Tensor) -> torch.Tensor:
            return self._read(features, corners + origin).to(corners.device)

        return see

    def _features(
        self,
        image: torch.Tensor,
        frame: Frame,
        margin: int,
        cancelled: Callable[[], bool],
    ) -> Features:
        runner, retreat = self.runner, self.runner.retreat
        key = (_digest(image), margin, runner.dtype)
        known = _kept.get(runner.loaded.network)
        if known is not None and known[0] == key:
            return known[1]
        _kept.pop(runner.loaded.network, None)  # before as much is taken again
        tile = min(self._tile, max(frame.shape))
        while True:
            try:
                features = self._made(frame.lay(image), tile, cancelled)
                break
            except Exception as error:
                if not ran_out(error):
                    raise
            if tile > LEAST_TILE:
                smaller = max(LEAST_TILE, tile // 2)
                retreat.step("tile", tile, smaller)
                tile = smaller
            elif not runner.fall_back():
                raise exhausted(runner.device, f"a tile of {tile} pixels a side")
        size = sum(f.nbytes for f in features)
        # An accelerator gets its memory back.
        if runner.device.type == "cpu" and size <= KEPT and not cancelled():
            _kept[runner.loaded.network] = key, features
        return features

    def _made(
        self, canvas: torch.Tensor, tile: int, cancelled: Callable[[], bool]
    ) -> Features:
        runner = self.runner
        canvas = canvas.to(runner.device)
        lock, dtype = runner.loaded.lock, runner.dtype
        with lock, torch.inference_mode(), computing_in(dtype, runner.device):
            return make_features(self.network, canvas, tile, cancelled=cancelled)

    def _read(self, features: Features, corners: torch.Tensor) -> torch.Tensor:
        """Pmfs (B, N, K) at corners (B, 2) on the frame."""
        runner = self.runner
        lock, dtype = runner.loaded.lock, runner.dtype
        try:
            with lock, torch.inference_mode(), computing_in(dtype, runner.device):
                logits = self.network.read(features, corners.to(runner.device))
                return logits.float().softmax(-1)
        except Exception as error:
            if not ran_out(error):
                raise
        if len(corners) == 1:
            raise exhausted(runner.device, "one fixation")
        halves = torch.split(corners, math.ceil(len(corners) / 2))
        return torch.cat([self._read(features, half) for half in halves])


def _digest(image: torch.Tensor) -> str:
    """Tell one image from another; repeated channels need not be read again."""
    distinct = image[:1] if image.stride(0) == 0 else image
    values = distinct.cpu().contiguous().numpy().data
    return hashlib.blake2b(values, digest_size=16).hexdigest() + str(image.shape)


def make_features(
    network: SharedRetina,
    canvas: torch.Tensor,
    tile: int,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Features:
    """Make the features of a canvas (C, H, W), the same by tiles or at once."""
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
                    made = seen.new_zeros(1, seen.shape[1], *size)
                    made = made.contiguous(memory_format=torch.channels_last)
                    whole.append(made)
                h, w = high // stride, wide // stride
                a, b = top // stride, left // stride
                # Means over several features end with those that begin in the tile.
                inner = seen[..., (top - y) // stride :, (left - x) // stride :]
                inner = inner[..., :h, :w]
                whole[i][..., a : a + inner.shape[2], b : b + inner.shape[3]] = inner
            if cancelled():
                return tuple(whole)
    return tuple(whole)


def _even(length: int, most: int, multiple: int) -> int:
    """Side of tiles about as large as each other: a narrow last one is mostly halo."""
    each = -(-length // -(-length // most))
    return each + -each % multiple
