"""What the retina network learns from: views of the places a scan goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.inference.reading import complete
from napari_fovea.inference.retina import RetinaReader
from napari_fovea.losses import cell_cross_entropy
from napari_fovea.networks import RetinaConfig
from napari_fovea.retina import IGNORE, Seek, cell_pmfs
from napari_fovea.training.augment import sample_view, vary_light
from napari_fovea.training.samples import VOID, Sample, boundary_places
from napari_fovea.training.task import Task, class_dice
from napari_fovea.training.views import by_area

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from napari_fovea.models import Model
    from napari_fovea.training.recipe import Recipe

_KEPT = 400  # places remembered per image


Crops = tuple[torch.Tensor, torch.Tensor]


class RetinaTask(Task[Crops]):
    """Draws views for S0's network and scores it by scanning whole images.

    A share of the views is centred where the network, scanning the training
    images as it stands, chose to look because its map was uncertain: it is
    trained on what the scan will show it. See `Task`.
    """

    def __init__(
        self,
        model: Model,
        samples: Sequence[Sample],
        validation: Sequence[Sample],
        *,
        recipe: Recipe,
        seed: int,
    ) -> None:
        super().__init__(model, samples, validation, recipe=recipe, seed=seed)
        config = model.config
        assert isinstance(config, RetinaConfig)
        self.grid = config.grid
        self.boundaries = [boundary_places(s) for s in samples]
        self.uncertain: dict[int, NDArray[np.int64]] = {}
        self._odds = self.odds if self.odds is not None else by_area(samples)

    def batch(self, rng: np.random.Generator, size: int) -> Crops:
        """Crops (B, C, d, d) and their classes (B, d, d)."""
        views = [self._view(rng) for _ in range(size)]
        crops = torch.stack([image for image, _ in views])
        crops = vary_light(crops, augmentation=self.light, rng=rng)
        return crops, torch.stack([classes for _, classes in views])

    def _view(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        i = int(rng.choice(len(self.samples), p=self._odds))
        sample, kind = self.samples[i], rng.random()
        places = None
        if kind < self.recipe.uncertain:
            places = self.uncertain.get(i, self.boundaries[i])
        elif kind < self.recipe.uncertain + self.recipe.boundary:
            places = self.boundaries[i]
        if places is not None and len(places):
            centre = places[rng.integers(len(places))] + rng.uniform(-2, 2, size=2)
        else:
            centre = rng.uniform(0, sample.classes.shape)
        return sample_view(
            sample,
            (float(centre[0]), float(centre[1])),
            self.grid.d,
            augmentation=self.light,
            rng=rng,
        )

    def loss(
        self, network: nn.Module, batch: Crops, device: torch.device
    ) -> torch.Tensor:
        """Cross-entropy of the cells, equation (1), averaged over seen cells."""
        crops, classes = batch
        truth = classes.to(device).long()
        truth[truth == VOID] = IGNORE
        pmfs, seen = cell_pmfs(truth, self.grid, classes=self.model.config.classes)
        crops = crops.to(device, memory_format=torch.channels_last)
        return cell_cross_entropy(network(crops), pmfs, mask=seen)

    def prepare(self, model: Model, epoch: int) -> None:
        """Let the network scan some training images; remember where it went."""
        if not (self.recipe.uncertain and self.recipe.rescan):
            return
        rng = np.random.default_rng([self.seed, epoch, 1])
        device = next(model.network.parameters()).device
        count = min(self.recipe.rescan, len(self.samples))
        for i in rng.choice(len(self.samples), size=count, replace=False):
            image = self.samples[i].image.to(device)
            budget = min(4 * _KEPT, image[0].numel() * 400 // 65536 + 1)
            height, width = image.shape[1:]
            reader = RetinaReader(
                model, device, (height, width), policy=Seek(), budget=budget
            )
            path = complete(reader.read(image)).path
            places = path.corners + self.grid.d // 2
            keep = rng.permutation(len(places))[:_KEPT]
            self.uncertain[int(i)] = np.clip(
                places[keep], 0, np.array(image.shape[1:]) - 1
            )

    def score(self, model: Model) -> float | None:
        """Mean Dice of the classes but background, by scanning validation images."""
        return scan_dice(model, self.validation)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run must remember."""
        return {str(i): torch.from_numpy(p.copy()) for i, p in self.uncertain.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take up where `state` was taken."""
        self.uncertain = {int(i): p.numpy() for i, p in state.items()}


def scan_dice(model: Model, samples: Sequence[Sample]) -> float | None:
    """Mean Dice of the classes but background, by scanning; None without samples."""
    if not samples:
        return None
    device = next(model.network.parameters()).device
    scores = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        reader = RetinaReader(model, device, (height, width))
        outputs = complete(reader.read(sample.image.to(device))).outputs
        scores.append(class_dice(outputs, sample, model))
    return float(np.mean(scores))
