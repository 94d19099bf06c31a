"""What the retina with a shared trunk learns from: scenes, and places to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.losses import cell_cross_entropy
from napari_fovea.networks import SharedRetinaConfig
from napari_fovea.retina import IGNORE, cell_pmfs
from napari_fovea.training.augment import vary_light
from napari_fovea.training.retina import scan_dice
from napari_fovea.training.samples import VOID
from napari_fovea.training.task import CropTask
from napari_fovea.training.views import together

if TYPE_CHECKING:
    from torch import nn

    from napari_fovea.models import Model


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, each with places to look at.

    Attributes
    ----------
    images : Tensor of float32, shape (B, C, h, w)
    classes : Tensor of uint8, shape (B·n, d, d)
        Those of every subarea; 255 counts for nothing.
    corners : Tensor of int64, shape (B, n, 2)
        Top-left corners of the subareas in pixels of their scene.
    """

    images: torch.Tensor
    classes: torch.Tensor
    corners: torch.Tensor


class SharedRetinaTask(CropTask[Scenes]):
    """Shows scenes to the trunk and lays the retina on each many times; see `Task`.

    A share of the fixations is centred on boundaries between classes, where a scan
    looks most; the rest fall anywhere.
    """

    def batch(self, rng: np.random.Generator, size: int) -> Scenes:
        """Draw scenes and places, and vary the light on them."""
        config = self.model.config
        assert isinstance(config, SharedRetinaConfig)
        view = together([self.views.draw(rng) for _ in range(size)])
        images = vary_light(view.image, augmentation=self.light, rng=rng)
        corners = torch.stack([self._corners(c, rng) for c in view.classes])
        d = config.d
        seen = [
            classes[y : y + d, x : x + d]
            for classes, places in zip(view.classes, corners.tolist(), strict=True)
            for y, x in places
        ]
        return Scenes(images, torch.stack(seen), corners)

    def _corners(self, classes: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        d, count = self.model.config.d, self.recipe.looks  # type: ignore[attr-defined]
        room = np.array(classes.shape) - d
        places = rng.uniform(0, room + 1, size=(count, 2))
        edges = _boundaries(classes)
        if len(edges):
            of_edge = rng.random(count) < self.recipe.boundary
            chosen = edges[rng.integers(len(edges), size=count)]
            around = chosen + rng.uniform(-2, 2, size=(count, 2)) - d / 2
            places = np.where(of_edge[:, None], around, places)
        return torch.from_numpy(np.clip(places.astype(np.int64), 0, room))

    def loss(
        self, network: nn.Module, batch: Scenes, device: torch.device
    ) -> torch.Tensor:
        """Cross-entropy of the cells, equation (1), averaged over seen cells."""
        config = self.model.config
        assert isinstance(config, SharedRetinaConfig)
        truth = batch.classes.to(device).long()
        truth[truth == VOID] = IGNORE
        pmfs, seen = cell_pmfs(truth, config.grid, classes=config.classes)
        images = batch.images.to(device, memory_format=torch.channels_last)
        logits = network(images, batch.corners.to(device))
        return cell_cross_entropy(logits, pmfs, mask=seen)

    def score(self, model: Model) -> float | None:
        """Mean Dice of the classes but background, by scanning validation images."""
        return scan_dice(model, self.validation)


def _boundaries(classes: torch.Tensor) -> np.ndarray:
    """Pixels beside one of another class, (n, 2)."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    edge[1:] |= classes[1:] != classes[:-1]
    edge[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    return edge.nonzero().numpy()
