"""Finding objects with a detector."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.device import ran_out
from napari_fovea.inference.needs import LEAST, needs
from napari_fovea.inference.reading import Choice, Seen, Step
from napari_fovea.inference.retreat import CPU, exhausted
from napari_fovea.inference.runner import Runner
from napari_fovea.inference.stitching import Stitcher
from napari_fovea.inference.tiles import Tiling, plan_tiles, tile_length
from napari_fovea.networks.mask_rcnn import Detections, MaskRCNN, paste

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import nn

    from napari_fovea.device import Backend
    from napari_fovea.inference.attention import Wanted
    from napari_fovea.models import Model

SCORE = 0.5
"""Least score of an object that is shown, where the model names none."""


TILING = Tiling(1024, halo=96, blend=0, even=True)
"""How large planes are cut: an object of up to the halo's size is seen whole.

Tiles are smaller where memory is, but never larger: a detector tells only so many
objects of what it is shown."""

_MULTIPLE = 32


class DetectorReader:
    """Reads planes with a detector, which finds objects first.

    Large planes are read in overlapping tiles. An object belongs to the tile in
    whose own part its centre lies, so it is told once.

    Parameters
    ----------
    model : Model
        A detector.
    device : str, torch.device or Backend
        Where the network runs, and how. Planes may lie elsewhere.
    tiling : Tiling, optional
        How to cut; its ``blend`` is not needed.
    score : float, optional
        Least score of an object that is kept; by default the model's own.
    attention : sequence of Wanted
        Attention maps to keep.
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device | Backend,
        *,
        tiling: Tiling | None = None,
        score: float | None = None,
        attention: Sequence[Wanted] = (),
    ) -> None:
        self.attention = attention
        self.model = model
        self.tiling = tiling
        self.score = least_score(model) if score is None else score
        self.runner = Runner(model, device, compiles=False)

    @property
    def home(self) -> torch.device:
        """Where planes lie best: tiles travel."""
        return CPU

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told, or chose for the plane it has read last."""
        return {"tiling": None if self.tiling is None else asdict(self.tiling)}

    def choose(self, image: torch.Tensor) -> Choice:
        """Choose how to read planes like one; see `Reader.choose`."""
        self.runner.settle(image, _objectness)
        tiling = self.tiling or self._sized((image.shape[1], image.shape[2]))
        return Choice(self.runner.precision, tiling)

    def read(
        self,
        image: torch.Tensor,
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[Step, None, Seen]:
        """Read a plane; see `Reader.read`."""
        shape = (image.shape[1], image.shape[2])
        while True:
            try:
                self.runner.settle(image, _objectness)
                self.tiling = self.tiling or self._sized(shape)
                return (yield from self._tiled(image, self.tiling, cancelled))
            except Exception as error:
                if not ran_out(error):
                    raise
            tiling = self.tiling or TILING
            smaller = self.runner.retreat.tile(tiling, shape, multiple=_MULTIPLE)
            if smaller is not None:
                self.tiling = smaller
            elif not self.runner.fall_back():
                side = min(tiling.size, max(shape))
                raise exhausted(self.runner.device, f"a tile of {side} pixels a side")

    def _sized(self, shape: tuple[int, int]) -> Tiling:
        if max(shape) <= LEAST:
            return TILING
        runner = self.runner
        need = needs(self.model.network, runner.dtype, multiple=_MULTIPLE)
        side = need.side(runner.backend.allowance(runner.device), multiple=_MULTIPLE)
        return replace(TILING, size=min(side, TILING.size))

    def _tiled(
        self, image: torch.Tensor, tiling: Tiling, cancelled: Callable[[], bool]
    ) -> Generator[Step, None, Seen]:
        runner, loaded = self.runner, self.runner.loaded
        height, width = image.shape[1:]
        # The network pads what a last tile lacks, as it pads a whole plane.
        tall, wide = (n + -n % _MULTIPLE for n in (height, width))
        h = tile_length(tall, tiling, multiple=_MULTIPLE)
        w = tile_length(wide, tiling, multiple=_MULTIPLE)
        tops = plan_tiles(tall, tiling, multiple=_MULTIPLE)
        lefts = plan_tiles(wide, tiling, multiple=_MULTIPLE)
        found: list[Detections] = []
        looked = torch.zeros(height, width)
        stitcher = Stitcher(loaded.network, self.attention, multiple=_MULTIPLE)

        def peek() -> tuple[torch.Tensor, torch.Tensor]:
            _, probabilities = paste(join(found), (height, width))
            return torch.from_numpy(probabilities), looked

        for i, top in enumerate(tops):
            for j, left in enumerate(lefts):
                tile = image[None, :, top : top + h, left : left + w]
                with loaded.lock, stitcher.listening():
                    told = loaded.run(tile.to(runner.device), runner.dtype)
                seen: Detections = told[0].to("cpu")
                # What the network padded lies beyond the plane.
                stitcher.add([(top, left)], (h, w), (tall, wide), tiling)
                rows, columns = _part(tops, i, h), _part(lefts, j, w)
                found.append(_owned(seen, (left, top), columns, rows, self.score))
                looked[top : top + h, left : left + w] = 1
                yield Step((i * len(lefts) + j + 1) / (len(tops) * len(lefts)), peek)
                if cancelled():
                    break
            if cancelled():
                break
        seen_all = _painted(join(found), looked)
        return replace(seen_all, attention=stitcher.maps((height, width)))


def least_score(model: Model) -> float:
    """Tell from which score on a detector's objects are shown."""
    return float(model.scan.get("score", SCORE))


def _objectness(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Probability of every anchor to be an object: what does not depend on the rest."""
    assert isinstance(network, MaskRCNN)
    logits, _ = network.proposals(network.features(images))
    return torch.cat(logits, dim=1).float().sigmoid()


def _part(starts: tuple[int, ...], index: int, length: int) -> tuple[float, float]:
    """Where the centres lie of the objects that belong to a tile."""
    start = starts[index]
    low = -np.inf if index == 0 else (starts[index - 1] + length + start) / 2
    last = index + 1 == len(starts)
    high = np.inf if last else (start + length + starts[index + 1]) / 2
    return float(low), float(high)


def _owned(
    seen: Detections,
    offset: tuple[int, int],
    columns: tuple[float, float],
    rows: tuple[float, float],
    score: float,
) -> Detections:
    """Lay a tile's sure objects on the plane, those that belong to it."""
    # Whatever the network computed in, places on the plane need all 32 bits.
    boxes = seen.boxes.float() + torch.tensor(offset * 2)
    x, y = (boxes[:, :2] + boxes[:, 2:]).unbind(1)
    kept = (x >= 2 * columns[0]) & (x < 2 * columns[1])
    kept &= (y >= 2 * rows[0]) & (y < 2 * rows[1]) & (seen.scores >= score)
    return Detections(
        boxes=boxes[kept],
        scores=seen.scores[kept].float(),
        labels=seen.labels[kept],
        masks=seen.masks[kept].float(),
        classes=seen.classes,
    )


def join(parts: list[Detections]) -> Detections:
    """Put detections of one plane together."""
    return Detections(
        boxes=torch.cat([p.boxes for p in parts]),
        scores=torch.cat([p.scores for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        masks=torch.cat([p.masks for p in parts]),
        classes=parts[0].classes,
    )


def _painted(found: Detections, looked: torch.Tensor) -> Seen:
    height, width = looked.shape
    instances, outputs = paste(found, (height, width))
    # Those that another hides have no pixels: number what is left.
    shown = np.unique(instances[instances > 0])
    numbers = np.zeros(len(found) + 1, dtype=np.int32)
    numbers[shown] = np.arange(1, len(shown) + 1)
    classes = np.zeros(len(found) + 1, dtype=np.uint8)
    classes[1:] = found.labels.numpy()
    return Seen(
        torch.from_numpy(outputs),
        looked,
        labels=classes[instances],
        instances=numbers[instances],
    )
