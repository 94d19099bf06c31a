"""What the detector learns from: crops with every object's box and mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.measure import label

from napari_fovea.inference.detect import DetectorReader
from napari_fovea.inference.reading import complete
from napari_fovea.metrics import average_precision
from napari_fovea.networks.mask_rcnn import Target
from napari_fovea.training.augment import vary_light
from napari_fovea.training.samples import VOID
from napari_fovea.training.task import CropTask
from napari_fovea.training.views import together

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from napari_fovea.models import Model
    from napari_fovea.training.samples import Sample

_LEAST_AREA = 8  # pixels an object must show in a crop; less is void


class Targets:
    """The objects of a batch.

    No list: what wraps a network looks into lists, to convert what it finds, and
    stumbles over what cannot be changed.
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets)


@dataclass(frozen=True)
class Scenes:
    """A batch of images (B, C, h, w) and the objects in each."""

    images: torch.Tensor
    targets: Targets


class DetectionTask(CropTask[Scenes]):
    """Shows crops to a detector, and scores it by AP; see `Task`."""

    def batch(self, rng: np.random.Generator, size: int) -> Scenes:
        """Draw crops, vary the light on them, and find their objects."""
        views = [self.views.draw(rng) for _ in range(size)]
        view = together(views)
        images = vary_light(view.image, augmentation=self.light, rng=rng)
        pairs = zip(view.instances, view.classes, strict=True)
        return Scenes(images, Targets(_target(i, c) for i, c in pairs))

    def loss(
        self, network: nn.Module, batch: Scenes, device: torch.device
    ) -> torch.Tensor:
        """Sum of the losses of proposals, boxes, classes and masks."""
        images = batch.images.to(device, memory_format=torch.channels_last)
        losses = network(images, batch.targets)
        return torch.stack(list(losses.values())).sum()

    def score(self, model: Model) -> float | None:
        """Mean AP over the validation images."""
        if not self.validation:
            return None
        device = next(model.network.parameters()).device
        reader = DetectorReader(model, device)
        scores = [found_ap(reader, sample) for sample in self.validation]
        return float(np.mean(scores))


def found_ap(reader: DetectorReader, sample: Sample) -> float:
    """AP of what a detector finds on an image whose labels tell objects apart."""
    found = complete(reader.read(sample.image.to(reader.runner.device)))
    assert sample.instances is not None
    void = sample.classes.numpy() == VOID
    return average_precision(
        np.where(void, 0, found.instances), np.where(void, 0, sample.instances)
    )


def _target(instances: torch.Tensor, classes: torch.Tensor) -> Target:
    void = classes == VOID
    # What is mirrored beside the image's edge is an object of its own.
    pieces = label(instances.numpy(), connectivity=2)
    instances = torch.from_numpy(pieces.astype(np.int32))
    ids, counts = torch.unique(instances, return_counts=True)
    slivers = ids[(counts < _LEAST_AREA) & (ids > 0)]
    void |= torch.isin(instances, slivers)
    return Target.from_instances(instances, torch.where(void, 0, classes), void=void)
