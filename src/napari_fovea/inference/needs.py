"""How much memory a network's features take, measured, and what fits into some."""

from __future__ import annotations

import copy
import math
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_fovea.inference.loaded import computing_in
from napari_fovea.networks.mask_rcnn import MaskRCNN

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

MARGIN = 1.6
"""Memory taken over that of the features: workspaces of convolutions, and what
allocators round up and keep. On a CPU 1.1 to 1.57 times were measured."""

LEAST, MOST = 256, 4096
"""Sides of tiles in pixels, as far as memory may choose them."""

_BUSY = 2048**2  # pixels of a batch that keep any accelerator busy


@dataclass(frozen=True)
class Needs:
    """Memory for the features of an image.

    Attributes
    ----------
    stages : tuple of tuple of float
        For each stage of a network, bytes that it takes of any image, and bytes that
        every pixel adds.
    """

    stages: tuple[tuple[float, float], ...]

    def bytes(self, pixels: int) -> int:
        """Tell what an image or batch of so many pixels takes."""
        return math.ceil(MARGIN * max(a + b * pixels for a, b in self.stages))

    def side(self, memory: int, *, multiple: int = 1) -> int:
        """Tell the largest square tile that fits, within `LEAST` and `MOST`."""
        room = min((memory / MARGIN - a) / b for a, b in self.stages)
        side = math.isqrt(max(0, int(room)))
        side = min(MOST, max(LEAST, side))
        return side // multiple * multiple

    def batch(self, memory: int, pixels: int) -> int:
        """Tell how many tiles of so many pixels fit, and are of use together."""
        fits = 1
        while (2 * fits) * pixels <= _BUSY and self.bytes(2 * fits * pixels) <= memory:
            fits *= 2
        return fits


_known: dict[tuple[type, str, torch.dtype], Needs] = {}
_measuring = threading.Lock()


def needs(network: nn.Module, dtype: torch.dtype, *, multiple: int = 1) -> Needs:
    """Measure what a network needs, once for its kind and settings.

    It is run on the CPU, on two small images of noise, while every tensor that
    comes to life is followed to its end. Two sizes tell what every pixel adds.

    Parameters
    ----------
    network : nn.Module
        A registered network.
    dtype : torch.dtype
        What it computes in.
    multiple : int
        What its sides divide by.

    Returns
    -------
    Needs
    """
    config: Any = network.config
    key = (type(network), config.model_dump_json(), dtype)
    with _measuring:
        if key not in _known:
            _known[key] = _measure(network, dtype, config.channels, multiple)
        return _known[key]


def _measure(
    network: nn.Module, dtype: torch.dtype, channels: int, multiple: int
) -> Needs:
    # Of 16 bits all are alike in size, and bfloat16 is the one that CPUs know.
    dtype = torch.bfloat16 if dtype.itemsize == 2 else dtype
    network = copy.deepcopy(network).eval().cpu()
    stages: list[tuple[Callable[[torch.Tensor], Any], int]] = [(network, 128)]
    if isinstance(network, MaskRCNN):
        # A detector's regions take as much of any image: in small ones they hide
        # what its pyramid takes of large ones.
        stages = [(network.features, 128), (network, 128)]
    found = []
    for run, side in stages:
        peaks = []
        sides = [n + -n % multiple for n in (side, 2 * side)]
        for n in sides:
            noise = torch.rand(1, channels, n, n)
            noise = noise.contiguous(memory_format=torch.channels_last)
            live = _Live()
            with torch.inference_mode(), computing_in(dtype, noise.device), live:
                run(noise)
            peaks.append(live.peak + noise.nbytes)
        each = (peaks[1] - peaks[0]) / (sides[1] ** 2 - sides[0] ** 2)
        found.append((max(0.0, peaks[0] - each * sides[0] ** 2), max(each, 1.0)))
    return Needs(tuple(found))


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of all tensors that are made while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {_place(t) for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            place = _place(tensor)
            if place and place not in given and place not in self._alive:
                storage = tensor.untyped_storage()
                size = storage.nbytes()
                self._alive.add(place)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, place, size)
        return out

    def _free(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size


def _tensors(tree: object) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
