"""The attention of tiles joined to maps of planes, and of planes to maps of stacks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.inference.result import AttentionMap
from napari_fovea.inference.tiles import ramp
from napari_fovea.networks import capture_attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from napari_fovea.inference.attention import Wanted
    from napari_fovea.inference.tiles import Tiling


class Stitcher:
    """Keeps the attention of tiles, and joins it to maps of the plane.

    Only what was asked for is kept, at its own resolution; a mean over channels is
    taken as soon as the network has made them.

    Parameters
    ----------
    network : nn.Module
        The network that reads the tiles.
    asked : sequence of Wanted
        Which maps to keep.
    multiple : int
        What the network pads its sides to.
    """

    def __init__(
        self, network: nn.Module, asked: Sequence[Wanted], *, multiple: int
    ) -> None:
        self._network = network
        self._asked = asked
        self._multiple = multiple
        self._totals: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._strides: dict[str, tuple[int, int]] = {}
        self._latest: dict[str, torch.Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the network computes meanwhile; nothing if nothing is asked."""
        if not self._asked:
            yield
            return
        names = tuple({w.of for w in self._asked})
        with capture_attention(self._network, names, keep=self._reduce):
            yield

    def _reduce(self, label: str, output: torch.Tensor) -> None:
        for w in self._asked:
            if w.of == label:
                if w.channel is None:
                    one = output.mean(1, dtype=torch.float32)
                else:
                    one = output[:, w.channel].float()
                self._latest[w.name] = one  # (B, h, w)

    def add(
        self,
        corners: Sequence[tuple[int, int]],
        size: tuple[int, int],
        whole: tuple[int, int],
        tiling: Tiling,
    ) -> None:
        """Join the maps of a batch of tiles to those of the plane.

        Parameters
        ----------
        corners : sequence of tuple of int
            Where on the plane each tile begins (y, x).
        size, whole : tuple of int
            Height and width of a tile, and of the plane.
        tiling : Tiling
            How tiles fade into each other.
        """
        for name, maps in self._latest.items():
            if name not in self._strides:
                # The network may have padded a tile that is smaller than it takes.
                self._strides[name] = (
                    self._padded(size[0]) // maps.shape[1],
                    self._padded(size[1]) // maps.shape[2],
                )
            down, right = self._strides[name]
            shape = (-(-whole[0] // down), -(-whole[1] // right))
            if name not in self._totals:
                self._totals[name] = maps.new_zeros(shape)
                self._weights[name] = maps.new_zeros(shape)
            h, w = -(-size[0] // down), -(-size[1] // right)
            for (top, left), seen in zip(corners, maps, strict=True):
                rows = _shrunk(ramp(top, size[0], whole[0], tiling), down)
                columns = _shrunk(ramp(left, size[1], whole[1], tiling), right)
                weight = (rows[:, None] * columns).to(maps.device)
                y, x = top // down, left // right
                part = (slice(y, y + h), slice(x, x + w))
                self._totals[name][part] += seen[:h, :w] * weight
                self._weights[name][part] += weight
        self._latest = {}

    def _padded(self, length: int) -> int:
        multiple = self._multiple
        return max(2 * multiple, length + -length % multiple)

    def maps(self, shape: tuple[int, int]) -> dict[str, Patchwork]:
        """Give the maps of the plane, cropped to its own height and width."""
        made = {}
        for name, total in self._totals.items():
            down, right = self._strides[name]
            mean = total / self._weights[name].clamp(min=1e-6)
            cropped = mean[: -(-shape[0] // down), : -(-shape[1] // right)]
            made[name] = Patchwork(cropped.cpu().numpy(), (down, right))
        return made


@dataclass(frozen=True, slots=True)
class Patchwork:
    """An attention map of one plane.

    Attributes
    ----------
    array : ndarray of float32, shape (h, w)
        Coefficients.
    stride : tuple of int
        Pixels of the plane, as the network was shown it, per pixel of the map.
    """

    array: NDArray[np.float32]
    stride: tuple[int, int]

    def lay(self, scale: tuple[float, float]) -> dict[str, tuple[float, float]]:
        """Scale and offset on the user's image, which the plane was resized from."""
        down, right = (n * s for n, s in zip(self.stride, scale, strict=True))
        return {"scale": (down, right), "offset": ((down - 1) / 2, (right - 1) / 2)}


def _shrunk(weights: torch.Tensor, stride: int) -> torch.Tensor:
    """Means of ``stride`` weights each; a last, shorter one counts in full."""
    short = -len(weights) % stride
    padded = torch.cat([weights, weights[-1:].expand(short)])
    return padded.view(-1, stride).mean(1)


def join_planes(
    parts: Mapping[int, Mapping[str, Patchwork]],
    *,
    lead: tuple[int, ...],
    scale: tuple[float, float],
) -> tuple[AttentionMap, ...]:
    """Join the maps of planes to maps of the stack; planes without any are 0."""
    names = dict.fromkeys(name for maps in parts.values() for name in maps)
    made: list[AttentionMap] = []
    for name in names:
        known: dict[int, Any] = {i: m[name] for i, m in parts.items() if name in m}
        first: Patchwork = next(iter(known.values()))
        count = int(np.prod(lead, dtype=np.int64))
        array = np.zeros((count, *first.array.shape), dtype=np.float32)
        for index, part in known.items():
            array[index] = part.array
        shaped = array.reshape(*lead, *first.array.shape)
        made.append(AttentionMap(name, shaped, **first.lay(scale)))
    return tuple(made)
