"""Images to learn from, brought to one size of objects, and how often each is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_fovea.images import resize
from napari_fovea.inference.sizes import enlarge, typical_diameter
from napari_fovea.training.samples import VOID, Sample, depth_classes
from napari_fovea.training.views import by_area

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LEAST, _MOST = 0.2, 4.0
"""Resizings beyond these would leave little to see, or fill memory with nothing."""
_COLOURED = 0.02
_SHORTEST = 16


def to_diameter(
    samples: Sequence[Sample], diameter: float, *, depths: Sequence[float] | None
) -> list[Sample]:
    """Resize images so that the objects of each are typically so large.

    Parameters
    ----------
    samples : sequence of Sample
        Those without objects, or without numbers for them, stay as they are.
    diameter : float
        In pixels; see `typical_diameter`.
    depths : sequence of float or None
        Those of the outputs, if they have any; see `depth_classes`.
    """
    return [_resized(s, diameter, depths) for s in samples]


def odds_of(samples: Sequence[Sample], balance: float) -> NDArray[np.floating]:
    r"""How often each image is drawn.

    As the root of its area, and as :math:`n^{-b}` for one of n images of a look:
    coloured or gray, of bright or of dark objects.

    Parameters
    ----------
    samples : sequence of Sample
        Images to learn from.
    balance : float, in [0, 1]
        b; 1 shows all looks equally often.
    """
    looks = [_look(s) for s in samples]
    counts = {look: looks.count(look) for look in set(looks)}
    odds = by_area(samples) * np.array([counts[look] ** -balance for look in looks])
    shares: NDArray[np.floating] = odds / odds.sum()
    return shares


def _resized(sample: Sample, diameter: float, depths: Sequence[float] | None) -> Sample:
    typical = None if sample.instances is None else typical_diameter(sample.instances)
    if typical is None or sample.instances is None:
        return sample
    factor = min(max(diameter / typical, _LEAST), _MOST)
    height, width = (max(_SHORTEST, round(n * factor)) for n in sample.instances.shape)
    instances = enlarge(sample.instances, (height, width))
    # Pixels of objects that count for nothing are those near the edge of what is
    # known, which is found anew.
    unknown = (sample.classes.numpy() == VOID) & (sample.instances == 0)
    void = enlarge(unknown, (height, width))
    if depths is None:
        classes = np.where(void, VOID, instances > 0).astype(np.uint8)
    else:
        classes = depth_classes(instances, depths=depths, void=void)
    return replace(
        sample,
        image=resize(sample.image, (height, width)).contiguous(),
        classes=torch.from_numpy(classes),
        instances=instances,
    )


def _look(sample: Sample) -> tuple[bool, bool]:
    """Whether an image is coloured, and its objects darker than what is around."""
    image, classes = sample.image, sample.classes
    brightness = image.mean(0)
    coloured = float((image - brightness).abs().mean()) > _COLOURED
    objects, ground = (classes > 0) & (classes != VOID), classes == 0
    if not objects.any() or not ground.any():
        return coloured, False
    dark = float(brightness[objects].mean()) < float(brightness[ground].mean())
    return coloured, dark
