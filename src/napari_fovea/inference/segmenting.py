"""The one entry to segmentation, for scripts, command line and docks alike."""

from __future__ import annotations

import datetime
import math
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea import device as devices
from napari_fovea.errors import ImageError, ModelError
from napari_fovea.images import (
    Planes,
    read_planes,
    resize,
    to_tensor,
)
from napari_fovea.inference.assembly import Assembly, preview
from napari_fovea.inference.result import (
    Event,
    Fixated,
    Segmentation,
    Separating,
    Started,
)
from napari_fovea.inference.retina import (
    default_budget,
    inference_network,
    scanning,
)
from napari_fovea.models import Model
from napari_fovea.networks import RetinaConfig
from napari_fovea.retina import (
    FUSIONS,
    POLICIES,
    FocusPath,
    Fusion,
    Policy,
    Raster,
    Scan,
    Seek,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator

    import torch
    from numpy.typing import ArrayLike

_MOST_RESIZING = 16
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
    diameter: float | None = None,
    pixel_size: float | None = None,
    device: str = "auto",
    batch_size: int = 32,
    preview_every: float | None = None,
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
        ``"seek"`` (the default) or ``"raster"``, the paper's.
    fusion : str or Fusion, optional
        ``"precision"`` or ``"mean"``; by default what suits the policy.
    budget : int, optional
        Most fixations per plane. By default 400 for 256×256 pixels at the
        model's scale, in proportion to the area; ``raster`` runs to its end.
    diameter : float, optional
        Typical diameter of the objects in pixels. The image is resized so that
        they appear as large as those the model was trained on.
    pixel_size : float, optional
        Size of a pixel in micrometres, used in place of the diameter where the
        model knows the size of its own.
    device : str
        ``"auto"`` or a torch device.
    batch_size : int
        Most subareas looked at together.
    preview_every : float, optional
        Seconds between previews; by default there are none.
    cancelled : callable
        Asked after every batch; where it says yes, the rest is left out and the
        result holds what there is.

    Yields
    ------
    Started, then Fixated, Preview or Separating

    Returns
    -------
    Segmentation
        At the image's own size.

    Raises
    ------
    FoveaError
        If the image, the model or a setting cannot be used.
    """
    started = time.perf_counter()
    for name, value in (("budget", budget), ("batch size", batch_size)):
        if value is not None and value < 1:
            raise ImageError(f"The {name} is {value}; give an integer of 1 or more.")
    planes = read_planes(image, axes=axes, rgb=rgb)
    if not isinstance(model, Model):
        model = Model.load(model)
    planes = planes.for_network(model.channels)
    config = model.config
    if not isinstance(config, RetinaConfig):
        raise ModelError(
            f"Model {model.name!r} is a {model.system} network, which cannot scan an "
            "image; expected a retina model: choose another."
        )
    where = devices.pick(device)
    chosen = _policy(policy or model.scan.get("policy", "seek"))
    fused = _fusion(fusion, chosen)
    factor = _resizing(model, planes.shape, diameter=diameter, pixel_size=pixel_size)
    shape = (
        max(1, round(planes.shape[0] * factor)),
        max(1, round(planes.shape[1] * factor)),
    )
    if budget is None and not isinstance(chosen, Raster):
        budget = default_budget(shape, d=config.d)
    scale = (planes.shape[0] / shape[0], planes.shape[1] / shape[1])
    expected = _object_diameter(model, factor, diameter)
    limits = model.normalisation.limits(planes)
    yield Started((*planes.lead, *planes.shape), shape, len(model.classes))
    store = Assembly(planes, classes=len(model.classes), shape=shape)
    network = inference_network(model, where)
    stopped = False
    for index, plane in enumerate(planes):
        if plane.min() == plane.max():
            continue  # an empty plane of a stack is all background
        pixels = to_tensor(plane, limits=limits, channels=model.channels, device=where)
        run = scanning(
            network,
            resize(pixels, shape),
            config=config,
            policy=chosen,
            fusion=fused,
            budget=budget,
            batch_size=batch_size,
            cancelled=cancelled,
        )
        del pixels
        last, cost = time.perf_counter(), 0.0
        try:
            while True:
                looked = next(run)
                part = FocusPath(
                    corners=looked.corners.cpu().numpy(),
                    entropies=looked.entropies.float().cpu().numpy(),
                    steps=looked.steps.cpu().numpy(),
                    grid=config.grid,
                    scale=scale,
                    planes=np.full(len(looked.corners), index),
                )
                share = min(1.0, looked.done / looked.expected)
                yield Fixated(index, part, looked.done, (index + share) / len(planes))
                now = time.perf_counter()
                if preview_every is not None and now - last >= max(
                    preview_every, _PREVIEW_SHARE * cost
                ):
                    seen = fused.read_out(looked.votes, config.grid)
                    yield preview(model, seen, looked.overlap, index, planes)
                    last = time.perf_counter()
                    cost = last - now
        except StopIteration as end:
            scanned: Scan = end.value
        yield Separating(index, (index + 1) / len(planes))
        store.add(index, model, scanned, scale=scale, diameter=expected)
        stopped = cancelled()
        if stopped:
            break
    path = store.path(grid_of=config)
    provenance = _provenance(
        model,
        planes,
        where,
        settings={
            "policy": _name(POLICIES, chosen),
            "fusion": _name(FUSIONS, fused),
            "budget": budget,
            "diameter": diameter,
            "pixel_size": pixel_size,
            "batch_size": batch_size,
        },
    )
    provenance |= {
        "resized_by": factor,
        "fixations": len(path),
        "cancelled": stopped,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return store.result(path, provenance)


def complete(run: Generator[Any, None, Any]) -> Any:
    """Run a generator of events to its end and return its result.

    Examples
    --------
    >>> result = complete(segment(image, "retina-nuclei"))  # doctest: +SKIP
    """
    try:
        while True:
            next(run)
    except StopIteration as end:
        return end.value


def _policy(policy: Any) -> Policy:
    if isinstance(policy, Raster | Seek):
        return policy
    if policy not in POLICIES:
        raise ModelError(
            f"There is no policy {policy!r}; expected {' or '.join(POLICIES)}."
        )
    return POLICIES[policy]


def _fusion(fusion: str | Fusion | None, policy: Policy) -> Fusion:
    if fusion is None:
        fusion = "mean" if isinstance(policy, Raster) else "precision"
    if not isinstance(fusion, str):
        return fusion
    if fusion not in FUSIONS:
        raise ModelError(
            f"There is no fusion {fusion!r}; expected {' or '.join(FUSIONS)}."
        )
    return FUSIONS[fusion]


def _resizing(
    model: Model,
    shape: tuple[int, int],
    *,
    diameter: float | None,
    pixel_size: float | None,
) -> float:
    """Factor that brings the image to the model's object size."""
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


def _object_diameter(
    model: Model, factor: float, diameter: float | None
) -> float | None:
    if diameter is not None:
        return diameter
    return model.object_diameter / factor if model.object_diameter else None


def _name(known: dict[str, Any], value: Any) -> str:
    return next((k for k, v in known.items() if v == value), repr(value))


def _provenance(
    model: Model, planes: Planes, where: torch.device, *, settings: dict[str, Any]
) -> dict[str, Any]:
    packages = ("napari-fovea", "torch", "numpy", "scikit-image")
    return {
        "model": model.name,
        "system": model.system,
        "classes": list(model.classes),
        "settings": settings,
        "image": {
            "shape": [*planes.lead, *planes.shape],
            "channels": planes.channels,
            "type": str(planes.data.dtype),
            "axes": planes.axes,
        },
        "device": devices.describe(where),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in packages},
    }
