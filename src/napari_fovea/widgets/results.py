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

    from napari_fovea.inference import (
        AttentionMap,
        Fixated,
        Preview,
        Segmentation,
        Started,
    )
    from napari_fovea.retina import FocusPath
    from napari_fovea.widgets.layers import Region

_STRETCH = 256  # vertices of one shape of the path

_HEAT = {"blending": "additive", "opacity": 0.8, "visible": False}
_ROLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # role: kind of layer, what its name ends in, how it looks at first
    "overlap": ("image", "overlap", {"colormap": "inferno", **_HEAT}),
    "uncertainty": ("image", "uncertainty", {"colormap": "magma", **_HEAT}),
    "path": ("shapes", "focus path", {"opacity": 0.5, "face_color": "transparent"}),
    "classes": ("labels", "classes", {"opacity": 0.45}),
    "instances": ("labels", "instances", {"opacity": 0.5}),
}

_OF_FOCUS = ("overlap", "path")  # roles that only networks with a focus fill


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
    in_order : bool
        Whether the path is drawn as fixations are made; else when all are there.
    quiet : bool
        Leave selection and visibility to the user, who is painting: a new layer goes
        right above the source, and of them only the classes are visible.
    """

    def __init__(
        self,
        viewer: Any,
        source: Layer,
        region: Region,
        *,
        later: Callable[[Callable[[], None]], None],
        in_order: bool = True,
        quiet: bool = False,
    ) -> None:
        self.viewer = viewer
        self.source = source
        self.region = region
        self._name = source.name
        self._later = later
        self._in_order = in_order
        self._quiet = quiet
        self._todo: dict[str, Callable[[], None]] = {}
        self._busy = False
        self._waiting: list[FocusPath] = []
        self._last: NDArray[np.float64] | None = None
        self._plane = -1
        self._fraction = 0.0
        self._stretches = 0
        self._top = 1.0
        # What the user chose to see of classes and instances; objects at first.
        self._shown = {"classes": False, "instances": True}
        self._known = self.layer("instances") is not None

    # -- one thing at a time -------------------------------------------------

    def _do(self, what: str, piece: Callable[[], None]) -> None:
        # A newer piece takes the place of one that still waits: no backlog.
        self._todo[what] = piece
        if not self._busy:
            self._busy = True
            self._later(self._next)

    def _next(self) -> None:
        try:
            if self._todo:
                self._todo.pop(next(iter(self._todo)))()
        finally:  # one piece that fails must not hold up the others
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
        return layers.find(self.viewer.layers, self.source, role)

    def prepare(
        self, started: Started, then: Callable[[], None], *, live: bool
    ) -> None:
        """Make the layers that are missing, and empty the path of an earlier run.

        A new layer costs napari a tenth of a second or more, so this is done
        before anything is computed.

        Parameters
        ----------
        started : Started
            What the run told of itself.
        then : callable
            Called when all layers are there.
        live : bool
            Show the classes, which sharpen, in place of the objects of an earlier
            run.
        """
        sizes = {"overlap": (*started.shape[:-2], *started.scanned)}
        kinds = {"overlap": "f4", "uncertainty": "f4", "classes": "u1"}
        for role in _ROLES:
            # Nothing moves a focus: the layers of an earlier run tell nothing of it.
            if role in _OF_FOCUS and not started.focused:
                self._do(f"no {role}", partial(self._clear, role))
                continue
            if self.layer(role) is not None:
                continue
            shape = sizes.get(role, started.shape)
            data = None
            if role != "path":
                data = self._own_axes(np.zeros(shape, kinds.get(role, "i4")))
            self._do(role, partial(self._put, role, data))
        self._top = float(np.log(started.classes))
        self._do("empty path", partial(self._clear, "path"))
        if live:
            self._do("show", self._show_classes)
        self._do("then", then)

    def _clear(self, role: str) -> None:
        """Empty a layer of what an earlier run has put there."""
        layer = self.layer(role)
        if layer is None:
            return
        if role == "path":
            if layer.nshapes:
                layer.data = []
        else:
            layer.data = np.zeros_like(layer.data)
        layers.forget(layer)

    def _put(
        self,
        role: str,
        data: Any,
        *,
        attention: AttentionMap | None = None,
        note: dict[str, Any] | None = None,
    ) -> None:
        kind, ending, style = _ROLES[role]
        if self._quiet:
            style = {**style, "visible": role == "classes"}
        active, known = self.viewer.layers.selection.active, self.layer(role)
        laid: dict[str, Any] = {}
        if attention is not None:
            laid = {"scale": attention.scale, "shift": attention.offset}
        layer = layers.put(
            self.viewer,
            kind,
            data,
            source=self.source,
            role=role,
            title=f"{self._name} {ending}",
            note=note or {},
            place=layers.placement(self.source, self.region.offset, **laid),
            **style,
        )
        if self._quiet and known is None:
            self._tuck(layer, active)
        if role == "uncertainty":
            limits = (0.0, self._top)
        elif role == "overlap":
            limits = (0.0, max(1.0, float(data.max())))
        else:
            return
        if tuple(layer.contrast_limits) != limits:
            layer.contrast_limits = limits

    def _tuck(self, layer: Layer, active: Layer | None) -> None:
        """Lay a new layer under what the user paints, and give the brush back."""
        order = self.viewer.layers
        if self.source in order:
            order.move(order.index(layer), order.index(self.source) + 1)
        order.selection.active = active

    def _own_axes(self, array: NDArray[Any]) -> NDArray[Any]:
        """Axes of the source: a single plane of a stack is a stack of one."""
        return array.reshape((1,) * self.region.dropped + array.shape)

    def _lead(self) -> tuple[int, ...]:
        """Shape of the region's own stack axes."""
        spatial = np.ndim(self.region.array) - bool(self.region.rgb)
        return tuple(np.shape(self.region.array)[: spatial - 2])

    # -- while it runs ---------------------------------------------------------

    def preview(self, seen: Preview) -> None:
        """Show the map as it stands, in those layers that are visible."""
        arrays: dict[str, tuple[NDArray[Any], AttentionMap | None]] = {
            "classes": (seen.labels, None),
            "uncertainty": (seen.uncertainty, None),
        }
        if seen.overlap is not None:
            arrays["overlap"] = (seen.overlap.array, seen.overlap)
        for role, (plane, attention) in arrays.items():
            layer = self.layer(role)
            if layer is not None and layer.visible:
                data = self._in_stack(layer, plane, seen.plane)
                self._do(role, partial(self._put, role, data, attention=attention))

    def _in_stack(self, layer: Layer, plane: NDArray[Any], index: int) -> NDArray[Any]:
        """Put one plane into what a layer shows of the stack."""
        lead = self._lead()
        if not lead:
            return self._own_axes(plane)
        data: NDArray[Any] = layer.data
        if data.shape != (*lead, *plane.shape):
            data = np.zeros((*lead, *plane.shape), plane.dtype)
        data.reshape(-1, *plane.shape)[index] = plane
        return data

    def fixated(self, event: Fixated) -> None:
        """Remember fixations until they are worth drawing."""
        self._waiting.append(event.path)
        self._fraction = event.fraction

    def draw_path(self) -> None:
        """Draw the stretch of the path that was walked since the last call."""
        paths, self._waiting = self._waiting, []
        if not paths or not self._in_order:
            return
        points = np.concatenate([self._vertices(p) for p in paths])
        planes = np.concatenate([p.planes for p in paths])
        for plane in np.unique(planes):
            self._extend(points[planes == plane], int(plane))

    def _redraw_path(self, path: FocusPath | None) -> None:
        """Draw a whole path; a scan by rows tells their order only at its end."""
        self._waiting, self._last, self._plane = [], None, -1
        if path is None:
            return
        points, steps = self._vertices(path), range(0, len(path), _STRETCH)
        for start in steps:
            part = slice(start, start + _STRETCH)
            self._fraction = start / max(1, len(path))
            for plane in np.unique(path.planes[part]):
                of_plane = path.planes[part] == plane
                self._extend(points[part][of_plane], int(plane))

    def _extend(self, points: NDArray[np.float64], plane: int) -> None:
        if plane != self._plane:
            self._last, self._plane = None, plane
        for start in range(0, len(points), _STRETCH):
            stretch = points[start : start + _STRETCH]
            if self._last is not None:
                stretch = np.concatenate([self._last, stretch])
            self._last = stretch[-1:]
            if len(stretch) > 1:
                self._stretches += 1
                self._do(
                    f"stretch {self._stretches}",
                    partial(self._add_stretch, stretch, self._fraction),
                )

    def _add_stretch(self, stretch: NDArray[np.float64], fraction: float) -> None:
        layer = self.layer("path")
        if layer is None:
            return  # the user took it away
        # Colour tells time, from violet at the start to yellow at the end.
        colour = ensure_colormap("viridis").map(np.array([fraction]))[0]
        shape = np.shape(self.region.array)
        longest = max(shape[-3:-1] if self.region.rgb else shape[-2:])
        layer.add_paths([stretch], edge_color=[colour], edge_width=longest / 700)

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
        if self._in_order:
            self.draw_path()
        else:
            self._redraw_path(result.path)
        shown: list[tuple[str, NDArray[Any], AttentionMap | None]] = [
            ("classes", result.labels, None),
            ("uncertainty", result.uncertainty, None),
            *((a.name, a.array, a) for a in result.attention if a.name in _ROLES),
            ("instances", result.instances, None),
        ]
        for role, array, attention in shown:
            data = self._own_axes(array)
            self._do(
                role, partial(self._put, role, data, attention=attention, note=note)
            )
        if not self._quiet:
            self._do("show", self._show_as_before)
        if result.path is not None:
            self._do("path", partial(self._note_path, result, note))

    def _show_classes(self) -> None:
        for role, visible in (("classes", True), ("instances", False)):
            layer = self.layer(role)
            if layer is not None:
                if self._known:
                    self._shown[role] = layer.visible
                layer.visible = visible

    def _show_as_before(self) -> None:
        for role, visible in self._shown.items():
            layer = self.layer(role)
            if layer is not None:
                layer.visible = visible

    def _note_path(self, result: Segmentation, note: dict[str, Any]) -> None:
        layer = self.layer("path")
        if layer is not None:
            mine = layers.own(layer) or {}
            layer.metadata = {layers.KEY: {**mine, **note, "path": result.path}}
            layers.move(layer, layers.placement(self.source, self.region.offset))
