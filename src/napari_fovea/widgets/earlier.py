"""What an earlier run of the Segment dock did, so that others do the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from napari.layers import Layer

    from napari_fovea.models import Entry
    from napari_fovea.retina import FocusPath
    from napari_fovea.widgets.layers import Region

_FOCUS = ("policy", "fusion", "budget")


@dataclass(frozen=True)
class Earlier:
    """A run whose results are in the viewer.

    Attributes
    ----------
    settings : mapping
        What `segment` was told, as far as the model's kind has it.
    path : FocusPath or None
        Its focus path, where it was walked on this very region.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    path: FocusPath | None = None


def earlier(
    found: Iterable[Layer], source: Layer, region: Region, entry: Entry
) -> Earlier:
    """Find what the last run of a model on an image was told, and its path.

    Parameters
    ----------
    found : iterable of Layer
        The viewer's layers.
    source : Layer
        The image.
    region : Region
        The plane of it, or part of a plane, that is looked at now.
    entry : Entry
        The model.
    """
    note: dict[str, Any] = {}
    path = None
    for layer in found:
        mine = layers.own(layer) or {}
        if not layers.shows(mine, source) or layer.ndim != source.ndim:
            continue
        if mine.get("role") == "instances":
            note = mine
        if mine.get("role") == "path":
            path = mine.get("path")
    if note.get("model_file") != str(entry.path):
        return Earlier()
    told = note.get("provenance", {}).get("settings", {})
    names = ("diameter", *(_FOCUS if entry.focused else ()))
    settings = {k: told[k] for k in names if told.get(k) is not None}
    return Earlier(settings, _of_region(path, note, region))


def _of_region(
    path: FocusPath | None, note: Mapping[str, Any], region: Region
) -> FocusPath | None:
    """Take what of a path was walked on a region; None if it was another."""
    if path is None:
        return None
    offset, shape = note.get("region_offset"), np.shape(region.array)
    size = shape[-3:-1] if region.rgb else shape[-2:]
    if offset is None or path.image_shape != tuple(size):
        return None
    lead = len(offset) - 2
    if not np.allclose(offset[-2:], region.offset[-2:]):
        return None
    index = [
        round(a - b) for a, b in zip(region.offset[:lead], offset[:lead], strict=True)
    ]
    if not path.lead:
        return path if not any(index) else None
    if len(path.lead) != lead or any(
        not 0 <= i < n for i, n in zip(index, path.lead, strict=True)
    ):
        return None
    return path.of_plane(int(np.ravel_multi_index(index, path.lead)))
