"""From planes that were read to a result at the image's own size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_fovea.images import resize
from napari_fovea.inference.attention import ENTROPY, OVERLAP, of_focus
from napari_fovea.inference.instances import separate
from napari_fovea.inference.result import AttentionMap, Preview, Segmentation
from napari_fovea.inference.sizes import enlarge
from napari_fovea.inference.stitching import join_planes
from napari_fovea.retina import FocusPath, entropy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from napari_fovea.images import Planes
    from napari_fovea.inference.attention import Wanted
    from napari_fovea.inference.reading import Seen
    from napari_fovea.inference.stitching import Patchwork
    from napari_fovea.models import Model
    from napari_fovea.retina import RetinaGrid


class Assembly:
    """Collects planes that were read into a result at the image's own size.

    Parameters
    ----------
    planes : Planes
        The image.
    classes : int
        Number of classes K.
    shape : tuple of int
        Height and width at which planes are read.
    focused : bool
        Whether there is an overlap to collect.
    """

    def __init__(
        self, planes: Planes, *, classes: int, shape: tuple[int, int], focused: bool
    ) -> None:
        n, (height, width) = len(planes), planes.shape
        self._lead = planes.lead
        self._labels = np.zeros((n, height, width), dtype=np.uint8)
        self._probabilities = np.zeros((classes, n, height, width), dtype=np.float32)
        self._probabilities[0] = 1
        self._uncertainty = np.zeros((n, height, width), dtype=np.float32)
        self._instances = np.zeros((n, height, width), dtype=np.int32)
        self._overlap = np.zeros((n, *shape), dtype=np.float32) if focused else None
        self._paths: list[FocusPath] = []
        self._objects = 0
        self._attention: dict[int, Mapping[str, Patchwork]] = {}
        self._scale = (height / shape[0], width / shape[1])

    def add(
        self, index: int, model: Model, seen: Seen, *, diameter: float | None
    ) -> None:
        """Add one plane.

        Parameters
        ----------
        index : int
            Which plane of the stack.
        model : Model
            Tells classes and depths.
        seen : Seen
            What was read of it.
        diameter : float or None
            Typical diameter of the objects in image pixels.
        """
        size = (self._labels.shape[1], self._labels.shape[2])
        classes = _classes(model, seen.outputs, seen.weights, size)
        labels, objects = _objects(model, seen, classes, diameter)
        self._labels[index] = labels
        self._probabilities[:, index] = classes.cpu().numpy()
        told = seen.uncertainty
        unsure = entropy(classes) if told is None else resize(told[None], size)[0]
        self._uncertainty[index] = unsure.cpu().numpy()
        self._instances[index] = np.where(objects, objects + self._objects, 0)
        self._objects += int(objects.max(initial=0))
        if self._overlap is not None:
            self._overlap[index] = seen.weights.cpu().numpy()
        if seen.attention:
            self._attention[index] = seen.attention
        if seen.path is not None:
            planes = np.full(len(seen.path), index)
            self._paths.append(replace(seen.path, planes=planes))

    def path(self, *, grid: RetinaGrid) -> FocusPath:
        """Join the focus paths of all planes."""

        def joined(field: str) -> NDArray[Any]:
            return np.concatenate([getattr(p, field) for p in self._paths])

        if not self._paths:
            return FocusPath(
                corners=np.zeros((0, 2), np.int64),
                entropies=np.zeros(0, np.float32),
                steps=np.zeros(0, np.int64),
                grid=grid,
                lead=self._lead,
            )
        return replace(
            self._paths[0],
            corners=joined("corners"),
            entropies=joined("entropies"),
            steps=joined("steps"),
            planes=joined("planes"),
            pmfs=joined("pmfs"),
            lead=self._lead,
        )

    def result(
        self,
        path: FocusPath | None,
        provenance: dict[str, Any],
        *,
        attention: Sequence[Wanted] = (),
    ) -> Segmentation:
        """Give everything the axes of the image, and the attention asked for."""

        def own(array: NDArray[Any], before: int = 0) -> NDArray[Any]:
            head, tail = array.shape[:before], array.shape[before + 1 :]
            return array.reshape(*head, *self._lead, *tail)

        height, width = self._labels.shape[1:]
        maps = list(join_planes(self._attention, lead=self._lead, scale=self._scale))
        if self._overlap is not None:
            overlap = own(self._overlap)
            maps.append(AttentionMap.over(OVERLAP, overlap, shape=(height, width)))
        if ENTROPY in {w.name for w in attention}:
            maps.append(AttentionMap(ENTROPY, own(self._uncertainty)))
        if path is not None and path.shape is not None:
            maps += of_focus(path, attention, shape=(height, width))
        order = [w.name for w in attention]
        maps.sort(key=lambda m: order.index(m.name) if m.name in order else -1)
        return Segmentation(
            labels=own(self._labels),
            probabilities=own(self._probabilities, before=1),
            uncertainty=own(self._uncertainty),
            instances=own(self._instances),
            path=path,
            attention=tuple(maps),
            provenance=provenance,
        )


def objects_of(
    model: Model, seen: Seen, size: tuple[int, int], *, diameter: float | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Tell labels and objects of what was read of a plane, at a size (H, W)."""
    classes = _classes(model, seen.outputs, seen.weights, size)
    return _objects(model, seen, classes, diameter)


def _objects(
    model: Model, seen: Seen, classes: torch.Tensor, diameter: float | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    size = (classes.shape[1], classes.shape[2])
    if seen.labels is not None and seen.instances is not None:
        return enlarge(seen.labels, size), enlarge(seen.instances, size)
    told = model.depth(seen.outputs)
    depth = None
    if told is not None:
        depth = resize(told[None], size)[0].cpu().numpy()
    labels = _most_probable(classes)
    return labels, separate(labels, depth=depth, diameter=diameter)


def _classes(
    model: Model,
    outputs: torch.Tensor,
    weights: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Class probabilities (K, *size); uniform where the network has not looked."""
    classes = model.class_probabilities(outputs)
    # A class of two outputs would otherwise win wherever nothing is known.
    classes = torch.where(weights > 0, classes, 1 / len(model.classes))
    return resize(classes, size)


def _most_probable(classes: torch.Tensor) -> NDArray[np.uint8]:
    """Class of each pixel; where background is as probable as any, background."""
    # Torch's own argmax over a leading axis is hundreds of times slower on a CPU.
    best = classes[0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for index, probability in enumerate(classes[1:], start=1):
        labels[probability > best] = index
        torch.maximum(best, probability, out=best)
    return labels.cpu().numpy()


def preview(
    model: Model,
    outputs: torch.Tensor,
    weights: torch.Tensor,
    index: int,
    planes: Planes,
    *,
    focused: bool,
    unsure: torch.Tensor | None = None,
) -> Preview:
    """Show the map of one plane as it stands, at the image's own size."""
    classes = _classes(model, outputs, weights, planes.shape)
    overlap = None
    if focused:
        copied = weights.cpu().numpy().copy()
        overlap = AttentionMap.over("overlap", copied, shape=planes.shape)
    told = entropy(classes) if unsure is None else resize(unsure[None], planes.shape)[0]
    return Preview(index, _most_probable(classes), told.cpu().numpy(), overlap)
