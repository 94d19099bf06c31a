"""The Segment dock: run the chosen model on a layer and watch it look."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QTimer

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.job import Job
from napari_fovea.widgets.large import MOST, LargeRun, is_large
from napari_fovea.widgets.result_place import usual_path
from napari_fovea.widgets.results import ResultLayers
from napari_fovea.widgets.segment_form import SegmentForm
from napari_fovea.widgets.session import Session, session
from napari_fovea.widgets.telling import duration, python_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_fovea.models import Entry
    from napari_fovea.widgets.layers import Region

_REDRAW = 0.4
"""Seconds between redraws of the map and the path while a scan runs."""


class SegmentDock(SegmentForm):
    """Segment an image layer with the chosen model.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where the layers are.
    shared : Session, optional
        What the docks share; one for all by default.
    """

    def __init__(self, napari_viewer: Any, *, shared: Session | None = None) -> None:
        super().__init__(shared or session(), self._chosen_region)
        self.viewer = napari_viewer
        self.job: Job | None = None
        self.results: ResultLayers | None = None
        self.large: LargeRun | None = None
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.images.currentIndexChanged.connect(self._offer_regions)
        self.images.currentIndexChanged.connect(lambda _: self._enable())
        for box in (self.images, self.region):
            box.currentIndexChanged.connect(lambda _: self.diameter.drop())
        self._timer = QTimer(self)
        self._timer.setInterval(int(_REDRAW * 1000))
        self._timer.timeout.connect(self._redraw)
        # napari calls reset_choices when layers come and go, not when they are renamed.
        self.viewer.layers.events.renamed.connect(self._list_images)
        self.viewer.layers.selection.events.active.connect(self._follow_selection)
        self.session.changed.connect(self._enable)
        self._list_images()
        self._follow_selection()

    # -- what can be chosen --------------------------------------------------

    def reset_choices(self, event: Any = None) -> None:
        """List the image layers anew; napari calls this when layers change."""
        self._list_images()

    def _list_images(self, event: Any = None) -> None:
        chosen = self.images.currentData()
        self.images.blockSignals(True)
        self.images.clear()
        for layer in self.viewer.layers:
            if isinstance(layer, Image) and layers.own(layer) is None:
                self.images.addItem(layer.name, str(layer.unique_id))
        self.images.setCurrentIndex(max(0, self.images.findData(chosen)))
        self.images.blockSignals(False)
        if self.images.currentData() != chosen:
            self.diameter.drop()
        self._offer_regions()
        self._enable()

    def _follow_selection(self, event: Any = None) -> None:
        active = self.viewer.layers.selection.active
        index = self.images.findData(str(getattr(active, "unique_id", "")))
        if index >= 0:
            self.images.setCurrentIndex(index)

    def _offer_regions(self, index: int = 0) -> None:
        layer = self._layer()
        stack = layer is not None and layer.ndim > 2
        options = [layers.WHOLE, *([layers.PLANE] if stack else []), layers.VIEW]
        if [self.region.itemText(i) for i in range(self.region.count())] != options:
            chosen = self.region.currentText()
            self.region.clear()
            self.region.addItems(options)
            self.region.setCurrentText(chosen if chosen in options else options[0])

    def _layer(self) -> Image | None:
        chosen = self.images.currentData()
        for layer in self.viewer.layers:
            if str(layer.unique_id) == chosen:
                return layer
        return None

    def _chosen_region(self) -> Region | None:
        layer = self._layer()
        if layer is None:
            return None
        return layers.region_of(layer, self.viewer.dims, self.region.currentText())

    def _enable(self) -> None:
        if not isalive(self):
            return  # its window was closed; the session goes on
        running = self.job is not None
        chosen = self.session.chosen
        ready = chosen is not None and self.images.count() > 0
        self.show_model(chosen)
        layer = self._layer()
        self.show_place(large=layer is not None and layers.pixels_of(layer) > MOST)
        if layer is not None and chosen is not None:
            self.place.suggest(usual_path(layer, chosen.name))
        self.run_button.setEnabled(ready and not running)
        self.cancel_button.setEnabled(running)
        if not running and self.images.count() == 0:
            self.status.setText("Open an image to segment.")
        elif not running and self.status.text() == "Open an image to segment.":
            self.status.setText("Ready")

    # -- running ---------------------------------------------------------------

    def run(self) -> None:
        """Segment the chosen layer; a job that is running is left alone."""
        layer, entry = self._layer(), self.session.chosen
        if self.job is not None or layer is None or entry is None:
            return
        try:
            region = self._chosen_region()
        except FoveaError as error:
            self._complain(error)
            return
        assert region is not None
        settings = self.settings() | {"pixel_size": layers.pixel_size(layer)}
        self._note = {
            "source": layer.name,
            "model_file": str(entry.path),
            "region": self.region.currentText(),
            "region_offset": list(region.offset),
            "region_shape": list(np.shape(region.array)),
        }
        if is_large(region):
            classes = len(entry.header.classes)
            large = LargeRun(self.viewer, layer, region, classes=classes)
            load, backend = partial(self.session.load, entry), self.session.backend
            try:
                make = large.make(load, backend, self.place, settings)
            except FoveaError as error:
                self._complain(error)
                return
            self.large, self.results = large, None
            self._begin(Job(make))
        else:
            self._start(layer, region, entry, settings)

    def _start(
        self, layer: Image, region: Region, entry: Entry, settings: dict[str, Any]
    ) -> None:
        """Segment in memory."""
        live = self.live.isChecked()
        shared = self.session

        go = threading.Event()

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core
            from napari_fovea.inference import segment

            run = segment(
                np.asarray(region.array),
                shared.load(entry),
                rgb=region.rgb,
                device=shared.backend(),
                preview_every=_REDRAW if live else None,
                cancelled=cancelled,
                **settings,
            )
            yield next(run)  # the image is good: layers may be made for it
            while not go.wait(0.05) and not cancelled():
                pass
            with leaving_a_core():
                return (yield from run)

        self._go = go
        self.results = ResultLayers(
            self.viewer,
            layer,
            region,
            later=lambda f: QTimer.singleShot(0, f),
            in_order=live and settings.get("policy") == "seek",
        )
        self.large = None
        self._begin(Job(make))

    def _begin(self, job: Job) -> None:
        self._started = time.perf_counter()
        self._fraction = self._left = 0.0
        self.job = job
        self.job.yielded.connect(self._on_event)
        self.job.returned.connect(self._on_result)
        self.job.errored.connect(self._complain)
        self.job.finished.connect(self._on_finished)
        self.progress.setValue(0)
        self.status.setText("Starting…")
        self._enable()
        self.job.start()
        self._timer.start()

    def cancel(self) -> None:
        """Stop the run that is going on and keep what it has."""
        if self.job is not None:
            self.job.cancel()
            self.status.setText("Stopping…")

    def _on_event(self, event: Any) -> None:
        from napari_fovea.inference import Fixated, Preview, Started
        from napari_fovea.scale import Opened

        if self.large is not None:
            self.large.follow(event)
            if isinstance(event, Opened):
                # What an earlier run has left took no time.
                self._started, self._left = time.perf_counter(), event.fraction
            self._fraction = max(self._fraction, event.fraction)
        if self.results is None:
            return
        if isinstance(event, Preview):
            self.results.preview(event)
            return
        if isinstance(event, Started):
            live = self.live.isChecked()
            self.results.prepare(event, self._layers_are_there, live=live)
        elif isinstance(event, Fixated):
            self.results.fixated(event)
        self._fraction = max(self._fraction, event.fraction)

    def _layers_are_there(self) -> None:
        self._started = time.perf_counter()
        self._go.set()

    def _redraw(self) -> None:
        if self.job is None:
            return
        if self.large is not None:
            self.large.tick(live=self.live.isChecked())
        elif self.results is not None and self.live.isChecked():
            self.results.draw_path()
        if self._fraction > self._left and not self.job.cancelled:
            spent = time.perf_counter() - self._started
            left = spent * (1 - self._fraction) / (self._fraction - self._left)
            self.progress.setValue(int(1000 * self._fraction))
            blocks = self.large.blocks if self.large is not None else ""
            self.status.setText(
                f"{self._fraction:.0%} · {blocks}{duration(spent)} gone, "
                f"about {duration(left)} left"
            )

    def _on_result(self, result: Any) -> None:
        if result is None:
            return
        self._timer.stop()
        if self.large is not None:
            self.status.setText(self.large.finish(result, self._note))
            self.progress.setValue(1000)
        if self.results is None:
            return
        made = dict(result.provenance)
        note = {**self._note, "provenance": made, "python": python_of(self._note, made)}
        self.results.finish(result, note)
        self.progress.setValue(1000)
        how = "Stopped" if made["cancelled"] else "Done"
        looks = f"{made['fixations']} fixations, " if result.path is not None else ""
        if made["diameter_estimated"] and made["settings"]["diameter"] is not None:
            looks = f"about {made['settings']['diameter']:.0f} px across, {looks}"
        self.status.setText(
            f"{how}: {int(result.instances.max())} objects, {looks}"
            f"{duration(made['seconds'])} on {made['device']}"
        )

    def _complain(self, error: Exception) -> None:
        self.progress.setValue(0)
        if isinstance(error, FoveaError):
            self.status.setText(f"⚠ {error}")
        else:
            self.status.setText(f"⚠ {type(error).__name__}: {error}")

    def _on_finished(self) -> None:
        self._timer.stop()
        self.job = None
        self._enable()

    def changeEvent(self, event: Any) -> None:
        """Let go of a running job when napari takes the dock away."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._timer.stop()
            self.diameter.quit()
            if self.job is not None:
                self.job.quit()
                self.progress.setValue(0)
                self.status.setText("Stopped when the dock was closed")
