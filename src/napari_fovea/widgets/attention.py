"""The Attention dock: the maps that a network computed, laid on its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.asking import Asking
from napari_fovea.widgets.attention_form import AttentionForm
from napari_fovea.widgets.attention_layers import MapLayers, spread
from napari_fovea.widgets.comparing import Comparison
from napari_fovea.widgets.job import Job, call
from napari_fovea.widgets.measuring import measure
from napari_fovea.widgets.path_choice import images
from napari_fovea.widgets.session import Session, session

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari.layers import Image

    from napari_fovea.inference import Attends, AttentionMap
    from napari_fovea.models import Entry
    from napari_fovea.retina import FocusPath

_PATIENCE = 400  # ms between a tick and the run that it starts


class AttentionDock(QWidget):
    """Show where a network attends.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where the layers are.
    shared : Session, optional
        What the docks share; one for all by default.
    """

    def __init__(self, napari_viewer: Any, *, shared: Session | None = None) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = shared or session()
        self.form = AttentionForm(self.session)
        self.job: Job | None = None
        self.shown: MapLayers | None = None
        self.maps: dict[str, AttentionMap] = {}
        self.path: FocusPath | None = None
        self._offered: tuple[Entry | None, tuple[Attends, ...]] = (None, ())
        self._listing: Job | None = None
        self._holds = False
        self._tick = QTimer(self)
        self._tick.setSingleShot(True)
        self._tick.setInterval(_PATIENCE)
        self._tick.timeout.connect(self.look)
        self.comparison = Comparison(self)
        self.asking = Asking(self)
        layout = QVBoxLayout(self)
        layout.addWidget(self.form)
        self.setMinimumWidth(300)
        form = self.form
        form.tree.ticked.connect(self._ticked)
        form.look_button.clicked.connect(self.look_again)
        form.cancel_button.clicked.connect(self.cancel)
        form.measure_button.clicked.connect(self.measure)
        form.images.currentIndexChanged.connect(self._image_chosen)
        form.region.currentIndexChanged.connect(self._forget)
        self._take_hold()
        self.list_images()
        self._follow_selection()
        self._model_changed()

    def _take_hold(self) -> None:
        """Follow what happens in the viewer and in other docks."""
        self._holds = True
        events = self.viewer.layers.events
        events.inserted.connect(self.list_images)
        events.removed.connect(self._removed)
        events.renamed.connect(self.list_images)
        self.viewer.layers.selection.events.active.connect(self._follow_selection)
        self.viewer.dims.events.current_step.connect(self._plane_changed)
        self.session.changed.connect(self._model_changed)
        self.asking.take_hold()

    def _let_go(self) -> None:
        """Leave the viewer alone: the dock is closed."""
        self._holds = False
        self._tick.stop()
        self.comparison.leave()
        events = self.viewer.layers.events
        events.inserted.disconnect(self.list_images)
        events.removed.disconnect(self._removed)
        events.renamed.disconnect(self.list_images)
        self.viewer.layers.selection.events.active.disconnect(self._follow_selection)
        self.viewer.dims.events.current_step.disconnect(self._plane_changed)
        self.session.changed.disconnect(self._model_changed)
        self.asking.let_go()
        for job in (self.job, self._listing):
            if job is not None:
                job.quit()

    def changeEvent(self, event: Any) -> None:
        """Let go of everything when napari takes the dock away."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is None and self._holds:
                self._let_go()
            elif self.parent() is not None and not self._holds:
                self._take_hold()
                self.list_images()
                self._model_changed()

    # -- what can be looked at ---------------------------------------------------------

    def reset_choices(self, event: Any = None) -> None:
        """List the images anew; napari calls this when layers change."""
        self.list_images()

    def list_images(self, event: Any = None) -> None:
        """List the user's image layers."""
        box = self.form.images
        before = box.currentData()
        box.blockSignals(True)
        box.clear()
        for layer in images(self.viewer.layers):
            box.addItem(layer.name, str(layer.unique_id))
        box.setCurrentIndex(max(0, box.findData(before)))
        box.blockSignals(False)
        if box.currentData() != before:
            self._image_chosen()
        self.enable()

    def _follow_selection(self, event: Any = None) -> None:
        active = self.viewer.layers.selection.active
        if active is None or not active.visible:
            return
        index = self.form.images.findData(str(active.unique_id))
        if index >= 0:
            self.form.images.setCurrentIndex(index)

    @property
    def image(self) -> Image | None:
        """The image layer that is looked at."""
        wanted = self.form.images.currentData()
        found = images(self.viewer.layers)
        return next((x for x in found if str(x.unique_id) == wanted), None)

    def _image_chosen(self, index: int = 0) -> None:
        image, box = self.image, self.form.region
        stack = image is not None and image.ndim > 2
        options = [layers.PLANE if stack else layers.WHOLE, layers.VIEW]
        if [box.itemText(i) for i in range(box.count())] != options:
            box.blockSignals(True)
            box.clear()
            box.addItems(options)
            box.blockSignals(False)
        self._forget()

    def _removed(self, event: Any = None) -> None:
        if self.shown is not None and self.shown.source not in self.viewer.layers:
            gone = self.shown.source.name
            if self.job is not None:
                self.job.cancel()
            self._forget()
            self.list_images()
            self.form.say(f"The image {gone!r} was removed.", wrong=True)
            return
        self.list_images()

    def _model_changed(self) -> None:
        entry = self.session.chosen
        if entry is None or entry == self._offered[0] or self._listing is not None:
            self.enable()
            return
        shared = self.session

        def read() -> tuple[Entry, tuple[Attends, ...]]:
            from napari_fovea.inference import attends

            return entry, attends(shared.load(entry))

        self._listing = Job(call(read))
        self._listing.returned.connect(self._offer)
        self._listing.errored.connect(self.complain)
        self._listing.finished.connect(self._listed)
        self._listing.start()

    def _offer(self, found: tuple[Entry, tuple[Attends, ...]]) -> None:
        self._offered = found
        self._forget()
        entry, maps = found
        self.form.tree.offer(maps, ())
        if maps:
            self.form.say("Tick a map to see it on the image.")
        else:
            self.form.say(
                f"{entry.name} has no attention to show; it has classes and their "
                "uncertainty, which the Segment dock shows: choose another model.",
                wrong=True,
            )

    def offers(self, entry: Entry) -> bool:
        """Whether the maps of a model are listed."""
        return self._offered[0] == entry and self._listing is None

    def _listed(self) -> None:
        self._listing = None
        self._model_changed()  # another may have been chosen meanwhile
        self.enable()

    def enable(self) -> None:
        """Enable what can be done now."""
        form, running = self.form, self.job is not None
        ready = self.image is not None and bool(self._offered[1])
        form.look_button.setEnabled(ready and not running and bool(form.tree.shown))
        form.tree.setEnabled(ready)
        form.ask.setEnabled(ready)
        form.measure_button.setEnabled(ready and bool(self.comparison.visible()))
        if self.image is None and not form.warns:
            form.say("Open an image to look at.")

    def _forget(self, index: int = 0) -> None:
        """Keep no maps: they are of another image, region or model."""
        self.comparison.leave()
        self.asking.clear()
        if self.shown is not None:
            self.shown.hide_all()
        self.maps, self.path, self.shown = {}, None, None
        if self.form.tree.shown and self.image is not None:
            self._tick.start()

    def _plane_changed(self, event: Any = None) -> None:
        """Look at the plane that has come into view."""
        image = self.image
        if image is None or image.ndim < 3 or self.shown is None:
            return
        try:
            region = self._region(image)
        except FoveaError:
            return
        if region.offset != self.shown.region.offset:
            self._forget()

    # -- looking -----------------------------------------------------------------------

    def _region(self, image: Image) -> layers.Region:
        return layers.region_of(image, self.viewer.dims, self.form.region.currentText())

    def _ticked(self, name: str, shown: bool) -> None:
        self.comparison.ticked(name, shown)
        if not shown:
            if self.shown is not None:
                self.shown.hide(name)
            self.comparison.arrange()
        elif name in self.maps:
            self._show(name)
            self.comparison.arrange()
        else:
            self._tick.start()
        self.enable()

    def look_again(self) -> None:
        """Run the model, also where its maps are known."""
        self._forget()
        self.look()

    def look(self) -> None:
        """Run the model and keep the ticked maps that are not there yet."""
        image, entry = self.image, self.session.chosen
        if self.job is not None or image is None or entry is None:
            return
        if entry != self._offered[0]:
            return  # its maps are being listed
        names = [n for n in self.form.tree.shown if n not in self.maps]
        self._tick.stop()
        if not names:
            self.enable()
            return
        try:
            region = self._region(image)
        except FoveaError as error:
            self.complain(error)
            return
        if self.shown is None or self.shown.region.offset != region.offset:
            self.shown = MapLayers(self.viewer, image, region)
        shared, shown = self.session, self.shown
        array, rgb = self.shown.region.array, region.rgb
        size = layers.pixel_size(image)

        def make(cancelled: Any) -> Generator[Any, None, Any]:
            from napari_fovea.device import leaving_a_core
            from napari_fovea.inference import segment

            with leaving_a_core():
                result = yield from segment(
                    np.asarray(array),
                    shared.load(entry),
                    rgb=rgb,
                    attention=names,
                    pixel_size=size,
                    device=shared.device,
                    cancelled=cancelled,
                )
            kept = {a.name: a for a in result.attention if a.name in names}
            return shown, kept, result.path, result.provenance

        self.form.busy(True)
        self.form.progress.setValue(0)
        self.form.say("Looking…")
        self.job = Job(make)
        self.job.yielded.connect(
            lambda event: self.form.progress.setValue(round(1000 * event.fraction))
        )
        self.job.returned.connect(self._looked)
        self.job.errored.connect(self.complain)
        self.job.finished.connect(self._finished)
        self.enable()
        self.job.start()

    def cancel(self) -> None:
        """Stop the run that is going on, and keep nothing of it."""
        if self.job is not None:
            self.job.cancel()
            self.form.say("Stopping…")

    def _looked(self, found: Any) -> None:
        shown, kept, path, made = found
        if shown is not self.shown:
            return  # of an image, a plane or a model that is no longer looked at
        if made["cancelled"]:
            self.form.say("Stopped; no map was kept.")
            for name in kept:
                self.form.tree.tick(name, False)
            return
        self.maps |= kept
        self.path = path if path is not None else self.path
        flat = []
        for name, attention in kept.items():
            low, high = spread(np.asarray(attention.array))
            self.form.tree.tell(name, low, high)
            if high - low < 1e-3:
                flat.append(name)
            if name in self.form.tree.shown:
                self._show(name)
        self.comparison.arrange()
        told = f"Looked in {made['seconds']:.1f} s on {made['device']}."
        if flat:
            told += f" {flat[0]} is the same everywhere: it selects nothing here."
        self.form.say(told)

    def _finished(self) -> None:
        self.job = None
        self.form.busy(False)
        self.enable()
        missing = set(self.form.tree.shown) - self.maps.keys()
        if missing and not self.form.warns:
            self._tick.start()

    def complain(self, error: Exception) -> None:
        """Show what went wrong."""
        name = "" if isinstance(error, FoveaError) else f"{type(error).__name__}: "
        self.form.say(f"{name}{error}", wrong=True)

    # -- showing -----------------------------------------------------------------------

    def _show(self, name: str) -> None:
        if self.shown is not None:
            opacity = self.form.opacity.value() / 100
            self.shown.show(self.maps[name], opacity=opacity)

    def measure(self) -> None:
        """Write means over objects into the instances' features."""
        if self.shown is None:
            return
        try:
            told = measure(
                self.shown, [self.maps[n] for n in self.comparison.visible()]
            )
        except FoveaError as error:
            self.complain(error)
            return
        self.form.say(told)

    def opacity(self) -> float:
        """Opacity that maps have, in [0, 1]."""
        return self.form.opacity.value() / 100

    def ready_to_ask(self) -> MapLayers | None:
        """Return the layers of the region in use, made if there are none yet."""
        image = self.image
        if image is None:
            return None
        if self.shown is None:
            try:
                self.shown = MapLayers(self.viewer, image, self._region(image))
            except FoveaError as error:
                self.complain(error)
        return self.shown

    def keep_path(self, path: FocusPath) -> None:
        """Remember the path of a scan that was made to answer a question."""
        self.path = path

    def point(self, step: int) -> None:
        """Let the player, if it is open, go to a fixation."""
        if self.path is not None:
            self.session.pointed.emit(self.path, step)
