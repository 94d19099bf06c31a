"""How large the objects of an image are that need not fit into memory."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.images import Planes, to_tensor
from napari_fovea.inference.diameter import estimated, starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_fovea.device import Backend
    from napari_fovea.models import Model
    from napari_fovea.scale.source import Source

_SIDE, _PLANES = 1024, 4  # of a part in pixels, and planes that it may be taken from


def diameter_of(
    source: Source,
    model: Model,
    device: str | Backend,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> float | None:
    """Estimate how large the objects of a large image typically are.

    Of parts of the finest level, spread evenly, the one of most contrast is looked at.

    Parameters
    ----------
    source : Source
        The image. Parts that cannot be read, or hold NaN, are left out.
    model : Model
        One that knows the size of its objects.
    device : str or Backend
        Where it looks.
    cancelled : callable
        Asked between looks; where it says yes, what is known so far counts.

    Returns
    -------
    float or None
        Diameter in pixels of the finest level; None if nothing is found.
    """
    level = source.levels[0]
    count = min(_PLANES, level.planes)
    numbers = (round(float(i)) for i in np.linspace(0, level.planes - 1, count))
    most = 4 if count == 1 else 2  # parts along each side
    tops, lefts = (starts(n, _SIDE, most) for n in level.plane)
    parts = []
    for plane, top, left in product(numbers, tops, lefts):
        rows, columns = slice(top, top + _SIDE), slice(left, left + _SIDE)
        try:
            pixels = level.read(plane, rows, columns)
        except Exception:  # a block will say so itself
            continue
        if pixels.dtype.kind != "f" or bool(np.isfinite(pixels).all()):
            parts.append(pixels)
    if not parts:
        return None
    planes = Planes(max(parts, key=lambda p: float(p.std()))[None], (), "YX")
    planes = planes.for_network(model.channels, blank=True)
    if planes.data.min() == planes.data.max():
        return None
    limits = model.normalisation.limits(planes)
    shown = to_tensor(planes.data[0], limits=limits, channels=model.channels)
    return estimated(shown, model, device, cancelled=cancelled)
