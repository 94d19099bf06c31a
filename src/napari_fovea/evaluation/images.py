"""How good a model is on labelled images, by the measures of all five papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_fovea.errors import TrainingError
from napari_fovea.files import read_image, read_labels
from napari_fovea.images import axes_beside, read_planes
from napari_fovea.inference import complete, segment
from napari_fovea.inference.sizes import typical_diameter
from napari_fovea.metrics import Confusion, instance_scores, roc_auc
from napari_fovea.training.labelling import Labelling
from napari_fovea.training.samples import make_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_fovea.evaluation.changes import Change
    from napari_fovea.inference import Segmentation
    from napari_fovea.models import Model

Pair = tuple["Path", "Path"]

SEMANTIC = (
    "dice",
    "jaccard",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "cohen_kappa",
)
"""Measures of classes, besides ``roc_auc``."""


@dataclass(frozen=True, slots=True)
class ImageScored:
    """One image has been segmented and compared with its labels.

    Attributes
    ----------
    name : str
        The image's file.
    scores : mapping
        Measure → value; what cannot be told of this image is NaN.
    seconds : float
        What segmenting took.
    pixels : int
        Of the image.
    group : str or None
        Kind of image, where kinds were given.
    done, total : int
        Images so far, and in all.
    """

    name: str
    scores: Mapping[str, float]
    seconds: float
    pixels: int
    group: str | None
    done: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of images.

    Attributes
    ----------
    images : tuple of ImageScored
        One by one.
    provenance : mapping
        What made the last of them: model, settings, machine.
    """

    images: tuple[ImageScored, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def summary(self, group: str | None = None) -> dict[str, Any]:
        """Mean and standard deviation over images, of all or of one group.

        Images of which a measure cannot be told, such as the ROC-AUC of one
        without foreground, are left out of its mean.
        """
        rows = [i for i in self.images if group is None or i.group == group]
        columns = {name: [r.scores[name] for r in rows] for name in rows[0].scores}
        columns["seconds"] = [r.seconds for r in rows]
        columns["seconds_per_megapixel"] = [
            1e6 * r.seconds / r.pixels if r.pixels else math.nan for r in rows
        ]
        return {"images": len(rows)} | {
            name: mean_and_std(values) for name, values in columns.items()
        }

    @property
    def groups(self) -> tuple[str, ...]:
        """Kinds of image, sorted."""
        return tuple(sorted({i.group for i in self.images if i.group is not None}))

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; what cannot be told is null."""
        return {
            "summary": self.summary(),
            "groups": {g: self.summary(g) for g in self.groups},
            "provenance": dict(self.provenance),
            "images": [
                {
                    "name": i.name,
                    "group": i.group,
                    "seconds": i.seconds,
                    "pixels": i.pixels,
                    **{k: _told(v) for k, v in i.scores.items()},
                }
                for i in self.images
            ],
        }


def evaluate(
    model: Model,
    pairs: Sequence[Pair],
    *,
    labelling: Labelling | None = None,
    groups: Mapping[str, str] | None = None,
    diameter: float | Literal["auto", "labels"] | None = None,
    change: Change | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Generator[ImageScored, None, Evaluation]:
    """Segment images and compare with their labels.

    Parameters
    ----------
    model : Model
        What is evaluated.
    pairs : sequence of tuple of Path
        Image files and label files; see `training.samples.pair_files`.
    labelling : Labelling, optional
        What the numbers in the labels mean; by default they number objects.
    groups : mapping, optional
        Kind of each image, by stem.
    diameter : float, optional
        As for `inference.segment`; ``"labels"`` gives each image the typical diameter
        of its own labels, as a user would who knows the objects.
    change : Change, optional
        How images are changed before they are segmented; see `changes.CHANGES`.
    cancelled : callable
        Asked after every image; where it says yes, the rest is left out.
    **settings
        See `inference.segment`.

    Yields
    ------
    ImageScored

    Returns
    -------
    Evaluation

    Raises
    ------
    FoveaError
        If an image or its labels cannot be used.
    """
    labelling = labelling or Labelling()
    if labelling.from_instances and len(model.classes) > 2:
        raise TrainingError(
            f"Model {model.name!r} tells {', '.join(model.classes)} apart, but labels "
            "that number objects know one class; expected labels that are classes: say "
            "so, or choose another model."
        )
    if diameter == "labels" and not labelling.from_instances:
        raise TrainingError(
            "Labels that are classes do not tell how large objects are; expected "
            "labels that number objects: give the diameter itself, or auto."
        )
    done: list[ImageScored] = []
    made: Mapping[str, Any] = {}
    for image_file, label_file in pairs:
        image, labels = read_image(image_file), read_labels(label_file)
        classes, void = _truth(image_file.name, image, labels, model, labelling)
        axes = axes_beside(image.shape, labels.shape)
        if change is not None:
            planes = read_planes(image, axes=axes)
            plane = planes.for_network(model.channels, blank=True).data[0]
            image, labels = change.apply(plane, _whole(labels), seed=len(done))
            axes = "YXC"
            classes, void = _truth(image_file.name, image, labels, model, labelling)
        size = (
            typical_diameter(np.where(void, 0, _whole(labels)))
            if diameter == "labels"
            else diameter
        )
        found = complete(
            segment(image, model, axes=axes, diameter=size, blank=True, **settings)
        )
        made = found.provenance
        scores = class_scores(found, classes, void)
        if labelling.from_instances:
            objects = np.where(void, 0, labels)
            scores |= instance_scores(np.where(void, 0, found.instances), objects)
        if found.path is not None:
            scores["fixations"] = float(len(found.path))
        scored = ImageScored(
            image_file.name,
            scores,
            float(made["seconds"]),
            labels.size,
            (groups or {}).get(image_file.stem),
            len(done) + 1,
            len(pairs),
        )
        done.append(scored)
        yield scored
        if cancelled():
            break
    kept = {k: v for k, v in made.items() if k not in ("image", "seconds", "date")}
    return Evaluation(tuple(done), kept)


def class_scores(
    found: Segmentation, truth: NDArray[np.integer], void: NDArray[np.bool_]
) -> dict[str, float]:
    """Measures of classes, of one image.

    With two classes they are those of the foreground; with more, the mean over
    the classes but background, each against all others, and the Dice of each. What
    cannot be told of a class, such as its ROC-AUC where it does not occur, is left
    out of the mean.

    Parameters
    ----------
    found : Segmentation
        Of a single plane.
    truth : ndarray of int, shape (H, W)
        Class of each pixel.
    void : ndarray of bool, shape (H, W)
        What does not count.
    """
    classes = len(found.probabilities)
    rows = []
    for k in range(1, classes):
        confusion = Confusion.of(found.labels == k, truth == k, ignore=void)
        row = {name: float(getattr(confusion, name)) for name in SEMANTIC}
        row["roc_auc"] = roc_auc(found.probabilities[k], truth == k, ignore=void)
        rows.append(row)
    mean = {name: _mean_of_known([row[name] for row in rows]) for name in rows[0]}
    if classes > 2:
        mean |= {f"dice_{k + 1}": row["dice"] for k, row in enumerate(rows)}
    return mean


def _truth(
    name: str,
    image: NDArray[Any],
    labels: NDArray[Any],
    model: Model,
    labelling: Labelling,
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    # The same checks as for training: shapes, types, classes.
    make_sample(
        image,
        labels,
        name=name,
        channels=model.channels,
        outputs=2 if labelling.from_instances else len(model.classes),
        from_instances=labelling.from_instances,
        ignore=labelling.ignore,
    )
    void = np.zeros(labels.shape, dtype=bool)
    if labelling.ignore is not None:
        void = labels == labelling.ignore
    classes = np.where(void, 0, labels)
    return (classes > 0).astype(int) if labelling.from_instances else classes, void


def _whole(labels: NDArray[Any]) -> NDArray[np.integer]:
    """Give labels that were checked a type that tells they are whole numbers."""
    return labels if labels.dtype.kind in "iu" else labels.astype(np.int64)


def _mean_of_known(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def mean_and_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation of what can be told."""
    known = np.array([v for v in values if v is not None and math.isfinite(v)])
    if not len(known):
        return {"mean": None, "std": None}
    return {
        "mean": round(float(known.mean()), 5),
        "std": round(float(known.std()), 5),
    }


def _told(value: float) -> float | None:
    return value if math.isfinite(value) else None
