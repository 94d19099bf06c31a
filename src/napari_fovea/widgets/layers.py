"""From layers to arrays, and from results to layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Shapes

from napari_fovea.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from napari.layers import Layer
    from numpy.typing import NDArray

KEY = "napari-fovea"
"""Where, in a layer's metadata, the plugin keeps what it knows."""

# Ids of layers that the plugin made: a copy that the user makes of one has the
# same metadata, but belongs to the user.
_MADE: set[str] = set()

_KINDS = {"image": Image, "labels": Labels, "shapes": Shapes}

WHOLE, PLANE, VIEW = "Whole image", "Current plane", "In view"
"""Regions of a layer that can be segmented."""


@dataclass(frozen=True)
class Region:
    """A part of an image layer, as an array.

    Attributes
    ----------
    array : object
        What the layer holds there: numpy or lazy. Spatial axes last, then
        channels where ``rgb``.
    rgb : bool
        Whether the last axis holds channels.
    offset : tuple of float
        Index in the layer's data of the array's first pixel, all axes.
    dropped : int
        Leading axes of the layer that the array lacks (a single plane).
    whole : bool
        Whether it is all that the layer holds.
    """

    array: Any
    rgb: bool
    offset: tuple[float, ...]
    dropped: int
    whole: bool = False


def array_of(layer: Layer) -> Any:
    """Return what an image layer holds, at full size: numpy or lazy."""
    data = layer.data[0] if layer.multiscale else layer.data
    if isinstance(data, np.ndarray) or hasattr(data, "dask"):
        return data
    # Others read a part as soon as it is taken.
    import dask.array

    return dask.array.from_array(data, name=False)


def pixels_of(layer: Image) -> int:
    """Count the pixels of an image layer at full size, through the stack."""
    shape = np.shape(layer.data[0] if layer.multiscale else layer.data)
    return math.prod(shape[:-1] if layer.rgb else shape)


def region_of(layer: Image, dims: Any, region: str) -> Region:
    """Take a part of a layer.

    Parameters
    ----------
    layer : napari.layers.Image
        The layer.
    dims : napari.components.Dims
        The viewer's sliders.
    region : str
        `WHOLE`, `PLANE` or `VIEW`.

    Raises
    ------
    ImageError
        If nothing of the layer is in view.
    """
    data = array_of(layer)
    if region == WHOLE or layer.ndim < 2:
        return Region(data, layer.rgb, (0.0,) * layer.ndim, 0, whole=True)
    lead = layer.ndim - 2
    point = layer.world_to_data(dims.point)
    index = tuple(
        int(np.clip(round(float(p)), 0, n - 1))
        for p, n in zip(point[-layer.ndim :][:lead], data.shape, strict=False)
    )
    start, stop = (0, 0), data.shape[lead : lead + 2]
    if region == VIEW:
        start, stop = _in_view(layer, stop)
    rows, columns = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return Region(
        data[(*index, rows, columns)],
        layer.rgb,
        (*map(float, index), *map(float, start)),
        lead,
    )


def _in_view(
    layer: Image, shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, ...]]:
    # Corner pixels are those of the level that is shown.
    factors = layer.downsample_factors[layer.data_level] if layer.multiscale else 1
    corners = (
        np.asarray(layer.corner_pixels)[:, -2:]
        * np.broadcast_to(factors, layer.ndim)[-2:]
    )
    low = np.clip(corners[0].astype(int), 0, shape)
    high = np.clip(corners[1].astype(int) + 1, 0, shape)
    if (high - low < 2).any():
        raise ImageError(
            f"Nothing of layer {layer.name!r} is in view; expected a part of it on "
            "the canvas: move the camera, or segment the whole image."
        )
    return (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))


def placement(
    source: Layer,
    offset: Iterable[float],
    *,
    scale: Sequence[float] = (1.0, 1.0),
    shift: Sequence[float] = (0.0, 0.0),
) -> dict[str, Any]:
    """Compute the transforms that lay an array over a part of a layer.

    Parameters
    ----------
    source : napari.layers.Layer
        The layer whose scale, translate, rotate, shear and affine count.
    offset : iterable of float
        Index in the layer's data where the part begins, all axes.
    scale : sequence of float
        Layer pixels per pixel of the array, as many last axes as it has entries.
    shift : sequence of float
        Further offset in layer pixels, the same.

    Returns
    -------
    dict
        Keyword arguments and attributes of a layer.
    """
    where = np.asarray(tuple(offset), dtype=float)
    where[-len(shift) :] += shift
    origin = _data_to_physical(source, np.zeros(source.ndim))
    translate = np.asarray(source.translate) + (
        _data_to_physical(source, where) - origin
    )
    finer = np.asarray(source.scale, dtype=float).copy()
    finer[-len(scale) :] *= scale
    return {
        "scale": finer,
        "translate": translate,
        "rotate": source.rotate,
        "shear": source.shear,
        "affine": source.affine,
        "units": source.units,
    }


def plane_placement(
    source: Layer,
    offset: Iterable[float],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Any]:
    """Compute the transforms that lay a flat layer over one plane of a layer.

    napari shows a layer of two dimensions on every plane of a stack. All that the
    source does to its pixels stands in the affine, so that ``translate`` moves the
    flat layer along the source's own rows and columns.

    Parameters
    ----------
    source : napari.layers.Layer
        The layer whose scale, translate, rotate, shear and affine count.
    offset : iterable of float
        Index in the layer's data where the flat layer begins, all axes.
    scale : tuple of float
        Layer pixels per pixel of the flat layer.
    shift : tuple of float
        Further offset in layer pixels.

    Returns
    -------
    dict
        Keyword arguments and attributes of a layer.
    """
    origin = np.asarray(tuple(offset), dtype=float)
    zero = np.where(np.arange(source.ndim) < source.ndim - 2, origin, 0.0)
    steps = np.eye(source.ndim)[-2:]
    start, down, right = (
        np.asarray(source.data_to_world(zero + step), dtype=float)[-2:]
        for step in (np.zeros(source.ndim), *steps)
    )
    affine = np.eye(3)
    affine[:2] = np.stack([down - start, right - start, start], axis=1)
    return {
        "scale": np.asarray(scale, dtype=float),
        "translate": origin[-2:] + shift,
        "affine": affine,
        "units": source.units[-2:],
    }


def rectangles(boxes: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Corners of boxes (n, 4) of top, left, bottom and right, as shapes want them."""
    return [
        np.array([[t, left], [t, right], [b, right], [b, left]], dtype=float)
        for t, left, b, right in boxes
    ]


def place_in(
    source: Layer, offset: Iterable[float], world: Iterable[float]
) -> tuple[float, float]:
    """Tell the pixel (y, x) of a plane of a layer, from ``offset``, in the world."""
    place = plane_placement(source, offset)
    back = np.linalg.inv(place["affine"])
    y, x = (back @ [*tuple(world)[-2:], 1.0])[:2] - place["translate"]
    return float(y), float(x)


def _data_to_physical(source: Layer, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Through scale, rotation, shear and translation, but not the affine."""
    whole = np.asarray(source.data_to_world(point), dtype=float)
    affine = np.asarray(source.affine)
    inverse = np.linalg.inv(affine)
    return np.asarray((inverse @ np.append(whole, 1.0))[:-1])


def own(layer: Layer) -> dict[str, Any] | None:
    """Return what the plugin keeps about a layer of its own; None for the user's."""
    note = layer.metadata.get(KEY)
    mine = str(layer.unique_id) in _MADE and isinstance(note, dict)
    return note if mine else None


def forget(layer: Layer) -> None:
    """Take from a layer of the plugin's what it says of the run that made it."""
    note = own(layer) or {}
    kept = {k: note[k] for k in ("source", "source_id", "role") if k in note}
    layer.metadata = {KEY: kept}


def find(
    layers: Iterable[Layer], source: Layer, role: str, *, ndim: int | None = None
) -> Layer | None:
    """Find the plugin's layer of a role that shows this source.

    Parameters
    ----------
    layers : iterable of Layer
        Where to look.
    source : Layer
        What is shown; it may have been renamed meanwhile.
    role : str
        What of it.
    ndim : int, optional
        Dimension of the layer; by default the source's.
    """
    ndim = source.ndim if ndim is None else ndim
    for layer in layers:
        note = own(layer) or {}
        if shows(note, source) and note.get("role") == role and layer.ndim == ndim:
            return layer
    return None


def shows(note: Mapping[str, Any], source: Layer) -> bool:
    """Whether what is kept about a layer says that it shows this source."""
    return note.get("source_id") == str(source.unique_id)


def put(
    viewer: Any,
    kind: str,
    data: Any,
    *,
    source: Layer,
    role: str,
    title: str,
    note: dict[str, Any],
    place: dict[str, Any],
    **style: Any,
) -> Layer:
    """Show data in the plugin's layer of a role, making it where there is none.

    Parameters
    ----------
    viewer : napari.Viewer
        Where to.
    kind : str
        ``"labels"``, ``"image"`` or ``"shapes"``.
    data : array
        What to show.
    source : Layer
        What is shown.
    role : str
        What of it.
    title : str
        Name of a new layer.
    note : dict
        Kept in the layer's metadata, beside source and role.
    place : dict
        From `placement`.
    **style
        Settings of a new layer; those of an old one are the user's.
    """
    known = {"source": source.name, "source_id": str(source.unique_id), "role": role}
    metadata = {KEY: {**note, **known}}
    layer = find(viewer.layers, source, role, ndim=len(place["scale"]))
    if layer is not None:
        layer.data = data
        move(layer, place)
        layer.metadata = metadata
        return layer
    if kind == "shapes":
        style["ndim"] = len(place["scale"])
    layer = _KINDS[kind](data, name=title, metadata=metadata, **place, **style)
    _MADE.add(str(layer.unique_id))  # ours, before the viewer tells of it
    return viewer.add_layer(layer)


def move(layer: Layer, place: dict[str, Any]) -> None:
    """Give a layer the transforms of `placement`; those it has cost nothing."""
    for name, value in place.items():
        old = getattr(layer, name)
        same = old == value if name == "units" else np.array_equal(old, value)
        if not same:
            setattr(layer, name, value)


def pixel_size(layer: Layer) -> float | None:
    """Size of a layer's pixels in micrometres, where its units are lengths."""
    try:
        down, right = (
            float((scale * unit).to("micrometer").magnitude)
            for scale, unit in zip(layer.scale[-2:], layer.units[-2:], strict=True)
        )
    except Exception:  # pixels are no length; pint has its own ways to say so
        return None
    return down if math.isclose(down, right, rel_tol=1e-3) else None
