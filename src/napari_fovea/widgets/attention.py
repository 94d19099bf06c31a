"""The Attention dock: the maps that a network computed, laid on its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QVBoxLayout

from napari_fovea.errors import FoveaError
from napari_fovea.widgets import layers
from napari_fovea.widgets.asking import Asking
from napari_fovea.widgets.attention_form import AttentionForm
from napari_fovea.widgets.attention_layers import MapLayers
from napari_fovea.widgets.comparing import Comparison
from napari_fovea.widgets.dock import Dock
from napari_fovea.widgets.job import Job, call
from napari_fovea.widgets.looking import Looking
from napari_fovea.widgets.measuring import measure
from napari_fovea.widgets.path_choice import images
from napari_fovea.widgets.session import Session, session

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_fovea.inference import Attends, AttentionMap
    from napari_fovea.models import Entry
    from napari_fovea.retina import FocusPath

_PATIENCE = 400  # ms between a tick and the run that it starts


_NO_IMAGE = "Open an image to look at."


class AttentionDock(Dock):
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
        self.shown: MapLayers | None = None
        self.maps: dict[str, AttentionMap] = {}
        self.path: FocusPath | None = None
        self._offered: tuple[Entry | None, tuple[Attends, ...]] = (None, ())
        self._listing: Job | None = None
        self._tick = QTimer(self)
        self._tick.setSingleShot(True)
        self._tick.setInterval(_PATIENCE)
        self._tick.timeout.connect(lambda: self.looking.look())
        self.looking: Looking = Looking(self)
        self.comparison = Comparison(self)
        self.asking = Asking(self)
        layout = QVBoxLayout(self)
        layout.addWidget(self.form)
        self.setMinimumWidth(300)
        form = self.form
        form.tree.ticked.connect(self._ticked)
        form.look_button.clicked.connect(self.look_again)
        form.measure_button.clicked.connect(self.measure)
        form.images.currentIndexChanged.connect(self._image_chosen)
        form.region.currentIndexChanged.connect(self.forget)
        self.open()

    @property
    def job(self) -> Job | None:
        """The run that is going on."""
        return self.looking.job

    def take_hold(self) -> None:
        """Follow what happens in the viewer and in other docks."""
        events = self.viewer.layers.events
        events.inserted.connect(self.list_images)
        events.removed.connect(self._removed)
        events.renamed.connect(self.list_images)
        self.viewer.layers.selection.events.active.connect(self._follow_selection)
        self.viewer.dims.events.current_step.connect(self._plane_changed)
        self.session.changed.connect(self._model_changed)
        self.asking.take_hold()

    def let_go(self) -> None:
        """Leave the viewer alone: the dock is closed."""
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

    def refresh(self) -> None:
        """List images and maps."""
        self.list_images()
        self._follow_selection()
        self._model_changed()

    # -- what can be looked at ---------------------------------------------------------

    def abandon(self) -> None:
        """Report nothing any more: the window is gone."""
        self.session.changed.disconnect(self._model_changed)
        for job in (self.job, self._listing, self.asking.job):
            if job is not None:
                job.quit()

    def list_choices(self) -> None:
        """List the user's image layers."""
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
        self.forget()

    def _removed(self, event: Any = None) -> None:
        if self.shown is not None and self.shown.source not in self.viewer.layers:
            gone = self.shown.source.name
            self.forget()
            self.list_images()
            self.form.say(f"The image {gone!r} was removed.", wrong=True)
            return
        for name in list(self.maps):
            if self.shown is not None and self.shown.layer(name) is None:
                del self.maps[name]  # the user took it away
                self.form.tree.tick(name, False)
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
        self._listing.errored.connect(
            self.safely(lambda error: self._not_listed(entry, error))
        )
        self._listing.finished.connect(self._listed)
        self._listing.start()

    def _not_listed(self, entry: Entry, error: Exception) -> None:
        self._offer((entry, ()))
        self.complain(error)

    def _offer(self, found: tuple[Entry, tuple[Attends, ...]]) -> None:
        self._offered = found
        self.forget()
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
            form.say(_NO_IMAGE)
        elif form.status.text() == _NO_IMAGE and self.image is not None:
            form.say("Tick a map to see it on the image.")

    def forget(self, index: int = 0) -> None:
        """Keep no maps: they are of another image, region or model."""
        self.comparison.leave()
        self.asking.clear()
        if self.shown is not None:
            self.shown.hide_all()
        if self.looking.job is not None:  # of what is no longer looked at
            self.looking.job.cancel()
        self.looking.failed = False
        self.maps, self.path, self.shown = {}, None, None
        self.look_for_missing()

    def _plane_changed(self, event: Any = None) -> None:
        """Look at the plane that has come into view."""
        image = self.image
        if image is None or image.ndim < 3 or self.shown is None:
            return
        try:
            region = self.region(image)
        except FoveaError:
            return
        if region.offset != self.shown.region.offset:
            self.forget()

    # -- looking -----------------------------------------------------------------------

    def region(self, image: Image) -> layers.Region:
        """Take the plane, or what is in view of it."""
        return layers.region_of(image, self.viewer.dims, self.form.region.currentText())

    def _ticked(self, name: str, shown: bool) -> None:
        self.comparison.ticked(name, shown)
        if not shown:
            if self.shown is not None:
                self.shown.hide(name)
            self.comparison.arrange()
        elif name in self.maps:
            self.show_map(name)
            self.comparison.arrange()
        else:
            self._tick.start()
        self.enable()

    def look_again(self) -> None:
        """Run the model, also where its maps are known."""
        self.forget()
        self._tick.stop()
        self.looking.look()

    def look_for_missing(self) -> None:
        """Run the model soon if a ticked map is not there."""
        missing = set(self.form.tree.shown) - self.maps.keys()
        if missing and self.image is not None and not self.looking.failed:
            self._tick.start()

    def complain(self, error: Exception) -> None:
        """Show what went wrong."""
        name = "" if isinstance(error, FoveaError) else f"{type(error).__name__}: "
        self.form.say(f"{name}{error}", wrong=True)

    # -- showing -----------------------------------------------------------------------

    def show_map(self, name: str) -> None:
        """Show a map that is there."""
        if self.shown is not None:
            self.shown.show(self.maps[name], opacity=self.opacity())

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
                self.shown = MapLayers(self.viewer, image, self.region(image))
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
