"""Attention per object, in the features table of the instances."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from napari_fovea.errors import AttentionError
from napari_fovea.widgets import layers

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Labels

    from napari_fovea.inference import AttentionMap
    from napari_fovea.widgets.attention_layers import MapLayers


def instances_of(shown: MapLayers) -> Labels | None:
    """Find the plugin's instances of the image that is looked at."""
    source = shown.source
    found = shown.viewer.layers
    return layers.find(found, source, "instances")


def plane_of(shown: MapLayers, instances: Labels) -> tuple[tuple[int, ...], np.ndarray]:
    """Offset (y, x) of the instances in the image, and their plane in view.

    Raises
    ------
    AttentionError
        If there are no instances of this plane.
    """
    note = layers.own(instances) or {}
    offset = [round(v) for v in note.get("region_offset") or [0] * instances.ndim]
    lead = instances.ndim - 2
    index = [
        round(mine) - first
        for mine, first in zip(shown.region.offset[:lead], offset[:lead], strict=True)
    ]
    shape = instances.data.shape[:lead]
    if any(not 0 <= i < n for i, n in zip(index, shape, strict=True)):
        raise AttentionError(
            f"Layer {instances.name!r} has no objects on this plane; expected those of "
            "the plane in view: segment it first."
        )
    return tuple(offset[-2:]), np.asarray(instances.data[tuple(index)])


def measure(shown: MapLayers, maps: list[AttentionMap]) -> str:
    """Add the mean of each map over each object to the instances' features.

    Parameters
    ----------
    shown : MapLayers
        The image and the region that was looked at.
    maps : list of AttentionMap
        Maps of that region.

    Returns
    -------
    str
        What was done.

    Raises
    ------
    AttentionError
        If there are no objects to measure, or no maps.
    """
    from napari_fovea.inference import means_of_instances

    layer = instances_of(shown)
    if layer is None:
        raise AttentionError(
            f"There are no objects of {shown.source.name!r} to measure; expected an "
            "instances layer: segment the image first."
        )
    if not maps:
        raise AttentionError("No map is shown to measure; expected one: tick it.")
    (top, left), plane = plane_of(shown, layer)
    down, right = shown.region.offset[-2] - top, shown.region.offset[-1] - left
    table = _table(layer)
    here = np.unique(plane[plane > 0])
    for one in maps:
        flat = np.asarray(one.array).reshape(one.array.shape[-2:])
        offset = (one.offset[0] + down, one.offset[1] + right)
        means = means_of_instances(replace(one, array=flat, offset=offset), plane)
        column = f"attention {one.name}"
        if column not in table:
            table[column] = np.nan
        rows = table["index"].isin(here)
        table.loc[rows, column] = means[table.loc[rows, "index"].to_numpy()]
    layer.features = table
    what = "map" if len(maps) == 1 else "maps"
    return f"Measured {len(here)} objects of {layer.name!r} by {len(maps)} {what}."


def _table(layer: Labels) -> pd.DataFrame:
    """Features of a labels layer with a row for every object, and its number."""
    import pandas as pd

    count = int(np.asarray(layer.data).max(initial=0))
    whole = pd.DataFrame({"index": np.arange(count + 1)})
    known = layer.features
    if "index" not in known:  # then row i is of object i, says napari
        known = known.assign(index=np.arange(len(known)))
    return whole.merge(known, on="index", how="left")
