"""At which size images are shown to a model that learns from what is painted."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_fovea.errors import TrainingError
from napari_fovea.images import to_tensor
from napari_fovea.inference.diameter import estimated, liveliest
from napari_fovea.inference.sizes import (
    enlarge,
    fitting,
    measured,
    resizing,
    typical_diameter,
)
from napari_fovea.training.samples import VOID

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_fovea.images import Planes
    from napari_fovea.models import Model


class Scales:
    """Tells by how much images are resized, and measures the objects of each once.

    A model learns at the scale at which it will be used, see `inference.segment`. What
    it learns must not change that scale from one refit to the next, so the model that
    all began with measures.

    Parameters
    ----------
    model : Model
        What all begins with.
    device : str
        ``"auto"`` or a torch device.
    """

    def __init__(self, model: Model, *, device: str = "auto") -> None:
        self._model = model
        self._device = device
        self._known: dict[str, float | None] = {}

    def of(
        self,
        planes: Planes,
        limits: tuple[float, float],
        *,
        diameter: float | Literal["auto"] | None = None,
        pixel_size: float | None = None,
        objects: NDArray[np.integer] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> float:
        """Tell the factor by which an image is resized.

        Parameters
        ----------
        planes : Planes
            The image.
        limits : tuple of float
            Intensities that become 0 and 1.
        diameter : float, optional
            Typical diameter of its objects in pixels, as the user gave it; ``"auto"``
            measures them whatever the model does by default.
        pixel_size : float, optional
            Size of a pixel in micrometres, for models that know that of their own.
        objects : ndarray of int, shape (planes, H, W), optional
            All objects, numbered, where they are known: nothing needs to be estimated.
        cancelled : callable
            Asked while objects are measured.

        Raises
        ------
        FoveaError
            If the diameter cannot be one, the model does not know that of its own, or
            it was cancelled before the objects were measured.
        """
        model = self._model
        if not measured(model, diameter=diameter, pixel_size=pixel_size):
            known = None if diameter == "auto" else diameter
            return resizing(model, planes.shape, diameter=known, pixel_size=pixel_size)
        plane = liveliest(planes)
        digest = sha256(np.ascontiguousarray(plane).tobytes()).hexdigest()
        if objects is not None:
            # Of a number that goes on through a stack, each plane shows a section.
            each = [typical_diameter(plane) for plane in objects]
            sizes = [size for size in each if size is not None]
            self._known[digest] = float(np.median(sizes)) if sizes else None
        if digest not in self._known:
            shown = to_tensor(plane, limits=limits, channels=model.channels)
            found = estimated(shown, model, self._device, cancelled=cancelled)
            if cancelled():
                raise TrainingError(
                    "Learning was stopped while the objects were measured, so nothing "
                    "was learned; expected to measure them first: start it again, or "
                    "give their diameter."
                )
            self._known[digest] = found
        return fitting(model, self._known[digest])


def painted_at(classes: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring what is painted to another size, and lose no stroke.

    Parameters
    ----------
    classes : ndarray of uint8, shape (H, W)
        Class of each pixel; 255 where nothing is known.
    size : tuple of int
        Height and width.

    Returns
    -------
    ndarray of uint8
        Where pixels become fewer, each has the class that most of its painted ones
        had, however few these are.
    """
    if size[0] >= classes.shape[0] and size[1] >= classes.shape[1]:
        return enlarge(classes, size)
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(np.int64)
        for n, m in zip(classes.shape, size, strict=True)
    )
    place = rows[:, None] * size[1] + columns
    best = np.full(math.prod(size), VOID, np.uint8)
    most = np.zeros(math.prod(size), np.int64)
    for value in np.unique(classes[classes != VOID]):
        count = np.bincount(place[classes == value], minlength=len(most))
        best[count > most] = value
        np.maximum(most, count, out=most)
    return best.reshape(size)
