"""How large an image is shown to a model, and its objects to whom tells them apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from napari_fovea.errors import ImageError, ModelError

if TYPE_CHECKING:
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


def object_diameter(
    model: Model, factor: float, diameter: float | None
) -> float | None:
    """Tell the diameter of the objects in pixels of the image, if it is known."""
    if diameter is not None:
        return diameter
    return model.object_diameter / factor if model.object_diameter else None
