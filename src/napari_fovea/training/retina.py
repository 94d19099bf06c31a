"""What the retina network learns from: views of the places a scan goes to."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.inference.retina import scan_tensor
from napari_fovea.losses import cell_cross_entropy
from napari_fovea.metrics import dice
from napari_fovea.networks import RetinaConfig
from napari_fovea.retina import IGNORE, Seek, cell_pmfs
from napari_fovea.training.augment import sample_view, vary_light
from napari_fovea.training.samples import VOID, Sample, boundary_places

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from napari_fovea.models import Model
    from napari_fovea.training.recipes import Recipe

_KEPT = 400  # places remembered per image


class RetinaTask:
    """Draws views for S0's network and scores it by scanning whole images.

    A share of the views is centred where the network, scanning the training
    images as it stands, chose to look because its map was uncertain: it is
    trained on what the scan will show it.

    Parameters
    ----------
    model : Model
        What is trained.
    samples, validation : sequence of Sample
        Images to learn from, and to score on.
    recipe : Recipe
        Settings.
    seed : int
        Views depend on this and the epoch alone.
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
        config = model.config
        assert isinstance(config, RetinaConfig)
        self.model = model
        self.grid = config.grid
        self.samples = samples
        every = max(1, -(-len(validation) // recipe.validate_images))
        self.validation = validation[::every]
        self.recipe = recipe
        self.seed = seed
        self.boundaries = [boundary_places(s) for s in samples]
        self.uncertain: dict[int, NDArray[np.int64]] = {}
        areas = np.array([s.classes.numel() for s in samples], dtype=float)
        self._odds = np.sqrt(areas) / np.sqrt(areas).sum()

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Crops (B, C, d, d) and their classes (B, d, d) for one epoch."""
        recipe = self.recipe
        rng = np.random.default_rng([self.seed, epoch])
        for _ in range(recipe.steps):
            views = [self._view(rng) for _ in range(recipe.batch_size)]
            crops = torch.stack([image for image, _ in views])
            crops = vary_light(crops, augmentation=recipe.augmentation, rng=rng)
            yield crops, torch.stack([classes for _, classes in views])

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
            augmentation=self.recipe.augmentation,
            rng=rng,
        )

    def loss(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the cells, equation (1), averaged over seen cells."""
        truth = classes.long()
        truth[truth == VOID] = IGNORE
        pmfs, seen = cell_pmfs(truth, self.grid, classes=self.model.config.classes)
        return cell_cross_entropy(logits, pmfs, mask=seen)

    def rescan(self, model: Model, epoch: int) -> None:
        """Let the network scan some training images; remember where it went."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        device = next(model.network.parameters()).device
        count = min(self.recipe.rescan, len(self.samples))
        for i in rng.choice(len(self.samples), size=count, replace=False):
            image = self.samples[i].image.to(device)
            budget = min(4 * _KEPT, image[0].numel() * 400 // 65536 + 1)
            path = scan_tensor(model, image, policy=Seek(), budget=budget).path
            places = path.corners + self.grid.d // 2
            keep = rng.permutation(len(places))[:_KEPT]
            self.uncertain[int(i)] = np.clip(
                places[keep], 0, np.array(image.shape[1:]) - 1
            )

    def score(self, model: Model) -> float | None:
        """Mean Dice of everything but background, by seeking each validation image."""
        if not self.validation:
            return None
        device = next(model.network.parameters()).device
        scores = []
        for sample in self.validation:
            found = scan_tensor(model, sample.image.to(device), policy=Seek())
            classes = model.class_probabilities(found.probabilities)
            labels = classes.argmax(0).cpu().numpy()
            known = sample.classes.numpy() != VOID
            truth = (sample.classes.numpy() > 0) & known
            scores.append(dice((labels > 0) & known, truth))
        return float(np.mean(scores))

    def fingerprint(self) -> str:
        """Tell one set of training images and labels from another."""
        digest = hashlib.sha256()
        for sample in (*self.samples, *self.validation):
            digest.update(sample.name.encode())
            digest.update(sample.classes.numpy().tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run must remember."""
        return {str(i): torch.from_numpy(p.copy()) for i, p in self.uncertain.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take up where `state` was taken."""
        self.uncertain = {int(i): p.numpy() for i, p in state.items()}
