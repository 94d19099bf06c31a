"""Networks that give pixels their classes, run over a plane."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from napari_fovea.images import resize
from napari_fovea.inference.tiles import Tiling, tiled
from napari_fovea.networks import PatchCenterConfig, probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import nn

    from napari_fovea.models import Model

    Cancelled = Callable[[], bool]

_PATCHES = 64  # classified together


def ready(model: Model, device: torch.device) -> nn.Module:
    """Copy the network to a device in the memory layout it is fastest in."""
    network = copy.deepcopy(model.network).eval().to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def looking(
    network: nn.Module,
    image: torch.Tensor,
    *,
    model: Model,
    tiling: Tiling | None = None,
    batch_size: int = 1,
    cancelled: Cancelled = lambda: False,
) -> Generator[float, None, tuple[torch.Tensor, torch.Tensor]]:
    """Run a dense network or a patch classifier over an image (C, H, W).

    Yields
    ------
    float
        The share that is done.

    Returns
    -------
    outputs : Tensor of float32, shape (outputs, H, W)
        Probabilities.
    weights : Tensor, shape (H, W)
        Above 0 where the network has looked.
    """
    if isinstance(model.config, PatchCenterConfig):
        return (yield from _patches(network, image, model.config, cancelled))

    def forward(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            batch = batch.contiguous(memory_format=torch.channels_last)
            return probabilities(network(batch))

    tiling = tiling or default_tiling(model)
    return (
        yield from tiled(
            forward,
            image,
            outputs=len(model.outputs),
            tiling=tiling,
            multiple=int(getattr(network, "multiple", 1)),
            batch_size=batch_size,
            cancelled=cancelled,
        )
    )


def default_tiling(model: Model) -> Tiling:
    """Tiles as large as those a model was trained on, where it says so."""
    tile = model.scan.get("tile")
    return Tiling(int(tile), 0, int(tile) // 4) if tile else Tiling()


def outputs_of(
    model: Model, image: torch.Tensor, *, network: nn.Module | None = None
) -> torch.Tensor:
    """Probabilities of all outputs (outputs, H, W) of an image (C, H, W)."""
    run = looking(network or ready(model, image.device), image, model=model)
    try:
        while True:
            next(run)
    except StopIteration as end:
        outputs: torch.Tensor = end.value[0]
        return outputs


def _patches(
    network: nn.Module,
    image: torch.Tensor,
    config: PatchCenterConfig,
    cancelled: Cancelled,
) -> Generator[float, None, tuple[torch.Tensor, torch.Tensor]]:
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
        yield (row + 1) / len(rows)
        if cancelled():
            break
    # The lattice may reach past the image by less than a cell.
    full = (len(rows) * step, len(columns) * step)
    found = resize(found, full)[:, :height, :width]
    return found, resize(seen, full)[0, :height, :width]


def _mirrored(index: torch.Tensor, length: int) -> torch.Tensor:
    period = max(1, 2 * length - 2)
    index = index % period
    return torch.where(index < length, index, period - index)
