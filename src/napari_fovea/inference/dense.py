"""Networks that give pixels their classes, run over a plane."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from napari_fovea.device import PRECISIONS, ran_out
from napari_fovea.images import resize
from napari_fovea.inference.needs import LEAST, needs
from napari_fovea.inference.reading import Choice, Seen, Step
from napari_fovea.inference.retreat import CPU, exhausted
from napari_fovea.inference.runner import Runner
from napari_fovea.inference.stitching import Stitcher
from napari_fovea.inference.tiles import Tiling, tile_length, tiled
from napari_fovea.networks import PatchCenterConfig, probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import nn

    from napari_fovea.device import Backend
    from napari_fovea.inference.attention import Wanted
    from napari_fovea.models import Model

    Cancelled = Callable[[], bool]

_PATCHES = 64  # classified together


def ready(model: Model, device: torch.device) -> nn.Module:
    """Copy the network to a device in the memory layout it is fastest in.

    For those who alter the copy or hook into it; readers share one, see `loaded`.
    """
    network = copy.deepcopy(model.network).eval().to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class DenseReader:
    """Reads planes with a network that tells every pixel's class.

    Parameters
    ----------
    model : Model
        A dense model or a patch classifier.
    device : str, torch.device or Backend
        Where the network runs, and how. Planes may lie elsewhere.
    tiling : Tiling, optional
        How to cut; by default as the model likes it, else as memory allows.
    batch_size : int, optional
        Tiles seen together; by default one on the CPU, elsewhere as many as fit.
    attention : sequence of Wanted
        Attention maps to keep.
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device | Backend,
        *,
        tiling: Tiling | None = None,
        batch_size: int | None = None,
        attention: Sequence[Wanted] = (),
    ) -> None:
        self.attention = attention
        self.model = model
        self.runner = Runner(model, device)
        self._asked = (tiling, batch_size)
        self._cut: tuple[Tiling, int] | None = None
        self._smallest: tuple[Tiling, int] | None = None

    @property
    def home(self) -> torch.device:
        """Where planes lie best: tiles travel."""
        return CPU

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told, or chose for the plane it has read last."""
        if isinstance(self.model.config, PatchCenterConfig):
            return {}
        tiling, batch_size = self._cut or self._asked
        return {
            "tiling": None if tiling is None else asdict(tiling),
            "batch_size": batch_size,
        }

    @property
    def largest(self) -> int | None:
        """Side of the largest tile that memory has room for.

        None where tiles are of a size of their own: the model's, or as was asked for.
        """
        if self._asked[0] is not None or self.model.scan.get("tile"):
            return None
        if isinstance(self.model.config, PatchCenterConfig):
            return None
        runner = self.runner
        multiple = int(getattr(self.model.network, "multiple", 1))
        # Whether 16 bits are good enough is not known yet.
        dtype = PRECISIONS.get(runner.backend.precision) or torch.float32
        need = needs(self.model.network, dtype, multiple=multiple)
        return need.side(runner.backend.allowance(runner.device), multiple=multiple)

    def choose(self, image: torch.Tensor) -> Choice:
        """Choose how to read planes like one; see `Reader.choose`."""
        if isinstance(self.model.config, PatchCenterConfig):
            return Choice(self.runner.precision)
        multiple = int(getattr(self.model.network, "multiple", 1))
        tiling, _ = self._choose(image, multiple)
        return Choice(self.runner.precision, tiling)

    def read(
        self,
        image: torch.Tensor,
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        cancelled: Cancelled = lambda: False,
    ) -> Generator[Step, None, Seen]:
        """Read a plane; see `Reader.read`."""
        config = self.model.config
        if isinstance(config, PatchCenterConfig):
            return (yield from _patches(self.runner, image, config, cancelled))

        size = (image.shape[1], image.shape[2])
        multiple = int(getattr(self.model.network, "multiple", 1))
        while True:
            try:
                self._cut = self._choose(image, multiple)
                return (yield from self._tiled(image, *self._cut, multiple, cancelled))
            except Exception as error:
                if not ran_out(error):
                    raise
            self._smaller(size, multiple)

    def _tiled(
        self,
        image: torch.Tensor,
        tiling: Tiling,
        batch_size: int,
        multiple: int,
        cancelled: Cancelled,
    ) -> Generator[Step, None, Seen]:
        runner, loaded = self.runner, self.runner.loaded
        stitcher = Stitcher(loaded.network, self.attention, multiple=multiple)
        watched = bool(self.attention)

        def forward(batch: torch.Tensor) -> torch.Tensor:
            with loaded.lock, stitcher.listening(), torch.inference_mode():
                return probabilities(loaded.run(batch, runner.dtype, plain=watched))

        return (
            yield from tiled(
                forward,
                image,
                outputs=len(self.model.outputs),
                tiling=tiling,
                multiple=multiple,
                batch_size=batch_size,
                device=runner.device,
                attention=stitcher,
                retreat=runner.retreat,
                cancelled=cancelled,
            )
        )

    def _choose(self, image: torch.Tensor, multiple: int) -> tuple[Tiling, int]:
        """Choose precision, tiling and batch for a plane, as far as nobody has."""
        runner = self.runner
        runner.settle(image, lambda network, x: probabilities(network(x)))
        tiling, batch = self._smallest or self._asked
        if tiling is None and self.model.scan.get("tile"):
            tiling = default_tiling(self.model)
        if batch is None and runner.device.type == "cpu":
            batch = 1  # more are no faster there, and take their memory
        size = image.shape[1:]
        if (tiling is None or batch is None) and max(size) > LEAST:
            need = needs(self.model.network, runner.dtype, multiple=multiple)
            memory = runner.backend.allowance(runner.device)
            tiling = tiling or Tiling(need.side(memory, multiple=multiple), even=True)
            if batch is None:
                sides = [tile_length(n, tiling, multiple=multiple) for n in size]
                batch = need.batch(memory, math.prod(sides))
        batch = batch or 1
        return tiling or Tiling(), min(batch, runner.retreat.most or batch)

    def _smaller(self, shape: tuple[int, int], multiple: int) -> None:
        """Take smaller tiles from here on, or the CPU, after memory has run out."""
        assert self._cut is not None
        tiling, _ = self._cut
        retreat = self.runner.retreat
        smaller = retreat.tile(tiling, shape, multiple=multiple)
        if smaller is not None:
            self._smallest = smaller, 1
        elif self.runner.fall_back():
            self._smallest = None
        else:
            side = min(tiling.size, max(shape))
            raise exhausted(self.runner.device, f"a tile of {side} pixels a side")


def default_tiling(model: Model) -> Tiling:
    """Tiles as large as those a model was trained on, where it says so."""
    tile = model.scan.get("tile")
    return Tiling(int(tile), 0, int(tile) // 4) if tile else Tiling()


def _patches(
    runner: Runner,
    image: torch.Tensor,
    config: PatchCenterConfig,
    cancelled: Cancelled,
) -> Generator[Step, None, Seen]:
    """Classify the patches around a lattice of pixels, and interpolate."""
    height, width = image.shape[1:]
    d, step = config.d, config.step
    look = runner.in_parts()
    rows = torch.arange(-(-height // step), device=image.device)
    columns = torch.arange(-(-width // step), device=image.device)
    # Cells of step × step pixels; a patch is centred on each.
    offsets = torch.arange(d, device=image.device) - (d - 1) // 2 + (step - 1) // 2
    found = image.new_zeros(config.classes, len(rows), len(columns))
    seen = image.new_zeros(1, len(rows), len(columns))
    across = _mirrored(columns[:, None] * step + offsets, width)  # (columns, d)

    def read_out() -> tuple[torch.Tensor, torch.Tensor]:
        # The lattice may reach past the image by less than a cell.
        full = (len(rows) * step, len(columns) * step)
        pmfs = resize(found, full)[:, :height, :width]
        return pmfs, resize(seen, full)[0, :height, :width]

    for row in rows.tolist():
        down = _mirrored(row * step + offsets, height)
        band = image[:, down]  # (C, d, W)
        for first in range(0, len(columns), _PATCHES):
            some = across[first : first + _PATCHES]
            patches = band[:, :, some].permute(2, 0, 1, 3)  # (b, C, d, d)
            pmfs = functional.softmax(look(patches), dim=1)
            found[:, row, first : first + len(some)] = pmfs.T
        seen[:, row] = 1
        yield Step((row + 1) / len(rows), read_out)
        if cancelled():
            break
    return Seen(*read_out())


def _mirrored(index: torch.Tensor, length: int) -> torch.Tensor:
    period = max(1, 2 * length - 2)
    index = index % period
    return torch.where(index < length, index, period - index)
