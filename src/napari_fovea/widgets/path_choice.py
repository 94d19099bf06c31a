"""Which focus paths there are to replay, and the images they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image

from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from napari.layers import Layer

    from napari_fovea.retina import FocusPath


@dataclass(frozen=True)
class Choice:
    """A focus path that can be replayed.

    Attributes
    ----------
    name : str
        What it is called in lists.
    path : FocusPath
        All of it.
    image : mapping
        What is known of its image: name, shape, dtype, digest, offset.
    provenance : mapping
        What is known of its making.
    file : str or None
        Where it was read from; None for the path of a result layer.
    """

    name: str
    path: FocusPath
    image: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None


def choices(found: Iterable[Layer]) -> list[Choice]:
    """List the paths that result layers keep in their metadata."""
    made = []
    for layer in found:
        note = layer.metadata.get(layers.KEY)
        path = note.get("path") if isinstance(note, dict) else None
        # By name: importing the class would bring torch into the GUI thread.
        if path is None or type(path).__name__ != "FocusPath" or not len(path):
            continue
        assert isinstance(note, dict)
        image = {
            "name": note.get("source"),
            "id": note.get("source_id"),
            "offset": note.get("region_offset"),
        }
        made.append(Choice(layer.name, path, image, note.get("provenance") or {}))
    return made


def images(found: Iterable[Layer]) -> list[Image]:
    """List the user's image layers."""
    return [
        x
        for x in found
        if isinstance(x, Image) and x.ndim >= 2 and layers.own(x) is None
    ]


def offset_of(choice: Choice, image: Layer) -> tuple[float, ...]:
    """Index in the image's data where the scanned region begins, all axes."""
    offset = choice.image.get("offset")
    if offset is None or len(offset) != image.ndim:
        return (0.0,) * image.ndim
    return tuple(float(v) for v in offset)


def size_of(image: Layer) -> tuple[int, int]:
    """Height and width of an image layer's planes."""
    data = layers.array_of(image)
    height, width = data.shape[image.ndim - 2 : image.ndim]
    return int(height), int(width)


def identity_of(choice: Choice, image: Layer) -> Callable[[], dict[str, Any]]:
    """Return what tells, in a thread, which image a path was walked on."""
    data, name, offset = layers.array_of(image), image.name, offset_of(choice, image)
    region = choice.path.image_shape != size_of(image)

    def tell() -> dict[str, Any]:
        from napari_fovea.project.identity import identify

        if choice.file is not None:
            return dict(choice.image)
        known = identify(data, name)
        return {
            "name": known.name,
            "shape": list(known.shape),
            "dtype": known.dtype,
            "digest": known.digest,
            "offset": list(offset),
            "region": region,
        }

    return tell


def fits(choice: Choice, image: Layer) -> bool:
    """Whether the path lies inside the image, and knows its planes."""
    offset, size = offset_of(choice, image), size_of(image)
    mine = choice.path.image_shape
    if mine is None:
        return True  # older paths do not tell: they came with their layer
    whole = choice.image.get("offset") is None or not any(offset[-2:])
    inside = all(o + m <= n for o, m, n in zip(offset[-2:], mine, size, strict=True))
    if choice.file is not None and whole and not choice.image.get("region"):
        inside = tuple(mine) == size
    return inside and len(choice.path.lead) in (0, image.ndim - 2)


def index_in_view(image: Layer, dims: Any) -> tuple[int, ...]:
    """Index, along the stack's axes of an image layer, of the plane in view."""
    lead, shape = image.ndim - 2, layers.array_of(image).shape
    point = np.asarray(image.world_to_data(dims.point[-image.ndim :]))[:lead]
    return tuple(
        int(np.clip(round(float(p)), 0, n - 1))
        for p, n in zip(point, shape, strict=False)
    )


def plane_in_view(choice: Choice, image: Layer, dims: Any) -> int | None:
    """Plane of the path that the viewer shows; None where it has none there."""
    lead = image.ndim - 2
    if not lead:
        return 0
    index = index_in_view(image, dims)
    first = tuple(round(v) for v in offset_of(choice, image)[:lead])
    if not choice.path.lead:
        # One plane alone, or a path that came from elsewhere without a plane.
        known = choice.image.get("offset") is not None
        return 0 if not known or index == first else None
    inside = [i - o for i, o in zip(index, first, strict=True)]
    if any(not 0 <= i < n for i, n in zip(inside, choice.path.lead, strict=True)):
        return None
    return int(np.ravel_multi_index(inside, choice.path.lead))


def about(choice: Choice, path: FocusPath) -> str:
    """Tell of a path of one plane in a sentence or two."""
    grid = path.grid
    told = f"{len(path)} fixations of a retina with d = {grid.d}, r = {grid.r}"
    model = choice.provenance.get("model")
    told += f" by {model}." if model else "."
    if path.pmfs is None:
        told += " What it saw was not recorded: there is no map to show."
    return told


def tell(path: FocusPath, step: int) -> str:
    """Tell of one fixation: how unsure it was, and what it saw in the middle."""
    told = f"Fixation {step + 1} of {len(path)} · H = {path.entropies[step]:.2f} nats"
    if path.pmfs is None or not path.classes:
        return told
    fovea = path.fovea(step)
    best = int(fovea.argmax())
    return f"{told} · centre: {path.classes[best]} {fovea[best]:.0%}"


def hide_whole(found: Iterable[Layer], choice: Choice) -> None:
    """Hide the result layer that shows the whole way at once."""
    for layer in found:
        if (layers.own(layer) or {}).get("path") is choice.path:
            layer.visible = False
