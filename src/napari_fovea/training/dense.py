"""What networks learn from that give pixels their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.inference.dense import DenseReader
from napari_fovea.inference.reading import complete
from napari_fovea.losses import LOSSES, cross_entropy
from napari_fovea.networks import PatchCenterConfig
from napari_fovea.training.augment import vary_light
from napari_fovea.training.samples import VOID
from napari_fovea.training.task import CropTask, class_dice
from napari_fovea.training.views import View, together

if TYPE_CHECKING:
    from torch import nn

    from napari_fovea.models import Model


class DenseTask(CropTask[View]):
    """Shows crops to a network that tells every pixel's class; see `Task`."""

    def batch(self, rng: np.random.Generator, size: int) -> View:
        """Draw crops, and vary the light on them."""
        view = together([self.views.draw(rng) for _ in range(size)])
        image = vary_light(view.image, augmentation=self.light, rng=rng)
        return View(image, view.classes, view.instances)

    def loss(
        self, network: nn.Module, batch: View, device: torch.device
    ) -> torch.Tensor:
        """Return the recipe's loss, over the pixels that count."""
        image = batch.image.to(device, memory_format=torch.channels_last)
        classes = batch.classes.to(device).long()
        return LOSSES[self.recipe.loss](network(image), classes, mask=classes != VOID)

    def score(self, model: Model) -> float | None:
        """Mean Dice of the classes but background, over the validation images."""
        if not self.validation:
            return None
        device = next(model.network.parameters()).device
        reader = DenseReader(model, device)
        scores = []
        for sample in self.validation:
            outputs = complete(reader.read(sample.image.to(device))).outputs
            scores.append(class_dice(outputs, sample, model))
        return float(np.mean(scores))


class PatchTask(DenseTask):
    """Shows patches to a network that tells the class of the central pixel."""

    inside = False  # every pixel is to be classified, those at the edge as well

    @property
    def side(self) -> int:
        """Side of a patch."""
        config = self.model.config
        assert isinstance(config, PatchCenterConfig)
        return config.d

    def loss(
        self, network: nn.Module, batch: View, device: torch.device
    ) -> torch.Tensor:
        """Cross-entropy of the central pixels."""
        image = batch.image.to(device, memory_format=torch.channels_last)
        centre = (batch.classes.shape[-1] - 1) // 2
        classes = batch.classes[:, centre, centre].to(device).long()
        return cross_entropy(network(image), classes, mask=classes != VOID)
