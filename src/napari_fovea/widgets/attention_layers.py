"""Attention maps as layers: each laid on the image at its own resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import Colormap

from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from napari.layers import Layer
    from numpy.typing import NDArray

    from napari_fovea.inference import AttentionMap
    from napari_fovea.widgets.layers import Region

_PREFIX = "attention "
_GAP = 1.04  # of an image's width, between images side by side
_COLOURS = {
    "overlap": "inferno",
    "entropy": "magma",
    "finest level seen": "viridis",
    "never seen at high resolution": "bop orange",
}
# Clear where nothing is told, so that the image is seen.
_SALIENCY = Colormap(
    [[0.1, 0.35, 1, 1], [0.1, 0.35, 1, 0], [1, 0.2, 0.1, 0], [1, 0.2, 0.1, 1]],
    controls=[0, 0.5, 0.5, 1],
    name="for and against",
)


def spread(array: NDArray[Any]) -> tuple[float, float]:
    """Lowest and highest finite value of a map; 0 and 0 where there is none."""
    finite = array[np.isfinite(array)]
    if not finite.size:
        return 0.0, 0.0
    return float(finite.min()), float(finite.max())


def limits(name: str, array: NDArray[Any]) -> tuple[float, float]:
    """Contrast limits that show what a map tells, and no noise where it is flat."""
    low, high = spread(array)
    if name == "never seen at high resolution":
        return 0.0, 1.0
    if name in ("overlap", "entropy", "finest level seen"):
        return 0.0, max(high, 1e-6)
    if high - low < 1e-3:
        return 0.0, 1.0
    return low, high


class MapLayers:
    """Shows attention maps of one region of one image layer.

    Parameters
    ----------
    viewer : napari.Viewer
        Where the layers go.
    source : napari.layers.Image
        The image.
    region : Region
        The part of it that was looked at, one plane.
    """

    def __init__(self, viewer: Any, source: Layer, region: Region) -> None:
        self.viewer = viewer
        self.source = source
        self.region = region
        self._name = source.name
        self._maps: dict[str, AttentionMap] = {}

    def is_of(self, region: Region) -> bool:
        """Whether the maps are of this part of the image."""
        mine = self.region
        same = np.shape(mine.array) == np.shape(region.array)
        return same and mine.offset == region.offset

    def layer(self, name: str) -> Layer | None:
        """Find the layer of a map, if it is there."""
        return layers.find(self.viewer.layers, self.source, _PREFIX + name, ndim=2)

    def _place(self, attention: AttentionMap, *, beside: bool) -> dict[str, Any]:
        down, right = attention.offset
        if beside:
            right += self._width * _GAP
        return layers.plane_placement(
            self.source,
            self.region.offset,
            scale=attention.scale,
            shift=(down, right),
        )

    @property
    def _width(self) -> int:
        shape = np.shape(self.region.array)
        return int(shape[-2] if self.region.rgb else shape[-1])

    def place(self, world: tuple[float, ...]) -> tuple[float, float]:
        """Place (y, x) in the region, in pixels, of a place in the world."""
        return layers.place_in(self.source, self.region.offset, world)

    def show(self, attention: AttentionMap, *, opacity: float) -> Layer:
        """Show a map, in the layer it had before if there is one."""
        name = attention.name
        array = np.asarray(attention.array).reshape(attention.array.shape[-2:])
        self._maps[name] = attention
        known = self.layer(name)
        was = (layers.own(known) or {}).get("limits") if known is not None else None
        # Light adds up on a dark ground; on a bright one it would be lost.
        blending = "translucent" if self.region.rgb else "additive"
        low, high = limits(name, array)
        layer = layers.put(
            self.viewer,
            "image",
            array,
            source=self.source,
            role=_PREFIX + name,
            title=f"{self._name} {name}",
            note={"map": name, "limits": (low, high)},
            place=self._place(attention, beside=False),
            colormap=_COLOURS.get(name, "viridis"),
            blending=blending,
            opacity=opacity,
            contrast_limits=(low, high),
            interpolation2d="nearest",
        )
        # What the user has set stays.
        if known is not None and tuple(layer.contrast_limits) == was != (low, high):
            layer.contrast_limits_range = (min(low, 0.0), max(high, 1.0))
            layer.contrast_limits = (low, high)
        layer.visible = True
        return layer

    def hide(self, name: str) -> None:
        """Hide a map; its layer stays for the next time."""
        layer = self.layer(name)
        if layer is not None:
            layer.visible = False

    def hide_all(self) -> None:
        """Hide all maps, and what a comparison has put beside them."""
        for name in self._maps:
            self.hide(name)
        self.together()

    # -- two maps ------------------------------------------------------------------

    def beside(self, name: str) -> None:
        """Move a map to the right of the image, upon a copy of it."""
        self.together()
        attention, layer = self._maps.get(name), self.layer(name)
        if attention is None or layer is None:
            return
        layers.move(layer, self._place(attention, beside=True))
        style: dict[str, Any] = {}
        if not self.region.rgb:
            for key in ("colormap", "contrast_limits", "gamma"):
                style[key] = getattr(self.source, key)
        copy = layers.put(
            self.viewer,
            "image",
            self.region.array,
            source=self.source,
            role="beside",
            title=f"{self._name} again",
            note={},
            place=layers.plane_placement(
                self.source, self.region.offset, shift=(0.0, self._width * _GAP)
            ),
            rgb=self.region.rgb,
            **style,
        )
        copy.visible = True
        order = self.viewer.layers
        if order.index(copy) > order.index(layer):
            order.move(order.index(copy), order.index(layer))

    def together(self) -> None:
        """Lay all maps on the image again."""
        copy = layers.find(self.viewer.layers, self.source, "beside", ndim=2)
        if copy is not None:
            copy.visible = False
        for name, attention in self._maps.items():
            layer = self.layer(name)
            if layer is not None:
                layers.move(layer, self._place(attention, beside=False))

    # -- what decided a place --------------------------------------------------------

    def show_saliency(self, saliency: AttentionMap, *, opacity: float) -> Layer:
        """Show what spoke for a place and against it, red and blue."""
        array = np.asarray(saliency.array).reshape(saliency.array.shape[-2:])
        most = max(float(np.quantile(np.abs(array), 0.995)), 1e-9)
        layer = layers.put(
            self.viewer,
            "image",
            array,
            source=self.source,
            role="why",
            title=f"{self._name} what decided",
            note={},
            place=self._place(saliency, beside=False),
            colormap=_SALIENCY,
            blending="translucent",
            opacity=opacity,
            contrast_limits=(-most, most),
            interpolation2d="nearest",
        )
        layer.contrast_limits_range = (-most, most)
        layer.contrast_limits = (-most, most)
        layer.visible = True
        return layer

    @property
    def saliency(self) -> Layer | None:
        """The layer of what spoke for a place, if it is there."""
        return layers.find(self.viewer.layers, self.source, "why", ndim=2)

    def show_cells(
        self, boxes: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> Layer:
        """Show the cells that decided a place, the weightier the more solid.

        Parameters
        ----------
        boxes : ndarray, shape (n, 4)
            Top, left, bottom, right in pixels of the region.
        shares : ndarray, shape (n,)
            Their weights.
        """
        corners = layers.rectangles(boxes)
        layer = layers.find(self.viewer.layers, self.source, "deciding", ndim=2)
        if layer is None:
            layer = layers.put(
                self.viewer,
                "shapes",
                None,
                source=self.source,
                role="deciding",
                title=f"{self._name} cells that decided",
                note={},
                place=layers.plane_placement(self.source, self.region.offset),
                opacity=0.9,
            )
        layer.data = []
        layers.move(layer, layers.plane_placement(self.source, self.region.offset))
        strength = shares / max(float(shares.max(initial=0.0)), 1e-9)
        colours = np.tile([1.0, 0.85, 0.1, 0.0], (len(boxes), 1))
        faces, edges = colours.copy(), colours
        faces[:, 3], edges[:, 3] = 0.3 * strength, 0.3 + 0.7 * strength
        side = min(self._width / 400, float(np.ptp(boxes[:, ::2], axis=1).min()) / 12)
        layer.add_rectangles(
            corners, face_color=faces, edge_color=edges, edge_width=side
        )
        layer.visible = True
        return layer

    def hide_why(self) -> None:
        """Hide what was told of an earlier place."""
        for role in ("why", "deciding"):
            layer = layers.find(self.viewer.layers, self.source, role, ndim=2)
            if layer is not None:
                layer.visible = False
