"""Images and labels to train on, from arrays or from folders."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import find_boundaries, relabel_sequential

from napari_fovea.errors import ImageError, TrainingError
from napari_fovea.files import IMAGE_SUFFIXES, read_image, read_labels
from napari_fovea.images import Normalisation, axes_beside, read_planes, to_tensor
from napari_fovea.inference.instances import depth_inside, distance_inside
from napari_fovea.inference.sizes import typical_diameter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from napari_fovea.models import Model

VOID = 255
"""Class of pixels that count for nothing, in samples."""

DEPTHS = (0.0, 0.125, 0.375, 0.625, 0.875)
"""Depths of the outputs that tell objects apart: background, then from edge to core."""

_MASKS = ({255}, {0, 255})
EXACT = 2**24
"""Up to here float32 holds whole numbers, as views keep them."""


@dataclass(frozen=True)
class Sample:
    """One image to learn from.

    Attributes
    ----------
    name : str
        For messages.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    classes : Tensor of uint8, shape (H, W)
        Network output that each pixel should give; 255 counts for nothing.
    instances : ndarray or None, shape (H, W)
        The objects, where the labels told them apart.
    """

    name: str
    image: torch.Tensor
    classes: torch.Tensor
    instances: NDArray[np.integer] | None


def depth_classes(
    instances: NDArray[np.integer],
    *,
    depths: Sequence[float] = DEPTHS,
    void: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Tell how deep inside its object every pixel lies, by outputs of a network.

    The range of `depth_inside` is divided evenly among the outputs that objects have,
    in the order of their depths.

    Parameters
    ----------
    instances : ndarray of int, shape (H, W)
        0 is background, every other value one object.
    depths : sequence of float
        Of each output of the network, the first of which is background; see `Model`.
    void : ndarray of bool, shape (H, W), optional
        Pixels of which nothing is known. Pixels of objects that are nearer to them
        than to the edge are void as well: the edge may lie there.

    Returns
    -------
    ndarray of uint8, shape (H, W)
        Output of each pixel, 255 where void.
    """
    known = instances.astype(np.int64)
    if void is not None and void.any() and not void.all():
        nearest = ndimage.distance_transform_edt(
            void, return_distances=False, return_indices=True
        )
        known = known[tuple(nearest)]
    inside = known > 0
    t = depth_inside(known)
    steps = len(depths) - 1
    order = 1 + np.argsort(depths[1:])
    bins = np.minimum((t * steps).astype(np.int64), steps - 1)
    classes = np.where(inside, order[bins], 0).astype(np.uint8)
    if void is not None:
        # The last pixel before what is void may be one of the edge.
        gap = ndimage.distance_transform_edt(~void) - 0.5
        unsure = inside & (gap < distance_inside(known))
        classes[void | unsure] = VOID
    return classes


def make_sample(
    image: ArrayLike,
    labels: ArrayLike,
    *,
    name: str = "image",
    channels: int,
    outputs: int,
    depths: Sequence[float] | None = None,
    from_instances: bool = True,
    ignore: int | None = None,
    normalisation: Normalisation | None = None,
) -> Sample:
    """Check a pair of image and labels and prepare it for training.

    Parameters
    ----------
    image : array_like, shape (H, W), (H, W, C) or (C, H, W)
        Any numeric type. It may be blank.
    labels : array_like of int, shape (H, W)
        Objects (0 = background) or classes.
    name : str
        For messages.
    channels : int
        Channels the network takes.
    outputs : int
        Outputs of the network. With ``from_instances`` there are two, background and
        foreground, unless they have depths.
    depths : sequence of float, optional
        Of each output, where labels that number objects teach how deep inside an
        object pixels lie.
    from_instances : bool
        Whether labels number objects rather than classes.
    ignore : int, optional
        Label that counts for nothing.
    normalisation : Normalisation, optional
        How to scale intensities.

    Raises
    ------
    TrainingError
        If the image cannot be used, the shapes differ, or labels are no integers
        or out of range.
    """
    truth = np.asarray(labels)
    if truth.ndim == 3 and truth.shape[-1] in (3, 4):
        raise TrainingError(
            f"{name}: labels are a colour image of shape {truth.shape}; expected one "
            "whole number per pixel: save them as gray PNG or TIFF, one number per "
            "object or class."
        )
    axes = axes_beside(np.shape(image), truth.shape)
    try:
        planes = read_planes(image, axes=axes).for_network(channels, blank=True)
    except ImageError as error:
        raise TrainingError(f"{name}: {error}") from error
    if len(planes) != 1 or truth.shape != planes.shape:
        raise TrainingError(
            f"{name}: labels have shape {truth.shape}, the image "
            f"{np.asarray(image).shape}; expected one plane and labels of its height "
            "and width."
        )
    if truth.dtype.kind not in "bui":
        raise TrainingError(
            f"{name}: labels have type {truth.dtype}; expected integers, one per "
            "object or class: save them as integer PNG or TIFF."
        )
    truth = truth.astype(np.int64)
    void = truth == ignore if ignore is not None else np.zeros(truth.shape, bool)
    instances = None
    values = np.unique(truth[~void])
    if from_instances and set(values.tolist()) in _MASKS:
        raise TrainingError(
            f"{name}: labels hold nothing but 0 and 255, which is a mask, not single "
            "objects; expected a number per object: number the connected regions, or "
            "divide by 255 and say that the labels are classes."
        )
    if from_instances:
        if (truth[~void] < 0).any():
            raise TrainingError(
                f"{name}: labels hold {truth[~void].min()}; expected 0 for background "
                "and a positive number for every object: relabel, or name it as the "
                "label to ignore."
            )
        instances = np.where(void, 0, truth)
        if instances.max(initial=0) >= EXACT:
            instances = relabel_sequential(instances)[0]
        classes = (
            (instances > 0).astype(np.uint8)
            if depths is None
            else depth_classes(instances, depths=depths, void=void)
        )
    else:
        known = truth[~void]
        if known.size and not 0 <= known.min() <= known.max() < outputs:
            raise TrainingError(
                f"{name}: labels run from {known.min()} to {known.max()}; expected "
                f"classes 0 to {outputs - 1}: name more classes, or relabel"
                f"{' (divide by 255)' if known.max() == 255 else ''}."
            )
        classes = np.where(void, 0, truth).astype(np.uint8)
    classes[void] = VOID
    limits = (normalisation or Normalisation()).limits(planes)
    tensor = to_tensor(planes.data[0], limits=limits, channels=channels)
    return Sample(name, tensor, torch.from_numpy(classes), instances)


def pair_files(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Images of a folder and the labels of the same stem, sorted by name.

    Raises
    ------
    TrainingError
        If a folder is missing or empty, or its files do not pair up.
    """
    stems: dict[Path, dict[str, Path]] = {images: {}, labels: {}}
    for folder, known in stems.items():
        if not folder.is_dir():
            raise TrainingError(f"{folder} is no folder: give one that holds files.")
        for path in filter(_readable, sorted(folder.iterdir())):
            if path.stem in known:
                raise TrainingError(
                    f"{known[path.stem].name} and {path.name} in {folder} have the "
                    "same stem; expected one file of each: take one away."
                )
            known[path.stem] = path
    for here, there, what in ((images, labels, "labels"), (labels, images, "image")):
        alone = [p.name for s, p in stems[here].items() if s not in stems[there]]
        if alone and stems[images]:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise TrainingError(
                f"{', '.join(alone[:3])}{more} in {here} have no {what} in {there}; "
                "expected files of the same stem in both: add them, or take these away."
            )
    pairs = [(path, stems[labels][stem]) for stem, path in stems[images].items()]
    if not pairs:
        raise TrainingError(
            f"{images} holds no images; expected files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    return pairs


def read_folder(
    images: Path,
    labels: Path,
    *,
    channels: int,
    outputs: int,
    depths: Sequence[float] | None = None,
    from_instances: bool = True,
    ignore: int | None = None,
) -> list[Sample]:
    """Read every image of a folder with its labels; see `make_sample`."""
    return [
        make_sample(
            read_image(image),
            read_labels(truth),
            name=image.name,
            channels=channels,
            outputs=outputs,
            depths=depths,
            from_instances=from_instances,
            ignore=ignore,
        )
        for image, truth in pair_files(images, labels)
    ]


def check_samples(samples: Sequence[Sample], model: Model) -> None:
    """Check that there is something to learn.

    Raises
    ------
    TrainingError
        If all labelled pixels of all images belong to one class, or nothing is
        labelled.
    """
    if not samples:
        return
    seen = {
        model.outputs[c] if c != VOID else None
        for s in samples
        for c in np.unique(s.classes.numpy()).tolist()
    } - {None}
    if len(seen) < 2:
        only = ", ".join(model.classes[c] for c in seen if c is not None) or "nothing"
        raise TrainingError(
            f"The labels of all {len(samples)} images hold {only} alone; expected at "
            f"least two of {', '.join(model.classes)}: check the labels, or what they "
            "mean."
        )


def fingerprint(samples: Sequence[Sample], validation: Sequence[Sample] = ()) -> str:
    """Tell one set of images and labels from another."""
    digest = sha256(f"{len(samples)} to learn from".encode())
    for sample in (*samples, *validation):
        digest.update(f"{sample.name} {tuple(sample.image.shape)}".encode())
        for part in (sample.image.numpy(), sample.classes.numpy()):
            digest.update(part.tobytes())
        if sample.instances is not None:
            digest.update(sample.instances.tobytes())
    return digest.hexdigest()


def common_diameter(samples: Sequence[Sample]) -> float | None:
    """Median over images of how large their objects typically are, in pixels."""
    known = [
        diameter
        for s in samples
        if s.instances is not None
        and (diameter := typical_diameter(s.instances)) is not None
    ]
    return float(np.median(known)) if known else None


def boundary_places(sample: Sample) -> NDArray[np.int64]:
    """Pixels on boundaries between classes, (n, 2): where a scan is uncertain."""
    classes = sample.classes.numpy()
    places = np.argwhere(find_boundaries(classes, mode="thick"))
    return places if len(places) else np.argwhere(classes != VOID)


def _readable(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
