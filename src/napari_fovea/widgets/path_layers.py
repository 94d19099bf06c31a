"""The layers of a replay: the retina, the way it went, and the map so far."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import ensure_colormap

from napari_fovea.views.colours import cell_colours
from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_fovea.retina import FocusPath

CHUNK = 200
"""Vertices of one committed piece of the way."""

_CHUNKS = 60  # pieces at most; a longer way leaves out places, so they stay few
_TAIL = "#ff8c1a"
_HIDDEN = (0.0, 0.0, 0.0, 0.0)
_TURNS = 4  # frames between updates of the colours, and of the tail

ROLES = ("replayed map", "walked", "tail", "retina")
"""What the layers show, from the lowest to the highest."""


class PathLayers:
    """Shows one step of a focus path on an image layer.

    A grid of cells is made once and moved; the way is made once in pieces that are
    revealed as they are walked, and a short tail leads from the last of them to the
    present fixation. All layers are flat: napari shows them on the plane in view.

    Parameters
    ----------
    viewer : napari.Viewer
        Where the layers go.
    source : napari.layers.Layer
        The image that the path was walked on.
    """

    def __init__(self, viewer: Any, source: Layer) -> None:
        self.viewer = viewer
        self.source = source
        self._name = source.name
        self._origin: NDArray[np.float64] = np.zeros(2)
        self._turn = 0

    def layer(self, role: str) -> Layer | None:
        """Find the layer of a role, if it is there."""
        return layers.find(self.viewer.layers, self.source, role, ndim=2)

    def there(self) -> bool:
        """Whether the layers of the retina and of its image are in the viewer."""
        return self.source in self.viewer.layers and self.layer("retina") is not None

    def world(self, point: NDArray[np.float64]) -> tuple[float, float]:
        """Place in the world (y, x) of a place in the scanned region."""
        place = layers.plane_placement(self.source, self._offset)
        y, x = (place["affine"] @ [*(point + self._origin), 1.0])[:2]
        return float(y), float(x)

    def place(self, world: tuple[float, ...]) -> tuple[float, float]:
        """Place (y, x) in the scanned region, of a place in the world."""
        return layers.place_in(self.source, self._offset, world)

    def put_away(self) -> dict[str, bool]:
        """Hide the layers; return which of them the user saw."""
        seen = {}
        for role in ROLES:
            layer = self.layer(role)
            if layer is not None:
                seen[role] = layer.visible
                layer.visible = False
        return seen

    def bring_back(self, seen: dict[str, bool]) -> None:
        """Show the layers that the user saw when they were put away."""
        for role in ROLES:
            layer = self.layer(role)
            if layer is not None:
                layer.visible = seen.get(role, True)

    def load(
        self,
        path: FocusPath,
        offset: tuple[float, ...],
        *,
        shape: tuple[int, int],
    ) -> None:
        """Lay a path of one plane over the image, and show none of it yet.

        Parameters
        ----------
        path : FocusPath
            At least one fixation, all of one plane.
        offset : tuple of float
            Index in the image's data where the scanned region begins, all axes.
        shape : tuple of int
            Height and width of the map that is replayed.
        """
        self.path = path
        self._offset = offset
        self._origin = np.asarray(offset[-2:])
        self._turn = 0
        # Of a long way some places are left out, so that it has few pieces.
        self._every = max(1, -(-len(path) // (CHUNK * _CHUNKS)))
        self._way = path.centres[:: self._every]
        # The map may be shrunk: lines are as wide as suits the image.
        self._line = max(*(path.image_shape or shape), path.grid.d) / 700
        self._put_map(shape)
        self._put_way()
        self._put_tail()
        self._put_grid()

    def _put_map(self, shape: tuple[int, int]) -> None:
        clear = np.zeros((*shape, 4), dtype=np.uint8)
        known = self.layer("replayed map")
        if known is None:
            self._add("image", "replayed map", "map so far", clear, rgb=True)
        else:
            known.data = clear

    def _put_way(self) -> None:
        ends = range(0, len(self._way) - 1, CHUNK)
        pieces = [self._way[i : i + CHUNK + 1] for i in ends]
        self._time = ensure_colormap("viridis").map(np.linspace(0, 1, len(pieces) + 1))
        self._time = self._time[: len(pieces)]
        self._revealed = 0
        layer = self.layer("walked")
        if layer is None:
            layer = self._add("shapes", "walked", "way so far", None, opacity=0.6)
        else:
            layer.data = []
            layers.move(layer, layers.plane_placement(self.source, self._offset))
        if pieces:
            hidden = [_HIDDEN] * len(pieces)
            layer.add_paths(pieces, edge_color=hidden, edge_width=self._line)

    def _put_tail(self) -> None:
        layer = self.layer("tail")
        if layer is None:
            layer = self._add("shapes", "tail", "last steps", None)
        else:
            layer.data = []
            layers.move(layer, layers.plane_placement(self.source, self._offset))
        start = np.repeat(self._way[:1], 2, axis=0)
        layer.add_paths([start], edge_color=_TAIL, edge_width=1.5 * self._line)

    def _put_grid(self) -> None:
        grid = self.path.grid
        boxes = layers.rectangles(grid.cells)
        layer = self.layer("retina")
        if layer is None:
            layer = self._add("shapes", "retina", "retina", None, opacity=1.0)
        mine = layers.own(layer) or {}
        if mine.get("grid") != (grid.d, grid.r) or layer.nshapes != len(boxes):
            layer.data = []
            layer.add_rectangles(
                boxes, edge_width=grid.d / 90, edge_color="white", face_color=_HIDDEN
            )
        place = layers.plane_placement(self.source, self._offset, scale=self.path.scale)
        layers.move(layer, place)
        known = {k: mine[k] for k in ("source", "source_id", "role") if k in mine}
        layer.metadata = {layers.KEY: {**known, "grid": (grid.d, grid.r)}}
        self._in_order()

    def _in_order(self) -> None:
        """Have the retina on top and the map below, where some were made anew."""
        order = self.viewer.layers
        found = [x for x in map(self.layer, ROLES) if x is not None]
        places = [order.index(x) for x in found]
        if places != sorted(places):
            for layer in found:
                order.move(order.index(layer), len(order))

    def _add(self, kind: str, role: str, ending: str, data: Any, **style: Any) -> Layer:
        return layers.put(
            self.viewer,
            kind,
            data,
            source=self.source,
            role=role,
            title=f"{self._name} {ending}",
            note={},
            place=layers.plane_placement(self.source, self._offset),
            **style,
        )

    # -- while it plays ----------------------------------------------------------

    def show(self, step: int, *, full: bool) -> None:
        """Show the retina at a step, and the way up to it.

        Parameters
        ----------
        step : int
            Fixation, counted from 0.
        full : bool
            Bring everything up to date; else colours and tail take turns and may
            lag a few frames behind, since each of them costs as much as a frame.
        """
        retina = self.layer("retina")
        if retina is None:
            return
        corner = self.path.corners[step] * np.asarray(self.path.scale)
        with self._quietly(retina, "translate"):
            # Edges of pixels lie half a pixel before their centres.
            retina.translate = self._origin + corner - 0.5
        self._turn = (self._turn + 1) % _TURNS
        if full or self._turn == 0:
            self._colour(retina, step)
        if full or self._turn == _TURNS // 2:
            self._reveal(step // (CHUNK * self._every))
            self._draw_tail(step)

    def _colour(self, retina: Layer, step: int) -> None:
        if self.path.pmfs is None:
            return
        faces, edges = cell_colours(self.path.pmfs[step].astype(np.float32))
        with self._quietly(retina, "set_data"):
            retina.face_color = faces
            retina.edge_color = edges

    def _reveal(self, pieces: int) -> None:
        """Show the first pieces of the way, and hide the others."""
        layer = self.layer("walked")
        pieces = min(pieces, len(self._time))
        if layer is None or pieces == self._revealed or not layer.nshapes:
            return
        colours = self._time.copy()
        colours[pieces:] = _HIDDEN
        with self._quietly(layer, "set_data"):
            layer.edge_color = colours
        self._revealed = pieces

    def _draw_tail(self, step: int) -> None:
        layer = self.layer("tail")
        if layer is None:
            return
        first, last = self._revealed * CHUNK, step // self._every
        points = self._way[first : last + 1]
        points = np.concatenate([points, self.path.centres[step : step + 1]])
        if len(points) < 2:
            points = np.repeat(points, 2, axis=0)
        with self._quietly(layer, "set_data"):
            layer.data = [points]

    def show_map(self, painted: NDArray[np.uint8], scale: tuple[float, float]) -> None:
        """Show the map as it stood.

        Parameters
        ----------
        painted : ndarray of uint8, shape (h, w, 4)
            From `map_colours`.
        scale : tuple of float
            Pixels of the scanned region per pixel of the map.
        """
        layer = self.layer("replayed map")
        if layer is None:
            return
        shift = ((scale[0] - 1) / 2, (scale[1] - 1) / 2)
        place = layers.plane_placement(
            self.source, self._offset, scale=scale, shift=shift
        )
        layers.move(layer, place)
        with self._quietly(layer, "set_data"):
            layer.data = painted

    @contextmanager
    def _quietly(self, layer: Layer, *told: str) -> Iterator[None]:
        """Tell only the canvas of what changes, and the rest of napari nothing.

        Extent, thumbnail and every row of the layer list would be made anew in each
        frame otherwise, which takes longer than drawing it.
        """
        with ExitStack() as stack:
            stack.enter_context(self.viewer.layers.events.blocker_all())
            if hasattr(layer, "block_thumbnail_update"):
                stack.enter_context(layer.block_thumbnail_update())
            with layer.events.blocker_all():
                yield
            for name in told:
                getattr(layer.events, name)()
