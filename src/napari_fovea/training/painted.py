"""What a user painted: checked, read as classes, and divided into strokes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from napari_fovea.errors import FoveaError, ImageError, TrainingError
from napari_fovea.images import read_planes, resize, to_tensor
from napari_fovea.inference.sizes import enlarge, resized
from napari_fovea.training.samples import EXACT, VOID
from napari_fovea.training.scales import Scales, painted_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray

    from napari_fovea.models import Model

BLOCKS = 4
"""Into how many blocks each side of completely labelled planes is divided."""

_ALIKE = np.ones((3, 3), bool)  # strokes may touch at corners


@dataclass(frozen=True)
class Annotation:
    """An image and what was painted on it.

    Attributes
    ----------
    image : array_like
        (H, W), (H, W, C) or a stack of these, of any numeric type.
    labels : array_like of int
        As the image, without channels.
    name : str
        For messages, and to tell one image from another.
    unpainted : bool
        Whether 0 means that nothing is known of a pixel. Else it is background, and
        the labels are complete.
    objects : bool
        Whether the other numbers of complete labels tell objects apart, rather than
        classes.
    rgb : bool, optional
        Whether the image's last axis holds channels; guessed by default.
    diameter : float, optional
        Typical diameter of the objects in pixels; by default as the model has it, see
        `inference.segment`.
    pixel_size : float, optional
        Size of a pixel in micrometres.
    """

    image: ArrayLike
    labels: ArrayLike
    name: str = "image"
    unpainted: bool = True
    objects: bool = False
    rgb: bool | None = None
    diameter: float | Literal["auto"] | None = None
    pixel_size: float | None = None


@dataclass(frozen=True)
class PaintedPlane:
    """A plane of which something is known, at the size at which the model sees it.

    Attributes
    ----------
    key : tuple
        Name of the image, and number of the plane in its stack.
    image : Tensor of float32, shape (C, H, W)
        Normalised.
    classes : ndarray of uint8, shape (H, W)
        Class of each pixel; 255 where nothing is known.
    strokes : ndarray of int32, shape (H, W)
        Number of the stroke that a pixel belongs to, from 1; 0 where nothing is known.
    instances : ndarray of int or None, shape (H, W)
        The objects, where the labels told them apart.
    """

    key: tuple[str, int]
    image: torch.Tensor
    classes: NDArray[np.uint8]
    strokes: NDArray[np.int32]
    instances: NDArray[np.integer] | None = None

    def stroke_classes(self) -> dict[int, int]:
        """Class of every stroke."""
        numbers, first = np.unique(self.strokes, return_index=True)
        classes = self.classes.ravel()[first].tolist()
        return {n: c for n, c in zip(numbers.tolist(), classes, strict=True) if n}


@dataclass(frozen=True)
class Painted:
    """All that was painted.

    Attributes
    ----------
    planes : tuple of PaintedPlane
        Those on which something was painted.
    classes : tuple of str
        Names of the classes, background first.
    numbers : tuple of int
        What each class is painted with.
    complete : bool
        Whether every pixel of these planes is known.
    """

    planes: tuple[PaintedPlane, ...]
    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    complete: bool

    def pixels(self) -> dict[str, int]:
        """Painted pixels of each class."""
        counts = [0] * len(self.classes)
        for plane in self.planes:
            for c, n in zip(*np.unique(plane.classes, return_counts=True), strict=True):
                if c != VOID:
                    counts[c] += int(n)
        return dict(zip(self.classes, counts, strict=True))

    def strokes(self) -> dict[str, int]:
        """Strokes of each class."""
        counts = [0] * len(self.classes)
        for plane in self.planes:
            for c in plane.stroke_classes().values():
                counts[c] += 1
        return dict(zip(self.classes, counts, strict=True))


def read_painted(
    annotations: Sequence[Annotation],
    model: Model,
    *,
    names: Mapping[int, str] | None = None,
    scales: Scales | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Painted:
    """Check annotations and read them as a model sees them.

    Parameters
    ----------
    annotations : sequence of Annotation
        At least one. All must read 0 alike.
    model : Model
        Tells channels and normalisation, and names for as many classes as its own.
    names : mapping of int to str, optional
        What each number means; the lowest is background. By default the numbers that
        are painted, with the model's names where there are as many.
    scales : Scales, optional
        At which size images are shown; by default the model measures them.
    cancelled : callable
        Asked while objects are measured.

    Raises
    ------
    TrainingError
        If nothing or only one class was painted, shapes differ, labels are no whole
        numbers or mean nothing, or it was cancelled while objects were measured.
    """
    if not annotations:
        raise TrainingError(
            "There is nothing to learn from; expected an image with labels: choose an "
            "image and paint on it."
        )
    if len({(a.unpainted, a.objects) for a in annotations}) > 1:
        raise TrainingError(
            "The labels of some images are complete, those of others are strokes; "
            "expected one kind: train on them one after the other."
        )
    unpainted, objects = annotations[0].unpainted, annotations[0].objects
    if unpainted and objects:
        raise TrainingError(
            "Strokes cannot tell objects apart; expected complete labels, with 0 for "
            "background: say that 0 is background, or that the numbers are classes."
        )
    least = 1 if unpainted else 0
    truths = [_checked(a) for a in annotations]
    if names and min(names) < least:
        raise TrainingError(
            f"{names[min(names)]!r} is to be painted with {min(names)}, which means "
            "that nothing is painted; expected numbers from 1."
        )
    if names and len(names) >= VOID:
        raise TrainingError(
            f"{len(names)} classes are named; expected fewer than {VOID}."
        )
    seen = sorted({int(v) for t in truths for v in np.unique(t) if v >= least})
    if objects:
        seen = sorted({min(v, 1) for v in seen})
    meaning = dict(sorted(names.items())) if names else _names(seen, model, least)
    strange = [v for v in seen if v not in meaning]
    if strange:
        told = ", ".join(f"{k} ({v})" for k, v in meaning.items())
        raise TrainingError(
            f"Something is painted with {strange[0]}, which stands for no class; "
            f"expected {told}: name it, or paint it over."
        )
    if len(seen) < 2:
        only = meaning[seen[0]] if seen else "nothing"
        raise TrainingError(
            f"Only one class is painted ({only}); expected at least two of "
            f"{', '.join(meaning.values())}: paint a stroke of another class too."
            if seen
            else "Nothing is painted yet; expected strokes of at least two classes: "
            "paint some on the labels layer."
        )
    numbers = tuple(meaning)
    scales = scales or Scales(model)
    planes = tuple(
        plane
        for a, t in zip(_apart(annotations), truths, strict=True)
        for plane in _planes(a, t, numbers, model, scales, cancelled)
    )
    return Painted(planes, tuple(meaning.values()), numbers, not unpainted)


def _apart(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Give images of one name numbers, to tell them apart."""
    counts: dict[str, int] = {}
    told = []
    for annotation in annotations:
        count = counts[annotation.name] = counts.get(annotation.name, 0) + 1
        name = f"{annotation.name} {count}" if count > 1 else annotation.name
        told.append(replace(annotation, name=name))
    return told


def _checked(annotation: Annotation) -> NDArray[np.integer]:
    labels = np.asarray(annotation.labels)
    if labels.dtype.kind not in "bui":
        raise TrainingError(
            f"{annotation.name}: labels have type {labels.dtype}; expected whole "
            "numbers: convert them to an integer type."
        )
    shape = np.shape(annotation.image)
    fits = (
        (shape, shape[:-1])
        if annotation.rgb is None
        else ((shape[:-1],) if annotation.rgb else (shape,))
    )
    if labels.shape not in fits:
        raise TrainingError(
            f"{annotation.name}: the labels have shape {labels.shape}, the image "
            f"{shape}; expected labels as large as the image, so that no stroke lies "
            "outside: make a labels layer for this image."
        )
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise TrainingError(
            f"{annotation.name}: labels hold {labels.min()}; expected 0 and positive "
            "numbers: paint these pixels over."
        )
    return labels


def _names(seen: Sequence[int], model: Model, least: int) -> dict[int, str]:
    """Names for the numbers that were painted."""
    if len(seen) > VOID:
        raise TrainingError(
            f"{len(seen)} different numbers are painted; expected at most {VOID} "
            "classes: if they number objects, say so."
        )
    if len(seen) <= 1 and seen:
        first = least
        own = {first + i: name for i, name in enumerate(model.classes)}
        return own if seen[0] in own else {seen[0]: f"class {seen[0]}"}
    if len(seen) == len(model.classes):
        return dict(zip(seen, model.classes, strict=True))
    rest = {v: f"class {v}" for v in seen[1:]}
    return {seen[0]: "background", **rest} if seen else {}


def _planes(
    annotation: Annotation,
    truth: NDArray[np.integer],
    numbers: Sequence[int],
    model: Model,
    scales: Scales,
    cancelled: Callable[[], bool],
) -> list[PaintedPlane]:
    rgb = annotation.rgb
    if rgb is None:
        rgb = truth.shape != np.shape(annotation.image)
    try:
        planes = read_planes(annotation.image, rgb=rgb).for_network(model.channels)
    except ImageError as error:
        raise TrainingError(f"{annotation.name}: {error}") from error
    limits = model.normalisation.limits(planes)
    truth = truth.reshape(-1, *planes.shape)
    try:
        factor = scales.of(
            planes,
            limits,
            diameter=annotation.diameter,
            pixel_size=annotation.pixel_size,
            objects=truth if annotation.objects else None,
            cancelled=cancelled,
        )
    except FoveaError as error:
        raise TrainingError(f"{annotation.name}: {error}") from error
    size = resized(planes.shape, factor)
    found = []
    for i, labels in enumerate(truth):
        if annotation.unpainted and not labels.any():
            continue
        instances = None
        if annotation.objects:
            instances = labels.astype(np.int64)
            if instances.max(initial=0) >= EXACT:
                instances = relabel_sequential(instances)[0]
            instances = enlarge(instances, size)
        values = np.minimum(labels, 1) if annotation.objects else labels
        classes = np.full(labels.shape, VOID, np.uint8)
        for c, number in enumerate(numbers):
            classes[values == number] = c
        if instances is None:
            classes = painted_at(classes, size)
        else:
            classes = enlarge(classes, size)
        pixels = to_tensor(planes.data[i], limits=limits, channels=model.channels)
        found.append(
            PaintedPlane(
                (annotation.name, i),
                resize(pixels, size),
                classes,
                number_strokes(classes, blocks=not annotation.unpainted),
                instances,
            )
        )
    return found


def number_strokes(
    classes: NDArray[np.uint8], *, blocks: bool = False
) -> NDArray[np.int32]:
    """Give the connected pieces of each class numbers.

    Parameters
    ----------
    classes : ndarray of uint8, shape (H, W)
        255 where nothing is known.
    blocks : bool
        Let what one block of a lattice holds of a class be a stroke: of complete
        labels, the background would else be a single one.

    Returns
    -------
    ndarray of int32, shape (H, W)
        From 1; 0 where nothing is known.
    """
    if blocks:
        rows, columns = (np.arange(n) * BLOCKS // max(1, n) for n in classes.shape)
        lattice = rows[:, None] * BLOCKS + columns
        numbers = lattice * (VOID + 1) + classes + 1
        return np.where(classes == VOID, 0, numbers).astype(np.int32)
    strokes = np.zeros(classes.shape, np.int32)
    count = 0
    for c in np.unique(classes[classes != VOID]):
        pieces, n = ndimage.label(classes == c, _ALIKE)
        strokes = np.where(pieces > 0, pieces + count, strokes).astype(np.int32)
        count += n
    return strokes


def block_of(number: int) -> tuple[int, int]:
    """Row and column of the block that a stroke of complete labels lies in."""
    return divmod((number - 1) // (VOID + 1), BLOCKS)
