"""Running a model for the attention maps that are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.attention_layers import MapLayers, spread
from napari_fovea.widgets.clicking import HARMLESS
from napari_fovea.widgets.earlier import earlier
from napari_fovea.widgets.job import Job

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.widgets.attention import AttentionDock

_FLAT = 1e-3  # range below which a map is said to be the same everywhere


class Looking:
    """Runs the chosen model, and keeps the ticked maps.

    Parameters
    ----------
    dock : AttentionDock
        Whose model, image and maps are meant.
    """

    def __init__(self, dock: AttentionDock) -> None:
        self.dock = dock
        self.job: Job | None = None
        self.failed = False
        """Whether the last run ended with an error."""
        self._stopped = False
        dock.form.cancel_button.clicked.connect(self.cancel)

    def look(self) -> None:
        """Run the model and keep the ticked maps that are not there yet."""
        dock = self.dock
        image, entry = dock.image, dock.session.chosen
        if self.job is not None or image is None or entry is None:
            return
        if not dock.offers(entry):
            return  # its maps are being listed
        try:
            region = dock.region(image)
        except FoveaError as error:
            dock.complain(error)
            return
        if dock.shown is None or not dock.shown.is_of(region):
            dock.forget()
            dock.shown = MapLayers(dock.viewer, image, region)
        names = [n for n in dock.form.tree.shown if n not in dock.maps]
        if not names:
            dock.enable()
            return
        shared, shown = dock.session, dock.shown
        size = layers.pixel_size(image)
        # As the Segment dock did it: its objects are what the maps are compared with.
        told = earlier(dock.viewer.layers, image, region, entry).settings

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core
            from napari_fovea.inference import segment

            with leaving_a_core():
                result = yield from segment(
                    np.asarray(region.array),
                    shared.load(entry),
                    rgb=region.rgb,
                    attention=names,
                    pixel_size=size,
                    device=shared.backend(),
                    cancelled=cancelled,
                    **told,
                )
            kept = {a.name: a for a in result.attention if a.name in names}
            return kept, result.path, result.provenance

        form = dock.form
        form.busy(True)
        form.progress.setValue(0)
        form.say("Looking…")
        self.failed = self._stopped = False
        self.job = Job(make)
        self.job.yielded.connect(
            dock.safely(lambda e: form.progress.setValue(round(1000 * e.fraction)))
        )
        self.job.returned.connect(
            dock.safely(lambda found: self._looked(shown, *found))
        )
        self.job.errored.connect(dock.safely(self._complain))
        self.job.finished.connect(dock.safely(self._finished))
        dock.enable()
        self.job.start()

    def cancel(self) -> None:
        """Stop the run that is going on, and keep nothing of it."""
        if self.job is not None:
            self._stopped = True
            self.job.cancel()
            self.dock.form.say("Stopping…")

    def _complain(self, error: Exception) -> None:
        self.failed = True
        self.dock.complain(error)

    def _looked(self, shown: MapLayers, kept: Any, path: Any, made: Any) -> None:
        dock = self.dock
        if shown is not dock.shown:
            return  # of an image, a plane or a model that is no longer looked at
        if made["cancelled"]:
            dock.form.say("Stopped; no map was kept.")
            for name in kept:
                dock.form.tree.tick(name, False)
            return
        active = dock.viewer.layers.selection.active
        dock.maps |= kept
        dock.path = path if path is not None else dock.path
        flat = []
        for name, attention in kept.items():
            low, high = spread(np.asarray(attention.array))
            dock.form.tree.tell(name, low, high)
            if high - low < _FLAT:
                flat.append(name)
            if name in dock.form.tree.shown:
                dock.show_map(name)
        dock.comparison.arrange()
        if str(getattr(active, "mode", "pan_zoom")) not in HARMLESS:
            dock.viewer.layers.selection.active = active  # the user is painting
        told = f"Looked in {made['seconds']:.1f} s on {made['device']}."
        if flat:
            told += f" {flat[0]} is the same everywhere: it selects nothing here."
        dock.form.say(told)

    def _finished(self) -> None:
        self.job = None
        dock = self.dock
        dock.form.busy(False)
        if self._stopped:  # what was not made is not wanted any more
            for name in dock.form.tree.shown:
                if name not in dock.maps:
                    dock.form.tree.tick(name, False)
        dock.enable()
        dock.look_for_missing()
