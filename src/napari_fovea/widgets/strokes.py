"""Labels layers that are painted on, beside the images they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import DirectLabelColormap, label_colormap

from napari_fovea.errors import TrainingError
from napari_fovea.widgets import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from napari_fovea.training.painted import Annotation

ENDING = "strokes"
BRUSH = 4
_GROUND = "#5b8def"  # background: told apart from the first classes


@dataclass(frozen=True)
class Pair:
    """An image layer and the labels layer that is painted on it."""

    image: Image
    labels: Labels

    def __str__(self) -> str:
        return f"{self.image.name} ← {self.labels.name}"

    @property
    def key(self) -> str:
        """Tells this image from others, also after it was renamed."""
        return f"{self.image.name} {str(self.image.unique_id)[:8]}"


def new_strokes(viewer: Any, image: Image, *, classes: int = 2) -> Labels:
    """Add an empty labels layer over an image, ready to be painted on."""
    data = image.data[0] if image.multiscale else image.data
    shape = data.shape[:-1] if image.rgb else data.shape
    name = f"{image.name} {ENDING}"
    layer = stroke_layer(image, np.zeros(shape, np.uint8), name=name, classes=classes)
    viewer.add_layer(layer)
    layer.mode = "paint"
    layer.selected_label = 1
    return layer


def stroke_layer(image: Image, data: Any, *, name: str, classes: int) -> Labels:
    """Make a labels layer that lies on an image, in the colours of its classes."""
    layer = Labels(
        data,
        name=name,
        colormap=stroke_colours(classes),
        **layers.placement(image, (0.0,) * image.ndim),
    )
    layer.brush_size = BRUSH
    return layer


def stroke_colours(classes: int, *, first: int = 1) -> DirectLabelColormap:
    """Colours to paint classes with: those that a result shows them in.

    Parameters
    ----------
    classes : int
        Number of classes, background included; a result does not show that one.
    first : int
        What background is painted with; 0 is left out where it means unpainted.
    """
    shown = _shown_in()
    colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
    for c in range(classes):
        colours[first + c] = shown.map(c) if c else _GROUND
    return DirectLabelColormap(color_dict=colours)


@cache
def _shown_in() -> Any:
    """Make the colours that a labels layer shows numbers in by itself, once."""
    return label_colormap(49, 0.5, background_value=0)


def images_in(viewer: Any) -> list[Image]:
    """Image layers of the user's."""
    return [x for x in viewer.layers if isinstance(x, Image) and layers.own(x) is None]


def labels_in(viewer: Any) -> list[Labels]:
    """Labels layers of the user's."""
    return [x for x in viewer.layers if isinstance(x, Labels) and layers.own(x) is None]


def annotation_of(
    pair: Pair, *, unpainted: bool, objects: bool, diameter: float | None = None
) -> Annotation:
    """Take what a pair holds; arrays are referred to, not copied.

    Raises
    ------
    TrainingError
        If the labels do not lie on the image.
    """
    from napari_fovea.training.painted import Annotation

    image, labels = pair.image, pair.labels
    data = image.data[0] if image.multiscale else image.data
    painted = labels.data[0] if labels.multiscale else labels.data
    shape = data.shape[:-1] if image.rgb else data.shape
    if tuple(painted.shape) != tuple(shape):
        raise TrainingError(
            f"Labels layer {labels.name!r} has shape {tuple(painted.shape)}, image "
            f"layer {image.name!r} {tuple(shape)}; expected the same, so that no "
            "stroke lies outside: make new strokes for this image."
        )
    corner = np.zeros(image.ndim)
    end = np.array(shape) - 1
    for point in (corner, end):
        there = labels.world_to_data(image.data_to_world(point))
        if not np.allclose(there, point, atol=0.5):
            raise TrainingError(
                f"Labels layer {labels.name!r} lies elsewhere than image layer "
                f"{image.name!r}, so that strokes fall outside it; expected the same "
                "scale and translation: make new strokes for this image."
            )
    micrometres = layers.pixel_size(image)
    how = (unpainted, objects, image.rgb, diameter, micrometres)
    return Annotation(data, painted, pair.key, *how)


class Watch:
    """Calls back when a stroke ends, and when anything on a layer changes.

    Parameters
    ----------
    lifted : callable
        Called with the layer when the brush lifts.
    changed : callable
        Called with the layer whenever its labels may have changed.
    """

    def __init__(
        self, lifted: Callable[[Labels], None], changed: Callable[[Labels], None]
    ) -> None:
        self._lifted, self._changed = lifted, changed
        self._layers: dict[Labels, tuple[Any, Any]] = {}

    def follow(self, wanted: Iterable[Labels]) -> None:
        """Watch these layers and no others."""
        wanted = list(wanted)
        for layer in [x for x in self._layers if x not in wanted]:
            lift, change = self._layers.pop(layer)
            layer.events.paint.disconnect(lift)
            layer.events.labels_update.disconnect(change)
            layer.events.data.disconnect(change)
        for layer in wanted:
            if layer in self._layers:
                continue

            def lift(event: Any = None, layer: Labels = layer) -> None:
                self._changed(layer)
                self._lifted(layer)

            def change(event: Any = None, layer: Labels = layer) -> None:
                self._changed(layer)

            layer.events.paint.connect(lift)
            layer.events.labels_update.connect(change)
            layer.events.data.connect(change)
            self._layers[layer] = (lift, change)
