"""How large the objects of an image are, as a model finds out by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea import device as devices
from napari_fovea.errors import ModelError
from napari_fovea.images import read_planes, resize, to_tensor
from napari_fovea.inference.assembly import objects_of
from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.reading import complete
from napari_fovea.inference.sizes import typical_diameter
from napari_fovea.models import Model
from napari_fovea.networks import (
    Adapted,
    AdaptedRetina,
    RetinaConfig,
    SharedRetinaConfig,
)
from napari_fovea.retina import entropy

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    import torch
    from numpy.typing import ArrayLike, NDArray

    from napari_fovea.device import Backend
    from napari_fovea.images import Planes

_SIDE = 512  # of what is looked at, in pixels as the model sees them
_SIDE_OF_LOOKS = 256  # where a focus moves, and every look is a pass of its own
_LEAST = 32
_FIRST, _OTHERS = (0.5, 1.0), (0.125, 0.25, 2.0, 4.0)
_SAMPLE = 16
_NEAR = 1.3
_SURE = 0.4  # nats; noise that is enlarged is told from background by less


def estimate_diameter(
    image: ArrayLike,
    model: Model | str | os.PathLike[str],
    *,
    axes: str | None = None,
    rgb: bool | None = None,
    limits: tuple[float, float] | None = None,
    device: str | Backend = "auto",
    cancelled: Callable[[], bool] = lambda: False,
) -> float | None:
    """Estimate how large the objects of an image typically are.

    The model segments a part of the image at several magnifications, octaves apart.
    It is surest about what it finds where objects are as large as those it knows, so
    they are measured there.

    Parameters
    ----------
    image : array_like
        As for `segment`. Of a stack, the plane of most contrast is looked at.
    model : Model, str or path-like
        A model of objects whose size it knows.
    axes, rgb, limits, device, cancelled
        As for `segment`.

    Returns
    -------
    float or None
        Diameter in pixels of the image, of a disc as large as typical objects; see
        `typical_diameter`. None if nothing is found.

    Raises
    ------
    FoveaError
        If image or model cannot be used.
    """
    if not isinstance(model, Model):
        model = Model.load(model)
    if model.object_diameter is None:
        raise ModelError(
            f"Model {model.name!r} does not know the size of the objects it was "
            "trained on, so it cannot tell that of others: give it, or choose another "
            "model."
        )
    planes = read_planes(image, axes=axes, rgb=rgb).for_network(model.channels)
    backend = devices.as_backend(device)
    low, high = limits or model.normalisation.limits(planes)
    plane = to_tensor(liveliest(planes), limits=(low, high), channels=model.channels)
    return estimated(plane, model, backend, cancelled=cancelled)


def estimated(
    plane: torch.Tensor,
    model: Model,
    device: str | Backend,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> float | None:
    """Estimate the diameter of objects of a normalised plane (C, H, W)."""
    if model.members:
        model = model.members[0]  # of what they see, not of how well, members agree
    model = _unadapted(model)
    looks: dict[float, _Look] = {}

    def look(factor: float) -> _Look:
        if factor not in looks:
            looks[factor] = _look(plane, model, device, factor)
        return looks[factor]

    def surest(factors: Iterable[float]) -> float:
        return min(factors, key=lambda f: look(f).entropy)

    best = surest(_FIRST)
    if look(best).diameter is None:
        # Much smaller than what is seen so far, or much larger.
        sure = [f for f in _OTHERS if not cancelled() and look(f).doubt < _SURE]
        return look(surest(sure)).diameter if sure else None
    up = best == max(_FIRST)
    for factor in sorted((f for f in _OTHERS if (f > best) == up), reverse=not up):
        found = look(best).diameter
        if cancelled() or (found is not None and _fits(found * best, model, up=up)):
            break
        best = surest((best, factor))
        if best != factor:
            break
    return look(best).diameter


def _unadapted(model: Model) -> Model:
    """Give the model of whose opinion one that reads evidence begins.

    What a few strokes taught of objects at one size is no guide at others, where all
    may look like an object.
    """
    network = model.network
    if not isinstance(network, Adapted | AdaptedRetina):
        return model
    told = network.config
    own = tuple(map(str, range(told.spoken)))
    return replace(
        model,
        network=network.base,
        classes=model.classes if told.kept else own,
        outputs=told.belongs,
        depths=model.depths if told.kept else None,
    )


@dataclass(frozen=True)
class _Look:
    """What was found at a magnification: a diameter, and how unsure the model is.

    Of all it tells apart, depths inside objects included, and of classes alone.
    """

    diameter: float | None = None
    entropy: float = np.inf
    doubt: float = np.inf


def _fits(shown: float, model: Model, *, up: bool) -> bool:
    """Whether objects need not be shown larger, or smaller, than they were."""
    assert model.object_diameter is not None
    ratio = shown / model.object_diameter
    return ratio > 1 / _NEAR if up else ratio < _NEAR


def _look(
    plane: torch.Tensor, model: Model, device: str | Backend, factor: float
) -> _Look:
    part = _window(plane, round(_side(model) / factor))
    height, width = (max(1, round(n * factor)) for n in part.shape[1:])
    if max(height, width) < _LEAST:
        return _Look()
    shown = resize(part, (height, width))
    reader = reader_for(model, device, (height, width))
    shown = shown.to(reader.home)
    seen = complete(reader.read(shown, scale=(1.0, 1.0), cancelled=lambda: False))
    # Half of the model's own size, or what is small would be dropped as specks.
    assert model.object_diameter is not None
    labels, objects = objects_of(
        model, seen, (height, width), diameter=model.object_diameter / 2
    )
    diameter = typical_diameter(objects)
    if diameter is None:
        return _Look()
    classes = model.class_probabilities(seen.outputs)
    unsure, doubt = (
        float(entropy(pmf).cpu().numpy()[labels > 0].mean())
        for pmf in (seen.outputs, classes)
    )
    return _Look(diameter / factor, unsure, doubt)


def _side(model: Model) -> int:
    """Tell how large a part is looked at, in pixels as the model sees them."""
    kind = model.config
    if isinstance(kind, RetinaConfig) and not isinstance(kind, SharedRetinaConfig):
        return _SIDE_OF_LOOKS
    return _SIDE


def _window(plane: torch.Tensor, side: int) -> torch.Tensor:
    """Cut the part of most contrast out of a plane (C, H, W)."""
    height, width = plane.shape[1:]
    if height <= side and width <= side:
        return plane
    parts = [
        plane[:, top : top + side, left : left + side]
        for top in starts(height, side)
        for left in starts(width, side)
    ]
    return max(parts, key=lambda p: float(p[:, ::4, ::4].std()))


def starts(length: int, side: int, most: int = 4) -> list[int]:
    """Where parts begin that cover a length, at most so many (2 or more) of them."""
    if length <= side:
        return [0]
    count = min(most, -(-length // side))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def liveliest(planes: Planes) -> NDArray[np.generic]:
    """Choose the plane (H, W, C) of most contrast, among a few evenly spread."""
    every = max(1, -(-len(planes) // _SAMPLE))
    return max(
        (planes.data[i] for i in range(0, len(planes), every)),
        key=lambda plane: float(plane[::8, ::8].astype(np.float64).std()),
    )
