"""Images too large to segment in memory: layers that fill as blocks are finished."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from napari.layers import Image, Layer
    from numpy.typing import DTypeLike, NDArray

    from napari_fovea.device import Backend
    from napari_fovea.models import Model
    from napari_fovea.scale import Event, LargeResult, Opened
    from napari_fovea.widgets.job import Make
    from napari_fovea.widgets.layers import Region
    from napari_fovea.widgets.result_place import ResultPlace

MOST = 2**25
"""Pixels up to which a region is segmented in memory."""

_ROLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # array of the store: kind of layer, what its name ends in, how it looks at first
    "uncertainty": (
        "image",
        "uncertainty",
        {
            "colormap": "magma",
            "blending": "additive",
            "opacity": 0.8,
            "visible": False,
        },
    ),
    "labels": ("labels", "classes", {"opacity": 0.45}),
    "instances": ("labels", "instances", {"opacity": 0.5}),
}


def _role(role: str, *, flat: bool) -> str:
    return f"large {role}, one level" if flat else f"large {role}"


def is_large(region: Region) -> bool:
    """Whether a region is to be segmented block by block, into a file."""
    shape = np.shape(region.array)
    return math.prod(shape[:-1] if region.rgb else shape) > MOST


def levels_of(layer: Image, region: Region) -> list[Any]:
    """Give what `scale.open_source` reads: all levels of a whole pyramid."""
    if layer.multiscale and region.whole:
        return list(layer.data)
    return [layer.data if region.whole else region.array]


class Filling:
    """An array of a store as napari shows it, with the axes of the source.

    Nothing is kept of it: what a block has written is there when it is read again.

    Parameters
    ----------
    array : zarr.Array
        Spatial axes last.
    dropped : int
        Leading axes of the source that it lacks.
    """

    def __init__(self, array: Any, dropped: int) -> None:
        self._array, self._dropped = array, dropped
        self.shape: tuple[int, ...] = (1,) * dropped + tuple(map(int, array.shape))
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self.dtype: DTypeLike = array.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part, as of an array."""
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            place = index.index(Ellipsis)
            rest = (slice(None),) * (self.ndim - len(index) + 1)
            index = index[:place] + rest + index[place + 1 :]
        head, tail = index[: self._dropped], index[self._dropped :]
        part = np.asarray(self._array[tail])
        read: NDArray[Any] = part.reshape((1,) * self._dropped + part.shape)
        return read[(*head, ...)]

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]


class LargeRun:
    """A run that goes block by block into a store, and layers that show it meanwhile.

    Parameters
    ----------
    viewer : napari.Viewer
        Where the layers go.
    source : napari.layers.Image
        What is segmented.
    region : Region
        The part of it.
    classes : int
        Number of classes K.

    Attributes
    ----------
    blocks : str
        How many blocks are done, in words.
    """

    def __init__(
        self, viewer: Any, source: Image, region: Region, *, classes: int
    ) -> None:
        self.viewer, self.source, self.region = viewer, source, region
        self.blocks = ""
        self._top = math.log(classes)
        self._name, self._ndim = source.name, source.ndim
        self._shape: tuple[int, ...] = ()
        self._near: tuple[float, ...] | None = None
        self._written = False

    def make(
        self,
        load: Callable[[], Model],
        backend: Callable[[], Backend],
        place: ResultPlace,
        settings: Mapping[str, Any],
    ) -> Make:
        """Tell a job what to do.

        Parameters
        ----------
        load : callable
            Gives the model; called in the thread.
        backend : callable
            Tells where and how to compute; called in the thread.
        place : ResultPlace
            Where the result goes.
        settings : mapping
            Of `segment_large`.

        Raises
        ------
        StoreError
            If that cannot be a place.
        """
        arrays, rgb = levels_of(self.source, self.region), self.region.rgb
        path, chosen = place.path, place.chosen

        def make(cancelled: Callable[[], bool]) -> Generator[Any, None, Any]:
            return _segment_into(
                arrays,
                load(),
                path,
                chosen=chosen,
                rgb=rgb,
                device=backend(),
                near=lambda: self._near,
                cancelled=cancelled,
                **settings,
            )

        return make

    def follow(self, event: Any) -> None:
        """Take note of what the run tells."""
        from napari_fovea.scale import Finished, Opened

        if isinstance(event, Opened):
            self._open(event)
        elif isinstance(event, Finished):
            self.blocks = f"{event.done} of {event.total} blocks · "
            self._written = True

    def tick(self, *, live: bool) -> None:
        """Look where the user looks; now and then show what has been written."""
        self._near = self.near()
        if self._written and live:
            self._written = False
            self.refresh()

    def layer(self, role: str) -> Layer | None:
        """Find the layer of one of the store's arrays, if it is there."""
        for flat in (False, True):
            layer = layers.find(self.viewer.layers, self.source, _role(role, flat=flat))
            if layer is not None:
                return layer
        return None

    def near(self) -> tuple[float, ...] | None:
        """Tell the place of the result that is in the middle of the view."""
        if not (self._shape and self._fits and self.source in self.viewer.layers):
            return None
        dims = self.viewer.dims
        point = np.array(dims.point, dtype=float)
        point[list(dims.displayed)] = self.viewer.scene.camera.center[-dims.ndisplay :]
        inside = self.source.world_to_data(point[-self.source.ndim :])
        place = np.asarray(inside, dtype=float) - np.asarray(self.region.offset)
        place = (place[self.region.dropped :] + 0.5) / self._scale() - 0.5
        y, x = place[-2:]
        lead = self._shape[:-2]
        if not lead:
            return float(y), float(x)
        index = np.clip(np.rint(place[:-2]), 0, np.array(lead) - 1)
        plane = np.ravel_multi_index(tuple(index.astype(int)), lead)
        return float(plane), float(y), float(x)

    @property
    def _fits(self) -> bool:
        """Whether the source still has the axes that it had when the run began."""
        return bool(self.source.ndim == self._ndim)

    def _scale(self) -> NDArray[np.float64]:
        """Pixels of the source per pixel of the result, by axis: levels may be thin."""
        shape = np.shape(self.region.array)
        return np.divide(shape[:-1] if self.region.rgb else shape, self._shape)

    def _open(self, event: Opened) -> None:
        """Show the store: empty, or with what an earlier run has left."""
        from napari_fovea.scale import LargeResult

        self._shape, self._note = event.shape, event.note
        self.blocks = f"{event.finished} of {event.blocks} blocks · "
        if not self._fits:
            return
        result = LargeResult(event.path, event.shape, None, None)
        self._show("uncertainty", result.uncertainty, {})
        self._show("labels", result.labels, {}).visible = True
        if self.layer("instances") is not None:
            # Objects of another run, maybe of a store that is no more.
            self._show("instances", result.instances, {}).visible = False

    def refresh(self) -> None:
        """Read again what is in view."""
        for role in _ROLES:
            layer = self.layer(role)
            if layer is not None and layer.visible:
                layer.refresh(extent=False, thumbnail=False)

    def finish(self, result: LargeResult, note: dict[str, Any]) -> str:
        """Show the result, with everything that made it; tell of it in a sentence."""
        note = note | {"provenance": dict(result.provenance), "file": str(result.path)}
        if self._fits:
            self._show("uncertainty", result.uncertainty, note)
            classes = self._show("labels", result.labels, note)
            if result.objects is not None:
                self._show("instances", result.instances, note).visible = True
                classes.visible = False
            self.refresh()
        objects = "1 object" if result.objects == 1 else f"{result.objects} objects"
        said = "Stopped" if result.cancelled else f"Done: {objects}"
        if not self._fits:
            said += f"; {self.source.name} has other axes now, so they are not shown"
        if result.failures:
            first, count = result.failures[0], len(result.failures)
            failed = "1 block failed" if count == 1 else f"{count} blocks failed, first"
            said += f"; {failed} {first.block}: {first.reason.rstrip('.')}"
        if self._note:
            said += f"; {self._note.rstrip('.')}"
        return f"{said}. Kept in {result.path}"

    def _show(self, role: str, arrays: Sequence[Any], note: dict[str, Any]) -> Layer:
        kind, ending, style = _ROLES[role]
        scale = self._scale()
        place = layers.placement(
            self.source,
            self.region.offset,
            scale=scale.tolist(),
            shift=((scale - 1) / 2).tolist(),
        )
        data = [Filling(array, self.region.dropped) for array in arrays]
        # A thin plane has one level, and napari's layers are of one kind for life.
        flat = len(data) == 1
        if role == "uncertainty":
            style = style | {"contrast_limits": (0.0, self._top)}
        layer = layers.put(
            self.viewer,
            kind,
            data[0] if flat else data,
            source=self.source,
            role=_role(role, flat=flat),
            title=f"{self._name} {ending}",
            note=note,
            place=place,
            multiscale=not flat,
            **style,
        )
        if kind == "labels":
            layer.editable = False  # it is read from a file, as pyramids always are
        return layer


def _segment_into(
    arrays: list[Any],
    model: Model,
    path: Path,
    *,
    chosen: bool,
    rgb: bool,
    cancelled: Callable[[], bool],
    **settings: Any,
) -> Generator[Event, None, LargeResult]:
    """Segment the levels of an image into a store; for a job.

    Parameters
    ----------
    arrays : list of array
        From `levels_of`.
    model : Model
        What to segment with.
    path : Path
        Where the result goes.
    chosen : bool
        Whether the user has chosen that place; else, where another result is there,
        it goes beside that one.
    rgb : bool
        Whether the last axis holds channels.
    cancelled : callable
        Asked after every block.
    **settings
        Of `segment_large`.
    """
    from napari_fovea.device import leaving_a_core
    from napari_fovea.errors import OtherRunError
    from napari_fovea.images import guess_axes
    from napari_fovea.scale import segment_large

    for number in itertools.count(1):
        numbered = path if number == 1 else path.with_stem(f"{path.stem} {number}")
        run = segment_large(
            arrays if len(arrays) > 1 else arrays[0],
            model,
            numbered,
            axes=guess_axes(np.shape(arrays[0]), rgb=rgb),
            cancelled=cancelled,
            **settings,
        )
        try:
            with leaving_a_core():
                return (yield from run)
        except OtherRunError:
            if chosen:
                raise
    raise AssertionError
