"""What a running and a finished segmentation puts into the viewer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import ensure_colormap

from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_fovea.inference import Fixated, Preview, Segmentation
    from napari_fovea.retina import FocusPath
    from napari_fovea.widgets.layers import Region

_STRETCH = 64  # vertices of one shape of the path
_ROLES = {
    "overlap": "overlap",
    "uncertainty": "uncertainty",
    "classes": "classes",
    "instances": "instances",
    "path": "focus path",
}


class ResultLayers:
    """Layers that show one run on one region of one source layer.

    Work is done in small pieces, one per turn of the event loop, so that no
    single one holds up the window.

    Parameters
    ----------
    viewer : napari.Viewer
        Where the layers go.
    source : napari.layers.Image
        What is segmented.
    region : Region
        The part of it.
    later : callable
        Runs a function on the next turn of the event loop.
    """

    def __init__(
        self,
        viewer: Any,
        source: Layer,
        region: Region,
        *,
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.viewer = viewer
        self.source = source
        self.region = region
        self._later = later
        self._todo: dict[str, Callable[[], None]] = {}
        self._busy = False
        self._last: NDArray[np.float64] | None = None
        self._waiting: list[FocusPath] = []
        self._plane = -1
        self._stretches = 0
        self._drawn = 0
        self._titles = {r: f"{source.name} {t}" for r, t in _ROLES.items()}

    # -- one thing at a time -------------------------------------------------

    def _do(self, what: str, piece: Callable[[], None]) -> None:
        # A newer piece takes the place of one that still waits: no backlog.
        self._todo[what] = piece
        if not self._busy:
            self._busy = True
            self._later(self._next)

    def _next(self) -> None:
        if self._todo:
            self._todo.pop(next(iter(self._todo)))()
        if self._todo:
            self._later(self._next)
        else:
            self._busy = False

    @property
    def idle(self) -> bool:
        """Whether everything that was asked for is on show."""
        return not self._todo and not self._busy

    # -- layers ----------------------------------------------------------------

    def layer(self, role: str) -> Layer | None:
        """Find the layer of a role, if it is there."""
        return layers.find(self.viewer.layers, self.source.name, role)

    def _put(self, kind: str, role: str, data: Any, **more: Any) -> None:
        place = more.pop("place", None) or self._place()
        layers.put(
            self.viewer,
            kind,
            data,
            source=self.source.name,
            role=role,
            title=self._titles[role],
            note=more.pop("note", {}),
            place=place,
            **more,
        )

    def _place(self, attention: Any = None) -> dict[str, Any]:
        if attention is None:
            return layers.placement(self.source, self.region.offset)
        return layers.placement(
            self.source,
            self.region.offset,
            scale=attention.scale,
            shift=attention.offset,
        )

    def begin(self) -> None:
        """Clear what an earlier run left; its layers stay."""
        self._waiting, self._last, self._stretches, self._plane = [], None, 0, -1
        path = self.layer("path")
        if path is not None:
            path.data = []

    def preview(self, seen: Preview) -> None:
        """Show the map as it stands."""
        lead = self._lead()

        def spread(plane: NDArray[Any], role: str) -> NDArray[Any]:
            if not lead:
                return plane.reshape((1,) * self.region.dropped + plane.shape)
            shape = (*lead, *plane.shape)
            old = self.layer(role)
            data = (
                old.data
                if old is not None and old.data.shape == shape
                else np.zeros(shape, plane.dtype)
            )
            data.reshape(-1, *plane.shape)[seen.plane] = plane
            return data

        overlap = seen.overlap
        self._do(
            "classes",
            lambda: self._show_classes(spread(seen.labels, "classes")),
        )
        self._do(
            "uncertainty",
            lambda: self._show_map(
                "uncertainty", spread(seen.uncertainty, "uncertainty")
            ),
        )
        self._do(
            "overlap",
            lambda: self._show_map(
                "overlap", spread(overlap.array, "overlap"), attention=overlap
            ),
        )

    @property
    def _size(self) -> tuple[int, ...]:
        shape = np.shape(self.region.array)
        return shape[-3:-1] if self.region.rgb else shape[-2:]

    def _lead(self) -> tuple[int, ...]:
        spatial = np.ndim(self.region.array) - bool(self.region.rgb)
        return tuple(np.shape(self.region.array)[: spatial - 2])

    def _own_axes(self, array: NDArray[Any]) -> NDArray[Any]:
        """Axes of the source: a single plane of a stack is a stack of one."""
        return array.reshape((1,) * self.region.dropped + array.shape)

    def _show_classes(
        self, data: NDArray[Any], note: dict[str, Any] | None = None
    ) -> None:
        self._put(
            "labels",
            "classes",
            data,
            note=note or {},
            opacity=0.45,
            blending="translucent",
        )

    def _show_map(
        self,
        role: str,
        data: NDArray[Any],
        *,
        attention: Any = None,
        note: dict[str, Any] | None = None,
    ) -> None:
        style: dict[str, Any] = {
            "colormap": "magma" if role == "uncertainty" else "inferno",
            "blending": "additive",
            "opacity": 0.8,
            "visible": False,
        }
        self._put(
            "image", role, data, place=self._place(attention), note=note or {}, **style
        )
        layer = self.layer(role)
        top = float(data.max())
        if layer is not None and top > 0:
            layer.contrast_limits = (0, top)

    # -- the focus path ----------------------------------------------------------

    def fixated(self, event: Fixated) -> None:
        """Remember fixations until they are worth drawing."""
        self._waiting.append(event.path)

    def draw_path(self) -> None:
        """Draw the stretch of the path that was walked since the last call."""
        paths, self._waiting = self._waiting, []
        if not paths:
            return
        points = np.concatenate([self._vertices(p) for p in paths])
        planes = np.concatenate([p.planes for p in paths])
        for plane in np.unique(planes):
            self._extend(points[planes == plane], int(plane))

    def _extend(self, points: NDArray[np.float64], plane: int) -> None:
        if plane != self._plane:
            self._last, self._plane = None, plane
        for start in range(0, len(points), _STRETCH):
            stretch = points[start : start + _STRETCH]
            if self._last is not None:
                stretch = np.concatenate([self._last, stretch])
            self._last = stretch[-1:]
            if len(stretch) > 1:
                self._drawn += 1
                self._do(f"stretch {self._drawn}", partial(self._add_stretch, stretch))

    def _add_stretch(self, stretch: NDArray[np.float64]) -> None:
        layer = self.layer("path")
        # Colour tells time: each stretch a little further along the colour map.
        phase = (self._stretches % 24) / 23
        colour = ensure_colormap("viridis").map(np.array([phase]))[0]
        self._stretches += 1
        width = max(self._size) / 700
        if layer is None:
            self._put(
                "shapes",
                "path",
                [stretch],
                shape_type="path",
                edge_color=[colour],
                edge_width=width,
                face_color="transparent",
                opacity=0.7,
            )
        else:
            layer.add_paths([stretch], edge_color=[colour], edge_width=width)

    def _vertices(self, path: FocusPath) -> NDArray[np.float64]:
        """Centres of fixations in indices of the region, with the stack's axes."""
        lead = self._lead()
        leading: NDArray[Any] = np.zeros((len(path), self.region.dropped))
        if lead:
            leading = np.stack(np.unravel_index(path.planes, lead), axis=1)
        return np.concatenate([leading, path.centres], axis=1)

    # -- the end -------------------------------------------------------------------

    def finish(self, result: Segmentation, note: dict[str, Any]) -> None:
        """Show the result, with everything that made it."""
        self.draw_path()
        own, overlap = self._own_axes, result.attention[0]
        uncertain = own(result.uncertainty)
        heat = own(overlap.array)
        self._do("classes", lambda: self._show_classes(own(result.labels), note))
        self._do(
            "uncertainty", lambda: self._show_map("uncertainty", uncertain, note=note)
        )
        self._do(
            "overlap",
            lambda: self._show_map("overlap", heat, attention=overlap, note=note),
        )
        self._do("instances", lambda: self._show_instances(result, note))
        self._do("path", lambda: self._note_path(result, note))

    def _show_instances(self, result: Segmentation, note: dict[str, Any]) -> None:
        first = self.layer("instances") is None
        self._put(
            "labels",
            "instances",
            self._own_axes(result.instances),
            note=note,
            opacity=0.5,
        )
        classes = self.layer("classes")
        if first and classes is not None:
            classes.visible = False

    def _note_path(self, result: Segmentation, note: dict[str, Any]) -> None:
        layer = self.layer("path")
        if layer is not None:
            mine = layers.own(layer) or {}
            layer.metadata = {layers.KEY: {**mine, **note, "path": result.path}}
            place = self._place()
            for name, value in place.items():
                setattr(layer, name, value)
