"""The plane that is painted on: which it is, and what a model says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer

from napari_fovea.widgets import layers
from napari_fovea.widgets.fine_tune_form import Said
from napari_fovea.widgets.learning import View
from napari_fovea.widgets.results import ResultLayers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_fovea.widgets.fine_tune import FineTuneDock
    from napari_fovea.widgets.layers import Region
    from napari_fovea.widgets.strokes import Pair


class PlaneInView:
    """Follows the plane that a Fine-tune dock shows, and shows results on it.

    Parameters
    ----------
    dock : FineTuneDock
        Whose plane it is.

    Attributes
    ----------
    pair : Pair
        Image and labels of the plane that was looked for last.
    place : tuple
        Name of its image, and number of the plane in its stack.
    results : ResultLayers or None
        What is shown of it.
    """

    pair: Pair
    _region: Region

    def __init__(self, dock: FineTuneDock) -> None:
        self.dock = dock
        self.viewer = dock.viewer
        self.place: tuple[str, int] = ("", -1)
        self.results: ResultLayers | None = None
        self._seen: tuple[Any, Any] | None = None
        self._shown_at: float | None = None

    def forget(self) -> None:
        """Let what was shown no longer count as what the model says."""
        self._seen = None

    @property
    def uncertainty(self) -> Any:
        """Of the result that is shown of the plane looked for last; None if none is."""
        if self._seen is None or self._seen[0] != (self.place, self._shown_at):
            return None
        return self._seen[1]

    def of(self, pairs: Sequence[Pair]) -> View | None:
        """Find the plane that is shown, which is to be segmented again."""
        active = self.viewer.layers.selection.active
        pair = next((p for p in pairs if active in (p.image, p.labels)), pairs[0])
        self.pair = pair
        if pair.image.multiscale:
            return None
        self._region = layers.region_of(pair.image, self.viewer.dims, layers.PLANE)
        lead = pair.image.data.shape[: self._region.dropped]
        index = int(np.ravel_multi_index(self.lead, lead)) if lead else 0
        self.place = (pair.key, index)
        size = self.dock.form.diameter.value()
        micrometres = layers.pixel_size(pair.image)
        self._shown_at = size
        image = pair.image
        return View(image.data, index, pair.key, image.rgb, size, micrometres)

    @property
    def lead(self) -> tuple[int, ...]:
        """Where the plane lies along the axes before its last two."""
        return tuple(int(i) for i in self._region.offset[: self._region.dropped])

    def show(self, result: Any) -> None:
        """Show a segmentation of the plane that was looked for last."""
        image = self.pair.image
        if image not in self.viewer.layers:
            self.dock.form.say(
                "The image was removed meanwhile: the model is kept, but there is "
                "nothing to show it on.",
                Said.WARNING,
            )
            return
        if self.results is None or self.results.region is not self._region:
            self.results = ResultLayers(
                self.viewer,
                image,
                self._region,
                later=lambda f: QTimer.singleShot(0, f),
                in_order=False,
                quiet=True,
            )
        self._seen = ((self.place, self._shown_at), result.uncertainty)
        note = {"source": image.name, "provenance": result.provenance}
        self.results.finish(result, note)
