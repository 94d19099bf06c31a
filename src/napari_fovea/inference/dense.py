"""Networks that give pixels their classes, run over a plane."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from napari_fovea.images import resize
from napari_fovea.inference.reading import Seen, Step
from napari_fovea.inference.stitching import Stitcher
from napari_fovea.inference.tiles import Tiling, tiled
from napari_fovea.networks import PatchCenterConfig, probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import nn

    from napari_fovea.inference.attention import Wanted
    from napari_fovea.models import Model

    Cancelled = Callable[[], bool]

_PATCHES = 64  # classified together


def ready(model: Model, device: torch.device) -> nn.Module:
    """Copy the network to a device in the memory layout it is fastest in."""
    network = copy.deepcopy(model.network).eval().to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class DenseReader:
    """Reads planes with a network that tells every pixel's class.

    Parameters
    ----------
    model : Model
        A dense model or a patch classifier.
    device : torch.device
        Where the planes will be.
    tiling : Tiling, optional
        How to cut; by default as the model likes it.
    batch_size : int
        Tiles seen together.
    attention : sequence of Wanted
        Attention maps to keep.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        tiling: Tiling | None = None,
        batch_size: int = 1,
        attention: Sequence[Wanted] = (),
    ) -> None:
        self.attention = attention
        self.model = model
        self.tiling = tiling or default_tiling(model)
        self.batch_size = batch_size
        self._device = device
        self._network: nn.Module | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told."""
        if isinstance(self.model.config, PatchCenterConfig):
            return {}
        return {"tiling": asdict(self.tiling), "batch_size": self.batch_size}

    def read(
        self,
        image: torch.Tensor,
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        cancelled: Cancelled = lambda: False,
    ) -> Generator[Step, None, Seen]:
        """Read a plane; see `Reader.read`."""
        network = self._network = self._network or ready(self.model, self._device)
        config = self.model.config
        if isinstance(config, PatchCenterConfig):
            return (yield from _patches(network, image, config, cancelled))

        multiple = int(getattr(network, "multiple", 1))
        stitcher = Stitcher(network, self.attention, multiple=multiple)

        def forward(batch: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), stitcher.listening():
                batch = batch.contiguous(memory_format=torch.channels_last)
                return probabilities(network(batch))

        return (
            yield from tiled(
                forward,
                image,
                outputs=len(self.model.outputs),
                tiling=self.tiling,
                multiple=multiple,
                batch_size=self.batch_size,
                attention=stitcher,
                cancelled=cancelled,
            )
        )


def default_tiling(model: Model) -> Tiling:
    """Tiles as large as those a model was trained on, where it says so."""
    tile = model.scan.get("tile")
    return Tiling(int(tile), 0, int(tile) // 4) if tile else Tiling()


def _patches(
    network: nn.Module,
    image: torch.Tensor,
    config: PatchCenterConfig,
    cancelled: Cancelled,
) -> Generator[Step, None, Seen]:
    """Classify the patches around a lattice of pixels, and interpolate."""
    height, width = image.shape[1:]
    d, step = config.d, config.step
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
            patches = patches.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                pmfs = functional.softmax(network(patches).float(), dim=1)
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
