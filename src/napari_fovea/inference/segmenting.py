"""The one entry to segmentation, for scripts, command line and docks alike."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_fovea import device as devices
from napari_fovea.errors import ImageError
from napari_fovea.images import (
    read_planes,
    resize,
    to_tensor,
)
from napari_fovea.inference.assembly import Assembly, preview
from napari_fovea.inference.attention import wanted
from napari_fovea.inference.choosing import reader_for
from napari_fovea.inference.diameter import estimated, liveliest
from napari_fovea.inference.provenance import provenance_of
from napari_fovea.inference.result import (
    Event,
    Fixated,
    Measured,
    Segmentation,
    Separating,
    Started,
    Tiled,
)
from napari_fovea.inference.retreat import CPU, exhausted
from napari_fovea.inference.runner import WINDOW
from napari_fovea.inference.sizes import (
    fitting,
    measured,
    object_diameter,
    resized,
    resizing,
)
from napari_fovea.models import Model
from napari_fovea.networks import RetinaConfig

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable

    import torch
    from numpy.typing import ArrayLike

    from napari_fovea.device import Backend
    from napari_fovea.inference.reading import Reader, Seen, Step
    from napari_fovea.inference.tiles import Tiling
    from napari_fovea.retina import Fusion, Policy

_LITTLE = 2 * WINDOW**2  # pixels that take no longer than it does to compare precisions
_PREVIEW_SHARE = 3  # previews of large images take at most a quarter of the time


def segment(
    image: ArrayLike,
    model: Model | str | os.PathLike[str],
    *,
    axes: str | None = None,
    rgb: bool | None = None,
    policy: str | Policy | None = None,
    fusion: str | Fusion | None = None,
    budget: int | None = None,
    diameter: float | Literal["auto"] | None = None,
    pixel_size: float | None = None,
    limits: tuple[float, float] | None = None,
    device: str | Backend = "auto",
    tiling: Tiling | None = None,
    batch_size: int | None = None,
    attention: Iterable[str] = (),
    preview_every: float | None = None,
    blank: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, Segmentation]:
    """Segment an image, reporting as it goes.

    Parameters
    ----------
    image : array_like
        (H, W), (H, W, C) or a stack of these, of any numeric type. It is not
        changed.
    model : Model, str or path-like
        A model, its name, or its file.
    axes : str, optional
        What each axis is, such as ``"ZYXC"``; guessed by default.
    rgb : bool, optional
        Whether the last axis holds channels, where ``axes`` is not given.
    policy : str or Policy, optional
        For retina models, ``"seek"`` (the default) or ``"raster"``, the paper's.
    fusion : str or Fusion, optional
        ``"precision"`` or ``"mean"``; by default what suits the policy.
    budget : int, optional
        Most fixations per plane. By default 400 for 256×256 pixels at the
        model's scale, in proportion to the area; ``raster`` runs to its end.
    diameter : float, optional
        Typical diameter of the objects in pixels. The image is resized so that
        they appear as large as those the model was trained on. ``"auto"`` lets the
        model estimate it, see `estimate_diameter`, which is what models do by default
        that were trained on objects of one size.
    pixel_size : float, optional
        Size of a pixel in micrometres, used in place of the diameter where the
        model knows the size of its own.
    limits : tuple of float, optional
        Intensities that become 0 and 1; by default percentiles of the image. Parts
        of one image are seen alike if they are given the same.
    device : str or Backend
        ``"auto"`` or a torch device; a `Backend` tells precision and memory too.
    tiling : Tiling, optional
        How other models cut large planes into tiles; by default into tiles as large
        as memory allows.
    batch_size : int, optional
        Most subareas (32 by default) or tiles looked at together.
    attention : iterable of str
        Names of attention maps to keep, of `attends`, or one name; ``"name [3]"`` is
        a channel. None are kept by default, and memory is taken for those alone.
    preview_every : float, optional
        Seconds between previews; by default there are none.
    blank : bool
        Whether an image without any contrast is all background rather than an
        error.
    cancelled : callable
        Asked after every batch; where it says yes, the rest is left out and the
        result holds what there is.

    Yields
    ------
    Started, then Measured, Fixated or Tiled, Preview, Separating

    Returns
    -------
    Segmentation
        At the image's own size.

    Raises
    ------
    FoveaError
        If the image, the model or a setting cannot be used.
    OutOfMemoryError
        If there is no room for the network's features, however small its pieces.
    """
    started = time.perf_counter()
    for name, value in (("budget", budget), ("batch size", batch_size)):
        if value is not None and value < 1:
            raise ImageError(f"The {name} is {value}; give an integer of 1 or more.")
    if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
        raise ImageError(
            f"The limits are {limits}; expected two finite intensities, the smaller "
            "first: leave them out."
        )
    planes = read_planes(image, axes=axes, rgb=rgb)
    if not isinstance(model, Model):
        model = Model.load(model)
    planes = planes.for_network(model.channels, blank=blank)
    asked = wanted(model, attention)
    backend = devices.as_backend(device)
    where = devices.pick(backend.device)
    known = None if diameter == "auto" else diameter
    measures = measured(model, diameter=diameter, pixel_size=pixel_size)
    # What can be refused is, before anything is computed.
    factor = resizing(model, planes.shape, diameter=known, pixel_size=pixel_size)
    shape = resized(planes.shape, factor)
    little = len(planes) * math.prod(shape) <= _LITTLE
    look = partial(
        reader_for,
        model,
        policy=policy,
        fusion=fusion,
        budget=budget,
        tiling=tiling,
        batch_size=batch_size,
        attention=asked,
    )
    reader = look(_suiting(backend, little=little), shape)
    grid = model.config.grid if isinstance(model.config, RetinaConfig) else None
    focused = grid is not None
    low, high = limits or model.normalisation.limits(planes)
    yield Started((*planes.lead, *planes.shape), shape, len(model.classes), focused)
    if measures:
        sample = to_tensor(
            liveliest(planes), limits=(low, high), channels=model.channels
        )
        known = estimated(sample, model, backend, cancelled=cancelled)
        del sample
        factor = fitting(model, known)
        shape = resized(planes.shape, factor)
        little = len(planes) * math.prod(shape) <= _LITTLE
        reader = look(_suiting(backend, little=little), shape)
        yield Measured(known, shape)
    scale = (planes.shape[0] / shape[0], planes.shape[1] / shape[1])
    expected = object_diameter(model, factor, known)
    store = Assembly(planes, classes=len(model.classes), shape=shape, focused=focused)
    stopped = False
    try:
        for index, plane in enumerate(planes):
            if plane.min() == plane.max():
                continue  # an empty plane of a stack is all background
            pixels = to_tensor(plane, limits=(low, high), channels=model.channels)
            last, cost = time.perf_counter(), 0.0
            run = _reading(reader, pixels, shape, scale=scale, cancelled=cancelled)
            del pixels
            try:
                while True:
                    step = next(run)
                    fraction = (index + min(1.0, step.fraction)) / len(planes)
                    if step.path is None:
                        yield Tiled(index, fraction)
                    else:
                        part = replace(step.path, planes=np.full(len(step.path), index))
                        yield Fixated(index, part, step.done, fraction)
                    now = time.perf_counter()
                    if preview_every is not None and now - last >= max(
                        preview_every, _PREVIEW_SHARE * cost
                    ):
                        yield preview(
                            model,
                            *step.peek(),
                            index,
                            planes,
                            focused=focused,
                            unsure=step.unsure() if step.unsure else None,
                        )
                        last = time.perf_counter()
                        cost = last - now
            except StopIteration as end:
                seen: Seen = end.value
            yield Separating(index, (index + 1) / len(planes))
            store.add(index, model, seen, diameter=expected)
            stopped = cancelled()
            if stopped:
                break
        told = reader.runner.told
    finally:
        if where.type != "cpu" or reader.runner.retreat.told or not little:
            devices.give_back()
    path = store.path(grid=grid) if grid is not None else None
    settings = {
        "diameter": known,
        "pixel_size": pixel_size,
        "limits": None if limits is None else [float(n) for n in limits],
    } | reader.settings
    provenance = provenance_of(model, planes, where, settings=settings) | {
        **told,
        "diameter_estimated": measures,
        "resized_by": factor,
        "fixations": len(path) if path is not None else None,
        "cancelled": stopped,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return store.result(path, provenance, attention=asked)


def _suiting(backend: Backend, *, little: bool) -> Backend:
    """Take 32 bits for a little image, if it is free to choose."""
    if backend.precision == "auto" and little:
        return replace(backend, precision="float32")
    return backend


def _reading(
    reader: Reader,
    pixels: torch.Tensor,
    shape: tuple[int, int],
    *,
    scale: tuple[float, float],
    cancelled: Callable[[], bool],
) -> Generator[Step, None, Seen]:
    """Read a plane at a size; on the CPU where its own device has no room for it."""
    while True:
        try:
            placed = resize(pixels.to(reader.home), shape)
            return (yield from reader.read(placed, scale=scale, cancelled=cancelled))
        except Exception as error:
            if not devices.ran_out(error):
                raise
        if not reader.runner.fall_back():
            height, width = shape
            raise exhausted(CPU, f"a plane of {height}×{width} pixels")
