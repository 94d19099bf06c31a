"""Images in pieces, and a finder of bright objects that sees what a human would."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from scipy import ndimage
from torch import nn

from napari_fovea import segment_large as segment_in_blocks
from napari_fovea.device import Backend
from napari_fovea.models import Model
from napari_fovea.networks import MaskRCNNConfig, build
from napari_fovea.networks.mask_rcnn import Detections

if TYPE_CHECKING:
    from pathlib import Path


# What is compared has to be exact.
EXACT = Backend("cpu", precision="float32")
segment_large = partial(segment_in_blocks, device=EXACT)


class Bright(nn.Module):
    """Finds every bright region of what it is shown, pixel by pixel."""

    def __init__(self, score: float = 0.9) -> None:
        super().__init__()
        self.config = MaskRCNNConfig()
        self.score = score

    def forward(self, images: torch.Tensor) -> list[Detections]:
        found, n = ndimage.label(images[0, 0].numpy() > 0.5)
        boxes, masks = [], []
        for i, (y, x) in enumerate(ndimage.find_objects(found)):
            boxes.append([x.start, y.start, x.stop, y.stop])
            mask = torch.from_numpy((found[y, x] == i + 1).astype(np.float32))
            masks.append(
                nn.functional.interpolate(mask[None, None], (28, 28), mode="bilinear")
            )
        return [
            Detections(
                boxes=torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
                scores=torch.full((n,), self.score),
                labels=torch.ones(n, dtype=torch.int64),
                masks=torch.cat(masks)[:, 0] if n else torch.ones(0, 28, 28),
                classes=2,
            )
        ]


class Unregistered(Model):
    """A model of a network that only tests know."""

    @property
    def system(self) -> str:
        return "S4"


def finder(**changes: Any) -> Model:
    return Unregistered("bright", Bright(**changes), ("background", "disc"), (0, 1))


def dense() -> Model:
    """A network of pixels that sees no further than 32 of them."""
    network = build("unet", {"width": 4, "depth": 3, "classes": 3})
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim <= 1:
            value.add_(torch.randn_like(value), alpha=0.1)
    return Model(
        name="dense",
        network=network.eval().requires_grad_(False),
        classes=("background", "nucleus"),
        outputs=(0, 1, 1),
        depths=(0.0, 0.25, 0.75),
        object_diameter=12.0,
    )


def discs(
    shape: tuple[int, int], *, count: int = 40, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs that do not touch, and their numbers."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for _ in range(count):
        cy, cx, r = (
            rng.uniform(0, shape[0]),
            rng.uniform(0, shape[1]),
            rng.uniform(5, 9),
        )
        distance = np.hypot(y - cy, x - cx)
        if not labels[distance < r + 3].any():
            labels[distance < r] = labels.max() + 1
    noise = rng.integers(0, 20, shape)
    return (40 + 160 * (labels > 0) + noise).astype(np.uint8), labels


def stored(path: Path, image: np.ndarray, **how: Any) -> Path:
    """Write an image as a zarr array."""
    how = {"chunks": tuple(min(n, 64) for n in image.shape)} | how
    array = zarr.create_array(path, shape=image.shape, dtype=image.dtype, **how)
    array[...] = image
    return path


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """What a labelling says, whatever the numbers."""
    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(flat[order])) + 1)
    return {frozenset(p.tolist()) for p in parts if flat[p[0]]}
