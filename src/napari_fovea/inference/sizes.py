"""How large an image is shown to a model, and its objects to whom tells them apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_fovea.errors import ImageError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_fovea.models import Model

_MOST_RESIZING = 16


def resizing(
    model: Model,
    shape: tuple[int, int],
    *,
    diameter: float | None,
    pixel_size: float | None,
) -> float:
    """Tell the factor that brings an image to the model's object size."""
    for name, value in (("diameter", diameter), ("pixel size", pixel_size)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ImageError(
                f"The {name} is {value}; expected a positive number: leave it out to "
                "keep the image's own scale."
            )
    if diameter is not None and model.object_diameter is None:
        raise ModelError(
            f"Model {model.name!r} does not know the size of the objects it was "
            "trained on; expected no diameter: leave it out, or choose another model."
        )
    if diameter is not None and model.object_diameter is not None:
        factor = model.object_diameter / diameter
    elif pixel_size is not None and model.pixel_size is not None:
        factor = pixel_size / model.pixel_size
    else:
        return 1.0
    if not 1 / _MOST_RESIZING <= factor <= _MOST_RESIZING:
        raise ImageError(
            f"An image of {shape[0]}×{shape[1]} pixels would be resized {factor:.3g} "
            f"times; expected at most {_MOST_RESIZING}, either way: give the typical "
            "diameter of the objects in pixels."
        )
    return factor


def measured(
    model: Model,
    *,
    diameter: float | Literal["auto"] | None,
    pixel_size: float | None,
) -> bool:
    """Tell whether objects are to be measured before anything else.

    Raises
    ------
    ModelError
        If they are, but the model does not know the size of its own.
    """
    if diameter is None:
        known = pixel_size is not None and model.pixel_size is not None
        return model.scan.get("diameter") == "auto" and not known
    if diameter == "auto" and model.object_diameter is None:
        raise ModelError(
            f"Model {model.name!r} does not know the size of the objects it was "
            "trained on; expected no diameter: leave it out, or choose another model."
        )
    return diameter == "auto"


def fitting(model: Model, diameter: float | None) -> float:
    """Tell the factor for objects that were measured, as far as resizing goes."""
    if diameter is None or model.object_diameter is None:
        return 1.0
    factor = model.object_diameter / diameter
    return min(max(factor, 1 / _MOST_RESIZING), _MOST_RESIZING)


def resized(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Tell height and width after resizing."""
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def object_diameter(
    model: Model, factor: float, diameter: float | None
) -> float | None:
    """Tell the diameter of the objects in pixels of the image, if it is known."""
    if diameter is not None:
        return diameter
    return model.object_diameter / factor if model.object_diameter else None


def typical_diameter(instances: NDArray[np.integer]) -> float | None:
    """Tell the diameter of typical objects, in pixels.

    That of a disc as large as the object with which, smallest first, half of the area
    of all objects is reached: specks that are no objects hardly change it.

    Parameters
    ----------
    instances : ndarray of int
        0 is background, every other value one object.

    Returns
    -------
    float or None
        None if there are no objects.
    """
    sizes = np.unique(instances[instances > 0], return_counts=True)[1]
    if not len(sizes):
        return None
    sizes = np.sort(sizes)
    reached = np.searchsorted(np.cumsum(sizes), sizes.sum() / 2)
    return float(2 * np.sqrt(sizes[reached] / np.pi))


def enlarge(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Bring labels (H, W) to another size, each pixel from the nearest one."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(np.int64), m - 1)
        for n, m in zip(size, labels.shape, strict=True)
    )
    enlarged: NDArray[Any] = labels[rows][:, columns]
    return enlarged
