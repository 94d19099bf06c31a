"""From scanned planes to a result at the image's own size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.images import resize
from napari_fovea.inference.instances import separate
from napari_fovea.inference.result import AttentionMap, Preview, Segmentation
from napari_fovea.retina import FocusPath, entropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.images import Planes
    from napari_fovea.models import Model
    from napari_fovea.networks import RetinaConfig
    from napari_fovea.retina import Scan


class Assembly:
    """Collects scanned planes into a result at the image's own size.

    Parameters
    ----------
    planes : Planes
        The image.
    classes : int
        Number of classes K.
    shape : tuple of int
        Height and width at which planes are scanned.
    """

    def __init__(self, planes: Planes, *, classes: int, shape: tuple[int, int]) -> None:
        n, (height, width) = len(planes), planes.shape
        self._lead = planes.lead
        self._labels = np.zeros((n, height, width), dtype=np.uint8)
        self._probabilities = np.zeros((classes, n, height, width), dtype=np.float32)
        self._probabilities[0] = 1
        self._uncertainty = np.zeros((n, height, width), dtype=np.float32)
        self._instances = np.zeros((n, height, width), dtype=np.int32)
        self._overlap = np.zeros((n, *shape), dtype=np.float32)
        self._paths: list[FocusPath] = []
        self._objects = 0

    def add(
        self,
        index: int,
        model: Model,
        scanned: Scan,
        *,
        scale: tuple[float, float],
        diameter: float | None,
    ) -> None:
        """Add one plane.

        Parameters
        ----------
        index : int
            Which plane of the stack.
        model : Model
            Tells classes and border.
        scanned : Scan
            The plane's scan.
        scale : tuple of float
            Image pixels per scanned pixel (y, x).
        diameter : float or None
            Typical diameter of the objects in image pixels.
        """
        size = (self._labels.shape[1], self._labels.shape[2])
        outputs = resize(scanned.probabilities, size)
        classes = _classes(model, scanned.probabilities, scanned.overlap, size)
        labels = _most_probable(classes)
        interior = None
        if model.border is not None:
            interior = (1 - outputs[0] - outputs[model.border]).cpu().numpy()
        objects = separate(labels, interior=interior, diameter=diameter)
        self._labels[index] = labels
        self._probabilities[:, index] = classes.cpu().numpy()
        self._uncertainty[index] = entropy(classes).cpu().numpy()
        self._instances[index] = np.where(objects, objects + self._objects, 0)
        self._objects += int(objects.max(initial=0))
        self._overlap[index] = scanned.overlap.cpu().numpy()
        plane = np.full(len(scanned.path), index)
        self._paths.append(replace(scanned.path, scale=scale, planes=plane))

    def path(self, *, grid_of: RetinaConfig) -> FocusPath:
        """Join the focus paths of all planes."""

        def joined(field: str, empty: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([empty, *(getattr(p, field) for p in self._paths)])

        return FocusPath(
            corners=joined("corners", np.zeros((0, 2), np.int64)),
            entropies=joined("entropies", np.zeros(0, np.float32)),
            steps=joined("steps", np.zeros(0, np.int64)),
            grid=grid_of.grid,
            scale=self._paths[0].scale if self._paths else (1.0, 1.0),
            planes=joined("planes", np.zeros(0, np.int64)),
        )

    def result(self, path: FocusPath, provenance: dict[str, Any]) -> Segmentation:
        """Give everything the axes of the image."""

        def own(array: NDArray[Any], before: int = 0) -> NDArray[Any]:
            head, tail = array.shape[:before], array.shape[before + 1 :]
            return array.reshape(*head, *self._lead, *tail)

        height, width = self._labels.shape[1:]
        overlap = AttentionMap.over(
            "overlap", own(self._overlap), shape=(height, width)
        )
        return Segmentation(
            labels=own(self._labels),
            probabilities=own(self._probabilities, before=1),
            uncertainty=own(self._uncertainty),
            instances=own(self._instances),
            path=path,
            attention=(overlap,),
            provenance=provenance,
        )


def _classes(
    model: Model,
    outputs: torch.Tensor,
    overlap: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Class probabilities (K, *size); uniform where the scan has not looked."""
    classes = model.class_probabilities(outputs)
    # A class of two outputs would otherwise win wherever nothing is known.
    classes = torch.where(overlap > 0, classes, 1 / len(model.classes))
    return resize(classes, size)


def _most_probable(classes: torch.Tensor) -> NDArray[np.uint8]:
    """Class of each pixel; where background is as probable as any, background."""
    labels = classes.argmax(0)
    labels[classes[0] >= classes.amax(0)] = 0
    return labels.to(torch.uint8).cpu().numpy()


def preview(
    model: Model,
    outputs: torch.Tensor,
    overlap: torch.Tensor,
    index: int,
    planes: Planes,
) -> Preview:
    """Show the map of one plane as it stands, at the image's own size."""
    classes = _classes(model, outputs, overlap, planes.shape)
    return Preview(
        index,
        _most_probable(classes),
        entropy(classes).cpu().numpy(),
        AttentionMap.over("overlap", overlap.cpu().numpy().copy(), shape=planes.shape),
    )
